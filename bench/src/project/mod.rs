//! `rudder project`: what a job would take at numbers of ranks that are not here, and what holds it back there.
//!
//! A job is sampled and replayed at a few numbers of ranks; laws through what was counted there go on to the others, and LogGP turns rows into
//! time. The largest simulated number of ranks is also predicted from the smaller ones, so that the laws' error is known where it can be.

mod document;
mod law;
mod model;
mod network;
mod point;
mod report;

use crate::cli::positive;
use crate::graph::GraphSpec;
use crate::progress::Progress;
use crate::record::{Made, percentile};
use crate::replay::{Buffer, Job, ReplayRun, outcome};
use crate::study::Contender;
use crate::workload::{Sampling, Scenario, Workload};
use anyhow::{Context, Result, ensure};
use clap::Args;
use document::{Document, FORMAT, Kind, Row};
use model::{Model, Work};
use network::{Network, NetworkSpec};
use point::Point;
use rudder::BufferSize;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// `rudder project`
#[derive(Args, Clone, Debug)]
pub struct ProjectArgs {
    /// Recorded jobs of the same graph: traces of all ranks, or the prefix that they were recorded with. They stand beside the model as measured;
    /// what the first one's ranks compute replaces --sample and --compute
    #[arg(value_name = "TRACE")]
    traces: Vec<PathBuf>,
    /// The graph, as `rudder train --graph` takes it
    #[arg(long, value_name = "SPEC", default_value = "debian")]
    graph: GraphSpec,
    /// Numbers of ranks to sample and replay, which the laws go through; at least two
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "2,4,8,16", value_parser = clap::value_parser!(u32).range(2..=256))]
    simulate: Vec<u32>,
    /// Numbers of ranks to project
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "4,8,16,32,64,128,256,512,1024,2048,4096", value_parser = clap::value_parser!(u32).range(2..=1_000_000))]
    ranks: Vec<u32>,
    /// POLICY or POLICY/CONTROLLER, by the names that RUDDER_POLICY and RUDDER_CONTROLLER take
    #[arg(long, value_name = "NAME", default_value = "lfu")]
    policy: Contender,
    /// Share of the halo that a rank's buffer holds
    #[arg(long, value_name = "SHARE", default_value_t = 0.10)]
    buffer: f64,
    /// Minibatches announced ahead
    #[arg(long, value_name = "W", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=63))]
    lookahead: u32,
    /// The network of each NIC: `slingshot`, by the vendor's figures; RATE,LATENCY; L:g:G of LogGP, in seconds; or `loggp:FILE,CONTENDER`, what
    /// `rudder mpi --json FILE` has fitted to one of its contenders, such as `tcp`
    #[arg(long, value_name = "NETWORK", default_value = "slingshot")]
    network: NetworkSpec,
    /// Ranks that share a NIC
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = positive)]
    ranks_per_nic: usize,
    /// Ranks of a node, which its memory is counted for
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = positive)]
    ranks_per_node: usize,
    /// Memory of a node for rows, in bytes; without it none is too much
    #[arg(long, value_name = "BYTES")]
    node_memory: Option<u64>,
    /// Bytes of gradients that each step averages
    #[arg(long, value_name = "BYTES", default_value_t = 1 << 20)]
    gradient_bytes: u64,
    /// Seed of the graph, its partitions and the samples
    #[arg(long, value_name = "S", default_value_t = 1)]
    seed: u64,
    /// How jobs are sampled.
    #[command(flatten)]
    sampling: Sampling,
    /// How it is gone about.
    #[command(flatten)]
    run: ReplayRun,
}

