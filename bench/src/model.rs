//! GraphSAGE (Hamilton, Ying and Leskovec, 2017) with the mean aggregator, on Candle, on one core.
//!
//! A layer is `[own row | mean of the sampled neighbours' rows] * weight + bias`: one product does the work of the two that the paper
//! writes. Own row and mean come from one pass over the block, which is an operation of our own, because Candle's gather and
//! scatter-add would write every arc's row to memory first. Gradients leave as one flat vector, so that averaging over ranks is one
//! reduction. Everything is computed in a fixed order: the same seed gives the same bits.

use crate::graph::mix_all;
use crate::sampler::{Block, Minibatch};
use anyhow::{Context, Result, ensure};
use candle_core::{CpuStorage, CustomOp1, D, Device, Layout, Shape, Tensor, Var};
use rand::{Rng, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;
use std::sync::Arc;

/// Most parameters of a model: the gradients of a rank are averaged by one collective, which takes 64 MiB of each.
const PARAMETERS_MAX: usize = (1 << 24) - 64;

/// The size of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModelShape {
    /// Columns of the input features.
    pub input: usize,
    /// Columns between layers.
    pub hidden: usize,
    /// Number of classes.
    pub classes: usize,
    /// Number of layers, one a fan-out.
    pub layers: usize,
}

impl ModelShape {
    /// Rows and columns of a layer's weights.
    fn layer(&self, at: usize) -> (usize, usize) {
        let from = if at == 0 { self.input } else { self.hidden };
        (from.saturating_mul(2), if at + 1 == self.layers { self.classes } else { self.hidden })
    }

    /// The number of parameters, at most [`PARAMETERS_MAX`].
    fn parameters(&self) -> Result<usize> {
        let of_layer = |(from, to): (usize, usize)| from.checked_add(1)?.checked_mul(to);
        let sum = |sum: usize, at| sum.checked_add(of_layer(self.layer(at))?).filter(|sum| *sum <= PARAMETERS_MAX);
        (0..self.layers).try_fold(0, sum).with_context(|| {
            format!("{self:?} has more than {PARAMETERS_MAX} parameters: choose a smaller --hidden or fewer --fanout")
        })
    }
}

struct Layer {
    weight: Var,
    bias: Var,
}

/// A GraphSAGE classifier.
pub struct GraphSage {
    shape: ModelShape,
    layers: Vec<Layer>,
    parameters: Vec<f32>,
    adam: Adam,
}

/// What a forward pass leaves for the backward one.
struct Pass {
    /// `[own row | mean]` of the input features.
    aggregated: Tensor,
    /// The first layer's product, a leaf: its backward is ours.
    first: Var,
    logits: Tensor,
}

impl GraphSage {
    /// A model with weights drawn from `seed` (Glorot and Bengio, 2010): the same on every rank.
    ///
    /// # Errors
    /// A size is 0, or the model has more parameters than can be averaged.
    pub fn new(shape: ModelShape, learning_rate: f32, seed: u64) -> Result<Self> {
        let ModelShape { input, hidden, classes, layers } = shape;
        ensure!(input.min(hidden).min(classes).min(layers) > 0, "a model needs columns, classes and layers: {shape:?}");
        let parameters = Vec::with_capacity(shape.parameters()?);
        let mut random = Xoshiro256PlusPlus::seed_from_u64(mix_all([seed, 0x3DE1]));
        let mut model = Self { shape, layers: Vec::new(), parameters, adam: Adam::new(learning_rate) };
        for at in 0..layers {
            let (from, to) = shape.layer(at);
            let bound = (6.0 / (from + to) as f32).sqrt();
            model.parameters.extend((0..from * to).map(|_| random.random_range(-bound..bound)));
            model.parameters.extend(std::iter::repeat_n(0.0, to));
            model.layers.push(Layer {
                weight: Var::zeros((from, to), candle_core::DType::F32, &Device::Cpu)?,
                bias: Var::zeros(to, candle_core::DType::F32, &Device::Cpu)?,
            });
        }
        model.load_parameters()?;
        Ok(model)
    }

