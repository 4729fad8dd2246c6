//! The owner's side: a listener that gives each reader's queue pair an end to read from, and nothing to do afterwards.
//!
//! Reads cost the owner no instruction. Its one thread waits for readers to come and to go: the socket over which a connection was
//! arranged stays open, and its end is the end of the queue pair, on both sides; a process that dies closes it however it dies.

use super::device::Device;
use super::queue::{CompletionQueue, QueuePair, Role};
use super::wire::{OFFER_BYTES, Offer, PROTOCOL};
use super::{VerbsConfig, failure};
use crate::error::{Result, TransferError};
use crate::transport::Waker;
use crate::transport::handshake::{
    Address, HELLO_BYTES, Handshake, NONCE_BYTES, PROOF_BYTES, Side, VERDICT_BYTES, Verdict, decode_hello,
    encode_hello, is_hello, receive_by, send_small,
};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fd::{AsFd, BorrowedFd};
use rustix::net::sockopt::{
    set_socket_keepalive, set_tcp_keepcnt, set_tcp_keepidle, set_tcp_keepintvl, set_tcp_nodelay,
};
use std::io::ErrorKind;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Connections that may be in their handshake at once; further ones wait in the listener's backlog.
const HANDSHAKES_MAX: usize = 32;
const STACK_BYTES: usize = 256 << 10;
/// A host that vanished without a word is noticed after about so long.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// After accepting failed for want of descriptors or memory.
const PAUSE: Duration = Duration::from_millis(20);

/// The socket over which a connection was arranged: its end is the connection's, also where a forked child still holds it.
pub struct Lifeline {
    socket: Arc<TcpStream>,
    /// Whose connection this is.
    process: u32,
}

impl Lifeline {
    pub fn new(socket: Arc<TcpStream>) -> Self {
        Self { socket, process: std::process::id() }
    }
}

