//! The one list of what every transport must do, for every test target that has transports to hold against it.

use super::{Landing, Make, Member, PATIENCE, byte, fill, get_all, job, unconnected};
use rudder::memory::{Access, Memory, Version};
use rudder::transport::hook::{FaultConfig, Faulty};
use rudder::transport::{BatchId, Channel, Completion, RemoteRegion, RowBatch, Transport, Wait};
use rudder::{Rank, Result, TransferError};
use std::time::{Duration, Instant};

/// Hands the names of all checks to a macro: the one list of them.
macro_rules! all_checks {
    ($($to:tt)*) => {
        $($to)*! {
            rows_are_right_to_the_byte,
            empty_batches_end_at_once,
            batches_beyond_the_limits_are_accepted_in_parts,
            many_batches_fly_at_once,
            channels_are_independent,
            peers_are_told_apart,
            regions_are_told_apart,
            wrong_batches_are_refused_and_write_nothing,
            stale_versions_are_refused,
            bad_tokens_are_refused,
            bad_addresses_are_refused,
            aborts_fence,
            aborts_spare_other_peers,
            wakers_end_waits,
            polls_honour_deadlines,
            owners_that_compute_keep_nobody_waiting,
            a_dead_peer_is_an_error_or_right_rows,
            regions_may_go_while_peers_hold_them,
            a_table_of_a_file_is_served_where_it_can_be,
            under_faults_each_row_is_right_or_an_error,
        }
    };
}
pub(crate) use all_checks;

/// Runs every check over every transport of a list `name: |ranks| transports;`, each as a test of its own, ranks as threads.
#[allow(unused_macros, reason = "for targets whose ranks are threads")]
macro_rules! transports {
    ($($name:ident: $make:expr;)*) => {$(
        mod $name {
            const MAKE: $crate::common::Make = $crate::common::Make::Threads($make);
            $crate::common::suite::all_checks!($crate::common::suite::checks);
        }
    )*};
}
#[allow(unused_imports, reason = "as above")]
pub(crate) use transports;

#[allow(unused_macros, reason = "as above")]
macro_rules! checks {
    ($($check:ident,)*) => {$(
        #[test]
        fn $check() {
            $crate::common::suite::$check(MAKE);
        }
    )*};
}
#[allow(unused_imports, reason = "as above")]
pub(crate) use checks;

const ROWS: u64 = 200;
const ROW_BYTES: usize = 20;

fn batch<'a>(region: RemoteRegion, rows: &'a [u64], places: &'a [u32], landing: &Landing) -> RowBatch<'a> {
    let (row_bytes, destination) = (landing.row_bytes, landing.destination());
    RowBatch { id: BatchId(0), region, version: 0, row_bytes, rows, places, destination }
}

/// Posts once; the places belong to the test.
fn post(channel: &mut dyn Channel, batch: &RowBatch<'_>) -> Result<usize> {
    // SAFETY: landings outlive their batches here, are looked at only after these have ended, and batches in flight share no place.
    unsafe { channel.post(batch) }
}

/// Polls until so many rows have ended.
fn drain(channel: &mut dyn Channel, rows: usize) -> Vec<Completion> {
    let deadline = Instant::now() + PATIENCE;
    let (mut completions, mut ended) = (Vec::new(), 0);
    while ended < rows {
        assert!(Instant::now() < deadline, "{ended} of {rows} rows after {PATIENCE:?}");
        let known = completions.len();
        channel.poll(&mut completions, Wait::For(Duration::from_millis(20))).expect("the channel works");
        ended += completions[known..].iter().map(|completion| completion.count as usize).sum::<usize>();
    }
    assert_eq!(ended, rows, "more rows ended than were posted");
    completions
}

fn all_in_place(statuses: Vec<Result<(), TransferError>>) {
    statuses.into_iter().for_each(|status| status.expect("the row is there"));
}

