//! The command line.

use crate::train::setup::{Controls, HitRateShown, SetUp, Start};
use clap::{Args, Parser, Subcommand};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

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
    /// Compare all set-ups on the bundled graph, over TCP at 1 Gbit/s, in a few minutes
    Demo(DemoArgs),
    /// Draw the HTML report of a JSON document that `train` or `demo` wrote
    Report(ReportArgs),
    /// One rank of `train`; started by it, reads its orders from standard input
    #[command(hide = true)]
    Rank,
}

/// `rudder train`
#[derive(Args, Clone, Debug)]
pub struct TrainArgs {
    /// The graph: `debian` (bundled), `rmat:SCALE`, `sbm:NODES`, or a prepared directory.
    ///
    /// It is prepared once and mapped by all ranks: the topology is shared and complete on each machine; the features are partitioned, and a
    /// rank reads rows of other partitions only through rudder.
    #[arg(long, value_name = "SPEC", default_value = "debian")]
    pub graph: String,
    /// How nodes are dealt to ranks
    #[arg(long, value_enum, default_value_t)]
    pub partitioner: Partitioner,
    /// Number of ranks that this command starts; under Slurm or MPI the launcher's own count holds
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub ranks: u32,
    /// Ranks that stand for one host and map each other's rows; 1 makes every other rank remote
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub ranks_per_host: u32,
    /// How rows travel: `tcp`, `shm`
    #[arg(long, value_name = "NAME", default_value = "tcp")]
    pub transport: String,
    /// Shape each rank's incoming rows to a link: RATE[,LATENCY], such as `1gbit,50us`
    #[arg(long, value_name = "RATE,LATENCY")]
    pub link: Option<Link>,
    /// The prefetch buffer: a share of the halo, such as `0.10`, or bytes, such as `64MiB`
    #[arg(long, value_name = "SIZE", default_value = "0.10")]
    pub buffer: Buffer,
    /// The set-ups to compare, in this order
    #[arg(long = "controller", value_name = "LIST", value_enum, value_delimiter = ',', default_value = "off,lfu")]
    pub setups: Vec<SetUp>,
    /// Minibatches to sample and announce ahead of the one that computes, across the ends of epochs
    #[arg(long, value_name = "W", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=1024))]
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
    #[arg(long, value_name = "E", default_value_t = 4, value_parser = clap::value_parser!(u32).range(2..=1000))]
    pub epochs: u32,
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

/// How nodes are dealt to ranks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Partitioner {
    /// Few edges between partitions
    #[default]
    Metis,
    /// By a draw
    Random,
    /// By node number
    Range,
}

impl fmt::Display for Partitioner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Metis => "metis",
            Self::Random => "random",
            Self::Range => "range",
        })
    }
}

/// A shaped link: what each rank receives passes through it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Link {
    /// Bytes a second.
    pub bytes_per_s: f64,
    /// One way.
    pub latency: Duration,
}

impl FromStr for Link {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (rate, latency) = match text.split_once(',') {
            Some((rate, latency)) => (rate, Some(latency)),
            None => (text, None),
        };
        let (number, unit) = quantity(rate)?;
        let bits = match unit {
            "gbit" => 1e9,
            "mbit" => 1e6,
            "kbit" => 1e3,
            _ => return Err(format!("the rate {rate:?} has no unit: write it like 1gbit, 100mbit or 500kbit")),
        };
        if number <= 0.0 {
            return Err(format!("the rate {rate:?} moves nothing"));
        }
        Ok(Self { bytes_per_s: number * bits / 8.0, latency: latency.map_or(Ok(Duration::ZERO), parse_latency)? })
    }
}

fn parse_latency(text: &str) -> Result<Duration, String> {
    let (number, unit) = quantity(text)?;
    let seconds = match unit {
        "ns" => 1e-9,
        "us" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        _ => return Err(format!("the latency {text:?} has no unit: write it like 50us or 2ms")),
    };
    Duration::try_from_secs_f64(number * seconds)
        .ok()
        .filter(|latency| *latency <= Duration::from_secs(10))
        .ok_or_else(|| format!("the latency {text:?} is beyond 10 s"))
}

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bits = self.bytes_per_s * 8.0;
        let (number, unit) = match bits {
            _ if bits >= 1e9 => (bits / 1e9, "Gbit/s"),
            _ if bits >= 1e6 => (bits / 1e6, "Mbit/s"),
            _ => (bits / 1e3, "kbit/s"),
        };
        write!(f, "{number} {unit}, {:?}", self.latency)
    }
}

/// The size of the prefetch buffer.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum Buffer {
    /// A share of the rank's halo nodes.
    Halo(f64),
    /// Bytes of rows.
    Bytes(u64),
}

impl FromStr for Buffer {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (number, unit) = quantity(text)?;
        let factor = match unit {
            "" if number <= 1.0 => return Ok(Self::Halo(number)),
            "%" if number <= 100.0 => return Ok(Self::Halo(number / 100.0)),
            "KiB" => 1u64 << 10,
            "MiB" => 1 << 20,
            "GiB" => 1 << 30,
            _ => {
                return Err(format!(
                    "{text:?} is neither a share of the halo (0 to 1, 0 % to 100 %) nor a size (64MiB)"
                ));
            }
        };
        Ok(Self::Bytes((number * factor as f64) as u64))
    }
}

impl fmt::Display for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Halo(share) => write!(f, "{} % of the halo", (share * 1e4).round() / 100.0),
            Self::Bytes(bytes) => write!(f, "{:.1} MiB", *bytes as f64 / f64::from(1 << 20)),
        }
    }
}

/// A non-negative number and the unit behind it.
fn quantity(text: &str) -> Result<(f64, &str), String> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let number = text[..end].parse::<f64>().map_err(|_| format!("{text:?} does not begin with a number"))?;
    Ok((number, text[end..].trim()))
}

fn positive(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(number @ 1..=1_000_000) => Ok(number),
        _ => Err("must be a whole number from 1 to 1000000".to_owned()),
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
            train(&["--controller", "off-sync,llm-cohorts", "--fanout", "5,10,15", "--link", "2.5gbit,50us"]).unwrap();
        assert_eq!(args.setups, [SetUp::OffSync, SetUp::LlmCohorts]);
        assert_eq!(args.fanout, [5, 10, 15]);
        assert_eq!(args.link, Some(Link { bytes_per_s: 312.5e6, latency: Duration::from_micros(50) }));
        assert_eq!("100mbit".parse(), Ok(Link { bytes_per_s: 12.5e6, latency: Duration::ZERO }));
        assert_eq!("0.25".parse(), Ok(Buffer::Halo(0.25)));
        assert_eq!("25%".parse(), Ok(Buffer::Halo(0.25)));
        assert_eq!("1.5MiB".parse(), Ok(Buffer::Bytes(3 << 19)));
    }

    #[test]
    fn what_cannot_be_meant_is_refused_with_a_hint() {
        for (args, words) in [
            (["--controller", "magic"], "off-sync"),
            (["--link", "1000"], "like 1gbit"),
            (["--link", "0gbit"], "moves nothing"),
            (["--link", "1gbit,50"], "like 50us"),
            (["--link", "1gbit,50s"], "beyond 10 s"),
            (["--buffer", "12"], "share of the halo"),
            (["--buffer", "much"], "begin with a number"),
            (["--batch", "0"], "from 1 to"),
            (["--fanout", "10,0"], "from 1 to"),
            (["--ranks", "0"], "1..=1024"),
            (["--alpha", "2"], "from 0 to 1"),
            (["--epochs", "0"], "1..=10000"),
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
