//! The rudder command.

mod cli;
mod graph;
mod model;
mod partition;
mod progress;
mod report;
mod sampler;
mod train;

use clap::Parser;
use cli::{Cli, Command};
use std::process::ExitCode;

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Report(args) => report::run(&args),
        other => Err(anyhow::anyhow!("{other:?}")),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("rudder: {error:#}");
            ExitCode::FAILURE
        }
    }
}
