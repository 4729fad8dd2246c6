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
mod sizes;

use crate::cli::positive;
use crate::graph::GraphSpec;
use crate::progress::Progress;
use crate::record::{Made, percentile};
use crate::replay::{Buffer, Job, ReplayRun, outcome};
use crate::study::Contender;
use crate::workload::{Sampling, Scenario, Workload};
use anyhow::{Context, Result, ensure};
use clap::Args;
use document::{Check, CheckRow, Document, FORMAT, HeldOut, Kind, Projection, Row, Scaling};
use law::Laws;
use model::Work;
use network::{Network, NetworkSpec};
use point::Point;
use rudder::BufferSize;
use sizes::{Sampled, Sizes};
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::{Duration, Instant};

/// `rudder project`
#[derive(Args, Clone, Debug)]
pub struct ProjectArgs {
    /// Recorded jobs of the same graph: traces of all ranks, or the prefix that they were recorded with. They stand beside the model as measured;
    /// what the first one's ranks compute replaces --sample and --compute
    #[arg(value_name = "TRACE")]
    traces: Vec<PathBuf>,
    /// The graph, as `rudder train --graph` takes it; or, where its sizes are all that is known, `sizes:nodes=N,edges=E,train=T`, edges in all
    /// directions in which they are sampled, with `,tail=A` of degrees and `,local=S`, the share of edges that a partitioner keeps
    #[arg(long, value_name = "SPEC", default_value = "debian")]
    graph: ProjectGraph,
    /// The graph that the model of sizes alone is held against, in the simulator
    #[arg(long, value_name = "SPEC", default_value = "debian")]
    check: GraphSpec,
    /// Numbers of ranks to sample and replay, which the laws go through; at least two
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "2,4,8,16", value_parser = clap::value_parser!(u32).range(2..=256))]
    simulate: Vec<u32>,
    /// Also project weak scaling: the graph grows with the ranks, and that of --graph is the one of N ranks
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    weak: Option<u32>,
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

/// What is projected.
#[derive(Clone, Debug)]
enum ProjectGraph {
    /// A graph that is there, or can be made.
    Whole(GraphSpec),
    /// Its sizes alone.
    Sizes(Sizes),
}

impl FromStr for ProjectGraph {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        if text.starts_with("sizes:") { text.parse().map(Self::Sizes) } else { text.parse().map(Self::Whole) }
    }
}

impl fmt::Display for ProjectGraph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Whole(spec) => spec.fmt(f),
            Self::Sizes(sizes) => sizes.fmt(f),
        }
    }
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
    let project = Project { args, simulate, sampling, network };
    let (projections, check) = match &args.graph {
        ProjectGraph::Whole(spec) => (project.whole(spec, &recorded)?, None),
        ProjectGraph::Sizes(sizes) => {
            ensure!(recorded.is_empty(), "a recorded job has a graph: name it by --graph, not its sizes");
            let (projections, check) = project.sizes(*sizes)?;
            (projections, Some(check))
        }
    };
    let document = Document {
        made: Made::here(FORMAT),
        graph: args.graph.to_string(),
        policy: args.policy.to_string(),
        network,
        sample_s: project.sampling.sample,
        compute_s: project.sampling.compute,
        projections,
        check,
        notes: network_from.into_iter().collect(),
        wall_s: began.elapsed().as_secs_f64(),
    };
    println!("{}", report::text(&document));
    args.run.leave(&document, || report::html(&document))
}

/// What all projections of a command have in common.
struct Project<'a> {
    args: &'a ProjectArgs,
    /// Numbers of ranks, ascending.
    simulate: Vec<u32>,
    sampling: Sampling,
    /// Of a rank.
    network: Network,
}

