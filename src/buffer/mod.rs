//! The prefetch buffer's books: which node has which slot, who still reads it, and who is to give way. The bytes are the engine's.
//!
//! A minibatch costs its own nodes, never the buffer's size: scores decay lazily, pins are stamps, and window positions are bits.
//! The calls of a minibatch, in order: [`PrefetchBuffer::lookup`], then [`PrefetchBuffer::retire`] where it was announced, then
//! [`PrefetchBuffer::admit_missed`] (or [`PrefetchBuffer::admit`], row by row) for the rows that it fetches, then
//! [`PrefetchBuffer::end_minibatch`]. Bytes arrive whenever they do ([`PrefetchBuffer::filled`]), and a request that is over is
//! released.
//!
//! ```
//! use rudder::buffer::{BufferHints, Pin, PolicyConfig, PrefetchBuffer, Residency};
//! use rudder::{NodeId, PartitionBook};
//! let owners = PartitionBook::from_starts(vec![0, 100])?;
//! let hints = BufferHints { nodes: 100, halo: vec![], degree: vec![], owners };
//! let mut buffer = PrefetchBuffer::new(8, &PolicyConfig::named("lfu")?, hints)?;
//!
//! let mut found = Vec::new();
//! buffer.lookup(Pin(0), &[NodeId(7)], true, &mut found);
//! assert_eq!(found, [Residency::Absent]);
//! let slot = buffer.admit(NodeId(7)).expect("a slot is free");
//! buffer.end_minibatch(false, None, &mut Vec::new());
//! buffer.filled(slot);
//! buffer.release(Pin(1));
//! assert_eq!(buffer.residency(NodeId(7)), Residency::Ready(slot));
//! # Ok::<(), rudder::Error>(())
//! ```
#![forbid(unsafe_code)]

mod cohorts;
mod frequency;
mod halo;
mod policy;
mod slots;
mod switch;
mod tap;
#[cfg(test)]
mod tests;
mod window;

use crate::error::{Error, Result};
use crate::id::{NodeId, Slot};
use crate::node_table::{AHEAD, NodeTable, ahead};
use crate::partition::PartitionBook;
use cohorts::Cohorts;
use halo::Halo;
pub use policy::{LfuConfig, PolicyConfig, PrescConfig, RandomConfig, RudderConfig, Start};
use policy::{Origin, ReplacementPolicy, Swap, View};
use slots::{Occupancy, SlotTable};
use tap::Tap;
pub use tap::{Call, Event, Feed, Sample, Watched};
use window::Window;
pub use window::{WINDOW_MAX, WindowPosition};

/// Announced minibatches of a rank, from the nearest, whose rows may take slots from others. What is fetched earlier than its get takes holds a slot
/// for longer, and rows wanted before it are fetched once more for want of that slot: farther ones wait for slots that nobody has.
const NEAR: u32 = 2;

/// The most slots that a buffer may have.
pub const SLOTS_MAX: u32 = (1 << 30) - 1;

/// Number of a request; ascending. A slot that a request is to be copied from is pinned until that request is over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pin(pub u64);

/// Where a node's row is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Residency {
    /// Its bytes are in the slot.
    Ready(Slot),
    /// A get is on its way into the slot.
    Filling(Slot),
    /// Not in the buffer.
    Absent,
}

/// The answer to [`PrefetchBuffer::reserve`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reserve {
    /// Fetch the row into this slot.
    Slot(Slot),
    /// It is there, or a get is on its way.
    Here,
    /// Every slot that can go is worth more.
    NoRoom,
}

/// What a decided replacement did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Replaced {
    /// Slots that went to other nodes by the decision.
    pub rows: u32,
    /// It was decided but found nothing to replace.
    pub skipped: bool,
}

/// What the buffer is told of the graph.
#[derive(Clone, Debug)]
pub struct BufferHints {
    /// Nodes of the graph.
    pub nodes: u64,
    /// Remote nodes adjacent to the partition, ascending.
    pub halo: Vec<NodeId>,
    /// Their degrees, in the same order.
    pub degree: Vec<u32>,
    /// Who owns which node.
    pub owners: PartitionBook,
}

