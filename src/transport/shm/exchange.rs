//! How memory files get from their owner to its peers.
//!
//! One request and one answer a connection, over a Unix socket with an abstract, random name. The name shows in /proc/net/unix, so
//! that it proves nothing: a peer must be of our user and hold the secret that the job's bootstrap spread with the address.
//!
//! One thread hears a bounded number of connections at once and waits for none: a silent one costs a place for a while and nobody's time.

use super::failed;
use crate::error::Result;
use crate::listening::FailedAccepts;
use crate::memory::{Memory, Version};
use crate::transport::token::{self, Fields};
use crate::transport::{MappedRegion, Waker};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{SealFlags, fcntl_get_seals};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout, socket_peercred};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, connect, listen,
    recvmsg, sendmsg, socket_with,
};
use sha2::{Digest, Sha256};
use std::collections::{HashMap, VecDeque};
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const MAGIC: [u8; 6] = *b"rd-shm";
const PROTOCOL: u16 = 1;
/// For the whole of an import. An owner answers as soon as its thread runs: this is for a host that is busy with something else.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// A request follows its connection at once, or never.
const ASK_WITHIN: Duration = Duration::from_secs(2);
/// Connections that have not asked yet; where there are more the oldest goes.
const SILENT_MAX: usize = 64;
const BACKLOG: i32 = 128;

const GRANTED_SEALED: u8 = 1;
const GRANTED_FILE: u8 = 2;
const UNKNOWN_REGION: u8 = 3;

/// How a rank's server is reached.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Address {
    /// The socket's abstract name.
    name: [u8; 16],
    secret: [u8; 16],
    /// Which host, and which of its network namespaces: abstract names are seen within one only.
    host: [u8; 8],
}

impl Address {
    fn new() -> Result<Self> {
        let (mut name, mut secret) = ([0; 16], [0; 16]);
        let filled = getrandom::fill(&mut name).and_then(|()| getrandom::fill(&mut secret));
        filled.map_err(|e| failed(format!("the system gives no random bytes: {e}")))?;
        Ok(Self { name, secret, host: host() })
    }

    /// What tokens call their issuer by; says nothing about the secret.
    pub(super) fn key(&self) -> [u8; 16] {
        self.name
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        [&MAGIC[..], &PROTOCOL.to_le_bytes(), &self.name, &self.secret, &self.host].concat()
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, String> {
        let mut fields = open(bytes)?;
        let address = Self { name: fields.take()?, secret: fields.take()?, host: fields.take()? };
        fields.end().map(|()| address)
    }

    fn socket(&self) -> rustix::io::Result<SocketAddrUnix> {
        let hex: String = self.name.iter().map(|byte| format!("{byte:02x}")).collect();
        SocketAddrUnix::new_abstract_name(format!("rudder-{hex}").as_bytes())
    }
}

/// A digest of what must be equal for two processes to reach each other's sockets.
pub(crate) fn host() -> [u8; 8] {
    let boot = std::fs::read("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let network = std::fs::read_link("/proc/self/ns/net").unwrap_or_default();
    let digest = Sha256::new().chain_update(boot).chain_update(network.as_os_str().as_encoded_bytes()).finalize();
    *digest.first_chunk().expect("a digest has 32 bytes")
}

/// What a region is asked for by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Token {
    /// The issuer's [`Address::key`].
    pub(super) owner: [u8; 16],
    pub(super) region: u64,
    pub(super) bytes: u64,
}

impl Token {
    pub(super) fn encode(&self) -> Vec<u8> {
        let version = PROTOCOL.to_le_bytes();
        let (region, bytes) = (self.region.to_le_bytes(), self.bytes.to_le_bytes());
        token::seal([&MAGIC[..], &version, &self.owner, &region, &bytes].concat())
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, String> {
        let mut fields = open(token::unseal(bytes)?)?;
        let (owner, region, bytes) = (fields.take()?, fields.take()?, fields.take()?);
        fields.end()?;
        Ok(Self { owner, region: u64::from_le_bytes(region), bytes: u64::from_le_bytes(bytes) })
    }
}

/// Reads the head that all of this transport's messages share.
fn open(bytes: &[u8]) -> Result<Fields<'_>, String> {
    let mut fields = Fields::new(bytes);
    if fields.take()? != MAGIC {
        return Err("not of this transport".into());
    }
    match u16::from_le_bytes(fields.take()?) {
        PROTOCOL => Ok(fields),
        other => Err(format!("protocol version {other}, this is version {PROTOCOL}")),
    }
}

/// The regions that peers may ask for.
#[derive(Default)]
pub(super) struct Exports {
    regions: Mutex<HashMap<u64, Export>>,
}

struct Export {
    file: Arc<OwnedFd>,
    sealed: bool,
    bytes: u64,
    version: Version,
}

impl Exports {
    /// Exports memory that has a file until the registration is dropped.
    pub(super) fn insert(self: &Arc<Self>, id: u64, memory: Arc<Memory>, version: Version) -> Registration {
        if let Some(file) = memory.file() {
            let (sealed, bytes) = (memory.is_sealed(), memory.bytes() as u64);
            let export = Export { file: file.clone(), sealed, bytes, version: version.clone() };
            self.regions.lock().unwrap_or_else(PoisonError::into_inner).insert(id, export);
        }
        Registration { exports: Arc::downgrade(self), id, version, process: std::process::id() }
    }
}

/// Ends an export: peers that map it find it retired, and no other can ask for it.
pub(super) struct Registration {
    exports: Weak<Exports>,
    id: u64,
    version: Version,
    /// Whose export this is: to a forked child it is nothing.
    process: u32,
}

impl Drop for Registration {
    fn drop(&mut self) {
        if std::process::id() != self.process {
            // The version page is shared with the parent, whose export goes on.
            return;
        }
        self.version.set(Version::RETIRED);
        if let Some(exports) = self.exports.upgrade() {
            exports.regions.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.id);
        }
    }
}

