//! The announced minibatches that are not yet gathered, as a ring of at most [`WINDOW_MAX`] positions.
//!
//! A node's announced uses are the bits of one word, so that its next use is a rotation and a count of zeros, and an announcement
//! or a retirement costs that minibatch's own nodes.

use crate::id::NodeId;
use crate::node_table::{NodeTable, ahead};

/// Most announced minibatches.
pub const WINDOW_MAX: usize = 64;

/// Ring position of an announced minibatch, below [`WINDOW_MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct WindowPosition(pub u8);

/// Announced minibatches and the nodes they want.
pub(super) struct Window {
    uses: NodeTable<u64>,
    live: u64,
    head: u32,
    tail: u32,
    /// How many ranks announce.
    ranks: u32,
}

impl Window {
    pub(super) fn new() -> Self {
        Self { uses: NodeTable::with_capacity(0), live: 0, head: 0, tail: 0, ranks: 1 }
    }

    /// So many ranks announce their minibatches, each of which has its own next one.
    pub(super) fn serve(&mut self, ranks: u32) {
        self.ranks = ranks;
    }

    /// Opens a position behind all others, or `None` where the ring is full.
    pub(super) fn open(&mut self) -> Option<WindowPosition> {
        if self.live == 0 {
            self.head = self.tail;
        } else if self.tail.wrapping_sub(self.head) >= WINDOW_MAX as u32 {
            return None;
        }
        let position = (self.tail % WINDOW_MAX as u32) as u8;
        self.tail = self.tail.wrapping_add(1);
        self.live |= 1 << position;
        Some(WindowPosition(position))
    }

    /// Notes that the minibatch at a position wants these nodes.
    pub(super) fn enter(&mut self, position: WindowPosition, nodes: &[NodeId]) {
        for (node, coming) in ahead(nodes) {
            coming.inspect(|&coming| self.uses.prefetch(coming));
            *self.uses.entry(node) |= 1 << position.0;
        }
    }

    /// Forgets the nodes of a position and closes it.
    pub(super) fn close(&mut self, position: WindowPosition, nodes: &[NodeId]) {
        let bit = 1u64 << (position.0 % WINDOW_MAX as u8);
        for (node, coming) in ahead(nodes) {
            coming.inspect(|&coming| self.uses.prefetch(coming));
            let Some(uses) = self.uses.get(node) else { continue };
            if uses & !bit == 0 {
                self.uses.remove(node);
            } else {
                *self.uses.entry(node) = uses & !bit;
            }
        }
        self.live &= !bit;
        while self.head != self.tail && self.live >> (self.head % WINDOW_MAX as u32) & 1 == 0 {
            self.head = self.head.wrapping_add(1);
        }
    }

    /// Whether a minibatch is announced at the position.
    pub(super) fn is_open(&self, position: WindowPosition) -> bool {
        usize::from(position.0) < WINDOW_MAX && self.live >> position.0 & 1 == 1
    }

    /// How many positions can be opened before the oldest is closed.
    pub(super) fn room(&self) -> usize {
        if self.live == 0 { WINDOW_MAX } else { WINDOW_MAX - self.tail.wrapping_sub(self.head) as usize }
    }

    /// How many minibatches of a rank are announced, on average.
    pub(super) fn reach(&self) -> f64 {
        f64::from(self.live.count_ones()) / f64::from(self.ranks)
    }

    /// Whether a distance is within the nearest so many minibatches of each rank.
    pub(super) fn is_within(&self, distance: u32, minibatches: u32) -> bool {
        distance < minibatches * self.ranks
    }

    /// The oldest position that is still open.
    pub(super) fn oldest(&self) -> Option<WindowPosition> {
        (self.live != 0).then(|| self.at(0))
    }

    /// The position at a distance behind the head.
    pub(super) fn at(&self, distance: u32) -> WindowPosition {
        WindowPosition((self.head.wrapping_add(distance) % WINDOW_MAX as u32) as u8)
    }

    /// A set of positions, as bits by their distance.
    pub(super) fn by_distance(&self, positions: u64) -> u64 {
        positions.rotate_right(self.head % WINDOW_MAX as u32)
    }

    /// The distance of the node's next announced use.
    #[inline]
    pub(super) fn next_use(&self, node: NodeId) -> Option<u32> {
        self.uses.get(node).map(|uses| self.by_distance(uses).trailing_zeros())
    }

    /// Asks for what is known of a node, so that it is in the cache some nodes later.
    #[inline]
    pub(super) fn prefetch(&self, node: NodeId) {
        self.uses.prefetch(node);
    }

    pub(super) fn bytes(&self) -> usize {
        self.uses.bytes()
    }

    #[cfg(test)]
    pub(super) fn announced_nodes(&self) -> usize {
        self.uses.len()
    }
}

#[cfg(test)]
mod tests {
    //! Goal: next uses are those of the announced minibatches in order, whatever the order of retirement. Method: a list of sets
    //! beside the ring, over random announcements and retirements.
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn next_uses_are_those_of_a_list_of_sets(
            steps in prop::collection::vec((any::<bool>(), any::<prop::sample::Index>(), prop::collection::btree_set(0u64..20, 0..8)), 0..300)
        ) {
            let mut window = Window::new();
            let mut model: Vec<(WindowPosition, BTreeSet<u64>)> = Vec::new();
            for (announce, which, nodes) in steps {
                if announce {
                    let ids: Vec<_> = nodes.iter().copied().map(NodeId).collect();
                    match window.open() {
                        Some(position) => {
                            window.enter(position, &ids);
                            prop_assert!(model.iter().all(|(other, _)| *other != position));
                            model.push((position, nodes));
                        }
                        None => prop_assert!(!model.is_empty()),
                    }
                } else if !model.is_empty() {
                    let (position, nodes) = model.remove(which.index(model.len()));
                    prop_assert!(window.is_open(position));
                    window.close(position, &nodes.into_iter().map(NodeId).collect::<Vec<_>>());
                    prop_assert!(!window.is_open(position));
                }
                for node in 0..20 {
                    let next = model.iter().find(|(_, nodes)| nodes.contains(&node)).map(|(position, _)| *position);
                    prop_assert_eq!(window.next_use(NodeId(node)).map(|distance| window.at(distance)), next);
                }
            }
            let wanted: BTreeSet<u64> = model.iter().flat_map(|(_, nodes)| nodes.iter().copied()).collect();
            prop_assert_eq!(window.announced_nodes(), wanted.len());
        }
    }

    #[test]
    fn the_ring_holds_its_maximum_and_no_more() {
        let mut window = Window::new();
        let positions: Vec<_> = std::iter::from_fn(|| window.open()).collect();
        assert_eq!(positions.len(), WINDOW_MAX);
        window.close(positions[0], &[]);
        assert_eq!(window.open(), Some(positions[0]));
        assert_eq!(window.open(), None);
    }
}