/// What has happened since the start; observed minibatches only, as for hits and misses. Where the ranks of a host share one buffer, these
/// are the minibatches of all of them, as far as they want nodes that this rank keeps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct BufferCounters {
    /// Observed minibatches.
    pub minibatches: u64,
    /// Wanted rows that were in the buffer or on their way there.
    pub hits: u64,
    /// Wanted rows that were not.
    pub misses: u64,
    /// Hits of halo nodes.
    pub halo_hits: u64,
    /// Misses of halo nodes.
    pub halo_misses: u64,
    /// Rows of the initial fill, and of one that a policy asks for later.
    pub initial: u64,
    /// Rows kept that a minibatch fetched anyway.
    pub admissions: u64,
    /// Rows kept that another rank of the host had fetched.
    #[serde(default)]
    pub adoptions: u64,
    /// Slots reserved for announced nodes.
    pub reservations: u64,
    /// Slots given to other nodes by decided replacements.
    pub replacements: u64,
    /// Rows pulled by quotas.
    pub pulled: u64,
    /// Rows that lost their slots to others.
    pub evictions: u64,
    /// Of these, rows fetched before anyone asked that never served.
    pub useless: u64,
    /// Slots freed because their gets failed.
    pub abandoned: u64,
    /// Times that another policy took over.
    #[serde(default)]
    pub policies: u64,
}

/// Where a buffer shows which rows it has, for other processes that read its slots in place.
pub trait Board: Send {
    /// The slot has the node's row from now on.
    fn publish(&mut self, slot: Slot, node: NodeId);

    /// The slot, which had the node's row, is about to be written: who copies from it is to find out.
    fn withdraw(&mut self, slot: Slot, node: NodeId);
}

/// Slots, the index of the nodes in them, the window, and the policy.
pub struct PrefetchBuffer {
    view: View,
    index: NodeTable<Slot>,
    policy: Box<dyn ReplacementPolicy>,
    cohorts: Option<Cohorts>,
    weighs_owners: bool,
    board: Option<Box<dyn Board>>,
    /// Where a controller watches.
    tap: Option<Tap>,
    counters: BufferCounters,
    /// Rows to fetch before the first minibatch, until [`PrefetchBuffer::initial_fill`] hands them out.
    initial: Vec<NodeId>,
    /// The open minibatch's request.
    open: Pin,
    /// Whether the open minibatch is observed.
    observed: bool,
    /// Where each node of the open minibatch is.
    places: Vec<Option<Slot>>,
    hits: Vec<(Slot, NodeId)>,
    missed: Vec<NodeId>,
    swaps: Vec<Swap>,
    /// Slots that are likely to change hands next.
    likely: Vec<Slot>,
}

impl PrefetchBuffer {
    /// A buffer of so many slots, all empty.
    ///
    /// # Errors
    /// The hints do not fit together, or a setting of the policy is out of its bounds.
    pub fn new(slots: u32, policy: &PolicyConfig, hints: BufferHints) -> Result<Self> {
        if hints.degree.len() != hints.halo.len() {
            let (degrees, nodes) = (hints.degree.len(), hints.halo.len());
            return Err(Error::argument(format!("{degrees} degrees for {nodes} halo nodes; give one each")));
        }
        if slots > SLOTS_MAX {
            return Err(Error::config(format!("{slots} slots; the most are {SLOTS_MAX}")));
        }
        let halo = Halo::new(hints.nodes, &hints.halo)?;
        let mut built = policy.build(slots, &hints)?;
        let mut initial = Vec::new();
        built.initial(slots, &hints, &mut initial);
        Ok(Self {
            view: View { slots: SlotTable::new(slots), window: Window::new(), halo },
            index: NodeTable::with_capacity(slots as usize),
            policy: built,
            cohorts: policy.tracks_cohorts().then(|| Cohorts::new(hints.owners)),
            weighs_owners: policy.weighs_owners(),
            board: None,
            tap: None,
            counters: BufferCounters::default(),
            initial,
            open: Pin(0),
            observed: false,
            places: Vec::new(),
            hits: Vec::new(),
            missed: Vec::new(),
            swaps: Vec::new(),
            likely: Vec::with_capacity(AHEAD),
        })
    }

