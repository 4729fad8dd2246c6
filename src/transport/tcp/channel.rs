//! The asker's side: one thread's connections to every peer, behind one epoll.

use super::connection::{Batches, Connection, Part};
use super::wire::REQUEST_ROWS_MAX;
use super::{Import, Peers, failure};
use crate::error::{Error, Result, TransferError};
use crate::id::Rank;
use crate::transport::handshake::Address;
use crate::transport::{Channel, Completion, Fenced, RemoteRegion, RowBatch, Wait, Waker};
use rustix::event::{Timespec, epoll};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

/// A batch is divided among the connections of a peer only where each then carries at least this much, or so many rows: small rows cost
/// their owner a cache and a TLB miss each and hardly any bytes, and each connection has a thread there to take them.
const SHARE_BYTES_MIN: usize = 256 << 10;
const SHARE_ROWS_MIN: usize = 4096;
/// While so many bytes of requests wait in one connection its peer takes no further batch.
const OUTBOX_BYTES_MAX: usize = 4 << 20;
const EVENTS_MAX: usize = 64;
const WAKER: u64 = u64::MAX;

/// A connection and what epoll was told of it.
struct Link {
    connection: Connection,
    listens_for_room: bool,
}

/// The `tcp` transport's channel.
pub struct TcpChannel {
    peers: Arc<Peers>,
    epoll: OwnedFd,
    waker: Waker,
    /// By `rank * connections_per_peer + number`; made on first use.
    links: Vec<Option<Link>>,
    batches: Batches,
    /// Our copy of the transport's imports, so that posting takes its lock only for a region it has not seen.
    imports: Vec<Import>,
    /// What ended outside `poll`, to be reported by the next.
    pending: Vec<Completion>,
    /// Links in their handshake: while there are any, waits are cut to their deadlines.
    handshakes: usize,
}

