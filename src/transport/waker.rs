//! Ending another thread's wait.

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

/// Ends the wait of the thread that polls a channel: an event descriptor, so that it can stand beside sockets and completion
/// channels in one poll.
#[derive(Clone, Debug)]
pub struct Waker {
    event: Arc<OwnedFd>,
}

impl Waker {
    /// A waker that nobody has called yet.
    ///
    /// # Errors
    /// The process is out of descriptors.
    pub fn new() -> std::io::Result<Self> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { event: Arc::new(event) })
    }

    /// Ends the present or the next wait.
    pub fn wake(&self) {
        // A full counter means that a wake-up is pending already.
        let _ = rustix::io::write(&*self.event, &1u64.to_ne_bytes());
    }

    /// Takes back the wake-ups so far.
    pub fn drain(&self) {
        let _ = rustix::io::read(&*self.event, &mut [0u8; 8]);
    }

    /// The descriptor that is readable when woken.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }

    /// Waits for a wake-up and takes it; for channels without descriptors of their own.
    pub fn wait(&self, at_most: Duration) {
        let timeout = Timespec {
            tv_sec: at_most.as_secs().min(i64::MAX as u64) as i64,
            tv_nsec: i64::from(at_most.subsec_nanos()),
        };
        let mut fds = [PollFd::new(&*self.event, PollFlags::IN)];
        // An interrupted wait is a short wait: callers loop on their own condition.
        let _ = poll(&mut fds, Some(&timeout));
        self.drain();
    }
}
