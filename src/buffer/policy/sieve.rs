//! SIEVE: rows stay in the order in which they came, and a hand goes over them from the oldest to the newest, again and again. It spares what was
//! hit since it last came by, once, and takes the first that was not.
//!
//! What the hand has passed is in one list, what is before it in another, so that the hand is the front of a list and a row that comes is
//! appended. Where no row is before the hand the lists change places: the hand starts again at the oldest. Source: Zhang et al., SIEVE is
//! Simpler than LRU (NSDI 2024), algorithm 1; it has no parameters.

use super::cache::{Order, Rows};
use super::lists::SlotLists;
use crate::id::{NodeId, Slot};

pub(super) struct Sieve {
    lists: SlotLists,
    /// The list of the rows before the hand; the other has those behind it, which are older.
    before: u16,
    /// By slot. What has a place only was not hit.
    visited: Vec<bool>,
}

impl Sieve {
    pub(super) fn new(slots: u32) -> Self {
        Self { lists: SlotLists::new(slots, 2), before: 0, visited: vec![false; slots as usize] }
    }

    /// Takes the mark of a slot.
    fn unmark(&mut self, slot: Slot) -> bool {
        self.visited.get_mut(slot.index()).is_some_and(std::mem::take)
    }

    /// Takes a slot from its list; the hand that has passed the newest is before the oldest.
    fn take(&mut self, slot: Slot) {
        self.lists.remove(slot);
        if self.lists.first(self.before).is_none() {
            self.before ^= 1;
        }
    }
}

impl Order for Sieve {
    fn lists(&self) -> &SlotLists {
        &self.lists
    }

    fn lists_mut(&mut self) -> &mut SlotLists {
        &mut self.lists
    }

    fn front(&self) -> u16 {
        self.before
    }

    fn hit(&mut self, slot: Slot) {
        self.visited[slot.index()] = true;
    }

    fn enter(&mut self, slot: Slot, _node: NodeId) {
        self.lists.append(self.before, slot);
    }

    fn leave(&mut self, slot: Slot, _node: NodeId) {
        self.unmark(slot);
        self.take(slot);
    }

    fn victim(&mut self, _candidate: Option<NodeId>, steps: &mut u32, rows: &Rows) -> Option<Slot> {
        while *steps > 0 {
            let slot = self.lists.first(self.before)?;
            if !self.unmark(slot) && rows.can_go(slot) {
                return Some(slot);
            }
            *steps -= 1;
            let behind = self.before ^ 1;
            self.lists.remove(slot);
            self.lists.append(behind, slot);
            if self.lists.first(self.before).is_none() {
                self.before = behind;
            }
        }
        None
    }

    fn bytes(&self) -> usize {
        self.visited.capacity()
    }
}
