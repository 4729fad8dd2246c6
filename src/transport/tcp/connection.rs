//! The asker's end of one connection: the handshake, requests out, replies in, all without blocking.
//!
//! Replies come in the order of the requests, so a queue of what was asked is all the state there is. Bytes reach their places by
//! way of an inbox where rows are small (one receive brings hundreds) and straight from the socket where they are large.

use super::socket::{self, Pieces};
use super::wire::{PROTOCOL, REPLY_BYTES, Reply, Request, Status};
use super::{JobSecret, TcpConfig};
use crate::error::TransferError;
use crate::transport::handshake::{self, Address, HELLO_BYTES, Handshake, NONCE_BYTES, Side, VERDICT_BYTES, Verdict};
use crate::transport::{BatchId, Completion, Destination, RowBatch, index_list};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, Shutdown, SocketFlags, connect, recv, send, shutdown, sockopt};
use std::collections::VecDeque;
use std::ops::Index;
use std::time::Instant;

/// One receive takes at most this much; it stays in the second-level cache until it is scattered, beside what it is scattered to.
const INBOX_BYTES: usize = 128 << 10;
/// Rows of this size and more are received in place by a vectored read.
const SCATTERED_ROW_BYTES_MIN: usize = 2048;
/// Progress within a part is reported once so much of it has arrived.
const REPORT_BYTES: usize = 128 << 10;

/// A batch that was posted and is not over.
pub struct Posted {
    id: BatchId,
    places: Vec<u32>,
    destination: Destination,
    row_bytes: usize,
    region: u64,
    version: u64,
    /// Parts of it that are still in some connection's queue.
    open_parts: usize,
}

/// Rows of a usual batch: room for them is made at the start.
const PLACES_WARM: usize = 4096;

/// The batches of a channel. Their buffers are kept for the next batch, so that posting allocates nothing once they have grown.
pub struct Batches {
    posted: Vec<Posted>,
    free: Vec<usize>,
}

impl Batches {
    pub fn new(in_flight_max: usize) -> Self {
        let unused = || Posted {
            id: BatchId::default(),
            places: Vec::with_capacity(PLACES_WARM),
            destination: Destination { base: std::ptr::null_mut(), stride: 0, places: 0 },
            row_bytes: 1,
            region: 0,
            version: 0,
            open_parts: 0,
        };
        let posted = std::iter::repeat_with(unused).take(in_flight_max).collect();
        Self { posted, free: (0..in_flight_max).rev().collect() }
    }

    /// Remembers the first rows of a batch, to be asked for in so many parts; nothing where all are in use.
    pub fn begin(&mut self, batch: &RowBatch<'_>, rows: usize, region: u64, parts: usize) -> Option<usize> {
        let index = self.free.pop()?;
        let posted = &mut self.posted[index];
        posted.id = batch.id;
        posted.places.clear();
        posted.places.extend_from_slice(&batch.places[..rows]);
        posted.destination = batch.destination;
        posted.row_bytes = batch.row_bytes;
        posted.region = region;
        posted.version = batch.version;
        posted.open_parts = parts;
        Some(index)
    }

    /// A part that could not even be asked for.
    pub fn refuse(&mut self, part: Part, cause: TransferError) -> Completion {
        self.end_part(part.batch);
        Completion { batch: self[part.batch].id, first: part.first, count: part.rows, status: Err(cause) }
    }

    fn end_part(&mut self, batch: usize) {
        let posted = &mut self.posted[batch];
        posted.open_parts -= 1;
        if posted.open_parts == 0 {
            self.free.push(batch);
        }
    }
}

impl Index<usize> for Batches {
    type Output = Posted;

    fn index(&self, batch: usize) -> &Posted {
        &self.posted[batch]
    }
}

/// Consecutive rows of a batch that one request asks for.
#[derive(Clone, Copy, Debug)]
pub struct Part {
    /// The batch, as an index into the channel's table.
    pub batch: usize,
    pub first: u32,
    pub rows: u32,
}

/// A part on its way.
struct Asked {
    part: Part,
    sequence: u64,
    received_bytes: usize,
    reported_rows: u32,
}

