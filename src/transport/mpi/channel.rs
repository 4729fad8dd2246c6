//! Batches under way: their gets, a flush, and the version that the owner shows after it.
//!
//! MPI's flush completes gets but blocks until they are done, and its requests complete a get of listed rows before the rows are there in
//! MPICH 4.0. So a batch ends with a small get that has a request: once that is answered, so are the rows before it on all but exotic
//! networks, and the flush that makes sure of it returns at once.

use super::gets::Gets;
use super::window::HEADER_BYTES;
use super::{BATCH_ROWS_MAX, BATCHES_IN_FLIGHT_MAX, Core, Imported, failed, gets::Issuer, progress};
use crate::error::{Error, Result, TransferError};
use crate::id::Rank;
use crate::mpi::{Handle, check, test};
use crate::transport::{BatchId, Channel, Completion, Fenced, RemoteRegion, RowBatch, Wait, Waker};
use ::mpi::ffi;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::ffi::c_int;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

/// How long a waiting poll asks MPI without sleeping: some libraries move only some rows each time they are asked.
const SPIN: Duration = Duration::from_micros(100);
const SPIN_EACH_ROW: Duration = Duration::from_micros(2);
/// Times that it asks before it gives its core away.
const ASKED_AT_ONCE: usize = 64;
/// The sleeps after that: what rows may be late by, against a wake-up each.
const SLEEP: Duration = Duration::from_micros(50);
/// Time for a peer to answer what is under way when it is aborted.
const ABORT_TIMEOUT: Duration = Duration::from_secs(1);

/// Gets by MPI.
pub(super) struct MpiChannel {
    /// The imports known so far, so that a post takes no lock.
    known: Vec<Arc<Imported>>,
    issuer: Issuer,
    flights: Vec<Flight>,
    /// Where MPI writes the versions that owners show; flight `f` has word `f.word`.
    words: Box<[u64]>,
    free_words: Vec<usize>,
    done: Vec<Completion>,
    /// When each peer was last told of gets.
    nudged: Vec<Instant>,
    waker: Waker,
    process: u32,
    // Dropped last: what came before names the core's windows, which it frees.
    core: Arc<Core>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// The rows, and the small get behind them.
    Rows,
    /// The rows are there; the version is on its way.
    Version,
}

struct Flight {
    batch: BatchId,
    region: RemoteRegion,
    window: Handle<ffi::MPI_Win>,
    version: u64,
    count: u32,
    stage: Stage,
    request: Handle<ffi::MPI_Request>,
    word: usize,
    /// What is wrong with it, told once its rows cannot be written to any more.
    failure: Option<String>,
    /// Reported as aborted, and only here because MPI may still write to its rows.
    reported: bool,
}

impl MpiChannel {
    pub(super) fn new(core: Arc<Core>) -> Result<Self> {
        let waker = Waker::new().map_err(|e| failed(format!("a channel needs a file descriptor: {e}")))?;
        let long_ago = Instant::now().checked_sub(progress::NUDGE_EVERY).unwrap_or_else(Instant::now);
        Ok(Self {
            known: Vec::new(),
            issuer: Issuer::default(),
            flights: Vec::with_capacity(BATCHES_IN_FLIGHT_MAX),
            words: vec![0; BATCHES_IN_FLIGHT_MAX].into_boxed_slice(),
            free_words: (0..BATCHES_IN_FLIGHT_MAX).collect(),
            done: Vec::with_capacity(2 * BATCHES_IN_FLIGHT_MAX),
            nudged: vec![long_ago; core.comm().size() as usize],
            waker,
            process: std::process::id(),
            core,
        })
    }

    fn imported(&mut self, region: RemoteRegion) -> Result<&Imported> {
        let index = region.index as usize;
        if index >= self.known.len() {
            let imports = self.core.imports.read().unwrap_or_else(PoisonError::into_inner);
            self.known.extend_from_slice(&imports[self.known.len()..]);
        }
        let known = self.known.get(index).filter(|known| known.region == region);
        known.map(|known| &**known).ok_or_else(|| Error::argument(format!("{region:?} was not imported here")))
    }

    /// Tells the peers of what is under way, where they must be told.
    fn nudge(&mut self) {
        self.flights.iter().for_each(|flight| nudge(&self.core, &mut self.nudged, flight.region.peer));
    }

