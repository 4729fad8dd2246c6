//! Samples, taken in turns.
//!
//! Every sample of ours has one of each baseline right beside it, because on a shared machine only what ran at the same time can be compared.
//! The order is drawn anew for each turn, the same on all ranks: what one leaves running or in the caches falls upon all others alike. Ranks meet before each sample; its time is that of the slowest rank.

use super::args::{Benchmark, MpiArgs};
use super::contender::{self, Contender};
use super::wants::{Pattern, Wants};
use super::world::{Waiting, World};
use anyhow::{Context, Result};
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;
use std::time::Instant;

/// Rows whose bytes are checked after each sample; after the first, all are.
const ROWS_CHECKED: usize = 16;

/// What is gathered at a time.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    pub benchmark: Benchmark,
    pub pattern: Pattern,
    pub row_bytes: usize,
    /// Rows of a gather.
    pub rows: usize,
    /// Gathers of a sample, one after the other.
    pub gathers: usize,
}

/// The samples of one contender, each the mean over its gathers.
#[derive(Clone, Debug, Default)]
pub struct Samples {
    /// From the start of a gather to its end, on the slowest rank.
    pub us: Vec<f64>,
    /// Of this, until the start has returned.
    pub start_us: Vec<f64>,
}

/// Measures a case. Collective.
pub fn take(world: &World, args: &MpiArgs, case: &Case, contenders: &mut [Box<dyn Contender>]) -> Result<Vec<Samples>> {
    let owners = case.pattern.owners(world.rank, world.size);
    let table_rows = ((args.table_mib as usize) << 20) / case.row_bytes;
    let mut chance = Xoshiro256PlusPlus::seed_from_u64(args.seed ^ (u64::from(world.rank) << 32));
    let mut gathers = vec![Wants::default(); if owners.is_empty() { 0 } else { case.gathers }];
    let mut samples = vec![Samples::default(); contenders.len()];
    let mut order = Order::new(args.seed, contenders.len());
    for turn in 0..(args.skip + args.iterations) as usize {
        for wants in &mut gathers {
            wants.draw(&owners, case.rows, case.row_bytes, table_rows as u64, &mut chance);
        }
        for &at in order.next() {
            let contender = &mut *contenders[at];
            world.meet(Waiting::InMpi)?;
            let (us, start_us) = sample(contender, &gathers).with_context(|| contender.name().to_owned())?;
            world.meet(contender.owners())?;
            check(contender, &gathers, turn == 0, &mut chance)?;
            if turn >= args.skip as usize {
                samples[at].us.push(us / case.gathers as f64);
                samples[at].start_us.push(start_us / case.gathers as f64);
            }
        }
    }
    for of_contender in &mut samples {
        world.largest(&mut of_contender.us)?;
        world.largest(&mut of_contender.start_us)?;
    }
    Ok(samples)
}

/// The order of each turn.
pub struct Order {
    chance: Xoshiro256PlusPlus,
    order: Vec<usize>,
}

impl Order {
    /// Of so many; ranks that give the same seed have the same orders.
    pub fn new(seed: u64, count: usize) -> Self {
        Self { chance: Xoshiro256PlusPlus::seed_from_u64(seed), order: (0..count).collect() }
    }

    /// That of the next turn.
    pub fn next(&mut self) -> &[usize] {
        self.order.shuffle(&mut self.chance);
        &self.order
    }
}

/// The time of some gathers, and of their starts, in µs.
fn sample(contender: &mut dyn Contender, gathers: &[Wants]) -> Result<(f64, f64)> {
    let (begun, mut start_us) = (Instant::now(), 0.0);
    let mut last = begun;
    for wants in gathers {
        contender.start(wants)?;
        start_us += last.elapsed().as_secs_f64() * 1e6;
        contender.finish(wants)?;
        last = Instant::now();
    }
    Ok(((last - begun).as_secs_f64() * 1e6, start_us))
}

/// Checks rows of the last gather.
fn check(contender: &dyn Contender, gathers: &[Wants], all: bool, chance: &mut impl Rng) -> Result<()> {
    let Some(wants) = gathers.last() else { return Ok(()) };
    let places = wants.rows.len();
    let checked = if all {
        contender::check(contender, wants, 0..places)
    } else {
        contender::check(contender, wants, (0..ROWS_CHECKED).map(|_| chance.random_range(0..places)))
    };
    checked.with_context(|| contender.name().to_owned())
}
