//! A buffer that is filled once and held: the baseline that every replacement must beat.

use super::{Controller, Decision, Observation};

/// Never replaces. It does what [`Off`](super::Off) does under a name of its own, so that a report says which of the two was asked for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Fixed;

impl Controller for Fixed {
    fn name(&self) -> &'static str {
        "fixed"
    }

    fn observe(&mut self, _observation: &Observation) {}

    fn decide(&mut self) -> Option<Decision> {
        None
    }
}