impl TcpChannel {
    pub fn new(peers: Arc<Peers>) -> Result<Self> {
        let waker = Waker::new().map_err(|e| failure(format!("no event descriptor for a channel: {e}")))?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)
            .and_then(|epoll| {
                epoll::add(&epoll, waker.fd(), epoll::EventData::new_u64(WAKER), epoll::EventFlags::IN)?;
                Ok(epoll)
            })
            .map_err(|e| failure(format!("no epoll for a channel: {e}")))?;
        let batches = Batches::new(peers.config.batches_in_flight_max);
        Ok(Self {
            peers,
            epoll,
            waker,
            links: Vec::new(),
            batches,
            imports: Vec::new(),
            pending: Vec::new(),
            handshakes: 0,
        })
    }

    /// The owner's number of a region that the transport imported.
    fn imported(&mut self, region: RemoteRegion) -> Result<u64> {
        let index = region.index as usize;
        if index >= self.imports.len() {
            let known = self.peers.imports.read().unwrap_or_else(PoisonError::into_inner);
            self.imports.extend_from_slice(&known[self.imports.len()..]);
        }
        match self.imports.get(index) {
            // The size is the owner's word, not that of whoever built the batch.
            Some(import) if import.peer == region.peer && import.token.bytes == region.bytes => Ok(import.token.region),
            _ => Err(Error::argument(format!("region {index} of {} was not imported by this transport", region.peer))),
        }
    }

    fn links_of(&self, peer: Rank) -> Range<usize> {
        let per_peer = self.peers.config.connections_per_peer;
        peer.index() * per_peer..(peer.index() + 1) * per_peer
    }

    /// Sends a part over the link of the peer that owes the least.
    fn ask(&mut self, peer: Rank, part: Part, rows: &[u64]) {
        let owed = |at: usize| self.links[at].as_ref().map_or(0, |link| link.connection.owed_bytes());
        let Some(at) = self.links_of(peer).min_by_key(|&at| owed(at)) else { return };
        if let Err(cause) = self.ensure_open(at, peer) {
            self.pending.push(self.batches.refuse(part, cause));
            return;
        }
        let Some(link) = &mut self.links[at] else { return };
        link.connection.ask(part, &self.batches[part.batch], rows);
        let sent = link.connection.flush().and_then(|()| self.update_interest(at));
        if let Err(cause) = sent {
            self.close(at, &cause);
        }
    }

    fn ensure_open(&mut self, at: usize, peer: Rank) -> Result<(), TransferError> {
        if self.links[at].is_some() {
            return Ok(());
        }
        let connection = Connection::open(self.peers.address(peer)?, &self.peers.config)?;
        let data = epoll::EventData::new_u64(at as u64);
        epoll::add(&self.epoll, connection.fd(), data, epoll::EventFlags::IN | epoll::EventFlags::OUT)
            .map_err(|e| TransferError::Io(format!("cannot watch a connection: {e}")))?;
        self.links[at] = Some(Link { connection, listens_for_room: true });
        self.handshakes += 1;
        Ok(())
    }

    /// Tells epoll whether room to send matters for this link.
    fn update_interest(&mut self, at: usize) -> Result<(), TransferError> {
        let Some(link) = &mut self.links[at] else { return Ok(()) };
        let wanted = link.connection.wants_to_write();
        if wanted != link.listens_for_room {
            let flags = if wanted { epoll::EventFlags::IN | epoll::EventFlags::OUT } else { epoll::EventFlags::IN };
            epoll::modify(&self.epoll, link.connection.fd(), epoll::EventData::new_u64(at as u64), flags)
                .map_err(|e| TransferError::Io(format!("cannot watch a connection: {e}")))?;
            link.listens_for_room = wanted;
        }
        Ok(())
    }

    /// Closes a link; what it owed is reported by the next poll.
    fn close(&mut self, at: usize, cause: &TransferError) {
        if let Some(link) = self.links[at].take() {
            self.handshakes -= usize::from(link.connection.deadline().is_some());
            // A forked child may hold the socket too: to drop our descriptor would then leave it registered, and always ready.
            let _ = epoll::delete(&self.epoll, link.connection.fd());
            link.connection.close(cause, &mut self.batches, &mut self.pending);
        }
    }

    /// Lets a link do what its socket is ready for.
    fn drive(&mut self, at: usize, completions: &mut Vec<Completion>) {
        let per_peer = self.peers.config.connections_per_peer;
        let Some(link) = self.links.get_mut(at).and_then(Option::as_mut) else { return };
        let in_handshake = link.connection.deadline().is_some();
        let driven = self.peers.address(Rank((at / per_peer) as u32)).and_then(|address| {
            // SAFETY: whoever posted the batches lent us their places until they are reported complete or aborted.
            unsafe { link.connection.drive(&self.peers.config.secret, address, &mut self.batches, completions) }
        });
        self.handshakes -= usize::from(in_handshake && link.connection.deadline().is_none());
        if let Err(cause) = driven.and_then(|()| self.update_interest(at)) {
            self.close(at, &cause);
        }
    }

    /// Gives up connections whose handshake has taken too long.
    fn expire_handshakes(&mut self) {
        if self.handshakes == 0 {
            return;
        }
        let now = Instant::now();
        for at in 0..self.links.len() {
            let deadline = self.links[at].as_ref().and_then(|link| link.connection.deadline());
            if deadline.is_some_and(|deadline| deadline <= now) {
                let limit = self.peers.config.connect_timeout;
                self.close(at, &TransferError::PeerGone(format!("no connection within {limit:?}")));
            }
        }
    }

    /// How long the next wait may take: to its end, or to the first deadline of a handshake.
    fn cut_to_handshakes(&self, wait: Duration) -> Duration {
        if self.handshakes == 0 {
            return wait;
        }
        let deadlines = self.links.iter().flatten().filter_map(|link| link.connection.deadline());
        deadlines.min().map_or(wait, |first| wait.min(first.saturating_duration_since(Instant::now())))
    }

    /// Waits for sockets and serves them; true where the waker was called.
    fn turn(&mut self, wait: Duration, completions: &mut Vec<Completion>) -> Result<bool> {
        let timeout = Timespec::try_from(self.cut_to_handshakes(wait)).ok();
        let mut events = [const { MaybeUninit::uninit() }; EVENTS_MAX];
        let ready: &[epoll::Event] = match epoll::wait(&self.epoll, &mut events[..], timeout.as_ref()) {
            Ok((ready, _)) => ready,
            Err(Errno::INTR) => &[],
            Err(errno) => return Err(failure(format!("waiting for sockets: {errno}"))),
        };
        let mut woken = false;
        for event in ready {
            match event.data.u64() {
                WAKER => {
                    self.waker.drain();
                    woken = true;
                }
                at => self.drive(at as usize, completions),
            }
        }
        self.expire_handshakes();
        completions.append(&mut self.pending);
        Ok(woken)
    }
}