/// Gets rows of a peer and checks every byte of the landing.
fn check_get(me: &Member, channel: &mut dyn Channel, region: RemoteRegion, rows: &[u64]) {
    let places: Vec<u32> = (0..rows.len() as u32).rev().collect();
    let landing = Landing::new(&*me.transport, rows.len() + 1, ROW_BYTES, ROW_BYTES + 4);
    all_in_place(get_all(channel, &batch(region, rows, &places, &landing)));
    landing.assert_rows(region.peer, rows, &places);
    landing.assert_untouched_except(&places);
}

pub fn rows_are_right_to_the_byte(make: Make) {
    let rows = [0, 1, 1, 7, 63, 64, ROWS - 1, ROWS - 1];
    let places = [9, 0, 3, 11, 2, 7, 5, 6];
    for row_bytes in [1, 2, 3, 7, 8, 63, 64, 65, 400, 1000, 4095, 4096, 4097] {
        job(make, 2, |me| {
            let (_region, regions) = me.share(ROWS, row_bytes);
            let mut channel = me.channel();
            for (peer, padding) in [(Rank(0), 0), (Rank(1), 3), (Rank(1 - me.rank.0), 64)] {
                let landing = Landing::new(&*me.transport, 12, row_bytes, row_bytes + padding);
                let batch = batch(regions[peer.index()], &rows, &places, &landing);
                all_in_place(get_all(&mut *channel, &batch));
                landing.assert_rows(peer, &rows, &places);
                landing.assert_untouched_except(&places);
            }
            me.barrier();
        });
    }
}

pub fn empty_batches_end_at_once(make: Make) {
    job(make, 2, |me| {
        let (_region, regions) = me.share(ROWS, ROW_BYTES);
        let mut channel = me.channel();
        let landing = Landing::new(&*me.transport, 1, ROW_BYTES, ROW_BYTES);
        assert_eq!(post(&mut *channel, &batch(regions[1], &[], &[], &landing)).unwrap(), 0);
        let mut completions = Vec::new();
        channel.poll(&mut completions, Wait::No).unwrap();
        assert_eq!(completions, []);
        landing.assert_untouched_except(&[]);
        me.barrier();
    });
}

pub fn batches_beyond_the_limits_are_accepted_in_parts(make: Make) {
    job(make, 2, |me| {
        let (_region, regions) = me.share(ROWS, ROW_BYTES);
        let mut channel = me.channel();
        let limit = me.transport.capabilities().batch_rows_max;
        let rows: Vec<u64> = (0..limit as u64 * 2 + 3).map(|i| i * ROWS / (limit as u64 * 2 + 3)).collect();
        let places: Vec<u32> = (0..rows.len() as u32).collect();
        let landing = Landing::new(&*me.transport, rows.len(), ROW_BYTES, ROW_BYTES);
        let whole = batch(regions[1 - me.rank.index()], &rows, &places, &landing);
        let accepted = post(&mut *channel, &whole).unwrap();
        assert!((1..=limit).contains(&accepted), "accepted {accepted} rows with a limit of {limit}");
        drain(&mut *channel, accepted);
        landing.poison();
        all_in_place(get_all(&mut *channel, &whole));
        landing.assert_rows(whole.region.peer, &rows, &places);
        me.barrier();
    });
}

