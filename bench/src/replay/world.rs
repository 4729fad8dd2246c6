//! A job in virtual time: the pipelines and buffers of all its ranks, the links between them, and a barrier at the end of each step.
//!
//! What a rank does is what its trace says: it samples, starts gathers, computes. When rows come, and so how long it waits for them, follows
//! from the links and from what the buffer has kept. No bytes are moved, and no clock is read but to tell what a controller costs.

use super::case::Case;
use super::links::Links;
use super::traces::{Job, RankTrace, Work};
use crate::clock::thread_time;
use anyhow::{Context, Result};
use rudder::buffer::{BufferCounters, Feed, PrefetchBuffer};
use rudder::controller::{Controller, Decision, JobFacts, Observation};
use rudder::pipeline::{Copy, CopyPlan, Limits, Pipeline, RequestId, Source, StartOptions, Table, TableStats, Ticket};
use rudder::transport::{BatchId, Completion, RemoteRegion};
use rudder::{Config, Rank, StreamId};

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::time::Duration;

/// The one table of a pipeline.
const TABLE: usize = 0;
const STREAM: StreamId = StreamId(0);
/// No gather of a replay is late.
const NO_DEADLINE: Duration = Duration::from_secs(u32::MAX as u64);

/// What came of a replay.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Rows, of all ranks.
    pub stats: TableStats,
    /// Rows fetched ahead that never served.
    pub useless_rows: u64,
    /// Payload bytes.
    pub bytes: u64,
    /// Time of filling the buffers before the first step.
    pub fill: Duration,
    /// The stall of each step's slowest rank; empty where rows come at once.
    pub stalls: Vec<Duration>,
    /// Each epoch, barrier to barrier.
    pub epochs: Vec<Duration>,
    /// Decisions of all ranks that took effect, and how many of them were to replace.
    pub decisions: u64,
    /// See `decisions`.
    pub replacements: u64,
    /// Processor time of all controllers.
    pub decision_cpu: Duration,
    /// That of the decision that took longest; none without a controller.
    pub longest_decision: Option<Duration>,
}

/// What a rank does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Its buffer is filled, which no step waits for.
    Filling,
    /// It samples the minibatch of its step, and then starts its gather.
    Sampling,
    /// It waits for rows since then.
    Waiting(Duration),
    /// It samples the next minibatch, and then starts that one's gather.
    SamplingAhead,
    Computing,
    /// It waits for the other ranks.
    Ended,
    /// All ranks average their gradients.
    Averaging,
}

/// Something that happens at a moment, to a rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Happening {
    /// Rows have arrived: so many of a batch.
    Arrival(u64, u32),
    /// It is done with what it does.
    Done,
}

/// A rank's controller, and what waits to take effect.
struct Steering {
    controller: Box<dyn Controller>,
    /// What deciding takes.
    latency: Duration,
    /// A decision, and from when on it can be had.
    pending: Option<(Duration, Decision)>,
    minibatches: u64,
    stall: Duration,
    decisions: u64,
    replacements: u64,
    cpu: Duration,
    /// Of this, what the decision that took longest did.
    longest_decision: Duration,
}

impl Steering {
    /// Shows an observation; with something to steer, what is decided by now.
    fn decide(&mut self, now: Duration, observation: &mut Observation, steers: bool) -> Decision {
        let began = thread_time();
        (observation.minibatches, observation.stall) = (self.minibatches, std::mem::take(&mut self.stall));
        self.controller.observe(observation);
        if self.pending.is_none() {
            let asked = thread_time();
            self.pending = self.controller.decide().map(|decision| (now + self.latency, decision));
            self.longest_decision = self.longest_decision.max(thread_time() - asked);
        }
        let due = self.pending.take_if(|(due, _)| steers && *due <= now);
        if let Some((_, decision)) = &due {
            self.controller.handle_taken();
            self.decisions += 1;
            self.replacements += u64::from(decision.replace);
        }
        self.cpu += thread_time() - began;
        due.map(|(_, decision)| decision).unwrap_or_default()
    }
}

/// One rank.
struct Sim<'a> {
    trace: &'a RankTrace,
    pipeline: Pipeline,
    plan: CopyPlan,
    /// None where nothing decides, so that nothing need be told.
    steering: Option<Steering>,
    lookahead: usize,
    phase: Phase,
    /// Minibatches announced and started so far, with the tickets between.
    announced: usize,
    started: usize,
    tickets: VecDeque<Ticket>,
    requests: VecDeque<RequestId>,
    stall: Duration,
    copies: Vec<Copy>,
}

