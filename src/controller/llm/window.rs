//! The minibatches between two decisions, summed up.

use crate::controller::Observation;

/// Sums over the minibatches since the last decision took effect.
#[derive(Clone, Debug, Default)]
pub(super) struct Window {
    pub minibatches: u64,
    pub last_minibatch: u64,
    pub remote_nodes: u64,
    pub hits: u64,
    pub halo_misses: u64,
    pub fetched: u64,
    pub bytes: u64,
}

impl Window {
    pub fn add(&mut self, observation: &Observation) {
        self.minibatches += 1;
        self.last_minibatch = observation.minibatch;
        self.remote_nodes += observation.remote_nodes;
        self.hits += observation.hits;
        self.halo_misses += observation.halo_misses;
        self.fetched += observation.remote_nodes.saturating_sub(observation.hits);
        self.bytes += observation.bytes;
    }

    /// Mean of a sum, a minibatch.
    pub fn mean(&self, sum: u64) -> u64 {
        sum / self.minibatches.max(1)
    }
}

/// Hits in percent of hits and halo misses, rounded; 0 where there were none.
pub(super) fn hit_percent(hits: u64, halo_misses: u64) -> u64 {
    let wanted = hits + halo_misses;
    (hits * 100 + wanted / 2).checked_div(wanted).unwrap_or(0)
}

/// The share of minibatches still to come, in percent, where their number is known.
pub(super) fn percent_left(minibatch: u64, minibatches: u64) -> Option<u64> {
    (minibatches > 0).then(|| minibatches.saturating_sub(minibatch) * 100 / minibatches)
}
