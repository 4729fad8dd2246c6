//! Goal: the `tcp` transport brings exactly the rows that were asked for, whatever peers and strangers do, and never writes after an abort.
//! Method: real sockets on loopback; every row's bytes are a function of its number, so one comparison shows wrong, torn and misplaced
//! rows; strangers are plain sockets that send garbage, wrong secrets or nothing.

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use rudder::memory::{Access, Region};
use rudder::transport::tcp::{JobSecret, TcpConfig, TcpTransport};
use rudder::transport::{BatchId, Channel, Completion, Destination, RemoteRegion, RowBatch, Transport, Wait};
use rudder::{Rank, TransferError};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(20);
const UNTOUCHED: u8 = 0xEE;

fn config() -> TcpConfig {
    TcpConfig::new(JobSecret([42; 32]))
}

/// The ranks of a job, connected.
fn job(configs: impl IntoIterator<Item = TcpConfig>) -> Vec<TcpTransport> {
    let ranks: Vec<_> = configs.into_iter().map(|config| TcpTransport::new(config).unwrap()).collect();
    let addresses: Vec<_> = ranks.iter().map(|rank| rank.address()).collect();
    for rank in &ranks {
        rank.connect(&addresses).unwrap();
    }
    ranks
}

fn byte(row: u64, at: usize) -> u8 {
    (row.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> (8 * (at % 7))) as u8 ^ at as u8
}

fn table(owner: &TcpTransport, rows: u64, row_bytes: usize) -> Region {
    let region = owner.allocate(rows as usize * row_bytes, Access::RemoteRead).unwrap();
    for row in 0..rows {
        for at in 0..row_bytes {
            // SAFETY: within the region, which nobody reads yet.
            unsafe { region.memory().base().add(row as usize * row_bytes + at).write(byte(row, at)) };
        }
    }
    region
}

fn is_row(bytes: &[u8], row: u64) -> bool {
    bytes.iter().enumerate().all(|(at, &got)| got == byte(row, at))
}

/// A batch with memory of its own to land in.
struct Gather {
    id: BatchId,
    region: RemoteRegion,
    version: u64,
    row_bytes: usize,
    stride: usize,
    rows: Vec<u64>,
    places: Vec<u32>,
    landing: Vec<u8>,
    accepted: usize,
    done: Vec<Option<Result<(), TransferError>>>,
}

impl Gather {
    fn new(id: u64, region: RemoteRegion, row_bytes: usize, rows: Vec<u64>) -> Self {
        let places = (0..rows.len() as u32).collect();
        Self::scattered(id, region, row_bytes, row_bytes, rows, places)
    }

    fn scattered(
        id: u64,
        region: RemoteRegion,
        row_bytes: usize,
        stride: usize,
        rows: Vec<u64>,
        places: Vec<u32>,
    ) -> Self {
        let landing = vec![UNTOUCHED; (rows.len() + 3) * stride];
        Self {
            id: BatchId(id),
            region,
            version: 0,
            row_bytes,
            stride,
            rows,
            places,
            landing,
            accepted: 0,
            done: Vec::new(),
        }
    }

    fn post(&mut self, channel: &mut dyn Channel) -> rudder::Result<usize> {
        let batch = RowBatch {
            id: self.id,
            region: self.region,
            version: self.version,
            row_bytes: self.row_bytes,
            rows: &self.rows,
            places: &self.places,
            destination: Destination {
                base: self.landing.as_mut_ptr(),
                stride: self.stride,
                places: self.landing.len() / self.stride,
            },
        };
        // SAFETY: the landing lives and is left alone until the batch is over or its peer aborted; places are distinct.
        self.accepted = unsafe { channel.post(&batch)? };
        self.done = vec![None; self.accepted];
        Ok(self.accepted)
    }

    fn handle(&mut self, completion: &Completion) {
        if completion.batch != self.id {
            return;
        }
        for done in &mut self.done[completion.first as usize..][..completion.count as usize] {
            assert!(done.replace(completion.status.clone()).is_none(), "a row was reported twice");
        }
    }

