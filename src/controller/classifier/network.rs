//! Dense layers, and networks of them: a perceptron, and one that attends to features in steps as TabNet does.

use serde::{Deserialize, Serialize};

/// Most inputs and outputs of a layer.
const WIDTH_MAX: usize = 1024;
/// Most layers of a perceptron, and most steps of attention.
const DEPTH_MAX: usize = 16;

/// A dense layer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dense {
    /// By output, the weights of all inputs.
    pub weights: Vec<Vec<f64>>,
    /// By output.
    pub bias: Vec<f64>,
}

impl Dense {
    fn outputs(&self) -> usize {
        self.bias.len()
    }

    fn check(&self, name: &str, inputs: usize) -> Result<(), String> {
        let outputs = self.outputs();
        let fits = self.weights.len() == outputs && self.weights.iter().all(|row| row.len() == inputs);
        if !fits || outputs == 0 || outputs > WIDTH_MAX || inputs > WIDTH_MAX {
            return Err(format!("{name}: its weights are not {outputs} rows of {inputs} numbers"));
        }
        Ok(())
    }

    fn apply(&self, input: &[f64], output: &mut [f64]) {
        for ((row, bias), output) in self.weights.iter().zip(&self.bias).zip(output) {
            *output = dot(row, input) + bias;
        }
    }
}

pub(super) fn dot(one: &[f64], other: &[f64]) -> f64 {
    one.iter().zip(other).map(|(a, b)| a * b).sum()
}

/// A perceptron: what is below 0 after a layer is 0 for the next one. The last layer has one output.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Perceptron {
    /// From the features to the answer.
    pub layers: Vec<Dense>,
}

impl Perceptron {
    pub(super) fn check(&self, features: usize) -> Result<(), String> {
        if self.layers.len() > DEPTH_MAX {
            return Err(format!("{} layers; the most are {DEPTH_MAX}", self.layers.len()));
        }
        let mut inputs = features;
        for (at, layer) in self.layers.iter().enumerate() {
            layer.check(&format!("layer {at}"), inputs)?;
            inputs = layer.outputs();
        }
        if self.layers.is_empty() || inputs != 1 {
            return Err(format!("its last layer has {inputs} outputs, and not one"));
        }
        Ok(())
    }

    fn width(&self) -> usize {
        self.layers.iter().map(Dense::outputs).max().unwrap_or(0)
    }

    pub(super) fn scratch(&self) -> usize {
        let inputs = self.layers.first().and_then(|layer| layer.weights.first()).map_or(0, Vec::len);
        inputs + 2 * self.layers.iter().map(Dense::outputs).sum::<usize>()
    }

    /// Moves every weight by its part in the answer, times what `step` makes of the answer.
    pub(super) fn learn(&mut self, values: &[f64], step: impl Fn(f64) -> f64, scratch: &mut [f64]) {
        let (parts, scratch) = scratch.split_at_mut(values.len());
        learn(&mut self.layers, values, parts, &step, scratch);
    }

    pub(super) fn score(&self, values: &[f64], scratch: &mut [f64]) -> f64 {
        let (mut this, mut next) = scratch.split_at_mut(self.width());
        let mut input = values;
        for (at, layer) in self.layers.iter().enumerate() {
            let output = &mut next[..layer.outputs()];
            layer.apply(input, output);
            if at + 1 < self.layers.len() {
                output.iter_mut().for_each(|value| *value = value.max(0.0));
            }
            std::mem::swap(&mut this, &mut next);
            input = &this[..layer.outputs()];
        }
        input[0]
    }
}

/// Moves the weights of layers, and leaves the inputs' parts in the answer, times the step, in `parts`. Without a layer the input is the answer.
fn learn(layers: &mut [Dense], input: &[f64], parts: &mut [f64], step: &impl Fn(f64) -> f64, scratch: &mut [f64]) {
    let Some((layer, rest)) = layers.split_first_mut() else {
        parts[0] = step(input[0]);
        return;
    };
    let (output, scratch) = scratch.split_at_mut(layer.outputs());
    let (output_parts, scratch) = scratch.split_at_mut(layer.outputs());
    layer.apply(input, output);
    if !rest.is_empty() {
        output.iter_mut().for_each(|value| *value = value.max(0.0));
    }
    learn(rest, output, output_parts, step, scratch);
    if !rest.is_empty() {
        output_parts.iter_mut().zip(&*output).filter(|(_, value)| **value == 0.0).for_each(|(part, _)| *part = 0.0);
    }
    parts.fill(0.0);
    for ((row, bias), output_part) in layer.weights.iter_mut().zip(&mut layer.bias).zip(&*output_parts) {
        for ((weight, part), value) in row.iter_mut().zip(&mut *parts).zip(input) {
            *part += output_part * *weight;
            *weight += output_part * value;
        }
        *bias += output_part;
    }
}