    /// The mean cross-entropy of a minibatch, whose input features are `rows` in the order of its input nodes; its gradients go to
    /// `gradients`, layer after layer, weights before biases.
    ///
    /// # Errors
    /// The rows or labels are not those of the minibatch.
    pub fn loss_and_gradients(
        &self,
        minibatch: &Minibatch,
        rows: &[f32],
        labels: &[u16],
        gradients: &mut Vec<f32>,
    ) -> Result<f32> {
        let pass = self.forward(minibatch, rows)?;
        let targets = self.targets(minibatch, labels)?;
        let loss = candle_nn::loss::cross_entropy(&pass.logits, &targets)?;
        let store = loss.backward()?;
        let first = store.get(pass.first.as_tensor()).context("the loss does not depend on the first layer")?;
        gradients.clear();
        append(gradients, &pass.aggregated.t()?.matmul(first)?)?;
        append(gradients, &first.sum(0)?)?;
        for layer in &self.layers[1..] {
            for parameter in [&layer.weight, &layer.bias] {
                append(gradients, store.get(parameter.as_tensor()).context("the loss does not depend on a layer")?)?;
            }
        }
        Ok(loss.to_scalar()?)
    }

    /// One step of Adam with gradients that were averaged over the ranks.
    ///
    /// # Errors
    /// There is not one gradient a parameter.
    pub fn apply(&mut self, gradients: &[f32]) -> Result<()> {
        let count = self.parameters.len();
        ensure!(gradients.len() == count, "{} gradients for {count} parameters", gradients.len());
        self.adam.step(&mut self.parameters, gradients);
        self.load_parameters()
    }

    /// How many of the minibatch's seeds are given their class.
    ///
    /// # Errors
    /// The rows or labels are not those of the minibatch.
    pub fn correct(&self, minibatch: &Minibatch, rows: &[f32], labels: &[u16]) -> Result<usize> {
        let logits = self.forward(minibatch, rows)?.logits;
        let predicted = logits.argmax(D::Minus1)?.to_vec1::<u32>()?;
        let expected = self.targets(minibatch, labels)?.to_vec1::<u32>()?;
        Ok(predicted.iter().zip(&expected).filter(|(predicted, expected)| predicted == expected).count())
    }

    fn forward(&self, minibatch: &Minibatch, rows: &[f32]) -> Result<Pass> {
        let blocks = &minibatch.blocks;
        ensure!(blocks.len() == self.shape.layers, "{} blocks for {} layers", blocks.len(), self.shape.layers);
        let width = self.shape.input;
        ensure!(
            rows.len() == minibatch.input_nodes.len() * width,
            "{} numbers are not {} rows of {width}",
            rows.len(),
            minibatch.input_nodes.len()
        );
        let aggregated = aggregate(&blocks[0], rows, width);
        let aggregated = Tensor::from_vec(aggregated, (blocks[0].destinations(), 2 * width), &Device::Cpu)?;
        // Candle would also compute the gradient of a product's left side, as costly as the product itself, and here it is the input
        // features, which are not trained: so the first layer's result is a leaf.
        let first = Var::from_tensor(&self.layers[0].product(&aggregated)?.detach())?;
        let mut logits = first.as_tensor().clone();
        for (layer, block) in self.layers[1..].iter().zip(&blocks[1..]) {
            let joined = logits.relu()?.apply_op1(SelfAndMean { block: block.clone() })?;
            logits = layer.product(&joined)?;
        }
        Ok(Pass { aggregated, first, logits })
    }

    fn targets(&self, minibatch: &Minibatch, labels: &[u16]) -> Result<Tensor> {
        let targets: Option<Vec<u32>> =
            minibatch.seeds.iter().map(|seed| labels.get(seed.index()).map(|&label| label.into())).collect();
        let targets = targets.context("a seed has no label")?;
        ensure!(targets.iter().all(|&label| (label as usize) < self.shape.classes), "a label is not below the classes");
        Ok(Tensor::from_vec(targets, minibatch.seeds.len(), &Device::Cpu)?)
    }

    fn load_parameters(&self) -> Result<()> {
        let mut rest = &self.parameters[..];
        for variable in self.layers.iter().flat_map(|layer| [&layer.weight, &layer.bias]) {
            let (own, after) = rest.split_at(variable.elem_count());
            variable.set(&Tensor::from_slice(own, variable.shape(), &Device::Cpu)?)?;
            rest = after;
        }
        Ok(())
    }
}

impl Layer {
    fn product(&self, joined: &Tensor) -> candle_core::Result<Tensor> {
        joined.matmul(&self.weight)?.broadcast_add(&self.bias)
    }
}

fn append(gradients: &mut Vec<f32>, tensor: &Tensor) -> Result<()> {
    gradients.extend(tensor.flatten_all()?.to_vec1::<f32>()?);
    Ok(())
}

