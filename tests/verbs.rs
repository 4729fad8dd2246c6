//! Goal: the `verbs` transport gives right rows over a lossy network, and an error that names its cause, never a hang, for whatever else
//! goes wrong; and it reads as it says: few doorbells, few completions, no registration once warm.
//! Method: `make test-verbs` runs this in a virtual machine with Soft-RoCE on the two ends of a virtual cable, whose packets netem loses;
//! the tests change the network, so they run one by one. Tokens are forged with the owner's own secret, and a dying owner is a process
//! of its own that is killed.

mod common;

use common::{GUARD, Landing, PATIENCE, byte, fill, get_all};
use hmac::{Hmac, Mac};
use rudder::bootstrap::{Bootstrap, local};
use rudder::memory::{Access, Memory, Region, limit_pinned, usage};
use rudder::transport::verbs::{VerbsConfig, VerbsTransport};
use rudder::transport::{
    BatchId, Channel, Completion, Destination, RemoteRegion, RowBatch, Transport, TransportConfig, Wait,
};
use rudder::{Config, Engine, Error, NodeId, PartitionBook, PartitionId, Rank, TableId, TableSpec, TransferError};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::{Duration, Instant};

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

/// The system's allocator, which counts what each thread asks of it.
struct Counting;

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // A thread that ends has no count any more.
        let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's promise, passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise, passed on.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const ROWS: u64 = 4000;
const ROW_BYTES: usize = 400;

fn config(device: &str) -> VerbsConfig {
    let mut job = TransportConfig::new(Rank(0), 2);
    job.verbs.device = Some(device.into());
    VerbsConfig::of(&job).expect("no variable is set")
}

/// An owner on one end of the cable and a reader on the other.
struct Pair {
    owner: VerbsTransport,
    reader: VerbsTransport,
}

impl Pair {
    fn new() -> Self {
        Self::of(config("rxe0"), config("rxe1"))
    }

    fn of(owner: VerbsConfig, reader: VerbsConfig) -> Self {
        let (owner, reader) = (VerbsTransport::new(owner).unwrap(), VerbsTransport::new(reader).unwrap());
        let addresses = [owner.address(), reader.address()];
        owner.connect(&addresses).unwrap();
        reader.connect(&addresses).unwrap();
        Self { owner, reader }
    }

    /// A table of the owner's, and the reader's name for it.
    fn table(&self, rows: u64, row_bytes: usize) -> (Region, RemoteRegion) {
        let region = self.owner.allocate(rows as usize * row_bytes, Access::RemoteRead).unwrap();
        fill(&region, Rank(0), row_bytes);
        let imported = self.reader.import(Rank(0), region.token()).unwrap();
        (region, imported)
    }

    fn landing(&self, places: usize, row_bytes: usize) -> Landing {
        Landing::new(&self.reader, places, row_bytes, row_bytes)
    }
}

fn batch<'a>(region: RemoteRegion, rows: &'a [u64], places: &'a [u32], landing: &Landing) -> RowBatch<'a> {
    let (row_bytes, destination) = (landing.row_bytes, landing.destination());
    RowBatch { id: BatchId(0), region, version: 0, row_bytes, rows, places, destination }
}

fn places(rows: &[u64]) -> Vec<u32> {
    (0..rows.len() as u32).collect()
}

/// Gets rows to places in order, and checks them.
fn check_get(channel: &mut dyn Channel, region: RemoteRegion, rows: &[u64], landing: &Landing) {
    landing.poison();
    let places = places(rows);
    for status in get_all(channel, &batch(region, rows, &places, landing)) {
        status.expect("the row is there");
    }
    landing.assert_rows(region.peer, rows, &places);
}

/// The one way in which all rows ended.
fn failure(channel: &mut dyn Channel, batch: &RowBatch<'_>) -> TransferError {
    let mut statuses = get_all(channel, batch).into_iter();
    let first = statuses.next().unwrap().expect_err("the rows cannot be read");
    assert!(statuses.all(|status| status.as_ref() == Err(&first)));
    first
}

/// Rows no two of which are neighbours.
fn scattered(count: u64) -> Vec<u64> {
    (0..count).map(|i| i * (ROWS / count)).collect()
}

/// Packets that get lost on the way to both ends, until dropped.
struct Loss;

