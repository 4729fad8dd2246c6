//! Rows over libfabric: one-sided reads where the network does them, a remote gather over messages where software would.
//!
//! The interface is FI_EP_RDM with messages and FI_RMA, of API version 1.15, whatever the provider: `cxi` (Slingshot), `efa`,
//! `verbs;ofi_rxm`, and for one machine or plain Ethernet `tcp;ofi_rxm`, `net` and `shm`. The library is loaded at run time.
//!
//! A read brings rows straight to their places, several to a read where the provider takes several segments and adjacent rows as one.
//! Nobody at the owner takes part, so nobody there can say that a table has changed: after the rows of a batch, the reader fetches the
//! word that says which version the owner holds. Where reads are emulated they cost a message and the target's time each; there the
//! reader names many rows in one message, and the owner's thread answers with packed rows.
//!
//! A registration's keys allow reading only, but whoever is in the job's own network partition (VNI, partition key) may guess them. Requests
//! carry a secret that the bootstrap spread; it travels in the clear.

mod channel;
mod environment;
mod library;
mod operation;
mod owner;
mod provider;
mod shared;
mod staging;
mod wait;
mod wire;

use crate::error::{Error, Result};
use crate::id::Rank;
use crate::memory::{Access, Memory, Region, Version};
use crate::transport::{Capabilities, Channel, RemoteRegion, Transport, TransportConfig};
use owner::Owner;
pub use provider::ReadMode;
pub(super) use provider::offers;
pub use shared::FabricCounters;
use shared::Shared;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;
use wire::{Address, Token};

const NAME: &str = "fabric";

/// Settings of a [`FabricTransport`], each with the bounds that its field names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FabricConfig {
    /// The provider, as `fi_info` names it; without one, the first of a list from the fastest network down that is there.
    pub provider: Option<String>,
    /// The domain: one network interface, such as `cxi0`. Without one, the provider's first.
    pub domain: Option<String>,
    /// Whether rows are read or asked for.
    pub rma: ReadMode,
    /// The path of libfabric; without one, the system's `libfabric.so.1`.
    pub library: Option<String>,
    /// The address of the interface to bind to, for providers over IP whose domain is not named.
    pub interface: IpAddr,
    /// A peer that takes nothing for so long is given up, 1 ms..=10 min.
    pub connect_timeout: Duration,
    /// What was posted and has not ended after so long is given up, 1 s..=1 h.
    pub silence_timeout: Duration,
    /// Batches that a channel holds, 1..=4096.
    pub batches_in_flight_max: usize,
    /// Rows of a batch, 1..=1,048,576.
    pub batch_rows_max: usize,
    /// Regions that are imported, 1..=1,048,576.
    pub imports_max: usize,
    /// Regions that were ever exported for reads, 1..=1,048,576: of each a page stays, which says that it is gone.
    pub exports_max: usize,
}

impl Default for FabricConfig {
    fn default() -> Self {
        Self {
            provider: None,
            domain: None,
            rma: ReadMode::Auto,
            library: None,
            interface: IpAddr::V4(Ipv4Addr::LOCALHOST),
            connect_timeout: Duration::from_secs(5),
            silence_timeout: Duration::from_secs(60),
            batches_in_flight_max: 64,
            batch_rows_max: 64 * 1024,
            imports_max: 16 * 1024,
            exports_max: 16 * 1024,
        }
    }
}