/// The thread that answers imports, ended by drop.
pub(super) struct Server {
    stop: Arc<AtomicBool>,
    waker: Waker,
    thread: Option<JoinHandle<()>>,
    /// Whose thread this is: a forked child does not have it.
    process: u32,
}

impl Server {
    pub(super) fn start(exports: Arc<Exports>) -> Result<(Address, Self)> {
        let address = Address::new()?;
        let listener = listener(&address).map_err(|e| failed(format!("cannot listen on a Unix socket: {e}")))?;
        let waker = Waker::new().map_err(|e| failed(format!("cannot create an event: {e}")))?;
        let stop = Arc::new(AtomicBool::new(false));
        let thread = std::thread::Builder::new().name("rudder-shm".into()).spawn({
            let (secret, waker, stop) = (address.secret, waker.clone(), stop.clone());
            move || serve(&listener, &secret, &exports, &waker, &stop)
        });
        let thread = thread.map_err(|e| failed(format!("cannot start a thread: {e}")))?;
        Ok((address, Self { stop, waker, thread: Some(thread), process: std::process::id() }))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if std::process::id() != self.process {
            // The event is shared with the parent, whose thread it would wake.
            std::mem::forget(self.thread.take());
            return;
        }
        self.stop.store(true, Ordering::Release);
        self.waker.wake();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn listener(address: &Address) -> rustix::io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    bind(&socket, &address.socket()?)?;
    listen(&socket, BACKLOG)?;
    Ok(socket)
}

/// A connection that has not asked yet.
struct Silent {
    peer: OwnedFd,
    since: Instant,
}

fn serve(listener: &OwnedFd, secret: &[u8; 16], exports: &Exports, waker: &Waker, stop: &AtomicBool) {
    let mut silent: VecDeque<Silent> = VecDeque::with_capacity(SILENT_MAX);
    let mut failed_accepts = FailedAccepts::new(super::NAME);
    while !stop.load(Ordering::Acquire) {
        let oldest = silent.front().map(|oldest| ASK_WITHIN.saturating_sub(oldest.since.elapsed()));
        wait(listener, waker, &silent, oldest);
        match accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
            Ok(peer) => {
                failed_accepts.end();
                silent.push_back(Silent { peer, since: Instant::now() });
            }
            Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => {}
            Err(cause) => {
                // Out of descriptors, most likely: the peer's connection stays queued, so that trying at once would spin.
                failed_accepts.note(cause);
                waker.wait(Duration::from_millis(100));
            }
        }
        // Who has asked is answered before anybody is sent away.
        silent.retain(|Silent { peer, since }| match answer(peer, secret, exports) {
            Ok(Heard::Nothing) => since.elapsed() < ASK_WITHIN,
            Ok(Heard::Request) => false,
            Err(cause) => {
                tracing::warn!("shm: refused a connection: {cause}");
                false
            }
        });
        if silent.len() >= SILENT_MAX {
            silent.pop_front();
        }
    }
}

/// Waits for a connection, a request or a wake-up.
fn wait(listener: &OwnedFd, waker: &Waker, silent: &VecDeque<Silent>, at_most: Option<Duration>) {
    let mut ready = Vec::with_capacity(2 + silent.len());
    ready.push(PollFd::new(listener, PollFlags::IN));
    ready.push(PollFd::from_borrowed_fd(waker.fd(), PollFlags::IN));
    ready.extend(silent.iter().map(|silent| PollFd::new(&silent.peer, PollFlags::IN)));
    // Rounded up: a wait that ends a little early would be tried again at once.
    let at_most = at_most.and_then(|wait| Timespec::try_from(wait + Duration::from_millis(1)).ok());
    let _ = poll(&mut ready, at_most.as_ref());
}

