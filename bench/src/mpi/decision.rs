//! How long a controller takes to decide, alone and beside what a training job does: computing on every rank, and allreduce.
//!
//! Rank 0 decides. `MPI_Get` has no part in it: the baseline is the same controller alone, in the turn before.

use super::Measured;
use super::args::{Benchmark, MpiArgs, ThreadLevel};
use super::document::{Line, Origin};
use super::traffic::Traffic;
use super::world::{Waiting, World};
use anyhow::{Result, bail, ensure};
use rudder::controller::llm::{ModelSource, ReplaceConfig};
use rudder::controller::{Controller, ControllerConfig, JobFacts, Observation};
use std::time::{Duration, Instant};

/// Minibatches of one sample of a controller that decides in less than microseconds.
const CHEAP_MINIBATCHES: u64 = 1000;
/// Of one that asks a model, for each minibatch.
const MODEL_MINIBATCHES: u64 = 1;

/// A controller, and how many minibatches make a sample of it.
pub struct Decider {
    controller: Box<dyn Controller>,
    minibatches: u64,
    seen: u64,
}

/// The controllers to time. Called before MPI starts its threads, because loading a model may write to the environment.
pub fn open(args: &MpiArgs) -> Result<Vec<Decider>> {
    let facts = JobFacts {
        nodes: 100_000,
        edges: 1_000_000,
        partitions: 4,
        partition: 0,
        halo_nodes: 25_000,
        slots: 2_500,
        batch: 1000,
        minibatches: 10_000,
        changes: Vec::new(),
    };
    let decider = |config: ControllerConfig, minibatches| {
        let controller = config.build(&facts)?;
        Ok(Decider { controller, minibatches, seen: 0 })
    };
    match &args.model {
        // The model's memory is taken once: rank 0 alone decides.
        Some(_) if rudder::bootstrap::environment()?.is_some_and(|launched| launched.rank.0 > 0) => Ok(vec![]),
        Some(model) => {
            let model = ModelSource::File(model.clone());
            Ok(vec![decider(
                ControllerConfig::LlmReplace(ReplaceConfig { model, delta: 1, ..ReplaceConfig::default() }),
                MODEL_MINIBATCHES,
            )?])
        }
        None => ["periodic:8", "analytic"].into_iter().map(|name| decider(name.parse()?, CHEAP_MINIBATCHES)).collect(),
    }
}

impl Decider {
    /// The time of a decision, or of a minibatch's part of it, in µs.
    fn decide(&mut self) -> Result<f64> {
        let begun = Instant::now();
        let mut decisions = 0;
        for _ in 0..self.minibatches {
            self.seen += 1;
            self.controller.observe(&observation(self.seen));
            if self.controller.decide().is_some() {
                self.controller.handle_taken();
                decisions += 1;
            }
        }
        let us = begun.elapsed().as_secs_f64() * 1e6 / self.minibatches as f64;
        if let Some(cause) = self.controller.health().failure {
            bail!("{} could not decide: {cause}", self.controller.name());
        }
        let asked = self.minibatches == MODEL_MINIBATCHES;
        ensure!(
            !asked || decisions > 0,
            "{} did not ask its model for minibatch {}",
            self.controller.name(),
            self.seen
        );
        Ok(us)
    }
}

/// A minibatch as it is in training: hits rise and fall.
fn observation(minibatch: u64) -> Observation {
    let hits = 500 + minibatch * 37 % 400;
    Observation {
        minibatch,
        minibatches: 10_000,
        remote_nodes: 2000,
        halo_nodes: 1800,
        hits,
        halo_misses: 1800 - hits,
        demand_rows: 2000 - hits,
        bytes: (2000 - hits) * 400,
        stall: Duration::from_millis(2),
        ..Observation::default()
    }
}

/// Measures it. Collective.
pub fn run(world: &World, args: &MpiArgs, deciders: &mut [Decider], measured: &mut Measured) -> Result<()> {
    measured.begin(Benchmark::Decision);
    if world.level != ThreadLevel::Multiple {
        measured.note("decision is left out: its load has a thread of its own, which needs --thread-level multiple");
        return Ok(());
    }
    let what = if args.model.is_some() {
        "the language model of --model"
    } else {
        "periodic and analytic, since --model names no language model"
    };
    measured.note(&format!("decision: of {what}"));
    let mut us = vec![(Vec::new(), Vec::new()); deciders.len()];
    for turn in 0..args.skip + args.iterations {
        let alone = all(world, deciders)?;
        let traffic = Traffic::start(Traffic::TRAINING)?;
        let beside = all(world, deciders)?;
        traffic.stop()?;
        if turn >= args.skip {
            us.iter_mut().zip(alone.into_iter().zip(beside)).for_each(|(us, (alone, beside))| {
                us.0.push(alone);
                us.1.push(beside);
            });
        }
    }
    if world.rank == 0 {
        for (decider, (alone, beside)) in deciders.iter().zip(&us) {
            let origin =
                |state| Origin { benchmark: Benchmark::Decision, state: Some(state), ranks: 1, bytes: 0, rows: 1 };
            let name = decider.controller.name();
            measured.add(Line::new(origin("alone"), name, alone, &[]));
            measured.add(Line::new(origin("beside training"), name, beside, &[("alone", alone)]));
        }
    }
    Ok(())
}

/// One sample of each on rank 0, while the others wait.
fn all(world: &World, deciders: &mut [Decider]) -> Result<Vec<f64>> {
    world.meet(Waiting::Outside)?;
    let us = if world.rank == 0 { deciders.iter_mut().map(Decider::decide).collect::<Result<_>>()? } else { vec![] };
    world.meet(Waiting::Outside)?;
    Ok(us)
}
