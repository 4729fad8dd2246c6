//! What simulated ranks share: a clock, links and exported regions.

use super::SimTransport;
use crate::id::Rank;
use crate::memory::{Memory, Version};
use rand::{Rng, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How a simulated network behaves.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SimConfig {
    /// From a post to its first byte.
    pub latency: Duration,
    /// What each ordered pair of ranks can move, in bytes a second; 0 is no limit.
    pub bytes_per_second: u64,
    /// The most that chance adds to a part's arrival: parts of a batch, and batches, overtake each other within it.
    pub jitter: Duration,
    /// Most rows that arrive at once; larger batches complete in parts.
    pub part_rows: usize,
    /// What chance is drawn from.
    pub seed: u64,
    /// With nothing in flight, a waiting poll blocks for its waker in real time instead of advancing the clock: for engines, whose
    /// idle threads would run the clock away.
    pub idle_blocks: bool,
}

impl Default for SimConfig {
    /// 5 us, 10 Gbit/s, no jitter.
    fn default() -> Self {
        Self {
            latency: Duration::from_micros(5),
            bytes_per_second: 1_250_000_000,
            jitter: Duration::ZERO,
            part_rows: 256,
            seed: 0,
            idle_blocks: false,
        }
    }
}

/// The network that the simulated ranks of a process share.
#[derive(Clone)]
pub struct SimNetwork {
    pub(super) config: SimConfig,
    state: Arc<Mutex<State>>,
}

pub(super) struct State {
    pub(super) now: Duration,
    chance: Xoshiro256PlusPlus,
    next_region: u64,
    regions: HashMap<(Rank, u64), Export>,
    /// When each link, from owner to reader, is free again.
    link_free: HashMap<(Rank, Rank), Duration>,
}

/// A region that simulated peers can read.
#[derive(Clone)]
pub(super) struct Export {
    pub(super) memory: Arc<Memory>,
    pub(super) version: Version,
}

impl SimNetwork {
    /// A network without ranks, at time 0.
    ///
    /// ```
    /// use rudder::transport::sim::{SimConfig, SimNetwork};
    /// use rudder::transport::{Transport, Wait};
    /// let network = SimNetwork::new(SimConfig::default());
    /// let transport = network.transport(rudder::Rank(0));
    /// let hour = std::time::Duration::from_secs(3600);
    /// transport.channel()?.poll(&mut Vec::new(), Wait::For(hour))?;
    /// assert_eq!(network.now(), hour);
    /// # Ok::<(), rudder::Error>(())
    /// ```
    pub fn new(config: SimConfig) -> Self {
        let state = State {
            now: Duration::ZERO,
            chance: Xoshiro256PlusPlus::seed_from_u64(config.seed),
            next_region: 1,
            regions: HashMap::new(),
            link_free: HashMap::new(),
        };
        Self { config, state: Arc::new(Mutex::new(state)) }
    }

    /// The virtual time since the network began.
    pub fn now(&self) -> Duration {
        self.lock().now
    }

    /// A rank's way into the network.
    pub fn transport(&self, rank: Rank) -> SimTransport {
        SimTransport::new(self.clone(), rank)
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// When a part that is posted now arrives: the link sends one part after another, and chance delays each.
    pub(super) fn arrival(&mut self, config: &SimConfig, link: (Rank, Rank), bytes: u64) -> Duration {
        let sending = match config.bytes_per_second {
            0 => Duration::ZERO,
            rate => Duration::from_nanos((u128::from(bytes) * 1_000_000_000 / u128::from(rate)) as u64),
        };
        let free = self.link_free.entry(link).or_default();
        // A clock that a wait without end has run to its last moment stands still there.
        *free = (*free).max(self.now).saturating_add(sending);
        let late = self.chance.random_range(0..=config.jitter.as_nanos() as u64);
        free.saturating_add(config.latency).saturating_add(Duration::from_nanos(late))
    }

    pub(super) fn export(&mut self, owner: Rank, export: Export) -> u64 {
        let id = self.next_region;
        self.next_region += 1;
        self.regions.insert((owner, id), export);
        id
    }

    pub(super) fn exported(&self, owner: Rank, id: u64) -> Option<&Export> {
        self.regions.get(&(owner, id))
    }

    pub(super) fn withdraw(&mut self, owner: Rank, id: u64) {
        self.regions.remove(&(owner, id));
    }

    pub(super) fn withdraw_all(&mut self, owner: Rank) {
        self.regions.retain(|(rank, _), _| *rank != owner);
    }
}
