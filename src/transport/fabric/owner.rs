//! The owner's side: one endpoint that peers read from and send requests to, and the thread that drives it.
//!
//! The thread is there for every provider: where one-sided reads are emulated, they stall unless the owner calls into the library, and
//! where they are not, a region that cannot be registered is still asked for. It sleeps on the endpoint's descriptor while nothing comes.

use super::failed;
use super::library::{Code, Completion, Endpoint, NO_COMPLETION, Registered, Use};
use super::shared::{Shared, count};
use super::staging::{Contexts, Staging};
use super::wait::{Idle, RETRY_AFTER, WAIT_MAX};
use super::wire::{self, Keys, REPLY_HEAD_BYTES, REQUEST_BYTES_MAX, Reply, Request, SECRET_BYTES, Status};
use crate::error::{Error, Result};
use crate::memory::{Memory, Version, copy};
use crate::transport::Waker;
use crate::transport::exports::{self, Exports};
use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Requests that are received or wait for their turn.
const REQUESTS_MAX: usize = 128;
/// Endpoints that are remembered; the one that was silent longest makes room.
const ASKERS_MAX: usize = 4096;
/// A reply that cannot be sent for so long is dropped: its asker is gone, or asks again.
const SEND_WITHIN: Duration = Duration::from_secs(5);
/// Time that replies under way are given at the end.
const END_WITHIN: Duration = Duration::from_millis(100);
const POLLED_MAX: usize = 64;

/// The registrations by which peers read a region.
struct Offered {
    rows: Option<Registered>,
    /// Stays when the region goes, so that a reader who comes late learns it.
    _version: Registered,
    word: Version,
}

/// What peers can reach of this rank.
pub(super) struct Regions {
    exports: Arc<Exports>,
    offers: Mutex<HashMap<u64, Offered>>,
}

/// The right of peers to reach a region; ends with its drop.
pub(super) struct Registration {
    regions: Arc<Regions>,
    served: exports::Registration,
    word: Version,
    process: u32,
}

impl Registration {
    pub(super) fn number(&self) -> u64 {
        self.served.number()
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        if std::process::id() != self.process {
            // The page of the word is shared with the parent, whose region goes on.
            return;
        }
        self.word.set(Version::RETIRED);
        let mut offers = self.regions.offers.lock().unwrap_or_else(PoisonError::into_inner);
        let rows = offers.get_mut(&self.served.number()).and_then(|offered| offered.rows.take());
        drop(offers);
        // Outside the lock: to unpin gigabytes takes a while.
        drop(rows);
    }
}

/// The owner's endpoint and thread; ended by drop.
pub(super) struct Owner {
    thread: Option<JoinHandle<Service>>,
    stop: Arc<AtomicBool>,
    waker: Waker,
    regions: Arc<Regions>,
    endpoint: Option<Arc<Endpoint>>,
    shared: Arc<Shared>,
}

impl Owner {
    pub(super) fn start(shared: &Arc<Shared>, secret: [u8; SECRET_BYTES]) -> Result<Self> {
        let endpoint = Arc::new(Endpoint::open(&shared.domain, REQUESTS_MAX + shared.limits.asks)?);
        let regions = Arc::new(Regions { exports: Arc::default(), offers: Mutex::default() });
        let waker = Waker::new().map_err(|e| failed(format!("no event descriptor for the owner's thread: {e}")))?;
        let stop = Arc::new(AtomicBool::new(false));
        let mut service = Service::new(shared, &endpoint, &regions.exports, secret)?;
        let thread = std::thread::Builder::new().name("rudder-fabric".into()).spawn({
            let (waker, stop) = (waker.clone(), Arc::clone(&stop));
            move || {
                service.run(&waker, &stop);
                service
            }
        });
        let thread = thread.map_err(|e| failed(format!("no thread to serve peers: {e}")))?;
        Ok(Self { thread: Some(thread), stop, waker, regions, endpoint: Some(endpoint), shared: Arc::clone(shared) })
    }

