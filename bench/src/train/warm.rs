//! Has the model read what it will be asked about, before the clock starts.
//!
//! A controller's prompt begins with the same words at every decision, and the service keeps what the model made of them. Evaluating them takes
//! seconds on a busy machine; left to the first decision, a short run would be over before the model has spoken.

use super::job::Job;
use crate::setup::SetUp;
use anyhow::{Context, Result};
use rudder::controller::JobFacts;
use rudder::controller::llm::{LlmCohorts, LlmReplace, ModelSource};
use std::time::Duration;

/// Has the model read the prompt of this rank's controller, where it has one; the processor time that took.
///
/// # Errors
/// The model does not answer within the job's patience.
pub fn model(job: &Job, facts: &JobFacts) -> Result<Duration> {
    let prefix = match job.setup {
        SetUp::Llm => LlmReplace::prefix(facts),
        SetUp::LlmCohorts => LlmCohorts::prefix(facts),
        _ => return Ok(Duration::ZERO),
    };
    let socket = job.model.clone().context("the set-up asks a language model and none is served")?;
    let mut scorer = ModelSource::Service { socket, deadline: job.patience() }.open()?;
    scorer.score(&prefix, "Ready?", &[" yes", " no"])?;
    Ok(scorer.remote_cpu())
}
