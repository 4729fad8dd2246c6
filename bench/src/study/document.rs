//! What a study leaves behind: one JSON document, with each replay and what follows from all of them.

use super::StudyArgs;
use super::replayed::Run;
use super::standing::Standings;
use crate::record::Made;
use serde::{Deserialize, Serialize};

/// The version of the document's layout.
pub const FORMAT: u32 = 1;

/// The document.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Document {
    /// [`FORMAT`], and what made it.
    #[serde(flatten)]
    pub made: Made,
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
    /// Most rows fetched ahead that are on their way at once, where that is not as in the job.
    #[serde(default)]
    pub in_flight: Option<usize>,
    /// Whether controllers know beforehand when a sampled job changes.
    #[serde(default)]
    pub announce_changes: bool,
}

impl Settings {
    /// As they were asked for.
    pub fn of(args: &StudyArgs) -> Self {
        Self {
            ranks: args.ranks,
            batch: args.sampling.batch,
            fanout: args.sampling.fanout.clone(),
            minibatches: args.sampling.minibatches,
            row_bytes: args.sampling.row_bytes,
            sample_s: args.sampling.sample,
            compute_s: args.sampling.compute,
            link: args.link.to_string(),
            decision_latency_s: args.run.decision_latency().as_secs_f64(),
            in_flight: args.run.in_flight(),
            announce_changes: args.announce_changes,
        }
    }
}
