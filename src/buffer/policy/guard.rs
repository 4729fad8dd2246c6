//! Rows that were fetched ahead of their minibatch and have not served yet: they are no victims, and hold no more than a share of the slots.
//!
//! A row fetched ahead is to a policy's counts and orders one that nobody has wanted. Ranked by these it would go before its minibatch
//! comes; kept without a bound, announced rows would fill a small buffer, and no count would matter.

use crate::id::Slot;

/// Slots as bits, and how many of them are guarded.
pub(super) struct Guard {
    words: Vec<u64>,
    guarded: u32,
    slots: u32,
}

impl Guard {
    /// None of so many slots is guarded.
    pub(super) fn new(slots: u32) -> Self {
        Self { words: vec![0; (slots as usize).div_ceil(64)], guarded: 0, slots }
    }

    /// Whether one more can be guarded, where a share of the slots can be.
    pub(super) fn has_room(&self, share: f64) -> bool {
        f64::from(self.guarded) < f64::from(self.slots) * share
    }

    fn bit(slot: Slot) -> u64 {
        1 << (slot.0 % 64)
    }

    pub(super) fn guards(&self, slot: Slot) -> bool {
        self.words[slot.index() / 64] & Self::bit(slot) != 0
    }

    /// Guards a slot that is not guarded.
    pub(super) fn begin(&mut self, slot: Slot) {
        self.words[slot.index() / 64] |= Self::bit(slot);
        self.guarded += 1;
    }

    /// Ends a slot's guard; whether it had one.
    pub(super) fn end(&mut self, slot: Slot) -> bool {
        let had = self.guards(slot);
        self.words[slot.index() / 64] &= !Self::bit(slot);
        self.guarded -= u32::from(had);
        had
    }

    pub(super) fn bytes(&self) -> usize {
        self.words.capacity() * size_of::<u64>()
    }
}
