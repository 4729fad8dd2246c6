//! The asker's side: one endpoint, the operations that it has under way, and the batches that they belong to.
//!
//! A channel has an endpoint of its own because libfabric can fence nothing smaller: to close an endpoint discards all that is under way
//! and returns when no buffer will be touched any more. So an abort first waits a little for what ends by itself, and then closes the
//! endpoint and posts anew, on a new one, what belongs to other peers.

use super::failed;
use super::library::{Code, Completion as Done, Descriptor, Endpoint, NO_COMPLETION, SEGMENTS_MAX, Segment};
use super::operation::{Kind, Operation, Part, Posted, Way};
use super::shared::{Found, Import, Shared, count};
use super::staging::{Contexts, Staging};
use super::wait::{Idle, RETRY_AFTER};
use super::wire::{REQUEST_BYTES_MAX, Reply, Request, Status};
use crate::error::{Error, Result, TransferError};
use crate::id::Rank;
use crate::transport::{Channel, Completion, Fenced, RemoteRegion, RowBatch, Wait, Waker};
use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

const POLLED_MAX: usize = 64;
/// Time that reads are given to end by themselves before an abort closes their endpoint.
const DRAIN_WITHIN: Duration = Duration::from_millis(10);
/// A request without an answer is sent again after so long: where its owner has died, that fails.
const ASK_AGAIN_AFTER: Duration = Duration::from_secs(2);
/// How often deadlines are looked at.
const EXPIRE_EVERY: Duration = Duration::from_millis(100);
const WORD_BYTES: usize = 8;

/// A peer as this endpoint sees it.
#[derive(Clone, Default)]
struct Peer {
    address: Option<u64>,
    /// Operations that are not over.
    open: usize,
    /// Since when the provider takes nothing for it.
    refused_since: Option<Instant>,
    /// It refused in this round: nothing more is tried until the next.
    refused: bool,
}

/// What a post came to.
enum Start {
    /// Under way, or ended at once.
    Done,
    /// To be tried again.
    Refused,
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
    peers: Vec<Peer>,
    imports: Vec<Import>,
    found: Option<Found>,
    message: Vec<u8>,
    sequence: u64,
    /// A read was posted with a promise of another that has not followed.
    promised: bool,
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
            peers: Vec::new(),
            imports: Vec::new(),
            found: None,
            message: Vec::with_capacity(REQUEST_BYTES_MAX),
            sequence: 0,
            promised: false,
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

    // Making and posting.

    /// Posts what can be posted: what was refused before first, then more of the batches in turn.
    fn pump(&mut self) -> Result<()> {
        self.offer_buffers()?;
        self.peers.iter_mut().for_each(|peer| peer.refused = false);
        for _ in 0..self.waiting.len() {
            let Some(operation) = self.waiting.pop_front() else { break };
            if self.peers[self.operations[operation].peer].refused {
                self.waiting.push_back(operation);
                continue;
            }
            if let Start::Refused = self.start(operation, false)? {
                self.waiting.push_back(operation);
            }
        }
        for _ in 0..self.unmade.len() {
            let Some(batch) = self.unmade.pop_front() else { break };
            self.post_parts(batch)?;
            if self.wants_more(batch) && !self.unmade.contains(&batch) {
                self.unmade.push_back(batch);
            }
        }
        Ok(())
    }

    /// Whether operations are still to be made of a batch.
    fn wants_more(&self, batch: usize) -> bool {
        let batch = &self.batches[batch];
        batch.live && (batch.has_more() || (batch.checking && batch.parts_open == 0))
    }

    fn post_parts(&mut self, batch: usize) -> Result<()> {
        while !self.peers[self.batches[batch].peer].refused && self.may_make(batch) {
            let operation = self.make(batch);
            let more = self.operations[operation].kind == Kind::Read && self.may_make(batch);
            if let Start::Refused = self.start(operation, more)? {
                self.waiting.push_back(operation);
            }
        }
        Ok(())
    }

