//! The halo nodes of highest degree, fetched at the start and kept for ever.

use super::ReplacementPolicy;
use crate::buffer::BufferHints;
use crate::id::NodeId;
use std::cmp::Reverse;

pub(super) struct Degree;

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

    fn bytes(&self) -> usize {
        0
    }
}
