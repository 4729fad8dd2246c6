//! The samples that a pilot learns from: what it is told at a decision, and what is waited for under each plan.

use super::SamplesArgs;
use super::branch::{Branching, Decided, HORIZON, Script};
use super::draw::{HALF, MINIBATCHES, SCENARIOS, graph, source, surroundings};
use crate::replay::{or_cores, parallel};
use crate::workload::Workload;
use anyhow::{Context, Result, ensure};
use rand::Rng;
use rand::seq::IndexedRandom;
use rand_xoshiro::Xoshiro256PlusPlus;
use rudder::controller::planner::{PLANS, VALUES, minibatches_at};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::Path;

/// The version of a line's layout.
const FORMAT: u32 = 3;
/// Jobs of a graph and a scenario, each in surroundings of its own.
const SURROUNDINGS: usize = 2;
/// A plan in a job that is explored stays for another decision this often.
const STAYS: f64 = 0.7;
/// Minibatches for which a job has begun or changed shortly before.
const NEW: u64 = 16;
/// A change is announced this often.
const ANNOUNCED: f64 = 0.5;
/// Where less than this share of what minibatches compute is waited for, there is nothing to decide.
const IDLE: f64 = 0.01;

/// One decision of one rank.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// The layout.
    pub format: u32,
    /// The graph's number: what is held out is held out by graphs.
    pub graph: u64,
    /// The minibatches of its job that are over.
    pub minibatch: u64,
    /// Whether the job has begun or changed shortly before.
    pub new: bool,
    /// The part of the text that stays.
    pub job: String,
    /// The part that changes.
    pub text: String,
    /// The same as numbers.
    pub values: Vec<f64>,
    /// The plan that stands.
    pub plan: usize,
    /// Seconds of stall up to the horizon that do not matter.
    pub idle_s: f64,
    /// By plan, seconds of stall up to the horizon; none of one that cannot be chosen.
    pub stalls: Vec<Option<f64>>,
}

impl Sample {
    /// The values, of one that was made here or read.
    pub fn values(&self) -> [f64; VALUES.len()] {
        self.values.as_slice().try_into().expect("samples that were read have all values")
    }

    /// By plan, its stall over the least.
    pub fn ratios(&self) -> Vec<Option<f64>> {
        let least = self.stalls.iter().flatten().copied().fold(f64::INFINITY, f64::min);
        // What is hardly waited for makes no ratio.
        self.stalls.iter().map(|stall| stall.map(|stall| (stall + self.idle_s) / (least + self.idle_s))).collect()
    }
}

/// Makes samples.
///
/// # Errors
/// A job cannot be made or replayed, or the file cannot be written.
pub fn make(args: &SamplesArgs) -> Result<()> {
    let numbers: Vec<u64> = (0..args.graphs as u64).collect();
    let made = parallel("graphs", or_cores(args.threads), &numbers, |&number| of_graph(args.seed, number))?;
    let mut out = BufWriter::new(File::create(&args.out).with_context(|| args.out.display().to_string())?);
    let mut count = 0;
    for sample in made.iter().flatten() {
        serde_json::to_writer(&mut out, sample)?;
        out.write_all(b"\n")?;
        count += 1;
    }
    out.flush().with_context(|| args.out.display().to_string())?;
    println!("{count} samples of {} graphs in {}", args.graphs, args.out.display());
    Ok(())
}

/// The samples of a graph's jobs.
fn of_graph(seed: u64, number: u64) -> Result<Vec<Sample>> {
    let random = &mut source(seed, number);
    let drawn = graph(random);
    let workload = Workload::new(&drawn.sampling, &drawn.graph, drawn.ranks, number)?;
    let idle_s = IDLE * drawn.sampling.compute * HORIZON as f64;
    let mut samples = Vec::new();
    for scenario in SCENARIOS {
        let mut job = workload.job(scenario)?;
        for _ in 0..SURROUNDINGS {
            let surroundings = surroundings(drawn.ranks, random);
            let changes = scenario.changes() || surroundings.slow.is_some_and(|slow| slow.from > 0);
            let announced = scenario.changes() && random.random_bool(ANNOUNCED);
            job.announce_changes(if announced { &[HALF] } else { &[] });
            let branching = Branching::new(&job, surroundings)?;
            let allowed: Vec<usize> =
                (0..PLANS.len()).filter(|&plan| !PLANS[plan].announced || surroundings.lookahead > 0).collect();
            let decided = branching.decided(explored(&allowed, random))?;
            for (situation, _) in drawn_of(&decided, random) {
                let stalls = branching.stalls(&decided, situation.minibatch)?;
                if stalls.iter().flatten().all(|stall| *stall < idle_s) {
                    continue;
                }
                samples.push(Sample {
                    format: FORMAT,
                    graph: number,
                    minibatch: situation.minibatch,
                    new: is_new(situation.minibatch, changes),
                    job: situation.job(),
                    text: situation.text(),
                    values: situation.values().to_vec(),
                    plan: situation.plan,
                    idle_s,
                    stalls,
                });
            }
        }
    }
    Ok(samples)
}