impl Loss {
    fn of(percent: u32) -> Self {
        for end in ["veth0", "veth1"] {
            tc(&["qdisc", "replace", "dev", end, "root", "netem", "limit", "100000", "loss", &format!("{percent}%")]);
        }
        Self
    }

    /// Packets lost so far.
    fn lost(&self) -> u64 {
        let count = |end| {
            let shown = tc(&["-s", "qdisc", "show", "dev", end]);
            let after = shown.split("dropped ").nth(1).expect("tc counts what is dropped");
            after.split(|c: char| !c.is_ascii_digit()).next().unwrap().parse::<u64>().unwrap()
        };
        count("veth0") + count("veth1")
    }
}

impl Drop for Loss {
    fn drop(&mut self) {
        for end in ["veth0", "veth1"] {
            tc(&["qdisc", "del", "dev", end, "root"]);
        }
    }
}

fn tc(arguments: &[&str]) -> String {
    let output = Command::new("tc").args(arguments).output().expect("tc is there");
    assert!(output.status.success(), "tc {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn warm_batches_take_few_doorbells_few_completions_and_no_registration() {
    let pair = Pair::new();
    let (_region, imported) = pair.table(ROWS, ROW_BYTES);
    let mut channel = pair.reader.channel().unwrap();
    let rows = scattered(2000);
    let landing = pair.landing(rows.len(), ROW_BYTES);
    check_get(&mut *channel, imported, &rows, &landing);
    let (warm, owner) = (pair.reader.counters(), pair.owner.counters());
    const BATCHES: u64 = 5;
    for _ in 0..BATCHES {
        check_get(&mut *channel, imported, &rows, &landing);
    }
    let now = pair.reader.counters();
    let reads = now.row_reads - warm.row_reads;
    let doorbells = now.doorbells - warm.doorbells;
    let completions = now.completions - warm.completions;
    println!("{reads} reads by {doorbells} doorbells, {completions} completions: {now:?}");
    assert_eq!((now.rows - warm.rows, reads), (BATCHES * 2000, BATCHES * 2000));
    // 254 rows a list; a batch ends with what is left of it, and begins where the queue has room.
    assert!(doorbells <= BATCHES * (2000u64.div_ceil(254) + 1), "{doorbells} doorbells");
    assert_eq!(completions, doorbells, "one completion a list");
    assert_eq!(now.registrations, warm.registrations);
    assert_eq!((now.connections, now.connections_failed, now.posts_retried), (1, 0, 0));
    assert_eq!(pair.owner.counters(), owner, "the owner has nothing to do");
}

#[test]
fn warm_batches_allocate_nothing() {
    let pair = Pair::new();
    let (_region, imported) = pair.table(ROWS, ROW_BYTES);
    let mut channel = pair.reader.channel().unwrap();
    let rows = scattered(2000);
    let landing = pair.landing(rows.len(), ROW_BYTES);
    check_get(&mut *channel, imported, &rows, &landing);
    let places = places(&rows);
    let batch = batch(imported, &rows, &places, &landing);
    let mut completions = Vec::with_capacity(rows.len());
    let before = ALLOCATIONS.get();
    for _ in 0..4 {
        // SAFETY: the landing outlives its batches.
        assert_eq!(unsafe { channel.post(&batch) }.unwrap(), rows.len());
        let began = Instant::now();
        while completions.iter().map(|c: &Completion| c.count as usize).sum::<usize>() < rows.len() {
            assert!(began.elapsed() < PATIENCE);
            channel.poll(&mut completions, Wait::For(Duration::from_millis(100))).unwrap();
        }
        completions.clear();
    }
    assert_eq!(ALLOCATIONS.get() - before, 0);
    landing.assert_rows(Rank(0), &rows, &places);
}

#[test]
fn strangers_learn_nothing_and_are_outlived() {
    let impatient = VerbsConfig { connect_timeout: Duration::from_millis(500), ..config("rxe0") };
    let pair = Pair::of(impatient, config("rxe1"));
    let (_region, imported) = pair.table(ROWS, ROW_BYTES);
    let address = pair.owner.address();
    let dial = || {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, u16::from_le_bytes([address[40], address[41]]))).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    };
    let mut garbage = dial();
    garbage.write_all(&[0x47; 4096]).unwrap();
    let mut heard = Vec::new();
    // A reset is as good an end as a close.
    let _ = garbage.read_to_end(&mut heard);
    assert!(heard.is_empty(), "garbage was answered with {} bytes", heard.len());
    // More than may be in their handshake at once, and none of them says a word.
    let silent: Vec<_> = (0..60).map(|_| dial()).collect();
    let mut channel = pair.reader.channel().unwrap();
    check_get(&mut *channel, imported, &[1, 5], &pair.landing(2, ROW_BYTES));
    assert_eq!(pair.owner.connections_served(), 1);
    drop(silent);
}

