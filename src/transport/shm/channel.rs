//! Gets that are copies.

use super::{BATCH_ROWS_MAX, BATCHES_IN_FLIGHT_MAX, Imported, Imports, failed};
use crate::error::{Error, Result, TransferError};
use crate::id::Rank;
use crate::memory::copy;
use crate::transport::{Channel, Completion, Fenced, RemoteRegion, RowBatch, Wait, Waker};
use std::sync::{Arc, PoisonError};

/// Copies rows when they are posted and reports them when polled.
pub(super) struct ShmChannel {
    imports: Arc<Imports>,
    /// The imports known so far, so that a post takes no lock.
    known: Vec<Arc<Imported>>,
    done: Vec<Completion>,
    waker: Waker,
}

impl ShmChannel {
    pub(super) fn new(imports: Arc<Imports>) -> Result<Self> {
        let waker = Waker::new().map_err(|e| failed(format!("a channel needs a file descriptor: {e}")))?;
        Ok(Self { imports, known: Vec::new(), done: Vec::with_capacity(BATCHES_IN_FLIGHT_MAX), waker })
    }

    fn imported(&mut self, region: RemoteRegion) -> Result<&Imported> {
        let index = region.index as usize;
        if index >= self.known.len() {
            let imports = self.imports.read().unwrap_or_else(PoisonError::into_inner);
            self.known.extend_from_slice(&imports[self.known.len()..]);
        }
        let known = self.known.get(index).filter(|known| known.region == region);
        known.map(|known| &**known).ok_or_else(|| Error::argument(format!("{region:?} was not imported here")))
    }
}

// SAFETY: a batch is copied within `post`, to its own places only, and reported afterwards: nothing is ever in flight.
unsafe impl Channel for ShmChannel {
    unsafe fn post(&mut self, batch: &RowBatch<'_>) -> Result<usize> {
        batch.check()?;
        let Imported { mapped, .. } = self.imported(batch.region)?;
        let (source, version) = (mapped.memory.base(), mapped.version.clone());
        if batch.rows.is_empty() || self.done.len() == BATCHES_IN_FLIGHT_MAX {
            return Ok(0);
        }
        let count = batch.rows.len().min(BATCH_ROWS_MAX);
        let stale = TransferError::StaleRegion { region: batch.region.index.into(), version: batch.version };
        let mut status = Err(stale);
        if version.get() == batch.version {
            let (rows, places) = (&batch.rows[..count], &batch.places[..count]);
            // SAFETY: rows were checked against the region and places against the destination, which the caller vouches for; a
            // mapping of a peer's memory and this process's destination are different memory.
            unsafe {
                copy::gather(source, batch.row_bytes, rows, places, batch.destination.base, batch.destination.stride)
            };
            if version.get_after_reading() == batch.version {
                status = Ok(());
            }
        }
        self.done.push(Completion { batch: batch.id, first: 0, count: count as u32, status });
        Ok(count)
    }

    fn poll(&mut self, completions: &mut Vec<Completion>, wait: Wait) -> Result<()> {
        if let (true, Wait::For(at_most)) = (self.done.is_empty(), wait) {
            self.waker.wait(at_most);
        }
        completions.append(&mut self.done);
        Ok(())
    }

    fn abort(&mut self, _peer: Rank) -> Result<Fenced> {
        Ok(Fenced::new())
    }

    fn waker(&self) -> Waker {
        self.waker.clone()
    }
}
