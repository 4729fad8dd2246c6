//! Goal: tables are served from the files that they are in, and gathers land in memory that the caller has registered: right to the byte,
//! refused in words where that cannot be, and never touched after it was given back.
//! Method: jobs of two ranks over real transports; one more transport claims to need registered destinations, as devices do, and watches
//! where gets land.

use rudder::bootstrap::{Bootstrap, local};
use rudder::memory::{Access, Memory, Region, RegisteredRows};
use rudder::placement::{Nic, Topology};
use rudder::transport::hook::{FaultConfig, Faulty};
use rudder::transport::{
    Capabilities, Channel, Completion, Fenced, RemoteRegion, RowBatch, Transport, TransportConfig, Wait, Waker, open,
};
use rudder::{
    Bind, Config, Engine, EngineBuilder, Error, NodeId, PartitionBook, PartitionId, Rank, Result, TableId, TableSpec,
};
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

const TABLE: TableId = TableId(3);
const NODES: u64 = 400;
const ROW_BYTES: usize = 36;

fn byte(node: u64, at: usize) -> u8 {
    ((node + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> (at % 7 * 8)) as u8 ^ at as u8
}

/// The rows of these nodes, one after the other.
fn rows_of(nodes: impl IntoIterator<Item = u64>) -> Vec<u8> {
    nodes.into_iter().flat_map(|node| (0..ROW_BYTES).map(move |at| byte(node, at))).collect()
}

fn minibatch() -> Vec<NodeId> {
    (0..300).map(|at| NodeId(at * 37 % NODES)).collect()
}

fn expected() -> Vec<u8> {
    rows_of(minibatch().iter().map(|node| node.0))
}

fn spec(rank: Rank) -> TableSpec {
    let book = PartitionBook::from_starts(vec![0, NODES / 2, NODES]).unwrap();
    TableSpec::new(TABLE, book, PartitionId(rank.0), ROW_BYTES)
}

fn own_nodes(rank: Rank) -> std::ops::Range<u64> {
    let half = NODES / 2;
    u64::from(rank.0) * half..u64::from(rank.0 + 1) * half
}

/// A file that goes with the test.
struct File(PathBuf);

impl File {
    fn new(name: &str, bytes: &[u8]) -> Self {
        let path = std::env::temp_dir().join(format!("rudder-in-place-{}-{name}", std::process::id()));
        std::fs::write(&path, bytes).unwrap();
        Self(path)
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn named(name: &str) -> Vec<Arc<dyn Transport>> {
    (0..2).map(|rank| open(name, &TransportConfig::new(Rank(rank), 2)).unwrap()).collect()
}

fn config() -> Config {
    Config {
        map_host_rows: false,
        batch_rows: 16,
        prefetch_batch_rows: 4,
        gather_timeout: Duration::from_secs(20),
        ..Config::default()
    }
}

/// Starts an engine on each of two ranks; `table` adds the table, `body` has the engine or why there is none.
fn job(
    transports: Vec<Arc<dyn Transport>>,
    table: impl Fn(EngineBuilder<'static>, Rank) -> EngineBuilder<'static> + Sync,
    body: impl Fn(Result<Engine>, Rank) + Sync,
) {
    std::thread::scope(|scope| {
        for (transport, bootstrap) in transports.into_iter().zip(local::ranks(2)) {
            let (table, body) = (&table, &body);
            scope.spawn(move || {
                let rank = bootstrap.rank();
                let config = Config { collective_timeout: Duration::from_secs(3), ..config() };
                let builder = Engine::builder(config, Arc::new(bootstrap)).transport(transport);
                body(table(builder, rank).start(), rank);
            });
        }
    });
}

fn filled(builder: EngineBuilder<'static>, rank: Rank) -> EngineBuilder<'static> {
    builder.table(spec(rank), move |rows| rows.copy_from_slice(&rows_of(own_nodes(rank))))
}

/// Files with the rows of each rank's partition; that of rank 1 is longer.
fn files(name: &str) -> Vec<File> {
    let file = |rank: u32| {
        let mut bytes = rows_of(own_nodes(Rank(rank)));
        bytes.resize(bytes.len() + 5 * rank as usize, 0xEE);
        File::new(&format!("{name}-{rank}"), &bytes)
    };
    (0..2).map(file).collect()
}

#[test]
fn tables_are_served_from_their_files() {
    for name in ["tcp", "shm"] {
        let files = files(name);
        let table =
            |builder: EngineBuilder<'static>, rank: Rank| builder.table_file(spec(rank), &files[rank.index()].0);
        job(named(name), table, |engine, rank| {
            let engine = engine.unwrap();
            // What is mapped needs no name.
            std::fs::remove_file(&files[rank.index()].0).unwrap();
            check(&engine, name);
            engine.shutdown().unwrap();
        });
    }
}

#[test]
fn memory_that_exists_is_served_where_the_transport_can() {
    let files = files("memory");
    let table = |builder: EngineBuilder<'static>, rank: Rank| {
        let memory = match rank {
            Rank(0) => Memory::open(&files[0].0).unwrap(),
            _ => borrowed(rows_of(own_nodes(rank))),
        };
        // SAFETY: nobody writes to the bytes.
        unsafe { builder.table_memory(spec(rank), memory) }
    };
    job(named("tcp"), table, |engine, _| {
        let engine = engine.unwrap();
        check(&engine, "tcp");
        engine.shutdown().unwrap();
    });
    // What another process cannot map is refused by the transport's own words, which say what to do.
    let refused = alone("shm", |builder| {
        // SAFETY: as above.
        unsafe { builder.table_memory(whole(), borrowed(rows_of(0..NODES))) }
    });
    assert!(refused.contains("allocate it from the transport"), "{refused}");
    // SAFETY: as above.
    let short = alone("tcp", |builder| unsafe { builder.table_memory(whole(), borrowed(vec![0; 99])) });
    assert!(short.contains("memory of 99 bytes") && short.contains("400 rows of 36 bytes, 14400 in all"), "{short}");
}

#[test]
fn files_that_cannot_be_served_are_named_with_the_cause() {
    let short = File::new("short", &rows_of(0..NODES - 1));
    let empty = File::new("empty", &[]);
    let directory = std::env::temp_dir();
    for (path, cause) in [
        (&short.0, "it has 14364 bytes, but partition 0 of table 3 has 400 rows of 36 bytes, 14400 in all"),
        (&empty.0, "it is empty"),
        (&PathBuf::from("/nonexistent/rows"), "check that the file exists"),
        (&directory, "not a regular file"),
        (&PathBuf::from("/dev/null"), "not a regular file"),
    ] {
        let refused = alone("tcp", |builder| builder.table_file(whole(), path));
        assert!(refused.contains(&format!("table file {}", path.display())) && refused.contains(cause), "{refused}");
    }
}

#[test]
fn a_file_that_is_shortened_while_the_job_starts_is_an_error() {
    let file = File::new("shortened", &rows_of(0..NODES));
    let shorten = file.0.clone();
    let other = TableSpec { id: TableId(4), ..whole() };
    let refused = alone("tcp", |builder| {
        let builder = builder.table_file(whole(), &file.0);
        // The tables are taken in order: this one is filled when the file is mapped.
        builder
            .table(other, move |_| std::fs::OpenOptions::new().write(true).open(shorten).unwrap().set_len(100).unwrap())
    });
    assert!(refused.contains("shortened from 14400 to 100 bytes") && refused.contains("rename"), "{refused}");
}

#[test]
fn empty_partitions_need_no_file() {
    let book = PartitionBook::from_starts(vec![0, NODES, NODES]).unwrap();
    let file = File::new("all", &rows_of(0..NODES));
    let table = |builder: EngineBuilder<'static>, rank: Rank| {
        let spec = TableSpec::new(TABLE, book.clone(), PartitionId(rank.0), ROW_BYTES);
        builder.table_file(spec, if rank == Rank(0) { file.0.clone() } else { PathBuf::from("/nonexistent/rows") })
    };
    job(named("tcp"), table, |engine, _| {
        let engine = engine.unwrap();
        check(&engine, "tcp");
        engine.shutdown().unwrap();
    });
}

#[test]
fn gathers_land_in_memory_that_the_caller_registers() {
    for transports in [named("shm"), named("tcp"), watched().0] {
        job(transports, filled, |engine, _| {
            let engine = engine.unwrap();
            let bytes = expected().len();
            let (registered, place) = register(&engine, 64 + bytes + 3);
            for (first_byte, rows) in [(0, 300), (64, 300), (67, 300), (1001, 7), (bytes + 67, 0)] {
                place.fill(0xEE);
                let minibatch = &minibatch()[..rows];
                let landing = registered.rows(first_byte, rows, ROW_BYTES).unwrap();
                assert!(landing.is_registered());
                let landed = engine.start(TABLE, minibatch, None, landing).unwrap().wait().unwrap();
                assert!(landed.as_bytes() == &expected()[..rows * ROW_BYTES]);
                drop(landed);
                let (before, rest) = place.bytes().split_at(first_byte);
                assert!(
                    before.iter().chain(&rest[rows * ROW_BYTES..]).all(|&byte| byte == 0xEE),
                    "only its rows are written"
                );
            }
            drop(registered);
            engine.shutdown().unwrap();
        });
    }
}

#[test]
fn what_is_not_registered_or_taken_already_is_refused_or_staged() {
    let (transports, _) = watched();
    job(transports, filled, |engine, _| {
        let engine = engine.unwrap();
        let (registered, _place) = register(&engine, 10 * ROW_BYTES);
        for (first_byte, rows, row_bytes) in
            [(0, 11, ROW_BYTES), (1, 10, ROW_BYTES), (usize::MAX, 1, 1), (0, usize::MAX, 2), (0, 1, usize::MAX)]
        {
            let refused = registered.rows(first_byte, rows, row_bytes).unwrap_err().to_string();
            assert!(refused.contains("pass the end of the 360 bytes"), "{refused}");
        }
        let held = registered.rows(ROW_BYTES, 2, ROW_BYTES).unwrap();
        let refused = registered.rows(0, 2, ROW_BYTES).unwrap_err().to_string();
        assert!(refused.contains("bytes 0..72 overlap 36..108, whose rows are still held"), "{refused}");
        let beside = registered.rows(0, 1, ROW_BYTES).unwrap();
        drop((held, beside));
        registered.rows(0, 10, ROW_BYTES).expect("all were given back");
        // Memory that nobody has registered: the transport, which takes no such destination, is given staging instead.
        check(&engine, "not registered");
        // SAFETY: nothing is registered of no bytes.
        let nothing = unsafe { engine.register_rows(NonNull::dangling(), 0, Arc::new(())) };
        assert!(matches!(nothing, Err(Error::Argument(_))));
        engine.shutdown().unwrap();
    });
}

#[test]
fn registered_memory_is_held_while_a_gather_may_write_to_it() {
    // Most rows come late or never: gathers are open for long, and their aborts have something to do.
    let faults = FaultConfig { seed: 5, drop: 0.2, delay: 0.9, delay_polls_max: 50, ..FaultConfig::default() };
    for name in ["tcp", "shm"] {
        let transports =
            named(name).into_iter().map(|inner| -> Arc<dyn Transport> { Arc::new(Faulty::new(inner, faults)) });
        job(transports.collect(), filled, |engine, _| {
            let engine = engine.unwrap();
            for _ in 0..10 {
                let (registered, place) = register(&engine, expected().len());
                let rows = registered.rows(0, minibatch().len(), ROW_BYTES).unwrap();
                let request = engine.start(TABLE, &minibatch(), None, rows).unwrap();
                drop(registered);
                assert!(!place.is_let_go(), "a request is open on it");
                drop(request);
                assert!(place.is_let_go(), "nothing is open any more");
                place.fill(0xEE);
                std::thread::sleep(Duration::from_millis(20));
                assert!(place.bytes().iter().all(|&byte| byte == 0xEE), "it was written to after it was let go");
            }
            engine.shutdown().unwrap();
        });
    }
}

#[test]
fn limits_on_pinned_bytes_are_told_by_variable_and_remedy() {
    use rudder::memory::{limit_pinned, pin_charge, usage};
    limit_pinned(1 << 20);
    let charge = pin_charge(1 << 19).unwrap();
    assert_eq!(usage().pinned_bytes, 1 << 19);
    let refused = pin_charge((1 << 19) + 1).unwrap_err().to_string();
    assert!(refused.contains("cannot pin 524289 bytes") && refused.contains("524288 are pinned already"), "{refused}");
    drop(charge);
    assert_eq!(usage().pinned_bytes, 0);
    limit_pinned(u64::MAX);
}

#[test]
fn registered_rows_are_written_by_the_transport_and_others_are_staged() {
    let (transports, landings) = watched();
    job(transports, filled, |engine, rank| {
        let engine = engine.unwrap();
        if rank == Rank(0) {
            let posted_to = |base: usize| {
                let posted = std::mem::take(&mut *landings.posted.lock().unwrap());
                assert!(!posted.is_empty(), "half of the rows are remote");
                posted.iter().filter(|&&first| first == base).count() == posted.len()
            };
            let bytes = expected().len();
            let (registered, place) = register(&engine, 64 + bytes);
            let rows = registered.rows(64, 300, ROW_BYTES).unwrap();
            let base = rows.as_ptr() as usize;
            let landed = engine.start(TABLE, &minibatch(), None, rows).unwrap().wait().unwrap();
            assert!(landed.as_bytes() == expected() && posted_to(base), "rows of the registration");
            drop(landed);
            let rows = engine.rows(TABLE, 300).unwrap();
            let base = rows.as_ptr() as usize;
            let landed = engine.start(TABLE, &minibatch(), None, rows).unwrap().wait().unwrap();
            assert!(landed.as_bytes() == expected() && posted_to(base), "rows of the pool");
            // SAFETY: no rows of the registration are out, so that these bytes are the test's.
            let within = unsafe { std::slice::from_raw_parts_mut(place.base().as_ptr(), bytes) };
            engine.gather(TABLE, &minibatch(), None, within).unwrap();
            assert!(*within == expected() && posted_to(within.as_ptr() as usize), "a slice within the registration");
            let mut rows = vec![0; bytes];
            engine.gather(TABLE, &minibatch(), None, &mut rows).unwrap();
            assert!(rows == expected() && !posted_to(rows.as_ptr() as usize), "other memory");
            drop(registered);
            engine.gather(TABLE, &minibatch(), None, within).unwrap();
            assert!(*within == expected() && !posted_to(within.as_ptr() as usize), "memory that is registered no more");
        }
        engine.shutdown().unwrap();
    });
}

/// On a host with one NUMA node, or without a NIC that is near one, this says that nothing moves.
#[test]
fn threads_are_started_near_the_nic() {
    let host = Topology::read();
    let process = cpus_of("/proc/thread-self/status");
    let placed = |nic: &&Nic| host.nodes.len() > 1 && !nic.nodes.is_empty();
    let nic = host.nics.iter().find(placed).or(host.nics.first());
    let node = nic.filter(placed).and_then(|nic| host.nodes.iter().find(|node| nic.nodes == [node.id]));
    for bind in [Bind::Auto, Bind::Off] {
        let near: Vec<u32> = match (bind, node) {
            (Bind::Auto, Some(node)) => node.cpus.iter().copied().filter(|cpu| process.contains(cpu)).collect(),
            _ => Vec::new(),
        };
        let expected = if near.is_empty() { &process } else { &near };
        let config = Config { transport: "tcp".into(), nic: nic.map(|nic| nic.name.clone()), bind, ..config() };
        let rank = Arc::new(local::ranks(1).remove(0));
        let table = |rows: &mut [u8]| {
            rows.copy_from_slice(&rows_of(0..NODES));
            assert_eq!(cpus_of("/proc/thread-self/status"), process, "the caller's own work stays where it was");
        };
        let engine = Engine::builder(config, rank).table(whole(), table).start().unwrap();
        for name in ["rudder-io", "rudder-tcp-acce"] {
            assert_eq!(&cpus_of(thread_named(name).join("status")), expected, "{name} {bind:?}");
        }
        assert_eq!(cpus_of("/proc/thread-self/status"), process, "the caller is back");
        engine.shutdown().unwrap();
    }
}

/// A thread of this process; it gives itself its name, which takes a moment.
fn thread_named(name: &str) -> PathBuf {
    let deadline = Instant::now() + Duration::from_secs(10);
    while Instant::now() < deadline {
        let threads = std::fs::read_dir("/proc/self/task").unwrap().map(|thread| thread.unwrap().path());
        let is_it =
            |thread: &PathBuf| std::fs::read_to_string(thread.join("comm")).is_ok_and(|comm| comm.trim() == name);
        // Of two, the younger: the other one is about to end.
        let number = |thread: &PathBuf| thread.file_name().and_then(|name| name.to_str()?.parse::<u32>().ok());
        if let Some(thread) = threads.filter(is_it).max_by_key(number) {
            return thread;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    panic!("no thread is named {name}");
}

/// The cpus that a thread may run on.
fn cpus_of(status: impl AsRef<Path>) -> Vec<u32> {
    let status = std::fs::read_to_string(status).unwrap();
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap();
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        first.parse::<u32>().unwrap()..=last.parse().unwrap()
    };
    list.trim().split(',').flat_map(range).collect()
}

fn check(engine: &Engine, what: &str) {
    let mut rows = vec![0; minibatch().len() * ROW_BYTES];
    engine.gather(TABLE, &minibatch(), None, &mut rows).unwrap();
    assert!(rows == expected(), "{what}");
}

fn borrowed(bytes: Vec<u8>) -> Memory {
    let bytes = bytes.into_boxed_slice();
    let (base, length) = (NonNull::from(&*bytes).cast(), bytes.len());
    // SAFETY: the bytes of the box stay where they are as long as the owner lives, and nobody writes to them.
    unsafe { Memory::borrow(base, length, Arc::new(bytes)) }
}

fn whole() -> TableSpec {
    TableSpec::new(TABLE, PartitionBook::from_starts(vec![0, NODES]).unwrap(), PartitionId(0), ROW_BYTES)
}

/// Why a job of one rank does not start.
fn alone(transport: &str, table: impl FnOnce(EngineBuilder<'static>) -> EngineBuilder<'static>) -> String {
    let bootstrap = Arc::new(local::ranks(1).remove(0));
    let builder = Engine::builder(Config { transport: transport.into(), ..config() }, bootstrap);
    table(builder).start().err().expect("it does not start").to_string()
}

/// Memory that the test looks at after the engine has let it go.
struct Land {
    bytes: Box<[std::cell::UnsafeCell<u8>]>,
    let_go: Arc<AtomicBool>,
}

impl Land {
    fn base(&self) -> NonNull<u8> {
        NonNull::from(&*self.bytes).cast()
    }

    fn fill(&self, byte: u8) {
        // SAFETY: the bytes are in cells, and no rows of them are out when a test fills them.
        unsafe { self.base().write_bytes(byte, self.bytes.len()) };
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: as above: a test looks when nothing may write.
        unsafe { std::slice::from_raw_parts(self.base().as_ptr(), self.bytes.len()) }
    }

    fn is_let_go(&self) -> bool {
        self.let_go.load(Ordering::Acquire)
    }
}

/// Told when nobody holds the memory any more.
struct Hold(Arc<AtomicBool>);

impl Drop for Hold {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

fn register(engine: &Engine, bytes: usize) -> (RegisteredRows, Land) {
    let land = Land { bytes: (0..bytes).map(|_| 0.into()).collect(), let_go: Arc::default() };
    // SAFETY: the tests keep the land longer than the registration, and look at it only when no rows of it are out.
    let registered = unsafe { engine.register_rows(land.base(), bytes, Arc::new(Hold(land.let_go.clone()))) };
    (registered.unwrap(), land)
}

/// Where gets of the watched transports landed.
#[derive(Default)]
struct Landings {
    regions: Mutex<Vec<Weak<Memory>>>,
    /// The first bytes of destinations that rows were posted to.
    posted: Mutex<Vec<usize>>,
}

/// Shared memory that refuses what a device would: destinations that are not registered.
struct Watched {
    inner: Arc<dyn Transport>,
    landings: Arc<Landings>,
}

fn watched() -> (Vec<Arc<dyn Transport>>, Arc<Landings>) {
    let landings = Arc::new(Landings::default());
    let watch = |inner| -> Arc<dyn Transport> { Arc::new(Watched { inner, landings: landings.clone() }) };
    (named("shm").into_iter().map(watch).collect(), landings)
}

impl Watched {
    fn note(&self, region: Region, access: Access) -> Region {
        if access == Access::Local {
            self.landings.regions.lock().unwrap().push(Arc::downgrade(region.memory()));
        }
        region
    }
}

impl Transport for Watched {
    fn name(&self) -> &'static str {
        "watched"
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { needs_registered_destination: true, ..self.inner.capabilities() }
    }

    fn address(&self) -> Vec<u8> {
        self.inner.address()
    }

    fn connect(&self, addresses: &[Vec<u8>]) -> Result<()> {
        self.inner.connect(addresses)
    }

    fn allocate(&self, bytes: usize, access: Access) -> Result<Region> {
        self.inner.allocate(bytes, access).map(|region| self.note(region, access))
    }

    unsafe fn register(&self, memory: Memory, access: Access) -> Result<Region> {
        // SAFETY: the caller's promise, passed on.
        unsafe { self.inner.register(memory, access) }.map(|region| self.note(region, access))
    }

    fn import(&self, peer: Rank, token: &[u8]) -> Result<RemoteRegion> {
        self.inner.import(peer, token)
    }

    fn channel(&self) -> Result<Box<dyn Channel>> {
        Ok(Box::new(WatchedChannel { inner: self.inner.channel()?, landings: self.landings.clone() }))
    }
}

struct WatchedChannel {
    inner: Box<dyn Channel>,
    landings: Arc<Landings>,
}

// SAFETY: every call goes to a channel that keeps the contract.
unsafe impl Channel for WatchedChannel {
    unsafe fn post(&mut self, batch: &RowBatch<'_>) -> Result<usize> {
        let first = batch.destination.base as usize;
        let last = first + batch.destination.places * batch.destination.stride;
        let regions = self.landings.regions.lock().unwrap();
        let within =
            |memory: Arc<Memory>| memory.base() as usize <= first && last <= memory.base() as usize + memory.bytes();
        if !regions.iter().filter_map(Weak::upgrade).any(within) {
            return Err(Error::argument("the destination is not registered"));
        }
        drop(regions);
        self.landings.posted.lock().unwrap().push(first);
        // SAFETY: the caller's promise, passed on.
        unsafe { self.inner.post(batch) }
    }

    fn poll(&mut self, completions: &mut Vec<Completion>, wait: Wait) -> Result<()> {
        self.inner.poll(completions, wait)
    }

    fn abort(&mut self, peer: Rank) -> Result<Fenced> {
        self.inner.abort(peer)
    }

    fn waker(&self) -> Waker {
        self.inner.waker()
    }
}
