//! What choices cost on samples.

use super::samples::Sample;
use anyhow::Result;
use rudder::controller::planner::PLANS;
use serde::Serialize;

/// What the choices of one way to choose cost.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Score {
    /// The way.
    pub chooser: String,
    /// Stall over the least of any plan, geometric mean.
    pub stall: f64,
    /// The same of decisions at a start or after a change.
    pub stall_new: f64,
    /// The share of the decisions within 1 % of the least.
    pub right: f64,
}

impl Score {
    /// Of a way to choose; a plan that cannot be chosen leaves the one that stands.
    ///
    /// # Errors
    /// That of a choice.
    pub fn of(chooser: &str, samples: &[&Sample], mut choose: impl FnMut(&Sample) -> Result<usize>) -> Result<Self> {
        let ratio = |sample: &&Sample| {
            let ratios = sample.ratios();
            let chosen = ratios[choose(sample)?].or(ratios[sample.plan]);
            Ok((chosen.unwrap_or(1.0), sample.new))
        };
        let ratios = samples.iter().map(ratio).collect::<Result<Vec<(f64, bool)>>>()?;
        let mean = |of: &dyn Fn(bool) -> bool| {
            let logarithms: Vec<f64> = ratios.iter().filter(|(_, new)| of(*new)).map(|(ratio, _)| ratio.ln()).collect();
            (logarithms.iter().sum::<f64>() / logarithms.len().max(1) as f64).exp()
        };
        Ok(Self {
            chooser: chooser.to_owned(),
            stall: mean(&|_| true),
            stall_new: mean(&|new| new),
            right: ratios.iter().filter(|(ratio, _)| *ratio < 1.01).count() as f64 / ratios.len().max(1) as f64,
        })
    }
}

/// What is chosen without learning: the plan that stands, and each plan for everything.
///
/// # Errors
/// None: these choices cannot fail.
pub fn simple(samples: &[&Sample]) -> Result<Vec<Score>> {
    let mut scores = vec![Score::of("as it stands", samples, |sample| Ok(sample.plan))?];
    for (plan, named) in PLANS.iter().enumerate() {
        // Without announcements a window is what lies beyond it.
        let alone = PLANS.iter().position(|other| Some(other.name) == named.alone());
        scores.push(Score::of(named.name, samples, |sample| match sample.stalls[plan] {
            Some(_) => Ok(plan),
            None => Ok(alone.unwrap_or(sample.plan)),
        })?);
    }
    Ok(scores)
}

/// Prints scores on so many decisions.
pub fn print(scores: &[Score], decisions: usize) {
    println!("stall over the least of any plan, on {decisions} decisions of graphs that were held out:");
    println!("{:>14} {:>8} {:>22} {:>12}", "", "all", "start or change", "within 1 %");
    for Score { chooser, stall, stall_new, right } in scores {
        println!("{chooser:>14} {stall:>8.3} {stall_new:>22.3} {:>10.1} %", right * 100.0);
    }
}
