//! Chooses among plans by what it is told of the job: at the first minibatch, when there is next to nothing in the buffer yet, soon again, and then
//! every now and then; after a change, announced or shown, it begins so again. Who chooses is an [`Advisor`]; what wants count, by owner, is always
//! found by [`Analytic`]'s rule.

mod change;
mod menu;
mod situation;

pub use menu::{PLANS, Plan, preferred};
pub use situation::{Situation, VALUES, words};

use super::shadow::Shadows;
use super::{Analytic, Controller, Decision, Health, Observation};
use crate::buffer::{Call, Event, PolicyConfig, WINDOW_MAX, Watched};
use crate::controller::JobFacts;
use crate::error::Result;
use change::{Change, Changes};
use situation::{Since, TRIED};
use std::time::Duration;

/// Minibatches between two choices, once the job is under way.
const INTERVAL: u64 = 16;
/// The first two choices come after so many minibatches: one knows what is wanted, the other also how rows come.
const FIRST: [u64; 2] = [1, 4];

/// Of the choices after a start or a change, counted from 0, the minibatches since then that are over when one is due.
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

    /// Whether it is asked at the end of each minibatch, rather than when a choice is due.
    fn is_asked_always(&self) -> bool {
        false
    }

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
    changes: Changes,
    /// Choices since the last start or change whose time has come, made or not.
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
            changes: Changes::of(facts),
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
            minibatch: self.changes.minibatch(),
            since: self.changes.since(),
            coming: self.changes.coming(),
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

    /// The job begins, or begins anew.
    fn begin(&mut self) {
        self.choices = 0;
        self.describe_anew();
    }

    /// What was seen so far is of before.
    fn describe_anew(&mut self) {
        self.hits_before = Some(self.since.hits());
        self.since = Since::default();
    }

    /// Asks for a plan, and what it takes to change to it; none if it is the one that stands.
    fn choose(&mut self) -> Result<Option<(usize, PolicyConfig)>> {
        let situation = self.situation();
        self.describe_anew();
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
        if observation.minibatches > 0 {
            self.facts.minibatches = observation.minibatches;
        }
        let change = self.changes.observe(observation);
        if change == Some(Change::Announced) {
            self.begin();
        }
        self.since.add(observation);
        if change == Some(Change::Shown) {
            self.begin();
        }
        self.shadows.iter_mut().for_each(|shadows| shadows.observe(observation));
        self.weights.observe(observation);
    }

    fn decide(&mut self) -> Option<Decision> {
        self.failure = None;
        if self.pending.is_some() {
            return None;
        }
        let weights = self.weights.decide();
        let due = self.advisor.is_asked_always() || self.changes.since() >= minibatches_at(self.choices);
        while self.changes.since() >= minibatches_at(self.choices) {
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

#[cfg(test)]
mod tests {
    //! Goal: an advisor is asked soon after a start and after every change, and told how long ago that was. Method: one that notes what it is told, of
    //! observations by hand.
    use super::*;
    use std::sync::{Arc, Mutex};

    struct Noting(Arc<Mutex<Vec<Situation>>>);

    impl Advisor for Noting {
        fn name(&self) -> &'static str {
            "noting"
        }

        fn choose(&mut self, situation: &Situation) -> Result<usize> {
            self.0.lock().unwrap().push(situation.clone());
            Ok(situation.plan)
        }
    }

    /// What an advisor is told in a job of which so many nodes are wanted in each minibatch.
    fn told(changes: Vec<u64>, wanted: impl Fn(u64) -> u64) -> Vec<Situation> {
        let noted = Arc::new(Mutex::new(Vec::new()));
        let facts = JobFacts { changes, ..JobFacts::default() };
        let mut planner = Planner::new(Box::new(Noting(noted.clone())), &facts);
        for minibatch in 1..=60 {
            let remote_nodes = wanted(minibatch);
            planner.observe(&Observation { minibatch, remote_nodes, hits: remote_nodes / 4, ..Observation::default() });
            assert_eq!(planner.decide(), None);
        }
        drop(planner);
        Arc::into_inner(noted).unwrap().into_inner().unwrap()
    }

    fn times(told: &[Situation]) -> Vec<(u64, u64)> {
        told.iter().map(|situation| (situation.minibatch, situation.since)).collect()
    }

    #[test]
    fn an_advisor_is_asked_soon_after_a_start_and_then_now_and_then() {
        assert_eq!(times(&told(Vec::new(), |_| 100)), [1, 4, 20, 36, 52].map(|minibatch| (minibatch, minibatch)));
    }

    #[test]
    fn what_is_announced_is_told_before_it_comes_and_counted_from_then() {
        let told = told(vec![30], |minibatch| if minibatch > 30 { 200 } else { 100 });
        assert_eq!(times(&told), [(1, 1), (4, 4), (20, 20), (31, 1), (34, 4), (50, 20)]);
        assert_eq!(
            told.iter().map(|situation| situation.coming).collect::<Vec<_>>(),
            [Some(29), Some(26), Some(10), None, None, None]
        );
        assert_eq!(told[3].wanted, 200.0, "nothing of before is told");
        assert_eq!(told[3].hits_before, Some(0.25));
    }

    #[test]
    fn what_shows_is_counted_from_when_it_is_seen() {
        let told = told(Vec::new(), |minibatch| if minibatch > 30 { 200 } else { 100 });
        let seen = told[3].minibatch - 1;
        assert!((31..=34).contains(&seen), "{seen}");
        assert_eq!(times(&told[3..]), [(seen + 1, 1), (seen + 4, 4), (seen + 20, 20)]);
        assert_eq!(told[3].wanted, 200.0, "nothing of before is told");
    }
}
