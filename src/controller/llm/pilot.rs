//! A language model trained for it chooses the buffer's plan.
//!
//! It reads a [`Situation`] as text and answers with the name of one of the plans that can be chosen: a closed question like the other models', by the
//! same loader. `rudder pilot` trains it.

use super::scorer::prompt_version;
use super::{LocalScorer, Scorer, ScorerLimits};
use crate::controller::planner::{Advisor, PLANS, Situation};
use crate::error::Result;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::time::Duration;

/// The version of texts and plans: a model knows those that it was trained on.
pub const PROMPT: u32 = 1;

/// Settings of the pilot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PilotConfig {
    /// The GGUF file that `rudder pilot` has left.
    pub file: PathBuf,
}

/// The model.
pub struct Pilot {
    scorer: Box<dyn Scorer>,
}

impl Pilot {
    /// Loads the model, which may write to the [environment](crate::controller::llm#the-environment).
    ///
    /// # Errors
    /// The file cannot be read, is damaged, or holds a model that was not trained on these texts and plans.
    pub fn new(config: &PilotConfig) -> Result<Self> {
        prompt_version(&config.file, PROMPT)?;
        Ok(Self::with_scorer(Box::new(LocalScorer::load(&config.file, ScorerLimits::default())?)))
    }

    /// Asks this scorer.
    pub fn with_scorer(scorer: Box<dyn Scorer>) -> Self {
        Self { scorer }
    }

    /// The likeliest of the plans that can be chosen, after a text's two parts; none if none can be.
    ///
    /// # Errors
    /// The model has failed.
    pub fn ask(&mut self, job: &str, text: &str, allows: impl Fn(usize) -> bool) -> Result<Option<usize>> {
        let allowed: Vec<usize> = (0..PLANS.len()).filter(|&plan| allows(plan)).collect();
        let labels: Vec<&str> = allowed.iter().map(|&plan| PLANS[plan].name).collect();
        let scores = self.scorer.score(job, text, &labels)?;
        let likeliest = allowed.into_iter().zip(scores).max_by(|(_, one), (_, other)| one.total_cmp(other));
        Ok(likeliest.map(|(plan, _)| plan))
    }
}

impl Advisor for Pilot {
    fn name(&self) -> &'static str {
        "pilot"
    }

    fn choose(&mut self, situation: &Situation) -> Result<usize> {
        let plan = self.ask(&situation.job(), &situation.text(), |plan| situation.allows(plan))?;
        Ok(plan.unwrap_or(situation.plan))
    }

    fn remote_cpu(&self) -> Duration {
        self.scorer.remote_cpu()
    }
}

#[cfg(test)]
mod tests {
    //! Goal: it is asked about plans that can be chosen, and the likeliest is taken. Method: a scripted scorer.
    use super::*;

    struct Last;

    impl Scorer for Last {
        fn score(&mut self, prefix: &str, text: &str, labels: &[&str]) -> Result<Vec<f32>> {
            assert!(prefix.starts_with(" nodes ") && text.starts_with(" minibatch "));
            Ok((0..labels.len()).map(|at| at as f32).collect())
        }
    }

    #[test]
    fn what_is_not_announced_cannot_be_kept() {
        let mut pilot = Pilot::with_scorer(Box::new(Last));
        let mut situation = Situation::default();
        assert_eq!(PLANS[pilot.choose(&situation).unwrap()].name, "degree");
        situation.announced = 2;
        assert_eq!(PLANS[pilot.choose(&situation).unwrap()].name, "windowlong");
    }
}
