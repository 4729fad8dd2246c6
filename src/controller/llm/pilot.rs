//! A language model trained for it chooses the buffer's plan.
//!
//! It reads a [`Situation`] as text and answers with the name of one of the plans that can be chosen: a closed question like the other models', by the
//! same loader. `rudder pilot` trains it, and leaves in its file by how much it must be surer of a plan than of the default.

use super::scorer::pilot_margin;
use super::{LocalScorer, Scorer, ScorerLimits};
use crate::controller::planner::{Advisor, PLANS, Situation, preferred};
use crate::error::Result;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::time::Duration;

/// The version of texts and plans: a model knows those that it was trained on.
pub const PROMPT: u32 = 3;

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
    margin: f64,
}

impl Pilot {
    /// Loads the model, which may write to the [environment](crate::controller::llm#the-environment).
    ///
    /// # Errors
    /// The file cannot be read, is damaged, or holds a model that was not trained on these texts and plans.
    pub fn new(config: &PilotConfig) -> Result<Self> {
        let margin = pilot_margin(&config.file, PROMPT)?;
        Ok(Self::with_scorer(Box::new(LocalScorer::load(&config.file, ScorerLimits::default())?), margin))
    }

    /// Asks this scorer, and follows what is likelier than the default by more than a margin, from 0 to 1.
    pub fn with_scorer(scorer: Box<dyn Scorer>, margin: f64) -> Self {
        Self { scorer, margin }
    }

    /// After a text's two parts, the plans that can be chosen and how likely they are.
    ///
    /// # Errors
    /// The model has failed.
    pub fn ask(&mut self, job: &str, text: &str, allows: impl Fn(usize) -> bool) -> Result<Vec<(usize, f64)>> {
        let allowed: Vec<usize> = (0..PLANS.len()).filter(|&plan| allows(plan)).collect();
        let labels: Vec<&str> = allowed.iter().map(|&plan| PLANS[plan].name).collect();
        let scores = self.scorer.score(job, text, &labels)?;
        Ok(allowed.into_iter().zip(scores.into_iter().map(|score| f64::from(score).exp())).collect())
    }
}

impl Advisor for Pilot {
    fn name(&self) -> &'static str {
        "pilot"
    }

    fn choose(&mut self, situation: &Situation) -> Result<usize> {
        let likely = self.ask(&situation.job(), &situation.text(), |plan| situation.allows(plan))?;
        Ok(preferred(&likely, self.margin).unwrap_or(situation.plan))
    }

    fn remote_cpu(&self) -> Duration {
        self.scorer.remote_cpu()
    }
}

#[cfg(test)]
mod tests {
    //! Goal: it is asked about plans that can be chosen, and the likeliest is taken if it is likelier than the default by the margin. Method: a
    //! scripted scorer.
    use super::*;

    /// Finds the last plan twice as likely as each other one.
    struct Last;

    impl Scorer for Last {
        fn score(&mut self, prefix: &str, text: &str, labels: &[&str]) -> Result<Vec<f32>> {
            assert!(prefix.starts_with(" nodes ") && text.starts_with(" minibatch "));
            let share = 1.0 / (labels.len() + 1) as f32;
            Ok((1..=labels.len()).map(|at| if at == labels.len() { (2.0 * share).ln() } else { share.ln() }).collect())
        }
    }

    fn chosen(margin: f64, announced: usize) -> &'static str {
        let situation = Situation { announced, plan: 3, ..Situation::default() };
        PLANS[Pilot::with_scorer(Box::new(Last), margin).choose(&situation).unwrap()].name
    }

    #[test]
    fn what_is_not_announced_cannot_be_kept() {
        assert_eq!([0, 2].map(|announced| chosen(0.0, announced)), ["degree", "windowlong"]);
    }

    #[test]
    fn the_default_stays_unless_another_plan_is_likelier_by_the_margin() {
        // By 1/6 of five plans, by 1/9 of eight.
        assert_eq!([0, 2].map(|announced| chosen(0.1, announced)), ["degree", "windowlong"]);
        assert_eq!([0, 2].map(|announced| chosen(0.15, announced)), ["degree", "window"]);
        assert_eq!([0, 2].map(|announced| chosen(0.2, announced)), ["lfu", "window"]);
    }
}