#[test]
fn neighbours_are_read_at_once_where_they_land_as_they_lie() {
    let pair = Pair::new();
    let (_region, imported) = pair.table(ROWS, ROW_BYTES);
    let mut channel = pair.reader.channel().unwrap();
    let all: Vec<u64> = (0..ROWS).collect();
    let landing = pair.landing(all.len(), ROW_BYTES);
    check_get(&mut *channel, imported, &all, &landing);
    // 1 MiB a read.
    assert_eq!(pair.reader.counters().row_reads, 2);
    let apart = Landing::new(&pair.reader, 10, ROW_BYTES, ROW_BYTES + 1);
    check_get(&mut *channel, imported, &all[..10], &apart);
    apart.assert_untouched_except(&places(&all[..10]));
    assert_eq!(pair.reader.counters().row_reads, 2 + 10);
}

#[test]
fn a_channel_that_is_full_says_so_and_loses_nothing() {
    let pair = Pair::new();
    let (_region, imported) = pair.table(ROWS, ROW_BYTES);
    let mut channel = pair.reader.channel().unwrap();
    let limit = pair.reader.capabilities().batches_in_flight_max;
    let rows = scattered(40);
    let landings: Vec<_> = (0..=limit).map(|_| pair.landing(rows.len(), ROW_BYTES)).collect();
    let places = places(&rows);
    let mut accepted = 0;
    for (number, landing) in landings.iter().enumerate() {
        let batch = RowBatch { id: BatchId(number as u64), ..batch(imported, &rows, &places, landing) };
        // SAFETY: the landings outlive their batches.
        accepted += unsafe { channel.post(&batch) }.unwrap();
    }
    assert_eq!((accepted, pair.reader.counters().posts_refused), (limit * rows.len(), 1));
    let completions = drain(&mut *channel, accepted);
    assert!(completions.iter().all(|completion| completion.status.is_ok()), "{completions:?}");
    landings[..limit].iter().for_each(|landing| landing.assert_rows(Rank(0), &rows, &places));
}

fn drain(channel: &mut dyn Channel, rows: usize) -> Vec<Completion> {
    let (began, mut completions) = (Instant::now(), Vec::new());
    let ended = |completions: &[Completion]| completions.iter().map(|c| c.count as usize).sum::<usize>();
    while ended(&completions) < rows {
        assert!(began.elapsed() < PATIENCE, "{} of {rows} rows after {PATIENCE:?}", ended(&completions));
        channel.poll(&mut completions, Wait::For(Duration::from_millis(100))).unwrap();
    }
    assert_eq!(ended(&completions), rows);
    completions
}

#[test]
fn rows_are_exact_while_one_packet_in_a_hundred_is_lost() {
    let pair = Pair::new();
    let (_region, imported) = pair.table(ROWS, ROW_BYTES);
    let mut channel = pair.reader.channel().unwrap();
    let rows = scattered(2000);
    let landing = pair.landing(rows.len(), ROW_BYTES);
    check_get(&mut *channel, imported, &rows, &landing);
    let loss = Loss::of(1);
    for _ in 0..5 {
        check_get(&mut *channel, imported, &rows, &landing);
    }
    assert!(loss.lost() > 20, "only {} packets were lost", loss.lost());
    assert_eq!(pair.reader.counters().connections_failed, 0);
}

