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
pub use plans::{AS_GOOD, PlanClassifier, TrainedPlans};
pub use trees::{Node, Trees};

use super::{Controller, Decision, JobFacts, Observation};
use crate::error::{Error, Result};
use features::FETCHED_CHANGE;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Settings of the controller.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClassifierConfig {
    /// The file that `rudder fit` has left.
    pub file: PathBuf,
    /// Whether it goes on learning while it steers, from what comes of its answers. The file stays as it is.
    #[serde(default)]
    pub online: bool,
}

/// How far online learning goes by an outcome: there are some dozen of them in an epoch.
const RATE: f64 = 0.1;

/// Refuses models that cannot learn while they steer.
fn check_learns<'a>(file: &Path, mut models: impl Iterator<Item = &'a Model>) -> Result<()> {
    match models.find(|model| !model.learns()) {
        None => Ok(()),
        Some(model) => Err(Error::config(format!(
            "classifier {}: online learning is for weighted sums and perceptrons (logistic, svm-linear, mlp), and this file holds {}",
            file.display(),
            model.kind()
        ))),
    }
}

/// Asks a classifier whether to replace, once for each interval that it was trained for.
#[derive(Clone, Debug)]
pub struct Classifier {
    trained: Trained,
    features: Features,
    online: bool,
    /// What was asked last, where the answer was yes and is learnt from.
    replaced_at: Option<Values>,
    scratch: Vec<f64>,
}

impl Classifier {
    /// Reads the classifier's file.
    ///
    /// # Errors
    /// It cannot be read, is damaged, or is of another version; or it cannot learn and is to.
    pub fn new(config: &ClassifierConfig, facts: &JobFacts) -> Result<Self> {
        let trained = Trained::read(&config.file)?;
        if config.online {
            check_learns(&config.file, std::iter::once(&trained.model))?;
        }
        let scratch = vec![0.0; trained.model.scratch()];
        Ok(Self { trained, features: Features::new(facts), online: config.online, replaced_at: None, scratch })
    }

    /// Learns whether the last replacement paid: fewer rows were fetched after it than before, its own included. Where it said no, what a replacement
    /// would have done is not known.
    fn learn(&mut self, fetched_change: f64) {
        if let Some(values) = self.replaced_at.take() {
            self.trained.model.learn(&values, fetched_change < 0.0, RATE, &mut self.scratch);
        }
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
        let values = self.features.take();
        self.learn(values[FETCHED_CHANGE]);
        let values = self.trained.normalised(values);
        let replace = self.trained.model.score(&values, &mut self.scratch) > 0.0;
        self.replaced_at = (self.online && replace).then_some(values);
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
        written(file, Model::Linear(Linear { weights, bias: 0.5 }), "classifier:")
    }

    fn written(file: &std::path::Path, model: Model, controller: &str) -> ControllerConfig {
        let feature = |name: &&str| Feature { name: (*name).to_owned(), mean: 0.0, deviation: 1.0 };
        let trained = Trained {
            name: "test".into(),
            training: String::new(),
            interval: 3,
            features: FEATURES.iter().map(feature).collect(),
            model,
        };
        trained.write(file).unwrap();
        format!("{controller}{}", file.display()).parse().unwrap()
    }

    /// Shows a classifier that more rows are fetched after each replacement: how often it still replaces in as many decisions.
    fn yes_in(decisions: usize, model: &Model, controller: &str) -> usize {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut controller = written(file.path(), model.clone(), controller).build(&JobFacts::default()).unwrap();
        let (mut demand_rows, mut yes) = (1_000_000, 0);
        for _ in 0..decisions {
            let decision = loop {
                controller.observe(&Observation { demand_rows, ..Observation::default() });
                if let Some(decision) = controller.decide() {
                    break decision;
                }
            };
            controller.handle_taken();
            demand_rows += if decision.replace { 1000 } else { 0 };
            yes += usize::from(decision.replace);
        }
        yes
    }

    fn models_that_learn() -> [Model; 2] {
        let dense = |outputs, inputs| Dense { weights: vec![vec![0.01; inputs]; outputs], bias: vec![0.1; outputs] };
        [
            Model::Linear(Linear { weights: vec![0.0; FEATURES.len()], bias: 0.3 }),
            Model::Perceptron(Perceptron { layers: vec![dense(4, FEATURES.len()), dense(3, 4), dense(1, 3)] }),
        ]
    }

    #[test]
    fn it_unlearns_what_does_harm_where_it_may_learn() {
        for model in models_that_learn() {
            assert_eq!(yes_in(200, &model, "classifier:"), 200);
            let yes = yes_in(200, &model, "online:classifier:");
            assert!((1..150).contains(&yes), "{yes} of 200: {model:?}");
        }
    }

    #[test]
    fn a_step_goes_down_the_gradient_of_the_loss() {
        let values: Vec<f64> = (0..FEATURES.len()).map(|at| (at as f64 - 6.0) / 7.0).collect();
        for (model, yes) in models_that_learn().into_iter().flat_map(|model| [(model.clone(), true), (model, false)]) {
            let mut scratch = vec![0.0; model.scratch()];
            let mut loss = |model: &Model| {
                let score = model.score(&values, &mut scratch);
                (1.0 + if yes { -score } else { score }.exp()).ln()
            };
            let before = loss(&model);
            let mut nearer = model.clone();
            nearer.learn(&values, yes, 1e-4, &mut vec![0.0; model.scratch()]);
            let after = loss(&nearer);
            // A step of r down a gradient g lowers the loss by r g^2, and moves the weights by r g.
            let moved: f64 = numbers(&model).iter().zip(numbers(&nearer)).map(|(a, b)| (a - b).powi(2)).sum();
            let expected = moved / 1e-4;
            assert!(((before - after) / expected - 1.0).abs() < 0.01, "{before} to {after}, and not by {expected}");
        }
    }

    fn numbers(model: &Model) -> Vec<f64> {
        match model {
            Model::Linear(Linear { weights, bias }) => [weights.as_slice(), &[*bias]].concat(),
            Model::Perceptron(Perceptron { layers }) => {
                let of = |layer: &Dense| [layer.weights.concat(), layer.bias.clone()].concat();
                layers.iter().flat_map(of).collect()
            }
            other => panic!("{other:?} does not learn"),
        }
    }

    #[test]
    fn what_cannot_learn_is_refused_where_it_is_to() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let trees = Model::Trees(Trees { bias: 0.0, trees: vec![vec![Node::Leaf(1.0)]] });
        let config = written(file.path(), trees, "online:classifier:");
        let cause = config.build(&JobFacts::default()).err().unwrap().to_string();
        assert!(cause.contains("holds trees") && cause.contains("logistic, svm-linear, mlp"), "{cause}");
        let cause = "online:periodic:8".parse::<ControllerConfig>().unwrap_err().to_string();
        assert!(cause.contains("online:periodic:8") && cause.contains("classifier:FILE"), "{cause}");
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