    fn may_make(&self, batch: usize) -> bool {
        let (free, all) = match self.batches[batch].way {
            Way::Ask => (self.free_asks.len(), self.asks()),
            Way::Read => (self.free_reads.len(), self.operations.len() - self.asks()),
        };
        // Where there are others, a peer that does not answer must leave them room.
        let share = if self.peers.len() > 2 { all.div_ceil(2) } else { all };
        let batch = &self.batches[batch];
        let due = batch.live && (batch.has_more() || batch.is_check_due());
        due && free > 0 && self.peers[batch.peer].open < share
    }

    fn make(&mut self, index: usize) -> usize {
        let segments = self.shared.limits.segments;
        let batch = &mut self.batches[index];
        let (kind, free) = match batch.way {
            Way::Ask => (Kind::Ask, &mut self.free_asks),
            Way::Read if batch.checking => (Kind::Check, &mut self.free_reads),
            Way::Read => (Kind::Read, &mut self.free_reads),
        };
        let operation = free.pop().expect("may_make has seen a free slot");
        let part = match kind {
            Kind::Check => Part { bytes: WORD_BYTES, ..Part::default() },
            Kind::Ask => {
                let (bytes_max, rows_max) = (self.shared.limits.reply_rows_bytes, self.shared.limits.request_rows);
                batch.next_part(bytes_max, |batch, first| {
                    (batch.rows.len() - first).min(bytes_max / batch.row_bytes).min(rows_max)
                })
            }
            Kind::Read => {
                let bytes_max = self.shared.limits.read_bytes;
                batch.next_part(bytes_max, |batch, first| {
                    let rows_max = bytes_max / batch.row_bytes;
                    let mut rows = 0;
                    for _ in 0..segments {
                        if rows < rows_max && first + rows < batch.rows.len() {
                            rows += batch.run(first + rows, rows_max - rows);
                        }
                    }
                    rows
                })
            }
        };
        batch.parts_open += 1;
        self.peers[batch.peer].open += 1;
        let (peer, made) = (batch.peer, Instant::now());
        self.operations[operation] =
            Operation { kind, batch: index, peer, part, sequence: 0, in_use: false, over: false, made, posted: None };
        operation
    }

    /// Posts an operation; with `more`, another read for the same peer follows at once.
    fn start(&mut self, index: usize, more: bool) -> Result<Start> {
        let endpoint = self.endpoint()?;
        let Operation { kind, peer, .. } = self.operations[index];
        let address = match self.resolve(peer, &endpoint) {
            Ok(address) => address,
            Err(cause) => {
                self.settle(index, Err(cause));
                return Ok(Start::Done);
            }
        };
        // SAFETY: the batch is live, so that its places are lent to this channel; slots of the staging belong to their operation.
        let posted = unsafe {
            match kind {
                Kind::Read => self.post_read(&endpoint, index, address, more),
                Kind::Check => self.post_check(&endpoint, index, address),
                Kind::Ask => self.post_ask(&endpoint, index, address),
            }
        };
        let counters = &self.shared.counters;
        match posted {
            Ok(()) => {
                self.peers[peer].refused_since = None;
                let operation = &mut self.operations[index];
                operation.in_use = true;
                operation.posted = Some(Instant::now());
                if kind == Kind::Ask {
                    count(&counters.requests);
                } else {
                    count(&counters.reads);
                    self.promised = more;
                    if !more {
                        count(&counters.doorbells);
                    }
                }
                Ok(Start::Done)
            }
            Err(code) if code.is_again() => {
                count(&counters.retries);
                let peer = &mut self.peers[peer];
                peer.refused = true;
                peer.refused_since.get_or_insert_with(Instant::now);
                Ok(Start::Refused)
            }
            Err(code) => {
                let what = if kind == Kind::Ask { "sending a request" } else { "posting a read" };
                let cause = self.shared.domain.transfer_error(what, code);
                self.settle(index, Err(cause));
                Ok(Start::Done)
            }
        }
    }