    /// Takes every flight as far as it goes without waiting.
    fn advance(&mut self) {
        let mut at = 0;
        while at < self.flights.len() {
            if self.flights[at].advance(&mut self.words) {
                let flight = self.flights.swap_remove(at);
                self.free_words.push(flight.word);
                if !flight.reported {
                    let shown = self.words[flight.word];
                    self.done.push(flight.completion(shown));
                }
            } else {
                at += 1;
            }
        }
    }

    /// Advances until something is done, the waker is called, or the time is over.
    fn advance_for(&mut self, at_most: Duration) {
        let began = Instant::now();
        let rows = self.flights.iter().map(|flight| flight.count).sum();
        let spin = SPIN + SPIN_EACH_ROW * rows;
        loop {
            self.nudge();
            for _ in 0..ASKED_AT_ONCE {
                self.advance();
            }
            let waited = began.elapsed();
            if !self.done.is_empty() || waited >= at_most {
                return;
            }
            if waited < spin {
                std::thread::yield_now();
            } else if self.sleep(SLEEP.min(at_most - waited)) {
                return;
            }
        }
    }

    /// Sleeps, and says whether it was woken.
    fn sleep(&self, time: Duration) -> bool {
        let timeout = Timespec { tv_sec: 0, tv_nsec: i64::from(time.subsec_nanos()) };
        let woken = poll(&mut [PollFd::from_borrowed_fd(self.waker.fd(), PollFlags::IN)], Some(&timeout));
        let woken = woken.is_ok_and(|ready| ready > 0);
        if woken {
            self.waker.drain();
        }
        woken
    }

    /// Waits until no get from the peer is under way, and says whether that came to be.
    fn settle(&mut self, peer: Option<Rank>, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        loop {
            self.nudge();
            self.advance();
            let concerned = |flight: &Flight| peer.is_none_or(|peer| flight.region.peer == peer);
            if !self.flights.iter().any(concerned) {
                return true;
            }
            if Instant::now() >= deadline {
                return false;
            }
            std::thread::yield_now();
        }
    }
}

impl Flight {
    /// Whether nothing of it is under way any more.
    fn advance(&mut self, words: &mut [u64]) -> bool {
        loop {
            match test(&mut self.request.0) {
                Ok(true) => {}
                Ok(false) => return false,
                Err(cause) => self.failure = Some(cause),
            }
            if self.stage == Stage::Version {
                return true;
            }
            let flushed = flush(self.window.get(), self.region.peer);
            self.stage = Stage::Version;
            let asked = flushed.and_then(|()| {
                // SAFETY: the word is this flight's until it has ended, and the slice does not move.
                unsafe { ask_version(self.window.get(), self.region.peer, &mut words[self.word]) }
            });
            match asked {
                Ok(request) => self.request = Handle(request),
                Err(cause) => {
                    self.failure.get_or_insert(cause);
                    return true;
                }
            }
        }
    }

    fn completion(self, shown: u64) -> Completion {
        let status = match self.failure {
            Some(cause) => Err(TransferError::Io(cause)),
            None if shown == self.version => Ok(()),
            None => Err(TransferError::StaleRegion { region: self.region.index.into(), version: self.version }),
        };
        Completion { batch: self.batch, first: 0, count: self.count, status }
    }
}

/// Tells a peer that gets from it are under way, unless it was told just now or need not be.
fn nudge(core: &Core, nudged: &mut [Instant], peer: Rank) {
    if !core.nudges || peer.0 == core.rank() {
        return;
    }
    let (now, last) = (Instant::now(), &mut nudged[peer.index()]);
    if now.duration_since(*last) >= progress::NUDGE_EVERY {
        *last = now;
        if let Err(cause) = progress::nudge(core.comm().raw(), peer.0 as c_int) {
            tracing::debug!("mpi: {peer} was not told of gets under way: {cause}");
        }
    }
}

fn flush(window: ffi::MPI_Win, peer: Rank) -> Result<(), String> {
    // SAFETY: the window is locked for all ranks as long as it lives.
    check(unsafe { ffi::MPI_Win_flush(peer.0 as c_int, window) }, "MPI_Win_flush")
}

