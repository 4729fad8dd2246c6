//! The collective start-up: ranks agree on their tables, export their rows, and learn where the others' are.

use super::buffers::{Buffers, Shard, Sharing, announced_nodes, buffers, join_host};
use super::driver::{self, Driver};
use super::io::Io;
use super::meeting::{Peers, gather, greet};
use super::recorder::Recorder;
use super::spec::TableSpec;
use super::{Engine, Shared, State, TableMemory, observe};
use crate::bootstrap::Bootstrap;
use crate::buffer::PrefetchBuffer;
use crate::config::Config;
use crate::controller::{ControllerRuntime, JobFacts};
use crate::error::{Error, Result};
use crate::host::{Exchange, Keeper, Neighbourhood, Reader};
use crate::id::{PartitionId, Rank, TableId};
use crate::memory::{Access, FeatureTable, Memory, Region, limit_pinned};
use crate::pipeline::{Limits, Pipeline, Source, Table};
use crate::placement::{Placement, Site};
use crate::trace::{Header, TraceTable, TrafficLimits};
use crate::transport::shm::ShmTransport;
use crate::transport::{MappedRegion, RemoteRegion, Transport, TransportConfig, Waker, open};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::time::Instant;

/// Chunks of staging memory, where a transport needs it.
const STAGING_CHUNKS: u32 = 8;

type Fill<'a> = Box<dyn FnOnce(&mut [u8]) + 'a>;

/// Where a partition's rows come from.
enum Origin<'a> {
    /// They are written into memory that the transport allocates.
    Fill(Fill<'a>),
    /// They are in this memory already.
    Memory(Memory),
    /// They are in this file already.
    File(PathBuf),
}

/// Collects the tables of an [`Engine`] and starts it.
pub struct EngineBuilder<'a> {
    config: Config,
    bootstrap: Arc<dyn Bootstrap>,
    tables: Vec<(TableSpec, Origin<'a>)>,
    transport: Option<Arc<dyn Transport>>,
}

#[derive(Serialize, Deserialize)]
struct Export {
    address: Vec<u8>,
    tables: Vec<TableExport>,
}

#[derive(Serialize, Deserialize)]
struct TableExport {
    id: TableId,
    partition: PartitionId,
    row_bytes: usize,
    version: u64,
    starts: Vec<u64>,
    /// Empty where peers cannot read its partition from it.
    token: Vec<u8>,
    /// Whether peers are to read it from here while others are there too; else it stands by.
    serves: bool,
}

impl<'a> EngineBuilder<'a> {
    pub(super) fn new(config: Config, bootstrap: Arc<dyn Bootstrap>) -> Self {
        Self { config, bootstrap, tables: Vec::new(), transport: None }
    }

    /// Adds a table; `fill` writes this rank's partition of it, `rows * row_bytes` bytes, into the exported memory.
    pub fn table(mut self, spec: TableSpec, fill: impl FnOnce(&mut [u8]) + 'a) -> Self {
        self.tables.push((spec, Origin::Fill(Box::new(fill))));
        self
    }

    /// Adds a table whose rows of this rank's partition are in a file, one after the other without a header, and are served from there:
    /// they take no memory but the page cache's. A transport that reads one-sidedly through a device refuses this at the start, unless
    /// the device follows pages on demand, and says what to do; those that answer requests serve it.
    ///
    /// The file may be longer than the partition. It must not be shortened or rewritten while the engine lives, which only whoever writes
    /// it can promise: a file that is too short at the start is an error, but one that is shortened later ends this process, or a peer
    /// on this host that has it mapped, with SIGBUS when a lost row is read. To publish other rows, write a new file and rename it.
    ///
    /// ```
    /// # use rudder::bootstrap::local;
    /// # use rudder::{Config, Engine, NodeId, PartitionBook, PartitionId, TableId, TableSpec};
    /// # use std::sync::Arc;
    /// # const TABLE: TableId = TableId(0);
    /// # let spec = TableSpec::new(TABLE, PartitionBook::from_starts(vec![0, 3])?, PartitionId(0), 4);
    /// let file = tempfile::NamedTempFile::new().expect("a directory for temporary files");
    /// std::fs::write(file.path(), b"aaaabbbbcccc").expect("it is ours");
    /// let engine = Engine::builder(Config::default(), Arc::new(local::ranks(1).remove(0))).table_file(spec, file.path()).start()?;
    /// let mut row = [0; 4];
    /// engine.gather(TABLE, &[NodeId(1)], None, &mut row)?;
    /// assert_eq!(&row, b"bbbb");
    /// # engine.shutdown()?;
    /// # Ok::<(), rudder::Error>(())
    /// ```
    pub fn table_file(mut self, spec: TableSpec, path: impl AsRef<Path>) -> Self {
        self.tables.push((spec, Origin::File(path.as_ref().into())));
        self
    }

