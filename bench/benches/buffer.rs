//! What the buffer's books cost a node id: lookup, scoring and admission of whole minibatches on a Zipf trace, at 100 k slots and at
//! ten times as many, beside quick_cache on the same ids; and apart from that, what announcing a minibatch and retiring it costs.
//!
//! The contenders take turns, a few minibatches each, so that their ratios hold on a noisy machine too; criterion would run one after
//! the other. Percentiles are over those turns. Time is the thread's own: what others do with the core is not in it, what they do to
//! the caches is.

#[path = "../src/clock.rs"]
mod clock;

use clock::thread_time;
use quick_cache::unsync::Cache;
use rand::distr::Distribution;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;
use rudder::buffer::{BufferHints, Pin, PolicyConfig, PrefetchBuffer, Residency, WindowPosition};
use rudder::{NodeId, PartitionBook, Slot};
use std::collections::{HashSet, VecDeque};
use std::hint::black_box;
use std::time::Duration;

const SEED: u64 = 20_240_611;
/// Slots for each remote input node of a minibatch: at ten times as many slots everything else is tenfold too.
const SLOTS_PER_ID: u32 = 10;
/// Minibatches of the trace; it is replayed from the start when it ends.
const MINIBATCHES: usize = 200;
/// Turns of each contender, and what it gathers in one.
const ROUNDS: usize = 20;
const MINIBATCHES_PER_ROUND: usize = 5;
/// Nodes of the graph for each slot.
const NODES_PER_SLOT: u64 = 10;

/// Draws node ranks with a probability that falls as 1 / rank^0.8, by inverting the integral of the density.
struct Zipf {
    nodes: f64,
}

impl Distribution<u64> for Zipf {
    fn sample<R: Rng + ?Sized>(&self, random: &mut R) -> u64 {
        const SHAPE: f64 = 0.2;
        let span = self.nodes.powf(SHAPE) - 1.0;
        ((random.random::<f64>() * span + 1.0).powf(1.0 / SHAPE) - 1.0) as u64
    }
}

/// Minibatches of unique nodes; ids say nothing of how frequent a node is.
fn trace(slots: u32) -> Vec<Vec<NodeId>> {
    let (nodes, minibatch_ids) = (u64::from(slots) * NODES_PER_SLOT, (slots / SLOTS_PER_ID) as usize);
    let mut random = Xoshiro256PlusPlus::seed_from_u64(SEED);
    let mut ids: Vec<u64> = (0..nodes).collect();
    ids.shuffle(&mut random);
    let zipf = Zipf { nodes: nodes as f64 };
    let mut minibatch = || {
        let mut unique = HashSet::with_capacity(minibatch_ids);
        while unique.len() < minibatch_ids {
            unique.insert(ids[zipf.sample(&mut random) as usize % ids.len()]);
        }
        let mut nodes: Vec<_> = unique.into_iter().map(NodeId).collect();
        nodes.sort_unstable();
        nodes
    };
    (0..MINIBATCHES).map(|_| minibatch()).collect()
}

/// The buffer under a policy, whose gets are all done at once.
struct Gatherer {
    buffer: PrefetchBuffer,
    lookahead: usize,
    announced: VecDeque<WindowPosition>,
    next: usize,
    found: Vec<Residency>,
    fetches: Vec<(NodeId, Slot)>,
    admitted: Vec<(NodeId, Slot)>,
}

impl Gatherer {
    fn new(slots: u32, policy: &str, lookahead: usize) -> Self {
        let nodes = u64::from(slots) * NODES_PER_SLOT;
        let hints = BufferHints {
            nodes,
            halo: (0..nodes / 2).map(NodeId).collect(),
            degree: vec![1; (nodes / 2) as usize],
            owners: PartitionBook::from_starts(vec![0, nodes]).expect("two starts that ascend"),
        };
        let policy = PolicyConfig::named(policy).expect("a policy that exists");
        Self {
            buffer: PrefetchBuffer::new(slots, &policy, hints).expect("settings by default"),
            lookahead,
            announced: VecDeque::new(),
            next: 0,
            found: Vec::new(),
            fetches: Vec::new(),
            admitted: Vec::new(),
        }
    }

    /// Gathers a minibatch; the time that its announcement and retirement took of that.
    fn gather(&mut self, trace: &[Vec<NodeId>]) -> Duration {
        let mut announcing = Duration::ZERO;
        let start = thread_time();
        while self.announced.len() < self.lookahead {
            let coming = &trace[(self.next + self.announced.len()) % trace.len()];
            self.announced.push_back(self.buffer.announce(coming).expect("fewer than the window holds"));
        }
        announcing += thread_time() - start;
        let nodes = &trace[self.next % trace.len()];
        self.buffer.lookup(Pin(self.next as u64), nodes, true, &mut self.found);
        let start = thread_time();
        if let Some(position) = self.announced.pop_front() {
            self.buffer.retire(position, nodes);
        }
        announcing += thread_time() - start;
        self.buffer.admit_missed(true, &mut self.admitted);
        self.buffer.end_minibatch(false, None, &mut self.fetches);
        self.next += 1;
        self.buffer.release(Pin(self.next as u64));
        self.admitted.iter().for_each(|(_, slot)| self.buffer.filled(*slot));
        announcing
    }
}