    fn resolve(&mut self, peer: usize, endpoint: &Endpoint) -> Result<u64, TransferError> {
        if let Some(address) = self.peers[peer].address {
            return Ok(address);
        }
        let name = &self.shared.address(Rank(peer as u32))?.name;
        let address = endpoint.resolve(name).map_err(|code| {
            let words = self.shared.domain.words(code);
            TransferError::PeerGone(format!("its endpoint has no usable address: {words}"))
        })?;
        self.peers[peer].address = Some(address);
        Ok(address)
    }

    /// # Safety
    /// The places of the operation's batch are lent to this channel.
    unsafe fn post_read(&mut self, endpoint: &Endpoint, index: usize, address: u64, more: bool) -> Result<(), Code> {
        let Operation { batch, part, .. } = self.operations[index];
        let batch = &self.batches[batch];
        let readable = self.imports[batch.import].readable.expect("a batch is read only where its region can be");
        let mut segments = [Segment { local: std::ptr::null_mut(), remote: 0, bytes: 0 }; SEGMENTS_MAX];
        let (mut used, mut row) = (0, part.first);
        while row < part.first + part.rows {
            let run = batch.run(row, part.first + part.rows - row);
            segments[used] = Segment {
                local: batch.place(row, part.offset).cast(),
                remote: readable.rows_base + batch.rows[row] * batch.row_bytes as u64 + part.offset as u64,
                bytes: (run * part.bytes) as u64,
            };
            (used, row) = (used + 1, row + run);
        }
        let (descriptor, context) = (batch.descriptor, self.contexts.at(index));
        // SAFETY: this function's contract; the context is the operation's own.
        unsafe { endpoint.read(&segments[..used], descriptor, (address, readable.rows), context, more) }
    }

    /// # Safety
    /// The operation's word is in nobody's use.
    unsafe fn post_check(&mut self, endpoint: &Endpoint, index: usize, address: u64) -> Result<(), Code> {
        let batch = &self.batches[self.operations[index].batch];
        let readable = self.imports[batch.import].readable.expect("a batch is read only where its region can be");
        let local = self.word_at(index).cast();
        let segment = Segment { local, remote: readable.version_base, bytes: WORD_BYTES as u64 };
        let (descriptor, context) = (self.staging.descriptor(), self.contexts.at(index));
        // SAFETY: this function's contract; the context is the operation's own.
        unsafe { endpoint.read(&[segment], descriptor, (address, readable.version), context, false) }
    }

    /// # Safety
    /// The operation's request buffer is in nobody's use.
    unsafe fn post_ask(&mut self, endpoint: &Endpoint, index: usize, address: u64) -> Result<(), Code> {
        let Operation { batch, part, peer, .. } = self.operations[index];
        let batch = &self.batches[batch];
        self.sequence += 1;
        // The slot's number travels along, so that the reply finds it.
        let sequence = self.sequence << 16 | index as u64;
        let request = Request {
            sequence,
            region: self.imports[batch.import].token.number,
            version: batch.version,
            row_bytes: batch.row_bytes as u32,
            offset: part.offset as u32,
            bytes: part.bytes as u32,
        };
        let secret = match self.shared.address(Rank(peer as u32)) {
            Ok(address) => &address.secret,
            Err(_) => return Err(Code(libc::EHOSTUNREACH)),
        };
        request.encode(secret, &self.endpoint_name, &batch.rows[part.first..part.first + part.rows], &mut self.message);
        let at = self.staging.at(index * REQUEST_BYTES_MAX);
        self.operations[index].sequence = sequence;
        // SAFETY: this function's contract; a message is at most as long as its buffer; the context is the operation's own.
        unsafe {
            std::ptr::copy_nonoverlapping(self.message.as_ptr(), at, self.message.len());
            let bytes = std::slice::from_raw_parts(at, self.message.len());
            endpoint.send(bytes, self.staging.descriptor(), address, self.contexts.at(index))
        }
    }

    // Ending.

