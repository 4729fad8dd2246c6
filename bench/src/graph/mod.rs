//! The graphs that the benchmarks train on.
//!
//! A graph is a topology, a label and a split per node, and a recipe for features. Features are a recipe rather than a matrix because
//! each rank needs its own partition's rows only, and a generated graph can be made as wide as an experiment asks.

mod array;
mod attachment;
mod debian;
mod features;
mod generate;
mod hash;
mod prepared;
mod rmat;
mod sbm;
mod smallworld;
pub mod spec;

pub use array::Array;
pub use features::Features;
pub use hash::{mix, mix_all};
pub use prepared::Prepared;
pub use spec::GraphSpec;

use anyhow::{Result, ensure};
use rudder::{NodeId, PartitionBook, PartitionId};

/// Most classes of a graph: labels are 16 bits.
pub const CLASSES_MAX: usize = 1 << 16;

/// What a labelled node is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Split {
    /// Trained on: 60 % of the nodes.
    Train = 0,
    /// Accuracy is watched on it during training: 20 %.
    Validation = 1,
    /// Accuracy is reported on it at the end: 20 %.
    Test = 2,
}

impl Split {
    /// The split of a node of a new graph: a fixed hash of its id, the same in every run and for every seed.
    pub fn of(node: u64) -> Self {
        match hash::mix_all([0x5B17, node]) % 10 {
            0..6 => Self::Train,
            6 | 7 => Self::Validation,
            _ => Self::Test,
        }
    }

    /// From the byte that files hold.
    pub fn from_byte(byte: u8) -> Option<Self> {
        [Self::Train, Self::Validation, Self::Test].into_iter().find(|&split| split as u8 == byte)
    }
}

/// Undirected adjacency in compressed sparse rows: each edge is stored at both ends, without loops or duplicates.
#[derive(Clone)]
pub struct Topology {
    offsets: Array<u64>,
    targets: Array<u32>,
}

impl Topology {
    /// From sparse rows: `nodes + 1` offsets that ascend from 0 to the number of targets, and targets that are nodes.
    ///
    /// # Errors
    /// The arrays do not hold together.
    pub fn from_rows(offsets: Array<u64>, targets: Array<u32>) -> Result<Self> {
        ensure!(offsets.first() == Some(&0), "topology: the offsets do not begin at 0");
        ensure!(offsets.is_sorted(), "topology: the offsets do not ascend");
        ensure!(
            offsets.last() == Some(&(targets.len() as u64)),
            "topology: the offsets do not end at the {} targets",
            targets.len()
        );
        let nodes = offsets.len() - 1;
        ensure!(nodes <= u32::MAX as usize, "topology: {nodes} nodes are more than 2^32 - 1");
        let highest = targets.iter().copied().max();
        ensure!(
            highest.is_none_or(|node| (node as usize) < nodes),
            "topology: a target is not one of the {nodes} nodes"
        );
        Ok(Self { offsets, targets })
    }

    /// From edges in any order and direction; loops and duplicates are dropped.
    ///
    /// # Errors
    /// An end is not one of the nodes.
    pub fn from_edges(nodes: usize, edges: &[(u32, u32)]) -> Result<Self> {
        let mut offsets = vec![0u64; nodes + 1];
        for &(a, b) in edges {
            ensure!((a.max(b) as usize) < nodes, "topology: edge ({a}, {b}) leaves the {nodes} nodes");
            offsets[a as usize + 1] += 1;
            offsets[b as usize + 1] += 1;
        }
        for node in 0..nodes {
            offsets[node + 1] += offsets[node];
        }
        let mut next = offsets.clone();
        let mut targets = vec![0u32; offsets[nodes] as usize];
        for &(a, b) in edges {
            for (from, to) in [(a, b), (b, a)] {
                targets[next[from as usize] as usize] = to;
                next[from as usize] += 1;
            }
        }
        let mut kept = 0;
        let mut start = 0;
        for node in 0..nodes {
            let end = offsets[node + 1] as usize;
            targets[start..end].sort_unstable();
            let mut previous = node as u32;
            for at in start..end {
                let target = targets[at];
                if target != node as u32 && target != previous {
                    targets[kept] = target;
                    kept += 1;
                    previous = target;
                }
            }
            start = end;
            offsets[node + 1] = kept as u64;
        }
        targets.truncate(kept);
        Self::from_rows(offsets.into(), targets.into())
    }

