//! A queue of slots by key, coarse to a sixteenth, in which every operation costs a few cache lines however many slots there are.
//!
//! Keys are logarithms of counts, so a sixteenth is 4 % of a count. Slots of one coarse key form a list, first in, first out, and the
//! lists form a ring. A heap would be exact, and cost a chain of cache misses for each entry that is brought up to date. Beside the
//! ring there are lists without a key, for slots that are not to be found by it: a slot is in one place of all these, or in none.

use super::lists::SlotLists;
use crate::id::Slot;

const STEPS_PER_UNIT: f64 = 16.0;
/// Lists of the ring: counts up to 2^64 apart. What is farther apart shares the lists at the ends.
const RING: i64 = 1024;

/// A key as the queue orders it.
#[inline]
pub(super) fn coarse(key: f64) -> i64 {
    (key * STEPS_PER_UNIT).floor() as i64
}

/// The least key whose coarse key is above this one.
pub(super) fn above(coarse: i64) -> f64 {
    (coarse + 1) as f64 / STEPS_PER_UNIT
}

/// A list beside the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Beside(pub(super) u8);

/// Where a slot is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// In the queue.
    Queued,
    /// In a list beside it.
    Beside(Beside),
    Nowhere,
}

/// Slots in the order of their coarse keys.
pub(super) struct SlotQueue {
    /// The ring's lists, then those beside it.
    lists: SlotLists,
    /// No slot has a key below it; none has one above `high`.
    low: i64,
    high: i64,
    len: usize,
}

impl SlotQueue {
    /// An empty queue with so many lists beside it.
    pub(super) fn new(slots: u32, beside: u8) -> Self {
        let lists = SlotLists::new(slots, RING as u16 + u16::from(beside));
        Self { lists, low: 0, high: 0, len: 0 }
    }

    fn list(key: i64) -> u16 {
        key.rem_euclid(RING) as u16
    }

    /// The lowest coarse key and the slot that has had it longest.
    pub(super) fn peek(&mut self) -> Option<(i64, Slot)> {
        if self.len == 0 {
            return None;
        }
        loop {
            let list = Self::list(self.low);
            let ahead = self.lists.occupied(usize::from(list) / 64) >> (list % 64);
            if ahead != 0 {
                self.low += i64::from(ahead.trailing_zeros());
                return Some((self.low, self.lists.first(Self::list(self.low))?));
            }
            self.low += i64::from(64 - list % 64);
        }
    }

    /// The slots that `peek` comes to next, as long as no other is put before them.
    pub(super) fn upcoming(&mut self) -> impl Iterator<Item = Slot> {
        let low = self.peek().map(|(low, _)| low);
        low.into_iter().flat_map(|low| self.lists.slots(Self::list(low)))
    }

    /// Appends a slot that is nowhere.
    pub(super) fn push(&mut self, key: i64, slot: Slot) {
        let key = self.fit(key);
        self.lists.append(Self::list(key), slot);
        self.len += 1;
    }

    /// Appends a slot that is nowhere to a list beside the ring.
    pub(super) fn push_beside(&mut self, beside: Beside, slot: Slot) {
        self.lists.append(RING as u16 + u16::from(beside.0), slot);
    }

    /// The first slot of a list beside the ring.
    pub(super) fn first_beside(&self, beside: Beside) -> Option<Slot> {
        self.lists.first(RING as u16 + u16::from(beside.0))
    }

    /// The slots of a list beside the ring, in order.
    pub(super) fn beside(&self, beside: Beside) -> impl Iterator<Item = Slot> {
        self.lists.slots(RING as u16 + u16::from(beside.0))
    }

    /// The lists beside the ring that are not empty, of the first 64, as bits.
    pub(super) fn beside_occupied(&self) -> u64 {
        self.lists.occupied(RING as usize / 64)
    }

    /// Where the slot is.
    #[inline]
    pub(super) fn standing(&self, slot: Slot) -> Standing {
        match self.lists.list_of(slot) {
            None => Standing::Nowhere,
            Some(list) if i64::from(list) < RING => Standing::Queued,
            Some(list) => Standing::Beside(Beside((i64::from(list) - RING) as u8)),
        }
    }

    /// Moves the ends of the ring for a key, and the key between them where they cannot move so far.
    fn fit(&mut self, key: i64) -> i64 {
        if self.len == 0 {
            // A node that was never wanted has the lowest key there is: any end will do.
            let start = if key == i64::MIN { self.low } else { key };
            (self.low, self.high) = (start, start);
        }
        let key = key.clamp(self.high - RING + 1, self.low + RING - 1);
        (self.low, self.high) = (self.low.min(key), self.high.max(key));
        key
    }

    /// Takes a slot from where it is, if it is anywhere.
    pub(super) fn remove(&mut self, slot: Slot) {
        self.len -= usize::from(self.standing(slot) == Standing::Queued);
        self.lists.remove(slot);
    }

    /// Asks for what moving the slot reads first.
    #[inline]
    pub(super) fn prefetch(&self, slot: Slot) {
        self.lists.prefetch(slot);
    }

    pub(super) fn bytes(&self) -> usize {
        self.lists.bytes()
    }
}

#[cfg(test)]
mod tests {
    //! Goal: the queue yields the lowest key, the first of equals, after any pushes and removals. Method: a plain list beside it.
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn it_yields_the_lowest(operations in prop::collection::vec((any::<bool>(), 0u32..40, -450i64..450), 0..400)) {
            let mut queue = SlotQueue::new(40, 0);
            let mut model: Vec<(i64, u32)> = Vec::new();
            for (push, slot, key) in operations {
                if push && queue.standing(Slot(slot)) == Standing::Nowhere {
                    queue.push(key, Slot(slot));
                    model.push((key, slot));
                } else {
                    queue.remove(Slot(slot));
                    model.retain(|(_, other)| *other != slot);
                }
                let lowest = model.iter().min_by_key(|(key, _)| *key);
                prop_assert_eq!(queue.peek(), lowest.map(|&(key, slot)| (key, Slot(slot))));
            }
        }
    }

    #[test]
    fn keys_too_far_apart_stay_in_order() {
        let mut queue = SlotQueue::new(3, 0);
        for (slot, key) in [(0, 0), (1, i64::MAX), (2, i64::MIN)] {
            queue.push(key, Slot(slot));
        }
        for slot in [0, 2, 1] {
            let (_, first) = queue.peek().unwrap();
            assert!(first == Slot(slot) || slot != 1);
            queue.remove(first);
        }
        assert_eq!(queue.peek(), None);
    }
}