/// Attention to features in steps, after TabNet (Arik and Pfister, AAAI 2021), with softmax in place of sparsemax and without batch normalisation.
///
/// A step weighs the features by a softmax of what the step before has made of them, times what is left of each feature: one that was attended to
/// counts for less in the steps after. A gated linear unit makes a vector of the weighed features. What is above 0 of all steps' vectors is summed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attention {
    /// What each feature keeps of its worth after a step is this less its weight there.
    pub relaxation: f64,
    /// The first vector, from all features: twice its width, values then gates.
    pub first: Dense,
    /// The steps: what weighs the features, from the vector before; and what makes the next vector of them, values then gates.
    pub steps: Vec<(Dense, Dense)>,
    /// From the summed vectors to the answer.
    pub last: Dense,
}

impl Attention {
    fn width(&self) -> usize {
        self.first.outputs() / 2
    }

    pub(super) fn check(&self, features: usize) -> Result<(), String> {
        self.first.check("the first layer", features)?;
        let width = self.width();
        if self.steps.is_empty() || self.steps.len() > DEPTH_MAX {
            return Err(format!("{} steps; give 1 to {DEPTH_MAX}", self.steps.len()));
        }
        for (at, (weighs, makes)) in self.steps.iter().enumerate() {
            weighs.check(&format!("the mask of step {at}"), width)?;
            makes.check(&format!("step {at}"), features)?;
            if weighs.outputs() != features || makes.outputs() != 2 * width {
                return Err(format!("step {at} is not of {features} features and {width} values"));
            }
        }
        self.last.check("the last layer", width)?;
        if self.last.outputs() != 1 || self.first.outputs() % 2 == 1 {
            return Err("its first layer has an odd number of outputs, or its last not one".into());
        }
        Ok(())
    }

    pub(super) fn scratch(&self) -> usize {
        let features = self.steps.first().map_or(0, |(weighs, _)| weighs.outputs());
        3 * features + 4 * self.width()
    }

    pub(super) fn score(&self, values: &[f64], scratch: &mut [f64]) -> f64 {
        let (features, width) = (values.len(), self.width());
        let (left, rest) = scratch.split_at_mut(features);
        let (mask, rest) = rest.split_at_mut(features);
        let (weighed, rest) = rest.split_at_mut(features);
        let (gated, rest) = rest.split_at_mut(2 * width);
        let (vector, rest) = rest.split_at_mut(width);
        let sum = &mut rest[..width];
        left.fill(1.0);
        sum.fill(0.0);
        self.first.apply(values, gated);
        gate(gated, vector);
        for (weighs, makes) in &self.steps {
            weighs.apply(vector, mask);
            softmax(mask);
            for (((mask, left), weighed), value) in mask.iter().zip(&mut *left).zip(&mut *weighed).zip(values) {
                let weight = mask * *left;
                *left *= self.relaxation - mask;
                *weighed = weight * value;
            }
            makes.apply(weighed, gated);
            gate(gated, vector);
            sum.iter_mut().zip(&*vector).for_each(|(sum, value)| *sum += value.max(0.0));
        }
        dot(&self.last.weights[0], sum) + self.last.bias[0]
    }
}

/// A gated linear unit: the first half, each times the logistic function of the other half's.
fn gate(gated: &[f64], vector: &mut [f64]) {
    let (values, gates) = gated.split_at(vector.len());
    for ((value, gate), output) in values.iter().zip(gates).zip(vector) {
        *output = value / (1.0 + (-gate).exp());
    }
}

fn softmax(values: &mut [f64]) {
    let most = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    values.iter_mut().for_each(|value| *value = (*value - most).exp());
    let sum: f64 = values.iter().sum();
    values.iter_mut().for_each(|value| *value /= sum);
}