/// Adam (Kingma and Ba, 2015) with its published decay rates.
struct Adam {
    learning_rate: f32,
    steps: i32,
    mean: Vec<f32>,
    square: Vec<f32>,
}

impl Adam {
    const MEAN_DECAY: f32 = 0.9;
    const SQUARE_DECAY: f32 = 0.999;
    const EPSILON: f32 = 1e-8;

    fn new(learning_rate: f32) -> Self {
        Self { learning_rate, steps: 0, mean: Vec::new(), square: Vec::new() }
    }

    fn step(&mut self, parameters: &mut [f32], gradients: &[f32]) {
        self.mean.resize(parameters.len(), 0.0);
        self.square.resize(parameters.len(), 0.0);
        self.steps = self.steps.saturating_add(1);
        let mean_scale = 1.0 / (1.0 - Self::MEAN_DECAY.powi(self.steps));
        let square_scale = 1.0 / (1.0 - Self::SQUARE_DECAY.powi(self.steps));
        let moments = self.mean.iter_mut().zip(&mut self.square);
        for ((parameter, &gradient), (mean, square)) in parameters.iter_mut().zip(gradients).zip(moments) {
            *mean = Self::MEAN_DECAY * *mean + (1.0 - Self::MEAN_DECAY) * gradient;
            *square = Self::SQUARE_DECAY * *square + (1.0 - Self::SQUARE_DECAY) * gradient * gradient;
            *parameter -= self.learning_rate * *mean * mean_scale / ((*square * square_scale).sqrt() + Self::EPSILON);
        }
    }
}

/// For each destination its own row and the mean of its sampled neighbours' rows, side by side; the mean of none is 0.
fn aggregate(block: &Block, rows: &[f32], width: usize) -> Vec<f32> {
    let mut joined = vec![0.0; block.destinations() * 2 * width];
    for (destination, out) in joined.chunks_exact_mut(2 * width).enumerate() {
        let (own, mean) = out.split_at_mut(width);
        own.copy_from_slice(&rows[destination * width..][..width]);
        let sources = block.row(destination);
        for &source in sources {
            let row = &rows[source as usize * width..][..width];
            mean.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
        }
        let share = 1.0 / sources.len().max(1) as f32;
        mean.iter_mut().for_each(|sum| *sum *= share);
    }
    joined
}

/// The transpose of [`aggregate`]: from the gradient of what it returns to the gradient of its rows.
fn spread(block: &Block, joined: &[f32], width: usize) -> Vec<f32> {
    let mut rows = vec![0.0; block.source_nodes * width];
    for (destination, gradient) in joined.chunks_exact(2 * width).enumerate() {
        let (own, mean) = gradient.split_at(width);
        let row = &mut rows[destination * width..][..width];
        row.iter_mut().zip(own).for_each(|(sum, value)| *sum += value);
        let sources = block.row(destination);
        let share = 1.0 / sources.len().max(1) as f32;
        for &source in sources {
            let row = &mut rows[source as usize * width..][..width];
            row.iter_mut().zip(mean).for_each(|(sum, value)| *sum += share * value);
        }
    }
    rows
}

/// [`aggregate`] as an operation that Candle differentiates.
struct SelfAndMean {
    block: Arc<Block>,
}

struct SelfAndMeanGradient {
    block: Arc<Block>,
}

impl CustomOp1 for SelfAndMean {
    fn name(&self) -> &'static str {
        "self-and-mean"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let (rows, width) = matrix(storage, layout, self.block.source_nodes)?;
        let shape = (self.block.destinations(), 2 * width).into();
        Ok((CpuStorage::F32(aggregate(&self.block, rows, width)), shape))
    }

    fn bwd(&self, _arg: &Tensor, _res: &Tensor, gradient: &Tensor) -> candle_core::Result<Option<Tensor>> {
        gradient.contiguous()?.apply_op1_no_bwd(&SelfAndMeanGradient { block: self.block.clone() }).map(Some)
    }
}

impl CustomOp1 for SelfAndMeanGradient {
    fn name(&self) -> &'static str {
        "self-and-mean-gradient"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let (joined, columns) = matrix(storage, layout, self.block.destinations())?;
        let width = columns / 2;
        Ok((CpuStorage::F32(spread(&self.block, joined, width)), (self.block.source_nodes, width).into()))
    }
}