impl Project<'_> {
    /// A graph that can be simulated.
    fn whole(&self, graph: &GraphSpec, recorded: &[Job]) -> Result<Vec<Projection>> {
        // What cannot be asked for shows before anything is simulated.
        let grown = self.args.weak.map(|of| self.simulate.iter().map(|&ranks| graph.grown(ranks, of)).collect());
        let grown: Option<Vec<GraphSpec>> = grown.transpose()?;
        let same = vec![graph.clone(); self.simulate.len()];
        let mut projections = vec![self.simulated(Scaling::Strong, &same, recorded)?];
        if let Some(graphs) = grown {
            projections.push(self.simulated(Scaling::Weak, &graphs, &[])?);
        }
        Ok(projections)
    }

    /// A graph's sizes alone, and what they say of one that can be simulated.
    fn sizes(&self, sizes: Sizes) -> Result<(Vec<Projection>, Check)> {
        let policy = self.args.policy.to_string();
        ensure!(
            ["off", "degree", "lfu"].contains(&policy.as_str()) && self.args.lookahead == 0,
            "sizes alone say what policies off, degree and lfu fetch with nothing announced, not {policy} with --lookahead {}",
            self.args.lookahead
        );
        let sampled = |sizes| Sampled {
            sizes,
            batch: self.sampling.batch as f64,
            fanout: &self.sampling.fanout,
            buffer: self.args.buffer,
            keeps: policy != "off",
        };
        let project = |scaling: Scaling, part: Sizes| {
            let row = |&ranks: &u32| {
                let ranks = f64::from(ranks);
                let sizes = part.grown(scaling.times(ranks));
                let estimate = self.work(sizes.nodes, sizes.train).takes(ranks, &sampled(sizes).at(ranks));
                Row::of(Kind::Sizes, ranks, &estimate, self.args.ranks_per_node)
            };
            Projection {
                scaling,
                nodes: part.nodes,
                training: part.train,
                simulated_nodes: None,
                held_out: None,
                rows: compared(scaling, self.args.ranks.iter().map(row).collect()),
            }
        };
        let mut projections = vec![project(Scaling::Strong, sizes)];
        projections.extend(self.args.weak.map(|of| project(Scaling::Weak, sizes.grown(1.0 / f64::from(of)))));
        let check = |&ranks: &u32| {
            let point = self.point(&self.args.check, ranks)?;
            let Point { ranks, nodes, edges, training: train, .. } = point;
            let demand = sampled(Sizes { nodes, edges, train, ..sizes }).at(ranks);
            let estimate = Work { gradient_bytes: 0.0, ..self.work(nodes, train) }.takes(ranks, &demand);
            Ok(CheckRow {
                ranks: ranks as u64,
                wanted: estimate.wanted / point.wanted,
                fetched: estimate.fetched / point.fetched,
                halo: demand.halo / point.halo,
                step: estimate.step_s / point.step_s,
            })
        };
        let rows = self.simulate.iter().map(check).collect::<Result<_>>()?;
        Ok((projections, Check { graph: self.args.check.to_string(), rows }))
    }

    /// By laws through simulated jobs, of the graph that each number of ranks has, beside recorded ones.
    fn simulated(&self, scaling: Scaling, graphs: &[GraphSpec], recorded: &[Job]) -> Result<Projection> {
        let jobs = self.simulate.iter().zip(graphs);
        let points = jobs.map(|(&ranks, graph)| self.point(graph, ranks)).collect::<Result<Vec<_>>>()?;
        let each = |of: fn(&Point) -> f64| points.iter().map(move |point| of(point) / scaling.times(point.ranks));
        let mean = |of| each(of).sum::<f64>() / points.len() as f64;
        let fixed = self.work(mean(|point| point.nodes), mean(|point| point.training));
        let laws = Laws::through(scaling, &points);
        let estimate = |ranks: f64| fixed.grown(scaling.times(ranks)).takes(ranks, &laws.at(ranks));
        let mut rows = Vec::new();
        for job in recorded {
            self.comparable(job, fixed.nodes)?;
            rows.push(self.measured(job, &laws, &fixed));
        }
        rows.extend(points.iter().map(|point| {
            let estimate = estimate(point.ranks);
            let checked_s = Some((point.step_s + estimate.allreduce_s) * estimate.steps);
            Row { checked_s, ..Row::of(Kind::Simulated, point.ranks, &estimate, self.args.ranks_per_node) }
        }));
        rows.extend(self.args.ranks.iter().filter(|ranks| !self.simulate.contains(ranks)).map(|&ranks| {
            let ranks = f64::from(ranks);
            Row::of(Kind::Model, ranks, &estimate(ranks), self.args.ranks_per_node)
        }));
        Ok(Projection {
            scaling,
            nodes: fixed.nodes,
            training: fixed.training,
            simulated_nodes: Some([
                each(|point| point.nodes).fold(f64::MAX, f64::min),
                each(|point| point.nodes).fold(0.0, f64::max),
            ]),
            held_out: held_out(scaling, &points, &fixed),
            rows: compared(scaling, rows),
        })
    }

    /// A job at a number of ranks, in the simulator.
    fn point(&self, graph: &GraphSpec, ranks: u32) -> Result<Point> {
        let mut progress = Progress::new();
        progress.begin(format!("graph for {ranks} ranks"));
        let workload =
            Workload::new(&self.sampling, graph, ranks, self.args.seed).with_context(|| format!("{ranks} ranks"))?;
        progress.end(&graph.to_string());
        let job = workload.job(Scenario::Stationary)?;
        let buffer = Buffer::Size(BufferSize::Halo(self.args.buffer));
        let link = self.network.link();
        let case = self.args.policy.case(buffer, self.args.lookahead, link, self.args.run.decision_latency());
        let mut progress = Progress::new();
        progress.begin("replay");
        let outcome = outcome(&job, &case)?;
        progress.end(&job.name);
        Point::of(&workload, &job, &case, &outcome)
    }

    /// The job on a graph of so many nodes.
    fn work(&self, nodes: f64, training: f64) -> Work {
        let args = self.args;
        Work {
            nodes,
            training,
            batch: self.sampling.batch as f64,
            row_bytes: self.sampling.row_bytes as f64,
            sample_s: self.sampling.sample,
            compute_s: self.sampling.compute,
            gradient_bytes: args.gradient_bytes as f64,
            network: self.network,
            memory: args.node_memory.map(|memory| memory as f64 / args.ranks_per_node as f64),
        }
    }

    /// Whether a recorded job is one of this graph, sampled as here.
    fn comparable(&self, job: &Job, nodes: f64) -> Result<()> {
        let facts = &job.ranks[0].header.facts;
        let (found, graph) = (facts.nodes, &self.args.graph);
        ensure!(found as f64 == nodes, "{}: a graph of {found} nodes was recorded, and {graph} has {nodes}", job.name);
        let (recorded, batch) = (facts.batch, self.sampling.batch);
        ensure!(recorded == batch as u64, "{}: recorded with --batch {recorded}, and sampled with {batch}", job.name);
        Ok(())
    }

    /// A recorded job beside the model on the link that it had, with what its own ranks computed and averaged.
    fn measured(&self, job: &Job, laws: &Laws, work: &Work) -> Row {
        let header = &job.ranks[0].header;
        let (sample_s, compute_s) = computing(job);
        let network = if header.link.is_none() { work.network } else { header.link.into() };
        let averaging = (0..job.steps).map(|step| job.allreduce(step).as_secs_f64()).sum::<f64>() / job.steps as f64;
        let work = Work { sample_s, compute_s, network, gradient_bytes: 0.0, ..*work };
        let ranks = job.ranks.len() as f64;
        let mut estimate = work.takes(ranks, &laws.at(ranks));
        estimate.step_s += averaging;
        estimate.allreduce_s = averaging;
        let (_, _, _, mut epochs) = job.recorded();
        epochs.sort_unstable_by(f64::total_cmp);
        let checked_s = Some(percentile(&epochs, 0.5));
        Row { checked_s, ..Row::of(Kind::Measured, ranks, &estimate, self.args.ranks_per_node) }
    }
}

