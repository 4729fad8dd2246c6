//! How the root gathers its ranks.
//!
//! One loop over sockets that do not block: strangers, slow ones included, cost a bounded number of descriptors for a bounded time and
//! are no reason to fail. Who comes is heard before anybody is sent away, and a rank that is sent away comes again. A rank that proves
//! the secret and still does not fit (its number taken, another size) is a mistake in the job's start, and ends it for everybody with
//! the reason.

use super::proof::{Claim, NONCE_BYTES, Side, nonce};
use super::root::Root;
use super::wire::{self, Header, failed_frame, read_some, write_all};
use super::{MAGIC, PROTOCOL};
use crate::bootstrap::missing;
use crate::listening::FailedAccepts;
use rustix::event::{PollFd, PollFlags};
use std::collections::VecDeque;
use std::io::ErrorKind::{ConnectionAborted, Interrupted, WouldBlock};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

/// A handshake takes two round trips; who takes longer is no rank.
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(5);
/// Connections in their handshake at once, beyond the job's own; the oldest goes first.
const STRANGERS_MAX: usize = 64;
/// Connections that are accepted before those that are here are heard again.
const ACCEPTED_AT_ONCE: usize = 32;
/// Refusals that an error tells of.
const REFUSALS_TOLD: usize = 4;

/// After an attempt to accept that failed.
const ACCEPT_AGAIN_AFTER: Duration = Duration::from_millis(10);

const HELLO_BYTES: usize = 4 + 2 + NONCE_BYTES;
/// The longer of the two messages: what a connection's buffer holds.
const CLAIM_BYTES: usize = 4 + 4 + NONCE_BYTES;

/// Ranks on their way in.
struct Accepting<'a> {
    secret: &'a [u8; 32],
    size: u32,
    joined: Vec<Option<TcpStream>>,
    pending: VecDeque<Pending>,
    refusals: Vec<String>,
    failed_accepts: FailedAccepts,
}

/// A connection that has proven nothing yet.
struct Pending {
    stream: TcpStream,
    from: SocketAddr,
    since: Instant,
    received: [u8; CLAIM_BYTES],
    filled: usize,
    /// Both nonces, once the hello has come.
    nonces: Option<([u8; NONCE_BYTES], [u8; NONCE_BYTES])>,
}

/// Waits for all ranks but 0, and lets them start.
pub(super) fn all(listener: &TcpListener, secret: &[u8; 32], size: u32, deadline: Instant) -> Result<Root, String> {
    let joined = (1..size).map(|_| None).collect();
    let (pending, refusals) = (VecDeque::new(), Vec::new());
    let failed_accepts = FailedAccepts::new("bootstrap");
    let mut accepting = Accepting { secret, size, joined, pending, refusals, failed_accepts };
    listener.set_nonblocking(true).map_err(|e| format!("cannot listen: {e}"))?;
    let outcome = accepting.run(listener, deadline);
    let joined = accepting.joined.into_iter().flatten();
    match outcome {
        Ok(()) => Root::start(joined.collect(), deadline),
        Err(cause) => {
            // Before the hello a rank would not understand it.
            let greeted = accepting.pending.into_iter().filter(|pending| pending.nonces.is_some());
            joined.chain(greeted.map(|pending| pending.stream)).for_each(|stream| refuse(stream, &cause));
            Err(cause)
        }
    }
}

/// Tells a peer why not, as far as it fits without waiting.
fn refuse(mut stream: TcpStream, cause: &str) {
    let _ = write_all(&mut stream, &failed_frame(cause), Instant::now());
}

