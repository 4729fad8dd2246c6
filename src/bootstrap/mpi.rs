//! A job that MPI's launcher has started.

use super::{Bootstrap, TIMEOUT_MAX, environment};
use crate::error::{Error, Result};
use crate::id::Rank;
use crate::mpi::Comm;
use std::time::Duration;

/// One process of a job under `mpiexec`, or under any launcher that the MPI library knows.
///
/// MPI is started with `MPI_THREAD_MULTIPLE` where the program has not done so, and ended with the last bootstrap or transport that uses
/// it, but only where it was started here. A process can start MPI once: keep one bootstrap until the end.
pub struct MpiBootstrap {
    comm: Comm,
}

impl MpiBootstrap {
    /// All ranks that were launched. Collective; starts MPI where the program has not.
    ///
    /// # Errors
    /// MPI does not start, gives less than `MPI_THREAD_MULTIPLE`, has ended in this process, or not all ranks come within `timeout`.
    pub fn world(timeout: Duration) -> Result<Self> {
        let launched = environment()?;
        let rank = launched.map_or(Rank(0), |launched| launched.rank);
        let comm = Comm::world(timeout.min(TIMEOUT_MAX)).map_err(|cause| Error::Bootstrap { rank, cause })?;
        if let Some(launched) = launched.filter(|launched| comm.size() == 1 && launched.size > 1) {
            tracing::warn!(
                "mpi: {} speaks of {} processes, MPI of one: if these are one job, start it by this MPI's own mpiexec, or by srun \
                 with the --mpi= that it needs (pmi2 for MPICH, pmix for Open MPI)",
                launched.launcher,
                launched.size
            );
        }
        Ok(Self { comm })
    }

    /// The ranks that give the same colour, as a job of their own, in the order of their ranks here; `None` to a rank that gives none.
    /// Collective over this job.
    ///
    /// # Errors
    /// Not all ranks call it within `timeout`.
    pub fn split(&self, color: Option<u32>, timeout: Duration) -> Result<Option<Self>> {
        let split = self.comm.split(color, self.comm.rank(), timeout.min(TIMEOUT_MAX));
        split.map(|comm| comm.map(|comm| Self { comm })).map_err(|cause| self.failed(cause))
    }

    pub(crate) fn comm(&self) -> &Comm {
        &self.comm
    }

    fn failed(&self, cause: String) -> Error {
        Error::Bootstrap { rank: self.rank(), cause }
    }
}

impl Bootstrap for MpiBootstrap {
    fn rank(&self) -> Rank {
        Rank(self.comm.rank())
    }

    fn size(&self) -> u32 {
        self.comm.size()
    }

    fn all_gather(&self, mine: &[u8], timeout: Duration) -> Result<Vec<Vec<u8>>> {
        self.comm.all_gather(mine, timeout.min(TIMEOUT_MAX)).map_err(|cause| self.failed(cause))
    }

    fn barrier(&self, timeout: Duration) -> Result<()> {
        self.comm.barrier(timeout.min(TIMEOUT_MAX)).map_err(|cause| self.failed(cause))
    }
}