    pub(super) fn endpoint(&self) -> &Arc<Endpoint> {
        self.endpoint.as_ref().expect("the endpoint is there until the drop")
    }

    /// Lets peers reach memory. With keys where it could be registered; without, they ask for its rows.
    pub(super) fn export(&self, memory: &Arc<Memory>, version: &Version) -> Result<(Registration, Option<Keys>)> {
        let served = self.regions.exports.add(Arc::clone(memory), version.clone());
        let registration = Registration {
            regions: Arc::clone(&self.regions),
            served,
            word: version.clone(),
            process: self.shared.process,
        };
        if !self.shared.reads || memory.bytes() == 0 {
            return Ok((registration, None));
        }
        match self.offer(registration.number(), memory, version) {
            Ok(keys) => Ok((registration, Some(keys))),
            // Pages of a file may come and go, which only on-demand paging follows.
            Err(cause) if !memory.is_writable() => {
                tracing::info!(
                    "transport fabric: a file of {} bytes is served to requests, not to reads: {cause}",
                    memory.bytes()
                );
                Ok((registration, None))
            }
            Err(cause) => Err(cause),
        }
    }

    fn offer(&self, number: u64, memory: &Memory, version: &Version) -> Result<Keys> {
        let register = |memory: &Memory| {
            // SAFETY: rows are deregistered by the region's registration, which goes before its memory; the word lies beside its own
            // registration, which is dropped first.
            let registered = unsafe {
                let (base, bytes, key) = (memory.base(), memory.bytes(), self.shared.next_key());
                Registered::new(self.endpoint(), base, bytes, Use::Exported, key)?
            };
            count(&self.shared.counters.registrations);
            Ok(registered)
        };
        if self.regions.offers.lock().unwrap_or_else(PoisonError::into_inner).len() >= self.shared.config.exports_max {
            let (queue, limit) = ("the table of exported regions", self.shared.config.exports_max);
            return Err(Error::Full { queue, limit, remedy: "export fewer, larger regions" });
        }
        let (rows, word) = (register(memory)?, register(version.page())?);
        let keys = Keys { rows: rows.key()?, version: word.key()? };
        let offered = Offered { rows: Some(rows), _version: word, word: version.clone() };
        self.regions.offers.lock().unwrap_or_else(PoisonError::into_inner).insert(number, offered);
        Ok(keys)
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        if std::process::id() != self.shared.process {
            // The thread, the locks it may hold and the endpoint are the parent's.
            std::mem::forget((self.thread.take(), self.endpoint.take()));
            return;
        }
        self.stop.store(true, Ordering::Release);
        self.waker.wake();
        // A thread that panicked has nothing left to end.
        let service = self.thread.take().and_then(|thread| thread.join().ok());
        let offers = std::mem::take(&mut *self.regions.offers.lock().unwrap_or_else(PoisonError::into_inner));
        for offered in offers.values() {
            // Readers that are under way find no version to agree with.
            offered.word.set(Version::RETIRED);
        }
        drop(offers);
        let Some(Service { endpoint, mut staging, contexts, .. }) = service else { return };
        if self.shared.domain.limits().endpoint_registration {
            // Such an endpoint cannot be closed before its registrations.
            staging.deregister();
        }
        drop(endpoint);
        // Until here messages may still be written to the staging.
        self.endpoint = None;
        drop((staging, contexts));
    }
}

/// An endpoint that has asked before.
struct Asker {
    name: Box<[u8]>,
    address: u64,
    last: Instant,
    /// A reply to it was refused: others of its requests wait, so that it does not take all buffers.
    refused: bool,
}

/// A reply that is packed and not yet sent.
struct Packed {
    slot: usize,
    bytes: usize,
    /// Index into the askers.
    asker: usize,
    since: Instant,
}