/// Starts a get of the version that the peer shows.
///
/// # Safety
/// The word stays where it is, and untouched, until the request is done.
unsafe fn ask_version(window: ffi::MPI_Win, peer: Rank, word: &mut u64) -> Result<ffi::MPI_Request, String> {
    // SAFETY: constants of the library.
    let (mut request, kind) = unsafe { (ffi::RSMPI_REQUEST_NULL, ffi::RSMPI_UINT64_T) };
    let word: *mut u64 = word;
    // SAFETY: one word from the beginning of the peer's part, to a word that the caller promises.
    let code = unsafe { ffi::MPI_Rget(word.cast(), 1, kind, peer.0 as c_int, 0, 1, kind, window, &mut request) };
    check(code, "MPI_Rget").map(|()| request)
}

// SAFETY: gets name the posted rows and their places only. A flight is reported after the flush that completes its gets, or as aborted:
// then `abort` has either seen that flush or said that it cannot promise anything.
unsafe impl Channel for MpiChannel {
    unsafe fn post(&mut self, batch: &RowBatch<'_>) -> Result<usize> {
        batch.check()?;
        let row_bytes = batch.row_bytes;
        let peer = batch.region.peer;
        let window = self.imported(batch.region)?.window.raw();
        let countable = c_int::MAX as usize / row_bytes;
        if countable == 0 {
            return Err(Error::argument(format!("rows of {row_bytes} bytes, and MPI counts to {}", c_int::MAX)));
        }
        let count = batch.rows.len().min(BATCH_ROWS_MAX).min(countable);
        if count == 0 {
            return Ok(0);
        }
        let Some(word) = self.free_words.pop() else { return Ok(0) };
        let gets = Gets {
            window,
            peer: peer.0 as c_int,
            offset: HEADER_BYTES,
            row_bytes,
            rows: &batch.rows[..count],
            places: &batch.places[..count],
            destination: batch.destination,
        };
        let form = self.core.forms.for_rows_of(row_bytes);
        // SAFETY: rows were checked against the region and places against the destination, which the caller vouches for until the flight
        // has ended or its abort has failed.
        let issued = unsafe { self.issuer.issue(form, &gets, || nudge(&self.core, &mut self.nudged, peer)) };
        let request = issued.and_then(|()| {
            // SAFETY: the word is this flight's until it has ended, and the slice does not move.
            unsafe { ask_version(window, peer, &mut self.words[word]) }
        });
        // What could not be started in full may have been started in part: it ends by the flush too.
        // SAFETY: a constant of the library.
        let (request, failure) = request.map_or_else(|e| (unsafe { ffi::RSMPI_REQUEST_NULL }, Some(e)), |r| (r, None));
        self.flights.push(Flight {
            batch: batch.id,
            region: batch.region,
            window: Handle(window),
            version: batch.version,
            count: count as u32,
            stage: Stage::Rows,
            request: Handle(request),
            word,
            failure,
            reported: false,
        });
        Ok(count)
    }

    fn poll(&mut self, completions: &mut Vec<Completion>, wait: Wait) -> Result<()> {
        match wait {
            Wait::For(at_most) if self.done.is_empty() && self.flights.is_empty() => self.waker.wait(at_most),
            Wait::For(at_most) if self.done.is_empty() => self.advance_for(at_most),
            _ => {
                self.nudge();
                self.advance();
            }
        }
        completions.append(&mut self.done);
        Ok(())
    }

    fn abort(&mut self, peer: Rank) -> Result<Fenced> {
        if self.settle(Some(peer), ABORT_TIMEOUT) {
            return Ok(Fenced::new());
        }
        for flight in self.flights.iter_mut().filter(|flight| flight.region.peer == peer && !flight.reported) {
            flight.reported = true;
            let status = Err(TransferError::Aborted);
            self.done.push(Completion { batch: flight.batch, first: 0, count: flight.count, status });
        }
        Err(failed(format!("{peer} does not answer within {ABORT_TIMEOUT:?}, and MPI cannot cancel a get")))
    }

    fn waker(&self) -> Waker {
        self.waker.clone()
    }
}

impl Drop for MpiChannel {
    fn drop(&mut self) {
        let ours = self.process == std::process::id();
        if self.flights.is_empty() || (ours && self.settle(None, ABORT_TIMEOUT)) {
            return;
        }
        // MPI may still write to the words.
        std::mem::forget(std::mem::take(&mut self.words));
        if ours {
            tracing::warn!("mpi: a channel ends with {} batches under way", self.flights.len());
        }
    }
}
