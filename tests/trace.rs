//! Goal: an engine's trace tells what was gathered, in order, with what the engine itself has counted and how its caller's time was spent,
//! and a trace that cannot be written is an error at the start. Method: jobs of threads gather random minibatches, some announced, some
//! not observed, and write down what they do; the files are read back and compared.

use rand::SeedableRng;
use rand::seq::index::sample;
use rand_xoshiro::Xoshiro256PlusPlus;
use rudder::bootstrap::{Bootstrap, local};
use rudder::trace::{Event, Header, Minibatch, Reader, StepTimes, file_of};
use rudder::transport::{TransportConfig, open};
use rudder::{
    BufferSize, Config, Engine, NodeId, PartitionBook, PartitionId, Rank, Result, Stats, StreamId, TableId, TableSpec,
};
use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

const TABLE: TableId = TableId(3);
const NODES: u64 = 3000;
const ROW_BYTES: usize = 16;
const MINIBATCHES: usize = 60;

fn book() -> PartitionBook {
    PartitionBook::from_starts(vec![0, NODES / 2, NODES]).unwrap()
}

fn spec(rank: Rank) -> TableSpec {
    let other = book().range(PartitionId(1 - rank.0));
    let halo: Vec<_> = other.filter(|node| node % 3 > 0).map(NodeId).collect();
    let degree = halo.iter().map(|node| node.0 as u32 % 13).collect();
    TableSpec { halo, degree, edges: 77, ..TableSpec::new(TABLE, book(), PartitionId(rank.0), ROW_BYTES) }
}

fn engine(config: Config, bootstrap: local::LocalBootstrap, ranks: u32) -> Result<Engine> {
    let rank = bootstrap.rank();
    // Ranks of different hosts, so that rows travel.
    let config = Config { host: Some(format!("host-{rank}")), ..config };
    let transport = open("tcp", &TransportConfig::new(rank, ranks))?;
    Engine::builder(config, Arc::new(bootstrap)).transport(transport).table(spec(rank), |_| ()).start()
}

/// What a rank says it has done.
struct Diary {
    gathered: Vec<Minibatch>,
    epochs: Vec<usize>,
    stats: Stats,
}

fn minibatches(seed: u64) -> Vec<Vec<NodeId>> {
    let mut random = Xoshiro256PlusPlus::seed_from_u64(seed);
    let mut one = || sample(&mut random, NODES as usize, 200).into_iter().map(|node| NodeId(node as u64)).collect();
    (0..MINIBATCHES).map(|_| one()).collect()
}

/// Gathers, announcing `ahead` minibatches; every seventh is evaluation, every twentieth ends an epoch.
fn train(engine: &Engine, rank: Rank, ahead: usize) -> Diary {
    let local = book().range(PartitionId(rank.0));
    let minibatches = minibatches(u64::from(rank.0));
    let (mut tickets, mut gathered, mut epochs) = (VecDeque::new(), Vec::new(), Vec::new());
    for (at, nodes) in minibatches.iter().enumerate() {
        for coming in minibatches[at..].iter().take(ahead + 1).skip(tickets.len()).filter(|_| ahead > 0) {
            tickets.push_back(engine.announce(StreamId(0), &[TABLE], coming).unwrap());
        }
        let observed = at % 7 != 3;
        engine.pause(!observed);
        let mut rows = vec![0; nodes.len() * ROW_BYTES];
        engine.gather(TABLE, nodes, tickets.pop_front(), &mut rows).unwrap();
        engine.mark_step(StepTimes { compute: Duration::from_micros(at as u64), ..StepTimes::default() });
        if at % 20 == 19 {
            engine.mark_epoch_end();
            epochs.push(at + 1);
        }
        gathered.push(Minibatch {
            nodes: nodes.iter().copied().filter(|node| !local.contains(&node.0)).collect(),
            announced: (ahead > 0).then_some(at.min(ahead) as u64),
            observed,
            ..Minibatch::default()
        });
    }
    engine.wait_idle(Duration::from_secs(10)).unwrap();
    Diary { gathered, epochs, stats: engine.stats(TABLE).unwrap() }
}

fn read(prefix: &Path, rank: Rank) -> (Header, Vec<Event>) {
    let reader = Reader::open(&file_of(prefix, rank)).unwrap();
    let header = reader.header().clone();
    (header, reader.collect::<Result<_>>().unwrap())
}

