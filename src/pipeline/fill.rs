//! Rows of the initial fill that nobody fetches yet.
//!
//! A buffer may have millions of slots and a few thousand prefetched rows on their way: a row costs 16 bytes and a bit here until its turn
//! comes, and a flight with its place in a batch only then.

use crate::id::{NodeId, Slot};

/// What is left of a table's initial fill.
#[derive(Debug, Default)]
pub(super) struct Fill {
    /// Last first.
    rows: Vec<(NodeId, Slot)>,
    /// A bit for each slot that waits here.
    waiting: Vec<u64>,
}

impl Fill {
    pub fn new(mut rows: Vec<(NodeId, Slot)>) -> Self {
        rows.reverse();
        let words = rows.iter().map(|(_, slot)| slot.0 as usize / 64 + 1).max().unwrap_or(0);
        let mut waiting = vec![0; words];
        rows.iter().for_each(|(_, slot)| waiting[slot.0 as usize / 64] |= 1 << (slot.0 % 64));
        Self { rows, waiting }
    }

    /// Takes a slot out of its turn; false where it does not wait here.
    pub fn take(&mut self, slot: Slot) -> bool {
        let Some(word) = self.waiting.get_mut(slot.0 as usize / 64) else { return false };
        let bit = 1 << (slot.0 % 64);
        let waited = *word & bit != 0;
        *word &= !bit;
        waited
    }

    /// Takes back a slot that was taken out of its turn, for nobody brings its row.
    pub fn give_back(&mut self, node: NodeId, slot: Slot) {
        let word = slot.0 as usize / 64;
        if self.waiting.len() <= word {
            self.waiting.resize(word + 1, 0);
        }
        self.waiting[word] |= 1 << (slot.0 % 64);
        self.rows.push((node, slot));
    }

    /// Takes the next row. The memory of all goes with the last.
    pub fn next(&mut self) -> Option<(NodeId, Slot)> {
        while let Some((node, slot)) = self.rows.pop() {
            if self.take(slot) {
                return Some((node, slot));
            }
        }
        *self = Self::default();
        None
    }

    /// Whether no row is left; rows that were taken out of their turn count until [`next`](Self::next) has passed them.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }
}

#[cfg(test)]
mod tests {
    //! Goal: each row is handed out once, in order, by whichever way.

    use super::*;

    #[test]
    fn each_row_is_handed_out_once() {
        let row = |at: u32| (NodeId(u64::from(at) + 1000), Slot(at));
        let mut fill = Fill::new([3, 200, 64, 0].map(row).to_vec());
        assert!(!fill.take(Slot(1)) && !fill.take(Slot(5000)));
        assert!(fill.take(Slot(200)) && !fill.take(Slot(200)));
        assert_eq!([fill.next(), fill.next(), fill.next()], [3, 64, 0].map(|at| Some(row(at))));
        assert!(!fill.take(Slot(64)));
        fill.give_back(NodeId(1200), Slot(200));
        assert_eq!(fill.next(), Some(row(200)));
        assert_eq!(fill.next(), None);
        assert!(fill.is_empty() && fill.rows.capacity() == 0);
    }
}
