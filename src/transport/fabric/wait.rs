//! Waiting for an endpoint and a waker at once.

use super::library::Endpoint;
use crate::transport::Waker;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::time::Duration;

/// Longest wait between two looks at an endpoint: a bound on what a lost wake-up costs.
pub(super) const WAIT_MAX: Duration = Duration::from_millis(100);
/// Between two tries of a post that was refused.
pub(super) const RETRY_AFTER: Duration = Duration::from_millis(1);
/// Shortest and longest sleep where the provider has nothing to wait for.
const SLEEP_MIN: Duration = Duration::from_micros(20);
const SLEEP_MAX: Duration = Duration::from_millis(1);
/// Looks without a sleep, each of which gives the processor away: what is on its way is often there after some.
const SPINS: u32 = 32;

/// How long nothing has happened.
#[derive(Default)]
pub(super) struct Idle {
    looks: u32,
}

impl Idle {
    /// Something has happened.
    pub(super) fn reset(&mut self) {
        self.looks = 0;
    }

    /// Waits, after a bounded spin, until something may have completed, the waker is called or the time is up; true where the waker was
    /// called.
    ///
    /// This is `fi_cq_sread` taken apart, because its wait is ended by nothing but a completion with some providers.
    pub(super) fn wait(&mut self, endpoint: &Endpoint, waker: &Waker, at_most: Duration) -> bool {
        self.looks = self.looks.saturating_add(1);
        if self.looks <= SPINS {
            std::thread::yield_now();
            return false;
        }
        let descriptor = endpoint.descriptor();
        let at_most = match descriptor {
            Some(_) if !endpoint.may_wait() => return false,
            Some(_) => at_most.min(WAIT_MAX),
            None => at_most.min(SLEEP_MIN * (self.looks - SPINS).min(50)).min(SLEEP_MAX),
        };
        let timeout = Timespec { tv_sec: 0, tv_nsec: at_most.subsec_nanos().into() };
        let mut fds = [
            PollFd::from_borrowed_fd(waker.fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(descriptor.unwrap_or(waker.fd()), PollFlags::IN),
        ];
        // An interrupted wait is a short wait.
        let _ = poll(&mut fds, Some(&timeout));
        let woken = fds[0].revents().contains(PollFlags::IN);
        if woken {
            waker.drain();
        }
        woken
    }
}
