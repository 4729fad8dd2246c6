//! What the pipeline asks of the other ranks of its host, where they share one buffer.

use super::flight::Landing;
use super::{Area, Lane, Pipeline, Planned, RequestId, Source, Table, Wanted};
use crate::buffer::{Pin, PrefetchBuffer, Residency, WINDOW_MAX, WindowPosition};
use crate::error::Error;
use crate::id::{NodeId, Slot};
use std::collections::VecDeque;
use std::time::Duration;

/// What a neighbour has announced is let go after so many gathers of this rank's: a rank that has died, or whose word that it has gathered was
/// lost, is not to hold slots for ever. Ranks that train together are never so far apart.
const HEARD_GATHERS: u64 = 2 * WINDOW_MAX as u64;

/// Positions of the window that neighbours leave to this rank at the least, with those that it has taken.
const RESERVED_MIN: usize = 16;

/// A row in a neighbour's slot, as it was when somebody looked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sighting {
    /// The neighbour's place among the ranks of the host.
    pub neighbour: u32,
    /// The slot, one of the neighbour's.
    pub slot: Slot,
    /// What the slot's version was: the row is this one only as long as it does not change.
    pub version: u64,
}

/// Who keeps a node, and whether it has its row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// This rank keeps it: its own buffer knows.
    Own,
    /// A neighbour keeps it and has the row.
    There(Sighting),
    /// A neighbour keeps it and has no row.
    Missing,
}

/// What ranks of a host tell each other about nodes that the hearer keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Note {
    /// An observed minibatch has wanted them.
    Wanted,
    /// The minibatch of this announcement will want them.
    Announced(u64),
    /// The announcement was gathered or forgotten; names no nodes.
    Retired(u64),
}

/// The other ranks of a host, each of which keeps the nodes that hash to it.
///
/// Nothing here waits: a note that does not fit its queue is lost, and costs hits.
pub trait Neighbours: Send {
    /// Ranks of the host, this one included: places are below it.
    fn places(&self) -> usize;

    /// Whether another rank keeps the node.
    fn keep(&self, node: NodeId) -> bool;

    /// Replaces `seen` by what is known of each node now.
    fn look_up(&self, nodes: &[NodeId], seen: &mut Vec<Seen>);

    /// Tells each neighbour of those of the nodes that it keeps; this rank's own are passed over.
    fn tell(&mut self, note: Note, nodes: &[NodeId]);

    /// Takes the oldest note of the neighbour at a place; `nodes` is replaced by its nodes.
    fn hear(&mut self, neighbour: usize, nodes: &mut Vec<NodeId>) -> Option<Note>;
}

/// Rows to copy from neighbours' slots.
#[derive(Clone, Debug, Default)]
pub struct SeenList {
    /// Where they were seen.
    pub sightings: Vec<Sighting>,
    /// For each, its place among the request's rows.
    pub places: Vec<u32>,
    /// For each, its node.
    pub nodes: Vec<NodeId>,
    /// Of these, nodes and places whose rows were gone before they were copied: whoever copies says so here.
    pub lost: Vec<(NodeId, u32)>,
}

impl SeenList {
    pub(super) fn clear(&mut self) {
        self.sightings.clear();
        self.places.clear();
        self.nodes.clear();
        self.lost.clear();
    }

    /// Makes room for so many rows.
    pub(super) fn reserve(&mut self, rows: usize) {
        self.sightings.reserve(rows);
        self.places.reserve(rows);
        self.nodes.reserve(rows);
        self.lost.reserve(rows);
    }

    pub(crate) fn push(&mut self, sighting: Sighting, node: NodeId, place: u32) {
        self.sightings.push(sighting);
        self.nodes.push(node);
        self.places.push(place);
    }
}

/// An announcement that a neighbour has told of.
pub(super) struct Heard {
    announcement: u64,
    pub position: WindowPosition,
    pub nodes: Vec<NodeId>,
    /// How many of the nodes have been looked at for prefetching.
    pub cursor: usize,
    /// This rank's gathers when it was heard.
    since: u64,
}

