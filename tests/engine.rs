//! Goal: a gather returns the bytes of a plain read, or an error that says why, and never hangs, whatever the transport, the policy, the
//! announcements, the faults and the order of things.
//! Method: jobs of threads gather random minibatches; every row is compared with the function that made the tables.

use proptest::prelude::*;
use rudder::bootstrap::{Bootstrap, local};
use rudder::buffer::{PolicyConfig, PrescConfig};
use rudder::controller::ControllerConfig;
use rudder::transport::hook::{FaultConfig, Faulty};
use rudder::transport::sim::{SimConfig, SimNetwork};
use rudder::transport::{Transport, TransportConfig, open};
use rudder::{
    BufferSize, Config, Engine, Error, NodeId, PartitionBook, PartitionId, Rank, StreamId, TableId, TableSpec, Ticket,
};
use std::sync::Arc;
use std::time::{Duration, Instant};

const NODES: u64 = 300;

/// How long anything may take before it counts as a hang.
const PATIENCE: Duration = Duration::from_secs(20);

/// Byte `at` of a node's row.
fn byte(table: TableId, node: u64, at: usize) -> u8 {
    let mixed = (node + 1 + (u64::from(table.0) << 32)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    mixed.to_le_bytes()[at % 8] ^ (at as u8).wrapping_mul(31)
}

fn fill(table: TableId, first: u64, row_bytes: usize, rows: &mut [u8]) {
    for (row, bytes) in rows.chunks_mut(row_bytes).enumerate() {
        bytes.iter_mut().enumerate().for_each(|(at, to)| *to = byte(table, first + row as u64, at));
    }
}

fn check(table: TableId, nodes: &[NodeId], rows: &[u8], row_bytes: usize) {
    for (node, row) in nodes.iter().zip(rows.chunks(row_bytes)) {
        assert!(row.iter().enumerate().all(|(at, &found)| found == byte(table, node.0, at)), "{table} {node}: {row:?}");
    }
}

fn book(ranks: u32) -> PartitionBook {
    let starts = (0..=u64::from(ranks)).map(|at| at * NODES / u64::from(ranks)).collect();
    PartitionBook::from_starts(starts).unwrap()
}

fn spec(table: TableId, rank: Rank, ranks: u32, row_bytes: usize) -> TableSpec {
    let book = book(ranks);
    let own = book.range(PartitionId(rank.0));
    // Two thirds of the remote nodes are halo; degrees make an order.
    let halo: Vec<NodeId> = (0..NODES).filter(|node| !own.contains(node) && node % 3 != 0).map(NodeId).collect();
    let degree = halo.iter().map(|node| (node.0 % 17) as u32).collect();
    TableSpec { halo, degree, ..TableSpec::new(table, book, PartitionId(rank.0), row_bytes) }
}

/// The transports of a job of threads, by name; `sim` is not in the registry.
fn transports(name: &str, ranks: u32, faults: Option<FaultConfig>) -> Vec<Arc<dyn Transport>> {
    let network = SimNetwork::new(SimConfig { jitter: Duration::from_micros(50), seed: 7, ..SimConfig::default() });
    let plain = |rank| -> Arc<dyn Transport> {
        match name {
            "sim" => Arc::new(network.transport(Rank(rank))),
            name => open(name, &TransportConfig::new(Rank(rank), ranks)).unwrap(),
        }
    };
    let hook = |transport| -> Arc<dyn Transport> {
        match faults {
            Some(faults) => Arc::new(Faulty::new(transport, faults)),
            None => transport,
        }
    };
    (0..ranks).map(|rank| hook(plain(rank))).collect()
}

/// Runs `body` with an engine on every rank, each on a thread of its own.
fn job(
    transports: Vec<Arc<dyn Transport>>,
    tables: &[(TableId, usize)],
    config: &Config,
    body: impl Fn(Engine, Rank) + Sync,
) {
    let ranks = transports.len() as u32;
    std::thread::scope(|scope| {
        for (transport, bootstrap) in transports.into_iter().zip(local::ranks(ranks)) {
            let (config, body) = (config.clone(), &body);
            scope.spawn(move || {
                let rank = bootstrap.rank();
                let mut builder = Engine::builder(config, Arc::new(bootstrap)).transport(transport);
                for &(table, row_bytes) in tables {
                    let first = book(ranks).range(PartitionId(rank.0)).start;
                    builder = builder
                        .table(spec(table, rank, ranks, row_bytes), move |rows| fill(table, first, row_bytes, rows));
                }
                body(builder.start().expect("the job starts"), rank);
            });
        }
    });
}

fn plain(name: &str, ranks: u32) -> Vec<Arc<dyn Transport>> {
    transports(name, ranks, None)
}

fn config(policy: &str, controller: ControllerConfig, buffer: f64) -> Config {
    Config {
        policy: match policy {
            // Its warm-up is over while a test lasts.
            "presc" => PolicyConfig::Presc(PrescConfig { warm_up: 3 }),
            name => PolicyConfig::named(name).unwrap(),
        },
        controller,
        buffer: BufferSize::Halo(buffer),
        map_host_rows: false,
        gather_timeout: PATIENCE,
        rows_max: 512,
        batch_rows: 16,
        prefetch_batch_rows: 4,
        prefetch_rows_in_flight: 32,
        ..Config::default()
    }
}

fn nodes(seed: &[u16]) -> Vec<NodeId> {
    seed.iter().map(|&node| NodeId(u64::from(node) % NODES)).collect()
}

fn policies() -> impl Strategy<Value = (&'static str, ControllerConfig)> {
    let controllers = |policy| match policy {
        "degree" => vec![ControllerConfig::Fixed],
        "rudder" => vec![ControllerConfig::Periodic { delta: 2 }, ControllerConfig::Random { seed: 3, delta: 1 }],
        // Another policy with every minibatch, of every kind.
        "lfu" | "window" => vec![ControllerConfig::Off, ControllerConfig::Bandit { seed: 3, episode: 1 }],
        "lru" => vec![ControllerConfig::Off, ControllerConfig::Guard { inner: Box::new(ControllerConfig::Ghost) }],
        _ => vec![ControllerConfig::Off],
    };
    let named = |policy| controllers(policy).into_iter().map(move |controller| (policy, controller));
    prop::sample::select(PolicyConfig::NAMES.into_iter().flat_map(named).collect::<Vec<_>>())
}

/// What a training loop does with minibatches: announces some ahead, forgets some of these, keeps three gathers open.
fn train(
    engine: &Engine,
    table: TableId,
    minibatches: &[Vec<NodeId>],
    lookahead: usize,
    forget_every: usize,
) -> Vec<Error> {
    let row_bytes = engine.row_bytes(table).unwrap();
    let mut tickets: Vec<Option<Ticket>> = Vec::new();
    let (mut open, mut errors) = (Vec::new(), Vec::new());
    for at in 0..minibatches.len() {
        while lookahead > 0 && tickets.len() < minibatches.len().min(at + lookahead) {
            let ticket = engine.announce(StreamId(0), &[table], &minibatches[tickets.len()]).unwrap();
            let forget = tickets.len() % forget_every == 1;
            tickets.push((!forget).then_some(ticket));
            if forget {
                engine.forget(ticket);
            }
        }
        let ticket = tickets.get(at).copied().flatten();
        let rows = engine.rows(table, minibatches[at].len()).unwrap();
        open.push((at, engine.start(table, &minibatches[at], ticket, rows).unwrap()));
        if open.len() == 3 || at + 1 == minibatches.len() {
            for (at, request) in open.drain(..) {
                match request.wait() {
                    Ok(rows) => check(table, &minibatches[at], rows.as_bytes(), row_bytes),
                    Err(error) => errors.push(error),
                }
            }
        }
    }
    errors
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    /// Minibatches of any nodes, repeated ones too, announced or not, forgotten or not, several at once.
    #[test]
    fn gathers_are_plain_reads(
        name in prop::sample::select(vec!["shm", "tcp", "sim"]),
        (policy, controller) in policies(),
        buffer in prop::sample::select(vec![0.0, 0.05, 0.3, 1.0]),
        row_bytes in prop::sample::select(vec![1usize, 8, 100, 1000]),
        minibatches in prop::collection::vec(prop::collection::vec(any::<u16>(), 0..120), 1..24),
        lookahead in 0usize..6,
        forget_every in 2usize..9,
    ) {
        let table = TableId(7);
        let minibatches: Vec<Vec<NodeId>> = minibatches.iter().map(|seed| nodes(seed)).collect();
        job(plain(name, 2), &[(table, row_bytes)], &config(policy, controller, buffer), |engine, _| {
            let errors = train(&engine, table, &minibatches, lookahead, forget_every);
            assert!(errors.is_empty(), "{errors:?}");
            engine.shutdown().unwrap();
        });
    }

    /// The same under faults: every gather ends in right rows or in an error, and the engine goes on.
    #[test]
    fn faults_cost_time_or_an_error_never_bytes(
        name in prop::sample::select(vec!["shm", "tcp", "sim"]),
        (policy, controller) in policies(),
        buffer in prop::sample::select(vec![0.0, 0.1, 1.0]),
        minibatches in prop::collection::vec(prop::collection::vec(any::<u16>(), 0..80), 1..8),
        lookahead in 0usize..4,
        seed in any::<u64>(),
        often in prop::sample::select(vec![0.02, 0.2]),
        dropping in prop::sample::select(vec![0.0, 0.02]),
    ) {
        let table = TableId(7);
        let minibatches: Vec<Vec<NodeId>> = minibatches.iter().map(|seed| nodes(seed)).collect();
        let faults = FaultConfig {
            seed,
            drop: dropping,
            fail: often,
            refuse: often,
            truncate: often,
            partial: often,
            delay: often,
            delay_polls_max: 5,
            reorder: often,
        };
        let config = Config {
            transfer_timeout: Duration::from_millis(30),
            backoff: Duration::from_millis(1),
            attempts: 4,
            ..config(policy, controller, buffer)
        };
        job(transports(name, 2, Some(faults)), &[(table, 24)], &config, |engine, _| {
            for error in train(&engine, table, &minibatches, lookahead, 5) {
                assert!(matches!(error, Error::Get { .. } | Error::Deadline { .. }), "{error}");
            }
            engine.shutdown().unwrap();
        });
    }
}

#[test]
fn tables_of_different_widths_are_told_apart() {
    let tables = [(TableId(1), 12), (TableId(2), 7)];
    job(plain("tcp", 3), &tables, &config("window", ControllerConfig::Off, 0.2), |engine, _| {
        let minibatch = nodes(&(0..200).map(|at| at * 7).collect::<Vec<u16>>());
        let ticket = engine.announce(StreamId(0), &[TableId(1), TableId(2)], &minibatch).unwrap();
        for (table, row_bytes) in tables {
            let mut rows = vec![0; minibatch.len() * row_bytes];
            engine.gather(table, &minibatch, Some(ticket), &mut rows).unwrap();
            check(table, &minibatch, &rows, row_bytes);
        }
        let mut rows = vec![0; minibatch.len() * 12];
        let again = engine.gather(TableId(1), &minibatch, Some(ticket), &mut rows).unwrap_err();
        assert!(matches!(again, Error::Ticket(_)), "{again}");
        engine.shutdown().unwrap();
    });
}

#[test]
fn host_rows_are_copied_from_their_mapping() {
    for (policy, controller) in [
        ("off", ControllerConfig::Off),
        ("degree", ControllerConfig::Fixed),
        ("lfu", ControllerConfig::Off),
        ("rudder", ControllerConfig::Periodic { delta: 1 }),
        ("window", ControllerConfig::Off),
    ] {
        let config = Config { map_host_rows: true, ..config(policy, controller, 0.2) };
        job(plain("shm", 2), &[(TableId(0), 40)], &config, |engine, _| {
            let minibatch: Vec<NodeId> = (0..NODES).map(NodeId).collect();
            let ticket = engine.announce(StreamId(0), &[TableId(0)], &minibatch).unwrap();
            let mut rows = vec![0; minibatch.len() * 40];
            engine.gather(TableId(0), &minibatch, Some(ticket), &mut rows).unwrap();
            check(TableId(0), &minibatch, &rows, 40);
            let stats = engine.stats(TableId(0)).unwrap();
            assert_eq!((stats.pipeline.demand_rows, stats.pipeline.local_rows, stats.slots), (0, NODES, 0));
            engine.shutdown().unwrap();
        });
    }
}

#[test]
fn a_buffer_keeps_within_its_bytes() {
    // The last is more than any machine has: books are made for nodes that exist.
    for bytes in [1u64 << 12, 1 << 20, 1 << 22, 1 << 45] {
        let config =
            Config { buffer: BufferSize::Bytes(bytes), tickets: 2, ..config("lfu", ControllerConfig::Off, 0.0) };
        job(plain("tcp", 2), &[(TableId(0), 1000)], &config, |engine, _| {
            let minibatch: Vec<NodeId> = (0..NODES).map(NodeId).collect();
            let mut rows = vec![0; minibatch.len() * 1000];
            for _ in 0..3 {
                engine.gather(TableId(0), &minibatch, None, &mut rows).unwrap();
                check(TableId(0), &minibatch, &rows, 1000);
            }
            let stats = engine.stats(TableId(0)).unwrap();
            assert!(stats.buffer_bytes <= bytes, "{} bytes of {bytes}", stats.buffer_bytes);
            assert!(bytes < 1 << 22 || u64::from(stats.slots) == NODES / 2, "{} slots", stats.slots);
            engine.shutdown().unwrap();
        });
    }
}

#[test]
fn a_broken_loop_forgets_its_stream_and_no_other() {
    let table = TableId(0);
    let config = Config { tickets: 4, ..config("window", ControllerConfig::Off, 0.2) };
    job(plain("tcp", 2), &[(table, 8)], &config, |engine, _| {
        let minibatch = [NodeId(1), NodeId(NODES - 1)];
        let announce = |stream| engine.announce(StreamId(stream), &[table], &minibatch);
        let tickets: Vec<_> = (0..4).map(|number| announce(number % 2).unwrap()).collect();
        assert!(matches!(announce(0), Err(Error::Full { .. })));
        engine.forget_stream(StreamId(1));
        let mut rows = [0; 16];
        for (ticket, kept) in tickets.into_iter().zip([true, false, true, false]) {
            let gathered = engine.gather(table, &minibatch, Some(ticket), &mut rows);
            assert_eq!(gathered.is_ok(), kept, "{gathered:?}");
        }
        engine.shutdown().unwrap();
    });
}

#[test]
fn tables_named_twice_are_refused() {
    let table = TableId(3);
    job(plain("tcp", 2), &[(table, 8)], &config("lfu", ControllerConfig::Off, 0.2), |engine, _| {
        let twice = engine.announce(StreamId(0), &[table, table], &[NodeId(1)]).unwrap_err();
        assert!(twice.to_string().contains("table 3 is announced twice"), "{twice}");
        engine.shutdown().unwrap();
    });
    let book = rudder::PartitionBook::from_starts(vec![0, 4]).unwrap();
    let spec = || rudder::TableSpec::new(table, book.clone(), rudder::PartitionId(0), 8);
    let bootstrap = std::sync::Arc::new(rudder::bootstrap::local::ranks(1).remove(0));
    let builder = rudder::Engine::builder(Config::default(), bootstrap);
    let twice = builder.table(spec(), |_| {}).table(spec(), |_| {}).start().err().expect("it is refused");
    assert!(twice.to_string().contains("table 3 is registered twice"), "{twice}");
}

#[test]
fn bad_calls_are_refused_and_change_nothing() {
    let table = TableId(0);
    let config = Config { requests: 2, tickets: 2, ..config("lfu", ControllerConfig::Off, 0.2) };
    job(plain("tcp", 2), &[(table, 8)], &config, |engine, _| {
        let mut rows = [0; 16];
        let outside = engine.gather(table, &[NodeId(0), NodeId(NODES)], None, &mut rows).unwrap_err();
        assert!(outside.to_string().contains("node 300 is not in table 0, which has nodes 0..300"), "{outside}");
        let unknown = engine.gather(TableId(9), &[NodeId(0)], None, &mut rows[..8]).unwrap_err();
        assert!(matches!(unknown, Error::UnknownTable(TableId(9))), "{unknown}");
        let shape = engine.gather(table, &[NodeId(0)], None, &mut rows).unwrap_err();
        assert!(matches!(shape, Error::Argument(_)), "{shape}");
        let ticket = engine.announce(StreamId(0), &[table], &[NodeId(1), NodeId(299)]).unwrap();
        let other = engine.gather(table, &[NodeId(2), NodeId(298)], Some(ticket), &mut rows).unwrap_err();
        assert!(matches!(other, Error::Ticket(_)), "{other}");
        engine.announce(StreamId(1), &[table], &[]).unwrap();
        let full = engine.announce(StreamId(1), &[table], &[]).unwrap_err();
        assert!(matches!(full, Error::Full { .. }), "{full}");
        engine.gather(table, &[NodeId(1), NodeId(299)], Some(ticket), &mut rows).unwrap();
        check(table, &[NodeId(1), NodeId(299)], &rows, 8);
        engine.shutdown().unwrap();
    });
}

#[test]
fn a_dead_owner_is_an_error_that_names_it_and_the_rows_may_go() {
    let config = Config { gather_timeout: Duration::from_secs(3), ..config("lfu", ControllerConfig::Off, 0.2) };
    job(plain("tcp", 2), &[(TableId(0), 64)], &config, |engine, rank| {
        if rank == Rank(1) {
            drop(engine);
            return;
        }
        let minibatch: Vec<NodeId> = (0..NODES).map(NodeId).collect();
        let began = Instant::now();
        let error = loop {
            let mut rows = vec![0; minibatch.len() * 64];
            match engine.gather(TableId(0), &minibatch, None, &mut rows) {
                Ok(()) => check(TableId(0), &minibatch, &rows, 64),
                // The rows are freed at the end of this turn: nothing may write to them any more.
                Err(error) => break error,
            }
            assert!(began.elapsed() < PATIENCE, "the owner is gone and gathers go on");
        };
        assert!(error.to_string().contains("rank 1"), "{error}");
        assert!(began.elapsed() < PATIENCE);
        let own = [NodeId(0), NodeId(5)];
        let mut rows = [0; 128];
        engine.gather(TableId(0), &own, None, &mut rows).unwrap();
        check(TableId(0), &own, &rows, 64);
    });
}

#[test]
fn a_silent_owner_is_an_error_by_the_deadline() {
    let faults = FaultConfig { seed: 1, drop: 1.0, ..FaultConfig::default() };
    let config = Config {
        gather_timeout: Duration::from_millis(200),
        transfer_timeout: Duration::from_secs(5),
        ..config("off", ControllerConfig::Off, 0.0)
    };
    job(transports("tcp", 2, Some(faults)), &[(TableId(0), 16)], &config, |engine, rank| {
        let minibatch: Vec<NodeId> = (0..NODES).map(NodeId).collect();
        let began = Instant::now();
        let mut rows = vec![0; minibatch.len() * 16];
        let error = engine.gather(TableId(0), &minibatch, None, &mut rows).unwrap_err();
        assert!(error.to_string().contains(&format!("from rank {}", 1 - rank.0)), "{error}");
        assert!(matches!(error, Error::Deadline { .. }), "{error}");
        assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
        engine.shutdown().unwrap();
    });
}

#[test]
fn dropped_requests_leave_their_rows_alone() {
    job(plain("tcp", 2), &[(TableId(0), 512)], &config("window", ControllerConfig::Off, 0.3), |engine, _| {
        let minibatch: Vec<NodeId> = (0..NODES).map(NodeId).collect();
        for turn in 0..40 {
            let rows = engine.rows(TableId(0), minibatch.len()).unwrap();
            let request = engine.start(TableId(0), &minibatch, None, rows).unwrap();
            if turn % 2 == 0 {
                drop(request);
            } else {
                check(TableId(0), &minibatch, request.wait().unwrap().as_bytes(), 512);
            }
        }
        engine.shutdown().unwrap();
    });
}

#[test]
fn several_threads_gather_at_once() {
    job(plain("tcp", 2), &[(TableId(0), 32)], &config("lfu", ControllerConfig::Off, 0.1), |engine, _| {
        std::thread::scope(|scope| {
            for stream in 0..3u32 {
                let engine = &engine;
                scope.spawn(move || {
                    for turn in 0..60u64 {
                        let minibatch: Vec<NodeId> =
                            (0..100).map(|at| NodeId((at * 13 + turn * u64::from(stream + 1)) % NODES)).collect();
                        let ticket = engine.announce(StreamId(stream), &[TableId(0)], &minibatch).unwrap();
                        let mut rows = vec![0; minibatch.len() * 32];
                        engine.gather(TableId(0), &minibatch, Some(ticket), &mut rows).unwrap();
                        check(TableId(0), &minibatch, &rows, 32);
                    }
                });
            }
        });
        engine.shutdown().unwrap();
    });
}

#[test]
fn what_is_announced_is_there_before_it_is_asked_for() {
    job(plain("tcp", 2), &[(TableId(0), 32)], &config("window", ControllerConfig::Off, 1.0), |engine, rank| {
        // Every other remote node is halo but those divisible by three: a full-size buffer holds this minibatch.
        let remote = if rank == Rank(0) { 150..250u64 } else { 0..100 };
        let minibatch: Vec<NodeId> = remote.map(NodeId).collect();
        let ticket = engine.announce(StreamId(0), &[TableId(0)], &minibatch).unwrap();
        engine.wait_idle(PATIENCE).unwrap();
        let mut rows = vec![0; minibatch.len() * 32];
        engine.gather(TableId(0), &minibatch, Some(ticket), &mut rows).unwrap();
        check(TableId(0), &minibatch, &rows, 32);
        let stats = engine.stats(TableId(0)).unwrap().pipeline;
        assert_eq!((stats.prefetched_rows, stats.demand_rows, stats.hits), (100, 0, 100));
        engine.shutdown().unwrap();
    });
}

#[test]
fn evaluation_is_served_and_teaches_nothing() {
    job(plain("tcp", 2), &[(TableId(0), 32)], &config("lfu", ControllerConfig::Off, 1.0), |engine, _| {
        let minibatch: Vec<NodeId> = (0..NODES).map(NodeId).collect();
        let mut rows = vec![0; minibatch.len() * 32];
        engine.pause(true);
        for _ in 0..3 {
            engine.gather(TableId(0), &minibatch, None, &mut rows).unwrap();
            check(TableId(0), &minibatch, &rows, 32);
        }
        let stats = engine.stats(TableId(0)).unwrap();
        assert_eq!((stats.pipeline.minibatches, stats.buffer.admissions, stats.pipeline.demand_rows), (0, 0, 450));
        assert!(engine.observations().is_empty());
        engine.pause(false);
        engine.gather(TableId(0), &minibatch, None, &mut rows).unwrap();
        assert_eq!(engine.observations().len(), 1);
        engine.shutdown().unwrap();
    });
}

#[test]
fn ranks_with_other_tables_are_refused_by_name() {
    let start = |bootstrap: local::LocalBootstrap| {
        let rank = bootstrap.rank();
        let config = Config { transport: "shm".into(), ..Config::default() };
        let builder = Engine::builder(config, Arc::new(bootstrap));
        let spec = spec(TableId(0), rank, 2, 8 + rank.index() * 4);
        builder.table(spec, |_| ()).start().map(drop)
    };
    let starts: Vec<_> =
        local::ranks(2).into_iter().map(|bootstrap| std::thread::spawn(move || start(bootstrap))).collect();
    for (rank, start) in starts.into_iter().enumerate() {
        let error = start.join().unwrap().unwrap_err().to_string();
        assert!(error.contains(&format!("rank {} registers other tables", 1 - rank)), "{error}");
    }
}
