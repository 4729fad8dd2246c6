//! A slower link under any transport.
//!
//! Rows move as fast as the inner transport moves them; their completions are held back until the link would have delivered them. What a
//! caller can observe is then the link's, and no byte is copied twice.

use super::{Link, pass_through};
use crate::error::Result;
use crate::id::Rank;
use crate::memory::{Access, Memory, Region};
use crate::transport::{
    BatchId, Capabilities, Channel, Completion, Fenced, RemoteRegion, RowBatch, Transport, Wait, Waker,
};
use std::cell::Cell;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Instant;

/// Any transport behind a link of its own for each channel: `latency` after its post a batch begins to arrive, batches one after another at
/// the link's rate. Hides [`mapped`](Transport::mapped), which no link has.
pub struct Throttled {
    inner: Arc<dyn Transport>,
    link: Link,
}

impl Throttled {
    /// Puts the link before the transport.
    pub fn new(inner: Arc<dyn Transport>, link: Link) -> Self {
        Self { inner, link }
    }
}

impl Transport for Throttled {
    pass_through!();

    fn channel(&self) -> Result<Box<dyn Channel>> {
        let in_flight_max = self.inner.capabilities().batches_in_flight_max;
        Ok(Box::new(ThrottledChannel {
            inner: self.inner.channel()?,
            link: self.link,
            in_flight_max,
            free_at: Instant::now(),
            carried: Vec::with_capacity(in_flight_max),
            held: Vec::new(),
            arrived: Vec::new(),
        }))
    }
}

struct ThrottledChannel {
    inner: Box<dyn Channel>,
    link: Link,
    in_flight_max: usize,
    /// When the link has delivered all that was posted.
    free_at: Instant,
    carried: Vec<Carried>,
    /// Completions that the link has yet to deliver.
    held: Vec<Held>,
    arrived: Vec<Completion>,
}

/// A batch on the link.
struct Carried {
    batch: BatchId,
    peer: Rank,
    row_bytes: usize,
    /// Rows that the inner channel has not reported.
    rows: u32,
    /// When its first byte arrives.
    begins: Instant,
}

struct Held {
    due: Instant,
    peer: Rank,
    completion: Completion,
}

impl ThrottledChannel {
    /// Gives each completion the time of its last row; what failed is known at once.
    fn hold(&mut self, completion: Completion) {
        let known = self.carried.iter().position(|carried| carried.batch == completion.batch);
        let (mut due, mut peer) = (Instant::now(), Rank::default());
        if let Some(at) = known {
            let carried = &mut self.carried[at];
            peer = carried.peer;
            if completion.status.is_ok() {
                let bytes = u64::from(completion.first + completion.count) * carried.row_bytes as u64;
                due = carried.begins + self.link.carrying(bytes);
            }
            carried.rows = carried.rows.saturating_sub(completion.count);
            if carried.rows == 0 {
                self.carried.swap_remove(at);
            }
        }
        self.held.push(Held { due, peer, completion });
    }

    fn release(&mut self, completions: &mut Vec<Completion>) {
        let now = Instant::now();
        // Latest first, so that the due ones are taken off the end in the order of their arrival.
        self.held.sort_by_key(|held| std::cmp::Reverse(held.due));
        while let Some(held) = self.held.pop_if(|held| held.due <= now) {
            completions.push(held.completion);
        }
    }

    /// How long the inner channel may wait: not beyond the next arrival.
    fn bounded(&self, wait: Wait) -> Wait {
        let next = self.held.iter().map(|held| held.due).min();
        match (wait, next) {
            (Wait::For(at_most), Some(next)) => {
                precise_timers();
                Wait::For(at_most.min(next.saturating_duration_since(Instant::now())))
            }
            (wait, _) => wait,
        }
    }
}

/// Asks the kernel to end this thread's waits on time rather than up to 50 us later, together with others.
fn precise_timers() {
    thread_local!(static ASKED: Cell<bool> = const { Cell::new(false) });
    if !ASKED.replace(true) {
        // Where this is refused, latencies come out some 50 us longer.
        let _ = rustix::thread::set_current_timer_slack(NonZeroU64::new(1));
    }
}