impl<'a> Sim<'a> {
    fn new(trace: &'a RankTrace, case: &Case, make: &Make) -> Result<Self> {
        let header = &trace.header;
        let table = &header.tables[TABLE];
        let slots = case.buffer.slots(trace)?;
        let mut buffer =
            (slots > 0).then(|| PrefetchBuffer::new(slots, &case.policy, trace.hints.clone())).transpose()?;
        let watches = case.steers() && case.controller.watches();
        let watched = buffer.as_mut().filter(|_| watches);
        let feed = watched.map(|buffer| buffer.watch(&case.policy, trace.hints.clone())).transpose()?;
        let source = |peer: &Option<Rank>| match *peer {
            Some(peer) => Source::Remote(RemoteRegion { peer, index: 0, bytes: u64::MAX }),
            None => Source::Local,
        };
        let table = Table {
            id: table.id,
            book: table.book()?,
            sources: table.peers.iter().map(source).collect(),
            spares: Vec::new(),
            row_bytes: table.row_bytes as usize,
            version: 0,
            buffer,
        };
        let Config { requests, tickets, announced_nodes, attempts, backoff, .. } = Config::default();
        let prefetch_rows_in_flight = case.in_flight.unwrap_or(header.limits.prefetch_rows_in_flight);
        let limits = Limits {
            batch_rows: header.limits.batch_rows,
            prefetch_batch_rows: header.limits.prefetch_batch_rows.min(prefetch_rows_in_flight),
            prefetch_rows_in_flight,
            staging_chunks: header.limits.staging_chunks,
            by_row: header.limits.by_row,
            requests,
            tickets,
            announced_nodes,
            attempts,
            backoff,
            transfer_timeout: NO_DEADLINE,
        };
        let facts = JobFacts { slots: slots.into(), ..header.facts.clone() };
        let steering = |controller| Steering {
            controller,
            latency: case.decision_latency,
            pending: None,
            minibatches: facts.minibatches,
            stall: Duration::ZERO,
            decisions: 0,
            replacements: 0,
            cpu: Duration::ZERO,
            longest_decision: Duration::ZERO,
        };
        let feed = feed.map(|feed| feed.assuming(case.decision_latency));
        let controller = case.steers().then(|| make(header.rank, &facts, feed));
        let steering = controller.transpose()?.map(steering);
        let pipeline = Pipeline::new(limits, vec![table]);
        Ok(Self {
            trace,
            plan: pipeline.plan(),
            pipeline,
            steering,
            lookahead: case.lookahead,
            phase: Phase::Filling,
            announced: 0,
            started: 0,
            tickets: VecDeque::new(),
            requests: VecDeque::new(),
            stall: Duration::ZERO,
            copies: Vec::new(),
        })
    }

    /// Announces up to the lookahead, and starts the next minibatch's gather.
    fn start(&mut self, now: Duration, steps: usize) -> Result<()> {
        while self.lookahead > 0 && self.announced < steps && self.announced <= self.started + self.lookahead {
            let id = self.trace.header.tables[TABLE].id;
            self.tickets.push_back(self.pipeline.announce(STREAM, &[id], self.trace.nodes(self.announced))?);
            self.announced += 1;
        }
        let options =
            StartOptions { ticket: self.tickets.pop_front(), observed: true, timeout: NO_DEADLINE, direct: false };
        let nodes = self.trace.nodes(self.started);
        let steering = &mut self.steering;
        let mut decide = |observation: &mut Observation, steers: bool| match steering {
            Some(steering) => steering.decide(now, observation, steers),
            None => Decision::default(),
        };
        let request = self.pipeline.start(now, TABLE, nodes, options, &mut self.plan, &mut decide)?;
        self.requests.push_back(request);
        self.started += 1;
        // What is in the buffer is copied before anything can have come.
        self.pipeline.handle_plan_done(&self.plan);
        Ok(())
    }

    fn handle_arrival(&mut self, now: Duration, batch: u64, rows: u32) {
        let completion = Completion { batch: BatchId(batch), first: 0, count: rows, status: Ok(()) };
        self.pipeline.handle_completions(now, &[completion], &mut self.copies);
        self.copies.clear();
        self.pipeline.handle_copied();
    }

