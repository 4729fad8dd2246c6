//! What a turn of I/O is: post, poll, copy what has landed, and end what is late.

use super::{Shared, State};
use crate::error::Error;
use crate::host::{Exchange, Offered};
use crate::id::{NodeId, Rank, Slot};
use crate::pipeline::{Area, Copy, Place, Transmit};
use crate::transport::{Channel, Completion, Destination, RowBatch, Wait};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

/// Rows of the host's other ranks that are looked at in one turn, so that our own are never far.
const ADOPTED_ROWS: usize = 256;

/// A copy with its addresses.
struct Move {
    from: *const u8,
    to: *mut u8,
    bytes: usize,
}

/// What a turn came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// There may be more to do at once.
    Busy,
    /// Rows are on their way, or something has a deadline.
    Waited,
    /// Nothing is on its way and nothing is to be done: the next turn has sense only after a wake-up.
    Rested,
}

/// The channel, and what is under way between two of its calls. One thread at a time takes turns with it.
pub(super) struct Io {
    channel: Box<dyn Channel>,
    completions: Vec<Completion>,
    copies: Vec<Copy>,
    moves: Vec<Move>,
    /// By table: the queues of rows to and from the other ranks of the host, where they share one buffer.
    exchanges: Vec<Option<Exchange>>,
    /// Rows to hand over: the table, the node, and where the row is.
    offers: Vec<(usize, NodeId, *const u8)>,
    offered: Vec<Offered>,
    adopted: Vec<(Slot, *const u8)>,
    aborts: Vec<Rank>,
    /// Nothing was on its way when it was last looked.
    idle: bool,
    /// A transport may still write to memory of `shared`, which is kept for ever.
    leaked: bool,
}

// SAFETY: the addresses in its lists are those of one turn: between turns, when another thread may take it over, the lists are empty.
unsafe impl Send for Io {}

impl Io {
    pub(super) fn new(shared: &Shared, channel: Box<dyn Channel>, exchanges: Vec<Option<Exchange>>) -> Self {
        // Rows that may land between two turns, each of which may have another place to go to.
        let rows = 2 * shared.config.batch_rows + shared.config.prefetch_rows_in_flight;
        Self {
            channel,
            completions: Vec::with_capacity(256),
            copies: Vec::with_capacity(rows),
            moves: Vec::with_capacity(rows),
            exchanges,
            offers: Vec::with_capacity(rows),
            offered: Vec::with_capacity(ADOPTED_ROWS),
            adopted: Vec::with_capacity(ADOPTED_ROWS),
            aborts: Vec::with_capacity(16),
            idle: true,
            leaked: false,
        }
    }

    /// One turn, which waits at most so long where rows are on their way.
    pub(super) fn turn(&mut self, shared: &Arc<Shared>, at_most: Duration) -> Result<Turn, Error> {
        let now = shared.now();
        let (transmit, timeout, heard) = {
            let mut state = shared.lock();
            let heard = state.pipeline.hear();
            if state.pipeline.handle_timeout(now, &mut self.aborts) {
                shared.changed.notify_all();
            }
            let transmit = if self.aborts.is_empty() { state.pipeline.poll_transmit(now) } else { None };
            let idle = state.pipeline.is_idle();
            if !std::mem::replace(&mut self.idle, idle) && idle {
                shared.changed.notify_all();
            }
            let destination = transmit.as_ref().and_then(|transmit| destination(shared, &state, transmit));
            (transmit.map(|transmit| (transmit, destination)), state.pipeline.poll_timeout(now), heard)
        };
        let adopted = self.adopt(shared);
        let aborted = !self.aborts.is_empty();
        self.abort(shared);
        let (turn, wait) = match transmit {
            Some((transmit, destination)) => {
                self.post(shared, transmit, destination)?;
                (Turn::Busy, Wait::No)
            }
            None if aborted || heard || adopted => (Turn::Busy, Wait::No),
            None if self.idle && timeout.is_none() => (Turn::Rested, Wait::No),
            None if at_most.is_zero() => (Turn::Waited, Wait::No),
            None => (Turn::Waited, Wait::For(timeout.map_or(at_most, |at| at.saturating_sub(now).min(at_most)))),
        };
        self.channel.poll(&mut self.completions, wait)?;
        self.book(shared);
        Ok(turn)
    }

