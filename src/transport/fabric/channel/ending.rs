//! The ends of operations, and what they mean for their batches.

use super::FabricChannel;
use crate::error::TransferError;
use crate::transport::fabric::library::{Code, Completion as Done};
use crate::transport::fabric::operation::{Kind, Operation, Way};
use crate::transport::fabric::shared::count;
use crate::transport::fabric::wire::{Reply, Status};

impl FabricChannel {
    pub(super) fn handle(&mut self, done: Done) {
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
        self.owed = self.owed.saturating_sub(1);
        let bytes = (done.bytes as usize).min(self.shared.limits.reply_bytes());
        // SAFETY: the buffer was received into and is offered again only later; the provider wrote so many bytes of it.
        let message = unsafe { std::slice::from_raw_parts(self.reply_at(buffer), bytes) };
        let Ok((reply, packed)) = Reply::decode(message) else { return };
        let index = (reply.sequence & 0xFFFF) as usize;
        let awaited = |operation: &&Operation| {
            operation.kind == Kind::Ask && !operation.over && operation.sequence == reply.sequence
        };
        // All else are late answers, to what was aborted or asked again.
        let Some(operation) = self.operations.get(index).filter(awaited) else { return };
        let (part, batch) = (operation.part, &self.batches[operation.batch]);
        self.peers[operation.peer].refused_since = None;
        let result = match reply.status {
            Status::Rows if packed.len() == part.rows * part.bytes => {
                // SAFETY: the batch is live, so that its places are lent to this channel.
                unsafe { batch.land(part, packed) };
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
    pub(super) fn release(&mut self, index: usize) {
        match self.operations[index].kind {
            Kind::Ask => self.free_asks.push(index),
            Kind::Read | Kind::Check => self.free_reads.push(index),
        }
    }

    /// An operation is over: its batch learns how it went.
    pub(super) fn settle(&mut self, index: usize, result: Result<(), TransferError>) {
        // It may wait to be asked again while its first answer comes.
        self.waiting.retain(|&waiting| waiting != index);
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
                self.cut_off |= batch.is_cut_off();
                return self.conclude(at);
            }
        };
        let batch = &self.batches[at];
        self.pending.extend(batch.completion(0..batch.rows.len(), status));
        self.end_batch(at);
    }

    pub(super) fn end_batch(&mut self, at: usize) {
        self.batches[at].live = false;
        self.unmade.retain(|&batch| batch != at);
        self.free_batches.push(at);
    }

    /// Ends what waits to be posted to a peer, and what was not even made.
    pub(super) fn give_up(&mut self, peer: usize, cause: &TransferError) {
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
    pub(super) fn forgo_check(&mut self, at: usize) {
        self.batches[at].checks_left = 0;
    }
}
