//! The most wanted rows, counted with decay. Whatever a minibatch fetches is a candidate, admitted if its count beats the lowest.
//!
//! The lowest resident is the front of a queue whose keys may be stale: a touch raises a count without moving its entry, and only
//! an entry that reaches the front is brought up to date. Keys only rise, so the stale front is a floor: a candidate below it is
//! refused for one comparison, and that is most of them.

use super::guard::Guard;
use super::queue::{Beside, SlotQueue, Standing, above, coarse};
use super::weights::Weights;
use super::{Origin, ReplacementPolicy, View, Wanted};
use crate::buffer::BufferHints;
use crate::buffer::frequency::{Count, Decay, FrequencyTable};
use crate::buffer::window::{WINDOW_MAX, WindowPosition};
use crate::error::{Error, Result};
use crate::id::{NodeId, Slot};
use crate::memory::prefetch;
use crate::node_table::ahead;
use serde::{Deserialize, Serialize};

/// Most entries that one search for a victim brings up to date or sets aside.
const STEPS: usize = 64;

/// An announced use without precedence is worth this share of what a row counts that is wanted once in as many minibatches as the use is ahead.
const EXPECTED: f32 = 0.25;

/// The most nodes whose counts are remembered: 3 GiB of them.
const REMEMBERED_MAX: usize = 1 << 28;

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
    /// Most of the slots that rows fetched ahead and not yet used may hold, as a share between 0 and 1. Policy lfu only: a buffer
    /// smaller than what is announced would otherwise hold nothing but announced rows, and no count would matter.
    pub ahead: f64,
    /// Tracks misses by cohort and obeys quotas.
    pub cohorts: bool,
    /// Weighs wants by the owner of their node, as a controller says, and shows it how long owners take.
    pub owners: bool,
}

impl Default for LfuConfig {
    fn default() -> Self {
        Self { half_life: 512, remembered: None, warm_up: Vec::new(), ahead: 0.0625, cohorts: false, owners: false }
    }
}

/// Nodes whose counts are remembered where nothing else is said.
pub(super) fn remembered(slots: u32, hints: &BufferHints) -> usize {
    (slots as usize * 4).max(hints.halo.len())
}

/// Slots found at the front of the queue while they could not go; back in it with the next minibatch. The lists before it are
/// the window's.
const ASIDE: Beside = Beside(WINDOW_MAX as u8);

pub(super) struct Lfu {
    decay: Decay,
    now: u32,
    /// The count of a node that every minibatch so far has wanted.
    always: f32,
    /// Counts by slot.
    counts: Vec<Count>,
    pub(super) guard: Guard,
    /// Most of the slots that rows fetched ahead may hold: see [`LfuConfig::ahead`].
    ahead: f64,
    /// Slots that may be given away; those that are in no list may not: empty, their bytes to come, or guarded.
    pub(super) queue: SlotQueue,
    missed_scores: Vec<f32>,
    others: FrequencyTable,
    /// What a want counts, where that depends on the owner.
    weights: Option<Weights>,
}

impl Lfu {
    pub(super) fn new(config: &LfuConfig, slots: u32, hints: &BufferHints) -> Result<Self> {
        let decay = Decay::new(config.half_life);
        let remembered = config.remembered.map_or_else(|| remembered(slots, hints), |nodes| nodes as usize);
        if remembered == 0 && slots > 0 {
            return Err(Error::config(
                "policy lfu cannot work with 0 remembered nodes; leave `remembered` out for the default",
            ));
        }
        if remembered > REMEMBERED_MAX {
            return Err(Error::config(format!(
                "policy lfu: {remembered} remembered nodes; the most are {REMEMBERED_MAX}"
            )));
        }
        if !(0.0..=1.0).contains(&config.ahead) {
            return Err(Error::config(format!("policy lfu: ahead {} is not a share between 0 and 1", config.ahead)));
        }
        let mut others = FrequencyTable::with_capacity(remembered);
        for &(node, count) in &config.warm_up {
            others.set(node, Count { score: count as f32, minibatch: 0 }, &decay);
        }
        Ok(Self {
            decay,
            now: 0,
            always: 0.0,
            counts: vec![Count::default(); slots as usize],
            guard: Guard::new(slots),
            ahead: config.ahead,
            queue: SlotQueue::new(slots, ASIDE.0 + 1),
            missed_scores: Vec::new(),
            others,
            weights: config.owners.then(|| Weights::new(&hints.owners, slots)),
        })
    }

    /// Makes the slot one that may be given away.
    pub(super) fn rank(&mut self, slot: Slot, view: &View) {
        self.rank_expected(slot, 0.0, view);
    }

    /// The same of one whose row is expected to be wanted as if it had been wanted so often more.
    pub(super) fn rank_expected(&mut self, slot: Slot, expected: f32, view: &View) {
        if self.queue.standing(slot) == Standing::Nowhere {
            self.queue.push(self.key_at(slot, expected, view), slot);
        }
    }

