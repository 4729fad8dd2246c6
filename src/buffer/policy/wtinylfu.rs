//! W-TinyLFU, as Caffeine has it: a small window in which every row starts, and a main part that a row from the window enters only if it is wanted
//! more often than the one that would go for it.
//!
//! The window is an LRU of a hundredth of the slots. The main part is a segmented LRU: rows start on probation and are protected from their
//! next hit on, four fifths of it at most. Counts are of all nodes, at most 15, and halve after ten wants a slot. Source: Einziger, Friedman and
//! Manes, TinyLFU (ACM Transactions on Storage, 2017), with the parameters of Caffeine's simulator. Its later hill climber, which moves the
//! window's size, is left out, and so is its coin against crafted keys. Counts stand in the table of [`crate::buffer::frequency`] instead of a
//! sketch: exact until one of its buckets is full, and halved as they are read.

use super::cache::{Order, Rows};
use super::lfu::remembered;
use super::lists::SlotLists;
use crate::buffer::BufferHints;
use crate::buffer::frequency::{Count, Decay, FrequencyTable};
use crate::id::{NodeId, Slot};

const WINDOW: u16 = 0;
const PROBATION: u16 = 1;
const PROTECTED: u16 = 2;

/// Slots for each slot of the window.
const SLOTS_PER_WINDOW: u32 = 100;
/// What a count may come to.
const COUNT_MAX: f32 = 15.0;
/// Wants for each slot until all counts halve.
const WANTS_PER_SLOT: u32 = 10;

/// How often nodes are wanted.
struct Counts {
    table: FrequencyTable,
    /// Halves with each unit of its clock, which is how often counts have halved.
    decay: Decay,
    halvings: u32,
    /// Wants counted, halved with the counts, and those at which they halve.
    wants: u64,
    wants_most: u64,
}

impl Counts {
    fn new(slots: u32, remembered: usize) -> Self {
        Self {
            table: FrequencyTable::with_capacity(remembered),
            decay: Decay::new(1),
            halvings: 0,
            wants: 0,
            wants_most: u64::from(slots.max(1)) * u64::from(WANTS_PER_SLOT),
        }
    }

    fn get(&self, node: NodeId) -> f32 {
        // The published counters are whole numbers: each halving drops what is left over, and so does this for all of them at once.
        self.table.get(node).map_or(0.0, |count| self.decay.at(count, self.halvings).floor())
    }

    fn add(&mut self, node: NodeId) {
        let score = self.get(node) + 1.0;
        if score > COUNT_MAX {
            return;
        }
        self.table.set(node, Count { score, minibatch: self.halvings }, &self.decay);
        self.wants += 1;
        if self.wants == self.wants_most {
            self.halvings += 1;
            self.wants /= 2;
        }
    }
}

pub(super) struct WTinyLfu {
    lists: SlotLists,
    counts: Counts,
    window: u32,
    window_most: u32,
    protected: u32,
    protected_most: u32,
}

impl WTinyLfu {
    pub(super) fn new(slots: u32, hints: &BufferHints) -> Self {
        let window_most = slots.div_ceil(SLOTS_PER_WINDOW);
        let main_most = slots - window_most;
        Self {
            lists: SlotLists::new(slots, 3),
            // Unlike those of `lfu`, counts of residents stand in the table too.
            counts: Counts::new(slots, slots as usize + remembered(slots, hints)),
            window: 0,
            window_most,
            protected: 0,
            protected_most: main_most - main_most.div_ceil(5),
        }
    }

    /// Moves the first of a list to the end of the probation.
    fn put_on_probation(&mut self, list: u16) {
        if let Some(slot) = self.lists.first(list) {
            self.lists.remove(slot);
            self.lists.append(PROBATION, slot);
        }
    }

    fn count_of(&self, slot: Slot, rows: &Rows) -> f32 {
        rows.node(slot).map_or(0.0, |node| self.counts.get(node))
    }
}

impl Order for WTinyLfu {
    fn lists(&self) -> &SlotLists {
        &self.lists
    }

    fn lists_mut(&mut self) -> &mut SlotLists {
        &mut self.lists
    }

    fn front(&self) -> u16 {
        PROBATION
    }

    fn want(&mut self, node: NodeId) {
        self.counts.add(node);
    }

    fn hit(&mut self, slot: Slot) {
        let list = self.lists.list_of(slot).unwrap_or(PROBATION);
        self.lists.remove(slot);
        self.lists.append(if list == WINDOW { WINDOW } else { PROTECTED }, slot);
        self.protected += u32::from(list == PROBATION);
        if self.protected > self.protected_most {
            self.put_on_probation(PROTECTED);
            self.protected -= 1;
        }
    }

    fn enter(&mut self, slot: Slot, _node: NodeId) {
        self.lists.append(WINDOW, slot);
        self.window += 1;
        if self.window > self.window_most {
            self.put_on_probation(WINDOW);
            self.window -= 1;
        }
    }

    fn leave(&mut self, slot: Slot, _node: NodeId) {
        let list = self.lists.list_of(slot);
        self.window -= u32::from(list == Some(WINDOW));
        self.protected -= u32::from(list == Some(PROTECTED));
        self.lists.remove(slot);
    }

    /// The candidate will push the first of the window out of it: that one or the one that it would take the place of.
    fn victim(&mut self, candidate: Option<NodeId>, _steps: &mut u32, rows: &Rows) -> Option<Slot> {
        let mut main = [PROBATION, PROTECTED].into_iter();
        let defender = main.find_map(|list| rows.first_to_go(&self.lists, list));
        let pushed = rows.first_to_go(&self.lists, WINDOW);
        match (defender, pushed) {
            (Some(defender), Some(pushed)) if candidate.is_some() && self.window >= self.window_most => {
                let wins = self.count_of(pushed, rows) > self.count_of(defender, rows);
                Some(if wins { defender } else { pushed })
            }
            _ => defender.or(pushed),
        }
    }

    fn prefetch(&self, node: NodeId) {
        self.counts.table.prefetch(node);
    }

    fn bytes(&self) -> usize {
        self.counts.table.bytes() + self.counts.decay.bytes()
    }
}
