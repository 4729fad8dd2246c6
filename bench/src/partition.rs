//! Cutting a graph into partitions and relabelling it so that each one is a contiguous range of node ids.
//!
//! METIS gets two constraints a node, its presence and its being trained on, so that partitions are alike in memory and in steps.

use crate::graph::{Graph, Split, Topology, mix_all, nodes_of};
use anyhow::{Context, Result, ensure};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_xoshiro::Xoshiro256PlusPlus;
use rudder::{NodeId, PartitionBook, PartitionId};
use serde::{Deserialize, Serialize};
use std::sync::{Mutex, PoisonError};

/// More partitions than this are refused: each costs files, mappings and a METIS constraint.
const PARTITIONS_MAX: u32 = 4096;

/// METIS draws from the C library's generator, one for the whole process: two calls at once would disturb each other's sequence and
/// the same seed would no longer give the same partition.
static METIS: Mutex<()> = Mutex::new(());

/// How nodes find their partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Partitioner {
    /// Few edges cut, nodes and training nodes balanced.
    Metis,
    /// Equal shares at random: the most edges cut.
    Random,
    /// Equal ranges of the graph's own node order.
    Range,
}

/// A graph whose partitions are contiguous ranges of node ids.
pub struct Partitioned {
    /// The graph under its new ids.
    pub graph: Graph,
    /// Which range is whose.
    pub book: PartitionBook,
    /// For each new id the id in the graph that was partitioned.
    pub original: Vec<u32>,
    /// For each partition its halo: the remote nodes adjacent to one of its own, ascending.
    pub halos: Vec<Vec<u32>>,
    /// Edges between partitions.
    pub edge_cut: u64,
    /// How it was done.
    pub partitioner: Partitioner,
}

impl Partitioned {
    /// A partition's nodes of a split, ascending.
    pub fn nodes(&self, partition: PartitionId, split: Split) -> Vec<NodeId> {
        nodes_of(&self.book, &self.graph.splits, partition, split)
    }
}

/// Cut the graph into `partitions`.
///
/// # Errors
/// There are more partitions than nodes, or METIS refuses the graph.
pub fn partition(graph: &Graph, partitions: u32, partitioner: Partitioner, seed: u64) -> Result<Partitioned> {
    let nodes = graph.nodes();
    ensure!((1..=PARTITIONS_MAX).contains(&partitions), "{partitions} partitions; 1 to {PARTITIONS_MAX} are possible");
    ensure!(partitions as usize <= nodes, "{partitions} partitions of {nodes} nodes: use fewer");
    let owners = match partitioner {
        Partitioner::Metis => metis(graph, partitions, seed)?,
        Partitioner::Random => {
            let mut owners: Vec<u32> = (0..nodes).map(|at| range_owner(at, nodes, partitions)).collect();
            owners.shuffle(&mut Xoshiro256PlusPlus::seed_from_u64(mix_all([seed, 0x9A27])));
            owners
        }
        Partitioner::Range => (0..nodes).map(|at| range_owner(at, nodes, partitions)).collect(),
    };
    relabel(graph, &owners, partitions, partitioner)
}

fn range_owner(at: usize, nodes: usize, partitions: u32) -> u32 {
    (at * partitions as usize / nodes) as u32
}

fn metis(graph: &Graph, partitions: u32, seed: u64) -> Result<Vec<u32>> {
    let nodes = graph.nodes();
    // METIS divides by the number of partitions less one.
    if partitions == 1 {
        return Ok(vec![0; nodes]);
    }
    let number =
        |value: usize| metis::Idx::try_from(value).context("the graph has more than 2^31 arcs, too many for METIS");
    let mut offsets = vec![0];
    let mut targets = Vec::with_capacity(graph.topology.arcs());
    let mut weights = Vec::with_capacity(2 * nodes);
    for node in 0..nodes as u32 {
        targets.extend(graph.topology.neighbours(node).iter().map(|&target| target as metis::Idx));
        offsets.push(number(targets.len())?);
        weights.extend([1, metis::Idx::from(graph.is_in(node, Split::Train))]);
    }
    let mut owners = vec![0; nodes];
    let _alone = METIS.lock().unwrap_or_else(PoisonError::into_inner);
    metis::Graph::new(2, partitions as metis::Idx, &offsets, &targets)
        .context("METIS refuses the graph")?
        .set_vwgt(&weights)
        .set_option(metis::option::Seed((seed % i32::MAX as u64) as metis::Idx))
        .part_kway(&mut owners)
        .context("METIS failed")?;
    Ok(owners.into_iter().map(|owner| owner as u32).collect())
}

fn relabel(graph: &Graph, owners: &[u32], partitions: u32, partitioner: Partitioner) -> Result<Partitioned> {
    let mut original: Vec<u32> = (0..owners.len() as u32).collect();
    // Stable: nodes of a partition keep their order, and with it what locality that order has.
    original.sort_by_key(|&node| owners[node as usize]);
    let starts = (0..=partitions)
        .map(|partition| original.partition_point(|&node| owners[node as usize] < partition) as u64)
        .collect();
    let book = PartitionBook::from_starts(starts)?;
    let mut new_ids = vec![0u32; original.len()];
    for (new, &old) in original.iter().enumerate() {
        new_ids[old as usize] = new as u32;
    }
    let mut offsets = vec![0u64];
    let mut targets = Vec::with_capacity(graph.topology.arcs());
    for &old in &original {
        let start = targets.len();
        targets.extend(graph.topology.neighbours(old).iter().map(|&target| new_ids[target as usize]));
        targets[start..].sort_unstable();
        offsets.push(targets.len() as u64);
    }
    let topology = Topology::from_rows(offsets.into(), targets.into())?;
    let (halos, cut_arcs) = halos(&topology, &book);
    let graph = Graph {
        name: graph.name.clone(),
        topology,
        labels: original.iter().map(|&old| graph.labels[old as usize]).collect::<Vec<_>>().into(),
        classes: graph.classes,
        splits: original.iter().map(|&old| graph.splits[old as usize]).collect::<Vec<_>>().into(),
        features: graph.features.relabelled(&original),
    };
    Ok(Partitioned { graph, book, original, halos, edge_cut: cut_arcs / 2, partitioner })
}

