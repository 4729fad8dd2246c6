//! Goal: `lru`, `sieve`, `s3fifo` and `wtinylfu` decide as published. Method: each published algorithm, written down again as plainly as it is
//! there, run beside the buffer on the recorded trace; a minibatch is to it the requests for its hits, then those for its misses. Hits and
//! residents must be equal after every minibatch, for buffers from several minibatches down to a fraction of one.

mod replay;

use replay::{Replay, recorded};
use rudder::NodeId;
use rudder::buffer::{PolicyConfig, Residency};
use std::collections::{HashMap, HashSet, VecDeque};

/// A published cache.
trait Published {
    fn has(&self, node: u64) -> bool;

    /// Any request, before it is known for a hit or a miss.
    fn want(&mut self, _node: u64) {}

    fn hit(&mut self, node: u64);

    /// Keeps a node that is not there, or does not.
    fn miss(&mut self, node: u64);
}

struct Lru {
    slots: usize,
    /// Least recently used first.
    queue: VecDeque<u64>,
}

impl Published for Lru {
    fn has(&self, node: u64) -> bool {
        self.queue.contains(&node)
    }

    fn hit(&mut self, node: u64) {
        self.queue.retain(|&other| other != node);
        self.queue.push_back(node);
    }

    fn miss(&mut self, node: u64) {
        if self.queue.len() == self.slots {
            self.queue.pop_front();
        }
        self.queue.push_back(node);
    }
}

/// Zhang et al., SIEVE, algorithm 1.
struct Sieve {
    slots: usize,
    /// From tail to head.
    queue: Vec<u64>,
    hand: Option<usize>,
    visited: HashSet<u64>,
}

impl Sieve {
    fn evict(&mut self) {
        let mut at = self.hand.unwrap_or(0);
        while self.visited.remove(&self.queue[at]) {
            at = (at + 1) % self.queue.len();
        }
        self.queue.remove(at);
        self.hand = (at < self.queue.len()).then_some(at);
    }
}

impl Published for Sieve {
    fn has(&self, node: u64) -> bool {
        self.queue.contains(&node)
    }

    fn hit(&mut self, node: u64) {
        self.visited.insert(node);
    }

    fn miss(&mut self, node: u64) {
        if self.queue.len() == self.slots {
            self.evict();
        }
        self.queue.push(node);
    }
}

/// Yang et al., S3-FIFO, algorithm 1; queues from tail to head, each entry with its `freq`.
struct S3Fifo {
    slots: usize,
    small: VecDeque<(u64, u8)>,
    main: VecDeque<(u64, u8)>,
    /// By node, how many ghosts had come before it.
    ghosts: HashMap<u64, usize>,
    came: usize,
}

impl S3Fifo {
    fn main_most(&self) -> usize {
        self.slots - self.slots / 10
    }

    fn is_ghost(&self, node: u64) -> bool {
        self.ghosts.get(&node).is_some_and(|before| self.came - before <= self.main_most())
    }

    fn evict_small(&mut self) {
        while let Some((node, freq)) = self.small.pop_front() {
            if freq <= 1 {
                self.ghosts.insert(node, self.came);
                self.came += 1;
                return;
            }
            self.main.push_back((node, 0));
        }
    }

    fn evict_main(&mut self) {
        while let Some((node, freq)) = self.main.pop_front().filter(|(_, freq)| *freq > 0) {
            self.main.push_back((node, freq - 1));
        }
    }
}

impl Published for S3Fifo {
    fn has(&self, node: u64) -> bool {
        self.small.iter().chain(&self.main).any(|(other, _)| *other == node)
    }

    fn hit(&mut self, node: u64) {
        let mut entries = self.small.iter_mut().chain(&mut self.main);
        let (_, freq) = entries.find(|(other, _)| *other == node).unwrap();
        *freq = (*freq + 1).min(3);
    }

    fn miss(&mut self, node: u64) {
        if self.small.len() + self.main.len() == self.slots {
            if self.main.len() > self.main_most() || self.small.is_empty() {
                self.evict_main();
            } else {
                self.evict_small();
            }
        }
        let queue = if self.is_ghost(node) { &mut self.main } else { &mut self.small };
        queue.push_back((node, 0));
        self.ghosts.remove(&node);
    }
}

/// Einziger et al., W-TinyLFU, with exact counts; least recently used first.
struct WTinyLfu {
    slots: usize,
    window: VecDeque<u64>,
    probation: VecDeque<u64>,
    protected: VecDeque<u64>,
    counts: HashMap<u64, u32>,
    wants: usize,
}

