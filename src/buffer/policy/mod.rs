//! Which nodes keep their slots: one file a policy, one line each in [`PolicyConfig`] and [`PolicyConfig::build`].
//!
//! A policy sees slots and nodes, never bytes, and never gives a slot away itself: it names victims, the buffer moves the slots and
//! tells the policy. So whether a slot may go at all (its bytes in place, no reader left) is decided in one place.

mod cache;
mod changing;
mod degree;
mod guard;
mod lfu;
mod lists;
mod lru;
mod off;
mod presc;
mod queue;
mod random;
mod rudder;
mod s3fifo;
mod sieve;
mod weights;
mod window;
mod wtinylfu;

use super::BufferHints;
use super::halo::Halo;
use super::slots::{Occupancy, SlotTable};
use super::window::{Window, WindowPosition};
use crate::error::{Error, Result};
use crate::id::{NodeId, Slot};
use cache::Cache;
pub(super) use changing::Changing;
pub use lfu::LfuConfig;
pub use presc::PrescConfig;
pub use random::RandomConfig;
pub use rudder::{RudderConfig, Start};
use serde::{Deserialize, Serialize};

/// The policy of a buffer and its settings.
///
/// ```
/// use rudder::buffer::{LfuConfig, PolicyConfig};
///
/// for name in PolicyConfig::NAMES {
///     assert_eq!(PolicyConfig::named(name)?.name(), name);
/// }
/// assert_eq!(PolicyConfig::named("lfu:64")?, PolicyConfig::Lfu(LfuConfig { half_life: 64, ..LfuConfig::default() }));
/// assert!(PolicyConfig::named("best").unwrap_err().to_string().contains("choose one of"));
/// # Ok::<(), rudder::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "snake_case")]
pub enum PolicyConfig {
    /// No retention: slots are landing room for announced rows.
    Off,
    /// The halo nodes of highest degree, for ever.
    Degree,
    /// Halo nodes drawn at random, for ever.
    Random(RandomConfig),
    /// The most wanted nodes of a warm-up, for ever after.
    Presc(PrescConfig),
    /// The rows that were used last; whatever is fetched is admitted, as in the three that follow.
    Lru,
    /// SIEVE: in the order of their coming, those that were hit once more than the others.
    Sieve,
    /// S3-FIFO: those that are wanted again soon after they went.
    #[serde(rename = "s3fifo")]
    S3Fifo,
    /// W-TinyLFU: the last few, and of the others those that are wanted most often lately.
    #[serde(rename = "wtinylfu")]
    WTinyLfu,
    /// The most wanted rows, counted with decay; whatever is fetched may be admitted.
    Lfu(LfuConfig),
    /// MassiveGNN's scores, replacing when told to, as published.
    Rudder(RudderConfig),
    /// Belady's choice within the announced minibatches, the most wanted rows beyond.
    Window(LfuConfig),
}