    fn post(&mut self, shared: &Shared, transmit: Transmit, destination: Option<Destination>) -> Result<(), Error> {
        let destination = destination.expect("what is posted has memory to land in");
        let memory = &shared.tables[transmit.table];
        let batch = RowBatch {
            id: transmit.id,
            region: transmit.region,
            version: memory.version,
            row_bytes: memory.row_bytes,
            rows: &transmit.rows,
            places: &transmit.places,
            destination,
        };
        // SAFETY: the places are rows of a request that is not over before they complete, slots that are Filling, which no request copies
        // from and nobody is given, and whose version tells neighbours that they have no row, or a staging chunk that this batch alone holds.
        // The pipeline gives each place to one row at a time, and
        // the memory outlives the channel: `Shared` holds it, and requests hold their rows until then.
        let posted = unsafe { self.channel.post(&batch) };
        let mut state = shared.lock();
        match posted {
            Ok(accepted) => state.pipeline.handle_posted(shared.now(), transmit, accepted),
            Err(error) => {
                // A batch that is wrong in itself: its rows fail, and the requests say why.
                let refused = Completion {
                    batch: transmit.id,
                    first: 0,
                    count: transmit.rows.len() as u32,
                    status: Err(crate::error::TransferError::Protocol(error.to_string())),
                };
                let rows = transmit.rows.len();
                state.pipeline.handle_posted(shared.now(), transmit, rows);
                drop(state);
                self.completions.push(refused);
            }
        }
        Ok(())
    }

    /// Books what has completed, copies rows to all who wait for them, and tells those whose requests are over.
    fn book(&mut self, shared: &Shared) {
        if self.completions.is_empty() {
            return;
        }
        // What failed may have ended requests that have nothing to settle.
        let failed = self.completions.iter().any(|completion| completion.status.is_err());
        let mut state = shared.lock();
        state.pipeline.handle_completions(shared.now(), &self.completions, &mut self.copies);
        if !self.copies.is_empty() {
            for copy in &self.copies {
                let bytes = shared.tables[copy.table].row_bytes;
                let address = |place| address(shared, &state, copy.table, place).expect("what is copied has memory");
                match copy.to.area {
                    Area::Offer(node) => self.offers.push((copy.table, node, address(copy.from))),
                    _ => self.moves.push(Move { from: address(copy.from), to: address(copy.to), bytes }),
                }
            }
            drop(state);
            for (table, node, row) in self.offers.drain(..) {
                if let Some(exchange) = &mut self.exchanges[table] {
                    // SAFETY: the row has landed, and where it lies is not given away before `handle_copied`.
                    unsafe { exchange.offer(node, row) };
                }
            }
            for Move { from, to, bytes } in self.moves.drain(..) {
                // SAFETY: `from` has landed and `to` is wanted by a request that is not over, or is a slot that is Filling; both are
                // counted as exposed until `handle_copied`, so neither is freed or given away before. They are different memories.
                unsafe { std::ptr::copy_nonoverlapping(from, to, bytes) };
            }
            state = shared.lock();
        }
        let over = state.pipeline.handle_copied();
        drop(state);
        self.completions.clear();
        self.copies.clear();
        if over || failed {
            shared.changed.notify_all();
        }
    }

