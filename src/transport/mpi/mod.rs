//! Gets by MPI's one-sided calls: wherever MPI runs, at the speed of its `MPI_Get`.
//!
//! A table lies in a window that MPI allocates, so every allocation for peers is collective, and a window is freed once all ranks are
//! done with the transport. Every epoch is a shared one that begins with the window and never ends before it, so that no get takes a lock.
//! A batch is complete after a flush of its peer, and of the version asked for if the word before the peer's rows says so after that.
//!
//! MPI sets bounds on what can be promised. A get cannot be cancelled: an abort waits for it, and where the peer does not answer in time
//! the memory is lost. The death of one process ends the job. Windows are writable by every rank.

mod channel;
mod gets;
mod probe;
mod progress;
mod window;

use super::imports::Imports;
use super::token::{self, Fields};
use super::{Capabilities, Channel, RemoteRegion, Transport, TransportConfig};
use crate::bootstrap::MpiBootstrap;
use crate::error::{Error, Result};
use crate::id::Rank;
use crate::memory::{Access, Memory, Region, Version};
use crate::mpi::Comm;
use channel::MpiChannel;
use probe::Forms;
use progress::{Progress, Pump};
use std::ptr::NonNull;
use std::str::FromStr;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};
use std::time::Duration;
use window::{HEADER_BYTES, Window};

const NAME: &str = "mpi";
const MAGIC: [u8; 8] = *b"rudr-mpi";
/// Gets are issued within the post: longer batches only delay the poll.
const BATCH_ROWS_MAX: usize = 1 << 16;
const BATCHES_IN_FLIGHT_MAX: usize = 64;
/// Windows of one transport: each costs MPI memory on every rank for as long as the transport lives.
const WINDOWS_MAX: usize = 4096;
/// Time for all ranks to open the transport, and to come to an allocation.
const COLLECTIVE_TIMEOUT: Duration = Duration::from_secs(60);

/// How batches become calls of `MPI_Get`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum GetForm {
    /// As a measurement at start-up finds faster, for short, middle and long rows.
    #[default]
    Probe,
    /// One call a run of adjacent rows.
    Plain,
    /// One call for some hundred rows, with a datatype that lists them.
    Hindexed,
}

impl FromStr for GetForm {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "probe" => Ok(Self::Probe),
            "plain" => Ok(Self::Plain),
            "hindexed" => Ok(Self::Hindexed),
            _ => Err(Error::config(format!("'{text}' is no form of get; there are probe, plain, hindexed"))),
        }
    }
}

/// Whether a thread of the transport calls into MPI so that peers' gets go on while this rank computes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ProgressThread {
    /// Where the library is known or likely to need it: everywhere but in Open MPI with all ranks on one host.
    #[default]
    Auto,
    /// On every rank.
    On,
    /// On no rank: right where the network reads memory by itself, or the program calls into MPI all the time.
    Off,
}

impl FromStr for ProgressThread {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "auto" => Ok(Self::Auto),
            "on" => Ok(Self::On),
            "off" => Ok(Self::Off),
            _ => Err(Error::config(format!("'{text}' says nothing of a progress thread; there are auto, on, off"))),
        }
    }
}

/// What the transport can be told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MpiConfig {
    /// `RUDDER_MPI_GET`.
    pub get: GetForm,
    /// `RUDDER_MPI_PROGRESS`; ranks that disagree have the thread.
    pub progress: ProgressThread,
}

impl MpiConfig {
    /// Takes `RUDDER_MPI_GET` (`probe`, `plain`, `hindexed`) and `RUDDER_MPI_PROGRESS` (`auto`, `on`, `off`) where they are set.
    ///
    /// # Errors
    /// Names the variable that cannot be read.
    pub fn override_by(&mut self, variable: impl Fn(&str) -> Option<String>) -> Result<()> {
        let wrong = |name: &str, error: Error| Error::config(format!("{name}: {error}"));
        if let Some(value) = variable("RUDDER_MPI_GET") {
            self.get = value.parse().map_err(|error| wrong("RUDDER_MPI_GET", error))?;
        }
        if let Some(value) = variable("RUDDER_MPI_PROGRESS") {
            self.progress = value.parse().map_err(|error| wrong("RUDDER_MPI_PROGRESS", error))?;
        }
        Ok(())
    }
}