    /// Adds a table whose rows of this rank's partition are in memory that exists: a file's, or the caller's own. `shm` takes only memory that has a
    /// file, so that `auto` takes `tcp` where a rank has other; other transports register it in place.
    ///
    /// # Safety
    /// While the engine lives, the bytes are written only by those who have told every reader of the table.
    pub unsafe fn table_memory(mut self, spec: TableSpec, rows: Memory) -> Self {
        self.tables.push((spec, Origin::Memory(rows)));
        self
    }

    /// Uses this transport, made by the caller and not yet connected, instead of the one that the configuration names.
    pub fn transport(mut self, transport: Arc<dyn Transport>) -> Self {
        self.transport = Some(transport);
        self
    }

    /// Starts the engine; every rank of the job calls it.
    ///
    /// With a language model in this process it may set `CANDLE_NUM_THREADS`: no other thread may use the environment through C (`getenv`,
    /// `setenv`) meanwhile, see [`ControllerRuntime::start`].
    ///
    /// # Errors
    /// Settings or tables that do not hold together or differ between ranks (named), memory or a transport that cannot be had, ranks that
    /// do not come within the deadline.
    pub fn start(self) -> Result<Engine> {
        let Self { mut config, bootstrap, tables, transport } = self;
        let _span = tracing::info_span!("start", rank = bootstrap.rank().0, ranks = bootstrap.size()).entered();
        config.override_by(|name| std::env::var(name).ok())?;
        config.choose_controller(tables.len());
        config.settle()?;
        config.controller.prepare_process();
        if let Some(bytes_max) = config.pinned_bytes_max {
            limit_pinned(bytes_max);
        }
        let (specs, origins): (Vec<_>, Vec<_>) = tables.into_iter().unzip();
        specs.iter().try_for_each(TableSpec::check)?;
        if let Some((at, spec)) =
            specs.iter().enumerate().find(|(at, spec)| specs[..*at].iter().any(|other| other.id == spec.id))
        {
            return Err(Error::argument(format!(
                "{} is registered twice, the second time as table number {at}",
                spec.id
            )));
        }
        let name = transport.as_ref().map_or(config.transport.as_str(), |transport| transport.name());
        let site = Site::read(name, config.nic.as_deref())?;
        let unshared = specs.iter().zip(&origins).any(|(spec, origin)| is_unshared(spec, origin));
        let met = tracing::info_span!("meet").in_scope(|| greet(&config, &*bootstrap, site, &specs, unshared));
        let (settings, placement, peers) = met?;
        let transport = match transport {
            Some(transport) => transport,
            None => placement.near(|| open(&config.transport, &settings))?,
        };
        let (mut locals, mut serves) = (Vec::new(), Vec::new());
        for ((spec, origin), &served) in specs.iter().zip(origins).zip(&peers.served) {
            let stands_by = served && !matches!(origin, Origin::Fill(_));
            let span = tracing::info_span!("export", table = spec.id.0, partition = spec.partition.0);
            locals.push(span.in_scope(|| export(spec, origin, stands_by, &*transport, &placement))?);
            serves.push(!stands_by);
        }
        let exports = exchange(&config, &*bootstrap, &*transport, &specs, &locals, &serves)?;
        let addresses: Vec<Vec<u8>> = exports.iter().map(|export| export.address.clone()).collect();
        let connect = || placement.near(|| transport.connect(&addresses).and_then(|()| transport.channel()));
        let channel = tracing::info_span!("connect", transport = transport.name()).in_scope(connect)?;
        let connected = Connected { transport, placement, waker: channel.waker() };
        let (shared, sharing) = assemble(config, &*bootstrap, connected, &specs, locals, &exports, &peers)?;
        let shared = Arc::new(shared);
        let thread = shared.clone();
        shared.driver.begin(Io::new(&shared, channel, sharing.exchanges));
        let run = move || driver::run(&thread);
        let spawn = || std::thread::Builder::new().name("rudder-io".into()).spawn(run);
        let io = shared.placement.near(spawn).map_err(|error| Error::Transport {
            transport: shared.transport.name(),
            cause: format!("its I/O thread: {error}"),
        })?;
        let metrics = observe::listen(&shared, &*bootstrap);
        let engine = Engine { shared, bootstrap, io: Some(io), metrics };
        let whole = |table: &TableMemory| table.local.region().memory().check_file();
        engine.shared.tables.iter().try_for_each(whole)?;
        // Nobody asks before everybody serves.
        engine.bootstrap.barrier(engine.shared.config.collective_timeout)?;
        // Everybody has the memory of the host's other ranks by now.
        drop(sharing.link);
        engine.shared.lock().pipeline.fill();
        engine.shared.driver.wake();
        Ok(engine)
    }
}

