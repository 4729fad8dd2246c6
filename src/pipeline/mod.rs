//! The way of a minibatch as a state machine: split, look up, join, batch, prioritise, retry, prefetch.
//!
//! It has no clock, no thread, no socket and no `unsafe`: time comes in as a number, batches to post and copies to make go out as
//! values. So the engine, the simulator and the property tests run the very same code, and a fault schedule is a list of calls.
//!
//! ```
//! use rudder::controller::Decision;
//! use rudder::pipeline::{Limits, Pipeline, Source, StartOptions, Table};
//! use rudder::transport::{Completion, RemoteRegion};
//! use rudder::{NodeId, PartitionBook, Rank, TableId};
//! use std::collections::VecDeque;
//! use std::time::Duration;
//!
//! let (now, second) = (Duration::ZERO, Duration::from_secs(1));
//! let limits = Limits {
//!     batch_rows: 64,
//!     prefetch_batch_rows: 64,
//!     prefetch_rows_in_flight: 64,
//!     requests: 4,
//!     tickets: 4,
//!     announced_nodes: 100,
//!     attempts: 3,
//!     backoff: Duration::from_millis(20),
//!     transfer_timeout: second,
//!     staging_chunks: 0,
//!     by_row: true,
//! };
//! let there = RemoteRegion { peer: Rank(1), index: 0, bytes: 16 };
//! let table = Table {
//!     id: TableId(0),
//!     book: PartitionBook::from_starts(vec![0, 2, 4])?,
//!     sources: vec![Source::Local, Source::Remote(there)],
//!     spares: vec![VecDeque::new(); 2],
//!     row_bytes: 8,
//!     version: 0,
//!     buffer: None,
//! };
//! let mut pipeline = Pipeline::new(limits, vec![table]);
//!
//! let mut plan = pipeline.plan();
//! let options = StartOptions { ticket: None, observed: true, timeout: second, direct: true };
//! let nodes = [NodeId(3), NodeId(0)];
//! let request = pipeline.start(now, 0, &nodes, options, &mut plan, &mut |_, _| Decision::default())?;
//! assert_eq!((&plan.local.rows[..], &plan.local.places[..]), (&[0][..], &[1][..]));
//! pipeline.handle_plan_done(&plan); // the caller has copied its own rows
//!
//! let transmit = pipeline.poll_transmit(now).expect("a row that another rank owns");
//! assert_eq!((transmit.region, &transmit.rows[..], &transmit.places[..]), (there, &[1][..], &[0][..]));
//! let complete = Completion { batch: transmit.id, first: 0, count: 1, status: Ok(()) };
//! pipeline.handle_posted(now, transmit, 1);
//! assert!(!pipeline.is_over(request));
//! pipeline.handle_completions(now, &[complete], &mut Vec::new());
//! pipeline.handle_copied();
//! assert!(pipeline.is_over(request) && pipeline.collect(request).0.is_ok());
//! # Ok::<(), rudder::Error>(())
//! ```

#![forbid(unsafe_code)]

mod batch;
mod fill;
mod flight;
mod neighbours;
mod outstanding;
mod owner;
mod request;
#[cfg(test)]
mod tests;
mod ticket;
mod transfer;

pub use batch::Area;
pub use neighbours::{Neighbours, Note, Seen, SeenList, Sighting};
pub use outstanding::{Debt, Outstanding};
pub use owner::OwnerLoad;
pub use request::RequestId;
pub use ticket::Ticket;

use crate::buffer::{BufferCounters, Pin, PrefetchBuffer, Reserve, Residency, WindowPosition};
use crate::controller::{Decision, Observation, OwnerShare};
use crate::error::{Error, Result, TransferError};
use crate::id::{NodeId, Rank, Slot, StreamId, TableId};
use crate::node_table::AHEAD;
use crate::partition::PartitionBook;
use crate::transport::{BatchId, RemoteRegion};
use batch::{BatchState, Batches};
use fill::Fill;
use flight::{Flight, FlightId, FlightIndex, Flights, Landing};
use neighbours::Shared;
use request::Requests;
use std::collections::VecDeque;
use std::time::Duration;
use ticket::Tickets;

/// The pipeline's bounds.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Most rows of a demand batch.
    pub batch_rows: usize,
    /// Most rows of a prefetch batch: small, so that a demand batch never waits long behind one.
    pub prefetch_batch_rows: usize,
    /// Most prefetched rows on their way at once.
    pub prefetch_rows_in_flight: usize,
    /// Most requests open at once.
    pub requests: usize,
    /// Most tickets open at once.
    pub tickets: usize,
    /// Most announced node ids held at once.
    pub announced_nodes: usize,
    /// Times that a row is tried before its request fails.
    pub attempts: u8,
    /// Wait before the second try of a row; it doubles with each further one.
    pub backoff: Duration,
    /// Time that a posted batch is given before its peer is aborted.
    pub transfer_timeout: Duration,
    /// Chunks of `batch_rows` rows of staging memory; 0 where transports may write any rows of the caller's.
    pub staging_chunks: u32,
    /// Whether an owner's rows are asked for in the order of its table, and not in that of the minibatch.
    pub by_row: bool,
}

/// Where the rows of a partition are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// In this rank's own region.
    Local,
    /// In a region of this host that is mapped here.
    Mapped,
    /// With a peer.
    Remote(RemoteRegion),
}