    fn is_over(&self) -> bool {
        self.done.iter().all(Option::is_some)
    }

    fn failure(&self) -> Option<&TransferError> {
        self.done.iter().flatten().find_map(|done| done.as_ref().err())
    }

    /// Every row reported complete is right, and nothing but rows was touched.
    fn check(&self) {
        let mut landed = vec![None; self.landing.len() / self.stride];
        for (i, &place) in self.places[..self.accepted].iter().enumerate() {
            landed[place as usize] = Some((self.rows[i], matches!(self.done[i], Some(Ok(())))));
        }
        for (place, landed) in landed.iter().enumerate() {
            let (row, margin) = self.landing[place * self.stride..][..self.stride].split_at(self.row_bytes);
            assert!(margin.iter().all(|&b| b == UNTOUCHED), "written beyond the row at place {place}");
            match landed {
                Some((number, true)) => assert!(is_row(row, *number), "wrong bytes of row {number} at place {place}"),
                Some((_, false)) => {}
                None => {
                    assert!(row.iter().all(|&b| b == UNTOUCHED), "written to place {place}, which was not asked for")
                }
            }
        }
    }

    fn is_untouched(&self) -> bool {
        self.landing.iter().all(|&b| b == UNTOUCHED)
    }
}

fn finish(channel: &mut dyn Channel, gathers: &mut [Gather]) {
    let until = Instant::now() + PATIENCE;
    let mut completions = Vec::new();
    while !gathers.iter().all(Gather::is_over) {
        assert!(Instant::now() < until, "not over in {PATIENCE:?}");
        channel.poll(&mut completions, Wait::For(Duration::from_millis(100))).unwrap();
        for completion in completions.drain(..) {
            for gather in gathers.iter_mut() {
                gather.handle(&completion);
            }
        }
    }
    for gather in gathers {
        gather.check();
    }
}

fn run(channel: &mut dyn Channel, mut gather: Gather) -> Gather {
    let rows = gather.rows.len();
    assert_eq!(gather.post(channel).unwrap(), rows);
    finish(channel, std::slice::from_mut(&mut gather));
    gather
}

fn random_rows(rng: &mut SmallRng, count: usize, of: u64) -> Vec<u64> {
    let mut rows: Vec<u64> = (0..count).map(|_| rng.random_range(0..of)).collect();
    rows.sort_unstable();
    rows
}

#[test]
fn rows_are_exact_from_several_peers_over_several_channels() {
    let ranks = job([config(), config(), config()]);
    let sizes = [(1, 50_000), (8, 40_000), (400, 9_000), (2408, 2_000), (4096, 1_500), (300_000, 12)];
    let tables: Vec<Vec<Region>> =
        ranks.iter().map(|rank| sizes.iter().map(|&(bytes, rows)| table(rank, rows, bytes)).collect()).collect();
    std::thread::scope(|scope| {
        for (seed, reader) in ranks.iter().enumerate() {
            let tables = &tables;
            scope.spawn(move || {
                let mut channel = reader.channel().unwrap();
                let mut rng = SmallRng::seed_from_u64(seed as u64);
                for _ in 0..6 {
                    let mut gathers = Vec::new();
                    for (owner, regions) in tables.iter().enumerate() {
                        let size = rng.random_range(0..sizes.len());
                        let (row_bytes, of) = sizes[size];
                        let region = reader.import(Rank(owner as u32), regions[size].token()).unwrap();
                        let most = if row_bytes > 4096 { 6 } else { 3000 };
                        let count = rng.random_range(1..most);
                        let rows = random_rows(&mut rng, count, of);
                        let mut places: Vec<u32> = (0..rows.len() as u32).collect();
                        if rng.random() {
                            places.reverse();
                        }
                        let stride = row_bytes + rng.random_range(0..2) * 8;
                        gathers.push(Gather::scattered(owner as u64, region, row_bytes, stride, rows, places));
                    }
                    for gather in &mut gathers {
                        let rows = gather.rows.len();
                        assert_eq!(gather.post(&mut *channel).unwrap(), rows);
                    }
                    finish(&mut *channel, &mut gathers);
                    assert!(gathers.iter().all(|gather| gather.failure().is_none()));
                }
            });
        }
    });
}

