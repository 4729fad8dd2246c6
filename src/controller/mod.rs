//! What to pull ahead, and when: the [`Controller`] watches hit rate and traffic and answers with a bounded [`Decision`].
//!
//! A decision never names vertices. It says keep or replace, how much, and from which cohorts; deterministic code in `buffer/` turns that
//! into vertices. So a controller can be slow, wrong, dead or absent and cost hits only, never bytes and never a wait.

mod analytic;
mod bandit;
pub mod classifier;
mod config;
mod fixed;
mod ghost;
mod guard;
#[cfg(feature = "llm")]
pub mod llm;
mod off;
mod periodic;
pub mod planner;
mod quotas;
mod random;
mod runtime;
mod shadow;
mod stats;
#[cfg(feature = "llm")]
mod threads;
mod watching;

pub use analytic::Analytic;
pub use bandit::Bandit;
pub use config::ControllerConfig;
pub use fixed::Fixed;
pub use ghost::Ghost;
pub use guard::Guard;
pub use off::Off;
pub use periodic::Periodic;
pub use quotas::Quotas;
pub use random::Random;
pub use runtime::{ControllerRuntime, RuntimeConfig, Shutdown};
pub use stats::DecisionStats;
pub use watching::Watching;

use crate::buffer::{Event, PolicyConfig, Watched};
use crate::error::Result;
use crate::id::PartitionId;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// How often a node was missed or hit lately (decayed count), in bands.
pub const FREQUENCY_BANDS: usize = 4;
/// How many minibatches ago it was last wanted, in bands.
pub const RECENCY_BANDS: usize = 3;

/// Vertices that are alike for the decision.
///
/// ```
/// use rudder::PartitionId;
/// use rudder::controller::Cohort;
///
/// let hot = Cohort { owner: PartitionId(2), frequency: 3, recency: 0, announced: true };
/// assert_eq!(Cohort::at(hot.index()), hot);
/// assert!(hot.index() < Cohort::count(3));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Cohort {
    /// Who owns them.
    pub owner: PartitionId,
    /// Frequency band: 0 is wanted once, 1 twice or three times, 2 four to seven times, 3 more often.
    pub frequency: u8,
    /// Recency band: 0 is wanted within the last 2 minibatches, 1 within the last 8, 2 longer ago.
    pub recency: u8,
    /// Whether an announced minibatch wants them.
    pub announced: bool,
}

impl Cohort {
    /// Number of cohorts of a job with so many partitions.
    pub fn count(partitions: u32) -> usize {
        partitions as usize * FREQUENCY_BANDS * RECENCY_BANDS * 2
    }

    /// Its place among [`Cohort::count`].
    pub fn index(self) -> usize {
        ((self.owner.index() * FREQUENCY_BANDS + self.frequency as usize) * RECENCY_BANDS + self.recency as usize) * 2
            + usize::from(self.announced)
    }

    /// The cohort at a place.
    pub fn at(index: usize) -> Self {
        Self {
            announced: index % 2 == 1,
            recency: (index / 2 % RECENCY_BANDS) as u8,
            frequency: (index / 2 / RECENCY_BANDS % FREQUENCY_BANDS) as u8,
            owner: PartitionId((index / 2 / RECENCY_BANDS / FREQUENCY_BANDS) as u32),
        }
    }
}

/// What one owner has sent between two minibatches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnerShare {
    /// Rows that came.
    pub rows: u64,
    /// Time during which any were on their way.
    pub busy: Duration,
}