// SAFETY: places are written only within `poll`, by `Connection::drive`, row by row as the posted batch says, before the row's
// completion is appended; `abort` drops the peer's connections, and with them every way to those places.
unsafe impl Channel for TcpChannel {
    unsafe fn post(&mut self, batch: &RowBatch<'_>) -> Result<usize> {
        batch.check()?;
        if u32::try_from(batch.row_bytes).is_err() {
            return Err(Error::argument(format!(
                "rows of {} bytes: the tcp transport's limit is 4 GiB",
                batch.row_bytes
            )));
        }
        let region = self.imported(batch.region)?;
        let peer = batch.region.peer;
        let of_peer = self.links_of(peer);
        if self.links.len() < of_peer.end {
            self.links.resize_with(of_peer.end, || None);
        }
        let clogged = |link: &Link| link.connection.outbox_bytes() >= OUTBOX_BYTES_MAX;
        let rows = batch.rows.len().min(self.peers.config.batch_rows_max);
        if rows == 0 || self.links[of_peer].iter().flatten().any(clogged) {
            return Ok(0);
        }
        let shares = (rows.saturating_mul(batch.row_bytes) / SHARE_BYTES_MIN).max(rows / SHARE_ROWS_MIN);
        let ways = shares.clamp(1, self.peers.config.connections_per_peer);
        let share = rows.div_ceil(ways).min(REQUEST_ROWS_MAX);
        let Some(posted) = self.batches.begin(batch, rows, region, rows.div_ceil(share)) else { return Ok(0) };
        for (number, rows) in batch.rows[..rows].chunks(share).enumerate() {
            let part = Part { batch: posted, first: (number * share) as u32, rows: rows.len() as u32 };
            self.ask(peer, part, rows);
        }
        Ok(rows)
    }

    fn poll(&mut self, completions: &mut Vec<Completion>, wait: Wait) -> Result<()> {
        let before = completions.len();
        completions.append(&mut self.pending);
        let until = match wait {
            Wait::For(wait) if completions.len() == before => Some(Instant::now() + wait),
            Wait::For(_) | Wait::No => None,
        };
        loop {
            let left = until.map_or(Duration::ZERO, |until| until.saturating_duration_since(Instant::now()));
            let woken = self.turn(left, completions)?;
            if woken || left.is_zero() || completions.len() > before {
                return Ok(());
            }
        }
    }

    fn abort(&mut self, peer: Rank) -> Result<Fenced> {
        let of_peer = self.links_of(peer);
        for at in of_peer.start..of_peer.end.min(self.links.len()) {
            self.close(at, &TransferError::Aborted);
        }
        Ok(Fenced::new())
    }

    fn waker(&self) -> Waker {
        self.waker.clone()
    }
}

impl Peers {
    fn address(&self, peer: Rank) -> Result<&Address, TransferError> {
        let known = self.addresses.get().and_then(|addresses| addresses.get(peer.index()));
        known.ok_or_else(|| TransferError::PeerGone("its address is not known".into()))
    }
}