    fn counters(&self) -> BufferCounters {
        let table = self.pipeline.tables().next();
        table.and_then(|table| table.buffer.as_ref()).map(PrefetchBuffer::counters).unwrap_or_default()
    }
}

/// All ranks.
pub struct World<'a> {
    job: &'a Job,
    /// Steps to replay.
    steps: usize,
    sims: Vec<Sim<'a>>,
    links: Links,
    happenings: BinaryHeap<Reverse<(Duration, u64, usize, Happening)>>,
    /// Happenings so far: of two at one moment, the one that was arranged first comes first.
    arranged: u64,
    step: usize,
    outcome: Outcome,
    epoch_began: Duration,
}

/// Replays a job under a case.
///
/// # Errors
/// The case does not fit the trace.
pub fn replay(job: &Job, case: &Case) -> Result<Outcome> {
    replay_steered(job, case, job.steps, &|_, facts, feed| match feed {
        Some(feed) => case.controller.build_watching(facts, feed),
        None => case.controller.build(facts),
    })
}

/// Makes the controller of a rank, of what it is told, and the feed of its buffer where the case's controller watches one.
pub type Make<'a> = dyn Fn(Rank, &JobFacts, Option<Feed>) -> rudder::Result<Box<dyn Controller>> + 'a;

/// Replays the first steps of a job with other controllers than the case's, of which it needs the same.
///
/// # Errors
/// The case does not fit the trace, or a controller cannot be made.
pub fn replay_steered(job: &Job, case: &Case, steps: usize, make: &Make) -> Result<Outcome> {
    let sims = job.ranks.iter().map(|trace| Sim::new(trace, case, make)).collect::<Result<Vec<_>>>()?;
    let ranks = job.ranks[0].header.ranks as usize;
    let mut world = World {
        job,
        steps,
        sims,
        links: Links::new(case.link, case.slow, case.egress, ranks),
        happenings: BinaryHeap::new(),
        arranged: 0,
        step: 0,
        outcome: Outcome::default(),
        epoch_began: Duration::ZERO,
    };
    world.fill()?;
    world.run()?;
    Ok(world.finish())
}

