//! The asker's side: one endpoint, the operations that it has under way, and the batches that they belong to.
//!
//! A channel has an endpoint of its own because libfabric can fence nothing smaller: to close an endpoint discards all that is under way
//! and returns when no buffer will be touched any more. So an abort first waits a little for what ends by itself, and then closes the
//! endpoint and posts anew, on a new one, what belongs to other peers.

mod ending;
mod posting;

use crate::error::{Error, Result, TransferError};
use crate::id::Rank;
use crate::transport::fabric::failed;
use crate::transport::fabric::library::{Descriptor, Endpoint, NO_COMPLETION};
use crate::transport::fabric::operation::{Kind, Operation, Posted, Way};
use crate::transport::fabric::shared::{Found, Import, Shared, count};
use crate::transport::fabric::staging::{Contexts, Staging};
use crate::transport::fabric::wait::{Idle, RETRY_AFTER};
use crate::transport::fabric::wire::REQUEST_BYTES_MAX;
use crate::transport::{Channel, Completion, Fenced, RemoteRegion, RowBatch, Wait, Waker};
use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

const POLLED_MAX: usize = 64;
/// Time that reads are given to end by themselves before an abort closes their endpoint: those of a peer that lives do, and libfabric 1.17 does
/// not always survive it that an endpoint of `ofi_rxm` is closed while rows come in.
const DRAIN_WITHIN: Duration = Duration::from_millis(500);
/// Time that everything is given before the channel's end closes its endpoint.
const END_WITHIN: Duration = Duration::from_millis(500);
/// A request without an answer is sent again after so long: where its owner has died, that fails.
const ASK_AGAIN_AFTER: Duration = Duration::from_secs(2);
/// How often deadlines are looked at.
const EXPIRE_EVERY: Duration = Duration::from_millis(100);
const WORD_BYTES: usize = 8;

/// A peer as this endpoint sees it.
#[derive(Clone, Default)]
struct Peer {
    address: Option<u64>,
    /// The provider has taken something for it, so that no connection is being made.
    reached: bool,
    /// Operations that are not over.
    open: usize,
    /// Since when the provider takes nothing for it.
    refused_since: Option<Instant>,
    /// It refused in this round: nothing more is tried until the next.
    refused: bool,
}

/// The `fabric` transport's channel.
pub(super) struct FabricChannel {
    shared: Arc<Shared>,
    /// None only where one could not be opened anew.
    endpoint: Option<Arc<Endpoint>>,
    endpoint_name: Vec<u8>,
    serial: u64,
    contexts: Contexts,
    /// Request buffers, reply buffers, words.
    staging: Staging,
    /// Requests first, then reads; their receives have the contexts after theirs.
    operations: Vec<Operation>,
    free_asks: Vec<usize>,
    free_reads: Vec<usize>,
    /// Operations to be posted, first or again.
    waiting: VecDeque<usize>,
    batches: Vec<Posted>,
    free_batches: Vec<usize>,
    /// Batches of which operations are to be made.
    unmade: VecDeque<usize>,
    unoffered: Vec<usize>,
    /// Replies that are still to come, those that nobody waits for included.
    owed: usize,
    peers: Vec<Peer>,
    imports: Vec<Import>,
    found: Option<Found>,
    message: Vec<u8>,
    sequence: u64,
    /// A read was posted with a promise of another that has not followed.
    promised: bool,
    /// A connection is broken, and only another endpoint gets another one.
    cut_off: bool,
    pending: Vec<Completion>,
    expired: Instant,
    waker: Waker,
}

impl FabricChannel {
    pub(super) fn new(shared: Arc<Shared>) -> Result<Self> {
        let waker = Waker::new().map_err(|e| failed(format!("no event descriptor for a channel: {e}")))?;
        let asks = shared.limits.asks;
        let operations = asks + if shared.reads { shared.limits.reads } else { 0 };
        let batches = shared.config.batches_in_flight_max;
        let mut channel = Self {
            endpoint: None,
            endpoint_name: Vec::new(),
            serial: 0,
            contexts: Contexts::new(operations + asks),
            staging: Staging::new(asks * (REQUEST_BYTES_MAX + shared.limits.reply_bytes()) + operations * WORD_BYTES)?,
            operations: vec![Operation::unused(); operations],
            free_asks: (0..asks).rev().collect(),
            free_reads: (asks..operations).rev().collect(),
            waiting: VecDeque::with_capacity(operations),
            batches: std::iter::repeat_with(Posted::unused).take(batches).collect(),
            free_batches: (0..batches).rev().collect(),
            unmade: VecDeque::with_capacity(batches),
            unoffered: Vec::with_capacity(asks),
            owed: 0,
            peers: Vec::new(),
            imports: Vec::new(),
            found: None,
            message: Vec::with_capacity(REQUEST_BYTES_MAX),
            sequence: 0,
            promised: false,
            cut_off: false,
            pending: Vec::with_capacity(4 * batches),
            expired: Instant::now(),
            waker,
            shared,
        };
        channel.open()?;
        Ok(channel)
    }

