//! One model a host: a thread that holds it serves the ranks of the host over a Unix socket.
//!
//! A frame is a length and JSON, both untrusted. Each rank has a reader of its own that blocks in the kernel, so that a rank that dies, stalls
//! in the middle of a frame or sends garbage costs its own connection and nothing else. The model's thread sees whole requests only.

use super::scorer::{LocalScorer, Scorer, ScorerLimits, model_error};
use crate::controller::stats::thread_cpu;
use crate::controller::threads::confine_process;
use crate::error::{Error, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use rustix::thread::{CpuSet, sched_setaffinity};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::*};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const MAX_FRAME: usize = 1 << 16;
/// Time for a whole frame to pass once it has begun.
const FRAME_DEADLINE: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(100);
/// The longest that a rank may wait for one answer.
const PATIENCE_MAX: Duration = Duration::from_secs(600);
const SHUTDOWN: Duration = Duration::from_secs(5);
/// Each rank has a thread and a place in the model's queue, which is made at once.
const CLIENTS_MAX: usize = 1024;

/// How to serve a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceConfig {
    /// The GGUF file.
    pub model: PathBuf,
    /// The socket to listen at; only this user may connect.
    pub socket: PathBuf,
    /// CPUs for the model's thread, outside those of the trainers; `None` leaves it to the system.
    pub cpus: Option<Vec<usize>>,
    /// Ranks that may be connected at once, 1 to 1024.
    pub clients: usize,
    /// Bounds on prompts; `prefixes` should be at least the host's number of ranks.
    pub limits: ScorerLimits,
    /// Time for the model to load.
    pub load_deadline: Duration,
}