/// Whether rows are in memory that no other process can map.
fn is_unshared(spec: &TableSpec, origin: &Origin<'_>) -> bool {
    let range = spec.book.range(spec.partition);
    matches!(origin, Origin::Memory(memory) if memory.file().is_none()) && !range.is_empty()
}

/// Makes a partition's rows readable by peers: in memory that the transport allocates and the caller fills, or in place. A device pins what is
/// in memory already for one rank of the host only: one that `stands_by`, as another serves the same rows, does so where that costs nothing.
fn export(
    spec: &TableSpec,
    origin: Origin<'_>,
    stands_by: bool,
    transport: &dyn Transport,
    placement: &Placement,
) -> Result<FeatureTable> {
    let range = spec.book.range(spec.partition);
    let rows = range.end - range.start;
    let bytes = usize::try_from(rows).ok().and_then(|rows| rows.checked_mul(spec.row_bytes));
    let bytes = bytes.ok_or_else(|| Error::argument(format!("{}: {rows} rows overflow the address space", spec.id)))?;
    let partition =
        || format!("{} of {} has {rows} rows of {} bytes, {bytes} in all", spec.partition, spec.id, spec.row_bytes);
    let memory = match origin {
        // Nothing can be mapped of what is empty.
        Origin::File(_) | Origin::Memory(_) if bytes == 0 => {
            let region = transport.allocate(0, Access::RemoteRead)?;
            return FeatureTable::new(spec.id, spec.row_bytes, rows, spec.version, region);
        }
        Origin::Fill(fill) => {
            let region = placement.near(|| transport.allocate(bytes, Access::RemoteRead))?;
            // SAFETY: the memory is `bytes` long, zeroed, and nobody else has it yet: its token is spread after this.
            fill(unsafe { std::slice::from_raw_parts_mut(region.memory().base(), bytes) });
            return FeatureTable::new(spec.id, spec.row_bytes, rows, spec.version, region);
        }
        Origin::File(path) => {
            let memory = Memory::open(&path)?;
            if memory.bytes() < bytes {
                let cause = format!("it has {} bytes, but {}", memory.bytes(), partition());
                return Err(Error::TableFile { path: path.display().to_string(), cause });
            }
            memory
        }
        Origin::Memory(memory) if memory.bytes() < bytes => {
            return Err(Error::argument(format!("memory of {} bytes for a table: {}", memory.bytes(), partition())));
        }
        Origin::Memory(memory) => memory,
    };
    let region = if stands_by && transport.capabilities().needs_registered_destination {
        Region::new(Box::new(()), Arc::new(memory), Vec::new())
    } else {
        // SAFETY: for memory the caller of `table_memory` has promised it; a file that is rewritten gives rows as they are when they are
        // read, through raw pointers only.
        unsafe { transport.register(memory, Access::RemoteRead) }?
    };
    FeatureTable::new(spec.id, spec.row_bytes, rows, spec.version, region)
}

