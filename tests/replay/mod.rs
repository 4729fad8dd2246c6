//! A recorded trace, and the smallest engine that can replay it: every get is done at once.

use rudder::buffer::{BufferHints, Pin, PolicyConfig, PrefetchBuffer, Residency, WindowPosition};
use rudder::{NodeId, PartitionBook};

/// The remote input nodes of each minibatch, and the graph's hints.
#[derive(Debug)]
pub struct Trace {
    pub hints: BufferHints,
    pub minibatches: Vec<Vec<NodeId>>,
}

/// The checked-in trace.
pub fn recorded() -> Trace {
    let mut lines = include_str!("../data/trace.txt").lines().filter(|line| !line.starts_with('#'));
    let mut field = |name: &str| lines.next().unwrap().strip_prefix(name).unwrap().to_owned();
    let starts: Vec<u64> = field("starts ").split(' ').map(|start| start.parse().unwrap()).collect();
    let (halo, degree) = field("halo ")
        .split(' ')
        .map(|pair| pair.split_once(':').unwrap())
        .map(|(node, degree)| (NodeId(node.parse().unwrap()), degree.parse::<u32>().unwrap()))
        .unzip();
    let minibatches = lines.map(|line| {
        let differences = line.split(' ').map(|difference| difference.parse::<u64>().unwrap());
        let sums = differences.scan(0, |node, difference| {
            *node += difference;
            Some(NodeId(*node))
        });
        sums.collect()
    });
    let minibatches = minibatches.collect();
    let owners = PartitionBook::from_starts(starts).unwrap();
    Trace { hints: BufferHints { nodes: owners.nodes(), halo, degree, owners }, minibatches }
}

/// A buffer, and the rows that have been fetched for it and for minibatches.
pub struct Replay {
    pub buffer: PrefetchBuffer,
    pub fetched: u64,
    next: u64,
}

impl Replay {
    pub fn new(slots: u32, policy: &PolicyConfig, hints: BufferHints) -> Self {
        let mut buffer = PrefetchBuffer::new(slots, policy, hints).unwrap();
        let mut fetches = Vec::new();
        buffer.initial_fill(&mut fetches);
        fetches.iter().for_each(|(_, slot)| buffer.filled(*slot));
        Self { buffer, fetched: fetches.len() as u64, next: 0 }
    }

    /// One minibatch; the nodes that a replacement brought.
    pub fn gather(&mut self, nodes: &[NodeId], position: Option<WindowPosition>, replace: bool) -> Vec<NodeId> {
        let (mut found, mut fetches) = (Vec::new(), Vec::new());
        self.buffer.lookup(Pin(self.next), nodes, true, &mut found);
        self.next += 1;
        if let Some(position) = position {
            self.buffer.retire(position, nodes);
        }
        let absent = found.iter().filter(|found| **found == Residency::Absent).count();
        let mut admitted = Vec::new();
        self.buffer.admit_missed(true, &mut admitted);
        self.buffer.end_minibatch(replace, None, &mut fetches);
        self.fetched += (absent + fetches.len()) as u64;
        self.buffer.release(Pin(self.next));
        admitted.iter().chain(&fetches).for_each(|(_, slot)| self.buffer.filled(*slot));
        fetches.into_iter().map(|(node, _)| node).collect()
    }
}