impl PolicyConfig {
    /// The names that a configuration can give.
    pub const NAMES: [&'static str; 11] =
        ["off", "degree", "random", "presc", "lru", "sieve", "s3fifo", "wtinylfu", "lfu", "rudder", "window"];

    /// The policy of a name, with default settings; `lfu:N` and `window:N` have counts that halve over N minibatches, and `rudder:A` takes the share A
    /// off an eviction score.
    ///
    /// # Errors
    /// There is no policy of that name.
    pub fn named(name: &str) -> Result<Self> {
        if let Some((kind @ ("lfu" | "window"), minibatches)) = name.split_once(':') {
            let half_life = minibatches.parse().map_err(|_| {
                Error::config(format!(
                    "policy {name:?}: {minibatches:?} is no number of minibatches over which counts halve"
                ))
            })?;
            let config = LfuConfig { half_life, ..LfuConfig::default() };
            return Ok(if kind == "lfu" { Self::Lfu(config) } else { Self::Window(config) });
        }
        if let Some(("rudder", share)) = name.split_once(':') {
            let alpha = share
                .parse()
                .map_err(|_| Error::config(format!("policy {name:?}: {share:?} is no share between 0 and 1")))?;
            return Ok(Self::Rudder(RudderConfig { alpha, ..RudderConfig::default() }));
        }
        Ok(match name {
            "off" => Self::Off,
            "degree" => Self::Degree,
            "random" => Self::Random(RandomConfig::default()),
            "presc" => Self::Presc(PrescConfig::default()),
            "lru" => Self::Lru,
            "sieve" => Self::Sieve,
            "s3fifo" => Self::S3Fifo,
            "wtinylfu" => Self::WTinyLfu,
            "lfu" => Self::Lfu(LfuConfig::default()),
            "rudder" => Self::Rudder(RudderConfig::default()),
            "window" => Self::Window(LfuConfig::default()),
            _ => {
                return Err(Error::config(format!(
                    "policy {name:?} is unknown; choose one of {}",
                    Self::NAMES.join(", ")
                )));
            }
        })
    }

    /// Its name in a configuration.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Degree => "degree",
            Self::Random(_) => "random",
            Self::Presc(_) => "presc",
            Self::Lru => "lru",
            Self::Sieve => "sieve",
            Self::S3Fifo => "s3fifo",
            Self::WTinyLfu => "wtinylfu",
            Self::Lfu(_) => "lfu",
            Self::Rudder(_) => "rudder",
            Self::Window(_) => "window",
        }
    }

    /// Refuses a policy from which a buffer that runs cannot change to others and back, keeping its rows: those that fetch a set of their own.
    ///
    /// # Errors
    /// It is such a policy.
    pub fn check_follows(&self) -> Result<()> {
        match self {
            Self::Off | Self::Random(_) | Self::Presc(_) => Err(Error::config(format!(
                "policy {} cannot give its rows to another while it runs, as this controller has it do: choose policy lfu",
                self.name()
            ))),
            _ => Ok(()),
        }
    }

    /// Whether misses are tracked by cohort, and quotas obeyed.
    pub fn tracks_cohorts(&self) -> bool {
        matches!(self, Self::Lfu(config) | Self::Window(config) if config.cohorts)
    }

    /// Whether wants are weighed by owner, and owners' loads reported.
    pub fn weighs_owners(&self) -> bool {
        matches!(self, Self::Lfu(config) | Self::Window(config) if config.owners)
    }

    pub(super) fn build(&self, slots: u32, hints: &BufferHints) -> Result<Box<dyn ReplacementPolicy>> {
        Ok(match self {
            Self::Off => Box::new(off::Off::new(slots)),
            Self::Degree => Box::new(degree::Degree::new(slots, hints)),
            Self::Random(config) => Box::new(random::Random::new(config)),
            Self::Presc(config) => Box::new(presc::Presc::new(config, slots)?),
            Self::Lru => Box::new(Cache::new(slots, lru::Lru::new(slots))),
            Self::Sieve => Box::new(Cache::new(slots, sieve::Sieve::new(slots))),
            Self::S3Fifo => Box::new(Cache::new(slots, s3fifo::S3Fifo::new(slots))),
            Self::WTinyLfu => Box::new(Cache::new(slots, wtinylfu::WTinyLfu::new(slots, hints))),
            Self::Lfu(config) => Box::new(lfu::Lfu::new(config, slots, hints)?),
            Self::Rudder(config) => Box::new(rudder::Rudder::new(config, slots, hints)?),
            Self::Window(config) => Box::new(window::WindowBelady::new(config, slots, hints)?),
        })
    }
}

/// Why a row gets a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// The policy wants it resident, from the start or once it has learnt so.
    Initial,
    /// A minibatch fetches it anyway.
    Demand,
    /// An announced minibatch will want it.
    Ahead,
    /// A cohort's quota pulls it.
    Quota,
    /// A decided replacement brings it.
    Replacement,
}

/// What a policy may know about the buffer.
pub(super) struct View {
    pub(super) slots: SlotTable,
    pub(super) window: Window,
    pub(super) halo: Halo,
}

impl View {
    /// Whether the slot can go to another node at once.
    #[inline]
    pub(super) fn is_evictable(&self, slot: Slot) -> bool {
        self.slots.is_evictable(slot)
    }

    #[inline]
    pub(super) fn is_ready(&self, slot: Slot) -> bool {
        self.slots.occupancy(slot) == Occupancy::Ready
    }
}

/// One slot given to another node by a decided replacement.
#[derive(Clone, Copy, Debug)]
pub(super) struct Swap {
    /// The slot that changes hands, or `None` for a free one.
    pub(super) victim: Option<Slot>,
    pub(super) node: NodeId,
}

/// How lately and how often a node was wanted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted {
    /// Decayed count.
    pub(super) score: f32,
    /// Minibatches since the last want.
    pub(super) minibatches_ago: u32,
}

