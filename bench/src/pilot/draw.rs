//! The jobs that a pilot learns from, drawn from a seed.
//!
//! What the pilot is tested on is frozen in `bench/pilot/test-list`: none of those graphs, generators or changes is drawn here.

use crate::graph::{GraphSpec, mix_all};
use crate::replay::{Buffer, SlowRank};
use crate::workload::{Sampling, Scenario};
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;
use rudder::BufferSize;
use rudder::transport::hook::Link;
use std::time::Duration;

/// What changes in a drawn job, half-way.
pub const SCENARIOS: [Scenario; 3] = [Scenario::Stationary, Scenario::Batch, Scenario::Widen];
/// Minibatches of a drawn job.
pub const MINIBATCHES: u64 = 128;
/// The first of them of what a job changes to.
pub const HALF: u64 = MINIBATCHES / 2;

/// A graph, its partitions, and how jobs on it are sampled.
#[derive(Clone, Debug)]
pub struct DrawnGraph {
    /// The graph.
    pub graph: GraphSpec,
    /// Ranks, each with a partition.
    pub ranks: u32,
    /// How jobs are sampled.
    pub sampling: Sampling,
}

/// What a job runs in.
#[derive(Clone, Copy, Debug)]
pub struct Surroundings {
    /// The buffer.
    pub buffer: Buffer,
    /// Minibatches announced ahead.
    pub lookahead: u32,
    /// The links.
    pub link: Link,
    /// A rank that sends slowly, or a network that slows down half-way.
    pub slow: Option<SlowRank>,
}

/// The source of all that is drawn for one graph.
pub fn source(seed: u64, graph: u64) -> Xoshiro256PlusPlus {
    Xoshiro256PlusPlus::seed_from_u64(mix_all([seed, 0x9107, graph]))
}

fn one_of<T: Copy>(of: &[T], random: &mut Xoshiro256PlusPlus) -> T {
    *of.choose(random).expect("there is something to draw from")
}

/// A value of which every magnitude is as likely.
fn between(least: f64, most: f64, random: &mut Xoshiro256PlusPlus) -> f64 {
    random.random_range(least.ln()..most.ln()).exp()
}

/// A graph and how jobs on it are sampled.
pub fn graph(random: &mut Xoshiro256PlusPlus) -> DrawnGraph {
    let nodes = between(2_000.0, 16_000.0, random) as usize;
    let degree = one_of(&[6, 10, 14, 24, 36], random);
    let graph = match random.random_bool(0.6) {
        true => GraphSpec::Ba { nodes, degree, dim: 1 },
        false => GraphSpec::Ws { nodes, degree, rewired: one_of(&[5, 15, 30, 60], random), dim: 1 },
    };
    let fanout = one_of(&[&[4, 8][..], &[10, 5], &[3, 6], &[15], &[2, 3, 4]], random).to_vec();
    let sampling = Sampling {
        batch: one_of(&[8, 12, 16, 24, 40], random),
        fanout,
        minibatches: MINIBATCHES,
        row_bytes: one_of(&[256, 400, 800, 2408, 4096], random),
        sample: between(0.0003, 0.002, random),
        compute: between(0.0005, 0.008, random),
    };
    DrawnGraph { graph, ranks: one_of(&[2, 3, 4], random), sampling }
}

/// What a job with rows of so many bytes runs in.
pub fn surroundings(ranks: u32, random: &mut Xoshiro256PlusPlus) -> Surroundings {
    let share = between(0.1, 0.7, random);
    let slow = match random.random_range(0..6) {
        0..3 => Some(SlowRank { rank: Some(random.random_range(0..ranks as usize)), share, from: 0 }),
        3 => Some(SlowRank { rank: None, share, from: HALF as usize }),
        _ => None,
    };
    Surroundings {
        buffer: Buffer::Size(BufferSize::Halo(between(0.02, 0.5, random))),
        lookahead: one_of(&[0, 0, 1, 3, 6, 12, 24], random),
        link: Link {
            bytes_per_second: Some(between(1e7, 1e9, random) as u64),
            latency: Duration::from_secs_f64(between(1e-5, 3e-4, random)),
        },
        slow,
    }
}

#[cfg(test)]
mod tests {
    //! Goal: nothing of what a pilot is tested on is learnt from. Method: the frozen list, whose hash is here, and many draws.
    use super::*;
    use sha2::{Digest, Sha256};

    const LIST: &str = include_str!("../../pilot/test-list");
    const LIST_SHA256: &str = "cdc5a17fe2bd48121ebc2c42dd2cce3cd615a2e39bc504500ae82df9a2bc883f";

    #[test]
    fn the_list_is_the_one_that_was_frozen() {
        let hash: String = Sha256::digest(LIST).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hash, LIST_SHA256);
    }

    #[test]
    fn nothing_of_the_list_is_drawn() {
        for scenario in SCENARIOS.iter().filter(|scenario| scenario.changes()) {
            assert!(!LIST.split_whitespace().any(|word| word == scenario.name()), "{scenario}");
        }
        for number in 0..200 {
            let random = &mut source(1, number);
            let drawn = graph(random);
            let generator = drawn.graph.to_string();
            let generator = generator.split_inclusive(':').next().unwrap();
            assert!(!LIST.contains(generator), "{generator}");
            let surroundings = surroundings(drawn.ranks, random);
            surroundings.slow.iter().for_each(|slow| {
                slow.check(drawn.ranks as usize).unwrap();
                assert_eq!(slow.rank.is_none(), slow.from > 0, "a rank that becomes slow is of the list");
            });
        }
    }
}
