//! The transports by name.

#[cfg(feature = "fabric")]
use super::fabric;
use super::hook::{FaultConfig, Faulty, Link, Throttled};
use super::{Transport, shm, tcp};
use crate::error::{Error, Result};
use crate::id::Rank;
use crate::placement::Nic;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

/// Which RDMA device the `verbs` transport uses; what is left out is chosen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VerbsSettings {
    /// The device's name, such as `mlx5_0`; the first with an active port otherwise.
    pub device: Option<String>,
    /// The index of its GID; the first of RoCE v2 over IPv4 otherwise, or what comes next to it.
    pub gid: Option<u8>,
}

/// What a transport needs to know of its job.
#[derive(Clone)]
pub struct TransportConfig {
    /// This process.
    pub rank: Rank,
    /// Number of ranks.
    pub size: u32,
    /// How many of them, this one included, run on this host.
    pub ranks_on_host: u32,
    /// Whether any of them exports rows in memory that no other process can map.
    pub unshared_rows: bool,
    /// The interface that listeners bind to.
    pub listen: IpAddr,
    /// The NIC of this rank, for a transport that takes one and was not told another.
    pub nic: Option<Nic>,
    /// What the job's ranks prove to each other, where a transport listens on a network.
    pub secret: [u8; 32],
    /// The device of the `verbs` transport.
    pub verbs: VerbsSettings,
    /// A slower link to put before the transport, where it is one.
    pub link: Link,
    /// What is to go wrong, in tests of what is above the transport.
    pub faults: Option<FaultConfig>,
    /// What the `fabric` transport is to choose; `RUDDER_FABRIC_*` variables override it where it opens.
    #[cfg(feature = "fabric")]
    pub fabric: fabric::FabricConfig,
}

impl TransportConfig {
    /// A rank of a job whose ranks all run on this host.
    pub fn new(rank: Rank, size: u32) -> Self {
        let listen = IpAddr::V4(Ipv4Addr::LOCALHOST);
        Self {
            rank,
            size,
            ranks_on_host: size,
            unshared_rows: false,
            listen,
            nic: None,
            secret: [0; 32],
            verbs: VerbsSettings::default(),
            link: Link::default(),
            faults: None,
            #[cfg(feature = "fabric")]
            fabric: fabric::FabricConfig::default(),
        }
    }
}

/// Without the secret.
impl fmt::Debug for TransportConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rank, size, ranks_on_host, unshared_rows, listen, nic, secret: _, verbs, link, faults, .. } = self;
        f.debug_struct("TransportConfig")
            .field("rank", rank)
            .field("size", size)
            .field("ranks_on_host", ranks_on_host)
            .field("unshared_rows", unshared_rows)
            .field("listen", listen)
            .field("nic", nic)
            .field("verbs", verbs)
            .field("link", link)
            .field("faults", faults)
            .finish_non_exhaustive()
    }
}

type Open = fn(&TransportConfig) -> Result<Arc<dyn Transport>>;

/// One line a transport.
const TRANSPORTS: &[(&str, Open)] = &[
    ("shm", |config| Ok(Arc::new(shm::ShmTransport::new(config)?))),
    ("tcp", |config| Ok(Arc::new(tcp::TcpTransport::new(tcp::TcpConfig::of(config))?))),
    #[cfg(feature = "verbs")]
    ("verbs", |config| Ok(Arc::new(super::verbs::VerbsTransport::new(super::verbs::VerbsConfig::of(config)?)?))),
    #[cfg(feature = "mpi")]
    ("mpi", |config| Ok(Arc::new(super::mpi::MpiTransport::new(config)?))),
    #[cfg(feature = "fabric")]
    ("fabric", |config| Ok(Arc::new(fabric::FabricTransport::new(fabric::FabricConfig::of(config)?)?))),
];

/// Every transport that there is, in this build or not.
pub const ALL: [&str; 5] = ["shm", "tcp", "verbs", "mpi", "fabric"];

/// A device or provider that a transport finds on this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its name.
    pub name: String,
    /// Its limits, in words.
    pub detail: String,
    /// Why it will not do, where it will not.
    pub unusable: Option<String>,
}

