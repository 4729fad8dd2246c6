//! A 4-ary min-heap of slots by key that knows where each slot is, so that any slot can leave it.
//!
//! Four children of 16 bytes are one cache line, and the heap is half as deep as a binary one.

use crate::id::Slot;

const ARITY: usize = 4;
const OUTSIDE: u32 = u32::MAX;

#[derive(Clone, Copy)]
struct Entry {
    key: f64,
    slot: Slot,
}

impl Entry {
    /// Keys first; the lower slot where two are equal.
    #[inline]
    fn precedes(&self, other: &Self) -> bool {
        self.key < other.key || (self.key == other.key && self.slot < other.slot)
    }
}

/// Slots in the order of their keys.
pub(super) struct SlotHeap {
    entries: Vec<Entry>,
    place: Vec<u32>,
}

impl SlotHeap {
    pub(super) fn new(slots: u32) -> Self {
        Self { entries: Vec::with_capacity(slots as usize), place: vec![OUTSIDE; slots as usize] }
    }

    /// The lowest key and its slot.
    #[inline]
    pub(super) fn peek(&self) -> Option<(f64, Slot)> {
        self.entries.first().map(|entry| (entry.key, entry.slot))
    }

    pub(super) fn contains(&self, slot: Slot) -> bool {
        self.place[slot.index()] != OUTSIDE
    }

    /// Enters a slot that is not in the heap.
    pub(super) fn push(&mut self, key: f64, slot: Slot) {
        debug_assert!(!self.contains(slot));
        let entry = Entry { key, slot };
        self.entries.push(entry);
        self.rise(self.entries.len() - 1, entry);
    }

    /// Gives the first slot a key that is no lower.
    pub(super) fn raise_first(&mut self, key: f64) {
        let slot = self.entries[0].slot;
        self.sink(0, Entry { key, slot });
    }

    /// Takes a slot out, if it is in.
    pub(super) fn remove(&mut self, slot: Slot) {
        let at = std::mem::replace(&mut self.place[slot.index()], OUTSIDE);
        if at == OUTSIDE {
            return;
        }
        let Some(last) = self.entries.pop() else { return };
        if last.slot == slot {
            return;
        }
        let at = at as usize;
        if at > 0 && last.precedes(&self.entries[(at - 1) / ARITY]) {
            self.rise(at, last);
        } else {
            self.sink(at, last);
        }
    }

    fn set(&mut self, at: usize, entry: Entry) {
        self.entries[at] = entry;
        self.place[entry.slot.index()] = at as u32;
    }

    fn rise(&mut self, mut at: usize, entry: Entry) {
        while at > 0 {
            let parent = (at - 1) / ARITY;
            if !entry.precedes(&self.entries[parent]) {
                break;
            }
            self.set(at, self.entries[parent]);
            at = parent;
        }
        self.set(at, entry);
    }

    fn sink(&mut self, mut at: usize, entry: Entry) {
        loop {
            let first = at * ARITY + 1;
            let children = self.entries.iter().enumerate().skip(first).take(ARITY);
            let Some((child, lowest)) = children.reduce(|low, next| if next.1.precedes(low.1) { next } else { low })
            else {
                break;
            };
            if !lowest.precedes(&entry) {
                break;
            }
            self.set(at, *lowest);
            at = child;
        }
        self.set(at, entry);
    }

    pub(super) fn bytes(&self) -> usize {
        self.entries.capacity() * size_of::<Entry>() + self.place.capacity() * size_of::<u32>()
    }
}

#[cfg(test)]
mod tests {
    //! Goal: the heap yields the lowest key, ties by slot, after any pushes, raises and removals. Method: a sorted set beside it.
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn it_yields_the_lowest(operations in prop::collection::vec((0u8..3, 0u32..40, 0u32..30), 0..400)) {
            let mut heap = SlotHeap::new(40);
            let mut model: BTreeSet<(u32, u32)> = BTreeSet::new();
            for (kind, slot, key) in operations {
                let held = model.iter().find(|(_, other)| *other == slot).copied();
                match kind {
                    0 if held.is_none() => {
                        heap.push(f64::from(key), Slot(slot));
                        model.insert((key, slot));
                    }
                    1 => {
                        heap.remove(Slot(slot));
                        model.retain(|(_, other)| *other != slot);
                    }
                    _ => if let Some((lowest, first)) = model.pop_first() {
                        heap.raise_first(f64::from(lowest + key));
                        model.insert((lowest + key, first));
                    }
                }
                prop_assert_eq!(heap.peek(), model.first().map(|&(key, slot)| (f64::from(key), Slot(slot))));
                prop_assert!((0..40).all(|slot| heap.contains(Slot(slot)) == model.iter().any(|(_, other)| *other == slot)));
            }
        }
    }
}
