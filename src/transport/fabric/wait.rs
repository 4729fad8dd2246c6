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
/// Looks without a sleep: what is on its way is often there after some, a microsecond or two each. The processor is not given away
/// between them, because where others want it too it may be gone for milliseconds; who sleeps is let in as soon as something comes.
const SPINS: u32 = 32;
/// Alarms of a descriptor in a row without anything behind them, after which it is not believed: half a message is one, but libfabric 1.17's
/// `net` leaves its descriptor readable for good.
const FALSE_ALARMS_MAX: u32 = 8;

/// How long nothing has happened.
#[derive(Default)]
pub(super) struct Idle {
    looks: u32,
    false_alarms: u32,
}

impl Idle {
    /// Something has happened.
    pub(super) fn reset(&mut self) {
        *self = Self::default();
    }

    /// Waits, after a bounded spin, until something may have completed, the waker is called or the time is up; true where the waker was
    /// called.
    ///
    /// This is `fi_cq_sread` taken apart, because its wait is ended by nothing but a completion with some providers.
    pub(super) fn wait(&mut self, endpoint: &Endpoint, waker: &Waker, at_most: Duration) -> bool {
        self.looks = self.looks.saturating_add(1);
        if self.looks <= SPINS {
            std::hint::spin_loop();
            return false;
        }
        let descriptor = endpoint.descriptor().filter(|_| self.false_alarms < FALSE_ALARMS_MAX);
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
        if descriptor.is_some() && fds[1].revents().contains(PollFlags::IN) {
            self.false_alarms += 1;
        }
        woken
    }
}