/// With each row's efficiency: what a rank has done of the graph in a second, beside what the fewest ranks have.
fn compared(scaling: Scaling, mut rows: Vec<Row>) -> Vec<Row> {
    let cost = |row: &Row| row.epoch_s * row.ranks as f64 / scaling.times(row.ranks as f64);
    let unmeasured = rows.iter().filter(|row| row.kind != Kind::Measured);
    let least = unmeasured.min_by_key(|row| row.ranks).map(cost);
    for row in rows.iter_mut().filter(|row| row.kind != Kind::Measured) {
        row.efficiency = least.map(|least| least / cost(row));
    }
    rows
}

/// Seconds of sampling and of computing a minibatch in a recorded job: each step's slowest rank's, in the mean.
fn computing(job: &Job) -> (f64, f64) {
    let of = |part: fn(crate::replay::Work) -> Duration| {
        let slowest = |step| job.ranks.iter().map(|trace| part(trace.work(step))).max().unwrap_or_default();
        (0..job.steps).map(|step| slowest(step).as_secs_f64()).sum::<f64>() / job.steps as f64
    };
    (of(|work| work.sample), of(|work| work.compute))
}

/// The last of the points as the laws through the others have it: rows fetched and a step's time over what the simulator has.
fn held_out(scaling: Scaling, points: &[Point], fixed: &Work) -> Option<HeldOut> {
    let (last, others) = points.split_last().filter(|(_, others)| others.len() > 1)?;
    let work = Work { gradient_bytes: 0.0, ..fixed.grown(scaling.times(last.ranks)) };
    let estimate = work.takes(last.ranks, &Laws::through(scaling, others).at(last.ranks));
    Some(HeldOut {
        ranks: last.ranks as u64,
        rows: estimate.fetched / last.fetched,
        step: estimate.step_s / last.step_s,
    })
}
