//! One-sided reads by an RDMA device, over reliable connections of ibverbs.
//!
//! The owner registers its rows and does nothing more: its device answers. A reader posts a batch as linked lists of READs, one ring of
//! the doorbell and one signalled completion a list, into memory that was registered before.
//!
//! **Versions.** A read asks no instruction of the owner, so nobody there can compare versions. Each list therefore begins and ends with a
//! read of the region's version word: a device answers the requests of a connection in order, so rows between two equal words are of that
//! version. The word outlives its region and then says that it is over.
//!
//! **Connections.** A queue pair a (peer, channel), made when the first batch is posted, up to a cap. The two ends find each other over a
//! TCP connection that proves the job's secret; it stays open, and its end is the end of the queue pair.
//!
//! **Errors.** A reliable connection ends at its first error. What was posted behind the failed list fails with it, named as such; the next
//! post makes a new connection. Nothing is reported before the device has let go of it.
//!
//! **The library.** libibverbs is loaded at run time, by declarations of our own (`ffi`): the crates that bind it (`sideway` over
//! `rdma-mummy-sys`, `ibverbs-sys`) ask for cmake, libclang or rdma-core's headers on every machine that builds, and what is used here
//! are two dozen functions whose ABI has been stable since 2006.

mod batches;
mod channel;
mod counters;
mod device;
mod fault;
mod ffi;
mod link;
mod owner;
mod queue;
mod registration;
mod wire;

pub use counters::VerbsCounters;
pub(super) use device::devices;

use super::handshake::{Address, JobSecret, NONCE_BYTES};
use super::{Capabilities, Channel, RemoteRegion, Transport, TransportConfig, VerbsSettings};
use crate::error::{Error, Result};
use crate::id::Rank;
use crate::memory::{Access, Memory, Region};
use device::Device;
use owner::Owner;
use registration::{Export, Exported, Landings, LocalRegion, Retired};
use std::net::IpAddr;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::Duration;
use wire::PROTOCOL;

const NAME: &str = "verbs";
/// Rows that a channel holds of one batch.
const BATCH_ROWS_MAX: usize = 4096;
/// Batches that a channel holds.
const BATCHES_IN_FLIGHT_MAX: usize = 64;
/// Regions that one transport imports.
const IMPORTS_MAX: usize = 64 << 10;

/// Settings of a [`VerbsTransport`].
#[derive(Clone, Debug)]
pub struct VerbsConfig {
    /// The device.
    pub settings: VerbsSettings,
    /// The address that the listener for connections binds to.
    pub listen: IpAddr,
    /// The job's secret.
    pub secret: JobSecret,
    /// Queue pairs that read, of all channels together, and queue pairs that serve: so many of each at most.
    pub queue_pairs_max: usize,
    /// Time for a connection to be made and proved.
    pub connect_timeout: Duration,
}

impl VerbsConfig {
    /// The defaults for a job, with `RUDDER_VERBS_DEVICE` and `RUDDER_VERBS_GID` before what the program says.
    ///
    /// # Errors
    /// A variable that cannot be read.
    pub fn of(job: &TransportConfig) -> Result<Self> {
        let mut settings = job.verbs.clone();
        if let Ok(device) = std::env::var("RUDDER_VERBS_DEVICE") {
            tracing::info!("RUDDER_VERBS_DEVICE={device} overrides the configuration");
            settings.device = Some(device);
        }
        if let Ok(gid) = std::env::var("RUDDER_VERBS_GID") {
            tracing::info!("RUDDER_VERBS_GID={gid} overrides the configuration");
            let index = gid.parse();
            settings.gid = Some(
                index.map_err(|_| Error::config(format!("RUDDER_VERBS_GID={gid}: expected an index from 0 to 255")))?,
            );
        }
        Ok(Self {
            settings,
            listen: job.listen,
            secret: JobSecret(job.secret),
            queue_pairs_max: 1024,
            connect_timeout: Duration::from_secs(5),
        })
    }
}

/// A region of a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Import {
    peer: Rank,
    region: Exported,
}

/// What the transport and its channels share.
struct Shared {
    config: VerbsConfig,
    device: Arc<Device>,
    addresses: OnceLock<Vec<Address>>,
    /// Imported regions, by our index.
    imports: RwLock<Vec<Import>>,
    landings: Arc<Landings>,
    /// Queue pairs that read.
    queue_pairs: AtomicUsize,
}

/// The `verbs` transport of one rank: a device, what is registered with it, and a listener for the peers' connections.
///
/// Dropping it ends the connections of those who read from it.
pub struct VerbsTransport {
    // Ends first: its readers lose their connections before they lose what they read.
    owner: Owner,
    shared: Arc<Shared>,
    retired: Arc<Retired>,
    address: Address,
}

