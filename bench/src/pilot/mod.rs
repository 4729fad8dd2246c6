//! `rudder pilot`: makes the small language model of the controller `pilot:FILE`, from jobs that it generates and replays.
//!
//! `samples` draws jobs, replays each up to some decisions, and from there under every plan: what a plan's rows are waited for is what the model is to
//! learn. `train` trains it, quantizes it, and says what its choices cost on jobs that it has not seen.

mod branch;
mod classifiers;
mod draw;
mod gguf;
mod network;
mod samples;
mod score;
mod train;
mod vocabulary;

use crate::cli::positive;
use crate::fit::ModelArgs;
use anyhow::Result;
use clap::{Args, Subcommand};
use std::num::NonZero;
use std::path::PathBuf;

/// `rudder pilot`
#[derive(Args, Clone, Debug)]
pub struct PilotArgs {
    /// What to do.
    #[command(subcommand)]
    pub step: Step,
}

/// The steps.
#[derive(Clone, Debug, Subcommand)]
pub enum Step {
    /// Generate jobs, and replay every plan at some of their decisions
    Samples(SamplesArgs),
    /// Train the language model on samples
    Train(TrainArgs),
    /// Train classifiers on the same samples, for the controller `plan-classifier:FILE`
    Classifiers(ClassifiersArgs),
}

/// `rudder pilot samples`
#[derive(Args, Clone, Debug)]
pub struct SamplesArgs {
    /// Graphs to generate, each with its partitions; of each there are 6 jobs
    #[arg(long, value_name = "N", default_value_t = 240, value_parser = positive)]
    pub graphs: usize,
    /// Seed of all that is drawn
    #[arg(long, value_name = "S", default_value_t = 1)]
    pub seed: u64,
    /// Replays at a time; as many as there are cores, if not given
    #[arg(long, value_name = "N")]
    pub threads: Option<NonZero<usize>>,
    /// Where to leave the samples, one a line
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
}

/// `rudder pilot train`
#[derive(Args, Clone, Debug)]
pub struct TrainArgs {
    /// What `rudder pilot samples` has left
    #[arg(value_name = "SAMPLES")]
    pub samples: PathBuf,
    /// Where to leave the model
    #[arg(long, value_name = "FILE", required_unless_present = "without_job")]
    pub out: Option<PathBuf>,
    /// Leave out what prompts say of the job, and leave no model: only what that costs is told
    #[arg(long, conflicts_with = "out")]
    pub without_job: bool,
    /// Times that every sample is learnt from
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = positive)]
    pub epochs: usize,
    /// Seed of what the first training draws
    #[arg(long, value_name = "S", default_value_t = 1)]
    pub seed: u64,
    /// Trainings, of which the one is kept whose choices cost least on the graphs for validation
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = positive)]
    pub trainings: usize,
    /// Trainings at a time; as many as there are cores, if not given
    #[arg(long, value_name = "N")]
    pub threads: Option<NonZero<usize>>,
    /// Write what came of it here
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

/// `rudder pilot classifiers`
#[derive(Args, Clone, Debug)]
pub struct ClassifiersArgs {
    /// What `rudder pilot samples` has left
    #[arg(value_name = "SAMPLES")]
    pub samples: PathBuf,
    /// What is trained, and where it is left.
    #[command(flatten)]
    pub models: ModelArgs,
    /// Seed of what training draws
    #[arg(long, value_name = "S", default_value_t = 1)]
    pub seed: u64,
}

/// `rudder pilot`
///
/// # Errors
/// Samples cannot be made or read, they leave nothing to learn from, or a file cannot be written.
pub fn run(args: &PilotArgs) -> Result<()> {
    match &args.step {
        Step::Samples(args) => samples::make(args),
        Step::Train(args) => train::run(args),
        Step::Classifiers(args) => classifiers::run(args),
    }
}
