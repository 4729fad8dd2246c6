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

/// Most ranks of a job: what rank 0 keeps for each, and a mistaken number of ranks, end somewhere.
pub const RANKS_MAX: u32 = 1 << 16;

/// Absent ranks that an error names.
const ABSENT_NAMED: usize = 8;

/// The ranks of which `present` is false, in words.
pub(crate) fn missing(present: impl Iterator<Item = bool>) -> String {
    let mut absent = present.enumerate().filter(|(_, present)| !present).map(|(rank, _)| rank.to_string());
    let named: Vec<String> = absent.by_ref().take(ABSENT_NAMED).collect();
    let more = match absent.count() {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    match &named[..] {
        [one] => format!("rank {one}"),
        several => format!("ranks {}{more}", several.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    //! Goal: an error names absent ranks without end to its length. Method: few and many of them.

    use super::missing;

    #[test]
    fn a_few_absent_ranks_are_named() {
        assert_eq!(missing([true, false].into_iter()), "rank 1");
        assert_eq!(missing([false, true, false].into_iter()), "ranks 0, 2");
        assert_eq!(missing([false; 8].into_iter()), "ranks 0, 1, 2, 3, 4, 5, 6, 7");
        assert_eq!(missing([false; 5000].into_iter()), "ranks 0, 1, 2, 3, 4, 5, 6, 7 and 4992 more");
    }
}
