//! What a replay leaves behind: one JSON document, a row a configuration.

use super::case::{BELADY, Buffer, Case};
use super::later_epochs;
use super::traces::Job;
use super::world::Outcome;
use crate::record::Made;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// The version of the document's layout.
pub const FORMAT: u32 = 1;

/// The document.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Document {
    /// [`FORMAT`], and what made it.
    #[serde(flatten)]
    pub made: Made,
    /// What all replays have in common.
    pub settings: Settings,
    /// What the recorded runs had themselves, a job each.
    pub recorded: Vec<Recorded>,
    /// A replay each, and the bounds.
    pub rows: Vec<Row>,
    /// What is not as it could be.
    pub notes: Vec<String>,
    /// Node ids that were replayed.
    pub node_ids: u64,
    /// Replays at a time.
    pub threads: usize,
    /// Seconds of replaying, reading the traces and the bounds left out.
    pub replay_s: f64,
    /// Seconds that it took in all.
    pub wall_s: f64,
}

/// What all replays have in common.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Settings {
    /// The links.
    pub link: String,
    /// A rank that sends at a share of that rate only, as RANK:SHARE.
    #[serde(default)]
    pub slow: Option<String>,
    /// Only what ranks receive is shaped.
    pub ingress_only: bool,
    /// Seconds that a decision takes.
    pub decision_latency_s: f64,
    /// Most rows fetched ahead that are on their way at once, where that is not as in the job.
    #[serde(default)]
    pub in_flight: Option<usize>,
}

/// What a run had while it was recorded.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Recorded {
    /// The job.
    pub trace: String,
    /// Its policy.
    pub policy: String,
    /// Its controller.
    pub controller: String,
    /// Its link.
    pub link: String,
    /// Ranks whose traces are given.
    pub ranks: usize,
    /// Steps.
    pub steps: usize,
    /// Rows fetched, the initial fill not included.
    pub rows_fetched: u64,
    /// Share of the wanted rows that were in the buffer or on their way there.
    pub hit_rate: f64,
    /// The stall of each step's slowest rank, summed, in seconds.
    pub stall_s: f64,
    /// Median seconds of an epoch after the first.
    pub epoch_s: f64,
    /// Seconds of every epoch.
    pub epochs_s: Vec<f64>,
}

impl Recorded {
    /// Of a job.
    pub fn of(job: &Job) -> Self {
        let (rows_fetched, hit_rate, stall, epochs_s) = job.recorded();
        let header = &job.ranks[0].header;
        let epochs: Vec<Duration> = epochs_s.iter().map(|&epoch| Duration::from_secs_f64(epoch)).collect();
        Self {
            trace: job.name.clone(),
            policy: header.policy.clone(),
            controller: header.controller.clone(),
            link: header.link.to_string(),
            ranks: job.ranks.len(),
            steps: job.steps,
            rows_fetched,
            hit_rate,
            stall_s: stall.as_secs_f64(),
            epoch_s: later_epochs(&epochs),
            epochs_s,
        }
    }
}

/// One replay, or the bound of a buffer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// The job.
    pub trace: String,
    /// The policy.
    pub policy: String,
    /// The controller.
    pub controller: String,
    /// The buffer.
    pub buffer: String,
    /// Minibatches announced ahead.
    pub lookahead: usize,
    /// Rows fetched in all.
    pub rows_fetched: u64,
    /// Of these, because a minibatch wanted them then.
    pub demand_rows: u64,
    /// Ahead of a minibatch.
    pub prefetched_rows: u64,
    /// Before the first minibatch.
    pub fill_rows: u64,
    /// Payload bytes of them all.
    pub bytes: u64,
    /// Share of the wanted rows that were in the buffer or on their way there.
    pub hit_rate: f64,
    /// Rows fetched ahead that never served.
    pub useless_rows: u64,
    /// Rows fetched over the fewest possible with this buffer.
    pub ratio_to_opt: f64,
    /// The stall of each step's slowest rank, summed, in seconds; a bound has none.
    pub stall_s: Option<f64>,
    /// Median seconds of an epoch after the first; a bound has none.
    pub epoch_s: Option<f64>,
    /// Seconds of every epoch.
    pub epochs_s: Vec<f64>,
    /// Seconds of filling the buffers before the first step.
    pub fill_s: f64,
    /// Decisions of all ranks that took effect.
    pub decisions: u64,
    /// Of these, decisions to replace.
    pub replacements: u64,
    /// Processor seconds of all controllers: the one figure that is measured, and differs from run to run.
    pub decision_cpu_s: f64,
}

impl Row {
    /// Of a replay, whose buffers could not do with fewer than `fewest` rows.
    pub fn of(job: &Job, case: &Case, outcome: &Outcome, fewest: u64) -> Self {
        let stats = outcome.stats;
        let rows_fetched = stats.demand_rows + stats.prefetched_rows + stats.fill_rows;
        Self {
            trace: job.name.clone(),
            policy: case.policy_words.clone(),
            controller: case.controller_words.clone(),
            buffer: case.buffer.to_string(),
            lookahead: case.lookahead,
            rows_fetched,
            demand_rows: stats.demand_rows,
            prefetched_rows: stats.prefetched_rows,
            fill_rows: stats.fill_rows,
            bytes: outcome.bytes,
            hit_rate: stats.hits as f64 / stats.remote_nodes.max(1) as f64,
            useless_rows: outcome.useless_rows,
            ratio_to_opt: ratio(rows_fetched, fewest),
            stall_s: Some(outcome.stalls.iter().sum::<Duration>().as_secs_f64()),
            epoch_s: Some(later_epochs(&outcome.epochs)),
            epochs_s: outcome.epochs.iter().map(Duration::as_secs_f64).collect(),
            fill_s: outcome.fill.as_secs_f64(),
            decisions: outcome.decisions,
            replacements: outcome.replacements,
            decision_cpu_s: outcome.decision_cpu.as_secs_f64(),
        }
    }

    /// The bound of a buffer.
    pub fn bound(job: &Job, buffer: Buffer, fewest: u64) -> Self {
        let wanted = job.wanted();
        Self {
            trace: job.name.clone(),
            policy: BELADY.to_owned(),
            controller: "off".to_owned(),
            buffer: buffer.to_string(),
            lookahead: 0,
            rows_fetched: fewest,
            demand_rows: fewest,
            prefetched_rows: 0,
            fill_rows: 0,
            bytes: fewest * job.ranks[0].row_bytes(),
            hit_rate: (wanted - fewest) as f64 / wanted.max(1) as f64,
            useless_rows: 0,
            ratio_to_opt: 1.0,
            stall_s: None,
            epoch_s: None,
            epochs_s: Vec::new(),
            fill_s: 0.0,
            decisions: 0,
            replacements: 0,
            decision_cpu_s: 0.0,
        }
    }
}

fn ratio(rows: u64, fewest: u64) -> f64 {
    if fewest == 0 { 1.0 } else { rows as f64 / fewest as f64 }
}