/// One table as the pipeline sees it.
pub struct Table {
    /// Its name.
    pub id: TableId,
    /// Who owns which node.
    pub book: PartitionBook,
    /// Where each partition's rows are.
    pub sources: Vec<Source>,
    /// Of each partition that is with a peer, the same rows with further peers, each of which stands in once those before it are gone; empty
    /// where there are none.
    pub spares: Vec<VecDeque<RemoteRegion>>,
    /// Bytes of a row.
    pub row_bytes: usize,
    /// The version that was imported.
    pub version: u64,
    /// The rows kept on this rank; `None` keeps nothing.
    pub buffer: Option<PrefetchBuffer>,
}

/// Rows to copy from one region to places of a request.
#[derive(Clone, Debug, Default)]
pub struct RowList {
    /// Row indexes in the source.
    pub rows: Vec<u64>,
    /// For each, its place among the request's rows.
    pub places: Vec<u32>,
}

impl RowList {
    fn push(&mut self, row: u64, place: u32) {
        self.rows.push(row);
        self.places.push(place);
    }
}

/// What the starter of a request copies itself while the missing rows fly. Reused from request to request.
#[derive(Debug, Default)]
pub struct CopyPlan {
    /// Rows of this rank's own partition.
    pub local: RowList,
    /// Rows of mapped partitions, by partition.
    pub mapped: Vec<RowList>,
    /// Rows that are in the buffer, by slot; pinned until [`Pipeline::handle_plan_done`].
    pub ready: RowList,
    /// Rows that other ranks of the host have in their slots.
    pub seen: SeenList,
    pin: Option<(usize, Pin)>,
    /// The request, and whether it is observed.
    request: Option<(RequestId, bool)>,
}

impl CopyPlan {
    /// Empties it and makes room for a minibatch of so many nodes, however they will be split.
    fn reset(&mut self, nodes: usize) {
        for list in self.mapped.iter_mut().chain([&mut self.local, &mut self.ready]) {
            list.rows.clear();
            list.places.clear();
        }
        for list in self.mapped.iter_mut().chain([&mut self.local, &mut self.ready]) {
            list.rows.reserve(nodes);
            list.places.reserve(nodes);
        }
        self.seen.clear();
        (self.pin, self.request) = (None, None);
    }
}

/// One end of a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The memory.
    pub area: Area,
    /// The place in it: a row of a request, a slot, or a row of all staging memory.
    pub index: u32,
}

/// A row to copy once it has landed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Copy {
    /// The table, by its place among the pipeline's tables.
    pub table: usize,
    /// Where the row is.
    pub from: Place,
    /// Where it is wanted.
    pub to: Place,
}

/// A batch to post. The vectors come back by [`Pipeline::handle_posted`].
#[derive(Debug)]
pub struct Transmit {
    /// Its name.
    pub id: BatchId,
    /// The table, by its place among the pipeline's tables.
    pub table: usize,
    /// The region to read.
    pub region: RemoteRegion,
    /// Row indexes, ascending within a partition.
    pub rows: Vec<u64>,
    /// Their places in the area.
    pub places: Vec<u32>,
    /// Where they land.
    pub area: Area,
}

/// Counts since the start, of one table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct TableStats {
    /// Minibatches gathered, those observed.
    pub minibatches: u64,
    /// Remote input nodes that they wanted.
    pub remote_nodes: u64,
    /// Of these, nodes whose row was in the buffer or on its way there.
    pub hits: u64,
    /// Rows fetched because a minibatch wanted them.
    pub demand_rows: u64,
    /// Rows fetched ahead, the initial fill not included.
    pub prefetched_rows: u64,
    /// Rows fetched for the initial fill; one that a minibatch wanted before its turn came is a demand row.
    pub fill_rows: u64,
    /// Rows that were tried again.
    pub retried_rows: u64,
    /// Partitions that are asked of another peer, as the one before is gone.
    #[serde(default)]
    pub failovers: u64,
    /// Rows on this rank or mapped from its host.
    pub local_rows: u64,
    /// Of the hits, those that another rank of the host had.
    #[serde(default)]
    pub neighbour_hits: u64,
    /// Of these, rows that were gone before they were copied, so that they were fetched all the same.
    #[serde(default)]
    pub neighbour_losses: u64,
}

#[derive(Debug)]
enum Settled {
    /// So many rows of a request are in their places, and nothing will write to these any more.
    Placed(RequestId, u32),
    /// Nothing will write to so many of its places any more, whose rows are not there.
    Unexposed(RequestId, u32),
    Filled(usize, Slot),
}

/// An announcement whose nodes are to be fetched ahead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Planned {
    /// A ticket, and which of its parts.
    Ticket(Ticket, usize),
    /// What a neighbour has told of: its place, and its name for the announcement.
    Heard(usize, u64),
}

