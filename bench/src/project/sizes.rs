//! A graph of which only sizes are known, and what a job of it asks of the network: a model that is fitted to nothing.
//!
//! Ends of edges meet at random (the configuration model of Bollobás, 1980), so that a sampled neighbour is a node in proportion to its degree, and
//! degrees follow a Pareto distribution. What is left out, that neighbours of neighbours are often the same, makes minibatches of real graphs
//! smaller, so that the model is always held against a graph that can be simulated.

use super::model::Demand;
use crate::graph::spec::values;
use anyhow::{Context, Result, ensure};
use std::fmt;
use std::str::FromStr;

/// The sizes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sizes {
    /// Nodes.
    pub nodes: f64,
    /// Directions in which an edge can be sampled: two, if edges are undirected.
    pub edges: f64,
    /// Nodes that are trained on.
    pub train: f64,
    /// Shape of the Pareto distribution of degrees.
    pub tail: f64,
    /// Share of edges that a partitioner keeps within partitions, whatever their number; the others lead anywhere.
    pub local: f64,
}

impl Sizes {
    /// The same for a graph so many times as large.
    pub fn grown(self, times: f64) -> Self {
        Self { nodes: self.nodes * times, edges: self.edges * times, train: self.train * times, ..self }
    }
}

impl fmt::Display for Sizes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { nodes, edges, train, tail, local } = self;
        write!(f, "sizes:nodes={nodes},edges={edges},train={train},tail={tail},local={local}")
    }
}

impl FromStr for Sizes {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let parameters = text.strip_prefix("sizes:").context("sizes begin with sizes:")?;
        let keys = [
            ("nodes", 2.0, 1e12, None),
            ("edges", 1.0, 1e15, None),
            ("train", 1.0, 1e12, None),
            ("tail", 1.01, 100.0, Some(TAIL)),
            ("local", 0.0, 1.0, Some(0.0)),
        ];
        let [nodes, edges, train, tail, local] = values(parameters, keys)?;
        ensure!(train <= nodes, "graph sizes: {train} of {nodes} nodes are trained on");
        Ok(Self { nodes, edges, train, tail, local })
    }
}

/// Of degrees, where it is not known: most nodes have few neighbours, and a few have most. It suits `rmat`, see docs/project.md.
const TAIL: f64 = 1.2;

/// A job of such a graph.
#[derive(Clone, Copy, Debug)]
pub struct Sampled<'a> {
    /// The graph.
    pub sizes: Sizes,
    /// Seeds a minibatch and rank.
    pub batch: f64,
    /// Neighbours to sample, a layer each, from the output layer down.
    pub fanout: &'a [usize],
    /// Share of the halo that a rank's buffer holds.
    pub buffer: f64,
    /// Whether it keeps anything: then what is wanted most, from the start.
    pub keeps: bool,
}

/// Nodes of about one degree.
#[derive(Clone, Copy, Debug)]
struct Class {
    /// Share of all nodes.
    share: f64,
    degree: f64,
}

impl Sampled<'_> {
    /// What it asks of the network with so many ranks.
    pub fn at(&self, ranks: f64) -> Demand {
        let Self { sizes, batch, .. } = *self;
        let classes = classes(sizes);
        let own = sizes.nodes / ranks;
        let others = sizes.nodes - own;
        // Of an own node's edges, those that stay; of another's, those that lead to this rank.
        let stays = sizes.local + (1.0 - sizes.local) / ranks;
        let returns = (1.0 - sizes.local) / ranks;
        // By class: the share of own nodes, and of others, that are among a minibatch's inputs.
        let mut inputs: Vec<(f64, f64)> = vec![((batch / own).min(1.0), 0.0); classes.len()];
        for &fanout in self.fanout.iter().rev() {
            let (mut from_own, mut from_others) = (0.0, 0.0);
            for (class, &(near, far)) in classes.iter().zip(&inputs) {
                let draws = class.share * class.degree.min(fanout as f64);
                from_own += own * near * draws;
                from_others += others * far * draws;
            }
            let to_own = from_own * stays + from_others * returns;
            let to_others = from_own * (1.0 - stays) + from_others * (1.0 - returns);
            for (class, (near, far)) in classes.iter().zip(&mut inputs) {
                *near = reached(*near, to_own * class.degree / (own * mean(sizes)));
                *far = reached(*far, to_others * class.degree / (others * mean(sizes)));
            }
        }
        let leave = own * mean(sizes) * (1.0 - stays);
        let adjacent = |class: &Class| reached(0.0, leave * class.degree / (others * mean(sizes)));
        let halo: f64 = classes.iter().map(|class| others * class.share * adjacent(class)).sum();
        let (mut free, mut wanted, mut fetched) = (if self.keeps { self.buffer * halo } else { 0.0 }, 0.0, 0.0);
        for (class, (_, far)) in classes.iter().zip(&inputs) {
            let nodes = others * class.share;
            let kept = free.min(nodes);
            free -= kept;
            wanted += nodes * far;
            fetched += (nodes - kept) * far;
        }
        // The most of as many sums as there are ranks, each of independent rows.
        let skew = 1.0 + (2.0 * ranks.ln() / fetched.max(1.0)).sqrt();
        Demand { wanted, fetched, halo, buffer: self.buffer, reader_skew: skew, owner_skew: skew }
    }
}