#[test]
fn a_network_that_is_down_is_an_error_within_seconds_and_heals() {
    let pair = Pair::new();
    let (_region, imported) = pair.table(ROWS, ROW_BYTES);
    let mut channel = pair.reader.channel().unwrap();
    let rows = scattered(400);
    let landing = pair.landing(rows.len(), ROW_BYTES);
    check_get(&mut *channel, imported, &rows, &landing);
    let down = Loss::of(100);
    landing.poison();
    let began = Instant::now();
    let cause = failure(&mut *channel, &batch(imported, &rows, &places(&rows), &landing));
    assert!(began.elapsed() < Duration::from_secs(10), "after {:?}", began.elapsed());
    assert!(
        matches!(&cause, TransferError::PeerGone(words) if words.contains("transport retry counter exceeded")),
        "{cause}"
    );
    landing.assert_untouched_except(&[]);
    drop(down);
    check_get(&mut *channel, imported, &rows, &landing);
    assert_eq!((pair.reader.counters().connections, pair.reader.counters().connections_failed), (2, 1));
}

/// A token that says what it likes, under the owner's own secret.
fn forge(owner: &VerbsTransport, token: &[u8], change: impl FnOnce(&mut [u8])) -> Vec<u8> {
    let mut body = token[..40].to_vec();
    change(&mut body);
    let mut mac = Hmac::<sha2::Sha256>::new_from_slice(&owner.address()[8..40]).unwrap();
    mac.update(&body);
    [&body[..], &mac.finalize().into_bytes()[..16]].concat()
}

#[test]
fn rows_past_the_region_are_refused_by_the_owners_device() {
    let pair = Pair::new();
    let (region, good) = pair.table(ROWS, ROW_BYTES);
    let past = forge(&pair.owner, region.token(), |body| body[16..24].copy_from_slice(&(1u64 << 30).to_le_bytes()));
    let past = pair.reader.import(Rank(0), &past).unwrap();
    let strange_key = forge(&pair.owner, region.token(), |body| body[33] ^= 0x55);
    let strange_key = pair.reader.import(Rank(0), &strange_key).unwrap();
    let mut channel = pair.reader.channel().unwrap();
    let landing = pair.landing(2, ROW_BYTES);
    for (region, rows) in [(past, [ROWS, ROWS + 9]), (strange_key, [1, 3])] {
        landing.poison();
        let cause = failure(&mut *channel, &batch(region, &rows, &[0, 1], &landing));
        assert!(matches!(&cause, TransferError::Io(words) if words.contains("remote access error")), "{cause}");
        landing.assert_untouched_except(&[]);
        check_get(&mut *channel, good, &[0, ROWS - 1], &landing);
    }
    // What is posted behind a refused list is told why it was flushed.
    let spare = pair.landing(1, ROW_BYTES);
    for (number, batch) in [batch(past, &[ROWS], &[0], &landing), batch(good, &[5], &[0], &spare)].iter().enumerate() {
        // SAFETY: the landings outlive their batches.
        assert_eq!(unsafe { channel.post(&RowBatch { id: BatchId(number as u64), ..*batch }) }.unwrap(), 1);
    }
    for Completion { batch, status, .. } in drain(&mut *channel, 2) {
        let cause = status.expect_err("the connection ended").to_string();
        assert!(cause.contains("remote access error") && (batch == BatchId(0)) != cause.contains("flushed"), "{cause}");
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len() / 2).map(|at| u8::from_str_radix(&text[2 * at..2 * at + 2], 16).unwrap()).collect()
}

const OWNED_ROWS: u64 = 2000;
const OWNED_BYTES: usize = 16384;

/// Not a test: the owner that [`an_owner_that_is_killed_is_told_apart_from_one_that_lives`] starts as a process and kills.
#[test]
#[ignore = "serves until it is killed; a test starts it"]
fn owner_process() {
    let transport = VerbsTransport::new(config("rxe0")).unwrap();
    let region = transport.allocate(OWNED_ROWS as usize * OWNED_BYTES, Access::RemoteRead).unwrap();
    fill(&region, Rank(1), OWNED_BYTES);
    println!("\nowner {} {}", hex(&transport.address()), hex(region.token()));
    // The end of the input is that of the parent.
    let _ = std::io::stdin().lines().next();
}