#[test]
fn batches_larger_than_a_request_are_whole() {
    let ranks = job([config(), config()]);
    let region = table(&ranks[0], 1000, 8);
    let imported = ranks[1].import(Rank(0), region.token()).unwrap();
    let mut channel = ranks[1].channel().unwrap();
    let mut rng = SmallRng::seed_from_u64(1);
    let gather = run(&mut *channel, Gather::new(1, imported, 8, random_rows(&mut rng, 60_000, 1000)));
    assert_eq!(gather.failure(), None);
    let mut oversized = Gather::new(2, imported, 8, random_rows(&mut rng, 70_000, 1000));
    assert_eq!(oversized.post(&mut *channel).unwrap(), ranks[1].capabilities().batch_rows_max);
    finish(&mut *channel, std::slice::from_mut(&mut oversized));
}

#[test]
fn many_small_rows_keep_all_connections_of_a_peer_busy() {
    for (rows, connections) in [(1000, 1), (10_000, 2)] {
        let ranks = job([config(), config()]);
        let region = table(&ranks[0], rows, 8);
        let imported = ranks[1].import(Rank(0), region.token()).unwrap();
        let mut channel = ranks[1].channel().unwrap();
        let gather = run(&mut *channel, Gather::new(1, imported, 8, (0..rows).collect()));
        assert_eq!((gather.failure(), ranks[0].connections_served()), (None, connections));
    }
}

#[test]
fn the_owner_refuses_what_it_does_not_hold() {
    let ranks = job([config(), config()]);
    let region = table(&ranks[0], 100, 64);
    let imported = ranks[1].import(Rank(0), region.token()).unwrap();
    let mut channel = ranks[1].channel().unwrap();

    let outside = Gather::new(1, imported, 64, vec![5, 100]);
    assert!({ outside }.post(&mut *channel).is_err(), "a row outside the region is the caller's mistake");
    let larger = RemoteRegion { bytes: 1 << 20, ..imported };
    assert!(Gather::new(2, larger, 64, vec![5, 100]).post(&mut *channel).is_err(), "the size is the owner's word");

    region.version().unwrap().set(7);
    let stale = run(&mut *channel, Gather::new(3, imported, 64, vec![1, 2]));
    assert!(matches!(stale.failure(), Some(TransferError::StaleRegion { version: 0, .. })), "{:?}", stale.failure());
    assert!(stale.is_untouched());
    let mut current = Gather::new(4, imported, 64, vec![1, 2]);
    current.version = 7;
    assert_eq!(run(&mut *channel, current).failure(), None);

    drop(region);
    let mut gone = Gather::new(5, imported, 64, vec![1, 2]);
    gone.version = 7;
    let gone = run(&mut *channel, gone);
    assert!(matches!(gone.failure(), Some(TransferError::StaleRegion { .. })), "{:?}", gone.failure());
}

#[test]
fn tokens_and_addresses_of_others_are_refused() {
    let ranks = job([config(), config()]);
    let region = table(&ranks[0], 10, 8);
    let token = region.token();
    assert!(matches!(ranks[1].import(Rank(0), &token[..20]), Err(rudder::Error::Token { .. })));
    assert!(matches!(ranks[1].import(Rank(1), token), Err(rudder::Error::Token { .. })), "issued by rank 0");
    assert!(matches!(ranks[1].import(Rank(9), token), Err(rudder::Error::Token { .. })));
    let late = TcpTransport::new(config()).unwrap();
    let mut future = ranks[0].address();
    future[4..8].copy_from_slice(&9u32.to_le_bytes());
    let cause = late.connect(&[late.address(), future]).unwrap_err().to_string();
    assert!(cause.contains("rank 1") && cause.contains("version 9") && cause.contains("speaks 1"), "{cause}");
}

