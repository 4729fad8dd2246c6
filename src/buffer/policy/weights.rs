//! What a want of each partition's nodes counts, where a controller says so, and which slots are still ranked by what it counted before.

use crate::id::NodeId;
use crate::partition::PartitionBook;
use std::ops::Range;

/// Nodes of a minibatch for each slot that is ranked anew after weights have changed.
const PACE: usize = 4;

/// The weights. They are of wants whenever these were.
pub(super) struct Weights {
    owners: PartitionBook,
    /// By partition; the least is 1.
    of: Vec<f32>,
    mean: f32,
    slots: u32,
    /// Slots that may be ranked by weights of before, from `next` on, around the end.
    outdated: u32,
    next: u32,
}

impl Weights {
    /// All wants count alike at first, in a buffer of so many slots.
    pub(super) fn new(owners: &PartitionBook, slots: u32) -> Self {
        let of = vec![1.0; owners.partitions() as usize];
        Self { owners: owners.clone(), of, mean: 1.0, slots, outdated: 0, next: 0 }
    }

    /// Weights from now on; what is no positive number leaves a partition's as it is.
    pub(super) fn change(&mut self, weights: &[f32]) {
        let given = self.of.iter_mut().zip(weights).filter(|(_, weight)| weight.is_finite() && **weight > 0.0);
        given.for_each(|(known, weight)| *known = *weight);
        let least = self.of.iter().copied().fold(f32::INFINITY, f32::min);
        self.of.iter_mut().for_each(|weight| *weight /= least);
        self.mean = self.of.iter().sum::<f32>() / self.of.len() as f32;
        self.outdated = self.slots;
    }

    /// What a want of the node counts.
    #[inline]
    pub(super) fn want(&self, node: NodeId) -> f32 {
        // While all count alike nobody need ask who owns a node.
        if self.mean == 1.0 {
            return 1.0;
        }
        self.owners.locate(node).map_or(1.0, |(partition, _)| self.of[partition.index()])
    }

    /// Whether a want of the node counts for less than one does on average.
    #[inline]
    pub(super) fn is_cheap(&self, node: NodeId) -> bool {
        self.want(node) < self.mean
    }

    /// Takes the next slots that may be ranked by weights of before, as a minibatch of so many nodes can pay for.
    pub(super) fn take_outdated(&mut self, nodes: usize) -> Range<u32> {
        let most = self.outdated.min(self.slots - self.next);
        let taken = self.next..self.next + u32::try_from(nodes.div_ceil(PACE)).unwrap_or(u32::MAX).min(most);
        self.outdated -= taken.end - taken.start;
        self.next = if taken.end == self.slots { 0 } else { taken.end };
        taken
    }

    pub(super) fn bytes(&self) -> usize {
        self.of.capacity() * size_of::<f32>()
    }
}

#[cfg(test)]
mod tests {
    //! Goal: every slot is ranked anew once after a change, and no minibatch pays for more than its share. Method: changes in mid-course.
    use super::*;

    #[test]
    fn each_slot_is_taken_once_after_a_change() {
        let owners = PartitionBook::from_starts(vec![0, 100, 200]).unwrap();
        let mut weights = Weights::new(&owners, 10);
        assert!(weights.take_outdated(100).is_empty(), "nothing has changed");
        weights.change(&[1.0, 2.0]);
        assert_eq!([12, 0, 1].map(|nodes| weights.take_outdated(nodes)), [0..3, 3..3, 3..4]);
        weights.change(&[1.0, 3.0]);
        assert_eq!([100, 100, 100].map(|nodes| weights.take_outdated(nodes)), [4..10, 0..4, 4..4], "around the end");
    }

    #[test]
    fn wants_are_weighed_against_the_least() {
        let owners = PartitionBook::from_starts(vec![0, 100, 200]).unwrap();
        let mut weights = Weights::new(&owners, 10);
        assert!((weights.want(NodeId(150)), weights.is_cheap(NodeId(0))) == (1.0, false));
        weights.change(&[0.5, 2.0]);
        assert_eq!([0, 150, 999].map(|node| weights.want(NodeId(node))), [1.0, 4.0, 1.0]);
        assert_eq!([0, 150].map(|node| weights.is_cheap(NodeId(node))), [true, false]);
        weights.change(&[f32::NAN, -1.0]);
        assert_eq!(weights.want(NodeId(150)), 4.0);
        weights.change(&[]);
        assert_eq!(weights.want(NodeId(150)), 4.0, "a partition that is not named counts as before");
    }
}
