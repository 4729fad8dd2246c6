//! Runs a controller beside the training loop: [`observe`](ControllerRuntime::observe) and [`take_decision`](ControllerRuntime::take_decision)
//! never wait for it.
//!
//! A cheap controller runs in `take_decision` itself, so that its decisions are the same in every run. One with a model runs on a thread of its
//! own; while that thread loads too long, has failed or is late with an answer, [`Periodic`] decides, and each such turn is counted.

use super::stats::{Latencies, thread_cpu};
use super::{Controller, ControllerConfig, Decision, DecisionStats, JobFacts, Observation, Periodic};
use crate::buffer::Feed;
use crate::error::{Error, Result};
use crossbeam::queue::ArrayQueue;
use serde::{Deserialize, Serialize};
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::*};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Bounds on what a controller may cost.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RuntimeConfig {
    /// Observations that may wait for the controller; beyond it the oldest is dropped.
    pub queue: usize,
    /// Time that a model has for one decision before the fallback takes over; this and the other deadlines: an hour at most.
    #[serde(deserialize_with = "crate::config::spelled::seconds")]
    pub decision_deadline: Duration,
    /// Time that a model has to load before the fallback takes over.
    #[serde(deserialize_with = "crate::config::spelled::seconds")]
    pub load_deadline: Duration,
    /// Minibatches between replacements while the fallback decides.
    pub fallback_delta: u64,
    /// Time that a model's thread has to end at shutdown before it is left behind.
    #[serde(deserialize_with = "crate::config::spelled::seconds")]
    pub shutdown_deadline: Duration,
}

impl Default for RuntimeConfig {
    fn default() -> Self {
        Self {
            queue: 256,
            decision_deadline: Duration::from_secs(10),
            load_deadline: Duration::from_secs(60),
            fallback_delta: 16,
            shutdown_deadline: Duration::from_secs(2),
        }
    }
}

impl RuntimeConfig {
    const MAX_QUEUE: usize = 1 << 16;
    const MAX_DEADLINE: Duration = Duration::from_secs(3600);

    fn check(&self) -> Result<()> {
        if self.queue == 0 || self.queue > Self::MAX_QUEUE {
            let max = Self::MAX_QUEUE;
            return Err(Error::config(format!("controller queue of {} observations: give 1 to {max}", self.queue)));
        }
        if self.decision_deadline.is_zero() {
            return Err(Error::config("controller decision deadline of 0: every decision would be late"));
        }
        let deadlines =
            [("decision", self.decision_deadline), ("load", self.load_deadline), ("shutdown", self.shutdown_deadline)];
        for (name, deadline) in deadlines {
            if deadline > Self::MAX_DEADLINE {
                return Err(Error::config(format!("controller {name} deadline of {deadline:?}: give an hour at most")));
            }
        }
        Ok(())
    }
}

/// How a runtime ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shutdown {
    /// Everything it started has ended.
    Joined,
    /// The model's thread did not end in time, or is that of the process which this one was forked from, and was left behind: it holds its
    /// memory until its process ends.
    Detached,
}

/// A running controller.
///
/// ```
/// use rudder::controller::{ControllerConfig, ControllerRuntime, JobFacts, Observation, RuntimeConfig};
///
/// let config = ControllerConfig::Periodic { delta: 2 };
/// let runtime = ControllerRuntime::start(&config, &JobFacts::default(), &RuntimeConfig::default())?;
/// runtime.observe(&Observation { minibatch: 1, ..Default::default() });
/// assert_eq!(runtime.take_decision(), None);
/// runtime.observe(&Observation { minibatch: 2, ..Default::default() });
/// assert!(runtime.take_decision().is_some_and(|decision| decision.replace));
/// # Ok::<(), rudder::Error>(())
/// ```
#[derive(Debug)]
pub struct ControllerRuntime {
    shared: Arc<Shared>,
    mode: Mode,
    shutdown_deadline: Duration,
    /// Whose thread this is: a forked child does not have it.
    process: u32,
}

enum Mode {
    Inline(Mutex<Box<dyn Controller>>),
    Threaded(Option<JoinHandle<()>>),
}

impl std::fmt::Debug for Mode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Inline(_) => "Inline",
            Self::Threaded(_) => "Threaded",
        })
    }
}

impl ControllerRuntime {
    /// Starts the controller that `config` names. A model loads in the background: that it cannot be loaded shows in
    /// [`stats`](Self::stats), not here, and the fallback decides.
    ///
    /// The first model that runs in a process sets `CANDLE_NUM_THREADS` to 1 where it is not set: no other thread may use the environment
    /// through C (`getenv`, `setenv`, and what calls them, such as `localtime`) at the same moment. A process in which one may sets the variable
    /// itself before. A model that a service runs leaves the environment alone.
    ///
    /// # Errors
    /// A setting is out of its bounds, or the thread cannot be started.
    pub fn start(config: &ControllerConfig, facts: &JobFacts, bounds: &RuntimeConfig) -> Result<Self> {
        Self::start_watching(config, facts, bounds, None)
    }