/// A table and what is on its way to it.
struct Lane {
    table: Table,
    flights: FlightIndex,
    /// Announcements whose nodes are not all looked at, in the order in which they were made.
    planning: VecDeque<Planned>,
    /// The other ranks of the host, where they share one buffer.
    shared: Option<Shared>,
    /// What is left of the initial fill.
    fill: Fill,
    /// Fetches decided at a boundary, in order.
    fetches: Vec<(NodeId, Slot)>,
    /// Pins of plans that are being copied, ascending.
    copying: VecDeque<Pin>,
    stats: TableStats,
    observed: TableStats,
    replaced_rows: u64,
    replace_skipped: bool,
    counted: BufferCounters,
    /// When the last observed minibatch was started.
    observed_at: Option<Duration>,
    /// Rows to pull ahead of each minibatch, by cohort, until the next decision.
    quotas: Option<Vec<u32>>,
    /// Gathers that have started.
    gathers: u64,
    /// By partition.
    owners: Vec<OwnerLoad>,
    /// By partition, what its owner had sent by the last boundary, where a controller is shown that.
    owners_seen: Vec<OwnerShare>,
    /// The list of an observation, between two of them.
    owners_sent: Vec<OwnerShare>,
}

/// The state machine. Times are durations since any fixed moment.
pub struct Pipeline {
    limits: Limits,
    lanes: Vec<Lane>,
    requests: Requests,
    tickets: Tickets,
    flights: Flights,
    batches: Batches,
    demand: VecDeque<u32>,
    /// By name, since a batch that is promoted stays here until its turn.
    prefetch: VecDeque<BatchId>,
    prefetch_rows: usize,
    staging: Vec<u32>,
    settled: Vec<Settled>,
    /// The transport took less than it was given: nothing is posted before a completion, or this moment.
    blocked_until: Option<Duration>,
    next_pin: u64,
    announced_nodes: usize,
    /// Those that neighbours have announced; they give way to this rank's own.
    heard_nodes: usize,
    /// No row will be posted any more.
    closed: bool,
    /// Of the last start: see [`Pipeline::wanted`].
    announced_ago: Option<u64>,
    // Scratch of `start`, kept for its capacity.
    remote: Vec<NodeId>,
    remote_places: Vec<u32>,
    found: Vec<Residency>,
    seen: Vec<Seen>,
    own: Vec<NodeId>,
    own_found: Vec<Residency>,
    wanted: Vec<Wanted>,
    grouped: Vec<Wanted>,
    /// With the peer that has not given the row.
    failed: Vec<(FlightId, Rank, TransferError)>,
    /// Flights whose first asker is gone, to be batched for the next.
    rehomed: Vec<(usize, RequestId, FlightId)>,
    segments: Vec<(usize, usize)>,
}

/// A flight to be batched.
#[derive(Clone, Copy, Debug)]
struct Wanted {
    owner: u32,
    row: u64,
    flight: FlightId,
}

const BLOCKED: Duration = Duration::from_millis(1);

/// What is said of a request when it starts.
#[derive(Clone, Copy, Debug)]
pub struct StartOptions {
    /// The announcement that the request redeems.
    pub ticket: Option<Ticket>,
    /// Whether the buffer learns from it.
    pub observed: bool,
    /// The time that it is given.
    pub timeout: Duration,
    /// Whether its rows are memory that the transport may write to, where there is staging for those that are not.
    pub direct: bool,
}

impl Pipeline {
    /// A pipeline over these tables.
    pub fn new(limits: Limits, tables: Vec<Table>) -> Self {
        let lanes = tables
            .into_iter()
            .enumerate()
            .map(|(at, table)| Lane {
                owners: vec![OwnerLoad::default(); table.sources.len()],
                owners_seen: vec![OwnerShare::default(); table.sources.len()],
                owners_sent: Vec::new(),
                table,
                flights: FlightIndex::with_capacity(at, 4 * limits.batch_rows + limits.prefetch_rows_in_flight),
                planning: VecDeque::with_capacity(limits.tickets),
                shared: None,
                fill: Fill::default(),
                fetches: Vec::new(),
                copying: VecDeque::with_capacity(limits.requests),
                stats: TableStats::default(),
                observed: TableStats::default(),
                replaced_rows: 0,
                replace_skipped: false,
                counted: BufferCounters::default(),
                observed_at: None,
                quotas: None,
                gathers: 0,
            })
            .collect();
        Self {
            staging: (0..limits.staging_chunks).collect(),
            lanes,
            requests: Requests::default(),
            tickets: Tickets::default(),
            flights: Flights::with_capacity(4 * limits.batch_rows + limits.prefetch_rows_in_flight),
            batches: Batches::new(limits.batch_rows),
            demand: VecDeque::with_capacity(64),
            prefetch: VecDeque::with_capacity(64),
            prefetch_rows: 0,
            settled: Vec::with_capacity(4 * limits.batch_rows + 2 * limits.prefetch_rows_in_flight),
            blocked_until: None,
            next_pin: 1,
            announced_nodes: 0,
            heard_nodes: 0,
            closed: false,
            announced_ago: None,
            remote: Vec::new(),
            remote_places: Vec::new(),
            found: Vec::new(),
            seen: Vec::new(),
            own: Vec::new(),
            own_found: Vec::new(),
            wanted: Vec::new(),
            grouped: Vec::new(),
            failed: Vec::new(),
            rehomed: Vec::new(),
            segments: Vec::new(),
            limits,
        }
    }

    /// A plan with room for this pipeline's partitions.
    pub fn plan(&self) -> CopyPlan {
        let partitions = self.lanes.iter().map(|lane| lane.table.sources.len()).max().unwrap_or(0);
        CopyPlan { mapped: vec![RowList::default(); partitions], ..CopyPlan::default() }
    }

    /// The tables.
    pub fn tables(&self) -> impl Iterator<Item = &Table> {
        self.lanes.iter().map(|lane| &lane.table)
    }