/// Kills and waits with its drop, so that a failed test leaves nothing behind.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn an_owner_that_is_killed_is_told_apart_from_one_that_lives() {
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "owner_process", "--nocapture"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut child = Killed(child);
    let lines = BufReader::new(child.0.stdout.take().unwrap()).lines().map(Result::unwrap);
    let line = { lines }.find(|line| line.starts_with("owner ")).expect("the owner tells where it is");
    let mut words = line.split(' ').skip(1).map(unhex);
    let (address, token) = (words.next().unwrap(), words.next().unwrap());

    let (living, reader) = (VerbsTransport::new(config("rxe0")).unwrap(), VerbsTransport::new(config("rxe1")).unwrap());
    reader.connect(&[living.address(), address]).unwrap();
    let region = living.allocate(ROWS as usize * ROW_BYTES, Access::RemoteRead).unwrap();
    fill(&region, Rank(0), ROW_BYTES);
    let from_living = reader.import(Rank(0), region.token()).unwrap();
    let from_dying = reader.import(Rank(1), &token).unwrap();
    let mut channel = reader.channel().unwrap();
    let rows: Vec<u64> = (0..OWNED_ROWS).step_by(2).collect();
    let places = places(&rows);
    let landings = [0, 1, 2, 3].map(|_| Landing::new(&reader, rows.len(), OWNED_BYTES, OWNED_BYTES));
    for (number, landing) in landings.iter().enumerate() {
        let batch = RowBatch { id: BatchId(number as u64), ..batch(from_dying, &rows, &places, landing) };
        // SAFETY: the landings outlive their batches.
        assert_eq!(unsafe { channel.post(&batch) }.unwrap(), rows.len());
    }
    let mut completions = Vec::new();
    while completions.is_empty() {
        channel.poll(&mut completions, Wait::For(PATIENCE)).unwrap();
    }
    child.0.kill().unwrap();
    let killed = Instant::now();
    let before: usize = completions.iter().map(|completion| completion.count as usize).sum();
    completions.extend(drain(&mut *channel, landings.len() * rows.len() - before));
    assert!(killed.elapsed() < Duration::from_secs(10), "after {:?}", killed.elapsed());
    let mut lost = 0;
    for Completion { batch, first, count, status } in completions {
        let range = first as usize..(first + count) as usize;
        match status {
            Ok(()) => landings[batch.0 as usize].assert_rows(Rank(1), &rows[range.clone()], &places[range]),
            Err(TransferError::PeerGone(_)) => lost += count,
            Err(other) => panic!("a killed owner reads as '{other}'"),
        }
    }
    assert!(lost > 0, "all rows had come before the owner was killed");
    let cause = failure(&mut *channel, &batch(from_dying, &rows[..1], &[0], &landings[0]));
    assert!(matches!(cause, TransferError::PeerGone(_)), "{cause}");
    check_get(&mut *channel, from_living, &[0, 7, ROWS - 1], &Landing::new(&reader, 3, ROW_BYTES, ROW_BYTES));
}

#[test]
fn nothing_is_written_after_an_abort_and_a_later_post_connects_anew() {
    let pair = Pair::new();
    let (_region, imported) = pair.table(1000, 16384);
    let mut channel = pair.reader.channel().unwrap();
    let rows: Vec<u64> = (0..1000).step_by(2).collect();
    let places = places(&rows);
    let landings = [0, 1, 2].map(|_| pair.landing(rows.len(), 16384));
    let mut aborted = 0;
    for pause_ms in [0, 5, 20, 60] {
        for (number, landing) in landings.iter().enumerate() {
            let batch = RowBatch { id: BatchId(number as u64), ..batch(imported, &rows, &places, landing) };
            // SAFETY: the landings outlive their batches.
            assert_eq!(unsafe { channel.post(&batch) }.unwrap(), rows.len());
        }
        let mut completions = Vec::new();
        channel.poll(&mut completions, Wait::For(Duration::from_millis(pause_ms))).unwrap();
        let _fenced = channel.abort(Rank(0)).unwrap();
        landings.iter().for_each(Landing::poison);
        let before: usize = completions.iter().map(|completion| completion.count as usize).sum();
        let rest = drain(&mut *channel, landings.len() * rows.len() - before);
        for completion in rest {
            match completion.status {
                Ok(()) => {}
                Err(TransferError::Aborted) => aborted += completion.count,
                Err(other) => panic!("an abort reads as '{other}'"),
            }
        }
        std::thread::sleep(Duration::from_millis(20));
        landings.iter().for_each(|landing| landing.assert_untouched_except(&[]));
    }
    assert!(aborted > 0, "every row had come before the abort");
    check_get(&mut *channel, imported, &rows, &landings[0]);
    assert_eq!(pair.reader.counters().connections_failed, 0, "an abort is no failure");
    until("the owner ends what was aborted", || pair.owner.connections_served() == 1);
}

