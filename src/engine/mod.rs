//! Drives the pipeline: gathers come from the job's threads, batches go out by whichever thread drives the channel, which is mostly one
//! of its own.
//!
//! All state sits behind one lock that is never held across a post, a poll or a copy of rows: callers hold it to sort a minibatch into
//! hits and misses, the driving thread to take a batch out or to book what came back.

mod buffers;
mod driver;
mod io;
mod meeting;
mod observe;
mod recorder;
mod request;
mod spec;
mod start;

pub use request::Request;
pub use spec::TableSpec;
pub use start::EngineBuilder;

use crate::bootstrap::Bootstrap;
use crate::buffer::BufferCounters;
use crate::config::Config;
use crate::controller::{ControllerRuntime, Decision, DecisionStats, Observation};
use crate::error::{Error, Result};
use crate::host::Reader;
use crate::id::{NodeId, StreamId, TableId};
use crate::memory::{FeatureTable, Region, RegisteredRows, Rows, RowsPool, WeakRegisteredRows, copy};
use crate::pipeline::{CopyPlan, Pipeline, RequestId, StartOptions, TableStats, Ticket};
use crate::placement::Placement;
use crate::telemetry::Listener;
use crate::trace::StepTimes;
use crate::transport::{Destination, MappedRegion, Transport};
use driver::{Driver, Turns};
use recorder::{Recorder, Started};
use serde::{Deserialize, Serialize};
use std::any::Any;
use std::collections::VecDeque;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Counts of one table since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Stats {
    /// What the pipeline counts.
    pub pipeline: TableStats,
    /// What the buffer counts.
    pub buffer: BufferCounters,
    /// Slots of the buffer.
    pub slots: u32,
    /// Bytes of the slots and of all that is kept about them.
    pub buffer_bytes: u64,
}

/// Memory of one table, as the copying threads see it.
struct TableMemory {
    row_bytes: usize,
    version: u64,
    // Field order is load-bearing: the channel is gone by the time these are dropped, and a region deregisters before it frees.
    slots: Option<Region>,
    mapped: Vec<Option<MappedRegion>>,
    local: FeatureTable,
    /// The slots of the host's other ranks, where they share one buffer.
    neighbours: Option<Reader>,
    /// Bytes of memory that this takes beside the slots.
    sharing_bytes: u64,
    pool: OnceLock<RowsPool>,
}

struct State {
    pipeline: Pipeline,
    /// By request index: the rows that a request holds, and where they are.
    rows: Vec<Option<Rows>>,
    destinations: Vec<Option<(RequestId, Destination)>>,
    plans: Vec<CopyPlan>,
    observations: VecDeque<Observation>,
    paused: bool,
    closed: bool,
}

struct Shared {
    config: Config,
    state: Mutex<State>,
    changed: Condvar,
    // Before all memory: a channel must be gone by the time that is.
    driver: Driver,
    tables: Vec<TableMemory>,
    placement: Placement,
    /// What the caller has registered, to find rows in it by their address.
    registered: Mutex<Vec<WeakRegisteredRows>>,
    staging: Option<Region>,
    staging_stride: usize,
    can_fence: bool,
    controller: ControllerRuntime,
    recorder: Option<Recorder>,
    stall_ns: AtomicU64,
    stop: AtomicBool,
    io_ended: AtomicBool,
    /// Why the engine has ended without being told to.
    failure: OnceLock<String>,
    epoch: Instant,
    process: u32,
    // Last: everything above may refer to what it registered.
    transport: Arc<dyn Transport>,
}

