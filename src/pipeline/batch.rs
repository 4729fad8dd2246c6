//! Row batches: flights of one owner that travel together.

use super::RequestId;
use super::flight::FlightId;
use crate::id::{NodeId, Rank};
use crate::transport::BatchId;
use std::time::Duration;

/// Where rows land, or are copied to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Area {
    /// The rows of a request.
    Rows(RequestId),
    /// The slots of a table's buffer; the number is the table's place among the pipeline's tables.
    Slots(usize),
    /// A chunk of staging memory, because the transport cannot write the request's rows safely; the number is the chunk.
    Staging(u32),
    /// The queue to the rank of this host that keeps the node.
    Offer(NodeId),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BatchState {
    Free,
    Queued,
    Posted,
}

#[derive(Debug)]
pub(super) struct Batch {
    generation: u32,
    pub state: BatchState,
    pub table: usize,
    pub owner: u32,
    pub area: Area,
    /// Whether it goes with the demand.
    pub demand: bool,
    /// The request that a demand batch serves first.
    pub request: Option<RequestId>,
    pub flights: Vec<FlightId>,
    pub rows: Vec<u64>,
    pub places: Vec<u32>,
    /// Whom it is posted to.
    pub peer: Rank,
    /// Rows posted and not completed.
    pub open: u32,
    pub not_before: Duration,
    pub posted_at: Duration,
    /// Its place among the posted, while it is.
    posted_index: usize,
}

/// Batches that exist from the start: more than are open at once in a steady job, so that it allocates none.
const WARM: u32 = 64;

/// The arena of batches; vectors keep their capacity from one use to the next.
#[derive(Debug)]
pub(super) struct Batches {
    batches: Vec<Batch>,
    free: Vec<u32>,
    posted: Vec<u32>,
}

impl Batches {
    /// An arena whose first batches have room for so many rows each.
    pub fn new(rows: usize) -> Self {
        let (free, posted) = ((0..WARM).rev().collect(), Vec::with_capacity(WARM as usize));
        let mut batches = Self { batches: Vec::new(), free, posted };
        (0..WARM).for_each(|_| batches.grow(rows));
        batches
    }

    fn grow(&mut self, rows: usize) {
        self.batches.push(Batch {
            generation: 0,
            state: BatchState::Free,
            table: 0,
            owner: 0,
            area: Area::Slots(0),
            demand: false,
            request: None,
            flights: Vec::with_capacity(rows),
            rows: Vec::with_capacity(rows),
            places: Vec::with_capacity(rows),
            peer: Rank(0),
            open: 0,
            not_before: Duration::ZERO,
            posted_at: Duration::ZERO,
            posted_index: 0,
        });
    }

    pub fn open(
        &mut self,
        table: usize,
        owner: u32,
        area: Area,
        request: Option<RequestId>,
        not_before: Duration,
    ) -> u32 {
        let at = self.free.pop().unwrap_or_else(|| {
            self.grow(0);
            (self.batches.len() - 1) as u32
        });
        let batch = self.get_mut(at);
        batch.state = BatchState::Queued;
        (batch.table, batch.owner, batch.area, batch.request) = (table, owner, area, request);
        batch.not_before = not_before;
        at
    }

    /// Counts a batch among the posted ones.
    pub fn post(&mut self, at: u32, peer: Rank, now: Duration) {
        let index = self.posted.len();
        let batch = self.get_mut(at);
        (batch.state, batch.peer, batch.posted_at, batch.posted_index) = (BatchState::Posted, peer, now, index);
        self.posted.push(at);
    }

    pub fn close(&mut self, at: u32) {
        let Batch { state, posted_index, .. } = *self.get(at);
        if state == BatchState::Posted {
            self.posted.swap_remove(posted_index);
            if let Some(&moved) = self.posted.get(posted_index) {
                self.get_mut(moved).posted_index = posted_index;
            }
        }
        let batch = self.get_mut(at);
        batch.generation = batch.generation.wrapping_add(1);
        batch.state = BatchState::Free;
        batch.flights.clear();
        batch.rows.clear();
        batch.places.clear();
        self.free.push(at);
    }

    pub fn get(&self, at: u32) -> &Batch {
        &self.batches[at as usize]
    }

    /// Whom a batch is posted to, and since when; `None` where it is not, or there is none of that number.
    pub fn posted_to(&self, at: u32) -> Option<(Rank, Duration)> {
        let posted = self.batches.get(at as usize).filter(|batch| batch.state == BatchState::Posted);
        posted.map(|batch| (batch.peer, batch.posted_at))
    }

    pub fn get_mut(&mut self, at: u32) -> &mut Batch {
        &mut self.batches[at as usize]
    }

    /// The name under which a batch is posted.
    pub fn id(&self, at: u32) -> BatchId {
        BatchId(u64::from(self.get(at).generation) << 32 | u64::from(at))
    }

    /// The batch of a name, unless it has ended.
    pub fn find(&self, id: BatchId) -> Option<u32> {
        let at = id.0 as u32;
        let batch = self.batches.get(at as usize)?;
        (batch.generation == (id.0 >> 32) as u32 && batch.state != BatchState::Free).then_some(at)
    }

    /// The batches that are posted.
    pub fn posted(&self) -> impl Iterator<Item = (u32, &Batch)> {
        self.posted.iter().map(|&at| (at, self.get(at)))
    }

    /// Number of batches that are not free.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.batches.len() - self.free.len()
    }
}
