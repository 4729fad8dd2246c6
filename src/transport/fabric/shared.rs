//! What the transport, its channels and its regions share.

use super::FabricConfig;
use super::library::{Descriptor, Domain, Endpoint, Key, Registered, Use};
use super::provider::{self, Limits};
use super::wire::{Address, Token};
use crate::error::{Error, Result, TransferError};
use crate::id::Rank;
use crate::transport::{Destination, RemoteRegion};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};

/// What has been done so far, by all channels and the owner's thread of one transport.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FabricCounters {
    /// Rows asked for by reads or requests.
    pub rows: u64,
    /// Reads accepted by the provider, those of version words included.
    pub reads: u64,
    /// Reads that were posted without a promise of more: what rings the device.
    pub doorbells: u64,
    /// Requests for packed rows sent.
    pub requests: u64,
    /// Replies with packed rows sent by this rank as an owner.
    pub replies: u64,
    /// Operations whose end was taken from a completion queue.
    pub completions: u64,
    /// Registrations of memory.
    pub registrations: u64,
    /// Posts that the provider refused for now and that were tried again.
    pub retries: u64,
    /// Endpoints that were closed and opened anew, to fence what did not end by itself.
    pub reopened: u64,
}

#[derive(Default)]
pub(super) struct Counters {
    pub(super) rows: AtomicU64,
    pub(super) reads: AtomicU64,
    pub(super) doorbells: AtomicU64,
    pub(super) requests: AtomicU64,
    pub(super) replies: AtomicU64,
    pub(super) completions: AtomicU64,
    pub(super) registrations: AtomicU64,
    pub(super) retries: AtomicU64,
    pub(super) reopened: AtomicU64,
}

impl Counters {
    pub(super) fn read(&self) -> FabricCounters {
        let Self { rows, reads, doorbells, requests, replies, completions, registrations, retries, reopened } = self;
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        FabricCounters {
            rows: read(rows),
            reads: read(reads),
            doorbells: read(doorbells),
            requests: read(requests),
            replies: read(replies),
            completions: read(completions),
            registrations: read(registrations),
            retries: read(retries),
            reopened: read(reopened),
        }
    }
}

/// Adds one.
pub(super) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// The keys that this domain reads a region by.
#[derive(Clone, Copy, Debug)]
pub(super) struct Readable {
    pub(super) rows: u64,
    pub(super) rows_base: u64,
    pub(super) version: u64,
    pub(super) version_base: u64,
}

/// A region of a peer.
#[derive(Clone, Debug)]
pub(super) struct Import {
    pub(super) peer: Rank,
    pub(super) token: Token,
    /// None where it is asked for.
    pub(super) readable: Option<Readable>,
}

/// Memory of our own gets, and its registrations.
struct Local {
    number: u64,
    base: usize,
    bytes: usize,
    /// By the endpoint that they are bound to, or by 0 where they hold for the whole domain.
    registered: Vec<(u64, Registered)>,
}

/// Destinations that were registered with us.
#[derive(Default)]
pub(super) struct Locals {
    table: Mutex<Vec<Local>>,
    /// Changes with the table.
    generation: AtomicU64,
}

/// What a channel remembers of the destination that it used last.
#[derive(Clone, Copy)]
pub(super) struct Found {
    generation: u64,
    base: usize,
    end: usize,
    descriptor: Descriptor,
}

pub(super) struct Shared {
    pub(super) config: FabricConfig,
    pub(super) domain: Arc<Domain>,
    pub(super) limits: Limits,
    /// Whether regions are read where they can be, rather than asked for.
    pub(super) reads: bool,
    pub(super) addresses: OnceLock<Vec<Address>>,
    /// Imported regions, by our index.
    pub(super) imports: RwLock<Vec<Import>>,
    pub(super) locals: Locals,
    pub(super) counters: Counters,
    /// Keys and endpoints are numbered from the same source.
    numbers: AtomicU64,
    pub(super) process: u32,
}

impl Shared {
    pub(super) fn new(config: FabricConfig, domain: Arc<Domain>, reads: bool) -> Self {
        Self {
            limits: provider::limits(&domain),
            config,
            domain,
            reads,
            addresses: OnceLock::new(),
            imports: RwLock::default(),
            locals: Locals::default(),
            counters: Counters::default(),
            numbers: AtomicU64::new(0),
            process: std::process::id(),
        }
    }