impl WTinyLfu {
    fn window_most(&self) -> usize {
        self.slots.div_ceil(100)
    }

    fn count(&self, node: u64) -> u32 {
        self.counts.get(&node).copied().unwrap_or(0)
    }
}

impl Published for WTinyLfu {
    fn has(&self, node: u64) -> bool {
        [&self.window, &self.probation, &self.protected].into_iter().any(|list| list.contains(&node))
    }

    fn want(&mut self, node: u64) {
        let count = self.counts.entry(node).or_default();
        if *count == 15 {
            return;
        }
        *count += 1;
        self.wants += 1;
        if self.wants == 10 * self.slots {
            self.counts.values_mut().for_each(|count| *count /= 2);
            self.wants /= 2;
        }
    }

    fn hit(&mut self, node: u64) {
        if let Some(at) = self.window.iter().position(|&other| other == node) {
            self.window.remove(at);
            self.window.push_back(node);
            return;
        }
        self.probation.retain(|&other| other != node);
        self.protected.retain(|&other| other != node);
        self.protected.push_back(node);
        if self.protected.len() > (self.slots - self.window_most()) * 4 / 5 {
            self.probation.extend(self.protected.pop_front());
        }
    }

    fn miss(&mut self, node: u64) {
        self.window.push_back(node);
        if self.window.len() <= self.window_most() {
            return;
        }
        let candidate = self.window.pop_front().unwrap();
        let full = self.window.len() + self.probation.len() + self.protected.len() == self.slots;
        let main = if self.probation.is_empty() { &self.protected } else { &self.probation };
        let Some(victim) = main.front().copied().filter(|_| full) else { return self.probation.push_back(candidate) };
        if self.count(candidate) > self.count(victim) {
            self.probation.retain(|&other| other != victim);
            self.protected.retain(|&other| other != victim);
            self.probation.push_back(candidate);
        }
    }
}

fn published(policy: &str, slots: usize) -> Box<dyn Published> {
    match policy {
        "lru" => Box::new(Lru { slots, queue: VecDeque::new() }),
        "sieve" => Box::new(Sieve { slots, queue: Vec::new(), hand: None, visited: HashSet::new() }),
        "s3fifo" => {
            Box::new(S3Fifo { slots, small: VecDeque::new(), main: VecDeque::new(), ghosts: HashMap::new(), came: 0 })
        }
        "wtinylfu" => Box::new(WTinyLfu {
            slots,
            window: VecDeque::new(),
            probation: VecDeque::new(),
            protected: VecDeque::new(),
            counts: HashMap::new(),
            wants: 0,
        }),
        other => unreachable!("{other} is not published here"),
    }
}

/// Serves a minibatch; its hits.
fn serve(cache: &mut dyn Published, nodes: &[NodeId]) -> u64 {
    let (hits, misses): (Vec<u64>, Vec<u64>) = nodes.iter().map(|node| node.0).partition(|&node| cache.has(node));
    for &node in &hits {
        cache.want(node);
        cache.hit(node);
    }
    misses.iter().for_each(|&node| cache.want(node));
    misses.iter().for_each(|&node| cache.miss(node));
    hits.len() as u64
}

/// Runs both side by side.
fn compare(policy: &str, slots: usize) {
    let trace = recorded();
    let mut cache = published(policy, slots);
    let mut replay = Replay::new(slots as u32, &PolicyConfig::named(policy).unwrap(), trace.hints.clone());
    let mut hits = 0;
    for (at, nodes) in trace.minibatches.iter().enumerate() {
        replay.gather(nodes, None, false);
        hits += serve(&mut *cache, nodes);
        assert_eq!(replay.buffer.counters().hits, hits, "{policy}, {slots} slots, minibatch {at}");
        for node in 0..trace.hints.nodes {
            let resident = matches!(replay.buffer.residency(NodeId(node)), Residency::Ready(_));
            assert_eq!(resident, cache.has(node), "{policy}, {slots} slots, node {node} after minibatch {at}");
        }
    }
    assert!(replay.buffer.counters().evictions > 0, "{policy}, {slots} slots: nothing had to go");
}

#[test]
fn hits_and_residents_are_those_of_the_published_algorithms() {
    let halo = recorded().hints.halo.len();
    for policy in ["lru", "sieve", "s3fifo", "wtinylfu"] {
        // A minibatch has a fifth of the halo's number of nodes or more.
        for share in [1, 2, 4, 10, 40] {
            compare(policy, halo / share);
        }
    }
}