pub fn many_batches_fly_at_once(make: Make) {
    const BATCHES: usize = 40;
    job(make, 2, |me| {
        let (_region, regions) = me.share(ROWS, ROW_BYTES);
        let mut channel = me.channel();
        let region = regions[1 - me.rank.index()];
        let rows = |i: usize| [i as u64, i as u64 + 100, ROWS - 1 - i as u64 / 2];
        let landings: Vec<_> =
            (0..BATCHES).map(|_| Landing::new(&*me.transport, 3, ROW_BYTES, ROW_BYTES + 1)).collect();
        let (mut posted, mut ended, mut completions) = (0, [0; BATCHES], Vec::new());
        let deadline = Instant::now() + PATIENCE;
        while ended.iter().sum::<u32>() < 3 * BATCHES as u32 {
            assert!(Instant::now() < deadline, "rows ended per batch: {ended:?}");
            while posted < BATCHES {
                let rows = rows(posted);
                let batch = batch(region, &rows, &[2, 0, 1], &landings[posted]);
                match post(&mut *channel, &RowBatch { id: BatchId(posted as u64), ..batch }).unwrap() {
                    0 => break,
                    3 => posted += 1,
                    accepted => panic!("{accepted} of 3 rows accepted"),
                }
            }
            assert!(posted > 0, "not one batch was accepted");
            channel.poll(&mut completions, Wait::For(Duration::from_millis(20))).unwrap();
            for completion in completions.drain(..) {
                assert_eq!(completion.status, Ok(()));
                ended[completion.batch.0 as usize] += completion.count;
            }
        }
        assert_eq!(ended, [3; BATCHES]);
        (0..BATCHES).for_each(|i| landings[i].assert_rows(region.peer, &rows(i), &[2, 0, 1]));
        me.barrier();
    });
}

pub fn channels_are_independent(make: Make) {
    job(make, 2, |me| {
        let (_region, regions) = me.share(ROWS, ROW_BYTES);
        let region = regions[1 - me.rank.index()];
        std::thread::scope(|scope| {
            for first in 0..3 {
                let (me, mut channel) = (&me, me.channel());
                scope.spawn(move || {
                    let rows: Vec<u64> = (first..ROWS).step_by(3).collect();
                    (0..10).for_each(|_| check_get(me, &mut *channel, region, &rows));
                });
            }
        });
        me.barrier();
    });
}

pub fn peers_are_told_apart(make: Make) {
    job(make, 4, |me| {
        let (_region, regions) = me.share(ROWS, ROW_BYTES);
        let mut channel = me.channel();
        let landings: Vec<_> = regions.iter().map(|_| Landing::new(&*me.transport, 2, ROW_BYTES, ROW_BYTES)).collect();
        for (i, (&region, landing)) in regions.iter().zip(&landings).enumerate() {
            let batch = RowBatch { id: BatchId(i as u64), ..batch(region, &[5, 150], &[1, 0], landing) };
            assert_eq!(post(&mut *channel, &batch).unwrap(), 2);
        }
        let completions = drain(&mut *channel, 2 * regions.len());
        assert!(completions.iter().all(|completion| completion.status.is_ok()), "{completions:?}");
        for (region, landing) in regions.iter().zip(&landings) {
            landing.assert_rows(region.peer, &[5, 150], &[1, 0]);
        }
        me.barrier();
    });
}

pub fn regions_are_told_apart(make: Make) {
    job(make, 2, |me| {
        let (_first, first) = me.share(ROWS, ROW_BYTES);
        let (second, seconds) = me.share(ROWS / 2, ROW_BYTES);
        // Its rows claim to be of another rank, which tells the regions apart.
        fill(&second, Rank(me.rank.0 + 7), ROW_BYTES);
        me.barrier();
        let mut channel = me.channel();
        let peer = 1 - me.rank.index();
        check_get(&me, &mut *channel, first[peer], &[0, ROWS - 1]);
        let landing = Landing::new(&*me.transport, 1, ROW_BYTES, ROW_BYTES);
        all_in_place(get_all(&mut *channel, &batch(seconds[peer], &[ROWS / 2 - 1], &[0], &landing)));
        landing.assert_rows(Rank(peer as u32 + 7), &[ROWS / 2 - 1], &[0]);
        me.barrier();
    });
}

