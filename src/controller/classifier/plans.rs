//! The pilot's question, answered by classifiers: which plan? One for each plan says how likely it is as good as the best, and the likeliest that can be
//! chosen is followed, if it is likelier than the default by a margin. What they are shown is what the pilot reads, as numbers.

use super::file::{Feature, Kept, check_features, normalise, read, write};
use super::model::Model;
use super::{ClassifierConfig, RATE, check_learns};
use crate::controller::planner::{Advisor, PLANS, Situation, VALUES, preferred};
use crate::error::Result;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Classifiers of plans, trained.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainedPlans {
    /// What it is called, such as `logistic`.
    pub name: String,
    /// What it was trained on and how, in words.
    pub training: String,
    /// The features, in their order.
    pub features: Vec<Feature>,
    /// The plans by name, in their order, and what was learnt of each.
    pub plans: Vec<(String, Model)>,
    /// By how much a plan must score more than the default to be chosen; 0 in a file that has none.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub margin: f64,
}

/// A file without a margin keeps its checksum.
fn is_zero(margin: &f64) -> bool {
    *margin == 0.0
}

impl Kept for TrainedPlans {
    const QUESTION: &'static str = "plan";
    const COMMAND: &'static str = "rudder pilot classifiers";

    fn check(&self) -> Result<(), String> {
        check_features(&self.features, &VALUES)?;
        if !self.plans.iter().map(|(name, _)| name.as_str()).eq(PLANS.map(|plan| plan.name)) {
            let names = PLANS.map(|plan| plan.name).join(", ");
            return Err(format!("its plans are not those of this version of rudder: {names}"));
        }
        let of = |(name, model): &(String, Model)| {
            let checked = model.check(self.features.len());
            checked.map_err(|cause| format!("its model of {name} does not fit together: {cause}"))
        };
        self.plans.iter().try_for_each(of)?;
        if !(0.0..f64::INFINITY).contains(&self.margin) {
            return Err(format!("its margin is {}, and can be 0 or more", self.margin));
        }
        Ok(())
    }
}

impl TrainedPlans {
    /// Reads a file.
    ///
    /// # Errors
    /// It cannot be read, is damaged or of another version, or its numbers do not fit together.
    pub fn read(path: &Path) -> Result<Self> {
        read(path)
    }

    /// Writes a file.
    ///
    /// # Errors
    /// It cannot be written, or its numbers do not fit together.
    pub fn write(&self, path: &Path) -> Result<()> {
        write(self, path)
    }

    /// Normalises a situation's numbers.
    pub fn normalised(&self, mut values: [f64; VALUES.len()]) -> [f64; VALUES.len()] {
        normalise(&mut values, &self.features);
        values
    }

    /// The plans that are allowed and their scores, of which only differences mean anything.
    pub fn scores(&self, values: [f64; VALUES.len()], allows: impl Fn(usize) -> bool) -> Vec<(usize, f64)> {
        let values = self.normalised(values);
        let score = |(_, model): &(String, Model)| model.score(&values, &mut vec![0.0; model.scratch()]);
        (0..self.plans.len()).filter(|&plan| allows(plan)).map(|plan| (plan, score(&self.plans[plan]))).collect()
    }
}

/// A plan is as good as the best if its cost is within this of the least: what its classifier is to tell.
pub const AS_GOOD: f64 = 1.01;

/// Follows them.
pub struct PlanClassifier {
    trained: TrainedPlans,
    online: bool,
    /// What was asked last, if that is learnt from.
    asked: Option<[f64; VALUES.len()]>,
}

impl PlanClassifier {
    /// Reads the classifiers' file.
    ///
    /// # Errors
    /// It cannot be read, is damaged or of another version; or they cannot learn and are to.
    pub fn new(config: &ClassifierConfig) -> Result<Self> {
        let trained = TrainedPlans::read(&config.file)?;
        if config.online {
            check_learns(&config.file, trained.plans.iter().map(|(_, model)| model))?;
        }
        Ok(Self { trained, online: config.online, asked: None })
    }

    /// Learns of each plan that was tried since the last choice whether it was as good as the best.
    fn learn(&mut self, situation: &Situation) {
        if let Some(values) = self.asked.take() {
            let values = self.trained.normalised(values);
            for ((_, model), cost) in self.trained.plans.iter_mut().zip(situation.costs) {
                if let Some(cost) = cost {
                    let mut scratch = vec![0.0; model.scratch()];
                    model.learn(&values, cost <= AS_GOOD, RATE, &mut scratch);
                }
            }
        }
    }
}

impl Advisor for PlanClassifier {
    fn name(&self) -> &'static str {
        "plan-classifier"
    }

    fn choose(&mut self, situation: &Situation) -> Result<usize> {
        self.learn(situation);
        let values = situation.values();
        self.asked = self.online.then_some(values);
        let scores = self.trained.scores(values, |plan| situation.allows(plan));
        Ok(preferred(&scores, self.trained.margin).unwrap_or(situation.plan))
    }
}

#[cfg(test)]
mod tests {
    //! Goal: the likeliest plan that can be chosen is chosen, and a file is what was written. Method: weighted sums made for it.
    use super::*;
    use crate::controller::classifier::{Linear, Trained};

