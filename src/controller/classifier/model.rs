//! What was learnt, as plain numbers, and the answer that follows from them: above 0 is yes.

use super::network::{Attention, Perceptron, dot};
use super::trees::Trees;
use serde::{Deserialize, Serialize};

/// Most support vectors.
const VECTORS_MAX: usize = 1 << 16;

/// A trained model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Model {
    /// A weighted sum: logistic regression, or a linear support vector machine.
    Linear(Linear),
    /// Decision trees: a random forest, or gradient-boosted.
    Trees(Trees),
    /// A multi-layer perceptron.
    Perceptron(Perceptron),
    /// Attention to features, in steps.
    Attention(Attention),
    /// A support vector machine with a Gaussian kernel.
    Kernel(Kernel),
}

/// A weighted sum of the features.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Linear {
    /// By feature.
    pub weights: Vec<f64>,
    /// The sum's first term.
    pub bias: f64,
}

/// A weighted sum of nearness to support vectors: exp(-gamma |x - v|^2) each.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kernel {
    /// How fast nearness fades.
    pub gamma: f64,
    /// The support vectors.
    pub vectors: Vec<Vec<f64>>,
    /// By support vector.
    pub weights: Vec<f64>,
    /// The sum's first term.
    pub bias: f64,
}

impl Kernel {
    fn score(&self, values: &[f64]) -> f64 {
        let nearness = |vector: &[f64]| {
            let distance: f64 = vector.iter().zip(values).map(|(a, b)| (a - b) * (a - b)).sum();
            (-self.gamma * distance).exp()
        };
        self.vectors.iter().zip(&self.weights).fold(self.bias, |sum, (vector, weight)| sum + weight * nearness(vector))
    }
}

impl Model {
    /// Refuses numbers that do not fit together.
    pub(super) fn check(&self, features: usize) -> Result<(), String> {
        match self {
            Self::Linear(Linear { weights, .. }) if weights.len() != features => {
                Err(format!("{} weights for {features} features", weights.len()))
            }
            Self::Linear(_) => Ok(()),
            Self::Trees(trees) => trees.check(features),
            Self::Perceptron(perceptron) => perceptron.check(features),
            Self::Attention(attention) => attention.check(features),
            Self::Kernel(Kernel { vectors, weights, .. }) => {
                let count = vectors.len();
                if count > VECTORS_MAX || count != weights.len() || vectors.iter().any(|v| v.len() != features) {
                    return Err(format!("{count} support vectors that have not {features} numbers or a weight each"));
                }
                Ok(())
            }
        }
    }

    /// Its kind, as a file names it.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Linear(_) => "linear",
            Self::Trees(_) => "trees",
            Self::Perceptron(_) => "perceptron",
            Self::Attention(_) => "attention",
            Self::Kernel(_) => "kernel",
        }
    }

    /// Whether [`Model::learn`] changes it.
    pub fn learns(&self) -> bool {
        matches!(self, Self::Linear(_) | Self::Perceptron(_))
    }

    /// Brings the answer to normalised features nearer to yes or no, by one step down the gradient of the logistic loss, `rate` times as
    /// long. Allocates nothing.
    ///
    /// # Panics
    /// As [`Model::score`].
    pub fn learn(&mut self, values: &[f64], yes: bool, rate: f64, scratch: &mut [f64]) {
        let step = |score: f64| rate * (f64::from(u8::from(yes)) - 1.0 / (1.0 + (-score).exp()));
        match self {
            Self::Linear(Linear { weights, bias }) => {
                let step = step(dot(weights, values) + *bias);
                weights.iter_mut().zip(values).for_each(|(weight, value)| *weight += step * value);
                *bias += step;
            }
            Self::Perceptron(perceptron) => perceptron.learn(values, step, scratch),
            Self::Trees(_) | Self::Attention(_) | Self::Kernel(_) => {}
        }
    }

    /// Numbers of room that [`Model::score`] and [`Model::learn`] need.
    pub fn scratch(&self) -> usize {
        match self {
            Self::Linear(_) | Self::Trees(_) | Self::Kernel(_) => 0,
            Self::Perceptron(perceptron) => perceptron.scratch(),
            Self::Attention(attention) => attention.scratch(),
        }
    }

    /// The answer to normalised features. Allocates nothing.
    ///
    /// # Panics
    /// There are fewer features than the model was trained on, or `scratch` has less room than [`Model::scratch`].
    pub fn score(&self, values: &[f64], scratch: &mut [f64]) -> f64 {
        match self {
            Self::Linear(Linear { weights, bias }) => dot(weights, values) + bias,
            Self::Trees(trees) => trees.score(values),
            Self::Perceptron(perceptron) => perceptron.score(values, scratch),
            Self::Attention(attention) => attention.score(values, scratch),
            Self::Kernel(kernel) => kernel.score(values),
        }
    }
}
