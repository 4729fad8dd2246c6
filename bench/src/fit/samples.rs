//! The samples that classifiers are trained on: at each decision of an exploration, what a controller is shown, and the rows of both answers.
//!
//! An exploration replaces by chance, as often as its seed says, so that classifiers see buffers that were steered in many ways. From each of its
//! decisions two branches are replayed, with a replacement and without, and none after it, up to a horizon.

use super::branch::Rank;
use crate::graph::mix_all;
use anyhow::Result;
use rand::{Rng, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;
use rudder::controller::classifier::{Features, Values};

/// One decision.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// What a controller is shown.
    pub values: Values,
    /// Rows up to the horizon without a replacement.
    pub keep_rows: u64,
    /// Rows with one, its own included.
    pub replace_rows: u64,
}

impl Sample {
    /// The label: whether a replacement fetches fewer rows than it saves.
    pub fn pays(&self) -> bool {
        self.replace_rows < self.keep_rows
    }

    /// Rows of an answer.
    pub fn rows(&self, replace: bool) -> u64 {
        if replace { self.replace_rows } else { self.keep_rows }
    }
}

/// How decisions are explored.
#[derive(Clone, Copy, Debug)]
pub struct Exploration {
    /// Its number.
    pub number: u64,
    /// What its coin is drawn from.
    pub seed: u64,
    /// Minibatches between two decisions.
    pub interval: usize,
    /// Minibatches after a decision in which it must pay.
    pub horizon: usize,
    /// Minibatches of the job.
    pub steps: usize,
}

/// All decisions of an exploration of a rank.
///
/// # Errors
/// The buffer does not fit the trace.
pub fn explore(rank: Rank, exploration: Exploration) -> Result<Vec<Sample>> {
    let Exploration { number, seed, interval, horizon, steps } = exploration;
    let own = u64::from(rank.trace.header.rank.0);
    let mut coin = Xoshiro256PlusPlus::seed_from_u64(mix_all([seed, number, own, rank.slots.into()]));
    let share = coin.random_range(0.1..0.9);
    let (mut past, mut features) = (rank.begin()?, Features::new(&rank.facts()));
    let (mut replaced, mut samples) = (Vec::new(), Vec::new());
    while past.step < steps {
        let (at, mut decided) = (past.step, None);
        past.gather(|observation| {
            features.observe(observation);
            if features.minibatches() < interval as u64 {
                return false;
            }
            let replace = coin.random_bool(share);
            decided = Some((features.take(), replace));
            replace
        });
        let Some((values, replace)) = decided else { continue };
        let end = (at + 1 + horizon).min(steps);
        samples.push(Sample {
            values,
            keep_rows: rank.rows(&replaced, at, false, end)?,
            replace_rows: rank.rows(&replaced, at, true, end)?,
        });
        if replace {
            replaced.push(at);
        }
    }
    Ok(samples)
}
