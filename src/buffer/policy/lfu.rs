//! The most wanted rows, counted with decay. Whatever a minibatch fetches is a candidate, admitted if its count beats the lowest.
//!
//! The lowest resident is the front of a queue whose keys may be stale: a touch raises a count without moving its entry, and only
//! an entry that reaches the front is brought up to date. Keys only rise, so the stale front is a floor: a candidate below it is
//! refused for one comparison, and that is most of them.

use super::queue::{SlotQueue, coarse};
use super::{Origin, ReplacementPolicy, View, Wanted};
use crate::buffer::BufferHints;
use crate::buffer::frequency::{Count, Decay, FrequencyTable};
use crate::buffer::index::BLOCK;
use crate::buffer::window::WindowPosition;
use crate::error::{Error, Result};
use crate::id::{NodeId, Slot};
use serde::{Deserialize, Serialize};

/// Most entries that one search for a victim brings up to date or sets aside.
const STEPS: usize = 64;

/// Settings of the counting policies.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LfuConfig {
    /// Minibatches over which a count halves; 0 for never.
    pub half_life: u32,
    /// Non-resident nodes whose counts are remembered, at least; `None` for four a slot, or the halo if that is more.
    pub remembered: Option<u32>,
    /// Counts to start from, such as those of sampled warm-up minibatches.
    pub warm_up: Vec<(NodeId, u32)>,
    /// Tracks misses by cohort and obeys quotas.
    pub cohorts: bool,
}

impl Default for LfuConfig {
    fn default() -> Self {
        Self { half_life: 512, remembered: None, warm_up: Vec::new(), cohorts: false }
    }
}

/// Where the policy has a slot.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// Not to be given away: empty, its bytes to come, or fetched ahead and not yet used.
    Kept,
    /// In the queue.
    Ranked,
    /// Found at the front of the queue while it could not go; back in it with the next minibatch.
    Aside,
}

pub(super) struct Lfu {
    decay: Decay,
    now: u32,
    counts: Vec<Count>,
    standing: Vec<Standing>,
    /// Fetched ahead and not yet used.
    guarded: Vec<bool>,
    queue: SlotQueue,
    aside: Vec<Slot>,
    others: FrequencyTable,
}

impl Lfu {
    pub(super) fn new(config: &LfuConfig, slots: u32, hints: &BufferHints) -> Result<Self> {
        let decay = Decay::new(config.half_life);
        let remembered =
            config.remembered.map_or_else(|| (slots as usize * 4).max(hints.halo.len()), |nodes| nodes as usize);
        if remembered == 0 && slots > 0 {
            return Err(Error::config(
                "policy lfu cannot work with 0 remembered nodes; leave `remembered` out for the default",
            ));
        }
        let mut others = FrequencyTable::with_capacity(remembered);
        for &(node, count) in &config.warm_up {
            others.set(node, Count { score: count as f32, minibatch: 0 }, &decay);
        }
        let each = slots as usize;
        Ok(Self {
            decay,
            now: 0,
            counts: vec![Count::default(); each],
            standing: vec![Standing::Kept; each],
            guarded: vec![false; each],
            queue: SlotQueue::new(slots),
            aside: Vec::with_capacity(each),
            others,
        })
    }

    /// Makes the slot one that may be given away.
    pub(super) fn rank(&mut self, slot: Slot) {
        if self.standing[slot.index()] == Standing::Kept {
            self.standing[slot.index()] = Standing::Ranked;
            self.queue.push(coarse(self.decay.key(self.counts[slot.index()])), slot);
        }
    }

    /// Makes the slot one that is not given away.
    pub(super) fn keep(&mut self, slot: Slot) {
        self.queue.remove(slot);
        self.standing[slot.index()] = Standing::Kept;
    }

    /// The key of a node that is not resident.
    pub(super) fn key_of(&self, node: NodeId) -> f64 {
        self.decay.key(self.others.get(node).unwrap_or_default())
    }