/// The transport of one rank over MPI.
pub struct MpiTransport {
    core: Arc<Core>,
    connected: OnceLock<()>,
}

/// What regions and channels keep: the communicator and its windows, let go of together with the other ranks.
struct Core {
    /// `None` once it is being closed.
    comm: Option<Comm>,
    /// Tells this job's transport from others.
    instance: [u8; 16],
    forms: Forms,
    /// Whether owners must be told that gets are under way.
    nudges: bool,
    progress: Option<Progress>,
    windows: RwLock<Vec<Arc<Window>>>,
    /// Imported regions, by our index.
    imports: RwLock<Imports<Arc<Imported>>>,
    /// Allocations are collective, one after another.
    allocating: Mutex<()>,
}

/// A peer's part of a window.
struct Imported {
    region: RemoteRegion,
    window: Arc<Window>,
}

impl MpiTransport {
    /// Opens the transport over all launched ranks, numbered as the job numbers them. Collective; starts MPI where nobody has.
    ///
    /// # Errors
    /// MPI cannot be had with `MPI_THREAD_MULTIPLE`, it was launched with another number of ranks, or not all of them come.
    pub fn new(config: &TransportConfig) -> Result<Self> {
        let world = Comm::world(COLLECTIVE_TIMEOUT).map_err(failed)?;
        if world.size() != config.size {
            return Err(failed(format!(
                "the job has {} ranks and MPI was launched with {}: start one process a rank with this MPI's mpiexec, or open the \
                 transport over a part of them (MpiBootstrap::split)",
                config.size,
                world.size()
            )));
        }
        let comm = world.split(Some(0), config.rank.0, COLLECTIVE_TIMEOUT).map_err(failed)?;
        let Some(comm) = comm.filter(|comm| comm.rank() == config.rank.0) else {
            return Err(failed(format!("several processes call themselves {}", config.rank)));
        };
        Self::open(comm)
    }

    /// Opens the transport over the ranks of a bootstrap. Collective.
    ///
    /// # Errors
    /// Not all ranks come, or MPI refuses what the transport needs.
    pub fn over(bootstrap: &MpiBootstrap) -> Result<Self> {
        Self::open(bootstrap.comm().again(COLLECTIVE_TIMEOUT).map_err(failed)?)
    }

    fn open(comm: Comm) -> Result<Self> {
        let mut config = MpiConfig::default();
        config.override_by(|name| std::env::var(name).ok())?;
        let (instance, nudges) = agree(&comm, config.progress)?;
        let progress = nudges.then(|| Progress::start(comm.raw())).transpose().map_err(failed)?;
        if comm.rank() == 0 {
            let why = if nudges { "with a progress thread a rank" } else { "without progress threads" };
            tracing::info!("transport {NAME}: {}, {why}", comm.user().library());
        }
        let forms = probe::forms(&comm, config.get, nudges, COLLECTIVE_TIMEOUT).map_err(failed)?;
        let core = Core {
            comm: Some(comm),
            instance,
            forms,
            nudges,
            progress,
            windows: RwLock::default(),
            imports: RwLock::default(),
            allocating: Mutex::default(),
        };
        Ok(Self { core: Arc::new(core), connected: OnceLock::new() })
    }
}