impl State {
    /// Where the rows of a request that is not collected lie.
    fn destination(&self, id: RequestId) -> Option<Destination> {
        let held = self.destinations.get(id.index()).copied().flatten();
        held.filter(|&(holder, _)| holder == id).map(|(_, destination)| destination)
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic under the lock, in a turn of I/O, closes the engine: what is read after it is refused by `closed`.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Duration {
        self.epoch.elapsed()
    }

    /// A forked child owns none of our threads, devices and peers.
    fn check_process(&self) -> Result<()> {
        if std::process::id() == self.process { Ok(()) } else { Err(Error::Forked) }
    }

    /// Passes an observation on; with something to steer, what has been decided by now.
    fn decide(
        &self,
        observations: &mut VecDeque<Observation>,
        observation: &mut Observation,
        steers: bool,
    ) -> Decision {
        observation.minibatches = self.config.minibatches;
        observation.stall = Duration::from_nanos(self.stall_ns.swap(0, Ordering::Relaxed));
        if observations.len() == self.config.observations {
            observations.pop_front();
        }
        let cohort_misses = observation.cohort_misses.clone();
        observations.push_back(Observation { cohort_misses, owners: Vec::new(), ..*observation });
        self.controller.observe(observation);
        if steers { self.controller.take_decision().unwrap_or_default() } else { Decision::default() }
    }

    /// Copies what a plan names to the request's rows.
    fn copy_plan(&self, table: usize, plan: &mut CopyPlan, to: Destination) {
        let memory = &self.tables[table];
        let gather = |from: *const u8, list: &crate::pipeline::RowList| {
            // SAFETY: the pipeline names rows of the table only (ids were checked against the book, slots against the buffer) and
            // places below the request's rows. The sources are registered memory held by `self`; pinned slots are not written
            // before `handle_plan_done`; the destination belongs to the request, and no get in flight has these places.
            unsafe { copy::gather(from, memory.row_bytes, &list.rows, &list.places, to.base, to.stride) }
        };
        gather(memory.local.region().memory().base(), &plan.local);
        for (list, mapped) in plan.mapped.iter().zip(&memory.mapped) {
            if let Some(mapped) = mapped {
                gather(mapped.memory.base(), list);
            }
        }
        if let Some(slots) = &memory.slots {
            gather(slots.memory().base(), &plan.ready);
        }
        if let Some(neighbours) = &memory.neighbours {
            // SAFETY: as above, of the destination.
            unsafe { neighbours.copy(&mut plan.seen, to) };
        }
    }
}

/// The library's heart: one a process, shared by its threads.
///
/// ```
/// use rudder::bootstrap::local;
/// use rudder::{Config, Engine, NodeId, PartitionBook, PartitionId, TableId, TableSpec};
/// use std::sync::Arc;
///
/// let bootstrap = Arc::new(local::ranks(1).remove(0));
/// let book = PartitionBook::from_starts(vec![0, 3])?;
/// let spec = TableSpec::new(TableId(0), book, PartitionId(0), 4);
/// let engine = Engine::builder(Config::default(), bootstrap)
///     .table(spec, |rows| rows.copy_from_slice(b"aaaabbbbcccc"))
///     .start()?;
/// let mut rows = [0; 8];
/// engine.gather(TableId(0), &[NodeId(2), NodeId(0)], None, &mut rows)?;
/// assert_eq!(&rows, b"ccccaaaa");
/// engine.shutdown()?;
/// # Ok::<(), rudder::Error>(())
/// ```
pub struct Engine {
    shared: Arc<Shared>,
    bootstrap: Arc<dyn Bootstrap>,
    /// The I/O thread, until the engine is dropped.
    io: Option<JoinHandle<()>>,
    /// Answers those who watch, where any may.
    metrics: Option<Listener>,
}

impl Engine {
    /// Begins the collective start-up of a job's engines.
    pub fn builder<'a>(config: Config, bootstrap: Arc<dyn Bootstrap>) -> EngineBuilder<'a> {
        EngineBuilder::new(config, bootstrap)
    }

