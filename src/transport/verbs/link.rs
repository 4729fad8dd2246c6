//! One connection to one peer: lists of reads out, completions in, and a clean end.

use super::batches::{Batches, Held};
use super::counters::add;
use super::device::Device;
use super::fault::Fault;
use super::ffi;
use super::owner::{Lifeline, TO_FABRIC, dial};
use super::queue::{CompletionQueue, EventChannel, QueuePair, Read, RequestList, Role};
use super::registration::Words;
use super::{BATCHES_IN_FLIGHT_MAX, Shared, VerbsConfig};
use crate::error::{Error, Result, TransferError};
use crate::id::Rank;
use crate::transport::batch::runs;
use crate::transport::handshake::Address;
use crate::transport::{Completion, Waker};
use std::collections::VecDeque;
use std::io;
use std::net::Ipv6Addr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, TryRecvError, sync_channel};
use std::time::{Duration, Instant};

/// Reads that one connection has posted at most, where the device allows as many.
const REQUESTS_MAX: usize = 1024;
/// Reads of one list, two of them for versions: a quarter of the queue, so that the next lists are built while the first are read.
const LIST_REQUESTS_MAX: usize = REQUESTS_MAX / 4;
/// Lists that a channel has posted at most, to all peers.
const LISTS_MAX: usize = 1024;
/// Each list reads the version before its rows and after them.
const REQUESTS_BESIDE_ROWS: usize = 2;
/// A list of fewer reads goes out only where its batch has no more rows: it would be mostly versions and doorbells.
const LIST_REQUESTS_LEAST: usize = LIST_REQUESTS_MAX / 4;
/// Time for a stopped queue pair to flush what was posted.
const FLUSH_TIME: Duration = Duration::from_secs(2);
const FLUSH_POLL: Duration = Duration::from_micros(100);
const COMPLETIONS_AT_ONCE: usize = 16;
const DIAL_STACK_BYTES: usize = 256 << 10;

/// What the links of a channel build their lists with.
pub struct Workbench {
    pub device: Arc<Device>,
    list: RequestList,
    words: Words,
    /// Pairs of words that no list uses.
    free_words: Vec<usize>,
    depth: usize,
}

impl Workbench {
    pub fn new(device: &Arc<Device>) -> Result<Self> {
        Ok(Self {
            device: Arc::clone(device),
            list: RequestList::with_capacity(LIST_REQUESTS_MAX),
            words: Words::new(device, 2 * LISTS_MAX)?,
            free_words: (0..LISTS_MAX).rev().collect(),
            depth: REQUESTS_MAX.min(device.limits.requests).min(device.limits.completions),
        })
    }
}

/// Rows of one batch that went out as one list.
struct List {
    batch: usize,
    first: usize,
    rows: usize,
    /// Numbers of its requests: the first and the last read the version, into the words of that number.
    first_request: u64,
    last_request: u64,
    words: usize,
}

impl List {
    fn contains(&self, request: u64) -> bool {
        (self.first_request..=self.last_request).contains(&request)
    }
}

enum Stage {
    /// A thread asks the owner for its end of the connection, and connects ours to it.
    Dialing(Receiver<Result<Connection, TransferError>>),
    Ready(Connection),
}

/// A connected queue pair, and the socket that lives as long.
struct Connection {
    queue: QueuePair,
    lifeline: Lifeline,
}

impl Connection {
    /// Arranges a connection; waits for the owner, and for the kernel, which may have to look for the way to the peer's address.
    fn make(queue: QueuePair, address: &Address, config: &VerbsConfig) -> Result<Self, TransferError> {
        let (socket, offer) = dial(address, config, &queue.offer())?;
        queue.connect(&offer).map_err(|cause| {
            let gid = Ipv6Addr::from(offer.address.gid);
            TransferError::Io(format!(
                "no way from the device to GID {gid}, lid {}: {cause}; RUDDER_VERBS_GID chooses another GID",
                offer.address.lid
            ))
        })?;
        Ok(Self { queue, lifeline: Lifeline::new(Arc::new(socket)) })
    }
}

/// Why a link ends.
pub enum End {
    /// By an error of its queue pair, which was noted.
    Faulted,
    Because(TransferError),
}

