//! Goal: ranks of a host that share one buffer gather the bytes of a plain read, whatever the policy, the announcements and the transport; they
//! fetch fewer rows than with buffers of their own of the same size; and a rank that goes away takes nothing with it but its own part.
//! Method: jobs of threads that stand for two hosts; every row is compared with the function that made the tables, and rows fetched are counted.

use proptest::prelude::*;
use rand::{Rng, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;
use rudder::bootstrap::{Bootstrap, local};
use rudder::buffer::{PolicyConfig, PrescConfig};
use rudder::controller::ControllerConfig;
use rudder::{
    BufferSize, Config, Engine, NodeId, PartitionBook, PartitionId, Rank, Stats, StreamId, TableId, TableSpec,
};
use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Barrier, Mutex};
use std::time::{Duration, Instant};

const NODES: u64 = 2000;
const TABLE: TableId = TableId(3);
const HOSTS: u32 = 2;

fn byte(node: u64, at: usize) -> u8 {
    let mixed = (node + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    mixed.to_le_bytes()[at % 8] ^ (at as u8).wrapping_mul(31)
}

fn fill(first: u64, row_bytes: usize, rows: &mut [u8]) {
    for (row, bytes) in rows.chunks_mut(row_bytes).enumerate() {
        bytes.iter_mut().enumerate().for_each(|(at, to)| *to = byte(first + row as u64, at));
    }
}

fn check(nodes: &[NodeId], rows: &[u8], row_bytes: usize) {
    for (node, row) in nodes.iter().zip(rows.chunks(row_bytes)) {
        assert!(row.iter().enumerate().all(|(at, &found)| found == byte(node.0, at)), "{node}: {row:?}");
    }
}

/// The file of a host's rows, deleted when it is dropped.
struct RowsFile(PathBuf);

impl RowsFile {
    fn new(host: u32, row_bytes: usize) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let mut rows = vec![0; NODES as usize / 2 * row_bytes];
        fill(u64::from(host) * NODES / 2, row_bytes, &mut rows);
        let name = format!("rudder-host-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::write(&path, rows).unwrap();
        Self(path)
    }
}

impl Drop for RowsFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// The ranks of a host have its partition, of half of the nodes.
fn spec(host: u32, row_bytes: usize) -> TableSpec {
    let book = PartitionBook::from_starts(vec![0, NODES / 2, NODES]).unwrap();
    let own = book.range(PartitionId(host));
    let halo: Vec<NodeId> = (0..NODES).filter(|node| !own.contains(node)).map(NodeId).collect();
    let degree = halo.iter().map(|node| (node.0 % 17) as u32).collect();
    TableSpec { halo, degree, ..TableSpec::new(TABLE, book, PartitionId(host), row_bytes) }
}

/// Runs `body` on every rank of two hosts of so many ranks each. The rows of a host's partition are in one file.
fn job(ranks: u32, row_bytes: usize, config: &Config, body: impl Fn(Engine, Rank) + Sync) {
    job_of(ranks, row_bytes, |_| config.clone(), body);
}

/// The same with settings by rank.
fn job_of(ranks: u32, row_bytes: usize, config: impl Fn(Rank) -> Config + Sync, body: impl Fn(Engine, Rank) + Sync) {
    let files: Vec<_> = (0..HOSTS).map(|host| RowsFile::new(host, row_bytes)).collect();
    std::thread::scope(|scope| {
        for bootstrap in local::ranks(HOSTS * ranks) {
            let (body, files, config) = (&body, &files, &config);
            scope.spawn(move || {
                let rank = bootstrap.rank();
                let host = rank.0 / ranks;
                let config = Config { host: Some(format!("host-{host}")), ..config(rank) };
                let engine = Engine::builder(config, Arc::new(bootstrap))
                    .table_file(spec(host, row_bytes), &files[host as usize].0)
                    .start()
                    .expect("the job starts");
                body(engine, rank);
            });
        }
    });
}

fn config(transport: &str, policy: &str, buffer: f64, share_buffer: bool) -> Config {
    Config {
        transport: transport.into(),
        policy: match policy {
            // Its warm-up is over while a test lasts.
            "presc" => PolicyConfig::Presc(PrescConfig { warm_up: 3 }),
            name => PolicyConfig::named(name).unwrap(),
        },
        controller: if policy == "rudder" { ControllerConfig::Periodic { delta: 2 } } else { ControllerConfig::Off },
        buffer: BufferSize::Halo(buffer),
        share_buffer,
        gather_timeout: Duration::from_secs(30),
        rows_max: 512,
        batch_rows: 64,
        prefetch_batch_rows: 16,
        prefetch_rows_in_flight: 128,
        ..Config::default()
    }
}

/// A rank's minibatches: some nodes are wanted by everybody, and often.
fn minibatch(random: &mut Xoshiro256PlusPlus, nodes: usize) -> Vec<NodeId> {
    let mut minibatch: Vec<NodeId> = (0..nodes)
        .map(|_| {
            let popular = random.random::<f64>().powi(3);
            NodeId((popular * NODES as f64) as u64 * 7919 % NODES)
        })
        .collect();
    minibatch.sort_unstable();
    minibatch.dedup();
    minibatch
}

/// Gathers minibatches, each announced some ahead, and checks every row.
fn train(engine: &Engine, rank: Rank, minibatches: usize, lookahead: usize) {
    train_in_step(engine, rank, minibatches, lookahead, || ());
}

/// The same, with `step` before each gather.
fn train_in_step(engine: &Engine, rank: Rank, minibatches: usize, lookahead: usize, step: impl Fn()) {
    let row_bytes = engine.row_bytes(TABLE).unwrap();
    let mut random = Xoshiro256PlusPlus::seed_from_u64(u64::from(rank.0) + 11);
    let mut ahead = VecDeque::new();
    for at in 0..minibatches + lookahead {
        if at < minibatches {
            let nodes = minibatch(&mut random, 120);
            let ticket = (lookahead > 0).then(|| engine.announce(StreamId(0), &[TABLE], &nodes).unwrap());
            ahead.push_back((nodes, ticket));
        }
        if at >= lookahead {
            step();
            let (nodes, ticket) = ahead.pop_front().unwrap();
            let mut rows = vec![0; nodes.len() * row_bytes];
            engine.gather(TABLE, &nodes, ticket, &mut rows).unwrap();
            check(&nodes, &rows, row_bytes);
        }
    }
}

/// What all ranks together have counted.
fn total(stats: &[Stats], count: impl Fn(&Stats) -> u64) -> u64 {
    stats.iter().map(count).sum()
}

fn fetched(stats: &Stats) -> u64 {
    stats.pipeline.demand_rows + stats.pipeline.prefetched_rows + stats.pipeline.fill_rows
}

/// The counts of all ranks after so many minibatches each, in step as a job that trains together is.
fn counts(ranks: u32, config: &Config, minibatches: usize, lookahead: usize) -> Vec<Stats> {
    let stats = Mutex::new(Vec::new());
    let step = Barrier::new((HOSTS * ranks) as usize);
    job(ranks, 40, config, |engine, rank| {
        let in_step = || {
            step.wait();
        };
        train_in_step(&engine, rank, minibatches, lookahead, in_step);
        stats.lock().unwrap().push(engine.stats(TABLE).unwrap());
        engine.shutdown().unwrap();
    });
    stats.into_inner().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn gathers_are_plain_reads(
        transport in prop::sample::select(vec!["shm", "tcp"]),
        policy in prop::sample::select(PolicyConfig::NAMES.to_vec()),
        ranks in 2u32..5,
        buffer in prop::sample::select(vec![0.002, 0.05, 0.3, 1.0]),
        row_bytes in prop::sample::select(vec![1usize, 8, 12, 400]),
        lookahead in prop::sample::select(vec![0usize, 3, 8]),
    ) {
        job(ranks, row_bytes, &config(transport, policy, buffer, true), |engine, rank| {
            train(&engine, rank, 24, lookahead);
            engine.shutdown().unwrap();
        });
    }
}

#[test]
fn ranks_that_share_fetch_fewer_rows_than_with_buffers_of_their_own() {
    let ranks = 4;
    for (policy, lookahead) in [("lfu", 0), ("window", 8)] {
        let run = |share| counts(ranks, &config("tcp", policy, 0.1, share), 100, lookahead);
        let (private, shared) = (run(false), run(true));
        let slots = |stats: &[Stats]| total(stats, |stats| u64::from(stats.slots));
        assert_eq!(slots(&private), slots(&shared), "slots are the same in all");
        assert_eq!(total(&private, |stats| stats.pipeline.neighbour_hits), 0);
        let wanted = |stats: &[Stats]| total(stats, |stats| stats.pipeline.remote_nodes);
        assert_eq!(wanted(&private), wanted(&shared), "the minibatches are the same");
        let (private_rows, shared_rows) = (total(&private, fetched), total(&shared, fetched));
        println!(
            "{policy}, {lookahead} announced: {shared_rows} rows fetched by ranks that share, {private_rows} by ranks that do not ({:.2}); \
             {} adopted, {} of {} neighbour hits lost",
            shared_rows as f64 / private_rows as f64,
            total(&shared, |stats| stats.buffer.adoptions),
            total(&shared, |stats| stats.pipeline.neighbour_losses),
            total(&shared, |stats| stats.pipeline.neighbour_hits),
        );
        assert!(total(&shared, |stats| stats.pipeline.neighbour_hits) > 0);
        assert!(total(&shared, |stats| stats.buffer.adoptions) > 0);
        assert!(shared_rows * 10 < private_rows * 8, "{policy}: {shared_rows} against {private_rows}");
    }
}

#[test]
fn a_rank_that_leaves_takes_only_its_own_part() {
    let gone = Barrier::new(6);
    job(3, 40, &config("tcp", "lfu", 0.3, true), |engine, rank| {
        train(&engine, rank, 20, 0);
        // The second rank of each host goes without a word.
        let mut engine = Some(engine);
        if rank.0 % 3 == 1 {
            engine.take();
        }
        gone.wait();
        if let Some(engine) = &engine {
            // What the dead rank kept is still there, and is read; a host's first rank serves its partition.
            let before = engine.stats(TABLE).unwrap().pipeline;
            train(engine, rank, 20, 3);
            let after = engine.stats(TABLE).unwrap().pipeline;
            assert_eq!(after.minibatches, before.minibatches + 20);
            assert!(after.neighbour_hits > before.neighbour_hits);
        }
        // Nobody else goes before everybody has read what it serves.
        gone.wait();
    });
}

#[test]
fn ranks_that_do_not_map_each_others_rows_share_nothing() {
    let config = Config { map_host_rows: false, ..config("tcp", "lfu", 0.3, true) };
    let stats = counts(2, &config, 20, 0);
    assert_eq!(total(&stats, |stats| stats.pipeline.neighbour_hits), 0);
    assert_eq!(total(&stats, |stats| stats.buffer.adoptions), 0);
}

#[test]
fn a_budget_in_bytes_counts_what_sharing_takes() {
    let run = |bytes| {
        let config =
            Config { buffer: BufferSize::Bytes(bytes), announced_nodes: 1 << 10, ..config("tcp", "lfu", 0.0, true) };
        counts(2, &config, 10, 0)
    };
    let budget = 10 << 20;
    for stats in run(budget) {
        assert!(stats.slots > 0 && stats.buffer_bytes <= budget, "{stats:?}");
    }
    // Queues to the neighbours alone are more than this: nothing is kept, and nothing is wrong.
    for stats in run(1 << 20) {
        assert_eq!((stats.slots, stats.pipeline.hits), (0, 0));
    }
}

#[test]
fn a_rank_without_a_buffer_leaves_the_others_theirs() {
    let config = |rank: Rank| config("tcp", "degree", if rank.0 == 1 { 0.0 } else { 0.2 }, true);
    let step = Barrier::new(6);
    job_of(3, 40, config, |engine, rank| {
        train(&engine, rank, 10, 2);
        step.wait();
        let stats = engine.stats(TABLE).unwrap();
        assert_eq!(stats.pipeline.neighbour_hits, if rank.0 < 3 { 0 } else { stats.pipeline.neighbour_hits });
        match rank.0 {
            1 => assert_eq!((stats.slots, stats.pipeline.hits), (0, 0)),
            // The nodes of highest degree, whoever would have kept them.
            0 | 2 => assert_eq!((u64::from(stats.slots), stats.buffer.initial), (NODES / 10, NODES / 10)),
            // As soon as the others of its host have fetched theirs.
            _ => {
                let until = Instant::now() + Duration::from_secs(30);
                while engine.stats(TABLE).unwrap().pipeline.neighbour_hits == 0 {
                    assert!(Instant::now() < until, "the neighbours' rows are never read");
                    train(&engine, rank, 1, 0);
                }
            }
        }
        // Nobody goes before everybody has read what it keeps.
        step.wait();
        engine.shutdown().unwrap();
    });
}

#[test]
fn ranks_with_different_partitions_share_nothing() {
    let files: Vec<_> = (0..HOSTS).map(|host| RowsFile::new(host, 40)).collect();
    std::thread::scope(|scope| {
        for bootstrap in local::ranks(HOSTS) {
            let file = &files[bootstrap.rank().index()];
            scope.spawn(move || {
                let rank = bootstrap.rank();
                let engine = Engine::builder(config("tcp", "lfu", 0.5, true), Arc::new(bootstrap))
                    .table_file(spec(rank.0, 40), &file.0)
                    .start()
                    .unwrap();
                train(&engine, rank, 20, 0);
                let stats = engine.stats(TABLE).unwrap();
                assert_eq!((stats.pipeline.neighbour_hits, stats.buffer.adoptions), (0, 0));
                assert!(stats.pipeline.hits > 0);
                engine.shutdown().unwrap();
            });
        }
    });
}

#[test]
fn what_neighbours_announce_gives_way_to_a_ranks_own() {
    // Room for two of its minibatches, and for no more.
    let config = Config { announced_nodes: 260, ..config("tcp", "window", 0.3, true) };
    let step = Barrier::new(6);
    job(3, 40, &config, |engine, rank| {
        let mut random = Xoshiro256PlusPlus::seed_from_u64(u64::from(rank.0));
        for _ in 0..30 {
            let minibatches = [minibatch(&mut random, 120), minibatch(&mut random, 120)];
            let announce = |nodes| engine.announce(StreamId(0), &[TABLE], nodes).expect("there is room for its own");
            let tickets = minibatches.each_ref().map(|nodes| announce(nodes));
            step.wait();
            for (nodes, ticket) in minibatches.iter().zip(tickets) {
                let mut rows = vec![0; nodes.len() * 40];
                engine.gather(TABLE, nodes, Some(ticket), &mut rows).unwrap();
                check(nodes, &rows, 40);
            }
        }
        engine.shutdown().unwrap();
    });
}

#[test]
fn nothing_is_learnt_from_what_is_gathered_while_paused() {
    let step = Barrier::new(4);
    job(2, 40, &config("tcp", "lfu", 0.3, true), |engine, rank| {
        train(&engine, rank, 20, 0);
        step.wait();
        // What was handed over before is taken in before it is counted.
        std::thread::sleep(Duration::from_millis(400));
        let before = engine.stats(TABLE).unwrap();
        step.wait();
        engine.pause(true);
        train(&engine, rank, 20, 0);
        step.wait();
        std::thread::sleep(Duration::from_millis(400));
        let after = engine.stats(TABLE).unwrap();
        assert_eq!(after.buffer, before.buffer);
        assert_eq!(after.pipeline.neighbour_hits, before.pipeline.neighbour_hits);
        engine.shutdown().unwrap();
    });
}
