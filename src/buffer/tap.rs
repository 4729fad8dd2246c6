//! Tells of what a buffer is asked for, so that other policies can be tried on it beside the training: the calls of its minibatches, with the nodes
//! of a sample.
//!
//! A node is in the sample or not by its hash, so that all wants of a sampled node are seen, and a buffer of as large a share of the slots fares on
//! them as the whole one does on all (Waldspurger et al., SHARDS, FAST 2015). Calls go over a bounded queue in events that come back to be used
//! again: the one who is told may be late, and then some are left out, but nobody waits and nothing is allocated. A policy that is to
//! take the buffer over comes the other way, built already.

use super::policy::{Changing, ReplacementPolicy};
use super::window::WindowPosition;
use super::{BufferHints, PolicyConfig};
use crate::controller::OwnerShare;
use crate::error::Result;
use crate::id::NodeId;
use crossbeam::queue::ArrayQueue;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

/// Events that may wait.
const EVENTS: usize = 256;
/// Slots of a sampled buffer, about: below this sampling would cost more accuracy than time. Several thousand are enough for an error of a per
/// cent or two by the source.
const SAMPLED_SLOTS: u32 = 4096;
/// Hashes are taken modulo this.
const MODULUS: u64 = 1 << 24;

/// Which nodes are sampled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// Of [`MODULUS`]: hashes below it are in.
    threshold: u64,
}

impl Sample {
    /// For a buffer of so many slots.
    pub fn of(slots: u32) -> Self {
        Self { threshold: MODULUS * u64::from(SAMPLED_SLOTS.min(slots.max(1))) / u64::from(slots.max(1)) }
    }

    /// The share of the nodes that are in.
    pub fn share(self) -> f64 {
        self.threshold as f64 / MODULUS as f64
    }

    /// Whether the node is in.
    #[inline]
    pub fn has(self, node: NodeId) -> bool {
        // Mixed otherwise than the index and the ranks of a host do, so that the sample is none of theirs.
        let mut hash = (node.0 ^ 0x2545_f491_4f6c_dd1d).wrapping_mul(0xff51_afd7_ed55_8ccd);
        hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
        (hash ^ (hash >> 33)) % MODULUS < self.threshold
    }
}

/// What was asked of the buffer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Call {
    /// An observed minibatch wants these nodes.
    #[default]
    Lookup,
    /// It is over.
    End,
    /// A minibatch to come will want these nodes.
    Announce(WindowPosition),
    /// These nodes are announced no more.
    Retire(WindowPosition),
}

/// One call.
#[derive(Debug, Default)]
pub struct Event {
    /// Which.
    pub call: Call,
    /// The nodes of the sample that it named.
    pub nodes: Vec<NodeId>,
    /// By partition, what owners have sent since the start; empty but of some minibatches' ends.
    pub owners: Vec<OwnerShare>,
}

struct Queues {
    events: ArrayQueue<Event>,
    spent: ArrayQueue<Event>,
    prepared: ArrayQueue<(PolicyConfig, Box<Changing>)>,
    left: ArrayQueue<Box<dyn ReplacementPolicy>>,
    /// Nodes of the largest minibatch.
    largest: AtomicUsize,
    lost: AtomicU64,
}

/// What is known of a buffer that can be watched.
#[derive(Clone, Debug)]
pub struct Watched {
    /// Its slots.
    pub slots: u32,
    /// The policy that it began with.
    pub policy: PolicyConfig,
    /// The nodes that are told of.
    pub sample: Sample,
    /// What it knows of the graph.
    pub hints: BufferHints,
    /// What a decision is taken to cost; what it does cost the processor, if `None`.
    pub decision: Option<Duration>,
}

/// The buffer's end.
pub(super) struct Tap {
    queues: Arc<Queues>,
    sample: Sample,
    /// Most nodes of an event so far.
    most: usize,
}

/// The other end.
pub struct Feed {
    queues: Arc<Queues>,
    watched: Watched,
}

/// Both ends.
pub(super) fn tap(slots: u32, policy: &PolicyConfig, hints: BufferHints) -> (Tap, Feed) {
    let queues = Arc::new(Queues {
        events: ArrayQueue::new(EVENTS),
        spent: ArrayQueue::new(EVENTS),
        prepared: ArrayQueue::new(1),
        left: ArrayQueue::new(2),
        largest: AtomicUsize::new(0),
        lost: AtomicU64::new(0),
    });
    for _ in 0..EVENTS {
        let owners = Vec::with_capacity(hints.owners.partitions() as usize);
        // There is room: as many as are made.
        let _ = queues.spent.push(Event { owners, ..Event::default() });
    }
    let sample = Sample::of(slots);
    let watched = Watched { slots, policy: policy.clone(), sample, hints, decision: None };
    (Tap { queues: queues.clone(), sample, most: 0 }, Feed { queues, watched })
}

impl Tap {
    /// Tells of a call, where there is room.
    pub(super) fn tell(&mut self, call: Call, nodes: &[NodeId]) {
        self.send(call, nodes, std::iter::empty());
    }