    /// Says that a minibatch of these nodes will be gathered from these tables, so that its rows can be fetched ahead. The window reaches 64
    /// announcements back: a ticket that is held for longer keeps new ones out, whichever stream they are of.
    ///
    /// ```
    /// use rudder::bootstrap::{Bootstrap, local};
    /// use rudder::buffer::PolicyConfig;
    /// use rudder::{BufferSize, Config, Engine, NodeId, PartitionBook, PartitionId, Result, StreamId, TableId, TableSpec};
    /// use std::sync::Arc;
    /// use std::time::Duration;
    ///
    /// const TABLE: TableId = TableId(0);
    ///
    /// /// One of two ranks, each of which owns a row and keeps the other's.
    /// fn rank(bootstrap: local::LocalBootstrap) -> Result<()> {
    ///     let (own, other) = (bootstrap.rank().0, 1 - bootstrap.rank().0);
    ///     let wanted = [NodeId(other.into())];
    ///     let book = PartitionBook::from_starts(vec![0, 1, 2])?;
    ///     let spec = TableSpec { halo: wanted.to_vec(), ..TableSpec::new(TABLE, book, PartitionId(own), 4) };
    ///     let (policy, buffer) = (PolicyConfig::named("window")?, BufferSize::Halo(1.0));
    ///     // As if on two hosts: rows of one host need not travel.
    ///     let config = Config { map_host_rows: false, policy, buffer, ..Config::default() };
    ///     let engine = Engine::builder(config, Arc::new(bootstrap)).table(spec, |row| row.fill(own as u8)).start()?;
    ///
    ///     let ticket = engine.announce(StreamId(0), &[TABLE], &wanted)?;
    ///     engine.wait_idle(Duration::from_secs(10))?;
    ///     let mut row = [9; 4];
    ///     engine.gather(TABLE, &wanted, Some(ticket), &mut row)?;
    ///     assert_eq!(row, [other as u8; 4]);
    ///     let counts = engine.stats(TABLE)?.pipeline;
    ///     assert_eq!((counts.prefetched_rows, counts.hits, counts.demand_rows), (1, 1, 0));
    ///     // A ticket serves once, and one that is not going to be gathered is taken back.
    ///     assert!(engine.gather(TABLE, &wanted, Some(ticket), &mut row).is_err());
    ///     engine.forget(engine.announce(StreamId(0), &[TABLE], &wanted)?);
    ///     engine.shutdown()
    /// }
    ///
    /// let ranks: Vec<_> = local::ranks(2).into_iter().map(|place| std::thread::spawn(move || rank(place))).collect();
    /// ranks.into_iter().for_each(|rank| rank.join().unwrap().unwrap());
    /// ```
    ///
    /// # Errors
    /// A node outside a table; too many minibatches or ids announced already. Gathering without a ticket is always right, only slower.
    pub fn announce(&self, stream: StreamId, tables: &[TableId], nodes: &[NodeId]) -> Result<Ticket> {
        let shared = &*self.shared;
        shared.check_process()?;
        let ticket = {
            let mut state = shared.lock();
            if state.closed {
                return Err(Error::Closed);
            }
            state.pipeline.announce(stream, tables, nodes)?
        };
        shared.driver.wake();
        Ok(ticket)
    }

    /// Takes an announcement back: a loop that ends early forgets the tickets it holds.
    pub fn forget(&self, ticket: Ticket) {
        if self.shared.check_process().is_ok() {
            self.shared.lock().pipeline.forget(ticket);
        }
    }

    /// Takes back all that a stream has announced and not gathered: a loop that breaks off need not know its tickets.
    pub fn forget_stream(&self, stream: StreamId) {
        if self.shared.check_process().is_ok() {
            self.shared.lock().pipeline.forget_stream(stream);
        }
    }