    /// Shows on `board` from now on which slots have rows; none has yet. So many ranks use the buffer, each of which has its own next minibatch.
    pub fn show_on(&mut self, board: Box<dyn Board>, ranks: u32) {
        self.board = Some(board);
        self.view.window.serve(ranks);
    }

    /// Number of slots.
    pub fn slots(&self) -> u32 {
        self.view.slots.len()
    }

    /// Replaces `fetches` by the nodes that the policy wants resident before the first minibatch, each with a reserved slot. Once.
    pub fn initial_fill(&mut self, fetches: &mut Vec<(NodeId, Slot)>) {
        fetches.clear();
        for node in std::mem::take(&mut self.initial) {
            if self.index.get(node).is_some() {
                continue;
            }
            let Some(slot) = self.view.slots.take_free(false) else { break };
            self.settle(slot, node, Origin::Initial);
            fetches.push((node, slot));
        }
        self.counters.initial += fetches.len() as u64;
    }

    /// Opens a minibatch: time passes, hits are scored, misses noted. Replaces `found` by one residency a node, in order; ready
    /// slots are pinned. The nodes are unique and remote. A minibatch that is not `observed` is served, neither scored nor admitted.
    pub fn lookup(&mut self, pin: Pin, nodes: &[NodeId], observed: bool, found: &mut Vec<Residency>) {
        (self.open, self.observed) = (pin, observed);
        self.hits.clear();
        self.missed.clear();
        found.clear();
        if self.missed.capacity() < nodes.len() {
            self.missed.reserve(nodes.len());
            self.policy.reserve(self.missed.capacity());
        }
        self.hits.reserve(nodes.len());
        found.reserve(nodes.len());
        self.places.clear();
        self.places.extend(ahead(nodes).map(|(node, coming)| {
            coming.inspect(|&coming| self.index.prefetch(coming));
            self.index.get(node)
        }));
        for (at, &node) in nodes.iter().enumerate() {
            // Any slot's state will do for the absent, if it spares a branch that is taken as often as not.
            let coming = self.places.get(at + AHEAD).copied().flatten();
            self.view.slots.prefetch(coming.unwrap_or_default());
            found.push(self.open_one(self.places[at], node));
        }
        if observed {
            self.score(nodes);
        }
    }

    /// Notes a node of the open minibatch, and pins its slot if it is ready.
    #[inline]
    fn open_one(&mut self, slot: Option<Slot>, node: NodeId) -> Residency {
        let Some(slot) = slot else {
            self.missed.push(node);
            return Residency::Absent;
        };
        self.view.slots.set_used(slot);
        self.hits.push((slot, node));
        if self.view.slots.occupancy(slot) == Occupancy::Filling {
            return Residency::Filling(slot);
        }
        self.view.slots.pin(slot, self.open);
        Residency::Ready(slot)
    }

    /// Tells the policy, the cohorts and the counters of the open minibatch.
    fn score(&mut self, nodes: &[NodeId]) {
        self.tell_lookup(nodes);
        self.policy.begin_minibatch(&self.view);
        self.policy.touch(&self.hits, &self.view);
        if let Some(cohorts) = &mut self.cohorts {
            cohorts.open_minibatch();
            self.missed.iter().for_each(|&node| cohorts.note(node, self.policy.wanted(node)));
        }
        self.policy.miss(&self.missed, &self.view);
        let counters = &mut self.counters;
        counters.minibatches += 1;
        counters.hits += self.hits.len() as u64;
        counters.misses += self.missed.len() as u64;
        counters.halo_hits += self.hits.iter().filter(|(_, node)| self.view.halo.contains(*node)).count() as u64;
        counters.halo_misses += self.missed.iter().filter(|node| self.view.halo.contains(**node)).count() as u64;
    }

    /// A slot for a row that the open minibatch fetches anyway, or `None` where it is not worth one. The slot is filling until
    /// [`PrefetchBuffer::filled`].
    pub fn admit(&mut self, node: NodeId) -> Option<Slot> {
        if !self.observed || self.index.get(node).is_some() {
            return None;
        }
        let slot = self.settle_if_worth(node, Origin::Demand)?;
        self.counters.admissions += 1;
        Some(slot)
    }

