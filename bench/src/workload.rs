//! Jobs to replay, sampled as `rudder train` samples them, but without training: what each rank's minibatches want, and the job that it is.
//!
//! What a step costs beside its rows is given, not measured, so that a job is the same on every machine.

use crate::cli::{latency, positive};
use crate::graph::{GraphSpec, Split};
use crate::partition::{Partitioned, Partitioner, partition};
use crate::replay::{Job, RankTrace};
use crate::sampler::{EpochOrder, Minibatch, Position, Sampler, steps_per_epoch};
use anyhow::{Result, ensure};
use clap::{Args, ValueEnum};
use rudder::controller::JobFacts;
use rudder::trace::{Header, StepTimes, TraceTable, TrafficLimits};
use rudder::transport::hook::Link;
use rudder::{NodeId, PartitionBook, PartitionId, Rank, TableId, TableSpec, trace};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::time::Duration;

/// The epochs of a later phase are numbered from here, so that they draw other minibatches than the first.
const LATER: u64 = 1 << 32;

/// Least minibatches of a sampled job and rank.
pub const MINIBATCHES_MIN: u64 = 64;

/// How jobs are sampled.
#[derive(Args, Clone, Debug)]
pub struct Sampling {
    /// Seeds a minibatch and rank
    #[arg(long, value_name = "B", default_value_t = 64, value_parser = positive)]
    pub batch: usize,
    /// Neighbours to sample, a layer each, from the output layer down
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "5,10", value_parser = positive)]
    pub fanout: Vec<usize>,
    /// Minibatches of a sampled job and rank
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u64).range(MINIBATCHES_MIN..=1_000_000))]
    pub minibatches: u64,
    /// Bytes of a row
    #[arg(long, value_name = "BYTES", default_value_t = 2408, value_parser = positive)]
    pub row_bytes: usize,
    /// Seconds of sampling a minibatch
    #[arg(long, value_name = "SECONDS", default_value_t = 0.001, value_parser = latency)]
    pub sample: f64,
    /// Seconds of computing on a minibatch
    #[arg(long, value_name = "SECONDS", default_value_t = 0.002, value_parser = latency)]
    pub compute: f64,
}

/// What changes in a job while it runs, half-way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Scenario {
    /// Nothing
    Stationary,
    /// The nodes that are trained on: the first half of each rank's, then the other, as in a curriculum or where data comes in
    Nodes,
    /// The fan-out: half of it, then all
    Fanout,
    /// The seeds of a minibatch: half of them, then all
    Batch,
    /// The nodes that are trained on: the first quarter of each rank's, then all
    Widen,
}

impl Scenario {
    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stationary => "stationary",
            Self::Nodes => "nodes",
            Self::Fanout => "fanout",
            Self::Batch => "batch",
            Self::Widen => "widen",
        }
    }

    /// Whether anything changes.
    pub fn changes(self) -> bool {
        self != Self::Stationary
    }

    /// The nodes that a rank trains on before and after the change.
    fn nodes(self, all: &[NodeId]) -> [&[NodeId]; 2] {
        match self {
            Self::Nodes => all.split_at(all.len() / 2).into(),
            Self::Widen => [&all[..all.len().div_ceil(4)], all],
            Self::Stationary | Self::Fanout | Self::Batch => [all, all],
        }
    }

    /// The fan-outs before and after the change.
    fn fanouts(self, all: &[usize]) -> [Vec<usize>; 2] {
        let before = match self {
            Self::Fanout => all.iter().map(|fanout| fanout.div_ceil(2)).collect(),
            Self::Stationary | Self::Nodes | Self::Batch | Self::Widen => all.to_vec(),
        };
        [before, all.to_vec()]
    }

    /// The seeds of a minibatch before and after the change.
    fn batches(self, all: usize) -> [usize; 2] {
        [if self == Self::Batch { all.div_ceil(2) } else { all }, all]
    }
}

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A graph and its partitions, from which jobs are sampled.
pub struct Workload<'a> {
    sampling: &'a Sampling,
    name: String,
    seed: u64,
    cut: Partitioned,
    /// By rank.
    training: Vec<Vec<NodeId>>,
}

impl<'a> Workload<'a> {
    /// Makes the graph of a seed and cuts it for so many ranks.
    ///
    /// # Errors
    /// The graph cannot be made or cut.
    pub fn new(sampling: &'a Sampling, spec: &GraphSpec, ranks: u32, seed: u64) -> Result<Self> {
        let cut = partition(&spec.load(seed)?, ranks, Partitioner::Metis, seed)?;
        let training = (0..ranks).map(|rank| cut.nodes(PartitionId(rank), Split::Train)).collect();
        Ok(Self { sampling, name: spec.to_string(), seed, cut, training })
    }