fn until(what: &str, holds: impl Fn() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn past_the_cap_of_queue_pairs_the_error_names_fabric() {
    let few = |device| VerbsConfig { queue_pairs_max: 1, ..config(device) };
    for (owner, reader) in [(config("rxe0"), few("rxe1")), (few("rxe0"), config("rxe1"))] {
        let pair = Pair::of(owner, reader);
        let (_region, imported) = pair.table(ROWS, ROW_BYTES);
        let landing = pair.landing(1, ROW_BYTES);
        let mut first = pair.reader.channel().unwrap();
        let mut second = pair.reader.channel().unwrap();
        check_get(&mut *first, imported, &[3], &landing);
        let cause = failure(&mut *second, &batch(imported, &[3], &[0], &landing)).to_string();
        assert!(cause.contains("use the fabric transport"), "{cause}");
        check_get(&mut *first, imported, &[3], &landing);
        drop(first);
        until("the place is free again", || pair.owner.connections_served() == 0);
        check_get(&mut *second, imported, &[3], &landing);
    }
}

#[test]
fn another_secret_is_refused_with_a_hint() {
    let stranger = VerbsConfig { secret: rudder::transport::tcp::JobSecret([9; 32]), ..config("rxe1") };
    let pair = Pair::of(config("rxe0"), stranger);
    let (_region, imported) = pair.table(ROWS, ROW_BYTES);
    let landing = pair.landing(1, ROW_BYTES);
    let mut channel = pair.reader.channel().unwrap();
    let cause = failure(&mut *channel, &batch(imported, &[3], &[0], &landing));
    assert!(matches!(&cause, TransferError::PeerGone(words) if words.contains("job secret")), "{cause}");
}

#[test]
fn destinations_that_are_not_registered_are_refused() {
    let pair = Pair::new();
    let (_region, imported) = pair.table(ROWS, ROW_BYTES);
    let mut channel = pair.reader.channel().unwrap();
    let mut bytes = [GUARD; ROW_BYTES];
    let destination = Destination { base: bytes.as_mut_ptr(), stride: ROW_BYTES, places: 1 };
    let landing = pair.landing(1, ROW_BYTES);
    let unregistered = RowBatch { destination, ..batch(imported, &[1], &[0], &landing) };
    // SAFETY: nothing is posted: the batch is refused.
    let cause = unsafe { channel.post(&unregistered) }.expect_err("the device cannot write there").to_string();
    assert!(cause.contains("Access::Local"), "{cause}");
    assert_eq!(bytes, [GUARD; ROW_BYTES]);
    check_get(&mut *channel, imported, &[1], &landing);
}

#[test]
fn missing_devices_and_gids_are_named() {
    let cause = |config| match VerbsTransport::new(config) {
        Ok(_) => panic!("it opened"),
        Err(error @ (Error::Transport { .. } | Error::Config(_))) => error.to_string(),
        Err(other) => panic!("{other}"),
    };
    let device = cause(config("mlx5_9"));
    assert!(device.contains("mlx5_9") && device.contains("rxe0") && device.contains("RUDDER_VERBS_DEVICE"), "{device}");
    let mut no_gid = config("rxe0");
    no_gid.settings.gid = Some(200);
    let gid = cause(no_gid);
    assert!(gid.contains("index 200") && gid.contains("RUDDER_VERBS_GID"), "{gid}");
}

/// Runs a test that is ignored otherwise in a process of its own, by way of a command line that ends before its name.
fn run_apart(prefix: &[&str], test: &str) {
    let this = std::env::current_exe().unwrap();
    let output =
        Command::new(prefix[0]).args(&prefix[1..]).arg(this).args(["--ignored", "--exact", test]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("1 passed"), "{text}{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_limit_of_pinned_memory_is_named_with_its_remedy() {
    // Root may pin what it likes, but for this capability.
    run_apart(&["bash", "-c", "ulimit -l 64; exec setpriv --bounding-set=-ipc_lock \"$@\"", "-"], "limited_process");
}

/// Not a test: the process of [`a_limit_of_pinned_memory_is_named_with_its_remedy`].
#[test]
#[ignore = "needs the limit that a test starts it with"]
fn limited_process() {
    let transport = VerbsTransport::new(config("rxe0")).unwrap();
    let _small = transport.allocate(4096, Access::RemoteRead).unwrap();
    let pinned = transport.counters().pinned_bytes;
    let cause = transport.allocate(1 << 20, Access::RemoteRead).expect_err("more than may be pinned").to_string();
    let parts =
        ["pin 1048576 bytes", "RLIMIT_MEMLOCK is 65536 bytes", "ulimit -l", &format!("{pinned} are pinned already")];
    assert!(pinned >= 4096 && parts.iter().all(|part| cause.contains(part)), "{cause}");
    let cause = transport.allocate(1 << 20, Access::Local).expect_err("more than may be pinned").to_string();
    assert!(cause.contains("RLIMIT_MEMLOCK"), "{cause}");
}

#[test]
fn pinned_bytes_are_counted_limited_and_given_back() {
    const BYTES: usize = 1 << 20;
    let before = usage().pinned_bytes;
    let transport = VerbsTransport::new(config("rxe0")).unwrap();
    let opened = usage().pinned_bytes;
    let region = transport.allocate(BYTES, Access::RemoteRead).unwrap();
    let with_region = usage().pinned_bytes;
    assert!(with_region >= opened + BYTES, "{opened} bytes before, {with_region} with the region");
    for access in [Access::RemoteRead, Access::Local] {
        limit_pinned((with_region + BYTES - 1) as u64);
        let refused = transport.allocate(BYTES, access).map(drop);
        limit_pinned(u64::MAX);
        let refused = refused.expect_err("more than may be pinned").to_string();
        let parts = ["pin 1048576 bytes", "pinned_bytes_max", "RUDDER_PINNED_BYTES_MAX"];
        assert!(parts.iter().all(|part| refused.contains(part)), "{refused}");
        drop(transport.allocate(BYTES, access).expect("the refusal was taken back"));
    }
    drop(region);
    assert!(usage().pinned_bytes < opened + BYTES, "{} bytes are pinned still", usage().pinned_bytes);
    drop(transport);
    assert_eq!(usage().pinned_bytes, before);
}

#[test]
fn a_machine_without_libibverbs_is_told_what_to_install() {
    let hide = "mount --bind /dev/null \"$(readlink -f /usr/lib/*/libibverbs.so.1)\"; exec \"$@\"";
    run_apart(&["unshare", "--mount", "bash", "-c", hide, "-"], "process_without_libibverbs");
}

/// Not a test: the process of [`a_machine_without_libibverbs_is_told_what_to_install`].
#[test]
#[ignore = "needs the mount that a test starts it with"]
fn process_without_libibverbs() {
    let Err(Error::Transport { transport: "verbs", cause }) = VerbsTransport::new(config("rxe0")).map(drop) else {
        panic!("it opened, or failed in another way");
    };
    assert!(cause.contains("cannot load libibverbs") && cause.contains("install rdma-core"), "{cause}");
}

#[test]
fn empty_tables_are_regions() {
    let pair = Pair::new();
    let (_region, imported) = pair.table(0, ROW_BYTES);
    let landing = pair.landing(1, ROW_BYTES);
    let mut channel = pair.reader.channel().unwrap();
    // SAFETY: nothing is posted: the batch is refused.
    unsafe { channel.post(&batch(imported, &[0], &[0], &landing)) }.expect_err("there is no row");
}

#[test]
fn a_forked_child_harms_nothing_and_takes_no_page() {
    let pair = Pair::new();
    let (region, imported) = pair.table(ROWS, ROW_BYTES);
    // Private memory of our own: after a fork, whoever writes first gets a copy, and the device must go on with the parent's.
    const BYTES: usize = 1 << 20;
    let layout = Layout::from_size_align(BYTES, 4096).unwrap();
    // SAFETY: the layout has a size.
    let base = NonNull::new(unsafe { std::alloc::alloc_zeroed(layout) }).unwrap();
    // SAFETY: the memory lives to the end of the process.
    let memory = unsafe { Memory::borrow(base, BYTES, Arc::new(())) };
    // SAFETY: nobody else knows the memory.
    let local = unsafe { pair.reader.register(memory, Access::Local) }.unwrap();
    let landing = pair.landing(2, ROW_BYTES);
    let mut channel = pair.reader.channel().unwrap();
    check_get(&mut *channel, imported, &[1, 8], &landing);
    // SAFETY: the child runs Rust code that takes no lock which another thread of the parent may hold, but the allocator's, which the C
    // library makes usable in the child; it ends by `_exit`.
    let child = unsafe { libc::fork() };
    if child == 0 {
        // SAFETY: the alarm's default action ends the child.
        unsafe { libc::alarm(20) };
        drop((channel, region, local, pair));
        // SAFETY: ends the child, later than the parent needs its pages, without running what belongs to the parent.
        unsafe {
            libc::usleep(500_000);
            libc::_exit(0)
        }
    }
    assert!(child > 0, "fork failed");
    // Every page is written by the parent while the child still shares it.
    (0..BYTES).step_by(4096).for_each(|at| {
        // SAFETY: within the memory, which no get is writing to.
        unsafe { base.as_ptr().add(at).write(1) }
    });
    std::thread::sleep(Duration::from_millis(100));
    let rows = scattered(1000);
    let destination = Destination { base: base.as_ptr(), stride: ROW_BYTES, places: rows.len() };
    for status in get_all(&mut *channel, &RowBatch { destination, ..batch(imported, &rows, &places(&rows), &landing) })
    {
        status.expect("the row is there");
    }
    for (place, &row) in rows.iter().enumerate() {
        for at in 0..ROW_BYTES {
            // SAFETY: within the memory, and no get is on its way.
            let found = unsafe { base.as_ptr().add(place * ROW_BYTES + at).read() };
            assert_eq!(found, byte(Rank(0), row, at), "row {row}, byte {at}");
        }
    }
    let mut status = -1;
    // SAFETY: waits for the child just made.
    unsafe { libc::waitpid(child, &mut status, 0) };
    assert_eq!(status, 0, "the child did not end");
    check_get(&mut *channel, imported, &[1, 8], &landing);
    assert_eq!(pair.reader.counters().connections, 1, "the child ended the parent's connection");
}

#[test]
fn an_engine_gathers_over_it_without_registering_once_warm() {
    const TABLE: TableId = TableId(0);
    const NODES: u64 = 3000;
    let transports: Vec<Arc<VerbsTransport>> =
        ["rxe0", "rxe1"].into_iter().map(|device| Arc::new(VerbsTransport::new(config(device)).unwrap())).collect();
    std::thread::scope(|scope| {
        for (bootstrap, transport) in local::ranks(2).into_iter().zip(transports) {
            scope.spawn(move || {
                let rank = bootstrap.rank();
                let config = Config { map_host_rows: false, ..Config::default() };
                let book = PartitionBook::from_starts(vec![0, NODES, 2 * NODES]).unwrap();
                let spec = TableSpec::new(TABLE, book, PartitionId(rank.0), ROW_BYTES);
                let fill = |rows: &mut [u8]| {
                    for (at, place) in rows.iter_mut().enumerate() {
                        *place = byte(rank, (at / ROW_BYTES) as u64, at % ROW_BYTES);
                    }
                };
                let engine = Engine::builder(config, Arc::new(bootstrap)).transport(transport.clone());
                let engine = engine.table(spec, fill).start().unwrap();
                let mut rows = vec![0; 1000 * ROW_BYTES];
                let mut warm = None;
                for round in 0..6 {
                    let nodes: Vec<_> = (0..1000).map(|i| NodeId((i * 6 + round * 7) % (2 * NODES))).collect();
                    engine.gather(TABLE, &nodes, None, &mut rows).unwrap();
                    for (node, row) in nodes.iter().zip(rows.chunks(ROW_BYTES)) {
                        let (owner, at) = (Rank((node.0 / NODES) as u32), node.0 % NODES);
                        assert!(row.iter().enumerate().all(|(i, &found)| found == byte(owner, at, i)), "{node}");
                    }
                    warm = warm.or(Some(transport.counters().registrations));
                }
                assert!(transport.counters().rows > 0);
                assert_eq!(Some(transport.counters().registrations), warm, "registered after the first gather");
                engine.shutdown().unwrap();
            });
        }
    });
}
