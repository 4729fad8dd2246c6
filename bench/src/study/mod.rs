//! `rudder study`: which policy and controller wins where, over many jobs, replayed in virtual time.
//!
//! A configuration is a graph, what changes in the job, a buffer and how far is announced ahead. Every contender is replayed on the same jobs, one for
//! each seed, so that contenders are compared in pairs. What a configuration's best contender would gain over the best single one for all is
//! the headroom: no controller that picks among these can win more.

mod contender;
mod document;
mod replayed;
mod report;
mod standing;

use crate::graph::GraphSpec;
use crate::progress::Progress;
use crate::record::Made;
use crate::replay::{Buffer, Case, Job, Outcome, ReplayRun, SlowRank, fewest_rows, outcome, parallel};
use crate::workload::{MINIBATCHES_MIN, Sampling, Scenario, Workload};
use anyhow::{Context, Result, ensure};
use clap::Args;
pub use contender::Contender;
use document::{Document, FORMAT, Settings};
use replayed::Run;
use rudder::transport::hook::Link;
use standing::Standings;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Minibatches after the start, or after a change, in which a policy has still to learn.
const LEARNING: usize = 32;
const _: () = assert!(2 * LEARNING as u64 <= MINIBATCHES_MIN, "a start and a change in every job");

/// `rudder study`
#[derive(Args, Clone, Debug)]
pub struct StudyArgs {
    /// Recorded jobs to study too: traces of all ranks, or the prefix that they were recorded with
    #[arg(value_name = "TRACE")]
    pub traces: Vec<PathBuf>,
    /// Graphs to sample jobs of, as `rudder train --graph` takes them; given once for each
    #[arg(long = "graph", value_name = "SPEC", default_values = ["debian", "rmat:scale=15,degree=16,dim=1", "sbm:nodes=60000,degree=20,communities=64,dim=1"])]
    pub graphs: Vec<GraphSpec>,
    /// Study the recorded jobs alone
    #[arg(long, requires = "traces")]
    pub traces_only: bool,
    /// What changes half-way
    #[arg(long, value_name = "LIST", value_enum, value_delimiter = ',', default_value = "stationary,nodes,fanout")]
    pub scenario: Vec<Scenario>,
    /// Have controllers know beforehand when that is, as those do whose program says so
    #[arg(long)]
    pub announce_changes: bool,
    /// Who competes: POLICY or POLICY/CONTROLLER, by the names that RUDDER_POLICY and RUDDER_CONTROLLER take
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = contender::DEFAULT)]
    pub contender: Vec<Contender>,
    /// Add controllers that choose, each with the guard and without
    #[arg(long)]
    pub ablation: bool,
    /// With them those that were trained, such as pilot:FILE and plan-classifier:FILE
    #[arg(long, value_name = "LIST", value_delimiter = ',', requires = "ablation")]
    pub learned: Vec<String>,
    /// The buffers: shares of the halo, or bytes of rows
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "0.05,0.25")]
    pub buffer: Vec<Buffer>,
    /// Minibatches announced ahead
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "0,1,2,4,16", value_parser = clap::value_parser!(u32).range(0..=63))]
    pub lookahead: Vec<u32>,
    /// Jobs of each graph, of other draws
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u64).range(2..=1000))]
    pub seeds: u64,
    /// Ranks of a sampled job, each with a partition
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(2..=1024))]
    pub ranks: u32,
    /// How jobs are sampled.
    #[command(flatten)]
    pub sampling: Sampling,
    /// The links of every rank, to send and to receive: RATE[,LATENCY]
    #[arg(long, value_name = "RATE,LATENCY", default_value = "1gbit,50us")]
    pub link: Link,
    /// What sends at a share of its link's rate, one at a time: `none`, or as of `rudder replay`, RANK:SHARE, RANK:SHARE:STEP or `all` in the place of the rank
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "none,0:0.25", value_parser = slow)]
    pub slow: Vec<Slow>,
    /// How it is gone about.
    #[command(flatten)]
    pub run: ReplayRun,
}

/// A slow rank, or none; a word of its own, since the command line takes a list of options for an option of a list.
#[derive(Clone, Copy, Debug)]
pub struct Slow(Option<SlowRank>);

fn slow(text: &str) -> Result<Slow> {
    if text == "none" { Ok(Slow(None)) } else { text.parse().map(|slow| Slow(Some(slow))) }
}

/// `rudder study`
///
/// # Errors
/// A job cannot be made or read, the lists make no sense, or a file cannot be written.
pub fn run(args: &StudyArgs) -> Result<()> {
    let args = &with_ablation(args)?;
    ensure!(!args.link.is_none(), "without a link no row is waited for: give --link a rate");
    ensure!(args.contender.len() > 1, "one contender alone has nobody to win against");
    let began = Instant::now();
    let mut runs = Vec::new();
    for job in Job::read_all(&args.traces)? {
        runs.extend(runs_of(args, &job, &Configured::recorded(&job))?);
    }
    let graphs = if args.traces_only { &[] } else { &args.graphs[..] };
    for graph in graphs {
        for seed in 1..=args.seeds {
            let workload = sampled(graph, seed, || Workload::new(&args.sampling, graph, args.ranks, seed))?;
            for &scenario in &args.scenario {
                let mut job = workload.job(scenario)?;
                let configured = Configured::sampled(graph, scenario, seed, &job);
                if let Some(step) = configured.change.filter(|_| args.announce_changes) {
                    job.announce_changes(&[step as u64]);
                }
                runs.extend(runs_of(args, &job, &configured)?);
            }
        }
    }
    let contenders: Vec<String> = args.contender.iter().map(Contender::to_string).collect();
    let standings = Standings::of(&runs, &contenders);
    let document = Document {
        made: Made::here(FORMAT),
        settings: Settings::of(args),
        contenders,
        findings: standing::findings(&standings),
        standings,
        runs,
        wall_s: began.elapsed().as_secs_f64(),
    };
    println!("{}", report::text(&document));
    args.run.leave(&document, || report::html(&document))
}

