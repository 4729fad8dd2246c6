//! Keeps rows of owners that hold minibatches up.
//!
//! A minibatch waits for the owner that takes longest; hits on rows of the others do not shorten that. So where an owner takes longer than the others,
//! and longer for each row too, twice in turn, wants of its nodes count for more, and its rows are kept rather than theirs, until it takes no longer or the
//! weights reach their bounds. An owner that takes long only because it is asked for most is no slower than the others: then it is this rank's own
//! link that is full, and the fewest rows in all are best.

use super::{Controller, Decision, Observation, OwnerShare};

/// Minibatches between two decisions.
const INTERVAL: u32 = 2;
/// What an owner takes may be so many times the others' mean, in all and for a row, before it is found to hold minibatches up. In `rudder study`, owners
/// of equal links that were asked at the same moments came to 2, and now and then, where batches of several ranks met, to more; but hardly ever twice in turn.
const SUSPECTED: f64 = 2.6;
/// The same from then on.
const TOLERATED: f64 = 1.6;
/// A weight follows the ratio to the others' mean by this power: by less than all of it, since rows that are kept by the new weights come only as they are wanted.
const GAIN: f64 = 0.25;
/// Most that a want may count.
const WEIGHT_MAX: f64 = 16.0;

/// Weighs wants by what their owners take.
#[derive(Clone, Debug, Default)]
pub struct Analytic {
    minibatches: u32,
    /// By partition.
    owners: Vec<Owner>,
}

/// What is known of an owner.
#[derive(Clone, Debug)]
struct Owner {
    /// Since the last decision.
    sent: OwnerShare,
    /// What a want of its nodes counts, 1 at least.
    weight: f64,
    /// Whether it was found to hold minibatches up when it was last looked at.
    suspected: bool,
}

impl Default for Owner {
    fn default() -> Self {
        Self { sent: OwnerShare::default(), weight: 1.0, suspected: false }
    }
}

impl Analytic {
    /// All wants count alike at first.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adapts the weights; whether any has changed.
    fn adapt(&mut self) -> bool {
        let sent = || self.owners.iter().map(|owner| owner.sent).filter(|sent| sent.rows > 0);
        let rows: u64 = sent().map(|sent| sent.rows).sum();
        let busy: f64 = sent().map(|sent| sent.busy.as_secs_f64()).sum();
        let others = sent().count().saturating_sub(1) as f64;
        let mut changed = false;
        for Owner { sent, weight, suspected } in self.owners.iter_mut().filter(|owner| owner.sent.rows > 0) {
            let own = sent.busy.as_secs_f64();
            if own >= busy {
                // There are no others, or they take no time.
                continue;
            }
            let share = own / (busy - own) * others;
            let share_of_row = own / sent.rows as f64 / (busy - own) * (rows - sent.rows) as f64;
            let raised = *weight > 1.0;
            let bound = if raised { TOLERATED } else { SUSPECTED };
            let holds_up = share > bound && share_of_row > bound;
            let again = std::mem::replace(suspected, holds_up);
            // What was raised goes back once it is more than was needed.
            let relieved = raised && share < 1.0;
            if holds_up && (raised || again) || relieved {
                let adapted = (*weight * share.powf(GAIN)).clamp(1.0, WEIGHT_MAX);
                changed |= adapted != std::mem::replace(weight, adapted);
            }
        }
        changed
    }

    /// The weights that stand, for a policy that has not been told; none where owners are not known yet.
    pub(super) fn standing(&self) -> Option<Vec<f32>> {
        (!self.owners.is_empty()).then(|| self.weights())
    }

    fn weights(&self) -> Vec<f32> {
        self.owners.iter().map(|owner| owner.weight as f32).collect()
    }
}

impl Controller for Analytic {
    fn name(&self) -> &'static str {
        "analytic"
    }

    fn observe(&mut self, observation: &Observation) {
        let owners = observation.owners.len().max(self.owners.len());
        self.owners.resize(owners, Owner::default());
        for (owner, sent) in self.owners.iter_mut().zip(&observation.owners) {
            owner.sent.rows += sent.rows;
            owner.sent.busy += sent.busy;
        }
        self.minibatches += 1;
    }

    fn decide(&mut self) -> Option<Decision> {
        if self.minibatches < INTERVAL {
            return None;
        }
        self.minibatches = 0;
        let changed = self.adapt();
        self.owners.iter_mut().for_each(|owner| owner.sent = OwnerShare::default());
        changed.then(|| Decision { owner_weights: Some(self.weights()), ..Decision::default() })
    }
}

