//! Standing quotas by what was missed lately, and the controller that pulls the same share of every cohort's, or of those that are wanted often: what a
//! model that tells cohorts apart has to beat.

use super::{Cohort, Controller, Decision, FREQUENCY_BANDS, JobFacts, Observation};
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
    /// None yet.
    pub fn new(facts: &JobFacts) -> Self {
        Self { cohorts: vec![0; Cohort::count(facts.partitions)], minibatches: 0, slots: facts.slots }
    }

    pub fn add(&mut self, observation: &Observation) {
        self.minibatches += 1;
        self.cohorts.iter_mut().zip(&observation.cohort_misses).for_each(|(sum, missed)| *sum += u64::from(*missed));
    }

    /// By [`Cohort::index`].
    #[cfg(feature = "llm")]
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
    /// The least frequency band of which any is pulled.
    frequency: u8,
    missed: Missed,
}

impl Quotas {
    /// Pulls so many per cent of what is missed of nodes that were wanted so many times lately.
    ///
    /// # Errors
    /// None at all, or more than all; times that are no cohort's least.
    pub fn new(percent: u64, times: u64, facts: &JobFacts) -> Result<Self> {
        if !(1..=100).contains(&percent) {
            return Err(Error::config(format!("quotas: {percent} per cent of what is missed; give 1 to 100")));
        }
        let Some(frequency) = (0..FREQUENCY_BANDS as u8).find(|band| times == 1 << band) else {
            return Err(Error::config(format!("quotas: of nodes wanted {times} times lately; give 1, 2, 4 or 8")));
        };
        Ok(Self { share: percent as f32 / 100.0, frequency, missed: Missed::new(facts) })
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
        let pulled = |cohort| Cohort::at(cohort).frequency >= self.frequency;
        let quotas = self.missed.quotas(SLOTS_SHARE, |cohort| if pulled(cohort) { self.share } else { 0.0 });
        self.missed.clear();
        Some(Decision { quotas: Some(quotas), ..Decision::default() })
    }
}

#[cfg(test)]
mod tests {
    //! Goal: quotas are the share of the mean misses, and never above the bound. Method: misses made for it.
    use super::*;

    fn quotas(percent: u64, times: u64, slots: u64) -> Result<Quotas> {
        Quotas::new(percent, times, &JobFacts { partitions: 2, slots, ..JobFacts::default() })
    }

    /// The first decision, of a buffer of so many slots, where one cohort, of nodes wanted 2 or 3 times, misses so many rows of each minibatch.
    fn decided(percent: u64, times: u64, slots: u64, misses: u32) -> u32 {
        let mut controller = quotas(percent, times, slots).unwrap();
        let mut cohort_misses = vec![0; Cohort::count(2)];
        cohort_misses[30] = misses;
        assert_eq!(Cohort::at(30).frequency, 1);
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
        assert_eq!((decided(25, 1, 10_000, 80), decided(100, 2, 10_000, 80), decided(100, 4, 10_000, 80)), (20, 80, 0));
        assert_eq!(decided(100, 1, 400, 80), 20, "a twentieth of the slots");
        for (percent, times) in [(0, 1), (101, 1), (10, 0), (10, 3), (10, 16)] {
            assert!(quotas(percent, times, 100).is_err(), "{percent}:{times}");
        }
    }
}
