//! A job of threads in one process.

use super::{Bootstrap, RANKS_MAX, deadline_after, missing};
use crate::error::{Error, Result};
use crate::id::Rank;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// One thread's place in a job of threads.
///
/// ```
/// use rudder::bootstrap::{Bootstrap, local};
/// let ranks = local::ranks(2);
/// let all = std::thread::scope(|scope| {
///     let other = scope.spawn(|| ranks[1].all_gather(b"one", std::time::Duration::from_secs(5)));
///     let mine = ranks[0].all_gather(b"zero", std::time::Duration::from_secs(5)).unwrap();
///     assert_eq!(other.join().unwrap().unwrap(), mine);
///     mine
/// });
/// assert_eq!(all, [b"zero".to_vec(), b"one".to_vec()]);
/// ```
pub struct LocalBootstrap {
    rank: Rank,
    job: Arc<Job>,
}

struct Job {
    state: Mutex<Round>,
    changed: Condvar,
}

struct Round {
    number: u64,
    arrived: Vec<Option<Vec<u8>>>,
    finished: Arc<Vec<Vec<u8>>>,
    /// Why no further round can be had.
    broken: Option<String>,
}

/// The `n` ranks of a job, one for each thread.
///
/// # Panics
/// `n` is more than [`RANKS_MAX`].
pub fn ranks(n: u32) -> Vec<LocalBootstrap> {
    assert!(n <= RANKS_MAX, "a job of {n} ranks: {RANKS_MAX} is the most");
    let round = Round { number: 0, arrived: vec![None; n as usize], finished: Arc::default(), broken: None };
    let job = Arc::new(Job { state: Mutex::new(round), changed: Condvar::new() });
    (0..n).map(|rank| LocalBootstrap { rank: Rank(rank), job: job.clone() }).collect()
}

impl LocalBootstrap {
    fn error(&self, cause: String) -> Error {
        Error::Bootstrap { rank: self.rank, cause }
    }
}

impl Bootstrap for LocalBootstrap {
    fn rank(&self) -> Rank {
        self.rank
    }

    fn size(&self) -> u32 {
        self.job.state.lock().unwrap_or_else(PoisonError::into_inner).arrived.len() as u32
    }

    fn all_gather(&self, mine: &[u8], timeout: Duration) -> Result<Vec<Vec<u8>>> {
        let deadline = deadline_after(timeout);
        let mut round = self.job.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(cause) = &round.broken {
            return Err(self.error(cause.clone()));
        }
        let number = round.number;
        round.arrived[self.rank.index()] = Some(mine.to_vec());
        if round.arrived.iter().all(Option::is_some) {
            round.finished = Arc::new(round.arrived.iter_mut().filter_map(Option::take).collect());
            round.number += 1;
            self.job.changed.notify_all();
        }
        while round.number == number {
            if let Some(cause) = &round.broken {
                return Err(self.error(cause.clone()));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let absent = missing(round.arrived.iter().map(Option::is_some));
                let cause = format!("{absent} did not take part within {timeout:?}");
                round.broken = Some(cause.clone());
                self.job.changed.notify_all();
                return Err(self.error(cause));
            }
            round = self.job.changed.wait_timeout(round, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        // The next round cannot finish before this rank enters it, so that these are still the bytes of its own.
        Ok(round.finished.to_vec())
    }
}

impl Drop for LocalBootstrap {
    fn drop(&mut self) {
        let mut round = self.job.state.lock().unwrap_or_else(PoisonError::into_inner);
        round.broken.get_or_insert(format!("{} has left the job", self.rank));
        self.job.changed.notify_all();
    }
}
