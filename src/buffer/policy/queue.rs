//! A queue of slots by key, coarse to a sixteenth, in which every operation costs a few cache lines however many slots there are.
//!
//! Keys are logarithms of counts, so a sixteenth is 4 % of a count. Slots of one coarse key form a list, first in, first out, and the
//! lists form a ring. A heap would be exact, and cost a chain of cache misses for each entry that is brought up to date.

use crate::id::Slot;

const STEPS_PER_UNIT: f64 = 16.0;
/// Lists of the ring: counts up to 2^256 apart. What is farther apart shares the lists at the ends.
const LISTS: i64 = 4096;
const NONE: u32 = u32::MAX;

/// A key as the queue orders it.
#[inline]
pub(super) fn coarse(key: f64) -> i64 {
    (key * STEPS_PER_UNIT).floor() as i64
}

/// The least key whose coarse key is above this one.
pub(super) fn above(coarse: i64) -> f64 {
    (coarse + 1) as f64 / STEPS_PER_UNIT
}

#[derive(Clone, Copy)]
struct Link {
    previous: u32,
    next: u32,
    list: u32,
}

/// Slots in the order of their coarse keys.
pub(super) struct SlotQueue {
    links: Vec<Link>,
    /// The first and the last slot of each list.
    ends: Vec<(u32, u32)>,
    /// The lists that are not empty, as bits.
    occupied: Vec<u64>,
    /// No slot has a key below it; none has one above `high`.
    low: i64,
    high: i64,
    len: usize,
}

impl SlotQueue {
    pub(super) fn new(slots: u32) -> Self {
        Self {
            links: vec![Link { previous: NONE, next: NONE, list: NONE }; slots as usize],
            ends: vec![(NONE, NONE); LISTS as usize],
            occupied: vec![0; LISTS as usize / 64],
            low: 0,
            high: 0,
            len: 0,
        }
    }

    fn list(key: i64) -> u32 {
        key.rem_euclid(LISTS) as u32
    }

    /// The lowest coarse key and the slot that has had it longest.
    pub(super) fn peek(&mut self) -> Option<(i64, Slot)> {
        if self.len == 0 {
            return None;
        }
        loop {
            let list = Self::list(self.low);
            let ahead = self.occupied[list as usize / 64] >> (list % 64);
            if ahead != 0 {
                self.low += i64::from(ahead.trailing_zeros());
                return Some((self.low, Slot(self.ends[Self::list(self.low) as usize].0)));
            }
            self.low += i64::from(64 - list % 64);
        }
    }

    #[cfg(test)]
    fn contains(&self, slot: Slot) -> bool {
        self.links[slot.index()].list != NONE
    }

    /// Appends a slot that is not in the queue.
    pub(super) fn push(&mut self, key: i64, slot: Slot) {
        let key = self.fit(key);
        let list = Self::list(key);
        let ends = &mut self.ends[list as usize];
        let previous = std::mem::replace(&mut ends.1, slot.0);
        match previous {
            NONE => ends.0 = slot.0,
            previous => self.links[previous as usize].next = slot.0,
        }
        self.links[slot.index()] = Link { previous, next: NONE, list };
        self.occupied[list as usize / 64] |= 1 << (list % 64);
        self.len += 1;
    }

    /// Moves the ends of the ring for a key, and the key between them where they cannot move so far.
    fn fit(&mut self, key: i64) -> i64 {
        if self.len == 0 {
            // A node that was never wanted has the lowest key there is: any end will do.
            let start = if key == i64::MIN { self.low } else { key };
            (self.low, self.high) = (start, start);
        }
        let key = key.clamp(self.high - LISTS + 1, self.low + LISTS - 1);
        let key = if key < self.low && self.high - key >= LISTS { self.low } else { key };
        (self.low, self.high) = (self.low.min(key), self.high.max(key));
        key
    }

    /// Takes a slot out, if it is in.
    pub(super) fn remove(&mut self, slot: Slot) {
        let Link { previous, next, list } = self.links[slot.index()];
        if list == NONE {
            return;
        }
        let ends = &mut self.ends[list as usize];
        match previous {
            NONE => ends.0 = next,
            previous => self.links[previous as usize].next = next,
        }
        match next {
            NONE => ends.1 = previous,
            next => self.links[next as usize].previous = previous,
        }
        if ends.0 == NONE {
            self.occupied[list as usize / 64] &= !(1 << (list % 64));
        }
        self.links[slot.index()].list = NONE;
        self.len -= 1;
    }

    pub(super) fn bytes(&self) -> usize {
        self.links.capacity() * size_of::<Link>()
            + self.ends.capacity() * size_of::<(u32, u32)>()
            + self.occupied.capacity() * size_of::<u64>()
    }
}

#[cfg(test)]
mod tests {
    //! Goal: the queue yields the lowest key, the first of equals, after any pushes and removals. Method: a plain list beside it.
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn it_yields_the_lowest(operations in prop::collection::vec((any::<bool>(), 0u32..40, -900i64..900), 0..400)) {
            let mut queue = SlotQueue::new(40);
            let mut model: Vec<(i64, u32)> = Vec::new();
            for (push, slot, key) in operations {
                if push && !queue.contains(Slot(slot)) {
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
        let mut queue = SlotQueue::new(3);
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