    /// Counts of a table, by its place.
    pub fn stats(&self, table: usize) -> TableStats {
        self.lanes[table].stats
    }

    /// Requests that were started and not collected.
    pub fn open_requests(&self) -> usize {
        self.requests.iter().count()
    }

    /// What each owner of a table's rows has cost, by partition.
    pub fn owners(&self, table: usize) -> &[OwnerLoad] {
        &self.lanes[table].owners
    }

    /// What the last [`start`](Self::start) wanted: the nodes whose rows travel, in its order, and how many gathers of the table began between
    /// its announcement and itself. Until the next call that names nodes.
    pub fn wanted(&self) -> (&[NodeId], Option<u64>) {
        (&self.remote, self.announced_ago)
    }

    /// The place of a table among the pipeline's.
    ///
    /// # Errors
    /// It is not registered.
    pub fn table(&self, id: TableId) -> Result<usize> {
        self.lanes.iter().position(|lane| lane.table.id == id).ok_or(Error::UnknownTable(id))
    }

    /// Fetches what the policies want in their buffers before the first minibatch, little by little. Returns the number of rows.
    pub fn fill(&mut self) -> u64 {
        let mut rows = 0;
        for lane in &mut self.lanes {
            let Some(buffer) = &mut lane.table.buffer else { continue };
            let mut fetches = Vec::new();
            buffer.initial_fill(&mut fetches);
            rows += fetches.len() as u64;
            lane.fill = Fill::new(fetches);
        }
        self.go_on_filling();
        rows
    }

    /// Makes flights of some of what is left to fill: as many as may be on their way at once, so that their number stays bounded and
    /// the transport is never short of them. Returns whether there were any.
    fn go_on_filling(&mut self) -> bool {
        for table in 0..self.lanes.len() {
            self.wanted.clear();
            while self.wanted.len() < self.limits.prefetch_rows_in_flight
                && let Some((node, slot)) = self.lanes[table].fill.next()
            {
                self.want_slot(table, node, slot);
            }
            self.lanes[table].stats.fill_rows += self.wanted.len() as u64;
            if !self.wanted.is_empty() {
                self.enqueue(table, Area::Slots(table), None, false, Duration::ZERO);
                return true;
            }
        }
        false
    }

    /// Whether no row is on its way or to be filled.
    pub fn is_idle(&self) -> bool {
        self.flights.len() == 0 && self.settled.is_empty() && self.lanes.iter().all(|lane| lane.fill.is_empty())
    }

    /// Starts a gather: the plan says what the caller copies itself; the rest arrives. `decide` is shown what the minibatch found
    /// and told whether there is a buffer to steer, and says what is to be done at its end; it must not wait.
    ///
    /// # Errors
    /// A node outside the table, a ticket of other nodes, or too many open requests; nothing has changed then.
    pub fn start(
        &mut self,
        now: Duration,
        table: usize,
        nodes: &[NodeId],
        options: StartOptions,
        plan: &mut CopyPlan,
        decide: &mut dyn FnMut(&mut Observation, bool) -> Decision,
    ) -> Result<RequestId> {
        if u32::try_from(nodes.len()).is_err() {
            return Err(Error::argument(format!("{} nodes in one gather; the most are 2^32 - 1", nodes.len())));
        }
        plan.reset(nodes.len());
        self.split(table, nodes, Some(plan))?;
        let part = options.ticket.map(|ticket| self.redeem(ticket, table)).transpose()?;
        let deadline = now + options.timeout;
        let Some(request) = self.requests.open(self.limits.requests, nodes.len(), now, deadline) else {
            return Err(Error::Full {
                queue: "the table of open requests",
                limit: self.limits.requests,
                remedy: "wait for a request before starting another, or raise `requests`",
            });
        };
        self.requests.get_mut(request).expect("it was just opened").direct = options.direct;
        let pin = Pin(self.next_pin);
        self.next_pin += 1;
        self.look_up(table, pin, options.observed);
        self.announced_ago = None;
        if let (Some(ticket), Some(part)) = (options.ticket, part) {
            let since = self.tickets.get_mut(ticket).map(|announced| announced.parts[part].since);
            self.announced_ago = since.map(|since| self.lanes[table].gathers - since);
            self.retire(ticket, part);
        }
        self.lanes[table].gathers += 1;
        self.lanes[table].shared.iter_mut().for_each(Shared::note_gather);
        self.want_missing(table, request, options.observed, plan);
        self.enqueue(table, Area::Rows(request), Some(request), true, Duration::ZERO);
        let lane = &mut self.lanes[table];
        lane.stats.local_rows += (nodes.len() - self.remote.len()) as u64;
        if lane.table.buffer.is_some() {
            lane.copying.push_back(pin);
            (plan.pin, plan.request) = (Some((table, pin)), Some((request, options.observed)));
        }
        if options.observed {
            self.close_minibatch(now, table, decide);
        }
        self.plan_prefetch(table);
        Ok(request)
    }