/// Makes a call that may wait, until the deadline. A signal ends such a call on a socket with a time limit even where its handler asks
/// for restarts (signal(7)), so that it is made again here.
fn by<T>(
    deadline: Instant,
    socket: &OwnedFd,
    limit: Timeout,
    call: impl Fn() -> rustix::io::Result<T>,
) -> rustix::io::Result<T> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        // A zero timeout would mean none.
        if left.is_zero() {
            return Err(Errno::AGAIN);
        }
        set_socket_timeout(socket, limit, Some(left))?;
        match call() {
            Err(Errno::INTR) => {}
            outcome => return outcome,
        }
    }
}

/// A request: magic, version, secret, region.
const REQUEST_BYTES: usize = 6 + 2 + 16 + 8;
/// An answer: status, bytes.
const ANSWER_BYTES: usize = 1 + 8;

/// What a connection had to say.
enum Heard {
    Nothing,
    Request,
}

/// Answers a request, if there is one. The answer is small and the first: a socket that does not take it at once is broken.
fn answer(peer: &OwnedFd, secret: &[u8; 16], exports: &Exports) -> Result<Heard, String> {
    let uid = socket_peercred(peer).map_err(|e| e.to_string())?.uid;
    if uid != rustix::process::geteuid() {
        return Err(format!("the peer is of user {}", uid.as_raw()));
    }
    let mut request = [0; REQUEST_BYTES];
    let length = match rustix::net::recv(peer, &mut request, RecvFlags::empty()) {
        Ok((length, _)) => length,
        Err(Errno::AGAIN | Errno::INTR) => return Ok(Heard::Nothing),
        Err(cause) => return Err(cause.to_string()),
    };
    let mut fields = open(&request[..length])?;
    let proof: [u8; 16] = fields.take()?;
    if proof.iter().zip(secret).fold(0, |differs, (a, b)| differs | (a ^ b)) != 0 {
        return Err("the peer does not hold the secret".into());
    }
    let id = u64::from_le_bytes(fields.take()?);
    // Cloned out, so that the lock is not held across the send.
    let export = exports.regions.lock().unwrap_or_else(PoisonError::into_inner).get(&id).map(|export| {
        let status = if export.sealed { GRANTED_SEALED } else { GRANTED_FILE };
        (status, export.bytes, export.file.clone(), export.version.page().clone())
    });
    let sent = match &export {
        Some((status, bytes, file, page)) => match page.file() {
            Some(page) => send(peer, *status, *bytes, &[file.as_fd(), page.as_fd()]),
            None => send(peer, UNKNOWN_REGION, 0, &[]),
        },
        None => send(peer, UNKNOWN_REGION, 0, &[]),
    };
    sent.map(|()| Heard::Request).map_err(|e| e.to_string())
}

fn send(peer: &OwnedFd, status: u8, bytes: u64, files: &[rustix::fd::BorrowedFd<'_>]) -> rustix::io::Result<()> {
    let mut message = [status; ANSWER_BYTES];
    message[1..].copy_from_slice(&bytes.to_le_bytes());
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !files.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(files));
    }
    sendmsg(peer, &[IoSlice::new(&message)], &mut control, SendFlags::NOSIGNAL).map(|_| ())
}

/// Asks the owner for a region and maps it.
pub(super) fn request(address: &Address, token: &Token) -> Result<MappedRegion, String> {
    if address.host != host() {
        return Err("it is on another host, or in another network namespace".into());
    }
    let gone = |e: Errno| match e {
        Errno::AGAIN => format!(
            "its owner does not answer within {ANSWER_WITHIN:?}: is its host overloaded, or the process stopped?"
        ),
        e => format!("its owner does not answer: {e}"),
    };
    let flags = SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).map_err(gone)?;
    let deadline = Instant::now() + ANSWER_WITHIN;
    let name = address.socket().map_err(gone)?;
    by(deadline, &socket, Timeout::Send, || connect(&socket, &name)).map_err(gone)?;
    let ours = rustix::process::geteuid();
    if socket_peercred(&socket).map_err(gone)?.uid != ours {
        return Err("its owner is of another user".into());
    }
    let request = [&MAGIC[..], &PROTOCOL.to_le_bytes(), &address.secret, &token.region.to_le_bytes()].concat();
    let send = || rustix::net::send(&socket, &request, SendFlags::NOSIGNAL);
    by(deadline, &socket, Timeout::Send, send).map_err(gone)?;
    let (status, bytes, files) = by(deadline, &socket, Timeout::Recv, || receive(&socket)).map_err(gone)?;
    let Ok([rows, page]) = <[OwnedFd; 2]>::try_from(files) else {
        return Err(match status {
            Some(UNKNOWN_REGION) => "its owner does not export it any more".into(),
            _ => "its owner answers with something else".into(),
        });
    };
    if bytes != token.bytes {
        return Err(format!("it speaks of {} bytes, the owner of {bytes}", token.bytes));
    }
    if status != Some(GRANTED_FILE) {
        require_seals(&rows)?;
    }
    require_seals(&page)?;
    let length = usize::try_from(bytes).map_err(|e| e.to_string())?;
    let memory = Memory::map(Arc::new(rows), length).map_err(|e| e.to_string())?;
    let page = Memory::map(Arc::new(page), 8).map_err(|e| e.to_string())?;
    let version = Version::mapped(Arc::new(page)).ok_or("its version page is too small")?;
    Ok(MappedRegion { memory: Arc::new(memory), version })
}

