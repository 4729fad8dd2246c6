//! A queue of words from one rank to another, with one writer and one reader, bounded, without a lock.
//!
//! The words and the count of those written are in the writer's part, the count of those read in the reader's: neither writes the other's
//! memory. Counts only grow; a count that cannot be is the sign of a broken neighbour, and makes the queue full, or empty.

use super::Host;
use super::layout::Queue;
use std::sync::atomic::{AtomicU64, Ordering};

/// The end that writes.
pub(super) struct Outbox<'a> {
    words: &'a [AtomicU64],
    written: &'a AtomicU64,
    read: &'a AtomicU64,
}

impl<'a> Outbox<'a> {
    pub(super) fn new(host: &'a Host, neighbour: usize, queue: Queue) -> Option<Self> {
        let (own, other) = (host.own.side(), host.other(neighbour)?);
        Some(Self {
            words: own.queue(neighbour, queue),
            written: own.written(neighbour, queue),
            read: other.read(host.place, queue),
        })
    }

    /// The count before the next word, if there is room for so many.
    pub(super) fn reserve(&self, words: usize) -> Option<u64> {
        let written = self.written.load(Ordering::Relaxed);
        let unread = written.checked_sub(self.read.load(Ordering::Acquire))?;
        let room = (self.words.len() as u64).checked_sub(unread)?;
        (words as u64 <= room).then_some(written)
    }

    /// The words from a count on, so many, in one piece or two.
    pub(super) fn words(&self, from: u64, words: usize) -> impl Iterator<Item = &'a AtomicU64> {
        span(self.words, from, words)
    }

    /// Lets the reader have all before this count.
    pub(super) fn commit(&self, count: u64) {
        self.written.store(count, Ordering::Release);
    }
}

/// The end that reads.
pub(super) struct Inbox<'a> {
    words: &'a [AtomicU64],
    written: &'a AtomicU64,
    read: &'a AtomicU64,
}

impl<'a> Inbox<'a> {
    pub(super) fn new(host: &'a Host, neighbour: usize, queue: Queue) -> Option<Self> {
        let (own, other) = (host.own.side(), host.other(neighbour)?);
        Some(Self {
            words: other.queue(host.place, queue),
            written: other.written(host.place, queue),
            read: own.read(neighbour, queue),
        })
    }

    /// The counts of the first word to read and of the first that is not there yet.
    pub(super) fn unread(&self) -> (u64, u64) {
        let (read, written) = (self.read.load(Ordering::Relaxed), self.written.load(Ordering::Acquire));
        match written.checked_sub(read) {
            Some(unread) if unread <= self.words.len() as u64 => (read, written),
            _ => (read, read),
        }
    }

    /// The words from a count on, so many, in one piece or two.
    pub(super) fn words(&self, from: u64, words: usize) -> impl Iterator<Item = &'a AtomicU64> {
        span(self.words, from, words)
    }

    /// Gives the writer the room of all before this count.
    pub(super) fn release(&self, count: u64) {
        self.read.store(count, Ordering::Release);
    }
}

fn span(ring: &[AtomicU64], from: u64, words: usize) -> impl Iterator<Item = &AtomicU64> {
    let at = (from % ring.len() as u64) as usize;
    ring[at..].iter().chain(&ring[..at]).take(words)
}