    /// Starts a gather of `nodes` into `rows`, in the order of `nodes`; several may be open at once. The request holds the rows until it is
    /// over; dropping it aborts.
    ///
    /// ```
    /// # use rudder::bootstrap::local;
    /// # use rudder::{Config, Engine, NodeId, PartitionBook, PartitionId, TableId, TableSpec};
    /// # use std::sync::Arc;
    /// # const TABLE: TableId = TableId(0);
    /// # let spec = TableSpec::new(TABLE, PartitionBook::from_starts(vec![0, 3])?, PartitionId(0), 4);
    /// # let engine = Engine::builder(Config { rows_buffers: 1, ..Config::default() }, Arc::new(local::ranks(1).remove(0)))
    /// #     .table(spec, |rows| rows.copy_from_slice(b"aaaabbbbcccc"))
    /// #     .start()?;
    /// let request = engine.start(TABLE, &[NodeId(2), NodeId(0)], None, engine.rows(TABLE, 2)?)?;
    /// // What is computed here overlaps with the gather.
    /// let rows = request.wait()?;
    /// assert_eq!(rows.as_bytes(), b"ccccaaaa");
    /// // The pool has one buffer here, which comes back when its rows are dropped.
    /// assert!(engine.rows(TABLE, 2).is_err());
    /// drop(rows);
    /// assert!(engine.rows(TABLE, 2).is_ok());
    /// # engine.shutdown()?;
    /// # Ok::<(), rudder::Error>(())
    /// ```
    ///
    /// # Errors
    /// A node outside the table, rows of another shape, a ticket that names other nodes or was used, too many open requests.
    pub fn start(&self, table: TableId, nodes: &[NodeId], ticket: Option<Ticket>, rows: Rows) -> Result<Request> {
        self.start_with(table, nodes, ticket, &mut Some(rows))
    }

    /// As [`start`](Engine::start), which takes the rows only where it succeeds.
    pub(crate) fn start_with(
        &self,
        table: TableId,
        nodes: &[NodeId],
        ticket: Option<Ticket>,
        lent: &mut Option<Rows>,
    ) -> Result<Request> {
        self.start_by(table, nodes, ticket, lent, None)
    }

    /// As [`start_with`](Engine::start_with), by a caller that drives the channel itself, where `turns` are given.
    fn start_by(
        &self,
        table: TableId,
        nodes: &[NodeId],
        ticket: Option<Ticket>,
        lent: &mut Option<Rows>,
        mut turns: Option<&mut Turns<'_>>,
    ) -> Result<Request> {
        let shared = &self.shared;
        shared.check_process()?;
        let Some(rows) = lent else { return Err(Error::argument("no rows to gather into")) };
        if shared.staging.is_some() {
            rows.find_registration(&shared.registered.lock().unwrap_or_else(PoisonError::into_inner));
        }
        let destination = rows.destination();
        let mut state = shared.lock();
        if state.closed {
            return Err(Error::Closed);
        }
        let at = state.pipeline.table(table)?;
        let row_bytes = shared.tables[at].row_bytes;
        if rows.rows() != nodes.len() || rows.row_bytes() != row_bytes {
            return Err(Error::argument(format!(
                "{} nodes of {row_bytes} bytes each asked for into {} rows of {} bytes",
                nodes.len(),
                rows.rows(),
                rows.row_bytes()
            )));
        }
        let now = shared.now();
        let State { pipeline, plans, observations, paused, .. } = &mut *state;
        let mut plan = plans.pop().unwrap_or_else(|| pipeline.plan());
        let observed = !*paused;
        let options = StartOptions {
            ticket,
            observed,
            timeout: shared.config.gather_timeout,
            direct: shared.can_fence && rows.is_registered(),
        };
        let started = pipeline.start(now, at, nodes, options, &mut plan, &mut |observation, steers| {
            shared.decide(observations, observation, steers)
        });
        let id = match started {
            Ok(id) => id,
            Err(error) => {
                plans.push(plan);
                return Err(error);
            }
        };
        if state.rows.len() <= id.index() {
            state.rows.resize_with(id.index() + 1, || None);
            state.destinations.resize(id.index() + 1, None);
        }
        let minibatch = shared.recorder.as_ref().and_then(|recorder| {
            let (wanted, announced) = state.pipeline.wanted();
            let (stats, owners) = (state.pipeline.stats(at), state.pipeline.owners(at));
            let (nodes, room) = (wanted, nodes.len());
            recorder.handle_started(&Started { table: at, nodes, room, announced, observed, stats, owners })
        });
        state.rows[id.index()] = lent.take();
        state.destinations[id.index()] = Some((id, destination));
        drop(state);
        let mut post = || match &mut turns {
            Some(turns) => turns.post(),
            None => shared.driver.wake(),
        };
        post();
        shared.copy_plan(at, &mut plan, destination);
        let mut state = shared.lock();
        let more = state.pipeline.handle_plan_done(&plan);
        state.plans.push(plan);
        drop(state);
        if more {
            post();
        }
        Ok(Request::new(shared.clone(), id, observed, now, minibatch))
    }