/// What the owner's thread works with.
struct Service {
    endpoint: Arc<Endpoint>,
    shared: Arc<Shared>,
    exports: Arc<Exports>,
    secret: [u8; SECRET_BYTES],
    staging: Staging,
    /// Of requests first, then of replies.
    contexts: Contexts,
    askers: Vec<Option<Asker>>,
    asker_by_name: HashMap<Box<[u8]>, usize>,
    /// Requests that came and wait to be answered: buffer and bytes.
    requests: VecDeque<(usize, usize)>,
    /// Buffers that are to be offered for requests.
    unoffered: Vec<usize>,
    free_replies: Vec<usize>,
    packed: VecDeque<Packed>,
    rows: Vec<u64>,
    /// 0, 1, 2, …: where packed rows go.
    order: Vec<u32>,
}

impl Service {
    fn new(
        shared: &Arc<Shared>,
        endpoint: &Arc<Endpoint>,
        exports: &Arc<Exports>,
        secret: [u8; SECRET_BYTES],
    ) -> Result<Self> {
        let replies = shared.limits.asks;
        let mut staging = Staging::new(REQUESTS_MAX * REQUEST_BYTES_MAX + replies * shared.limits.reply_bytes())?;
        staging.register(shared, endpoint)?;
        let mut service = Self {
            endpoint: Arc::clone(endpoint),
            shared: Arc::clone(shared),
            exports: Arc::clone(exports),
            secret,
            staging,
            contexts: Contexts::new(REQUESTS_MAX + replies),
            askers: Vec::new(),
            asker_by_name: HashMap::new(),
            requests: VecDeque::with_capacity(REQUESTS_MAX),
            unoffered: (0..REQUESTS_MAX).collect(),
            free_replies: (0..replies).collect(),
            packed: VecDeque::with_capacity(replies),
            rows: Vec::with_capacity(wire::REQUEST_ROWS_MAX),
            order: (0..wire::REQUEST_ROWS_MAX as u32).collect(),
        };
        service.offer_buffers()?;
        Ok(service)
    }

    fn run(&mut self, waker: &Waker, stop: &AtomicBool) {
        let mut idle = Idle::default();
        let mut space = [NO_COMPLETION; POLLED_MAX];
        while !stop.load(Ordering::Acquire) {
            let turned = self.turn(&mut space);
            match turned {
                Ok(true) => idle.reset(),
                Ok(false) => {
                    let waits = !self.packed.is_empty() || !self.unoffered.is_empty();
                    idle.wait(&self.endpoint, waker, if waits { RETRY_AFTER } else { WAIT_MAX });
                }
                Err(error) => {
                    tracing::error!("{error}; peers cannot read from this rank any more");
                    return;
                }
            }
        }
        self.let_end(&mut space);
    }

    /// Gives replies that are under way a moment to end, before the endpoint is closed under them.
    fn let_end(&mut self, space: &mut [Completion]) {
        let until = Instant::now() + END_WITHIN;
        let under_way = |service: &Self| service.free_replies.len() + service.packed.len() < service.shared.limits.asks;
        while under_way(self) && Instant::now() < until {
            match self.take_completions(space) {
                Ok(0) => std::thread::sleep(RETRY_AFTER),
                Ok(_) => {}
                Err(_) => return,
            }
        }
    }

    /// Takes in what has come and answers what can be answered; whether there was something.
    fn turn(&mut self, space: &mut [Completion]) -> Result<bool> {
        let mut done = false;
        while self.take_completions(space)? > 0 {
            done = true;
        }
        self.send_packed();
        let answered = self.answer_one();
        self.offer_buffers()?;
        Ok(done || answered)
    }