/// Each partition's halo, and the number of arcs that leave a partition.
fn halos(topology: &Topology, book: &PartitionBook) -> (Vec<Vec<u32>>, u64) {
    let mut arcs = 0;
    let halos = (0..book.partitions())
        .map(|partition| {
            let range = book.range(PartitionId(partition));
            let mut halo: Vec<u32> = (range.start as u32..range.end as u32)
                .flat_map(|node| topology.neighbours(node))
                .copied()
                .filter(|&other| !range.contains(&u64::from(other)))
                .collect();
            arcs += halo.len() as u64;
            halo.sort_unstable();
            halo.dedup();
            halo
        })
        .collect();
    (halos, arcs)
}

#[cfg(test)]
mod tests {
    //! Goal: partitioning renames nodes and loses nothing. Method: small generated graphs against brute force.

    use super::*;
    use crate::graph::GraphSpec;
    use std::collections::BTreeSet;

    const ALL: [Partitioner; 3] = [Partitioner::Metis, Partitioner::Random, Partitioner::Range];

    fn graph() -> Graph {
        "sbm:nodes=2000,degree=12,communities=8,dim=4".parse::<GraphSpec>().unwrap().load(3).unwrap()
    }

    #[test]
    fn the_book_covers_every_node_and_the_new_ids_are_a_bijection() {
        let graph = graph();
        for (partitioner, partitions) in ALL.into_iter().flat_map(|how| [1, 2, 5].map(|count| (how, count))) {
            let cut = partition(&graph, partitions, partitioner, 1).unwrap();
            assert_eq!((cut.book.nodes(), cut.book.partitions()), (graph.nodes() as u64, partitions));
            assert_eq!(cut.original.iter().collect::<BTreeSet<_>>().len(), graph.nodes());
        }
    }

    #[test]
    fn edges_labels_splits_and_features_move_with_their_node() {
        let graph = graph();
        for partitioner in ALL {
            let cut = partition(&graph, 4, partitioner, 1).unwrap();
            let (mut new_row, mut old_row) = ([0.0; 4], [0.0; 4]);
            for (new, &old) in cut.original.iter().enumerate() {
                let others: BTreeSet<u32> = cut
                    .graph
                    .topology
                    .neighbours(new as u32)
                    .iter()
                    .map(|&other| cut.original[other as usize])
                    .collect();
                assert!(others.iter().eq(graph.topology.neighbours(old)));
                assert_eq!(cut.graph.labels[new], graph.labels[old as usize]);
                assert_eq!(cut.graph.splits[new], graph.splits[old as usize]);
                cut.graph.features.write_row(new as u32, &mut new_row).unwrap();
                graph.features.write_row(old, &mut old_row).unwrap();
                assert_eq!(new_row, old_row);
            }
        }
    }

    #[test]
    fn the_halo_and_the_cut_are_those_of_brute_force() {
        let cut = partition(&graph(), 3, Partitioner::Metis, 1).unwrap();
        let owner = |node: u32| cut.book.locate(rudder::NodeId(node.into())).unwrap().0;
        let nodes = 0..cut.graph.nodes() as u32;
        let arcs: Vec<_> = nodes
            .flat_map(|node| cut.graph.topology.neighbours(node).iter().map(move |&other| (node, other)))
            .collect();
        for (at, halo) in cut.halos.iter().enumerate() {
            let at = PartitionId(at as u32);
            let expected: BTreeSet<u32> =
                arcs.iter().filter(|&&(from, to)| owner(from) == at && owner(to) != at).map(|&(_, to)| to).collect();
            assert!(expected.iter().eq(halo));
        }
        let crossing = arcs.iter().filter(|&&(from, to)| from < to && owner(from) != owner(to)).count();
        assert_eq!(cut.edge_cut, crossing as u64);
    }

    #[test]
    fn metis_cuts_less_than_chance_and_balances_what_is_trained_on() {
        let graph = graph();
        let cut = partition(&graph, 4, Partitioner::Metis, 1).unwrap();
        let random = partition(&graph, 4, Partitioner::Random, 1).unwrap();
        assert!(cut.edge_cut * 3 < random.edge_cut * 2, "{} against {}", cut.edge_cut, random.edge_cut);
        let trained: Vec<usize> = (0..4)
            .map(|at| cut.book.range(PartitionId(at)))
            .map(|range| range.filter(|&node| cut.graph.is_in(node as u32, Split::Train)).count())
            .collect();
        let mean = trained.iter().sum::<usize>() as f64 / 4.0;
        assert!(trained.iter().all(|&count| (count as f64 - mean).abs() < 0.1 * mean), "{trained:?}");
    }

    #[test]
    fn the_same_seed_cuts_alike_and_impossible_counts_are_refused() {
        let graph = graph();
        for partitioner in ALL {
            let [first, again] = [1, 1].map(|seed| partition(&graph, 4, partitioner, seed).unwrap().original);
            assert!(first == again, "{partitioner:?}");
        }
        assert!(partition(&graph, 0, Partitioner::Range, 1).is_err());
        assert!(partition(&graph, 2001, Partitioner::Range, 1).is_err());
    }
}
