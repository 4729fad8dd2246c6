//! The command line.

use crate::doctor::DoctorArgs;
use crate::fit::FitArgs;
use crate::get::GetArgs;
use crate::graph::GraphSpec;
use crate::mpi::MpiArgs;
use crate::partition::Partitioner;
use crate::pilot::PilotArgs;
use crate::project::ProjectArgs;
use crate::replay::{Buffer, ReplayRun, SlowRank};
use crate::setup::{Controls, HitRateShown, SetUp, Start};
use crate::study::StudyArgs;
use clap::{Args, Parser, Subcommand};
use rudder::BufferSize;
use rudder::transport::hook::Link;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

/// Distributed GNN training over rudder: train, demonstrate, measure
#[derive(Debug, Parser)]
#[command(name = "rudder", version, about, max_term_width = 100)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Train a GraphSAGE network on several ranks, once for each set-up, and compare
    Train(Box<TrainArgs>),
    /// Compare the main set-ups on the bundled graph, over TCP behind a shaped link, in a few minutes
    Demo(DemoArgs),
    /// Measure how fast random rows come from another process
    Get(Box<GetArgs>),
    /// Measure gets between the ranks of an MPI job beside MPI's own; started by mpiexec or srun
    Mpi(Box<MpiArgs>),
    /// Tell what this machine offers a job, what is missing and what to do about it; exits with 0 where a job can run, with 1 where it cannot
    Doctor(DoctorArgs),
    /// Draw the HTML report of a JSON document that `train` or `demo` wrote
    Report(ReportArgs),
    /// Look into recorded traces
    Trace(TraceArgs),
    /// Replay recorded traces under other policies, controllers, buffers and links, in virtual time
    Replay(Box<ReplayArgs>),
    /// Train classifiers that decide when to replace, on recorded traces
    Fit(Box<FitArgs>),
    /// Make the small language model of the controller `pilot:FILE`
    Pilot(Box<PilotArgs>),
    /// Compare policies and controllers on many jobs, in virtual time, and say who wins where
    Study(Box<StudyArgs>),
    /// Tell what a job would take at other numbers of ranks, and what holds it back there: a simulation, and a model through it
    Project(Box<ProjectArgs>),
    /// One rank of `train`; started by it, reads its orders from standard input
    #[command(hide = true)]
    Rank,
}

/// `rudder train`
#[derive(Args, Clone, Debug)]
pub struct TrainArgs {
    /// The graph: `debian` (bundled), `rmat:scale=15,degree=16,dim=602`, `sbm:nodes=60000,degree=20,communities=64,dim=16`, or a
    /// prepared directory.
    ///
    /// It is prepared once and mapped by all ranks: the topology is shared and complete on each machine; the features are partitioned, and a
    /// rank reads rows of other partitions only through rudder.
    #[arg(long, value_name = "SPEC", default_value = "debian")]
    pub graph: GraphSpec,
    /// How nodes are dealt to ranks
    #[arg(long, value_enum, default_value_t = Partitioner::Metis)]
    pub partitioner: Partitioner,
    /// Number of ranks that this command starts; under Slurm or MPI the launcher's own count holds
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub ranks: u32,
    /// Ranks that stand for one host: they own one partition together and share its training nodes
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub ranks_per_host: u32,
    /// Have each rank keep a buffer for itself, where the ranks of a host would share one of as many slots
    #[arg(long)]
    pub private_buffers: bool,
    /// How rows travel: `tcp`, `shm`
    #[arg(long, value_name = "NAME", default_value = "tcp")]
    pub transport: String,
    /// Shape each rank's incoming rows to a link: RATE[,LATENCY], such as `1gbit,50us`
    #[arg(long, value_name = "RATE,LATENCY", default_value = "none")]
    pub link: Link,
    /// The prefetch buffer: a share of the halo, such as `0.10`, or bytes, such as `64MiB`
    #[arg(long, value_name = "SIZE", default_value = "0.10")]
    pub buffer: BufferSize,
    /// The set-ups to compare, in this order
    #[arg(long = "controller", value_name = "LIST", value_enum, value_delimiter = ',', default_value = "off,lfu")]
    pub setups: Vec<SetUp>,
    /// Minibatches to sample and announce ahead of the one that computes, across the ends of epochs
    #[arg(long, value_name = "W", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=63))]
    pub lookahead: u32,
    /// Seeds a minibatch and rank
    #[arg(long, value_name = "B", default_value_t = 256, value_parser = positive)]
    pub batch: usize,
    /// Neighbours to sample, a layer each, from the output layer down
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "10,25", value_parser = positive)]
    pub fanout: Vec<usize>,
    /// Width of the hidden layers
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = positive)]
    pub hidden: usize,
    /// The optimiser's step
    #[arg(long, value_name = "X", default_value_t = 0.01)]
    pub learning_rate: f64,
    /// Epochs
    #[arg(long, value_name = "E", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub epochs: u32,
    /// Seed of the graph, its partition, the sampler, the weights and the coin
    #[arg(long, value_name = "S", default_value_t = 1)]
    pub seed: u64,
    /// How policies and controllers are set.
    #[command(flatten)]
    pub controls: ControlArgs,
    /// The language model, a GGUF file; without it the installed default is taken
    #[arg(long, value_name = "GGUF")]
    pub model: Option<PathBuf>,
    /// The classifier that set-up `classifier` asks, as `rudder fit` left it
    #[arg(long, value_name = "FILE")]
    pub classifier: Option<PathBuf>,
    /// The model that set-up `pilot` asks, as `rudder pilot` left it
    #[arg(long, value_name = "GGUF")]
    pub pilot: Option<PathBuf>,
    /// The interface that ranks listen on, where a launcher has started them on several machines
    #[arg(long, value_name = "ADDRESS", default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    pub listen: IpAddr,
    /// Under Slurm or MPI: a new file that all ranks see, where rank 0 leaves what the others need to find it
    #[arg(long, value_name = "FILE")]
    pub meeting: Option<PathBuf>,
    /// Record what minibatches want, in PREFIX.RANK.trace for each rank, for `rudder replay`; with one set-up only
    #[arg(long, value_name = "PREFIX")]
    pub trace: Option<PathBuf>,
    /// Write the document here
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Write the HTML report here
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
    /// Give up when a run makes no progress for so many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 120, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub patience: u64,
}

