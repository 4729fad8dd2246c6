//! The rudder command.

mod cli;
mod demo;
mod get;
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
        Command::Train(args) => train::run(&args),
        Command::Demo(args) => demo::run(&args),
        Command::Get(args) => get::run(&args),
        Command::Report(args) => report::run(&args),
        Command::Rank => train::rank::run_from_stdin(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("rudder: {error:#}");
            ExitCode::FAILURE
        }
    }
}
