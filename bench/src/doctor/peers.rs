//! Whether the ranks of a job reach each other: each reads a few rows of every other, through the very engine that a job would start.
//!
//! Every wait has a deadline, and each pair is tried by itself, so that the one that fails is named.

use super::row::{Row, State};
use super::show::{Document, HostRow};
use super::{DoctorArgs, program};
use crate::meeting::meet;
use anyhow::{Context, Result, ensure};
use rudder::bootstrap::{Bootstrap, Environment};
use rudder::{Config, Engine, NodeId, PartitionBook, PartitionId, Rank, TableId, TableSpec};
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

const TABLE: TableId = TableId(0);
/// Rows of each rank.
const ROWS: u64 = 4;
const ROW_BYTES: usize = 64;
/// Time for the rows of one peer.
const GATHER_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the ranks that this command starts may take beyond their own deadlines.
const GRACE: Duration = Duration::from_secs(10);

/// What the ranks found of each other.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Peers {
    /// Number of ranks.
    pub ranks: u32,
    /// Their hosts, each once.
    pub hosts: Vec<String>,
    /// What moved the rows.
    pub transport: Option<String>,
    /// Pairs of a reader and an owner.
    pub pairs: u64,
    /// The longest that the rows of a peer took.
    pub slowest_us: u64,
    /// Pairs of which the reader got no rows, or wrong ones.
    pub failures: Vec<Failure>,
    /// Why there is nothing to say of pairs, where there is not.
    pub error: Option<String>,
}

impl Peers {
    /// Whether every rank reads from every other.
    pub fn is_well(&self) -> bool {
        self.error.is_none() && self.failures.is_empty()
    }
}

/// A pair that failed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Failure {
    /// The rank that reads.
    pub reader: u32,
    /// Its host.
    pub reader_host: String,
    /// The rank whose rows are read.
    pub owner: u32,
    /// Its host.
    pub owner_host: String,
    /// Why.
    pub cause: String,
}

/// What rank 0 hears: of the other machines what is not ok, and how the pairs did.
pub struct Report {
    pub rows: Vec<HostRow>,
    pub peers: Peers,
}

/// What a rank tells the others.
#[derive(Serialize, Deserialize)]
struct Said {
    host: String,
    rudder: String,
    rows: Vec<Row>,
    /// By owner: the time that its rows took, in microseconds.
    reads: Vec<Result<u64, String>>,
}

/// This machine's name.
pub fn host() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// A parent that is killed cannot stop its ranks: the kernel does.
pub fn end_with_parent() {
    if let Err(cause) = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL)) {
        eprintln!("rudder: this rank will not end with its parent: {cause}");
    }
}

/// Variables by which the engine would write over what a job has left.
pub const WRITING: [&str; 2] = ["RUDDER_TRACE", "RUDDER_STATS_FILE"];

/// Takes part as one rank of a launched job; the report, on rank 0.
///
/// # Errors
/// Another rank than 0 fails; that of rank 0 is in its report.
pub fn as_rank(args: &DoctorArgs, place: &Environment, meeting: &Path, rows: Vec<Row>) -> Result<Option<Report>> {
    let outcome = read_all(args, place, meeting, rows);
    if place.rank == Rank(0) {
        let failed = |cause: anyhow::Error| {
            let (ranks, hosts) = (place.size, vec![host()]);
            Report {
                rows: Vec::new(),
                peers: Peers { ranks, hosts, error: Some(format!("{cause:#}")), ..Peers::default() },
            }
        };
        return Ok(Some(outcome.unwrap_or_else(failed)));
    }
    outcome.map(|_| None).with_context(|| format!("{} on {}", place.rank, host()))
}

fn read_all(args: &DoctorArgs, place: &Environment, meeting: &Path, rows: Vec<Row>) -> Result<Report> {
    let patience = args.patience();
    let bootstrap = meet(place, meeting, args.listen, patience)?;
    let engine = start(args, bootstrap.clone()).context("starting the engine")?;
    let until = Instant::now() + patience;
    let (rank, size) = (place.rank.0, place.size);
    let mut reads: Vec<Result<u64, String>> = vec![Ok(0); size as usize];
    // Each begins behind itself, so that no owner serves all at once.
    for owner in (1..size).map(|step| (rank + step) % size) {
        reads[owner as usize] = match Instant::now() < until {
            true => read(&engine, owner).map_err(|cause| format!("{cause:#}")),
            false => Err(format!("not tried: {patience:?} are over; --patience allows more")),
        };
    }
    let rows = rows.into_iter().filter(|row| row.state != State::Ok).collect();
    let said = Said { host: host(), rudder: env!("CARGO_PKG_VERSION").to_owned(), rows, reads };
    // The slowest rank has met a deadline with each of its peers.
    let told = bootstrap.all_gather(&serde_json::to_vec(&said)?, patience + GATHER_TIMEOUT + GRACE)?;
    let said: Vec<Said> = told.iter().map(|text| serde_json::from_slice(text)).collect::<Result<_, _>>()?;
    let report = merge(said, engine.transport());
    engine.shutdown()?;
    Ok(report)
}

