//! The classifiers that can be trained, by name.

use super::table::Table;
use super::{network, smart};
use anyhow::Result;
use clap::ValueEnum;
use rudder::controller::classifier::{Linear, Model};
use serde::{Deserialize, Serialize};
use std::fmt;

/// A classifier that can be trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum ModelName {
    /// Logistic regression
    Logistic,
    /// A multi-layer perceptron
    Mlp,
    /// A random forest
    Forest,
    /// Gradient-boosted trees
    Boosted,
    /// A linear support vector machine
    SvmLinear,
    /// A support vector machine with a Gaussian kernel
    Svm,
    /// Attention to features in steps, after TabNet
    Attention,
}

impl ModelName {
    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Logistic => "logistic",
            Self::Mlp => "mlp",
            Self::Forest => "forest",
            Self::Boosted => "boosted",
            Self::SvmLinear => "svm-linear",
            Self::Svm => "svm",
            Self::Attention => "attention",
        }
    }

    /// Trains it. Where there is only one label, it learns to give no other.
    ///
    /// # Errors
    /// The training fails.
    pub fn train(self, table: &Table, seed: u64) -> Result<Model> {
        if table.is_of_one_label() {
            let bias = if table.labels.first() == Some(&true) { 1.0 } else { -1.0 };
            return Ok(Model::Linear(Linear { weights: vec![0.0; table.columns()], bias }));
        }
        match self {
            Self::Logistic => smart::logistic(table),
            Self::Mlp => network::perceptron(table, seed),
            Self::Forest => smart::forest(table, seed),
            Self::Boosted => smart::boosted(table, seed),
            Self::SvmLinear => smart::linear_svm(table, seed),
            Self::Svm => smart::svm(table, seed),
            Self::Attention => network::attention(table, seed),
        }
    }
}

impl fmt::Display for ModelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