/// The contiguous numbers of a matrix that must have this many rows, and its number of columns.
fn matrix<'a>(storage: &'a CpuStorage, layout: &Layout, rows: usize) -> candle_core::Result<(&'a [f32], usize)> {
    let (found, columns) = layout.shape().dims2()?;
    let Some((start, end)) = layout.contiguous_offsets() else { candle_core::bail!("the matrix is not contiguous") };
    if found != rows {
        candle_core::bail!("a matrix of {found} rows for a block of {rows}");
    }
    Ok((&storage.as_slice::<f32>()?[start..end], columns))
}

#[cfg(test)]
mod tests {
    //! Goal: gradients are right, training learns, and ranks that average stay alike, to the bit.
    //! Method: finite differences on tiny models; a few hundred steps on small generated graphs.

    use super::*;
    use crate::graph::{Graph, GraphSpec, Split};
    use crate::sampler::{EpochOrder, Position, Sampler};
    use rudder::{NodeId, Rank};

    const WIDTH: usize = 6;

    fn graph() -> Graph {
        "sbm:nodes=600,degree=12,communities=5,dim=6".parse::<GraphSpec>().unwrap().load(2).unwrap()
    }

    fn shape(hidden: usize, layers: usize) -> ModelShape {
        ModelShape { input: WIDTH, hidden, classes: 5, layers }
    }

    fn rows(graph: &Graph, nodes: &[NodeId]) -> Vec<f32> {
        let mut rows = vec![0.0; nodes.len() * WIDTH];
        for (node, row) in nodes.iter().zip(rows.chunks_exact_mut(WIDTH)) {
            graph.features.write_row(node.0 as u32, row).unwrap();
        }
        rows
    }

    fn one_minibatch(graph: &Graph, fanouts: &[usize]) -> Minibatch {
        let mut minibatch = Minibatch::default();
        let seeds: Vec<NodeId> = (0..30).map(NodeId).collect();
        Sampler::new(graph.topology.clone(), fanouts, 1, Rank(0)).unwrap().sample(
            Position { epoch: 0, step: 0 },
            &seeds,
            &mut minibatch,
        );
        minibatch
    }

    /// Train for some epochs; the losses and the accuracy on the test split.
    fn train(epochs: u64) -> (Vec<f32>, f64) {
        let graph = graph();
        let nodes = |split| -> Vec<NodeId> {
            (0..graph.nodes() as u32).filter(|&node| graph.is_in(node, split)).map(|node| NodeId(node.into())).collect()
        };
        let mut order = EpochOrder::new(nodes(Split::Train), 64, 6, 1, Rank(0)).unwrap();
        let mut sampler = Sampler::new(graph.topology.clone(), &[5, 5], 1, Rank(0)).unwrap();
        let mut model = GraphSage::new(shape(16, 2), 0.01, 1).unwrap();
        let (mut minibatch, mut seeds, mut gradients, mut losses) = (Minibatch::default(), vec![], vec![], vec![]);
        for index in 0..epochs * order.steps() {
            let position = order.position(index);
            order.seeds(position, &mut seeds);
            sampler.sample(position, &seeds, &mut minibatch);
            let rows = rows(&graph, &minibatch.input_nodes);
            losses.push(model.loss_and_gradients(&minibatch, &rows, &graph.labels, &mut gradients).unwrap());
            model.apply(&gradients).unwrap();
        }
        let test = nodes(Split::Test);
        sampler.sample(Position::evaluation(0), &test, &mut minibatch);
        let correct = model.correct(&minibatch, &rows(&graph, &minibatch.input_nodes), &graph.labels).unwrap();
        (losses, correct as f64 / test.len() as f64)
    }

    #[test]
    fn the_gradient_of_the_aggregation_is_its_transpose() {
        let graph = graph();
        let block = one_minibatch(&graph, &[4]).blocks[0].clone();
        let mut random = Xoshiro256PlusPlus::seed_from_u64(5);
        let mut draw = |count: usize| (0..count).map(|_| random.random_range(-1.0f32..1.0)).collect::<Vec<_>>();
        let rows = draw(block.source_nodes * 3);
        let weights = draw(block.destinations() * 2 * 3);
        let objective = |rows: &[f32]| -> f64 {
            aggregate(&block, rows, 3)
                .iter()
                .zip(&weights)
                .map(|(&value, &weight)| f64::from(value) * f64::from(weight))
                .sum()
        };
        let gradient = spread(&block, &weights, 3);
        for at in 0..rows.len() {
            let mut moved = rows.clone();
            moved[at] += 0.25;
            let difference = (objective(&moved) - objective(&rows)) / 0.25;
            assert!((difference - f64::from(gradient[at])).abs() < 1e-4, "{at}: {difference} and {}", gradient[at]);
        }
    }