// SAFETY: all writing is the inner channel's; a completion is shown later than the inner one showed it, never earlier, and an abort is passed
// on before it returns.
unsafe impl Channel for ThrottledChannel {
    unsafe fn post(&mut self, batch: &RowBatch<'_>) -> Result<usize> {
        if self.carried.len() + self.held.len() >= self.in_flight_max {
            // A batch is checked even where it finds no room.
            return batch.check().map(|()| 0);
        }
        // SAFETY: the caller's promises are passed on.
        let accepted = unsafe { self.inner.post(batch) }?;
        if accepted > 0 {
            let begins = self.free_at.max(Instant::now() + self.link.latency);
            self.free_at = begins + self.link.carrying((accepted * batch.row_bytes) as u64);
            let (peer, row_bytes) = (batch.region.peer, batch.row_bytes);
            self.carried.push(Carried { batch: batch.id, peer, row_bytes, rows: accepted as u32, begins });
        }
        Ok(accepted)
    }

    fn poll(&mut self, completions: &mut Vec<Completion>, wait: Wait) -> Result<()> {
        // One inner poll only: a wake-up that it takes is not there for a second.
        let mut arrived = std::mem::take(&mut self.arrived);
        self.inner.poll(&mut arrived, self.bounded(wait))?;
        arrived.drain(..).for_each(|completion| self.hold(completion));
        self.arrived = arrived;
        self.release(completions);
        Ok(())
    }

    fn abort(&mut self, peer: Rank) -> Result<Fenced> {
        let fenced = self.inner.abort(peer)?;
        let now = Instant::now();
        self.held.iter_mut().filter(|held| held.peer == peer).for_each(|held| held.due = now);
        // The rows of this peer that have yet to be reported are reported at once.
        for carried in self.carried.iter_mut().filter(|carried| carried.peer == peer) {
            (carried.begins, carried.row_bytes) = (now, 0);
        }
        Ok(fenced)
    }

    fn waker(&self) -> Waker {
        self.inner.waker()
    }
}

#[cfg(test)]
mod tests {
    //! Goal: the link's rate and latency are what its words say. Method: rows of our own region over shm, timed.
    use super::*;
    use crate::transport::{Destination, TransportConfig, shm::ShmTransport};
    use std::time::Duration;

    const ROW_BYTES: usize = 1000;

    /// Keeps `depth` batches of `rows` rows on the link until `batches` have arrived: the time that took.
    fn timed(link: &str, rows: usize, batches: u64, depth: u64) -> Duration {
        let shm = Arc::new(ShmTransport::new(&TransportConfig::new(Rank(0), 1)).unwrap());
        let transport = Throttled::new(shm, link.parse().unwrap());
        transport.connect(&[transport.address()]).unwrap();
        let table = transport.allocate(rows * ROW_BYTES, Access::RemoteRead).unwrap();
        let region = transport.import(Rank(0), table.token()).unwrap();
        assert!(transport.mapped(region).is_none());
        let landing = transport.allocate(depth as usize * rows * ROW_BYTES, Access::Local).unwrap();
        let indexes: Vec<u64> = (0..rows as u64).collect();
        let mut channel = transport.channel().unwrap();
        let (mut posted, mut ended, mut completions) = (0, 0, Vec::new());
        let began = Instant::now();
        while ended < batches {
            while posted < batches.min(ended + depth) {
                let first = (posted % depth) as u32 * rows as u32;
                let places: Vec<u32> = (first..first + rows as u32).collect();
                let (base, places_there) = (landing.memory().base(), rows * depth as usize);
                let destination = Destination { base, stride: ROW_BYTES, places: places_there };
                let id = BatchId(posted);
                let batch = RowBatch {
                    id,
                    region,
                    version: 0,
                    row_bytes: ROW_BYTES,
                    rows: &indexes,
                    places: &places,
                    destination,
                };
                // SAFETY: the places are the landing's, which outlives the channel, and no two batches in flight share one.
                assert_eq!(unsafe { channel.post(&batch) }.unwrap(), rows);
                posted += 1;
            }
            channel.poll(&mut completions, Wait::For(Duration::from_secs(1))).unwrap();
            completions.drain(..).for_each(|completion| ended += u64::from(completion.count) / rows as u64);
        }
        began.elapsed()
    }

    #[test]
    fn the_rate_holds() {
        // 12.5 MB at 1 Gbit/s: a tenth of a second, never less. The best of some, as the machine may be busy.
        let took = (0..4).map(|_| timed("1gbit,50us", 100, 125, 32).as_secs_f64()).reduce(f64::min).unwrap();
        assert!((0.0995..0.11).contains(&took), "{took} s instead of 0.1 s");
    }

    #[test]
    fn a_small_batch_sees_latency_and_size() {
        // 2 ms, and 10 rows of 1000 bytes at 80 Mbit/s: 1 ms. The best of some, as the machine may be busy.
        let took = (0..5).map(|_| timed("80mbit,2ms", 10, 1, 1)).min().unwrap();
        assert!((3000..3600).contains(&took.as_micros()), "{took:?} instead of 3 ms");
    }
}