    /// Tells that a minibatch is over, and what owners have sent so far.
    pub(super) fn tell_end(&mut self, owners: impl Iterator<Item = OwnerShare>) {
        self.send(Call::End, &[], owners);
    }

    fn send(&mut self, call: Call, nodes: &[NodeId], owners: impl Iterator<Item = OwnerShare>) {
        let Some(mut event) = self.queues.spent.pop() else {
            self.queues.lost.fetch_add(1, Relaxed);
            return;
        };
        event.call = call;
        event.nodes.clear();
        event.nodes.reserve(self.most);
        event.nodes.extend(nodes.iter().copied().filter(|&node| self.sample.has(node)));
        self.most = self.most.max(event.nodes.len());
        event.owners.clear();
        event.owners.extend(owners);
        // There is room: as many as there are events.
        let _ = self.queues.events.push(event);
    }

    pub(super) fn note_largest(&self, nodes: usize) {
        self.queues.largest.fetch_max(nodes, Relaxed);
    }

    /// The policy that was prepared, if it is the one that is asked for.
    pub(super) fn prepared(&self, policy: &PolicyConfig) -> Option<Box<Changing>> {
        self.queues.prepared.pop().filter(|(config, _)| config == policy).map(|(_, prepared)| prepared)
    }

    /// Leaves a policy that is used no more to whoever prepares others: to free it takes time.
    pub(super) fn leave(&self, policy: Box<dyn ReplacementPolicy>) {
        drop(self.queues.left.force_push(policy));
    }
}

impl Feed {
    /// The buffer.
    pub fn watched(&self) -> &Watched {
        &self.watched
    }

    /// Has every decision taken for one that costs so much, so that a replay does not depend on the machine that it runs on.
    pub fn assuming(mut self, decision: Duration) -> Self {
        self.watched.decision = Some(decision);
        self
    }

    /// Passes on what has been told since.
    pub fn pass(&self, mut watch: impl FnMut(&Event)) {
        // No more than were there at a time, so that a busy buffer keeps nobody here.
        for _ in 0..EVENTS {
            let Some(event) = self.queues.events.pop() else { return };
            watch(&event);
            let _ = self.queues.spent.push(event);
        }
    }

    /// Builds a policy for the buffer to change to. Only the last one built can be had.
    ///
    /// # Errors
    /// A setting of the policy is out of its bounds.
    pub fn prepare(&self, policy: &PolicyConfig) -> Result<()> {
        while self.queues.left.pop().is_some() {}
        let Watched { slots, hints, .. } = &self.watched;
        let changing = Changing::new(policy.build(*slots, hints)?, *slots, self.queues.largest.load(Relaxed));
        self.queues.prepared.force_push((policy.clone(), Box::new(changing)));
        Ok(())
    }

    /// Calls that were left out, for want of room.
    pub fn lost(&self) -> u64 {
        self.queues.lost.load(Relaxed)
    }
}

#[cfg(test)]
mod tests {
    //! Goal: the sample is as large as it says and a late listener bounds what is kept. Method: counting.
    use super::*;
    use crate::partition::PartitionBook;

    fn hints() -> BufferHints {
        let owners = PartitionBook::from_starts(vec![0, 1 << 20]).unwrap();
        BufferHints { nodes: 1 << 20, halo: vec![], degree: vec![], owners }
    }

    #[test]
    fn the_sample_is_its_share_of_the_nodes() {
        let sampled = |slots| (0..1 << 20).map(NodeId).filter(|&node| Sample::of(slots).has(node)).count() as f64;
        assert_eq!(sampled(SAMPLED_SLOTS), f64::from(1 << 20), "a small buffer is tried whole");
        for times in [2, 10, 100] {
            let (share, found) = (Sample::of(times * SAMPLED_SLOTS).share(), sampled(times * SAMPLED_SLOTS));
            assert!((share * f64::from(times) - 1.0).abs() < 1e-3, "{share}");
            assert!((found / f64::from(1 << 20) / share - 1.0).abs() < 0.05, "{found} of {times}");
        }
    }

    #[test]
    fn a_late_listener_loses_calls_and_nothing_grows() {
        let (mut tap, feed) = tap(4, &PolicyConfig::Lru, hints());
        (0..2 * EVENTS as u64).for_each(|node| tap.tell(Call::Lookup, &[NodeId(node)]));
        assert_eq!(feed.lost(), EVENTS as u64);
        let mut seen = Vec::new();
        feed.pass(|event| seen.extend_from_slice(&event.nodes));
        assert_eq!(seen, (0..EVENTS as u64).map(NodeId).collect::<Vec<_>>());
        tap.tell_end([OwnerShare { rows: 3, ..OwnerShare::default() }].into_iter());
        let mut ends = 0;
        feed.pass(|event| ends += usize::from(event.call == Call::End && event.owners[0].rows == 3));
        assert_eq!(ends, 1);
    }
}
