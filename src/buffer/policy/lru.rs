//! The rows that were used last: the least recently used one goes.

use super::cache::{Order, Rows};
use super::lists::SlotLists;
use crate::id::{NodeId, Slot};

/// The one list: least recently used first.
const ALL: u16 = 0;

pub(super) struct Lru {
    lists: SlotLists,
}

impl Lru {
    pub(super) fn new(slots: u32) -> Self {
        Self { lists: SlotLists::new(slots, 1) }
    }
}

impl Order for Lru {
    fn lists(&self) -> &SlotLists {
        &self.lists
    }

    fn lists_mut(&mut self) -> &mut SlotLists {
        &mut self.lists
    }

    fn front(&self) -> u16 {
        ALL
    }

    fn hit(&mut self, slot: Slot) {
        self.lists.remove(slot);
        self.lists.append(ALL, slot);
    }

    fn enter(&mut self, slot: Slot, _node: NodeId) {
        self.lists.append(ALL, slot);
    }

    fn leave(&mut self, slot: Slot, _node: NodeId) {
        self.lists.remove(slot);
    }

    /// What is read or on its way was used last: where the first few cannot go, hardly any can.
    fn victim(&mut self, _candidate: Option<NodeId>, _steps: &mut u32, rows: &Rows) -> Option<Slot> {
        rows.first_to_go(&self.lists, ALL)
    }

    fn bytes(&self) -> usize {
        0
    }
}
