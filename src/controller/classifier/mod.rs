//! Rudder's published question, answered by a classifier that was trained before: shall rows of the buffer be replaced now, yes or no?
//!
//! `rudder fit` trains it on recorded jobs and leaves a file of plain numbers; what evaluates them here is small, decides in microseconds and allocates
//! nothing, so that a classifier runs at the minibatch boundary itself. What it is shown is what the language model of the same question is shown.

mod features;
mod file;
mod model;
mod network;
mod plans;
mod trees;

pub use features::{FEATURES, Features, Values};
pub use file::{FORMAT, Feature, Trained};
pub use model::{Kernel, Linear, Model};
pub use network::{Attention, Dense, Perceptron};
pub use plans::{PlanClassifier, TrainedPlans};
pub use trees::{Node, Trees};

use super::{Controller, Decision, JobFacts, Observation};
use crate::error::Result;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Settings of the controller.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClassifierConfig {
    /// The file that `rudder fit` has left.
    pub file: PathBuf,
}

/// Asks a classifier whether to replace, once for each interval that it was trained for.
#[derive(Clone, Debug)]
pub struct Classifier {
    trained: Trained,
    features: Features,
    scratch: Vec<f64>,
}

impl Classifier {
    /// Reads the classifier's file.
    ///
    /// # Errors
    /// It cannot be read, is damaged, or is of another version.
    pub fn new(config: &ClassifierConfig, facts: &JobFacts) -> Result<Self> {
        let trained = Trained::read(&config.file)?;
        let scratch = vec![0.0; trained.model.scratch()];
        Ok(Self { trained, features: Features::new(facts), scratch })
    }
}

impl Controller for Classifier {
    fn name(&self) -> &'static str {
        "classifier"
    }

    fn observe(&mut self, observation: &Observation) {
        self.features.observe(observation);
    }

    fn decide(&mut self) -> Option<Decision> {
        if self.features.minibatches() < self.trained.interval {
            return None;
        }
        let values = self.trained.normalised(self.features.take());
        let replace = self.trained.model.score(&values, &mut self.scratch) > 0.0;
        Some(Decision { replace, ..Decision::default() })
    }

    fn handle_taken(&mut self) {
        self.features.restart();
    }
}

#[cfg(test)]
mod tests {
    //! Goal: a classifier is asked once an interval, about that interval. Method: one that says yes where hits are below a half.
    use super::*;
    use crate::controller::ControllerConfig;

    /// The configuration of a classifier that decides every third minibatch.
    fn below_a_half(file: &std::path::Path) -> ControllerConfig {
        let mut weights = vec![0.0; FEATURES.len()];
        weights[0] = -1.0;
        let feature = |name: &&str| Feature { name: (*name).to_owned(), mean: 0.0, deviation: 1.0 };
        let trained = Trained {
            name: "below a half".into(),
            training: String::new(),
            interval: 3,
            features: FEATURES.iter().map(feature).collect(),
            model: Model::Linear(Linear { weights, bias: 0.5 }),
        };
        trained.write(file).unwrap();
        format!("classifier:{}", file.display()).parse().unwrap()
    }

    #[test]
    fn it_is_asked_once_an_interval() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let config = below_a_half(file.path());
        assert!(config.runs_inline() && config.decides_on_replacement() && !config.wants_cohorts());
        let mut controller = config.build(&JobFacts::default()).unwrap();
        let mut decided = Vec::new();
        for (at, hits) in (1u64..).zip([0, 10, 20, 80, 90, 80, 20, 90, 10]) {
            controller.observe(&Observation { minibatch: at, hits, halo_misses: 100 - hits, ..Observation::default() });
            if let Some(decision) = controller.decide() {
                controller.handle_taken();
                decided.push((at, decision.replace));
            }
        }
        assert_eq!(decided, [(3, true), (6, false), (9, true)]);
    }

    #[test]
    fn what_was_seen_before_a_decision_took_effect_does_not_count() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut controller = below_a_half(file.path()).build(&JobFacts::default()).unwrap();
        let observation = Observation { hits: 1, ..Observation::default() };
        (0..3).for_each(|_| controller.observe(&observation));
        assert!(controller.decide().is_some());
        (0..3).for_each(|_| controller.observe(&observation));
        controller.handle_taken();
        (0..2).for_each(|_| controller.observe(&observation));
        assert_eq!(controller.decide(), None);
        controller.observe(&observation);
        assert!(controller.decide().is_some());
    }

    #[test]
    fn a_name_without_a_file_is_refused() {
        for words in ["classifier", "classifier:"] {
            let cause = words.parse::<ControllerConfig>().unwrap_err().to_string();
            assert!(cause.contains("classifier:FILE"), "{cause}");
        }
        let cause = "classifier:/no/such:file".parse::<ControllerConfig>().unwrap().build(&JobFacts::default());
        assert!(cause.err().unwrap().to_string().contains("/no/such:file"));
    }
}
