//! One rank: its engine, its loop, its record.
//!
//! A step waits for its rows, starts the next minibatch's gather, computes, averages gradients with all ranks in rank order, and updates. So
//! the numbers that training sees are the same whatever keeps or moves the rows, and each part of a step is timed where it happens.

use super::job::{Job, Order, Said, TABLE};
use super::loader::{Gather, Loader};
use super::warm;
use crate::graph::{Prepared, Split};
use crate::model::{GraphSage, ModelShape};
use crate::peak::peak_bytes;
use crate::progress::{Event, Stage};
use crate::record::{Decisions, RankRecord, Score, Step};
use crate::sampler::{EpochOrder, Minibatch, Position, Sampler, share_of, steps_per_epoch};
use crate::setup::{ANSWER, Asked};
use anyhow::{Context, Result, ensure};
use rudder::bootstrap::{Bootstrap, TcpBootstrap, UniqueId};
use rudder::controller::{JobFacts, Observation, RuntimeConfig};
use rudder::memory::Rows;
use rudder::trace::StepTimes;
use rudder::{Config, Engine, NodeId, PartitionId, Rank, TableSpec};
use std::io::{Read, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Orders are a few hundred bytes.
const ORDER_BYTES_MAX: u64 = 1 << 20;
/// Progress is said no more often than this.
const SAY_EVERY: Duration = Duration::from_millis(100);

/// `rudder rank`: follows the orders on standard input.
///
/// # Errors
/// The orders make no sense, or the run fails.
pub fn run_from_stdin() -> Result<()> {
    // A parent that was killed cannot stop its ranks: the kernel does.
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
        .context("asking to end with the parent")?;
    let mut text = Vec::new();
    std::io::stdin().take(ORDER_BYTES_MAX).read_to_end(&mut text).context("reading orders")?;
    let order: Order = serde_json::from_slice(&text)
        .context("these are no orders: `rudder rank` is started by `rudder train`, not by hand")?;
    let id = match &order.unique_id {
        Some(id) => id.parse()?,
        None => {
            let id = UniqueId::create(None)?;
            say(&Said::UniqueId(id.to_hex()));
            id
        }
    };
    let (rank, job) = (Rank(order.rank), &order.job);
    let bootstrap = Arc::new(TcpBootstrap::join(&id, rank, job.ranks, job.patience())?);
    let mut tell = |event: Event| {
        if rank.0 == 0 {
            say(&Said::Progress(event));
        }
    };
    let record = train(job, bootstrap, &mut tell)?;
    std::fs::write(&order.record, serde_json::to_vec(&record)?)
        .with_context(|| format!("writing {}", order.record.display()))
}

/// A line for the parent; one that has gone needs none.
fn say(said: &Said) {
    if let Ok(line) = serde_json::to_string(said) {
        let mut out = std::io::stdout().lock();
        let _ = writeln!(out, "{line}").and_then(|()| out.flush());
    }
}

/// Trains one set-up as one rank of a job, and returns what was measured. Collective.
///
/// # Errors
/// The graph does not fit the job, the engine does not start, or rows or other ranks are lost.
pub fn train(job: &Job, bootstrap: Arc<dyn Bootstrap>, tell: &mut dyn FnMut(Event)) -> Result<RankRecord> {
    let rank = bootstrap.rank();
    tell(Event { stage: Stage::Starting, done: 0, of: 0 });
    let graph = Prepared::open(&job.graph)?;
    let partitions = graph.book().partitions();
    ensure!(partitions == job.partitions(), "the graph has {partitions} partitions, the job {}", job.partitions());
    graph.verify_features(job.partition(rank))?;
    let order = order(job, &graph, rank)?;
    let began = Instant::now();
    let engine = start_engine(job, &graph, order.steps(), bootstrap.clone())?;
    let model_cpu_s = warm::model(job, &facts(job, &graph, rank, &engine, order.steps())?)?.as_secs_f64();
    engine.wait_idle(job.patience())?;
    bootstrap.barrier(job.patience())?;
    let shape =
        ModelShape { input: graph.width(), hidden: job.hidden, classes: graph.classes(), layers: job.fanout.len() };
    let mut trainer = Trainer {
        job,
        graph: &graph,
        engine: &engine,
        bootstrap: &*bootstrap,
        model: GraphSage::new(shape, job.learning_rate as f32, job.seed)?,
        gradients: Vec::new(),
        message: Vec::new(),
        observations: Vec::new(),
        record: RankRecord {
            rank: rank.0,
            start_s: began.elapsed().as_secs_f64(),
            decisions: Decisions { model_cpu_s, ..Decisions::default() },
            ..RankRecord::default()
        },
    };
    trainer.epochs(order, tell)?;
    trainer.evaluate(tell)?;
    let record = trainer.finish()?;
    bootstrap.barrier(job.patience())?;
    engine.shutdown()?;
    Ok(record)
}

/// What the engine tells the controller of the job.
fn facts(job: &Job, graph: &Prepared, rank: Rank, engine: &Engine, steps: u64) -> Result<JobFacts> {
    let partition = job.partition(rank);
    Ok(JobFacts {
        nodes: graph.book().nodes(),
        edges: graph.topology().arcs() as u64,
        partitions: graph.book().partitions(),
        partition: partition.0,
        halo_nodes: graph.halo(partition).len() as u64,
        slots: engine.stats(TABLE)?.slots.into(),
        batch: job.batch as u64,
        minibatches: steps * u64::from(job.epochs),
        changes: Vec::new(),
    })
}

/// The order of this rank's training nodes.
fn order(job: &Job, graph: &Prepared, rank: Rank) -> Result<EpochOrder> {
    let nodes_of = |rank: Rank| {
        let (share, shares) = job.share(rank);
        share_of(&graph.nodes(job.partition(rank), Split::Train), share, shares)
    };
    let steps = steps_per_epoch((0..job.ranks).map(|rank| nodes_of(Rank(rank)).len()), job.batch);
    EpochOrder::new(nodes_of(rank), job.batch, steps, job.seed, rank)
}

fn start_engine(job: &Job, graph: &Prepared, steps: u64, bootstrap: Arc<dyn Bootstrap>) -> Result<Engine> {
    let partition = job.partition(bootstrap.rank());
    let halo: Vec<NodeId> = graph.halo(partition).iter().map(|&node| NodeId(node.into())).collect();
    let degree = graph.halo(partition).iter().map(|&node| graph.topology().degree(node) as u32).collect();
    let features = graph.features(partition);
    let book = graph.book().clone();
    let spec = TableSpec {
        halo,
        degree,
        edges: graph.topology().arcs() as u64,
        ..TableSpec::new(TABLE, book, partition, graph.width() * size_of::<f32>())
    };
    let engine = Engine::builder(config(job, graph, partition, steps)?, bootstrap)
        .table(spec, |bytes| bytes.copy_from_slice(bytemuck::cast_slice(features)));
    Ok(engine.start()?)
}

fn config(job: &Job, graph: &Prepared, partition: PartitionId, steps: u64) -> Result<Config> {
    // A minibatch has at most all nodes, and at most what its fan-outs can reach.
    let reach = job.fanout.iter().fold(job.batch, |reach, fanout| reach.saturating_mul(fanout + 1));
    let asked =
        Asked { model: job.model.as_deref(), classifier: job.classifier.as_deref(), pilot: job.pilot.as_deref() };
    let (policy, controller) = job.setup.configure(&job.controls, asked, job.seed)?;
    Ok(Config {
        transport: job.transport.clone(),
        buffer: job.buffer,
        policy,
        controller,
        controller_bounds: RuntimeConfig { decision_deadline: ANSWER, ..RuntimeConfig::default() },
        share_buffer: !job.private_buffers,
        host: job.partitions_are_hosts.then(|| format!("host-{}", partition.0)),
        listen: job.listen,
        link: job.link,
        // One gather computes while the next one flies.
        rows_buffers: 2,
        rows_max: reach.min(graph.topology().nodes()),
        collective_timeout: job.patience(),
        batch: job.batch as u64,
        minibatches: steps * u64::from(job.epochs),
        trace: job.trace.clone(),
        ..Config::default()
    })
}

struct Trainer<'a> {
    job: &'a Job,
    graph: &'a Prepared,
    engine: &'a Engine,
    bootstrap: &'a dyn Bootstrap,
    model: GraphSage,
    gradients: Vec<f32>,
    message: Vec<f32>,
    observations: Vec<Observation>,
    record: RankRecord,
}