#[cfg(test)]
mod tests {
    //! Goal: weights follow the owners that hold minibatches up, and nothing else. Method: rows and times made for it.
    use super::*;
    use std::time::Duration;

    /// Shows an interval of minibatches with these rows and milliseconds by partition.
    fn decide(controller: &mut Analytic, owners: &[(u64, u64)]) -> Option<Vec<f32>> {
        for minibatch in 1..=u64::from(INTERVAL) {
            assert_eq!(controller.decide(), None, "after {} minibatches", minibatch - 1);
            let share = |&(rows, ms)| OwnerShare { rows, busy: Duration::from_millis(ms) };
            let owners = owners.iter().map(share).collect();
            controller.observe(&Observation { minibatch, owners, ..Observation::default() });
        }
        controller.decide().map(|decision| {
            assert!(!decision.replace && decision.quotas.is_none());
            decision.owner_weights.unwrap()
        })
    }

    #[test]
    fn a_slow_owner_counts_for_more_until_it_holds_nobody_up() {
        let mut controller = Analytic::new();
        // Its own partition, of which no row travels, and three others.
        let slow = [(0, 0), (10, 9), (10, 9), (10, 36)];
        assert_eq!(decide(&mut controller, &slow), None, "it may be once");
        let weights = decide(&mut controller, &slow).unwrap();
        assert_eq!(weights[..3], [1.0; 3]);
        assert!((weights[3] - 4f32.powf(0.25)).abs() < 1e-6, "by what it takes over the others: {weights:?}");
        let further = decide(&mut controller, &slow).unwrap();
        assert!((further[3] - 2.0).abs() < 1e-5, "it goes on: {further:?}");
        assert_eq!(
            decide(&mut controller, &[(0, 0), (14, 11), (14, 10), (4, 12)]),
            None,
            "it takes as long as they do"
        );
        let back = decide(&mut controller, &[(0, 0), (10, 20), (10, 20), (10, 5)]).unwrap();
        assert!(back[3] < further[3], "and back: {back:?}");
    }

    #[test]
    fn an_owner_that_is_asked_for_most_is_not_slow() {
        let mut controller = Analytic::new();
        for (owners, why) in [
            ([(10, 5), (10, 5), (100, 40)], "it is asked for most"),
            ([(100, 5), (100, 5), (1, 1)], "it takes long for a row, and is rarely asked"),
        ] {
            (0..3).for_each(|_| assert_eq!(decide(&mut controller, &owners), None, "{why}"));
        }
    }

    #[test]
    fn an_owner_is_suspected_later_than_it_is_let_go() {
        let mut controller = Analytic::new();
        let behind = [(10, 6), (10, 6), (10, 12)];
        (0..3).for_each(|_| assert_eq!(decide(&mut controller, &behind), None, "twice what the others take"));
        let slow = [(10, 6), (10, 6), (10, 36)];
        assert_eq!(decide(&mut controller, &slow), None);
        assert_eq!(decide(&mut controller, &behind), None, "not twice in turn");
        assert_eq!(decide(&mut controller, &slow), None);
        let raised = decide(&mut controller, &slow).unwrap();
        let further = decide(&mut controller, &behind).unwrap();
        assert!(further[2] > raised[2], "it is not let go yet: {further:?}");
    }

    #[test]
    fn of_two_owners_the_slow_one_is_found_too() {
        let mut controller = Analytic::new();
        let slow = [(0, 0), (10, 9), (10, 36)];
        assert_eq!(decide(&mut controller, &slow), None);
        assert!(decide(&mut controller, &slow).unwrap()[2] > 1.0);
    }

    #[test]
    fn weights_stay_within_their_bounds() {
        let mut controller = Analytic::new();
        let decisions = std::iter::repeat_with(|| decide(&mut controller, &[(10, 1), (10, 1), (10, 1000)]));
        let last = decisions.take(100).flatten().last().unwrap();
        assert_eq!((last[0], f64::from(last[2])), (1.0, WEIGHT_MAX), "{last:?}");
    }

    #[test]
    fn without_owners_there_is_nothing_to_say() {
        let mut controller = Analytic::new();
        assert_eq!(decide(&mut controller, &[]), None);
        assert_eq!(decide(&mut controller, &[(0, 0), (0, 0)]), None);
        assert_eq!(decide(&mut controller, &[(0, 0), (5, 7)]), None, "there are no others");
    }
}
