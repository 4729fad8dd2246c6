//! What choices cost on samples, and the margin with which they cost least.

use super::samples::Sample;
use crate::report::tables::{percent, table};
use rudder::controller::classifier::AS_GOOD;
use rudder::controller::planner::{PLANS, preferred};
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

/// By sample, the plans that can be chosen and how they score.
pub type Scored = Vec<Vec<(usize, f64)>>;

/// What is chosen by scores with a margin.
pub fn choices(samples: &[&Sample], scored: &Scored, margin: f64) -> Vec<usize> {
    let chosen = samples.iter().zip(scored);
    chosen.map(|(sample, scores)| preferred(scores, margin).unwrap_or(sample.plan)).collect()
}

/// The margin with which choices by these scores cost least, the widest of several: those are tried at which a choice changes.
pub fn margin(samples: &[&Sample], scored: &Scored) -> f64 {
    let lead = |scores: &Vec<(usize, f64)>| {
        let of = |plan: usize| scores.iter().find(|(other, _)| *other == plan).map(|(_, score)| *score);
        let (best, default) = (preferred(scores, 0.0)?, preferred(scores, f64::INFINITY)?);
        // A model's file holds it in 32 bits.
        Some(f64::from((of(best)? - of(default)?) as f32))
    };
    let margins = std::iter::once(0.0).chain(scored.iter().filter_map(lead));
    let cost = |margin: f64| Score::of("", samples, &choices(samples, scored, margin)).stall;
    let costs = margins.map(|margin| (margin, cost(margin)));
    let cheapest = costs.min_by(|(wide, one), (wider, other)| one.total_cmp(other).then(wider.total_cmp(wide)));
    cheapest.map_or(0.0, |(margin, _)| margin)
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

#[cfg(test)]
mod tests {
    //! Goal: a margin keeps choices to the default where leaving it does not pay, and no more. Method: scores and stalls by hand.
    use super::*;

    /// A decision in which `lfu` and `tiny` can be chosen, for so many seconds each.
    fn sample(lfu: f64, tiny: f64) -> Sample {
        let mut stalls = vec![None; PLANS.len()];
        (stalls[0], stalls[3]) = (Some(lfu), Some(tiny));
        Sample {
            format: 1,
            graph: 0,
            minibatch: 1,
            new: false,
            job: String::new(),
            text: String::new(),
            values: Vec::new(),
            plan: 0,
            idle_s: 0.0,
            stalls,
        }
    }

    /// The margin of decisions by how much likelier `tiny` is found.
    fn margin_of(decisions: [(f64, f64, f64); 3]) -> f64 {
        let samples = decisions.map(|(lfu, tiny, _)| sample(lfu, tiny));
        let scored = decisions.map(|(_, _, lead)| vec![(0, 0.0), (3, lead)]).to_vec();
        margin(&samples.each_ref(), &scored)
    }

    #[test]
    fn a_margin_stays_with_the_default_where_leaving_it_does_not_pay() {
        assert_eq!(margin_of([(2.0, 1.0, 0.75), (1.0, 3.0, 0.25), (1.0, 1.0, -0.5)]), 0.25);
        assert_eq!(margin_of([(1.0, 2.0, 0.75), (3.0, 1.0, 0.25), (1.0, 1.0, 0.5)]), 0.0, "both or neither");
        assert_eq!(margin_of([(1.0, 3.0, 0.75), (2.0, 1.0, 0.25), (1.0, 1.0, 0.5)]), 0.75, "it is never left");
        assert_eq!(
            margin_of([(1.0, 1.0, 0.75), (1.0, 1.0, 0.25), (1.0, 1.0, 0.5)]),
            0.75,
            "what gains nothing is no risk"
        );
    }
}
