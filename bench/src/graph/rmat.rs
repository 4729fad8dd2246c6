//! RMAT (Chakrabarti, Zhan and Faloutsos, 2004) with Graph500's probabilities: skewed degrees, communities within communities.

use super::Graph;
use super::generate::{self, Drawn, FeatureShape};
use super::hash::mix_all;
use anyhow::Result;
use rand::{Rng, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;

const CLASSES: usize = 32;
/// Probabilities of the quadrants a, a + b, a + b + c in 32-bit fixed point: .57, .19, .19, .05.
const QUADRANTS: [u32; 3] = [fixed(0.57), fixed(0.76), fixed(0.95)];

const fn fixed(probability: f64) -> u32 {
    (probability * 4_294_967_296.0) as u32
}

/// `2^scale` vertices (isolated ones are dropped) of mean degree `degree` before loops and duplicates are dropped; a node's label is drawn
/// from its hash and shows in its features.
pub fn generate(name: String, scale: u32, degree: usize, width: usize, seed: u64) -> Result<Graph> {
    let vertices = 1usize << scale;
    let count = generate::edges_for(vertices, degree, width, CLASSES)?;
    let mut random = Xoshiro256PlusPlus::seed_from_u64(mix_all([seed, 0x23A7]));
    // Scrambled, as Graph500 has it: otherwise a vertex's id tells its degree.
    let scramble = generate::scramble(vertices, &mut random);
    let edges = (0..count)
        .map(|_| {
            let (a, b) = edge(scale, &mut random);
            (scramble[a], scramble[b])
        })
        .collect();
    let labels = generate::hashed_labels(vertices, CLASSES, seed);
    let drawn = Drawn { name, vertices, edges, labels, classes: CLASSES };
    // Neighbours know nothing of a node's class here: its own row must be enough, so the centres lie far apart.
    generate::finish(drawn, FeatureShape { width, seed, signal: 6.0 })
}

fn edge(scale: u32, random: &mut Xoshiro256PlusPlus) -> (usize, usize) {
    let (mut row, mut column) = (0, 0);
    for _ in 0..scale {
        let draw: u32 = random.random();
        let quadrant = QUADRANTS.iter().filter(|&&bound| draw >= bound).count();
        row = row << 1 | quadrant >> 1;
        column = column << 1 | quadrant & 1;
    }
    (row, column)
}