impl ServiceConfig {
    /// A service for up to 64 ranks with the default bounds.
    pub fn new(model: impl Into<PathBuf>, socket: impl Into<PathBuf>) -> Self {
        Self {
            model: model.into(),
            socket: socket.into(),
            cpus: None,
            clients: 64,
            limits: ScorerLimits::default(),
            load_deadline: Duration::from_secs(60),
        }
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Request {
    prefix: String,
    text: String,
    labels: Vec<String>,
    /// How long the rank waits: a request that is older is not worth the model's time.
    patience: Duration,
}

#[derive(Debug, Serialize, Deserialize)]
struct Response {
    scores: std::result::Result<Vec<f32>, String>,
    cpu: Duration,
}

struct Job {
    request: Request,
    arrived: Instant,
    answer: SyncSender<Response>,
}

#[derive(Debug)]
struct State {
    stop: AtomicBool,
    clients: AtomicUsize,
    connections: Mutex<Vec<(u64, UnixStream)>>,
    cpu_nanos: AtomicU64,
    requests: AtomicU64,
    refused: AtomicU64,
}

impl State {
    fn connections(&self) -> std::sync::MutexGuard<'_, Vec<(u64, UnixStream)>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A model that is being served. Dropping it ends the service and removes the socket.
#[derive(Debug)]
pub struct LlmService {
    state: Arc<State>,
    socket: PathBuf,
    threads: Vec<JoinHandle<()>>,
    /// Whose threads and socket these are: a forked child has none of them.
    process: u32,
}

impl LlmService {
    /// Loads the model and begins to serve it; returns once ranks can connect.
    ///
    /// Sets `CANDLE_NUM_THREADS` to 1 where it is not set: no other thread may use the
    /// [environment](crate::controller::llm#the-environment) through C at the same moment.
    ///
    /// # Errors
    /// A setting is out of its bounds, the model cannot be loaded, or another service listens at the socket.
    pub fn start(config: &ServiceConfig) -> Result<Self> {
        if !(1..=CLIENTS_MAX).contains(&config.clients) {
            let clients = config.clients;
            return Err(Error::config(format!("model service for {clients} ranks: give 1 to {CLIENTS_MAX} clients")));
        }
        confine_process();
        let listener = listen(&config.socket, FRAME_DEADLINE)?;
        let state = Arc::new(State {
            stop: AtomicBool::new(false),
            clients: AtomicUsize::new(0),
            connections: Mutex::new(Vec::new()),
            cpu_nanos: AtomicU64::new(0),
            requests: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        });
        let (socket, process) = (config.socket.clone(), std::process::id());
        let mut service = Self { state: Arc::clone(&state), socket, threads: Vec::new(), process };
        // One request a rank is under way, so this many never fill it.
        let (jobs, queue) = sync_channel(config.clients);
        let (loaded, load) = sync_channel(1);
        let (model, shared) = (config.clone(), Arc::clone(&state));
        service.spawn("rudder-model", move || serve_model(&model, &shared, &loaded, &queue))?;
        match load.recv_timeout(config.load_deadline) {
            Ok(outcome) => outcome?,
            Err(_) => {
                return Err(model_error(&config.model, format!("it did not load within {:?}", config.load_deadline)));
            }
        }
        let clients = config.clients;
        service.spawn("rudder-ranks", move || accept(&listener, clients, &state, &jobs))?;
        Ok(service)
    }

    /// CPU time of the model's thread, loading included.
    pub fn model_cpu(&self) -> Duration {
        Duration::from_nanos(self.state.cpu_nanos.load(Relaxed))
    }

    /// Requests answered with scores.
    pub fn requests(&self) -> u64 {
        self.state.requests.load(Relaxed)
    }

    /// Connections refused or ended as there were too many, or as what they sent makes no sense.
    pub fn refused(&self) -> u64 {
        self.state.refused.load(Relaxed)
    }

    fn spawn(&mut self, name: &str, body: impl FnOnce() + Send + 'static) -> Result<()> {
        let thread = std::thread::Builder::new().name(name.into()).spawn(body);
        self.threads.push(thread.map_err(|cause| Error::config(format!("cannot start thread {name}: {cause}")))?);
        Ok(())
    }
}

impl Drop for LlmService {
    fn drop(&mut self) {
        if std::process::id() != self.process {
            // The parent goes on serving; its threads may have held the locks when the child was forked.
            self.threads.drain(..).for_each(std::mem::forget);
            return;
        }
        self.state.stop.store(true, Release);
        self.state.connections().iter().for_each(|(_, stream)| _ = stream.shutdown(Shutdown::Both));
        let until = Instant::now() + SHUTDOWN;
        while self.threads.iter().any(|thread| !thread.is_finished()) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(1));
        }
        for thread in self.threads.drain(..) {
            if thread.is_finished() {
                _ = thread.join();
            } else {
                tracing::warn!("a thread of the model service did not end in time and is left behind");
            }
        }
        _ = std::fs::remove_file(&self.socket);
    }
}

/// Listens where no other service does; one that takes longer than `patience` to accept a connection is there all the same.
fn listen(socket: &Path, patience: Duration) -> Result<UnixListener> {
    let refuse = |cause: String| Error::config(format!("model service at {}: {cause}", socket.display()));
    if socket.exists() {
        match connect_by(socket, Instant::now() + patience) {
            Ok(_) => return Err(refuse("another service listens there".into())),
            Err(cause) if cause.kind() == io::ErrorKind::TimedOut => {
                return Err(refuse(format!("another service listens there and hangs: {cause}")));
            }
            Err(_) => {}
        }
        let kind = std::fs::symlink_metadata(socket).map(|entry| entry.file_type());
        if !kind.is_ok_and(|kind| kind.is_socket()) {
            return Err(refuse("something that is no socket is there; name another path".into()));
        }
        // Left by one that was killed.
        std::fs::remove_file(socket).map_err(|cause| refuse(format!("cannot remove a stale socket: {cause}")))?;
    }
    let listener = UnixListener::bind(socket).map_err(|cause| refuse(format!("cannot listen: {cause}")))?;
    let only_us = std::fs::Permissions::from_mode(0o600);
    let guarded = std::fs::set_permissions(socket, only_us).and_then(|()| listener.set_nonblocking(true));
    guarded.map_err(|cause| refuse(format!("cannot restrict it to this user: {cause}")))?;
    Ok(listener)
}

fn serve_model(config: &ServiceConfig, state: &State, loaded: &SyncSender<Result<()>>, queue: &Receiver<Job>) {
    if let Some(cpus) = &config.cpus {
        let mut set = CpuSet::new();
        cpus.iter().filter(|cpu| **cpu < CpuSet::MAX_CPU).for_each(|cpu| set.set(*cpu));
        if let Err(cause) = sched_setaffinity(None, &set) {
            tracing::warn!(?cpus, %cause, "cannot bind the model's thread to these CPUs; it runs anywhere");
        }
    }
    let mut scorer = match LocalScorer::load(&config.model, config.limits) {
        Ok(scorer) => scorer,
        Err(cause) => {
            _ = loaded.send(Err(cause));
            return;
        }
    };
    state.cpu_nanos.store(thread_cpu().as_nanos() as u64, Relaxed);
    if loaded.send(Ok(())).is_err() {
        return;
    }
    while !state.stop.load(Acquire) {
        match queue.recv_timeout(POLL) {
            Ok(job) => answer(&mut scorer, state, job),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

fn answer(scorer: &mut LocalScorer, state: &State, job: Job) {
    let Job { request, arrived, answer } = job;
    let begin = thread_cpu();
    let scores = if arrived.elapsed() > request.patience {
        Err("the request waited longer than the rank was willing to".to_owned())
    } else {
        let labels: Vec<&str> = request.labels.iter().map(String::as_str).collect();
        let scored = catch_unwind(AssertUnwindSafe(|| scorer.score(&request.prefix, &request.text, &labels)));
        scored.map_or_else(|_| Err("the model panicked".to_owned()), |scores| scores.map_err(|cause| cause.to_string()))
    };
    let now = thread_cpu();
    state.cpu_nanos.store(now.as_nanos() as u64, Relaxed);
    state.requests.fetch_add(u64::from(scores.is_ok()), Relaxed);
    // The rank may have gone meanwhile.
    _ = answer.try_send(Response { scores, cpu: now.saturating_sub(begin) });
}

fn accept(listener: &UnixListener, clients: usize, state: &Arc<State>, jobs: &SyncSender<Job>) {
    let mut next = 0;
    let timeout = Timespec { tv_sec: 0, tv_nsec: POLL.as_nanos() as _ };
    while !state.stop.load(Acquire) {
        _ = poll(&mut [PollFd::new(listener, PollFlags::IN)], Some(&timeout));
        let stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(cause) if cause.kind() == io::ErrorKind::WouldBlock => continue,
            Err(_) => {
                // Out of descriptors, most likely: the rank stays queued, so that trying at once would spin.
                std::thread::sleep(POLL);
                continue;
            }
        };
        next += 1;
        if state.clients.load(Acquire) >= clients {
            state.refused.fetch_add(1, Relaxed);
            continue;
        }
        if let Err(cause) = admit(stream, next, state, jobs) {
            tracing::warn!(%cause, "cannot serve a rank that connected");
        }
    }
    state.connections().iter().for_each(|(_, stream)| _ = stream.shutdown(Shutdown::Both));
}

fn admit(stream: UnixStream, id: u64, state: &Arc<State>, jobs: &SyncSender<Job>) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    state.connections().push((id, stream.try_clone()?));
    state.clients.fetch_add(1, AcqRel);
    let leaving = Leaving { id, state: Arc::clone(state) };
    let jobs = jobs.clone();
    std::thread::Builder::new().name("rudder-rank".into()).spawn(move || serve_rank(stream, &leaving, &jobs))?;
    Ok(())
}

/// Gives a rank's place back however its thread ends, or if it never began.
struct Leaving {
    id: u64,
    state: Arc<State>,
}

impl Drop for Leaving {
    fn drop(&mut self) {
        self.state.connections().retain(|(id, _)| *id != self.id);
        self.state.clients.fetch_sub(1, AcqRel);
    }
}

fn serve_rank(mut stream: UnixStream, leaving: &Leaving, jobs: &SyncSender<Job>) {
    let state = &leaving.state;
    while !state.stop.load(Acquire) {
        // A rank may be silent for as long as it likes between its questions.
        let request = match read_frame::<Request>(&mut stream, Patience { until: None, frame: FRAME_DEADLINE }) {
            Ok(request) => request,
            Err(cause) if cause.kind() == io::ErrorKind::UnexpectedEof => return,
            Err(cause) => {
                state.refused.fetch_add(1, Relaxed);
                let scores = Err(format!("what was sent is not a request: {cause}"));
                _ = write_frame(
                    &mut stream,
                    &Response { scores, cpu: Duration::ZERO },
                    Instant::now() + FRAME_DEADLINE,
                );
                return;
            }
        };
        let (answer, answered) = sync_channel(1);
        let patience = request.patience.min(PATIENCE_MAX);
        if jobs.try_send(Job { request, arrived: Instant::now(), answer }).is_err() {
            return;
        }
        let Ok(response) = answered.recv_timeout(patience) else { return };
        if write_frame(&mut stream, &response, Instant::now() + FRAME_DEADLINE).is_err() {
            return;
        }
    }
}

/// How long a frame is waited for.
#[derive(Clone, Copy)]
struct Patience {
    /// By when all of it must be there, whenever it begins.
    until: Option<Instant>,
    /// From its first byte to its last.
    frame: Duration,
}

/// Reads a frame; a limit for each read would let a peer that sends byte by byte hold a thread for hours.
fn read_frame<T: DeserializeOwned>(stream: &mut UnixStream, patience: Patience) -> io::Result<T> {
    let mut length = [0; 4];
    read_by(stream, &mut length[..1], patience.until)?;
    let frame_end = Instant::now() + patience.frame;
    let end = Some(patience.until.map_or(frame_end, |until| until.min(frame_end)));
    read_by(stream, &mut length[1..], end)?;
    let length = u32::from_le_bytes(length) as usize;
    if length > MAX_FRAME {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("a frame of {length} bytes; up to {MAX_FRAME} are taken"),
        ));
    }
    let mut frame = vec![0; length];
    read_by(stream, &mut frame, end)?;
    serde_json::from_slice(&frame).map_err(|cause| io::Error::new(io::ErrorKind::InvalidData, cause))
}