#[test]
fn a_peer_that_dies_takes_only_its_own_rows() {
    let mut ranks = job([config(), config(), config()]);
    let dying = table(&ranks[2], 4_000, 4096);
    let living = table(&ranks[1], 4_000, 400);
    let from_dying = ranks[0].import(Rank(2), dying.token()).unwrap();
    let from_living = ranks[0].import(Rank(1), living.token()).unwrap();
    let mut channel = ranks[0].channel().unwrap();
    let all: Vec<u64> = (0..4000).collect();
    let mut gathers: Vec<Gather> = (0..8).map(|id| Gather::new(id, from_dying, 4096, all.clone())).collect();
    gathers.push(Gather::new(8, from_living, 400, all.clone()));
    for gather in &mut gathers {
        assert_eq!(gather.post(&mut *channel).unwrap(), 4000);
    }
    // Some of it arrives, then the owner dies with megabytes on their way.
    let mut completions = Vec::new();
    while completions.is_empty() {
        channel.poll(&mut completions, Wait::For(PATIENCE)).unwrap();
    }
    for completion in completions.drain(..) {
        gathers.iter_mut().for_each(|gather| gather.handle(&completion));
    }
    drop(ranks.pop());
    finish(&mut *channel, &mut gathers);
    assert!(matches!(gathers[7].failure(), Some(TransferError::PeerGone(_))), "{:?}", gathers[7].failure());
    assert_eq!(gathers[8].failure(), None);
    let after = run(&mut *channel, Gather::new(9, from_dying, 4096, vec![1]));
    assert!(matches!(after.failure(), Some(TransferError::PeerGone(_))), "{:?}", after.failure());
    assert_eq!(run(&mut *channel, Gather::new(10, from_living, 400, all)).failure(), None);
}

#[test]
fn nothing_is_written_after_an_abort_and_a_later_post_connects_anew() {
    let ranks = job([config(), config()]);
    for row_bytes in [400, 4096] {
        let region = table(&ranks[0], 4_000, row_bytes);
        let imported = ranks[1].import(Rank(0), region.token()).unwrap();
        let mut channel = ranks[1].channel().unwrap();
        let all: Vec<u64> = (0..4000).collect();
        for attempt in 0..20 {
            let mut gathers: Vec<Gather> = (0..4).map(|id| Gather::new(id, imported, row_bytes, all.clone())).collect();
            for gather in &mut gathers {
                assert_eq!(gather.post(&mut *channel).unwrap(), 4000);
            }
            let mut completions = Vec::new();
            for _ in 0..attempt {
                channel.poll(&mut completions, Wait::For(Duration::from_millis(1))).unwrap();
            }
            let _fenced = channel.abort(Rank(0)).unwrap();
            let frozen: Vec<Vec<u8>> = gathers.iter().map(|gather| gather.landing.clone()).collect();
            for completion in completions.drain(..) {
                gathers.iter_mut().for_each(|gather| gather.handle(&completion));
            }
            finish(&mut *channel, &mut gathers);
            for (gather, frozen) in gathers.iter().zip(&frozen) {
                assert_eq!(&gather.landing, frozen, "written after the abort");
                assert!(gather.failure().is_none_or(|cause| *cause == TransferError::Aborted));
            }
            assert_eq!(run(&mut *channel, Gather::new(9, imported, row_bytes, vec![0, 7, 3999])).failure(), None);
        }
    }
}