    /// Gathers into the caller's memory and waits: `rows` takes `nodes.len()` rows, in order.
    ///
    /// # Errors
    /// As [`start`](Engine::start) and [`Request::wait`]; `rows` is undefined then, and nothing will write to it any more.
    pub fn gather(&self, table: TableId, nodes: &[NodeId], ticket: Option<Ticket>, rows: &mut [u8]) -> Result<()> {
        let base = NonNull::new(rows.as_mut_ptr()).expect("a slice is never at address 0");
        // SAFETY: the slice is borrowed exclusively for this call.
        unsafe { self.gather_into(table, nodes, ticket, base, rows.len()) }
    }

    /// As [`gather`](Engine::gather), into memory that need not hold anything yet.
    ///
    /// # Safety
    /// `base..base + bytes` is valid for writes and nobody else touches it during the call.
    pub(crate) unsafe fn gather_into(
        &self,
        table: TableId,
        nodes: &[NodeId],
        ticket: Option<Ticket>,
        base: NonNull<u8>,
        bytes: usize,
    ) -> Result<()> {
        let row_bytes = self.row_bytes(table)?;
        if nodes.len().checked_mul(row_bytes) != Some(bytes) {
            return Err(Error::argument(format!(
                "{} nodes of {row_bytes} bytes each do not fit {bytes} bytes",
                nodes.len()
            )));
        }
        // SAFETY: the caller lends the memory for this call, which returns only when the request is over; `Request::wait` and its drop
        // end the process rather than return while a transport may still write. Nobody reads it through these rows.
        let rows = unsafe { Rows::borrowed(base, nodes.len(), row_bytes, self.shared.clone()) };
        let mut turns = Turns::take_for(&self.shared, nodes.len());
        let request = self.start_by(table, nodes, ticket, &mut Some(rows), turns.as_mut())?;
        request.collect_by(turns).0
    }

    /// A row buffer of `rows` rows of a table, from a pool that is allocated at the first call.
    ///
    /// # Errors
    /// No table of that name, more rows than `rows_max`, or all `rows_buffers` are out.
    pub fn rows(&self, table: TableId, rows: usize) -> Result<Rows> {
        self.shared.check_process()?;
        let at = self.shared.lock().pipeline.table(table)?;
        let memory = &self.shared.tables[at];
        if memory.pool.get().is_none() {
            let Config { rows_max, rows_buffers, .. } = self.shared.config;
            let transport = &*self.shared.transport;
            let new = || RowsPool::new(transport, memory.row_bytes, rows_max, rows_buffers);
            let pool = self.shared.placement.near(new)?;
            // Another thread may have been first; its pool is as good.
            let _ = memory.pool.set(pool);
        }
        memory.pool.get().expect("it was just set").take(rows)
    }

