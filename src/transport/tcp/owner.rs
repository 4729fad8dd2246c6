//! The owner's side: a listener and one thread for each connection, which answers requests from the registered memory.
//!
//! A thread a connection, blocking: a request then costs one receive and one send, and a slow reader holds up nobody but itself.
//! Both kinds of connection are bounded: where too many have not proved anything yet the oldest of them goes, those that have and are
//! too many are told so.

use super::socket::{self, Pieces};
use super::wire::{PROTOCOL, REPLY_BYTES, REQUEST_BYTES, REQUEST_ROWS_MAX, Reply, Request, Status};
use super::{JobSecret, TcpConfig, failure};
use crate::error::Result;
use crate::listening::FailedAccepts;
use crate::memory::copy;
use crate::transport::exports::{Exported, Exports};
use crate::transport::handshake::{
    self, HELLO_BYTES, Handshake, NONCE_BYTES, PROOF_BYTES, Side, Verdict, receive_by, send_small,
};
use crate::transport::{Waker, index_list};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_reuseaddr, set_socket_timeout};
use rustix::net::{RecvFlags, Shutdown, SocketFlags, accept_with, bind, getsockname, listen, recv, shutdown};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Connections that may be in their handshake at once; a further one takes the place of the oldest.
const HANDSHAKES_MAX: usize = 32;
/// A handshake has so long before it must make room: two round trips, on a busy host. Far less than an honest asker waits for its turn.
const HANDSHAKE_SPARED: Duration = Duration::from_millis(250);
const BACKLOG: i32 = 128;
/// Rows are packed into a buffer of this size, which stays in the second-level cache beside the socket's own, and sent from there. Half of it
/// makes short rows no faster and long ones slower, twice as much makes short ones slower by half.
const STAGING_BYTES: usize = 128 << 10;
const STACK_BYTES: usize = 256 << 10;

/// What the serving threads share.
struct Service {
    job: JobSecret,
    secret: [u8; NONCE_BYTES],
    exports: Arc<Exports>,
    connect_timeout: Duration,
    silence_timeout: Duration,
    connections_max: usize,
    handshakes: AtomicUsize,
    served: AtomicUsize,
    closing: AtomicBool,
    /// Wakes the accepting thread: a handshake has ended, or the listener is to close.
    waker: Waker,
}

struct Session {
    socket: Arc<OwnedFd>,
    thread: JoinHandle<()>,
    since: Instant,
    in_handshake: Arc<AtomicBool>,
}

/// A listener with its threads.
pub struct Owner {
    service: Arc<Service>,
    sessions: Arc<Mutex<Vec<Session>>>,
    acceptor: Option<JoinHandle<()>>,
    address: SocketAddr,
    /// Whose threads these are: a forked child has none of them.
    process: u32,
}

impl Owner {
    pub fn listen(config: &TcpConfig, secret: [u8; NONCE_BYTES], exports: Arc<Exports>) -> Result<Self> {
        let wanted = SocketAddr::new(socket::interface_address(&config.interface)?, config.port);
        let refused = |errno: Errno| failure(format!("cannot listen on {wanted}: {errno}"));
        let listener = socket::stream(&wanted, SocketFlags::NONBLOCK, config.socket_buffer_bytes).map_err(refused)?;
        set_socket_reuseaddr(&listener, true).map_err(refused)?;
        bind(&listener, &wanted).map_err(refused)?;
        listen(&listener, BACKLOG).map_err(refused)?;
        let address = getsockname(&listener).and_then(SocketAddr::try_from).map_err(refused)?;
        let service = Arc::new(Service {
            job: config.secret.clone(),
            secret,
            exports,
            connect_timeout: config.connect_timeout,
            silence_timeout: config.silence_timeout,
            connections_max: config.connections_served_max,
            handshakes: AtomicUsize::new(0),
            served: AtomicUsize::new(0),
            closing: AtomicBool::new(false),
            waker: Waker::new().map_err(|e| failure(format!("no event descriptor: {e}")))?,
        });
        let sessions = Arc::new(Mutex::new(Vec::new()));
        let acceptor = std::thread::Builder::new()
            .name("rudder-tcp-accept".into())
            .stack_size(STACK_BYTES)
            .spawn({
                let (service, sessions) = (Arc::clone(&service), Arc::clone(&sessions));
                move || accept_all(&listener, &service, &sessions)
            })
            .map_err(|e| failure(format!("no thread to accept connections: {e}")))?;
        Ok(Self { service, sessions, acceptor: Some(acceptor), address, process: std::process::id() })
    }

