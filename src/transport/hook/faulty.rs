//! What goes wrong with transports, on purpose and by seed.
//!
//! Rows that succeed are moved by the inner transport; the others never reach it. Delays are counted in polls, so that a schedule is the
//! same in virtual and in real time.

use super::pass_through;
use crate::error::{Result, TransferError};
use crate::id::Rank;
use crate::memory::{Access, Memory, Region};
use crate::transport::{
    BatchId, Capabilities, Channel, Completion, Fenced, MappedRegion, RemoteRegion, RowBatch, Transport, Wait, Waker,
};
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// While something is held back, a poll waits no longer than this, so that its turn comes.
const HELD_WAIT_MAX: Duration = Duration::from_millis(1);

/// How often each fault happens: probabilities from 0 to 1.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct FaultConfig {
    /// What chance is drawn from; each channel draws from a stream of its own.
    pub seed: u64,
    /// A post's last rows never end, until the peer is aborted.
    pub drop: f64,
    /// A post's last rows fail.
    pub fail: f64,
    /// A post is refused as if the channel were full.
    pub refuse: f64,
    /// Fewer rows of a post are accepted than the inner channel would take.
    pub truncate: f64,
    /// A completion comes in two parts.
    pub partial: f64,
    /// A completion is held back.
    pub delay: f64,
    /// The most polls that a completion is held back for.
    pub delay_polls_max: u32,
    /// What a poll has to tell is told in another order.
    pub reorder: f64,
}

/// Any transport with faults.
pub struct Faulty {
    inner: Arc<dyn Transport>,
    config: FaultConfig,
    channels: AtomicU64,
}

impl Faulty {
    /// Lets the transport's channels go wrong as configured.
    pub fn new(inner: Arc<dyn Transport>, config: FaultConfig) -> Self {
        Self { inner, config, channels: AtomicU64::new(0) }
    }
}

impl Transport for Faulty {
    pass_through!();

    fn mapped(&self, region: RemoteRegion) -> Option<MappedRegion> {
        self.inner.mapped(region)
    }

    fn channel(&self) -> Result<Box<dyn Channel>> {
        let mut chance = Xoshiro256PlusPlus::seed_from_u64(self.config.seed);
        (0..self.channels.fetch_add(1, Ordering::Relaxed)).for_each(|_| chance.jump());
        Ok(Box::new(FaultyChannel {
            inner: self.inner.channel()?,
            config: self.config,
            rows_max: self.inner.capabilities().batch_rows_max,
            dropped_max: self.inner.capabilities().batches_in_flight_max,
            chance,
            dropped: Vec::new(),
            held: Vec::new(),
            ready: Vec::new(),
            arrived: Vec::new(),
        }))
    }
}

struct FaultyChannel {
    inner: Box<dyn Channel>,
    config: FaultConfig,
    rows_max: usize,
    dropped_max: usize,
    chance: Xoshiro256PlusPlus,
    /// Rows that end with an abort of their peer only.
    dropped: Vec<(Rank, BatchId, u32, u32)>,
    /// Completions, and how many polls more they are held back for.
    held: Vec<(u32, Completion)>,
    ready: Vec<Completion>,
    arrived: Vec<Completion>,
}

impl FaultyChannel {
    fn happens(&mut self, probability: f64) -> bool {
        // Drawn in any case, so that one probability does not shift the others' chances.
        self.chance.random::<f64>() < probability
    }

    /// Loses or fails the rows from `first` on.
    fn spoil(&mut self, batch: &RowBatch<'_>, first: usize, end: usize, lost: bool) {
        let (first, count) = (first as u32, (end - first) as u32);
        if lost {
            return self.dropped.push((batch.region.peer, batch.id, first, count));
        }
        let causes = [
            TransferError::Io("an injected fault".into()),
            TransferError::PeerGone("an injected fault".into()),
            TransferError::Protocol("an injected fault".into()),
        ];
        let status = Err(causes[self.chance.random_range(0..causes.len())].clone());
        self.ready.push(Completion { batch: batch.id, first, count, status });
    }

    /// Cuts, delays or passes on what the inner channel has reported.
    fn handle(&mut self, completion: Completion) {
        let Completion { batch, first, count, status } = completion;
        let cut = if self.happens(self.config.partial) && count > 1 { self.chance.random_range(1..count) } else { 0 };
        for (first, count) in [(first, cut), (first + cut, count - cut)] {
            if count == 0 {
                continue;
            }
            let part = Completion { batch, first, count, status: status.clone() };
            if self.happens(self.config.delay) {
                let polls = self.chance.random_range(1..=self.config.delay_polls_max.max(1));
                self.held.push((polls, part));
            } else {
                self.ready.push(part);
            }
        }
    }

    /// Counts a poll for all that is held back.
    fn count_poll(&mut self) {
        let Self { held, ready, .. } = self;
        held.iter_mut().for_each(|(polls, _)| *polls = polls.saturating_sub(1));
        ready.extend(held.extract_if(.., |(polls, _)| *polls == 0).map(|(_, completion)| completion));
    }
}

// SAFETY: all writing is the inner channel's, of rows that were posted; a completion is shown later than the inner one showed it, never
// earlier, and an abort is passed on before it returns.
unsafe impl Channel for FaultyChannel {
    unsafe fn post(&mut self, batch: &RowBatch<'_>) -> Result<usize> {
        batch.check()?;
        let [refused, cut, lost, failed] =
            [self.config.refuse, self.config.truncate, self.config.drop, self.config.fail].map(|p| self.happens(p));
        if refused || batch.rows.is_empty() {
            return Ok(0);
        }
        let all = batch.rows.len().min(self.rows_max);
        let end = if cut { self.chance.random_range(1..=all) } else { all };
        let lost = lost && self.dropped.len() < self.dropped_max;
        let good = if lost || failed { self.chance.random_range(0..end) } else { end };
        if good > 0 {
            let part = RowBatch { rows: &batch.rows[..good], places: &batch.places[..good], ..*batch };
            // SAFETY: the caller's promises are passed on for a part of the rows.
            let accepted = unsafe { self.inner.post(&part) }?;
            if accepted < good || good == end {
                return Ok(accepted);
            }
        }
        self.spoil(batch, good, end, lost);
        Ok(end)
    }

    fn poll(&mut self, completions: &mut Vec<Completion>, wait: Wait) -> Result<()> {
        self.count_poll();
        let wait = match wait {
            Wait::For(_) if !self.ready.is_empty() => Wait::No,
            Wait::For(at_most) if !self.held.is_empty() => Wait::For(at_most.min(HELD_WAIT_MAX)),
            wait => wait,
        };
        let mut arrived = std::mem::take(&mut self.arrived);
        self.inner.poll(&mut arrived, wait)?;
        arrived.drain(..).for_each(|completion| self.handle(completion));
        self.arrived = arrived;
        if self.happens(self.config.reorder) {
            self.ready.shuffle(&mut self.chance);
        }
        completions.append(&mut self.ready);
        Ok(())
    }

    fn abort(&mut self, peer: Rank) -> Result<Fenced> {
        let fenced = self.inner.abort(peer)?;
        let Self { dropped, ready, held, .. } = self;
        ready.extend(dropped.extract_if(.., |(owner, ..)| *owner == peer).map(|(_, batch, first, count)| Completion {
            batch,
            first,
            count,
            status: Err(TransferError::Aborted),
        }));
        // Everything held back is complete: told with the next poll, that of other peers included.
        ready.extend(held.drain(..).map(|(_, completion)| completion));
        Ok(fenced)
    }

    fn waker(&self) -> Waker {
        self.inner.waker()
    }
}
