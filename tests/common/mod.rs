//! A job over any transport, and tables whose rows tell where they belong.
#![allow(dead_code, unused_imports, unused_macros, reason = "no test target uses all of it")]

pub mod suite;

use rudder::bootstrap::{Bootstrap, local};
use rudder::memory::{Access, Region};
use rudder::transport::hook::{FaultConfig, Faulty};
use rudder::transport::sim::{SimConfig, SimNetwork};
use rudder::transport::{
    BatchId, Channel, Completion, Destination, RemoteRegion, RowBatch, Transport, TransportConfig, Wait, open,
};
use rudder::{Rank, TransferError};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long anything in a test may take before it counts as a hang: long, because emulated devices take seconds to connect.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Makes what a job of so many ranks is of, not yet connected.
#[derive(Clone, Copy)]
pub enum Make {
    /// Ranks are threads of this process: the transports of all, in rank order.
    Threads(fn(u32) -> Vec<Arc<dyn Transport>>),
    /// Ranks are processes, each of which runs the test: what this one has, if it is of the job. Collective over all processes.
    #[allow(dead_code, reason = "for the targets whose ranks a launcher starts")]
    Process(fn(u32) -> Option<Place>),
}

/// What a process has of a job.
pub type Place = (Arc<dyn Bootstrap>, Arc<dyn Transport>);

/// The transports of a job, by the registry's name.
pub fn named(name: &str, ranks: u32) -> Vec<Arc<dyn Transport>> {
    opened(name, ranks, |_| {})
}

/// As [`named`], with a configuration of the test's own.
pub fn opened(name: &str, ranks: u32, change: impl Fn(&mut TransportConfig)) -> Vec<Arc<dyn Transport>> {
    let open = |rank| {
        let mut config = TransportConfig::new(Rank(rank), ranks);
        change(&mut config);
        open(name, &config).expect("the transport opens")
    };
    (0..ranks).map(open).collect()
}

/// Over any transport: completions that come late, in parts and in another order.
pub fn disturbed(transports: Vec<Arc<dyn Transport>>) -> Vec<Arc<dyn Transport>> {
    let faults = FaultConfig { partial: 0.4, delay: 0.4, delay_polls_max: 4, reorder: 0.5, ..FaultConfig::default() };
    let wrap = |inner| -> Arc<dyn Transport> { Arc::new(Faulty::new(inner, faults)) };
    transports.into_iter().map(wrap).collect()
}

/// The transports of a job over a simulated network whose parts overtake each other.
pub fn simulated(ranks: u32) -> Vec<Arc<dyn Transport>> {
    let network = SimNetwork::new(SimConfig { jitter: Duration::from_micros(50), seed: 7, ..SimConfig::default() });
    (0..ranks).map(|rank| -> Arc<dyn Transport> { Arc::new(network.transport(Rank(rank))) }).collect()
}

/// One rank of a job.
pub struct Member {
    pub rank: Rank,
    pub transport: Arc<dyn Transport>,
    bootstrap: Arc<dyn Bootstrap>,
}

impl Member {
    pub fn all_gather(&self, mine: &[u8]) -> Vec<Vec<u8>> {
        self.bootstrap.all_gather(mine, PATIENCE).expect("all ranks take part")
    }

    pub fn barrier(&self) {
        self.bootstrap.barrier(PATIENCE).expect("all ranks take part");
    }

    /// A region of rows of its own, and those of all ranks imported, in rank order.
    pub fn share(&self, rows: u64, row_bytes: usize) -> (Region, Vec<RemoteRegion>) {
        let region = self.transport.allocate(rows as usize * row_bytes, Access::RemoteRead).expect("memory is there");
        fill(&region, self.rank, row_bytes);
        let imported = self.import(&region);
        (region, imported)
    }

    pub fn import(&self, region: &Region) -> Vec<RemoteRegion> {
        let import = |(rank, token): (usize, &Vec<u8>)| self.transport.import(Rank(rank as u32), token);
        let tokens = self.all_gather(region.token());
        tokens.iter().enumerate().map(import).collect::<Result<_, _>>().expect("the tokens are good")
    }

    /// Drops the rank's transport.
    pub fn leave(self) -> Arc<dyn Bootstrap> {
        self.bootstrap
    }

    pub fn channel(&self) -> Box<dyn Channel> {
        self.transport.channel().expect("a channel is there")
    }
}

/// Runs `body` on every rank of a connected job.
pub fn job(make: Make, ranks: u32, body: impl Fn(Member) + Sync) {
    unconnected(make, ranks, |member| {
        let addresses = member.all_gather(&member.transport.address());
        member.transport.connect(&addresses).expect("the addresses are good");
        body(member);
    });
}

