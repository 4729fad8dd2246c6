//! Belady's choice as far as the announced minibatches reach, the most wanted rows beyond.
//!
//! Resident rows with an announced use hang in one list a window position, by their next use; the others are ranked by count. The
//! victim is the least wanted of those, or else a row whose next use is farther than the candidate's. A demand row without an
//! announced use competes by count alone: it never costs an announced one. Rows fetched ahead of their minibatch hold a share of the slots at most.
//!
//! While a controller says that some owners hold minibatches up, the others' announcements give their rows no precedence: these compete by count, in which
//! their wants weigh less, with a share of what a row counts that is wanted once in as many minibatches; and the slots that they leave are for rows that are
//! waited for.

use super::lfu::{Lfu, LfuConfig};
use super::queue::{Beside, Standing};
use super::{Origin, ReplacementPolicy, View, Wanted};
use crate::buffer::BufferHints;
use crate::buffer::window::{WINDOW_MAX, WindowPosition};
use crate::error::Result;
use crate::id::{NodeId, Slot};
use crate::node_table::{AHEAD, ahead};

/// Most slots of one list that a search for a far victim looks at.
const STEPS: usize = 8;
/// The least share of the slots that rows fetched ahead may hold, until their minibatch has come. Fetched by it they need have cost no other row its
/// slot; and a row that goes for them is not announced, but may well be wanted soon after what is.
const AHEAD_LEAST: f64 = 0.125;

pub(super) struct WindowBelady {
    /// Counts all rows, ranks those without an announced use, and has the others in the lists beside its queue.
    beyond: Lfu,
    /// Candidates by their next use, while they are put in order.
    order: Vec<(u32, NodeId)>,
}

/// What an announced row is worth.
enum Precedence {
    /// It goes before all that is ranked by count, by the distance of its next use.
    First(u32),
    /// As much as so many wants more than were counted; none of one that is not announced.
    Wants(f32),
}

impl WindowBelady {
    pub(super) fn new(config: &LfuConfig, slots: u32, hints: &BufferHints) -> Result<Self> {
        Ok(Self { beyond: Lfu::new(config, slots, hints)?, order: Vec::new() })
    }

    /// What the node's row is worth for what is announced.
    fn precedence(&self, node: NodeId, view: &View) -> Precedence {
        match view.window.next_use(node) {
            None => Precedence::Wants(0.0),
            Some(distance) if self.beyond.is_cheap(node) => Precedence::Wants(self.beyond.expected(distance)),
            Some(distance) => Precedence::First(distance),
        }
    }

    /// Puts a slot that is nowhere where its next use, or its count, belongs; one that is filling can wait, it is no victim.
    fn place(&mut self, slot: Slot, node: NodeId, view: &View) {
        if !view.is_ready(slot) {
            return;
        }
        match self.precedence(node, view) {
            Precedence::First(distance) => self.beyond.queue.push_beside(uses_at(view.window.at(distance)), slot),
            Precedence::Wants(expected) => self.beyond.rank_expected(slot, expected, view),
        }
    }

    /// Puts a slot anew where it belongs, unless it may not go.
    fn place_anew(&mut self, slot: Slot, node: NodeId, view: &View) {
        if self.beyond.queue.standing(slot) != Standing::Nowhere {
            self.beyond.queue.remove(slot);
            self.place(slot, node, view);
        }
    }

    fn place_outdated(&mut self, nodes: usize, view: &View) {
        for slot in self.beyond.take_outdated(nodes) {
            if let Some(node) = view.slots.node(slot) {
                self.place_anew(slot, node, view);
            }
        }
    }

    /// Whether the slot is listed by an announced use.
    fn is_wanted(&self, slot: Slot) -> bool {
        matches!(self.beyond.queue.standing(slot), Standing::Beside(list) if usize::from(list.0) < WINDOW_MAX)
    }

    /// Whether rows fetched ahead may hold one slot more. The farther the window reaches the less is lost with a row that is not in it.
    fn has_room_ahead(&self, view: &View) -> bool {
        self.beyond.guard.has_room((view.window.reach() / WINDOW_MAX as f64).max(AHEAD_LEAST))
    }

    /// Asks for what moving the slot to another list reads.
    fn prefetch_move(&self, slot: Slot, node: NodeId, view: &View) {
        self.beyond.queue.prefetch(slot);
        view.slots.prefetch(slot);
        view.window.prefetch(node);
    }

    /// A slot that can go and whose next use is farther than a distance, the farthest first.
    fn farther_than(&self, distance: u32, view: &View) -> Option<Slot> {
        let mut lists = view.window.by_distance(self.beyond.queue.beside_occupied());
        while lists != 0 {
            let farthest = 63 - lists.leading_zeros();
            if farthest <= distance {
                return None;
            }
            let mut slots = self.beyond.queue.beside(uses_at(view.window.at(farthest))).take(STEPS);
            if let Some(slot) = slots.find(|&slot| view.is_evictable(slot)) {
                return Some(slot);
            }
            lists &= !(1 << farthest);
        }
        None
    }
}

