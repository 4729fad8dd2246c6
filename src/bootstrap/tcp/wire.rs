//! Bytes over sockets with a deadline, and the frames of a joined job.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

/// Most bytes that one rank may give to one all_gather.
pub(super) const CONTRIBUTION_BYTES_MAX: usize = 64 << 20;
/// Most bytes that all ranks together may give: every rank holds them all.
pub(super) const ROUND_BYTES_MAX: u64 = 1 << 30;
/// Most bytes of an explanation.
const CAUSE_BYTES_MAX: usize = 4 << 10;

/// A frame: kind (1), round (8), length (8), then so many bytes.
pub(super) const HEADER_BYTES: usize = 17;
const DATA: u8 = 1;
const FAILED: u8 = 2;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Header {
    /// Bytes of a round follow.
    Data { round: u64, bytes: u64 },
    /// The job is over; the reason follows.
    Failed { bytes: usize },
}

impl Header {
    pub(super) fn encode(self) -> [u8; HEADER_BYTES] {
        let (kind, round, bytes) = match self {
            Self::Data { round, bytes } => (DATA, round, bytes),
            Self::Failed { bytes } => (FAILED, 0, bytes as u64),
        };
        let mut header = [kind; HEADER_BYTES];
        header[1..9].copy_from_slice(&round.to_le_bytes());
        header[9..].copy_from_slice(&bytes.to_le_bytes());
        header
    }

    /// Reads a header whose sender may send up to `bytes_max` bytes of data.
    pub(super) fn decode(header: &[u8; HEADER_BYTES], bytes_max: u64) -> Result<Self, String> {
        let number = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| header[at + i]));
        let (round, bytes) = (number(1), number(9));
        match header[0] {
            DATA if bytes <= bytes_max => Ok(Self::Data { round, bytes }),
            FAILED if bytes <= CAUSE_BYTES_MAX as u64 => Ok(Self::Failed { bytes: bytes as usize }),
            DATA | FAILED => Err(format!("sends a frame of {bytes} bytes")),
            kind => Err(format!("sends a frame of unknown kind {kind}")),
        }
    }
}

/// The frame that ends a job, with its reason.
pub(super) fn failed_frame(cause: &str) -> Vec<u8> {
    let cause = &cause.as_bytes()[..cause.len().min(CAUSE_BYTES_MAX)];
    [&Header::Failed { bytes: cause.len() }.encode()[..], cause].concat()
}

/// A stream that does not block and sends at once.
pub(super) fn prepare(stream: &TcpStream) -> std::io::Result<()> {
    stream.set_nonblocking(true)?;
    stream.set_nodelay(true)
}

/// Waits until one of the descriptors is ready, or as long as may be waited.
pub(super) fn wait_ready(fds: &mut [PollFd<'_>], left: Duration) {
    // Whole seconds are capped: a poll that ends early is asked again by its caller.
    let timeout = Timespec { tv_sec: left.as_secs().min(3600) as i64, tv_nsec: i64::from(left.subsec_nanos()) };
    // An interrupted poll is a short one.
    let _ = poll(fds, Some(&timeout));
}

/// Reads what is there: `Ok(0)` is nothing yet, the end of the stream is an error.
pub(super) fn read_some(stream: &mut TcpStream, buffer: &mut [u8]) -> std::io::Result<usize> {
    match stream.read(buffer) {
        Ok(0) if !buffer.is_empty() => Err(ErrorKind::UnexpectedEof.into()),
        Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(0),
        other => other,
    }
}

/// Writes what fits: `Ok(0)` is nothing now.
pub(super) fn write_some(stream: &mut TcpStream, bytes: &[u8]) -> std::io::Result<usize> {
    match stream.write(bytes) {
        Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(0),
        other => other,
    }
}

/// Fills the buffer, or fails at the deadline.
pub(super) fn read_all(stream: &mut TcpStream, buffer: &mut [u8], deadline: Instant) -> std::io::Result<()> {
    let mut filled = 0;
    while filled < buffer.len() {
        match read_some(stream, &mut buffer[filled..])? {
            0 => wait_until(stream, PollFlags::IN, deadline)?,
            read => filled += read,
        }
    }
    Ok(())
}

/// Sends all of it, or fails at the deadline, or once the other side has something to say and takes no more.
pub(super) fn write_all(stream: &mut TcpStream, bytes: &[u8], deadline: Instant) -> std::io::Result<()> {
    let mut written = 0;
    while written < bytes.len() {
        match write_some(stream, &bytes[written..])? {
            0 => wait_until(stream, PollFlags::OUT, deadline)?,
            sent => written += sent,
        }
    }
    Ok(())
}

fn wait_until(stream: &TcpStream, ready: PollFlags, deadline: Instant) -> std::io::Result<()> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(ErrorKind::TimedOut.into());
    }
    wait_ready(&mut [PollFd::new(stream, ready)], left);
    Ok(())
}
