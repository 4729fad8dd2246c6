//! What is kept of one replay of a study.

use serde::{Deserialize, Serialize};

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
    /// Minibatches of all ranks.
    pub minibatches: u64,
    /// Decisions of all ranks that took effect.
    pub decisions: u64,
    /// Processor seconds of all controllers; measured, so that it differs from run to run, as the next does.
    pub decision_cpu_s: f64,
    /// Of these, what the decision that took longest did; none without a controller.
    #[serde(default)]
    pub longest_decision_s: Option<f64>,
}
