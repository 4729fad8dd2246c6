//! Belady's choice as far as the announced minibatches reach, the most wanted rows beyond.
//!
//! Resident rows with an announced use hang in one list a window position, by their next use; the others are ranked by count. The
//! victim is the least wanted of those, or else a row whose next use is farther than the candidate's. A demand row without an
//! announced use competes by count alone: it never costs an announced one.

use super::lfu::{Lfu, LfuConfig};
use super::{Origin, ReplacementPolicy, View, Wanted};
use crate::buffer::BufferHints;
use crate::buffer::window::{WINDOW_MAX, WindowPosition};
use crate::error::Result;
use crate::id::{NodeId, Slot};

/// Most slots of one list that a search for a far victim looks at.
const STEPS: usize = 8;

const NONE: u32 = u32::MAX;

/// A slot's neighbours in the list of its next use.
#[derive(Clone, Copy)]
struct Link {
    previous: u32,
    next: u32,
    /// Its list, or `WINDOW_MAX` where it is in none.
    list: u8,
}

/// Doubly linked lists of slots, one a window position.
struct UseLists {
    links: Vec<Link>,
    /// The first and the last slot of each list.
    ends: [(u32, u32); WINDOW_MAX],
    /// The lists that are not empty, as bits.
    occupied: u64,
}

impl UseLists {
    fn new(slots: u32) -> Self {
        let outside = Link { previous: NONE, next: NONE, list: WINDOW_MAX as u8 };
        Self { links: vec![outside; slots as usize], ends: [(NONE, NONE); WINDOW_MAX], occupied: 0 }
    }

    fn list_of(&self, slot: Slot) -> Option<WindowPosition> {
        let list = self.links[slot.index()].list;
        (usize::from(list) < WINDOW_MAX).then_some(WindowPosition(list))
    }

    /// Appends a slot that is in no list: what was hit last, and may still be read, comes last.
    fn append(&mut self, slot: Slot, position: WindowPosition) {
        let ends = &mut self.ends[usize::from(position.0)];
        let previous = std::mem::replace(&mut ends.1, slot.0);
        if previous == NONE {
            ends.0 = slot.0;
        } else {
            self.links[previous as usize].next = slot.0;
        }
        self.links[slot.index()] = Link { previous, next: NONE, list: position.0 };
        self.occupied |= 1 << position.0;
    }

    fn remove(&mut self, slot: Slot) {
        let Some(position) = self.list_of(slot) else { return };
        let Link { previous, next, .. } = self.links[slot.index()];
        let ends = &mut self.ends[usize::from(position.0)];
        match previous {
            NONE => ends.0 = next,
            previous => self.links[previous as usize].next = next,
        }
        match next {
            NONE => ends.1 = previous,
            next => self.links[next as usize].previous = previous,
        }
        if ends.0 == NONE {
            self.occupied &= !(1 << position.0);
        }
        self.links[slot.index()].list = WINDOW_MAX as u8;
    }

    fn slots(&self, position: WindowPosition) -> impl Iterator<Item = Slot> {
        let (first, _) = self.ends[usize::from(position.0)];
        let following = |&slot: &u32| Some(self.links[slot as usize].next).filter(|&next| next != NONE);
        std::iter::successors(Some(first).filter(|&first| first != NONE), following).map(Slot)
    }

    fn bytes(&self) -> usize {
        self.links.capacity() * size_of::<Link>()
    }
}

pub(super) struct WindowBelady {
    uses: UseLists,
    beyond: Lfu,
    /// Candidates by their next use, while they are put in order.
    order: Vec<(u32, NodeId)>,
}

impl WindowBelady {
    pub(super) fn new(config: &LfuConfig, slots: u32, hints: &BufferHints) -> Result<Self> {
        Ok(Self { uses: UseLists::new(slots), beyond: Lfu::new(config, slots, hints)?, order: Vec::new() })
    }

    /// Puts a slot that is nowhere where its next use, or its count, belongs; one that is filling can wait, it is no victim.
    fn place(&mut self, slot: Slot, node: NodeId, view: &View) {
        if !view.is_ready(slot) {
            return;
        }
        match view.window.next_use(node) {
            Some(distance) => self.uses.append(slot, view.window.at(distance)),
            None => self.beyond.rank(slot),
        }
    }

