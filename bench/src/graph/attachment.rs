//! Preferential attachment (Barabási and Albert, 1999): each new vertex joins to older ones, by their degrees.

use super::Graph;
use super::generate::{self, Drawn, FeatureShape};
use super::hash::mix_all;
use anyhow::Result;
use rand::{Rng, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;

const CLASSES: usize = 32;

/// `nodes` vertices of mean degree `degree` before loops and duplicates are dropped; a node's label is drawn from its hash and shows in its
/// features.
pub fn generate(name: String, nodes: usize, degree: usize, width: usize, seed: u64) -> Result<Graph> {
    let count = generate::edges_for(nodes, degree, width, CLASSES)?;
    let mut random = Xoshiro256PlusPlus::seed_from_u64(mix_all([seed, 0xBA]));
    // By age a vertex's id would tell its degree.
    let scramble = generate::scramble(nodes, &mut random);
    // Every end of an edge so far: to draw one evenly is to draw its vertex by degree.
    let mut ends: Vec<u32> = Vec::with_capacity(2 * count);
    let mut edges = Vec::with_capacity(count);
    for at in 0..count {
        let new = (at * nodes / count) as u32;
        let old = if ends.is_empty() { 0 } else { ends[random.random_range(0..ends.len())] };
        ends.extend([new, old]);
        edges.push((scramble[new as usize], scramble[old as usize]));
    }
    let labels = generate::hashed_labels(nodes, CLASSES, seed);
    let drawn = Drawn { name, vertices: nodes, edges, labels, classes: CLASSES };
    // As of an RMAT graph: a node's own row must be enough.
    generate::finish(drawn, FeatureShape { width, seed, signal: 6.0 })
}
