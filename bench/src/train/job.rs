//! What a rank is told to do.

use crate::progress::Event;
use crate::setup::{Controls, SetUp};
use rudder::transport::hook::Link;
use rudder::{BufferSize, PartitionId, Rank, TableId};
use serde::{Deserialize, Serialize};
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

/// The one table of a training run: the graph's features.
pub const TABLE: TableId = TableId(0);

/// One set-up's training, the same for every rank.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Job {
    /// The set-up.
    pub setup: SetUp,
    /// Minibatches to announce ahead.
    pub lookahead: u32,
    /// The prepared graph.
    pub graph: PathBuf,
    /// Number of ranks.
    pub ranks: u32,
    /// Ranks that stand for one host.
    pub ranks_per_host: u32,
    /// The transport's name.
    pub transport: String,
    /// The shaped link.
    pub link: Link,
    /// The buffer's size.
    pub buffer: BufferSize,
    /// Seeds a minibatch and rank.
    pub batch: usize,
    /// Neighbours a layer, from the output layer down.
    pub fanout: Vec<usize>,
    /// Width of the hidden layers.
    pub hidden: usize,
    /// The optimiser's step.
    pub learning_rate: f64,
    /// Epochs.
    pub epochs: u32,
    /// The seed of everything that is drawn.
    pub seed: u64,
    /// Settings of policies and controllers.
    pub controls: Controls,
    /// Where the language model answers.
    pub model: Option<PathBuf>,
    /// The classifier's file.
    pub classifier: Option<PathBuf>,
    /// The pilot's file.
    pub pilot: Option<PathBuf>,
    /// Partitions stand for hosts: ranks of different ones are to each other as if on different machines, wherever they run.
    pub partitions_are_hosts: bool,
    /// Each rank keeps a buffer for itself, where those of a host would share one.
    pub private_buffers: bool,
    /// The interface that listeners bind to.
    pub listen: IpAddr,
    /// Records what minibatches want, in files of this prefix.
    pub trace: Option<PathBuf>,
    /// Seconds that a rank waits for the others.
    pub patience_s: u64,
}

impl Job {
    /// Number of partitions.
    pub fn partitions(&self) -> u32 {
        self.ranks.div_ceil(self.ranks_per_host)
    }

    /// The partition of a rank.
    pub fn partition(&self, rank: Rank) -> PartitionId {
        PartitionId(rank.0 / self.ranks_per_host)
    }

    /// The rank's place among those that share its partition, and how many these are.
    pub fn share(&self, rank: Rank) -> (usize, usize) {
        let first = rank.0 - rank.0 % self.ranks_per_host;
        ((rank.0 - first) as usize, self.ranks_per_host.min(self.ranks - first) as usize)
    }

    /// How long a rank waits for the others.
    pub fn patience(&self) -> Duration {
        Duration::from_secs(self.patience_s)
    }
}

/// A job as one rank gets it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Order {
    /// The job.
    pub job: Job,
    /// This rank.
    pub rank: u32,
    /// What brings the ranks together, in hexadecimal; it carries their secret. Rank 0 gets none: it makes it.
    pub unique_id: Option<String>,
    /// Where the rank's record goes.
    pub record: PathBuf,
}

/// What rank 0 says on its standard output, a JSON line each.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Said {
    /// The unique id that it has made, for the other ranks; never shown.
    UniqueId(String),
    /// How far it is.
    Progress(Event),
}
