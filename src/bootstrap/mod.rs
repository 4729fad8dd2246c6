//! Who is in the job: ranks find each other, prove that they belong, and spread addresses and tokens.
//!
//! A bootstrap is one collective, [`all_gather`](Bootstrap::all_gather), with a deadline: everything that start-up and shutdown need is made of it, so
//! that a new one (MPI, PMIx) is a small file.

use crate::error::Result;
use crate::id::Rank;
use std::time::{Duration, Instant};

mod environment;
pub mod local;
#[cfg(feature = "mpi")]
mod mpi;
mod tcp;

pub use environment::{Environment, environment};
pub use local::LocalBootstrap;
#[cfg(feature = "mpi")]
pub use mpi::MpiBootstrap;
pub use tcp::{TcpBootstrap, UniqueId};

/// The ranks of a job and their one collective.
pub trait Bootstrap: Send + Sync {
    /// This process.
    fn rank(&self) -> Rank;

    /// Number of ranks.
    fn size(&self) -> u32;

    /// Gives every rank the bytes of every rank, in rank order. Collective: all ranks call it in the same order.
    ///
    /// # Errors
    /// Names the ranks that did not take part within `timeout`.
    fn all_gather(&self, mine: &[u8], timeout: Duration) -> Result<Vec<Vec<u8>>>;

    /// Returns when every rank has called it.
    ///
    /// # Errors
    /// As [`all_gather`](Bootstrap::all_gather).
    fn barrier(&self, timeout: Duration) -> Result<()> {
        self.all_gather(&[], timeout).map(|_| ())
    }
}

/// Longer timeouts end after 30 days too: clocks overflow at what is meant by "for ever".
const TIMEOUT_MAX: Duration = Duration::from_secs(30 * 24 * 3600);

/// When a timeout that begins now is over.
fn deadline_after(timeout: Duration) -> Instant {
    Instant::now() + timeout.min(TIMEOUT_MAX)
}

/// The ranks of which `present` is false, in words.
pub(crate) fn missing(present: impl Iterator<Item = bool>) -> String {
    let absent: Vec<String> =
        present.enumerate().filter(|(_, present)| !present).map(|(rank, _)| rank.to_string()).collect();
    match absent.len() {
        1 => format!("rank {}", absent[0]),
        _ => format!("ranks {}", absent.join(", ")),
    }
}