/// What a table knows of its neighbours.
pub(super) struct Shared {
    pub neighbours: Box<dyn Neighbours>,
    /// By place: what that neighbour has announced and not retired, oldest first.
    heard: Vec<VecDeque<Heard>>,
    /// Lists of nodes that nobody uses, kept for their capacity.
    spare: Vec<Vec<NodeId>>,
    /// Announcements of this rank that are open, and the most that ever were.
    open: usize,
    open_max: usize,
    gathers: u64,
}

impl Shared {
    pub fn note_gather(&mut self) {
        self.gathers += 1;
    }

    pub fn note_announced(&mut self) {
        self.open += 1;
        self.open_max = self.open_max.max(self.open);
    }

    pub fn note_retired(&mut self) {
        self.open = self.open.saturating_sub(1);
    }

    /// An empty list. Where none is spare as many are made as are in use, so that a job in step soon makes no more.
    fn take_list(&mut self, nodes: usize) -> Vec<NodeId> {
        if self.spare.is_empty() {
            let used: usize = self.heard.iter().map(VecDeque::len).sum();
            self.spare.extend((0..=used).map(|_| Vec::with_capacity(nodes.next_power_of_two())));
        }
        let mut list = self.spare.pop().unwrap_or_default();
        list.clear();
        list
    }

    /// Positions of the window that are left to this rank's own announcements.
    fn reserve(&self) -> usize {
        self.open_max.max(RESERVED_MIN).saturating_sub(self.open)
    }

    /// Whether a node that a neighbour speaks of is one for this rank's buffer: it is remote, and this rank's to keep. Neighbours are not believed
    /// beyond that.
    fn takes(&self, table: &Table, node: NodeId) -> bool {
        let source = table.book.locate(node).map(|(partition, _)| table.sources[partition.index()]);
        matches!(source, Some(Source::Remote(_))) && !self.neighbours.keep(node)
    }

    pub fn find(&mut self, neighbour: usize, announcement: u64) -> Option<&mut Heard> {
        self.heard[neighbour].iter_mut().find(|heard| heard.announcement == announcement)
    }
}

/// Of some nodes, those that this rank keeps: all, where nothing is shared.
pub(super) fn own<'a>(shared: Option<&Shared>, nodes: &'a [NodeId], kept: &'a mut Vec<NodeId>) -> &'a [NodeId] {
    let Some(shared) = shared else { return nodes };
    kept.clear();
    kept.extend(nodes.iter().filter(|&&node| !shared.neighbours.keep(node)));
    kept
}

impl Pipeline {
    /// Has a table, by its place, share its buffer with the other ranks of the host: it keeps the nodes that they do not. Before the first
    /// announcement; a table without a buffer shares nothing.
    pub fn share(&mut self, table: usize, neighbours: Box<dyn Neighbours>) {
        let lane = &mut self.lanes[table];
        if lane.table.buffer.is_some() {
            let places = neighbours.places();
            let heard = (0..places).map(|_| VecDeque::with_capacity(WINDOW_MAX / places)).collect();
            lane.planning.reserve(WINDOW_MAX);
            lane.shared = Some(Shared { neighbours, heard, spare: Vec::new(), open: 0, open_max: 0, gathers: 0 });
        }
    }

    /// Takes in a note of each neighbour. Returns whether there was any: there may be more, and something to post.
    pub fn hear(&mut self) -> bool {
        let mut any = false;
        for table in 0..self.lanes.len() {
            let places = self.lanes[table].shared.as_ref().map_or(0, |shared| shared.heard.len());
            for neighbour in 0..places {
                any |= self.hear_one(table, neighbour);
                self.forget_old(table, neighbour);
            }
        }
        any
    }

    fn hear_one(&mut self, table: usize, neighbour: usize) -> bool {
        let Lane { table: known, shared: Some(shared), .. } = &mut self.lanes[table] else { return false };
        let mut nodes = shared.take_list(0);
        let note = shared.neighbours.hear(neighbour, &mut nodes);
        nodes.retain(|&node| shared.takes(known, node));
        match note {
            None => {}
            Some(Note::Wanted) => self.score_wanted(table, &nodes),
            Some(Note::Announced(announcement)) => {
                nodes = self.enter_heard(table, neighbour, announcement, nodes);
                self.plan_prefetch(table);
            }
            Some(Note::Retired(announcement)) => self.retire_heard(table, neighbour, announcement),
        }
        if let Some(shared) = &mut self.lanes[table].shared {
            shared.spare.push(nodes);
        }
        note.is_some()
    }

