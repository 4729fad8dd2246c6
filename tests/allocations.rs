//! Goal: after warm-up, a minibatch allocates nothing, on the asker's side and on the owner's.
//! Method: a counting allocator over a job of two ranks; the ranks agree on when the counted part begins and ends.

#[path = "common/counting.rs"]
mod counting;

use counting::{ALLOCATIONS, COUNTED};
use rudder::bootstrap::{Bootstrap, local};
use rudder::buffer::{BufferHints, Pin, PolicyConfig, PrefetchBuffer};
use rudder::controller::classifier::{ClassifierConfig, Dense, FEATURES, Feature, Model, Perceptron, Trained};
use rudder::controller::{ControllerConfig, JobFacts, Observation};
use rudder::transport::{TransportConfig, open};
use rudder::{BufferSize, Config, Engine, NodeId, PartitionBook, PartitionId, Rank, StreamId, TableId, TableSpec};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Barrier, Mutex};

#[cfg(feature = "fabric")]
const TRANSPORTS: &[&str] = &["shm", "tcp", "fabric"];
#[cfg(not(feature = "fabric"))]
const TRANSPORTS: &[&str] = &["shm", "tcp"];
const TABLE: TableId = TableId(0);
const ROW_BYTES: usize = 64;
const NODES: u64 = 4000;
/// Held by a test: what is counted is the whole process's.
static COUNTER: Mutex<()> = Mutex::new(());

/// Minibatches that repeat after 32: the warm-up has seen every one.
fn minibatch(at: u64) -> Vec<NodeId> {
    (0..500).map(|i| NodeId((i * i * 7 + (at % 32) * 97 + i * 31) % NODES)).collect()
}

fn train(engine: &Engine, minibatches: &[Vec<NodeId>], ahead: usize, turns: std::ops::Range<usize>, step: &Barrier) {
    let announce = |at: usize| {
        let nodes = &minibatches[at % minibatches.len()];
        (ahead > 0).then(|| engine.announce(StreamId(0), &[TABLE], nodes).unwrap())
    };
    let mut tickets = [None; 8];
    for at in turns.start..turns.start + ahead {
        tickets[at % 8] = announce(at);
    }
    for at in turns.clone() {
        if at + ahead < turns.end {
            tickets[(at + ahead) % 8] = announce(at + ahead);
        }
        // Ranks that train together are in step: how much neighbours have announced does not grow any more.
        step.wait();
        let nodes = &minibatches[at % minibatches.len()];
        let rows = engine.rows(TABLE, nodes.len()).unwrap();
        let rows = engine.start(TABLE, nodes, tickets[at % 8].take(), rows).unwrap().wait().unwrap();
        assert_eq!(rows.as_bytes().len(), nodes.len() * ROW_BYTES);
    }
    assert!(tickets.iter().all(Option::is_none));
}

/// Allocations of two hosts in 100 minibatches a rank; with more than one rank a host, these share its buffer.
fn allocations(transport: &str, policy: &str, controller: ControllerConfig, ahead: usize, ranks_a_host: u32) -> u64 {
    let traces = tempfile::tempdir().unwrap();
    let config = Config {
        trace: Some(traces.path().join("warm")),
        policy: PolicyConfig::named(policy).unwrap(),
        controller,
        buffer: BufferSize::Halo(0.2),
        rows_max: 1024,
        // Several batches a gather, so that the warm-up opens every connection.
        batch_rows: 64,
        prefetch_batch_rows: 64,
        observations: 64,
        ..Config::default()
    };
    let ranks = 2 * ranks_a_host;
    let all = Barrier::new(ranks as usize);
    std::thread::scope(|scope| {
        for bootstrap in local::ranks(ranks) {
            let (config, all) = (config.clone(), &all);
            scope.spawn(move || {
                let rank = bootstrap.rank();
                let host = rank.0 / ranks_a_host;
                let config = Config { host: Some(format!("host-{host}")), ..config };
                let book = PartitionBook::from_starts(vec![0, NODES / 2, NODES]).unwrap();
                let other = book.range(PartitionId(1 - host));
                let halo = other.clone().map(NodeId).collect();
                let degree = other.map(|node| node as u32 % 31).collect();
                let spec = TableSpec { halo, degree, ..TableSpec::new(TABLE, book, PartitionId(host), ROW_BYTES) };
                let transport = open(transport, &TransportConfig::new(rank, ranks)).unwrap();
                let engine = Engine::builder(config, Arc::new(bootstrap))
                    .transport(transport)
                    .table(spec, |_| ())
                    .start()
                    .unwrap();
                let minibatches: Vec<_> = (0..32).map(|at| minibatch(at + 5 * u64::from(rank.0))).collect();
                train(&engine, &minibatches, ahead, 0..200, all);
                all.wait();
                COUNTED.store(true, Ordering::SeqCst);
                train(&engine, &minibatches, ahead, 0..100, all);
                COUNTED.store(false, Ordering::SeqCst);
                all.wait();
                engine.shutdown().unwrap();
            });
        }
    });
    ALLOCATIONS.swap(0, Ordering::SeqCst)
}

/// A classifier that decides every other minibatch.
fn classifier(file: &std::path::Path, online: bool) -> ControllerConfig {
    let layer =
        |inputs: usize, outputs: usize| Dense { weights: vec![vec![0.1; inputs]; outputs], bias: vec![-0.1; outputs] };
    let feature = |name: &&str| Feature { name: (*name).to_owned(), mean: 0.0, deviation: 1.0 };
    let trained = Trained {
        name: "test".into(),
        training: String::new(),
        interval: 2,
        features: FEATURES.iter().map(feature).collect(),
        model: Model::Perceptron(Perceptron { layers: vec![layer(FEATURES.len(), 8), layer(8, 1)] }),
    };
    trained.write(file).unwrap();
    ControllerConfig::Classifier(ClassifierConfig { file: file.to_owned(), online })
}

