//! The reader's side: one thread's connections to every peer, behind one epoll.

use super::batches::Batches;
use super::counters::add;
use super::link::{End, Link, Workbench};
use super::queue::EventChannel;
use super::registration::{Exported, KnownLandings};
use super::{BATCH_ROWS_MAX, Import, Shared, failure};
use crate::error::{Error, Result, TransferError};
use crate::id::Rank;
use crate::transport::{Channel, Completion, Fenced, RemoteRegion, RowBatch, Wait, Waker};
use rustix::event::{Timespec, epoll};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use std::mem::MaybeUninit;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

const EVENTS_MAX: usize = 64;
const WAKER: u64 = u64::MAX;
const ANSWERS: u64 = u64::MAX - 1;
const COMPLETIONS: u64 = u64::MAX - 2;
/// A read on a quiet network is over sooner than a sleep; with one core spinning would only keep others from it.
const SPIN: Duration = Duration::from_micros(20);

/// The `verbs` transport's channel.
pub struct VerbsChannel {
    /// By rank; made on first use. They end before what they are built with.
    links: Vec<Option<Link>>,
    batches: Batches,
    bench: Workbench,
    events: Arc<EventChannel>,
    epoll: OwnedFd,
    waker: Waker,
    /// Called where a dialled owner has answered.
    answers: Waker,
    /// Our copy of the transport's imports, so that posting takes its lock only for a region it has not seen.
    imports: Vec<Import>,
    landings: KnownLandings,
    /// What ended outside `poll`, to be reported by the next.
    pending: Vec<Completion>,
    spins: bool,
    shared: Arc<Shared>,
}