    fn handle(&mut self, done: Done) {
        count(&self.shared.counters.completions);
        let Some(index) = self.contexts.number(done.context) else { return };
        if index >= self.operations.len() {
            return self.handle_reply(index - self.operations.len(), done);
        }
        let operation = &mut self.operations[index];
        operation.in_use = false;
        self.peers[operation.peer].refused_since = None;
        if operation.over {
            return self.release(index);
        }
        let result = match (done.error, operation.kind) {
            // The request is on its way; what ends it is the reply.
            (0, Kind::Ask) => return,
            (0, _) => Ok(()),
            (error, Kind::Ask) => Err(self.shared.domain.transfer_error("sending a request", Code(error))),
            (error, _) => Err(self.shared.domain.transfer_error("reading", Code(error))),
        };
        self.settle(index, result);
    }

    fn handle_reply(&mut self, buffer: usize, done: Done) {
        self.unoffered.push(buffer);
        if done.error != 0 {
            return;
        }
        let bytes = (done.bytes as usize).min(self.shared.limits.reply_bytes());
        // SAFETY: the buffer was received into and is offered again only later; the provider wrote so many bytes of it.
        let message = unsafe { std::slice::from_raw_parts(self.reply_at(buffer), bytes) };
        let Ok((reply, packed)) = Reply::decode(message) else { return };
        let index = (reply.sequence & 0xFFFF) as usize;
        let awaited = |operation: &&Operation| {
            operation.kind == Kind::Ask && !operation.over && operation.sequence == reply.sequence
        };
        // Late answers to what was aborted or asked again.
        let Some(operation) = self.operations.get(index).filter(awaited) else { return };
        let (part, batch) = (operation.part, &self.batches[operation.batch]);
        self.peers[operation.peer].refused_since = None;
        let result = match reply.status {
            Status::Rows if packed.len() == part.rows * part.bytes => {
                for (i, row) in packed.chunks_exact(part.bytes).enumerate() {
                    let place = batch.place(part.first + i, part.offset);
                    // SAFETY: the batch is live, so that its places are lent to this channel.
                    unsafe { std::ptr::copy_nonoverlapping(row.as_ptr(), place, row.len()) };
                }
                Ok(())
            }
            Status::Rows => {
                let due = part.rows * part.bytes;
                Err(TransferError::Protocol(format!("the owner sent {} bytes, not {due}", packed.len())))
            }
            Status::OutOfRegion { region_bytes } => {
                Err(TransferError::OutOfRegion { region_rows: region_bytes / batch.row_bytes as u64 })
            }
            Status::StaleRegion => Err(self.stale(operation.batch)),
        };
        self.settle(index, result);
    }

    fn stale(&self, batch: usize) -> TransferError {
        let batch = &self.batches[batch];
        TransferError::StaleRegion { region: self.imports[batch.import].token.number, version: batch.version }
    }

    /// Gives a slot back that nobody waits for and the provider does not hold.
    fn release(&mut self, index: usize) {
        match self.operations[index].kind {
            Kind::Ask => self.free_asks.push(index),
            Kind::Read | Kind::Check => self.free_reads.push(index),
        }
    }

    /// An operation is over: its batch learns how it went.
    fn settle(&mut self, index: usize, result: Result<(), TransferError>) {
        let operation = &mut self.operations[index];
        operation.over = true;
        let (kind, part, at) = (operation.kind, operation.part, operation.batch);
        self.peers[operation.peer].open -= 1;
        if !operation.in_use {
            self.release(index);
        }
        let bytes_max = self.piece_bytes_max(self.batches[at].way);
        let batch = &mut self.batches[at];
        batch.parts_open -= 1;
        if kind == Kind::Check {
            return self.conclude_check(at, index, result);
        }
        if batch.reports_parts(bytes_max) {
            self.pending.extend(batch.completion(part.first..part.first + part.rows, result));
        } else if let Err(cause) = result {
            batch.failed.get_or_insert(cause);
            batch.skip_rest();
        }
        if batch.parts_open == 0 && !batch.has_more() {
            self.conclude(at);
        }
    }

