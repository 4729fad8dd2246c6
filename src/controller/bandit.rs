//! Picks among the simple policies by what each has done in its turn, and by nothing else: upper confidence bounds over a sliding window.
//!
//! A policy has the buffer for an episode. Its reward is the share of the wanted rows that were not fetched, after the minibatches in which the buffer
//! came to be its own. Episodes long ago are forgotten, so that a policy that was bad once is tried again. Source: Garivier and Moulines, On
//! Upper-Confidence Bound Policies for Switching Bandit Problems (ALT 2011), with a bound as wide as rewards of one policy differ from another's.

use super::shadow::menu;
use super::{Controller, Decision, Observation};
use crate::buffer::{PolicyConfig, Watched};
use crate::error::{Error, Result};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_xoshiro::Xoshiro256PlusPlus;
use std::collections::VecDeque;

/// Minibatches of an episode where nothing else is said.
pub(super) const EPISODE: u64 = 16;
/// Episodes that are remembered.
const REMEMBERED: usize = 64;
/// How wide the bound is: rewards of policies differ by some per cent.
const WIDTH: f64 = 0.05;

/// The controller.
pub struct Bandit {
    seed: u64,
    episode: u64,
    /// The first is the buffer's own; the others are tried in a drawn order.
    policies: Vec<PolicyConfig>,
    current: usize,
    pending: Option<usize>,
    minibatches: u64,
    wanted: u64,
    fetched: u64,
    /// Policies and their rewards, the latest last.
    rewards: VecDeque<(usize, f64)>,
}

impl Bandit {
    /// Tries the policies in an order of this seed, so many minibatches each.
    ///
    /// # Errors
    /// Episodes have no minibatch.
    pub fn new(seed: u64, episode: u64) -> Result<Self> {
        if episode == 0 {
            return Err(Error::config("bandit: episodes of 0 minibatches; give at least 1"));
        }
        Ok(Self {
            seed,
            episode,
            policies: Vec::new(),
            current: 0,
            pending: None,
            minibatches: 0,
            wanted: 0,
            fetched: 0,
            rewards: VecDeque::with_capacity(REMEMBERED),
        })
    }

    /// The highest bound; of several, and of those that were not tried lately, the first.
    fn choose(&self) -> Option<usize> {
        let bound = |policy: usize| {
            let own = self.rewards.iter().filter(|(other, _)| *other == policy);
            let (count, sum) = own.fold((0.0, 0.0), |(count, sum), (_, reward)| (count + 1.0, sum + reward));
            if count == 0.0 {
                f64::INFINITY
            } else {
                sum / count + WIDTH * ((self.rewards.len() as f64).ln() / count).sqrt()
            }
        };
        let bounds: Vec<f64> = (0..self.policies.len()).map(bound).collect();
        (0..bounds.len()).rev().max_by(|&one, &other| bounds[one].total_cmp(&bounds[other]))
    }

    fn end_episode(&mut self) {
        if self.rewards.len() == REMEMBERED {
            self.rewards.pop_front();
        }
        self.rewards.push_back((self.current, 1.0 - self.fetched as f64 / self.wanted.max(1) as f64));
        (self.minibatches, self.wanted, self.fetched) = (0, 0, 0);
    }
}

impl Controller for Bandit {
    fn name(&self) -> &'static str {
        "bandit"
    }

    fn attach(&mut self, buffer: &Watched) -> Result<()> {
        self.policies = menu()?;
        self.policies.push(PolicyConfig::Window(Default::default()));
        self.policies.retain(|policy| *policy != buffer.policy);
        self.policies.shuffle(&mut Xoshiro256PlusPlus::seed_from_u64(self.seed));
        self.policies.insert(0, buffer.policy.clone());
        Ok(())
    }

    fn observe(&mut self, observation: &Observation) {
        if self.pending.is_some() {
            return;
        }
        self.minibatches += 1;
        if self.minibatches > self.episode / 4 {
            self.wanted += observation.remote_nodes;
            self.fetched += observation.demand_rows + observation.prefetched_rows;
        }
    }

    fn decide(&mut self) -> Option<Decision> {
        if self.pending.is_some() || self.minibatches < self.episode {
            return None;
        }
        self.end_episode();
        let next = self.choose().filter(|&next| next != self.current)?;
        self.pending = Some(next);
        Some(Decision { policy: Some(self.policies[next].clone()), ..Decision::default() })
    }

    fn handle_taken(&mut self) {
        self.current = self.pending.take().unwrap_or(self.current);
    }

    fn handle_discarded(&mut self) {
        self.pending = None;
    }
}