    /// The lowest slot that can go, if it is below the key; the lowest found, where the search is cut short.
    pub(super) fn lowest_below(&mut self, key: f64, view: &View) -> Option<Slot> {
        let key = coarse(key);
        let mut best: Option<(i64, Slot)> = None;
        for _ in 0..STEPS {
            let (floor, slot) = self.queue.peek().filter(|(floor, _)| *floor < key)?;
            let current = coarse(self.decay.key(self.counts[slot.index()]));
            if !view.is_evictable(slot) {
                self.queue.remove(slot);
                self.standing[slot.index()] = Standing::Aside;
                self.aside.push(slot);
            } else if current <= floor {
                return Some(slot);
            } else {
                self.queue.remove(slot);
                self.queue.push(current, slot);
                if current < best.map_or(key, |(lowest, _)| lowest) {
                    best = Some((current, slot));
                }
            }
        }
        best.map(|(_, slot)| slot)
    }

    /// The counting part of an insertion.
    pub(super) fn adopt(&mut self, slot: Slot, node: NodeId) {
        self.counts[slot.index()] = self.others.take(node).unwrap_or(Count { score: 0.0, minibatch: self.now });
    }

    pub(super) fn count_hits(&mut self, hits: &[(Slot, NodeId)]) {
        for (slot, _) in hits {
            let count = &mut self.counts[slot.index()];
            *count = self.decay.touched(*count, self.now);
        }
    }
}

impl ReplacementPolicy for Lfu {
    fn begin_minibatch(&mut self, _view: &View) {
        self.now += 1;
        while let Some(slot) = self.aside.pop() {
            // It may have been kept, and even set aside again, since it was put there.
            if self.standing[slot.index()] == Standing::Aside {
                self.standing[slot.index()] = Standing::Kept;
                self.rank(slot);
            }
        }
    }

    fn touch(&mut self, hits: &[(Slot, NodeId)], view: &View) {
        self.count_hits(hits);
        for &(slot, _) in hits {
            if std::mem::take(&mut self.guarded[slot.index()]) && view.is_ready(slot) {
                self.rank(slot);
            }
        }
    }

    fn miss(&mut self, nodes: &[NodeId], _view: &View) {
        for block in nodes.chunks(BLOCK) {
            self.others.warm(block);
            for &node in block {
                self.others.touch(node, self.now, &self.decay);
            }
        }
    }

    fn accepts(&self, origin: Origin) -> bool {
        origin != Origin::Initial && origin != Origin::Replacement
    }

    fn victim(&mut self, candidate: NodeId, origin: Origin, view: &View) -> Option<Slot> {
        // A row that was announced or asked for by quota is worth more than any that is only remembered.
        let key = if origin == Origin::Demand { self.key_of(candidate) } else { f64::INFINITY };
        self.lowest_below(key, view)
    }

    fn insert(&mut self, slot: Slot, node: NodeId, origin: Origin, _view: &View) {
        self.adopt(slot, node);
        self.guarded[slot.index()] = origin == Origin::Ahead;
    }

    fn remove(&mut self, slot: Slot, node: NodeId) {
        self.keep(slot);
        self.guarded[slot.index()] = false;
        let count = std::mem::take(&mut self.counts[slot.index()]);
        if count.score > 0.0 {
            self.others.set(node, count, &self.decay);
        }
    }

    fn filled(&mut self, slot: Slot, _view: &View) {
        if !self.guarded[slot.index()] {
            self.rank(slot);
        }
    }

    fn retired(&mut self, _position: WindowPosition, resident: &[(Slot, NodeId)], view: &View) {
        for &(slot, node) in resident {
            let guarded = &mut self.guarded[slot.index()];
            if *guarded && view.window.next_use(node).is_none() {
                *guarded = false;
                if view.is_ready(slot) {
                    self.rank(slot);
                }
            }
        }
    }

    fn wanted(&self, node: NodeId) -> Option<Wanted> {
        let count = self.others.get(node)?;
        Some(Wanted {
            score: self.decay.at(count, self.now),
            minibatches_ago: self.now.saturating_sub(count.minibatch),
        })
    }

    fn bytes(&self) -> usize {
        self.decay.bytes()
            + self.counts.capacity() * size_of::<Count>()
            + self.standing.capacity() * size_of::<Standing>()
            + self.guarded.capacity()
            + self.queue.bytes()
            + self.aside.capacity() * size_of::<Slot>()
            + self.others.bytes()
    }
}
