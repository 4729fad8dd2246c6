//! Standing quotas by what was missed lately, and the controller that pulls the same share of every cohort's: what a model that tells cohorts apart
//! has to beat.

use super::{Cohort, Controller, Decision, Observation};
use crate::error::{Error, Result};

/// Minibatches between two decisions.
const INTERVAL: u64 = 16;
/// Rows to pull ahead of a minibatch, all cohorts together, as a share of the slots: what is pulled takes the place of something.
pub(super) const SLOTS_SHARE: f32 = 0.05;

/// Misses by cohort, since they were last looked at.
#[derive(Debug)]
pub(super) struct Missed {
    cohorts: Vec<u64>,
    minibatches: u64,
    slots: u64,
}

impl Missed {
    /// Of a job with so many partitions, and a buffer of so many slots.
    pub fn new(partitions: u32, slots: u64) -> Self {
        Self { cohorts: vec![0; Cohort::count(partitions)], minibatches: 0, slots }
    }

    pub fn add(&mut self, observation: &Observation) {
        self.minibatches += 1;
        self.cohorts.iter_mut().zip(&observation.cohort_misses).for_each(|(sum, missed)| *sum += u64::from(*missed));
    }

    /// By [`Cohort::index`].
    pub fn cohorts(&self) -> &[u64] {
        &self.cohorts
    }

    /// Rows a minibatch, of each cohort this share of its mean misses, together at most so large a share of the slots.
    pub fn quotas(&self, slots_share: f32, share: impl Fn(usize) -> f32) -> Vec<u32> {
        let minibatches = self.minibatches.max(1) as f64;
        let wanted = |(at, missed): (usize, &u64)| *missed as f64 / minibatches * f64::from(share(at));
        let wanted = || self.cohorts.iter().enumerate().map(wanted);
        let (total, limit) = (wanted().sum::<f64>(), self.slots as f64 * f64::from(slots_share));
        let scale = if total > limit { limit / total } else { 1.0 };
        // Down to whole rows, so that the bound holds; a hair's breadth below one is rounding and counts as one.
        wanted().map(|rows| (rows * scale + 1e-3) as u32).collect()
    }

    pub fn clear(&mut self) {
        self.minibatches = 0;
        self.cohorts.fill(0);
    }
}

/// Pulls of each cohort the same share of what it misses.
#[derive(Debug)]
pub struct Quotas {
    share: f32,
    missed: Missed,
}

impl Quotas {
    /// Pulls so many per cent.
    ///
    /// # Errors
    /// None at all, or more than all.
    pub fn new(percent: u64, partitions: u32, slots: u64) -> Result<Self> {
        if !(1..=100).contains(&percent) {
            return Err(Error::config(format!("quotas: {percent} per cent of what is missed; give 1 to 100")));
        }
        Ok(Self { share: percent as f32 / 100.0, missed: Missed::new(partitions, slots) })
    }
}

impl Controller for Quotas {
    fn name(&self) -> &'static str {
        "quotas"
    }

    fn observe(&mut self, observation: &Observation) {
        self.missed.add(observation);
    }

    fn decide(&mut self) -> Option<Decision> {
        if self.missed.minibatches < INTERVAL {
            return None;
        }
        let quotas = self.missed.quotas(SLOTS_SHARE, |_| self.share);
        self.missed.clear();
        Some(Decision { quotas: Some(quotas), ..Decision::default() })
    }
}

#[cfg(test)]
mod tests {
    //! Goal: quotas are the share of the mean misses, and never above the bound. Method: misses made for it.
    use super::*;

    /// The first decision, of a buffer of so many slots, where one cohort misses so many rows of each minibatch.
    fn decided(percent: u64, slots: u64, misses: u32) -> u32 {
        let mut controller = Quotas::new(percent, 2, slots).unwrap();
        let mut cohort_misses = vec![0; Cohort::count(2)];
        cohort_misses[30] = misses;
        for minibatch in 1..=INTERVAL {
            assert_eq!(controller.decide(), None);
            let cohort_misses = cohort_misses.clone();
            controller.observe(&Observation { minibatch, cohort_misses, ..Observation::default() });
        }
        let quotas = controller.decide().unwrap().quotas.unwrap();
        assert_eq!(controller.decide(), None, "decided already");
        assert!(quotas.iter().enumerate().all(|(at, rows)| at == 30 || *rows == 0));
        quotas[30]
    }

    #[test]
    fn a_share_of_what_is_missed_within_the_bound() {
        assert_eq!((decided(25, 10_000, 80), decided(100, 10_000, 80)), (20, 80));
        assert_eq!(decided(100, 400, 80), 20, "a twentieth of the slots");
        assert!(Quotas::new(0, 2, 100).is_err() && Quotas::new(101, 2, 100).is_err());
    }
}