    /// Registers `bytes` bytes of the caller's own memory at `base`, kept alive by `keep_alive`, so that gathers can land in it: rows are
    /// taken from it by [`RegisteredRows::rows`] and given to [`start`](Engine::start), or lie in it as they are given to
    /// [`gather`](Engine::gather). A request holds its rows, and with them the
    /// registration and `keep_alive`, until nothing will write to them any more. Register once and take rows from it many times:
    /// a registration pins its pages, which costs more than a gather.
    ///
    /// ```
    /// # use rudder::bootstrap::local;
    /// # use rudder::{Config, Engine, NodeId, PartitionBook, PartitionId, TableId, TableSpec};
    /// # use std::sync::Arc;
    /// # const TABLE: TableId = TableId(0);
    /// # let spec = TableSpec::new(TABLE, PartitionBook::from_starts(vec![0, 3])?, PartitionId(0), 4);
    /// # let engine = Engine::builder(Config::default(), Arc::new(local::ranks(1).remove(0)))
    /// #     .table(spec, |rows| rows.copy_from_slice(b"aaaabbbbcccc"))
    /// #     .start()?;
    /// let mut memory = vec![0; 16];
    /// let base = std::ptr::NonNull::new(memory.as_mut_ptr()).expect("it has bytes");
    /// // SAFETY: the vector is moved to where nobody touches it, and lives as long as the registration.
    /// let registered = unsafe { engine.register_rows(base, memory.len(), Arc::new(memory)) }?;
    /// let rows = engine.start(TABLE, &[NodeId(1), NodeId(2)], None, registered.rows(8, 2, 4)?)?.wait()?;
    /// assert_eq!((rows.as_ptr(), rows.as_bytes()), (base.as_ptr().wrapping_add(8), &b"bbbbcccc"[..]));
    /// # drop(rows);
    /// # engine.shutdown()?;
    /// # Ok::<(), rudder::Error>(())
    /// ```
    ///
    /// # Errors
    /// The transport cannot register it, or a limit on pinned bytes forbids it; the message says what to do.
    ///
    /// # Safety
    /// `base..base + bytes` is initialised and valid for reads and writes as long as `keep_alive` lives, and nobody else touches the
    /// bytes of rows that are taken from it, as long as these or a request that holds them live.
    pub unsafe fn register_rows(
        &self,
        base: NonNull<u8>,
        bytes: usize,
        keep_alive: Arc<dyn Any + Send + Sync>,
    ) -> Result<RegisteredRows> {
        self.shared.check_process()?;
        let _span = tracing::info_span!("register", bytes).entered();
        // SAFETY: the caller's promise, passed on.
        let rows = unsafe { RegisteredRows::new(&*self.shared.transport, base, bytes, keep_alive) }?;
        let mut registered = self.shared.registered.lock().unwrap_or_else(PoisonError::into_inner);
        registered.retain(WeakRegisteredRows::is_alive);
        registered.push(rows.downgrade());
        Ok(rows)
    }

    /// Bytes of a row of a table.
    ///
    /// # Errors
    /// No table of that name.
    pub fn row_bytes(&self, table: TableId) -> Result<usize> {
        self.shared.check_process()?;
        let at = self.shared.lock().pipeline.table(table)?;
        Ok(self.shared.tables[at].row_bytes)
    }

    /// While paused, gathers are served but the buffer and the controller learn nothing from them: for evaluation and inference.
    pub fn pause(&self, paused: bool) {
        if self.shared.check_process().is_ok() {
            self.shared.lock().paused = paused;
        }
    }

    /// Tells the trace, where one is recorded, how the step of the minibatch that was waited for last was spent. Without it, what lies between
    /// a wait and the next is the caller's own work, all of it computing but what came before a gather that is started ahead.
    pub fn mark_step(&self, times: StepTimes) {
        if let Some(recorder) = self.recorder() {
            recorder.mark_step(times);
        }
    }

    /// Tells the trace, where one is recorded, that an epoch ends with the minibatch that was waited for last.
    pub fn mark_epoch_end(&self) {
        if let Some(recorder) = self.recorder() {
            recorder.mark_epoch_end(self.shared.now());
        }
    }

    fn recorder(&self) -> Option<&Recorder> {
        self.shared.check_process().ok().and(self.shared.recorder.as_ref())
    }