impl VerbsChannel {
    pub fn new(shared: Arc<Shared>) -> Result<Self> {
        let waker = || Waker::new().map_err(|e| failure(format!("no event descriptor for a channel: {e}")));
        let (waker, answers) = (waker()?, waker()?);
        let events = EventChannel::new(&shared.device)?;
        let watched = [(waker.fd(), WAKER), (answers.fd(), ANSWERS), (events.fd(), COMPLETIONS)];
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)
            .and_then(|epoll| {
                for (fd, data) in watched {
                    epoll::add(&epoll, fd, epoll::EventData::new_u64(data), epoll::EventFlags::IN)?;
                }
                Ok(epoll)
            })
            .map_err(|e| failure(format!("no epoll for a channel: {e}")))?;
        Ok(Self {
            links: Vec::new(),
            batches: Batches::new(),
            bench: Workbench::new(&shared.device)?,
            events,
            epoll,
            waker,
            answers,
            imports: Vec::new(),
            landings: KnownLandings::default(),
            pending: Vec::new(),
            spins: std::thread::available_parallelism().is_ok_and(|cores| cores.get() > 1),
            shared,
        })
    }

    /// What its owner told of a region that the transport imported.
    fn imported(&mut self, region: RemoteRegion) -> Result<Exported> {
        let index = region.index as usize;
        if index >= self.imports.len() {
            let known = self.shared.imports.read().unwrap_or_else(PoisonError::into_inner);
            self.imports.extend_from_slice(&known[self.imports.len()..]);
        }
        match self.imports.get(index) {
            // The size is the owner's word, not that of whoever built the batch.
            Some(import) if import.peer == region.peer && import.region.bytes == region.bytes => Ok(import.region),
            _ => Err(Error::argument(format!("region {index} of {} was not imported by this transport", region.peer))),
        }
    }

    /// The key under which the device may write to a batch's destination.
    fn landing_key(&mut self, batch: &RowBatch<'_>) -> Result<u32> {
        let destination = batch.destination;
        let before_last = destination.places.saturating_sub(1).checked_mul(destination.stride);
        let bytes = before_last.and_then(|bytes| bytes.checked_add(batch.row_bytes));
        let key = bytes.and_then(|bytes| self.landings.key_of(&self.shared.landings, destination.base as usize, bytes));
        key.ok_or_else(|| {
            Error::argument(
                "the destination lies in no region that this transport allocated or registered with Access::Local",
            )
        })
    }

    fn ensure_open(&mut self, peer: Rank) -> Result<(), TransferError> {
        let at = peer.index();
        if self.links.len() <= at {
            self.links.resize_with(at + 1, || None);
        }
        if self.links[at].is_none() {
            self.links[at] = Some(Link::open(peer, &self.shared, &self.bench, &self.events, &self.answers)?);
        }
        Ok(())
    }

    /// Ends a link; how its rows ended goes to the next poll.
    fn end(&mut self, at: usize, end: End) -> Result<()> {
        let Some(link) = self.links[at].take() else { return Ok(()) };
        if let Some(socket) = link.socket() {
            // A forked child may hold the socket too: to drop our descriptor would then leave it registered, and always ready.
            let _ = epoll::delete(&self.epoll, socket);
        }
        link.end(end, &mut self.batches, &mut self.bench, &mut self.pending).map_err(|e| {
            failure(format!(
                "the device does not let go of a queue pair to {} ({e}): its destinations must not be freed or reused",
                Rank(at as u32)
            ))
        })
    }

    /// Ends a link that failed, and says so.
    fn fail(&mut self, at: usize, end: End) -> Result<()> {
        add(&self.shared.device.counters.connections_failed, 1);
        self.end(at, end)
    }

    /// Lets a link do what there is to do.
    fn drive(&mut self, at: usize, completions: &mut Vec<Completion>) -> Result<()> {
        let Some(link) = &mut self.links[at] else { return Ok(()) };
        match link.drive(&mut self.batches, &mut self.bench, completions) {
            Ok(()) => Ok(()),
            Err(end) => self.fail(at, end),
        }
    }

    fn drive_all(&mut self, completions: &mut Vec<Completion>) -> Result<()> {
        for at in 0..self.links.len() {
            self.drive(at, completions)?;
        }
        completions.append(&mut self.pending);
        Ok(())
    }

    /// Goes on with links whose owner has answered.
    fn settle_all(&mut self) -> Result<()> {
        self.answers.drain();
        for at in 0..self.links.len() {
            let Some(link) = &mut self.links[at] else { continue };
            let settled = link.settle().and_then(|ready| {
                let Some(socket) = link.socket().filter(|_| ready) else { return Ok(()) };
                add(&self.shared.device.counters.connections, 1);
                let data = epoll::EventData::new_u64(at as u64);
                epoll::add(&self.epoll, socket, data, epoll::EventFlags::IN)
                    .map_err(|e| End::Because(TransferError::Io(format!("cannot watch a connection: {e}"))))
            });
            if let Err(end) = settled {
                self.fail(at, end)?;
            }
        }
        Ok(())
    }

    /// Asks for an event with the next completion of every link that has reads out.
    fn arm(&self) -> Result<()> {
        for link in self.links.iter().flatten() {
            link.arm().map_err(|e| failure(format!("cannot wait for completions: {e}")))?;
        }
        Ok(())
    }

    fn is_reading(&self) -> bool {
        self.links.iter().flatten().any(Link::is_reading)
    }

    /// Waits for descriptors and serves them; true where the waker was called.
    fn sleep(&mut self, wait: Duration) -> Result<bool> {
        let timeout = Timespec::try_from(wait).ok();
        let mut events = [const { MaybeUninit::uninit() }; EVENTS_MAX];
        let ready: &[epoll::Event] = match epoll::wait(&self.epoll, &mut events[..], timeout.as_ref()) {
            Ok((ready, _)) => ready,
            Err(Errno::INTR) => &[],
            Err(errno) => return Err(failure(format!("waiting for completions: {errno}"))),
        };
        let mut woken = false;
        for event in ready {
            match event.data.u64() {
                WAKER => {
                    self.waker.drain();
                    woken = true;
                }
                ANSWERS => self.settle_all()?,
                COMPLETIONS => self.events.drain(),
                at => self.lose(at as usize)?,
            }
        }
        Ok(woken)
    }

    /// A link whose owner has closed the socket: what it has answered before that is taken first.
    fn lose(&mut self, at: usize) -> Result<()> {
        if self.links[at].is_none() {
            // Ended by an error meanwhile.
            return Ok(());
        }
        let mut completions = std::mem::take(&mut self.pending);
        let driven = self.drive(at, &mut completions);
        completions.append(&mut self.pending);
        self.pending = completions;
        driven?;
        if self.links[at].is_none() {
            return Ok(());
        }
        let cause = "it closed the connection, as the end of its process or of its transport does";
        self.fail(at, End::Because(TransferError::PeerGone(cause.into())))
    }
}