    /// All parts of a batch have ended.
    fn conclude(&mut self, at: usize) {
        let bytes_max = self.piece_bytes_max(self.batches[at].way);
        let batch = &mut self.batches[at];
        if batch.way == Way::Read && batch.checks_left > 0 {
            // After the rows, because the fabric orders nothing: rows that were read before the version changed are of that version.
            batch.begin_check();
            self.unmade.push_back(at);
            return;
        }
        let status = batch.failed.take().map_or(Ok(()), Err);
        if !batch.reports_parts(bytes_max) {
            self.pending.extend(batch.completion(0..batch.rows.len(), status));
        }
        self.end_batch(at);
    }

    /// The version of a batch's region was read, or could not be.
    fn conclude_check(&mut self, at: usize, index: usize, result: Result<(), TransferError>) {
        // SAFETY: the word is the operation's own, aligned, and the read of it is over.
        let version = unsafe { self.word_at(index).cast::<u64>().read() };
        let batch = &mut self.batches[at];
        let status = match (result, batch.failed.take()) {
            (Ok(()), _) if version != batch.version => Err(self.stale(at)),
            (Ok(()), None) => Ok(()),
            (Ok(()), Some(cause)) => Err(cause),
            (Err(cause), _) if batch.checks_left == 0 => Err(cause),
            (Err(cause), earlier) => {
                batch.failed = Some(earlier.unwrap_or(cause));
                return self.conclude(at);
            }
        };
        let batch = &self.batches[at];
        self.pending.extend(batch.completion(0..batch.rows.len(), status));
        self.end_batch(at);
    }

    fn end_batch(&mut self, at: usize) {
        self.batches[at].live = false;
        self.unmade.retain(|&batch| batch != at);
        self.free_batches.push(at);
    }

    /// Ends what waits to be posted to a peer, and what was not even made.
    fn give_up(&mut self, peer: usize, cause: &TransferError) {
        for _ in 0..self.waiting.len() {
            let Some(operation) = self.waiting.pop_front() else { break };
            if self.operations[operation].peer == peer {
                self.forgo_check(self.operations[operation].batch);
                self.settle(operation, Err(cause.clone()));
            } else {
                self.waiting.push_back(operation);
            }
        }
        for at in 0..self.batches.len() {
            if !self.batches[at].live || self.batches[at].peer != peer || !self.wants_more(at) {
                continue;
            }
            self.forgo_check(at);
            let bytes_max = self.piece_bytes_max(self.batches[at].way);
            let batch = &mut self.batches[at];
            let rest = batch.skip_rest();
            if batch.reports_parts(bytes_max) {
                self.pending.extend(batch.completion(rest, Err(cause.clone())));
            } else {
                batch.failed.get_or_insert_with(|| cause.clone());
            }
            batch.checking = false;
            if batch.parts_open == 0 {
                self.conclude(at);
            }
        }
    }

    /// Who cannot be reached cannot be asked for its version either.
    fn forgo_check(&mut self, at: usize) {
        self.batches[at].checks_left = 0;
    }

    // Deadlines.

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

    // Fencing.

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
        self.peers.iter_mut().for_each(|peer| (peer.address, peer.refused_since) = (None, None));
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
        let closed = endpoint.close();
        self.staging.deregister();
        closed.map_err(|code| failed(format!("an endpoint cannot be closed: {}", domain.words(code))))
    }

    /// Whether reads into a peer's batches are under way.
    fn reads_from(&self, peer: usize) -> bool {
        let writes = |operation: &Operation| operation.kind == Kind::Read && operation.in_use && operation.peer == peer;
        self.operations.iter().any(writes)
    }

    /// Gives reads that are under way a moment to end by themselves.
    fn drain(&mut self, peer: usize) -> Result<()> {
        let until = Instant::now() + DRAIN_WITHIN;
        while self.reads_from(peer) && !self.promised && Instant::now() < until {
            if !self.take_completions()? {
                std::thread::yield_now();
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
        let until = match wait {
            Wait::For(wait) => Some(Instant::now() + wait),
            Wait::No => None,
        };
        let mut idle = Idle::default();
        loop {
            if self.turn()? {
                idle.reset();
            }
            let left = until.map_or(Duration::ZERO, |until| until.saturating_duration_since(Instant::now()));
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
        if let Err(error) = self.close() {
            tracing::warn!("{error}");
        }
    }
}