impl Accepting<'_> {
    fn run(&mut self, listener: &TcpListener, deadline: Instant) -> Result<(), String> {
        while self.joined.iter().any(Option::is_none) {
            let now = Instant::now();
            if now >= deadline {
                return Err(self.absent());
            }
            self.pending.retain(|pending| now - pending.since < HANDSHAKE_WITHIN);
            self.wait(listener, (deadline - now).min(HANDSHAKE_WITHIN));
            self.accept(listener);
            self.watch_joined()?;
            self.advance()?;
            let places = self.size as usize + STRANGERS_MAX;
            self.pending.drain(..self.pending.len().saturating_sub(places));
        }
        Ok(())
    }

    fn absent(&self) -> String {
        let absent = missing([true].into_iter().chain(self.joined.iter().map(Option::is_some)));
        let told =
            if self.refusals.is_empty() { String::new() } else { format!("; refused: {}", self.refusals.join(", ")) };
        let failed = self.failed_accepts.present().map_or(String::new(), |cause| format!("; {cause}"));
        format!("{absent} of {} did not join in time{told}{failed}", self.size)
    }

    fn wait(&self, listener: &TcpListener, at_most: Duration) {
        let mut fds = vec![PollFd::new(listener, PollFlags::IN)];
        fds.extend(self.pending.iter().map(|pending| PollFd::new(&pending.stream, PollFlags::IN)));
        fds.extend(self.joined.iter().flatten().map(|stream| PollFd::new(stream, PollFlags::IN)));
        wire::wait_ready(&mut fds, at_most);
    }

    fn accept(&mut self, listener: &TcpListener) {
        for _ in 0..ACCEPTED_AT_ONCE {
            let (stream, from) = match listener.accept() {
                Ok(accepted) => accepted,
                // Nobody waits, or who did has gone.
                Err(e) if matches!(e.kind(), WouldBlock | Interrupted | ConnectionAborted) => return,
                Err(cause) => {
                    self.failed_accepts.note(cause);
                    // What could not be accepted stays in the backlog, so that a wait for it ends at once: time must pass otherwise.
                    return std::thread::sleep(ACCEPT_AGAIN_AFTER);
                }
            };
            self.failed_accepts.end();
            if wire::prepare(&stream).is_ok() {
                let (received, since) = ([0; CLAIM_BYTES], Instant::now());
                self.pending.push_back(Pending { stream, from, since, received, filled: 0, nonces: None });
            }
        }
    }

    /// A rank that has joined says nothing before the start: what can be read is its end.
    fn watch_joined(&mut self) -> Result<(), String> {
        for (i, stream) in self.joined.iter_mut().enumerate() {
            let rank = i + 1;
            match stream.as_mut().map_or(Ok(0), |stream| read_some(stream, &mut [0])) {
                Ok(0) => {}
                Ok(_) => return Err(format!("rank {rank} spoke before the job began")),
                Err(cause) => return Err(format!("rank {rank} left before the job began: {cause}")),
            }
        }
        Ok(())
    }

    fn advance(&mut self) -> Result<(), String> {
        for _ in 0..self.pending.len() {
            let Some(mut pending) = self.pending.pop_front() else { break };
            match pending.advance(self.secret) {
                Ok(Step::Waits) => self.pending.push_back(pending),
                Ok(Step::Proven(claim)) => self.admit(pending.stream, &claim)?,
                Err(cause) => self.note_refusal(pending, cause),
            }
        }
        Ok(())
    }

    fn note_refusal(&mut self, pending: Pending, cause: String) {
        tracing::warn!("bootstrap: refused {}: {cause}", pending.from);
        if self.refusals.len() < REFUSALS_TOLD {
            self.refusals.push(format!("{} ({cause})", pending.from));
        }
        refuse(pending.stream, &cause);
    }

    fn admit(&mut self, mut stream: TcpStream, claim: &Claim) -> Result<(), String> {
        let Claim { rank, size, .. } = *claim;
        let slot = (rank as usize).checked_sub(1).and_then(|slot| self.joined.get_mut(slot));
        let cause = match slot {
            _ if size != self.size => format!("rank {rank} speaks of a job of {size} ranks, rank 0 of {}", self.size),
            None => format!("a second rank {rank} wants to join a job of {size} ranks"),
            Some(Some(_)) => format!("rank {rank} joined twice: two processes were started with the same rank"),
            Some(empty) => {
                let proof = claim.prove(self.secret, Side::Root);
                let header = Header::Data { round: 0, bytes: proof.len() as u64 }.encode();
                // A fresh connection takes so few bytes at once; one that does not is dead, and its rank still missing.
                if write_all(&mut stream, &[&header[..], &proof].concat(), Instant::now()).is_ok() {
                    *empty = Some(stream);
                }
                return Ok(());
            }
        };
        refuse(stream, &cause);
        Err(cause)
    }
}

enum Step {
    Waits,
    Proven(Claim),
}

impl Pending {
    /// Reads what has come and answers it.
    fn advance(&mut self, secret: &[u8; 32]) -> Result<Step, String> {
        loop {
            let expected = if self.nonces.is_none() { HELLO_BYTES } else { CLAIM_BYTES };
            let read = read_some(&mut self.stream, &mut self.received[self.filled..expected])
                .map_err(|e| format!("it broke off: {e}"))?;
            self.filled += read;
            match self.nonces {
                None => self.check_magic()?,
                Some(_) if self.filled == expected => return self.check_claim(secret).map(Step::Proven),
                Some(_) => {}
            }
            if read == 0 {
                return Ok(Step::Waits);
            }
            if self.filled == expected {
                self.greet()?;
            }
        }
    }

    /// Recognises strangers at their first bytes.
    fn check_magic(&self) -> Result<(), String> {
        let come = self.filled.min(MAGIC.len());
        if self.received[..come] == MAGIC[..come] { Ok(()) } else { Err("it does not speak this protocol".into()) }
    }

    fn greet(&mut self) -> Result<(), String> {
        let failed = |e: std::io::Error| format!("it broke off: {e}");
        let version = u16::from_le_bytes([self.received[4], self.received[5]]);
        let theirs = std::array::from_fn(|i| self.received[6 + i]);
        let ours = nonce().map_err(failed)?;
        let answer = [&MAGIC[..], &PROTOCOL.to_le_bytes(), &ours].concat();
        write_all(&mut self.stream, &answer, Instant::now()).map_err(failed)?;
        if version != PROTOCOL {
            return Err(format!("it speaks protocol version {version}, this is version {PROTOCOL}"));
        }
        self.nonces = Some((theirs, ours));
        self.filled = 0;
        Ok(())
    }

    fn check_claim(&self, secret: &[u8; 32]) -> Result<Claim, String> {
        let number = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| self.received[at + i]));
        let (joining_nonce, root_nonce) = self.nonces.unwrap_or_default();
        let claim = Claim { version: PROTOCOL, joining_nonce, root_nonce, rank: number(0), size: number(4) };
        if !claim.holds(secret, Side::Joining, &self.received[8..]) {
            return Err("it cannot prove that it holds this job's secret: its unique id is another".into());
        }
        Ok(claim)
    }
}