enum Stage {
    Connecting,
    /// Waits for the owner's hello.
    Greeted,
    /// Waits for the verdict on our proof.
    Proved {
        owner_nonce: [u8; NONCE_BYTES],
    },
    Ready {
        /// The head of the first reply is in, its rows are not.
        in_rows: bool,
    },
}

/// One connection to one peer.
pub struct Connection {
    socket: OwnedFd,
    stage: Stage,
    asker_nonce: [u8; NONCE_BYTES],
    deadline: Instant,
    asked: VecDeque<Asked>,
    asked_bytes: usize,
    sequence: u64,
    outbox: Vec<u8>,
    sent: usize,
    inbox: Box<[u8]>,
    start: usize,
    end: usize,
    pieces: Pieces,
}

fn gone(what: &str, errno: Errno) -> TransferError {
    TransferError::PeerGone(format!("{what}: {errno}"))
}

impl Connection {
    /// Begins to connect.
    pub fn open(address: &Address, config: &TcpConfig) -> Result<Self, TransferError> {
        let failed = |errno| gone(&format!("cannot connect to {}", address.socket), errno);
        let mut asker_nonce = [0; NONCE_BYTES];
        getrandom::fill(&mut asker_nonce).map_err(|e| TransferError::Io(format!("no random bytes: {e}")))?;
        let socket =
            socket::stream(&address.socket, SocketFlags::NONBLOCK, config.socket_buffer_bytes).map_err(failed)?;
        socket::tune(&socket, config.silence_timeout).map_err(failed)?;
        match connect(&socket, &address.socket) {
            Ok(()) | Err(Errno::INPROGRESS | Errno::INTR) => {}
            Err(errno) => return Err(failed(errno)),
        }
        Ok(Self {
            socket,
            stage: Stage::Connecting,
            asker_nonce,
            deadline: Instant::now() + config.connect_timeout,
            // A part of each batch: how many wait here at a time depends on the threads, and is not to be found out by growing.
            asked: VecDeque::with_capacity(config.batches_in_flight_max),
            asked_bytes: 0,
            sequence: 0,
            outbox: Vec::with_capacity(8 * PLACES_WARM),
            sent: 0,
            inbox: vec![0; INBOX_BYTES].into_boxed_slice(),
            start: 0,
            end: 0,
            pieces: Pieces::new(),
        })
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// By when the handshake must be over; none once it is.
    pub fn deadline(&self) -> Option<Instant> {
        (!matches!(self.stage, Stage::Ready { .. })).then_some(self.deadline)
    }

    /// Whether there is something to send, or the connection is still being made.
    pub fn wants_to_write(&self) -> bool {
        match self.stage {
            Stage::Connecting => true,
            Stage::Ready { .. } => !self.outbox.is_empty(),
            Stage::Greeted | Stage::Proved { .. } => false,
        }
    }

    /// Bytes of rows asked for and not received.
    pub fn owed_bytes(&self) -> usize {
        self.asked_bytes
    }

    /// Bytes of requests not yet sent.
    pub fn outbox_bytes(&self) -> usize {
        self.outbox.len() - self.sent
    }

    /// Queues a request for a part of a batch.
    pub fn ask(&mut self, part: Part, batch: &Posted, rows: &[u64]) {
        let wide = index_list::is_wide(rows);
        let request = Request {
            sequence: self.sequence,
            region: batch.region,
            version: batch.version,
            row_bytes: batch.row_bytes as u32,
            rows: part.rows,
            index_bytes: if wide { 8 } else { 4 },
        };
        if self.sent == self.outbox.len() {
            self.outbox.clear();
            self.sent = 0;
        }
        self.outbox.extend_from_slice(&request.encode());
        index_list::encode(rows, wide, &mut self.outbox);
        self.asked.push_back(Asked { part, sequence: self.sequence, received_bytes: 0, reported_rows: 0 });
        self.asked_bytes += part.rows as usize * batch.row_bytes;
        self.sequence += 1;
    }

    /// Sends what the socket takes.
    pub fn flush(&mut self) -> Result<(), TransferError> {
        if !matches!(self.stage, Stage::Ready { .. }) {
            return Ok(());
        }
        while self.sent < self.outbox.len() {
            match send(&self.socket, &self.outbox[self.sent..], SendFlags::NOSIGNAL) {
                Ok(sent) => self.sent += sent,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    self.forget_sent();
                    return Ok(());
                }
                Err(errno) => return Err(gone("sending a request", errno)),
            }
        }
        self.outbox.clear();
        self.sent = 0;
        Ok(())
    }

