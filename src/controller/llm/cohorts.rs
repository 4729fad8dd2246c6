//! The model scores cohorts, and its scores become standing quotas: rows to pull ahead of each minibatch.
//!
//! Asking about every cohort would take minutes, so the questions are about *classes* - frequency, recency, announced - without the owner: who
//! owns a node tells what it costs, not whether it comes back. Of the 24 classes the few with the most missed rows are asked about, one closed
//! question each, behind the shared prefix; a class's rows are then split over owners as its misses were.

use super::window::{Window, hit_percent};
use super::{ModelSource, Question, Scorer, check_delta};
use crate::controller::quotas::{Missed, SLOTS_SHARE};
use crate::controller::{Cohort, Controller, Decision, FREQUENCY_BANDS, Health, JobFacts, Observation, RECENCY_BANDS};
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};

const LABELS: &[&str] = &["none", "few", "many"];
/// What share of a class's missed rows each label stands for.
const SHARES: [f32; 3] = [0.0, 0.25, 1.0];
const CLASSES: usize = FREQUENCY_BANDS * RECENCY_BANDS * 2;
const MAX_QUESTIONS: usize = 8;
const NEUTRAL: &str = "No metrics are known. Class: unknown. Pull none, few or many?";

/// Settings of the cohort controller.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CohortsConfig {
    /// Where the model runs.
    pub model: ModelSource,
    /// Least number of minibatches between two decisions.
    pub delta: u64,
    /// Classes of vertices asked about in a decision, 1 to 8: each is a question, so latency grows with it.
    pub questions: usize,
    /// Rows to pull ahead of a minibatch, all cohorts together, as a share of the buffer's slots, 0 to 1.
    pub max_share: f32,
    /// Takes the model's general leaning towards a label off its answers.
    pub calibrate: bool,
}

impl Default for CohortsConfig {
    fn default() -> Self {
        Self { model: ModelSource::Default, delta: 16, questions: 4, max_share: SLOTS_SHARE, calibrate: true }
    }
}

/// Asks the model how much of each class of vertices to pull.
pub struct LlmCohorts {
    scorer: Box<dyn Scorer>,
    question: Question,
    config: CohortsConfig,
    window: Window,
    missed: Missed,
    failure: Option<String>,
}

impl LlmCohorts {
    /// Loads the model, which may write to the [environment](crate::controller::llm#the-environment).
    ///
    /// # Errors
    /// A setting is out of its bounds, or the model cannot be loaded.
    pub fn new(config: &CohortsConfig, facts: &JobFacts) -> Result<Self> {
        Self::with_scorer(config, facts, config.model.open()?)
    }

    /// Asks this scorer instead of the configured model.
    ///
    /// # Errors
    /// A setting is out of its bounds.
    pub fn with_scorer(config: &CohortsConfig, facts: &JobFacts, scorer: Box<dyn Scorer>) -> Result<Self> {
        check_delta(config.delta)?;
        if !(1..=MAX_QUESTIONS).contains(&config.questions) {
            return Err(Error::config(format!("{} questions a decision: give 1 to {MAX_QUESTIONS}", config.questions)));
        }
        if !(0.0..=1.0).contains(&config.max_share) {
            return Err(Error::config(format!(
                "max_share of {}: give a share of the slots from 0 to 1",
                config.max_share
            )));
        }
        Ok(Self {
            scorer,
            question: Question::new(Self::prefix(facts), LABELS, NEUTRAL, config.calibrate),
            config: config.clone(),
            window: Window::default(),
            missed: Missed::new(facts),
            failure: None,
        })
    }

    /// The part of the prompt that stays.
    pub fn prefix(facts: &JobFacts) -> String {
        let JobFacts { nodes, partitions, halo_nodes, slots, batch, .. } = facts;
        format!(
            "You steer the buffer of remote node features in distributed graph neural network training. \
             Before each minibatch rows can be pulled into the buffer. A pulled row that is wanted soon saves a wait; \
             one that is not wanted wastes traffic and takes the place of another.\n\
             Job: {nodes} nodes in {partitions} partitions, {halo_nodes} remote neighbours, buffer of {slots} rows, {batch} seeds a minibatch.\n\
             Missed rows are sorted into classes by how often they were wanted lately, when they were wanted last, \
             and whether an announced minibatch wants them.\n\
             Pull many of a class that is announced, or wanted often and lately. Pull few of a class wanted often but long ago. \
             Pull none of a class wanted once and long ago."
        )
    }

    /// Missed rows by class: the sum over owners.
    fn class_misses(&self) -> [u64; CLASSES] {
        let mut classes = [0; CLASSES];
        self.missed.cohorts().iter().enumerate().for_each(|(index, missed)| classes[index % CLASSES] += missed);
        classes
    }

    fn text(&self, class: usize, missed: u64, all: u64) -> String {
        let Cohort { frequency, recency, announced, .. } = Cohort::at(class);
        let often = ["once", "2 or 3 times", "4 to 7 times", "8 times or more"][usize::from(frequency)];
        let when = ["just now", "a few minibatches ago", "long ago"][usize::from(recency)];
        let announced = if announced { "announced" } else { "not announced" };
        let hits = hit_percent(self.window.hits, self.window.halo_misses);
        let share = missed * 100 / all.max(1);
        format!(
            "Hits {hits}%. Class: wanted {often}, last {when}, {announced}, {share}% of misses. Pull none, few or many?"
        )
    }