/// What the ranks agree on: a name for this transport, and whether owners have progress threads.
fn agree(comm: &Comm, progress: ProgressThread) -> Result<([u8; 16], bool)> {
    let mut mine = [0; 16];
    getrandom::fill(&mut mine).map_err(|cause| failed(format!("the system gives no random bytes: {cause}")))?;
    let host = rustix::system::uname().nodename().to_bytes().to_vec();
    let wish = match progress {
        ProgressThread::Auto => b'a',
        ProgressThread::On => b'1',
        ProgressThread::Off => b'0',
    };
    let all = comm.all_gather(&[&mine[..], &[wish], &host].concat(), COLLECTIVE_TIMEOUT).map_err(failed)?;
    let said = all.iter().map(|said| said.split_at_checked(17).ok_or_else(|| failed("the ranks are out of step")));
    let said = said.collect::<Result<Vec<_>>>()?;
    let one_host = said.iter().all(|(_, host)| *host == said[0].1);
    let spared = one_host && comm.user().library().starts_with("Open MPI");
    let wants = |wish: u8| wish == b'1' || (wish == b'a' && !spared);
    let progress = comm.size() > 1 && said.iter().any(|(head, _)| wants(head[16]));
    Ok((*said[0].0.first_chunk().expect("it has 17 bytes"), progress))
}

impl Core {
    fn comm(&self) -> &Comm {
        self.comm.as_ref().expect("only a core that is being dropped has none")
    }

    fn rank(&self) -> u32 {
        self.comm().rank()
    }

    /// A window with a part of every rank. Collective.
    fn allocate(&self, bytes: usize) -> Result<(u64, Arc<Window>)> {
        let _turn = self.allocating.lock().unwrap_or_else(PoisonError::into_inner);
        let number = self.windows.read().unwrap_or_else(PoisonError::into_inner).len();
        if number >= WINDOWS_MAX {
            let remedy = "allocate fewer, larger regions: a window stays as long as its transport";
            return Err(Error::Full { queue: "the table of MPI windows", limit: WINDOWS_MAX, remedy });
        }
        let window = Window::allocate(self.comm(), bytes, COLLECTIVE_TIMEOUT)
            .map_err(|cause| failed(format!("a window of {bytes} bytes here: {cause}")))?;
        let window = Arc::new(window);
        self.windows.write().unwrap_or_else(PoisonError::into_inner).push(window.clone());
        Ok((number as u64, window))
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        let Some(comm) = self.comm.take() else { return };
        let (progress, nudges) = (self.progress.take(), self.nudges);
        if !comm.user().may_call() {
            return std::mem::forget((comm, progress));
        }
        progress.into_iter().for_each(Progress::stop);
        let windows = std::mem::take(&mut *self.windows.write().unwrap_or_else(PoisonError::into_inner));
        *self.imports.write().unwrap_or_else(PoisonError::into_inner) = Imports::default();
        // Peers may still read, or look at versions: they are served until all have come.
        let (mut pump, mut rest) = (Pump::new(comm.raw()), Pump::new(comm.raw()));
        let serve = move || match (nudges, pump.turn()) {
            (true, Ok(pause)) => pause,
            _ => Duration::from_millis(1),
        };
        comm.close(serve, move || {
            // What readers have told since the last turn would else be left over.
            let _ = rest.turn();
            windows.into_iter().filter_map(Arc::into_inner).for_each(Window::free);
        });
    }
}

/// The word before a region's rows, which says that the region is gone once this is.
struct Registration {
    version: Version,
    /// Whose region it is: to a forked child it is nothing.
    process: u32,
}

impl Drop for Registration {
    fn drop(&mut self) {
        if self.process == std::process::id() {
            self.version.set(Version::RETIRED);
        }
    }
}