    /// The caller has copied what the plan named. Returns whether there is something to post: slots are not pinned any more.
    pub fn handle_plan_done(&mut self, plan: &CopyPlan) -> bool {
        let Some((table, pin)) = plan.pin else { return false };
        let lane = &mut self.lanes[table];
        if let Some(at) = lane.copying.iter().position(|&other| other == pin) {
            lane.copying.remove(at);
        }
        self.release(table);
        if let Some((request, observed)) = plan.request.filter(|_| !plan.seen.lost.is_empty()) {
            self.fetch_lost(table, request, observed, &plan.seen.lost);
        }
        // Slots that were pinned a moment ago may be room for announced rows now.
        self.plan_prefetch(table);
        !self.demand.is_empty() || !self.prefetch.is_empty()
    }

    /// Announces a minibatch that will be gathered, from each of these tables.
    ///
    /// # Errors
    /// A node outside a table, or a full window; nothing has changed then.
    pub fn announce(&mut self, stream: StreamId, tables: &[TableId], nodes: &[NodeId]) -> Result<Ticket> {
        let full = |queue, limit| Error::Full { queue, limit, remedy: "gather or forget announced minibatches first" };
        if let Some(twice) = tables.iter().enumerate().find(|(at, table)| tables[..*at].contains(table)) {
            return Err(Error::argument(format!("{} is announced twice for one minibatch", twice.1)));
        }
        let ids = tables.len() * nodes.len();
        while self.announced_nodes + self.heard_nodes + ids > self.limits.announced_nodes && self.forget_a_heard() {}
        if self.announced_nodes + ids > self.limits.announced_nodes {
            return Err(full("the list of announced nodes", self.limits.announced_nodes));
        }
        for &table in tables {
            self.split(self.table(table)?, nodes, None)?;
        }
        let Some(ticket) = self.tickets.open(self.limits.tickets, stream, tables.len()) else {
            return Err(full("the window", self.limits.tickets));
        };
        for (at, &table) in tables.iter().enumerate() {
            let table = self.table(table).expect("it was just found");
            self.split(table, nodes, None).expect("these nodes were just found to be in the table");
            let position = self.enter(table);
            let lane = &mut self.lanes[table];
            if position == Some(None) && lane.shared.is_none() {
                self.forget(ticket);
                return Err(full("the buffer's window", crate::buffer::WINDOW_MAX));
            }
            let part = &mut self.tickets.get_mut(ticket).expect("it was just opened").parts[at];
            part.table = table;
            part.since = lane.gathers;
            part.position = position.flatten();
            (part.cursor, part.gathered) = (0, false);
            part.nodes.extend_from_slice(&self.remote);
            self.announced_nodes += part.nodes.len();
            if part.position.is_some() {
                lane.planning.push_back(Planned::Ticket(ticket, at));
            }
            if let Some(shared) = &mut lane.shared {
                shared.note_announced();
                shared.neighbours.tell(Note::Announced(ticket.to_bits()), &self.remote);
            }
        }
        for &table in tables {
            self.plan_prefetch(self.table(table).expect("it was just found"));
        }
        Ok(ticket)
    }

    /// Enters those of the nodes of the last `split` that this rank keeps into the buffer's window: none without a buffer, no position where it
    /// is full. What neighbours have announced gives way; what has come in behind a minibatch of ours that is still open cannot, and then this
    /// one is fetched when it is gathered.
    fn enter(&mut self, table: usize) -> Option<Option<WindowPosition>> {
        loop {
            let Lane { table: Table { buffer, .. }, shared, .. } = &mut self.lanes[table];
            let position = buffer.as_mut()?.announce(neighbours::own(shared.as_ref(), &self.remote, &mut self.own));
            if position.is_some() || !self.forget_oldest_heard(table) {
                return Some(position);
            }
        }
    }

    /// Takes an announcement back; rows fetched for it stay as long as the policy likes them. A ticket that has been redeemed or forgotten
    /// is ignored: loops that break forget what they hold.
    pub fn forget(&mut self, ticket: Ticket) {
        let parts = self.tickets.get_mut(ticket).map_or(0, |announced| announced.parts.len());
        for part in 0..parts {
            self.retire(ticket, part);
        }
        self.tickets.close(ticket);
    }

    /// As [`forget`](Self::forget), for all open tickets of a stream.
    pub fn forget_stream(&mut self, stream: StreamId) {
        while let Some(ticket) = self.tickets.any_of(stream) {
            self.forget(ticket);
        }
    }

    /// Sorts nodes into what the caller copies and what is remote (left in `remote`, `remote_places`).
    fn split(&mut self, table: usize, nodes: &[NodeId], mut plan: Option<&mut CopyPlan>) -> Result<()> {
        let Table { id, book, sources, .. } = &self.lanes[table].table;
        self.remote.clear();
        self.remote_places.clear();
        for (place, &node) in nodes.iter().enumerate() {
            let Some((partition, row)) = book.locate(node) else {
                return Err(Error::NodeOutOfRange { table: *id, node, nodes: book.nodes() });
            };
            match (sources[partition.index()], &mut plan) {
                (Source::Remote(_), _) => {
                    self.remote.push(node);
                    self.remote_places.push(place as u32);
                }
                (Source::Local, Some(plan)) => plan.local.push(row, place as u32),
                (Source::Mapped, Some(plan)) => plan.mapped[partition.index()].push(row, place as u32),
                (_, None) => {}
            }
        }
        Ok(())
    }