    /// Samples a job.
    ///
    /// # Errors
    /// A rank has nothing to train on.
    pub fn job(&self, scenario: Scenario) -> Result<Job> {
        let ranks = (0..self.ranks()).map(|rank| self.rank(scenario, Rank(rank))).collect::<Result<Vec<_>>>()?;
        Job::of(&format!("{}, {scenario}, seed {}", self.name, self.seed), ranks)
    }

    /// Steps of an epoch: as many as the rank with the most nodes to train on needs.
    pub fn steps_per_epoch(&self) -> u64 {
        steps_per_epoch(self.training.iter().map(Vec::len), self.sampling.batch)
    }

    /// Nodes of the graph, and of them those that are trained on.
    pub fn nodes(&self) -> (u64, u64) {
        (self.cut.book.nodes(), self.training.iter().map(|nodes| nodes.len() as u64).sum())
    }

    /// Edges of the graph, in both directions.
    pub fn edges(&self) -> u64 {
        self.cut.graph.topology.arcs() as u64
    }

    /// Input nodes of a minibatch, whoever owns them: the mean over the first ones of each rank.
    ///
    /// # Errors
    /// A rank has nothing to train on.
    pub fn inputs(&self) -> Result<f64> {
        const MINIBATCHES: u64 = 16;
        let (mut seeds, mut minibatch, mut inputs) = (Vec::new(), Minibatch::default(), 0);
        for (rank, nodes) in (0..).map(Rank).zip(&self.training) {
            let steps = self.steps_per_epoch();
            let mut order = EpochOrder::new(nodes.clone(), self.sampling.batch, steps, self.seed, rank)?;
            let mut sampler = Sampler::new(self.cut.graph.topology.clone(), &self.sampling.fanout, self.seed, rank)?;
            for index in 0..MINIBATCHES {
                let position = order.position(index);
                order.seeds(position, &mut seeds);
                sampler.sample(position, &seeds, &mut minibatch);
                inputs += minibatch.input_nodes.len();
            }
        }
        Ok(inputs as f64 / (MINIBATCHES * u64::from(self.ranks())) as f64)
    }

    /// Ranks, each with a partition.
    fn ranks(&self) -> u32 {
        self.cut.book.partitions()
    }

    fn rank(&self, scenario: Scenario, rank: Rank) -> Result<RankTrace> {
        let args = self.sampling;
        let mut trace = RankTrace::new(self.header(rank)?)?;
        let (fanouts, batches) = (scenario.fanouts(&args.fanout), scenario.batches(args.batch));
        let own = &self.training[rank.index()];
        let half = args.minibatches / 2;
        let mut sampled =
            Sampled { minibatch: Minibatch::default(), seeds: Vec::new(), remote: trace::Minibatch::default() };
        sampled.remote.observed = true;
        // As `rudder train` does: the next minibatch is sampled while this one computes.
        sampled.remote.overlapped = true;
        sampled.remote.step = StepTimes {
            sample: Duration::from_secs_f64(args.sample),
            compute: Duration::from_secs_f64(args.compute),
            allreduce: Duration::ZERO,
        };
        let lengths = [half, args.minibatches - half];
        for (phase, ((nodes, fanout), minibatches)) in
            scenario.nodes(own).into_iter().zip(&fanouts).zip(lengths).enumerate()
        {
            let most = self.training.iter().map(|nodes| scenario.nodes(nodes)[phase].len());
            let steps = steps_per_epoch(most, batches[phase]);
            let order = EpochOrder::new(nodes.to_vec(), batches[phase], steps, self.seed, rank)?;
            let sampler = Sampler::new(self.cut.graph.topology.clone(), fanout, self.seed, rank)?;
            // Without a change the second half goes on where the first has ended.
            let (first, epoch) = if scenario.changes() { (0, phase as u64 * LATER) } else { (phase as u64 * half, 0) };
            sampled.phase(order, sampler, first..first + minibatches, epoch, &self.cut.book, &mut trace);
        }
        Ok(trace)
    }

    fn header(&self, rank: Rank) -> Result<Header> {
        let Self { sampling, cut, .. } = self;
        let partition = PartitionId(rank.0);
        let halo: Vec<NodeId> = cut.halos[partition.index()].iter().map(|&node| NodeId(node.into())).collect();
        ensure!(!halo.is_empty(), "{rank} of graph {} needs nothing of the others: use fewer ranks", self.name);
        let topology = &cut.graph.topology;
        let degree = halo.iter().map(|node| topology.degree(node.0 as u32) as u32).collect();
        let halo_nodes = halo.len() as u64;
        let spec = TableSpec {
            halo,
            degree,
            edges: topology.arcs() as u64,
            ..TableSpec::new(TableId(0), cut.book.clone(), partition, sampling.row_bytes)
        };
        let peers = (0..self.ranks()).map(|other| (other != rank.0).then_some(Rank(other))).collect();
        Ok(Header {
            rank,
            ranks: self.ranks(),
            sharing: 1,
            policy: "none".to_owned(),
            controller: "off".to_owned(),
            link: Link::default(),
            facts: JobFacts {
                nodes: cut.book.nodes(),
                edges: topology.arcs() as u64,
                partitions: self.ranks(),
                partition: rank.0,
                halo_nodes,
                slots: 0,
                batch: sampling.batch as u64,
                minibatches: sampling.minibatches,
                changes: Vec::new(),
            },
            limits: TrafficLimits::default(),
            tables: vec![TraceTable::new(&spec, peers, 0)],
        })
    }
}