impl Trainer<'_> {
    fn epochs(&mut self, order: EpochOrder, tell: &mut dyn FnMut(Event)) -> Result<()> {
        let (steps, total) = (order.steps(), order.steps() * u64::from(self.job.epochs));
        let sampler =
            Sampler::new(self.graph.topology().clone(), &self.job.fanout, self.job.seed, self.bootstrap.rank())?;
        let mut loader = Loader::new(self.engine, order, sampler, self.job.lookahead, self.job.epochs);
        let mut gather = None;
        let (mut began, mut said) = (Instant::now(), Instant::now());
        for done in 1..=total {
            self.step(&mut loader, &mut gather)?;
            if said.elapsed() >= SAY_EVERY || done == total {
                tell(Event { stage: Stage::Training, done, of: total });
                said = Instant::now();
            }
            if done % steps == 0 {
                // Every step ends with all ranks, so no barrier is needed here.
                self.engine.mark_epoch_end();
                self.record.epoch_s.push(began.elapsed().as_secs_f64());
                began = Instant::now();
            }
        }
        self.record.sample_ahead_s = loader.ahead_s;
        Ok(())
    }

    /// One minibatch. `gather` is the one that was started during the step before.
    fn step(&mut self, loader: &mut Loader, gather: &mut Option<Gather>) -> Result<()> {
        let mut step = Step::default();
        let mut lap = Lap::begin();
        let current = match gather.take() {
            Some(gather) => gather,
            None => loader.start_next()?.context("the loader ended before the epochs did")?,
        };
        step.sample_s += lap.lap();
        let (minibatch, rows) = current.wait()?;
        step.stall_s = lap.lap();
        if self.job.setup.overlaps() {
            *gather = loader.start_next()?;
            step.sample_s += lap.lap();
        }
        let loss = self.backward(&minibatch, &rows)?;
        drop(rows);
        step.compute_s = lap.lap();
        step.loss = self.average(loss, minibatch.seeds.len())?;
        check_loss(step.loss, self.record.steps.len() + 1, self.job.learning_rate)?;
        step.allreduce_s = lap.lap();
        self.model.apply(&self.gradients)?;
        step.compute_s += lap.lap();
        self.engine.mark_step(StepTimes {
            sample: Duration::from_secs_f64(step.sample_s),
            compute: Duration::from_secs_f64(step.compute_s),
            allreduce: Duration::from_secs_f64(step.allreduce_s),
        });
        loader.recycle(minibatch);
        self.observations.extend(self.engine.observations());
        self.record.steps.push(step);
        Ok(())
    }

    fn backward(&mut self, minibatch: &Minibatch, rows: &Rows) -> Result<f32> {
        self.model.loss_and_gradients(minibatch, floats(rows)?, self.graph.labels(), &mut self.gradients)
    }

    /// Averages loss and gradients over the seeds of all ranks, summed in rank order, so that every rank and every run gets the same bits.
    fn average(&mut self, loss: f32, seeds: usize) -> Result<f32> {
        self.message.clear();
        self.message.extend([seeds as f32, loss]);
        self.message.extend_from_slice(&self.gradients);
        let all = self.bootstrap.all_gather(bytemuck::cast_slice(&self.message), self.job.patience())?;
        let bytes = self.message.len() * size_of::<f32>();
        ensure!(all.iter().all(|other| other.len() == bytes), "ranks have networks of different sizes");
        let float = |bytes: &[u8]| f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        let total: f32 = all.iter().map(|other| float(other)).sum();
        self.gradients.fill(0.0);
        let mut mean = 0.0;
        for other in &all {
            let weight = float(other) / total;
            mean += weight * float(&other[4..]);
            for (sum, bytes) in self.gradients.iter_mut().zip(other[8..].chunks_exact(4)) {
                *sum += weight * float(bytes);
            }
        }
        Ok(mean)
    }

    /// Validation and test accuracy on this rank's share of its own nodes, with sampled neighbours. The buffer learns nothing from it.
    fn evaluate(&mut self, tell: &mut dyn FnMut(Event)) -> Result<()> {
        self.engine.pause(true);
        self.record.validation = self.score(Split::Validation, tell)?;
        self.record.test = self.score(Split::Test, tell)?;
        self.engine.pause(false);
        Ok(())
    }

    fn score(&self, split: Split, tell: &mut dyn FnMut(Event)) -> Result<Score> {
        let rank = self.bootstrap.rank();
        let (share, shares) = self.job.share(rank);
        let nodes = share_of(&self.graph.nodes(self.job.partition(rank), split), share, shares);
        // A stream of its own, so that validation and test do not draw alike.
        let seed = self.job.seed.wrapping_add(split as u64);
        let mut sampler = Sampler::new(self.graph.topology().clone(), &self.job.fanout, seed, rank)?;
        let mut score = Score { right: 0, asked: nodes.len() as u64 };
        let chunks = nodes.len().div_ceil(self.job.batch) as u64;
        let mut minibatch = Minibatch::default();
        for (done, seeds) in (1..).zip(nodes.chunks(self.job.batch)) {
            sampler.sample(Position::evaluation(done), seeds, &mut minibatch);
            let (sampled, rows) = Gather::start(self.engine, minibatch, None)?.wait()?;
            score.right += self.model.correct(&sampled, floats(&rows)?, self.graph.labels())? as u64;
            minibatch = sampled;
            tell(Event { stage: Stage::Evaluating, done, of: chunks });
        }
        Ok(score)
    }

    /// The record, with what the engine has counted.
    fn finish(mut self) -> Result<RankRecord> {
        let (steps, seen) = (self.record.steps.len(), self.observations.len());
        ensure!(seen == steps, "the engine observed {seen} minibatches of {steps}");
        for (step, observation) in self.record.steps.iter_mut().zip(&self.observations) {
            step.remote_nodes = observation.remote_nodes;
            step.hits = observation.hits;
            step.demand_rows = observation.demand_rows;
            step.prefetched_rows = observation.prefetched_rows;
            step.replaced_rows = observation.replaced_rows;
        }
        self.record.fill_rows = self.engine.stats(TABLE)?.pipeline.fill_rows;
        let decided = self.engine.decision_stats();
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        self.record.decisions = Decisions {
            count: decided.decisions,
            acted: decided.replace_decisions,
            fallbacks: decided.fallback_decisions,
            ms_p50: ms(decided.latency_p50),
            ms_p99: ms(decided.latency_p99),
            model_cpu_s: self.record.decisions.model_cpu_s + decided.model_cpu.as_secs_f64(),
            failure: decided.failure,
        };
        self.record.peak_bytes = peak_bytes();
        Ok(self.record)
    }
}