/// Spreads addresses and tokens, and refuses tables that differ.
fn exchange(
    config: &Config,
    bootstrap: &dyn Bootstrap,
    transport: &dyn Transport,
    specs: &[TableSpec],
    locals: &[FeatureTable],
    serves: &[bool],
) -> Result<Vec<Export>> {
    let tables = specs.iter().zip(locals).zip(serves).map(|((spec, local), &serves)| TableExport {
        id: spec.id,
        partition: spec.partition,
        row_bytes: spec.row_bytes,
        version: spec.version,
        starts: (0..spec.book.partitions())
            .map(|partition| spec.book.range(PartitionId(partition)).start)
            .chain([spec.book.nodes()])
            .collect(),
        token: local.region().token().to_vec(),
        serves,
    });
    let mine = Export { address: transport.address(), tables: tables.collect() };
    let exports = gather(config, bootstrap, &mine)?;
    let shape = |table: &TableExport| (table.id, table.row_bytes, table.version, table.starts.clone());
    for (rank, export) in exports.iter().enumerate() {
        if export.tables.len() != mine.tables.len()
            || export.tables.iter().zip(&mine.tables).any(|(theirs, ours)| shape(theirs) != shape(ours))
        {
            return Err(Error::argument(format!(
                "rank {rank} registers other tables than {}: identifiers, row bytes, versions and partition books must be the same, in the \
                 same order",
                bootstrap.rank()
            )));
        }
    }
    Ok(exports)
}

/// Where the rows of each partition of a table are, and where else; of several exporters, ranks take different ones.
fn sources(
    config: &Config,
    me: Rank,
    transport: &dyn Transport,
    at: usize,
    spec: &TableSpec,
    exports: &[Export],
    on_host: &[bool],
) -> Result<Sources> {
    let mut found = Sources::default();
    for partition in (0..spec.book.partitions()).map(PartitionId) {
        if partition == spec.partition {
            found.push(Source::Local, VecDeque::new(), None);
            continue;
        }
        let has = |&rank: &usize| {
            exports[rank].tables[at].partition == partition && !exports[rank].tables[at].token.is_empty()
        };
        let (mut exporters, mut standing_by): (Vec<usize>, Vec<usize>) =
            (0..exports.len()).filter(has).partition(|&rank| exports[rank].tables[at].serves);
        if exporters.is_empty() {
            let range = spec.book.range(partition);
            if range.is_empty() {
                found.push(Source::Mapped, VecDeque::new(), None);
                continue;
            }
            return Err(Error::PartitionBook(format!("no rank exports {partition} of {}", spec.id)));
        }
        let import = |&rank: &usize| {
            let peer = Rank(rank as u32);
            let region = transport.import(peer, &exports[rank].tables[at].token)?;
            let range = spec.book.range(partition);
            let bytes = (range.end - range.start).saturating_mul(spec.row_bytes as u64);
            if region.bytes < bytes {
                let cause = format!("{} bytes for {partition} of {}, whose rows take {bytes}", region.bytes, spec.id);
                return Err(Error::Token { peer, cause });
            }
            Ok(region)
        };
        for ranks in [&mut exporters, &mut standing_by] {
            let turn = me.index() % ranks.len().max(1);
            ranks.rotate_left(turn);
        }
        let region = import(&exporters[0])?;
        let map = if config.map_host_rows && on_host[exporters[0]] { transport.mapped(region) } else { None };
        match map {
            // Memory that is mapped outlives its owner.
            Some(map) => found.push(Source::Mapped, VecDeque::new(), Some(map)),
            None => {
                let spares = exporters[1..].iter().chain(&standing_by).map(import).collect::<Result<_>>()?;
                found.push(Source::Remote(region), spares, None);
            }
        }
    }
    Ok(found)
}

/// By partition: where its rows are, where else, and the memory if it is mapped.
#[derive(Default)]
struct Sources {
    sources: Vec<Source>,
    spares: Vec<VecDeque<RemoteRegion>>,
    mapped: Vec<Option<MappedRegion>>,
}