    /// A neighbour's minibatch is one like our own to the buffer, but for its rows, which the neighbour copies or fetches itself.
    fn score_wanted(&mut self, table: usize, nodes: &[NodeId]) {
        let Lane { table: Table { buffer: Some(buffer), .. }, fetches, stats, .. } = &mut self.lanes[table] else {
            return;
        };
        buffer.lookup(Pin(self.next_pin), nodes, true, &mut self.own_found);
        self.next_pin += 1;
        buffer.end_minibatch(false, None, fetches);
        stats.prefetched_rows += fetches.len() as u64;
        self.start_fetches(table);
        self.release(table);
    }

    /// Enters what a neighbour announces into the window; returns a list that is free to use. What has no room is not fetched ahead.
    fn enter_heard(&mut self, table: usize, neighbour: usize, announcement: u64, nodes: Vec<NodeId>) -> Vec<NodeId> {
        let Lane { table: Table { buffer: Some(buffer), .. }, shared: Some(shared), planning, .. } =
            &mut self.lanes[table]
        else {
            return nodes;
        };
        let most = WINDOW_MAX / shared.heard.len();
        let room = self.announced_nodes + self.heard_nodes + nodes.len() <= self.limits.announced_nodes;
        let room = room && buffer.window_room() > shared.reserve();
        if !room || shared.heard[neighbour].len() >= most || shared.find(neighbour, announcement).is_some() {
            return nodes;
        }
        let Some(position) = buffer.announce(&nodes) else { return nodes };
        self.heard_nodes += nodes.len();
        planning.push_back(Planned::Heard(neighbour, announcement));
        let since = shared.gathers;
        let count = nodes.len();
        shared.heard[neighbour].push_back(Heard { announcement, position, nodes, cursor: 0, since });
        shared.take_list(count)
    }

    fn retire_heard(&mut self, table: usize, neighbour: usize, announcement: u64) {
        let Lane { table: Table { buffer, .. }, shared: Some(shared), planning, .. } = &mut self.lanes[table] else {
            return;
        };
        let at = shared.heard[neighbour].iter().position(|heard| heard.announcement == announcement);
        let Some(heard) = at.and_then(|at| shared.heard[neighbour].remove(at)) else { return };
        planning.retain(|&entry| entry != Planned::Heard(neighbour, announcement));
        self.heard_nodes -= heard.nodes.len();
        if let Some(buffer) = buffer {
            buffer.retire(heard.position, &heard.nodes);
        }
        shared.spare.push(heard.nodes);
    }

    fn forget_old(&mut self, table: usize, neighbour: usize) {
        let Some(shared) = &self.lanes[table].shared else { return };
        let oldest = shared.heard[neighbour].front();
        let old = oldest.filter(|heard| heard.since + HEARD_GATHERS <= shared.gathers);
        if let Some(announcement) = old.map(|heard| heard.announcement) {
            self.retire_heard(table, neighbour, announcement);
        }
    }

    /// Lets go of the announcement that the window begins with, if a neighbour has made it: whether there was one.
    pub(super) fn forget_oldest_heard(&mut self, table: usize) -> bool {
        let Lane { table: Table { buffer: Some(buffer), .. }, shared: Some(shared), .. } = &self.lanes[table] else {
            return false;
        };
        let oldest = buffer.oldest_announced();
        let found = shared.heard.iter().enumerate().find_map(|(neighbour, heard)| {
            let first = heard.iter().find(|heard| Some(heard.position) == oldest)?;
            Some((neighbour, first.announcement))
        });
        found.inspect(|&(neighbour, announcement)| self.retire_heard(table, neighbour, announcement)).is_some()
    }

