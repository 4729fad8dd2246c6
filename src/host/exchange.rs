//! Rows that a rank had to fetch go to the rank that keeps their nodes.

use super::Host;
use super::layout::Queue;
use super::queue::{Inbox, Outbox};
use crate::id::NodeId;

/// A row that a neighbour hands over, in the neighbour's memory until [`Exchange::release`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Offered {
    pub(crate) node: NodeId,
    pub(crate) row: *const u8,
}

/// This rank's ends of the queues of rows; one thread has them.
pub(crate) struct Exchange {
    host: Host,
    /// By place: how far that neighbour's queue was read by the last [`Exchange::take`].
    taken: Vec<Option<u64>>,
    /// Whose queue is read first the next time.
    first: usize,
}

impl Exchange {
    pub(crate) fn new(host: Host) -> Self {
        let taken = vec![None; host.others.len()];
        Self { host, taken, first: 0 }
    }

    /// Hands a row to its node's keeper, unless that has too many waiting.
    ///
    /// # Safety
    /// `row` is readable for the row's bytes.
    pub(crate) unsafe fn offer(&mut self, node: NodeId, row: *const u8) {
        let words = self.host.own.layout.entry_words();
        let Some(outbox) = Outbox::new(&self.host, self.host.keeper(node), Queue::Rows) else { return };
        let Some(from) = outbox.reserve(words) else { return };
        let entry = self.host.own.side().entry(self.host.keeper(node), from);
        // SAFETY: an entry is a word and room for a row, in our own part, which its mapping lets us write; the reader does not look at it
        // before the count says that it is written. The caller promises the row.
        unsafe {
            entry.cast::<u64>().write(node.0);
            std::ptr::copy_nonoverlapping(row, entry.add(size_of::<u64>()), self.host.own.layout.row_bytes);
        }
        outbox.commit(from + words as u64);
    }

    /// Replaces `rows` by up to `most` rows that neighbours hand over. They stay where they are until [`release`](Self::release).
    pub(crate) fn take(&mut self, most: usize, rows: &mut Vec<Offered>) {
        rows.clear();
        let words = self.host.own.layout.entry_words() as u64;
        let places = self.taken.len();
        self.first = (self.first + 1) % places;
        for neighbour in (self.first..places).chain(0..self.first) {
            let Some(inbox) = Inbox::new(&self.host, neighbour, Queue::Rows) else { continue };
            let (mut at, to) = inbox.unread();
            let Some(side) = self.host.other(neighbour) else { continue };
            while to - at >= words && rows.len() < most {
                let entry = side.entry(self.host.place, at);
                // SAFETY: an entry lies within the neighbour's part, at a multiple of 8, and the neighbour leaves it alone until it is
                // released.
                let node = NodeId(unsafe { entry.cast::<u64>().read() });
                rows.push(Offered { node, row: entry.wrapping_add(size_of::<u64>()) });
                at += words;
            }
            self.taken[neighbour] = Some(at);
        }
    }

    /// The rows taken are copied, or not wanted: neighbours may use their room.
    pub(crate) fn release(&mut self) {
        for neighbour in self.host.neighbours() {
            if let Some(to) = self.taken[neighbour].take()
                && let Some(inbox) = Inbox::new(&self.host, neighbour, Queue::Rows)
            {
                inbox.release(to);
            }
        }
    }
}
