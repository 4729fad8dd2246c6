//! What the generated graphs have in common.

use super::hash::mix_all;
use super::{Features, Graph, Split, Topology};
use anyhow::{Result, ensure};
use rand::seq::SliceRandom;
use rand_xoshiro::Xoshiro256PlusPlus;

/// Edges that a generator may draw: a bound on memory, 8 bytes each.
const EDGES_MAX: usize = 1 << 30;

/// Numbers that all feature rows may have: a bound on files and memory, 4 bytes each, 256 GiB.
const FEATURES_MAX: u64 = 1 << 36;
/// Numbers that the classes' centres may have: every rank's generator holds them, 1 GiB.
const CENTRES_MAX: u64 = 1 << 28;

/// What a generator has drawn: vertices still include isolated ones.
pub(super) struct Drawn {
    pub name: String,
    pub vertices: usize,
    pub edges: Vec<(u32, u32)>,
    pub labels: Vec<u16>,
    pub classes: usize,
}

/// How a generated graph's features are made.
pub(super) struct FeatureShape {
    pub width: usize,
    pub seed: u64,
    pub signal: f32,
}

/// The number of edges that give `vertices` a mean degree of `degree`, once it is known that they and their features can be held.
///
/// # Errors
/// They cannot: edges, feature rows of `width` numbers, or the centres of the `classes` are too many.
pub(super) fn edges_for(vertices: usize, degree: usize, width: usize, classes: usize) -> Result<usize> {
    let numbers = |rows: usize| (rows as u64).saturating_mul(width as u64);
    ensure!(
        numbers(vertices) <= FEATURES_MAX,
        "{vertices} feature rows of {width} numbers; at most {FEATURES_MAX} numbers are possible"
    );
    ensure!(
        numbers(classes) <= CENTRES_MAX,
        "centres of {classes} classes, {width} numbers each; at most {CENTRES_MAX} numbers are possible"
    );
    let edges = vertices.saturating_mul(degree) / 2;
    ensure!(
        edges <= EDGES_MAX,
        "{vertices} nodes of degree {degree} are {edges} edges; at most {EDGES_MAX} are possible"
    );
    Ok(edges)
}

/// A new place for each vertex, so that its id tells nothing of it, and a range partition finds nothing by it.
pub(super) fn scramble(vertices: usize, random: &mut Xoshiro256PlusPlus) -> Vec<u32> {
    let mut scramble: Vec<u32> = (0..vertices as u32).collect();
    scramble.shuffle(random);
    scramble
}

/// Labels that follow from nodes' hashes: neighbours know nothing of a node's class.
pub(super) fn hashed_labels(vertices: usize, classes: usize, seed: u64) -> Vec<u16> {
    (0..vertices as u64).map(|node| (mix_all([seed, 0x1ABE, node]) % classes as u64) as u16).collect()
}

/// Labels by the place before it was scrambled: as many neighbouring places for each class.
pub(super) fn placed_labels(scramble: &[u32], classes: usize) -> Vec<u16> {
    let mut labels = vec![0; scramble.len()];
    for (at, &vertex) in scramble.iter().enumerate() {
        labels[vertex as usize] = (at * classes / scramble.len()) as u16;
    }
    labels
}

/// The graph of what was drawn, without isolated vertices, which have nothing to aggregate.
///
/// # Errors
/// An edge leaves the vertices, or all of them were loops.
pub(super) fn finish(mut drawn: Drawn, shape: FeatureShape) -> Result<Graph> {
    let mut new_ids = vec![u32::MAX; drawn.vertices];
    for &(a, b) in drawn.edges.iter().filter(|(a, b)| a != b) {
        new_ids[a as usize] = 0;
        new_ids[b as usize] = 0;
    }
    let mut labels = Vec::new();
    for (vertex, id) in new_ids.iter_mut().enumerate().filter(|(_, id)| **id == 0) {
        *id = labels.len() as u32;
        labels.push(drawn.labels[vertex]);
    }
    drawn.edges.retain(|(a, b)| a != b);
    for (a, b) in &mut drawn.edges {
        (*a, *b) = (new_ids[*a as usize], new_ids[*b as usize]);
    }
    ensure!(!labels.is_empty(), "no edge was drawn: ask for more nodes or a higher degree");
    let topology = Topology::from_edges(labels.len(), &drawn.edges)?;
    Ok(Graph {
        name: drawn.name,
        topology,
        classes: drawn.classes,
        splits: (0..labels.len() as u64).map(|node| Split::of(node) as u8).collect::<Vec<_>>().into(),
        features: Features::classes(shape.width, shape.seed, labels.clone(), drawn.classes, shape.signal),
        labels: labels.into(),
    })
}