/// How policies and controllers are set.
#[derive(Args, Clone, Copy, Debug)]
#[command(next_help_heading = "Policies and controllers")]
pub struct ControlArgs {
    /// Minibatches between two decisions of `periodic`, `random` and `llm-cohorts`
    #[arg(long, value_name = "DELTA", default_value_t = Controls::default().delta, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    delta: u32,
    /// Decay of scored replacement a minibatch, between 0 and 1
    #[arg(long, value_name = "ALPHA", default_value_t = Controls::default().alpha, value_parser = share)]
    alpha: f64,
    /// What the buffer of scored replacement holds before the first minibatch
    #[arg(long, value_enum, default_value_t)]
    start: Start,
    /// Which hit rate the language model is shown
    #[arg(long, value_enum, default_value_t)]
    hit_rate: HitRateShown,
}

impl From<ControlArgs> for Controls {
    fn from(args: ControlArgs) -> Self {
        Self { delta: args.delta, alpha: args.alpha, start: args.start, hit_rate: args.hit_rate }
    }
}

/// `rudder demo`
#[derive(Args, Clone, Debug)]
pub struct DemoArgs {
    /// The language model, a GGUF file; without it the installed default is taken
    #[arg(long, value_name = "GGUF")]
    pub model: Option<PathBuf>,
    /// Epochs of each run
    #[arg(long, value_name = "E", default_value_t = 16, value_parser = clap::value_parser!(u32).range(2..=1000))]
    pub epochs: u32,
    /// Seeds a minibatch and rank
    #[arg(long, value_name = "B", default_value_t = 128, value_parser = positive)]
    pub batch: usize,
    /// Shape each rank's incoming rows to a link.
    ///
    /// On few cores computing hides what little such a link lets wait; `100mbit,50us` shows a job that its link holds back
    #[arg(long, value_name = "RATE,LATENCY", default_value = "1gbit,50us")]
    pub link: Link,
    /// Where rudder-demo.json and rudder-demo.html go; else `target/` where there is one, else the current directory
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
}

/// `rudder report`
#[derive(Args, Clone, Debug)]
pub struct ReportArgs {
    /// The JSON document
    pub document: PathBuf,
    /// The HTML file; else the document's name with the ending .html
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
}