    /// A slot that can go and whose next use is farther than a distance, the farthest first.
    fn farther_than(&self, distance: u32, view: &View) -> Option<Slot> {
        let mut lists = view.window.by_distance(self.uses.occupied);
        while lists != 0 {
            let farthest = 63 - lists.leading_zeros();
            if farthest <= distance {
                return None;
            }
            let mut slots = self.uses.slots(view.window.at(farthest)).take(STEPS);
            if let Some(slot) = slots.find(|&slot| view.is_evictable(slot)) {
                return Some(slot);
            }
            lists &= !(1 << farthest);
        }
        None
    }
}

impl ReplacementPolicy for WindowBelady {
    fn begin_minibatch(&mut self, view: &View) {
        self.beyond.begin_minibatch(view);
    }

    fn touch(&mut self, hits: &[(Slot, NodeId)], _view: &View) {
        self.beyond.count_hits(hits);
    }

    fn miss(&mut self, nodes: &[NodeId], view: &View) {
        self.beyond.miss(nodes, view);
    }

    /// Rows fetched ahead are not guarded here: among announced rows the nearer use decides.
    fn accepts(&self, origin: Origin) -> bool {
        self.beyond.accepts(origin) || origin == Origin::Ahead
    }

    fn victim(&mut self, candidate: NodeId, origin: Origin, view: &View) -> Option<Slot> {
        let Some(distance) = view.window.next_use(candidate) else {
            return self.beyond.victim(candidate, origin, view);
        };
        let lowest = self.beyond.lowest_below(f64::INFINITY, view);
        // A row fetched ahead of its minibatch costs no other announced row its slot: that one would be fetched once more. On demand it
        // may, for then it is in hand.
        lowest.or_else(|| self.farther_than(distance, view).filter(|_| origin != Origin::Ahead))
    }

    /// The sooner the next use the earlier: a row that is on its way in is not given up for a better one that comes after it.
    fn prefer(&mut self, candidates: &mut Vec<NodeId>, view: &View) {
        self.order.clear();
        let distance = |node| view.window.next_use(node).unwrap_or(WINDOW_MAX as u32);
        self.order.extend(candidates.iter().map(|&node| (distance(node), node)));
        let mut soon = 0;
        for at in 0..self.order.len() {
            if self.order[at].0 < WINDOW_MAX as u32 {
                self.order.swap(soon, at);
                soon += 1;
            }
        }
        // The others are ranked by count one by one: most of them are not worth being put in order.
        self.order[..soon].sort_unstable();
        candidates.iter_mut().zip(&self.order).for_each(|(candidate, (_, node))| *candidate = *node);
    }

    fn insert(&mut self, slot: Slot, node: NodeId, _origin: Origin, _view: &View) {
        self.beyond.adopt(slot, node);
    }

    fn remove(&mut self, slot: Slot, node: NodeId) {
        self.uses.remove(slot);
        self.beyond.remove(slot, node);
    }

    fn filled(&mut self, slot: Slot, view: &View) {
        if let Some(node) = view.slots.node(slot) {
            self.place(slot, node, view);
        }
    }

    fn announced(&mut self, resident: &[(Slot, NodeId)], view: &View) {
        for &(slot, node) in resident {
            if self.uses.list_of(slot).is_none() {
                self.beyond.keep(slot);
                self.place(slot, node, view);
            }
        }
    }

    fn retired(&mut self, position: WindowPosition, resident: &[(Slot, NodeId)], view: &View) {
        for &(slot, node) in resident {
            if self.uses.list_of(slot) == Some(position) {
                self.uses.remove(slot);
                self.place(slot, node, view);
            }
        }
    }

    fn wanted(&self, node: NodeId) -> Option<Wanted> {
        self.beyond.wanted(node)
    }

    fn bytes(&self) -> usize {
        self.uses.bytes() + self.beyond.bytes() + self.order.capacity() * size_of::<(u32, NodeId)>()
    }
}
