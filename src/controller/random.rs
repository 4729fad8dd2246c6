//! A coin at each opportunity to decide: the control that a learned controller has to beat.

use super::{Controller, Decision, Observation, Periodic};
use crate::error::Result;
use rand::{Rng, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;

/// Tosses a fair coin every `delta` minibatches and replaces on heads. The same seed tosses the same coins, whatever it observes.
#[derive(Clone, Debug)]
pub struct Random {
    opportunities: Periodic,
    coin: Xoshiro256PlusPlus,
    due: bool,
}

impl Random {
    /// A coin every `delta` minibatches.
    ///
    /// # Errors
    /// `delta` is 0.
    pub fn new(seed: u64, delta: u64) -> Result<Self> {
        Ok(Self { opportunities: Periodic::new(delta)?, coin: Xoshiro256PlusPlus::seed_from_u64(seed), due: false })
    }
}

impl Controller for Random {
    fn name(&self) -> &'static str {
        "random"
    }

    fn observe(&mut self, observation: &Observation) {
        self.due = self.opportunities.is_due(observation.minibatch);
    }

    fn decide(&mut self) -> Option<Decision> {
        std::mem::take(&mut self.due).then(|| Decision { replace: self.coin.random(), ..Decision::default() })
    }
}
