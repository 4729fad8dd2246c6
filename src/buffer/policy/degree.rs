//! The halo nodes of highest degree, fetched at the start and kept for ever.

use super::{Origin, ReplacementPolicy, View};
use crate::buffer::BufferHints;
use crate::id::{NodeId, Slot};
use std::cmp::Reverse;

pub(super) struct Degree {
    /// The nodes to keep, ascending.
    kept: Vec<NodeId>,
    /// Slots taken over from another policy whose nodes are none of these. One that changed hands meanwhile is skipped.
    others: Vec<(Slot, NodeId)>,
}

/// How many of them are looked at for one that can go.
const PROBES: usize = 32;

impl Degree {
    pub(super) fn new(slots: u32, hints: &BufferHints) -> Self {
        let mut kept: Vec<NodeId> = highest_degree(slots as usize, hints).collect();
        kept.sort_unstable();
        Self { kept, others: Vec::with_capacity(slots as usize) }
    }

    fn keeps(&self, node: NodeId) -> bool {
        self.kept.binary_search(&node).is_ok()
    }
}

/// The halo nodes of highest degree, at most `count`; the lower node first where two are equal.
pub(super) fn highest_degree(count: usize, hints: &BufferHints) -> impl Iterator<Item = NodeId> {
    let mut order: Vec<_> =
        hints.degree.iter().zip(&hints.halo).map(|(&degree, &node)| (Reverse(degree), node)).collect();
    order.sort_unstable();
    order.into_iter().take(count).map(|(_, node)| node)
}

impl ReplacementPolicy for Degree {
    fn initial(&mut self, slots: u32, hints: &BufferHints, nodes: &mut Vec<NodeId>) {
        nodes.extend(highest_degree(slots as usize, hints));
    }

    /// While it has rows of another policy, those to keep take their place as minibatches fetch them.
    fn accepts(&self, origin: Origin) -> bool {
        origin == Origin::Demand && !self.others.is_empty()
    }

    fn prefer(&mut self, candidates: &mut Vec<NodeId>, _view: &View) {
        candidates.retain(|&node| self.keeps(node));
    }

    fn victim(&mut self, candidate: NodeId, _origin: Origin, view: &View) -> Option<Slot> {
        if !self.keeps(candidate) {
            return None;
        }
        for _ in 0..PROBES {
            let (slot, node) = self.others.pop()?;
            if view.slots.node(slot) != Some(node) {
                continue;
            }
            if view.is_evictable(slot) {
                return Some(slot);
            }
            let end = self.others.len();
            self.others.push((slot, node));
            self.others.swap(end / 2, end);
        }
        None
    }

    fn take_over(&mut self, slot: Slot, node: NodeId, _wants: Option<f32>, _view: &View) {
        if !self.keeps(node) {
            self.others.push((slot, node));
        }
    }

    fn bytes(&self) -> usize {
        self.kept.capacity() * size_of::<NodeId>() + self.others.capacity() * size_of::<(Slot, NodeId)>()
    }
}