// SAFETY: places are written by the device only, row by row as the posted batch says, each between its post and the completion of its
// list; `abort` returns once the peer's queue pair is destroyed, after which the device holds no request of it.
unsafe impl Channel for VerbsChannel {
    unsafe fn post(&mut self, batch: &RowBatch<'_>) -> Result<usize> {
        batch.check()?;
        let message_bytes = self.shared.device.limits.message_bytes;
        if batch.row_bytes > message_bytes {
            let name = &self.shared.device.name;
            return Err(Error::argument(format!(
                "rows of {} bytes: {name} reads {message_bytes} at once",
                batch.row_bytes
            )));
        }
        let region = self.imported(batch.region)?;
        let rows = batch.rows.len().min(BATCH_ROWS_MAX);
        if rows == 0 {
            return Ok(0);
        }
        let lkey = self.landing_key(batch)?;
        if self.batches.are_all_in_use() {
            add(&self.shared.device.counters.posts_refused, 1);
            return Ok(0);
        }
        let peer = batch.region.peer;
        if let Err(cause) = self.ensure_open(peer) {
            self.pending.push(Completion { batch: batch.id, first: 0, count: rows as u32, status: Err(cause) });
            return Ok(rows);
        }
        let held = self.batches.begin(batch, rows, region, lkey);
        if let (Some(link), Some(held)) = (&mut self.links[peer.index()], held) {
            add(&self.shared.device.counters.rows, rows);
            link.enqueue(held);
        }
        let mut completions = std::mem::take(&mut self.pending);
        let driven = self.drive(peer.index(), &mut completions);
        completions.append(&mut self.pending);
        self.pending = completions;
        driven.map(|()| rows)
    }

    fn poll(&mut self, completions: &mut Vec<Completion>, wait: Wait) -> Result<()> {
        let before = completions.len();
        let began = Instant::now();
        self.drive_all(completions)?;
        // While others keep completing there is no wait in which an answer would show.
        let is_dialing = self.links.iter().flatten().any(Link::is_dialing);
        let mut woken = false;
        if is_dialing || wait == Wait::No {
            woken = self.sleep(Duration::ZERO)?;
            self.drive_all(completions)?;
        }
        let Wait::For(wait) = wait else { return Ok(()) };
        let spins_until = began + if self.spins && self.is_reading() { SPIN.min(wait) } else { Duration::ZERO };
        while completions.len() == before && !woken && Instant::now() < spins_until {
            std::hint::spin_loop();
            self.drive_all(completions)?;
        }
        while completions.len() == before && !woken {
            self.arm()?;
            // What completed before the queues were armed makes no event.
            self.drive_all(completions)?;
            let left = wait.saturating_sub(began.elapsed());
            let left = if completions.len() > before { Duration::ZERO } else { left };
            woken = self.sleep(left)?;
            self.drive_all(completions)?;
            if left.is_zero() {
                return Ok(());
            }
        }
        Ok(())
    }

    fn abort(&mut self, peer: Rank) -> Result<Fenced> {
        if peer.index() < self.links.len() {
            self.end(peer.index(), End::Because(TransferError::Aborted))?;
        }
        Ok(Fenced::new())
    }

    fn waker(&self) -> Waker {
        self.waker.clone()
    }
}