impl Sources {
    fn push(&mut self, source: Source, spares: VecDeque<RemoteRegion>, mapped: Option<MappedRegion>) {
        self.sources.push(source);
        self.spares.push(spares);
        self.mapped.push(mapped);
    }
}

/// What moves rows, once it knows every rank.
struct Connected {
    transport: Arc<dyn Transport>,
    placement: Placement,
    waker: Waker,
}

fn assemble(
    config: Config,
    bootstrap: &dyn Bootstrap,
    connected: Connected,
    specs: &[TableSpec],
    locals: Vec<FeatureTable>,
    exports: &[Export],
    peers: &Peers,
) -> Result<(Shared, Sharing)> {
    let Connected { transport, placement, waker } = connected;
    if config.controller.watches() && specs.len() > 1 {
        let (name, tables) = (config.controller.name(), specs.len());
        return Err(Error::config(format!("controller {name} steers the buffer of one table, and there are {tables}")));
    }
    let capabilities = transport.capabilities();
    let staged = !capabilities.can_fence || capabilities.needs_registered_destination;
    let batch_rows = config.batch_rows.min(capabilities.batch_rows_max);
    let staging_stride = specs.iter().map(|spec| spec.row_bytes).max().unwrap_or(0);
    let staging = staged
        .then(|| STAGING_CHUNKS as usize * batch_rows * staging_stride)
        .map(|bytes| placement.near(|| transport.allocate(bytes, Access::Local)))
        .transpose()?;
    let me = bootstrap.rank();
    let link = (peers.sharing.len() > 1).then(|| ShmTransport::new(&TransportConfig::new(me, bootstrap.size())));
    let mut sharing = Sharing { link: link.transpose()?, exchanges: Vec::new() };
    let mut memories = Vec::new();
    let mut tables = Vec::new();
    let mut parts = Vec::new();
    let mut feed = None;
    let staging_bytes = staging.as_ref().map_or(0, |staging| staging.memory().bytes()) / specs.len().max(1);
    for (at, (spec, local)) in specs.iter().zip(locals).enumerate() {
        let Sources { sources, spares, mapped } = sources(&config, me, &*transport, at, spec, exports, &peers.on_host)?;
        let shard = sharing.link.as_ref().map(|link| Shard {
            link,
            ranks: peers.sharing.len() as u32,
            place: peers.sharing.iter().position(|&rank| rank == me.index()).expect("a rank shares with itself"),
        });
        let Buffers { buffer, slots, part, feed: seen } =
            placement.near(|| buffers(&config, spec, &sources, staging_bytes, &*transport, shard.as_ref()))?;
        parts.push(part);
        feed = feed.or(seen);
        tables.push(Table {
            id: spec.id,
            book: spec.book.clone(),
            sources,
            spares,
            row_bytes: spec.row_bytes,
            version: spec.version,
            buffer,
        });
        memories.push(TableMemory {
            row_bytes: spec.row_bytes,
            version: spec.version,
            slots,
            mapped,
            local,
            neighbours: None,
            sharing_bytes: 0,
            pool: OnceLock::new(),
        });
    }
    let alone: Vec<bool> = parts.iter().map(Option::is_none).collect();
    let hosts = join_host(&config, bootstrap, &sharing, peers, parts)?;
    for (at, spec) in specs.iter().enumerate().filter(|(at, _)| hosts[*at].is_none() && !alone[*at]) {
        // Another rank of the host has no buffer of this table: ours is for all nodes then.
        let new = || buffers(&config, spec, &tables[at].sources, staging_bytes, &*transport, None);
        let Buffers { buffer, slots, feed: seen, .. } = placement.near(new)?;
        feed = seen.or(feed);
        (tables[at].buffer, memories[at].slots) = (buffer, slots);
    }
    let slots_total = tables.iter().filter_map(|table| table.buffer.as_ref()).map(PrefetchBuffer::slots).sum();
    for ((memory, table), host) in memories.iter_mut().zip(&mut tables).zip(&hosts) {
        let Some(host) = host else { continue };
        memory.neighbours = Some(Reader::new(host.clone()));
        memory.sharing_bytes = host.books_bytes();
        table.buffer.iter_mut().for_each(|buffer| buffer.show_on(Box::new(Keeper::new(host)), host.ranks()));
    }
    sharing.exchanges = hosts.iter().map(|host| host.clone().map(Exchange::new)).collect();
    let limits = Limits {
        batch_rows,
        prefetch_batch_rows: config.prefetch_batch_rows.min(batch_rows),
        prefetch_rows_in_flight: config.prefetch_rows_in_flight,
        requests: config.requests,
        tickets: config.tickets,
        announced_nodes: announced_nodes(&config),
        attempts: config.attempts,
        backoff: config.backoff,
        transfer_timeout: config.transfer_timeout,
        staging_chunks: if staged { STAGING_CHUNKS } else { 0 },
        by_row: capabilities.by_row(),
    };
    let job = (bootstrap.rank(), bootstrap.size(), peers.sharing.len() as u32);
    let header = config.trace.as_ref().map(|_| header(&config, job, &limits, specs, &tables, slots_total));
    let recorder = config.trace.as_ref().zip(header).map(|(prefix, header)| Recorder::start(prefix, &header));
    tracing::info!("controller {}: as the configuration says", config.controller.name());
    let facts_of_job = facts(&config, specs, slots_total);
    let controller =
        ControllerRuntime::start_watching(&config.controller, &facts_of_job, &config.controller_bounds, feed)?;
    let mut pipeline = Pipeline::new(limits, tables);
    for (table, host) in hosts.into_iter().enumerate() {
        if let Some(host) = host {
            pipeline.share(table, Box::new(Neighbourhood::new(host)));
        }
    }
    let shared = Shared {
        state: Mutex::new(State {
            pipeline,
            rows: Vec::new(),
            destinations: Vec::new(),
            plans: Vec::new(),
            observations: VecDeque::with_capacity(config.observations),
            paused: false,
            closed: false,
        }),
        changed: Condvar::new(),
        driver: Driver::new(waker),
        tables: memories,
        placement,
        registered: Mutex::default(),
        staging,
        staging_stride,
        can_fence: capabilities.can_fence,
        controller,
        recorder: recorder.transpose()?,
        stall_ns: AtomicU64::new(0),
        stop: AtomicBool::new(false),
        io_ended: AtomicBool::new(false),
        failure: OnceLock::new(),
        epoch: Instant::now(),
        process: std::process::id(),
        transport,
        config,
    };
    Ok((shared, sharing))
}

