//! One policy in the place of another, while the buffer runs: the rows stay where they are, and the new policy comes to know them little by little.
//!
//! Telling it of all slots at once would cost one minibatch the whole buffer. So each minibatch hands over the slots that it hits or that are
//! announced, and as many others as the largest minibatch so far had nodes. Until then a slot is the old policy's, which is told when it goes and
//! nothing else; the new one gives up slots that it knows. What can be handed over of a row is how often it was wanted: a policy that counts goes
//! on from there, and the order of one that does not begins anew.

use super::{Origin, ReplacementPolicy, Swap, View, Wanted};
use crate::buffer::window::WindowPosition;
use crate::id::{NodeId, Slot};

pub(in crate::buffer) struct Changing {
    new: Box<dyn ReplacementPolicy>,
    old: Option<Box<dyn ReplacementPolicy>>,
    /// By slot, as bits: the new policy knows it. Of no meaning without an old one.
    known: Vec<u64>,
    /// Slots before it are known, or empty.
    cursor: u32,
    /// Slots that a minibatch hands over beside its own.
    pace: u32,
    slots: u32,
}

impl Changing {
    /// For a buffer of so many slots, whose minibatches had so many nodes at most.
    pub(in crate::buffer) fn new(mut new: Box<dyn ReplacementPolicy>, slots: u32, largest: usize) -> Self {
        new.reserve(largest);
        let known = vec![0; (slots as usize).div_ceil(64)];
        Self { new, old: None, known, cursor: 0, pace: largest as u32, slots }
    }

    fn knows(&self, slot: Slot) -> bool {
        self.old.is_none() || self.known[slot.index() / 64] >> (slot.0 % 64) & 1 == 1
    }

    fn note_known(&mut self, slot: Slot) {
        self.known[slot.index() / 64] |= 1 << (slot.0 % 64);
    }

    fn hand_over(&mut self, slot: Slot, node: NodeId, view: &View) {
        if self.knows(slot) {
            return;
        }
        let Some(old) = &mut self.old else { return };
        let wants = old.wants(slot);
        old.remove(slot, node);
        self.note_known(slot);
        self.new.take_over(slot, node, wants, view);
    }

    fn hand_over_all(&mut self, resident: &[(Slot, NodeId)], view: &View) {
        if self.old.is_some() {
            resident.iter().for_each(|&(slot, node)| self.hand_over(slot, node, view));
        }
    }
}

impl ReplacementPolicy for Changing {
    fn reserve(&mut self, nodes: usize) {
        self.pace = nodes as u32;
        self.new.reserve(nodes);
    }

    fn begin_minibatch(&mut self, view: &View) {
        self.new.begin_minibatch(view);
        if self.old.is_none() {
            return;
        }
        let end = self.slots.min(self.cursor.saturating_add(self.pace.max(1)));
        for slot in (self.cursor..end).map(Slot) {
            if let Some(node) = view.slots.node(slot) {
                self.hand_over(slot, node, view);
            }
        }
        self.cursor = end;
    }

    fn touch(&mut self, hits: &[(Slot, NodeId)], view: &View) {
        self.hand_over_all(hits, view);
        self.new.touch(hits, view);
    }

    fn miss(&mut self, nodes: &[NodeId], view: &View) {
        self.new.miss(nodes, view);
    }

    fn accepts(&self, origin: Origin) -> bool {
        self.new.accepts(origin)
    }

    fn victim(&mut self, candidate: NodeId, origin: Origin, view: &View) -> Option<Slot> {
        self.new.victim(candidate, origin, view)
    }

    fn prefer(&mut self, candidates: &mut Vec<NodeId>, view: &View) {
        self.new.prefer(candidates, view);
    }

    fn likely_victims(&mut self, most: usize, slots: &mut Vec<Slot>) {
        self.new.likely_victims(most, slots);
    }

    fn prefetch(&self, node: NodeId) {
        self.new.prefetch(node);
    }

    fn insert(&mut self, slot: Slot, node: NodeId, origin: Origin, view: &View) {
        self.note_known(slot);
        self.new.insert(slot, node, origin, view);
    }

    fn remove(&mut self, slot: Slot, node: NodeId) {
        let known = self.knows(slot);
        match &mut self.old {
            Some(old) if !known => old.remove(slot, node),
            _ => self.new.remove(slot, node),
        }
    }

    fn filled(&mut self, slot: Slot, view: &View) {
        // A row that comes before its slot was handed over is ready then.
        if self.knows(slot) {
            self.new.filled(slot, view);
        }
    }

    fn announced(&mut self, resident: &[(Slot, NodeId)], view: &View) {
        self.hand_over_all(resident, view);
        self.new.announced(resident, view);
    }

    fn retired(&mut self, position: WindowPosition, resident: &[(Slot, NodeId)], view: &View) {
        self.hand_over_all(resident, view);
        self.new.retired(position, resident, view);
    }

    fn replace(&mut self, decided: bool, view: &View, swaps: &mut Vec<Swap>) -> bool {
        self.new.replace(decided, view, swaps)
    }

    fn brings(&self) -> Option<NodeId> {
        self.new.brings()
    }

    fn weigh(&mut self, weights: &[f32]) {
        self.new.weigh(weights);
    }

    fn wanted(&self, node: NodeId) -> Option<Wanted> {
        self.new.wanted(node)
    }

    fn wants(&self, slot: Slot) -> Option<f32> {
        match &self.old {
            Some(old) if !self.knows(slot) => old.wants(slot),
            _ => self.new.wants(slot),
        }
    }

    fn follow(&mut self, old: Box<dyn ReplacementPolicy>, largest: usize) {
        if largest as u32 > self.pace {
            self.reserve(largest);
        }
        self.old = Some(old);
    }

    fn take_left(&mut self) -> Option<Box<dyn ReplacementPolicy>> {
        self.old.take_if(|_| self.cursor == self.slots)
    }

    fn bytes(&self) -> usize {
        let old = self.old.as_ref().map_or(0, |old| old.bytes());
        self.new.bytes() + old + self.known.capacity() * size_of::<u64>()
    }
}
