//! Minibatches: which nodes a step trains on, and which neighbours it looks at.
//!
//! Every draw comes from (seed, rank, epoch, step) and nothing else, so a minibatch can be sampled far ahead of its step, twice, or on
//! another thread, and be the same one. That is what makes announcing ahead exact.
//!
//! Fan-outs are in DGL's order (`dgl.dataloading.NeighborSampler`): the first belongs to the layer nearest the input features, the last
//! to the layer nearest the seeds. `[10, 25]` draws 25 neighbours of each seed, then 10 of each node so found.

use crate::graph::{Topology, mix_all};
use anyhow::{Result, ensure};
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;
use rudder::{NodeId, Rank};
use std::sync::Arc;

/// The message flow of one layer in compressed sparse rows.
///
/// Sources are positions in the minibatch's input nodes; the first `destinations()` of them are the destinations themselves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Block {
    /// `destinations + 1` offsets into `sources`.
    pub offsets: Vec<u32>,
    /// For each destination its sampled neighbours.
    pub sources: Vec<u32>,
    /// Number of distinct nodes on the source side, destinations included.
    pub source_nodes: usize,
}

impl Block {
    /// Number of destination nodes.
    pub fn destinations(&self) -> usize {
        self.offsets.len().saturating_sub(1)
    }

    /// The sampled neighbours of a destination, as positions among the source nodes.
    #[inline]
    pub fn row(&self, destination: usize) -> &[u32] {
        &self.sources[self.offsets[destination] as usize..self.offsets[destination + 1] as usize]
    }
}

/// One step's nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Minibatch {
    /// The nodes whose classes are predicted.
    pub seeds: Vec<NodeId>,
    /// All nodes whose features are needed, each once: the seeds first, then layer by layer as they were found.
    pub input_nodes: Vec<NodeId>,
    /// The layers, the one that reads input features first.
    pub blocks: Vec<Arc<Block>>,
}

/// What decides a draw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// The pass over the training nodes.
    pub epoch: u64,
    /// The step within the epoch.
    pub step: u64,
}

impl Position {
    /// The position of the `chunk`th minibatch of an evaluation: no epoch of training reaches it, so its samples stay the same
    /// from one evaluation to the next.
    pub fn evaluation(chunk: u64) -> Self {
        Self { epoch: u64::MAX, step: chunk }
    }
}

/// Uniform neighbour sampling without replacement; buffers are kept between minibatches.
pub struct Sampler {
    topology: Topology,
    fanouts: Vec<usize>,
    seed: u64,
    rank: Rank,
    // For each node the minibatch that saw it last and its position there: cheaper than a map by an order of magnitude,
    // and clearing it is adding one to `stamp`.
    seen: Vec<Seen>,
    stamp: u32,
    picked: Vec<u32>,
}

#[derive(Clone, Copy, Default)]
struct Seen {
    stamp: u32,
    position: u32,
}

impl Sampler {
    /// A sampler of this rank.
    ///
    /// # Errors
    /// No layer, or one that samples nothing.
    pub fn new(topology: Topology, fanouts: &[usize], seed: u64, rank: Rank) -> Result<Self> {
        ensure!(!fanouts.is_empty(), "no fan-out given; one a layer is needed, such as 10,25");
        ensure!(fanouts.iter().all(|&fanout| fanout > 0), "a fan-out of 0 samples nothing");
        let seen = vec![Seen::default(); topology.nodes()];
        Ok(Self { topology, fanouts: fanouts.to_vec(), seed, rank, seen, stamp: 0, picked: Vec::new() })
    }

