//! What a rank is told to do.

use super::setup::{Controls, SetUp};
use crate::cli::{Buffer, Link};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// One set-up's training, the same for every rank.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
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
    pub link: Option<Link>,
    /// The buffer's size.
    pub buffer: Buffer,
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
}

/// A job as one rank gets it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Order {
    /// The job.
    pub job: Job,
    /// This rank.
    pub rank: u32,
    /// What brings the ranks together; it carries their secret.
    pub unique_id: String,
    /// Where the rank's record goes.
    pub record: PathBuf,
}
