//! A gather under way.

use super::Shared;
use super::driver::Turns;
use crate::error::{Error, Result};
use crate::memory::Rows;
use crate::pipeline::{Outstanding, RequestId};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

/// After its deadline, a request is over within this time: what is posted is aborted by then.
const ABORT_GRACE: Duration = Duration::from_secs(10);

/// What a dropped request gives its posted rows before their peer is aborted.
const CANCEL_GRACE: Duration = Duration::from_millis(200);

/// A gather that was started. It holds the rows; dropping it aborts.
pub struct Request {
    shared: Arc<Shared>,
    id: RequestId,
    observed: bool,
    started: Duration,
    /// Its number in the trace, where it is recorded.
    minibatch: Option<u64>,
    collected: bool,
}

impl Request {
    pub(super) fn new(
        shared: Arc<Shared>,
        id: RequestId,
        observed: bool,
        started: Duration,
        minibatch: Option<u64>,
    ) -> Self {
        Self { shared, id, observed, started, minibatch, collected: false }
    }

    /// Whether [`wait`](Request::wait) would return at once.
    ///
    /// # Errors
    /// In a forked child.
    pub fn test(&self) -> Result<bool> {
        self.shared.check_process()?;
        Ok(self.shared.lock().pipeline.is_over(self.id))
    }

    /// Waits for the rows. The time spent counts as stall, unless the engine was paused at the start.
    ///
    /// # Errors
    /// Names the rank, the range and the cause. Nothing will write to the rows any more; they are gone back to their owner.
    pub fn wait(self) -> Result<Rows> {
        self.shared.check_process()?;
        let (result, rows) = self.collect();
        result.and(rows.ok_or(Error::Closed))
    }

    /// As [`wait`](Request::wait), and gives the rows back where it fails too, unless they had to be leaked.
    pub(crate) fn collect(self) -> (Result<()>, Option<Rows>) {
        self.collect_by(None)
    }

    /// As [`collect`](Request::collect), by a caller that drives the channel, where `turns` are given.
    pub(super) fn collect_by(mut self, turns: Option<Turns<'_>>) -> (Result<()>, Option<Rows>) {
        let began = Instant::now();
        let began_at = self.shared.now();
        let overlapped = self.shared.recorder.as_ref().map(|recorder| recorder.handle_wait(self.started, began_at));
        let timeout = self.shared.config.gather_timeout;
        let patience = (self.started + timeout / 2).saturating_sub(began_at);
        let collected = self.finish(timeout + ABORT_GRACE, Some(began + patience), turns);
        if let Some((recorder, overlapped)) = self.shared.recorder.as_ref().zip(overlapped) {
            recorder.handle_waited(self.minibatch, overlapped, began_at, self.shared.now());
        }
        if self.observed {
            self.shared.stall_ns.fetch_add(began.elapsed().as_nanos() as u64, Ordering::Relaxed);
        }
        collected
    }

    /// Aborts what is open and gives the rows back, whose bytes are undefined then; `None` where a transport could not promise to leave them
    /// alone, so that they were leaked. In a forked child it only forgets the request.
    pub fn cancel(mut self) -> Option<Rows> {
        self.abort()
    }

    fn abort(&mut self) -> Option<Rows> {
        if self.collected || self.shared.check_process().is_err() {
            return None;
        }
        let now = self.shared.now();
        self.shared.lock().pipeline.cancel(now, self.id, CANCEL_GRACE);
        self.shared.driver.wake();
        self.shared.changed.notify_all();
        // An aborted gather has nothing to report.
        self.finish(CANCEL_GRACE + ABORT_GRACE, None, None).1
    }

    /// Ends the request; from `tell_at` on, one that is not over says what it waits for.
    fn finish(
        &mut self,
        timeout: Duration,
        mut tell_at: Option<Instant>,
        mut turns: Option<Turns<'_>>,
    ) -> (Result<()>, Option<Rows>) {
        let mut deadline = Instant::now() + timeout;
        let mut expired = false;
        self.collected = true;
        let mut state = self.shared.lock();
        while !state.pipeline.is_over(self.id) {
            let now = Instant::now();
            if tell_at.take_if(|at| *at <= now).is_some() {
                let outstanding = state.pipeline.outstanding(self.shared.now(), self.id);
                drop(state);
                outstanding.iter().for_each(tell);
                state = self.shared.lock();
                continue;
            }
            let left = deadline.saturating_duration_since(now);
            if left.is_zero() && expired {
                break;
            }
            if left.is_zero() {
                // A process that was stopped for so long finds all its deadlines passed: the I/O thread gets its time to abort all the same.
                expired = true;
                state.pipeline.expire(self.shared.now(), self.id);
                self.shared.driver.wake();
                deadline = Instant::now() + ABORT_GRACE;
                continue;
            }
            let left = tell_at.map_or(left, |at| left.min(at.saturating_duration_since(now)));
            state = match turns.as_mut().filter(|turns| !turns.is_over()) {
                Some(turns) => {
                    drop(state);
                    turns.turn(left);
                    self.shared.lock()
                }
                None => {
                    turns = None;
                    self.shared.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
        let over = state.pipeline.is_over(self.id);
        let (result, leaked) = state.pipeline.collect(self.id);
        let rows = state.rows[self.id.index()].take();
        state.destinations[self.id.index()] = None;
        drop(state);
        let Some(rows) = rows else { return (Err(Error::Closed), None) };
        if over && !leaked {
            return (result, Some(rows));
        }
        if rows.is_lent() {
            // The memory is the caller's and may be freed as soon as we return, while a device may still write to it.
            tracing::error!("a transport broke its promise to fence an aborted get into the caller's memory");
            std::process::abort();
        }
        rows.leak();
        (Err(result.err().unwrap_or(Error::Closed)), None)
    }
}

/// Half of its time is over: who looks at a job that stands still learns whom it waits for, before the deadline ends it.
fn tell(outstanding: &Outstanding) {
    let Outstanding { rows, missing, age, .. } = outstanding;
    tracing::warn!(
        "a gather of {rows} rows waits for {missing} of them after {:.1} s: {outstanding}",
        age.as_secs_f64()
    );
}

impl Drop for Request {
    fn drop(&mut self) {
        self.abort();
    }
}