    /// Sample the minibatch of distinct `seeds` at a position, into `out`, whose buffers are reused where nobody else holds its blocks.
    ///
    /// # Panics
    /// When a seed is not a node of the graph.
    pub fn sample(&mut self, position: Position, seeds: &[NodeId], out: &mut Minibatch) {
        let nodes = self.seen.len();
        assert!(seeds.iter().all(|seed| seed.index() < nodes), "a seed is not one of the {nodes} nodes");
        let stream = [self.seed, 0x5A3B, u64::from(self.rank.0), position.epoch, position.step];
        let mut random = Xoshiro256PlusPlus::seed_from_u64(mix_all(stream));
        self.next_stamp();
        out.seeds.clear();
        out.seeds.extend_from_slice(seeds);
        out.input_nodes.clear();
        for &seed in seeds {
            self.position(seed.0 as u32, &mut out.input_nodes);
        }
        out.blocks.resize_with(self.fanouts.len(), Arc::default);
        for layer in (0..self.fanouts.len()).rev() {
            if Arc::get_mut(&mut out.blocks[layer]).is_none() {
                out.blocks[layer] = Arc::default();
            }
            if let Some(block) = Arc::get_mut(&mut out.blocks[layer]) {
                self.sample_layer(self.fanouts[layer], &mut random, &mut out.input_nodes, block);
            }
        }
    }

    fn sample_layer(
        &mut self,
        fanout: usize,
        random: &mut Xoshiro256PlusPlus,
        nodes: &mut Vec<NodeId>,
        block: &mut Block,
    ) {
        block.offsets.clear();
        block.sources.clear();
        block.offsets.push(0);
        // Two reference counts, so that neighbours can be read while positions are given out.
        let topology = self.topology.clone();
        for destination in 0..nodes.len() {
            let neighbours = topology.neighbours(nodes[destination].0 as u32);
            if neighbours.len() <= fanout {
                for &node in neighbours {
                    block.sources.push(self.position(node, nodes));
                }
            } else {
                let mut picked = std::mem::take(&mut self.picked);
                pick(neighbours.len(), fanout, random, &mut picked);
                for &at in &picked {
                    block.sources.push(self.position(neighbours[at as usize], nodes));
                }
                self.picked = picked;
            }
            block.offsets.push(block.sources.len() as u32);
        }
        block.source_nodes = nodes.len();
    }

    /// The node's position among the minibatch's input nodes, to which it is added when it is new.
    #[inline]
    fn position(&mut self, node: u32, nodes: &mut Vec<NodeId>) -> u32 {
        let seen = &mut self.seen[node as usize];
        if seen.stamp != self.stamp {
            *seen = Seen { stamp: self.stamp, position: nodes.len() as u32 };
            nodes.push(NodeId(node.into()));
        }
        seen.position
    }

    fn next_stamp(&mut self) {
        self.stamp = self.stamp.checked_add(1).unwrap_or_else(|| {
            self.seen.fill(Seen::default());
            1
        });
    }
}

/// `count` distinct numbers below `range`, which is larger: Floyd's algorithm, whose membership test is a scan because fan-outs are small.
fn pick(range: usize, count: usize, random: &mut Xoshiro256PlusPlus, picked: &mut Vec<u32>) {
    picked.clear();
    for top in (range - count) as u32..range as u32 {
        let draw = random.random_range(0..=top);
        picked.push(if picked.contains(&draw) { top } else { draw });
    }
}

/// The order in which a rank trains on its nodes.
///
/// All ranks take the same number of steps, because each step ends in an average over all of them. A rank with fewer nodes than
/// the steps need begins again at the front of its shuffled order, as PyTorch's DistributedSampler does: no node is left out, some
/// are trained on twice. So every minibatch is full, or, with fewer nodes than a minibatch, all of them.
pub struct EpochOrder {
    nodes: Vec<NodeId>,
    batch: usize,
    steps: u64,
    seed: u64,
    rank: Rank,
    // The epoch that `order` belongs to.
    shuffled: Option<u64>,
    order: Vec<NodeId>,
}

impl EpochOrder {
    /// The order of a rank's training nodes; `steps` is [`steps_per_epoch`] over all ranks.
    ///
    /// # Errors
    /// The rank has no training node, or minibatches would be empty.
    pub fn new(nodes: Vec<NodeId>, batch: usize, steps: u64, seed: u64, rank: Rank) -> Result<Self> {
        ensure!(batch > 0, "a minibatch of 0 seeds trains nothing");
        ensure!(!nodes.is_empty(), "{rank} has no training node: use fewer partitions or another partitioner");
        let batch = batch.min(nodes.len());
        Ok(Self { order: nodes.clone(), nodes, batch, steps, seed, rank, shuffled: None })
    }

