//! Goal: where several ranks export a partition, the death of one costs no row and no gather: what it was to give comes from another, right
//! to the byte, and is counted; the death of all is an error that names one of them. Method: three ranks as threads over sockets, two of
//! which have the same partition; they are dropped one after the other while the third gathers, with and without a buffer and announcements.

use rudder::bootstrap::{Bootstrap, local};
use rudder::buffer::PolicyConfig;
use rudder::transport::{TransportConfig, open};
use rudder::{
    BufferSize, Config, Engine, Error, NodeId, PartitionBook, PartitionId, Rank, StreamId, TableId, TableSpec,
};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

const TABLE: TableId = TableId(0);
const NODES: u64 = 2000;
const OWN: u64 = 10;
const ROW_BYTES: usize = 24;
/// Gathers that each of the exporters lives through, more or less.
const GATHERS: usize = 40;
/// How long anything may take before it counts as a hang.
const PATIENCE: Duration = Duration::from_secs(20);

fn byte(node: u64, at: usize) -> u8 {
    (node + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes()[at % 8] ^ at as u8
}

/// Partition 1 is in this file, or in memory of each of its exporters.
fn engine(bootstrap: local::LocalBootstrap, policy: &str, file: Option<&Path>) -> Engine {
    let rank = bootstrap.rank();
    let book = PartitionBook::from_starts(vec![0, OWN, NODES]).unwrap();
    let partition = PartitionId(rank.0.min(1));
    let (own, policy) = (book.range(partition), PolicyConfig::named(policy).unwrap());
    let halo = (0..NODES).filter(|node| !own.contains(node)).map(NodeId).collect();
    let spec = TableSpec { halo, ..TableSpec::new(TABLE, book, partition, ROW_BYTES) };
    let config = Config { policy, buffer: BufferSize::Halo(0.3), map_host_rows: false, ..Config::default() };
    let transport = open("tcp", &TransportConfig::new(rank, 3)).unwrap();
    let builder = Engine::builder(config, Arc::new(bootstrap)).transport(transport);
    let builder = match file.filter(|_| partition == PartitionId(1)) {
        Some(file) => builder.table_file(spec, file),
        None => builder.table(spec, move |rows| rows.copy_from_slice(&rows_of(own))),
    };
    builder.start().unwrap()
}

fn rows_of(nodes: Range<u64>) -> Vec<u8> {
    nodes.flat_map(|node| (0..ROW_BYTES).map(move |at| byte(node, at))).collect()
}

/// The nodes of a gather: other ones each time, some again and again.
fn minibatch(turn: usize) -> Vec<NodeId> {
    let node = |at: u64| if at.is_multiple_of(3) { at * 7 } else { at * 37 + turn as u64 * 151 };
    (0..200).map(|at| NodeId(node(at) % NODES)).collect()
}

/// Gathers one minibatch, with the next announced, and compares it.
fn gather(engine: &Engine, turn: usize) -> Result<(), Error> {
    let next = engine.announce(StreamId(0), &[TABLE], &minibatch(turn + 1)).unwrap();
    let (nodes, began) = (minibatch(turn), Instant::now());
    let mut rows = vec![0; nodes.len() * ROW_BYTES];
    let gathered = engine.gather(TABLE, &nodes, None, &mut rows);
    engine.forget(next);
    assert!(began.elapsed() < PATIENCE);
    gathered?;
    for (node, row) in nodes.iter().zip(rows.chunks(ROW_BYTES)) {
        assert!(row.iter().enumerate().all(|(at, &found)| found == byte(node.0, at)), "{node}: {row:?}");
    }
    Ok(())
}

#[test]
fn another_exporter_gives_what_a_dead_one_cannot() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("rows");
    std::fs::write(&file, rows_of(OWN..NODES)).unwrap();
    // Of one file, one rank serves the rows of both, and the other stands by.
    for (policy, file) in
        [("off", None), ("lfu", None), ("window", None), ("degree", None), ("off", Some(&*file)), ("lfu", Some(&*file))]
    {
        // Exporters that are to be gone.
        let gone = &AtomicUsize::new(0);
        std::thread::scope(|scope| {
            let mut ranks = local::ranks(3);
            for bootstrap in ranks.drain(1..) {
                scope.spawn(move || {
                    let at = bootstrap.rank().index();
                    let engine = engine(bootstrap, policy, file);
                    let began = Instant::now();
                    while gone.load(Ordering::Acquire) < at && began.elapsed() < 2 * PATIENCE {
                        std::thread::sleep(Duration::from_millis(1));
                    }
                    drop(engine);
                });
            }
            let engine = engine(ranks.remove(0), policy, file);
            let failovers = || engine.stats(TABLE).unwrap().pipeline.failovers;
            let mut turn = 0;
            let mut some = |count: usize| {
                turn += count;
                (turn - count..turn).try_for_each(|turn| gather(&engine, turn))
            };
            some(GATHERS).unwrap();
            assert_eq!(failovers(), 0, "{policy}");
            // Rank 0 asks the first of those that have a partition.
            gone.store(1, Ordering::Release);
            let began = Instant::now();
            while failovers() == 0 {
                assert!(began.elapsed() < PATIENCE, "{policy}: the death of an exporter is not noticed");
                some(1).unwrap();
            }
            some(GATHERS).unwrap();
            let stats = engine.stats(TABLE).unwrap().pipeline;
            assert!(stats.failovers == 1 && stats.retried_rows > 0, "{policy}: {stats:?}");
            gone.store(2, Ordering::Release);
            let error = loop {
                assert!(began.elapsed() < PATIENCE, "{policy}: the death of all is not noticed");
                if let Err(error) = some(1) {
                    break error;
                }
            };
            assert!(matches!(error, Error::Get { peer: Rank(2), .. }), "{policy}: {error}");
            assert_eq!(failovers(), 1, "{policy}");
        });
    }
}