/// Runs `body` on every rank of a job: on a thread for each, or in this process for its own.
pub fn unconnected(make: Make, ranks: u32, body: impl Fn(Member) + Sync) {
    let make = match make {
        Make::Threads(make) => make,
        Make::Process(make) => {
            if let Some((bootstrap, transport)) = make(ranks) {
                body(Member { rank: bootstrap.rank(), transport, bootstrap });
            }
            return;
        }
    };
    let transports = make(ranks);
    assert_eq!(transports.len(), ranks as usize);
    std::thread::scope(|scope| {
        for (transport, bootstrap) in transports.into_iter().zip(local::ranks(ranks)) {
            let body = &body;
            let bootstrap: Arc<dyn Bootstrap> = Arc::new(bootstrap);
            scope.spawn(move || body(Member { rank: bootstrap.rank(), transport, bootstrap }));
        }
    });
}

/// Byte `at` of row `row` of a rank's table.
pub fn byte(rank: Rank, row: u64, at: usize) -> u8 {
    let mixed = (row ^ (u64::from(rank.0) << 40)).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(at as u32 % 61);
    (mixed >> 24) as u8 ^ at as u8
}

/// Writes a table's rows.
pub fn fill(region: &Region, rank: Rank, row_bytes: usize) {
    let memory = region.memory();
    for at in 0..memory.bytes() / row_bytes * row_bytes {
        // SAFETY: within the region, which no peer has imported yet.
        unsafe { memory.base().add(at).write(byte(rank, (at / row_bytes) as u64, at % row_bytes)) };
    }
}

/// A destination with guard bytes around and between the places.
pub struct Landing {
    region: Region,
    pub row_bytes: usize,
    stride: usize,
    places: usize,
}

pub const GUARD: u8 = 0xA5;
const MARGIN: usize = 64;

impl Landing {
    pub fn new(transport: &dyn Transport, places: usize, row_bytes: usize, stride: usize) -> Self {
        let region = transport.allocate(places * stride + 2 * MARGIN, Access::Local).expect("memory is there");
        let landing = Self { region, row_bytes, stride, places };
        landing.poison();
        landing
    }

    /// Every byte as before any get.
    pub fn poison(&self) {
        // SAFETY: the bytes are the landing's, and no get is in flight.
        unsafe { self.region.memory().base().write_bytes(GUARD, self.region.memory().bytes()) };
    }

    pub fn destination(&self) -> Destination {
        let base = self.region.memory().base().wrapping_add(MARGIN);
        Destination { base, stride: self.stride, places: self.places }
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: the bytes are initialised, and tests look only when no get may write.
        unsafe { std::slice::from_raw_parts(self.region.memory().base(), self.region.memory().bytes()) }
    }

    pub fn row(&self, place: u32) -> &[u8] {
        &self.bytes()[MARGIN + place as usize * self.stride..][..self.row_bytes]
    }

    /// Every byte outside the given places is what [`poison`](Landing::poison) left there.
    pub fn assert_untouched_except(&self, written: &[u32]) {
        for (at, &found) in self.bytes().iter().enumerate() {
            let within = at.checked_sub(MARGIN).map(|at| ((at / self.stride) as u32, at % self.stride));
            let expected_row = within.is_some_and(|(place, at)| at < self.row_bytes && written.contains(&place));
            assert!(expected_row || found == GUARD, "byte {at} was written");
        }
    }

    /// The rows of a peer lie at their places.
    pub fn assert_rows(&self, peer: Rank, rows: &[u64], places: &[u32]) {
        for (&row, &place) in rows.iter().zip(places) {
            let right = self.row(place).iter().enumerate().all(|(at, &found)| found == byte(peer, row, at));
            assert!(right, "row {row} of {peer} at place {place} has wrong bytes");
        }
    }
}

/// Posts all rows, again where a channel takes them in parts, and waits for their end: the status of each row.
pub fn get_all(channel: &mut dyn Channel, whole: &RowBatch<'_>) -> Vec<Result<(), TransferError>> {
    let deadline = Instant::now() + PATIENCE;
    let mut statuses = vec![None; whole.rows.len()];
    let (mut posted, mut ended) = (0, 0);
    // Batch `n` began at row `starts[n]`.
    let mut starts = Vec::new();
    let mut completions = Vec::new();
    while ended < whole.rows.len() {
        assert!(Instant::now() < deadline, "{ended} of {} rows after {PATIENCE:?}", whole.rows.len());
        if posted < whole.rows.len() {
            let id = BatchId(starts.len() as u64);
            let part = RowBatch { id, rows: &whole.rows[posted..], places: &whole.places[posted..], ..*whole };
            // SAFETY: the places are the test's own and not looked at before all have ended.
            let accepted = unsafe { channel.post(&part) }.expect("the batch is good");
            if accepted > 0 {
                starts.push(posted);
                posted += accepted;
            }
        }
        channel.poll(&mut completions, Wait::For(Duration::from_millis(20))).expect("the channel works");
        for Completion { batch, first, count, status } in completions.drain(..) {
            for row in first..first + count {
                let slot = &mut statuses[starts[batch.0 as usize] + row as usize];
                assert!(slot.replace(status.clone()).is_none(), "row {row} of {batch:?} ended twice");
                ended += 1;
            }
        }
    }
    statuses.into_iter().map(|status| status.expect("every row ended")).collect()
}
