//! A table from nodes to small values, open addressing with linear probing: of the buffer's slots and windows, and of rows on their way.
//!
//! Nodes and values share their 16-byte entries, so that a lookup is one cache line in nearly every case, and removal shifts its
//! followers back: no tombstones, and thus no slow growth of the probe length over a long job. Who looks up many nodes asks for the
//! home entries some nodes ahead ([`NodeTable::prefetch`]), so that the misses of the caches overlap.

use crate::id::NodeId;
use crate::memory::prefetch;

/// How many nodes ahead of its use a cache line is asked for: about as many as the processor fetches at once.
pub(crate) const AHEAD: usize = 16;

/// Each item, with the one whose cache lines are to be asked for meanwhile.
#[inline]
pub(crate) fn ahead<T: Copy>(items: &[T]) -> impl Iterator<Item = (T, Option<T>)> {
    items.iter().enumerate().map(|(i, &item)| (item, items.get(i + AHEAD).copied()))
}

const VACANT: u64 = u64::MAX;

#[derive(Clone, Copy)]
struct Entry<V> {
    node: u64,
    value: V,
}

/// Values by node. Node `u64::MAX` cannot be held: no table of features is that large.
pub(crate) struct NodeTable<V> {
    entries: Vec<Entry<V>>,
    shift: u32,
    len: usize,
}