    /// Lets go of one announcement of a neighbour's, an old one: whether there was any.
    pub(super) fn forget_a_heard(&mut self) -> bool {
        let of_lane = |(table, lane): (usize, &Lane)| {
            let heard = lane.shared.iter().flat_map(|shared| shared.heard.iter().enumerate());
            let mut oldest = heard.filter_map(|(neighbour, heard)| Some((neighbour, heard.front()?.announcement)));
            oldest.next().map(|(neighbour, announcement)| (table, neighbour, announcement))
        };
        let found = self.lanes.iter().enumerate().find_map(of_lane);
        found.inspect(|&(table, neighbour, announcement)| self.retire_heard(table, neighbour, announcement)).is_some()
    }

    /// One pass over this rank's buffer and one over its neighbours': `found` and `seen` say of each remote node where its row is.
    pub(super) fn look_around(&mut self, table: usize, pin: Pin, observed: bool) {
        let Lane { table: Table { buffer: Some(buffer), .. }, shared: Some(shared), .. } = &mut self.lanes[table]
        else {
            return;
        };
        shared.neighbours.look_up(&self.remote, &mut self.seen);
        self.own.clear();
        let kept = self.remote.iter().zip(&self.seen).filter(|(_, seen)| **seen == Seen::Own);
        self.own.extend(kept.map(|(&node, _)| node));
        buffer.lookup(pin, &self.own, observed, &mut self.own_found);
        let mut own = self.own_found.iter().copied();
        self.found.clear();
        self.found.extend(self.seen.iter().map(|seen| match seen {
            Seen::Own => own.next().expect("the buffer has answered for each"),
            Seen::There(_) | Seen::Missing => Residency::Absent,
        }));
        if observed {
            shared.neighbours.tell(Note::Wanted, &self.remote);
        }
    }

    /// Fetches rows of a request that were seen with neighbours and gone before they were copied.
    pub(super) fn fetch_lost(&mut self, table: usize, id: RequestId, observed: bool, lost: &[(NodeId, u32)]) {
        if self.closed {
            return self.fail(id, Error::Closed);
        }
        let Some(request) = self.requests.get_mut(id).filter(|request| request.is_live()) else { return };
        request.missing += lost.len() as u32;
        self.wanted.clear();
        for &(node, place) in lost {
            let lane = &mut self.lanes[table];
            if let Some(flight) = lane.flights.find(node, &self.flights) {
                self.flights.wait(flight, id, place);
                self.promote(flight);
                continue;
            }
            let (partition, row) = lane.table.book.locate(node).expect("it was located when it was seen");
            let flight = self.flights.insert(table as u32, node, partition.0, row, Landing::Rows(id, place));
            lane.flights.insert(node, flight, &self.flights);
            self.wanted.push(Wanted { owner: partition.0, row, flight });
        }
        let Lane { stats, observed: seen, .. } = &mut self.lanes[table];
        stats.demand_rows += self.wanted.len() as u64;
        if observed {
            stats.neighbour_losses += lost.len() as u64;
        } else {
            // As where the gather started.
            seen.demand_rows += self.wanted.len() as u64;
        }
        self.enqueue(table, Area::Rows(id), Some(id), true, Duration::ZERO);
    }

    /// A slot for a row that a neighbour hands over, if it is worth one: the caller writes the row there and says so by
    /// [`handle_adopted`](Self::handle_adopted).
    pub fn adopt(&mut self, table: usize, node: NodeId) -> Option<Slot> {
        let Lane { table: known, shared: Some(shared), .. } = &mut self.lanes[table] else { return None };
        if !shared.takes(known, node) {
            return None;
        }
        known.buffer.as_mut()?.adopt(node)
    }

    /// The slot that [`adopt`](Self::adopt) gave has its row.
    pub fn handle_adopted(&mut self, table: usize, slot: Slot) {
        if let Some(buffer) = &mut self.lanes[table].table.buffer {
            buffer.filled(slot);
        }
    }

    /// Lets slots go that no plan copies from any more.
    pub(super) fn release(&mut self, table: usize) {
        let lane = &mut self.lanes[table];
        let oldest = lane.copying.front().copied().unwrap_or(Pin(self.next_pin));
        lane.table.buffer.iter_mut().for_each(|buffer: &mut PrefetchBuffer| buffer.release(oldest));
    }
}
