//! The bound of any yes/no model: a controller of policy `rudder` that knows what is to come.
//!
//! At each decision it replays the job from its start under both answers, as far as the answer can show, and gives the better one. All
//! ranks give the same answer at the same minibatch. It sees no farther than that: not a bound of all sequences of answers, which
//! are too many, but of any model that looks one decision ahead, however well it sees.

use super::case::Case;
use super::traces::Job;
use super::world::{Outcome, replay_steered};
use anyhow::{Result, anyhow};
use rudder::controller::{Controller, Decision, Observation, Periodic};
use std::time::Duration;

/// Minibatches between two decisions: as many as the published scheme has.
pub const DELTA: u64 = 8;
/// Minibatches after the decision has taken effect in which it is judged.
const HORIZON: usize = 32;

/// What a decision takes by the name of the controller: `oracle` none, `oracle:SECONDS` so long. `None` for another controller.
///
/// # Errors
/// The seconds are none.
pub fn latency(controller: &str) -> Result<Option<Duration>> {
    let Some(seconds) = controller.strip_prefix("oracle") else { return Ok(None) };
    let seconds = match seconds.strip_prefix(':') {
        None if seconds.is_empty() => return Ok(Some(Duration::ZERO)),
        None => return Ok(None),
        Some(seconds) => crate::cli::latency(seconds),
    };
    let seconds = seconds.map_err(|cause| anyhow!("controller {controller:?}: {cause}"))?;
    Ok(Some(Duration::from_secs_f64(seconds)))
}

/// Answers as it was told to, and no beyond that.
pub struct Scripted {
    answers: Vec<bool>,
    opportunities: Periodic,
    due: Option<usize>,
}

impl Scripted {
    /// Gives these answers, one after the other.
    ///
    /// # Errors
    /// Those of the schedule that it keeps to.
    pub fn new(answers: &[bool]) -> rudder::Result<Self> {
        Ok(Self { answers: answers.to_vec(), opportunities: Periodic::new(DELTA)?, due: None })
    }
}

impl Controller for Scripted {
    fn name(&self) -> &'static str {
        "oracle"
    }

    fn observe(&mut self, observation: &Observation) {
        let due = self.opportunities.is_due(observation.minibatch);
        self.due = due.then(|| (observation.minibatch / DELTA) as usize - 1);
    }

    fn decide(&mut self) -> Option<Decision> {
        let replace = self.answers.get(self.due.take()?).copied().unwrap_or(false);
        Some(Decision { replace, ..Decision::default() })
    }
}

/// Replays a job with the answers that the oracle finds.
///
/// # Errors
/// The case does not fit the job.
pub fn replay(job: &Job, case: &Case, latency: Duration) -> Result<Outcome> {
    let case = Case { decision_latency: latency, ..case.clone() };
    let steps = job.steps;
    let mut answers = Vec::with_capacity(steps / DELTA as usize);
    let scripted =
        |answers: &[bool], steps| replay_steered(job, &case, steps, &|_, _, _| Ok(Box::new(Scripted::new(answers)?)));
    let untouched = scripted(&answers, steps)?;
    let step = untouched.epochs.iter().sum::<Duration>().as_secs_f64() / steps as f64;
    let until_effect = if step > 0.0 { (latency.as_secs_f64() / step).min(steps as f64) as usize } else { 0 };
    for decision in 1..=steps / DELTA as usize {
        let until = (decision * DELTA as usize + until_effect + HORIZON).min(steps);
        let mut with = |answer| {
            answers.push(answer);
            let outcome = scripted(&answers, until);
            answers.pop();
            outcome.map(|outcome| cost(&outcome))
        };
        let better = with(true)? < with(false)?;
        answers.push(better);
    }
    scripted(&answers, steps)
}

/// Stall, and rows where that is the same.
fn cost(outcome: &Outcome) -> (Duration, u64) {
    let stats = outcome.stats;
    (outcome.stalls.iter().sum(), stats.demand_rows + stats.prefetched_rows + stats.fill_rows)
}

#[cfg(test)]
mod tests {
    //! Goal: names and answers are those that were given. Method: by hand.
    use super::*;

    #[test]
    fn an_oracle_is_named_with_what_it_takes() {
        assert_eq!(latency("oracle").unwrap(), Some(Duration::ZERO));
        assert_eq!(latency("oracle:0.5").unwrap(), Some(Duration::from_millis(500)));
        assert_eq!((latency("periodic:8").unwrap(), latency("oracles").unwrap()), (None, None));
        assert!(latency("oracle:soon").is_err() && latency("oracle:").is_err());
    }

    #[test]
    fn answers_are_given_in_turn_and_no_beyond_them() {
        let mut scripted = Scripted::new(&[true, false, true]).unwrap();
        let mut given = Vec::new();
        for minibatch in 1..=4 * DELTA {
            scripted.observe(&Observation { minibatch, ..Observation::default() });
            given.extend(scripted.decide().map(|decision| decision.replace));
        }
        assert_eq!(given, [true, false, true, false]);
    }
}