pub fn wrong_batches_are_refused_and_write_nothing(make: Make) {
    job(make, 2, |me| {
        let (_region, regions) = me.share(ROWS, ROW_BYTES);
        let region = regions[1 - me.rank.index()];
        let mut channel = me.channel();
        let landing = Landing::new(&*me.transport, 3, ROW_BYTES, ROW_BYTES);
        let good = batch(region, &[0, 1, 2], &[0, 1, 2], &landing);
        let mut narrow = landing.destination();
        narrow.stride = ROW_BYTES - 1;
        let wrong = [
            RowBatch { rows: &[0, 1, ROWS], ..good },
            RowBatch { rows: &[0, 1, u64::MAX], ..good },
            RowBatch { rows: &[u64::MAX / ROW_BYTES as u64 + 1, 1, 2], ..good },
            RowBatch { rows: &[0, 1], ..good },
            RowBatch { places: &[0, 1, 3], ..good },
            RowBatch { row_bytes: 0, ..good },
            RowBatch { version: Version::RETIRED, ..good },
            RowBatch { destination: narrow, ..good },
            RowBatch { region: RemoteRegion { index: region.index + 1000, ..region }, ..good },
            RowBatch { region: RemoteRegion { bytes: region.bytes * 2, ..region }, rows: &[0, 1, ROWS + 1], ..good },
        ];
        for batch in wrong {
            post(&mut *channel, &batch).expect_err(&format!("{batch:?} is wrong"));
        }
        let mut completions = Vec::new();
        channel.poll(&mut completions, Wait::No).unwrap();
        assert_eq!(completions, []);
        landing.assert_untouched_except(&[]);
        check_get(&me, &mut *channel, region, &[0, 1, ROWS - 1]);
        me.barrier();
    });
}

pub fn stale_versions_are_refused(make: Make) {
    job(make, 2, |me| {
        let (region, regions) = me.share(ROWS, ROW_BYTES);
        let peer = regions[1 - me.rank.index()];
        let mut channel = me.channel();
        check_get(&me, &mut *channel, peer, &[0, 1]);
        me.barrier();
        region.version().expect("an exported region has a version").set(8);
        me.barrier();
        let landing = Landing::new(&*me.transport, 2, ROW_BYTES, ROW_BYTES);
        let stale = batch(peer, &[0, 1], &[0, 1], &landing);
        for status in get_all(&mut *channel, &stale) {
            assert!(matches!(status, Err(TransferError::StaleRegion { version: 0, .. })), "{status:?}");
        }
        all_in_place(get_all(&mut *channel, &RowBatch { version: 8, ..stale }));
        landing.assert_rows(peer.peer, &[0, 1], &[0, 1]);
        me.barrier();
    });
}

pub fn bad_tokens_are_refused(make: Make) {
    job(make, 3, |me| {
        let region = me.transport.allocate(ROWS as usize * ROW_BYTES, Access::RemoteRead).unwrap();
        let tokens = me.all_gather(region.token());
        let peer = Rank((me.rank.0 + 1) % 3);
        let other = Rank((me.rank.0 + 2) % 3);
        let good = &tokens[peer.index()];
        me.transport.import(peer, good).expect("the token is good");
        for bytes in 0..good.len() {
            me.transport.import(peer, &good[..bytes]).expect_err("truncated");
            let mut corrupted = good.clone();
            corrupted[bytes] ^= 0x10;
            me.transport.import(peer, &corrupted).expect_err(&format!("byte {bytes} corrupted"));
        }
        me.transport.import(peer, &[&good[..], b"x"].concat()).expect_err("too long");
        me.transport.import(other, good).expect_err("another rank's");
        me.transport.import(Rank(99), good).expect_err("no such rank");
        me.barrier();
    });
}

pub fn bad_addresses_are_refused(make: Make) {
    unconnected(make, 2, |me| {
        let good = me.all_gather(&me.transport.address());
        let connect = |other: &[u8]| me.transport.connect(&[good[0].clone(), other.to_vec()]);
        connect(&good[1][..good[1].len() - 1]).expect_err("truncated");
        connect(b"nonsense").expect_err("nonsense");
        connect(&good[1]).expect("the addresses are good");
        me.barrier();
    });
}

