//! Goal: what the fabric transport costs and leaves behind is as promised: registrations, doorbells, refused posts, fences, open objects.
//! Method: its counters, and those of the fake libfabric, whose reads can be held up. One test at a time, because the fake counts for the
//! whole process.

mod common;
#[path = "common/fake_libfabric.rs"]
mod fake_libfabric;

use common::{GUARD, Landing, PATIENCE, fill, get_all};
use rudder::memory::{Access, Region, limit_pinned, usage};
use rudder::transport::fabric::{FabricConfig, FabricCounters, FabricTransport, ReadMode};
use rudder::transport::{BatchId, Channel, Completion, RemoteRegion, RowBatch, Transport, Wait};
use rudder::{Rank, TransferError};
use std::ffi::CString;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A function of the fake's own.
fn fake(name: &str) -> *mut libc::c_void {
    let (path, name) = (CString::new(fake_libfabric::path()).unwrap(), CString::new(name).unwrap());
    // SAFETY: both strings end with 0; the library, once loaded, stays.
    let symbol = unsafe { libc::dlsym(libc::dlopen(path.as_ptr(), libc::RTLD_NOW), name.as_ptr()) };
    assert!(!symbol.is_null(), "the fake has no {name:?}");
    symbol
}

fn objects() -> i32 {
    // SAFETY: the fake declares it so.
    let count: extern "C" fn() -> i32 = unsafe { std::mem::transmute(fake("fake_objects")) };
    count()
}

fn stall(stalled: bool) {
    // SAFETY: the fake declares it so.
    let stall: extern "C" fn(i32) = unsafe { std::mem::transmute(fake("fake_stall")) };
    stall(stalled.into());
}

fn config(provider: &str, rma: ReadMode) -> FabricConfig {
    let library = Some(fake_libfabric::path().into());
    FabricConfig { provider: Some(provider.into()), rma, library, ..FabricConfig::default() }
}

/// A connected job, all of it in this thread.
fn job(config: &FabricConfig, ranks: usize) -> Vec<FabricTransport> {
    let open = |_| FabricTransport::new(config.clone()).expect("the transport opens");
    let transports: Vec<_> = (0..ranks).map(open).collect();
    let addresses: Vec<_> = transports.iter().map(|transport| transport.address()).collect();
    transports.iter().for_each(|transport| transport.connect(&addresses).unwrap());
    transports
}

fn share(transports: &[FabricTransport], owner: usize, rows: usize, row_bytes: usize) -> (Region, RemoteRegion) {
    let region = transports[owner].allocate(rows * row_bytes, Access::RemoteRead).unwrap();
    fill(&region, Rank(owner as u32), row_bytes);
    let imported = transports[0].import(Rank(owner as u32), region.token()).unwrap();
    (region, imported)
}

fn batch<'a>(region: RemoteRegion, rows: &'a [u64], places: &'a [u32], landing: &Landing) -> RowBatch<'a> {
    let (row_bytes, destination) = (landing.row_bytes, landing.destination());
    RowBatch { id: BatchId(region.peer.0.into()), region, version: 0, row_bytes, rows, places, destination }
}

fn get(channel: &mut dyn Channel, region: RemoteRegion, rows: &[u64], places: &[u32], landing: &Landing) {
    for status in get_all(channel, &batch(region, rows, places, landing)) {
        status.expect("the row is there");
    }
    landing.assert_rows(region.peer, rows, places);
}

fn spent(transport: &FabricTransport, work: impl FnOnce()) -> FabricCounters {
    let before = transport.counters();
    work();
    let after = transport.counters();
    FabricCounters {
        rows: after.rows - before.rows,
        reads: after.reads - before.reads,
        doorbells: after.doorbells - before.doorbells,
        requests: after.requests - before.requests,
        replies: after.replies - before.replies,
        completions: after.completions - before.completions,
        registrations: after.registrations - before.registrations,
        retries: after.retries - before.retries,
        reopened: after.reopened - before.reopened,
    }
}

const ROWS: usize = 4000;

/// Every third row, so that no two are adjacent.
fn scattered() -> (Vec<u64>, Vec<u32>) {
    let rows: Vec<u64> = (0..ROWS as u64).step_by(3).collect();
    let places = (0..rows.len() as u32).collect();
    (rows, places)
}

#[test]
fn a_warm_channel_registers_nothing_and_rings_seldom() {
    let _alone = alone();
    for provider in ["cxi", "fakeraw"] {
        let transports = job(&config(provider, ReadMode::Auto), 2);
        let (_region, imported) = share(&transports, 1, ROWS, 32);
        let (rows, places) = scattered();
        let landing = Landing::new(&transports[0], rows.len(), 32, 32);
        let mut channel = transports[0].channel().unwrap();
        get(&mut *channel, imported, &rows, &places, &landing);
        let spent = spent(&transports[0], || {
            landing.poison();
            get(&mut *channel, imported, &rows, &places, &landing);
        });
        let segments = if provider == "cxi" { 1 } else { 4 };
        // The version's word is one more.
        assert_eq!(
            (spent.rows, spent.reads),
            (rows.len() as u64, rows.len().div_ceil(segments) as u64 + 1),
            "{spent:?}"
        );
        assert_eq!((spent.registrations, spent.requests, spent.reopened), (0, 0, 0), "{provider}: {spent:?}");
        assert_eq!(spent.completions, spent.reads, "{provider}: a read has one completion: {spent:?}");
        assert!(spent.doorbells * 2 < spent.rows, "{provider}: {spent:?}");
        assert!(spent.retries > 0, "{provider}: the fake refuses posts: {spent:?}");
    }
}