    /// Drops what was sent once it is half of the outbox: less would move bytes too often, and none would let a steady backlog grow it.
    fn forget_sent(&mut self) {
        if self.sent >= self.outbox.len() / 2 {
            self.outbox.drain(..self.sent);
            self.sent = 0;
        }
    }

    /// Goes on with the handshake as far as the socket allows.
    fn shake_hands(&mut self, job: &JobSecret, address: &Address) -> Result<(), TransferError> {
        loop {
            match self.stage {
                Stage::Connecting => {
                    let outcome = sockopt::socket_error(&self.socket).map_err(|e| gone("connecting", e))?;
                    outcome.map_err(|e| gone(&format!("cannot connect to {}", address.socket), e))?;
                    match self.send_small(&handshake::encode_hello(&PROTOCOL, &self.asker_nonce)) {
                        // The socket is still connecting.
                        Err(Errno::AGAIN | Errno::NOTCONN) => return Ok(()),
                        Err(errno) => return Err(gone(&format!("cannot connect to {}", address.socket), errno)),
                        Ok(()) => self.stage = Stage::Greeted,
                    }
                }
                Stage::Greeted => {
                    let Some(hello) = self.receive_small::<HELLO_BYTES>()? else { return Ok(()) };
                    let owner_nonce = handshake::decode_hello(&PROTOCOL, &hello).map_err(TransferError::Protocol)?;
                    let proof = self.handshake(job, address, &owner_nonce).proof(Side::Asker);
                    self.send_small(&proof).map_err(|e| gone("handshake", e))?;
                    self.stage = Stage::Proved { owner_nonce };
                }
                Stage::Proved { owner_nonce } => {
                    let Some(verdict) = self.receive_small::<VERDICT_BYTES>()? else { return Ok(()) };
                    self.judge(&verdict, &self.handshake(job, address, &owner_nonce))?;
                    self.stage = Stage::Ready { in_rows: false };
                    return self.flush();
                }
                Stage::Ready { .. } => return Ok(()),
            }
        }
    }