    /// A key for a provider that makes none itself: small ones are the cheapest where keys are the client's (on cxi those below 100).
    pub(super) fn next_key(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    pub(super) fn address(&self, peer: Rank) -> Result<&Address, TransferError> {
        let known = self.addresses.get().and_then(|addresses| addresses.get(peer.index()));
        known.ok_or_else(|| TransferError::PeerGone("its address is not known".into()))
    }

    /// Makes a region addressable; the same token gives the same index again.
    pub(super) fn import(&self, peer: Rank, token: Token) -> Result<RemoteRegion> {
        let mut imports = self.imports.write().unwrap_or_else(PoisonError::into_inner);
        let known = imports.iter().position(|known| known.peer == peer && known.token == token);
        let (bytes, index) = (token.bytes, known.unwrap_or(imports.len()));
        if known.is_none() {
            if imports.len() >= self.config.imports_max {
                let remedy = "import fewer, larger regions";
                return Err(Error::Full { queue: "the table of imported regions", limit: imports.len(), remedy });
            }
            let readable = if self.reads { self.readable(peer, &token)? } else { None };
            imports.push(Import { peer, token, readable });
        }
        Ok(RemoteRegion { peer, index: index as u32, bytes })
    }

    fn readable(&self, peer: Rank, token: &Token) -> Result<Option<Readable>> {
        let Some(keys) = &token.keys else { return Ok(None) };
        let import = |key: &Key| {
            let refused = |code| format!("{} refuses its key: {}", self.domain.provider(), self.domain.words(code));
            self.domain.import(key).map_err(|code| Error::Token { peer, cause: refused(code) })
        };
        Ok(Some(Readable {
            rows: import(&keys.rows)?,
            rows_base: keys.rows.base,
            version: import(&keys.version)?,
            version_base: keys.version.base,
        }))
    }

    /// Notes memory that gets will land in, and registers it where that is asked for and holds for all endpoints.
    pub(super) fn add_local(
        self: &Arc<Self>,
        endpoint: &Arc<Endpoint>,
        base: *mut u8,
        bytes: usize,
    ) -> Result<LocalRegion> {
        let limits = self.domain.limits();
        if !self.reads || !limits.local_registration {
            return Ok(LocalRegion { shared: Arc::clone(self), number: None });
        }
        let mut registered = Vec::new();
        if !limits.endpoint_registration {
            registered.push((0, self.register(endpoint, base, bytes)?));
        }
        let number = self.next_key();
        let local = Local { number, base: base as usize, bytes, registered };
        self.locals.table.lock().unwrap_or_else(PoisonError::into_inner).push(local);
        self.locals.generation.fetch_add(1, Ordering::Release);
        Ok(LocalRegion { shared: Arc::clone(self), number: Some(number) })
    }

    fn register(&self, endpoint: &Arc<Endpoint>, base: *mut u8, bytes: usize) -> Result<Registered> {
        // SAFETY: the registration is dropped with the region that the memory belongs to, before the memory.
        let registered = unsafe { Registered::new(endpoint, base, bytes, Use::Destination, self.next_key()) }?;
        count(&self.counters.registrations);
        Ok(registered)
    }

    /// What a destination is named by in reads of an endpoint; `last` is what the caller found before.
    pub(super) fn descriptor(
        &self,
        serial: u64,
        endpoint: &Arc<Endpoint>,
        destination: &Destination,
        last: &mut Option<Found>,
    ) -> Result<Descriptor> {
        if !self.domain.limits().local_registration {
            return Ok(Descriptor::NONE);
        }
        let start = destination.base as usize;
        let end = start.saturating_add(destination.places.saturating_mul(destination.stride));
        let generation = self.locals.generation.load(Ordering::Acquire);
        if let Some(found) =
            last.filter(|found| found.generation == generation && found.base <= start && end <= found.end)
        {
            return Ok(found.descriptor);
        }
        let serial = if self.domain.limits().endpoint_registration { serial } else { 0 };
        let mut table = self.locals.table.lock().unwrap_or_else(PoisonError::into_inner);
        let local = table.iter_mut().find(|local| local.base <= start && end <= local.base + local.bytes);
        let Some(local) = local else {
            return Err(Error::argument(format!(
                "{} reads into registered memory only: allocate the destination from the transport",
                self.domain.provider()
            )));
        };
        let known = local.registered.iter().position(|(of, _)| *of == serial);
        let at = match known {
            Some(at) => at,
            None => {
                let registered = self.register(endpoint, local.base as *mut u8, local.bytes)?;
                local.registered.push((serial, registered));
                local.registered.len() - 1
            }
        };
        let descriptor = local.registered[at].1.descriptor();
        *last = Some(Found { generation, base: local.base, end: local.base + local.bytes, descriptor });
        Ok(descriptor)
    }

    /// Ends the registrations that are bound to an endpoint, which can be closed then.
    pub(super) fn unbind(&self, serial: u64) {
        let mut table = self.locals.table.lock().unwrap_or_else(PoisonError::into_inner);
        table.iter_mut().for_each(|local| local.registered.retain(|(of, _)| *of == 0 || *of != serial));
        self.locals.generation.fetch_add(1, Ordering::Release);
    }

    /// Names an endpoint; never 0.
    pub(super) fn next_serial(&self) -> u64 {
        static SERIALS: AtomicU64 = AtomicU64::new(1);
        SERIALS.fetch_add(1, Ordering::Relaxed)
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let imports = self.imports.get_mut().unwrap_or_else(PoisonError::into_inner);
        for readable in imports.iter().filter_map(|import| import.readable) {
            self.domain.release(readable.rows);
            self.domain.release(readable.version);
        }
    }
}

/// The right of our own gets to land in memory; ends with its drop.
pub(super) struct LocalRegion {
    shared: Arc<Shared>,
    number: Option<u64>,
}

impl Drop for LocalRegion {
    fn drop(&mut self) {
        let Some(number) = self.number.filter(|_| std::process::id() == self.shared.process) else { return };
        let mut table = self.shared.locals.table.lock().unwrap_or_else(PoisonError::into_inner);
        table.retain(|local| local.number != number);
        self.shared.locals.generation.fetch_add(1, Ordering::Release);
    }
}
