//! Who drives the channel: the I/O thread while rows are on their way, and a caller that waits for few rows while nothing else is.
//!
//! A gather of few rows is mostly the waking of threads: of the I/O thread to post it, and of the caller once the rows are there. So where
//! the channel rests, such a caller takes it for as long as its gather lasts. The channel changes hands by a lock that only its driver
//! holds, and that nobody waits for but the I/O thread, which has nothing to do meanwhile that the driver does not do for it.

use super::Shared;
use super::io::{Io, Turn};
use crate::error::Error;
use crate::transport::Waker;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::Duration;

/// Time that the I/O thread is given to end.
pub(super) const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// Longest sleep: a bound on how late a lost wake-up can make anything.
const IDLE: Duration = Duration::from_millis(200);

/// A gather of so many rows at most is driven by its caller: larger ones gain more by the I/O thread, which takes rows in while the caller
/// copies others, than its wake-up costs.
const DRIVEN_ROWS_MAX: usize = 512;

/// Batches that a caller posts before it copies: of a small gather it is one for each owner.
const POSTS_MAX: usize = 64;

/// The channel's place between turns, and the call for another turn.
pub(super) struct Driver {
    /// None before the engine has started and after it has ended.
    io: Mutex<Option<Io>>,
    /// Called for since the last turn began.
    called: AtomicBool,
    /// The channel is unusable.
    broken: AtomicBool,
    waker: Waker,
}

impl Driver {
    pub(super) fn new(waker: Waker) -> Self {
        Self { io: Mutex::new(None), called: AtomicBool::new(false), broken: AtomicBool::new(false), waker }
    }

    /// Gives it the channel.
    pub(super) fn begin(&self, io: Io) {
        *self.io.lock().unwrap_or_else(PoisonError::into_inner) = Some(io);
    }

    /// Calls for a turn: by the thread that is driving, or else by the I/O thread.
    pub(super) fn wake(&self) {
        // In this order: whoever takes back the wake-up finds the call.
        self.called.store(true, Ordering::SeqCst);
        self.waker.wake();
    }
}

/// The right to take turns, until it is dropped: the I/O thread goes on with what is left.
pub(super) struct Turns<'a> {
    shared: &'a Arc<Shared>,
    io: MutexGuard<'a, Option<Io>>,
    last: Turn,
}

impl<'a> Turns<'a> {
    /// Takes the channel for a gather of so many rows, where they are few and nobody has it.
    pub(super) fn take_for(shared: &'a Arc<Shared>, rows: usize) -> Option<Self> {
        if rows > DRIVEN_ROWS_MAX {
            return None;
        }
        let io = match shared.driver.io.try_lock() {
            Ok(io) => io,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return None,
        };
        Self { shared, io, last: Turn::Rested }.usable()
    }

    /// Takes the channel once nobody has it; `None` after its end.
    fn take(shared: &'a Arc<Shared>) -> Option<Self> {
        let driver = &shared.driver;
        let io = match driver.io.try_lock() {
            Ok(io) => io,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => {
                // The wake-up that brought us here was meant for whoever drives, and may sleep still.
                driver.waker.wake();
                driver.io.lock().unwrap_or_else(PoisonError::into_inner)
            }
        };
        Self { shared, io, last: Turn::Rested }.usable()
    }

    fn usable(self) -> Option<Self> {
        (self.io.is_some() && !self.is_over()).then_some(self)
    }

    /// Whether the I/O thread is to end, which needs the channel for it.
    pub(super) fn is_over(&self) -> bool {
        self.shared.stop.load(Ordering::Acquire) || self.shared.driver.broken.load(Ordering::Acquire)
    }

    /// Posts what there is to post, before the caller does something else.
    pub(super) fn post(&mut self) {
        for _ in 0..POSTS_MAX {
            if self.turn(Duration::ZERO) != Turn::Busy {
                return;
            }
        }
    }

    /// One turn, which waits at most so long. A panic or a dead channel ends the engine instead of the process.
    pub(super) fn turn(&mut self, at_most: Duration) -> Turn {
        let Some(io) = &mut *self.io else { return Turn::Rested };
        self.shared.driver.called.store(false, Ordering::SeqCst);
        let cause = match catch_unwind(AssertUnwindSafe(|| io.turn(self.shared, at_most))) {
            Ok(Ok(turn)) => {
                self.last = turn;
                return turn;
            }
            Ok(Err(error)) => Error::to_string(&error),
            Err(_) => "a turn of I/O panicked".to_owned(),
        };
        tracing::error!("the engine is closed, because its channel is unusable: {cause}");
        self.shared.failure.get_or_init(|| cause);
        self.shared.driver.broken.store(true, Ordering::Release);
        Turn::Rested
    }
}

impl Drop for Turns<'_> {
    fn drop(&mut self) {
        if self.last != Turn::Rested && !self.is_over() {
            // What the end of a gather has made possible is seen only now.
            self.turn(Duration::ZERO);
        }
        let driver = &self.shared.driver;
        if self.last != Turn::Rested || self.is_over() || driver.called.load(Ordering::SeqCst) {
            driver.waker.wake();
        }
    }
}

/// The I/O thread: drives whenever nobody else does, until the engine stops or its channel is unusable.
pub(super) fn run(shared: &Arc<Shared>) {
    while let Some(mut turns) = Turns::take(shared) {
        while turns.turn(IDLE) != Turn::Rested && !turns.is_over() {}
        drop(turns);
        if !shared.driver.called.load(Ordering::SeqCst) {
            shared.driver.waker.wait(IDLE);
        }
    }
    let io = shared.driver.io.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(mut io) = io
        && catch_unwind(AssertUnwindSafe(|| io.close(shared))).is_err()
    {
        tracing::error!("the I/O thread panicked while it ended");
    }
    shared.lock().closed = true;
    shared.io_ended.store(true, Ordering::Release);
    shared.changed.notify_all();
}

#[cfg(test)]
mod tests {
    //! Goal: a call for a turn reaches whoever drives, also where the I/O thread takes the wake-up back first. Method: a driver that looks at
    //! the waker only long after the call.
    use super::*;
    use crate::{Config, Engine, PartitionBook, PartitionId, TableId, TableSpec, bootstrap::local};
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    #[test]
    fn a_wake_up_is_passed_on_to_the_driver() {
        let book = PartitionBook::from_starts(vec![0, 1]).unwrap();
        let engine = Engine::builder(Config::default(), Arc::new(local::ranks(1).remove(0)))
            .table(TableSpec::new(TableId(0), book, PartitionId(0), 1), |rows| rows.fill(1))
            .start()
            .unwrap();
        engine.wait_idle(STOP_TIMEOUT).unwrap();
        let shared = &engine.shared;
        let turns = std::iter::repeat_with(|| {
            // So that the I/O thread sleeps by now.
            std::thread::sleep(IDLE / 10);
            Turns::take_for(shared, 1)
        });
        let turns = turns.take(500).flatten().next();
        let turns = turns.expect("the I/O thread lets go of a channel that rests");
        shared.driver.wake();
        std::thread::sleep(IDLE);
        let mut woken = [PollFd::from_borrowed_fd(shared.driver.waker.fd(), PollFlags::IN)];
        let timeout = Timespec { tv_sec: 10, tv_nsec: 0 };
        assert_eq!(poll(&mut woken, Some(&timeout)), Ok(1), "the driver sleeps on");
        drop(turns);
        engine.shutdown().unwrap();
    }
}