    fn handshake<'a>(
        &'a self,
        job: &'a JobSecret,
        address: &'a Address,
        owner_nonce: &'a [u8; NONCE_BYTES],
    ) -> Handshake<'a> {
        Handshake {
            protocol: &PROTOCOL,
            job,
            owner_secret: &address.secret,
            asker_nonce: &self.asker_nonce,
            owner_nonce,
        }
    }

    fn judge(&self, verdict: &[u8; VERDICT_BYTES], handshake: &Handshake<'_>) -> Result<(), TransferError> {
        match Verdict::decode(verdict) {
            Some((_, proof)) if !handshake.verify(Side::Owner, proof) => {
                Err(TransferError::Protocol("the owner could not prove that it holds the job's secret".into()))
            }
            Some((Verdict::Welcome, _)) => Ok(()),
            Some((Verdict::Busy, _)) => Err(TransferError::PeerGone(
                "it serves as many connections as it may: raise its tcp.connections_served_max".into(),
            )),
            Some((Verdict::Unable, _)) | None => {
                Err(TransferError::Protocol("the owner answered the handshake with an unknown verdict".into()))
            }
        }
    }

    /// Sends a few bytes, which an empty socket buffer takes whole.
    fn send_small(&self, bytes: &[u8]) -> rustix::io::Result<()> {
        let sent = send(&self.socket, bytes, SendFlags::NOSIGNAL)?;
        if sent == bytes.len() { Ok(()) } else { Err(Errno::NOBUFS) }
    }

    /// So many bytes of a handshake, once they are all there. Nothing beyond them is read.
    fn receive_small<const N: usize>(&mut self) -> Result<Option<[u8; N]>, TransferError> {
        while self.end < N {
            match recv(&self.socket, &mut self.inbox[self.end..N], RecvFlags::empty()) {
                Ok((0, _)) | Err(Errno::CONNRESET) => {
                    return Err(TransferError::PeerGone(
                        "it closed the connection during the handshake: do both ranks hold the same job secret?".into(),
                    ));
                }
                Ok((received, _)) => self.end += received,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(None),
                Err(errno) => return Err(gone("handshake", errno)),
            }
        }
        self.end = 0;
        Ok(Some(self.inbox[..N].try_into().expect("N bytes")))
    }

    /// Does what the socket is ready for and reports what ended by it.
    ///
    /// # Safety
    /// The places of the batches asked for are writable and nobody else's.
    pub unsafe fn drive(
        &mut self,
        job: &JobSecret,
        address: &Address,
        batches: &mut Batches,
        completions: &mut Vec<Completion>,
    ) -> Result<(), TransferError> {
        if !matches!(self.stage, Stage::Ready { .. }) {
            self.shake_hands(job, address)?;
            return Ok(());
        }
        self.flush()?;
        // SAFETY: this function's contract.
        unsafe { self.receive(batches, completions) }
    }

    /// One receive, and all that it brings.
    ///
    /// # Safety
    /// As [`drive`](Self::drive).
    unsafe fn receive(
        &mut self,
        batches: &mut Batches,
        completions: &mut Vec<Completion>,
    ) -> Result<(), TransferError> {
        // SAFETY: this function's contract.
        let received = unsafe {
            match (&self.stage, self.asked.front()) {
                (Stage::Ready { in_rows: true }, Some(asked))
                    if batches[asked.part.batch].row_bytes >= SCATTERED_ROW_BYTES_MIN =>
                {
                    self.receive_in_place(batches)
                }
                _ => recv(&self.socket, &mut self.inbox[self.end..], RecvFlags::empty()).map(|(received, _)| {
                    self.end += received;
                    received
                }),
            }
        };
        match received {
            Ok(0) => return Err(TransferError::PeerGone("it closed the connection".into())),
            Ok(_) => {}
            Err(Errno::AGAIN | Errno::INTR) => return Ok(()),
            Err(errno) => return Err(gone("receiving rows", errno)),
        }
        // SAFETY: this function's contract.
        unsafe { self.sort_inbox(batches, completions)? };
        self.report_progress(batches, completions);
        Ok(())
    }

    /// Receives into the places of the first part, and what follows it into the (empty) inbox.
    ///
    /// # Safety
    /// As [`drive`](Self::drive); the first part's rows are due.
    unsafe fn receive_in_place(&mut self, batches: &Batches) -> rustix::io::Result<usize> {
        let asked = self.asked.front_mut().expect("a part is due");
        let batch = &batches[asked.part.batch];
        self.pieces.clear();
        let mut cursor = Cursor::of(asked, batch);
        let whole = loop {
            let Some((place, bytes)) = cursor.next_piece(usize::MAX) else { break true };
            if !self.pieces.push(place, bytes) {
                break false;
            }
        };
        let wanted = self.pieces.bytes();
        if whole && !self.pieces.is_full() {
            self.pieces.push(self.inbox.as_mut_ptr(), self.inbox.len());
        }
        // SAFETY: the pieces are places of rows that are due, which the contract gives to us, and our own inbox.
        let received = unsafe { self.pieces.receive(self.socket.as_fd())? };
        asked.received_bytes += received.min(wanted);
        self.asked_bytes -= received.min(wanted);
        (self.start, self.end) = (0, received.saturating_sub(wanted));
        Ok(received)
    }

    /// Takes the inbox apart into heads and rows.
    ///
    /// # Safety
    /// As [`drive`](Self::drive).
    unsafe fn sort_inbox(
        &mut self,
        batches: &mut Batches,
        completions: &mut Vec<Completion>,
    ) -> Result<(), TransferError> {
        loop {
            let Stage::Ready { in_rows } = self.stage else { return Ok(()) };
            if in_rows {
                let Some(asked) = self.asked.front_mut() else { return Ok(()) };
                let batch = &batches[asked.part.batch];
                // SAFETY: these rows are due, and the contract gives us their places.
                let taken = unsafe { scatter(asked, batch, &self.inbox[self.start..self.end]) };
                self.start += taken;
                self.asked_bytes -= taken;
                if asked.received_bytes < asked.part.rows as usize * batch.row_bytes {
                    break;
                }
                self.end_part(batches, completions, Ok(()));
            } else {
                if self.end - self.start < REPLY_BYTES {
                    break;
                }
                let head = self.inbox[self.start..self.start + REPLY_BYTES].try_into().expect("a head's bytes");
                self.start += REPLY_BYTES;
                self.handle_head(Reply::decode(head)?, batches, completions)?;
            }
        }
        self.inbox.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.end - self.start);
        Ok(())
    }

    fn handle_head(
        &mut self,
        reply: Reply,
        batches: &mut Batches,
        completions: &mut Vec<Completion>,
    ) -> Result<(), TransferError> {
        let Some(asked) = self.asked.front().filter(|asked| asked.sequence == reply.sequence) else {
            return Err(TransferError::Protocol("the owner answered a request that was not made".into()));
        };
        let batch = &batches[asked.part.batch];
        let due_bytes = asked.part.rows as usize * batch.row_bytes;
        let refusal = match reply.status {
            Status::Rows { payload_bytes } if payload_bytes == due_bytes as u64 => {
                self.stage = Stage::Ready { in_rows: true };
                return Ok(());
            }
            Status::Rows { payload_bytes } => {
                return Err(TransferError::Protocol(format!("the owner sends {payload_bytes} bytes, not {due_bytes}")));
            }
            Status::OutOfRegion { region_bytes } => {
                TransferError::OutOfRegion { region_rows: region_bytes / batch.row_bytes as u64 }
            }
            Status::StaleRegion => TransferError::StaleRegion { region: batch.region, version: batch.version },
        };
        self.asked_bytes -= due_bytes;
        self.end_part(batches, completions, Err(refusal));
        Ok(())
    }

    /// The first part is over: what was not reported of it is now.
    fn end_part(
        &mut self,
        batches: &mut Batches,
        completions: &mut Vec<Completion>,
        status: Result<(), TransferError>,
    ) {
        let Some(asked) = self.asked.pop_front() else { return };
        self.stage = Stage::Ready { in_rows: false };
        completions.extend(asked.rest(&batches[asked.part.batch], asked.part.rows, status));
        batches.end_part(asked.part.batch);
    }

    fn report_progress(&mut self, batches: &Batches, completions: &mut Vec<Completion>) {
        let Some(asked) = self.asked.front_mut() else { return };
        let batch = &batches[asked.part.batch];
        let whole = (asked.received_bytes / batch.row_bytes) as u32;
        if (whole - asked.reported_rows) as usize * batch.row_bytes >= REPORT_BYTES {
            completions.extend(asked.rest(batch, whole, Ok(())));
            asked.reported_rows = whole;
        }
    }

    /// Ends the connection: its sockets close, whole rows are reported as such and the others with `cause`.
    pub fn close(self, cause: &TransferError, batches: &mut Batches, completions: &mut Vec<Completion>) {
        // The peer sees the end even where a forked child still holds the socket.
        let _ = shutdown(&self.socket, Shutdown::Both);
        drop(self.socket);
        for mut asked in self.asked {
            let batch = &batches[asked.part.batch];
            let whole = (asked.received_bytes / batch.row_bytes) as u32;
            completions.extend(asked.rest(batch, whole, Ok(())));
            asked.reported_rows = whole;
            completions.extend(asked.rest(batch, asked.part.rows, Err(cause.clone())));
            batches.end_part(asked.part.batch);
        }
    }
}

