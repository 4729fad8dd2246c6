//! A small world (Watts and Strogatz, 1998): a ring in which each vertex is joined to the next ones, and some edges lead anywhere instead.

use super::Graph;
use super::generate::{self, Drawn, FeatureShape};
use super::hash::mix_all;
use anyhow::Result;
use rand::{Rng, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;

const CLASSES: usize = 32;

/// The parameters.
#[derive(Clone, Copy)]
pub struct Shape {
    /// Vertices.
    pub nodes: usize,
    /// Mean degree before loops and duplicates are dropped.
    pub degree: usize,
    /// Of 100 edges, those that lead anywhere.
    pub rewired: usize,
    /// Feature columns.
    pub width: usize,
}

/// A graph whose labels are arcs of the ring: neighbours mostly share theirs.
pub fn generate(name: String, shape: Shape, seed: u64) -> Result<Graph> {
    let Shape { nodes, degree, rewired, width } = shape;
    let count = generate::edges_for(nodes, degree, width, CLASSES)?;
    let mut random = Xoshiro256PlusPlus::seed_from_u64(mix_all([seed, 0x35]));
    // In the order of the ring a range partition would cut it well for nothing.
    let scramble = generate::scramble(nodes, &mut random);
    let edges = (0..count)
        .map(|at| {
            let (from, distance) = (at % nodes, at / nodes + 1);
            let to = match random.random_range(0..100) < rewired {
                true => random.random_range(0..nodes),
                false => (from + distance) % nodes,
            };
            (scramble[from], scramble[to])
        })
        .collect();
    let labels = generate::placed_labels(&scramble, CLASSES);
    let drawn = Drawn { name, vertices: nodes, edges, labels, classes: CLASSES };
    generate::finish(drawn, FeatureShape { width, seed, signal: 2.5 })
}