/// Without these a peer could shrink the file and a read would be a SIGBUS.
fn require_seals(file: &OwnedFd) -> Result<(), String> {
    let seals = fcntl_get_seals(file).map_err(|e| format!("its memory file has no seals: {e}"))?;
    let needed = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
    if seals.contains(needed) { Ok(()) } else { Err("its memory file is not sealed".into()) }
}

type Answer = (Option<u8>, u64, Vec<OwnedFd>);

fn receive(socket: &OwnedFd) -> rustix::io::Result<Answer> {
    let mut message = [0; ANSWER_BYTES];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let answer = recvmsg(socket, &mut [IoSliceMut::new(&mut message)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let mut files = Vec::new();
    for received in control.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = received {
            files.extend(descriptors);
        }
    }
    let whole = answer.bytes == ANSWER_BYTES && !answer.flags.contains(ReturnFlags::CTRUNC);
    let bytes = u64::from_le_bytes(*message.last_chunk().expect("an answer has 9 bytes"));
    Ok((whole.then_some(message[0]), bytes, files))
}

#[cfg(test)]
mod tests {
    //! Goal: an asker is served whatever others do or leave undone, and whatever signals it gets.
    //! Method: more strangers than there are places connect and say nothing, or nonsense, then a region is asked for; signals rain on an
    //! asker whose owner is slow.

    use super::*;

    #[test]
    fn silent_strangers_delay_nobody() {
        let exports = Arc::new(Exports::default());
        let (address, _server) = Server::start(exports.clone()).unwrap();
        let memory = Arc::new(Memory::allocate(100).unwrap());
        let _registration = exports.insert(1, memory, Version::new().unwrap());
        let token = Token { owner: address.key(), region: 1, bytes: 100 };
        let strangers: Vec<OwnedFd> = (0..SILENT_MAX + 20)
            .map(|number| {
                let socket =
                    socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
                connect(&socket, &address.socket().unwrap()).unwrap();
                if number % 10 == 0 {
                    rustix::net::send(&socket, b"nonsense", SendFlags::NOSIGNAL).unwrap();
                }
                socket
            })
            .collect();
        let begin = Instant::now();
        for _ in 0..3 {
            request(&address, &token).unwrap();
        }
        assert!(begin.elapsed() < Duration::from_secs(1), "{:?}", begin.elapsed());
        drop(strangers);
        request(&address, &token).unwrap();
    }

    #[test]
    fn signals_do_not_end_an_import() {
        extern "C" fn ignore(_signal: libc::c_int) {}
        // SAFETY: the handler does nothing, and no other test of this process sends the signal.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            (action.sa_sigaction, action.sa_flags) = (ignore as *const () as usize, libc::SA_RESTART);
            assert_eq!(libc::sigaction(libc::SIGUSR2, &action, std::ptr::null_mut()), 0);
        }
        let (address, exports) = (Address::new().unwrap(), Arc::new(Exports::default()));
        let listener = listener(&address).unwrap();
        let memory = Arc::new(Memory::allocate(100).unwrap());
        let _registration = exports.insert(1, memory, Version::new().unwrap());
        let token = Token { owner: address.key(), region: 1, bytes: 100 };
        let (waker, stop) = (Waker::new().unwrap(), AtomicBool::new(false));
        std::thread::scope(|scope| {
            // SAFETY: names the calling thread, which outlives the scope.
            let asker = unsafe { libc::pthread_self() };
            let (listener, exports, address, waker, stop) = (&listener, &exports, &address, &waker, &stop);
            scope.spawn(move || {
                for _ in 0..20 {
                    std::thread::sleep(Duration::from_millis(10));
                    // SAFETY: the thread waits in this scope.
                    unsafe { libc::pthread_kill(asker, libc::SIGUSR2) };
                }
                serve(listener, &address.secret, exports, waker, stop);
            });
            let imported = request(address, &token).map(drop);
            stop.store(true, Ordering::Release);
            waker.wake();
            assert_eq!(imported, Ok(()));
        });
    }
}