    /// Steps of an epoch, the same on every rank.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// The epoch and step of the `index`th minibatch since the start.
    pub fn position(&self, index: u64) -> Position {
        Position { epoch: index / self.steps, step: index % self.steps }
    }

    /// The seeds of a step, into `out`. Steps of one epoch after another are cheap; going back to another epoch shuffles again.
    pub fn seeds(&mut self, position: Position, out: &mut Vec<NodeId>) {
        if self.shuffled != Some(position.epoch) {
            self.order.copy_from_slice(&self.nodes);
            let stream = [self.seed, 0x0DE2, u64::from(self.rank.0), position.epoch];
            self.order.shuffle(&mut Xoshiro256PlusPlus::seed_from_u64(mix_all(stream)));
            self.shuffled = Some(position.epoch);
        }
        let start = (position.step as usize * self.batch) % self.order.len();
        out.clear();
        // A minibatch is no longer than the order, so going around cannot repeat a node within it.
        out.extend(self.order[start..].iter().chain(&self.order[..start]).take(self.batch));
    }
}

/// The steps that let the rank with the most training nodes see each of them once.
pub fn steps_per_epoch(training_nodes: impl IntoIterator<Item = usize>, batch: usize) -> u64 {
    training_nodes.into_iter().max().unwrap_or(0).div_ceil(batch.max(1)).max(1) as u64
}

/// The part of a partition's nodes that the `share`th of `shares` ranks trains on: every `shares`th.
pub fn share_of(nodes: &[NodeId], share: usize, shares: usize) -> Vec<NodeId> {
    nodes.iter().copied().skip(share).step_by(shares.max(1)).collect()
}

#[cfg(test)]
mod tests {
    //! Goal: minibatches are true samples of the graph and depend on their position alone.
    //! Method: random small graphs; every sampled arc is checked against the topology.

    use super::*;
    use crate::graph::GraphSpec;
    use proptest::prelude::*;
    use std::collections::HashSet;

    const HERE: Position = Position { epoch: 2, step: 5 };

    fn topology(seed: u64) -> Topology {
        "sbm:nodes=400,degree=14,communities=4,dim=1".parse::<GraphSpec>().unwrap().load(seed).unwrap().topology
    }

    fn first_seeds(count: u64) -> Vec<NodeId> {
        (0..count).map(NodeId).collect()
    }

    fn sample(sampler: &mut Sampler, position: Position) -> Minibatch {
        let mut minibatch = Minibatch::default();
        sampler.sample(position, &first_seeds(20), &mut minibatch);
        minibatch
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn samples_are_true_distinct_neighbours_within_the_fanout(
            seed in 0u64..50, fanouts in prop::collection::vec(1usize..30, 1..4), seeds in 1u64..60,
        ) {
            let topology = topology(seed);
            let mut sampler = Sampler::new(topology.clone(), &fanouts, seed, Rank(0)).unwrap();
            let mut minibatch = Minibatch::default();
            let seeds = first_seeds(seeds);
            sampler.sample(HERE, &seeds, &mut minibatch);
            let nodes = &minibatch.input_nodes;
            prop_assert_eq!(&minibatch.seeds, &seeds);
            prop_assert_eq!(&nodes[..seeds.len()], &seeds[..]);
            prop_assert_eq!(nodes.iter().collect::<HashSet<_>>().len(), nodes.len());
            let mut destinations = seeds.len();
            for (block, &fanout) in minibatch.blocks.iter().zip(&fanouts).rev() {
                prop_assert_eq!(block.destinations(), destinations);
                for at in 0..destinations {
                    let node = nodes[at].0 as u32;
                    let row = block.row(at);
                    prop_assert_eq!(row.len(), topology.degree(node).min(fanout));
                    prop_assert_eq!(row.iter().collect::<HashSet<_>>().len(), row.len());
                    for &source in row {
                        prop_assert!((source as usize) < block.source_nodes);
                        let other = nodes[source as usize].0 as u32;
                        prop_assert!(topology.neighbours(node).contains(&other), "{} is no neighbour of {}", other, node);
                    }
                }
                destinations = block.source_nodes;
            }
            prop_assert_eq!(destinations, nodes.len());
        }
    }