pub fn aborts_fence(make: Make) {
    job(make, 2, |me| {
        let (_region, regions) = me.share(ROWS, 4096);
        let region = regions[1 - me.rank.index()];
        let rows: Vec<u64> = (0..ROWS).collect();
        let places: Vec<u32> = (0..ROWS as u32).collect();
        let mut channel = me.channel();
        let landing = Landing::new(&*me.transport, rows.len(), 4096, 4096);
        for _ in 0..20 {
            let batch = batch(region, &rows, &places, &landing);
            let accepted = post(&mut *channel, &batch).unwrap();
            if let Err(cause) = channel.abort(region.peer) {
                assert!(!me.transport.capabilities().can_fence, "{cause}");
                // Promised by nobody: the memory is lost, and nothing can be said of it.
                return std::mem::forget(landing);
            }
            // What ended before the fence may be there; from here on nothing may change.
            landing.poison();
            let completions = drain(&mut *channel, accepted);
            let ended_well = |c: &Completion| matches!(c.status, Ok(()) | Err(TransferError::Aborted));
            assert!(completions.iter().all(ended_well), "{completions:?}");
            std::thread::sleep(Duration::from_millis(2));
            landing.assert_untouched_except(&[]);
        }
        drop(landing);
        let landing = Landing::new(&*me.transport, 1, 4096, 4096);
        all_in_place(get_all(&mut *channel, &batch(region, &[3], &[0], &landing)));
        landing.assert_rows(region.peer, &[3], &[0]);
        me.barrier();
    });
}

pub fn aborts_spare_other_peers(make: Make) {
    job(make, 3, |me| {
        let (_region, regions) = me.share(ROWS, ROW_BYTES);
        let (stopped, spared) = (regions[(me.rank.index() + 1) % 3], regions[(me.rank.index() + 2) % 3]);
        let mut channel = me.channel();
        let [lost, kept] = [0, 1].map(|_| Landing::new(&*me.transport, 2, ROW_BYTES, ROW_BYTES));
        assert_eq!(post(&mut *channel, &batch(stopped, &[1, 2], &[0, 1], &lost)).unwrap(), 2);
        let spared_batch = RowBatch { id: BatchId(1), ..batch(spared, &[1, 2], &[0, 1], &kept) };
        assert_eq!(post(&mut *channel, &spared_batch).unwrap(), 2);
        channel.abort(stopped.peer).map(drop).expect("transports of this suite fence");
        for completion in drain(&mut *channel, 4) {
            assert!(completion.batch == BatchId(0) || completion.status.is_ok(), "{completion:?}");
        }
        kept.assert_rows(spared.peer, &[1, 2], &[0, 1]);
        me.barrier();
    });
}

pub fn wakers_end_waits(make: Make) {
    job(make, 1, |me| {
        let mut channel = me.channel();
        let waker = channel.waker();
        let began = Instant::now();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(Duration::from_millis(20));
                waker.wake();
            });
            channel.poll(&mut Vec::new(), Wait::For(Duration::from_secs(10))).unwrap();
        });
        assert!(began.elapsed() < Duration::from_secs(5), "the wait went on for {:?}", began.elapsed());
        waker.wake();
        let began = Instant::now();
        channel.poll(&mut Vec::new(), Wait::For(Duration::MAX)).unwrap();
        assert!(began.elapsed() < Duration::from_secs(5), "a wake-up before the wait was lost");
    });
}

pub fn polls_honour_deadlines(make: Make) {
    job(make, 2, |me| {
        let mut channel = me.channel();
        let mut completions = Vec::new();
        for wait in [Wait::No, Wait::For(Duration::ZERO), Wait::For(Duration::from_millis(30))] {
            let began = Instant::now();
            channel.poll(&mut completions, wait).unwrap();
            assert!(began.elapsed() < Duration::from_secs(2), "{wait:?} took {:?}", began.elapsed());
        }
        assert_eq!(completions, []);
        me.barrier();
    });
}