    fn take_completions(&mut self, space: &mut [Completion]) -> Result<usize> {
        let endpoint = Arc::clone(&self.endpoint);
        let done = endpoint
            .poll(space)
            .map_err(|code| failed(format!("the owner's queue of completions: {}", self.shared.domain.words(code))))?;
        for completion in done {
            count(&self.shared.counters.completions);
            match self.contexts.number(completion.context) {
                Some(buffer) if buffer < REQUESTS_MAX && completion.error == 0 => {
                    self.requests.push_back((buffer, completion.bytes as usize));
                }
                Some(buffer) if buffer < REQUESTS_MAX => self.unoffered.push(buffer),
                // A reply that failed has an asker that is gone, or that asks again.
                Some(reply) => self.free_replies.push(reply - REQUESTS_MAX),
                None => {}
            }
        }
        Ok(done.len())
    }

    /// The buffer of a reply.
    fn reply_at(&self, slot: usize) -> *mut u8 {
        self.staging.at(REQUESTS_MAX * REQUEST_BYTES_MAX + slot * self.shared.limits.reply_bytes())
    }

    fn offer_buffers(&mut self) -> Result<()> {
        while let Some(&buffer) = self.unoffered.last() {
            let at = self.staging.at(buffer * REQUEST_BYTES_MAX);
            let descriptor = self.staging.descriptor();
            // SAFETY: the buffer is this service's own and in nobody's use; the staging outlives the endpoint's use of it, because the
            // thread that owns both ends before the endpoint closes, and is dropped after.
            match unsafe { self.endpoint.receive(at, REQUEST_BYTES_MAX, descriptor, self.contexts.at(buffer)) } {
                Ok(()) => self.unoffered.pop(),
                Err(code) if code.is_again() => return Ok(()),
                Err(code) => {
                    return Err(failed(format!("cannot receive requests: {}", self.shared.domain.words(code))));
                }
            };
        }
        Ok(())
    }

    /// Sends replies that were refused before.
    fn send_packed(&mut self) {
        self.askers.iter_mut().flatten().for_each(|asker| asker.refused = false);
        for _ in 0..self.packed.len() {
            let Some(packed) = self.packed.pop_front() else { break };
            self.send(packed);
        }
    }

    fn send(&mut self, packed: Packed) {
        let at = self.reply_at(packed.slot);
        let Some(asker) = &mut self.askers[packed.asker] else {
            self.free_replies.push(packed.slot);
            return;
        };
        let (descriptor, context) = (self.staging.descriptor(), self.contexts.at(REQUESTS_MAX + packed.slot));
        // SAFETY: the slot is this reply's alone until its completion; the staging outlives the endpoint's use of it.
        let sent = unsafe {
            let bytes = std::slice::from_raw_parts(at, packed.bytes);
            self.endpoint.send(bytes, descriptor, asker.address, context)
        };
        match sent {
            Ok(()) => count(&self.shared.counters.replies),
            Err(code) if code.is_again() && packed.since.elapsed() < SEND_WITHIN => {
                asker.refused = true;
                count(&self.shared.counters.retries);
                self.packed.push_back(packed);
            }
            Err(_) => {
                self.forget(packed.asker);
                self.free_replies.push(packed.slot);
            }
        }
    }

    fn forget(&mut self, asker: usize) {
        if let Some(asker) = self.askers[asker].take() {
            self.endpoint.forget(asker.address);
            self.asker_by_name.remove(&asker.name);
        }
    }

    /// Answers the first request whose asker takes replies; whether there was one. Not all at once, so that the next reply is packed into
    /// the buffer of one that has just gone, which the cache still holds.
    fn answer_one(&mut self) -> bool {
        for _ in 0..self.requests.len() {
            let Some(&slot) = self.free_replies.last() else { return false };
            let Some((buffer, bytes)) = self.requests.pop_front() else { return false };
            let at = self.staging.at(buffer * REQUEST_BYTES_MAX);
            // SAFETY: the buffer was received into and is offered again only below; the provider wrote so many bytes of it.
            let message = unsafe { std::slice::from_raw_parts(at, bytes.min(REQUEST_BYTES_MAX)) };
            let mut rows = std::mem::take(&mut self.rows);
            let packed = match Request::decode(message, &self.secret, self.shared.limits.reply_rows_bytes, &mut rows) {
                Some((request, name)) => match self.admit(name) {
                    Ok(Some(asker)) => Some((self.pack(slot, &request, &rows), asker)),
                    Ok(None) => {
                        self.requests.push_back((buffer, bytes));
                        self.rows = rows;
                        continue;
                    }
                    Err(code) => {
                        tracing::warn!("fabric: an asker has no usable address: {}", self.shared.domain.words(code));
                        None
                    }
                },
                None => None,
            };
            self.rows = rows;
            if let Some((bytes, asker)) = packed {
                self.free_replies.pop();
                self.send(Packed { slot, bytes, asker, since: Instant::now() });
            }
            self.unoffered.push(buffer);
            return true;
        }
        false
    }

