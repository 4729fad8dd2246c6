//! Where everything lies in a part of the host's buffer.
//!
//! Both sides work this out from the number of slots, the bytes of a row and the number of ranks, so that nothing in the memory itself has to
//! be believed but bounded words.

use super::hash;
use crate::error::{Error, Result};
use crate::id::{NodeId, Slot};
use crate::memory::Memory;
use std::sync::atomic::AtomicU64;

const LINE: usize = 64;
const PAGE: usize = 4096;
/// Words of all queues of notes of a part: a node is a word, so that with four ranks this is a dozen announced minibatches of 10 000 nodes to
/// each neighbour.
const NOTE_WORDS: usize = 1 << 19;
/// Rows of the queue of rows to one neighbour, as far as they fit these bytes of all such queues of a part.
const OFFERED_ROWS: usize = 1024;
const OFFERED_BYTES: usize = 2 << 20;
/// Entries of a bucket of the index: two cache lines, half full on average.
pub(super) const WAYS: usize = 16;

/// The shape of a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    pub(super) slots: u32,
    pub(super) row_bytes: usize,
    /// Ranks of the host.
    pub(super) ranks: u32,
    pub(super) buckets: usize,
    pub(super) offered_rows: usize,
    note_words: usize,
    index: usize,
    cursors: usize,
    queues: usize,
    rows: usize,
    bytes: usize,
}

/// What a reader needs of a slot.
#[repr(C)]
pub(super) struct Head {
    /// Odd while there is no row.
    pub(super) version: AtomicU64,
    pub(super) node: AtomicU64,
}

/// A counter that one side writes and the other waits on, alone in its cache line.
#[repr(C, align(64))]
pub(super) struct Cursor(pub(super) AtomicU64);

/// What the two queues of a pair of ranks carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Queue {
    Notes,
    Rows,
}

impl Layout {
    /// The shape of a part of so many slots.
    ///
    /// # Errors
    /// It does not fit the address space.
    pub(crate) fn new(slots: u32, row_bytes: usize, ranks: u32) -> Result<Self> {
        let too_large = || Error::argument(format!("{slots} slots of {row_bytes} bytes overflow the address space"));
        let layout = Self::checked(slots, row_bytes, ranks).ok_or_else(too_large)?;
        isize::try_from(layout.bytes).map(|_| layout).map_err(|_| too_large())
    }

    fn checked(slots: u32, row_bytes: usize, ranks: u32) -> Option<Self> {
        let buckets = (slots as usize).div_ceil(WAYS / 2).next_power_of_two();
        let entry = 8 + row_bytes.checked_next_multiple_of(8)?;
        let offered_rows = (OFFERED_BYTES / ranks as usize / entry).clamp(1, OFFERED_ROWS);
        let note_words = NOTE_WORDS / ranks as usize;
        let heads_bytes = (slots as usize * size_of::<Head>()).next_multiple_of(LINE);
        let index = heads_bytes;
        let cursors = index + buckets * WAYS * 8;
        let queues = cursors + ranks as usize * 4 * size_of::<Cursor>();
        let queue_bytes = (note_words * 8).next_multiple_of(LINE)
            + offered_rows.checked_mul(entry)?.checked_next_multiple_of(LINE)?;
        let rows = queues.checked_add(queue_bytes.checked_mul(ranks as usize)?)?.checked_next_multiple_of(PAGE)?;
        let bytes = rows.checked_add((slots as usize).checked_mul(row_bytes)?)?;
        Some(Self { slots, row_bytes, ranks, buckets, offered_rows, note_words, index, cursors, queues, rows, bytes })
    }

    /// Bytes of the whole part.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Bytes of all but the rows.
    pub(crate) fn books_bytes(&self) -> u64 {
        self.rows as u64
    }

    /// Words of an entry of the queue of rows: the node, then the row.
    pub(super) fn entry_words(&self) -> usize {
        1 + self.row_bytes.div_ceil(8)
    }