/// What happened in one minibatch. Where the ranks of a host share one buffer, what is said of halo nodes, useless rows and cohorts is that of the
/// nodes that this rank keeps, in the minibatches of all.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Observation {
    /// Minibatches gathered so far, this one included.
    pub minibatch: u64,
    /// Minibatches of the whole job, where the caller said so, else 0.
    pub minibatches: u64,
    /// Remote input nodes that the minibatch wanted.
    pub remote_nodes: u64,
    /// Of these, halo nodes.
    pub halo_nodes: u64,
    /// Rows that were in the buffer.
    pub hits: u64,
    /// Of the rows that were not, those of halo nodes.
    pub halo_misses: u64,
    /// Rows fetched because this minibatch wanted them.
    pub demand_rows: u64,
    /// Rows fetched ahead, since the minibatch before.
    pub prefetched_rows: u64,
    /// Prefetched rows that left the buffer unused, since the minibatch before.
    pub useless_rows: u64,
    /// Slots that went to other nodes by a decision to replace, at the end of the minibatch before.
    pub replaced_rows: u64,
    /// A replacement was decided at the end of the minibatch before but found no candidates.
    pub replace_skipped: bool,
    /// Payload bytes fetched.
    pub bytes: u64,
    /// Time since the minibatch before was started; 0 of the first.
    pub elapsed: Duration,
    /// Time that callers waited for rows, since the minibatch before.
    pub stall: Duration,
    /// Missed nodes of the minibatch before by [`Cohort::index`]; empty unless the policy tracks cohorts. They are sorted into cohorts at a
    /// minibatch's end, which waits for the decision on it, hence the delay; this list is all that is allocated for each observation.
    pub cohort_misses: Vec<u32>,
    /// By partition, what its owner has sent since the minibatch before; empty unless wants are weighed by owner.
    pub owners: Vec<OwnerShare>,
}

impl Observation {
    /// Becomes a copy of another, in the lists that it has.
    pub(crate) fn copy_from(&mut self, other: &Self) {
        let (mut cohort_misses, mut owners) =
            (std::mem::take(&mut self.cohort_misses), std::mem::take(&mut self.owners));
        cohort_misses.clone_from(&other.cohort_misses);
        owners.clone_from(&other.owners);
        *self = Self { cohort_misses, owners, ..*other };
    }
}

/// What does not change while a job runs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct JobFacts {
    /// Nodes of the graph.
    pub nodes: u64,
    /// Edges of the graph, where known.
    pub edges: u64,
    /// Number of partitions.
    pub partitions: u32,
    /// This rank's partition.
    pub partition: u32,
    /// Remote nodes adjacent to the partition.
    pub halo_nodes: u64,
    /// Slots of the buffer.
    pub slots: u64,
    /// Seeds a minibatch.
    pub batch: u64,
    /// Minibatches of the whole job, 0 where unknown.
    pub minibatches: u64,
    /// The minibatches, counted from 0, with which the job changes, as far as that is known beforehand; they ascend.
    #[serde(default)]
    pub changes: Vec<u64>,
}

/// What a controller may decide.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Decision {
    /// Replace rows at the next minibatch boundary, once.
    pub replace: bool,
    /// For cohorts: rows to pull ahead of each minibatch until the next decision, by [`Cohort::index`]; `None` leaves what stands.
    pub quotas: Option<Vec<u32>>,
    /// By partition: what a want of its nodes counts over one of the others', where wants are weighed by owner; `None` leaves what stands.
    pub owner_weights: Option<Vec<f32>>,
    /// The policy that says from now on which rows stay; `None` leaves what stands. Of a buffer that the controller watches.
    pub policy: Option<PolicyConfig>,
}

impl Decision {
    /// Adds a later decision: what it leaves as it stands is this one's.
    pub fn merge(&mut self, later: Self) {
        self.replace |= later.replace;
        self.quotas = later.quotas.or(self.quotas.take());
        self.owner_weights = later.owner_weights.or(self.owner_weights.take());
        self.policy = later.policy.or(self.policy.take());
    }
}

/// How a controller fares.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// Why the attempt that its last turn to decide made failed; `None` where it succeeded, or where the turn made none.
    pub failure: Option<String>,
    /// CPU time spent for it in other threads or processes.
    pub remote_cpu: Duration,
}

/// Watches, and decides.
pub trait Controller: Send {
    /// Its name in the configuration.
    fn name(&self) -> &'static str;

    /// Before all else, where the buffer can be watched: what it is.
    ///
    /// # Errors
    /// The controller cannot work with it.
    fn attach(&mut self, _buffer: &Watched) -> Result<()> {
        Ok(())
    }

    /// Takes note of a call of the buffer that is watched. The calls of a minibatch come before its observation, but for its end.
    fn watch(&mut self, _event: &Event) {}

    /// Takes note of a minibatch.
    fn observe(&mut self, observation: &Observation);

    /// Decides, or returns `None` where it has nothing new to say yet.
    fn decide(&mut self) -> Option<Decision>;

    /// The last decision was handed over: what was observed so far tells nothing of its effect.
    fn handle_taken(&mut self) {}

    /// The last decision came too late and was not handed over.
    fn handle_discarded(&mut self) {}

    /// How it fares.
    fn health(&self) -> Health {
        Health::default()
    }
}
