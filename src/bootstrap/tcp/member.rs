//! The side of every rank but the root.

use super::proof::{Claim, NONCE_BYTES, Side, nonce};
use super::unique_id::UniqueId;
use super::wire::{self, HEADER_BYTES, Header, ROUND_BYTES_MAX, read_all, write_all, write_some};
use super::{MAGIC, PROTOCOL};
use crate::id::Rank;
use rustix::event::{PollFd, PollFlags};
use std::io::ErrorKind;
use std::net::TcpStream;
use std::time::{Duration, Instant};

/// Between attempts to connect.
const RETRY_AFTER: Duration = Duration::from_millis(50);
/// How much longer than its own deadline a member listens for the root's reason, which names the ranks that are missing.
const GRACE: Duration = Duration::from_secs(1);

/// A member's connection to the root.
pub(super) struct Member {
    stream: TcpStream,
    size: u32,
}

impl Member {
    pub(super) fn join(id: &UniqueId, rank: Rank, size: u32, deadline: Instant) -> Result<Self, String> {
        let mut member = loop {
            let mut member = Self { stream: connect(id, deadline)?, size };
            match member.prove(id, rank, deadline) {
                Ok(()) => break member,
                // A root that strangers crowd around may have sent us away unheard.
                Err(Failure::Lost(cause)) if cause.kind() != ErrorKind::TimedOut => {
                    if Instant::now() + RETRY_AFTER >= deadline {
                        return Err(format!("the root at {} broke off the handshake: {cause}", id.address()));
                    }
                    std::thread::sleep(RETRY_AFTER);
                }
                Err(failure) => return Err(failure.into()),
            }
        };
        match member.read_header(deadline + GRACE)? {
            Header::Data { round: 0, bytes: 0 } => Ok(member),
            other => Err(member.unexpected(other)),
        }
    }

    fn prove(&mut self, id: &UniqueId, rank: Rank, deadline: Instant) -> Result<(), Failure> {
        let joining_nonce = nonce().map_err(|e| Failure::Told(format!("the system gives no random bytes: {e}")))?;
        let hello = [&MAGIC[..], &PROTOCOL.to_le_bytes(), &joining_nonce].concat();
        write_all(&mut self.stream, &hello, deadline)?;
        let mut answer = [0; MAGIC.len() + 2];
        read_all(&mut self.stream, &mut answer, deadline)?;
        if answer[..4] != MAGIC {
            let cause = format!("{} is not the root of a job: something else listens there", id.address());
            return Err(Failure::Told(cause));
        }
        let version = u16::from_le_bytes([answer[4], answer[5]]);
        if version != PROTOCOL {
            let cause = format!("the root speaks protocol version {version}, this rank speaks version {PROTOCOL}");
            return Err(Failure::Told(cause));
        }
        let mut root_nonce = [0; NONCE_BYTES];
        read_all(&mut self.stream, &mut root_nonce, deadline)?;
        let claim = Claim { version, joining_nonce, root_nonce, rank: rank.0, size: self.size };
        let proof = claim.prove(&id.secret(), Side::Joining);
        let claimed = [&rank.0.to_le_bytes()[..], &self.size.to_le_bytes(), &proof].concat();
        write_all(&mut self.stream, &claimed, deadline)?;
        let mut proof = [0; NONCE_BYTES];
        match self.read_header(deadline)? {
            Header::Data { round: 0, bytes } if bytes == proof.len() as u64 => {}
            other => return Err(Failure::Told(self.unexpected(other))),
        }
        read_all(&mut self.stream, &mut proof, deadline)?;
        if !claim.holds(&id.secret(), Side::Root, &proof) {
            let cause = format!("the root at {} cannot prove that it holds this job's secret", id.address());
            return Err(Failure::Told(cause));
        }
        Ok(())
    }

    pub(super) fn all_gather(&mut self, round: u64, mine: &[u8], deadline: Instant) -> Result<Vec<Vec<u8>>, String> {
        self.send(&Header::Data { round, bytes: mine.len() as u64 }.encode(), deadline)?;
        self.send(mine, deadline)?;
        let bytes = match self.read_header(deadline + GRACE)? {
            Header::Data { round: theirs, bytes } if theirs == round => bytes,
            other => return Err(self.unexpected(other)),
        };
        let mut packed = vec![0; bytes as usize];
        read_all(&mut self.stream, &mut packed, deadline + GRACE).map_err(lost)?;
        unpack(&packed, self.size).ok_or_else(|| "the root sent a malformed round".to_owned())
    }