/// Ends a training that has diverged: nothing after it means anything, and JSON has no such numbers.
fn check_loss(loss: f32, minibatch: usize, learning_rate: f64) -> Result<()> {
    ensure!(
        loss.is_finite(),
        "the training diverged: the loss of minibatch {minibatch} is {loss}; try a --learning-rate below {learning_rate}"
    );
    Ok(())
}

/// Gathered rows as the numbers they are.
fn floats(rows: &Rows) -> Result<&[f32]> {
    bytemuck::try_cast_slice(rows.as_bytes()).map_err(|error| anyhow::anyhow!("gathered rows as floats: {error}"))
}

/// Seconds since the last look.
struct Lap(Instant);

impl Lap {
    fn begin() -> Self {
        Self(Instant::now())
    }

    fn lap(&mut self) -> f64 {
        let now = Instant::now();
        (now - std::mem::replace(&mut self.0, now)).as_secs_f64()
    }
}

#[cfg(test)]
mod tests {
    //! Goal: a training that diverges says so. Method: losses that are no numbers.

    use super::check_loss;

    #[test]
    fn a_loss_that_is_no_number_ends_the_run_by_name() {
        assert!(check_loss(2.5, 1, 0.1).is_ok());
        for loss in [f32::NAN, f32::INFINITY] {
            let error = check_loss(loss, 17, 0.5).unwrap_err().to_string();
            assert!(error.contains("minibatch 17") && error.contains("below 0.5"), "{error}");
        }
    }
}