impl Transport for MpiTransport {
    fn name(&self) -> &'static str {
        NAME
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            can_fence: false,
            // Where owners must call into MPI, a thread of theirs does.
            needs_target_progress: false,
            survives_peer_death: false,
            read_only: false,
            prefers_remote_gather: false,
            needs_registered_destination: false,
            batch_rows_max: BATCH_ROWS_MAX,
            batches_in_flight_max: BATCHES_IN_FLIGHT_MAX,
        }
    }

    fn address(&self) -> Vec<u8> {
        token::seal([&MAGIC[..], &self.core.instance, &self.core.rank().to_le_bytes()].concat())
    }

    fn connect(&self, addresses: &[Vec<u8>]) -> Result<()> {
        for (rank, address) in addresses.iter().enumerate() {
            let expected = [&MAGIC[..], &self.core.instance, &(rank as u32).to_le_bytes()].concat();
            match token::unseal(address) {
                Ok(said) if said == expected => {}
                Ok(_) => return Err(failed(format!("address of rank {rank}: of another job, transport or rank"))),
                Err(cause) => return Err(failed(format!("address of rank {rank}: {cause}"))),
            }
        }
        if addresses.len() != self.core.comm().size() as usize {
            return Err(failed(format!("{} addresses for {} ranks", addresses.len(), self.core.comm().size())));
        }
        self.connected.set(()).map_err(|()| failed("connected already"))
    }

    /// Collective where the access is [`Access::RemoteRead`]: every rank allocates, each as much as it likes.
    fn allocate(&self, bytes: usize, access: Access) -> Result<Region> {
        if access == Access::Local {
            return Ok(Region::new(Box::new(()), Arc::new(Memory::allocate(bytes)?), Vec::new()));
        }
        let (number, window) = self.core.allocate(bytes)?;
        let part = |offset: usize, bytes: usize| {
            let base = NonNull::new(window.base().wrapping_add(offset)).expect("MPI allocates no memory at address 0");
            // SAFETY: the window is this rank's part, of at least `HEADER_BYTES + bytes` bytes, and lives as long as the core.
            unsafe { Memory::borrow(base, bytes, self.core.clone()) }
        };
        let version = Version::mapped(Arc::new(part(0, 8))).expect("the word has its 8 bytes");
        let memory = Arc::new(part(HEADER_BYTES, bytes));
        let fields = [&MAGIC[..], &self.core.instance, &self.core.rank().to_le_bytes()];
        let numbers = [number.to_le_bytes(), (bytes as u64).to_le_bytes()].concat();
        let token = token::seal([fields.concat(), numbers].concat());
        let registration = Registration { version: version.clone(), process: std::process::id() };
        Ok(Region::new(Box::new(registration), memory, token).with_version(version))
    }

    unsafe fn register(&self, memory: Memory, access: Access) -> Result<Region> {
        match access {
            Access::Local => Ok(Region::new(Box::new(()), Arc::new(memory), Vec::new())),
            Access::RemoteRead => Err(failed(
                "memory that exists cannot be given to peers, because MPI serves quickly only what it has allocated itself: allocate \
                 the region from the transport, and copy or read the rows into it",
            )),
        }
    }

    fn import(&self, peer: Rank, token: &[u8]) -> Result<RemoteRegion> {
        let refused = |cause: &str| Error::Token { peer, cause: cause.into() };
        let body = token::unseal(token).map_err(|cause| refused(&cause))?;
        let mut fields = Fields::new(body);
        let mut read =
            || Ok((fields.take()?, fields.take()?, fields.take()?, fields.take()?, fields.take()?, fields.end()?));
        let (magic, instance, owner, number, bytes, ()) = read().map_err(|cause: String| refused(&cause))?;
        if MAGIC != magic || self.core.instance != instance || u32::from_le_bytes(owner) != peer.0 {
            return Err(refused("issued by another rank, job or transport"));
        }
        let (number, bytes) = (u64::from_le_bytes(number), u64::from_le_bytes(bytes));
        let windows = self.core.windows.read().unwrap_or_else(PoisonError::into_inner);
        let window = usize::try_from(number).ok().and_then(|number| windows.get(number)).cloned();
        let window = window.ok_or_else(|| refused("this rank took part in no such allocation"))?;
        if window.bytes.get(peer.index()) != Some(&bytes) {
            return Err(refused("its owner has allocated another number of bytes"));
        }
        let mut imports = self.core.imports.write().unwrap_or_else(PoisonError::into_inner);
        imports.add(peer, number, bytes, |region| Arc::new(Imported { region, window }))
    }

    fn channel(&self) -> Result<Box<dyn Channel>> {
        Ok(Box::new(MpiChannel::new(self.core.clone())?))
    }
}

fn failed(cause: impl Into<String>) -> Error {
    Error::Transport { transport: NAME, cause: cause.into() }
}
