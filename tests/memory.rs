//! Goal: memory is what it says: really allocated, counted, shared read-only, refused in words, and pooled without loss.
//! Method: each claim is asked of the system or of the counters. One test at a time holds the counters.

use proptest::prelude::*;
use rudder::memory::{Access, FeatureTable, Memory, Pages, Rows, RowsPool, Version, copy, usage};
use rudder::transport::{Destination, Transport, TransportConfig, names, open};
use rudder::{Error, Rank, TableId};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

static COUNTERS: Mutex<()> = Mutex::new(());

fn shm() -> Arc<dyn Transport> {
    open("shm", &TransportConfig::new(Rank(0), 1)).unwrap()
}

#[test]
fn allocations_are_counted_and_given_back() {
    let _alone = COUNTERS.lock().unwrap_or_else(PoisonError::into_inner);
    let before = usage();
    let memory = Memory::allocate_with(5 << 20, Pages { huge: false, locked: false }).unwrap();
    assert!(usage().bytes >= before.bytes + (5 << 20) && usage().peak_bytes >= usage().bytes);
    drop(memory);
    assert_eq!(usage().bytes, before.bytes);
}

#[test]
fn what_cannot_be_had_is_an_error_with_a_remedy() {
    let _alone = COUNTERS.lock().unwrap_or_else(PoisonError::into_inner);
    let before = usage();
    for bytes in [usize::MAX, isize::MAX as usize, 1 << 50, 1 << 46] {
        let began = Instant::now();
        let error = Memory::allocate(bytes).expect_err("there is not so much").to_string();
        assert!(error.contains(&bytes.to_string()) && error.contains("ask for less"), "{error}");
        assert!(began.elapsed() < Duration::from_secs(1), "it was tried: {:?}", began.elapsed());
    }
    let error = Memory::allocate(1 << 50).unwrap_err().to_string();
    assert!(error.contains("bytes left"), "{error}");
    assert_eq!(usage(), before);
    assert!(Memory::open("/nonexistent/table").unwrap_err().to_string().contains("check that the file exists"));
}

#[test]
fn borrowed_memory_is_not_shared_between_processes() {
    let mut bytes = vec![0u8; 64].into_boxed_slice();
    let base = NonNull::new(bytes.as_mut_ptr()).unwrap();
    let owner: Arc<Box<[u8]>> = Arc::new(bytes);
    let transport = shm();
    // SAFETY: the box stays where it is as long as the owner lives, and nobody else looks at it.
    let memory = || unsafe { Memory::borrow(base, 64, owner.clone()) };
    // SAFETY: nobody writes to the bytes.
    unsafe { transport.register(memory(), Access::Local) }.expect("a destination needs no file");
    // SAFETY: as above.
    let refused = unsafe { transport.register(memory(), Access::RemoteRead) }.unwrap_err().to_string();
    assert!(refused.contains("allocate it from the transport"), "{refused}");
}

#[test]
fn pools_are_bounded_and_their_buffers_return() {
    let _alone = COUNTERS.lock().unwrap_or_else(PoisonError::into_inner);
    let transport = shm();
    let pool = RowsPool::new(&*transport, 12, 100, 3).unwrap();
    let before = usage().bytes;
    for _ in 0..10 {
        let mut taken: Vec<Rows> = (0..3).map(|_| pool.take(100).unwrap()).collect();
        assert!(matches!(pool.take(1), Err(Error::Full { limit: 3, .. })));
        for (i, rows) in taken.iter_mut().enumerate() {
            let Destination { base, stride, places } = rows.destination();
            assert_eq!((stride, places, base as usize % 256), (12, 100, 0));
            // SAFETY: the rows are held exclusively.
            unsafe { base.write_bytes(i as u8 + 1, stride * places) };
        }
        for (i, rows) in taken.iter().enumerate() {
            assert!(rows.as_bytes().len() == 1200 && rows.as_bytes().iter().all(|&byte| byte == i as u8 + 1));
        }
    }
    assert_eq!((pool.available(), usage().bytes), (3, before));
    pool.take(101).expect_err("a buffer holds 100 rows");
    RowsPool::new(&*transport, usize::MAX, 2, 1).expect_err("an overflow");
    let last = pool.take(1).unwrap();
    drop((pool, transport));
    assert_eq!(last.as_bytes().len(), 12, "rows outlive their pool");
}

#[test]
fn tables_must_fit_their_region() {
    let transport = shm();
    let region = || transport.allocate(100, Access::RemoteRead).unwrap();
    for (row_bytes, rows, version) in
        [(0, 1, 0), (10, 11, 0), (usize::MAX, 2, 0), (10, u64::MAX, 0), (10, 1, Version::RETIRED)]
    {
        FeatureTable::new(TableId(0), row_bytes, rows, version, region()).expect_err("too large");
    }
    let table = FeatureTable::new(TableId(3), 10, 10, 7, region()).unwrap();
    assert_eq!((table.version(), table.rows(), table.row_bytes()), (7, 10, 10));
    table.publish(8).unwrap();
    table.publish(Version::RETIRED).expect_err("what a region shows after its end");
    assert_eq!(table.version(), 8);
}

#[test]
fn unknown_transports_are_told_which_exist() {
    let error = open("carrier-pigeon", &TransportConfig::new(Rank(0), 1)).err().unwrap().to_string();
    names().for_each(|name| assert!(error.contains(name), "{error}"));
}

#[test]
fn auto_takes_shm_on_one_host_and_tcp_across_hosts() {
    let config = TransportConfig::new(Rank(0), 2);
    assert_eq!(open("auto", &config).unwrap().name(), "shm");
    assert_eq!(open("auto", &TransportConfig { ranks_on_host: 1, ..config }).unwrap().name(), "tcp");
}

proptest! {
    #[test]
    fn gathers_equal_a_naive_copy(
        row_bytes in 1usize..600,
        stride_extra in 0usize..9,
        picks in proptest::collection::vec(0u64..50, 0..80),
    ) {
        let source: Vec<u8> = (0..50 * row_bytes).map(|at| (at * 31 % 251) as u8).collect();
        let stride = row_bytes + stride_extra;
        let places: Vec<u32> = (0..picks.len() as u32).rev().collect();
        let mut found = vec![0xEEu8; picks.len() * stride];
        let mut expected = found.clone();
        for (&row, &place) in picks.iter().zip(&places) {
            let at = place as usize * stride;
            expected[at..at + row_bytes].copy_from_slice(&source[row as usize * row_bytes..][..row_bytes]);
        }
        // SAFETY: rows and places were drawn within the two vectors.
        unsafe { copy::gather(source.as_ptr(), row_bytes, &picks, &places, found.as_mut_ptr(), stride) };
        prop_assert_eq!(found, expected);
    }
}
