//! Records a trace beside the job: callers hand over what a minibatch wanted, a thread of its own writes it.
//!
//! Nothing here waits for the disk. A caller copies ids into one of a fixed number of lists that go round between it and the writer, and
//! makes no system call unless half of them are out; where none is left, the minibatch is left out, and the trace says how many were.

use crate::error::{Error, Result};
use crate::id::NodeId;
use crate::pipeline::{OwnerLoad, TableStats};
use crate::trace::{Event, Header, Minibatch, NODES_MAX, OwnerCost, StepTimes, Writer, file_of};
use crossbeam::queue::ArrayQueue;
use std::collections::VecDeque;
use std::fs::File;
use std::io::BufWriter;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::*};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, Instant};

/// Lists of ids that go round.
const LISTS: usize = 128;
/// Of these, the most that the writer holds for minibatches that nobody has waited for.
const OPEN_MAX: usize = 64;
/// What may wait for the writer: more than all lists with what is told of each.
const MESSAGES: usize = 4 * LISTS;
/// How often the writer looks by itself.
const LOOK: Duration = Duration::from_millis(10);
/// What a job that is killed loses of its trace, at most.
const FLUSH: Duration = Duration::from_secs(1);
/// Time that it is given to end.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);
/// A gather was started ahead where this share of its caller's work, at least, lay between its start and the wait for it.
const AHEAD_SHARE: u32 = 8;

/// A list of ids and what else a minibatch hands over; kept for its capacity.
#[derive(Default)]
struct List {
    nodes: Vec<NodeId>,
    owners: Vec<OwnerLoad>,
}

/// What a gather's start tells.
pub(super) struct Started<'a> {
    pub table: usize,
    pub nodes: &'a [NodeId],
    /// Nodes of the gather, all of which may be wanted from other ranks one day: lists go round, and each takes its room the first time.
    pub room: usize,
    pub announced: Option<u64>,
    pub observed: bool,
    /// Counts since the start of the job.
    pub stats: TableStats,
    pub owners: &'a [OwnerLoad],
}

enum Message {
    Started {
        minibatch: u64,
        table: usize,
        announced: Option<u64>,
        observed: bool,
        stats: TableStats,
        list: List,
        /// What was left out before it.
        missing: u64,
    },
    Done {
        minibatch: u64,
        step: StepTimes,
        stall: Duration,
        overlapped: bool,
    },
    EpochEnd {
        /// The last minibatch of the epoch, if it is recorded.
        after: Option<u64>,
    },
}

/// The minibatch whose rows were waited for last, until its step ends.
struct Step {
    minibatch: Option<u64>,
    stall: Duration,
    overlapped: bool,
}

/// What callers have done so far.
#[derive(Default)]
struct Calls {
    started: u64,
    /// When the last wait ended.
    waited: Option<Duration>,
    /// What was waited for then, or before where that is left out.
    last: Option<u64>,
    step: Option<Step>,
}

struct Queues {
    spare: ArrayQueue<List>,
    messages: ArrayQueue<Message>,
    /// Events that found no room and were not told of yet.
    missing: AtomicU64,
    stop: AtomicBool,
    thread: OnceLock<Thread>,
}

impl Queues {
    /// Whether there was room.
    fn tell(&self, message: Message) -> bool {
        self.messages.push(message).inspect_err(|_| _ = self.missing.fetch_add(1, Relaxed)).is_ok()
    }
}

/// The recording of one rank.
pub(super) struct Recorder {
    queues: Arc<Queues>,
    calls: Mutex<Calls>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

impl Recorder {
    /// Begins the file, and the thread that writes it.
    pub fn start(prefix: &Path, header: &Header) -> Result<Self> {
        let (recorder, scribe) = Self::new(prefix, header)?;
        tracing::info!("a trace in {}: as the configuration says", scribe.path);
        let spawn = std::thread::Builder::new().name("rudder-trace".into()).spawn(move || scribe.run());
        let writer = spawn.map_err(|cause| Error::config(format!("cannot start the trace's thread: {cause}")))?;
        _ = recorder.queues.thread.set(writer.thread().clone());
        *recorder.writer.lock().unwrap_or_else(PoisonError::into_inner) = Some(writer);
        Ok(recorder)
    }

