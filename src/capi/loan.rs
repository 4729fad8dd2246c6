//! Memory of the program's that the library uses in place: it is given back when the last loan of it has ended.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Counts the loans that are out.
#[derive(Debug, Default)]
pub(super) struct Lender {
    out: Mutex<usize>,
    returned: Condvar,
}

impl Lender {
    fn out(&self) -> MutexGuard<'_, usize> {
        self.out.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn lend(self: &Arc<Self>) -> Loan {
        *self.out() += 1;
        Loan(self.clone())
    }

    /// Whether all loans end within `timeout`.
    pub fn wait(&self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        let mut out = self.out();
        while *out > 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            out = self.returned.wait_timeout(out, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }
}

/// A loan, until it is dropped.
#[derive(Debug)]
pub(super) struct Loan(Arc<Lender>);

impl Drop for Loan {
    fn drop(&mut self) {
        *self.0.out() -= 1;
        self.0.returned.notify_all();
    }
}