/// A connection to a peer, and the batches that wait for it.
pub struct Link {
    stage: Stage,
    /// Batches with rows that are not listed.
    waiting: VecDeque<usize>,
    lists: VecDeque<List>,
    /// Requests that were posted and whose list has not ended.
    requests_out: usize,
    next_request: u64,
    /// One more than the number of the last request that has completed.
    completed: u64,
    fault: Option<Fault>,
    #[expect(dead_code, reason = "held for its Drop")]
    permit: Permit,
}

/// The right to one queue pair of the transport's limit.
struct Permit(Arc<Shared>);

impl Permit {
    fn take(shared: &Arc<Shared>) -> Result<Self, TransferError> {
        let most = shared.config.queue_pairs_max;
        let taken = |count: usize| (count < most).then_some(count + 1);
        match shared.queue_pairs.fetch_update(Ordering::AcqRel, Ordering::Acquire, taken) {
            Ok(_) => Ok(Self(Arc::clone(shared))),
            Err(_) => Err(TransferError::Io(format!(
                "this process has {most} queue pairs, as many as it may, and a connection takes one a peer and channel: {TO_FABRIC}"
            ))),
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.queue_pairs.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Link {
    /// Makes this end of a connection and begins to ask for the other; `answered` is called when that is over.
    pub fn open(
        peer: Rank,
        shared: &Arc<Shared>,
        bench: &Workbench,
        events: &Arc<EventChannel>,
        answered: &Waker,
    ) -> Result<Self, TransferError> {
        let broken = |cause: Error| TransferError::Io(cause.to_string());
        let addresses = shared.addresses.get();
        let address = addresses
            .and_then(|addresses| addresses.get(peer.index()))
            .ok_or_else(|| TransferError::PeerGone("its address is not known".into()))?
            .clone();
        let permit = Permit::take(shared)?;
        let completions = CompletionQueue::new(&shared.device, bench.depth + 1, Some(events)).map_err(broken)?;
        let queue = QueuePair::new(&completions, Role::Reads { requests: bench.depth as u32 }).map_err(broken)?;
        let (sender, receiver) = sync_channel(1);
        let (config, answered) = (shared.config.clone(), answered.clone());
        std::thread::Builder::new()
            .name("rudder-verbs-dial".into())
            .stack_size(DIAL_STACK_BYTES)
            .spawn(move || {
                // Nobody listens any more where the link was ended meanwhile: nothing was posted, and the connection ends here.
                let _ = sender.send(Connection::make(queue, &address, &config));
                answered.wake();
            })
            .map_err(|e| TransferError::Io(format!("no thread to connect from: {e}")))?;
        Ok(Self {
            stage: Stage::Dialing(receiver),
            waiting: VecDeque::with_capacity(BATCHES_IN_FLIGHT_MAX),
            lists: VecDeque::with_capacity(REQUESTS_MAX / REQUESTS_BESIDE_ROWS),
            requests_out: 0,
            next_request: 0,
            completed: 0,
            fault: None,
            permit,
        })
    }

    pub fn is_dialing(&self) -> bool {
        matches!(self.stage, Stage::Dialing(_))
    }

    /// Whether reads are out, so that completions are to come.
    pub fn is_reading(&self) -> bool {
        !self.lists.is_empty()
    }

    /// Asks for an event with the next completion, where there is one to come.
    pub fn arm(&self) -> io::Result<()> {
        match &self.stage {
            Stage::Ready(connection) if self.is_reading() => connection.queue.completions.arm(),
            Stage::Ready(_) | Stage::Dialing(_) => Ok(()),
        }
    }

    /// The socket whose end is the connection's, once there is one.
    pub fn socket(&self) -> Option<&Lifeline> {
        match &self.stage {
            Stage::Dialing(_) => None,
            Stage::Ready(connection) => Some(&connection.lifeline),
        }
    }

    /// Goes on where the owner has answered; true when the link became ready by that.
    pub fn settle(&mut self) -> Result<bool, End> {
        let Stage::Dialing(answer) = &self.stage else { return Ok(false) };
        match answer.try_recv() {
            Err(TryRecvError::Empty) => Ok(false),
            Err(TryRecvError::Disconnected) => {
                Err(End::Because(TransferError::Io("the thread that connects has died".into())))
            }
            Ok(Err(cause)) => Err(End::Because(cause)),
            Ok(Ok(connection)) => {
                self.stage = Stage::Ready(connection);
                Ok(true)
            }
        }
    }

    /// Takes a batch, to be read after those before it.
    pub fn enqueue(&mut self, batch: usize) {
        self.waiting.push_back(batch);
    }

    /// Takes what has completed and posts what there is room for.
    pub fn drive(
        &mut self,
        batches: &mut Batches,
        bench: &mut Workbench,
        completions: &mut Vec<Completion>,
    ) -> Result<(), End> {
        if self.lists.is_empty() && self.waiting.is_empty() {
            return Ok(());
        }
        self.take_completed(batches, bench, completions)
            .map_err(|e| End::Because(TransferError::Io(format!("polling the device: {e}"))))?;
        if self.fault.is_some() {
            return Err(End::Faulted);
        }
        self.post_waiting(batches, bench)
    }

    fn take_completed(
        &mut self,
        batches: &mut Batches,
        bench: &mut Workbench,
        completions: &mut Vec<Completion>,
    ) -> io::Result<()> {
        let mut taken = [ffi::WorkCompletion::EMPTY; COMPLETIONS_AT_ONCE];
        loop {
            let Stage::Ready(connection) = &self.stage else { return Ok(()) };
            let found = connection.queue.completions.poll(&mut taken)?;
            if found.is_empty() {
                return Ok(());
            }
            add(&bench.device.counters.completions, found.len());
            for completion in found {
                self.completed = completion.wr_id + 1;
                if completion.status == ffi::STATUS_SUCCESS {
                    self.finish_lists(completion.wr_id, batches, bench, completions);
                } else if self.fault.is_none() {
                    self.fault = Some(Fault {
                        status: completion.status,
                        vendor: completion.vendor_err,
                        request: completion.wr_id,
                    });
                }
            }
        }
    }

    /// Ends the lists up to a request: completions come in the order of the requests.
    fn finish_lists(
        &mut self,
        request: u64,
        batches: &mut Batches,
        bench: &mut Workbench,
        completions: &mut Vec<Completion>,
    ) {
        while self.lists.front().is_some_and(|list| list.last_request <= request) {
            let Some(list) = self.lists.pop_front() else { return };
            self.requests_out -= (list.last_request + 1 - list.first_request) as usize;
            let held = &batches[list.batch];
            let is_current = |word| bench.words.get(2 * list.words + word) == held.version;
            let status = if is_current(0) && is_current(1) { Ok(()) } else { Err(held.stale()) };
            bench.free_words.push(list.words);
            batches.end(list.batch, list.first, list.rows, status, completions);
        }
    }

    fn post_waiting(&mut self, batches: &mut Batches, bench: &mut Workbench) -> Result<(), End> {
        while let (Some(&batch), Stage::Ready(connection)) = (self.waiting.front(), &self.stage) {
            let room = (bench.depth - self.requests_out).min(LIST_REQUESTS_MAX);
            let unlisted = batches[batch].rows.len() - batches[batch].listed;
            if room < (unlisted + REQUESTS_BESIDE_ROWS).min(LIST_REQUESTS_LEAST).min(bench.depth) {
                return Ok(());
            }
            let Some(words) = bench.free_words.pop() else { return Ok(()) };
            let list = self.build(batch, room, words, &batches[batch], bench);
            // SAFETY: the destinations are places of a batch that was posted: their owner lent them until the rows are reported. The
            // words are this list's own until it is finished.
            match unsafe { connection.queue.post(&mut bench.list) } {
                Ok(()) => self.note_posted(list, batches, bench),
                Err(refusal) => {
                    bench.free_words.push(words);
                    if refusal.posted == 0 && self.is_reading() {
                        // The device's queue is fuller than its word: the next completion makes room.
                        add(&bench.device.counters.posts_retried, 1);
                        return Ok(());
                    }
                    // What was posted of the list is flushed with the queue pair.
                    self.next_request += refusal.posted as u64;
                    let cause = format!("the device refuses reads: {}", refusal.cause);
                    return Err(End::Because(TransferError::Io(cause)));
                }
            }
            if batches[batch].listed == batches[batch].rows.len() {
                self.waiting.pop_front();
            }
        }
        Ok(())
    }

    /// Writes the next rows of a batch into the workbench's list, a read of the version before and after them.
    fn build(&self, batch: usize, room: usize, words: usize, held: &Held, bench: &mut Workbench) -> List {
        let word = |bench: &Workbench, which| Read {
            remote: held.region.version_address,
            rkey: held.region.version_rkey,
            local: bench.words.address(2 * words + which),
            lkey: bench.words.lkey(),
            bytes: 8,
        };
        let mut number = self.next_request..;
        let mut push = |list: &mut RequestList, read: Read| list.push(number.next().unwrap_or_default(), &read);
        bench.list.clear();
        let before = word(bench, 0);
        push(&mut bench.list, before);
        let first = held.listed;
        let (rows, places) = (&held.rows[first..], &held.places[first..]);
        let mut listed = 0;
        let most = held.run_rows_max(bench.device.limits.message_bytes);
        for run in runs(rows, places, most).take(room - REQUESTS_BESIDE_ROWS) {
            let read = Read {
                remote: held.region.address + run.row * held.row_bytes as u64,
                rkey: held.region.rkey,
                local: held.base + (run.place as usize * held.stride) as u64,
                lkey: held.lkey,
                bytes: (run.rows * held.row_bytes) as u32,
            };
            push(&mut bench.list, read);
            listed += run.rows;
        }
        let after = word(bench, 1);
        push(&mut bench.list, after);
        let last_request = self.next_request + bench.list.len() as u64 - 1;
        List { batch, first, rows: listed, first_request: self.next_request, last_request, words }
    }

    fn note_posted(&mut self, list: List, batches: &mut Batches, bench: &Workbench) {
        let counters = &bench.device.counters;
        add(&counters.doorbells, 1);
        add(&counters.version_reads, REQUESTS_BESIDE_ROWS);
        add(&counters.row_reads, bench.list.len() - REQUESTS_BESIDE_ROWS);
        batches[list.batch].listed += list.rows;
        self.next_request = list.last_request + 1;
        self.requests_out += bench.list.len();
        self.lists.push_back(list);
    }

    /// Ends the link: stops the queue pair, waits until all is flushed, destroys it, and only then says how the rows ended.
    ///
    /// # Errors
    /// The queue pair cannot be destroyed, so rows may still be written: nothing is reported.
    pub fn end(
        mut self,
        end: End,
        batches: &mut Batches,
        bench: &mut Workbench,
        completions: &mut Vec<Completion>,
    ) -> io::Result<()> {
        self.flush(batches, bench, completions);
        let Self { stage, waiting, lists, fault, .. } = self;
        if let Stage::Ready(connection) = stage {
            // To destroy a queue pair is a fence of its own, for a device that has not flushed in time or cannot say so.
            connection.queue.destroy()?;
        }
        let cause = |hit| match (&end, &fault) {
            (End::Because(cause), _) => cause.clone(),
            (End::Faulted, Some(fault)) => fault.error(hit),
            (End::Faulted, None) => TransferError::Io("the connection failed".into()),
        };
        for list in lists {
            let hit = fault.as_ref().filter(|fault| list.contains(fault.request));
            let held = &batches[list.batch];
            // The read before the rows had succeeded: its word tells a region that is over from rows that are refused.
            let word_is_there = hit.is_some_and(|hit| hit.is_refused_access() && hit.request > list.first_request);
            let is_stale = word_is_there && bench.words.get(2 * list.words) != held.version;
            let status = match end {
                End::Faulted if is_stale => held.stale(),
                End::Faulted | End::Because(_) => cause(hit.is_some()),
            };
            bench.free_words.push(list.words);
            batches.end(list.batch, list.first, list.rows, Err(status), completions);
        }
        for batch in waiting {
            let (first, all) = (batches[batch].listed, batches[batch].rows.len());
            batches.end(batch, first, all - first, Err(cause(false)), completions);
        }
        Ok(())
    }

    /// Stops the queue pair and takes what it completes, to the last request or for as long as that may take.
    fn flush(&mut self, batches: &mut Batches, bench: &mut Workbench, completions: &mut Vec<Completion>) {
        let Stage::Ready(connection) = &self.stage else { return };
        if self.next_request == self.completed {
            return;
        }
        // Refused only where the queue pair has stopped by itself.
        let _ = connection.queue.stop();
        let deadline = Instant::now() + FLUSH_TIME;
        while self.next_request > self.completed && Instant::now() < deadline {
            let before = self.completed;
            if self.take_completed(batches, bench, completions).is_err() {
                return;
            }
            if self.completed == before {
                std::thread::sleep(FLUSH_POLL);
            }
        }
    }
}
