//! Takes a controller's choices only while they are worth it: while the waits for what its buffer fetches, and its own processor time, cost no more
//! than the best simple policy does by itself.
//!
//! All of that is measured on the same sample: the controller's decisions are carried out on a shadow of the buffer too, whether the buffer itself
//! follows them or not. So it is found out as well when a controller that was overruled has become better than the simple policies again.

use super::ghost::INTERVAL;
use super::shadow::{Chooser, Costs, KEPT, Shadows, menu};
use super::stats::thread_cpu;
use super::{Controller, Decision, Health, Observation};
use crate::buffer::{Event, PolicyConfig, Watched};
use crate::error::Result;
use std::time::Duration;

/// What a controller may cost over the best simple policy: below it samples cannot tell.
const TOLERATED: f64 = 1.01;

/// The wrapper.
pub struct Guard {
    inner: Box<dyn Controller>,
    shadows: Option<Shadows>,
    chooser: Chooser,
    /// All that the inner controller has decided and that stands.
    standing: Decision,
    own_policy: Option<PolicyConfig>,
    overruled: bool,
    /// Whether the last evaluation was against who is in charge; none before the first.
    doubted: Option<bool>,
    minibatches: u32,
    /// What the inner controller has cost; older cost counts for less, as in the shadows.
    cost: Duration,
    assumed: Option<Duration>,
    /// Given to the runtime, and not yet taken: what of it the inner controller has decided, and who is in charge then.
    pending: Option<Pending>,
}

struct Pending {
    inners: Option<Decision>,
    overruled: bool,
    current: usize,
}

impl Guard {
    /// Guards this controller.
    pub fn new(inner: Box<dyn Controller>) -> Self {
        Self {
            inner,
            shadows: None,
            chooser: Chooser::default(),
            standing: Decision::default(),
            own_policy: None,
            overruled: false,
            doubted: None,
            minibatches: 0,
            cost: Duration::ZERO,
            assumed: None,
            pending: None,
        }
    }

    /// Lets the inner controller decide, on the shadow at least.
    fn ask(&mut self) -> Option<Decision> {
        let (began, remote) = (thread_cpu(), self.inner.health().remote_cpu);
        let decision = self.inner.decide();
        let took = thread_cpu().saturating_sub(began) + self.inner.health().remote_cpu.saturating_sub(remote);
        self.cost += match self.assumed {
            Some(assumed) => assumed * u32::from(decision.is_some()),
            None => took,
        };
        let decision = decision?;
        if self.overruled {
            self.take(decision);
            return None;
        }
        Some(decision)
    }

    /// The inner controller's decision stands, on the shadow at least.
    fn take(&mut self, decision: Decision) {
        if let Some(shadow) = self.shadows.as_mut().and_then(|shadows| shadows.steered.as_mut()) {
            shadow.decide(&decision);
        }
        self.standing.merge(Decision { replace: false, ..decision });
        self.inner.handle_taken();
    }

    /// Whether the inner controller is to be overruled, and the simple policy that is best. Who is in charge stays so until two evaluations in turn are
    /// against it: a change of set-up costs something at once, and gains later. The very first is enough, as nobody has earned anything before, unless
    /// minibatches are announced: what is fetched ahead then has cost something, and has not served yet.
    fn judge(&mut self, costs: &Costs) -> (bool, usize) {
        let best = self.chooser.choose(&costs.simple).unwrap_or(self.chooser.current);
        let own = self.cost.as_secs_f64();
        self.cost = self.cost.mul_f64(KEPT);
        let inner = costs.steered.unwrap_or(0.0) + if costs.seconds { own } else { 0.0 };
        // One that was overruled is to be as good as it, and one that is trusted may be a little worse, so that they do not take turns.
        let tolerated = if self.overruled { 1.0 } else { TOLERATED };
        let doubted = self.overruled != (inner > tolerated * costs.simple[best]);
        let announced = self.shadows.as_ref().is_some_and(Shadows::has_announcements);
        let before = self.doubted.replace(doubted).unwrap_or(!announced);
        let twice = before && doubted;
        (self.overruled != twice, best)
    }

    /// The set-up that the inner controller would have by now.
    fn restored(&self) -> Decision {
        Decision { policy: self.standing.policy.clone().or(self.own_policy.clone()), ..self.standing.clone() }
    }

    fn simple(&self, best: usize) -> Decision {
        let policy = self.shadows.as_ref().map(|shadows| shadows.simple[best].policy.clone());
        // No row is pulled ahead.
        Decision { policy, quotas: Some(Vec::new()), ..Decision::default() }
    }
}

