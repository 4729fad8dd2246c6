//! `rudder mpi` in a build without MPI: says how to build one. What others measured with one can be read all the same.

pub mod fitted;

// What writes documents, so that what reads them is held against it without MPI.
#[cfg(test)]
#[expect(dead_code, reason = "nothing is measured")]
mod args;
#[cfg(test)]
#[expect(dead_code, reason = "as above")]
mod document;
#[cfg(test)]
mod loggp;

#[cfg(test)]
pub use document::sample;

use anyhow::{Result, bail};
use clap::Args;

/// Whatever was asked for.
#[derive(Args, Clone, Debug)]
#[command(disable_help_flag = true)]
pub struct MpiArgs {
    /// What a build with MPI takes
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
    arguments: Vec<String>,
}

/// Refuses.
///
/// # Errors
/// Always.
pub fn run(args: &MpiArgs) -> Result<()> {
    bail!(
        "this build has no MPI, which 'rudder mpi {}' needs. One build for each MPI: MPICC=mpicc cargo build --release --package \
         rudder-bench --features mpi --target-dir target/mpi (docs/mpi.md)",
        args.arguments.join(" ")
    );
}