/// `rudder replay`
#[derive(Args, Clone, Debug)]
pub struct ReplayArgs {
    /// Traces of all ranks of a job, or the prefix that they were recorded with; several jobs are replayed one by one
    #[arg(value_name = "TRACE", required = true)]
    pub traces: Vec<PathBuf>,
    /// The policies, by the names that RUDDER_POLICY takes; and `belady`, the bound that knows the whole trace
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "off,lfu,window,belady")]
    pub policy: Vec<String>,
    /// The controllers, as RUDDER_CONTROLLER takes them, such as `off,periodic:8`; those that ask a language model cannot be replayed
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "off")]
    pub controller: Vec<String>,
    /// The buffers: `recorded`, shares of the halo, such as `0.10`, or bytes of rows, such as `64MiB`
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "recorded")]
    pub buffer: Vec<Buffer>,
    /// Minibatches announced ahead
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "0", value_parser = clap::value_parser!(u32).range(0..=63))]
    pub lookahead: Vec<u32>,
    /// The links of every rank, to send and to receive: RATE[,LATENCY], such as `1gbit,50us`; with `none` rows come at once
    #[arg(long, value_name = "RATE,LATENCY", default_value = "none")]
    pub link: Link,
    /// Shape only what ranks receive, as `rudder train --link` does
    #[arg(long)]
    pub ingress_only: bool,
    /// A rank that sends at a share of its link's rate, such as `0:0.25`, from a step on, such as `0:0.25:128`; or all, which receive at it too: `all:0.25:128`
    #[arg(long, value_name = "RANK:SHARE[:STEP]", conflicts_with = "ingress_only")]
    pub slow: Option<SlowRank>,
    /// How it is gone about.
    #[command(flatten)]
    pub run: ReplayRun,
}

/// `rudder trace`
#[derive(Args, Clone, Debug)]
pub struct TraceArgs {
    /// What to show.
    #[command(subcommand)]
    pub show: TraceShow,
}

/// What to show of a trace.
#[derive(Clone, Debug, Subcommand)]
pub enum TraceShow {
    /// What was recorded, and how much of it
    Info {
        /// The traces
        #[arg(required = true)]
        files: Vec<PathBuf>,
    },
    /// What each rank did when, for Perfetto or Chrome's trace viewer
    Timeline {
        /// The traces of a job's ranks
        #[arg(value_name = "TRACE", required = true)]
        files: Vec<PathBuf>,
        /// The JSON file to write
        #[arg(short, long, value_name = "FILE")]
        output: PathBuf,
    },
    /// The first events
    Head {
        /// The trace
        file: PathBuf,
        /// How many events
        #[arg(short, value_name = "N", default_value_t = 10)]
        number: usize,
    },
}

/// Reads a number of things.
pub fn positive(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(number @ 1..=1_000_000) => Ok(number),
        _ => Err("must be a whole number from 1 to 1000000".to_owned()),
    }
}

/// Reads seconds.
pub fn latency(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(seconds) if (0.0..=3600.0).contains(&seconds) => Ok(seconds),
        _ => Err("must be seconds, from 0 to 3600".to_owned()),
    }
}

fn share(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(number) if (0.0..=1.0).contains(&number) => Ok(number),
        _ => Err("must be a number from 0 to 1".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    //! Goal: what the command line says is what the run gets, and what it cannot mean is refused with a hint. Method: parse and compare.

    use super::*;

    fn train(args: &[&str]) -> Result<TrainArgs, String> {
        match Cli::try_parse_from(["rudder", "train"].iter().chain(args)).map_err(|error| error.to_string())?.command {
            Command::Train(args) => Ok(*args),
            other => Err(format!("{other:?}")),
        }
    }

    #[test]
    fn lists_and_quantities_are_read() {
        let args =
            train(&["--controller", "off-sync,llm-cohorts", "--fanout", "5,10,15", "--link", "2gbit,50us"]).unwrap();
        assert_eq!(args.setups, [SetUp::OffSync, SetUp::LlmCohorts]);
        assert_eq!(args.fanout, [5, 10, 15]);
        assert_eq!(args.link.bytes_per_second, Some(250_000_000));
        assert_eq!(train(&["--buffer", "25%"]).unwrap().buffer, BufferSize::Halo(0.25));
        assert_eq!(train(&["--graph", "debian"]).unwrap().graph, GraphSpec::Debian);
    }

    #[test]
    fn what_cannot_be_meant_is_refused_with_a_hint() {
        for (args, words) in [
            (["--controller", "magic"], "off-sync"),
            (["--graph", "cora"], "allowed: debian"),
            (["--link", "1000"], "1gbit,50us"),
            (["--link", "1gbit,50s"], "up to a second"),
            (["--buffer", "12"], "64MiB"),
            (["--buffer", "much"], "64MiB"),
            (["--batch", "0"], "from 1 to"),
            (["--fanout", "10,0"], "from 1 to"),
            (["--ranks", "0"], "1..=1024"),
            (["--alpha", "2"], "from 0 to 1"),
            (["--epochs", "0"], "1..=10000"),
            (["--lookahead", "64"], "0..=63"),
        ] {
            let error = train(&args).unwrap_err();
            assert!(error.contains(words), "{args:?}: {error}");
        }
    }

    #[test]
    fn the_command_holds_together() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }
}