    fn trained() -> TrainedPlans {
        let feature = |name: &&str| Feature { name: (*name).to_owned(), mean: 0.0, deviation: 1.0 };
        // Later plans are the likelier, the more was hit.
        let model = |at: usize| {
            let weights = VALUES.map(|name| if name == "hits" { at as f64 } else { 0.0 }).to_vec();
            Model::Linear(Linear { weights, bias: if at == 2 { 1.5 } else { 0.0 } })
        };
        TrainedPlans {
            name: "test".into(),
            training: String::new(),
            features: VALUES.iter().map(feature).collect(),
            plans: PLANS.iter().enumerate().map(|(at, plan)| (plan.name.to_owned(), model(at))).collect(),
            margin: 0.0,
        }
    }

    fn following(trained: TrainedPlans, online: bool) -> PlanClassifier {
        PlanClassifier { trained, online, asked: None }
    }

    #[test]
    fn what_a_plan_has_cost_is_learnt_where_it_may_be() {
        let mut situation = Situation { hits: 0.1, ..Situation::default() };
        // `lfulong`, which it prefers, costs more than `lfu` here.
        situation.costs[..5].copy_from_slice(&[1.0, 1.3, 1.2, 1.4, 1.5].map(Some));
        let chosen = |online| {
            let mut classifier = following(trained(), online);
            (0..2000).map(|_| classifier.choose(&situation).unwrap()).last().map(|plan| PLANS[plan].name)
        };
        assert_eq!([false, true].map(chosen), [Some("lfulong"), Some("lfu")]);
    }

    #[test]
    fn the_likeliest_that_can_be_chosen_is_chosen() {
        let mut classifier = following(trained(), false);
        let mut situation = Situation { hits: 0.1, ..Situation::default() };
        assert_eq!(classifier.choose(&situation).unwrap(), 2);
        situation.hits = 0.9;
        assert_eq!(classifier.choose(&situation).unwrap(), 4, "nothing is announced");
        situation.announced = 1;
        assert_eq!(classifier.choose(&situation).unwrap(), 7);
    }

    #[test]
    fn the_default_stays_unless_another_plan_scores_more_by_the_margin() {
        let mut situation = Situation { hits: 0.9, ..Situation::default() };
        let chosen = |margin, situation: &Situation| {
            PLANS[following(TrainedPlans { margin, ..trained() }, false).choose(situation).unwrap()].name
        };
        assert_eq!([3.5, 3.7].map(|margin| chosen(margin, &situation)), ["degree", "lfu"], "3.6 more than `lfu`");
        situation.announced = 1;
        assert_eq!([1.7, 1.9].map(|margin| chosen(margin, &situation)), ["windowlong", "window"]);
    }

    #[test]
    fn a_margin_is_kept_and_refused_if_it_is_none() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let with = |margin| TrainedPlans { margin, ..trained() };
        with(0.25).write(file.path()).unwrap();
        assert_eq!(TrainedPlans::read(file.path()).unwrap(), with(0.25));
        let text = std::fs::read_to_string(file.path()).unwrap();
        for (damaged, words) in [
            (text.replace("\"margin\":0.25", "\"margin\":-0.25"), "margin is -0.25"),
            (text.replace("\"margin\":0.25", "\"margin\":0.5"), "checksum"),
            (text.replace(",\"margin\":0.25", ""), "checksum"),
            (text.replace("\"margin\":0.25", "\"margin\":\"wide\""), "damaged"),
        ] {
            assert_ne!(damaged, text);
            std::fs::write(file.path(), damaged).unwrap();
            let cause = TrainedPlans::read(file.path()).unwrap_err().to_string();
            assert!(cause.contains(words), "{words}: {cause}");
        }
        for margin in [f64::NAN, f64::INFINITY, -1.0] {
            assert!(with(margin).write(file.path()).unwrap_err().to_string().contains("its margin is"));
        }
    }

    #[test]
    fn a_file_of_before_there_were_margins_has_none() {
        let file = tempfile::NamedTempFile::new().unwrap();
        trained().write(file.path()).unwrap();
        assert!(!std::fs::read_to_string(file.path()).unwrap().contains("margin"));
        assert_eq!(TrainedPlans::read(file.path()).unwrap().margin, 0.0);
    }

    #[test]
    fn a_file_holds_it_to_the_bit_and_answers_no_other_question() {
        let file = tempfile::NamedTempFile::new().unwrap();
        trained().write(file.path()).unwrap();
        assert_eq!(TrainedPlans::read(file.path()).unwrap(), trained());
        let other = Trained::read(file.path()).unwrap_err().to_string();
        assert!(other.contains("\"plan\" and not \"replace\"") && other.contains("rudder fit"), "{other}");
        let mut wrong = trained();
        wrong.plans[3].0 = "best".into();
        assert!(wrong.write(file.path()).unwrap_err().to_string().contains("lfubrief"));
        wrong = trained();
        wrong.plans[0].1 = Model::Linear(Linear::default());
        assert!(wrong.write(file.path()).unwrap_err().to_string().contains("model of lfu does not fit"));
    }
}
