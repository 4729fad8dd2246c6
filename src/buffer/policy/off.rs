//! No retention: slots are landing room for announced rows. A row that its last announced minibatch has used is the first to go;
//! nothing is admitted.

use super::{Origin, ReplacementPolicy, View};
use crate::buffer::window::WindowPosition;
use crate::id::{NodeId, Slot};
use std::collections::VecDeque;

/// How many spent slots are looked at for one without readers.
const PROBES: usize = 32;

pub(super) struct Off {
    /// Slots whose rows no announced minibatch wants any more, oldest first. One that changed hands meanwhile is no longer `spent`.
    queue: VecDeque<Slot>,
    spent: Vec<bool>,
}

impl Off {
    pub(super) fn new(slots: u32) -> Self {
        Self { queue: VecDeque::with_capacity(slots as usize), spent: vec![false; slots as usize] }
    }
}

impl ReplacementPolicy for Off {
    fn accepts(&self, origin: Origin) -> bool {
        origin == Origin::Ahead
    }

    fn victim(&mut self, _candidate: NodeId, _origin: Origin, view: &View) -> Option<Slot> {
        for _ in 0..PROBES {
            let slot = self.queue.pop_front()?;
            if !self.spent[slot.index()] {
                continue;
            }
            if view.is_evictable(slot) {
                return Some(slot);
            }
            self.queue.push_back(slot);
        }
        None
    }

    fn remove(&mut self, slot: Slot, _node: NodeId) {
        self.spent[slot.index()] = false;
    }

    fn announced(&mut self, resident: &[(Slot, NodeId)], _view: &View) {
        for (slot, _) in resident {
            self.spent[slot.index()] = false;
        }
    }

    fn retired(&mut self, _position: WindowPosition, resident: &[(Slot, NodeId)], view: &View) {
        for &(slot, node) in resident {
            if view.window.next_use(node).is_none() && !std::mem::replace(&mut self.spent[slot.index()], true) {
                self.queue.push_back(slot);
            }
        }
    }

    fn bytes(&self) -> usize {
        self.queue.capacity() * size_of::<Slot>() + self.spent.capacity()
    }
}
