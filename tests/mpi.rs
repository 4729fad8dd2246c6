//! Goal: over MPI every transport check holds, gathers are plain reads, and the bootstrap keeps its deadlines.
//! Method: the launcher starts this program as 2 to 4 processes (`make test-mpi`); each runs every check as the rank that it is, over
//! communicators of as many ranks as the check has. A failure ends its process and so the job. With `--die` one rank ends while others
//! read from it: the job must end, as MPI promises no more. Arguments that do not begin with `-` choose checks by name.

mod common;

use common::{Make, PATIENCE, Place, disturbed};
use rand::{Rng, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;
use rudder::bootstrap::{Bootstrap, MpiBootstrap};
use rudder::buffer::PolicyConfig;
use rudder::controller::ControllerConfig;
use rudder::memory::Access;
use rudder::transport::mpi::{GetForm, MpiConfig, MpiTransport, ProgressThread};
use rudder::{BufferSize, Config, Engine, NodeId, PartitionBook, PartitionId, Rank, StreamId, TableId, TableSpec};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// All processes. Given back at the end, so that MPI ends.
static WORLD: Mutex<Option<Arc<MpiBootstrap>>> = Mutex::new(None);

fn world() -> Arc<MpiBootstrap> {
    WORLD.lock().unwrap().clone().expect("MPI runs")
}

/// The first `ranks` processes, as a job; `None` to the others, and to all where there are not so many.
fn part(ranks: u32) -> Option<MpiBootstrap> {
    let world = world();
    if world.size() < ranks {
        if world.rank() == Rank(0) {
            println!("    a job of {ranks} ranks is left to a launch of as many");
        }
        return None;
    }
    let color = (world.rank().0 < ranks).then_some(0);
    world.split(color, PATIENCE).expect("all processes take part")
}

fn member(ranks: u32) -> Option<Place> {
    let part = part(ranks)?;
    let transport = MpiTransport::over(&part).expect("the transport opens");
    Some((Arc::new(part), Arc::new(transport)))
}

fn disturbed_member(ranks: u32) -> Option<Place> {
    let (part, transport) = member(ranks)?;
    Some((part, disturbed(vec![transport]).remove(0)))
}

type Check = (&'static str, fn(Make));

macro_rules! listed {
    ($($check:ident,)*) => { &[$((stringify!($check), common::suite::$check as fn(Make)),)*] };
}

/// The suite that holds for every transport.
const CHECKS: &[Check] = common::suite::all_checks!(listed);

const OWN_CHECKS: &[(&str, fn())] = &[
    ("mpi_says_what_it_cannot_promise", mpi_says_what_it_cannot_promise),
    ("settings_are_read_and_refused_by_name", settings_are_read_and_refused_by_name),
    ("words_of_any_length_are_gathered", words_of_any_length_are_gathered),
    ("who_is_missing_is_named_in_time", who_is_missing_is_named_in_time),
    ("memory_that_exists_is_refused_with_the_remedy", memory_that_exists_is_refused_with_the_remedy),
    ("gathers_are_plain_reads", gathers_are_plain_reads),
    ("a_transport_is_opened_by_name", a_transport_is_opened_by_name),
];

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    *WORLD.lock().unwrap() = Some(Arc::new(MpiBootstrap::world(PATIENCE).expect("MPI starts")));
    let (rank, size) = (world().rank(), world().size());
    assert!(size >= 2, "started as one process: use this MPI's mpiexec -n 2");
    if arguments.iter().any(|argument| argument == "--die") {
        die();
    }
    let named = |name: &str| {
        let mut names = arguments.iter().filter(|argument| !argument.starts_with('-')).peekable();
        names.peek().is_none() || names.any(|wanted| name.contains(wanted.as_str()))
    };
    let mut ran = 0;
    let mut run = |name: String, check: &dyn Fn()| {
        if named(&name) {
            let began = Instant::now();
            check();
            world().barrier(PATIENCE).expect("all processes end the check");
            ran += 1;
            if rank == Rank(0) {
                println!("{name} ... ok ({:.1} s)", began.elapsed().as_secs_f64());
            }
        }
    };
    for (kind, make) in [("mpi", Make::Process(member)), ("disturbed_mpi", Make::Process(disturbed_member))] {
        CHECKS.iter().for_each(|&(name, check)| run(format!("{kind}::{name}"), &|| check(make)));
    }
    OWN_CHECKS.iter().for_each(|&(name, check)| run(name.into(), &check));
    assert!(ran > 0, "no check has a name of {arguments:?}");
    if rank == Rank(0) {
        println!("test result: ok. {ran} passed; {size} processes");
    }
    drop(WORLD.lock().unwrap().take());
}

fn mpi_says_what_it_cannot_promise() {
    let Some((_part, transport)) = member(2) else { return };
    let can = transport.capabilities();
    assert!(!can.can_fence && !can.survives_peer_death && !can.read_only, "{can:?}");
    assert!(!can.needs_target_progress, "owners are called for by a thread where they must: {can:?}");
}

fn settings_are_read_and_refused_by_name() {
    let mut config = MpiConfig::default();
    let set = |name: &str| match name {
        "RUDDER_MPI_GET" => Some("hindexed".to_owned()),
        _ => Some("off".to_owned()),
    };
    config.override_by(set).unwrap();
    assert_eq!(config, MpiConfig { get: GetForm::Hindexed, progress: ProgressThread::Off });
    for name in ["RUDDER_MPI_GET", "RUDDER_MPI_PROGRESS"] {
        let wrong = config.override_by(|asked| (asked == name).then(|| "perhaps".into())).unwrap_err().to_string();
        assert!(wrong.contains(name) && wrong.contains("perhaps"), "{wrong}");
    }
}

fn words_of_any_length_are_gathered() {
    let world = world();
    for scale in [0, 1, 1000, 300_000] {
        let words = |rank: usize| vec![rank as u8 + 1; rank * scale];
        let all = world.all_gather(&words(world.rank().index()), PATIENCE).unwrap();
        assert!(all.len() == world.size() as usize && all.iter().enumerate().all(|(rank, said)| *said == words(rank)));
    }
}

fn who_is_missing_is_named_in_time() {
    if let Some(part) = part(2) {
        let timeout = Duration::from_millis(200);
        if part.rank() == Rank(0) {
            let began = Instant::now();
            let error = part.barrier(timeout).unwrap_err().to_string();
            assert!(error.contains("rank 1 did not take part within 200ms"), "{error}");
            assert!((timeout..timeout * 10).contains(&began.elapsed()), "{:?}", began.elapsed());
            let again = part.all_gather(b"once more", timeout).unwrap_err().to_string();
            assert!(again.contains("rank 1"), "a job out of step goes on: {again}");
        }
    }
}

fn memory_that_exists_is_refused_with_the_remedy() {
    let Some((_part, transport)) = member(2) else { return };
    let memory = rudder::memory::Memory::allocate(4096).unwrap();
    // SAFETY: nobody writes to it.
    let refusal = unsafe { transport.register(memory, Access::RemoteRead) }.unwrap_err().to_string();
    assert!(refusal.contains("allocate the region from the transport"), "{refusal}");
}

const TABLE: TableId = TableId(3);
const NODES: u64 = 300;

fn byte(node: u64, at: usize) -> u8 {
    (node + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes()[at % 8] ^ (at as u8).wrapping_mul(31)
}

fn engine(part: Arc<MpiBootstrap>, config: Config, row_bytes: usize) -> Engine {
    let ranks = u64::from(part.size());
    let book = PartitionBook::from_starts((0..=ranks).map(|at| at * NODES / ranks).collect()).unwrap();
    let partition = PartitionId(part.rank().0);
    let own = book.range(partition);
    let halo: Vec<NodeId> = (0..NODES).filter(|node| !own.contains(node) && node % 3 != 0).map(NodeId).collect();
    let degree = halo.iter().map(|node| (node.0 % 17) as u32).collect();
    let spec = TableSpec { halo, degree, ..TableSpec::new(TABLE, book, partition, row_bytes) };
    let fill = |rows: &mut [u8]| {
        let row = |(row, bytes): (usize, &mut [u8])| {
            bytes.iter_mut().enumerate().for_each(|(at, to)| *to = byte(own.start + row as u64, at));
        };
        rows.chunks_mut(row_bytes).enumerate().for_each(row);
    };
    Engine::builder(config, part).table(spec, fill).start().expect("the engine starts")
}

fn check(nodes: &[NodeId], rows: &[u8], row_bytes: usize) {
    assert_eq!(rows.len(), nodes.len() * row_bytes);
    for (node, row) in nodes.iter().zip(rows.chunks(row_bytes)) {
        assert!(row.iter().enumerate().all(|(at, &found)| found == byte(node.0, at)), "{node}: {row:?}");
    }
}

/// Random minibatches, some announced ahead, several open at once.
fn train(engine: &Engine, row_bytes: usize, seed: u64) {
    let mut chance = Xoshiro256PlusPlus::seed_from_u64(seed);
    let mut minibatch =
        || -> Vec<NodeId> { (0..chance.random_range(0..400)).map(|_| NodeId(chance.random_range(0..NODES))).collect() };
    for _ in 0..12 {
        let minibatches = [minibatch(), minibatch(), minibatch()];
        let ticket = engine.announce(StreamId(0), &[TABLE], &minibatches[1]).unwrap();
        let start = |(at, nodes): (usize, &Vec<NodeId>)| {
            let rows = engine.rows(TABLE, nodes.len()).unwrap();
            engine.start(TABLE, nodes, (at == 1).then_some(ticket), rows).unwrap()
        };
        let requests: Vec<_> = minibatches.iter().enumerate().map(start).collect();
        for (nodes, request) in minibatches.iter().zip(requests) {
            check(nodes, request.wait().expect("the rows come").as_bytes(), row_bytes);
        }
    }
}

fn gathers_are_plain_reads() {
    // Engines start collectively: every rank goes through the same list.
    let policies = [
        ("off", ControllerConfig::Off),
        ("degree", ControllerConfig::Fixed),
        ("lfu", ControllerConfig::Off),
        ("rudder", ControllerConfig::Periodic { delta: 2 }),
        ("window", ControllerConfig::Off),
    ];
    let mut seed = 0;
    for (policy, controller) in policies {
        for row_bytes in if policy == "lfu" { vec![1, 100, 2408] } else { vec![100] } {
            seed += 1;
            let config = Config {
                transport: "mpi".into(),
                policy: PolicyConfig::named(policy).unwrap(),
                controller: controller.clone(),
                buffer: BufferSize::Halo(0.2),
                rows_max: 512,
                batch_rows: 64,
                prefetch_batch_rows: 16,
                gather_timeout: PATIENCE,
                ..Config::default()
            };
            let engine = engine(world(), config, row_bytes);
            // Every rank gathers other minibatches.
            train(&engine, row_bytes, seed * 100 + u64::from(world().rank().0));
            let stats = engine.stats(TABLE).unwrap().pipeline;
            assert!(stats.demand_rows > 0, "no row came from a peer: {stats:?}");
            engine.shutdown().expect("all ranks end");
        }
    }
}

fn a_transport_is_opened_by_name() {
    use rudder::transport::{TransportConfig, open};
    let (rank, size) = (world().rank(), world().size());
    let transport = open("mpi", &TransportConfig::new(rank, size)).expect("all processes open it");
    assert_eq!(transport.name(), "mpi");
    let wrong = open("mpi", &TransportConfig::new(rank, size + 1)).map(drop).unwrap_err().to_string();
    assert!(wrong.contains(&format!("the job has {} ranks and MPI was launched with {size}", size + 1)), "{wrong}");
}

/// Reads from a rank that ends without a word; returns to nobody.
fn die() -> ! {
    let (bootstrap, transport) = member(world().size()).expect("all processes are of the job");
    transport.connect(&bootstrap.all_gather(&transport.address(), PATIENCE).unwrap()).unwrap();
    let region = transport.allocate(1 << 16, Access::RemoteRead).unwrap();
    let tokens = bootstrap.all_gather(region.token(), PATIENCE).unwrap();
    let victim = Rank(1);
    let imported = transport.import(victim, &tokens[victim.index()]).unwrap();
    if bootstrap.rank() == victim {
        std::thread::sleep(Duration::from_millis(100));
        std::process::abort();
    }
    let mut channel = transport.channel().unwrap();
    let mut landing = vec![0; 1 << 16];
    let began = Instant::now();
    while began.elapsed() < PATIENCE {
        let destination = rudder::transport::Destination { base: landing.as_mut_ptr(), stride: 64, places: 1024 };
        let rows: Vec<u64> = (0..1024).collect();
        let places: Vec<u32> = (0..1024).collect();
        let batch = rudder::transport::RowBatch {
            id: rudder::transport::BatchId(0),
            region: imported,
            version: 0,
            row_bytes: 64,
            rows: &rows,
            places: &places,
            destination,
        };
        common::get_all(&mut *channel, &batch);
    }
    println!("the job went on for {PATIENCE:?} after the death of {victim}");
    std::process::exit(0)
}
