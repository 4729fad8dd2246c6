//! What a study leaves behind: one JSON document, with each replay and what follows from all of them.

use super::StudyArgs;
use super::standing::Standings;
use crate::record::Machine;
use serde::{Deserialize, Serialize};

/// The version of the document's layout.
pub const FORMAT: u32 = 1;

/// The document.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Document {
    /// [`FORMAT`].
    pub format: u32,
    /// The command that made it.
    pub command: String,
    /// Where it ran.
    pub machine: Machine,
    /// What all jobs have in common.
    pub settings: Settings,
    /// Who competed.
    pub contenders: Vec<String>,
    /// What follows, in words.
    pub findings: Vec<String>,
    /// What follows, in numbers.
    pub standings: Standings,
    /// Each replay.
    pub runs: Vec<Run>,
    /// Seconds that it took.
    pub wall_s: f64,
}

/// What all sampled jobs have in common.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Settings {
    /// Ranks.
    pub ranks: u32,
    /// Seeds a minibatch and rank.
    pub batch: usize,
    /// Neighbours a layer.
    pub fanout: Vec<usize>,
    /// Minibatches of a rank.
    pub minibatches: u64,
    /// Bytes of a row.
    pub row_bytes: usize,
    /// Seconds of sampling a minibatch.
    pub sample_s: f64,
    /// Seconds of computing on a minibatch.
    pub compute_s: f64,
    /// The links.
    pub link: String,
    /// Seconds that a decision takes.
    pub decision_latency_s: f64,
}

impl Settings {
    /// As they were asked for.
    pub fn of(args: &StudyArgs) -> Self {
        Self {
            ranks: args.ranks,
            batch: args.batch,
            fanout: args.fanout.clone(),
            minibatches: args.minibatches,
            row_bytes: args.row_bytes,
            sample_s: args.sample,
            compute_s: args.compute,
            link: args.link.to_string(),
            decision_latency_s: args.run.decision_latency().as_secs_f64(),
        }
    }
}

/// One replay.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Run {
    /// The graph, or the recorded job.
    pub graph: String,
    /// What changes in it.
    pub scenario: String,
    /// What it was drawn from; 0 of a recorded job.
    pub seed: u64,
    /// The buffer.
    pub buffer: String,
    /// The rank that sends at a share of its link's rate only, as RANK:SHARE.
    pub slow: Option<String>,
    /// Minibatches announced ahead.
    pub lookahead: usize,
    /// The contender.
    pub contender: String,
    /// Rows fetched in all.
    pub rows_fetched: u64,
    /// The fewest possible with this buffer.
    pub fewest_rows: u64,
    /// Share of the wanted rows that were in the buffer or on their way there.
    pub hit_rate: f64,
    /// The time of the initial fill, which a job waits for, and the stall of each step's slowest rank, summed, in seconds.
    pub stall_s: f64,
    /// Of this, the fill and the first 32 minibatches.
    pub stall_start_s: f64,
    /// Of this, that of the 32 minibatches after the change, where there is one.
    pub stall_change_s: Option<f64>,
    /// The job's time, the fill included, in seconds.
    pub time_s: f64,
    /// Decisions of all ranks that took effect.
    pub decisions: u64,
    /// Processor seconds of all controllers: the one figure that is measured, and differs from run to run.
    pub decision_cpu_s: f64,
}