    /// Requests under way, each with a buffer for its reply.
    fn asks(&self) -> usize {
        self.shared.limits.asks
    }

    fn reply_at(&self, buffer: usize) -> *mut u8 {
        self.staging.at(self.asks() * REQUEST_BYTES_MAX + buffer * self.shared.limits.reply_bytes())
    }

    /// Where an operation's word is read to: aligned, because all buffers before it are of whole words.
    fn word_at(&self, index: usize) -> *mut u8 {
        self.staging.at(self.asks() * (REQUEST_BYTES_MAX + self.shared.limits.reply_bytes()) + index * WORD_BYTES)
    }

    /// Opens the endpoint and offers it buffers for replies.
    fn open(&mut self) -> Result<()> {
        let endpoint = Arc::new(Endpoint::open(&self.shared.domain, self.operations.len() + self.asks())?);
        self.serial = self.shared.next_serial();
        self.endpoint_name = endpoint.name()?;
        self.staging.register(&self.shared, &endpoint)?;
        self.endpoint = Some(endpoint);
        self.promised = false;
        self.owed = 0;
        self.unoffered.clear();
        self.unoffered.extend(0..self.asks());
        self.offer_buffers()
    }

    fn endpoint(&self) -> Result<Arc<Endpoint>> {
        self.endpoint.clone().ok_or_else(|| failed("the channel's endpoint is closed and no other could be opened"))
    }

    fn imported(&mut self, region: RemoteRegion) -> Result<&Import> {
        let index = region.index as usize;
        if index >= self.imports.len() {
            let known = self.shared.imports.read().unwrap_or_else(PoisonError::into_inner);
            self.imports.extend_from_slice(&known[self.imports.len()..]);
        }
        // The size is the owner's word, not that of whoever built the batch.
        let known =
            self.imports.get(index).filter(|known| known.peer == region.peer && known.token.bytes == region.bytes);
        known.ok_or_else(|| Error::argument(format!("region {index} of {} was not imported here", region.peer)))
    }

    /// Most bytes of a row that one operation moves.
    fn piece_bytes_max(&self, way: Way) -> usize {
        match way {
            Way::Ask => self.shared.limits.reply_rows_bytes,
            Way::Read => self.shared.limits.read_bytes,
        }
    }

    fn offer_buffers(&mut self) -> Result<()> {
        let endpoint = self.endpoint()?;
        while let Some(&buffer) = self.unoffered.last() {
            let (at, context) = (self.reply_at(buffer), self.contexts.at(self.operations.len() + buffer));
            // SAFETY: the buffer is the channel's own and in nobody's use; the staging outlives the endpoint.
            match unsafe { endpoint.receive(at, self.shared.limits.reply_bytes(), self.staging.descriptor(), context) }
            {
                Ok(()) => self.unoffered.pop(),
                Err(code) if code.is_again() => return Ok(()),
                Err(code) => return Err(failed(format!("cannot receive replies: {}", self.shared.domain.words(code)))),
            };
        }
        Ok(())
    }

    fn expire(&mut self) -> Result<()> {
        let now = Instant::now();
        if now.duration_since(self.expired) < EXPIRE_EVERY {
            return Ok(());
        }
        self.expired = now;
        let limit = self.shared.config.connect_timeout;
        for peer in 0..self.peers.len() {
            let since = self.peers[peer].refused_since;
            if since.is_some_and(|since| now.duration_since(since) > limit) {
                self.peers[peer].refused_since = None;
                self.give_up(peer, &TransferError::PeerGone(format!("it could not be reached within {limit:?}")));
            }
        }
        self.ask_again(now);
        let silence = self.shared.config.silence_timeout;
        let overdue = |operation: &Operation| {
            let begun = if operation.over { operation.posted } else { Some(operation.made) };
            (operation.in_use || !operation.over) && begun.is_some_and(|begun| now.duration_since(begun) > silence)
        };
        if self.operations.iter().any(overdue) {
            self.reopen()?;
            for index in 0..self.operations.len() {
                if !self.operations[index].over && now.duration_since(self.operations[index].made) > silence {
                    self.waiting.retain(|&waiting| waiting != index);
                    self.forgo_check(self.operations[index].batch);
                    self.settle(index, Err(TransferError::DeadlineExceeded(silence)));
                }
            }
        }
        Ok(())
    }

