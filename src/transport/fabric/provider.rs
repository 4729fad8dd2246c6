//! Which provider and domain to use, and whether its reads are worth having.

use super::library::{Domain, Library, Offer, SEGMENTS_MAX, Wanted};
use super::{FabricConfig, failed};
use crate::error::{Error, Result};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// Tried in this order where none is named: networks with hardware reads first.
const PREFERRED: [&str; 8] = ["cxi", "efa", "psm3", "opx", "verbs;ofi_rxm", "tcp;ofi_rxm", "net", "shm"];
/// Providers whose reads are messages that the target's library answers. There is no attribute that says so: this is the providers' manual
/// pages, and what a read of one row costs beside a request for many.
const EMULATED: [&str; 5] = ["tcp", "net", "sockets", "udp", "shm"];
/// Providers whose interface is chosen by an IP address.
const OVER_IP: [&str; 5] = ["tcp", "net", "sockets", "udp", "verbs"];

/// Whether rows are read by the asker or packed and sent by their owner.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReadMode {
    /// Read where the network does it, asked for where software would.
    #[default]
    Auto,
    /// Always read.
    On,
    /// Always asked for.
    Off,
}

impl FromStr for ReadMode {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "auto" => Ok(Self::Auto),
            "on" => Ok(Self::On),
            "off" => Ok(Self::Off),
            _ => Err(Error::config("expected `auto`, `on` or `off`")),
        }
    }
}

impl fmt::Display for ReadMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::On => "on",
            Self::Off => "off",
        })
    }
}

/// The name without what is layered over it.
fn core(provider: &str) -> &str {
    provider.split(';').next().unwrap_or(provider)
}

fn is_emulated(provider: &str) -> bool {
    EMULATED.contains(&core(provider)) || provider.ends_with("ofi_rxd")
}

/// Remote pieces that one read should name.
pub(super) fn segments_max(domain: &Domain) -> usize {
    let limits = domain.limits();
    let most = limits.local_segments_max.min(limits.remote_segments_max) as usize;
    // Several pieces take libfabric 1.17's shm milliseconds a row.
    if core(&domain.provider()) == "shm" { 1 } else { most.clamp(1, SEGMENTS_MAX) }
}

/// Opens the domain that the configuration names or the machine offers; true beside it where rows are read.
pub(super) fn open(config: &FabricConfig) -> Result<(Arc<Domain>, bool)> {
    let library = Library::load(config.library.as_deref())?;
    let named = config.provider.as_deref();
    let candidates = named.as_ref().map_or(&PREFERRED[..], std::slice::from_ref);
    for provider in candidates {
        let emulated = is_emulated(provider);
        let reads = match config.rma {
            ReadMode::Auto => !emulated,
            ReadMode::On => true,
            ReadMode::Off => false,
        };
        let Some((offer, reads)) = find(library, config, provider, reads)? else { continue };
        let domain = Domain::open(library, offer)?;
        report(library, config, &domain, reads, emulated);
        return Ok((domain, reads));
    }
    Err(failed(format!(
        "libfabric {} offers no {}{} with reliable datagram endpoints; `fi_info -p NAME` shows what it offers and FI_LOG_LEVEL=warn why \
         not more; set RUDDER_FABRIC_PROVIDER and RUDDER_FABRIC_DOMAIN",
        version(library),
        named.map_or("known provider".into(), |name| format!("provider {name}")),
        config.domain.as_ref().map(|domain| format!(" on domain {domain}")).unwrap_or_default(),
    )))
}

fn find(
    library: &'static Library,
    config: &FabricConfig,
    provider: &str,
    reads: bool,
) -> Result<Option<(Offer<'static>, bool)>> {
    let address = config.interface.to_string();
    let bound = config.domain.is_none() && OVER_IP.contains(&core(provider));
    let wanted = Wanted { provider, domain: config.domain.as_deref(), source: bound.then_some(&*address), reads };
    // InfiniBand's interfaces have addresses only where IP runs over them.
    let anywhere = Wanted { source: None, ..wanted };
    let tried: &[Wanted<'_>] = if bound && core(provider) == "verbs" { &[wanted, anywhere] } else { &[wanted] };
    for wanted in tried {
        if let Some(offer) = library.find(wanted)? {
            return Ok(Some((offer, reads)));
        }
        // Without reads there are still messages, unless reads were asked for by name.
        if reads
            && config.rma == ReadMode::Auto
            && let Some(offer) = library.find(&Wanted { reads: false, ..*wanted })?
        {
            return Ok(Some((offer, false)));
        }
    }
    Ok(None)
}

fn version(library: &Library) -> String {
    let (major, minor) = library.version();
    format!("{major}.{minor}")
}

fn report(library: &Library, config: &FabricConfig, domain: &Domain, reads: bool, emulated: bool) {
    let limits = domain.limits();
    tracing::info!(
        "transport fabric: libfabric {}, provider {} ({}), domain {}; {}",
        version(library),
        domain.provider(),
        if config.provider.is_some() { "named" } else { "the first that is there" },
        domain.name(),
        match (reads, emulated) {
            (true, false) => "rows are read".into(),
            (true, true) => format!("rows are read though reads are emulated, because rma is {}", config.rma),
            (false, true) => "rows are asked for, because reads are emulated".into(),
            (false, false) => format!("rows are asked for: no reads here, or rma is {}", config.rma),
        }
    );
    tracing::debug!(
        "{}: {} sends, {} receives, segments {} here and {} there, messages of {} bytes, {} inline, mr_mode {:#x}, {} progress",
        domain.provider(),
        limits.sends_max,
        limits.receives_max,
        limits.local_segments_max,
        limits.remote_segments_max,
        limits.message_bytes_max,
        limits.inject_bytes_max,
        limits.mr_mode,
        if limits.manual_progress { "manual" } else { "automatic" }
    );
}