    /// The part of a ticket that speaks of a table, if it names the very nodes that `split` has left.
    fn redeem(&mut self, ticket: Ticket, table: usize) -> Result<usize> {
        let bad = |cause: &str| Err(Error::Ticket(cause.into()));
        let Some(announced) = self.tickets.get_mut(ticket) else {
            return bad("it was gathered or forgotten already");
        };
        let Some(at) = announced.parts.iter().position(|part| part.table == table) else {
            return bad("it was announced for other tables");
        };
        let part = &announced.parts[at];
        if part.gathered {
            return bad("this table's rows of it were gathered already");
        }
        if part.nodes != self.remote {
            return bad("the nodes are not those that were announced");
        }
        Ok(at)
    }

    /// One pass over the buffer: `found` says of each remote node whether its row is here.
    fn look_up(&mut self, table: usize, pin: Pin, observed: bool) {
        self.seen.clear();
        let Lane { table: Table { buffer, .. }, shared, .. } = &mut self.lanes[table];
        match (buffer, shared) {
            (None, _) => {
                self.found.clear();
                self.found.resize(self.remote.len(), Residency::Absent);
            }
            (Some(buffer), None) => buffer.lookup(pin, &self.remote, observed, &mut self.found),
            (Some(_), Some(_)) => self.look_around(table, pin, observed),
        }
    }

    /// Turns what was found into copies, joins and new flights (left in `wanted`).
    fn want_missing(&mut self, table: usize, request: RequestId, observed: bool, plan: &mut CopyPlan) {
        self.wanted.clear();
        self.wanted.reserve(self.remote.len());
        self.lanes[table].flights.make_room(self.remote.len(), &self.flights);
        if self.lanes[table].shared.is_some() {
            plan.seen.reserve(self.remote.len());
        }
        let (mut hits, mut missing, mut neighbour_hits) = (0, 0, 0);
        for at in 0..self.remote.len() {
            let (node, place) = (self.remote[at], self.remote_places[at]);
            if let Residency::Ready(slot) = self.found[at] {
                hits += 1;
                plan.ready.push(u64::from(slot.0), place);
                continue;
            }
            let seen = self.seen.get(at).copied().unwrap_or(Seen::Own);
            if let Seen::There(sighting) = seen {
                neighbour_hits += 1;
                plan.seen.push(sighting, node, place);
                continue;
            }
            missing += 1;
            let offered = observed && seen == Seen::Missing;
            let lane = &mut self.lanes[table];
            if let Some(&later) = self.remote.get(at + AHEAD) {
                lane.flights.prefetch(later);
            }
            let (entry, found) = lane.flights.entry(node, &self.flights);
            if let Some(flight) = found {
                hits += u64::from(matches!(self.found[at], Residency::Filling(_)));
                self.flights.get_mut(flight).offered |= offered;
                self.flights.wait(flight, request, place);
                self.promote(flight);
                continue;
            }
            let (partition, row) = lane.table.book.locate(node).expect("split has located it");
            let flight = self.flights.insert(table as u32, node, partition.0, row, Landing::Rows(request, place));
            *entry = flight;
            self.flights.get_mut(flight).offered = offered;
            if let Residency::Filling(slot) = self.found[at]
                && lane.fill.take(slot)
            {
                // The slot has waited for this row, which now comes to it by a copy.
                let flight = self.flights.get_mut(flight);
                (flight.admitted, flight.fills) = (Some(slot), true);
            }
            self.wanted.push(Wanted { owner: partition.0, row, flight });
        }
        self.admit(table);
        let Lane { stats, observed: seen, .. } = &mut self.lanes[table];
        stats.demand_rows += self.wanted.len() as u64;
        if observed {
            stats.minibatches += 1;
            stats.remote_nodes += self.remote.len() as u64;
            stats.hits += hits + neighbour_hits;
            stats.neighbour_hits += neighbour_hits;
        } else {
            // The next observation is not to speak of what nobody was to learn from.
            seen.demand_rows += self.wanted.len() as u64;
        }
        self.requests.get_mut(request).expect("it was just opened").missing = missing;
    }

    /// Free admission: rows that are fetched anyway get slots where they are worth one.
    fn admit(&mut self, table: usize) {
        let lane = &mut self.lanes[table];
        let Some(buffer) = &mut lane.table.buffer else { return };
        // A slot that this minibatch hits may go too: its old row is copied out while the new one flies (see `land`).
        buffer.admit_missed(true, &mut lane.fetches);
        for (node, slot) in lane.fetches.drain(..) {
            match lane.flights.find(node, &self.flights).map(|flight| self.flights.get_mut(flight)) {
                Some(flight) if flight.admitted.is_none() && matches!(flight.landing, Landing::Rows(..)) => {
                    flight.admitted = Some(slot);
                }
                _ => buffer.abandon(slot),
            }
        }
    }

    /// A row that is prefetched and now wanted goes with the demand.
    fn promote(&mut self, flight: FlightId) {
        let Flight { landing: Landing::Slot(_), batch, .. } = *self.flights.get(flight) else { return };
        let entry = self.batches.get_mut(batch);
        if entry.state == BatchState::Queued && !std::mem::replace(&mut entry.demand, true) {
            self.demand.push_back(batch);
        }
    }

