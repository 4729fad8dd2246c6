//! The rudder command.

mod cli;
mod clock;
mod demo;
mod doctor;
mod fit;
mod get;
mod graph;
mod meeting;
mod model;
#[cfg_attr(not(feature = "mpi"), path = "mpi/absent.rs")]
mod mpi;
mod partition;
mod peak;
mod pilot;
mod progress;
mod project;
mod record;
mod replay;
mod report;
mod sampler;
mod setup;
mod statistics;
mod study;
mod timeline;
mod trace;
mod train;
mod workload;

use clap::Parser;
use cli::{Cli, Command};
use std::process::ExitCode;
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    // `RUDDER_DEBUG=info` tells each choice that is made and why; without it there are warnings only.
    let filter = EnvFilter::try_from_env("RUDDER_DEBUG").unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).without_time().init();
    let done = match Cli::parse().command {
        Command::Train(args) => train::run(&args),
        Command::Demo(args) => demo::run(&args),
        Command::Get(args) => get::run(&args),
        Command::Mpi(args) => mpi::run(&args),
        Command::Doctor(args) => return doctor::run(&args),
        Command::Report(args) => report::run(&args),
        Command::Trace(args) => trace::run(&args),
        Command::Replay(args) => replay::run(&args),
        Command::Fit(args) => fit::run(&args),
        Command::Pilot(args) => pilot::run(&args),
        Command::Study(args) => study::run(&args),
        Command::Project(args) => project::run(&args),
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
