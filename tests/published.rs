//! Goal: the `rudder` policy decides as MassiveGNN's and Rudder's public code does, row for row. Method: that code's arrays, written
//! down again as plainly as they are there (every score decayed in every minibatch, the ids sorted before every lookup), run beside
//! the buffer on random minibatches and on the recorded trace; hits, fetched rows and residents must be equal after each. Where the
//! public code leaves the order of equal access scores to an unstable sort, both take the lower node first.

mod replay;

use proptest::prelude::*;
use replay::{Replay, Trace, recorded};
use rudder::buffer::{BufferHints, PolicyConfig, PrefetchBuffer, Residency, RudderConfig, Start};
use rudder::{NodeId, PartitionBook};
use std::collections::BTreeSet;

/// The published arrays.
struct Published {
    nodes: u64,
    halo: Vec<u64>,
    prefetch_ids: Vec<u64>,
    eviction_score: Vec<f32>,
    normal_score: Vec<f32>,
    decay: f32,
    threshold: f32,
}

impl Published {
    fn new(hints: &BufferHints, length: usize, initial: &[u64], alpha: f64, delta: u32) -> Self {
        let mut normal_score = vec![0.0; hints.nodes as usize];
        let prefetch_ids = if initial.is_empty() {
            (hints.nodes..hints.nodes + length as u64).collect()
        } else {
            initial.iter().for_each(|&node| normal_score[node as usize] = -1.0);
            initial.to_vec()
        };
        Self {
            nodes: hints.nodes,
            halo: hints.halo.iter().map(|node| node.0).collect(),
            eviction_score: vec![1.0; prefetch_ids.len()],
            prefetch_ids,
            normal_score,
            decay: (1.0 - alpha) as f32,
            threshold: format!("{:.3}", (1.0 - alpha).powf(f64::from(delta))).parse::<f64>().unwrap() as f32,
        }
    }

    fn sort(&mut self) {
        let mut rows: Vec<_> = self.prefetch_ids.iter().copied().zip(self.eviction_score.iter().copied()).collect();
        rows.sort_by_key(|(node, _)| *node);
        (self.prefetch_ids, self.eviction_score) = rows.into_iter().unzip();
    }

    /// Serves a minibatch: its hits, and the rows that a replacement brings.
    fn serve(&mut self, nodes: &[u64], replace: bool) -> (usize, Vec<u64>) {
        self.sort();
        self.eviction_score.iter_mut().for_each(|score| *score *= self.decay);
        let mut missed = Vec::new();
        for &node in nodes {
            match self.prefetch_ids.binary_search(&node) {
                Ok(at) => self.eviction_score[at] /= self.decay,
                Err(_) => missed.push(node),
            }
        }
        let brought = if replace { self.replace() } else { Vec::new() };
        if brought.is_empty() {
            for &node in missed.iter().filter(|node| self.halo.binary_search(node).is_ok()) {
                self.normal_score[node as usize] += 1.0;
            }
        }
        (nodes.len() - missed.len(), brought)
    }

    fn replace(&mut self) -> Vec<u64> {
        let below = |at: &usize| self.eviction_score[*at] < self.threshold;
        let victims: Vec<usize> = (0..self.prefetch_ids.len()).filter(below).collect();
        let wanted = |node: &u64| self.normal_score[*node as usize];
        let mut candidates: Vec<u64> = self.halo.iter().copied().filter(|node| wanted(node) > 0.0).collect();
        candidates.sort_by(|a, b| wanted(b).partial_cmp(&wanted(a)).unwrap());
        candidates.truncate(victims.len());
        let brought: Vec<f32> = candidates.iter().map(wanted).collect();
        for ((&at, &node), score) in victims.iter().zip(&candidates).zip(brought) {
            let evicted = std::mem::replace(&mut self.prefetch_ids[at], node);
            if evicted < self.nodes {
                self.normal_score[evicted as usize] = self.eviction_score[at];
            }
            self.normal_score[node as usize] = -1.0;
            self.eviction_score[at] = score;
        }
        candidates
    }

    fn residents(&self) -> BTreeSet<u64> {
        self.prefetch_ids.iter().copied().filter(|&node| node < self.nodes).collect()
    }
}

