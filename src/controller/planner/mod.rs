//! Chooses among plans by what it is told of the job: at the first minibatch, when there is next to nothing in the buffer yet, soon again, and then
//! every now and then. Who chooses is an [`Advisor`]; what wants count, by owner, is always found by [`Analytic`]'s rule.

mod menu;
mod situation;

pub use menu::{PLANS, Plan, preferred};
pub use situation::{Situation, VALUES, words};

use super::shadow::Shadows;
use super::{Analytic, Controller, Decision, Health, Observation};
use crate::buffer::{Call, Event, PolicyConfig, WINDOW_MAX, Watched};
use crate::controller::JobFacts;
use crate::error::Result;
use situation::{Since, TRIED};
use std::time::Duration;

/// Minibatches between two choices, once the job is under way.
const INTERVAL: u64 = 16;
/// The first two choices come after so many minibatches: one knows what is wanted, the other also how rows come.
const FIRST: [u64; 2] = [1, 4];

/// The minibatches that are over when a choice is due, counted from 0.
pub const fn minibatches_at(choice: usize) -> u64 {
    match choice {
        0 | 1 => FIRST[choice],
        _ => FIRST[1] + (choice as u64 - 1) * INTERVAL,
    }
}

/// Says which plan is best.
pub trait Advisor: Send {
    /// Its name in the configuration.
    fn name(&self) -> &'static str;

    /// The place in [`PLANS`] of one that the situation [allows](Situation::allows); another is not followed.
    ///
    /// # Errors
    /// It cannot say.
    fn choose(&mut self, situation: &Situation) -> Result<usize>;

    /// Whether it looks at what the plans would have cost, which takes trying them.
    fn wants_costs(&self) -> bool {
        true
    }

    /// CPU time spent for it outside the calling thread.
    fn remote_cpu(&self) -> Duration {
        Duration::ZERO
    }
}

/// The controller.
pub struct Planner {
    advisor: Box<dyn Advisor>,
    facts: JobFacts,
    weights: Analytic,
    shadows: Option<Shadows>,
    announced: [bool; WINDOW_MAX],
    minibatch: u64,
    /// Choices whose time has come, made or not.
    choices: usize,
    since: Since,
    hits_before: Option<f64>,
    plan: usize,
    /// Chosen, and not yet in use.
    pending: Option<usize>,
    failure: Option<String>,
}

impl Planner {
    /// Follows an advisor.
    pub fn new(advisor: Box<dyn Advisor>, facts: &JobFacts) -> Self {
        Self {
            advisor,
            facts: facts.clone(),
            weights: Analytic::new(),
            shadows: None,
            announced: [false; WINDOW_MAX],
            minibatch: 0,
            choices: 0,
            since: Since::default(),
            hits_before: None,
            plan: 0,
            pending: None,
            failure: None,
        }
    }

    /// What there is to decide on. What the plans have cost is looked at once, and counts for less the next time.
    fn situation(&mut self) -> Situation {
        let mut situation = Situation {
            facts: self.facts.clone(),
            minibatch: self.minibatch,
            announced: self.announced.iter().filter(|announced| **announced).count(),
            plan: self.plan,
            hits_before: self.hits_before,
            ..Situation::default()
        };
        self.since.describe(&mut situation);
        if let Some(shadows) = &mut self.shadows {
            let costs = shadows.evaluate().simple;
            let tried: Vec<_> = shadows.simple.iter().map(|shadow| shadow.policy.clone()).zip(costs).collect();
            situation.costs = relative(&tried);
        }
        situation
    }

    /// Asks for a plan, and what it takes to change to it; none if it is the one that stands.
    fn choose(&mut self) -> Result<Option<(usize, PolicyConfig)>> {
        let situation = self.situation();
        self.hits_before = Some(self.since.hits());
        self.since = Since::default();
        let chosen = self.advisor.choose(&situation)?;
        if chosen == self.plan || chosen >= PLANS.len() || !situation.allows(chosen) {
            return Ok(None);
        }
        Ok(Some((chosen, PLANS[chosen].weighing()?)))
    }
}

/// By plan that is tried, its cost over the cheapest one's.
fn relative(tried: &[(PolicyConfig, f64)]) -> [Option<f64>; TRIED] {
    let least = tried.iter().map(|(_, cost)| *cost).fold(f64::INFINITY, f64::min);
    let mut costs = [None; TRIED];
    if least > 0.0 {
        for (plan, relative) in PLANS.iter().zip(&mut costs) {
            let own = tried.iter().find(|(policy, _)| plan.simple().is_ok_and(|own| own == *policy));
            *relative = own.map(|(_, cost)| cost / least);
        }
    }
    costs
}

impl Controller for Planner {
    fn name(&self) -> &'static str {
        self.advisor.name()
    }

    fn attach(&mut self, buffer: &Watched) -> Result<()> {
        let weighing = PLANS.iter().position(|plan| plan.weighing().is_ok_and(|policy| policy == buffer.policy));
        let alone = || PLANS.iter().position(|plan| plan.simple().is_ok_and(|policy| policy == buffer.policy));
        self.plan = weighing.or_else(alone).unwrap_or(0);
        if self.advisor.wants_costs() {
            let alone = PLANS.iter().filter(|plan| !plan.announced).map(Plan::simple).collect::<Result<Vec<_>>>()?;
            let plain = Watched { policy: PLANS[0].simple()?, ..buffer.clone() };
            self.shadows = Some(Shadows::new(&plain, &alone, false)?);
        }
        Ok(())
    }

    fn watch(&mut self, event: &Event) {
        match event.call {
            Call::Announce(position) => self.announced[usize::from(position.0)] = true,
            Call::Retire(position) => self.announced[usize::from(position.0)] = false,
            Call::Lookup | Call::End => {}
        }
        self.shadows.iter_mut().for_each(|shadows| shadows.watch(event));
    }

    fn observe(&mut self, observation: &Observation) {
        self.minibatch = observation.minibatch;
        if observation.minibatches > 0 {
            self.facts.minibatches = observation.minibatches;
        }
        self.since.add(observation);
        self.shadows.iter_mut().for_each(|shadows| shadows.observe(observation));
        self.weights.observe(observation);
    }

    fn decide(&mut self) -> Option<Decision> {
        self.failure = None;
        if self.pending.is_some() {
            return None;
        }
        let weights = self.weights.decide();
        let due = self.minibatch >= minibatches_at(self.choices);
        while self.minibatch >= minibatches_at(self.choices) {
            self.choices += 1;
        }
        let chosen = if due { self.choose() } else { Ok(None) };
        let chosen = chosen.unwrap_or_else(|cause| {
            self.failure = Some(cause.to_string());
            None
        });
        let Some((plan, policy)) = chosen else { return weights };
        self.pending = Some(plan);
        // A policy begins with wants that count alike.
        let owner_weights = weights.and_then(|decision| decision.owner_weights).or_else(|| self.weights.standing());
        Some(Decision { policy: Some(policy), owner_weights, ..Decision::default() })
    }

    fn handle_taken(&mut self) {
        self.plan = self.pending.take().unwrap_or(self.plan);
    }

    fn handle_discarded(&mut self) {
        self.pending = None;
    }

    fn health(&self) -> Health {
        Health { failure: self.failure.clone(), remote_cpu: self.advisor.remote_cpu() }
    }
}