    /// Replaces `admitted` by the rows that are worth a slot among all that the open minibatch missed, the worthiest first.
    ///
    /// With `over_hits`, rows that this minibatch hits may give way too: they serve it and are not wanted again. Their slots are still
    /// pinned, so the new row may be written only once [`PrefetchBuffer::is_pinned`] says no, such as when the request is over; a
    /// slot that cannot wait that long is to be abandoned.
    pub fn admit_missed(&mut self, over_hits: bool, admitted: &mut Vec<(NodeId, Slot)>) {
        admitted.clear();
        if !self.observed {
            return;
        }
        self.view.slots.spare(over_hits.then_some(self.open));
        let mut missed = std::mem::take(&mut self.missed);
        // All of a minibatch may be missed, one day.
        admitted.reserve(missed.capacity());
        self.policy.prefer(&mut missed, &self.view);
        for block in missed.chunks(AHEAD) {
            self.prefetch_admission(block);
            admitted.extend(block.iter().filter_map(|&node| self.admit(node).map(|slot| (node, slot))));
        }
        self.missed = missed;
        self.view.slots.spare(None);
    }

    /// A slot for a row that another rank has fetched for its own minibatch and hands over, or `None` where it is not worth one. No request copies
    /// from the slot, and its board says that it has no row, until [`PrefetchBuffer::filled`].
    pub fn adopt(&mut self, node: NodeId) -> Option<Slot> {
        if self.index.get(node).is_some() {
            return None;
        }
        let slot = self.settle_if_worth(node, Origin::Demand)?;
        self.counters.adoptions += 1;
        Some(slot)
    }

    /// Asks for what admitting these nodes will read, of them and of those that are likely to give way.
    fn prefetch_admission(&mut self, nodes: &[NodeId]) {
        self.likely.clear();
        if !self.view.slots.has_free() {
            self.policy.likely_victims(nodes.len(), &mut self.likely);
        }
        self.likely.iter().for_each(|&slot| self.view.slots.prefetch(slot));
        let leaving = self.likely.iter().filter_map(|&slot| self.view.slots.node(slot));
        for node in nodes.iter().copied().chain(leaving) {
            self.index.prefetch(node);
            self.policy.prefetch(node);
        }
    }

    /// Closes the minibatch: replaces `fetches` by what a decided replacement and the standing quotas (rows by
    /// [`crate::controller::Cohort::index`]) bring, each with its filling slot. Earlier requests, and this one, may still read from
    /// such a slot: nothing may be written to it while [`PrefetchBuffer::is_pinned`].
    pub fn end_minibatch(
        &mut self,
        replace: bool,
        quotas: Option<&[u32]>,
        fetches: &mut Vec<(NodeId, Slot)>,
    ) -> Replaced {
        fetches.clear();
        if !self.observed {
            return Replaced::default();
        }
        self.observed = false;
        let mut swaps = std::mem::take(&mut self.swaps);
        let skipped = self.policy.replace(replace, &self.view, &mut swaps);
        let mut replaced = Replaced { rows: 0, skipped };
        for Swap { victim, node } in swaps.drain(..) {
            if let Some(victim) = victim {
                self.evict(victim);
            }
            let Some(slot) = victim.or_else(|| self.view.slots.take_free(true)) else { continue };
            self.settle(slot, node, Origin::Replacement);
            fetches.push((node, slot));
            replaced.rows += 1;
        }
        self.swaps = swaps;
        self.counters.replacements += u64::from(replaced.rows);
        self.bring(fetches);
        if let Some(quotas) = quotas {
            self.pull(quotas, fetches);
        }
        if let Some(cohorts) = &mut self.cohorts {
            cohorts.close_minibatch(
                |node| self.view.window.next_use(node).is_some(),
                |node| self.index.get(node).is_none(),
            );
        }
        replaced
    }

