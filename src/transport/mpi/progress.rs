//! Calls into MPI on behalf of peers.
//!
//! Some libraries answer a peer's get only while its owner is inside MPI, and then only some rows a call. An owner that computes would let
//! every reader wait, so a thread of the transport makes the calls. Readers tell it that they have gets under way by empty messages: it
//! calls without a pause for a short while after each, giving its core away between calls, and otherwise looks for messages at a low rate.

use crate::mpi::{Handle, arrived, check, receive_empty};
use crate::transport::Waker;
use ::mpi::ffi;
use std::ffi::c_int;
use std::ptr::null;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// The messages of readers with gets under way.
const NUDGE: c_int = 2;
/// How often a reader sends one while it waits.
pub(super) const NUDGE_EVERY: Duration = Duration::from_micros(500);
/// How long one of them keeps the thread busy.
const BUSY: Duration = Duration::from_millis(5);
/// Sleep between looks for messages: what the first get after a pause may wait, against a wake-up each time.
const IDLE: Duration = Duration::from_micros(250);
/// Calls between two looks at the clock.
const CALLS: usize = 16;
/// Messages taken in one turn.
const NUDGES_MAX: usize = 64;

/// Tells a peer that gets from it are under way.
pub(super) fn nudge(comm: ffi::MPI_Comm, peer: c_int) -> Result<(), String> {
    // SAFETY: constants of the library.
    let (mut request, byte) = unsafe { (ffi::RSMPI_REQUEST_NULL, ffi::RSMPI_UINT8_T) };
    // SAFETY: an empty message has no buffer to keep.
    unsafe {
        check(ffi::MPI_Isend(null(), 0, byte, peer, NUDGE, comm, &mut request), "MPI_Isend")?;
        check(ffi::MPI_Request_free(&mut request), "MPI_Request_free")
    }
}

/// Makes the calls, a few a turn.
pub(super) struct Pump {
    comm: Handle<ffi::MPI_Comm>,
    busy_until: Instant,
}

impl Pump {
    pub(super) fn new(comm: ffi::MPI_Comm) -> Self {
        Self { comm: Handle(comm), busy_until: Instant::now() }
    }

    /// Lets MPI work, and says how long to sleep until the next turn: not at all while readers wait.
    pub(super) fn turn(&mut self) -> Result<Duration, String> {
        // SAFETY: a constant of the library.
        let (comm, any) = (self.comm.get(), unsafe { ffi::RSMPI_ANY_SOURCE });
        let mut nudges = 0;
        for _ in 0..CALLS {
            if nudges < NUDGES_MAX && arrived(comm, any, NUDGE)? {
                receive_empty(comm, any, NUDGE)?;
                nudges += 1;
            }
        }
        let now = Instant::now();
        if nudges > 0 {
            self.busy_until = now + BUSY;
        }
        Ok(if now < self.busy_until { Duration::ZERO } else { IDLE })
    }
}

/// The thread that turns the pump, ended by [`stop`](Progress::stop).
pub(super) struct Progress {
    stop: Arc<AtomicBool>,
    waker: Waker,
    thread: JoinHandle<()>,
}

impl Progress {
    pub(super) fn start(comm: ffi::MPI_Comm) -> Result<Self, String> {
        let waker = Waker::new().map_err(|cause| format!("an event for the progress thread: {cause}"))?;
        let stop = Arc::new(AtomicBool::new(false));
        let thread = std::thread::Builder::new().name("rudder-mpi-pump".into()).spawn({
            let (stop, waker, mut pump) = (stop.clone(), waker.clone(), Pump::new(comm));
            move || {
                while !stop.load(Ordering::Acquire) {
                    match pump.turn() {
                        Ok(Duration::ZERO) => std::thread::yield_now(),
                        Ok(pause) => waker.wait(pause),
                        Err(cause) => return tracing::error!("mpi: peers may wait for this rank's rows: {cause}"),
                    }
                }
            }
        });
        let thread = thread.map_err(|cause| format!("a progress thread: {cause}"))?;
        Ok(Self { stop, waker, thread })
    }

    pub(super) fn stop(self) {
        self.stop.store(true, Ordering::Release);
        self.waker.wake();
        let _ = self.thread.join();
    }
}
