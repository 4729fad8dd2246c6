//! Keeps rows of owners that hold minibatches up.
//!
//! A minibatch waits for the owner that takes longest; hits on rows of the others do not shorten that. So where an owner takes longer than the others,
//! and longer for each row too, twice in turn, wants of its nodes count for more, and its rows are kept rather than theirs, until it takes no longer or the
//! weights reach their bounds. An owner that takes long only because it is asked for most is no slower than the others: then it is this rank's own
//! link that is full, and the fewest rows in all are best.

use super::{Controller, Decision, Observation, OwnerShare};

/// Minibatches between two decisions.
const INTERVAL: u32 = 4;
/// What an owner takes may be so many times the owners' mean, in all and for a row, before it is found to hold minibatches up. In `rudder study`, owners
/// of equal links that were asked at the same moments came to 1.5, and now and then, where batches of several ranks met, to more; but hardly ever twice in turn.
const SUSPECTED: f64 = 1.7;
/// The same from then on.
const TOLERATED: f64 = 1.25;
/// A weight follows the ratio to the mean by this power: by less than all of it, since what is kept follows weights only slowly.
const GAIN: f64 = 0.5;
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
    /// What a want of its nodes counts, 1 at least, before all are brought to 1 on average.
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
        if rows == 0 || busy == 0.0 {
            return false;
        }
        let (mean, mean_of_row) = (busy / sent().count() as f64, busy / rows as f64);
        let mut changed = false;
        for Owner { sent, weight, suspected } in self.owners.iter_mut().filter(|owner| owner.sent.rows > 0) {
            let share = sent.busy.as_secs_f64() / mean;
            let share_of_row = sent.busy.as_secs_f64() / sent.rows as f64 / mean_of_row;
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

    /// The weights, 1 on average, so that new wants go with what was counted before.
    fn weights(&self) -> Vec<f32> {
        let mean = self.owners.iter().map(|owner| owner.weight).sum::<f64>() / self.owners.len() as f64;
        self.owners.iter().map(|owner| (owner.weight / mean) as f32).collect()
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
        assert_eq!((weights[0], weights[1]), (weights[1], weights[2]));
        assert!((weights[3] / weights[1] - 2f32.sqrt()).abs() < 1e-6, "the root of twice the mean: {weights:?}");
        assert!((weights.iter().sum::<f32>() - 4.0).abs() < 1e-6, "1 on average: {weights:?}");
        let further = decide(&mut controller, &slow).unwrap();
        assert!((further[3] / further[1] - 2.0).abs() < 1e-5, "it goes on: {further:?}");
        assert_eq!(
            decide(&mut controller, &[(0, 0), (14, 11), (14, 10), (4, 12)]),
            None,
            "it takes as long as they do"
        );
        let back = decide(&mut controller, &[(0, 0), (10, 20), (10, 20), (10, 5)]).unwrap();
        assert!(back[3] / back[1] < further[3] / further[1], "and back: {back:?}");
    }

    #[test]
    fn an_owner_that_is_asked_for_most_is_not_slow() {
        let mut controller = Analytic::new();
        assert_eq!(decide(&mut controller, &[(10, 5), (10, 5), (100, 40)]), None);
        assert_eq!(
            decide(&mut controller, &[(100, 5), (100, 5), (1, 1)]),
            None,
            "nor one that takes long for a row, and is rarely asked"
        );
    }

    #[test]
    fn an_owner_is_suspected_later_than_it_is_let_go() {
        let mut controller = Analytic::new();
        let behind = [(10, 6), (10, 6), (10, 12)];
        assert_eq!(decide(&mut controller, &behind), None, "one and a half times the mean");
        let slow = [(10, 6), (10, 6), (10, 36)];
        assert_eq!(decide(&mut controller, &slow), None);
        assert_eq!(decide(&mut controller, &behind), None, "not twice in turn");
        assert_eq!(decide(&mut controller, &slow), None);
        let raised = decide(&mut controller, &slow).unwrap();
        let further = decide(&mut controller, &behind).unwrap();
        assert!(further[2] / further[0] > raised[2] / raised[0], "it is not let go yet: {further:?}");
    }

    #[test]
    fn weights_stay_within_their_bounds() {
        let mut controller = Analytic::new();
        let decisions = std::iter::repeat_with(|| decide(&mut controller, &[(10, 1), (10, 1), (10, 1000)]));
        let last = decisions.take(100).flatten().last().unwrap();
        assert!((f64::from(last[2] / last[0]) - WEIGHT_MAX).abs() < 1e-3, "{last:?}");
    }

    #[test]
    fn without_owners_there_is_nothing_to_say() {
        let mut controller = Analytic::new();
        assert_eq!(decide(&mut controller, &[]), None);
        assert_eq!(decide(&mut controller, &[(0, 0), (0, 0)]), None);
        assert_eq!(decide(&mut controller, &[(0, 0), (5, 7)]), None, "one alone is its own mean");
    }
}
