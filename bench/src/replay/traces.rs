//! The traces of a job's ranks, in memory as a replay wants them.
//!
//! Ranks of a job step together, so what is replayed is what all of them have: a trace that was cut off or has a gap ends there, and the others
//! with it. Evaluation is left out, since no buffer learns from it.

use anyhow::{Context, Result, bail, ensure};
use rudder::buffer::BufferHints;
use rudder::trace::{Event, Header, Minibatch, Reader, file_of};
use rudder::{NodeId, Rank};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A step's own work on one rank.
#[derive(Clone, Copy, Debug, Default)]
pub struct Work {
    /// Sampling and announcing, before the gather that starts in this step.
    pub sample: Duration,
    /// The rest, but for the gradients.
    pub compute: Duration,
    /// Whether its gather started while the step before computed.
    pub overlapped: bool,
}

/// One rank.
pub struct RankTrace {
    /// What its trace begins with.
    pub header: Header,
    /// What its buffer is told.
    pub hints: BufferHints,
    nodes: Vec<NodeId>,
    ends: Vec<usize>,
    work: Vec<Work>,
    recorded: Vec<Recorded>,
    /// Minibatches after which an epoch has ended.
    epochs: Vec<usize>,
    /// Where and why it ends before its job did.
    damage: Option<String>,
}

/// What the run itself had of a step.
#[derive(Clone, Copy, Debug, Default)]
struct Recorded {
    stall: Duration,
    allreduce: Duration,
    hits: u64,
    rows: u64,
}

impl RankTrace {
    /// A trace of this header, without minibatches yet.
    ///
    /// # Errors
    /// It is not of one table, or the table's partitions do not hold together.
    pub fn new(header: Header) -> Result<Self> {
        let [table] = &header.tables[..] else {
            bail!(
                "{} tables are recorded, a replay is of one: record one feature, such as attach(g, features=[\"feat\"])",
                header.tables.len()
            );
        };
        let hints = table.hints()?;
        Ok(Self {
            header,
            hints,
            nodes: Vec::new(),
            ends: vec![0],
            work: Vec::new(),
            recorded: Vec::new(),
            epochs: Vec::new(),
            damage: None,
        })
    }

    fn read(path: &Path) -> Result<Self> {
        let mut reader = Reader::open(path)?;
        let mut trace = Self::new(reader.header().clone()).with_context(|| path.display().to_string())?;
        for event in &mut reader {
            match event {
                Ok(Event::Minibatch(minibatch)) => trace.push(&minibatch),
                Ok(Event::EpochEnd) => trace.end_epoch(),
                Ok(Event::Gap { events }) => {
                    trace.damage = Some(format!("{}: {events} minibatches are missing", path.display()));
                    break;
                }
                Err(cause) => trace.damage = Some(cause.to_string()),
            }
        }
        Ok(trace)
    }

    /// The epoch ends here.
    pub fn end_epoch(&mut self) {
        self.epochs.push(self.work.len());
    }

    /// Takes a minibatch, unless it was one of evaluation.
    pub fn push(&mut self, minibatch: &Minibatch) {
        if !minibatch.observed {
            return;
        }
        self.nodes.extend_from_slice(&minibatch.nodes);
        self.ends.push(self.nodes.len());
        let (step, overlapped) = (minibatch.step, minibatch.overlapped);
        self.work.push(Work { sample: step.sample, compute: step.compute, overlapped });
        self.recorded.push(Recorded {
            stall: minibatch.stall,
            allreduce: step.allreduce,
            hits: minibatch.hits,
            rows: minibatch.demand_rows + minibatch.prefetched_rows,
        });
    }

    /// The nodes that a minibatch wants from other ranks.
    pub fn nodes(&self, minibatch: usize) -> &[NodeId] {
        &self.nodes[self.ends[minibatch]..self.ends[minibatch + 1]]
    }

    /// The work of a step.
    pub fn work(&self, step: usize) -> Work {
        self.work[step]
    }

    /// Bytes of a row.
    pub fn row_bytes(&self) -> u64 {
        self.header.tables[0].row_bytes
    }
}

/// All ranks of a job.
pub struct Job {
    /// What its files begin with.
    pub name: String,
    /// In rank order.
    pub ranks: Vec<RankTrace>,
    /// Steps that all ranks have.
    pub steps: usize,
    /// Where each epoch ends, the last at `steps`.
    pub epochs: Vec<usize>,
    /// What is not as it could be.
    pub notes: Vec<String>,
}

impl Job {
    /// The jobs of these files or prefixes, in the order in which they are named.
    ///
    /// # Errors
    /// A file cannot be read, or files do not belong together.
    pub fn read_all(paths: &[PathBuf]) -> Result<Vec<Self>> {
        let mut jobs: Vec<(String, Vec<PathBuf>)> = Vec::new();
        for path in paths {
            let (prefix, files) = files_of(path)?;
            match jobs.iter_mut().find(|(name, _)| *name == prefix) {
                Some((_, known)) => known.extend(files),
                None => jobs.push((prefix, files)),
            }
        }
        jobs.iter().map(|(name, files)| Self::read(name, files).with_context(|| format!("the job {name}"))).collect()
    }

