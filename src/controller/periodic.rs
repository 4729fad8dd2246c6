//! Replacement every so many minibatches, as MassiveGNN publishes it.

use super::{Controller, Decision, Observation};
use crate::error::{Error, Result};

/// Replaces whenever the count of minibatches, which starts at 1, is a multiple of `delta`.
#[derive(Clone, Copy, Debug)]
pub struct Periodic {
    delta: u64,
    due: bool,
}

impl Periodic {
    /// Replaces every `delta` minibatches.
    ///
    /// # Errors
    /// `delta` is 0.
    pub fn new(delta: u64) -> Result<Self> {
        if delta == 0 {
            return Err(Error::config(
                "periodic: delta is 0; give the number of minibatches between replacements, at least 1",
            ));
        }
        Ok(Self { delta, due: false })
    }

    /// Whether this minibatch is one to replace at.
    pub fn is_due(&self, minibatch: u64) -> bool {
        minibatch.is_multiple_of(self.delta)
    }
}

impl Controller for Periodic {
    fn name(&self) -> &'static str {
        "periodic"
    }

    fn observe(&mut self, observation: &Observation) {
        self.due = self.is_due(observation.minibatch);
    }

    fn decide(&mut self) -> Option<Decision> {
        std::mem::take(&mut self.due).then_some(Decision { replace: true, ..Decision::default() })
    }
}
