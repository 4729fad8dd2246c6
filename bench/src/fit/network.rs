//! Networks that Candle trains, in double precision, so that what is evaluated later is what was trained.

use super::table::Table;
use anyhow::Result;
use candle_core::{D, Device, Tensor, Var};
use candle_nn::{AdamW, Optimizer, ParamsAdamW, loss, ops};
use rand::{Rng, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;
use rudder::controller::classifier::{Attention, Dense, Model, Perceptron};

/// Steps of the optimiser, each on all samples, and their length.
const STEPS: usize = 400;
const RATE: f64 = 0.01;
/// Shrinks weights, against learning samples by heart.
const DECAY: f64 = 0.01;
/// Hidden layers of the perceptron.
const HIDDEN: [usize; 2] = [32, 16];
/// Values of a step of attention, and the number of steps.
const ATTENDING: (usize, usize) = (8, 3);
/// What a feature keeps of its worth is this less its weight in a step.
const RELAXATION: f64 = 1.3;

/// A layer in training.
struct Layer {
    /// Inputs by outputs.
    weights: Var,
    bias: Var,
}

impl Layer {
    /// With weights drawn as Glorot and Bengio (2010) have it.
    fn drawn(inputs: usize, outputs: usize, random: &mut Xoshiro256PlusPlus) -> Result<Self> {
        let bound = (6.0 / (inputs + outputs) as f64).sqrt();
        let weights: Vec<f64> = (0..inputs * outputs).map(|_| random.random_range(-bound..bound)).collect();
        Ok(Self {
            weights: Var::from_tensor(&Tensor::from_vec(weights, (inputs, outputs), &Device::Cpu)?)?,
            bias: Var::zeros(outputs, candle_core::DType::F64, &Device::Cpu)?,
        })
    }

    fn apply(&self, input: &Tensor) -> Result<Tensor> {
        Ok(input.matmul(&self.weights)?.broadcast_add(&self.bias)?)
    }

    fn parameters(&self) -> [Var; 2] {
        [self.weights.clone(), self.bias.clone()]
    }

    fn export(&self) -> Result<Dense> {
        Ok(Dense { weights: self.weights.t()?.to_vec2()?, bias: self.bias.to_vec1()? })
    }
}

/// Takes the optimiser's steps on the cross-entropy of a network's answers.
fn train(table: &Table, parameters: Vec<Var>, forward: impl Fn(&Tensor) -> Result<Tensor>) -> Result<()> {
    let rows = Tensor::from_vec(table.rows.concat(), (table.rows.len(), table.columns()), &Device::Cpu)?;
    let labels: Vec<f64> = table.labels.iter().map(|&label| f64::from(u8::from(label))).collect();
    let labels = Tensor::from_vec(labels, (table.rows.len(), 1), &Device::Cpu)?;
    let settings = ParamsAdamW { lr: RATE, weight_decay: DECAY, ..ParamsAdamW::default() };
    let mut optimiser = AdamW::new(parameters, settings)?;
    for _ in 0..STEPS {
        // A logarithm of nothing would spoil all weights: an answer is never quite certain.
        let answers = forward(&rows)?.clamp(-30.0, 30.0)?;
        optimiser.backward_step(&loss::binary_cross_entropy_with_logit(&answers, &labels)?)?;
    }
    Ok(())
}

/// A multi-layer perceptron, in training.
struct Layers(Vec<Layer>);

impl Layers {
    fn drawn(features: usize, seed: u64) -> Result<Self> {
        let random = &mut Xoshiro256PlusPlus::seed_from_u64(seed);
        let widths: Vec<usize> = [features].into_iter().chain(HIDDEN).chain([1]).collect();
        Ok(Self(widths.windows(2).map(|pair| Layer::drawn(pair[0], pair[1], random)).collect::<Result<_>>()?))
    }

    fn forward(&self, rows: &Tensor) -> Result<Tensor> {
        let (first, rest) = self.0.split_first().expect("there is a layer");
        rest.iter().try_fold(first.apply(rows)?, |values, layer| layer.apply(&values.relu()?))
    }

    fn export(&self) -> Result<Perceptron> {
        Ok(Perceptron { layers: self.0.iter().map(Layer::export).collect::<Result<_>>()? })
    }
}

/// A multi-layer perceptron.
///
/// # Errors
/// Candle refuses.
pub fn perceptron(table: &Table, seed: u64) -> Result<Model> {
    let network = Layers::drawn(table.columns(), seed)?;
    let parameters = network.0.iter().flat_map(Layer::parameters).collect();
    train(table, parameters, |rows| network.forward(rows))?;
    Ok(Model::Perceptron(network.export()?))
}

/// Attention to features in steps, in training; see [`Attention`].
struct Attending {
    first: Layer,
    steps: Vec<(Layer, Layer)>,
    last: Layer,
}

impl Attending {
    fn drawn(features: usize, seed: u64) -> Result<Self> {
        let random = &mut Xoshiro256PlusPlus::seed_from_u64(seed);
        let (width, steps) = ATTENDING;
        let mut layer = |inputs, outputs| Layer::drawn(inputs, outputs, random);
        Ok(Self {
            first: layer(features, 2 * width)?,
            steps: (0..steps)
                .map(|_| Ok((layer(width, features)?, layer(features, 2 * width)?)))
                .collect::<Result<_>>()?,
            last: layer(width, 1)?,
        })
    }

    fn parameters(&self) -> Vec<Var> {
        let of_step = |(weighs, makes): &(Layer, Layer)| [weighs.parameters(), makes.parameters()].concat();
        let ends = [self.first.parameters(), self.last.parameters()].concat();
        ends.into_iter().chain(self.steps.iter().flat_map(of_step)).collect()
    }

    fn forward(&self, rows: &Tensor) -> Result<Tensor> {
        let mut left = rows.ones_like()?;
        let mut vector = gated(&self.first.apply(rows)?)?;
        let mut sum = vector.zeros_like()?;
        for (weighs, makes) in &self.steps {
            let mask = ops::softmax(&weighs.apply(&vector)?, D::Minus1)?;
            let weighed = ((&mask * &left)? * rows)?;
            left = (left * mask.affine(-1.0, RELAXATION)?)?;
            vector = gated(&makes.apply(&weighed)?)?;
            sum = (sum + vector.relu()?)?;
        }
        self.last.apply(&sum)
    }

    fn export(&self) -> Result<Attention> {
        let step = |(weighs, makes): &(Layer, Layer)| Ok((weighs.export()?, makes.export()?));
        Ok(Attention {
            relaxation: RELAXATION,
            first: self.first.export()?,
            steps: self.steps.iter().map(step).collect::<Result<_>>()?,
            last: self.last.export()?,
        })
    }
}

/// A gated linear unit.
fn gated(values: &Tensor) -> Result<Tensor> {
    let halves = values.chunk(2, D::Minus1)?;
    Ok((&halves[0] * ops::sigmoid(&halves[1])?)?)
}

/// Attention to features, after TabNet.
///
/// # Errors
/// Candle refuses.
pub fn attention(table: &Table, seed: u64) -> Result<Model> {
    let network = Attending::drawn(table.columns(), seed)?;
    train(table, network.parameters(), |rows| network.forward(rows))?;
    Ok(Model::Attention(network.export()?))
}

#[cfg(test)]
mod tests {
    //! Goal: what is exported answers as Candle's tensors do, and training learns. Method: weights drawn, rows drawn, and a label that no weighted
    //! sum tells.
    use super::*;
    use proptest::prelude::*;
    use rand::Rng;

    const FEATURES: usize = 17;

    fn rows() -> impl Strategy<Value = Vec<Vec<f64>>> {
        proptest::collection::vec(proptest::collection::vec(-3.0..3.0f64, FEATURES), 1..20)
    }

    fn agree(model: &Model, rows: &[Vec<f64>], said: &Tensor) -> Result<(), TestCaseError> {
        let mut scratch = vec![f64::NAN; model.scratch()];
        for (row, said) in rows.iter().zip(said.flatten_all().unwrap().to_vec1::<f64>().unwrap()) {
            let score = model.score(row, &mut scratch);
            prop_assert!((score - said).abs() < 1e-9, "{score} and {said}");
        }
        Ok(())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn attention_answers_as_its_tensors_do(rows in rows(), seed in any::<u64>()) {
            let network = Attending::drawn(FEATURES, seed).unwrap();
            let tensor = Tensor::from_vec(rows.concat(), (rows.len(), FEATURES), &Device::Cpu).unwrap();
            agree(&Model::Attention(network.export().unwrap()), &rows, &network.forward(&tensor).unwrap())?;
        }

        #[test]
        fn a_perceptron_answers_as_its_tensors_do(rows in rows(), seed in any::<u64>()) {
            let network = Layers::drawn(FEATURES, seed).unwrap();
            let tensor = Tensor::from_vec(rows.concat(), (rows.len(), FEATURES), &Device::Cpu).unwrap();
            agree(&Model::Perceptron(network.export().unwrap()), &rows, &network.forward(&tensor).unwrap())?;
        }
    }

    #[test]
    fn networks_learn_what_no_weighted_sum_tells() {
        let mut random = Xoshiro256PlusPlus::seed_from_u64(1);
        let mut row = || (0..FEATURES).map(|_| random.random_range(-1.0..1.0)).collect::<Vec<f64>>();
        let rows: Vec<Vec<f64>> = (0..300).map(|_| row()).collect();
        let labels = rows.iter().map(|row| row[0] * row[1] > 0.0).collect();
        let table = Table { rows, labels };
        for model in [perceptron(&table, 3).unwrap(), attention(&table, 3).unwrap()] {
            let mut scratch = vec![0.0; model.scratch()];
            let right = table.rows.iter().zip(&table.labels);
            let right = right.filter(|(row, label)| (model.score(row, &mut scratch) > 0.0) == **label).count();
            assert!(right > 255, "{right} of 300");
        }
    }
}