    pub fn socket_address(&self) -> SocketAddr {
        self.address
    }

    pub fn connections_served(&self) -> usize {
        self.service.served.load(Ordering::Relaxed)
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        if std::process::id() != self.process {
            // The threads, the locks they may hold and the connections are the parent's.
            std::mem::forget(self.acceptor.take());
            return;
        }
        self.service.closing.store(true, Ordering::Release);
        self.service.waker.wake();
        // A thread that panicked has nothing left to end.
        let _ = self.acceptor.take().map(JoinHandle::join);
        let sessions = std::mem::take(&mut *self.sessions.lock().unwrap_or_else(PoisonError::into_inner));
        for session in &sessions {
            let _ = shutdown(&session.socket, Shutdown::Both);
        }
        for session in sessions {
            let _ = session.thread.join();
        }
    }
}

fn accept_all(listener: &OwnedFd, service: &Arc<Service>, sessions: &Mutex<Vec<Session>>) {
    let mut failed_accepts = FailedAccepts::new(super::NAME);
    while !service.closing.load(Ordering::Acquire) {
        let mut fds =
            [PollFd::new(listener, PollFlags::IN), PollFd::from_borrowed_fd(service.waker.fd(), PollFlags::IN)];
        let _ = poll(&mut fds, None);
        let somebody_waits = fds[0].revents().contains(PollFlags::IN);
        service.waker.drain();
        if service.handshakes.load(Ordering::Acquire) >= HANDSHAKES_MAX {
            if somebody_waits {
                let until = make_room(&sessions.lock().unwrap_or_else(PoisonError::into_inner));
                service.waker.wait(until);
            }
            continue;
        }
        match accept_with(listener, SocketFlags::CLOEXEC) {
            Ok(socket) => {
                failed_accepts.end();
                start_session(socket, service, sessions);
            }
            Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => {}
            // Out of descriptors or memory: what is needed is time for connections to end, and those that have to give back theirs.
            Err(cause) => {
                failed_accepts.note(cause);
                reap(&mut sessions.lock().unwrap_or_else(PoisonError::into_inner));
                service.waker.wait(Duration::from_millis(20));
            }
        }
    }
}

/// Ends the oldest handshake, where it has had its time, and says how long to wait for its place.
fn make_room(sessions: &[Session]) -> Duration {
    let Some(oldest) = sessions.iter().find(|session| session.in_handshake.load(Ordering::Acquire)) else {
        return HANDSHAKE_SPARED;
    };
    let spared = HANDSHAKE_SPARED.saturating_sub(oldest.since.elapsed());
    if !spared.is_zero() {
        return spared;
    }
    // Its thread finds the connection closed, gives up the place and wakes us.
    let _ = shutdown(&oldest.socket, Shutdown::Both);
    HANDSHAKE_SPARED
}

/// Forgets sessions that have ended, and with them their sockets.
fn reap(sessions: &mut Vec<Session>) {
    sessions.retain(|session| !session.thread.is_finished());
}

