//! What the caches of the literature share here: whatever a minibatch fetches may be kept, and an [`Order`] of the slots says which row goes.
//!
//! They are published for one request at a time, and to them a minibatch is requests for its hits, then for its misses. Many rows of a large
//! minibatch thus come only to be pushed out by the rest of it. So the misses are gone through before any is kept: each enters the order in
//! a place behind the slots, and leaves it again if it is pushed out. What is still there at the end gets the slots that were freed. So the
//! rows that stay are those of the published algorithm, and none is kept for nothing.
//!
//! A row fetched ahead is to the order as if its own minibatch had fetched it: until that comes, its slot is guarded and in no order.
//!
//! A published eviction may walk over many entries that it spares. Here every hit and every miss of a minibatch pays for [`STEPS`] steps and no
//! more are made, so that no minibatch pays for the buffer's size; a miss without a victim is not kept.

use super::guard::Guard;
use super::lists::SlotLists;
use super::{Origin, ReplacementPolicy, Swap, View};
use crate::buffer::window::WindowPosition;
use crate::id::{NodeId, Slot};
use crate::node_table::ahead;

/// Steps of the search for victims that a hit or a miss pays for.
const STEPS: u32 = 8;

/// Share of the slots that rows fetched ahead may hold, as by default in policy `lfu`.
const AHEAD_SHARE: f64 = 0.0625;

/// How many slots are looked at for one that can go, where the first cannot.
const PROBES: usize = 8;

/// Which rows of a cache go first. What it notes of a slot beside its list is as for a new one whenever the slot is in no list.
pub(super) trait Order: Send {
    /// The lists that have the slots, and after them the places.
    fn lists(&self) -> &SlotLists;

    /// As `lists`, to change them.
    fn lists_mut(&mut self) -> &mut SlotLists;

    /// The list from which slots are likely to go next.
    fn front(&self) -> u16;

    /// A minibatch wants the node, resident or not.
    fn want(&mut self, _node: NodeId) {}

    /// A minibatch found the slot's row.
    fn hit(&mut self, slot: Slot);

    /// The slot is the node's from now on.
    fn enter(&mut self, slot: Slot, node: NodeId);

    /// The slot is the node's no more.
    fn leave(&mut self, slot: Slot, node: NodeId);

    /// The slot that goes for the candidate; `None` as candidate is one that is to be kept whatever it was worth so far. Takes its steps
    /// from `steps`.
    fn victim(&mut self, candidate: Option<NodeId>, steps: &mut u32, rows: &Rows) -> Option<Slot>;

    /// Asks for what is known of a node.
    fn prefetch(&self, _node: NodeId) {}

    fn bytes(&self) -> usize;
}

/// The rows of the slots, and of the places behind them: the misses of the minibatch that is being gone through.
pub(super) struct Rows<'a> {
    view: &'a View,
    misses: &'a [NodeId],
}

impl Rows<'_> {
    fn miss(&self, slot: Slot) -> Option<NodeId> {
        let place = slot.0.checked_sub(self.view.slots.len())?;
        self.misses.get(place as usize).copied()
    }

    /// Whether the row can go at once.
    #[inline]
    pub(super) fn can_go(&self, slot: Slot) -> bool {
        slot.0 >= self.view.slots.len() || self.view.is_evictable(slot)
    }

    pub(super) fn node(&self, slot: Slot) -> Option<NodeId> {
        self.miss(slot).or_else(|| self.view.slots.node(slot))
    }

    /// The first slot of a list that can go, of a few.
    pub(super) fn first_to_go(&self, lists: &SlotLists, list: u16) -> Option<Slot> {
        lists.slots(list).take(PROBES).find(|&slot| self.can_go(slot))
    }
}

/// A cache with this order.
pub(super) struct Cache<O> {
    order: O,
    slots: u32,
    /// Slots that are in no order yet.
    guard: Guard,
    /// What the open minibatch has paid for.
    steps: u32,
    /// The misses that are to be kept, each with its place, the first last.
    kept: Vec<(NodeId, Slot)>,
    /// Slots for them, which the order has given up.
    freed: Vec<Slot>,
}

impl<O: Order> Cache<O> {
    pub(super) fn new(slots: u32, order: O) -> Self {
        let guard = Guard::new(slots);
        Self { order, slots, guard, steps: 0, kept: Vec::new(), freed: Vec::new() }
    }

    /// Gives a miss a place in the order, where the order gives something up for it or `free` slots are left.
    fn go_through(&mut self, node: NodeId, place: Slot, free: &mut usize, rows: &Rows) {
        self.steps = self.steps.saturating_add(STEPS);
        if *free > 0 {
            *free -= 1;
        } else {
            let Some(slot) = self.order.victim(Some(node), &mut self.steps, rows) else { return };
            self.order.leave(slot, rows.node(slot).unwrap_or_default());
            if slot.0 < rows.view.slots.len() {
                self.freed.push(slot);
            }
        }
        self.order.enter(place, node);
    }

