//! The registry: which controllers there are and how each is built. A new one is its file, its variant and its line in [`ControllerConfig::build`].

use super::{Controller, Fixed, JobFacts, Off, Periodic, Random};
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::str::FromStr;

/// Which controller steers the buffer, and how.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum ControllerConfig {
    /// No controller.
    #[default]
    Off,
    /// The buffer is never replaced.
    Fixed,
    /// Replacement every `delta` minibatches.
    Periodic {
        /// Minibatches between replacements, at least 1.
        delta: u64,
    },
    /// A fair coin every `delta` minibatches.
    Random {
        /// Seed of the coin.
        seed: u64,
        /// Minibatches between tosses, at least 1.
        delta: u64,
    },
}

impl ControllerConfig {
    /// The controller of this configuration.
    ///
    /// # Errors
    /// A setting is out of its bounds, or the model cannot be loaded.
    pub fn build(&self, _facts: &JobFacts) -> Result<Box<dyn Controller>> {
        Ok(match self {
            Self::Off => Box::new(Off),
            Self::Fixed => Box::new(Fixed),
            Self::Periodic { delta } => Box::new(Periodic::new(*delta)?),
            Self::Random { seed, delta } => Box::new(Random::new(*seed, *delta)?),
        })
    }

    /// The controller's name.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Fixed => "fixed",
            Self::Periodic { .. } => "periodic",
            Self::Random { .. } => "random",
        }
    }

    /// Whether it decides in microseconds, so that it runs at the minibatch boundary itself: its decisions are then the same in every run.
    pub fn runs_inline(&self) -> bool {
        match self {
            Self::Off | Self::Fixed | Self::Periodic { .. } | Self::Random { .. } => true,
        }
    }
}

/// Reads `off`, `fixed`, `periodic:DELTA`, `random:SEED:DELTA`.
impl FromStr for ControllerConfig {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let fields: Vec<&str> = text.split(':').collect();
        let number = |field: &str| {
            field
                .parse::<u64>()
                .map_err(|_| Error::config(format!("controller {text:?}: {field:?} is not a whole number")))
        };
        match fields.as_slice() {
            ["off"] => Ok(Self::Off),
            ["fixed"] => Ok(Self::Fixed),
            ["periodic", delta] => Ok(Self::Periodic { delta: number(delta)? }),
            ["random", seed, delta] => Ok(Self::Random { seed: number(seed)?, delta: number(delta)? }),
            _ => Err(Error::config(format!(
                "unknown controller {text:?}: give off, fixed, periodic:DELTA or random:SEED:DELTA"
            ))),
        }
    }
}