fn start_session(socket: OwnedFd, service: &Arc<Service>, sessions: &Mutex<Vec<Session>>) {
    let (socket, since) = (Arc::new(socket), Instant::now());
    let in_handshake = Arc::new(AtomicBool::new(true));
    service.handshakes.fetch_add(1, Ordering::AcqRel);
    let thread = std::thread::Builder::new().name("rudder-tcp-serve".into()).stack_size(STACK_BYTES).spawn({
        let (socket, service, in_handshake) = (Arc::clone(&socket), Arc::clone(service), Arc::clone(&in_handshake));
        move || {
            let admitted = service.admit(&socket);
            in_handshake.store(false, Ordering::Release);
            service.handshakes.fetch_sub(1, Ordering::AcqRel);
            service.waker.wake();
            if admitted {
                serve(&socket, &service);
                service.served.fetch_sub(1, Ordering::AcqRel);
            }
            let _ = shutdown(&socket, Shutdown::Both);
        }
    });
    let mut sessions = sessions.lock().unwrap_or_else(PoisonError::into_inner);
    reap(&mut sessions);
    match thread {
        Ok(thread) => sessions.push(Session { socket, thread, since, in_handshake }),
        // The system has no thread to spare: the peer sees its connection close and may try again.
        Err(_) => {
            service.handshakes.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

impl Service {
    /// The handshake; true once the peer has proved itself and there is room for it.
    fn admit(&self, socket: &OwnedFd) -> bool {
        let deadline = Instant::now() + self.connect_timeout;
        let mut hello = [0; HELLO_BYTES];
        if !receive_by(socket, &mut hello, deadline) || !handshake::is_hello(&PROTOCOL, &hello) {
            return false;
        }
        let mut owner_nonce = [0; NONCE_BYTES];
        // The hello goes out to another version as well, which learns from it that there is one.
        if getrandom::fill(&mut owner_nonce).is_err()
            || !send_small(socket, &handshake::encode_hello(&PROTOCOL, &owner_nonce))
        {
            return false;
        }
        let Ok(asker_nonce) = handshake::decode_hello(&PROTOCOL, &hello) else { return false };
        let handshake = Handshake {
            protocol: &PROTOCOL,
            job: &self.job,
            owner_secret: &self.secret,
            asker_nonce: &asker_nonce,
            owner_nonce: &owner_nonce,
        };
        let mut proof = [0; PROOF_BYTES];
        if !receive_by(socket, &mut proof, deadline) || !handshake.verify(Side::Asker, &proof) {
            return false;
        }
        // A place is taken only where there is one: who is turned away must not cost the next its place.
        let taken = |served: usize| (served < self.connections_max).then_some(served + 1);
        let admitted = self.served.fetch_update(Ordering::AcqRel, Ordering::Acquire, taken).is_ok();
        let verdict = if admitted { Verdict::Welcome } else { Verdict::Busy };
        let answered = send_small(socket, &verdict.encode(&handshake.proof(Side::Owner)))
            && socket::tune(socket, self.silence_timeout).is_ok()
            && set_socket_timeout(socket, Timeout::Recv, None).is_ok()
            && set_socket_timeout(socket, Timeout::Send, Some(self.silence_timeout)).is_ok();
        if admitted && !answered {
            self.served.fetch_sub(1, Ordering::AcqRel);
        }
        admitted && answered
    }
}

/// Requests as they come in: one receive may bring several, or half of one.
struct Inbox {
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

impl Inbox {
    fn new() -> Self {
        Self { buffer: vec![0; REQUEST_BYTES + 8 * REQUEST_ROWS_MAX], start: 0, end: 0 }
    }

    /// Waits until so many bytes are there; no more than the buffer's size are ever asked for.
    fn fill(&mut self, socket: &OwnedFd, bytes: usize) -> rustix::io::Result<()> {
        if self.start + bytes > self.buffer.len() {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        while self.end - self.start < bytes {
            match recv(socket, &mut self.buffer[self.end..], RecvFlags::empty()) {
                Ok((0, _)) => return Err(Errno::CONNRESET),
                Ok((received, _)) => self.end += received,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(())
    }

    fn take(&mut self, bytes: usize) -> &[u8] {
        let from = self.start;
        self.start += bytes;
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
        &self.buffer[from..from + bytes]
    }
}

/// Answers requests until the peer leaves or breaks the protocol.
fn serve(socket: &OwnedFd, service: &Service) {
    let mut inbox = Inbox::new();
    let mut rows: Vec<u64> = Vec::with_capacity(REQUEST_ROWS_MAX);
    let mut packer = Packer::new();
    while !service.closing.load(Ordering::Acquire) {
        let Some(request) = receive_request(socket, &mut inbox, &mut rows) else { return };
        if answer(socket, service, &request, &rows, &mut packer).is_err() {
            return;
        }
    }
}

fn receive_request(socket: &OwnedFd, inbox: &mut Inbox, rows: &mut Vec<u64>) -> Option<Request> {
    inbox.fill(socket, REQUEST_BYTES).ok()?;
    let request = Request::decode(inbox.take(REQUEST_BYTES).try_into().ok()?).ok()?;
    inbox.fill(socket, request.index_list_bytes()).ok()?;
    index_list::decode(inbox.take(request.index_list_bytes()), request.index_bytes == 8, rows);
    Some(request)
}

fn answer(
    socket: &OwnedFd,
    service: &Service,
    request: &Request,
    rows: &[u64],
    packer: &mut Packer,
) -> rustix::io::Result<()> {
    let exported = service.exports.find(request.region, request.version);
    let source = exported.as_ref().map(|exported| Source {
        exported,
        version: request.version,
        row_bytes: request.row_bytes as usize,
    });
    let status = match &source {
        None => Status::StaleRegion,
        // The greatest of all rather than the first that is too great: this compiles to a few vector instructions.
        Some(source) if rows.iter().copied().max().is_some_and(|greatest| greatest >= source.rows()) => {
            Status::OutOfRegion { region_bytes: source.exported.memory.bytes() as u64 }
        }
        Some(source) => Status::Rows { payload_bytes: rows.len() as u64 * source.row_bytes as u64 },
    };
    let head = Reply { sequence: request.sequence, status }.encode();
    match (source, status) {
        // SAFETY: every row was found to lie within the memory.
        (Some(source), Status::Rows { .. }) => unsafe { packer.send_rows(socket, &head, &source, rows) },
        _ => packer.send_head(socket, head),
    }
}

/// What a reply is read from; the borrow keeps the memory alive.
struct Source<'a> {
    exported: &'a Exported,
    version: u64,
    row_bytes: usize,
}

impl Source<'_> {
    fn rows(&self) -> u64 {
        (self.exported.memory.bytes() / self.row_bytes) as u64
    }

    /// The first byte of a row.
    ///
    /// # Safety
    /// The row lies within the memory.
    unsafe fn row(&self, row: u64) -> *mut u8 {
        // SAFETY: this function's contract.
        unsafe { self.exported.memory.base().add(row as usize * self.row_bytes) }
    }

    /// Whether what was read so far is of the version that was asked for. Where it is not, the connection ends: the head has promised
    /// rows, and to end is the only way left to say that they will not come.
    fn check(&self) -> rustix::io::Result<()> {
        if self.exported.version.get_after_reading() == self.version { Ok(()) } else { Err(Errno::STALE) }
    }
}

/// Sends replies by way of a staging buffer: rows sent in place could change between the check of their version and the send.
struct Packer {
    staging: Vec<u8>,
    /// 0, 1, 2, …: where packed rows go.
    order: Vec<u32>,
    pieces: Pieces,
}

impl Packer {
    fn new() -> Self {
        Self { staging: vec![0; STAGING_BYTES], order: (0..REQUEST_ROWS_MAX as u32).collect(), pieces: Pieces::new() }
    }

    fn send_head(&mut self, socket: &OwnedFd, mut head: [u8; REPLY_BYTES]) -> rustix::io::Result<()> {
        self.pieces.clear();
        self.pieces.push(head.as_mut_ptr(), head.len());
        // SAFETY: the one piece is a local array.
        unsafe { self.pieces.send_all(socket.as_fd()) }
    }

    /// # Safety
    /// The rows lie within the source.
    unsafe fn send_rows(
        &mut self,
        socket: &OwnedFd,
        head: &[u8; REPLY_BYTES],
        source: &Source<'_>,
        rows: &[u64],
    ) -> rustix::io::Result<()> {
        self.staging[..REPLY_BYTES].copy_from_slice(head);
        // SAFETY: this function's contract.
        unsafe {
            if source.row_bytes <= STAGING_BYTES - REPLY_BYTES {
                self.send_packed(socket, source, rows)
            } else {
                self.send_split(socket, source, rows)
            }
        }
    }

    /// # Safety
    /// The rows lie within the source; the head is in the staging buffer, which takes at least one row beside it.
    unsafe fn send_packed(
        &mut self,
        socket: &OwnedFd,
        source: &Source<'_>,
        mut rows: &[u64],
    ) -> rustix::io::Result<()> {
        let row_bytes = source.row_bytes;
        let mut filled = REPLY_BYTES;
        while !rows.is_empty() {
            let (now, later) = rows.split_at(rows.len().min((self.staging.len() - filled) / row_bytes));
            // SAFETY: the rows lie within the source; the buffer has room for as many as were split off, one after the other.
            unsafe {
                let base = source.exported.memory.base();
                let to = self.staging.as_mut_ptr().add(filled);
                copy::gather(base, row_bytes, now, &self.order, to, row_bytes);
            }
            self.send_staged(socket, source, filled + now.len() * row_bytes)?;
            (filled, rows) = (0, later);
        }
        Ok(())
    }

    /// Sends rows that the buffer does not hold whole, piece by piece.
    ///
    /// # Safety
    /// The rows lie within the source; the head is in the staging buffer.
    unsafe fn send_split(&mut self, socket: &OwnedFd, source: &Source<'_>, rows: &[u64]) -> rustix::io::Result<()> {
        let mut filled = REPLY_BYTES;
        for &row in rows {
            let mut done = 0;
            while done < source.row_bytes {
                let bytes = (source.row_bytes - done).min(self.staging.len() - filled);
                // SAFETY: the row lies within the source and has so many bytes left; the buffer has room for them.
                unsafe {
                    let from = source.row(row).add(done);
                    copy::gather(from, bytes, &[0], &[0], self.staging.as_mut_ptr().add(filled), bytes);
                }
                self.send_staged(socket, source, filled + bytes)?;
                (filled, done) = (0, done + bytes);
            }
        }
        Ok(())
    }

    /// Sends what is staged, once it is known to be of the version that was asked for.
    fn send_staged(&mut self, socket: &OwnedFd, source: &Source<'_>, bytes: usize) -> rustix::io::Result<()> {
        source.check()?;
        self.pieces.clear();
        self.pieces.push(self.staging.as_mut_ptr(), bytes);
        // SAFETY: the one piece lies in the staging buffer.
        unsafe { self.pieces.send_all(socket.as_fd()) }
    }
}

#[cfg(test)]
mod tests {
    //! Goal: rows of a region that its owner has let go of are never sent as if they were good.
    //! Method: the registration ends between the look-up of a request's region and the check before its rows are sent.

    use super::*;
    use crate::memory::{Memory, Version};

    #[test]
    fn a_request_under_way_hears_of_the_regions_end() {
        let exports = Arc::new(Exports::default());
        let memory = Arc::new(Memory::allocate(64).unwrap());
        let registration = exports.add(memory, Version::new().unwrap());
        let exported = exports.find(registration.number(), 0).unwrap();
        let source = Source { exported: &exported, version: 0, row_bytes: 64 };
        assert_eq!(source.check(), Ok(()));
        drop(registration);
        assert_eq!(source.check(), Err(Errno::STALE));
    }
}