/// What a trace of this rank begins with; `job` has the rank, the ranks, and those that share its buffer.
fn header(
    config: &Config,
    (rank, ranks, sharing): (Rank, u32, u32),
    limits: &Limits,
    specs: &[TableSpec],
    tables: &[Table],
    slots: u32,
) -> Header {
    let table = |(spec, table): (&TableSpec, &Table)| {
        let peer = |source: &Source| match source {
            Source::Remote(region) => Some(region.peer),
            Source::Local | Source::Mapped => None,
        };
        let slots = table.buffer.as_ref().map_or(0, PrefetchBuffer::slots);
        TraceTable::new(spec, table.sources.iter().map(peer).collect(), slots)
    };
    Header {
        rank,
        ranks,
        sharing,
        policy: config.policy.name().into(),
        controller: config.controller.name().into(),
        link: config.link,
        facts: facts(config, specs, slots),
        limits: TrafficLimits {
            batch_rows: limits.batch_rows,
            prefetch_batch_rows: limits.prefetch_batch_rows,
            prefetch_rows_in_flight: limits.prefetch_rows_in_flight,
            staging_chunks: limits.staging_chunks,
            by_row: limits.by_row,
        },
        tables: specs.iter().zip(tables).map(table).collect(),
    }
}

/// The first table stands for the job: it is the one whose rows are most of the traffic.
fn facts(config: &Config, specs: &[TableSpec], slots: u32) -> JobFacts {
    let Some(spec) = specs.first() else { return JobFacts::default() };
    JobFacts {
        nodes: spec.book.nodes(),
        edges: spec.edges,
        partitions: spec.book.partitions(),
        partition: spec.partition.0,
        halo_nodes: spec.halo.len() as u64,
        slots: u64::from(slots),
        batch: config.batch,
        minibatches: config.minibatches,
        changes: config.changes.clone(),
    }
}
