//! The batches that a channel holds from their post to their last completion.

use super::registration::Exported;
use super::{BATCH_ROWS_MAX, BATCHES_IN_FLIGHT_MAX};
use crate::error::TransferError;
use crate::transport::{BatchId, Completion, RowBatch};
use std::ops::{Index, IndexMut};

/// More bytes than this in one read gain nothing, and a lost packet costs more.
const READ_BYTES_MAX: usize = 1 << 20;

/// A batch that was posted and is not over.
pub struct Held {
    id: BatchId,
    pub rows: Vec<u64>,
    pub places: Vec<u32>,
    /// The address of place 0.
    pub base: u64,
    pub stride: usize,
    pub row_bytes: usize,
    pub lkey: u32,
    pub region: Exported,
    region_index: u32,
    pub version: u64,
    /// Rows that were put into lists.
    pub listed: usize,
    /// Rows that were reported.
    ended: usize,
}

/// The batches of a channel. Their buffers are kept for the next batch, so that posting allocates nothing once they have grown.
pub struct Batches {
    held: Vec<Held>,
    free: Vec<usize>,
}

impl Batches {
    pub fn new() -> Self {
        let unused = || Held {
            id: BatchId::default(),
            rows: Vec::with_capacity(BATCH_ROWS_MAX),
            places: Vec::with_capacity(BATCH_ROWS_MAX),
            base: 0,
            stride: 0,
            row_bytes: 1,
            lkey: 0,
            region: Exported { address: 0, bytes: 0, rkey: 0, version_address: 0, version_rkey: 0 },
            region_index: 0,
            version: 0,
            listed: 0,
            ended: 0,
        };
        let held = std::iter::repeat_with(unused).take(BATCHES_IN_FLIGHT_MAX).collect();
        Self { held, free: (0..BATCHES_IN_FLIGHT_MAX).rev().collect() }
    }

    pub fn are_all_in_use(&self) -> bool {
        self.free.is_empty()
    }

    /// Remembers the first rows of a batch; nothing where all are in use.
    pub fn begin(&mut self, batch: &RowBatch<'_>, rows: usize, region: Exported, lkey: u32) -> Option<usize> {
        let index = self.free.pop()?;
        let held = &mut self.held[index];
        held.id = batch.id;
        held.rows.clear();
        held.rows.extend_from_slice(&batch.rows[..rows]);
        held.places.clear();
        held.places.extend_from_slice(&batch.places[..rows]);
        held.base = batch.destination.base as u64;
        held.stride = batch.destination.stride;
        held.row_bytes = batch.row_bytes;
        held.lkey = lkey;
        held.region = region;
        held.region_index = batch.region.index;
        held.version = batch.version;
        held.listed = 0;
        held.ended = 0;
        Some(index)
    }

    /// Says how rows ended, and forgets a batch with its last.
    pub fn end(
        &mut self,
        batch: usize,
        first: usize,
        rows: usize,
        status: Result<(), TransferError>,
        completions: &mut Vec<Completion>,
    ) {
        let held = &mut self.held[batch];
        completions.push(Completion { batch: held.id, first: first as u32, count: rows as u32, status });
        held.ended += rows;
        if held.ended == held.rows.len() {
            self.free.push(batch);
        }
    }
}

impl Index<usize> for Batches {
    type Output = Held;

    fn index(&self, batch: usize) -> &Held {
        &self.held[batch]
    }
}

impl IndexMut<usize> for Batches {
    fn index_mut(&mut self, batch: usize) -> &mut Held {
        &mut self.held[batch]
    }
}

impl Held {
    pub fn stale(&self) -> TransferError {
        TransferError::StaleRegion { region: self.region_index.into(), version: self.version }
    }

    /// Most rows of one read; 1 where they land apart.
    pub fn run_rows_max(&self, message_bytes: usize) -> usize {
        if self.stride == self.row_bytes { (message_bytes.min(READ_BYTES_MAX) / self.row_bytes).max(1) } else { 1 }
    }
}