impl World<'_> {
    fn arrange(&mut self, at: Duration, rank: usize, happening: Happening) {
        self.happenings.push(Reverse((at, self.arranged, rank, happening)));
        self.arranged += 1;
    }

    /// Fills the buffers, as a job does before its first step.
    fn fill(&mut self) -> Result<()> {
        for rank in 0..self.sims.len() {
            self.sims[rank].pipeline.fill();
            self.transmit(Duration::ZERO, rank);
        }
        while let Some(Reverse((now, _, rank, happening))) = self.happenings.pop() {
            self.happen(now, rank, happening)?;
            self.epoch_began = now;
        }
        self.outcome.fill = self.epoch_began;
        Ok(())
    }

    fn run(&mut self) -> Result<()> {
        (0..self.sims.len()).for_each(|rank| self.begin_step(self.epoch_began, rank));
        while let Some(Reverse((now, _, rank, happening))) = self.happenings.pop() {
            self.happen(now, rank, happening)?;
        }
        anyhow::ensure!(self.step == self.steps, "the replay has stopped in step {}", self.step);
        Ok(())
    }

    fn happen(&mut self, now: Duration, rank: usize, happening: Happening) -> Result<()> {
        match happening {
            Happening::Arrival(batch, rows) => {
                self.sims[rank].handle_arrival(now, batch, rows);
                self.transmit(now, rank);
            }
            Happening::Done => self.go_on(now, rank)?,
        }
        self.look(now, rank);
        Ok(())
    }

    /// Puts on the links what the rank's pipeline has to post.
    fn transmit(&mut self, now: Duration, rank: usize) {
        loop {
            let sim = &mut self.sims[rank];
            let Some(transmit) = sim.pipeline.poll_transmit(now) else { break };
            let (batch, rows, peer) = (transmit.id.0, transmit.rows.len(), transmit.region.peer);
            sim.pipeline.handle_posted(now, transmit, rows);
            if self.links.are_instant() {
                sim.handle_arrival(now, batch, rows as u32);
                continue;
            }
            let bytes = rows as u64 * sim.trace.row_bytes();
            let reader = sim.trace.header.rank.index();
            let arrival = self.links.arrival(now, peer.index(), reader, bytes);
            self.arrange(arrival, rank, Happening::Arrival(batch, rows as u32));
        }
    }

    /// The rank begins a step.
    fn begin_step(&mut self, now: Duration, rank: usize) {
        let step = self.step;
        let sim = &mut self.sims[rank];
        if sim.started > step {
            sim.phase = Phase::Waiting(now);
        } else {
            sim.phase = Phase::Sampling;
            let sampled = now + sim.trace.work(step).sample;
            self.arrange(sampled, rank, Happening::Done);
        }
    }

    /// The rank is done with what it did.
    fn go_on(&mut self, now: Duration, rank: usize) -> Result<()> {
        let step = self.step;
        let sim = &mut self.sims[rank];
        match sim.phase {
            Phase::Sampling => {
                sim.start(now, self.job.steps).with_context(|| format!("step {step}"))?;
                sim.phase = Phase::Waiting(now);
                self.transmit(now, rank);
            }
            Phase::SamplingAhead => {
                sim.start(now, self.job.steps).with_context(|| format!("step {step}"))?;
                sim.phase = Phase::Computing;
                let done = now + sim.trace.work(step).compute;
                self.transmit(now, rank);
                self.arrange(done, rank, Happening::Done);
            }
            Phase::Computing => {
                sim.phase = Phase::Ended;
                if self.sims.iter().all(|sim| sim.phase == Phase::Ended) {
                    self.end_step(now);
                }
            }
            Phase::Averaging => self.begin_step(now, rank),
            Phase::Filling | Phase::Waiting(_) | Phase::Ended => {}
        }
        Ok(())
    }

    /// Looks whether what the rank waits for is there.
    fn look(&mut self, now: Duration, rank: usize) {
        let (step, sim) = (self.step, &mut self.sims[rank]);
        let Phase::Waiting(since) = sim.phase else { return };
        let Some(&request) = sim.requests.front() else { return };
        if !sim.pipeline.is_over(request) {
            return;
        }
        sim.requests.pop_front();
        let (collected, _) = sim.pipeline.collect(request);
        collected.expect("no get of a replay fails");
        sim.stall = now - since;
        sim.steering.iter_mut().for_each(|steering| steering.stall += now - since);
        let Work { sample, compute, .. } = sim.trace.work(step);
        let ahead = step + 1 < self.job.steps && sim.trace.work(step + 1).overlapped;
        let busy = match (ahead, sim.started > step + 1) {
            (true, false) => {
                sim.phase = Phase::SamplingAhead;
                // The first step's time of sampling is that of two minibatches: it is over by now.
                if step > 0 && sim.trace.work(step).overlapped { sample } else { Duration::ZERO }
            }
            _ => {
                sim.phase = Phase::Computing;
                compute
            }
        };
        self.arrange(now + busy, rank, Happening::Done);
    }

    /// The last rank has ended the step: gradients are averaged, and the next one begins.
    fn end_step(&mut self, now: Duration) {
        let ends = now + self.job.allreduce(self.step);
        self.outcome.stalls.push(self.sims.iter().map(|sim| sim.stall).max().unwrap_or_default());
        self.step += 1;
        self.links.begin_step(self.step);
        if self.job.epochs.contains(&self.step) || self.step == self.steps {
            self.outcome.epochs.push(ends - self.epoch_began);
            self.epoch_began = ends;
        }
        let ranks = if self.step < self.steps { self.sims.len() } else { 0 };
        for rank in 0..ranks {
            self.sims[rank].phase = Phase::Averaging;
            self.arrange(ends, rank, Happening::Done);
        }
    }

    fn finish(mut self) -> Outcome {
        for sim in &self.sims {
            let stats = sim.pipeline.stats(TABLE);
            let sum = &mut self.outcome.stats;
            sum.minibatches += stats.minibatches;
            sum.remote_nodes += stats.remote_nodes;
            sum.hits += stats.hits;
            sum.demand_rows += stats.demand_rows;
            sum.prefetched_rows += stats.prefetched_rows;
            sum.fill_rows += stats.fill_rows;
            let rows = stats.demand_rows + stats.prefetched_rows + stats.fill_rows;
            self.outcome.bytes += rows * sim.trace.row_bytes();
            self.outcome.useless_rows += sim.counters().useless;
            if let Some(steering) = &sim.steering {
                self.outcome.decisions += steering.decisions;
                self.outcome.replacements += steering.replacements;
                self.outcome.decision_cpu += steering.cpu;
                self.outcome.longest_decision = self.outcome.longest_decision.max(Some(steering.longest_decision));
            }
        }
        self.outcome
    }
}
