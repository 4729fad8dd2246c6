//! The transports by name.

use super::{Transport, shm, tcp};
use crate::error::{Error, Result};
use crate::id::Rank;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

/// What a transport needs to know of its job.
#[derive(Clone, Debug)]
pub struct TransportConfig {
    /// This process.
    pub rank: Rank,
    /// Number of ranks.
    pub size: u32,
    /// How many of them, this one included, run on this host.
    pub ranks_on_host: u32,
    /// The interface that listeners bind to.
    pub listen: IpAddr,
    /// What the job's ranks prove to each other, where a transport listens on a network.
    pub secret: [u8; 32],
}

impl TransportConfig {
    /// A rank of a job whose ranks all run on this host.
    pub fn new(rank: Rank, size: u32) -> Self {
        Self { rank, size, ranks_on_host: size, listen: IpAddr::V4(Ipv4Addr::LOCALHOST), secret: [0; 32] }
    }
}

type Open = fn(&TransportConfig) -> Result<Arc<dyn Transport>>;

/// One line a transport.
const TRANSPORTS: &[(&str, Open)] = &[
    ("shm", |config| Ok(Arc::new(shm::ShmTransport::new(config)?))),
    ("tcp", |config| Ok(Arc::new(tcp::TcpTransport::new(tcp::TcpConfig::of(config))?))),
];

/// The names that [`open`] knows.
pub fn names() -> impl Iterator<Item = &'static str> {
    TRANSPORTS.iter().map(|(name, _)| *name).chain(["auto"])
}

/// Opens a transport by its name; `auto` takes `shm` where the whole job runs on this host and `tcp` elsewhere.
///
/// # Errors
/// No transport has that name (the error lists those that exist), or it cannot be opened.
pub fn open(name: &str, config: &TransportConfig) -> Result<Arc<dyn Transport>> {
    let name = match name {
        "auto" => choose(config),
        name => name,
    };
    let known = TRANSPORTS.iter().find(|(known, _)| *known == name);
    let Some((_, open)) = known else {
        let names: Vec<_> = names().collect();
        return Err(Error::config(format!("no transport is named '{name}'; there are {}", names.join(", "))));
    };
    open(config)
}

fn choose(config: &TransportConfig) -> &'static str {
    if config.ranks_on_host == config.size {
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