/// What a transport would run over on this host, best first; nothing for one that needs no device. Nothing is opened for good.
///
/// # Errors
/// The transport is not in this build, its library cannot be loaded, or a variable cannot be read.
#[cfg_attr(not(feature = "fabric"), expect(unused_variables, reason = "only libfabric's choice depends on the job"))]
pub fn find(name: &str, config: &TransportConfig) -> Result<Vec<Found>> {
    if !TRANSPORTS.iter().any(|(known, _)| *known == name) {
        return Err(Error::config(format!("transport {name} is not in this build")));
    }
    match name {
        #[cfg(feature = "verbs")]
        "verbs" => super::verbs::devices(),
        #[cfg(feature = "fabric")]
        "fabric" => fabric::offers(&fabric::FabricConfig::of(config)?),
        _ => Ok(Vec::new()),
    }
}

/// The names that [`open`] knows.
pub fn names() -> impl Iterator<Item = &'static str> {
    TRANSPORTS.iter().map(|(name, _)| *name).chain(["auto"])
}

/// Opens a transport by its name; `auto` takes `shm` where the whole job runs on this host and all exported rows can be mapped, and `tcp`
/// elsewhere.
///
/// ```
/// use rudder::Rank;
/// use rudder::transport::{TransportConfig, open};
///
/// let mut job = TransportConfig::new(Rank(0), 2);
/// assert_eq!(open("auto", &job)?.name(), "shm");
/// job.ranks_on_host = 1;
/// assert_eq!(open("auto", &job)?.name(), "tcp");
/// assert!(open("carrier-pigeon", &job).err().unwrap().to_string().contains("there are shm, tcp"));
/// # Ok::<(), rudder::Error>(())
/// ```
///
/// # Errors
/// No transport has that name (the error lists those that exist), or it cannot be opened.
pub fn open(name: &str, config: &TransportConfig) -> Result<Arc<dyn Transport>> {
    let name = match name {
        "auto" => choose(config),
        name => {
            tracing::info!("transport {name}: as the configuration says");
            name
        }
    };
    let known = TRANSPORTS.iter().find(|(known, _)| *known == name);
    let Some((_, open)) = known else {
        let names: Vec<_> = names().collect();
        return Err(Error::config(format!("no transport is named '{name}'; there are {}", names.join(", "))));
    };
    let mut transport = open(config)?;
    if !config.link.is_none() {
        tracing::info!("transport {name}: behind a link of {}", config.link);
        transport = Arc::new(Throttled::new(transport, config.link));
    }
    if let Some(faults) = config.faults {
        tracing::warn!("transport {name}: faults are injected, seed {}", faults.seed);
        transport = Arc::new(Faulty::new(transport, faults));
    }
    Ok(transport)
}

fn choose(config: &TransportConfig) -> &'static str {
    if config.unshared_rows {
        tracing::info!(
            "transport auto: tcp, because a rank exports rows in memory without a file, which shm cannot share"
        );
        "tcp"
    } else if config.ranks_on_host == config.size {
        tracing::info!("transport auto: shm, because all {} ranks run on this host", config.size);
        "shm"
    } else {
        tracing::info!(
            "transport auto: tcp, because {} of {} ranks run on this host",
            config.ranks_on_host,
            config.size
        );
        "tcp"
    }
}

#[cfg(test)]
mod tests {
    //! Goal: a log of the configuration gives the secret to nobody, and `auto` takes what can serve the job's rows. Method: a secret whose bytes
    //! are found nowhere else; jobs of each kind.
    use super::*;

    #[test]
    fn auto_takes_what_can_serve_the_rows() {
        let here = TransportConfig::new(Rank(0), 4);
        assert_eq!(choose(&here), "shm");
        assert_eq!(choose(&TransportConfig { ranks_on_host: 3, ..here.clone() }), "tcp");
        assert_eq!(choose(&TransportConfig { unshared_rows: true, ..here }), "tcp");
    }

    #[test]
    fn every_transport_is_known_built_or_not() {
        assert!(names().all(|name| name == "auto" || ALL.contains(&name)));
        let config = TransportConfig::new(Rank(0), 1);
        for name in ALL {
            let built = names().any(|built| built == name);
            let refused =
                find(name, &config).err().is_some_and(|cause| cause.to_string().contains("not in this build"));
            assert_eq!(refused, !built, "{name}");
        }
    }

    #[test]
    fn debug_output_tells_no_secret() {
        let config = TransportConfig { secret: [231; 32], ..TransportConfig::new(Rank(0), 2) };
        let text = format!("{config:?}");
        assert!(text.contains("size: 2") && !text.contains("231"), "{text}");
    }
}