    fn ask_again(&mut self, now: Instant) {
        let asks = self.asks();
        for (index, operation) in self.operations[..asks].iter_mut().enumerate() {
            let silent = operation.posted.is_some_and(|posted| now.duration_since(posted) > ASK_AGAIN_AFTER);
            if !operation.over && !operation.in_use && silent {
                operation.posted = None;
                self.waiting.push_back(index);
            }
        }
    }

    /// Closes the endpoint, which discards what is under way, and posts it again on a new one.
    fn reopen(&mut self) -> Result<()> {
        tracing::info!("transport fabric: a channel closes its endpoint to fence what does not end, and opens another");
        count(&self.shared.counters.reopened);
        self.close()?;
        for index in 0..self.operations.len() {
            let operation = &mut self.operations[index];
            let (was_in_use, over) = (std::mem::take(&mut operation.in_use), operation.over);
            if over && was_in_use {
                self.release(index);
            } else if !over && !self.waiting.contains(&index) {
                self.waiting.push_back(index);
            }
        }
        for peer in &mut self.peers {
            (peer.address, peer.reached, peer.refused_since) = (None, false, None);
        }
        self.open()?;
        let endpoint = self.endpoint()?;
        self.found = None;
        for batch in self.batches.iter_mut().filter(|batch| batch.live && batch.way == Way::Read) {
            batch.descriptor = self.shared.descriptor(self.serial, &endpoint, &batch.destination, &mut self.found)?;
        }
        Ok(())
    }

    fn close(&mut self) -> Result<()> {
        let Some(endpoint) = self.endpoint.take() else { return Ok(()) };
        if self.shared.domain.limits().endpoint_registration {
            self.staging.deregister();
            self.shared.unbind(self.serial);
        }
        let domain = Arc::clone(&self.shared.domain);
        let Some(endpoint) = Arc::into_inner(endpoint) else {
            return Err(failed("an endpoint is in use elsewhere and cannot be closed"));
        };
        endpoint.close().map_err(|code| failed(format!("an endpoint cannot be closed: {}", domain.words(code))))?;
        self.staging.deregister();
        Ok(())
    }

    /// Gives all that is under way a moment to end, at the end of the channel, connections that are being made included: libfabric 1.17
    /// does not survive it that an endpoint of `verbs;ofi_rxm` is closed meanwhile.
    fn let_end(&mut self) -> Result<()> {
        for index in 0..self.asks() {
            // Nobody's places are written any more.
            self.operations[index].over = true;
        }
        let until = Instant::now() + END_WITHIN;
        let mut idle = Idle::default();
        let under_way = |channel: &Self| {
            let connecting = channel.peers.iter().any(|peer| peer.address.is_some() && !peer.reached);
            connecting || channel.owed > 0 || channel.operations.iter().any(|operation| operation.in_use)
        };
        while under_way(self) && Instant::now() < until {
            if self.take_completions()? {
                idle.reset();
            } else {
                idle.wait(&*self.endpoint()?, &self.waker, RETRY_AFTER);
            }
            self.offer_buffers()?;
        }
        Ok(())
    }

    /// Whether reads into a peer's batches are under way.
    fn reads_from(&self, peer: usize) -> bool {
        let writes = |operation: &Operation| operation.kind == Kind::Read && operation.in_use && operation.peer == peer;
        self.operations.iter().any(writes)
    }

    /// Gives reads that are under way a moment to end by themselves.
    fn drain(&mut self, peer: usize) -> Result<()> {
        let until = Instant::now() + DRAIN_WITHIN;
        let mut idle = Idle::default();
        while self.reads_from(peer) && !self.promised && Instant::now() < until {
            if self.take_completions()? {
                idle.reset();
            } else {
                idle.wait(&*self.endpoint()?, &self.waker, RETRY_AFTER);
            }
        }
        Ok(())
    }

    fn take_completions(&mut self) -> Result<bool> {
        let endpoint = self.endpoint()?;
        let mut space = [NO_COMPLETION; POLLED_MAX];
        let done = endpoint
            .poll(&mut space)
            .map_err(|code| failed(format!("a channel's queue of completions: {}", self.shared.domain.words(code))))?;
        done.iter().for_each(|&done| self.handle(done));
        Ok(!done.is_empty())
    }