    /// The key of a slot's row, as the queue orders it.
    fn key_at(&self, slot: Slot, expected: f32, view: &View) -> i64 {
        let want = view.slots.node(slot).map_or(1.0, |node| self.want(node));
        coarse(self.key(self.counts[slot.index()], expected, want))
    }

    /// The key of a node that is not resident.
    fn key_of(&self, node: NodeId, expected: f32) -> f64 {
        self.key(self.others.get(node).unwrap_or_default(), expected, self.want(node))
    }

    fn key(&self, mut count: Count, expected: f32, want: f32) -> f64 {
        if expected > 0.0 {
            count = Count { score: self.decay.at(count, self.now) + expected, minibatch: self.now };
        }
        self.decay.key(Count { score: count.score * want, ..count })
    }

    /// Wants that are worth as much as the one of an announced use, so many minibatches ahead.
    pub(super) fn expected(&self, distance: u32) -> f32 {
        EXPECTED * self.always / (distance + 1) as f32
    }

    /// The next slots that may be ranked by weights of before, as a minibatch of so many nodes can pay for. Who asks ranks them anew.
    pub(super) fn take_outdated(&mut self, nodes: usize) -> impl Iterator<Item = Slot> + use<> {
        let slots = self.weights.as_mut().map_or(0..0, |weights| weights.take_outdated(nodes));
        slots.map(Slot)
    }

    fn rank_outdated(&mut self, nodes: usize, view: &View) {
        for slot in self.take_outdated(nodes) {
            if self.queue.standing(slot) == Standing::Queued {
                self.queue.remove(slot);
                self.rank(slot, view);
            }
        }
    }

    /// The score below which no candidate can have a slot: most misses are wanted less than any resident, and one comparison settles
    /// them. Infinite where no slot can go for its count.
    pub(super) fn least_score(&mut self, view: &View) -> f32 {
        if view.slots.has_free() {
            return 0.0;
        }
        match self.queue.peek() {
            // A little below the exact bound, so that rounding drops none that `victim` would serve.
            Some((lowest, _)) => 0.999 * self.decay.score_at(above(lowest), self.now),
            None => f32::INFINITY,
        }
    }

    /// Scores of the nodes of the last `miss`, in order.
    pub(super) fn missed_scores(&self) -> &[f32] {
        &self.missed_scores
    }

