//! Gets over a simulated network, in virtual time.
//!
//! All ranks live in one process and share a [`SimNetwork`]. A batch arrives when its link would have delivered it by the network's own
//! clock, which only polls advance: a run takes no longer than its work, and the same seed and the same calls give the same order.

mod channel;
mod network;

use super::imports;
use super::token::{self, Fields};
use super::{Capabilities, Channel, RemoteRegion, Transport};
use crate::error::{Error, Result};
use crate::id::Rank;
use crate::memory::{Access, Memory, Region, Version};
use channel::SimChannel;
use network::Export;
pub use network::{SimConfig, SimNetwork};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

const NAME: &str = "sim";
const MAGIC: [u8; 8] = *b"rudr-sim";
const BATCH_ROWS_MAX: usize = 4096;
const BATCHES_IN_FLIGHT_MAX: usize = 256;

/// One rank's way into a [`SimNetwork`].
pub struct SimTransport {
    network: SimNetwork,
    rank: Rank,
    ranks: OnceLock<usize>,
    imports: Arc<Imports>,
}

type Imports = RwLock<imports::Imports<Imported>>;

/// A peer's region, by the number that the network gave it.
#[derive(Clone, Copy)]
struct Imported {
    region: RemoteRegion,
    id: u64,
}

impl SimTransport {
    fn new(network: SimNetwork, rank: Rank) -> Self {
        Self { network, rank, ranks: OnceLock::new(), imports: Arc::default() }
    }

    fn export(&self, memory: Arc<Memory>, access: Access) -> Result<Region> {
        if access == Access::Local {
            return Ok(Region::new(Box::new(()), memory, Vec::new()));
        }
        let version = Version::new()?;
        let export = Export { memory: memory.clone(), version: version.clone() };
        let id = self.network.lock().export(self.rank, export);
        let (rank, bytes) = (self.rank.0.to_le_bytes(), (memory.bytes() as u64).to_le_bytes());
        let token = token::seal([&MAGIC[..], &rank, &id.to_le_bytes(), &bytes].concat());
        let process = std::process::id();
        let registration =
            Registration { network: self.network.clone(), owner: self.rank, id, version: version.clone(), process };
        Ok(Region::new(Box::new(registration), memory, token).with_version(version))
    }
}

struct Registration {
    network: SimNetwork,
    owner: Rank,
    id: u64,
    version: Version,
    /// Whose registration this is: to a forked child it is nothing.
    process: u32,
}

impl Drop for Registration {
    fn drop(&mut self) {
        if std::process::id() != self.process {
            // The version page is shared with the parent, whose region goes on.
            return;
        }
        // A channel that copies rows holds the region beyond its withdrawal: this is how it hears of the end.
        self.version.set(Version::RETIRED);
        self.network.lock().withdraw(self.owner, self.id);
    }
}

impl Drop for SimTransport {
    fn drop(&mut self) {
        self.network.lock().withdraw_all(self.rank);
    }
}

impl Transport for SimTransport {
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
        [&MAGIC[..], &self.rank.0.to_le_bytes()].concat()
    }

    fn connect(&self, addresses: &[Vec<u8>]) -> Result<()> {
        let failed = |cause: String| Error::Transport { transport: NAME, cause };
        for (rank, bytes) in addresses.iter().enumerate() {
            let expected = [&MAGIC[..], &(rank as u32).to_le_bytes()].concat();
            if *bytes != expected {
                return Err(failed(format!("address of rank {rank}: not of this transport and rank")));
            }
        }
        self.ranks.set(addresses.len()).map_err(|_| failed("connected already".into()))
    }

    fn allocate(&self, bytes: usize, access: Access) -> Result<Region> {
        self.export(Arc::new(Memory::allocate(bytes)?), access)
    }

    unsafe fn register(&self, memory: Memory, access: Access) -> Result<Region> {
        self.export(Arc::new(memory), access)
    }

    fn import(&self, peer: Rank, token: &[u8]) -> Result<RemoteRegion> {
        let refused = |cause: String| Error::Token { peer, cause };
        let mut fields = Fields::new(token::unseal(token).map_err(refused)?);
        let mut read = || Ok((fields.take()?, fields.take()?, fields.take()?, fields.take()?));
        let (magic, owner, id, bytes) = read().map_err(refused)?;
        if MAGIC != magic || Rank(u32::from_le_bytes(owner)) != peer {
            return Err(refused("issued by another rank or transport".into()));
        }
        let (id, bytes) = (u64::from_le_bytes(id), u64::from_le_bytes(bytes));
        if self.network.lock().exported(peer, id).is_none_or(|export| export.memory.bytes() as u64 != bytes) {
            return Err(refused("its owner does not export it, or not any more".into()));
        }
        let mut imports = self.imports.write().unwrap_or_else(PoisonError::into_inner);
        imports.add(peer, id, bytes, |region| Imported { region, id })
    }

    fn channel(&self) -> Result<Box<dyn Channel>> {
        Ok(Box::new(SimChannel::new(self.network.clone(), self.rank, self.imports.clone())?))
    }
}

#[cfg(test)]
mod tests {
    //! Goal: a copy under way hears that its source has ended. Method: the region ends while its export is held, as a channel holds it.

    use super::*;

    #[test]
    fn a_region_that_ends_is_retired() {
        let network = SimNetwork::new(SimConfig::default());
        let transport = network.transport(Rank(0));
        let region = transport.allocate(64, Access::RemoteRead).unwrap();
        let export = network.lock().exported(Rank(0), 1).unwrap().clone();
        assert_eq!(export.version.get_after_reading(), 0);
        drop(region);
        assert_eq!(export.version.get_after_reading(), Version::RETIRED);
    }
}