    /// Makes resident what the policy has come to want so, at most as many nodes as the minibatch had.
    fn bring(&mut self, fetches: &mut Vec<(NodeId, Slot)>) {
        for _ in 0..self.places.len() {
            let Some(node) = self.policy.brings() else { return };
            let Some(slot) = self.view.slots.take_free(false) else { return };
            self.settle(slot, node, Origin::Initial);
            fetches.push((node, slot));
            self.counters.initial += 1;
        }
    }

    /// Pulls up to each cohort's quota of its candidates.
    fn pull(&mut self, quotas: &[u32], fetches: &mut Vec<(NodeId, Slot)>) {
        let Some(mut cohorts) = self.cohorts.take() else { return };
        for (cohort, &quota) in quotas.iter().enumerate().take(cohorts.count()).filter(|(_, quota)| **quota > 0) {
            let mut left = quota;
            while left > 0 {
                let Some(node) = cohorts.pull(cohort) else { break };
                // What this very minibatch missed is on its way already, and had its chance of being admitted.
                let fetched_now = self.policy.wanted(node).is_some_and(|wanted| wanted.minibatches_ago == 0);
                if fetched_now || self.index.get(node).is_some() {
                    continue;
                }
                let Some(slot) = self.settle_if_worth(node, Origin::Quota) else { break };
                fetches.push((node, slot));
                self.counters.pulled += 1;
                left -= 1;
            }
        }
        self.cohorts = Some(cohorts);
    }

    /// Notes what a minibatch to come will want; `None` where the window is full.
    pub fn announce(&mut self, nodes: &[NodeId]) -> Option<WindowPosition> {
        let position = self.view.window.open()?;
        self.view.window.enter(position, nodes);
        self.tell_announced(position, nodes);
        self.collect_resident(nodes);
        self.policy.announced(&self.hits, &self.view);
        Some(position)
    }

    /// How many more minibatches can be announced before the oldest is closed.
    pub fn window_room(&self) -> usize {
        self.view.window.room()
    }

    /// The position that was announced first of those not closed.
    pub fn oldest_announced(&self) -> Option<WindowPosition> {
        self.view.window.oldest()
    }

    /// Closes a position, gathered or forgotten; the nodes are those announced. Of a minibatch that is gathered, call it between
    /// `lookup` and the first `admit`: what it still wanted would pass for a use to come.
    pub fn retire(&mut self, position: WindowPosition, nodes: &[NodeId]) {
        if !self.view.window.is_open(position) {
            return;
        }
        self.view.window.close(position, nodes);
        self.tell_retired(position, nodes);
        self.collect_resident(nodes);
        self.policy.retired(position, &self.hits, &self.view);
    }

    fn collect_resident(&mut self, nodes: &[NodeId]) {
        self.hits.clear();
        for (node, coming) in ahead(nodes) {
            coming.inspect(|&coming| self.index.prefetch(coming));
            self.hits.extend(self.index.get(node).map(|slot| (slot, node)));
        }
    }

    /// A slot for a node, announced at an open position, that is to be fetched ahead.
    pub fn reserve(&mut self, node: NodeId, position: WindowPosition) -> Reserve {
        if self.index.get(node).is_some() {
            return Reserve::Here;
        }
        let Some(distance) = self.view.window.next_use(node).filter(|_| self.view.window.is_open(position)) else {
            return Reserve::NoRoom;
        };
        if !self.view.window.is_within(distance, NEAR) && !self.view.slots.has_free() {
            return Reserve::NoRoom;
        }
        match self.settle_if_worth(node, Origin::Ahead) {
            Some(slot) => {
                self.counters.reservations += 1;
                Reserve::Slot(slot)
            }
            None => Reserve::NoRoom,
        }
    }

    /// The slot's bytes are in place.
    pub fn filled(&mut self, slot: Slot) {
        if self.is(slot, Occupancy::Filling) {
            self.view.slots.set_ready(slot);
            self.policy.filled(slot, &self.view);
            if let (Some(board), Some(node)) = (&mut self.board, self.view.slots.node(slot)) {
                board.publish(slot, node);
            }
        }
    }