/// The same work by a general cache: every node is looked up, every missing one inserted.
fn gather_quick_cache(cache: &mut Cache<u64, u32>, nodes: &[NodeId]) {
    for node in nodes {
        if cache.get(&node.0).is_none() {
            cache.insert(node.0, 0);
        }
    }
}

/// Gathers the next minibatch of a trace; the time that its announcement and retirement took of that.
type Gather = Box<dyn FnMut(&[Vec<NodeId>]) -> Duration>;

/// One way of keeping the books.
struct Contender {
    name: &'static str,
    gather: Gather,
    /// Lookup, scoring and admission.
    ns_per_id: Vec<f64>,
    /// Announcement and retirement.
    announcing_ns_per_id: Vec<f64>,
}

impl Contender {
    fn new(name: &'static str, gather: impl FnMut(&[Vec<NodeId>]) -> Duration + 'static) -> Self {
        Self { name, gather: Box::new(gather), ns_per_id: Vec::new(), announcing_ns_per_id: Vec::new() }
    }

    /// Gathers a few minibatches and notes the times.
    fn race(&mut self, trace: &[Vec<NodeId>]) {
        let start = thread_time();
        let announcing: Duration = (0..MINIBATCHES_PER_ROUND).map(|_| (self.gather)(black_box(trace))).sum();
        let ns_per_id = |time: Duration| time.as_nanos() as f64 / (MINIBATCHES_PER_ROUND * trace[0].len()) as f64;
        self.ns_per_id.push(ns_per_id(thread_time() - start - announcing));
        self.announcing_ns_per_id.push(ns_per_id(announcing));
    }
}

fn gatherer(slots: u32, policy: &'static str, lookahead: usize) -> Contender {
    let mut gatherer = Gatherer::new(slots, policy, lookahead);
    println!("# {policy}: {} bytes a slot", gatherer.buffer.bytes() / slots as usize);
    Contender::new(policy, move |trace| gatherer.gather(trace))
}

fn quick_cache(slots: u32) -> Contender {
    let mut cache = Cache::<u64, u32>::new(slots as usize);
    let mut next = 0;
    Contender::new("quick_cache", move |trace| {
        gather_quick_cache(&mut cache, &trace[next % trace.len()]);
        next += 1;
        Duration::ZERO
    })
}

/// Times rounds in which every contender gathers a few minibatches in turn, so that a noisy neighbour troubles all alike.
fn race(contenders: &mut [Contender], trace: &[Vec<NodeId>]) {
    for contender in contenders.iter_mut() {
        for _ in 0..MINIBATCHES {
            (contender.gather)(trace);
        }
    }
    for _ in 0..ROUNDS {
        contenders.iter_mut().for_each(|contender| contender.race(trace));
    }
}

/// The fifth, fiftieth and ninety-fifth percentile.
fn percentiles(mut values: Vec<f64>) -> [f64; 3] {
    values.sort_unstable_by(f64::total_cmp);
    [0.05, 0.5, 0.95].map(|share| values[((values.len() - 1) as f64 * share) as usize])
}

fn main() {
    println!(
        "# seed {SEED}, {SLOTS_PER_ID} slots an id, {NODES_PER_SLOT} nodes a slot, warm-up {MINIBATCHES} minibatches"
    );
    println!("# {ROUNDS} interleaved rounds of {MINIBATCHES_PER_ROUND} minibatches, {}", std::env::consts::ARCH);
    println!("slots,name,ns_per_id_p5,ns_per_id_p50,ns_per_id_p95,times_quick_cache_p50");
    for slots in [100_000u32, 1_000_000] {
        let trace = trace(slots);
        let mut contenders = [
            quick_cache(slots),
            gatherer(slots, "lfu", 0),
            gatherer(slots, "window", 16),
            gatherer(slots, "rudder", 0),
            gatherer(slots, "lru", 0),
            gatherer(slots, "sieve", 0),
            gatherer(slots, "s3fifo", 0),
            gatherer(slots, "wtinylfu", 0),
        ];
        race(&mut contenders, &trace);
        let mut baseline = None;
        for Contender { name, ns_per_id, announcing_ns_per_id, .. } in contenders {
            let [low, median, high] = percentiles(ns_per_id);
            let baseline = *baseline.get_or_insert(median);
            println!("{slots},{name},{low:.1},{median:.1},{high:.1},{:.2}", median / baseline);
            let [low, median, high] = percentiles(announcing_ns_per_id);
            if median > 1.0 {
                println!("{slots},{name} announce + retire,{low:.1},{median:.1},{high:.1},");
            }
        }
    }
}