fn byte(owner: u32, row: u64) -> u8 {
    (u64::from(owner) * 31 + row * 7 + 1) as u8
}

fn start(args: &DoctorArgs, bootstrap: Arc<dyn Bootstrap>) -> Result<Engine> {
    let (rank, size) = (bootstrap.rank(), bootstrap.size());
    let book = PartitionBook::from_starts((0..=u64::from(size)).map(|owner| owner * ROWS).collect())?;
    let config = Config {
        transport: args.transport.clone().unwrap_or_else(|| "auto".to_owned()),
        listen: args.listen,
        // Rows are to come by the transport, every time; without a halo there is no buffer.
        map_host_rows: false,
        gather_timeout: GATHER_TIMEOUT,
        transfer_timeout: GATHER_TIMEOUT,
        collective_timeout: args.patience(),
        ..Config::default()
    };
    let spec = TableSpec::new(TABLE, book, PartitionId(rank.0), ROW_BYTES);
    let fill = |rows: &mut [u8]| {
        for (row, bytes) in (0..).zip(rows.chunks_mut(ROW_BYTES)) {
            bytes.fill(byte(rank.0, row));
        }
    };
    Ok(Engine::builder(config, bootstrap).table(spec, fill).start()?)
}

/// Reads the rows of one owner; how long that took, in microseconds.
fn read(engine: &Engine, owner: u32) -> Result<u64> {
    let first = u64::from(owner) * ROWS;
    let nodes: Vec<NodeId> = (first..first + ROWS).map(NodeId).collect();
    let mut rows = vec![0; nodes.len() * ROW_BYTES];
    let began = Instant::now();
    engine.gather(TABLE, &nodes, None, &mut rows)?;
    let took = began.elapsed().as_micros() as u64;
    let right = (0..).zip(rows.chunks(ROW_BYTES)).all(|(row, bytes)| bytes.iter().all(|&b| b == byte(owner, row)));
    ensure!(right, "the rows have wrong bytes");
    Ok(took)
}

fn merge(said: Vec<Said>, transport: &str) -> Report {
    let mut peers = Peers { ranks: said.len() as u32, transport: Some(transport.to_owned()), ..Peers::default() };
    let mut rows = Vec::new();
    for one in &said {
        if !peers.hosts.contains(&one.host) {
            peers.hosts.push(one.host.clone());
            // Rank 0 tells of its own machine itself.
            let others = one.rows.iter().filter(|_| one.host != said[0].host);
            rows.extend(others.map(|row| HostRow { host: one.host.clone(), row: row.clone() }));
        }
        if one.rudder != said[0].rudder {
            peers.error =
                Some(format!("rudder is {} on {} and {} on {}", said[0].rudder, said[0].host, one.rudder, one.host));
        }
    }
    for (reader, one) in (0..).zip(&said) {
        for (owner, (read, there)) in (0..).zip(one.reads.iter().zip(&said)).filter(|&(owner, _)| owner != reader) {
            peers.pairs += 1;
            match read {
                Ok(us) => peers.slowest_us = peers.slowest_us.max(*us),
                Err(cause) => peers.failures.push(Failure {
                    reader,
                    reader_host: one.host.clone(),
                    owner,
                    owner_host: there.host.clone(),
                    cause: cause.clone(),
                }),
            }
        }
    }
    Report { rows, peers }
}

/// Starts ranks on this machine, as a launcher would, and returns what they found.
pub fn launch(args: &DoctorArgs) -> Peers {
    let failed = |cause: anyhow::Error| Peers {
        ranks: args.ranks,
        hosts: vec![host()],
        error: Some(format!("{cause:#}")),
        ..Peers::default()
    };
    try_launch(args).unwrap_or_else(failed)
}

/// Ended when this is dropped.
struct Ranks(Vec<Child>);