    #[test]
    fn a_minibatch_depends_on_its_position_and_not_on_what_was_sampled_before() {
        let topology = topology(1);
        let mut sampler = Sampler::new(topology.clone(), &[4, 6], 9, Rank(1)).unwrap();
        let first = sample(&mut sampler, HERE);
        let mut reused = sample(&mut sampler, Position { step: 6, ..HERE });
        assert_ne!(first, reused);
        sampler.sample(HERE, &first_seeds(20), &mut reused);
        assert_eq!(first, reused);
        let others = [(9, Rank(2)), (10, Rank(1))];
        for (seed, rank) in others {
            assert_ne!(first, sample(&mut Sampler::new(topology.clone(), &[4, 6], seed, rank).unwrap(), HERE));
        }
    }

    #[test]
    fn blocks_that_someone_holds_are_not_written_to() {
        let mut sampler = Sampler::new(topology(1), &[4, 6], 9, Rank(1)).unwrap();
        let mut minibatch = sample(&mut sampler, HERE);
        let held = minibatch.blocks[0].clone();
        let copy = (*held).clone();
        sampler.sample(Position { step: 6, ..HERE }, &first_seeds(20), &mut minibatch);
        assert_eq!(*held, copy);
    }

    #[test]
    fn every_neighbour_is_as_likely() {
        let (range, count, rounds) = (40, 10, 20_000);
        let mut random = Xoshiro256PlusPlus::seed_from_u64(1);
        let mut counts = vec![0u32; range];
        let mut picked = Vec::new();
        for _ in 0..rounds {
            pick(range, count, &mut random, &mut picked);
            picked.iter().for_each(|&at| counts[at as usize] += 1);
        }
        // 5000 expected with a deviation of 61.
        assert!(counts.iter().all(|count| (4700..5300).contains(count)), "{counts:?}");
    }

    #[test]
    fn the_stamp_survives_its_wrap() {
        let mut sampler = Sampler::new(topology(1), &[4, 6], 9, Rank(1)).unwrap();
        let first = sample(&mut sampler, HERE);
        sampler.stamp = u32::MAX;
        assert_eq!(first, sample(&mut sampler, HERE));
    }

    #[test]
    fn an_epoch_sees_every_node_and_minibatches_repeat_none() {
        let steps = steps_per_epoch([103, 90], 10);
        assert_eq!(steps, 11);
        for count in [103, 90, 7] {
            let mut order = EpochOrder::new(first_seeds(count), 10, steps, 4, Rank(0)).unwrap();
            let mut seen = HashSet::new();
            let mut seeds = Vec::new();
            for index in steps..2 * steps {
                order.seeds(order.position(index), &mut seeds);
                assert_eq!(seeds.len(), 10.min(count as usize));
                assert_eq!(seeds.iter().collect::<HashSet<_>>().len(), seeds.len());
                seen.extend(seeds.iter().copied());
            }
            assert_eq!(seen.len(), count as usize);
        }
    }

    #[test]
    fn epochs_are_shuffled_differently_and_reproducibly() {
        let mut order = EpochOrder::new(first_seeds(100), 10, 10, 4, Rank(0)).unwrap();
        let mut seeds = |epoch| {
            let mut out = Vec::new();
            order.seeds(Position { epoch, step: 3 }, &mut out);
            out
        };
        let (first, second, again) = (seeds(0), seeds(1), seeds(0));
        assert_ne!(first, second);
        assert_eq!(first, again);
    }

    #[test]
    fn ranks_of_a_partition_share_its_nodes_without_overlap() {
        let nodes = first_seeds(11);
        let mut shares: Vec<NodeId> = (0..3).flat_map(|share| share_of(&nodes, share, 3)).collect();
        shares.sort_unstable();
        assert_eq!(shares, nodes);
    }

    #[test]
    fn senseless_settings_are_refused() {
        assert!(Sampler::new(topology(1), &[], 0, Rank(0)).is_err());
        assert!(Sampler::new(topology(1), &[5, 0], 0, Rank(0)).is_err());
        assert!(EpochOrder::new(vec![], 10, 1, 0, Rank(0)).is_err());
        assert!(EpochOrder::new(first_seeds(3), 0, 1, 0, Rank(0)).is_err());
    }
}
