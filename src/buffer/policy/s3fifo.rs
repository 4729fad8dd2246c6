//! S3-FIFO: a small queue in which most rows are wanted once and go, a main queue for those that were wanted again, and a ghost queue of nodes that
//! went from the small one.
//!
//! A row that comes enters the small queue, or the main one if its node is a ghost. From the small queue a row that was hit more than once
//! moves to the main one, and another goes and leaves a ghost. The main queue gives each row one more round for each hit, up to three.
//! Source: Yang et al., FIFO Queues are All You Need for Cache Eviction (SOSP 2023), algorithm 1, with its parameters: a tenth of the slots for
//! the small queue, as many ghosts as the main one has slots; a ghost is gone once as many have come after it.

use super::cache::{Order, Rows};
use super::lists::SlotLists;
use crate::id::{NodeId, Slot};
use crate::node_table::NodeTable;

const SMALL: u16 = 0;
const MAIN: u16 = 1;
/// Slots for each slot of the small queue.
const SLOTS_PER_SMALL: u32 = 10;
const HITS_MAX: u8 = 3;

/// Nodes that went from the small queue lately.
struct Ghosts {
    /// When each came, as a count of all that came.
    since: NodeTable<u64>,
    /// The last that came, each at its count modulo `most`.
    ring: Vec<NodeId>,
    most: usize,
    came: u64,
}

impl Ghosts {
    fn new(most: usize) -> Self {
        Self { since: NodeTable::with_capacity(most), ring: Vec::with_capacity(most), most, came: 0 }
    }

    /// Takes a node out; whether it was there.
    fn take(&mut self, node: NodeId) -> bool {
        self.since.remove(node).is_some()
    }

    /// Enters a node in the place of the one that came `most` before.
    fn enter(&mut self, node: NodeId) {
        if self.ring.len() < self.most {
            self.ring.push(node);
        } else if let Some(place) = self.ring.get_mut(self.came as usize % self.most.max(1)) {
            let oldest = std::mem::replace(place, node);
            // It may have been taken out, and have come again, meanwhile.
            if self.since.get(oldest) == Some(self.came - self.most as u64) {
                self.since.remove(oldest);
            }
        } else {
            return;
        }
        *self.since.entry(node) = self.came;
        self.came += 1;
    }

    fn bytes(&self) -> usize {
        self.since.bytes() + self.ring.capacity() * size_of::<NodeId>()
    }
}

pub(super) struct S3Fifo {
    lists: SlotLists,
    /// Hits of each slot's row since it came or moved. What has a place only was not hit.
    hits: Vec<u8>,
    small: u32,
    main: u32,
    main_most: u32,
    ghosts: Ghosts,
}

impl S3Fifo {
    pub(super) fn new(slots: u32) -> Self {
        let main_most = slots.saturating_sub((slots / SLOTS_PER_SMALL).max(1));
        Self {
            lists: SlotLists::new(slots, 2),
            hits: vec![0; slots as usize],
            small: 0,
            main: 0,
            main_most,
            ghosts: Ghosts::new(main_most as usize),
        }
    }

    fn len(&mut self, list: u16) -> &mut u32 {
        if list == SMALL { &mut self.small } else { &mut self.main }
    }

    fn append(&mut self, list: u16, slot: Slot) {
        self.lists.append(list, slot);
        *self.len(list) += 1;
    }

    /// Takes a slot out; the list that had it.
    fn take(&mut self, slot: Slot) -> Option<u16> {
        let list = self.lists.list_of(slot)?;
        self.lists.remove(slot);
        *self.len(list) -= 1;
        Some(list)
    }

    fn hits(&mut self, slot: Slot) -> Option<&mut u8> {
        self.hits.get_mut(slot.index())
    }

    /// The first of the small queue that was not hit more than once. Those before it move to the main queue.
    fn small_victim(&mut self, steps: &mut u32, rows: &Rows) -> Option<Slot> {
        while *steps > 0 {
            let slot = self.lists.first(SMALL)?;
            match self.hits(slot).filter(|hits| **hits > 1) {
                None => return rows.first_to_go(&self.lists, SMALL),
                Some(hits) => *hits = 0,
            }
            *steps -= 1;
            self.take(slot);
            self.append(MAIN, slot);
        }
        None
    }

    /// The first of the main queue that has no round left.
    fn main_victim(&mut self, steps: &mut u32, rows: &Rows) -> Option<Slot> {
        while *steps > 0 {
            let slot = self.lists.first(MAIN)?;
            match self.hits(slot).filter(|hits| **hits > 0) {
                None if rows.can_go(slot) => return Some(slot),
                None => {}
                Some(hits) => *hits -= 1,
            }
            *steps -= 1;
            self.take(slot);
            self.append(MAIN, slot);
        }
        None
    }
}

impl Order for S3Fifo {
    fn lists(&self) -> &SlotLists {
        &self.lists
    }

    fn lists_mut(&mut self) -> &mut SlotLists {
        &mut self.lists
    }

    fn front(&self) -> u16 {
        SMALL
    }

    fn hit(&mut self, slot: Slot) {
        let hits = &mut self.hits[slot.index()];
        *hits = (*hits + 1).min(HITS_MAX);
    }

    fn enter(&mut self, slot: Slot, node: NodeId) {
        let list = if self.ghosts.take(node) { MAIN } else { SMALL };
        self.append(list, slot);
    }

    fn leave(&mut self, slot: Slot, node: NodeId) {
        if self.take(slot) == Some(SMALL) {
            self.ghosts.enter(node);
        }
        if let Some(hits) = self.hits(slot) {
            *hits = 0;
        }
    }

    fn victim(&mut self, _candidate: Option<NodeId>, steps: &mut u32, rows: &Rows) -> Option<Slot> {
        if self.main > self.main_most || self.small == 0 {
            self.main_victim(steps, rows)
        } else {
            self.small_victim(steps, rows)
        }
    }

    fn prefetch(&self, node: NodeId) {
        self.ghosts.since.prefetch(node);
    }

    fn bytes(&self) -> usize {
        self.hits.capacity() + self.ghosts.bytes()
    }
}
