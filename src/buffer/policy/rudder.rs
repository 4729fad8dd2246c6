//! The scores of MassiveGNN, as Rudder uses them: periodic or decided replacement of halo nodes, exactly as published.
//!
//! Every resident has an eviction score, every other halo node an access score. A minibatch multiplies all eviction scores by
//! 1 - alpha and divides those of its hits by it again; its misses raise access scores by one, unless it replaces. A replacement
//! gives the slots whose score is below (1 - alpha)^delta, rounded to three decimals, to the halo nodes of highest access score;
//! the two kinds of score follow their nodes. Source: Sarkar et al., MassiveGNN (CLUSTER 2024), and its public code.
//!
//! The arithmetic is that of the published arrays, one f32 product a minibatch, because products rounded in another order would
//! decide otherwise on the threshold. A slot's products are made up for when it is hit or judged, sixteen slots abreast.

use super::degree::highest_degree;
use super::random::drawn;
use super::{Origin, ReplacementPolicy, Swap, View};
use crate::buffer::BufferHints;
use crate::error::{Error, Result};
use crate::id::{NodeId, Slot};
use serde::{Deserialize, Serialize};
use std::cmp::Ordering;

const LANES: usize = 16;
const RESIDENT: f32 = -1.0;
/// The rank of a node outside the halo, whose row another policy has left.
const NO_RANK: u32 = u32::MAX;

/// What the buffer holds before the first minibatch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Start {
    /// Nothing.
    Empty,
    /// The halo nodes of highest degree; the lower node first where two are equal.
    #[default]
    Degree,
    /// Halo nodes drawn with this seed.
    Random(u64),
}

/// Minibatches of [`RudderConfig::delta`] where nothing says them.
const DELTA: u32 = 8;

/// Settings of the published scheme.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RudderConfig {
    /// What a minibatch takes off an eviction score, as a share; above 0, below 1.
    pub alpha: f64,
    /// Minibatches without a hit after which a fresh row may go, at least 1; `None` for as many as lie between two replacements, where a controller
    /// replaces at an interval, and 8 else.
    pub delta: Option<u32>,
    /// What the buffer starts with.
    pub start: Start,
}

impl Default for RudderConfig {
    fn default() -> Self {
        Self { alpha: 0.005, delta: None, start: Start::Degree }
    }
}

pub(super) struct Rudder {
    start: Start,
    decay: f32,
    threshold: f32,
    now: u32,
    /// Eviction scores, each as of its minibatch.
    scores: Vec<f32>,
    updated: Vec<u32>,
    /// The eviction score of slots that never held a row.
    empty_score: f32,
    /// Rank in the halo of each slot's node.
    ranks: Vec<u32>,
    halo: Vec<NodeId>,
    access: Vec<f32>,
    /// Halo ranks that the open minibatch missed.
    missed: Vec<u32>,
    victims: Vec<(NodeId, Slot)>,
    candidates: Vec<u32>,
}

impl Rudder {
    pub(super) fn new(config: &RudderConfig, slots: u32, hints: &BufferHints) -> Result<Self> {
        if !(config.alpha > 0.0 && config.alpha < 1.0) {
            return Err(Error::config(format!("policy rudder: alpha {} is not between 0 and 1", config.alpha)));
        }
        let delta = config.delta.unwrap_or(DELTA);
        if delta == 0 {
            return Err(Error::config("policy rudder: delta is 0; it counts minibatches and must be at least 1"));
        }
        let threshold = (1.0 - config.alpha).powf(f64::from(delta));
        let each = slots as usize;
        Ok(Self {
            start: config.start,
            decay: (1.0 - config.alpha) as f32,
            threshold: round_3(threshold) as f32,
            now: 0,
            scores: vec![1.0; each],
            updated: vec![0; each],
            empty_score: 1.0,
            ranks: vec![0; each],
            halo: hints.halo.clone(),
            access: vec![0.0; hints.halo.len()],
            missed: Vec::new(),
            victims: Vec::with_capacity(each),
            candidates: Vec::with_capacity(hints.halo.len()),
        })
    }

    /// Multiplies the scores of slots by the decay once for each minibatch since they were last up to date.
    fn bring_up_to_date(&mut self, slots: impl Iterator<Item = Slot>) {
        let mut slots = slots.peekable();
        while slots.peek().is_some() {
            let mut lanes = [(1.0f32, 0u32); LANES];
            let mut places = [0; LANES];
            let mut used = 0;
            for slot in slots.by_ref().take(LANES) {
                places[used] = slot.index();
                lanes[used] = (self.scores[slot.index()], self.now - self.updated[slot.index()]);
                used += 1;
            }
            let longest = lanes.iter().map(|lane| lane.1).max().unwrap_or(0);
            for round in 0..longest {
                for (score, products) in &mut lanes {
                    *score *= if round < *products { self.decay } else { 1.0 };
                }
            }
            for (&place, (score, _)) in places[..used].iter().zip(lanes) {
                self.scores[place] = score;
                self.updated[place] = self.now;
            }
        }
    }

