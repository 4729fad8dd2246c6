//! Making operations of batches, and posting them.

use super::{FabricChannel, WORD_BYTES};
use crate::error::{Result, TransferError};
use crate::id::Rank;
use crate::transport::fabric::library::{Code, Endpoint, SEGMENTS_MAX, Segment};
use crate::transport::fabric::operation::{Kind, Operation, Part, Way};
use crate::transport::fabric::shared::count;
use crate::transport::fabric::wire::{REQUEST_BYTES_MAX, Request};
use std::time::Instant;

/// What a post came to.
enum Start {
    /// Under way, or ended at once.
    Done,
    /// To be tried again.
    Refused,
}

/// Parts of an endpoint's reads that are posted together.
const BURSTS: usize = 8;

impl FabricChannel {
    /// Posts what can be posted: what was refused before first, then more of the batches in turn.
    pub(super) fn pump(&mut self) -> Result<()> {
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
    pub(super) fn wants_more(&self, batch: usize) -> bool {
        let batch = &self.batches[batch];
        batch.live && (batch.has_more() || (batch.checking && batch.parts_open == 0))
    }

    fn post_parts(&mut self, batch: usize) -> Result<()> {
        if self.gathers_room(batch) {
            return Ok(());
        }
        while !self.peers[self.batches[batch].peer].refused && self.may_make(batch) {
            let operation = self.make(batch);
            let more = self.operations[operation].kind == Kind::Read && self.may_make(batch);
            if let Start::Refused = self.start(operation, more)? {
                self.waiting.push_back(operation);
            }
        }
        Ok(())
    }

    /// Whether a read is better posted later, together with others: each burst rings the device once, and what is under way meanwhile is
    /// most of what it takes.
    fn gathers_room(&self, batch: usize) -> bool {
        let (free, all) = (self.free_reads.len(), self.operations.len() - self.asks());
        let batch = &self.batches[batch];
        batch.way == Way::Read && !batch.checking && free < all && free < all / BURSTS
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
                    let end = batch.rows.len().min(first.saturating_add(bytes_max / batch.row_bytes));
                    batch.runs(first..end).take(segments).map(|run| run.rows).sum()
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
                self.peers[peer].reached = true;
                let operation = &mut self.operations[index];
                operation.in_use = true;
                operation.posted = Some(Instant::now());
                if kind == Kind::Ask {
                    self.owed += 1;
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
        let mut used = 0;
        for run in batch.runs(part.first..part.first + part.rows) {
            segments[used] = Segment {
                local: batch.landing(run.place, part.offset).cast(),
                remote: readable.rows_base + run.row * batch.row_bytes as u64 + part.offset as u64,
                bytes: (run.rows * part.bytes) as u64,
            };
            used += 1;
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
}
