//! A degree-corrected stochastic block model (Karrer and Newman, 2011): communities of equal size, heavy-tailed degrees.

use super::Graph;
use super::generate::{self, Drawn, FeatureShape};
use super::hash::mix_all;
use anyhow::Result;
use rand::{Rng, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;

/// The share of edges with both ends in one community.
const INTRA: f64 = 0.8;
/// The tail of the Pareto distribution of expected degrees: finite mean, infinite variance, as in most large networks.
const PARETO_SHAPE: f64 = 2.0;
/// No node expects more than this many times the least degree, so that a few hubs do not eat all edges as duplicates.
const PARETO_MAX: f64 = 1000.0;

/// The parameters of the model.
#[derive(Clone, Copy)]
pub struct Shape {
    /// Vertices; isolated ones are dropped.
    pub nodes: usize,
    /// Mean degree before loops and duplicates are dropped.
    pub degree: usize,
    /// Communities, which are the classes.
    pub communities: usize,
    /// Feature columns.
    pub width: usize,
}

/// A graph whose labels are the communities and show faintly in the features: aggregation over neighbours is what makes them clear.
pub fn generate(name: String, shape: Shape, seed: u64) -> Result<Graph> {
    let Shape { nodes, degree, communities, width } = shape;
    let count = generate::edges_for(nodes, degree, width, communities)?;
    let mut random = Xoshiro256PlusPlus::seed_from_u64(mix_all([seed, 0x5B3]));
    let propensity = Propensity::draw(nodes, communities, &mut random);
    // Communities are contiguous in here and must not be so in the graph, where a range partition would find them for nothing.
    let scramble = generate::scramble(nodes, &mut random);
    let edges = (0..count)
        .map(|_| {
            let a = propensity.any(&mut random);
            let b = match random.random_bool(INTRA) {
                true => propensity.within(a * communities / nodes, &mut random),
                false => propensity.any(&mut random),
            };
            (scramble[a], scramble[b])
        })
        .collect();
    let labels = generate::placed_labels(&scramble, communities);
    let drawn = Drawn { name, vertices: nodes, edges, labels, classes: communities };
    generate::finish(drawn, FeatureShape { width, seed, signal: 2.5 })
}

/// Cumulative expected degrees, community after community.
struct Propensity {
    cumulative: Vec<f64>,
    // The first node of each community, and the number of nodes.
    starts: Vec<usize>,
}

impl Propensity {
    fn draw(nodes: usize, communities: usize, random: &mut Xoshiro256PlusPlus) -> Self {
        let mut sum = 0.0;
        let mut cumulative = vec![0.0];
        for _ in 0..nodes {
            let uniform: f64 = 1.0 - random.random::<f64>();
            sum += uniform.powf(-1.0 / PARETO_SHAPE).min(PARETO_MAX);
            cumulative.push(sum);
        }
        Self {
            cumulative,
            starts: (0..=communities).map(|community| (community * nodes).div_ceil(communities)).collect(),
        }
    }

    fn any(&self, random: &mut Xoshiro256PlusPlus) -> usize {
        self.between(0, self.cumulative.len() - 1, random)
    }

    fn within(&self, community: usize, random: &mut Xoshiro256PlusPlus) -> usize {
        self.between(self.starts[community], self.starts[community + 1], random)
    }

    fn between(&self, first: usize, end: usize, random: &mut Xoshiro256PlusPlus) -> usize {
        let range = &self.cumulative[first..=end];
        let draw = range[0] + random.random::<f64>() * (range[range.len() - 1] - range[0]);
        // Rounding can put the draw on the upper end, which belongs to no node.
        (first + range.partition_point(|&sum| sum <= draw) - 1).min(end - 1)
    }
}