    fn find_victims(&mut self, view: &View) {
        self.bring_up_to_date((0..view.slots.len()).map(Slot));
        self.victims.clear();
        for slot in (0..view.slots.len()).map(Slot).filter(|&slot| view.is_ready(slot)) {
            if self.scores[slot.index()] < self.threshold {
                self.victims.extend(view.slots.node(slot).map(|node| (node, slot)));
            }
        }
        self.victims.sort_unstable();
    }

    /// Halo ranks with an access score, the highest first, the lower node where two are equal; no more than `most`.
    fn find_candidates(&mut self, most: usize) {
        let access = &self.access;
        self.candidates.clear();
        self.candidates.extend((0..access.len() as u32).filter(|&rank| access[rank as usize] > 0.0));
        let order = |a: &u32, b: &u32| {
            let (first, second) = (access[*a as usize], access[*b as usize]);
            second.partial_cmp(&first).unwrap_or(Ordering::Equal).then(a.cmp(b))
        };
        if most < self.candidates.len() && most > 0 {
            self.candidates.select_nth_unstable_by(most - 1, order);
        }
        self.candidates.truncate(most);
        self.candidates.sort_unstable_by(order);
    }
}

/// To three decimals, halves to even, as Python rounds.
fn round_3(value: f64) -> f64 {
    // Decimal formatting rounds the exact binary value, as Python's round does.
    format!("{value:.3}").parse().unwrap_or(value)
}

impl ReplacementPolicy for Rudder {
    fn initial(&mut self, slots: u32, hints: &BufferHints, nodes: &mut Vec<NodeId>) {
        match self.start {
            Start::Empty => {}
            Start::Degree => nodes.extend(highest_degree(slots as usize, hints)),
            Start::Random(seed) => nodes.extend(drawn(seed, slots as usize, hints)),
        }
    }

    fn reserve(&mut self, nodes: usize) {
        self.missed.clear();
        self.missed.reserve(nodes);
    }

    fn begin_minibatch(&mut self, _view: &View) {
        self.now += 1;
        self.empty_score *= self.decay;
        self.missed.clear();
    }

    fn touch(&mut self, hits: &[(Slot, NodeId)], _view: &View) {
        self.bring_up_to_date(hits.iter().map(|(slot, _)| *slot));
        for (slot, _) in hits {
            self.scores[slot.index()] /= self.decay;
        }
    }

    fn miss(&mut self, nodes: &[NodeId], view: &View) {
        self.missed.extend(nodes.iter().filter_map(|&node| view.halo.rank(node)).map(|rank| rank as u32));
    }

    fn insert(&mut self, slot: Slot, node: NodeId, origin: Origin, view: &View) {
        let Some(rank) = view.halo.rank(node) else { return };
        self.ranks[slot.index()] = rank as u32;
        let access = std::mem::replace(&mut self.access[rank], RESIDENT);
        self.scores[slot.index()] = if origin == Origin::Initial { 1.0 } else { access };
        self.updated[slot.index()] = self.now;
    }

    fn remove(&mut self, slot: Slot, _node: NodeId) {
        self.bring_up_to_date(std::iter::once(slot));
        if let Some(access) = self.access.get_mut(self.ranks[slot.index()] as usize) {
            *access = self.scores[slot.index()];
        }
    }

    /// A row of another policy is as fresh as one of the start, but for one outside the halo, which is the first to go.
    fn take_over(&mut self, slot: Slot, node: NodeId, _wants: Option<f32>, view: &View) {
        (self.ranks[slot.index()], self.scores[slot.index()], self.updated[slot.index()]) = (NO_RANK, 0.0, self.now);
        self.insert(slot, node, Origin::Initial, view);
    }

    fn replace(&mut self, decided: bool, view: &View, swaps: &mut Vec<Swap>) -> bool {
        if decided {
            self.find_victims(view);
            let empty = if self.empty_score < self.threshold { view.slots.free() } else { 0 };
            self.find_candidates(self.victims.len() + empty);
        } else {
            self.candidates.clear();
        }
        if self.candidates.is_empty() {
            for &rank in &self.missed {
                self.access[rank as usize] += 1.0;
            }
            return decided;
        }
        // Empty slots come last: their published stand-ins have node ids beyond the graph.
        let mut victims = self.victims.iter().map(|&(_, slot)| slot);
        swaps.extend(
            self.candidates.iter().map(|&rank| Swap { victim: victims.next(), node: self.halo[rank as usize] }),
        );
        false
    }

    fn bytes(&self) -> usize {
        let each = size_of::<f32>();
        (self.scores.capacity() + self.updated.capacity() + self.ranks.capacity()) * each
            + (self.access.capacity() + self.missed.capacity() + self.candidates.capacity()) * each
            + self.halo.capacity() * size_of::<NodeId>()
            + self.victims.capacity() * size_of::<(NodeId, Slot)>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thresholds_round_as_published() {
        // Python: round(0.995 ** 8, 3), round(0.95 ** 16, 3), round(0.0625, 3), round(0.1875, 3).
        for (value, rounded) in [(0.995f64.powi(8), 0.961), (0.95f64.powi(16), 0.44), (0.0625, 0.062), (0.1875, 0.188)]
        {
            assert_eq!(round_3(value), rounded);
        }
    }
}