    /// Ends all batches of a peer; nothing of the peer's may be writing to their places.
    fn end_batches_of(&mut self, peer: usize) {
        let asked_bytes_max = self.shared.limits.reply_rows_bytes;
        self.waiting.retain(|&index| self.operations[index].peer != peer);
        for index in 0..self.operations.len() {
            let operation = &mut self.operations[index];
            if operation.over || operation.peer != peer {
                continue;
            }
            operation.over = true;
            let batch = &self.batches[operation.batch];
            let (part, in_use) = (operation.part, operation.in_use);
            if batch.reports_parts(asked_bytes_max) {
                self.pending.extend(batch.completion(part.first..part.first + part.rows, Err(TransferError::Aborted)));
            }
            if !in_use {
                self.release(index);
            }
        }
        self.peers[peer].open = 0;
        for at in 0..self.batches.len() {
            let batch = &mut self.batches[at];
            if !batch.live || batch.peer != peer {
                continue;
            }
            let rest = batch.skip_rest();
            let rest = if batch.reports_parts(asked_bytes_max) { rest } else { 0..batch.rows.len() };
            self.pending.extend(batch.completion(rest, Err(TransferError::Aborted)));
            self.end_batch(at);
        }
    }

    /// Makes progress; whether something came of it.
    fn turn(&mut self) -> Result<bool> {
        let took = self.take_completions()?;
        self.pump()?;
        self.expire()?;
        // What was to follow came to nothing, and what went before waits for it.
        let held_back = self.promised && !self.waiting.iter().any(|&index| self.operations[index].kind != Kind::Ask);
        if held_back || std::mem::take(&mut self.cut_off) {
            self.reopen()?;
        }
        Ok(took)
    }
}

// SAFETY: places are written by reads that are posted for them and end before their batch is reported, and by `handle_reply`, for batches
// that are not over; `abort` returns only once no read into them is under way, because it has ended or its endpoint was closed.
unsafe impl Channel for FabricChannel {
    unsafe fn post(&mut self, batch: &RowBatch<'_>) -> Result<usize> {
        batch.check()?;
        if u32::try_from(batch.row_bytes).is_err() {
            let bytes = batch.row_bytes;
            return Err(Error::argument(format!("rows of {bytes} bytes: the fabric transport's limit is 4 GiB")));
        }
        let way = if self.imported(batch.region)?.readable.is_some() { Way::Read } else { Way::Ask };
        let endpoint = self.endpoint()?;
        let descriptor = match way {
            Way::Read => self.shared.descriptor(self.serial, &endpoint, &batch.destination, &mut self.found)?,
            Way::Ask => Descriptor::NONE,
        };
        drop(endpoint);
        if self.peers.len() <= batch.region.peer.index() {
            let ranks = self.shared.addresses.get().map_or(0, Vec::len);
            self.peers.resize(ranks.max(batch.region.peer.index() + 1), Peer::default());
        }
        let rows = batch.rows.len().min(self.shared.config.batch_rows_max);
        if rows == 0 {
            return Ok(0);
        }
        let Some(at) = self.free_batches.pop() else { return Ok(0) };
        self.batches[at].begin(batch, rows, way, descriptor);
        self.unmade.push_back(at);
        self.shared.counters.rows.fetch_add(rows as u64, Ordering::Relaxed);
        self.pump()?;
        Ok(rows)
    }

    fn poll(&mut self, completions: &mut Vec<Completion>, wait: Wait) -> Result<()> {
        let began = Instant::now();
        let wait = match wait {
            Wait::For(wait) => wait,
            Wait::No => Duration::ZERO,
        };
        let mut idle = Idle::default();
        loop {
            if self.turn()? {
                idle.reset();
            }
            let left = wait.saturating_sub(began.elapsed());
            if !self.pending.is_empty() || left.is_zero() {
                completions.append(&mut self.pending);
                return Ok(());
            }
            let retries = !self.waiting.is_empty() || !self.unmade.is_empty() || !self.unoffered.is_empty();
            let endpoint = self.endpoint()?;
            if idle.wait(&endpoint, &self.waker, if retries { left.min(RETRY_AFTER) } else { left }) {
                return Ok(());
            }
        }
    }

    fn abort(&mut self, peer: Rank) -> Result<Fenced> {
        let peer = peer.index();
        if peer >= self.peers.len() {
            return Ok(Fenced::new());
        }
        self.waiting.retain(|&index| self.operations[index].peer != peer || self.operations[index].kind != Kind::Read);
        self.drain(peer)?;
        let stuck = self.reads_from(peer);
        self.end_batches_of(peer);
        if stuck || self.promised {
            self.reopen()?;
        }
        Ok(Fenced::new())
    }

    fn waker(&self) -> Waker {
        self.waker.clone()
    }
}

impl Drop for FabricChannel {
    fn drop(&mut self) {
        if std::process::id() != self.shared.process {
            return;
        }
        if let Err(error) = self.let_end().and_then(|()| self.close()) {
            tracing::warn!("{error}; its buffers are leaked, because they may still be written to");
            let contexts = std::mem::replace(&mut self.contexts, Contexts::new(0));
            std::mem::forget((self.staging.take(), contexts));
        }
    }
}