    /// Makes an asker addressable; None where it has to wait.
    fn admit(&mut self, name: &[u8]) -> Result<Option<usize>, Code> {
        let now = Instant::now();
        if let Some(&known) = self.asker_by_name.get(name)
            && let Some(asker) = &mut self.askers[known]
        {
            asker.last = now;
            return Ok((!asker.refused).then_some(known));
        }
        let at = match self.askers.iter().position(Option::is_none) {
            Some(free) => free,
            None if self.askers.len() < ASKERS_MAX => {
                self.askers.push(None);
                self.askers.len() - 1
            }
            None => {
                // Replies that wait to be sent again are of refused ones only.
                let idle =
                    self.askers.iter().enumerate().filter(|(_, asker)| asker.as_ref().is_some_and(|a| !a.refused));
                let Some((silent, _)) = idle.min_by_key(|(_, asker)| asker.as_ref().map(|asker| asker.last)) else {
                    return Ok(None);
                };
                self.forget(silent);
                silent
            }
        };
        let address = self.endpoint.resolve(name)?;
        self.askers[at] = Some(Asker { name: name.into(), address, last: now, refused: false });
        self.asker_by_name.insert(name.into(), at);
        Ok(Some(at))
    }

    /// Writes the reply to a request into a slot and returns its length.
    fn pack(&mut self, slot: usize, request: &Request, rows: &[u64]) -> usize {
        let head_at = self.reply_at(slot);
        let status = self.pack_rows(head_at.wrapping_add(REPLY_HEAD_BYTES), request, rows);
        let head = Reply { sequence: request.sequence, status }.encode();
        // SAFETY: the slot is free, and longer than a head.
        unsafe { std::ptr::copy_nonoverlapping(head.as_ptr(), head_at, head.len()) };
        match status {
            Status::Rows => REPLY_HEAD_BYTES + rows.len() * request.bytes as usize,
            Status::OutOfRegion { .. } | Status::StaleRegion => REPLY_HEAD_BYTES,
        }
    }

    fn pack_rows(&self, to: *mut u8, request: &Request, rows: &[u64]) -> Status {
        let Some(exported) = self.exports.find(request.region, request.version) else { return Status::StaleRegion };
        let region_bytes = exported.memory.bytes() as u64;
        let (row_bytes, bytes) = (request.row_bytes as usize, request.bytes as usize);
        let region_rows = region_bytes / u64::from(request.row_bytes);
        if rows.iter().any(|&row| row >= region_rows) {
            return Status::OutOfRegion { region_bytes };
        }
        // SAFETY: the rows were found to lie within the memory, and the decoder has seen that a slot has room for them.
        unsafe {
            let from = exported.memory.base();
            if bytes == row_bytes {
                copy::gather(from, row_bytes, rows, &self.order, to, row_bytes);
            } else {
                for (i, &row) in rows.iter().enumerate() {
                    let piece = from.add(row as usize * row_bytes + request.offset as usize);
                    std::ptr::copy_nonoverlapping(piece, to.add(i * bytes), bytes);
                }
            }
        }
        // A version that changed meanwhile may have changed the rows too.
        if exported.version.get_after_reading() == request.version { Status::Rows } else { Status::StaleRegion }
    }
}