    /// Shows the minibatch to the controller and carries out what it has decided.
    fn close_minibatch(
        &mut self,
        now: Duration,
        table: usize,
        decide: &mut dyn FnMut(&mut Observation, bool) -> Decision,
    ) {
        let lane = &mut self.lanes[table];
        let elapsed = now.saturating_sub(lane.observed_at.replace(now).unwrap_or(now));
        let (stats, seen) = (lane.stats, lane.observed);
        let Some(buffer) = &mut lane.table.buffer else {
            let mut observation = Observation {
                minibatch: stats.minibatches,
                remote_nodes: stats.remote_nodes - seen.remote_nodes,
                demand_rows: stats.demand_rows - seen.demand_rows,
                bytes: (stats.demand_rows - seen.demand_rows) * lane.table.row_bytes as u64,
                elapsed,
                ..Observation::default()
            };
            decide(&mut observation, false);
            lane.observed = stats;
            return;
        };
        let (counters, counted) = (buffer.counters(), lane.counted);
        let rows = stats.demand_rows - seen.demand_rows + stats.prefetched_rows - seen.prefetched_rows;
        if buffer.weighs_owners() {
            owner::shares_since(&lane.owners, &mut lane.owners_seen, &mut lane.owners_sent);
        }
        let mut observation = Observation {
            minibatch: stats.minibatches,
            minibatches: 0,
            remote_nodes: stats.remote_nodes - seen.remote_nodes,
            halo_nodes: counters.halo_hits + counters.halo_misses - counted.halo_hits - counted.halo_misses,
            hits: stats.hits - seen.hits,
            halo_misses: counters.halo_misses - counted.halo_misses,
            demand_rows: stats.demand_rows - seen.demand_rows,
            prefetched_rows: stats.prefetched_rows - seen.prefetched_rows,
            useless_rows: counters.useless - counted.useless,
            replaced_rows: std::mem::take(&mut lane.replaced_rows),
            replace_skipped: std::mem::take(&mut lane.replace_skipped),
            bytes: rows * lane.table.row_bytes as u64,
            elapsed,
            stall: Duration::ZERO,
            cohort_misses: buffer.cohort_misses().to_vec(),
            owners: std::mem::take(&mut lane.owners_sent),
        };
        let decision = decide(&mut observation, true);
        lane.owners_sent = observation.owners;
        lane.counted = counters;
        lane.observed = stats;
        if decision.quotas.is_some() {
            lane.quotas = decision.quotas;
        }
        let replaced = buffer.end_minibatch(decision.replace, lane.quotas.as_deref(), &mut lane.fetches);
        if let Some(policy) = &decision.policy {
            buffer.switch(policy);
        }
        if let Some(weights) = &decision.owner_weights {
            buffer.weigh(weights);
        }
        let shares = lane.owners.iter().map(|owner| OwnerShare { rows: owner.rows, busy: owner.busy });
        buffer.tell_end(shares);
        (lane.replaced_rows, lane.replace_skipped) = (u64::from(replaced.rows), replaced.skipped);
        lane.stats.prefetched_rows += lane.fetches.len() as u64;
        self.start_fetches(table);
    }

    /// Makes flights of what a boundary has decided to fetch.
    fn start_fetches(&mut self, table: usize) {
        self.wanted.clear();
        let mut fetches = std::mem::take(&mut self.lanes[table].fetches);
        for (node, slot) in fetches.drain(..) {
            self.want_slot(table, node, slot);
        }
        self.lanes[table].fetches = fetches;
        self.enqueue(table, Area::Slots(table), None, false, Duration::ZERO);
    }

    fn want_slot(&mut self, table: usize, node: NodeId, slot: Slot) {
        let lane = &mut self.lanes[table];
        let (partition, row) = lane.table.book.locate(node).expect("the buffer knows nodes of its table only");
        let flight = self.flights.insert(table as u32, node, partition.0, row, Landing::Slot(slot));
        // A demand flight of the same node may be under way: the published scheme fetches again what it replaces. Joins go to
        // this one from now on.
        lane.flights.insert(node, flight, &self.flights);
        self.wanted.push(Wanted { owner: partition.0, row, flight });
    }

    /// Looks at announced nodes, nearest minibatch first, until there is no room for more.
    fn plan_prefetch(&mut self, table: usize) {
        self.wanted.clear();
        while let Some(&planned) = self.lanes[table].planning.front() {
            let done = self.plan_announced(table, planned);
            if !done {
                break;
            }
            self.lanes[table].planning.pop_front();
        }
        self.lanes[table].stats.prefetched_rows += self.wanted.len() as u64;
        self.enqueue(table, Area::Slots(table), None, false, Duration::ZERO);
    }

    /// Whether all nodes of the announcement have been looked at (or it is over).
    fn plan_announced(&mut self, table: usize, planned: Planned) -> bool {
        loop {
            let Lane { table: Table { buffer, .. }, shared, flights, .. } = &mut self.lanes[table];
            let (nodes, cursor, position) = match planned {
                Planned::Ticket(ticket, at) => {
                    let Some(announced) = self.tickets.get_mut(ticket) else { return true };
                    let part = &mut announced.parts[at];
                    while let (Some(&node), Some(shared)) = (part.nodes.get(part.cursor), &shared)
                        && shared.neighbours.keep(node)
                    {
                        part.cursor += 1;
                    }
                    (&part.nodes, &mut part.cursor, part.position)
                }
                Planned::Heard(neighbour, announcement) => {
                    let Some(heard) = shared.as_mut().and_then(|shared| shared.find(neighbour, announcement)) else {
                        return true;
                    };
                    (&heard.nodes, &mut heard.cursor, Some(heard.position))
                }
            };
            let (Some(&node), Some(position), Some(buffer)) = (nodes.get(*cursor), position, buffer) else {
                return true;
            };
            let slot = match buffer.reserve(node, position) {
                Reserve::NoRoom => return false,
                Reserve::Here => None,
                Reserve::Slot(slot) => Some(slot),
            };
            *cursor += 1;
            let Some(slot) = slot else { continue };
            match flights.find(node, &self.flights) {
                // A minibatch before fetches it already: keeping that row costs a copy, not a get.
                Some(flight) => self.flights.get_mut(flight).admitted = Some(slot),
                None => self.want_slot(table, node, slot),
            }
        }
    }