    /// Sends to a root that may, meanwhile, have given up and say why.
    fn send(&mut self, bytes: &[u8], deadline: Instant) -> Result<(), String> {
        let mut written = 0;
        while written < bytes.len() {
            match write_some(&mut self.stream, &bytes[written..]).map_err(lost)? {
                0 => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Err(lost(ErrorKind::TimedOut.into()));
                    }
                    let mut fds = [PollFd::new(&self.stream, PollFlags::IN | PollFlags::OUT)];
                    wire::wait_ready(&mut fds, left);
                    if fds[0].revents().contains(PollFlags::IN) {
                        let header = self.read_header(deadline)?;
                        return Err(self.unexpected(header));
                    }
                }
                sent => written += sent,
            }
        }
        Ok(())
    }

    /// The next header; a failed job is an error with the root's own words.
    fn read_header(&mut self, deadline: Instant) -> Result<Header, Failure> {
        let mut header = [0; HEADER_BYTES];
        read_all(&mut self.stream, &mut header, deadline)?;
        match Header::decode(&header, ROUND_BYTES_MAX).map_err(|cause| Failure::Told(format!("rank 0 {cause}")))? {
            Header::Failed { bytes } => {
                let mut cause = vec![0; bytes];
                read_all(&mut self.stream, &mut cause, deadline.max(Instant::now() + GRACE))?;
                Err(Failure::Told(String::from_utf8_lossy(&cause).into_owned()))
            }
            data => Ok(data),
        }
    }

    fn unexpected(&self, header: Header) -> String {
        format!("ranks are out of step: rank 0 sent {header:?}")
    }
}

/// Why a rank does not get on with the root.
enum Failure {
    /// The connection ended without a word.
    Lost(std::io::Error),
    /// In words, the root's own or ours.
    Told(String),
}

impl From<std::io::Error> for Failure {
    fn from(cause: std::io::Error) -> Self {
        Self::Lost(cause)
    }
}

impl From<Failure> for String {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Lost(cause) => lost(cause),
            Failure::Told(cause) => cause,
        }
    }
}

fn lost(cause: std::io::Error) -> String {
    match cause.kind() {
        ErrorKind::TimedOut => "rank 0 did not answer in time".into(),
        ErrorKind::UnexpectedEof => "rank 0 has left the job".into(),
        _ => format!("rank 0 has left the job: {cause}"),
    }
}

fn connect(id: &UniqueId, deadline: Instant) -> Result<TcpStream, String> {
    let address = id.address();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let attempt = match left.is_zero() {
            true => Err(ErrorKind::TimedOut.into()),
            false => TcpStream::connect_timeout(&address, left),
        };
        match attempt.and_then(|stream| wire::prepare(&stream).map(|()| stream)) {
            Ok(stream) => return Ok(stream),
            Err(cause) if Instant::now() + RETRY_AFTER >= deadline => {
                return Err(format!(
                    "rank 0 does not listen on {address}: {cause}; check the address and that it runs"
                ));
            }
            // The root may be on its way up again behind a port forwarder or a slow network.
            Err(_) => std::thread::sleep(RETRY_AFTER),
        }
    }
}

/// Takes a round apart: each rank's length and bytes, in rank order.
fn unpack(mut packed: &[u8], size: u32) -> Option<Vec<Vec<u8>>> {
    let mut all = Vec::with_capacity(size as usize);
    for _ in 0..size {
        let (length, rest) = packed.split_first_chunk()?;
        let (bytes, rest) = rest.split_at_checked(usize::try_from(u64::from_le_bytes(*length)).ok()?)?;
        all.push(bytes.to_vec());
        packed = rest;
    }
    packed.is_empty().then_some(all)
}

#[cfg(test)]
mod tests {
    //! Goal: rounds that do not hold together are refused, and a rank that is sent away unheard comes again.
    //! Method: cut and stretch a good round; a root closes its first connection.
    use super::super::{accept, unique_id::UniqueId};
    use super::{Member, unpack};
    use crate::id::Rank;
    use std::time::{Duration, Instant};

    #[test]
    fn a_rank_that_is_sent_away_unheard_comes_again() {
        let id = UniqueId::create(None).unwrap();
        let listener = id.take_listener().unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        std::thread::scope(|scope| {
            let member = scope.spawn(move || Member::join(&id, Rank(1), 2, deadline).map(drop));
            drop(listener.accept().unwrap());
            let root = accept::all(&listener, &id.secret(), 2, deadline).map(drop);
            assert_eq!((member.join().unwrap(), root), (Ok(()), Ok(())));
        });
    }

    #[test]
    fn malformed_rounds_are_refused() {
        let good = [&2u64.to_le_bytes()[..], b"ab", &0u64.to_le_bytes()].concat();
        assert_eq!(unpack(&good, 2), Some(vec![b"ab".to_vec(), Vec::new()]));
        (0..good.len()).for_each(|cut| assert_eq!(unpack(&good[..cut], 2), None));
        assert_eq!(unpack(&[&good[..], b"x"].concat(), 2), None);
        assert_eq!(unpack(&[&u64::MAX.to_le_bytes()[..], b"ab"].concat(), 1), None);
    }
}