impl VerbsTransport {
    /// Opens the device and listens for connections.
    ///
    /// # Errors
    /// libibverbs or a device is missing, or has no active port or no such GID; each with its remedy.
    pub fn new(config: VerbsConfig) -> Result<Self> {
        let device = Device::open(&config.settings)?;
        let mut secret = [0; NONCE_BYTES];
        getrandom::fill(&mut secret).map_err(|e| failure(format!("no random bytes: {e}")))?;
        let owner = Owner::listen(&config, secret, &device)?;
        let address = Address { socket: owner.socket_address(), secret };
        let shared = Shared {
            config,
            device,
            addresses: OnceLock::new(),
            imports: RwLock::default(),
            landings: Arc::default(),
            queue_pairs: AtomicUsize::new(0),
        };
        Ok(Self { owner, shared: Arc::new(shared), retired: Arc::default(), address })
    }

    /// What it has done so far.
    pub fn counters(&self) -> VerbsCounters {
        self.shared.device.counters.read()
    }

    /// Readers that are connected now.
    pub fn connections_served(&self) -> usize {
        self.owner.connections_served()
    }
}

fn failure(cause: impl Into<String>) -> Error {
    Error::Transport { transport: NAME, cause: cause.into() }
}

impl Transport for VerbsTransport {
    fn name(&self) -> &'static str {
        NAME
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            can_fence: true,
            needs_target_progress: false,
            survives_peer_death: true,
            read_only: true,
            prefers_remote_gather: false,
            needs_registered_destination: true,
            batch_rows_max: BATCH_ROWS_MAX,
            batches_in_flight_max: BATCHES_IN_FLIGHT_MAX,
        }
    }

    fn address(&self) -> Vec<u8> {
        self.address.encode(&PROTOCOL)
    }

    fn connect(&self, addresses: &[Vec<u8>]) -> Result<()> {
        let decode = |(rank, blob): (usize, &Vec<u8>)| {
            Address::decode(&PROTOCOL, blob).map_err(|cause| failure(format!("{}: {cause}", Rank(rank as u32))))
        };
        let decoded: Vec<Address> = addresses.iter().enumerate().map(decode).collect::<Result<_>>()?;
        let known = self.shared.addresses.get_or_init(|| decoded.clone());
        if *known == decoded { Ok(()) } else { Err(failure("connect was called before with other addresses")) }
    }

    fn allocate(&self, bytes: usize, access: Access) -> Result<Region> {
        let memory = Memory::allocate(bytes)?;
        // SAFETY: fresh memory is written only through the region that this returns, whose holder has this contract too.
        unsafe { self.register(memory, access) }
    }

    unsafe fn register(&self, memory: Memory, access: Access) -> Result<Region> {
        let (device, memory) = (&self.shared.device, Arc::new(memory));
        match access {
            Access::Local => {
                let region = LocalRegion::new(device, &memory, &self.shared.landings)?;
                Ok(Region::new(Box::new(region), memory, Vec::new()))
            }
            Access::RemoteRead => {
                let (export, version) = Export::new(device, &memory, &self.retired)?;
                let token = wire::encode_token(export.exported(), &self.address.secret);
                Ok(Region::new(Box::new(export), memory, token).with_version(version))
            }
        }
    }

    fn import(&self, peer: Rank, token: &[u8]) -> Result<RemoteRegion> {
        let refused = |cause: String| Error::Token { peer, cause };
        let addresses = self.shared.addresses.get();
        let addresses = addresses.ok_or_else(|| refused("connect before importing tokens".into()))?;
        let address = addresses
            .get(peer.index())
            .ok_or_else(|| refused(format!("there is no such rank: {} addresses are known", addresses.len())))?;
        let import = Import { peer, region: wire::decode_token(token, &address.secret).map_err(refused)? };
        let mut imports = self.shared.imports.write().unwrap_or_else(PoisonError::into_inner);
        let known = imports.iter().position(|&known| known == import);
        if known.is_none() && imports.len() >= IMPORTS_MAX {
            let remedy = "import fewer, larger regions";
            return Err(Error::Full { queue: "the table of imported regions", limit: IMPORTS_MAX, remedy });
        }
        let index = known.unwrap_or_else(|| {
            imports.push(import);
            imports.len() - 1
        });
        Ok(RemoteRegion { peer, index: index as u32, bytes: import.region.bytes })
    }

    fn channel(&self) -> Result<Box<dyn Channel>> {
        Ok(Box::new(channel::VerbsChannel::new(Arc::clone(&self.shared))?))
    }
}
