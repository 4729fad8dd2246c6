//! One connection to one peer: lists of reads out, completions in, and a clean end.

use super::counters::add;
use super::device::Device;
use super::ffi;
use super::owner::{Lifeline, TO_FABRIC, dial};
use super::queue::{CompletionQueue, EventChannel, QueuePair, Read, RequestList, Role};
use super::registration::{Exported, Words};
use super::wire::Offer;
use super::{BATCHES_IN_FLIGHT_MAX, Shared};
use crate::error::TransferError;
use crate::id::Rank;
use crate::transport::batch::runs;
use crate::transport::{BatchId, Completion, RowBatch, Waker};
use std::collections::VecDeque;
use std::io;
use std::net::TcpStream;
use std::ops::{Index, IndexMut};
use std::os::fd::AsFd;
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
/// More bytes than this in one read gain nothing, and a lost packet costs more.
const READ_BYTES_MAX: usize = 1 << 20;
/// Time for a stopped queue pair to flush what was posted.
const FLUSH_TIME: Duration = Duration::from_secs(2);
const FLUSH_POLL: Duration = Duration::from_micros(100);
const COMPLETIONS_AT_ONCE: usize = 16;
const DIAL_STACK_BYTES: usize = 256 << 10;

/// A batch that was posted and is not over.
pub struct Held {
    id: BatchId,
    rows: Vec<u64>,
    places: Vec<u32>,
    base: u64,
    stride: usize,
    row_bytes: usize,
    lkey: u32,
    region: Exported,
    region_index: u32,
    version: u64,
    /// Rows that were put into lists.
    listed: usize,
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
            rows: Vec::with_capacity(super::BATCH_ROWS_MAX),
            places: Vec::with_capacity(super::BATCH_ROWS_MAX),
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
    fn end(
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
    fn stale(&self) -> TransferError {
        TransferError::StaleRegion { region: self.region_index.into(), version: self.version }
    }

    /// Most rows of one read; 1 where they land apart.
    fn run_rows_max(&self, message_bytes: usize) -> usize {
        if self.stride == self.row_bytes { (message_bytes.min(READ_BYTES_MAX) / self.row_bytes).max(1) } else { 1 }
    }
}

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
    pub fn new(device: &Arc<Device>) -> crate::error::Result<Self> {
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

enum Stage {
    /// A thread asks the owner for its end of the connection.
    Dialing(Receiver<Result<(TcpStream, Offer), TransferError>>),
    Ready(Lifeline),
}

/// The first error of a queue pair, which is its last: everything behind is flushed.
struct Fault {
    status: i32,
    vendor: u32,
    request: u64,
}

impl Fault {
    fn words(&self) -> String {
        let (name, meaning) = ffi::status_words(self.status);
        format!("{name} (status {}, vendor's code {:#x}): {meaning}", self.status, self.vendor)
    }

    /// How it reads for the list that it hit, and for those behind it.
    fn error(&self, hit: bool) -> TransferError {
        match (self.status, hit) {
            (ffi::STATUS_RETRY_EXCEEDED, _) => TransferError::PeerGone(self.words()),
            (_, true) => TransferError::Io(self.words()),
            (_, false) => {
                TransferError::Io(format!("flushed, because an earlier read ended the connection: {}", self.words()))
            }
        }
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
    queue: QueuePair,
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
        let broken = |cause: crate::error::Error| TransferError::Io(cause.to_string());
        let addresses = shared.addresses.get();
        let address = addresses
            .and_then(|addresses| addresses.get(peer.index()))
            .ok_or_else(|| TransferError::PeerGone("its address is not known".into()))?
            .clone();
        let permit = Permit::take(shared)?;
        let completions = CompletionQueue::new(&shared.device, bench.depth + 1, Some(events)).map_err(broken)?;
        let queue = QueuePair::new(&completions, Role::Reads { requests: bench.depth as u32 }).map_err(broken)?;
        let (sender, receiver) = sync_channel(1);
        let (offer, config, answered) = (queue.offer(), shared.config.clone(), answered.clone());
        std::thread::Builder::new()
            .name("rudder-verbs-dial".into())
            .stack_size(DIAL_STACK_BYTES)
            .spawn(move || {
                // Nobody listens any more where the link was ended meanwhile: the socket then closes.
                let _ = sender.send(dial(&address, &config, &offer));
                answered.wake();
            })
            .map_err(|e| TransferError::Io(format!("no thread to connect from: {e}")))?;
        Ok(Self {
            queue,
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

    pub fn completions(&self) -> &CompletionQueue {
        &self.queue.completions
    }

    /// The socket whose end is the connection's, once there is one.
    pub fn socket(&self) -> Option<impl AsFd + '_> {
        match &self.stage {
            Stage::Dialing(_) => None,
            Stage::Ready(lifeline) => Some(lifeline),
        }
    }

    /// Goes on where the owner has answered; true when the link became ready by that.
    pub fn settle(&mut self) -> Result<bool, End> {
        let Stage::Dialing(answer) = &self.stage else { return Ok(false) };
        let (socket, offer) = match answer.try_recv() {
            Err(TryRecvError::Empty) => return Ok(false),
            Err(TryRecvError::Disconnected) => {
                return Err(End::Because(TransferError::Io("the thread that connects has died".into())));
            }
            Ok(answer) => answer.map_err(End::Because)?,
        };
        self.queue.connect(&offer).map_err(|cause| {
            let gid = std::net::Ipv6Addr::from(offer.address.gid);
            End::Because(TransferError::Io(format!(
                "no route from the device to GID {gid}, lid {}: {cause}; RUDDER_VERBS_GID chooses another GID",
                offer.address.lid
            )))
        })?;
        self.stage = Stage::Ready(Lifeline::new(Arc::new(socket)));
        Ok(true)
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
        if self.is_dialing() || (self.lists.is_empty() && self.waiting.is_empty()) {
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
            let found = self.queue.completions.poll(&mut taken)?;
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
        while let Some(&batch) = self.waiting.front() {
            let room = (bench.depth - self.requests_out).min(LIST_REQUESTS_MAX);
            let unlisted = batches[batch].rows.len() - batches[batch].listed;
            if room < (unlisted + REQUESTS_BESIDE_ROWS).min(LIST_REQUESTS_LEAST).min(bench.depth) {
                return Ok(());
            }
            let Some(words) = bench.free_words.pop() else { return Ok(()) };
            let list = self.build(batch, room, words, &batches[batch], bench);
            // SAFETY: the destinations are places of a batch that was posted: their owner lent them until the rows are reported. The
            // words are this list's own until it is finished.
            match unsafe { self.queue.post(&mut bench.list) } {
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
        if self.next_request > self.completed {
            // Refused only where the queue pair has stopped by itself.
            let _ = self.queue.stop();
            let deadline = Instant::now() + FLUSH_TIME;
            while self.next_request > self.completed && Instant::now() < deadline {
                let before = self.completed;
                if self.take_completed(batches, bench, completions).is_err() {
                    break;
                }
                if self.completed == before {
                    std::thread::sleep(FLUSH_POLL);
                }
            }
        }
        // To destroy a queue pair is a fence of its own, for a device that has not flushed in time or cannot say so.
        self.queue.destroy()?;
        let (fault, because) = match (self.fault, end) {
            (Some(fault), End::Faulted) => (Some(fault), None),
            (_, End::Because(cause)) => (None, Some(cause)),
            (None, End::Faulted) => (None, None),
        };
        let cause = |hit| match (&fault, &because) {
            (Some(fault), _) => fault.error(hit),
            (None, Some(cause)) => cause.clone(),
            (None, None) => TransferError::Io("the connection failed".into()),
        };
        for list in self.lists {
            let held = &batches[list.batch];
            let hit =
                fault.as_ref().is_some_and(|fault| (list.first_request..=list.last_request).contains(&fault.request));
            let refused = fault
                .as_ref()
                .is_some_and(|fault| fault.status == ffi::STATUS_REMOTE_ACCESS && fault.request > list.first_request);
            // The read before the rows had succeeded: its word tells a region that is over from rows that are refused.
            let stale = hit && refused && bench.words.get(2 * list.words) != held.version;
            let status = if stale { held.stale() } else { cause(hit) };
            bench.free_words.push(list.words);
            batches.end(list.batch, list.first, list.rows, Err(status), completions);
        }
        for batch in self.waiting {
            let (first, all) = (batches[batch].listed, batches[batch].rows.len());
            batches.end(batch, first, all - first, Err(cause(false)), completions);
        }
        Ok(())
    }
}