/// Runs both side by side; the rows that replacements brought.
fn compare(trace: &Trace, slots: u32, config: RudderConfig, replaces: impl Fn(usize) -> bool) -> usize {
    let policy = PolicyConfig::Rudder(config.clone());
    let mut initial = Vec::new();
    PrefetchBuffer::new(slots, &policy, trace.hints.clone()).unwrap().initial_fill(&mut initial);
    let initial: Vec<u64> = initial.iter().map(|(node, _)| node.0).collect();
    assert_eq!(initial.is_empty(), config.start == Start::Empty || slots == 0);
    let mut published = Published::new(&trace.hints, slots as usize, &initial, config.alpha, config.delta.unwrap());
    let mut replay = Replay::new(slots, &policy, trace.hints.clone());
    let (mut hits, mut fetched, mut replaced) = (0, initial.len(), 0);
    for (at, nodes) in trace.minibatches.iter().enumerate() {
        let ids: Vec<u64> = nodes.iter().map(|node| node.0).collect();
        let (hit, brought) = published.serve(&ids, replaces(at));
        hits += hit;
        fetched += ids.len() - hit + brought.len();
        replaced += brought.len();
        let ours = replay.gather(nodes, None, replaces(at));
        assert_eq!(ours.iter().map(|node| node.0).collect::<Vec<_>>(), brought, "minibatch {at}");
        assert_eq!(replay.buffer.counters().hits, hits as u64, "minibatch {at}");
        assert_eq!(replay.fetched, fetched as u64, "minibatch {at}");
        let residents = published.residents();
        for node in 0..trace.hints.nodes {
            let resident = matches!(replay.buffer.residency(NodeId(node)), Residency::Ready(_));
            assert_eq!(resident, residents.contains(&node), "node {node} after minibatch {at}");
        }
    }
    assert_eq!(replay.buffer.counters().replacements, replaced as u64);
    replaced
}

fn starts() -> impl Strategy<Value = Start> {
    prop_oneof![Just(Start::Empty), Just(Start::Degree), (0u64..1000).prop_map(Start::Random)]
}

fn traces() -> impl Strategy<Value = Trace> {
    // Squaring makes low nodes frequent, so that some are hit over and over and others hardly ever.
    let node = (0u64..50).prop_map(|root| root * root / 50);
    let minibatches = prop::collection::vec(prop::collection::btree_set(node, 0..16), 1..80);
    (minibatches, prop::collection::btree_set(0u64..50, 4..40)).prop_map(|(minibatches, halo)| Trace {
        hints: BufferHints {
            nodes: 50,
            degree: halo.iter().map(|node| (node * 13 % 7) as u32).collect(),
            halo: halo.into_iter().map(NodeId).collect(),
            owners: PartitionBook::from_starts(vec![0, 50]).unwrap(),
        },
        minibatches: minibatches.into_iter().map(|nodes| nodes.into_iter().map(NodeId).collect()).collect(),
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn random_minibatches_and_decisions(
        trace in traces(),
        alpha in prop::sample::select(vec![0.005, 0.05, 0.1, 0.2, 0.5, 0.9]),
        delta in 1u32..9,
        start in starts(),
        share in 0.05f64..1.0,
        decisions in prop::collection::vec(any::<bool>(), 80),
    ) {
        let slots = (trace.hints.halo.len() as f64 * share) as u32;
        compare(&trace, slots, RudderConfig { alpha, delta: Some(delta), start }, |at| decisions[at]);
    }
}

#[test]
fn the_recorded_trace_under_periods_and_settings() {
    let trace = recorded();
    let slots = trace.hints.halo.len() as u32 / 4;
    for (alpha, delta) in [(0.005, 8), (0.05, 16), (0.1, 2), (0.5, 3)] {
        for start in [Start::Empty, Start::Degree, Start::Random(3)] {
            let replaced = compare(&trace, slots, RudderConfig { alpha, delta: Some(delta), start }, |at| {
                (at + 1) % delta as usize == 0
            });
            assert!(replaced > 0, "alpha {alpha}, delta {delta}, {start:?}: nothing was compared");
        }
    }
}
