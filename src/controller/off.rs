//! No controller: nothing is ever decided.

use super::{Controller, Decision, Observation};

/// Never decides; what the buffer's own admission does is all that happens.
#[derive(Clone, Copy, Debug, Default)]
pub struct Off;

impl Controller for Off {
    fn name(&self) -> &'static str {
        "off"
    }

    fn observe(&mut self, _observation: &Observation) {}

    fn decide(&mut self) -> Option<Decision> {
        None
    }
}