#[test]
fn a_warm_data_path_allocates_nothing() {
    let _counting = COUNTER.lock();
    let mut found = Vec::new();
    let file = tempfile::NamedTempFile::new().unwrap();
    for transport in TRANSPORTS {
        for (policy, controller, ahead) in [
            ("off", ControllerConfig::Off, 0),
            ("degree", ControllerConfig::Fixed, 0),
            ("random", ControllerConfig::Off, 0),
            ("presc", ControllerConfig::Off, 0),
            ("lru", ControllerConfig::Off, 0),
            ("sieve", ControllerConfig::Off, 0),
            ("s3fifo", ControllerConfig::Off, 4),
            ("wtinylfu", ControllerConfig::Off, 4),
            ("lfu", ControllerConfig::Off, 0),
            ("rudder", ControllerConfig::Periodic { delta: 8 }, 0),
            ("rudder", classifier(file.path(), false), 0),
            ("lfu", ControllerConfig::Off, 4),
            ("window", ControllerConfig::Off, 4),
            ("window", ControllerConfig::Auto, 4),
        ] {
            for ranks_a_host in [1, 2] {
                let count = allocations(transport, policy, controller.clone(), ahead, ranks_a_host);
                if count > 0 {
                    found.push(format!("{transport} {policy} ahead {ahead}, {ranks_a_host} ranks a host: {count}"));
                }
            }
        }
    }
    // 100 minibatches of each rank were counted.
    assert!(found.is_empty(), "allocations after warm-up: {found:#?}");
}

/// Fewer and fewer rows are fetched, so that replacements look as if they paid, but for some.
#[test]
fn a_classifier_that_learns_on_allocates_nothing() {
    let _counting = COUNTER.lock();
    let file = tempfile::NamedTempFile::new().unwrap();
    let facts = JobFacts { slots: 200_000, ..JobFacts::default() };
    let mut controller = classifier(file.path(), true).build(&facts).unwrap();
    let mut replaced = 0;
    let mut steer = |minibatches: std::ops::Range<u64>| {
        for minibatch in minibatches {
            let demand_rows = 100_000 - 50 * minibatch + 400 * u64::from(minibatch % 16 == 0);
            controller.observe(&Observation {
                minibatch,
                remote_nodes: 200_000,
                demand_rows,
                ..Observation::default()
            });
            if let Some(decision) = controller.decide() {
                controller.handle_taken();
                replaced += u64::from(decision.replace);
            }
        }
    };
    steer(1..100);
    COUNTED.store(true, Ordering::SeqCst);
    steer(100..1000);
    COUNTED.store(false, Ordering::SeqCst);
    assert_eq!(ALLOCATIONS.swap(0, Ordering::SeqCst), 0);
    assert!(replaced > 100, "{replaced}");
}

/// The training's side of a buffer that is watched and changes its policy; what prepares policies and listens is on another thread in a job.
#[test]
fn a_watched_buffer_allocates_nothing_for_it() {
    let _counting = COUNTER.lock();
    let owners = PartitionBook::from_starts(vec![0, NODES]).unwrap();
    let halo: Vec<NodeId> = (0..NODES).map(NodeId).collect();
    let hints = BufferHints { nodes: NODES, degree: vec![1; halo.len()], halo, owners };
    let lfu = PolicyConfig::named("lfu").unwrap();
    let mut buffer = PrefetchBuffer::new(800, &lfu, hints.clone()).unwrap();
    let feed = buffer.watch(&lfu, hints).unwrap();
    let minibatches: Vec<_> = (0..32).map(minibatch).collect();
    let policies = ["lru", "lfu:64", "sieve", "window", "s3fifo", "degree", "wtinylfu", "rudder", "lfu"];
    let policies = policies.map(|name| PolicyConfig::named(name).unwrap());
    let (mut found, mut kept, mut fetches) = (Vec::new(), Vec::new(), Vec::new());
    for at in 0..900u64 {
        let mut nodes = minibatches[at as usize % 32].clone();
        nodes.sort_unstable();
        nodes.dedup();
        let policy = &policies[at as usize / 16 % 9];
        if at % 16 == 0 {
            feed.prepare(policy).unwrap();
        }
        COUNTED.store(at >= 450, Ordering::SeqCst);
        let position = buffer.announce(&nodes).unwrap();
        buffer.lookup(Pin(at), &nodes, true, &mut found);
        buffer.retire(position, &nodes);
        buffer.admit_missed(true, &mut kept);
        buffer.end_minibatch(false, None, &mut fetches);
        assert_eq!(buffer.switch(policy), at % 16 == 0);
        buffer.tell_end(std::iter::empty());
        buffer.release(Pin(at + 1));
        kept.iter().for_each(|(_, slot)| buffer.filled(*slot));
        COUNTED.store(false, Ordering::SeqCst);
        feed.pass(|_| ());
    }
    assert_eq!((ALLOCATIONS.swap(0, Ordering::SeqCst), feed.lost()), (0, 0));
}

#[test]
fn the_counter_counts() {
    let _counting = COUNTER.lock();
    COUNTED.store(true, Ordering::SeqCst);
    std::hint::black_box(vec![Rank(0); 100]);
    COUNTED.store(false, Ordering::SeqCst);
    assert!(ALLOCATIONS.swap(0, Ordering::SeqCst) > 0);
}