fn dial(transport: &TcpTransport) -> TcpStream {
    let address = transport.address();
    let port = u16::from_le_bytes([address[40], address[41]]);
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

fn hello(version: u32) -> [u8; 40] {
    let mut hello = [9; 40];
    hello[..4].copy_from_slice(b"RDTH");
    hello[4..8].copy_from_slice(&version.to_le_bytes());
    hello
}

fn is_closed(stream: &mut TcpStream) -> bool {
    matches!(stream.read(&mut [0; 64]), Ok(0))
        || stream.take_error().is_ok_and(|e| e.is_some())
        || stream.write_all(&[0; 64]).and_then(|()| stream.write_all(&[0; 64])).is_err()
}

#[test]
fn strangers_learn_nothing_and_disturb_nobody() {
    let ranks = job([config(), config()]);
    let region = table(&ranks[0], 1000, 400);
    let imported = ranks[1].import(Rank(0), region.token()).unwrap();

    let mut garbage = dial(&ranks[0]);
    garbage.write_all(&[0x47; 4096]).unwrap();
    let mut heard = Vec::new();
    // A reset is as good an end as a close.
    let _ = garbage.read_to_end(&mut heard);
    assert!(heard.is_empty(), "garbage was answered with {} bytes", heard.len());

    let mut unproven = dial(&ranks[0]);
    unproven.write_all(&hello(1)).unwrap();
    let mut theirs = [0; 40];
    unproven.read_exact(&mut theirs).unwrap();
    unproven.write_all(&[1; 32]).unwrap();
    assert!(is_closed(&mut unproven), "a wrong proof ends the connection without a word");

    let mut future = dial(&ranks[0]);
    future.write_all(&hello(9)).unwrap();
    future.read_exact(&mut theirs).unwrap();
    assert_eq!(theirs[4..8], 1u32.to_le_bytes(), "the owner names its version");
    assert!(is_closed(&mut future));

    let silent: Vec<TcpStream> = (0..20).map(|_| dial(&ranks[0])).collect();
    let mut channel = ranks[1].channel().unwrap();
    let rows = (0..1000).collect();
    assert_eq!(run(&mut *channel, Gather::new(1, imported, 400, rows)).failure(), None);
    drop(silent);
}

#[test]
fn strangers_that_hold_every_handshake_make_room() {
    // The asker waits no longer than the owner lets strangers be silent.
    let ranks = job([config(), config()]);
    let region = table(&ranks[0], 10, 8);
    let imported = ranks[1].import(Rank(0), region.token()).unwrap();
    let strangers: Vec<TcpStream> = (0..60).map(|_| dial(&ranks[0])).collect();
    let mut channel = ranks[1].channel().unwrap();
    assert_eq!(run(&mut *channel, Gather::new(1, imported, 8, vec![3])).failure(), None);
    drop(strangers);
}

#[test]
fn another_secret_is_refused_with_a_hint() {
    let stranger = TcpConfig { secret: JobSecret([43; 32]), ..config() };
    let ranks = job([config(), stranger]);
    let region = table(&ranks[0], 10, 8);
    let imported = ranks[1].import(Rank(0), region.token()).unwrap();
    let mut channel = ranks[1].channel().unwrap();
    let refused = run(&mut *channel, Gather::new(1, imported, 8, vec![3]));
    assert!(refused.is_untouched());
    match refused.failure() {
        Some(TransferError::PeerGone(cause)) => assert!(cause.contains("job secret"), "{cause}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_peer_that_never_answers_is_given_up_in_time() {
    let mute = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let short = TcpConfig { connect_timeout: Duration::from_millis(200), ..config() };
    let owner = TcpTransport::new(config()).unwrap();
    let reader = TcpTransport::new(short).unwrap();
    let mut address = owner.address();
    address[40..42].copy_from_slice(&mute.local_addr().unwrap().port().to_le_bytes());
    reader.connect(&[address]).unwrap();
    let region = table(&owner, 10, 8);
    let imported = reader.import(Rank(0), region.token()).unwrap();
    let mut channel = reader.channel().unwrap();
    let begun = Instant::now();
    let given_up = run(&mut *channel, Gather::new(1, imported, 8, vec![3]));
    assert!(matches!(given_up.failure(), Some(TransferError::PeerGone(_))), "{:?}", given_up.failure());
    assert!(begun.elapsed() < Duration::from_secs(5));
}

#[test]
fn a_flood_of_askers_is_bounded() {
    let few = TcpConfig { connections_served_max: 4, ..config() };
    let ranks = job([few, TcpConfig { connections_per_peer: 1, batches_in_flight_max: 4, ..config() }]);
    let region = table(&ranks[0], 1000, 400);
    let imported = ranks[1].import(Rank(0), region.token()).unwrap();
    let mut channels: Vec<_> = (0..10).map(|_| ranks[1].channel().unwrap()).collect();
    let mut turned_away = 0;
    for channel in &mut channels {
        let asked = run(&mut **channel, Gather::new(1, imported, 400, (0..1000).collect()));
        match asked.failure() {
            None => {}
            Some(TransferError::PeerGone(cause)) if cause.contains("connections_served_max") => turned_away += 1,
            other => panic!("{other:?}"),
        }
        assert!(ranks[0].connections_served() <= 4);
    }
    assert_eq!(turned_away, 6);
    // A channel that asks for more than it may hold is told to wait.
    let mut gathers: Vec<Gather> = (0..4).map(|id| Gather::new(id, imported, 400, (0..1000).collect())).collect();
    for gather in &mut gathers {
        assert_eq!(gather.post(&mut *channels[0]).unwrap(), 1000);
    }
    let mut fifth = Gather::new(4, imported, 400, vec![1]);
    assert_eq!(fifth.post(&mut *channels[0]).unwrap(), 0);
    finish(&mut *channels[0], &mut gathers);
    // Places are free again once the others have left.
    channels.truncate(1);
    let until = Instant::now() + PATIENCE;
    while ranks[0].connections_served() > 1 {
        assert!(Instant::now() < until);
        std::thread::sleep(Duration::from_millis(5));
    }
    let mut late = ranks[1].channel().unwrap();
    assert_eq!(run(&mut *late, Gather::new(1, imported, 400, vec![1])).failure(), None);
}

#[test]
fn a_closed_link_ends_for_the_peer_while_a_forked_child_holds_it() {
    let ranks = job([config(), TcpConfig { connections_per_peer: 1, ..config() }]);
    let region = table(&ranks[0], 10, 8);
    let imported = ranks[1].import(Rank(0), region.token()).unwrap();
    let mut channel = ranks[1].channel().unwrap();
    assert_eq!(run(&mut *channel, Gather::new(1, imported, 8, vec![3])).failure(), None);
    // SAFETY: the child waits to be ended and runs nothing else; the alarm ends it where the parent cannot.
    let child = unsafe {
        match libc::fork() {
            0 => {
                libc::alarm(60);
                libc::pause();
                libc::_exit(0)
            }
            child => child,
        }
    };
    assert!(child > 0, "fork failed");
    let _fenced = channel.abort(Rank(0)).unwrap();
    let until = Instant::now() + PATIENCE;
    while ranks[0].connections_served() > 0 && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(5));
    }
    let served = ranks[0].connections_served();
    // SAFETY: ends the child just made and waits for it.
    unsafe {
        libc::kill(child, libc::SIGKILL);
        libc::waitpid(child, std::ptr::null_mut(), 0);
    }
    assert_eq!(served, 0, "the owner still serves a link that its asker has closed");
}

#[test]
fn a_wait_ends_by_its_time_or_by_the_waker() {
    let ranks = job([config()]);
    let mut channel = ranks[0].channel().unwrap();
    let begun = Instant::now();
    channel.poll(&mut Vec::new(), Wait::For(Duration::from_millis(30))).unwrap();
    assert!(begun.elapsed() >= Duration::from_millis(30));
    let waker = channel.waker();
    let waking = std::thread::spawn(move || waker.wake());
    channel.poll(&mut Vec::new(), Wait::For(PATIENCE)).unwrap();
    assert!(begun.elapsed() < PATIENCE);
    waking.join().unwrap();
}