/// Room for one minibatch after the other.
struct Sampled {
    minibatch: Minibatch,
    seeds: Vec<NodeId>,
    remote: trace::Minibatch,
}

impl Sampled {
    /// Appends the minibatches of a phase to a trace; its epochs are numbered from `epoch`.
    fn phase(
        &mut self,
        mut order: EpochOrder,
        mut sampler: Sampler,
        minibatches: std::ops::Range<u64>,
        epoch: u64,
        book: &PartitionBook,
        trace: &mut RankTrace,
    ) {
        let own = book.range(trace.header.tables[0].partition);
        for index in minibatches {
            let position = order.position(index);
            let position = Position { epoch: epoch + position.epoch, ..position };
            order.seeds(position, &mut self.seeds);
            sampler.sample(position, &self.seeds, &mut self.minibatch);
            self.remote.nodes.clear();
            self.remote.nodes.extend(self.minibatch.input_nodes.iter().filter(|node| !own.contains(&node.0)));
            trace.push(&self.remote);
            if position.step + 1 == order.steps() {
                trace.end_epoch();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    //! Goal: jobs change when and as they say, and are the same whenever they are sampled. Method: small graphs.
    use super::*;
    use crate::cli::{Cli, Command};
    use crate::study::StudyArgs;
    use clap::Parser;
    use std::collections::HashSet;

    fn args() -> StudyArgs {
        let line = "rudder study --graph sbm:nodes=2000,degree=10,communities=4,dim=1 --ranks 2 --batch 32 --fanout 4,6 --minibatches 64";
        match Cli::try_parse_from(line.split(' ')).unwrap().command {
            Command::Study(args) => *args,
            other => panic!("{other:?}"),
        }
    }

    fn wanted(job: &Job, minibatches: std::ops::Range<usize>) -> Vec<NodeId> {
        minibatches.flat_map(|at| job.ranks[0].nodes(at).to_vec()).collect()
    }

    #[test]
    fn a_job_is_the_same_whenever_it_is_sampled_and_another_for_each_seed() {
        let args = args();
        let job = |seed| {
            Workload::new(&args.sampling, &args.graphs[0], args.ranks, seed).unwrap().job(Scenario::Stationary).unwrap()
        };
        let (one, again, other) = (job(1), job(1), job(2));
        assert_eq!(wanted(&one, 0..64), wanted(&again, 0..64));
        assert_ne!(wanted(&one, 0..64), wanted(&other, 0..64));
        assert_eq!((one.steps, one.epochs.last()), (64, Some(&64)));
        let own = one.ranks[0].header.tables[0].book().unwrap().range(PartitionId(0));
        assert!(wanted(&one, 0..64).iter().all(|node| !own.contains(&node.0)));
    }

    #[test]
    fn what_changes_changes_half_way() {
        let args = args();
        let workload = Workload::new(&args.sampling, &args.graphs[0], args.ranks, 1).unwrap();
        let stationary = workload.job(Scenario::Stationary).unwrap();
        let fanout = workload.job(Scenario::Fanout).unwrap();
        let size = |job: &Job, range| wanted(job, range).len();
        assert!(size(&fanout, 0..32) * 3 < size(&fanout, 32..64) * 2, "half the fan-out wants much less");
        assert!(size(&stationary, 0..32) * 3 > size(&stationary, 32..64) * 2, "nothing changes");
        let batch = workload.job(Scenario::Batch).unwrap();
        assert!(size(&batch, 0..32) * 3 < size(&batch, 32..64) * 2, "half the seeds want much less");
        let nodes = workload.job(Scenario::Nodes).unwrap();
        let set = |job: &Job, range| wanted(job, range).into_iter().collect::<HashSet<_>>();
        let new = |job: &Job| set(job, 32..64).difference(&set(job, 0..32)).count();
        assert!(new(&nodes) > new(&stationary), "other nodes bring other neighbours");
        let widen = workload.job(Scenario::Widen).unwrap();
        assert!(new(&widen) > new(&stationary), "and so do more of them");
    }
}