    /// Keeps what the host's other ranks have fetched and this rank is to keep, as far as it is worth a slot. Returns whether there was any.
    fn adopt(&mut self, shared: &Shared) -> bool {
        let mut any = false;
        for (table, exchange) in self.exchanges.iter_mut().enumerate() {
            let Some(exchange) = exchange else { continue };
            exchange.take(ADOPTED_ROWS, &mut self.offered);
            if self.offered.is_empty() {
                continue;
            }
            any = true;
            let mut state = shared.lock();
            let slot = |row: &Offered| state.pipeline.adopt(table, row.node).map(|slot| (slot, row.row));
            self.adopted.extend(self.offered.iter().filter_map(slot));
            drop(state);
            let memory = &shared.tables[table];
            let Some(slots) = &memory.slots else { continue };
            for &(slot, row) in &self.adopted {
                // SAFETY: `row` is a whole row of the neighbour's queue, which stays until it is released; the slot was just given to it,
                // so that no request copies from it and its version tells neighbours that it has no row, and lies within the slots' memory, which is another.
                unsafe {
                    let to = slots.memory().base().add(slot.index() * memory.row_bytes);
                    std::ptr::copy_nonoverlapping(row, to, memory.row_bytes);
                }
            }
            exchange.release();
            let mut state = shared.lock();
            self.adopted.drain(..).for_each(|(slot, _)| state.pipeline.handle_adopted(table, slot));
        }
        any
    }

    fn abort(&mut self, shared: &Arc<Shared>) {
        let mut aborts = std::mem::take(&mut self.aborts);
        for peer in aborts.drain(..) {
            let span = tracing::info_span!("abort", peer = peer.0);
            if let Err(error) = span.in_scope(|| self.channel.abort(peer)) {
                tracing::error!("gets from {peer} cannot be fenced ({error}); their memory is leaked");
                if !std::mem::replace(&mut self.leaked, true) {
                    std::mem::forget(Arc::clone(shared));
                }
                shared.lock().pipeline.handle_lost(peer, false);
                shared.changed.notify_all();
            }
        }
        self.aborts = aborts;
    }

    /// Leaves no row posted: the memory is free to go when this returns.
    pub(super) fn close(&mut self, shared: &Arc<Shared>) {
        let mut aborts = std::mem::take(&mut self.aborts);
        {
            let mut state = shared.lock();
            state.closed = true;
            state.pipeline.close(&mut aborts);
        }
        self.aborts.clone_from(&aborts);
        self.abort(shared);
        // A dead channel may have no completions to tell any more, and one that has panicked may do so again: all is fenced all the same.
        let _ = catch_unwind(AssertUnwindSafe(|| self.channel.poll(&mut self.completions, Wait::No)));
        self.book(shared);
        let mut state = shared.lock();
        aborts.into_iter().for_each(|peer| state.pipeline.handle_lost(peer, true));
        drop(state);
        shared.changed.notify_all();
    }
}

/// Where the rows of a batch land.
fn destination(shared: &Shared, state: &State, transmit: &Transmit) -> Option<Destination> {
    let memory = &shared.tables[transmit.table];
    match transmit.area {
        Area::Rows(id) => state.destination(id),
        Area::Slots(_) => memory.slots.as_ref().map(|slots| Destination {
            base: slots.memory().base(),
            stride: memory.row_bytes,
            places: slots.memory().bytes() / memory.row_bytes,
        }),
        Area::Staging(_) => shared.staging.as_ref().map(|staging| Destination {
            base: staging.memory().base(),
            stride: shared.staging_stride,
            places: staging.memory().bytes() / shared.staging_stride,
        }),
        Area::Offer(_) => None,
    }
}

/// The address of a row.
fn address(shared: &Shared, state: &State, table: usize, place: Place) -> Option<*mut u8> {
    let memory = &shared.tables[table];
    let (base, stride) = match place.area {
        Area::Rows(id) => (state.destination(id)?.base, memory.row_bytes),
        Area::Slots(_) => (memory.slots.as_ref()?.memory().base(), memory.row_bytes),
        Area::Staging(_) => (shared.staging.as_ref()?.memory().base(), shared.staging_stride),
        Area::Offer(_) => return None,
    };
    Some(base.wrapping_add(place.index as usize * stride))
}
