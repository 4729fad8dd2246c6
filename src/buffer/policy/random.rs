//! Halo nodes drawn at random, fetched at the start and kept for ever: what knowing the degrees is worth shows beside it.

use super::ReplacementPolicy;
use crate::buffer::BufferHints;
use crate::id::NodeId;
use rand::SeedableRng;
use serde::{Deserialize, Serialize};

/// Settings of the drawn set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RandomConfig {
    /// The seed that it is drawn with.
    pub seed: u64,
}

pub(super) struct Random {
    seed: u64,
}

impl Random {
    pub(super) fn new(config: &RandomConfig) -> Self {
        Self { seed: config.seed }
    }
}

/// Halo nodes drawn with a seed, at most `count`.
pub(super) fn drawn(seed: u64, count: usize, hints: &BufferHints) -> impl Iterator<Item = NodeId> {
    let mut random = rand_xoshiro::Xoshiro256PlusPlus::seed_from_u64(seed);
    let drawn = rand::seq::index::sample(&mut random, hints.halo.len(), count.min(hints.halo.len()));
    drawn.into_iter().map(|at| hints.halo[at])
}

impl ReplacementPolicy for Random {
    fn initial(&mut self, slots: u32, hints: &BufferHints, nodes: &mut Vec<NodeId>) {
        nodes.extend(drawn(self.seed, slots as usize, hints));
    }

    fn bytes(&self) -> usize {
        0
    }
}
