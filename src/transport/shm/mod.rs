//! Same-host gets: the peer's memory is mapped and rows are copied out of it.
//!
//! The owner's sealed memory file travels over a Unix socket once, at import; after that a get is a copy, with no system call and
//! nothing for the owner to do. Nothing lies in /dev/shm: there is no name to guess and nothing to sweep after a crash.
//! A peer's death leaves its rows readable, because the mapping holds the memory.

mod channel;
mod exchange;

use super::imports;
use super::{Capabilities, Channel, MappedRegion, RemoteRegion, Transport, TransportConfig};
use crate::error::{Error, Result};
use crate::id::Rank;
use crate::memory::{Access, Memory, Region, Version};
use channel::ShmChannel;
use exchange::{Address, Exports, Server, Token};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

const NAME: &str = "shm";
/// A batch is one run of the copy kernel: longer ones only delay the poll.
const BATCH_ROWS_MAX: usize = 1 << 16;
/// Copies are done when `post` returns; this bounds what waits to be polled.
const BATCHES_IN_FLIGHT_MAX: usize = 1024;

/// The shared-memory transport of one rank.
pub struct ShmTransport {
    address: Address,
    peers: OnceLock<Vec<Address>>,
    exports: Arc<Exports>,
    next_region: AtomicU64,
    imports: Arc<Imports>,
    #[expect(dead_code, reason = "held for its Drop, which ends the thread that answers imports")]
    server: Server,
}

/// A peer's region, mapped.
struct Imported {
    region: RemoteRegion,
    mapped: MappedRegion,
}

type Imports = RwLock<imports::Imports<Arc<Imported>>>;

impl ShmTransport {
    /// Opens the transport: peers of this user on this host can ask for regions from now on.
    ///
    /// # Errors
    /// The socket or the thread that serves it cannot be had.
    pub fn new(_config: &TransportConfig) -> Result<Self> {
        let exports = Arc::new(Exports::default());
        let (address, server) = Server::start(exports.clone())?;
        Ok(Self {
            address,
            peers: OnceLock::new(),
            exports,
            next_region: AtomicU64::new(1),
            imports: Arc::default(),
            server,
        })
    }

    fn export(&self, memory: Arc<Memory>, access: Access) -> Result<Region> {
        if access == Access::Local {
            return Ok(Region::new(Box::new(()), memory, Vec::new()));
        }
        if memory.file().is_none() {
            return Err(failed(
                "memory of the caller's cannot be shared with other processes: allocate it from the transport, open its file (the `path` of a table), \
                 or choose another transport, such as tcp",
            ));
        }
        let version = Version::new()?;
        let id = self.next_region.fetch_add(1, Ordering::Relaxed);
        let token = Token { owner: self.address.key(), region: id, bytes: memory.bytes() as u64 }.encode();
        let registration = self.exports.insert(id, memory.clone(), version.clone());
        Ok(Region::new(Box::new(registration), memory, token).with_version(version))
    }
}

impl Transport for ShmTransport {
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
            needs_registered_destination: false,
            batch_rows_max: BATCH_ROWS_MAX,
            batches_in_flight_max: BATCHES_IN_FLIGHT_MAX,
        }
    }

    fn address(&self) -> Vec<u8> {
        self.address.encode()
    }

    fn connect(&self, addresses: &[Vec<u8>]) -> Result<()> {
        let decode = |(rank, bytes): (usize, &Vec<u8>)| {
            Address::decode(bytes).map_err(|cause| failed(format!("address of rank {rank}: {cause}")))
        };
        let peers = addresses.iter().enumerate().map(decode).collect::<Result<Vec<_>>>()?;
        self.peers.set(peers).map_err(|_| failed("connected already"))
    }

    fn allocate(&self, bytes: usize, access: Access) -> Result<Region> {
        self.export(Arc::new(Memory::allocate(bytes)?), access)
    }

    unsafe fn register(&self, memory: Memory, access: Access) -> Result<Region> {
        self.export(Arc::new(memory), access)
    }

    fn import(&self, peer: Rank, token: &[u8]) -> Result<RemoteRegion> {
        let refused = |cause: String| Error::Token { peer, cause };
        let peers = self.peers.get().ok_or_else(|| failed("import before connect"))?;
        let address = peers.get(peer.index()).ok_or_else(|| refused(format!("the job has {} ranks", peers.len())))?;
        let token = Token::decode(token).map_err(refused)?;
        if token.owner != address.key() {
            return Err(refused("issued by another rank or transport".into()));
        }
        let known = self.imports.read().unwrap_or_else(PoisonError::into_inner).find(peer, token.region, token.bytes);
        if let Some(known) = known {
            return Ok(known);
        }
        let mapped = exchange::request(address, &token).map_err(refused)?;
        let mut imports = self.imports.write().unwrap_or_else(PoisonError::into_inner);
        imports.add(peer, token.region, token.bytes, |region| Arc::new(Imported { region, mapped }))
    }

    fn mapped(&self, region: RemoteRegion) -> Option<MappedRegion> {
        let imports = self.imports.read().unwrap_or_else(PoisonError::into_inner);
        imports.get(region.index as usize).filter(|known| known.region == region).map(|known| known.mapped.clone())
    }

    fn channel(&self) -> Result<Box<dyn Channel>> {
        Ok(Box::new(ShmChannel::new(self.imports.clone())?))
    }
}

fn failed(cause: impl Into<String>) -> Error {
    Error::Transport { transport: NAME, cause: cause.into() }
}