    #[test]
    fn the_gradients_of_the_loss_are_those_of_finite_differences() {
        let graph = graph();
        for layers in 1..=3 {
            let minibatch = one_minibatch(&graph, &vec![3; layers]);
            let rows = rows(&graph, &minibatch.input_nodes);
            let mut model = GraphSage::new(shape(4, layers), 0.01, 3).unwrap();
            let (mut gradients, mut unused) = (vec![], vec![]);
            model.loss_and_gradients(&minibatch, &rows, &graph.labels, &mut gradients).unwrap();
            assert_eq!(gradients.len(), model.parameters.len());
            let mut loss_at = |model: &mut GraphSage, at: usize, value: f32| {
                model.parameters[at] = value;
                model.load_parameters().unwrap();
                model.loss_and_gradients(&minibatch, &rows, &graph.labels, &mut unused).unwrap()
            };
            // A step as small as f32 allows: a larger one crosses kinks of the rectifier.
            let step = 2e-3;
            for (at, &gradient) in gradients.iter().enumerate() {
                let value = model.parameters[at];
                let difference =
                    (loss_at(&mut model, at, value + step) - loss_at(&mut model, at, value - step)) / (2.0 * step);
                loss_at(&mut model, at, value);
                let error = (difference - gradient).abs();
                assert!(error < 5e-3, "{layers} layers, parameter {at}: {difference} and {gradient}");
            }
        }
    }

    #[test]
    fn training_learns_and_is_the_same_to_the_bit() {
        let (losses, accuracy) = train(25);
        let (first, last) = (losses[0], losses[losses.len() - 6..].iter().sum::<f32>() / 6.0);
        assert!(last < 0.5 * first, "from {first} to {last}");
        assert!(accuracy > 0.7, "{accuracy}, where chance is 0.2");
        let (again, accuracy_again) = train(25);
        assert!(losses.iter().map(|loss| loss.to_bits()).eq(again.iter().map(|loss| loss.to_bits())));
        assert_eq!(accuracy, accuracy_again);
    }

    #[test]
    fn ranks_begin_alike_and_the_average_of_equal_gradients_changes_nothing() {
        let graph = graph();
        let minibatch = one_minibatch(&graph, &[3, 3]);
        let rows = rows(&graph, &minibatch.input_nodes);
        let [mut alone, mut averaged] = [4, 4].map(|seed| GraphSage::new(shape(8, 2), 0.01, seed).unwrap());
        assert_eq!(alone.parameters, averaged.parameters);
        assert_ne!(alone.parameters, GraphSage::new(shape(8, 2), 0.01, 5).unwrap().parameters);
        let mut gradients = vec![];
        for _ in 0..3 {
            alone.loss_and_gradients(&minibatch, &rows, &graph.labels, &mut gradients).unwrap();
            let average: Vec<f32> = gradients.iter().map(|value| (value + value + value + value) / 4.0).collect();
            alone.apply(&gradients).unwrap();
            averaged.apply(&average).unwrap();
        }
        assert_eq!(alone.parameters, averaged.parameters);
    }

    #[test]
    fn what_does_not_belong_together_is_refused() {
        let graph = graph();
        let minibatch = one_minibatch(&graph, &[3, 3]);
        let all = rows(&graph, &minibatch.input_nodes);
        let mut model = GraphSage::new(shape(8, 2), 0.01, 4).unwrap();
        let mut gradients = vec![];
        for (rows, labels, words) in [
            (&all[1..], &graph.labels[..], "are not"),
            (&all[..], &graph.labels[..10], "no label"),
            (&all[..], &vec![9; graph.nodes()][..], "below the classes"),
        ] {
            let error = model.loss_and_gradients(&minibatch, rows, labels, &mut gradients).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
        assert!(GraphSage::new(shape(8, 3), 0.01, 4).unwrap().correct(&minibatch, &all, &graph.labels).is_err());
        assert!(GraphSage::new(shape(0, 2), 0.01, 4).is_err());
        for (hidden, layers) in [(1_000_000, 2), (usize::MAX, 3), (64, usize::MAX)] {
            let error = GraphSage::new(shape(hidden, layers), 0.01, 4).err().expect("refused").to_string();
            assert!(error.contains("a smaller --hidden"), "{error}");
        }
        assert!(model.apply(&[0.0; 3]).is_err());
    }
}
