//! The side of rank 0: collects every rank's bytes, then gives all of them to all.
//!
//! First all are read, then all are written, each over sockets that do not block: members write before they read, so that no two full
//! sockets can wait for each other.

use super::wire::{
    CONTRIBUTION_BYTES_MAX, HEADER_BYTES, Header, ROUND_BYTES_MAX, failed_frame, read_some, wait_ready, write_all,
    write_some,
};
use crate::bootstrap::missing;
use rustix::event::{PollFd, PollFlags};
use std::net::TcpStream;
use std::time::Instant;

/// The connections of rank 0 to all others.
pub(super) struct Root {
    /// Of rank `i + 1`.
    members: Vec<TcpStream>,
}

/// What a member has sent of its round.
struct Incoming {
    header: [u8; HEADER_BYTES],
    body: Vec<u8>,
    filled: usize,
    whole: bool,
}

impl Root {
    /// Tells the members, in the order of their ranks from 1, that all have joined.
    pub(super) fn start(members: Vec<TcpStream>, deadline: Instant) -> Result<Self, String> {
        let mut root = Self { members };
        let start = Header::Data { round: 0, bytes: 0 }.encode();
        root.broadcast(&start, deadline).map_err(|cause| root.fail(cause))?;
        Ok(root)
    }

    pub(super) fn all_gather(&mut self, round: u64, mine: &[u8], deadline: Instant) -> Result<Vec<Vec<u8>>, String> {
        let gathered = self.collect(round, mine, deadline).and_then(|all| {
            self.broadcast(&pack(round, &all), deadline)?;
            Ok(all)
        });
        gathered.map_err(|cause| self.fail(cause))
    }

    /// Tells every member why the job is over.
    fn fail(&mut self, cause: String) -> String {
        let frame = failed_frame(&cause);
        for member in &mut self.members {
            // What does not fit at once is not worth a wait: that member then sees the connection end.
            let _ = write_all(member, &frame, Instant::now());
        }
        cause
    }

    fn collect(&mut self, round: u64, mine: &[u8], deadline: Instant) -> Result<Vec<Vec<u8>>, String> {
        let mut incoming: Vec<Incoming> = self.members.iter().map(|_| Incoming::new()).collect();
        let mut room = ROUND_BYTES_MAX.saturating_sub(packed_bytes(mine.len()));
        loop {
            for (i, (member, incoming)) in self.members.iter_mut().zip(&mut incoming).enumerate() {
                incoming.advance(member, round, &mut room).map_err(|cause| format!("rank {} {cause}", i + 1))?;
            }
            if incoming.iter().all(|incoming| incoming.whole) {
                break;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let absent = missing([true].into_iter().chain(incoming.iter().map(|incoming| incoming.whole)));
                return Err(format!("{absent} did not take part in time"));
            }
            let waited_for = self.members.iter().zip(&incoming).filter(|(_, incoming)| !incoming.whole);
            let mut fds: Vec<_> = waited_for.map(|(member, _)| PollFd::new(member, PollFlags::IN)).collect();
            wait_ready(&mut fds, left);
        }
        let all: Vec<_> =
            [mine.to_vec()].into_iter().chain(incoming.into_iter().map(|incoming| incoming.body)).collect();
        Ok(all)
    }

    fn broadcast(&mut self, frame: &[u8], deadline: Instant) -> Result<(), String> {
        let mut written = vec![0; self.members.len()];
        loop {
            for (i, (member, written)) in self.members.iter_mut().zip(&mut written).enumerate() {
                while *written < frame.len() {
                    match write_some(member, &frame[*written..]) {
                        Ok(0) => break,
                        Ok(sent) => *written += sent,
                        Err(cause) => return Err(format!("rank {} has left the job: {cause}", i + 1)),
                    }
                }
            }
            if written.iter().all(|written| *written == frame.len()) {
                return Ok(());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let slow = missing([true].into_iter().chain(written.iter().map(|written| *written == frame.len())));
                return Err(format!("{slow} did not take the answer in time"));
            }
            let waited_for = self.members.iter().zip(&written).filter(|(_, written)| **written < frame.len());
            let mut fds: Vec<_> = waited_for.map(|(member, _)| PollFd::new(member, PollFlags::OUT)).collect();
            wait_ready(&mut fds, left);
        }
    }
}

impl Incoming {
    fn new() -> Self {
        Self { header: [0; HEADER_BYTES], body: Vec::new(), filled: 0, whole: false }
    }

    /// Reads what has come, where the round has so much room left; an error continues the words "rank n".
    fn advance(&mut self, member: &mut TcpStream, round: u64, room: &mut u64) -> Result<(), String> {
        while !self.whole {
            let buffer = match self.filled.checked_sub(HEADER_BYTES) {
                None => &mut self.header[self.filled..],
                Some(at) => &mut self.body[at..],
            };
            let read = read_some(member, buffer).map_err(|cause| match cause.kind() {
                std::io::ErrorKind::UnexpectedEof => "has left the job".to_owned(),
                _ => format!("has left the job: {cause}"),
            })?;
            if read == 0 {
                break;
            }
            self.filled += read;
            if self.filled == HEADER_BYTES {
                self.body = vec![0; self.open(round, room)?];
            }
            self.whole = self.filled == HEADER_BYTES + self.body.len();
        }
        Ok(())
    }

    /// Bytes that follow the header, taken from the room of the round before memory is given to them.
    fn open(&self, round: u64, room: &mut u64) -> Result<usize, String> {
        match Header::decode(&self.header, CONTRIBUTION_BYTES_MAX as u64)? {
            Header::Data { round: theirs, bytes } if theirs == round => {
                let too_much =
                    || format!("brings the round over {ROUND_BYTES_MAX} bytes, the limit for all ranks together");
                *room = room.checked_sub(packed_bytes(bytes as usize)).ok_or_else(too_much)?;
                Ok(bytes as usize)
            }
            Header::Data { round: theirs, .. } => Err(format!("is out of step: in round {theirs} instead of {round}")),
            Header::Failed { .. } => Err("has given the job up".into()),
        }
    }
}

/// What a rank's bytes take up in a round: their length before them.
fn packed_bytes(bytes: usize) -> u64 {
    bytes as u64 + 8
}

/// A round as the members get it: a header, then each rank's length and bytes.
fn pack(round: u64, all: &[Vec<u8>]) -> Vec<u8> {
    let bytes: usize = all.iter().map(|bytes| bytes.len() + 8).sum();
    let mut frame = Vec::with_capacity(HEADER_BYTES + bytes);
    frame.extend_from_slice(&Header::Data { round, bytes: bytes as u64 }.encode());
    for bytes in all {
        frame.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
        frame.extend_from_slice(bytes);
    }
    frame
}

#[cfg(test)]
mod tests {
    //! Goal: a round that is too large is refused before memory is given to it. Method: headers that announce more than is left.
    use super::*;

    #[test]
    fn parts_beyond_the_rounds_limit_are_refused_when_announced() {
        let mut incoming = Incoming::new();
        incoming.header = Header::Data { round: 3, bytes: 92 }.encode();
        let mut room = 150;
        assert_eq!((incoming.open(3, &mut room), room), (Ok(92), 50));
        assert!(incoming.open(3, &mut room).is_err_and(|cause| cause.contains("the limit for all ranks together")));
    }
}
