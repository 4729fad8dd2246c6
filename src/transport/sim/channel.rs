//! Parts of batches on their way through virtual time.

use super::network::SimNetwork;
use super::{BATCH_ROWS_MAX, BATCHES_IN_FLIGHT_MAX, Imported, Imports, NAME};
use crate::error::{Error, Result, TransferError};
use crate::id::Rank;
use crate::memory::copy;
use crate::transport::{BatchId, Channel, Completion, Destination, Fenced, RemoteRegion, RowBatch, Wait, Waker};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

/// Delivers what its links have carried, as the clock passes.
pub(super) struct SimChannel {
    network: SimNetwork,
    rank: Rank,
    imports: Arc<Imports>,
    in_flight: Vec<Part>,
    spare: Vec<Part>,
    done: Vec<Completion>,
    posted: u64,
    waker: Waker,
}

/// Rows that arrive together.
struct Part {
    /// When, and in which order where that is equal.
    due: (Duration, u64),
    from: Imported,
    batch: BatchId,
    first: u32,
    version: u64,
    row_bytes: usize,
    rows: Vec<u64>,
    places: Vec<u32>,
    destination: Destination,
}

impl SimChannel {
    pub(super) fn new(network: SimNetwork, rank: Rank, imports: Arc<Imports>) -> Result<Self> {
        let waker = Waker::new().map_err(|e| Error::Transport { transport: NAME, cause: e.to_string() })?;
        let (in_flight, spare, done) = (Vec::new(), Vec::new(), Vec::new());
        Ok(Self { network, rank, imports, in_flight, spare, done, posted: 0, waker })
    }

    fn imported(&self, region: RemoteRegion) -> Result<Imported> {
        let imports = self.imports.read().unwrap_or_else(PoisonError::into_inner);
        let known = imports.get(region.index as usize).filter(|known| known.region == region);
        known.copied().ok_or_else(|| Error::argument(format!("{region:?} was not imported here")))
    }

    fn send(&mut self, batch: &RowBatch<'_>, from: Imported, first: usize, count: usize) {
        let bytes = (count * batch.row_bytes) as u64;
        let link = (batch.region.peer, self.rank);
        let at = self.network.lock().arrival(&self.network.config, link, bytes);
        // Lists of parts that have arrived are used again.
        let (mut rows, mut places) = self.spare.pop().map_or((Vec::new(), Vec::new()), |part| (part.rows, part.places));
        rows.clear();
        rows.extend_from_slice(&batch.rows[first..first + count]);
        places.clear();
        places.extend_from_slice(&batch.places[first..first + count]);
        self.posted += 1;
        self.in_flight.push(Part {
            due: (at, self.posted),
            from,
            batch: batch.id,
            first: first as u32,
            version: batch.version,
            row_bytes: batch.row_bytes,
            rows,
            places,
            destination: batch.destination,
        });
    }

    /// Copies a part that has arrived.
    fn deliver(&self, part: &Part) -> Result<(), TransferError> {
        let stale = TransferError::StaleRegion { region: part.from.id, version: part.version };
        let export = self.network.lock().exported(part.from.region.peer, part.from.id).cloned().ok_or(stale.clone())?;
        if export.version.get() != part.version {
            return Err(stale);
        }
        let Destination { base, stride, .. } = part.destination;
        // SAFETY: rows and places were checked when posted, against the size that the region has for life; `export` keeps the memory.
        // The poster promises the places until the part is reported, which happens after this.
        unsafe { copy::gather(export.memory.base(), part.row_bytes, &part.rows, &part.places, base, stride) };
        if export.version.get_after_reading() == part.version { Ok(()) } else { Err(stale) }
    }

    fn finish(&mut self, part: Part, status: Result<(), TransferError>) {
        self.done.push(Completion { batch: part.batch, first: part.first, count: part.rows.len() as u32, status });
        self.spare.push(part);
    }

    /// Lets time pass, to the next arrival or as long as may be waited.
    fn advance(&self, at_most: Duration) {
        let next = self.in_flight.iter().map(|part| part.due.0).min();
        if next.is_none() && self.network.config.idle_blocks {
            return self.waker.wait(at_most);
        }
        self.waker.drain();
        let mut state = self.network.lock();
        let end = state.now.saturating_add(at_most);
        state.now = next.map_or(end, |next| next.clamp(state.now, end.max(state.now)));
    }
}

// SAFETY: rows are written in `poll` only, each part to its own places and before it is reported; an abort removes the parts.
unsafe impl Channel for SimChannel {
    unsafe fn post(&mut self, batch: &RowBatch<'_>) -> Result<usize> {
        batch.check()?;
        let from = self.imported(batch.region)?;
        let limit = batch.rows.len().min(BATCH_ROWS_MAX);
        let part_rows = self.network.config.part_rows.max(1);
        let mut accepted = 0;
        while accepted < limit && self.in_flight.len() < BATCHES_IN_FLIGHT_MAX {
            let count = part_rows.min(limit - accepted);
            self.send(batch, from, accepted, count);
            accepted += count;
        }
        Ok(accepted)
    }

    fn poll(&mut self, completions: &mut Vec<Completion>, wait: Wait) -> Result<()> {
        if let (true, Wait::For(at_most)) = (self.done.is_empty(), wait) {
            self.advance(at_most);
        }
        let now = self.network.now();
        self.in_flight.sort_unstable_by_key(|part| std::cmp::Reverse(part.due));
        while let Some(part) = self.in_flight.pop_if(|part| part.due.0 <= now) {
            let status = self.deliver(&part);
            self.finish(part, status);
        }
        completions.append(&mut self.done);
        Ok(())
    }

    fn abort(&mut self, peer: Rank) -> Result<Fenced> {
        while let Some(at) = self.in_flight.iter().position(|part| part.from.region.peer == peer) {
            let part = self.in_flight.swap_remove(at);
            self.finish(part, Err(TransferError::Aborted));
        }
        Ok(Fenced::new())
    }

    fn waker(&self) -> Waker {
        self.waker.clone()
    }
}