/// Spreads node ids, which come as dense ranges, over 64 bits; the upper ones are the good ones.
#[inline]
pub(crate) fn spread(node: u64) -> u64 {
    let folded = node ^ (node >> 32);
    folded.wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

impl<V: Copy + Default> NodeTable<V> {
    /// A table that holds so many nodes before it grows.
    pub(crate) fn with_capacity(nodes: usize) -> Self {
        let entries = (nodes + nodes / 2).next_power_of_two().max(16);
        Self {
            entries: vec![Entry { node: VACANT, value: V::default() }; entries],
            shift: 64 - entries.trailing_zeros(),
            len: 0,
        }
    }

    #[inline]
    fn home(&self, node: u64) -> usize {
        (spread(node) >> self.shift) as usize
    }

    /// Asks for a node's home entry, so that a lookup some nodes later finds it in the cache.
    #[inline]
    pub(crate) fn prefetch(&self, node: NodeId) {
        prefetch(&self.entries, self.home(node.0));
    }

    /// Where the node is, or where it would go.
    #[inline]
    fn find(&self, node: u64) -> Result<usize, usize> {
        let mask = self.entries.len() - 1;
        let mut at = self.home(node);
        loop {
            let there = self.entries[at].node;
            if there == node && node != VACANT {
                return Ok(at);
            }
            if there == VACANT {
                return Err(at);
            }
            at = (at + 1) & mask;
        }
    }

    #[inline]
    pub(crate) fn get(&self, node: NodeId) -> Option<V> {
        self.find(node.0).ok().map(|at| self.entries[at].value)
    }

    /// The value of a node, entered with the default where it is new.
    pub(crate) fn entry(&mut self, node: NodeId) -> &mut V {
        let at = match self.find(node.0) {
            Ok(at) => at,
            Err(vacant) => self.enter(node.0, vacant),
        };
        &mut self.entries[at].value
    }

    fn enter(&mut self, node: u64, vacant: usize) -> usize {
        let mut at = vacant;
        if self.room() == 0 {
            self.grow();
            at = self.find(node).unwrap_or_else(|vacant| vacant);
        }
        self.entries[at] = Entry { node, value: V::default() };
        self.len += 1;
        at
    }

    /// How many more nodes fit before it grows: beyond three quarters the probes get long.
    #[inline]
    pub(crate) fn room(&self) -> usize {
        (self.entries.len() * 3 / 4).saturating_sub(self.len)
    }

    /// Makes room for so many more nodes.
    pub(crate) fn reserve(&mut self, nodes: usize) {
        while self.room() < nodes {
            self.grow();
        }
    }

    /// Takes out all nodes.
    pub(crate) fn clear(&mut self) {
        self.entries.fill(Entry { node: VACANT, value: V::default() });
        self.len = 0;
    }

    /// Takes out the nodes that `keep` denies.
    pub(crate) fn retain(&mut self, mut keep: impl FnMut(NodeId, V) -> bool) {
        let mut at = 0;
        while at < self.entries.len() {
            let Entry { node, value } = self.entries[at];
            // Where one goes another may come: the same place is looked at again.
            if node == VACANT || keep(NodeId(node), value) {
                at += 1;
            } else {
                self.remove(NodeId(node));
            }
        }
    }

    #[cold]
    fn grow(&mut self) {
        let mut larger = Self::with_capacity(self.entries.len());
        for (node, value) in self.iter() {
            *larger.entry(node) = value;
        }
        *self = larger;
    }

    /// Takes a node out; its value, if it was there.
    pub(crate) fn remove(&mut self, node: NodeId) -> Option<V> {
        let mut hole = self.find(node.0).ok()?;
        let value = self.entries[hole].value;
        let mask = self.entries.len() - 1;
        let mut at = hole;
        loop {
            at = (at + 1) & mask;
            let follower = self.entries[at];
            if follower.node == VACANT {
                break;
            }
            // A follower may move back into the hole unless its home lies after the hole.
            let home = self.home(follower.node);
            if at.wrapping_sub(home) & mask >= at.wrapping_sub(hole) & mask {
                self.entries[hole] = follower;
                hole = at;
            }
        }
        self.entries[hole].node = VACANT;
        self.len -= 1;
        Some(value)
    }

    /// All nodes with their values, in no order that means anything.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (NodeId, V)> {
        self.entries.iter().filter(|entry| entry.node != VACANT).map(|entry| (NodeId(entry.node), entry.value))
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn bytes(&self) -> usize {
        self.entries.capacity() * size_of::<Entry<V>>()
    }
}

#[cfg(test)]
mod tests {
    //! Goal: the table is a map. Method: random operations beside a HashMap, on few nodes so that probes collide and wrap.
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    /// Entering, removing and looking up, and now and then what concerns all.
    fn kinds() -> impl Strategy<Value = u8> {
        prop_oneof![100 => 0u8..3, 3 => 3u8..4, 1 => 4u8..6]
    }

    proptest! {
        #[test]
        fn it_answers_as_a_map(operations in prop::collection::vec((kinds(), 0u64..60, any::<u64>()), 0..400)) {
            let mut table = NodeTable::<u64>::with_capacity(4);
            let mut model = HashMap::new();
            for (kind, node, value) in operations {
                match kind {
                    3 => {
                        table.retain(|node, held| (node.0 ^ held) & 1 == 0);
                        model.retain(|node, held| (*node ^ *held) & 1 == 0);
                    }
                    4 => {
                        let room = table.room();
                        table.reserve(room + 1);
                        prop_assert!(table.room() > room);
                    }
                    5 => {
                        table.clear();
                        model.clear();
                    }
                    0 => {
                        *table.entry(NodeId(node)) = value;
                        model.insert(node, value);
                    }
                    1 => prop_assert_eq!(table.remove(NodeId(node)), model.remove(&node)),
                    _ => prop_assert_eq!(table.get(NodeId(node)), model.get(&node).copied()),
                }
                prop_assert_eq!(table.len(), model.len());
            }
            prop_assert_eq!(table.iter().collect::<HashMap<_, _>>().len(), model.len());
            for node in 0..60 {
                prop_assert_eq!(table.get(NodeId(node)), model.get(&node).copied());
            }
        }
    }

    #[test]
    fn the_node_that_marks_vacancy_is_never_found() {
        assert_eq!(NodeTable::<u64>::with_capacity(1).get(NodeId(u64::MAX)), None);
    }
}
