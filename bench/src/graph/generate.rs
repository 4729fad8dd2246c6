//! What the generated graphs have in common.

use super::{Features, Graph, Split, Topology};
use anyhow::{Result, ensure};

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
