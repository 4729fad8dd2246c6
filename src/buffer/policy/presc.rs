//! Pre-sampling: the wants of a warm-up are counted, then the most wanted nodes are fetched and kept for ever.
//!
//! Nothing is kept during the warm-up, so that every want is a miss, counted, and fetched. Which nodes to keep is ranked once, at the warm-up's
//! end, at the cost of all its nodes; they are brought minibatch by minibatch, as many as each has nodes, so that none waits for the whole
//! buffer. Source: Yang et al., GNNLab (EuroSys 2022), which samples for its warm-up before it trains; here the warm-up is the training's first
//! minibatches.

use super::{Origin, ReplacementPolicy, View};
use crate::error::{Error, Result};
use crate::id::{NodeId, Slot};
use crate::node_table::{NodeTable, ahead};
use serde::{Deserialize, Serialize};
use std::cmp::Reverse;

/// Settings of pre-sampling.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PrescConfig {
    /// Observed minibatches whose wants are counted, at least 1.
    pub warm_up: u32,
}

impl Default for PrescConfig {
    fn default() -> Self {
        Self { warm_up: 64 }
    }
}

pub(super) struct Presc {
    /// Minibatches of the warm-up that are still to come.
    left: u32,
    slots: usize,
    counts: NodeTable<u32>,
    /// Nodes to bring, the most wanted last.
    chosen: Vec<NodeId>,
}

impl Presc {
    pub(super) fn new(config: &PrescConfig, slots: u32) -> Result<Self> {
        if config.warm_up == 0 {
            return Err(Error::config("policy presc: warm_up is 0; it counts minibatches and must be at least 1"));
        }
        let counts = NodeTable::with_capacity(0);
        Ok(Self { left: config.warm_up, slots: slots as usize, counts, chosen: Vec::new() })
    }

    /// Ends the warm-up. The lower node goes before the higher one where two are equal.
    fn choose(&mut self) {
        let counts = std::mem::replace(&mut self.counts, NodeTable::with_capacity(0));
        let mut wanted: Vec<_> = counts.iter().map(|(node, count)| (Reverse(count), node)).collect();
        if self.slots < wanted.len() {
            wanted.select_nth_unstable(self.slots);
            wanted.truncate(self.slots);
        }
        wanted.sort_unstable();
        self.chosen = wanted.into_iter().rev().map(|(_, node)| node).collect();
    }
}

impl ReplacementPolicy for Presc {
    fn miss(&mut self, nodes: &[NodeId], _view: &View) {
        if self.left == 0 {
            return;
        }
        for (node, coming) in ahead(nodes) {
            coming.inspect(|&coming| self.counts.prefetch(coming));
            *self.counts.entry(node) += 1;
        }
        self.left -= 1;
        if self.left == 0 {
            self.choose();
        }
    }

    fn brings(&self) -> Option<NodeId> {
        self.chosen.last().copied()
    }

    fn insert(&mut self, _slot: Slot, _node: NodeId, origin: Origin, _view: &View) {
        debug_assert_eq!(origin, Origin::Initial);
        self.chosen.pop();
    }

    fn bytes(&self) -> usize {
        self.counts.bytes() + self.chosen.capacity() * size_of::<NodeId>()
    }
}