#[test]
fn adjacent_rows_are_one_read() {
    let _alone = alone();
    let transports = job(&config("cxi", ReadMode::Auto), 2);
    let (_region, imported) = share(&transports, 1, ROWS, 32);
    let rows: Vec<u64> = (100..200).chain(300..350).collect();
    let places: Vec<u32> = (0..150).collect();
    let mut channel = transports[0].channel().unwrap();
    for (stride, reads) in [(32, 2), (40, 150)] {
        let landing = Landing::new(&transports[0], 150, 32, stride);
        let spent = spent(&transports[0], || get(&mut *channel, imported, &rows, &places, &landing));
        assert_eq!(spent.reads, reads + 1, "stride {stride}: {spent:?}");
        landing.assert_untouched_except(&places);
    }
}

#[test]
fn wide_rows_come_in_pieces() {
    let _alone = alone();
    for (provider, rma) in [("fakeraw", ReadMode::On), ("fakeraw", ReadMode::Off), ("cxi", ReadMode::Off)] {
        let transports = job(&config(provider, rma), 2);
        let (_region, imported) = share(&transports, 1, 9, 200_000);
        let landing = Landing::new(&transports[0], 3, 200_000, 200_001);
        let mut channel = transports[0].channel().unwrap();
        get(&mut *channel, imported, &[0, 4, 8], &[2, 0, 1], &landing);
        landing.assert_untouched_except(&[0, 1, 2]);
    }
}

/// Polls until so many rows have ended.
fn drain(channel: &mut dyn Channel, rows: usize) -> Vec<Completion> {
    let deadline = Instant::now() + PATIENCE;
    let mut completions = Vec::new();
    while completions.iter().map(|completion: &Completion| completion.count as usize).sum::<usize>() < rows {
        assert!(Instant::now() < deadline, "{completions:?}");
        channel.poll(&mut completions, Wait::For(Duration::from_millis(20))).unwrap();
    }
    completions
}

#[test]
fn an_abort_of_stuck_reads_fences_them_and_repeats_those_of_others() {
    let _alone = alone();
    for provider in ["cxi", "fakeraw"] {
        let transports = job(&config(provider, ReadMode::Auto), 3);
        let (_stuck, stuck) = share(&transports, 1, 100, 16);
        let (_spared, spared) = share(&transports, 2, 100, 16);
        let (rows, places): (Vec<u64>, Vec<u32>) = ((0..100).collect(), (0..100).rev().collect());
        let [lost, kept] = [0, 1].map(|_| Landing::new(&transports[0], 100, 16, 16));
        let mut channel = transports[0].channel().unwrap();
        stall(true);
        for batch in [batch(stuck, &rows, &places, &lost), batch(spared, &rows, &places, &kept)] {
            // SAFETY: the landings outlive the channel's use of them, which has ended when all rows are reported.
            assert_eq!(unsafe { channel.post(&batch) }.unwrap(), 100);
        }
        channel.abort(Rank(1)).map(drop).expect("the transport fences");
        assert_eq!(transports[0].counters().reopened, 1);
        stall(false);
        for Completion { batch, status, .. } in drain(&mut *channel, 200) {
            let expected = if batch == BatchId(1) { Err(TransferError::Aborted) } else { Ok(()) };
            assert_eq!(status, expected);
        }
        kept.assert_rows(Rank(2), &rows, &places);
        assert!((0..100).all(|place| lost.row(place).iter().all(|&byte| byte == GUARD)), "an aborted row was written");
        get(&mut *channel, stuck, &rows, &places, &lost);
    }
}

#[test]
fn what_never_ends_is_given_up() {
    let _alone = alone();
    let limits = FabricConfig { silence_timeout: Duration::from_secs(1), ..config("cxi", ReadMode::Auto) };
    let transports = job(&limits, 2);
    let (_region, imported) = share(&transports, 1, 10, 16);
    let landing = Landing::new(&transports[0], 1, 16, 16);
    let mut channel = transports[0].channel().unwrap();
    stall(true);
    let statuses = get_all(&mut *channel, &batch(imported, &[3], &[0], &landing));
    stall(false);
    assert_eq!(statuses, [Err(TransferError::DeadlineExceeded(Duration::from_secs(1)))]);
    landing.assert_untouched_except(&[]);
    get(&mut *channel, imported, &[3], &[0], &landing);
}