fn check(header: &Header, events: &[Event], rank: Rank, diary: &Diary) {
    let spec = spec(rank);
    assert_eq!((header.rank, header.ranks, header.sharing, header.policy.as_str()), (rank, 2, 1, "window"));
    assert_eq!((header.facts.edges, header.tables.len()), (77, 1));
    let table = &header.tables[0];
    assert_eq!((table.id, table.row_bytes, table.slots), (TABLE, ROW_BYTES as u64, diary.stats.slots));
    assert_eq!((&table.halo, &table.degree, table.book().unwrap()), (&spec.halo, &spec.degree, spec.book));
    let peers = [0, 1].map(|other| (other != rank.0).then_some(Rank(other)));
    assert_eq!((table.partition, &table.peers[..]), (spec.partition, &peers[..]));

    let (mut gathered, mut epochs) = (Vec::new(), Vec::new());
    for event in events {
        match event {
            Event::Minibatch(minibatch) => gathered.push(minibatch),
            Event::EpochEnd => epochs.push(gathered.len()),
            Event::Gap { events } => panic!("{events} events are missing"),
        }
    }
    assert_eq!((gathered.len(), &epochs), (diary.gathered.len(), &diary.epochs));
    for (at, (found, wanted)) in gathered.iter().zip(&diary.gathered).enumerate() {
        assert_eq!((found.observed, found.announced), (wanted.observed, wanted.announced), "minibatch {at}");
        assert!(found.nodes == wanted.nodes, "minibatch {at} of {rank}");
        assert_eq!(found.step.compute, Duration::from_micros(at as u64));
        assert!(found.stall > Duration::ZERO);
    }
    let sum = |pick: fn(&Minibatch) -> u64| gathered.iter().map(|minibatch| pick(minibatch)).sum::<u64>();
    let counted = diary.stats.pipeline;
    assert_eq!(sum(|minibatch| minibatch.hits), counted.hits);
    assert_eq!(sum(|minibatch| minibatch.demand_rows), counted.demand_rows);
    assert_eq!(sum(|minibatch| minibatch.prefetched_rows), counted.prefetched_rows);
    // What came after the last start is not told of.
    let came = sum(|minibatch| minibatch.owners.iter().map(|owner| owner.rows).sum());
    let last = gathered[gathered.len() - 1].demand_rows;
    let fetched = counted.demand_rows + counted.prefetched_rows;
    assert!((fetched - last - 400..=fetched).contains(&came), "{came} of {fetched} rows");
    assert!(sum(|minibatch| minibatch.owners.iter().map(|owner| owner.busy.as_nanos() as u64).sum()) > 0);
}

#[test]
fn a_trace_tells_what_was_gathered() {
    for ahead in [0, 5] {
        let directory = tempfile::tempdir().unwrap();
        let prefix = directory.path().join("job");
        let config = Config { trace: Some(prefix.clone()), buffer: BufferSize::Halo(0.3), ..Config::default() };
        let run = |bootstrap: local::LocalBootstrap| {
            let rank = bootstrap.rank();
            let engine = engine(config.clone(), bootstrap, 2).unwrap();
            let diary = train(&engine, rank, ahead);
            engine.shutdown().unwrap();
            diary
        };
        let diaries: Vec<_> = std::thread::scope(|scope| {
            let run = &run;
            let ranks: Vec<_> = local::ranks(2).into_iter().map(|rank| scope.spawn(move || run(rank))).collect();
            ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
        });
        for (rank, diary) in (0..).map(Rank).zip(&diaries) {
            let (header, events) = read(&prefix, rank);
            check(&header, &events, rank, diary);
        }
    }
}

/// One rank that owns all rows.
fn alone(prefix: &Path) -> Result<Engine> {
    let bootstrap = local::ranks(1).remove(0);
    let book = PartitionBook::from_starts(vec![0, 10])?;
    let config = Config { trace: Some(prefix.to_owned()), ..Config::default() };
    let spec = TableSpec::new(TABLE, book, PartitionId(0), 8);
    Engine::builder(config, Arc::new(bootstrap)).table(spec, |_| ()).start()
}

#[test]
fn what_lies_between_waits_is_the_callers_own_time() {
    let directory = tempfile::tempdir().unwrap();
    let prefix = directory.path().join("alone");
    let engine = alone(&prefix).unwrap();
    let work = Duration::from_millis(20);
    let start = || engine.start(TABLE, &[NodeId(1)], None, engine.rows(TABLE, 1).unwrap()).unwrap();
    start().wait().unwrap();
    std::thread::sleep(work);
    start().wait().unwrap();
    let ahead = start();
    std::thread::sleep(work);
    ahead.wait().unwrap();
    std::thread::sleep(work);
    engine.mark_epoch_end();
    engine.shutdown().unwrap();
    let (_, events) = read(&prefix, Rank(0));
    let told: Vec<_> = events
        .iter()
        .filter_map(|event| match event {
            Event::Minibatch(minibatch) => Some((minibatch.overlapped, minibatch.step.compute >= work)),
            _ => None,
        })
        .collect();
    // The first computes for a while, the second while the third is gathered, the third until the epoch ends.
    assert_eq!(told, [(false, true), (false, true), (true, true)]);
    assert_eq!(events.last(), Some(&Event::EpochEnd));
}

#[test]
fn an_epoch_ends_after_what_was_waited_for_last() {
    let directory = tempfile::tempdir().unwrap();
    let prefix = directory.path().join("ends");
    let engine = alone(&prefix).unwrap();
    let start = |count: u64| {
        let nodes: Vec<_> = (0..count).map(NodeId).collect();
        engine.start(TABLE, &nodes, None, engine.rows(TABLE, nodes.len()).unwrap()).unwrap()
    };
    // One that nobody waits for, the last of the epoch, and the first of the next, started ahead.
    let dropped = start(1);
    let last = start(2);
    let ahead = start(3);
    last.wait().unwrap();
    drop(dropped);
    engine.mark_epoch_end();
    ahead.wait().unwrap();
    engine.mark_epoch_end();
    engine.shutdown().unwrap();
    let (_, events) = read(&prefix, Rank(0));
    let epochs: Vec<usize> = events.split(|event| *event == Event::EpochEnd).map(<[Event]>::len).collect();
    assert_eq!(epochs, [2, 1, 0], "minibatches before, between and after the ends of epochs");
}

#[test]
fn a_trace_that_cannot_be_written_is_an_error_at_the_start() {
    let error = alone(Path::new("/nonexistent/job")).map(drop).unwrap_err().to_string();
    assert!(error.contains("/nonexistent/job.0.trace"), "{error}");
}