impl AsFd for Lifeline {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Lifeline {
    fn drop(&mut self) {
        if std::process::id() == self.process {
            // A peer that has left has shut it down already.
            let _ = self.socket.shutdown(Shutdown::Both);
        }
    }
}

/// A reader's connection, once it is made.
struct Session {
    // The queue pair ends before the reader can learn of it.
    #[expect(dead_code, reason = "held for its Drop, which ends the reader's access")]
    queue: QueuePair,
    lifeline: Lifeline,
}

/// A connection in its handshake.
struct Arrival {
    socket: Arc<TcpStream>,
    thread: JoinHandle<()>,
}

/// What the threads of an owner share.
struct Service {
    config: VerbsConfig,
    secret: [u8; NONCE_BYTES],
    /// Of all queue pairs that serve: none of them ever completes anything.
    completions: Arc<CompletionQueue>,
    arrivals: Mutex<Vec<Arrival>>,
    handshakes: AtomicUsize,
    /// Sessions that the accepting thread has not taken over yet.
    admitted: Mutex<Vec<Session>>,
    served: AtomicUsize,
    closing: AtomicBool,
    waker: Waker,
}

/// A listener with its threads.
pub struct Owner {
    service: Arc<Service>,
    acceptor: Option<JoinHandle<()>>,
    address: SocketAddr,
    /// Whose threads these are: a forked child has none of them.
    process: u32,
}

impl Owner {
    pub fn listen(config: &VerbsConfig, secret: [u8; NONCE_BYTES], device: &Arc<Device>) -> Result<Self> {
        if config.listen.is_unspecified() {
            return Err(failure(format!("{} is no address that peers can dial: name an interface's", config.listen)));
        }
        let refused = |e| failure(format!("cannot listen on {}: {e}", config.listen));
        let listener = TcpListener::bind((config.listen, 0)).map_err(refused)?;
        listener.set_nonblocking(true).map_err(refused)?;
        let address = listener.local_addr().map_err(refused)?;
        let service = Arc::new(Service {
            config: config.clone(),
            secret,
            completions: CompletionQueue::new(device, 1, None)?,
            arrivals: Mutex::default(),
            handshakes: AtomicUsize::new(0),
            admitted: Mutex::default(),
            served: AtomicUsize::new(0),
            closing: AtomicBool::new(false),
            waker: Waker::new().map_err(|e| failure(format!("no event descriptor: {e}")))?,
        });
        let acceptor = std::thread::Builder::new()
            .name("rudder-verbs-accept".into())
            .stack_size(STACK_BYTES)
            .spawn({
                let service = Arc::clone(&service);
                move || accept_all(&listener, &service)
            })
            .map_err(|e| failure(format!("no thread to accept connections: {e}")))?;
        Ok(Self { service, acceptor: Some(acceptor), address, process: std::process::id() })
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
            // The thread, the locks it may hold and the queue pairs are the parent's.
            std::mem::forget(self.acceptor.take());
            return;
        }
        self.service.closing.store(true, Ordering::Release);
        self.service.waker.wake();
        // A thread that panicked has nothing left to end.
        let _ = self.acceptor.take().map(JoinHandle::join);
        for arrival in std::mem::take(&mut *locked(&self.service.arrivals)) {
            let _ = arrival.socket.shutdown(Shutdown::Both);
            let _ = arrival.thread.join();
        }
        locked(&self.service.admitted).clear();
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Serves the listener until the owner closes; its sessions end with it.
fn accept_all(listener: &TcpListener, service: &Arc<Service>) {
    let mut sessions: Vec<Session> = Vec::new();
    while !service.closing.load(Ordering::Acquire) {
        sessions.append(&mut locked(&service.admitted));
        let over = wait(listener, service, &sessions);
        for at in over.into_iter().rev() {
            drop(sessions.swap_remove(at));
            service.served.fetch_sub(1, Ordering::AcqRel);
        }
        locked(&service.arrivals).retain(|arrival| !arrival.thread.is_finished());
        while service.handshakes.load(Ordering::Acquire) < HANDSHAKES_MAX {
            match listener.accept() {
                Ok((socket, _)) => begin_handshake(socket, service),
                Err(cause) if cause.kind() == ErrorKind::WouldBlock => break,
                Err(cause) if matches!(cause.kind(), ErrorKind::Interrupted | ErrorKind::ConnectionAborted) => {}
                Err(_) => {
                    std::thread::sleep(PAUSE);
                    break;
                }
            }
        }
    }
}

/// Waits for a reader to come or to go, and says which sessions are over, in ascending order.
fn wait(listener: &TcpListener, service: &Service, sessions: &[Session]) -> Vec<usize> {
    let mut fds = Vec::with_capacity(sessions.len() + 2);
    fds.push(PollFd::from_borrowed_fd(service.waker.fd(), PollFlags::IN));
    fds.extend(sessions.iter().map(|session| PollFd::new(&session.lifeline, PollFlags::IN)));
    // With all places taken by handshakes the next reader waits; the end of each calls the waker.
    if service.handshakes.load(Ordering::Acquire) < HANDSHAKES_MAX {
        fds.push(PollFd::new(listener, PollFlags::IN));
    }
    let _ = poll(&mut fds, None);
    service.waker.drain();
    // A reader says nothing more once it is connected: whatever is there is its end.
    let readable = |at: &usize| !fds[at + 1].revents().is_empty();
    (0..sessions.len()).filter(readable).collect()
}

fn begin_handshake(socket: TcpStream, service: &Arc<Service>) {
    let socket = Arc::new(socket);
    service.handshakes.fetch_add(1, Ordering::AcqRel);
    let thread = std::thread::Builder::new().name("rudder-verbs-greet".into()).stack_size(STACK_BYTES).spawn({
        let (socket, service) = (Arc::clone(&socket), Arc::clone(service));
        move || {
            match service.admit(&socket) {
                Some(session) => locked(&service.admitted).push(session),
                None => drop(Lifeline::new(socket)),
            }
            service.handshakes.fetch_sub(1, Ordering::AcqRel);
            service.waker.wake();
        }
    });
    match thread {
        Ok(thread) => locked(&service.arrivals).push(Arrival { socket, thread }),
        // The system has no thread to spare: the peer sees its connection close, and may try again.
        Err(_) => {
            service.handshakes.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

impl Service {
    /// The handshake; a session once the peer has proved itself and there is room for it.
    fn admit(&self, socket: &Arc<TcpStream>) -> Option<Session> {
        let deadline = Instant::now() + self.config.connect_timeout;
        socket.set_nonblocking(false).ok()?;
        let mut hello = [0; HELLO_BYTES];
        if !receive_by(socket, &mut hello, deadline) || !is_hello(&PROTOCOL, &hello) {
            return None;
        }
        let mut owner_nonce = [0; NONCE_BYTES];
        getrandom::fill(&mut owner_nonce).ok()?;
        // The hello goes out to another version as well, which learns from it that there is one.
        if !send_small(socket, &encode_hello(&PROTOCOL, &owner_nonce)) {
            return None;
        }
        let asker_nonce = decode_hello(&PROTOCOL, &hello).ok()?;
        let handshake = Handshake {
            protocol: &PROTOCOL,
            job: &self.config.secret,
            owner_secret: &self.secret,
            asker_nonce: &asker_nonce,
            owner_nonce: &owner_nonce,
        };
        let mut claim = [0; PROOF_BYTES + OFFER_BYTES];
        if !receive_by(socket, &mut claim, deadline) {
            return None;
        }
        let (proof, offer) = claim.split_first_chunk::<PROOF_BYTES>()?;
        if !handshake.verify(Side::Asker, proof) {
            return None;
        }
        let offer = Offer::decode(offer.first_chunk()?).ok()?;
        self.answer(socket, &handshake, &offer)
    }

    /// Makes our end of the connection and tells the reader of it.
    fn answer(&self, socket: &Arc<TcpStream>, handshake: &Handshake<'_>, offer: &Offer) -> Option<Session> {
        let proof = handshake.proof(Side::Owner);
        // A place is taken only where there is one: who is turned away must not cost the next its place.
        let taken = |served: usize| (served < self.config.queue_pairs_max).then_some(served + 1);
        if self.served.fetch_update(Ordering::AcqRel, Ordering::Acquire, taken).is_err() {
            send_small(socket, &answer_bytes(Verdict::Busy, &proof, &[0; OFFER_BYTES]));
            return None;
        }
        let queue = QueuePair::new(&self.completions, Role::Serves);
        let queue = queue.and_then(|queue| {
            queue
                .connect(offer)
                .map_err(|e| failure(format!("a queue pair cannot be connected to its reader: {e}")))?;
            Ok(queue)
        });
        let session = match queue {
            Ok(queue) => {
                let answer = answer_bytes(Verdict::Welcome, &proof, &queue.offer().encode());
                (send_small(socket, &answer) && watch(socket).is_ok())
                    .then(|| Session { queue, lifeline: Lifeline::new(Arc::clone(socket)) })
            }
            Err(cause) => {
                tracing::warn!("a reader is turned away: {cause}");
                send_small(socket, &answer_bytes(Verdict::Unable, &proof, &[0; OFFER_BYTES]));
                None
            }
        };
        if session.is_none() {
            self.served.fetch_sub(1, Ordering::AcqRel);
        }
        session
    }
}

fn answer_bytes(
    verdict: Verdict,
    proof: &[u8; PROOF_BYTES],
    offer: &[u8; OFFER_BYTES],
) -> [u8; VERDICT_BYTES + OFFER_BYTES] {
    let mut answer = [0; VERDICT_BYTES + OFFER_BYTES];
    answer[..VERDICT_BYTES].copy_from_slice(&verdict.encode(proof));
    answer[VERDICT_BYTES..].copy_from_slice(offer);
    answer
}

/// Lets a silent end of the other host show.
fn watch(socket: &TcpStream) -> rustix::io::Result<()> {
    const PROBES: u32 = 4;
    set_tcp_nodelay(socket, true)?;
    set_socket_keepalive(socket, true)?;
    set_tcp_keepidle(socket, SILENCE_MAX / (PROBES + 1))?;
    set_tcp_keepintvl(socket, SILENCE_MAX / (PROBES + 1))?;
    set_tcp_keepcnt(socket, PROBES)
}

/// The reader's side of the handshake: where the owner's end is, and the socket whose end is the connection's.
pub fn dial(address: &Address, config: &VerbsConfig, offer: &Offer) -> Result<(TcpStream, Offer), TransferError> {
    let deadline = Instant::now() + config.connect_timeout;
    let gone =
        |what: &str| TransferError::PeerGone(format!("{what} ({}, {:?})", address.socket, config.connect_timeout));
    let mut asker_nonce = [0; NONCE_BYTES];
    getrandom::fill(&mut asker_nonce).map_err(|e| TransferError::Io(format!("no random bytes: {e}")))?;
    let socket = TcpStream::connect_timeout(&address.socket, config.connect_timeout)
        .map_err(|e| TransferError::PeerGone(format!("cannot connect to {}: {e}", address.socket)))?;
    let mut hello = [0; HELLO_BYTES];
    if !send_small(&socket, &encode_hello(&PROTOCOL, &asker_nonce)) || !receive_by(&socket, &mut hello, deadline) {
        return Err(gone("no greeting came from the owner in time"));
    }
    let owner_nonce = decode_hello(&PROTOCOL, &hello).map_err(TransferError::Protocol)?;
    let handshake = Handshake {
        protocol: &PROTOCOL,
        job: &config.secret,
        owner_secret: &address.secret,
        asker_nonce: &asker_nonce,
        owner_nonce: &owner_nonce,
    };
    let claim = [&handshake.proof(Side::Asker)[..], &offer.encode()].concat();
    let mut answer = [0; VERDICT_BYTES + OFFER_BYTES];
    if !send_small(&socket, &claim) || !receive_by(&socket, &mut answer, deadline) {
        return Err(gone("the owner gives no answer to our proof, as where its job secret differs"));
    }
    let (verdict, theirs) = answer.split_at(VERDICT_BYTES);
    let verdict = verdict.first_chunk().and_then(Verdict::decode);
    match verdict {
        Some((_, proof)) if !handshake.verify(Side::Owner, proof) => {
            Err(TransferError::Protocol("the owner could not prove that it holds the job's secret".into()))
        }
        Some((Verdict::Welcome, _)) => {
            watch(&socket).map_err(|e| TransferError::Io(format!("a socket's options: {e}")))?;
            let theirs = theirs.first_chunk().map(Offer::decode).unwrap_or_else(|| Err("truncated".into()));
            Ok((socket, theirs.map_err(|cause| TransferError::Protocol(format!("the owner offers {cause}")))?))
        }
        Some((Verdict::Busy, _)) => {
            Err(TransferError::PeerGone(format!("it serves as many queue pairs as it may: {TO_FABRIC}")))
        }
        Some((Verdict::Unable, _)) => Err(TransferError::PeerGone(
            "its device cannot make a queue pair or finds no way to ours: its log says why; RUDDER_VERBS_GID chooses another GID, \
             and where queue pairs have run out the fabric transport does without"
                .into(),
        )),
        None => Err(TransferError::Protocol("the owner answered the handshake with an unknown verdict".into())),
    }
}

/// What to do where queue pairs run out.
pub const TO_FABRIC: &str =
    "use the fabric transport, whose endpoints reach any number of peers, or fewer channels (ranks or I/O threads)";
