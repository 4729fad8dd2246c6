//! The neighbours as the pipeline knows them: who keeps a node, who has its row now, and what they tell each other.

use super::Host;
use super::layout::{Queue, WAYS};
use super::queue::{Inbox, Outbox};
use crate::id::{NodeId, Slot};
use crate::memory::prefetch;
use crate::pipeline::{Neighbours, Note, Seen, Sighting};
use std::sync::atomic::Ordering;

/// How many nodes ahead the index's lines are asked for.
const AHEAD: usize = 8;

/// This rank's view of its neighbours, and its ends of the queues of notes.
pub(crate) struct Neighbourhood {
    host: Host,
    /// By place: what a note says to that neighbour. Kept for its capacity.
    lists: Vec<Vec<NodeId>>,
}

const WANTED: u64 = 1;
const ANNOUNCED: u64 = 2;
const RETIRED: u64 = 3;
/// Words of a note before its nodes: what it is and how many nodes follow, and the announcement.
const NOTE_HEAD: usize = 2;

impl Neighbourhood {
    pub(crate) fn new(host: Host) -> Self {
        let lists = vec![Vec::new(); host.others.len()];
        Self { host, lists }
    }

    fn sighting(&self, neighbour: usize, node: NodeId) -> Option<Sighting> {
        let side = self.host.other(neighbour)?;
        let (bucket, tag) = side.layout.bucket(node);
        let ways = side.index()[bucket * WAYS..][..WAYS].iter();
        let slots = ways.map(|way| way.load(Ordering::Acquire)).filter(|&found| found >> 32 == u64::from(tag));
        slots.filter_map(|found| (found as u32).checked_sub(1)).map(Slot).find_map(|slot| {
            let head = side.heads().get(slot.index())?;
            let version = head.version.load(Ordering::Acquire);
            let here = version % 2 == 0 && head.node.load(Ordering::Relaxed) == node.0;
            here.then_some(Sighting { neighbour: neighbour as u32, slot, version })
        })
    }

    /// Asks for the node's bucket, so that it is in the cache some nodes later.
    fn prefetch(&self, node: NodeId) {
        if let Some(side) = self.host.other(self.host.keeper(node)) {
            let (bucket, _) = side.layout.bucket(node);
            prefetch(side.index(), bucket * WAYS);
            prefetch(side.index(), bucket * WAYS + WAYS / 2);
        }
    }

    fn send(host: &Host, neighbour: usize, kind: u64, announcement: u64, nodes: &[NodeId]) {
        let Some(outbox) = Outbox::new(host, neighbour, Queue::Notes) else { return };
        let words = NOTE_HEAD + nodes.len();
        let Some(from) = outbox.reserve(words) else { return };
        let head = [(nodes.len() as u64) << 8 | kind, announcement];
        let values = head.into_iter().chain(nodes.iter().map(|node| node.0));
        outbox.words(from, words).zip(values).for_each(|(word, value)| word.store(value, Ordering::Relaxed));
        outbox.commit(from + words as u64);
    }
}

impl Neighbours for Neighbourhood {
    fn places(&self) -> usize {
        self.host.others.len()
    }

    fn keep(&self, node: NodeId) -> bool {
        self.host.keeper(node) != self.host.place
    }

    fn look_up(&self, nodes: &[NodeId], seen: &mut Vec<Seen>) {
        seen.clear();
        seen.reserve(nodes.len());
        for (at, &node) in nodes.iter().enumerate() {
            if let Some(&coming) = nodes.get(at + AHEAD) {
                self.prefetch(coming);
            }
            let keeper = self.host.keeper(node);
            seen.push(if keeper == self.host.place {
                Seen::Own
            } else {
                self.sighting(keeper, node).map_or(Seen::Missing, Seen::There)
            });
        }
    }

    fn tell(&mut self, note: Note, nodes: &[NodeId]) {
        let (kind, announcement) = match note {
            Note::Wanted => (WANTED, 0),
            Note::Announced(announcement) => (ANNOUNCED, announcement),
            Note::Retired(announcement) => (RETIRED, announcement),
        };
        self.lists.iter_mut().for_each(Vec::clear);
        for &node in nodes {
            self.lists[self.host.keeper(node)].push(node);
        }
        for neighbour in self.host.neighbours() {
            let list = &self.lists[neighbour];
            if kind == RETIRED || !list.is_empty() {
                Self::send(&self.host, neighbour, kind, announcement, list);
            }
        }
    }

    fn hear(&mut self, neighbour: usize, nodes: &mut Vec<NodeId>) -> Option<Note> {
        let inbox = Inbox::new(&self.host, neighbour, Queue::Notes)?;
        let (from, to) = inbox.unread();
        let mut words = inbox.words(from, (to - from) as usize).map(|word| word.load(Ordering::Relaxed));
        let (head, announcement) = (words.next()?, words.next());
        let (kind, count) = (head & 0xff, head >> 8);
        let whole = announcement.filter(|_| count <= to - from - NOTE_HEAD as u64);
        let note = whole.and_then(|announcement| match kind {
            WANTED => Some(Note::Wanted),
            ANNOUNCED => Some(Note::Announced(announcement)),
            RETIRED => Some(Note::Retired(announcement)),
            _ => None,
        });
        nodes.clear();
        if note.is_some() {
            nodes.extend(words.take(count as usize).map(NodeId));
        }
        // What makes no sense is no place to read on from.
        inbox.release(if note.is_some() { from + NOTE_HEAD as u64 + count } else { to });
        note
    }
}