    /// Verify what METIS takes for granted and would not survive otherwise: both directions of each edge, no loops, no duplicates.
    ///
    /// # Errors
    /// Names the first node whose neighbours are not so.
    pub fn check_undirected(&self) -> Result<()> {
        // Nodes are walked in ascending order, so that each row must name them in its own order too.
        let mut next = self.offsets[..self.nodes()].to_vec();
        for node in 0..self.nodes() as u32 {
            let row = self.neighbours(node);
            ensure!(
                row.is_sorted_by(|before, after| before < after),
                "topology: the neighbours of node {node} do not ascend, or one is there twice"
            );
            for &other in row {
                ensure!(other != node, "topology: node {node} is its own neighbour");
                let at = next[other as usize] as usize;
                next[other as usize] += 1;
                ensure!(
                    at < self.offsets[other as usize + 1] as usize && self.targets[at] == node,
                    "topology: of node {node} and node {other}, or one before them, only one has the other as its neighbour"
                );
            }
        }
        Ok(())
    }

    /// Number of nodes.
    #[inline]
    pub fn nodes(&self) -> usize {
        self.offsets.len() - 1
    }

    fn offsets(&self) -> &[u64] {
        &self.offsets
    }

    fn targets(&self) -> &[u32] {
        &self.targets
    }

    /// Number of stored directions: twice the number of edges.
    pub fn arcs(&self) -> usize {
        self.targets.len()
    }

    /// The neighbours of a node, ascending.
    ///
    /// # Panics
    /// When there is no such node.
    #[inline]
    pub fn neighbours(&self, node: u32) -> &[u32] {
        &self.targets[self.offsets[node as usize] as usize..self.offsets[node as usize + 1] as usize]
    }

    /// Number of neighbours of a node.
    ///
    /// # Panics
    /// When there is no such node.
    pub fn degree(&self, node: u32) -> usize {
        self.neighbours(node).len()
    }
}

/// A graph to train on.
#[derive(Clone)]
pub struct Graph {
    /// What the graph is, for people.
    pub name: String,
    /// Who is adjacent to whom.
    pub topology: Topology,
    /// The class of each node, below `classes`.
    pub labels: Array<u16>,
    /// Number of classes.
    pub classes: usize,
    /// The [`Split`] of each node, as its byte.
    pub splits: Array<u8>,
    /// The feature rows.
    pub features: Features,
}

impl Graph {
    /// Number of nodes.
    pub fn nodes(&self) -> usize {
        self.topology.nodes()
    }

    /// Whether the node is in the split.
    pub fn is_in(&self, node: u32, split: Split) -> bool {
        self.splits[node as usize] == split as u8
    }
}

/// A partition's nodes of a split, ascending; `splits` has the byte of each node's [`Split`].
pub fn nodes_of(book: &PartitionBook, splits: &[u8], partition: PartitionId, split: Split) -> Vec<NodeId> {
    book.range(partition).filter(|&node| splits[node as usize] == split as u8).map(NodeId).collect()
}

#[cfg(test)]
mod tests {
    //! Goal: no topology that does not hold together gets past its constructor. Method: one refusal for each condition.

    use super::*;

    #[test]
    fn loops_and_duplicates_are_dropped_and_both_directions_kept() {
        let topology = Topology::from_edges(4, &[(0, 1), (1, 0), (2, 2), (3, 1), (1, 3), (0, 1)]).unwrap();
        let rows: Vec<&[u32]> = (0..4).map(|node| topology.neighbours(node)).collect();
        assert_eq!(rows, [&[1][..], &[0, 3], &[], &[1]]);
        assert_eq!((topology.nodes(), topology.arcs(), topology.degree(1)), (4, 4, 2));
    }

    #[test]
    fn what_metis_takes_for_granted_is_verified() {
        let sound = Topology::from_edges(5, &[(0, 1), (1, 4), (3, 1), (2, 4), (0, 4)]).unwrap();
        sound.check_undirected().unwrap();
        for (offsets, targets, words) in [
            (vec![0, 1, 1], vec![1], "only one"),
            (vec![0, 1, 2, 3], vec![1, 2, 0], "only one"),
            (vec![0, 1, 2], vec![0, 1], "its own neighbour"),
            (vec![0, 2, 4], vec![1, 1, 0, 0], "twice"),
            (vec![0, 2, 3, 4], vec![2, 1, 0, 0], "do not ascend"),
        ] {
            let topology = Topology::from_rows(offsets.into(), targets.into()).unwrap();
            let error = topology.check_undirected().unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }

    #[test]
    fn rows_that_do_not_hold_together_are_refused() {
        for (offsets, targets, words) in [
            (vec![], vec![], "begin at 0"),
            (vec![1, 1], vec![0], "begin at 0"),
            (vec![0, 2, 1], vec![0], "ascend"),
            (vec![0, 1], vec![0, 0], "end at the 2"),
            (vec![0, 1], vec![1], "one of the 1 nodes"),
        ] {
            let error = Topology::from_rows(offsets.into(), targets.into()).err().expect("accepted").to_string();
            assert!(error.contains(words), "{error}");
        }
        assert!(Topology::from_edges(2, &[(0, 2)]).is_err());
    }
}
