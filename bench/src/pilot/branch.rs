//! A job whose ranks all follow a list of plans, and what would have come of another plan at one of its decisions.
//!
//! A job cannot be copied. A branch begins at the job's start instead, with the same plans up to where it parts.

use super::draw::Surroundings;
use crate::replay::{Case, Job, replay_steered, settled};
use anyhow::{Context, Result};
use rudder::controller::planner::{Advisor, PLANS, Planner, Situation, minibatches_at};
use rudder::controller::{Controller, Watching};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Minibatches after a decision in which it is judged.
pub const HORIZON: usize = 32;

/// The situations of each rank at its decisions.
type Seen = Arc<Mutex<Vec<Vec<Situation>>>>;

/// Chooses plans from a list, the last one for ever.
struct Scripted {
    plans: Arc<[usize]>,
    decisions: usize,
    /// Where situations are noted, and whose they are.
    seen: Option<(Seen, usize)>,
}

impl Advisor for Scripted {
    fn name(&self) -> &'static str {
        "scripted"
    }

    fn choose(&mut self, situation: &Situation) -> rudder::Result<usize> {
        if let Some((seen, rank)) = &self.seen {
            seen.lock().expect("nobody panics with it")[*rank].push(situation.clone());
        }
        let plan = self.plans.get(self.decisions).or(self.plans.last()).copied();
        self.decisions += 1;
        Ok(plan.unwrap_or(situation.plan))
    }

    fn wants_costs(&self) -> bool {
        self.seen.is_some()
    }
}

/// A job in its surroundings.
pub struct Branching<'a> {
    job: &'a Job,
    case: Case,
}

/// The minibatches that are over at a decision.
pub const fn step_of(decision: usize) -> usize {
    minibatches_at(decision) as usize
}

impl<'a> Branching<'a> {
    /// Of a job that begins with policy `lfu`.
    ///
    /// # Errors
    /// The policy is unknown.
    pub fn new(job: &'a Job, surroundings: Surroundings) -> Result<Self> {
        // The controller stands for those that are made here: it needs the same of a buffer.
        let config = settled("lfu", "pilot:scripted")??;
        let Surroundings { buffer, lookahead, link, slow } = surroundings;
        let case = Case {
            policy: config.policy,
            controller_words: "pilot:scripted".to_owned(),
            controller: config.controller,
            buffer,
            lookahead: lookahead as usize,
            link,
            slow,
            egress: true,
            decision_latency: Duration::ZERO,
            in_flight: None,
        };
        Ok(Self { job, case })
    }

    fn replay(&self, plans: &[usize], steps: usize, seen: Option<&Seen>) -> Result<Vec<Duration>> {
        let plans: Arc<[usize]> = plans.into();
        let outcome = replay_steered(self.job, &self.case, steps, &|rank, facts, feed| {
            let seen = seen.map(|seen| (seen.clone(), rank.index()));
            let planner = Planner::new(Box::new(Scripted { plans: plans.clone(), decisions: 0, seen }), facts);
            let feed = feed.expect("the case's controller watches its buffer");
            Ok(Box::new(Watching::new(Box::new(planner), feed)?) as Box<dyn Controller>)
        })?;
        Ok(outcome.stalls)
    }

    /// By rank, its situations while the job follows the plans.
    ///
    /// # Errors
    /// The job cannot be replayed.
    pub fn situations(&self, plans: &[usize]) -> Result<Vec<Vec<Situation>>> {
        let seen = Arc::new(Mutex::new(vec![Vec::new(); self.job.ranks.len()]));
        self.replay(plans, self.job.steps, Some(&seen))?;
        let seen = Arc::into_inner(seen).context("a controller has outlived its job")?;
        Ok(seen.into_inner().expect("nobody panics with it"))
    }

    /// By plan, the seconds that are waited for rows up to the horizon, where all follow `before` up to a decision and this plan from there on; none
    /// of a plan that cannot be chosen.
    ///
    /// # Errors
    /// The job cannot be replayed.
    pub fn stalls(&self, before: &[usize]) -> Result<Vec<Option<f64>>> {
        let from = step_of(before.len());
        let until = (from + HORIZON).min(self.job.steps);
        let of = |plan: usize| {
            if PLANS[plan].announced && self.case.lookahead == 0 {
                return Ok(None);
            }
            let stalls = self.replay(&[before, &[plan]].concat(), until, None)?;
            Ok(Some(stalls[from..].iter().sum::<Duration>().as_secs_f64()))
        };
        (0..PLANS.len()).map(of).collect()
    }
}