    fn read(name: &str, files: &[PathBuf]) -> Result<Self> {
        Self::of(name, files.iter().map(|file| RankTrace::read(file)).collect::<Result<Vec<_>>>()?)
    }

    /// Has controllers know beforehand the minibatches, counted from 0, with which the job changes.
    pub fn announce_changes(&mut self, changes: &[u64]) {
        self.ranks.iter_mut().for_each(|rank| rank.header.facts.changes = changes.to_vec());
    }

    /// The job of these ranks.
    ///
    /// # Errors
    /// They do not belong together, or have no step in common.
    pub fn of(name: &str, mut ranks: Vec<RankTrace>) -> Result<Self> {
        ranks.sort_by_key(|trace| trace.header.rank);
        let first = &ranks[0];
        for pair in ranks.windows(2) {
            ensure!(pair[0].header.rank != pair[1].header.rank, "{} is given twice", pair[0].header.rank);
        }
        for trace in &ranks {
            let (one, other) = (&first.header, &trace.header);
            let alike = one.ranks == other.ranks && one.tables[0].starts == other.tables[0].starts;
            ensure!(alike, "{} and {} are of different jobs", one.rank, other.rank);
        }
        let steps = ranks.iter().map(|trace| trace.work.len()).min().unwrap_or(0);
        ensure!(steps > 0, "no minibatch was recorded that all ranks have");
        let mut epochs: Vec<usize> = first.epochs.iter().copied().filter(|&end| (1..steps).contains(&end)).collect();
        epochs.dedup();
        epochs.push(steps);
        let notes = notes(&ranks, steps);
        Ok(Self { name: name.to_owned(), steps, epochs, notes, ranks })
    }

    /// The time of averaging gradients without the wait for slower ranks: that of the rank which the others waited for.
    pub fn allreduce(&self, step: usize) -> Duration {
        self.ranks.iter().map(|trace| trace.recorded[step].allreduce).min().unwrap_or_default()
    }

    /// Nodes wanted from other ranks, of all steps and ranks.
    pub fn wanted(&self) -> u64 {
        self.ranks.iter().map(|trace| trace.ends[self.steps] as u64).sum()
    }

    /// What the run itself had: rows fetched but for the fill, the hit rate, the stall of each step's slowest rank, and each epoch.
    pub fn recorded(&self) -> (u64, f64, Duration, Vec<f64>) {
        let steps = || self.ranks.iter().flat_map(|trace| &trace.recorded[..self.steps]);
        let stall = |step: usize| self.ranks.iter().map(|trace| trace.recorded[step].stall).max().unwrap_or_default();
        let took = |trace: &RankTrace, step: usize| {
            let Recorded { stall, allreduce, .. } = trace.recorded[step];
            stall + allreduce + trace.work[step].sample + trace.work[step].compute
        };
        let epoch = |start: usize, end: usize| {
            let of = |trace: &RankTrace| (start..end).map(|step| took(trace, step)).sum::<Duration>();
            self.ranks.iter().map(of).max().unwrap_or_default().as_secs_f64()
        };
        let starts = [0].into_iter().chain(self.epochs.iter().copied());
        let epochs = starts.zip(&self.epochs).map(|(start, &end)| epoch(start, end));
        (
            steps().map(|step| step.rows).sum(),
            steps().map(|step| step.hits).sum::<u64>() as f64 / self.wanted().max(1) as f64,
            (0..self.steps).map(stall).sum(),
            epochs.collect(),
        )
    }
}

/// What the user is to know of these traces.
fn notes(ranks: &[RankTrace], steps: usize) -> Vec<String> {
    let mut notes: Vec<String> = ranks.iter().filter_map(|trace| trace.damage.clone()).collect();
    let header = &ranks[0].header;
    if ranks.len() < header.ranks as usize {
        notes.push(format!(
            "{} of the job's {} ranks are given: the others ask for nothing here",
            ranks.len(),
            header.ranks
        ));
    }
    if ranks.iter().any(|trace| trace.work.len() > steps) {
        notes.push(format!("only the first {steps} steps, which all ranks have, are replayed"));
    }
    if header.sharing > 1 {
        notes.push(format!(
            "{} ranks of a host shared one buffer when this was recorded; here each has its own",
            header.sharing
        ));
    }
    notes
}

/// The prefix of a trace's file, or of a prefix itself, and the files that it stands for.
fn files_of(path: &Path) -> Result<(String, Vec<PathBuf>)> {
    let name = path.to_string_lossy();
    let rank = name.strip_suffix(".trace").and_then(|name| name.rsplit_once('.'));
    if let Some((prefix, _)) = rank.filter(|(_, rank)| rank.parse::<u32>().is_ok()) {
        return Ok((prefix.to_owned(), vec![path.to_owned()]));
    }
    let files: Vec<PathBuf> = (0..).map(|rank| file_of(path, Rank(rank))).take_while(|file| file.exists()).collect();
    ensure!(!files.is_empty(), "{name} is no trace, and there is none of that name with .0.trace behind it");
    Ok((name.into_owned(), files))
}