    /// The slot's get failed: it is free again.
    pub fn abandon(&mut self, slot: Slot) {
        if self.is(slot, Occupancy::Filling) {
            self.unsettle(slot);
            self.view.slots.put_free(slot);
            self.counters.abandoned += 1;
        }
    }

    /// All requests before this one are over.
    pub fn release(&mut self, oldest_live: Pin) {
        self.view.slots.release(oldest_live);
    }

    /// Whether a request that is not over copies from the slot.
    pub fn is_pinned(&self, slot: Slot) -> bool {
        slot.0 < self.slots() && self.view.slots.is_pinned(slot)
    }

    /// The node whose row the slot has or will have.
    pub fn node(&self, slot: Slot) -> Option<NodeId> {
        self.view.slots.node(slot)
    }

    /// Where the node's row is; not scored.
    #[inline]
    pub fn residency(&self, node: NodeId) -> Residency {
        match self.index.get(node) {
            Some(slot) if self.view.slots.occupancy(slot) == Occupancy::Ready => Residency::Ready(slot),
            Some(slot) => Residency::Filling(slot),
            None => Residency::Absent,
        }
    }

    /// Whether wants are weighed by owner, so that a controller is to be shown the owners' loads.
    pub fn weighs_owners(&self) -> bool {
        self.weighs_owners
    }

    /// A want of each partition's nodes, of before too, counts so much in the order of what is kept; a partition that is not named, or with what is no
    /// positive number, counts as before.
    pub fn weigh(&mut self, weights: &[f32]) {
        self.policy.weigh(weights);
    }

    /// What has happened so far.
    pub fn counters(&self) -> BufferCounters {
        self.counters
    }

    /// Misses of the minibatch just closed by [`crate::controller::Cohort::index`]; empty unless the policy tracks cohorts.
    pub fn cohort_misses(&self) -> &[u32] {
        self.cohorts.as_ref().map_or(&[], Cohorts::misses)
    }

    /// Bytes of these books, rows not included.
    pub fn bytes(&self) -> usize {
        self.view.slots.bytes()
            + self.index.bytes()
            + self.view.window.bytes()
            + self.view.halo.bytes()
            + self.policy.bytes()
            + self.cohorts.as_ref().map_or(0, Cohorts::bytes)
            + self.places.capacity() * size_of::<Option<Slot>>()
            + self.hits.capacity() * size_of::<(Slot, NodeId)>()
            + self.missed.capacity() * size_of::<NodeId>()
            + self.swaps.capacity() * size_of::<Swap>()
            + self.likely.capacity() * size_of::<Slot>()
    }

    fn is(&self, slot: Slot, occupancy: Occupancy) -> bool {
        slot.0 < self.slots() && self.view.slots.occupancy(slot) == occupancy
    }

    /// Gives the node a free slot or a victim's, if the policy thinks it worth one.
    fn settle_if_worth(&mut self, node: NodeId, origin: Origin) -> Option<Slot> {
        if !self.policy.accepts(origin) {
            return None;
        }
        let slot = match self.view.slots.take_free(false) {
            Some(slot) => slot,
            None => {
                let victim = self.policy.victim(node, origin, &self.view)?;
                self.evict(victim);
                victim
            }
        };
        self.settle(slot, node, origin);
        Some(slot)
    }

    /// Gives an empty slot to a node that has none.
    fn settle(&mut self, slot: Slot, node: NodeId, origin: Origin) {
        self.view.slots.occupy(slot, node, origin != Origin::Demand);
        *self.index.entry(node) = slot;
        self.policy.insert(slot, node, origin, &self.view);
    }

    /// Takes a slot from its node; whether the row was fetched ahead in vain.
    fn unsettle(&mut self, slot: Slot) -> bool {
        let had_row = self.view.slots.occupancy(slot) == Occupancy::Ready;
        let (node, unused) = self.view.slots.vacate(slot);
        if let Some(board) = self.board.as_mut().filter(|_| had_row) {
            board.withdraw(slot, node);
        }
        self.index.remove(node);
        self.policy.remove(slot, node);
        unused
    }

    fn evict(&mut self, slot: Slot) {
        self.counters.useless += u64::from(self.unsettle(slot));
        self.counters.evictions += 1;
    }
}
