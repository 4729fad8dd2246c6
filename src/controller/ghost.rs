//! Follows the simple policy that would do best: all are tried on a sample beside the training, and the buffer changes to one that would be waited
//! for clearly less than its own.

use super::shadow::{Chooser, Shadows, menu};
use super::{Controller, Decision, Observation};
use crate::buffer::{Event, Watched};
use crate::error::Result;

/// Minibatches between two evaluations.
pub(super) const INTERVAL: u32 = 16;

/// The controller.
#[derive(Default)]
pub struct Ghost {
    shadows: Option<Shadows>,
    chooser: Chooser,
    minibatches: u32,
    /// Decided, and not yet in use.
    pending: Option<usize>,
}

impl Ghost {
    /// One that follows the buffer's own policy until it has seen others do better.
    pub fn new() -> Self {
        Self::default()
    }
}

impl Controller for Ghost {
    fn name(&self) -> &'static str {
        "ghost"
    }

    fn attach(&mut self, buffer: &Watched) -> Result<()> {
        self.shadows = Some(Shadows::new(buffer, &menu()?, false)?);
        Ok(())
    }

    fn watch(&mut self, event: &Event) {
        self.shadows.iter_mut().for_each(|shadows| shadows.watch(event));
    }

    fn observe(&mut self, observation: &Observation) {
        self.minibatches += 1;
        self.shadows.iter_mut().for_each(|shadows| shadows.observe(observation));
    }

    fn decide(&mut self) -> Option<Decision> {
        let shadows = self.shadows.as_mut()?;
        if self.minibatches < INTERVAL || self.pending.is_some() {
            return None;
        }
        self.minibatches = 0;
        let best = self.chooser.choose(&shadows.evaluate().simple)?;
        self.pending = Some(best);
        Some(Decision { policy: Some(shadows.simple[best].policy.clone()), ..Decision::default() })
    }

    fn handle_taken(&mut self) {
        self.chooser.current = self.pending.take().unwrap_or(self.chooser.current);
    }

    fn handle_discarded(&mut self) {
        self.pending = None;
    }
}