/// The list of the slots whose next use is at a position.
fn uses_at(position: WindowPosition) -> Beside {
    Beside(position.0)
}

impl ReplacementPolicy for WindowBelady {
    fn reserve(&mut self, nodes: usize) {
        self.beyond.reserve(nodes);
        self.order.clear();
        self.order.reserve(nodes);
    }

    fn begin_minibatch(&mut self, view: &View) {
        self.beyond.begin_minibatch(view);
    }

    fn touch(&mut self, hits: &[(Slot, NodeId)], view: &View) {
        self.beyond.count_hits(hits);
        self.place_outdated(hits.len(), view);
    }

    fn miss(&mut self, nodes: &[NodeId], view: &View) {
        self.beyond.count_misses(nodes);
        self.place_outdated(nodes.len(), view);
    }

    /// Rows fetched ahead need no guard here, since announced rows are no victims of theirs: it only counts them.
    fn accepts(&self, origin: Origin) -> bool {
        self.beyond.accepts(origin) || origin == Origin::Ahead
    }

    fn victim(&mut self, candidate: NodeId, origin: Origin, view: &View) -> Option<Slot> {
        if origin == Origin::Ahead && !self.has_room_ahead(view) {
            return None;
        }
        let distance = match self.precedence(candidate, view) {
            Precedence::First(distance) => distance,
            Precedence::Wants(expected) => return self.beyond.victim_expected(candidate, origin, expected, view),
        };
        let lowest = self.beyond.lowest_below(f64::INFINITY, view);
        // A row fetched ahead of its minibatch costs no other announced row its slot: that one would be fetched once more. On demand it
        // may, for then it is in hand.
        lowest.or_else(|| self.farther_than(distance, view).filter(|_| origin != Origin::Ahead))
    }

    /// The sooner the next use the earlier: a row that is on its way in is not given up for a better one that comes after it. The others
    /// compete by count one by one: most of them are not worth being put in order.
    fn prefer(&mut self, candidates: &mut Vec<NodeId>, view: &View) {
        if candidates.len() != self.beyond.missed_scores().len() {
            return;
        }
        let least = self.beyond.least_score(view);
        self.order.clear();
        let mut kept = 0;
        for at in 0..candidates.len() {
            candidates.get(at + AHEAD).inspect(|&&coming| view.window.prefetch(coming));
            let node = candidates[at];
            match self.precedence(node, view) {
                Precedence::First(distance) => self.order.push((distance, node)),
                Precedence::Wants(expected) => {
                    if self.beyond.missed_scores()[at] + self.beyond.want(node) * expected >= least {
                        candidates[kept] = node;
                        kept += 1;
                    }
                }
            }
        }
        candidates.truncate(kept);
        self.order.sort_unstable();
        candidates.splice(0..0, self.order.iter().map(|&(_, node)| node));
    }

    fn insert(&mut self, slot: Slot, node: NodeId, origin: Origin, view: &View) {
        self.beyond.insert(slot, node, origin, view);
    }

    fn remove(&mut self, slot: Slot, node: NodeId) {
        self.beyond.remove(slot, node);
    }

    fn take_over(&mut self, slot: Slot, node: NodeId, wants: Option<f32>, view: &View) {
        self.beyond.adopt_counted(slot, node, wants);
        self.place(slot, node, view);
    }

    fn wants(&self, slot: Slot) -> Option<f32> {
        self.beyond.wants(slot)
    }

    fn likely_victims(&mut self, most: usize, slots: &mut Vec<Slot>) {
        self.beyond.likely_victims(most, slots);
    }

    fn prefetch(&self, node: NodeId) {
        self.beyond.prefetch(node);
    }

    fn filled(&mut self, slot: Slot, view: &View) {
        if let Some(node) = view.slots.node(slot) {
            self.place(slot, node, view);
        }
    }

    fn announced(&mut self, resident: &[(Slot, NodeId)], view: &View) {
        for ((slot, node), coming) in ahead(resident) {
            coming.inspect(|&(slot, node)| self.prefetch_move(slot, node, view));
            if !self.is_wanted(slot) {
                self.place_anew(slot, node, view);
            }
        }
    }

    fn retired(&mut self, position: WindowPosition, resident: &[(Slot, NodeId)], view: &View) {
        for ((slot, node), coming) in ahead(resident) {
            coming.inspect(|&(slot, node)| self.prefetch_move(slot, node, view));
            self.beyond.guard.end(slot);
            match self.beyond.queue.standing(slot) {
                Standing::Beside(list) if list != uses_at(position) => {}
                _ => self.place_anew(slot, node, view),
            }
        }
    }

    fn weigh(&mut self, weights: &[f32]) {
        self.beyond.weigh(weights);
    }

    fn wanted(&self, node: NodeId) -> Option<Wanted> {
        self.beyond.wanted(node)
    }

    fn bytes(&self) -> usize {
        self.beyond.bytes() + self.order.capacity() * size_of::<(u32, NodeId)>()
    }
}
