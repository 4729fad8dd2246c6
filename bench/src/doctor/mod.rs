//! `rudder doctor`: what this machine offers a job, what is missing, and what to do about it.
//!
//! Gathering and judging are apart: `gather` reads the machine into plain values, `judge` makes rows of them and touches nothing, so that
//! machines that no developer has are judged in tests. A machine is ready unless something makes a job of its environment impossible: a
//! laptop without NIC, MPI or model is ready.

mod facts;
mod gather;
mod judge;
mod peers;
mod program;
mod row;
mod show;
#[cfg(test)]
mod tests;
mod variables;

use anyhow::{Result, ensure};
use clap::Args;
use rudder::bootstrap::{self, Environment};
use show::{Document, HostRow};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// The exit status of a command that cannot be meant, as clap's.
const USAGE: u8 = 2;

/// `rudder doctor`
#[derive(Args, Clone, Debug)]
pub struct DoctorArgs {
    /// Print one JSON document instead of the table
    #[arg(long)]
    json: bool,
    /// Have all ranks of a job read a few rows from each other, too.
    ///
    /// Under Slurm or MPI the launcher's ranks do so; elsewhere this command starts some on this machine
    #[arg(long)]
    peers: bool,
    /// Number of ranks that this command starts; under Slurm or MPI the launcher's own count holds
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=256), requires = "peers")]
    ranks: u32,
    /// The transport that a job would use, as RUDDER_TRANSPORT; that variable is stronger
    #[arg(long, value_name = "NAME")]
    transport: Option<String>,
    /// The interface that ranks listen on, where a launcher has started them on several machines
    #[arg(long, value_name = "ADDRESS", default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    listen: IpAddr,
    /// Under Slurm or MPI: a new file that all ranks see, where rank 0 leaves what the others need to find it
    #[arg(long, value_name = "FILE", requires = "peers")]
    meeting: Option<PathBuf>,
    /// Give up on ranks that do not come or answer for so many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=3600))]
    patience: u64,
    /// Look at no machine, only at the peers: a rank that this command has started itself
    #[arg(long, hide = true, requires = "meeting")]
    only_peers: bool,
}

impl DoctorArgs {
    fn patience(&self) -> Duration {
        Duration::from_secs(self.patience)
    }
}

/// `rudder doctor`: 0 where a job can run, 1 where it cannot, 2 where the command cannot be meant.
pub fn run(args: &DoctorArgs) -> ExitCode {
    match try_run(args) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("rudder: {error:#}");
            if error.is::<Usage>() { ExitCode::from(USAGE) } else { ExitCode::FAILURE }
        }
    }
}

/// What cannot be meant, in words.
#[derive(Debug)]
struct Usage(String);

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

/// Whether a job can run, as far as this rank is to say.
fn try_run(args: &DoctorArgs) -> Result<bool> {
    let place = bootstrap::environment().ok().flatten().filter(|_| args.peers);
    if let Some(place) = &place {
        check_launched(args, place)?;
    }
    if args.only_peers {
        ensure!(place.is_some(), "this rank is started by `rudder doctor --peers`, not by hand");
        peers::end_with_parent();
    }
    let rows = if args.only_peers { Vec::new() } else { judge::judge(&gather::facts(args)) };
    let host = peers::host();
    let mut document = Document::new(rows.iter().map(|row| HostRow { host: host.clone(), row: row.clone() }).collect());
    match (&place, &args.meeting) {
        (Some(place), Some(meeting)) => match peers::as_rank(args, place, meeting, rows)? {
            Some(report) => document.add(report),
            None => return Ok(true),
        },
        _ if args.peers => document.add(peers::Report { rows: Vec::new(), peers: peers::launch(args) }),
        _ => {}
    }
    println!("{}", if args.json { document.json() } else { document.text() });
    Ok(document.ready)
}

fn check_launched(args: &DoctorArgs, place: &Environment) -> Result<(), Usage> {
    let Environment { launcher, rank, size, .. } = place;
    if args.meeting.is_none() {
        return Err(Usage(format!(
            "{launcher} has started this as {rank} of {size}: name a file for them to meet with --meeting"
        )));
    }
    match peers::WRITING.into_iter().find(|variable| std::env::var_os(variable).is_some()) {
        Some(variable) => {
            Err(Usage(format!("{variable} would have the check write over a job's files: unset it here")))
        }
        None => Ok(()),
    }
}