pub fn owners_that_compute_keep_nobody_waiting(make: Make) {
    const COMPUTES: Duration = Duration::from_secs(3);
    job(make, 2, |me| {
        let (_region, regions) = me.share(ROWS, ROW_BYTES);
        let mut channel = me.channel();
        let mut get = || check_get(&me, &mut *channel, regions[1 - me.rank.index()], &[0, 17, ROWS - 1]);
        // The first makes the connection, which emulated devices take seconds for.
        get();
        me.barrier();
        if me.rank == Rank(0) || me.transport.capabilities().needs_target_progress {
            let began = Instant::now();
            (0..10).for_each(|_| get());
            assert!(began.elapsed() < COMPUTES * 3 / 4, "ten gets took {:?}", began.elapsed());
        } else {
            std::thread::sleep(COMPUTES);
        }
        me.barrier();
    });
}

pub fn a_dead_peer_is_an_error_or_right_rows(make: Make) {
    job(make, 3, |me| {
        let (region, regions) = me.share(ROWS, ROW_BYTES);
        // Before anybody leaves: what is opened after may be given the port of who left, and then be asked for its rows.
        let mut channel = me.channel();
        me.barrier();
        if me.rank == Rank(2) {
            drop((channel, region));
            // What this rank keeps is its place in the job's barriers.
            let bootstrap = me.leave();
            (0..2).for_each(|_| bootstrap.barrier(PATIENCE).expect("all ranks take part"));
            return;
        }
        let survivor = Rank(1 - me.rank.0);
        me.barrier();
        let landing = Landing::new(&*me.transport, 2, ROW_BYTES, ROW_BYTES);
        for _ in 0..3 {
            landing.poison();
            let statuses = get_all(&mut *channel, &batch(regions[2], &[4, 5], &[0, 1], &landing));
            for (place, status) in statuses.into_iter().enumerate() {
                match status {
                    Ok(()) => landing.assert_rows(Rank(2), &[4 + place as u64], &[place as u32]),
                    Err(TransferError::PeerGone(_) | TransferError::StaleRegion { .. }) => {}
                    Err(other) => panic!("a dead peer reads as '{other}'"),
                }
            }
            if me.transport.capabilities().survives_peer_death {
                check_get(&me, &mut *channel, regions[survivor.index()], &[0, ROWS - 1]);
            }
        }
        me.barrier();
    });
}

pub fn regions_may_go_while_peers_hold_them(make: Make) {
    job(make, 2, |me| {
        let (region, regions) = me.share(ROWS, ROW_BYTES);
        let (kept, kept_regions) = me.share(ROWS, ROW_BYTES);
        let peer = 1 - me.rank.index();
        let mut channel = me.channel();
        check_get(&me, &mut *channel, regions[peer], &[0, 1]);
        me.barrier();
        drop(region);
        me.barrier();
        let landing = Landing::new(&*me.transport, 2, ROW_BYTES, ROW_BYTES);
        for status in get_all(&mut *channel, &batch(regions[peer], &[4, 5], &[0, 1], &landing)) {
            assert!(matches!(status, Err(TransferError::StaleRegion { .. })), "{status:?}");
        }
        check_get(&me, &mut *channel, kept_regions[peer], &[0, ROWS - 1]);
        me.barrier();
        drop(kept);
        // The channel outlives the transport's last other holder.
        drop(me);
        channel.poll(&mut Vec::new(), Wait::No).unwrap();
    });
}

pub fn a_table_of_a_file_is_served_where_it_can_be(make: Make) {
    job(make, 2, |me| {
        let path = std::env::temp_dir().join(format!("rudder-conformance-{}-{:p}", std::process::id(), &*me.transport));
        let table: Vec<u8> = (0..ROWS).flat_map(|row| (0..ROW_BYTES).map(move |at| byte(me.rank, row, at))).collect();
        std::fs::write(&path, table).unwrap();
        let memory = Memory::open(&path).expect("the file is there");
        std::fs::remove_file(&path).unwrap();
        // SAFETY: nobody writes to the file, which has no name any more.
        let region = match unsafe { me.transport.register(memory, Access::RemoteRead) } {
            Ok(region) => region,
            // A device that pins what it reads cannot follow a file's pages; whoever is refused is told what to do instead.
            // Nor can keys that allow writing be given to pages that do not.
            Err(refusal)
                if me.transport.capabilities().needs_registered_destination
                    || !me.transport.capabilities().read_only =>
            {
                return assert!(refusal.to_string().contains("allocate"), "{refusal}");
            }
            Err(refusal) => panic!("files can be registered: {refusal}"),
        };
        let regions = me.import(&region);
        let mut channel = me.channel();
        check_get(&me, &mut *channel, regions[1 - me.rank.index()], &[0, 17, ROWS - 1]);
        me.barrier();
    });
}