    /// The lowest slot that can go, if it is below the key; the lowest found, where the search is cut short.
    pub(super) fn lowest_below(&mut self, key: f64, view: &View) -> Option<Slot> {
        let key = coarse(key);
        let mut best: Option<(i64, Slot)> = None;
        for _ in 0..STEPS {
            let (floor, slot) = self.queue.peek().filter(|(floor, _)| *floor < key)?;
            let current = self.key_at(slot, 0.0, view);
            if !view.is_evictable(slot) {
                self.queue.remove(slot);
                self.queue.push_beside(ASIDE, slot);
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

    /// The slot to give for a node's row that is expected to be wanted as if it had been wanted so often more.
    pub(super) fn victim_expected(&mut self, node: NodeId, origin: Origin, expected: f32, view: &View) -> Option<Slot> {
        // A row that was announced or asked for by quota is worth more than any that is only remembered, but for one that would not be waited for.
        let by_count = origin == Origin::Demand || origin == Origin::Ahead && self.is_cheap(node);
        let key = if by_count { self.key_of(node, expected) } else { f64::INFINITY };
        self.lowest_below(key, view)
    }

    /// The counting part of an insertion.
    pub(super) fn adopt(&mut self, slot: Slot, node: NodeId) {
        let count = self.others.take(node).unwrap_or(Count { score: 0.0, minibatch: self.now });
        self.counts[slot.index()] = count;
    }

    /// As `adopt`, of a row that another policy has kept; one that did not count is taken for wanted once.
    pub(super) fn adopt_counted(&mut self, slot: Slot, node: NodeId, wants: Option<f32>) {
        self.adopt(slot, node);
        let score = wants.unwrap_or(1.0).max(self.decay.at(self.counts[slot.index()], self.now));
        self.counts[slot.index()] = Count { score, minibatch: self.now };
    }

    pub(super) fn count_hits(&mut self, hits: &[(Slot, NodeId)]) {
        for ((slot, _), coming) in ahead(hits) {
            coming.inspect(|(coming, _)| prefetch(&self.counts, coming.index()));
            let count = &mut self.counts[slot.index()];
            *count = self.decay.touched(*count, self.now);
        }
    }

    pub(super) fn count_misses(&mut self, nodes: &[NodeId]) {
        self.missed_scores.clear();
        for (node, coming) in ahead(nodes) {
            coming.inspect(|&coming| self.others.prefetch(coming));
            let score = self.others.touch(node, self.now, &self.decay);
            self.missed_scores.push(score * self.want(node));
        }
    }

    /// Whether wants of the node count for less than those of owners that hold minibatches up.
    #[inline]
    pub(super) fn is_cheap(&self, node: NodeId) -> bool {
        self.weights.as_ref().is_some_and(|weights| weights.is_cheap(node))
    }

    /// What a want of the node counts.
    #[inline]
    pub(super) fn want(&self, node: NodeId) -> f32 {
        self.weights.as_ref().map_or(1.0, |weights| weights.want(node))
    }
}

impl ReplacementPolicy for Lfu {
    fn reserve(&mut self, nodes: usize) {
        self.missed_scores.clear();
        self.missed_scores.reserve(nodes);
    }

    fn begin_minibatch(&mut self, view: &View) {
        self.now += 1;
        self.always = self.decay.touched(Count { score: self.always, minibatch: self.now - 1 }, self.now).score;
        while let Some(slot) = self.queue.first_beside(ASIDE) {
            self.queue.remove(slot);
            self.rank(slot, view);
        }
    }

    fn touch(&mut self, hits: &[(Slot, NodeId)], view: &View) {
        self.count_hits(hits);
        self.rank_outdated(hits.len(), view);
        for &(slot, _) in hits {
            if self.guard.end(slot) && view.is_ready(slot) {
                self.rank(slot, view);
            }
        }
    }

    fn miss(&mut self, nodes: &[NodeId], view: &View) {
        self.count_misses(nodes);
        self.rank_outdated(nodes.len(), view);
    }

    fn accepts(&self, origin: Origin) -> bool {
        match origin {
            Origin::Demand | Origin::Quota => true,
            Origin::Ahead => self.guard.has_room(self.ahead),
            Origin::Initial | Origin::Replacement => false,
        }
    }

    fn prefer(&mut self, candidates: &mut Vec<NodeId>, view: &View) {
        if candidates.len() != self.missed_scores.len() {
            return;
        }
        let least = self.least_score(view);
        let mut scores = self.missed_scores.iter();
        candidates.retain(|_| scores.next().is_some_and(|&score| score >= least));
    }

    fn victim(&mut self, candidate: NodeId, origin: Origin, view: &View) -> Option<Slot> {
        self.victim_expected(candidate, origin, 0.0, view)
    }

    fn likely_victims(&mut self, most: usize, slots: &mut Vec<Slot>) {
        slots.extend(self.queue.upcoming().take(most));
        for slot in slots {
            prefetch(&self.counts, slot.index());
            self.queue.prefetch(*slot);
        }
    }

    fn prefetch(&self, node: NodeId) {
        self.others.prefetch(node);
    }

    fn insert(&mut self, slot: Slot, node: NodeId, origin: Origin, _view: &View) {
        self.adopt(slot, node);
        if origin == Origin::Ahead {
            self.guard.begin(slot);
        }
    }

    fn remove(&mut self, slot: Slot, node: NodeId) {
        self.queue.remove(slot);
        self.guard.end(slot);
        let count = std::mem::take(&mut self.counts[slot.index()]);
        if count.score > 0.0 {
            self.others.set(node, count, &self.decay);
        }
    }

    fn filled(&mut self, slot: Slot, view: &View) {
        if !self.guard.guards(slot) {
            self.rank(slot, view);
        }
    }

    fn retired(&mut self, _position: WindowPosition, resident: &[(Slot, NodeId)], view: &View) {
        for &(slot, node) in resident {
            if view.window.next_use(node).is_none() && self.guard.end(slot) && view.is_ready(slot) {
                self.rank(slot, view);
            }
        }
    }

    fn take_over(&mut self, slot: Slot, node: NodeId, wants: Option<f32>, view: &View) {
        self.adopt_counted(slot, node, wants);
        if view.window.next_use(node).is_some() && self.guard.has_room(self.ahead) {
            self.guard.begin(slot);
        } else if view.is_ready(slot) {
            self.rank(slot, view);
        }
    }

    fn wants(&self, slot: Slot) -> Option<f32> {
        Some(self.decay.at(self.counts[slot.index()], self.now))
    }

    fn wanted(&self, node: NodeId) -> Option<Wanted> {
        let count = self.others.get(node)?;
        Some(Wanted {
            score: self.decay.at(count, self.now) * self.want(node),
            minibatches_ago: self.now.saturating_sub(count.minibatch),
        })
    }

    /// Wants of before are worth what they are now; slots that are ranked otherwise come to their places step by step, so that no minibatch pays for all.
    fn weigh(&mut self, weights: &[f32]) {
        self.weights.iter_mut().for_each(|known| known.change(weights));
    }

    fn bytes(&self) -> usize {
        self.decay.bytes()
            + self.weights.as_ref().map_or(0, |weights| weights.bytes())
            + self.counts.capacity() * size_of::<Count>()
            + self.guard.bytes()
            + self.queue.bytes()
            + self.others.bytes()
    }
}