/// Whether a job has begun shortly before so many minibatches are over, or changed if it does.
fn is_new(minibatch: u64, changes: bool) -> bool {
    let shortly = |first: u64| (first + 1..=first + NEW).contains(&minibatch);
    shortly(0) || changes && shortly(HALF)
}

/// The plans of a job that is explored, one for each decision of one in which nothing changes.
fn explored(allowed: &[usize], random: &mut Xoshiro256PlusPlus) -> Script {
    let mut script = Script::new();
    for from in (0..).map(minibatches_at).take_while(|from| *from < MINIBATCHES) {
        let stays = script.last().filter(|_| random.random_bool(STAYS)).map(|(_, plan)| *plan);
        script.extend(stays.or_else(|| allowed.choose(random).copied()).map(|plan| (from, plan)));
    }
    script
}

/// The decisions at which all plans are tried, each of a rank: of its first two, of those before the half, and of the first after it.
fn drawn_of<'a>(decided: &'a [Vec<Decided>], random: &mut Xoshiro256PlusPlus) -> Vec<&'a Decided> {
    let half = |(situation, _): &Decided| situation.minibatch <= HALF;
    let mut drawn = Vec::new();
    for part in 0..4 {
        let of_rank = decided.choose(random).expect("a job has ranks");
        let (before, after) = of_rank.split_at(of_rank.partition_point(half));
        drawn.extend(match part {
            0 | 1 => before.get(part),
            2 => before.get(2..).and_then(|later| later.choose(random)),
            _ => after[..after.len().min(2)].choose(random),
        });
    }
    drawn
}

/// Of so many graphs one is held out, and another one is for validation.
const PART_OF: u64 = 10;

/// Samples by what they are for, a graph's for one thing.
#[derive(Default)]
pub struct Parts<'a> {
    /// What is learnt from.
    pub training: Vec<&'a Sample>,
    /// What margins are chosen on.
    pub validation: Vec<&'a Sample>,
    /// What nothing is chosen on, so that it tells what choices are worth.
    pub held_out: Vec<&'a Sample>,
}

impl<'a> Parts<'a> {
    /// Of all samples.
    ///
    /// # Errors
    /// One part is empty.
    pub fn of(samples: &'a [Sample]) -> Result<Self> {
        let mut parts = Self::default();
        for sample in samples {
            match PART_OF - sample.graph % PART_OF {
                1 => parts.held_out.push(sample),
                2 => parts.validation.push(sample),
                _ => parts.training.push(sample),
            }
        }
        let counts = [parts.training.len(), parts.validation.len(), parts.held_out.len()];
        let [training, validation, held_out] = counts;
        ensure!(
            counts.iter().all(|count| *count > 0),
            "{training} samples to train on, {validation} to validate with and {held_out} to hold out: make samples of {PART_OF} graphs at least"
        );
        Ok(parts)
    }
}

/// Reads samples.
///
/// # Errors
/// The file cannot be read, or a line is none of this version; the message names it.
pub fn read(path: &Path) -> Result<Vec<Sample>> {
    let file = File::open(path).with_context(|| path.display().to_string())?;
    let mut samples = Vec::new();
    for (at, line) in BufReader::new(file).lines().enumerate() {
        let place = || format!("{}, line {}", path.display(), at + 1);
        let sample: Sample = serde_json::from_str(&line.with_context(place)?).with_context(place)?;
        ensure!(sample.format == FORMAT, "{}: samples of format {}, and this is {FORMAT}", place(), sample.format);
        ensure!(
            sample.values.len() == VALUES.len()
                && sample.stalls.len() == PLANS.len()
                && sample.stalls.get(sample.plan).is_some_and(Option::is_some),
            "{}: the values or plans are not those of this version",
            place()
        );
        samples.push(sample);
    }
    Ok(samples)
}