impl FabricConfig {
    /// The variables that [`FabricConfig::of`] reads.
    pub const VARIABLES: [&'static str; 4] =
        ["RUDDER_FABRIC_PROVIDER", "RUDDER_FABRIC_DOMAIN", "RUDDER_FABRIC_RMA", "RUDDER_FABRIC_LIBRARY"];

    /// A job's settings, overridden by the environment's.
    ///
    /// # Errors
    /// A variable that cannot be read.
    pub fn of(job: &TransportConfig) -> Result<Self> {
        Self { interface: job.listen, ..job.fabric.clone() }.override_by(|name| std::env::var(name).ok())
    }

    fn override_by(mut self, variable: impl Fn(&str) -> Option<String>) -> Result<Self> {
        for name in Self::VARIABLES {
            let Some(value) = variable(name).filter(|value| !value.is_empty()) else { continue };
            tracing::info!("{name}={value} overrides the configuration");
            match name {
                "RUDDER_FABRIC_PROVIDER" => self.provider = Some(value),
                "RUDDER_FABRIC_DOMAIN" => self.domain = Some(value),
                "RUDDER_FABRIC_LIBRARY" => self.library = Some(value),
                _ => self.rma = value.parse().map_err(|error| Error::config(format!("{name}={value}: {error}")))?,
            }
        }
        Ok(self)
    }

    fn check(&self) -> Result<()> {
        fn within<T: PartialOrd + fmt::Debug>(name: &str, value: T, bounds: RangeInclusive<T>) -> Result<()> {
            if bounds.contains(&value) {
                Ok(())
            } else {
                Err(Error::config(format!("fabric.{name} is {value:?}, outside {bounds:?}")))
            }
        }
        within("connect_timeout", self.connect_timeout, Duration::from_millis(1)..=Duration::from_secs(600))?;
        within("silence_timeout", self.silence_timeout, Duration::from_secs(1)..=Duration::from_secs(3600))?;
        within("batches_in_flight_max", self.batches_in_flight_max, 1..=4096)?;
        within("batch_rows_max", self.batch_rows_max, 1..=1 << 20)?;
        within("imports_max", self.imports_max, 1..=1 << 20)?;
        within("exports_max", self.exports_max, 1..=1 << 20)
    }
}

/// The `fabric` transport of one rank.
///
/// Dropping it closes all that libfabric has opened for it, but for channels that live on.
pub struct FabricTransport {
    owner: Owner,
    shared: Arc<Shared>,
    address: Address,
}

impl FabricTransport {
    /// Loads libfabric, opens the provider's domain and begins to serve.
    ///
    /// # Errors
    /// A setting out of its bounds, no libfabric, no such provider or domain; the message carries the remedy.
    pub fn new(config: FabricConfig) -> Result<Self> {
        config.check()?;
        let (domain, reads) = provider::open(&config)?;
        let mut secret = [0; wire::SECRET_BYTES];
        getrandom::fill(&mut secret).map_err(|e| failed(format!("no random bytes: {e}")))?;
        let shared = Arc::new(Shared::new(config, domain, reads));
        let owner = Owner::start(&shared, secret)?;
        let address = Address { secret, provider: shared.domain.provider(), name: owner.endpoint().name()? };
        Ok(Self { owner, shared, address })
    }

    /// What was done so far.
    pub fn counters(&self) -> FabricCounters {
        self.shared.counters.read()
    }

    /// The provider that was chosen, as libfabric names it.
    pub fn provider(&self) -> String {
        self.shared.domain.provider()
    }

    /// The network interface that was chosen.
    pub fn domain(&self) -> String {
        self.shared.domain.name()
    }
}

fn failed(cause: impl Into<String>) -> Error {
    Error::Transport { transport: NAME, cause: cause.into() }
}

impl Transport for FabricTransport {
    fn name(&self) -> &'static str {
        NAME
    }

    fn capabilities(&self) -> Capabilities {
        let limits = self.shared.domain.limits();
        Capabilities {
            can_fence: true,
            needs_target_progress: false,
            survives_peer_death: true,
            read_only: true,
            prefers_remote_gather: !self.shared.reads,
            needs_registered_destination: self.shared.reads && limits.local_registration,
            batch_rows_max: self.shared.config.batch_rows_max,
            batches_in_flight_max: self.shared.config.batches_in_flight_max,
        }
    }

    fn address(&self) -> Vec<u8> {
        self.address.encode()
    }