impl Controller for Guard {
    fn name(&self) -> &'static str {
        "guard"
    }

    fn attach(&mut self, buffer: &Watched) -> Result<()> {
        self.inner.attach(buffer)?;
        self.shadows = Some(Shadows::new(buffer, &menu()?, true)?);
        (self.own_policy, self.assumed) = (Some(buffer.policy.clone()), buffer.decision);
        Ok(())
    }

    fn watch(&mut self, event: &Event) {
        let began = thread_cpu();
        self.inner.watch(event);
        self.cost += if self.assumed.is_none() { thread_cpu().saturating_sub(began) } else { Duration::ZERO };
        self.shadows.iter_mut().for_each(|shadows| shadows.watch(event));
    }

    /// An inner controller that is overruled sees what its shadow has found and fetched instead.
    fn observe(&mut self, observation: &Observation) {
        self.minibatches += 1;
        self.shadows.iter_mut().for_each(|shadows| shadows.observe(observation));
        match self.shadows.as_ref().filter(|_| self.overruled) {
            None => self.inner.observe(observation),
            Some(shadows) => self.inner.observe(&shadows.as_steered(observation)),
        }
    }

    fn decide(&mut self) -> Option<Decision> {
        if self.pending.is_some() {
            return None;
        }
        let mut decided = self.ask();
        let mut pending = Pending { inners: decided.clone(), overruled: self.overruled, current: self.chooser.current };
        if self.minibatches >= INTERVAL
            && let Some(costs) = self.shadows.as_mut().map(Shadows::evaluate)
        {
            self.minibatches = 0;
            (pending.overruled, pending.current) = self.judge(&costs);
            decided = match (self.overruled, pending.overruled) {
                (true, true) if pending.current != self.chooser.current => Some(self.simple(pending.current)),
                (false, true) => Some(self.simple(pending.current)),
                (true, false) => Some(self.restored()),
                _ => decided,
            };
            if decided.is_none() {
                self.chooser.current = pending.current;
            }
        }
        if decided.is_some() {
            self.pending = Some(pending);
        }
        decided
    }

    fn handle_taken(&mut self) {
        let Some(pending) = self.pending.take() else { return };
        if self.overruled != pending.overruled {
            self.doubted = Some(false);
        }
        (self.overruled, self.chooser.current) = (pending.overruled, pending.current);
        if let Some(decision) = pending.inners {
            self.take(decision);
        }
    }

    fn handle_discarded(&mut self) {
        if self.pending.take().is_some_and(|pending| pending.inners.is_some()) {
            self.inner.handle_discarded();
        }
    }

    fn health(&self) -> Health {
        self.inner.health()
    }
}

#[cfg(test)]
mod tests {
    //! Goal: a controller that has never been worth it is overruled at once, and who has been in charge is not replaced for a passing cost. Method:
    //! costs by hand.
    use super::*;
    use crate::buffer::{BufferHints, Call, PrefetchBuffer, WindowPosition};
    use crate::controller::Fixed;
    use crate::id::NodeId;
    use crate::partition::PartitionBook;

    /// Of a buffer for whose minibatches to come some nodes are announced.
    fn announced() -> Guard {
        let policy = PolicyConfig::named("window").unwrap();
        let owners = PartitionBook::from_starts(vec![0, 100]).unwrap();
        let hints = BufferHints { nodes: 100, halo: Vec::new(), degree: Vec::new(), owners };
        let feed = PrefetchBuffer::new(16, &policy, hints.clone()).unwrap().watch(&policy, hints).unwrap();
        let mut guard = Guard::new(Box::new(Fixed));
        guard.attach(feed.watched()).unwrap();
        let call = Call::Announce(WindowPosition(0));
        guard.watch(&Event { call, nodes: vec![NodeId(1)], owners: Vec::new() });
        guard
    }

    /// Who is in charge after each of these costs of the controller, where a simple policy costs 1: whether the controller is overruled.
    fn overruled(mut guard: Guard, costs: &[f64]) -> Vec<bool> {
        let mut evaluate = |&steered: &f64| {
            let costs = Costs { simple: vec![1.0], steered: Some(steered), seconds: true };
            let (overruled, current) = guard.judge(&costs);
            guard.pending = Some(Pending { inners: None, overruled, current });
            guard.handle_taken();
            guard.overruled
        };
        costs.iter().map(&mut evaluate).collect()
    }

    #[test]
    fn it_takes_two_evaluations_in_turn_to_change_who_is_in_charge() {
        let (good, bad) = (0.9, 1.1);
        let new = || Guard::new(Box::new(Fixed));
        assert_eq!(overruled(new(), &[bad, bad]), [true, true], "one that is bad from the start goes at once");
        assert_eq!(overruled(announced(), &[bad, bad]), [false, true], "but for what it fetched ahead");
        assert_eq!(overruled(new(), &[good, bad, good, bad, bad, bad]), [false, false, false, false, true, true]);
        assert_eq!(overruled(new(), &[bad, good, bad, good, good, good]), [true, true, true, true, false, false]);
        assert_eq!(overruled(new(), &[1.005; 3]), [false; 3], "what samples cannot tell is no reason");
        assert_eq!(overruled(new(), &[bad, 1.005, 1.005]), [true; 3], "nor to take one back");
    }
}