    /// Ends what a ticket says of one table.
    fn retire(&mut self, ticket: Ticket, at: usize) {
        let Some(announced) = self.tickets.get_mut(ticket) else { return };
        let part = &mut announced.parts[at];
        if part.gathered {
            return;
        }
        part.gathered = true;
        let table = part.table;
        let lane = &mut self.lanes[table];
        lane.planning.retain(|&entry| entry != Planned::Ticket(ticket, at));
        self.announced_nodes -= part.nodes.len();
        if let (Some(position), Some(buffer)) = (part.position.take(), &mut lane.table.buffer) {
            buffer.retire(position, neighbours::own(lane.shared.as_ref(), &part.nodes, &mut self.own));
        }
        if let Some(shared) = &mut lane.shared {
            shared.note_retired();
            shared.neighbours.tell(Note::Retired(ticket.to_bits()), &[]);
        }
        part.nodes.clear();
        if announced.parts.iter().all(|part| part.gathered) {
            self.tickets.close(ticket);
        }
    }

    /// Batches what is `wanted`, owner by owner, the owners taking turns so that all of them start at once.
    fn enqueue(&mut self, table: usize, area: Area, request: Option<RequestId>, demand: bool, not_before: Duration) {
        let most = if demand { self.limits.batch_rows } else { self.limits.prefetch_batch_rows };
        self.group_by_owner(table);
        let mut more = true;
        while more {
            more = false;
            for at in 0..self.segments.len() {
                let (from, end) = self.segments[at];
                if from == end {
                    continue;
                }
                let to = end.min(from + most);
                self.segments[at].0 = to;
                more = true;
                self.open_batch(table, area, request, demand, not_before, from..to);
            }
        }
        self.wanted.clear();
    }

    /// Orders what is `wanted` by its owner, and notes where in it each owner's `segments` begin and end.
    fn group_by_owner(&mut self, table: usize) {
        self.segments.clear();
        if self.limits.by_row {
            self.wanted.sort_unstable_by_key(|wanted| (wanted.owner, wanted.row));
        }
        if self.limits.by_row || self.wanted.is_sorted_by_key(|wanted| wanted.owner) {
            let mut from = 0;
            for segment in self.wanted.chunk_by(|a, b| a.owner == b.owner) {
                self.segments.push((from, from + segment.len()));
                from += segment.len();
            }
            return;
        }
        self.segments.resize(self.lanes[table].owners.len(), (0, 0));
        self.wanted.iter().for_each(|wanted| self.segments[wanted.owner as usize].1 += 1);
        let mut end = 0;
        for segment in &mut self.segments {
            let begin = end;
            end += segment.1;
            *segment = (begin, begin);
        }
        self.grouped.clone_from(&self.wanted);
        for wanted in &self.wanted {
            let (_, end) = &mut self.segments[wanted.owner as usize];
            self.grouped[*end] = *wanted;
            *end += 1;
        }
        std::mem::swap(&mut self.wanted, &mut self.grouped);
    }

    fn open_batch(
        &mut self,
        table: usize,
        area: Area,
        request: Option<RequestId>,
        demand: bool,
        not_before: Duration,
        wanted: std::ops::Range<usize>,
    ) {
        let owner = self.wanted[wanted.start].owner;
        let at = self.batches.open(table, owner, area, request, not_before);
        let batch = self.batches.get_mut(at);
        batch.flights.reserve(wanted.len());
        batch.rows.reserve(wanted.len());
        batch.places.reserve(wanted.len());
        for wanted in &self.wanted[wanted] {
            let flight = self.flights.get_mut(wanted.flight);
            flight.batch = at;
            let place = match flight.landing {
                Landing::Rows(_, place) => place,
                Landing::Slot(slot) => slot.0,
            };
            let batch = self.batches.get_mut(at);
            batch.flights.push(wanted.flight);
            batch.rows.push(wanted.row);
            batch.places.push(place);
        }
        self.batches.get_mut(at).demand = demand;
        if demand {
            self.demand.push_back(at);
        } else {
            self.prefetch.push_back(self.batches.id(at));
        }
    }

    /// Where the rows of a partition that is with a peer are read now.
    fn region(&self, table: usize, owner: u32) -> RemoteRegion {
        match self.lanes[table].table.sources[owner as usize] {
            Source::Remote(region) => region,
            Source::Local | Source::Mapped => unreachable!("only remote rows fly"),
        }
    }

    /// Whom a batch was posted to, or will be.
    fn peer(&self, at: u32) -> Rank {
        let batch = self.batches.get(at);
        if batch.state == BatchState::Posted { batch.peer } else { self.region(batch.table, batch.owner).peer }
    }
}
