//! What each slot holds and who still reads it.
//!
//! A pin is a stamp, not a count: a slot remembers the youngest request that copies from it, and is free of readers once that
//! request is over. Nobody walks a finished request's slots to let them go.

use super::Pin;
use crate::id::{NodeId, Slot};
use crate::memory::prefetch;

/// What a slot is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Occupancy {
    Free,
    Filling,
    Ready,
}

#[derive(Clone, Copy)]
struct State {
    node: NodeId,
    /// The youngest reader's pin plus one; 0 where nobody ever read it.
    pinned: u64,
    occupancy: Occupancy,
    /// Fetched before anyone asked for it, and still not used.
    unused: bool,
}

/// How many free slots are looked at for one without readers.
const FREE_PROBES: usize = 8;

/// All slots of a buffer.
pub(super) struct SlotTable {
    states: Vec<State>,
    free: Vec<Slot>,
    oldest_live: u64,
    /// The one stamp beyond `oldest_live` that does not keep a row; 0 for none.
    spared: u64,
}

impl SlotTable {
    pub(super) fn new(slots: u32) -> Self {
        let vacant = State { node: NodeId(u64::MAX), pinned: 0, occupancy: Occupancy::Free, unused: false };
        Self {
            states: vec![vacant; slots as usize],
            free: (0..slots).rev().map(Slot).collect(),
            oldest_live: 0,
            spared: 0,
        }
    }

    pub(super) fn len(&self) -> u32 {
        self.states.len() as u32
    }

    /// Free slots, readers or not.
    pub(super) fn free(&self) -> usize {
        self.free.len()
    }

    /// Takes a free slot that nobody reads any more; with `pinned_too`, any free slot.
    pub(super) fn take_free(&mut self, pinned_too: bool) -> Option<Slot> {
        let probes = self.free.iter().enumerate().rev().take(FREE_PROBES);
        let (at, _) = probes.into_iter().find(|(_, slot)| pinned_too || !self.is_pinned(**slot))?;
        Some(self.free.swap_remove(at))
    }

    /// Whether a slot has no node.
    pub(super) fn has_free(&self) -> bool {
        !self.free.is_empty()
    }

    /// Gives a slot to a node whose bytes are still to come.
    pub(super) fn occupy(&mut self, slot: Slot, node: NodeId, unused: bool) {
        let state = &mut self.states[slot.index()];
        state.node = node;
        state.occupancy = Occupancy::Filling;
        state.unused = unused;
    }

    /// Takes the slot from its node without freeing it; the node, and whether it was fetched ahead in vain.
    pub(super) fn vacate(&mut self, slot: Slot) -> (NodeId, bool) {
        let state = &mut self.states[slot.index()];
        state.occupancy = Occupancy::Free;
        (std::mem::replace(&mut state.node, NodeId(u64::MAX)), std::mem::take(&mut state.unused))
    }

    /// Puts a vacated slot among the free.
    pub(super) fn put_free(&mut self, slot: Slot) {
        self.free.push(slot);
    }

    pub(super) fn set_ready(&mut self, slot: Slot) {
        self.states[slot.index()].occupancy = Occupancy::Ready;
    }

    /// Notes that a row that was fetched ahead did serve.
    #[inline]
    pub(super) fn set_used(&mut self, slot: Slot) {
        self.states[slot.index()].unused = false;
    }

    /// Asks for the slot's state, so that it is in the cache some slots later.
    #[inline]
    pub(super) fn prefetch(&self, slot: Slot) {
        prefetch(&self.states, slot.index());
    }

    #[inline]
    pub(super) fn occupancy(&self, slot: Slot) -> Occupancy {
        self.states[slot.index()].occupancy
    }

    #[inline]
    pub(super) fn node(&self, slot: Slot) -> Option<NodeId> {
        let state = self.states.get(slot.index())?;
        (state.occupancy != Occupancy::Free).then_some(state.node)
    }

    #[inline]
    pub(super) fn pin(&mut self, slot: Slot, pin: Pin) {
        let pinned = &mut self.states[slot.index()].pinned;
        *pinned = (*pinned).max(pin.0.saturating_add(1));
    }

    pub(super) fn release(&mut self, oldest_live: Pin) {
        self.oldest_live = self.oldest_live.max(oldest_live.0);
    }

    #[inline]
    pub(super) fn is_pinned(&self, slot: Slot) -> bool {
        self.states[slot.index()].pinned > self.oldest_live
    }

    /// Lets rows go whose youngest reader is this request; `None` takes that back.
    pub(super) fn spare(&mut self, reader: Option<Pin>) {
        self.spared = reader.map_or(0, |pin| pin.0.saturating_add(1));
    }

    /// Whether the slot can go to another node.
    #[inline]
    pub(super) fn is_evictable(&self, slot: Slot) -> bool {
        let state = &self.states[slot.index()];
        state.occupancy == Occupancy::Ready && (state.pinned <= self.oldest_live || state.pinned == self.spared)
    }

    pub(super) fn bytes(&self) -> usize {
        self.states.capacity() * size_of::<State>() + self.free.capacity() * size_of::<Slot>()
    }
}