impl Asked {
    /// The completion of the rows from the first unreported one up to `until`, if there are any.
    fn rest(&self, batch: &Posted, until: u32, status: Result<(), TransferError>) -> Option<Completion> {
        let count = until - self.reported_rows;
        let first = self.part.first + self.reported_rows;
        (count > 0).then_some(Completion { batch: batch.id, first, count, status })
    }
}

/// Walks over the places of a part, from the first byte that has not arrived.
struct Cursor<'a> {
    places: &'a [u32],
    destination: Destination,
    row_bytes: usize,
    /// Bytes of the first place that are filled.
    filled: usize,
}

impl<'a> Cursor<'a> {
    fn of(asked: &Asked, batch: &'a Posted) -> Self {
        let first = asked.part.first as usize;
        let rows = &batch.places[first..first + asked.part.rows as usize];
        Self {
            places: &rows[asked.received_bytes / batch.row_bytes..],
            destination: batch.destination,
            row_bytes: batch.row_bytes,
            filled: asked.received_bytes % batch.row_bytes,
        }
    }

    /// The next run of adjacent places and how many bytes go there, at most `bytes_max`.
    fn next_piece(&mut self, bytes_max: usize) -> Option<(*mut u8, usize)> {
        let &place = self.places.first()?;
        let dense = self.destination.stride == self.row_bytes;
        let mut run = 1;
        while dense
            && run * self.row_bytes < self.filled.saturating_add(bytes_max)
            && self.places.get(run).is_some_and(|&next| next as usize == place as usize + run)
        {
            run += 1;
        }
        let bytes = (run * self.row_bytes - self.filled).min(bytes_max);
        let at = self.destination.base.wrapping_add(place as usize * self.destination.stride + self.filled);
        let reached = self.filled + bytes;
        self.places = &self.places[reached / self.row_bytes..];
        self.filled = reached % self.row_bytes;
        Some((at, bytes))
    }
}