    /// By class, the share of its misses to pull: none of one that is not asked about.
    fn ask(&mut self, asked: &[usize], classes: &[u64; CLASSES]) -> Result<[f32; CLASSES]> {
        let all = classes.iter().sum();
        let mut shares = [0.0; CLASSES];
        for &class in asked {
            let text = self.text(class, classes[class], all);
            let probabilities = self.question.ask(&mut *self.scorer, &text)?;
            shares[class] = probabilities.iter().zip(SHARES).map(|(probability, share)| probability * share).sum();
        }
        Ok(shares)
    }
}

impl Controller for LlmCohorts {
    fn name(&self) -> &'static str {
        "llm-cohorts"
    }

    fn observe(&mut self, observation: &Observation) {
        self.window.add(observation);
        self.missed.add(observation);
    }

    fn decide(&mut self) -> Option<Decision> {
        // A turn without an attempt has not failed.
        self.failure = None;
        if self.window.minibatches < self.config.delta {
            return None;
        }
        let classes = self.class_misses();
        let mut asked: Vec<usize> = (0..CLASSES).filter(|&class| classes[class] > 0).collect();
        asked.sort_by_key(|&class| std::cmp::Reverse(classes[class]));
        asked.truncate(self.config.questions);
        let shares = self.ask(&asked, &classes);
        let decision = match shares {
            Ok(shares) => Some(Decision {
                quotas: Some(self.missed.quotas(self.config.max_share, |cohort| shares[cohort % CLASSES])),
                ..Decision::default()
            }),
            Err(cause) => {
                self.failure = Some(cause.to_string());
                None
            }
        };
        self.handle_taken();
        decision
    }

    fn handle_taken(&mut self) {
        self.window = Window::default();
        self.missed.clear();
    }

    fn health(&self) -> Health {
        Health { failure: self.failure.clone(), remote_cpu: self.scorer.remote_cpu() }
    }
}

#[cfg(test)]
mod tests {
    //! Quotas must go to the classes the model wants, follow the owners' misses, and never exceed the bound. Method: a scripted scorer.
    use super::*;

    /// Wants many of what is announced, none of the rest.
    struct Announced;

    impl Scorer for Announced {
        fn score(&mut self, _prefix: &str, text: &str, _labels: &[&str]) -> Result<Vec<f32>> {
            let many = text.contains(", announced,");
            Ok(if many { vec![-99.0, -99.0, 0.0] } else { vec![0.0, -99.0, -99.0] })
        }
    }

    fn decided(max_share: f32) -> Vec<u32> {
        let config = CohortsConfig { delta: 2, questions: 2, max_share, calibrate: false, ..CohortsConfig::default() };
        let facts = JobFacts { partitions: 3, slots: 1000, ..JobFacts::default() };
        let mut controller = LlmCohorts::with_scorer(&config, &facts, Box::new(Announced)).unwrap();
        let mut misses = vec![0; Cohort::count(3)];
        let cohort =
            |owner, announced| Cohort { owner: crate::PartitionId(owner), frequency: 1, recency: 0, announced }.index();
        (misses[cohort(0, true)], misses[cohort(2, true)], misses[cohort(1, false)]) = (60, 20, 500);
        // Too few misses to be among the two classes asked about.
        misses[CLASSES - 1] = 5;
        for minibatch in 1..=2 {
            assert_eq!(controller.decide(), None);
            controller.observe(&Observation { minibatch, cohort_misses: misses.clone(), ..Observation::default() });
        }
        let quotas = controller.decide().unwrap().quotas.unwrap();
        assert_eq!(quotas.len(), Cohort::count(3));
        let mut expected = vec![0; quotas.len()];
        (expected[cohort(0, true)], expected[cohort(2, true)]) = (quotas[cohort(0, true)], quotas[cohort(2, true)]);
        assert_eq!(quotas, expected, "only announced cohorts are wanted");
        vec![quotas[cohort(0, true)], quotas[cohort(2, true)]]
    }

    #[test]
    fn quotas_follow_misses_within_the_bound() {
        assert_eq!(decided(1.0), [60, 20]);
        assert_eq!(decided(0.04), [30, 10]);
        assert_eq!(decided(0.0), [0, 0]);
    }

    #[test]
    fn settings_out_of_bounds_are_refused() {
        for config in [
            CohortsConfig { delta: 0, ..CohortsConfig::default() },
            CohortsConfig { questions: 0, ..CohortsConfig::default() },
            CohortsConfig { questions: 9, ..CohortsConfig::default() },
            CohortsConfig { max_share: f32::NAN, ..CohortsConfig::default() },
        ] {
            assert!(LlmCohorts::with_scorer(&config, &JobFacts::default(), Box::new(Announced)).is_err(), "{config:?}");
        }
    }
}