/// Fills the buffer before the deadline.
fn read_by(stream: &mut UnixStream, mut buffer: &mut [u8], deadline: Option<Instant>) -> io::Result<()> {
    while !buffer.is_empty() {
        stream.set_read_timeout(left_until(deadline)?)?;
        match stream.read(buffer) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => buffer = &mut buffer[read..],
            Err(cause) => pass_interruption(cause)?,
        }
    }
    Ok(())
}

/// Sends a frame before the deadline.
fn write_frame<T: Serialize>(stream: &mut UnixStream, value: &T, deadline: Instant) -> io::Result<()> {
    let body = serde_json::to_vec(value)?;
    if body.len() > MAX_FRAME {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("a frame of {} bytes; up to {MAX_FRAME} fit", body.len()),
        ));
    }
    let mut frame = (body.len() as u32).to_le_bytes().to_vec();
    frame.extend(body);
    let mut rest = &frame[..];
    while !rest.is_empty() {
        stream.set_write_timeout(left_until(Some(deadline))?)?;
        match stream.write(rest) {
            Ok(written) => rest = &rest[written..],
            Err(cause) => pass_interruption(cause)?,
        }
    }
    Ok(())
}

/// What is left of the time, as a socket wants it: never 0, which to a socket means no limit.
fn left_until(deadline: Option<Instant>) -> io::Result<Option<Duration>> {
    let Some(deadline) = deadline else { return Ok(None) };
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(late()) } else { Ok(Some(left.max(Duration::from_millis(1)))) }
}