    fn connect(&self, addresses: &[Vec<u8>]) -> Result<()> {
        let decode = |(rank, blob): (usize, &Vec<u8>)| {
            let rank = Rank(rank as u32);
            let address = Address::decode(blob).map_err(|cause| failed(format!("address of {rank}: {cause}")))?;
            if address.provider == self.address.provider {
                return Ok(address);
            }
            let (theirs, ours) = (&address.provider, &self.address.provider);
            Err(failed(format!(
                "{rank} has chosen provider {theirs}, this rank {ours}: name one in RUDDER_FABRIC_PROVIDER on all ranks"
            )))
        };
        let decoded: Vec<Address> = addresses.iter().enumerate().map(decode).collect::<Result<_>>()?;
        let known = self.shared.addresses.get_or_init(|| decoded.clone());
        if *known == decoded { Ok(()) } else { Err(failed("connect was called before with other addresses")) }
    }

    fn allocate(&self, bytes: usize, access: Access) -> Result<Region> {
        let memory = Memory::allocate(bytes)?;
        // SAFETY: fresh memory is written only through the region that this returns, whose holder has this contract too.
        unsafe { self.register(memory, access) }
    }

    unsafe fn register(&self, memory: Memory, access: Access) -> Result<Region> {
        let memory = Arc::new(memory);
        if access == Access::Local {
            let local = self.shared.add_local(self.owner.endpoint(), memory.base(), memory.bytes())?;
            return Ok(Region::new(Box::new(local), memory, Vec::new()));
        }
        let version = Version::new()?;
        let (registration, keys) = self.owner.export(&memory, &version)?;
        let token = Token { number: registration.number(), bytes: memory.bytes() as u64, keys };
        let token = token.encode(&self.address);
        Ok(Region::new(Box::new(registration), memory, token).with_version(version))
    }

    fn import(&self, peer: Rank, token: &[u8]) -> Result<RemoteRegion> {
        let refused = |cause: String| Error::Token { peer, cause };
        let addresses = self.shared.addresses.get().ok_or_else(|| refused("connect before importing tokens".into()))?;
        let address = addresses
            .get(peer.index())
            .ok_or_else(|| refused(format!("there is no such rank: {} addresses are known", addresses.len())))?;
        self.shared.import(peer, Token::decode(token, address).map_err(refused)?)
    }

    fn channel(&self) -> Result<Box<dyn Channel>> {
        Ok(Box::new(channel::FabricChannel::new(Arc::clone(&self.shared))?))
    }
}

#[cfg(test)]
mod tests {
    //! Goal: settings are read as people write them and named when they are wrong. Method: each variable, right and wrong.
    use super::*;

    #[test]
    fn variables_override_and_are_named_when_wrong() {
        let set = |name: &str| match name {
            "RUDDER_FABRIC_PROVIDER" => Some("cxi".into()),
            "RUDDER_FABRIC_RMA" => Some("off".into()),
            _ => None,
        };
        let config = FabricConfig::default().override_by(set).unwrap();
        assert_eq!((config.provider.as_deref(), config.rma, config.domain), (Some("cxi"), ReadMode::Off, None));
        let wrong = FabricConfig::default().override_by(|name| name.ends_with("RMA").then(|| "maybe".into()));
        assert!(wrong.unwrap_err().to_string().contains("RUDDER_FABRIC_RMA=maybe"));
    }

    #[test]
    fn what_cannot_be_opened_says_why_and_what_to_do() {
        let absent = FabricConfig { library: Some("/nowhere/libfabric.so.1".into()), ..FabricConfig::default() };
        let error = FabricTransport::new(absent).err().expect("there is no such library").to_string();
        assert!(error.contains("/nowhere/libfabric.so.1") && error.contains("RUDDER_FABRIC_LIBRARY"), "{error}");
        let unknown = FabricConfig { provider: Some("pigeon".into()), ..FabricConfig::default() };
        let error = FabricTransport::new(unknown).err().expect("there is no such provider").to_string();
        assert!(error.contains("pigeon") && error.contains("fi_info"), "{error}");
        let bounds = FabricConfig { batch_rows_max: 0, ..FabricConfig::default() };
        let error = FabricTransport::new(bounds).err().expect("out of bounds").to_string();
        assert!(error.contains("fabric.batch_rows_max is 0"), "{error}");
    }
}
