//! Ranks that a launcher has started: Slurm or an MPI launcher says which rank each process is.
//!
//! The set-ups run one after another in the same processes, since a launcher does not start them anew.

use super::job::Job;
use super::{Model, Plan, rank};
use crate::graph::Prepared;
use crate::meeting::meet;
use crate::progress::Progress;
use crate::record::{Document, RankRecord, Run};
use anyhow::{Context, Result};
use rudder::Rank;
use rudder::bootstrap::{Bootstrap, Environment};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;
use tempfile::TempDir;

/// Runs every set-up as one rank of a launched job; the document, on rank 0.
///
/// # Errors
/// The ranks do not meet, or as [`Plan::run`].
pub fn run(plan: &Plan, place: &Environment, meeting: &Path, listen: IpAddr) -> Result<Option<Document>> {
    let job = Job { ranks: place.size, partitions_are_hosts: false, listen, ..plan.job.clone() };
    let plan = Plan { job, launcher: Some(place.launcher), ..plan.clone() };
    plan.check()?;
    let began = Instant::now();
    let bootstrap = meet(place, meeting, listen, plan.job.patience())?;
    let lead = place.rank == Rank(0);
    // One rank prepares the graph for all; the others hear where it is, or that it could not be.
    let prepared = if lead { prepare(&plan, meeting).map(Some) } else { Ok(None) };
    let said = prepared.as_ref().map(|made| made.as_ref().map(|made| &made.path)).map_err(|error| format!("{error:#}"));
    let told = bootstrap.all_gather(&serde_json::to_vec(&said)?, plan.job.patience()).with_context(|| {
        format!("while rank 0 prepares the graph; --patience, now {} s, allows it more", plan.job.patience_s)
    })?;
    let graph: Result<Option<PathBuf>, String> =
        serde_json::from_slice(&told[0]).context("what rank 0 says of the graph")?;
    let graph = graph.map_err(|cause| anyhow::anyhow!("rank 0 could not prepare the graph: {cause}"))?;
    let graph = graph.context("rank 0 says nothing of the graph")?;
    let model = Host::of(&plan, &*bootstrap)?;
    let runs = set_ups(&plan, &bootstrap, &graph, model.socket.as_deref());
    runs.and_then(|runs| match lead {
        true => plan.document(&Prepared::open(&graph)?, model.served.as_ref(), runs, began).map(Some),
        false => Ok(None),
    })
}

/// A prepared graph, and the directory that was made for it and goes with it.
struct PreparedFor {
    path: PathBuf,
    _directory: TempDir,
}

/// Prepares the graph beside the meeting file, where all ranks see it.
fn prepare(plan: &Plan, meeting: &Path) -> Result<PreparedFor> {
    let beside = meeting.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let beside = beside.canonicalize().with_context(|| format!("finding {}", beside.display()))?;
    let directory = tempfile::Builder::new()
        .prefix("rudder-graph-")
        .tempdir_in(&beside)
        .with_context(|| format!("making a directory in {}", beside.display()))?;
    Ok(PreparedFor { path: plan.prepare(&directory.path().join("graph"))?, _directory: directory })
}

fn set_ups(plan: &Plan, bootstrap: &Arc<dyn Bootstrap>, graph: &Path, model: Option<&Path>) -> Result<Vec<Run>> {
    let mut progress = Progress::new();
    let lead = bootstrap.rank() == Rank(0);
    let mut runs = Vec::new();
    for &(setup, lookahead) in &plan.cases {
        let model = model.map(Path::to_owned);
        let job = Job { setup, lookahead, graph: graph.to_owned(), model, ..plan.job.clone() };
        if lead {
            progress.begin(setup.name());
        }
        let record = rank::train(&job, bootstrap.clone(), &mut |event| {
            if lead {
                progress.at(event);
            }
        })?;
        let records = bootstrap.all_gather(&serde_json::to_vec(&record)?, job.patience())?;
        let records: Vec<RankRecord> = records
            .iter()
            .map(|record| serde_json::from_slice(record))
            .collect::<Result<_, _>>()
            .context("a rank's record")?;
        runs.push(Run::merge(setup, lookahead, &records)?);
        if lead {
            progress.end(&format!("{:.2} s an epoch", runs[runs.len() - 1].epoch_s_median));
        }
    }
    Ok(runs)
}

/// The model of this host: the lowest of its ranks serves it to the others.
struct Host {
    socket: Option<PathBuf>,
    served: Option<Model>,
    _directory: Option<tempfile::TempDir>,
}

impl Host {
    fn of(plan: &Plan, bootstrap: &dyn Bootstrap) -> Result<Self> {
        if !plan.asks_model() {
            return Ok(Self { socket: None, served: None, _directory: None });
        }
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let hosts = bootstrap.all_gather(host.as_bytes(), plan.job.patience())?;
        let first = hosts.iter().position(|other| other == host.as_bytes()) == Some(bootstrap.rank().index());
        let directory = if first { Some(super::run_directory()?) } else { None };
        let served = directory.as_ref().map(|directory| plan.serve_model(directory.path()));
        // A host whose model does not load says so to all, so that none waits for it.
        let said: Result<Option<(String, PathBuf)>, String> = match &served {
            Some(Ok(Some(model))) => Ok(Some((host.clone(), model.socket.clone()))),
            Some(Err(error)) => Err(format!("{error:#}")),
            _ => Ok(None),
        };
        let all = bootstrap.all_gather(&serde_json::to_vec(&said)?, plan.job.patience())?;
        let mut socket = None;
        for text in all {
            let said: Result<Option<(String, PathBuf)>, String> = serde_json::from_slice(&text)?;
            let found = said.map_err(|cause| anyhow::anyhow!("a host's model: {cause}"))?;
            socket = socket.or(found.filter(|(other, _)| *other == host).map(|(_, socket)| socket));
        }
        Ok(Self { socket, served: served.transpose()?.flatten(), _directory: directory })
    }
}