impl Drop for Ranks {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn try_launch(args: &DoctorArgs) -> Result<Peers> {
    let directory = tempfile::Builder::new().prefix("rudder-").tempdir().context("making a directory for the ranks")?;
    let file = |rank: u32, what: &str| directory.path().join(format!("{rank}.{what}"));
    let program = std::env::current_exe().context("finding this program's own file")?;
    let mut ranks = Ranks(Vec::new());
    for rank in 0..args.ranks {
        let mut command = Command::new(&program);
        command.args(["doctor", "--peers", "--json", "--only-peers", "--listen"]).arg(args.listen.to_string());
        command.arg("--patience").arg(args.patience.to_string()).arg("--meeting").arg(directory.path().join("meeting"));
        command.args(args.transport.iter().flat_map(|name| ["--transport", name]));
        command.env("PMI_RANK", rank.to_string()).env("PMI_SIZE", args.ranks.to_string());
        // Theirs is this job, whatever else has started this command, and they leave nothing behind.
        for variable in WRITING.into_iter().chain(["OMPI_COMM_WORLD_RANK", "RUDDER_METRICS"]) {
            command.env_remove(variable);
        }
        let create = |what: &str| std::fs::File::create(file(rank, what)).context("making a file for a rank");
        command.stdin(Stdio::null()).stdout(create("out")?).stderr(create("err")?);
        ranks.0.push(command.spawn().with_context(|| format!("starting rank {rank} ({})", program.display()))?);
    }
    // Meeting, start-up, reading and telling have the patience of each rank.
    let until = Instant::now() + 4 * args.patience() + GRACE;
    for child in &mut ranks.0 {
        // One that is killed here is told of by rank 0, or by the lack of its document.
        let _ = program::wait(child, until.saturating_duration_since(Instant::now()));
    }
    let text = std::fs::read(file(0, "out")).unwrap_or_default();
    let peers = serde_json::from_slice::<Document>(&text).ok().and_then(|document| document.peers);
    let words = || {
        let said = |rank| std::fs::read_to_string(file(rank, "err")).unwrap_or_default();
        (0..args.ranks).map(said).filter(|said| !said.is_empty()).collect::<Vec<_>>().join("\n").trim().to_owned()
    };
    let mut peers = peers.with_context(|| format!("rank 0 tells nothing; the ranks' last words: {}", words()))?;
    if let Some(cause) = &mut peers.error {
        let words = words();
        if !words.is_empty() {
            *cause = format!("{cause}\n{words}");
        }
    }
    Ok(peers)
}

#[cfg(test)]
mod tests {
    //! Goal: the pair that fails is named, with both hosts and the cause. Method: what three ranks on two hosts would have said.

    use super::*;

    fn said(host: &str, reads: &[Result<u64, String>]) -> Said {
        let rows = vec![Row::better("locked memory", "64 KiB", "More.")];
        Said { host: host.into(), rudder: "0.1.0".into(), rows, reads: reads.to_vec() }
    }

    #[test]
    fn a_failing_pair_is_named_and_other_hosts_faults_are_told() {
        let fails = || Err("the peer is gone".to_owned());
        let ranks = vec![
            said("a", &[Ok(0), Ok(5), Ok(7)]),
            said("a", &[Ok(9), Ok(0), fails()]),
            said("b", &[Ok(1), Ok(2), Ok(0)]),
        ];
        let Report { rows, peers } = merge(ranks, "tcp");
        assert_eq!((peers.ranks, peers.pairs, peers.slowest_us, peers.hosts.len()), (3, 6, 9, 2));
        let [failure] = &peers.failures[..] else { panic!("{peers:?}") };
        assert_eq!((failure.reader, failure.owner), (1, 2));
        assert_eq!((&*failure.reader_host, &*failure.owner_host, &*failure.cause), ("a", "b", "the peer is gone"));
        assert!(!peers.is_well());
        assert_eq!(rows.iter().map(|row| row.host.as_str()).collect::<Vec<_>>(), ["b"]);
    }

    #[test]
    fn ranks_of_different_versions_are_told_apart() {
        let mut other = said("b", &[Ok(1), Ok(0)]);
        other.rudder = "0.2.0".into();
        let peers = merge(vec![said("a", &[Ok(0), Ok(5)]), other], "tcp").peers;
        assert!(peers.error.as_ref().unwrap().contains("0.2.0 on b"), "{peers:?}");
    }
}
