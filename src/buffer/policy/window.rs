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

/// Most slots that one search for a far victim looks at.
const STEPS: usize = 64;

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
    first: [u32; WINDOW_MAX],
    /// The lists that are not empty, as bits.
    occupied: u64,
}

impl UseLists {
    fn new(slots: u32) -> Self {
        let outside = Link { previous: NONE, next: NONE, list: WINDOW_MAX as u8 };
        Self { links: vec![outside; slots as usize], first: [NONE; WINDOW_MAX], occupied: 0 }
    }

    fn list_of(&self, slot: Slot) -> Option<WindowPosition> {
        let list = self.links[slot.index()].list;
        (usize::from(list) < WINDOW_MAX).then_some(WindowPosition(list))
    }

    fn insert(&mut self, slot: Slot, position: WindowPosition) {
        let first = &mut self.first[usize::from(position.0)];
        self.links[slot.index()] = Link { previous: NONE, next: *first, list: position.0 };
        if *first != NONE {
            self.links[*first as usize].previous = slot.0;
        }
        *first = slot.0;
        self.occupied |= 1 << position.0;
    }

    fn remove(&mut self, slot: Slot) {
        let Some(position) = self.list_of(slot) else { return };
        let Link { previous, next, .. } = self.links[slot.index()];
        if next != NONE {
            self.links[next as usize].previous = previous;
        }
        if previous != NONE {
            self.links[previous as usize].next = next;
        } else {
            self.first[usize::from(position.0)] = next;
            if next == NONE {
                self.occupied &= !(1 << position.0);
            }
        }
        self.links[slot.index()].list = WINDOW_MAX as u8;
    }

    fn slots(&self, position: WindowPosition) -> impl Iterator<Item = Slot> {
        let first = self.first[usize::from(position.0)];
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
}

impl WindowBelady {
    pub(super) fn new(config: &LfuConfig, slots: u32, hints: &BufferHints) -> Result<Self> {
        Ok(Self { uses: UseLists::new(slots), beyond: Lfu::new(config, slots, hints)? })
    }

    /// Puts a slot that is nowhere where its next use, or its count, belongs.
    fn place(&mut self, slot: Slot, node: NodeId, view: &View) {
        match view.window.next_use(node) {
            Some(distance) => self.uses.insert(slot, view.window.at(distance)),
            None if view.is_ready(slot) => self.beyond.rank(slot),
            None => {}
        }
    }

    /// A slot that can go and whose next use is farther than a distance, the farthest first.
    fn farther_than(&self, distance: u32, view: &View) -> Option<Slot> {
        let mut lists = view.window.by_distance(self.uses.occupied);
        let mut steps = STEPS;
        while lists != 0 {
            let farthest = 63 - lists.leading_zeros();
            if farthest <= distance {
                return None;
            }
            for slot in self.uses.slots(view.window.at(farthest)) {
                if view.is_evictable(slot) {
                    return Some(slot);
                }
                steps = steps.checked_sub(1)?;
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

    fn accepts(&self, origin: Origin) -> bool {
        self.beyond.accepts(origin)
    }

    fn victim(&mut self, candidate: NodeId, origin: Origin, view: &View) -> Option<Slot> {
        let Some(distance) = view.window.next_use(candidate) else {
            return self.beyond.victim(candidate, origin, view);
        };
        self.beyond.lowest_below(f64::INFINITY, view).or_else(|| self.farther_than(distance, view))
    }

    fn insert(&mut self, slot: Slot, node: NodeId, _origin: Origin, view: &View) {
        self.beyond.adopt(slot, node);
        self.place(slot, node, view);
    }

    fn remove(&mut self, slot: Slot, node: NodeId) {
        self.uses.remove(slot);
        self.beyond.remove(slot, node);
    }

    fn filled(&mut self, slot: Slot, _view: &View) {
        if self.uses.list_of(slot).is_none() {
            self.beyond.rank(slot);
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
        self.uses.bytes() + self.beyond.bytes()
    }
}