/// `rudder project`
///
/// # Errors
/// A job cannot be sampled or read, a number makes no sense, or a file cannot be written.
pub fn run(args: &ProjectArgs) -> Result<()> {
    ensure!((0.0..=1.0).contains(&args.buffer), "--buffer {}: a share of the halo is from 0 to 1", args.buffer);
    let began = Instant::now();
    let mut simulate = args.simulate.clone();
    simulate.sort_unstable();
    simulate.dedup();
    ensure!(simulate.len() > 1, "--simulate: a law goes through at least two numbers of ranks");
    let recorded = Job::read_all(&args.traces)?;
    let mut sampling = args.sampling.clone();
    if let Some(job) = recorded.first() {
        (sampling.sample, sampling.compute) = computing(job);
    }
    let (nic, network_from) = args.network.load()?;
    let network = nic.shared(args.ranks_per_nic as f64);
    let mut points = Vec::new();
    let (mut nodes, mut training) = (0, 0);
    for &ranks in &simulate {
        let workload = cut(args, &sampling, ranks)?;
        (nodes, training) = workload.nodes();
        points.push(simulated(args, &workload, network)?);
    }
    let node_memory = args.node_memory.map(|memory| memory as f64 / args.ranks_per_node as f64);
    let work = Work {
        nodes: nodes as f64,
        training: training as f64,
        batch: sampling.batch as f64,
        row_bytes: sampling.row_bytes as f64,
        sample_s: sampling.sample,
        compute_s: sampling.compute,
        gradient_bytes: args.gradient_bytes as f64,
        network,
        memory: node_memory,
    };
    let model = Model::through(&points);
    let mut rows = Vec::new();
    for job in &recorded {
        let found = job.ranks[0].header.facts.nodes;
        ensure!(found == nodes, "{}: a graph of {found} nodes was recorded, and {} has {nodes}", job.name, args.graph);
        let batch = job.ranks[0].header.facts.batch;
        ensure!(
            batch == sampling.batch as u64,
            "{}: recorded with --batch {batch}, and sampled with {}",
            job.name,
            sampling.batch
        );
        rows.push(measured(job, &model, &work, args.ranks_per_node));
    }
    rows.extend(points.iter().map(|point| {
        let estimate = model.at(point.ranks, &work);
        let step_s = point.step_s + estimate.allreduce_s;
        Row {
            checked_s: Some(step_s * estimate.steps),
            ..Row::of(Kind::Simulated, point.ranks, &estimate, args.ranks_per_node)
        }
    }));
    let projected = args.ranks.iter().filter(|ranks| !simulate.contains(ranks));
    rows.extend(
        projected.map(|&ranks| {
            Row::of(Kind::Model, f64::from(ranks), &model.at(f64::from(ranks), &work), args.ranks_per_node)
        }),
    );
    let document = Document {
        made: Made::here(FORMAT),
        graph: args.graph.to_string(),
        policy: args.policy.to_string(),
        network,
        sample_s: sampling.sample,
        compute_s: sampling.compute,
        held_out: held_out(&points, &work),
        rows,
        notes: network_from.into_iter().collect(),
        wall_s: began.elapsed().as_secs_f64(),
    };
    println!("{}", report::text(&document));
    args.run.leave(&document, || report::html(&document))
}

fn cut<'a>(args: &ProjectArgs, sampling: &'a Sampling, ranks: u32) -> Result<Workload<'a>> {
    let mut progress = Progress::new();
    progress.begin(format!("graph for {ranks} ranks"));
    let workload = Workload::new(sampling, &args.graph, ranks, args.seed).with_context(|| format!("{ranks} ranks"))?;
    progress.end(&args.graph.to_string());
    Ok(workload)
}

/// A job at a number of ranks, in the simulator.
fn simulated(args: &ProjectArgs, workload: &Workload, network: Network) -> Result<Point> {
    let job = workload.job(Scenario::Stationary)?;
    let buffer = Buffer::Size(BufferSize::Halo(args.buffer));
    let case = args.policy.case(buffer, args.lookahead, network.link(), args.run.decision_latency());
    let mut progress = Progress::new();
    progress.begin("replay");
    let outcome = outcome(&job, &case)?;
    progress.end(&job.name);
    Point::of(&job, &case, &outcome, workload.inputs()?)
}

/// Seconds of sampling and of computing a minibatch in a recorded job: each step's slowest rank's, in the mean.
fn computing(job: &Job) -> (f64, f64) {
    let of = |part: fn(crate::replay::Work) -> Duration| {
        let slowest = |step| job.ranks.iter().map(|trace| part(trace.work(step))).max().unwrap_or_default();
        (0..job.steps).map(|step| slowest(step).as_secs_f64()).sum::<f64>() / job.steps as f64
    };
    (of(|work| work.sample), of(|work| work.compute))
}

/// A recorded job beside the model on the link that it had, with what its own ranks computed and averaged.
fn measured(job: &Job, model: &Model, work: &Work, ranks_per_node: usize) -> Row {
    let header = &job.ranks[0].header;
    let (sample_s, compute_s) = computing(job);
    let network = if header.link.is_none() { work.network } else { header.link.into() };
    let averaging = (0..job.steps).map(|step| job.allreduce(step).as_secs_f64()).sum::<f64>() / job.steps as f64;
    let work = Work { sample_s, compute_s, network, gradient_bytes: 0.0, ..*work };
    let ranks = job.ranks.len() as f64;
    let mut estimate = model.at(ranks, &work);
    estimate.step_s += averaging;
    estimate.allreduce_s = averaging;
    let (_, _, _, mut epochs) = job.recorded();
    epochs.sort_unstable_by(f64::total_cmp);
    Row { checked_s: Some(percentile(&epochs, 0.5)), ..Row::of(Kind::Measured, ranks, &estimate, ranks_per_node) }
}

/// The last of the points as the laws through the others have it: rows fetched and a step's time over what the simulator has.
fn held_out(points: &[Point], work: &Work) -> Option<document::HeldOut> {
    let (last, others) = points.split_last().filter(|(_, others)| others.len() > 1)?;
    let work = Work { gradient_bytes: 0.0, ..*work };
    let estimate = Model::through(others).at(last.ranks, &work);
    Some(document::HeldOut {
        ranks: last.ranks as u64,
        rows: estimate.fetched / last.fetched,
        step: estimate.step_s / last.step_s,
    })
}