    /// Takes the miss out of those to be kept, and others before it that have got no slot out of the order; the place that it had.
    fn take_kept(&mut self, node: NodeId) -> Option<Slot> {
        while let Some((kept, place)) = self.kept.pop() {
            if kept == node {
                return Some(place);
            }
            self.order.leave(place, kept);
        }
        None
    }
}

impl<O: Order> ReplacementPolicy for Cache<O> {
    fn reserve(&mut self, nodes: usize) {
        self.order.lists_mut().extend_behind(self.slots, nodes);
        self.kept.reserve(nodes);
        self.freed.reserve(nodes);
    }

    fn begin_minibatch(&mut self, _view: &View) {
        self.steps = 0;
    }

    fn touch(&mut self, hits: &[(Slot, NodeId)], _view: &View) {
        self.steps = STEPS.saturating_mul(hits.len() as u32);
        for ((slot, node), coming) in ahead(hits) {
            if let Some((slot, node)) = coming {
                self.order.lists().prefetch(slot);
                self.order.prefetch(node);
            }
            self.order.want(node);
            if self.guard.end(slot) {
                self.order.enter(slot, node);
            } else {
                self.order.hit(slot);
            }
        }
    }

    fn miss(&mut self, nodes: &[NodeId], _view: &View) {
        for (node, coming) in ahead(nodes) {
            coming.inspect(|&coming| self.order.prefetch(coming));
            self.order.want(node);
        }
    }

    fn accepts(&self, origin: Origin) -> bool {
        match origin {
            Origin::Demand => true,
            Origin::Ahead => self.guard.has_room(AHEAD_SHARE),
            Origin::Initial | Origin::Quota | Origin::Replacement => false,
        }
    }

    fn prefer(&mut self, candidates: &mut Vec<NodeId>, view: &View) {
        let place = |at: usize| Slot(view.slots.len() + at as u32);
        let mut free = view.slots.free();
        let rows = Rows { view, misses: candidates };
        for (at, &node) in candidates.iter().enumerate() {
            self.go_through(node, place(at), &mut free, &rows);
        }
        let lists = self.order.lists();
        let stays = |&(at, _): &(usize, &NodeId)| lists.list_of(place(at)).is_some();
        self.kept.extend(candidates.iter().enumerate().filter(stays).map(|(at, &node)| (node, place(at))).rev());
        candidates.clear();
        candidates.extend(self.kept.iter().rev().map(|(node, _)| *node));
    }

    fn victim(&mut self, candidate: NodeId, origin: Origin, view: &View) -> Option<Slot> {
        if !self.kept.is_empty() {
            return self.freed.pop();
        }
        self.steps = self.steps.saturating_add(STEPS);
        let candidate = (origin == Origin::Demand).then_some(candidate);
        self.order.victim(candidate, &mut self.steps, &Rows { view, misses: &[] })
    }

    fn likely_victims(&mut self, most: usize, slots: &mut Vec<Slot>) {
        slots.extend(self.freed.iter().rev().take(most));
        if slots.is_empty() {
            slots.extend(self.order.lists().slots(self.order.front()).take(most));
        }
        slots.iter().for_each(|&slot| self.order.lists().prefetch(slot));
    }

    fn prefetch(&self, node: NodeId) {
        self.order.prefetch(node);
    }

    fn insert(&mut self, slot: Slot, node: NodeId, origin: Origin, _view: &View) {
        if origin == Origin::Ahead {
            self.guard.begin(slot);
        } else if let Some(place) = self.take_kept(node) {
            self.order.lists_mut().rename(place, slot);
        } else {
            self.order.enter(slot, node);
        }
    }

    fn remove(&mut self, slot: Slot, node: NodeId) {
        if !self.guard.end(slot) && self.order.lists().list_of(slot).is_some() {
            self.order.leave(slot, node);
        }
    }

    /// What should have been kept and got no slot leaves the order; a slot that was freed in vain is as one that comes.
    fn replace(&mut self, decided: bool, view: &View, _swaps: &mut Vec<Swap>) -> bool {
        while let Some((node, place)) = self.kept.pop() {
            self.order.leave(place, node);
        }
        while let Some(slot) = self.freed.pop() {
            self.order.enter(slot, view.slots.node(slot).unwrap_or_default());
        }
        decided
    }

    fn retired(&mut self, _position: WindowPosition, resident: &[(Slot, NodeId)], view: &View) {
        for &(slot, node) in resident {
            if view.window.next_use(node).is_none() && self.guard.end(slot) {
                self.order.enter(slot, node);
            }
        }
    }

    fn bytes(&self) -> usize {
        self.order.lists().bytes()
            + self.order.bytes()
            + self.guard.bytes()
            + self.kept.capacity() * size_of::<(NodeId, Slot)>()
            + self.freed.capacity() * size_of::<Slot>()
    }
}