    fn queue_words(&self, queue: Queue) -> usize {
        match queue {
            Queue::Notes => self.note_words,
            Queue::Rows => self.offered_rows * self.entry_words(),
        }
    }

    /// The bucket of a node, and what its entries are told by.
    pub(super) fn bucket(&self, node: NodeId) -> (usize, u32) {
        let hash = hash(node);
        (hash as usize & (self.buckets - 1), (hash >> 32) as u32)
    }
}

/// One part's memory, ours or a neighbour's. All of it but the rows, ours and those on offer, is only ever reached atomically.
#[derive(Clone, Copy)]
pub(super) struct Side<'a> {
    base: *mut u8,
    pub(super) layout: &'a Layout,
}

impl<'a> Side<'a> {
    /// `memory` has at least the layout's bytes.
    pub(super) fn new(memory: &'a Memory, layout: &'a Layout) -> Self {
        assert!(memory.bytes() >= layout.bytes, "whoever makes a part has checked its size");
        Self { base: memory.base(), layout }
    }

    fn slice<T>(&self, offset: usize, count: usize) -> &'a [T] {
        debug_assert!(offset + count * size_of::<T>() <= self.layout.bytes);
        // SAFETY: called for `Head`, `Cursor` and `AtomicU64` only, which are valid for any bytes and may be shared and changed behind a
        // reference. The layout puts them within the memory, at multiples of their alignment from a page's beginning, and the memory lives
        // as long as the borrow that `new` took.
        unsafe { std::slice::from_raw_parts(self.base.add(offset).cast(), count) }
    }

    pub(super) fn heads(&self) -> &'a [Head] {
        self.slice(0, self.layout.slots as usize)
    }

    pub(super) fn index(&self) -> &'a [AtomicU64] {
        self.slice(self.layout.index, self.layout.buckets * WAYS)
    }

    /// Counters of the queues between this part's rank and the one at `place`: how much it has written to its own queues, and how much it
    /// has read of the other's.
    fn cursor(&self, place: usize, at: usize) -> &'a AtomicU64 {
        let cursors: &[Cursor] = self.slice(self.layout.cursors, self.layout.ranks as usize * 4);
        &cursors[place * 4 + at].0
    }

    pub(super) fn written(&self, place: usize, queue: Queue) -> &'a AtomicU64 {
        self.cursor(place, queue as usize)
    }

    pub(super) fn read(&self, place: usize, queue: Queue) -> &'a AtomicU64 {
        self.cursor(place, 2 + queue as usize)
    }

    /// The words of the queue to the rank at `place`.
    pub(super) fn queue(&self, place: usize, queue: Queue) -> &'a [AtomicU64] {
        self.slice(self.queue_offset(place, queue), self.layout.queue_words(queue))
    }

    fn queue_offset(&self, place: usize, queue: Queue) -> usize {
        assert!(place < self.layout.ranks as usize, "places are those of the host's ranks");
        let notes = (self.layout.queue_words(Queue::Notes) * 8).next_multiple_of(LINE);
        let rows = (self.layout.queue_words(Queue::Rows) * 8).next_multiple_of(LINE);
        let first = self.layout.queues + place * (notes + rows);
        if queue == Queue::Rows { first + notes } else { first }
    }

    /// The first byte of an entry of the queue of rows to the rank at `place`: that of the count-th word, which begins one.
    pub(super) fn entry(&self, place: usize, count: u64) -> *mut u8 {
        let words = self.layout.queue_words(Queue::Rows) as u64;
        let entry = (count % words) / self.layout.entry_words() as u64 * self.layout.entry_words() as u64;
        self.base.wrapping_add(self.queue_offset(place, Queue::Rows) + entry as usize * 8)
    }

    /// The first byte of slot 0.
    pub(super) fn rows(&self) -> *mut u8 {
        self.base.wrapping_add(self.layout.rows)
    }

    /// The first byte of a slot, which is one of the part's.
    pub(super) fn row(&self, slot: Slot) -> *mut u8 {
        self.rows().wrapping_add(slot.index() * self.layout.row_bytes)
    }
}
