//! What the launcher says about this process, in its environment.

use super::RANKS_MAX;
use crate::error::{Error, Result};
use crate::id::Rank;

/// This process's place in a launched job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Environment {
    /// This process.
    pub rank: Rank,
    /// Number of ranks.
    pub size: u32,
    /// This process's number among those of its host, where the launcher says.
    pub local_rank: Option<u32>,
    /// Whose word it is.
    pub launcher: &'static str,
}

/// A launcher and its variables: rank, size, local rank.
const LAUNCHERS: &[(&str, [&str; 3])] = &[
    // An MPI launcher started by a Slurm script sees Slurm's variables too, of the script's own step: ask it first.
    ("Open MPI", ["OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"]),
    ("PMI", ["PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"]),
    ("Slurm", ["SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"]),
];

/// Reads rank, size and local rank from the variables of Open MPI, PMI or Slurm; `None` where no launcher has set any.
///
/// # Errors
/// A variable is malformed, lacks its companion, or the rank is not below the size, which is at most [`RANKS_MAX`].
pub fn environment() -> Result<Option<Environment>> {
    read(|name| std::env::var(name).ok())
}

fn read(variable: impl Fn(&str) -> Option<String>) -> Result<Option<Environment>> {
    let number = |name: &str| -> Result<Option<u32>> {
        let Some(value) = variable(name) else { return Ok(None) };
        let parsed = value.trim().parse().map(Some);
        parsed.map_err(|_| Error::config(format!("{name} is '{value}', which is not a number of a rank")))
    };
    for &(launcher, [rank_name, size_name, local_name]) in LAUNCHERS {
        let Some(rank) = number(rank_name)? else { continue };
        let Some(size) = number(size_name)? else {
            return Err(Error::config(format!("{launcher} sets {rank_name} but not {size_name}")));
        };
        if rank >= size {
            return Err(Error::config(format!("{rank_name} is {rank} but {size_name} is {size}")));
        }
        if size > RANKS_MAX {
            return Err(Error::config(format!("{size_name} is {size}; a job has at most {RANKS_MAX} ranks")));
        }
        return Ok(Some(Environment { rank: Rank(rank), size, local_rank: number(local_name)?, launcher }));
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    //! Goal: each launcher is understood and contradictions are refused. Method: made-up environments.
    use super::*;

    fn with(variables: &[(&str, &str)]) -> Result<Option<Environment>> {
        read(|name| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned()))
    }

    #[test]
    fn launchers_are_understood() {
        assert_eq!(with(&[]).unwrap(), None);
        let slurm = with(&[("SLURM_PROCID", "3"), ("SLURM_NTASKS", "8"), ("SLURM_LOCALID", "1")]).unwrap().unwrap();
        assert_eq!((slurm.rank, slurm.size, slurm.local_rank), (Rank(3), 8, Some(1)));
        let pmi = with(&[("PMI_RANK", "0"), ("PMI_SIZE", "2"), ("SLURM_PROCID", "5"), ("SLURM_NTASKS", "6")]);
        let pmi = pmi.unwrap().unwrap();
        assert_eq!((pmi.rank, pmi.size, pmi.local_rank, pmi.launcher), (Rank(0), 2, None, "PMI"));
        let open_mpi = with(&[("OMPI_COMM_WORLD_RANK", "1"), ("OMPI_COMM_WORLD_SIZE", "2")]).unwrap().unwrap();
        assert_eq!(open_mpi.launcher, "Open MPI");
    }

    #[test]
    fn contradictions_are_refused() {
        for wrong in [
            &[("PMI_RANK", "2"), ("PMI_SIZE", "2")][..],
            &[("PMI_RANK", "-1"), ("PMI_SIZE", "2")],
            &[("PMI_RANK", "1"), ("PMI_SIZE", "65537")],
            &[("SLURM_PROCID", "0")],
            &[("SLURM_PROCID", "0"), ("SLURM_NTASKS", "many")],
        ] {
            assert!(matches!(with(wrong), Err(Error::Config(_))), "{wrong:?}");
        }
    }
}