    /// As [`start`](Self::start), with the feed of the buffer that it steers, for a controller that [watches](ControllerConfig::watches) one.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn start_watching(
        config: &ControllerConfig,
        facts: &JobFacts,
        bounds: &RuntimeConfig,
        feed: Option<Feed>,
    ) -> Result<Self> {
        if config.runs_inline() {
            return Self::inline(config.build(facts)?, bounds);
        }
        config.prepare_process();
        let (config, facts) = (config.clone(), facts.clone());
        Self::threaded(config.name(), bounds, move || match feed {
            Some(feed) => config.build_watching(&facts, feed),
            None => config.build(&facts),
        })
    }

    /// Runs a controller of one's own inside [`take_decision`](Self::take_decision): it must decide in microseconds.
    ///
    /// # Errors
    /// A setting is out of its bounds.
    pub fn inline(controller: Box<dyn Controller>, bounds: &RuntimeConfig) -> Result<Self> {
        let shared = Arc::new(Shared::new(controller.name(), bounds)?);
        Ok(Self::new(shared, Mode::Inline(Mutex::new(controller)), bounds))
    }

    /// Runs a controller of one's own, which `build` makes, on a thread of its own.
    ///
    /// # Errors
    /// A setting is out of its bounds, or the thread cannot be started.
    pub fn threaded<F>(name: &'static str, bounds: &RuntimeConfig, build: F) -> Result<Self>
    where
        F: FnOnce() -> Result<Box<dyn Controller>> + Send + 'static,
    {
        let shared = Arc::new(Shared::new(name, bounds)?);
        shared.begin(Instant::now());
        let worker = Worker { shared: Arc::clone(&shared), awaited: None };
        let thread = std::thread::Builder::new()
            .name("rudder-model".into())
            .spawn(move || worker.run(build))
            .map_err(|cause| Error::config(format!("cannot start the thread of controller {name}: {cause}")))?;
        Ok(Self::new(shared, Mode::Threaded(Some(thread)), bounds))
    }

    fn new(shared: Arc<Shared>, mode: Mode, bounds: &RuntimeConfig) -> Self {
        Self { shared, mode, shutdown_deadline: bounds.shutdown_deadline, process: std::process::id() }
    }

    /// Notes a minibatch. Never waits: where the queue is full, its oldest observation is dropped.
    pub fn observe(&self, observation: &Observation) {
        self.shared.minibatch.store(observation.minibatch, Relaxed);
        let epoch = self.shared.taken.load(Relaxed);
        let mut noted = self.shared.spent.pop().unwrap_or_default();
        noted.copy_from(observation);
        if let Some((_, oldest)) = self.shared.observations.force_push((epoch, noted)) {
            self.shared.dropped.fetch_add(1, Relaxed);
            self.shared.put_back(oldest);
        }
        if let Mode::Threaded(Some(thread)) = &self.mode {
            thread.thread().unpark();
        }
    }

    /// The decision to carry out now, if there is a new one. Never waits.
    pub fn take_decision(&self) -> Option<Decision> {
        let decision = match &self.mode {
            Mode::Inline(controller) => self.decide_inline(controller),
            Mode::Threaded(_) => self.shared.take_answer().or_else(|| self.shared.fall_back()),
        }?;
        self.shared.decisions.fetch_add(1, Relaxed);
        self.shared.replaces.fetch_add(u64::from(decision.replace), Relaxed);
        Some(decision)
    }

    /// The counts so far.
    pub fn stats(&self) -> DecisionStats {
        let shared = &self.shared;
        DecisionStats {
            controller: shared.name.into(),
            decisions: shared.decisions.load(Relaxed),
            replace_decisions: shared.replaces.load(Relaxed),
            fallback_decisions: shared.fallback_decisions.load(Relaxed),
            fallbacks: shared.fallbacks.load(Relaxed),
            dropped_observations: shared.dropped.load(Relaxed),
            skipped: shared.skipped.load(Relaxed),
            latency_p50: shared.latencies.percentile(0.5),
            latency_p99: shared.latencies.percentile(0.99),
            latency_max: shared.latencies.max(),
            load: Duration::from_nanos(shared.load_nanos.load(Relaxed)),
            model_cpu: Duration::from_nanos(shared.cpu_nanos.load(Relaxed)),
            failure: shared.failure().clone(),
        }
    }

    /// Ends the controller and waits for its thread, at most `deadline`. A thread that is stuck is left behind and reported.
    pub fn shutdown(mut self, deadline: Duration) -> Shutdown {
        self.stop(deadline)
    }

    fn decide_inline(&self, controller: &Mutex<Box<dyn Controller>>) -> Option<Decision> {
        // Another thread that is deciding right now will see these observations too.
        let mut controller = controller.try_lock().ok()?;
        let mut decided: Option<Decision> = None;
        while let Some((_, observation)) = self.shared.observations.pop() {
            let start = Instant::now();
            controller.observe(&observation);
            if let Some(next) = controller.decide() {
                self.shared.latencies.record(start.elapsed());
                decided.get_or_insert_default().merge(next);
            }
            self.shared.put_back(observation);
        }
        if decided.is_some() {
            controller.handle_taken();
        }
        decided
    }

    fn stop(&mut self, deadline: Duration) -> Shutdown {
        let Mode::Threaded(thread) = &mut self.mode else { return Shutdown::Joined };
        let Some(thread) = thread.take() else { return Shutdown::Joined };
        if std::process::id() != self.process {
            std::mem::forget(thread);
            return Shutdown::Detached;
        }
        self.shared.stop.store(true, Release);
        thread.thread().unpark();
        let until = Instant::now() + deadline.min(RuntimeConfig::MAX_DEADLINE);
        while !thread.is_finished() {
            if Instant::now() >= until {
                let controller = self.shared.name;
                tracing::warn!(controller, ?deadline, "the model's thread did not end in time and is left behind");
                return Shutdown::Detached;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        // What a panic said was noted by the thread itself.
        let _ = thread.join();
        Shutdown::Joined
    }
}

impl Drop for ControllerRuntime {
    fn drop(&mut self) {
        self.stop(self.shutdown_deadline);
    }
}

/// What both sides see.
#[derive(Debug)]
struct Shared {
    name: &'static str,
    started: Instant,
    decision_deadline: Duration,
    load_deadline: Duration,
    fallback: Periodic,
    /// Observations and how many decisions had been taken when they were made.
    observations: ArrayQueue<(u64, Observation)>,
    /// Those that the controller has seen, for the lists in them.
    spent: ArrayQueue<Observation>,
    answer: ArrayQueue<Decision>,
    taken: AtomicU64,
    minibatch: AtomicU64,
    /// 0 while the model is idle, else when it began, in nanoseconds since `started`, with [`LATE`] once it was found late.
    working: AtomicU64,
    loaded: AtomicBool,
    stop: AtomicBool,
    falls_back: AtomicBool,
    fallback_minibatch: AtomicU64,
    decisions: AtomicU64,
    replaces: AtomicU64,
    fallback_decisions: AtomicU64,
    fallbacks: AtomicU64,
    dropped: AtomicU64,
    skipped: AtomicU64,
    load_nanos: AtomicU64,
    cpu_nanos: AtomicU64,
    latencies: Latencies,
    failure: Mutex<Option<String>>,
}

const LATE: u64 = 1;

impl Shared {
    fn new(name: &'static str, bounds: &RuntimeConfig) -> Result<Self> {
        bounds.check()?;
        Ok(Self {
            name,
            started: Instant::now(),
            decision_deadline: bounds.decision_deadline,
            load_deadline: bounds.load_deadline,
            fallback: Periodic::new(bounds.fallback_delta)?,
            observations: ArrayQueue::new(bounds.queue),
            spent: ArrayQueue::new(bounds.queue),
            answer: ArrayQueue::new(1),
            taken: AtomicU64::new(0),
            minibatch: AtomicU64::new(0),
            working: AtomicU64::new(0),
            loaded: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            falls_back: AtomicBool::new(false),
            fallback_minibatch: AtomicU64::new(0),
            decisions: AtomicU64::new(0),
            replaces: AtomicU64::new(0),
            fallback_decisions: AtomicU64::new(0),
            fallbacks: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
            skipped: AtomicU64::new(0),
            load_nanos: AtomicU64::new(0),
            cpu_nanos: AtomicU64::new(0),
            latencies: Latencies::default(),
            failure: Mutex::new(None),
        })
    }

    fn failure(&self) -> MutexGuard<'_, Option<String>> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps an observation that has been seen for the next.
    fn put_back(&self, observation: Observation) {
        // There is room for all that the other queue takes; what is over is one that a thread held meanwhile.
        _ = self.spent.push(observation);
    }

    fn nanos(&self, at: Instant) -> u64 {
        at.saturating_duration_since(self.started).as_nanos() as u64
    }

    fn begin(&self, at: Instant) {
        self.working.store((self.nanos(at) & !LATE) + 2, Release);
    }

    /// Marks the model idle; true where it was found late meanwhile.
    fn end(&self) -> bool {
        self.working.swap(0, AcqRel) & LATE != 0
    }

    fn fail(&self, cause: String) {
        tracing::warn!(controller = self.name, cause, "the model does not decide; replacing periodically instead");
        *self.failure() = Some(cause);
        self.start_fallback();
    }

    fn start_fallback(&self) {
        let was_on = self.falls_back.swap(true, AcqRel);
        self.fallbacks.fetch_add(u64::from(!was_on), Relaxed);
    }

    fn take_answer(&self) -> Option<Decision> {
        let decision = self.answer.pop()?;
        self.taken.fetch_add(1, Relaxed);
        Some(decision)
    }

    fn fall_back(&self) -> Option<Decision> {
        self.notice_lateness();
        if !self.falls_back.load(Acquire) {
            return None;
        }
        let minibatch = self.minibatch.load(Relaxed);
        let due = self.fallback.is_due(minibatch) && self.fallback_minibatch.swap(minibatch, Relaxed) != minibatch;
        due.then(|| {
            self.fallback_decisions.fetch_add(1, Relaxed);
            Decision { replace: true, ..Decision::default() }
        })
    }

    fn notice_lateness(&self) {
        let working = self.working.load(Acquire);
        if working == 0 || working & LATE != 0 {
            return;
        }
        let deadline = if self.loaded.load(Acquire) { self.decision_deadline } else { self.load_deadline };
        let late = u128::from(self.nanos(Instant::now()).saturating_sub(working)) > deadline.as_nanos();
        if late && self.working.compare_exchange(working, working | LATE, AcqRel, Relaxed).is_ok() {
            self.start_fallback();
        }
    }
}

/// The model's side.
struct Worker {
    shared: Arc<Shared>,
    /// The count of taken decisions from which on observations show the last decision's effect.
    awaited: Option<u64>,
}

impl Worker {
    fn run<F: FnOnce() -> Result<Box<dyn Controller>>>(mut self, build: F) {
        let begin = Instant::now();
        let span = tracing::info_span!("load", controller = self.shared.name);
        let built = catch_unwind(AssertUnwindSafe(|| span.in_scope(build)));
        self.shared.load_nanos.store(begin.elapsed().as_nanos() as u64, Relaxed);
        self.shared.cpu_nanos.store(thread_cpu().as_nanos() as u64, Relaxed);
        let was_late = self.shared.end();
        let controller = match built {
            Ok(Ok(controller)) => controller,
            Ok(Err(cause)) => return self.shared.fail(cause.to_string()),
            Err(panic) => return self.shared.fail(format!("panicked while loading: {}", panic_text(&*panic))),
        };
        self.shared.loaded.store(true, Release);
        if was_late {
            self.shared.falls_back.store(false, Release);
        }
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| self.serve(controller))) {
            self.shared.end();
            self.shared.fail(format!("panicked: {}", panic_text(&*panic)));
        }
    }

    fn serve(&mut self, mut controller: Box<dyn Controller>) {
        while !self.shared.stop.load(Acquire) {
            let news = self.pass_observations(&mut *controller);
            if news && self.awaited.is_none() {
                self.decide(&mut *controller);
            } else if !news {
                // A missed wake-up costs this much at most.
                std::thread::park_timeout(Duration::from_millis(50));
            }
        }
    }

    fn pass_observations(&mut self, controller: &mut dyn Controller) -> bool {
        let mut news = false;
        while let Some((epoch, observation)) = self.shared.observations.pop() {
            match self.awaited {
                Some(awaited) if epoch < awaited => _ = self.shared.skipped.fetch_add(1, Relaxed),
                Some(_) => {
                    self.awaited = None;
                    controller.handle_taken();
                }
                None => {}
            }
            controller.observe(&observation);
            self.shared.put_back(observation);
            news = true;
        }
        news
    }

    fn decide(&mut self, controller: &mut dyn Controller) {
        let start = Instant::now();
        self.shared.begin(start);
        let span = tracing::info_span!("decide", controller = self.shared.name);
        let decision = span.in_scope(|| controller.decide());
        let late = self.shared.end();
        let health = controller.health();
        self.shared.cpu_nanos.store((thread_cpu() + health.remote_cpu).as_nanos() as u64, Relaxed);
        if let Some(cause) = health.failure.filter(|_| decision.is_none()) {
            self.shared.latencies.record(start.elapsed());
            return self.shared.fail(cause);
        }
        let Some(decision) = decision else { return };
        self.shared.latencies.record(start.elapsed());
        if self.shared.falls_back.swap(false, AcqRel) {
            *self.shared.failure() = None;
        }
        if late {
            // The moment it was made for has passed, and the fallback has decided meanwhile.
            return controller.handle_discarded();
        }
        self.awaited = Some(self.shared.taken.load(Relaxed) + 1);
        // The slot is free: nothing is decided before the last decision was taken.
        _ = self.shared.answer.force_push(decision);
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}
