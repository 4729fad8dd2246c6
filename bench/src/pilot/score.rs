//! What choices cost on samples.

use super::samples::Sample;
use crate::report::tables::{percent, table};
use rudder::controller::planner::PLANS;
use serde::Serialize;

/// A plan is as good as the best if its stall is within this of the least.
pub const AS_GOOD: f64 = 1.01;

/// What the choices of one way to choose cost.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Score {
    /// The way.
    pub chooser: String,
    /// Stall over the least of any plan, geometric mean.
    pub stall: f64,
    /// The same of decisions at a start or after a change.
    pub stall_new: f64,
    /// The share of the decisions that are [`AS_GOOD`] as the best.
    pub right: f64,
}

impl Score {
    /// Of choices, one for each sample; a plan that cannot be chosen leaves the one that stands.
    pub fn of(chooser: &str, samples: &[&Sample], choices: &[usize]) -> Self {
        let ratio = |(sample, &choice): (&&Sample, &usize)| {
            let ratios = sample.ratios();
            (ratios[choice].or(ratios[sample.plan]).unwrap_or(1.0), sample.new)
        };
        let ratios: Vec<(f64, bool)> = samples.iter().zip(choices).map(ratio).collect();
        let mean = |of: &dyn Fn(bool) -> bool| {
            let logarithms: Vec<f64> = ratios.iter().filter(|(_, new)| of(*new)).map(|(ratio, _)| ratio.ln()).collect();
            (logarithms.iter().sum::<f64>() / logarithms.len().max(1) as f64).exp()
        };
        Self {
            chooser: chooser.to_owned(),
            stall: mean(&|_| true),
            stall_new: mean(&|new| new),
            right: ratios.iter().filter(|(ratio, _)| *ratio <= AS_GOOD).count() as f64 / ratios.len().max(1) as f64,
        }
    }
}

/// What is chosen without learning: the plan that stands, and each plan for everything.
pub fn simple(samples: &[&Sample]) -> Vec<Score> {
    let choices = |choose: &dyn Fn(&Sample) -> usize| samples.iter().map(|sample| choose(sample)).collect::<Vec<_>>();
    let mut scores = vec![Score::of("as it stands", samples, &choices(&|sample| sample.plan))];
    for (plan, named) in PLANS.iter().enumerate() {
        // Without announcements a window is what lies beyond it.
        let alone = PLANS.iter().position(|other| Some(other.name) == named.alone());
        let chosen = choices(&|sample| match sample.stalls[plan] {
            Some(_) => plan,
            None => alone.unwrap_or(sample.plan),
        });
        scores.push(Score::of(named.name, samples, &chosen));
    }
    scores
}

/// Prints scores on so many decisions.
pub fn print(scores: &[Score], decisions: usize) {
    println!("stall over the least of any plan, on {decisions} decisions of graphs that were held out:");
    let line = |Score { chooser, stall, stall_new, right }: &Score| {
        vec![chooser.clone(), format!("{stall:.3}"), format!("{stall_new:.3}"), percent(*right)]
    };
    let lines: Vec<Vec<String>> = scores.iter().map(line).collect();
    println!("{}", table(["chooses", "all", "start or change", "within 1 %"], &lines));
}
