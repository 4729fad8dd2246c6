//! Row batches: flights of one owner that travel together.

use super::RequestId;
use super::flight::FlightId;
use crate::transport::BatchId;
use std::time::Duration;

/// Memory that a batch lands in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Area {
    /// The rows of a request.
    Rows(RequestId),
    /// The slots of a table's buffer; the number is the table's place among the pipeline's tables.
    Slots(usize),
    /// A chunk of staging memory, because the transport cannot write the request's rows safely; the number is the chunk.
    Staging(u32),
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
    /// The request that a demand batch serves first.
    pub request: Option<RequestId>,
    pub flights: Vec<FlightId>,
    pub rows: Vec<u64>,
    pub places: Vec<u32>,
    /// Rows posted and not completed.
    pub open: u32,
    pub not_before: Duration,
    pub posted_at: Duration,
}

/// Batches that exist from the start: more than are open at once in a steady job, so that it allocates none.
const WARM: u32 = 64;

/// The arena of batches; vectors keep their capacity from one use to the next.
#[derive(Debug)]
pub(super) struct Batches {
    batches: Vec<Batch>,
    free: Vec<u32>,
    rows: usize,
}

impl Batches {
    /// An arena whose batches have room for so many rows each.
    pub fn new(rows: usize) -> Self {
        let mut batches = Self { batches: Vec::new(), free: (0..WARM).rev().collect(), rows };
        (0..WARM).for_each(|_| batches.grow());
        batches
    }

    fn grow(&mut self) {
        self.batches.push(Batch {
            generation: 0,
            state: BatchState::Free,
            table: 0,
            owner: 0,
            area: Area::Slots(0),
            request: None,
            flights: Vec::with_capacity(self.rows),
            rows: Vec::with_capacity(self.rows),
            places: Vec::with_capacity(self.rows),
            open: 0,
            not_before: Duration::ZERO,
            posted_at: Duration::ZERO,
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
            self.grow();
            (self.batches.len() - 1) as u32
        });
        let batch = self.get_mut(at);
        batch.state = BatchState::Queued;
        (batch.table, batch.owner, batch.area, batch.request) = (table, owner, area, request);
        batch.not_before = not_before;
        at
    }

    pub fn close(&mut self, at: u32) {
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

    pub fn iter(&self) -> impl Iterator<Item = (u32, &Batch)> {
        self.batches
            .iter()
            .enumerate()
            .filter(|(_, batch)| batch.state != BatchState::Free)
            .map(|(at, batch)| (at as u32, batch))
    }
}