/// Mean degree.
fn mean(sizes: Sizes) -> f64 {
    sizes.edges / sizes.nodes
}

/// The share that is reached when that of `before` was, and each is drawn so many times in the mean.
fn reached(before: f64, draws: f64) -> f64 {
    1.0 - (1.0 - before) * (-draws).exp()
}

/// Classes of descending degree: of the nodes by rank of their degree, each class has twice as many as the one before.
fn classes(sizes: Sizes) -> Vec<Class> {
    let least = 1.0 / sizes.nodes;
    let power = 1.0 - 1.0 / sizes.tail;
    let mut classes = Vec::new();
    let mut above: f64 = 0.0;
    while above < 1.0 {
        let below = (2.0 * above).clamp(least, 1.0);
        let share = below - above;
        classes.push(Class { share, degree: mean(sizes) * (below.powf(power) - above.powf(power)) / share });
        above = below;
    }
    classes
}

#[cfg(test)]
mod tests {
    //! Goal: sizes are read or refused, and what is asked of the network obeys what holds of any graph. Method: by hand, and where a limit is known.

    use super::*;

    const PAPERS: &str = "sizes:nodes=111059956,edges=3231371744,train=1207179";

    fn sampled(text: &str) -> Sampled<'static> {
        Sampled { sizes: text.parse().unwrap(), batch: 1000.0, fanout: &[10, 25], buffer: 0.1, keeps: true }
    }

    #[test]
    fn sizes_are_read_or_refused() {
        let sizes: Sizes = PAPERS.parse().unwrap();
        assert_eq!((sizes.nodes, sizes.tail, sizes.local), (111_059_956.0, TAIL, 0.0));
        assert_eq!(sizes.to_string().parse::<Sizes>().unwrap(), sizes);
        for (text, words) in [
            ("sizes:", "nodes is missing"),
            ("sizes:nodes=9,edges=20", "train is missing"),
            ("sizes:nodes=9,edges=20,train=10", "10 of 9 nodes"),
            ("sizes:nodes=9,edges=20,train=3,local=2", "local=2 is not within 0..=1"),
            ("sizes:nodes=NaN,edges=20,train=3", "not within"),
            ("sizes:nodes=9,edges=20,train=3,degree=2", "unknown key degree"),
        ] {
            let error = text.parse::<Sizes>().unwrap_err().to_string();
            assert!(error.contains(words), "{text}: {error}");
        }
    }

    #[test]
    fn degrees_have_their_mean_and_all_nodes_a_class() {
        let sizes: Sizes = PAPERS.parse().unwrap();
        let classes = classes(sizes);
        let share: f64 = classes.iter().map(|class| class.share).sum();
        let degree: f64 = classes.iter().map(|class| class.share * class.degree).sum();
        assert!((share - 1.0).abs() < 1e-9 && (degree / mean(sizes) - 1.0).abs() < 1e-9);
        assert!(classes.windows(2).all(|pair| pair[0].degree > pair[1].degree));
    }

    #[test]
    fn a_graph_without_end_is_a_tree_and_a_partition_at_random_keeps_its_share() {
        // So many nodes of one degree that none is met twice.
        let endless = sampled("sizes:nodes=1e12,edges=3e13,train=1e12,tail=100");
        for ranks in [2.0, 64.0] {
            let wanted = 1000.0 * (11.0 * 26.0 - 1.0) * (1.0 - 1.0 / ranks);
            // A neighbour's neighbour may be the rank's own again, which seeds are for sure.
            assert!((endless.at(ranks).wanted / wanted - 1.0).abs() < 0.01, "{ranks}: {:?}", endless.at(ranks));
        }
    }

    #[test]
    fn a_buffer_and_locality_save_rows() {
        let plain = sampled(PAPERS);
        let demand = plain.at(64.0);
        assert!(demand.fetched < demand.wanted && demand.wanted < 1000.0 * 11.0 * 26.0);
        let unbuffered = Sampled { keeps: false, ..plain }.at(64.0);
        assert_eq!(unbuffered.fetched, unbuffered.wanted);
        let local = sampled(&format!("{PAPERS},local=0.8")).at(64.0);
        assert!(local.wanted < 0.6 * demand.wanted && local.halo < demand.halo);
        assert_eq!(sampled(&format!("{PAPERS},local=1")).at(64.0).wanted, 0.0);
    }
}