fn late() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "a frame did not pass in time")
}

/// An interrupted call is made again, and a socket's limit is told as what it is.
fn pass_interruption(cause: io::Error) -> io::Result<()> {
    match cause.kind() {
        io::ErrorKind::Interrupted => Ok(()),
        io::ErrorKind::WouldBlock => Err(late()),
        _ => Err(cause),
    }
}

/// Connects within the deadline, which the connect of the standard library does not know: where the service's queue of connections is full
/// it waits without end.
fn connect_by(socket: &Path, deadline: Instant) -> io::Result<UnixStream> {
    let stream = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    set_socket_timeout(&stream, Timeout::Send, left_until(Some(deadline))?)?;
    match connect(&stream, &SocketAddrUnix::new(socket)?) {
        Ok(()) => Ok(stream.into()),
        Err(Errno::AGAIN) => Err(io::Error::new(io::ErrorKind::TimedOut, "it accepts no connection in time")),
        Err(cause) => Err(cause.into()),
    }
}

/// Asks the host's [`LlmService`]. Connects when first asked, and again after a failure.
#[derive(Debug)]
pub struct RemoteScorer {
    socket: PathBuf,
    deadline: Duration,
    stream: Option<UnixStream>,
    cpu: Duration,
}

impl RemoteScorer {
    /// A scorer that asks the service at `socket` and waits at most `deadline` (10 minutes at most) for an answer, connecting included.
    pub fn new(socket: impl Into<PathBuf>, deadline: Duration) -> Self {
        let deadline = deadline.clamp(Duration::from_millis(1), PATIENCE_MAX);
        Self { socket: socket.into(), deadline, stream: None, cpu: Duration::ZERO }
    }

    fn ask(&mut self, request: &Request) -> io::Result<Response> {
        let until = Instant::now() + self.deadline;
        let mut stream = match self.stream.take() {
            Some(stream) => stream,
            None => connect_by(&self.socket, until)?,
        };
        write_frame(&mut stream, request, until)?;
        let response = read_frame(&mut stream, Patience { until: Some(until), frame: FRAME_DEADLINE })?;
        // A connection that failed is not used again: its next frame could answer an older question.
        self.stream = Some(stream);
        Ok(response)
    }
}