#[test]
fn pinned_bytes_are_counted_limited_and_given_back() {
    const BYTES: usize = 1 << 20;
    let _alone = alone();
    for provider in ["cxi", "fakeraw"] {
        let before = usage().pinned_bytes;
        let transports = job(&config(provider, ReadMode::Auto), 2);
        let opened = usage().pinned_bytes;
        let region = transports[1].allocate(BYTES, Access::RemoteRead).unwrap();
        let with_region = usage().pinned_bytes;
        assert!(with_region >= opened + BYTES, "{provider}: {opened} bytes before, {with_region} with the region");
        limit_pinned((with_region + BYTES - 1) as u64);
        let refused = transports[1].allocate(BYTES, Access::RemoteRead).map(drop);
        limit_pinned(u64::MAX);
        let refused = refused.expect_err("more than may be pinned").to_string();
        let parts = ["pin 1048576 bytes", "pinned_bytes_max", "RUDDER_PINNED_BYTES_MAX"];
        assert!(parts.iter().all(|part| refused.contains(part)), "{provider}: {refused}");
        drop(transports[1].allocate(BYTES, Access::RemoteRead).expect("the refusal was taken back"));
        drop(region);
        assert!(usage().pinned_bytes < opened + BYTES, "{provider}: {} bytes are pinned still", usage().pinned_bytes);
        drop(transports);
        assert_eq!(usage().pinned_bytes, before, "{provider}");
    }
}

#[test]
fn leaving_closes_everything_in_whatever_order() {
    let _alone = alone();
    for (provider, rma) in [("cxi", ReadMode::Auto), ("fakeraw", ReadMode::Auto), ("fakeraw", ReadMode::Off)] {
        for order in 0..3 {
            assert_eq!(objects(), 0, "{provider}: something was open before");
            let transports = job(&config(provider, rma), 2);
            let (region, imported) = share(&transports, 1, 100, 16);
            let landing = Landing::new(&transports[0], 2, 16, 16);
            let mut channel = transports[0].channel().unwrap();
            get(&mut *channel, imported, &[1, 2], &[0, 1], &landing);
            assert!(objects() > 0);
            match order {
                0 => drop((channel, landing, region, transports)),
                1 => drop((transports, region, landing, channel)),
                _ => drop((region, transports, channel, landing)),
            }
            assert_eq!(objects(), 0, "{provider}, order {order}: left open");
        }
    }
}

#[test]
fn a_forked_child_closes_nothing() {
    let _alone = alone();
    let transports = job(&config("fakeraw", ReadMode::Auto), 2);
    let (region, imported) = share(&transports, 1, 100, 16);
    let landing = Landing::new(&transports[0], 2, 16, 16);
    let mut channel = transports[0].channel().unwrap();
    get(&mut *channel, imported, &[1, 2], &[0, 1], &landing);
    let open = objects();
    // SAFETY: the child takes no lock that another thread of the parent may hold, and ends by `_exit` or by the alarm.
    match unsafe { libc::fork() } {
        0 => {
            // SAFETY: the alarm's default action ends the child.
            unsafe { libc::alarm(20) };
            drop((channel, region, transports));
            drop(landing);
            // The owners' threads are the parent's, so that nobody here holds the fake's lock.
            let status = i32::from(objects() != open);
            // SAFETY: ends the child without running what belongs to the parent.
            unsafe { libc::_exit(status) }
        }
        child => {
            assert!(child > 0, "fork failed");
            let mut status = -1;
            // SAFETY: waits for the child just made.
            unsafe { libc::waitpid(child, &mut status, 0) };
            assert_eq!(status, 0, "the child closed something, or did not end");
        }
    }
    landing.poison();
    get(&mut *channel, imported, &[5, 6], &[0, 1], &landing);
}

#[test]
fn one_nic_is_chosen_by_name() {
    let _alone = alone();
    let named = FabricConfig { domain: Some("cxi1".into()), ..config("cxi", ReadMode::Auto) };
    assert_eq!(FabricTransport::new(named.clone()).unwrap().domain(), "cxi1");
    assert_eq!(FabricTransport::new(FabricConfig { domain: None, ..named.clone() }).unwrap().domain(), "cxi0");
    let unnamed = FabricConfig { provider: None, domain: None, ..named.clone() };
    assert_eq!(FabricTransport::new(unnamed).unwrap().provider(), "cxi", "the fastest network first");
    let error = FabricTransport::new(FabricConfig { domain: Some("cxi7".into()), ..named }).err().unwrap().to_string();
    assert!(error.contains("cxi7") && error.contains("RUDDER_FABRIC_DOMAIN"), "{error}");
}

#[test]
fn ranks_of_different_providers_are_told() {
    let _alone = alone();
    let [one, other] = ["cxi", "fakeraw"].map(|name| FabricTransport::new(config(name, ReadMode::Auto)).unwrap());
    let error = one.connect(&[one.address(), other.address()]).unwrap_err().to_string();
    assert!(error.contains("fakeraw") && error.contains("RUDDER_FABRIC_PROVIDER"), "{error}");
}