    fn new(prefix: &Path, header: &Header) -> Result<(Self, Scribe)> {
        let path = file_of(prefix, header.rank);
        let writer = Writer::create(&path, header)?;
        let queues = Arc::new(Queues {
            spare: ArrayQueue::new(LISTS),
            messages: ArrayQueue::new(MESSAGES),
            missing: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            thread: OnceLock::new(),
        });
        (0..LISTS).for_each(|_| _ = queues.spare.push(List::default()));
        let scribe = Scribe {
            queues: queues.clone(),
            writer: Some(writer),
            path: path.display().to_string(),
            open: VecDeque::with_capacity(OPEN_MAX + 1),
            told: header.tables.iter().map(|table| Told::new(table.peers.len())).collect(),
            event: Minibatch::default(),
            warned: false,
        };
        Ok((Self { queues, calls: Mutex::default(), writer: Mutex::new(None) }, scribe))
    }

    fn calls(&self) -> MutexGuard<'_, Calls> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A gather has started; starts are told of one after another. Returns its number, unless it is left out.
    pub fn handle_started(&self, started: &Started<'_>) -> Option<u64> {
        let queues = &*self.queues;
        let list = (started.nodes.len() <= NODES_MAX).then(|| queues.spare.pop()).flatten();
        let Some(mut list) = list else {
            queues.missing.fetch_add(1, Relaxed);
            return None;
        };
        list.nodes.clear();
        list.nodes.reserve(started.room);
        list.nodes.extend_from_slice(started.nodes);
        list.owners.clear();
        list.owners.extend_from_slice(started.owners);
        let mut calls = self.calls();
        let minibatch = calls.started;
        calls.started += 1;
        drop(calls);
        let Started { table, announced, observed, stats, .. } = *started;
        let missing = queues.missing.swap(0, Relaxed);
        let told = queues.tell(Message::Started { minibatch, table, announced, observed, stats, list, missing });
        if queues.spare.len() < LISTS / 2 {
            queues.thread.get().inspect(|thread| thread.unpark());
        }
        told.then_some(minibatch)
    }

    /// The wait for a gather begins, which had started at `started`: the step before is over.
    pub fn handle_wait(&self, started: Duration, now: Duration) -> bool {
        let mut calls = self.calls();
        let Some(waited) = calls.waited else { return false };
        let own = now.saturating_sub(waited);
        let overlapped = now.saturating_sub(started.max(waited)) * AHEAD_SHARE >= own;
        if let Some(step) = calls.step.take() {
            let sample = if overlapped { started.saturating_sub(waited) } else { Duration::ZERO };
            self.tell_step(step, StepTimes { sample, compute: own - sample, allreduce: Duration::ZERO });
        }
        overlapped
    }

    /// The wait has ended.
    pub fn handle_waited(&self, minibatch: Option<u64>, overlapped: bool, began: Duration, now: Duration) {
        let mut calls = self.calls();
        if let Some(step) = calls.step.take() {
            // Another thread has waited meanwhile.
            self.tell_step(step, StepTimes::default());
        }
        calls.waited = Some(now);
        calls.last = minibatch.or(calls.last);
        calls.step = Some(Step { minibatch, stall: now.saturating_sub(began), overlapped });
    }

    /// The caller knows the parts of its step.
    pub fn mark_step(&self, times: StepTimes) {
        if let Some(step) = self.calls().step.take() {
            self.tell_step(step, times);
        }
    }

    /// An epoch has ended: so has the step, if it is open.
    pub fn mark_epoch_end(&self, now: Duration) {
        let mut calls = self.calls();
        if let Some((step, waited)) = calls.step.take().zip(calls.waited) {
            self.tell_step(step, StepTimes { compute: now.saturating_sub(waited), ..StepTimes::default() });
            calls.waited = Some(now);
        }
        self.queues.tell(Message::EpochEnd { after: calls.last });
    }

    fn tell_step(&self, step: Step, times: StepTimes) {
        let Step { minibatch: Some(minibatch), stall, overlapped } = step else { return };
        self.queues.tell(Message::Done { minibatch, step: times, stall, overlapped });
    }

