//! Which provider and domain to use, and whether its reads are worth having.

use super::library::{Domain, Library, Offer, SEGMENTS_MAX, Wanted, text};
use super::wire::{REPLY_HEAD_BYTES, REQUEST_BYTES_MAX, REQUEST_ROWS_MAX};
use super::{FabricConfig, environment, failed};
use crate::error::{Error, Result};
use crate::transport::Found;
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

impl ReadMode {
    /// Whether rows of this provider are to be read.
    fn wants(self, provider: &str) -> bool {
        match self {
            Self::Auto => !is_emulated(provider),
            Self::On => true,
            Self::Off => false,
        }
    }
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

/// Reads under way, where the provider takes so many.
const READS_MAX: usize = 1024;
const ASKS_MIN: usize = 16;
const ASKS_MAX: usize = 48;
/// Most bytes of replies that a channel has room for, and so has asked for: what the second-level cache of a processor holds.
const REPLIES_BYTES: usize = 2 << 20;
/// Most bytes of rows in a reply. This measured best for `net` and for `tcp;ofi_rxm`: it stays in the second-level cache.
const REPLY_ROWS_BYTES: usize = 120 << 10;
/// Where `ofi_rxm` cannot send in place it copies what is up to 128 KiB through buffers of its own and lets the receiver fetch what is
/// longer, which is the faster.
const REPLY_ROWS_BYTES_FETCHED: usize = 256 << 10;

/// How much of what goes into one operation, by the provider's own limits and by what serves it best.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Pieces of one read.
    pub(super) segments: usize,
    /// Bytes of one read.
    pub(super) read_bytes: usize,
    /// Reads of one endpoint under way.
    pub(super) reads: usize,
    /// Bytes of rows in one reply.
    pub(super) reply_rows_bytes: usize,
    /// Rows of one request.
    pub(super) request_rows: usize,
    /// Requests of one endpoint under way, and replies of one owner.
    pub(super) asks: usize,
}

impl Limits {
    /// Bytes of a reply's buffer.
    pub(super) fn reply_bytes(&self) -> usize {
        // Whole cache lines, so that buffers side by side share none.
        (REPLY_HEAD_BYTES + self.reply_rows_bytes).next_multiple_of(64)
    }
}

/// The limits of an open domain.
pub(super) fn limits(domain: &Domain) -> Limits {
    let (limits, provider) = (domain.limits(), domain.provider());
    let segments = limits.local_segments_max.min(limits.remote_segments_max) as usize;
    let message_bytes = usize::try_from(limits.message_bytes_max).unwrap_or(usize::MAX);
    let fetched = provider.ends_with("ofi_rxm") && !environment::sends_in_place(&provider, domain.library().version());
    let reply_rows_bytes = if fetched { REPLY_ROWS_BYTES_FETCHED } else { REPLY_ROWS_BYTES }
        .min(message_bytes.saturating_sub(REPLY_HEAD_BYTES))
        .max(1);
    Limits {
        // Several pieces take libfabric 1.17's shm milliseconds a row.
        segments: if core(&provider) == "shm" { 1 } else { segments.clamp(1, SEGMENTS_MAX) },
        read_bytes: message_bytes.max(1),
        reads: usize::try_from(limits.sends_max).unwrap_or(usize::MAX).clamp(1, READS_MAX),
        reply_rows_bytes,
        request_rows: (message_bytes.saturating_sub(REQUEST_BYTES_MAX - 8 * REQUEST_ROWS_MAX) / 8)
            .clamp(1, REQUEST_ROWS_MAX),
        asks: (REPLIES_BYTES / reply_rows_bytes).clamp(ASKS_MIN, ASKS_MAX),
    }
}

/// Opens the domain that the configuration names or the machine offers; true beside it where rows are read.
pub(super) fn open(config: &FabricConfig) -> Result<(Arc<Domain>, bool)> {
    let library = Library::load(config.library.as_deref())?;
    let named = config.provider.as_deref();
    let candidates = named.as_ref().map_or(&PREFERRED[..], std::slice::from_ref);
    for provider in candidates {
        let Some((offer, reads)) = find(library, config, provider, config.rma.wants(provider))? else { continue };
        let domain = Domain::open(library, offer)?;
        report(library, config, &domain, reads, is_emulated(provider));
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

/// What libfabric offers for this configuration, in the order of preference: a provider's first domain each.
///
/// # Errors
/// libfabric cannot be loaded or asked.
pub(in crate::transport) fn offers(config: &FabricConfig) -> Result<Vec<Found>> {
    let library = Library::load(config.library.as_deref())?;
    let named = config.provider.as_deref();
    let mut offers = Vec::new();
    for provider in named.as_ref().map_or(&PREFERRED[..], std::slice::from_ref) {
        let Some((offer, reads)) = find(library, config, provider, config.rma.wants(provider))? else { continue };
        let limits = offer.limits();
        let messages = match limits.message_bytes_max {
            // Software providers set no bound.
            u64::MAX => "any length".to_owned(),
            bytes => format!("{bytes} bytes"),
        };
        let detail = format!(
            "libfabric {}, rows are {}, {} segments a read, {} operations at once, messages of {messages}",
            version(library),
            if reads { "read" } else { "asked for" },
            limits.local_segments_max.min(limits.remote_segments_max),
            limits.sends_max,
        );
        let name = format!("{} on {}", text(&limits.provider), text(&limits.domain));
        offers.push(Found { name, detail, unusable: None });
    }
    Ok(offers)
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