/// A replacement policy. Its calls within a minibatch: `begin_minibatch`, `touch`, `miss`, then `victim`, `insert` and `remove` as
/// rows are admitted, then `replace` and `brings`. What a policy does not say is that of a set which stays as it is.
pub(super) trait ReplacementPolicy: Send {
    /// Nodes that it wants resident before the first minibatch.
    fn initial(&mut self, _slots: u32, _hints: &BufferHints, _nodes: &mut Vec<NodeId>) {}

    /// A minibatch may have so many nodes from now on: what is kept of each of them takes its room before it is needed.
    fn reserve(&mut self, _nodes: usize) {}

    /// One more minibatch begins.
    fn begin_minibatch(&mut self, _view: &View) {}

    /// The minibatch found these, ready or filling.
    fn touch(&mut self, _hits: &[(Slot, NodeId)], _view: &View) {}

    /// The minibatch did not find these.
    fn miss(&mut self, _nodes: &[NodeId], _view: &View) {}

    /// Whether rows of this origin compete for slots at all; those of the initial fill and of replacements have theirs already.
    fn accepts(&self, _origin: Origin) -> bool {
        false
    }

    /// The slot that the candidate is to have, or `None` where every slot that may go is worth more. Asked when none is free.
    fn victim(&mut self, _candidate: NodeId, _origin: Origin, _view: &View) -> Option<Slot> {
        None
    }

    /// Puts the candidates that are to be asked for first in front, and may drop those that no slot would be given to. The candidates are
    /// the nodes of the last `miss`, in order.
    fn prefer(&mut self, _candidates: &mut Vec<NodeId>, _view: &View) {}

    /// Appends slots that `victim` is likely to name next, and asks for what it will read of them.
    fn likely_victims(&mut self, _most: usize, _slots: &mut Vec<Slot>) {}

    /// Asks for what moving the node in or out reads.
    fn prefetch(&self, _node: NodeId) {}

    /// The slot is now the node's; its bytes are still to come.
    fn insert(&mut self, _slot: Slot, _node: NodeId, _origin: Origin, _view: &View) {}

    /// The slot is no longer the node's.
    fn remove(&mut self, _slot: Slot, _node: NodeId) {}

    /// The slot's bytes are in place.
    fn filled(&mut self, _slot: Slot, _view: &View) {}

    /// Resident nodes that a further minibatch was announced to want.
    fn announced(&mut self, _resident: &[(Slot, NodeId)], _view: &View) {}

    /// Resident nodes of the minibatch that was at `position` and is no longer in the window.
    fn retired(&mut self, _position: WindowPosition, _resident: &[(Slot, NodeId)], _view: &View) {}

    /// Closes a minibatch; where `decided`, fills `swaps` with what a replacement changes. Returns whether it was decided in vain.
    fn replace(&mut self, decided: bool, _view: &View, _swaps: &mut Vec<Swap>) -> bool {
        decided
    }

    /// The next node that it has come to want resident, in a slot that is free: fetched like those of the initial fill, once it is inserted.
    fn brings(&self) -> Option<NodeId> {
        None
    }

    /// A want of each partition's nodes counts so much beside the others'.
    fn weigh(&mut self, _weights: &[f32]) {}

    /// What it remembers of a node that is not resident.
    fn wanted(&self, _node: NodeId) -> Option<Wanted> {
        None
    }

    /// The slot has had the node's row under another policy, and is this one's from now on; that one knew of so many wants, if it counts.
    fn take_over(&mut self, slot: Slot, node: NodeId, _wants: Option<f32>, view: &View) {
        let announced = view.window.next_use(node).is_some() && self.accepts(Origin::Ahead);
        self.insert(slot, node, if announced { Origin::Ahead } else { Origin::Demand }, view);
        if view.is_ready(slot) {
            self.filled(slot, view);
        }
    }

    /// How often the slot's node was wanted, decayed, where that is counted.
    fn wants(&self, _slot: Slot) -> Option<f32> {
        None
    }

    /// Begins in the place of the policy before, of a buffer whose minibatches had so many nodes at most.
    fn follow(&mut self, _before: Box<dyn ReplacementPolicy>, _largest: usize) {}

    /// The policy before this one, once no slot is its own any more.
    fn take_left(&mut self) -> Option<Box<dyn ReplacementPolicy>> {
        None
    }

    /// Bytes that it holds.
    fn bytes(&self) -> usize;
}