    /// Has the rest written and ends the file. Once; in the process that it was started in.
    pub fn finish(&self) {
        let Some(writer) = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take() else { return };
        // What the last step took beside its wait is not known: nothing has followed it.
        self.mark_step(StepTimes::default());
        self.queues.stop.store(true, Release);
        writer.thread().unpark();
        let until = Instant::now() + STOP_TIMEOUT;
        while !writer.is_finished() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(1));
        }
        if writer.is_finished() {
            _ = writer.join();
        } else {
            tracing::warn!("the trace is not written after {STOP_TIMEOUT:?}, and is left behind");
        }
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.finish();
    }
}

/// Counts that were told of last, to tell what has come since.
struct Told {
    stats: TableStats,
    owners: Vec<OwnerLoad>,
}

impl Told {
    fn new(partitions: usize) -> Self {
        Self { stats: TableStats::default(), owners: vec![OwnerLoad::default(); partitions] }
    }
}

/// A minibatch that is not written yet.
struct Open {
    minibatch: u64,
    table: usize,
    announced: Option<u64>,
    observed: bool,
    stats: TableStats,
    list: List,
    /// The step, its stall, and whether it overlapped; once it is over.
    done: Option<(StepTimes, Duration, bool)>,
}

/// The thread that writes.
struct Scribe {
    queues: Arc<Queues>,
    /// None once the file has failed: from then on what comes is thrown away.
    writer: Option<Writer<BufWriter<File>>>,
    path: String,
    /// In the order in which they were started.
    open: VecDeque<Open>,
    told: Vec<Told>,
    /// Scratch.
    event: Minibatch,
    warned: bool,
}

impl Scribe {
    fn run(mut self) {
        let mut flushed = Instant::now();
        loop {
            let stops = self.queues.stop.load(Acquire);
            while let Some(message) = self.queues.messages.pop() {
                self.take(message);
            }
            if stops {
                break;
            }
            if flushed.elapsed() > FLUSH {
                self.write(Writer::flush);
                flushed = Instant::now();
            }
            std::thread::park_timeout(LOOK);
        }
        while !self.open.is_empty() {
            self.write_first();
        }
        self.note_missing(self.queues.missing.swap(0, Relaxed));
        if let Some(writer) = self.writer.take() {
            let ended = writer.finish();
            self.heed(ended.map(drop));
        }
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Started { minibatch, table, announced, observed, stats, list, missing } => {
                if missing > 0 {
                    // Those before it keep their place before the gap.
                    self.write_until(minibatch);
                    self.note_missing(missing);
                }
                self.open.push_back(Open { minibatch, table, announced, observed, stats, list, done: None });
                if self.open.len() > OPEN_MAX {
                    self.write_first();
                }
            }
            Message::Done { minibatch, step, stall, overlapped } => {
                let open = self.open.iter_mut().find(|open| open.minibatch == minibatch);
                if let Some(open) = open {
                    open.done = Some((step, stall, overlapped));
                }
                self.write_done();
            }
            Message::EpochEnd { after } => {
                // What was started before is of this epoch, whether anybody has waited for it or not.
                after.inspect(|&after| self.write_until(after + 1));
                self.write(|writer| writer.event(&Event::EpochEnd));
            }
        }
    }

    /// Writes from the first on what is over.
    fn write_done(&mut self) {
        while self.open.front().is_some_and(|open| open.done.is_some()) {
            self.write_first();
        }
    }

    /// Writes what was started before this minibatch, over or not.
    fn write_until(&mut self, end: u64) {
        while self.open.front().is_some_and(|open| open.minibatch < end) {
            self.write_first();
        }
    }

    fn write_first(&mut self) {
        let Some(open) = self.open.pop_front() else { return };
        let told = &mut self.told[open.table];
        let event = &mut self.event;
        event.owners.clear();
        for ((at, now), before) in (0..).zip(&open.list.owners).zip(&mut told.owners) {
            let (rows, busy) = (now.rows - before.rows, now.busy.saturating_sub(before.busy));
            *before = *now;
            if rows > 0 || !busy.is_zero() {
                event.owners.push(OwnerCost { partition: crate::PartitionId(at), rows, busy });
            }
        }
        (event.step, event.stall, event.overlapped) = open.done.unwrap_or_default();
        (event.table, event.announced, event.observed) = (open.table as u32, open.announced, open.observed);
        event.hits = open.stats.hits - told.stats.hits;
        event.demand_rows = open.stats.demand_rows - told.stats.demand_rows;
        event.prefetched_rows = open.stats.prefetched_rows - told.stats.prefetched_rows;
        told.stats = open.stats;
        let mut list = open.list;
        std::mem::swap(&mut event.nodes, &mut list.nodes);
        if let Some(writer) = &mut self.writer {
            let written = writer.minibatch(&self.event);
            self.heed(written);
        }
        std::mem::swap(&mut self.event.nodes, &mut list.nodes);
        _ = self.queues.spare.push(list);
    }

    fn write(&mut self, event: impl FnOnce(&mut Writer<BufWriter<File>>) -> Result<()>) {
        if let Some(writer) = &mut self.writer {
            let written = event(writer);
            self.heed(written);
        }
    }

    fn note_missing(&mut self, events: u64) {
        if events == 0 {
            return;
        }
        if !std::mem::replace(&mut self.warned, true) {
            let path = &self.path;
            tracing::warn!(
                "the trace {path} has gaps: its file system does not keep up with the job, which does not wait for it"
            );
        }
        self.write(|writer| writer.event(&Event::Gap { events }));
    }

    /// A file that has failed once is left as it is: it reads as cut off.
    fn heed(&mut self, written: Result<()>) {
        if let Err(cause) = written {
            tracing::warn!("recording ends: {cause}");
            self.writer = None;
        }
    }
}