/// With all that competes among the contenders.
fn with_ablation(args: &StudyArgs) -> Result<StudyArgs> {
    let mut all = args.clone();
    let chosen = contender::ABLATION.split(',').filter(|_| args.ablation).map(str::to_owned);
    let learned = args.learned.iter().flat_map(|name| ["", "guard:"].map(|guard| format!("window/{guard}{name}")));
    for name in chosen.chain(learned) {
        let more: Contender = name.parse()?;
        if !all.contender.contains(&more) {
            all.contender.push(more);
        }
    }
    Ok(all)
}

/// Makes a graph's partitions, and says so.
fn sampled<T>(graph: &GraphSpec, seed: u64, make: impl FnOnce() -> Result<T>) -> Result<T> {
    let mut progress = Progress::new();
    progress.begin(format!("graph, seed {seed}"));
    let made = make().with_context(|| format!("graph {graph}, seed {seed}"))?;
    progress.end(&graph.to_string());
    Ok(made)
}

/// What a job is one of.
struct Configured {
    graph: String,
    scenario: String,
    seed: u64,
    /// The step at which something changes.
    change: Option<usize>,
}

impl Configured {
    fn recorded(job: &Job) -> Self {
        Self { graph: job.name.clone(), scenario: "recorded".to_owned(), seed: 0, change: None }
    }

    fn sampled(graph: &GraphSpec, scenario: Scenario, seed: u64, job: &Job) -> Self {
        let change = scenario.changes().then_some(job.steps / 2);
        Self { graph: graph.to_string(), scenario: scenario.to_string(), seed, change }
    }
}

/// The step at which something changes: in the job, or of its links.
fn change(configured: &Configured, case: &Case) -> Option<usize> {
    configured.change.or(case.slow.map(|slow| slow.from).filter(|&step| step > 0))
}

/// Replays a job under every contender, buffer and lookahead.
fn runs_of(args: &StudyArgs, job: &Job, configured: &Configured) -> Result<Vec<Run>> {
    let threads = args.run.threads();
    let fewest = fewest_rows(threads, std::slice::from_ref(job), &args.buffer)?.remove(0);
    let mut cases = Vec::new();
    for &Slow(slow) in &args.slow {
        slow.map(|slow| slow.check(job.ranks.len())).transpose()?;
        for (&buffer, &fewest) in args.buffer.iter().zip(&fewest) {
            for &lookahead in &args.lookahead {
                for contender in &args.contender {
                    let case = contender.case(buffer, lookahead, args.link, args.run.decision_latency());
                    cases.push((Case { slow, in_flight: args.run.in_flight(), ..case }, contender, fewest));
                }
            }
        }
    }
    let outcomes = parallel(&format!("{}: replays", configured.scenario), threads, &cases, |(case, contender, _)| {
        outcome(job, case).with_context(|| format!("{}, {contender}, buffer {}", job.name, case.buffer))
    })?;
    let run = |((case, contender, fewest), outcome): (&(Case, &Contender, u64), &Outcome)| {
        let stall = |from: usize, steps: usize| outcome.stalls[from..].iter().take(steps).sum::<Duration>();
        let stats = outcome.stats;
        Run {
            graph: configured.graph.clone(),
            scenario: configured.scenario.clone(),
            seed: configured.seed,
            buffer: case.buffer.to_string(),
            slow: case.slow.map(|slow| slow.to_string()),
            lookahead: case.lookahead,
            contender: contender.to_string(),
            rows_fetched: stats.demand_rows + stats.prefetched_rows + stats.fill_rows,
            fewest_rows: *fewest,
            hit_rate: stats.hits as f64 / stats.remote_nodes.max(1) as f64,
            stall_s: (outcome.fill + stall(0, job.steps)).as_secs_f64(),
            stall_start_s: (outcome.fill + stall(0, LEARNING)).as_secs_f64(),
            stall_change_s: change(configured, case).map(|at| stall(at, LEARNING).as_secs_f64()),
            time_s: (outcome.fill + outcome.epochs.iter().sum::<Duration>()).as_secs_f64(),
            minibatches: stats.minibatches,
            decisions: outcome.decisions,
            decision_cpu_s: outcome.decision_cpu.as_secs_f64(),
            longest_decision_s: outcome.longest_decision.map(|longest| longest.as_secs_f64()),
        }
    };
    Ok(cases.iter().zip(&outcomes).map(run).collect())
}