impl Scorer for RemoteScorer {
    fn score(&mut self, prefix: &str, text: &str, labels: &[&str]) -> Result<Vec<f32>> {
        let owned = labels.iter().map(|label| (*label).to_owned()).collect();
        let request = Request { prefix: prefix.into(), text: text.into(), labels: owned, patience: self.deadline };
        let path = self.socket.clone();
        let response = match self.ask(&request) {
            Ok(response) => response,
            Err(cause) => return Err(model_error(&path, format!("the model service does not answer: {cause}"))),
        };
        self.cpu += response.cpu;
        let scores = response.scores.map_err(|cause| model_error(&path, cause))?;
        if scores.len() != labels.len() {
            return Err(model_error(
                &path,
                format!("the model service sent {} scores for {} labels", scores.len(), labels.len()),
            ));
        }
        Ok(scores)
    }

    fn remote_cpu(&self) -> Duration {
        self.cpu
    }
}

#[cfg(test)]
mod tests {
    //! Goal: neither side of the service can be held by a peer that drips, and asking ends in time even where nobody accepts.
    //! Method: peers that send a byte at a time, faster than any limit on one read, and a listener whose queue is full.

    use super::*;
    use rustix::fd::OwnedFd;
    use rustix::net::{bind, listen as listen_with};
    use std::sync::mpsc;

    const DRIP: Duration = Duration::from_millis(10);

    /// Sends the head of a long frame and then a byte at a time, until the other end has had enough; returns how long that took.
    fn drip(mut stream: UnixStream) -> Duration {
        let begin = Instant::now();
        let mut next = &10_000u32.to_le_bytes()[..];
        while stream.write_all(&[next.first().copied().unwrap_or(b' ')]).is_ok()
            && begin.elapsed() < Duration::from_secs(5)
        {
            next = next.get(1..).unwrap_or_default();
            std::thread::sleep(DRIP);
        }
        begin.elapsed()
    }

    fn folder(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("rudder-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        folder
    }

    #[test]
    fn a_frame_has_a_deadline_as_a_whole() {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let dripping = std::thread::spawn(move || drip(theirs));
        let patience = Patience { until: None, frame: 20 * DRIP };
        let cause = read_frame::<Request>(&mut ours, patience).expect_err("it never ends");
        assert_eq!(cause.kind(), io::ErrorKind::TimedOut, "{cause}");
        drop(ours);
        assert!(dripping.join().unwrap() < Duration::from_secs(4));
    }

    #[test]
    fn an_answer_that_drips_is_late() {
        let folder = folder("drip");
        let socket = folder.join("socket");
        let listener = UnixListener::bind(&socket).unwrap();
        let service = std::thread::spawn(move || drip(listener.accept().unwrap().0));
        let begin = Instant::now();
        let mut scorer = RemoteScorer::new(&socket, 20 * DRIP);
        let cause = scorer.score("prefix", "text", &["yes", "no"]).unwrap_err().to_string();
        assert!(cause.contains("in time"), "{cause}");
        assert!(begin.elapsed() < Duration::from_secs(4), "{:?}", begin.elapsed());
        service.join().unwrap();
        std::fs::remove_dir_all(folder).unwrap();
    }

    /// A listener that accepts nobody, with as many connections waiting as fit.
    fn full(socket: &Path) -> Vec<OwnedFd> {
        let address = SocketAddrUnix::new(socket).unwrap();
        let stream =
            |flags| socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC | flags, None).unwrap();
        let listener = stream(SocketFlags::empty());
        bind(&listener, &address).unwrap();
        listen_with(&listener, 0).unwrap();
        let mut all = vec![listener];
        loop {
            let next = stream(SocketFlags::NONBLOCK);
            let connected = connect(&next, &address);
            all.push(next);
            if connected.is_err() {
                return all;
            }
        }
    }

    /// What `body` returns, where it does so in time.
    fn in_time<T: Send + 'static>(body: impl FnOnce() -> T + Send + 'static) -> T {
        let (told, outcome) = mpsc::channel();
        std::thread::spawn(move || told.send(body()));
        outcome.recv_timeout(Duration::from_secs(10)).expect("it waits for a queue that never empties")
    }

    #[test]
    fn connecting_ends_in_time() {
        let folder = folder("full");
        let socket = folder.join("socket");
        let _full = full(&socket);
        let cause = in_time(move || {
            let mut scorer = RemoteScorer::new(&socket, 20 * DRIP);
            scorer.score("prefix", "text", &["yes", "no"]).unwrap_err().to_string()
        });
        assert!(cause.contains("accepts no connection"), "{cause}");
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_service_that_hangs_keeps_its_socket() {
        let folder = folder("hangs");
        let socket = folder.join("socket");
        let _full = full(&socket);
        let path = socket.clone();
        let cause = in_time(move || listen(&path, 20 * DRIP).unwrap_err().to_string());
        assert!(cause.contains("another service listens"), "{cause}");
        assert!(socket.exists());
        std::fs::remove_dir_all(folder).unwrap();
    }
}