/// Copies received bytes to the places where they belong and returns how many belonged to this part.
///
/// # Safety
/// The places of the part are writable and nobody else's.
unsafe fn scatter(asked: &mut Asked, batch: &Posted, bytes: &[u8]) -> usize {
    let mut cursor = Cursor::of(asked, batch);
    let mut taken = 0;
    while taken < bytes.len()
        && let Some((place, count)) = cursor.next_piece(bytes.len() - taken)
    {
        // SAFETY: the cursor yields places of this part, writable by contract; the source has `count` bytes left.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr().add(taken), place, count) };
        taken += count;
    }
    asked.received_bytes += taken;
    taken
}

#[cfg(test)]
mod tests {
    //! Goal: a connection that never quite drains keeps a bounded outbox.
    //! Method: the far end of a socket pair reads as much as is asked for, a fixed backlog behind, a hundred times over.

    use super::super::wire;
    use super::*;
    use rustix::net::{AddressFamily, SocketType, socketpair};

    const ROWS: usize = 4096;

    #[test]
    fn a_steady_backlog_does_not_grow_the_outbox() {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None).unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = Address { socket: listener.local_addr().unwrap(), secret: [0; NONCE_BYTES] };
        let mut connection = Connection::open(&address, &TcpConfig::new(JobSecret([0; 32]))).unwrap();
        (connection.socket, connection.stage) = (ours, Stage::Ready { in_rows: false });
        let mut batches = Batches::new(1);
        let (rows, places) = ([7; ROWS], [0; ROWS]);
        let batch = RowBatch {
            id: BatchId(1),
            region: crate::transport::RemoteRegion { peer: crate::id::Rank(0), index: 0, bytes: 1 << 20 },
            version: 0,
            row_bytes: 8,
            rows: &rows,
            places: &places,
            destination: Destination { base: std::ptr::null_mut(), stride: 8, places: 1 },
        };
        let posted = batches.begin(&batch, ROWS, 1, 1).unwrap();
        let part = Part { batch: posted, first: 0, rows: ROWS as u32 };
        let request_bytes = wire::REQUEST_BYTES + 4 * ROWS;
        let mut received = vec![0; request_bytes];
        let mut capacity = 0;
        for round in 0..1000 {
            connection.ask(part, &batches[posted], &rows);
            connection.flush().unwrap();
            // The first hundred are left lying: more than the socket takes.
            let mut wanted = if round < 100 { 0 } else { request_bytes };
            while wanted > 0 {
                wanted -= recv(&theirs, &mut received[..wanted], RecvFlags::empty()).unwrap().0;
                connection.flush().unwrap();
            }
            if round == 200 {
                capacity = connection.outbox.capacity();
                assert!(connection.outbox_bytes() > 10 * request_bytes, "there is no backlog");
            }
        }
        assert!(connection.outbox.capacity() <= 2 * capacity, "{} after {capacity}", connection.outbox.capacity());
    }
}
