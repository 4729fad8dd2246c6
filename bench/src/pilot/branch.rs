//! A job whose ranks all follow a list of plans, and what would have come of another plan at one of its decisions.
//!
//! A job cannot be copied. A branch begins at the job's start instead, with the same plans up to where it parts.

use super::draw::Surroundings;
use crate::replay::{Case, Job, replay_steered, settled};
use anyhow::{Context, Result};
use rudder::controller::planner::{Advisor, PLANS, Planner, Situation};
use rudder::controller::{Controller, Watching};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Minibatches after a decision in which it is judged.
pub const HORIZON: usize = 32;

/// A rank's decision: what it was told, and the plan that it chose.
pub type Decided = (Situation, usize);

/// Where the decisions of each rank are noted.
type Seen = Arc<Mutex<Vec<Vec<Decided>>>>;

/// Plans by the minibatches that are over when they are to be chosen, in their order.
pub type Script = Vec<(u64, usize)>;

/// Chooses plans by a script: at the end of that minibatch, or, where its decisions are noted, when the next choice is due.
struct Scripted {
    script: Arc<Script>,
    /// Where decisions are noted, and whose they are.
    seen: Option<(Seen, usize)>,
}

impl Advisor for Scripted {
    fn name(&self) -> &'static str {
        "scripted"
    }

    fn choose(&mut self, situation: &Situation) -> rudder::Result<usize> {
        let begun = self.script.iter().rev().find(|(from, _)| *from <= situation.minibatch);
        let plan = begun.map_or(situation.plan, |(_, plan)| *plan);
        if let Some((seen, rank)) = &self.seen {
            seen.lock().expect("nobody panics with it")[*rank].push((situation.clone(), plan));
        }
        Ok(plan)
    }

    fn is_asked_always(&self) -> bool {
        self.seen.is_none()
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
            policy_words: "lfu".to_owned(),
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

    /// The stall of each step while each rank follows its script.
    fn replay(&self, scripts: &[Arc<Script>], steps: usize, seen: Option<&Seen>) -> Result<Vec<Duration>> {
        let outcome = replay_steered(self.job, &self.case, steps, &|rank, facts, feed| {
            let seen = seen.map(|seen| (seen.clone(), rank.index()));
            let script = scripts[rank.index()].clone();
            let planner = Planner::new(Box::new(Scripted { script, seen }), facts);
            let feed = feed.expect("the case's controller watches its buffer");
            Ok(Box::new(Watching::new(Box::new(planner), feed)?) as Box<dyn Controller>)
        })?;
        Ok(outcome.stalls)
    }

    /// By rank, its decisions while all follow a script.
    ///
    /// # Errors
    /// The job cannot be replayed.
    pub fn decided(&self, script: Script) -> Result<Vec<Vec<Decided>>> {
        let seen = Arc::new(Mutex::new(vec![Vec::new(); self.job.ranks.len()]));
        let script = Arc::new(script);
        let scripts: Vec<_> = self.job.ranks.iter().map(|_| script.clone()).collect();
        self.replay(&scripts, self.job.steps, Some(&seen))?;
        let seen = Arc::into_inner(seen).context("a controller has outlived its job")?;
        Ok(seen.into_inner().expect("nobody panics with it"))
    }

    /// By plan, the seconds that are waited for rows up to the horizon, where each rank decides as before until so many minibatches are over, and all
    /// follow this plan from there on; none of a plan that cannot be chosen.
    ///
    /// # Errors
    /// The job cannot be replayed.
    pub fn stalls(&self, decided: &[Vec<Decided>], from: u64) -> Result<Vec<Option<f64>>> {
        let until = (from as usize + HORIZON).min(self.job.steps);
        let of = |plan: usize| {
            if PLANS[plan].announced && self.case.lookahead == 0 {
                return Ok(None);
            }
            let script = |decided: &Vec<Decided>| {
                let before = decided.iter().map(|(situation, plan)| (situation.minibatch, *plan));
                Arc::new(before.take_while(|(at, _)| *at < from).chain([(from, plan)]).collect::<Script>())
            };
            let stalls = self.replay(&decided.iter().map(script).collect::<Vec<_>>(), until, None)?;
            Ok(Some(stalls[from as usize..].iter().sum::<Duration>().as_secs_f64()))
        };
        (0..PLANS.len()).map(of).collect()
    }
}