pub fn under_faults_each_row_is_right_or_an_error(make: Make) {
    job(make, 2, |me| {
        let (_region, regions) = me.share(ROWS, ROW_BYTES);
        for seed in 0..6 {
            let faults = FaultConfig {
                seed,
                drop: 0.1,
                fail: 0.2,
                refuse: 0.2,
                truncate: 0.3,
                partial: 0.4,
                delay: 0.4,
                delay_polls_max: 5,
                reorder: 0.5,
            };
            let landing = Landing::new(&*me.transport, ROWS as usize, ROW_BYTES, ROW_BYTES + 3);
            let mut channel = Faulty::new(me.transport.clone(), faults).channel().unwrap();
            let region = regions[1 - me.rank.index()];
            let statuses = get_all_or_abort(&mut *channel, region, &landing);
            let good: Vec<u64> = (0..ROWS).filter(|&row| statuses[row as usize].is_ok()).collect();
            assert!(!good.is_empty() && good.len() < ROWS as usize, "seed {seed}: {} rows are good", good.len());
            let places: Vec<u32> = good.iter().map(|&row| row as u32).collect();
            landing.assert_rows(region.peer, &good, &places);
            let all: Vec<u32> = (0..ROWS as u32).collect();
            landing.assert_untouched_except(&all);
        }
        me.barrier();
    });
}

/// Gets row `i` to place `i` for all rows, gives up on what does not end by itself, and says how each row ended.
fn get_all_or_abort(
    channel: &mut dyn Channel,
    region: RemoteRegion,
    landing: &Landing,
) -> Vec<Result<(), TransferError>> {
    let deadline = Instant::now() + PATIENCE;
    let (mut starts, mut statuses) = (Vec::new(), vec![None; ROWS as usize]);
    let mut next = 0;
    while next < ROWS {
        assert!(Instant::now() < deadline, "only {next} rows were accepted");
        let rows: Vec<u64> = (next..ROWS.min(next + 10)).collect();
        let places: Vec<u32> = rows.iter().map(|&row| row as u32).collect();
        let id = BatchId(starts.len() as u64);
        let accepted = post(channel, &RowBatch { id, ..batch(region, &rows, &places, landing) }).unwrap();
        if accepted > 0 {
            starts.push(next as usize);
            next += accepted as u64;
        }
        note(channel, &starts, &mut statuses);
    }
    (0..20).for_each(|_| note(channel, &starts, &mut statuses));
    // A connection made for this channel may take longer than the rows themselves.
    while !statuses.iter().any(|status| matches!(status, Some(Ok(())))) && Instant::now() < deadline {
        note(channel, &starts, &mut statuses);
    }
    channel.abort(region.peer).map(drop).expect("transports of this suite fence");
    while statuses.iter().any(Option::is_none) {
        assert!(Instant::now() < deadline, "rows that never ended: {statuses:?}");
        note(channel, &starts, &mut statuses);
    }
    statuses.into_iter().flatten().collect()
}

/// Polls once and notes how rows ended; batch `n` began at row `starts[n]`.
fn note(channel: &mut dyn Channel, starts: &[usize], statuses: &mut [Option<Result<(), TransferError>>]) {
    let mut completions = Vec::new();
    channel.poll(&mut completions, Wait::For(Duration::from_millis(1))).expect("the channel works");
    for Completion { batch, first, count, status } in completions {
        for row in first..first + count {
            let row = starts[batch.0 as usize] + row as usize;
            assert!(statuses[row].replace(status.clone()).is_none(), "row {row} ended twice");
        }
    }
}