    /// Waits until nothing is on its way: the initial fill is in place, prefetches have landed.
    ///
    /// # Errors
    /// It is not so within `timeout`.
    pub fn wait_idle(&self, timeout: Duration) -> Result<()> {
        self.shared.check_process()?;
        let began = Instant::now();
        let mut state = self.shared.lock();
        while !state.pipeline.is_idle() {
            let left = timeout.saturating_sub(began.elapsed());
            if state.closed {
                return Err(Error::Closed);
            }
            if left.is_zero() {
                return Err(Error::Transport {
                    transport: self.shared.transport.name(),
                    cause: format!("rows are still on their way after {timeout:?}"),
                });
            }
            state = self.shared.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(())
    }

    /// Takes the observations of the minibatches since the last call, oldest first. What [owners](Observation::owners) have sent is not kept.
    pub fn observations(&self) -> Vec<Observation> {
        if self.shared.check_process().is_err() {
            return Vec::new();
        }
        self.shared.lock().observations.drain(..).collect()
    }

    /// Counts of a table.
    ///
    /// # Errors
    /// No table of that name.
    pub fn stats(&self, table: TableId) -> Result<Stats> {
        self.shared.check_process()?;
        let state = self.shared.lock();
        let at = state.pipeline.table(table)?;
        Ok(self.shared.stats(&state, at))
    }

    /// What the controller has decided, and what it cost.
    pub fn decision_stats(&self) -> DecisionStats {
        if self.shared.check_process().is_err() {
            return DecisionStats::default();
        }
        self.shared.controller.stats()
    }

    /// Ends the job's engines together: readers first, then the owners take their memory back.
    ///
    /// # Errors
    /// Ranks that did not come within the deadline are named; this rank's resources are freed all the same.
    pub fn shutdown(self) -> Result<()> {
        self.close()
    }

    /// As [`shutdown`](Engine::shutdown); the memory stays registered until the engine is dropped.
    pub(crate) fn close(&self) -> Result<()> {
        self.shared.check_process()?;
        self.stop();
        self.bootstrap.barrier(self.shared.config.collective_timeout)
    }

    /// Ends this rank's part at once, without the others: open requests end with [`Error::Closed`], as does every call after it.
    /// The rows stay readable to peers until the engine is dropped.
    pub fn abort(&self) {
        if self.shared.check_process().is_ok() {
            self.stop();
        }
    }

    /// Why the engine has ended by itself; `None` while it is well, and where it was shut down or aborted.
    pub fn failure(&self) -> Option<&str> {
        self.shared.failure.get().map(String::as_str)
    }

    /// The name of the transport that moves the rows.
    pub fn transport(&self) -> &'static str {
        self.shared.transport.name()
    }

    /// Ends the I/O thread; open requests end with [`Error::Closed`].
    fn stop(&self) {
        self.shared.stop.store(true, Ordering::Release);
        self.shared.driver.wake();
        let deadline = Instant::now() + driver::STOP_TIMEOUT;
        let mut state = self.shared.lock();
        while !self.shared.io_ended.load(Ordering::Acquire) && Instant::now() < deadline {
            let wait = Duration::from_millis(50);
            state = self.shared.changed.wait_timeout(state, wait).unwrap_or_else(PoisonError::into_inner).0;
        }
        drop(state);
        if !self.shared.io_ended.load(Ordering::Acquire) {
            // The thread holds all it can touch, so nothing is freed under it.
            tracing::error!("the I/O thread did not end within {:?}; its memory is leaked", driver::STOP_TIMEOUT);
        }
        self.shared.recorder.iter().for_each(Recorder::finish);
        self.write_stats();
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if self.shared.check_process().is_err() {
            // The child's copy of the descriptors and mappings belongs to the parent's peers: nothing here is ours to close.
            std::mem::forget(self.shared.clone());
            std::mem::forget(self.io.take());
            std::mem::forget(self.metrics.take());
            return;
        }
        // It takes hold of what is shared while it answers, which is to be dropped here.
        drop(self.metrics.take());
        if !self.shared.io_ended.load(Ordering::Acquire) {
            self.stop();
        }
        if self.shared.io_ended.load(Ordering::Acquire)
            && let Some(io) = self.io.take()
        {
            // It has nothing left to do but to let go of what it shares, so that the rest is dropped here and not behind the caller's back.
            let _ = io.join();
        }
    }
}
