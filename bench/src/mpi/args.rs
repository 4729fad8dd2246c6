//! What `rudder mpi` is asked for.

use clap::{Args, ValueEnum};
use serde::Serialize;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

/// Bytes that one gather brings at most.
pub const LANDING_BYTES: usize = 16 << 20;

/// `rudder mpi`: all ranks of a job are given the same.
#[derive(Args, Clone, Debug)]
pub struct MpiArgs {
    /// What to measure; everything, where nothing is named
    #[arg(value_enum)]
    pub benchmarks: Vec<Benchmark>,
    /// Our transports; one that cannot serve the job is left out, which is said
    #[arg(long = "transport", value_name = "LIST", value_delimiter = ',', default_value = "shm,tcp,mpi")]
    pub transports: Vec<String>,
    /// Bytes of a message, from the first to the second in powers of 2: latency, bandwidth, registration
    #[arg(short = 'm', long, value_name = "MIN:MAX", default_value = "8:1048576", value_parser = sizes)]
    pub message_size: Sizes,
    /// Samples of ours and of each baseline, taken in turns
    #[arg(short = 'i', long, value_name = "N", default_value_t = 40, value_parser = clap::value_parser!(u32).range(30..=100_000))]
    pub iterations: u32,
    /// Samples that are taken first and not counted
    #[arg(short = 'x', long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub skip: u32,
    /// Messages under way at once: bandwidth
    #[arg(short = 'W', long, value_name = "N", default_value_t = 64, value_parser = crate::cli::positive)]
    pub window_size: usize,
    /// Bytes of a row: gathers
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "400,2408", value_parser = crate::cli::positive)]
    pub row_bytes: Vec<usize>,
    /// Rows of a gather, cut to 16 MiB
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = crate::cli::positive)]
    pub batch: usize,
    /// Each rank's table in MiB
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub table_mib: u32,
    /// Seed of the row numbers
    #[arg(long, value_name = "S", default_value_t = 1)]
    pub seed: u64,
    /// What MPI is asked for; below `multiple` our transport `mpi` is left out
    #[arg(long, value_enum, default_value_t = ThreadLevel::Multiple)]
    pub thread_level: ThreadLevel,
    /// The language model whose decisions are timed, a GGUF file; without one, the controllers that need none are
    #[arg(long, value_name = "GGUF")]
    pub model: Option<PathBuf>,
    /// The interface that ranks listen on, where they run on several machines
    #[arg(long, value_name = "ADDRESS", default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    pub listen: IpAddr,
    /// Write the document here
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Write the figures here, a line each
    #[arg(long, value_name = "FILE")]
    pub csv: Option<PathBuf>,
    /// Write the HTML page with its plots here
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
}

/// What can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Benchmark {
    /// One row at a time, of each message size
    Latency,
    /// A window of rows at a time, of each message size
    Bandwidth,
    /// More and more rows of 8 bytes at a time
    MessageRate,
    /// A batch of random rows of one owner
    Gather,
    /// The same between several pairs of ranks at once
    MultiPair,
    /// Every rank gathers random rows of all others at once, as in GNN training
    AllToAll,
    /// All ranks gather from one at once
    Incast,
    /// How much of a gather hides behind computing
    Overlap,
    /// Making memory readable to peers, and taking it back
    Registration,
    /// A gather, quiet and under allreduce traffic of all ranks
    Allreduce,
    /// A controller's decision, alone and beside computing and allreduce
    Decision,
}

impl Benchmark {
    /// Its name on the command line.
    pub fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }

    /// What it measures, in words.
    pub fn meaning(self) -> String {
        let help = self.to_possible_value().and_then(|value| value.get_help().map(ToString::to_string));
        help.unwrap_or_default()
    }
}

/// The levels that MPI knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ThreadLevel {
    /// One thread in the process
    Single,
    /// Calls from the thread that has started MPI
    Funneled,
    /// Calls from one thread at a time
    Serialized,
    /// Calls from any thread at any time
    Multiple,
}

/// Sizes from a first to a last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    first: usize,
    last: usize,
}

impl Sizes {
    /// Powers of 2 times the first.
    pub fn each(self) -> impl Iterator<Item = usize> {
        std::iter::successors(Some(self.first), |size| size.checked_mul(2)).take_while(move |&size| size <= self.last)
    }
}

fn sizes(text: &str) -> Result<Sizes, String> {
    let (first, last) = text.split_once(':').unwrap_or((text, text));
    match (first.parse(), last.parse()) {
        (Ok(first), Ok(last)) if (1..=last).contains(&first) && last <= LANDING_BYTES => Ok(Sizes { first, last }),
        _ => Err(format!("must be MIN:MAX, from 1 to {} bytes", LANDING_BYTES)),
    }
}

#[cfg(test)]
mod tests {
    //! Goal: sizes are what OSU's option means, and others are refused. Method: parse and compare.

    use super::*;

    #[test]
    fn sizes_double() {
        assert_eq!(sizes("8:64").unwrap().each().collect::<Vec<_>>(), [8, 16, 32, 64]);
        assert_eq!(sizes("100").unwrap().each().collect::<Vec<_>>(), [100]);
        for wrong in ["0:8", "16:8", "", "8:99999999999", "x"] {
            assert!(sizes(wrong).is_err(), "{wrong}");
        }
    }
}