#[cfg(test)]
mod tests {
    //! Goal: minibatches that the writer has no room for are left out where they were, counted, and nothing else is disturbed. Method: a
    //! writer that begins once it is too late.
    use super::*;
    use crate::trace::Reader;

    #[test]
    fn what_finds_no_room_is_a_gap_in_its_place() {
        let directory = tempfile::tempdir().unwrap();
        let prefix = directory.path().join("late");
        let header = Header { ranks: 1, tables: vec![one_table()], ..Header::default() };
        let (recorder, mut scribe) = Recorder::new(&prefix, &header).unwrap();
        let start = |node: u64| {
            let nodes = [NodeId(node)];
            let (stats, owners) =
                (TableStats { demand_rows: node, ..TableStats::default() }, &[OwnerLoad::default(); 2]);
            let started = Started { table: 0, nodes: &nodes, room: 1, announced: None, observed: true, stats, owners };
            let minibatch = recorder.handle_started(&started);
            recorder.handle_waited(minibatch, false, Duration::ZERO, Duration::from_millis(1));
            minibatch.is_some()
        };
        let kept = (0..200).filter(|&node| start(node)).count() as u64;
        assert_eq!(kept, LISTS as u64);
        while let Some(message) = scribe.queues.messages.pop() {
            scribe.take(message);
        }
        assert!(start(200));
        recorder.mark_epoch_end(Duration::from_millis(2));
        scribe.queues.stop.store(true, Release);
        scribe.run();
        let events: Vec<Event> = Reader::open(&file_of(&prefix, header.rank)).unwrap().collect::<Result<_>>().unwrap();
        let gap = events.iter().position(|event| matches!(event, Event::Gap { .. })).unwrap();
        assert_eq!((gap as u64, &events[gap]), (kept, &Event::Gap { events: 200 - kept }));
        assert_eq!(events.len() as u64, kept + 3, "a gap, a minibatch and an epoch's end follow");
        let Event::Minibatch(last) = &events[gap + 1] else { panic!("{:?}", events[gap + 1]) };
        assert_eq!((last.nodes[0], last.demand_rows), (NodeId(200), 200 - (kept - 1)));
    }

    fn one_table() -> crate::trace::TraceTable {
        let book = crate::PartitionBook::from_starts(vec![0, 0, 1000]).unwrap();
        let spec = crate::TableSpec::new(crate::TableId(0), book, crate::PartitionId(0), 8);
        crate::trace::TraceTable::new(&spec, vec![None, Some(crate::Rank(0))], 0)
    }
}
