//! `rudder replay`: recorded jobs once more, under other policies, controllers, buffers and links, in virtual time.

mod belady;
mod case;
mod document;
mod links;
mod oracle;
mod report;
mod rows;
mod traces;
mod world;

pub use case::{Buffer, Case, settled};
pub use links::SlowRank;
pub use report::in_flight_words;
pub use rows::AtOnce;
pub use traces::{Job, RankTrace, Work};
pub use world::{Outcome, replay_steered};

use crate::cli::{ReplayArgs, latency, positive};
use crate::progress::{Event, Progress, Stage};
use crate::record::Made;
use crate::report::write;
use anyhow::{Context, Result};
use belady::NextUses;
use case::Cases;
use clap::Args;
use document::{Document, FORMAT, Recorded, Row, Settings};
use serde::Serialize;
use std::num::NonZero;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// How replays are gone about, and where what came of them is left.
#[derive(Args, Clone, Debug)]
pub struct ReplayRun {
    /// What a controller takes for a decision, in seconds of the job's time
    #[arg(long, value_name = "SECONDS", default_value_t = 0.0, value_parser = latency)]
    decision_latency: f64,
    /// Most rows fetched ahead that are on their way at once, of a rank; as in the job, if not given
    #[arg(long, value_name = "ROWS", value_parser = positive)]
    in_flight: Option<usize>,
    /// Replays at a time; as many as there are cores, if not given
    #[arg(long, value_name = "N")]
    threads: Option<NonZero<usize>>,
    /// Write the document here
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write the HTML report here
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
}

impl ReplayRun {
    /// What a controller takes for a decision.
    pub fn decision_latency(&self) -> Duration {
        Duration::from_secs_f64(self.decision_latency)
    }

    /// Most rows fetched ahead that are on their way at once, where that is given.
    pub fn in_flight(&self) -> Option<usize> {
        self.in_flight
    }

    /// Replays at a time.
    pub fn threads(&self) -> usize {
        or_cores(self.threads)
    }

    /// Leaves the document and its report where they were asked for.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn leave(&self, document: &impl Serialize, report: impl FnOnce() -> String) -> Result<()> {
        if let Some(path) = &self.json {
            write(path, &(serde_json::to_string(document)? + "\n"))?;
        }
        if let Some(path) = &self.report {
            write(path, &report())?;
        }
        Ok(())
    }
}

/// As many as were asked for, or as there are cores.
pub fn or_cores(threads: Option<NonZero<usize>>) -> usize {
    threads.or_else(|| std::thread::available_parallelism().ok()).map_or(1, usize::from)
}

/// `rudder replay`
///
/// # Errors
/// A trace cannot be read, the lists make no sense, or a file cannot be written.
pub fn run(args: &ReplayArgs) -> Result<()> {
    let cases = Cases::of(args)?;
    let jobs = Job::read_all(&args.traces)?;
    for (slow, job) in args.slow.iter().flat_map(|slow| jobs.iter().map(move |job| (slow, job))) {
        slow.check(job.ranks[0].header.ranks as usize).with_context(|| format!("the job {}", job.name))?;
    }
    let document = document(args, &jobs, &cases)?;
    println!("{}", report::text(&document));
    args.run.leave(&document, || report::html(&document))
}

/// Replays everything.
fn document(args: &ReplayArgs, jobs: &[Job], cases: &Cases) -> Result<Document> {
    let began = Instant::now();
    let threads = args.run.threads();
    let bounds = fewest_rows(threads, jobs, &args.buffer)?;
    let bound = |job: usize, buffer: Buffer| {
        let at = args.buffer.iter().position(|known| *known == buffer);
        at.map_or(0, |at| bounds[job][at])
    };
    let replays: Vec<(usize, &Case)> =
        (0..jobs.len()).flat_map(|job| cases.cases.iter().map(move |case| (job, case))).collect();
    let replaying = Instant::now();
    let outcomes = parallel("replays", threads, &replays, |&(job, case)| {
        outcome(&jobs[job], case)
            .with_context(|| format!("{}, {}, buffer {}", jobs[job].name, case.policy_words, case.buffer))
    })?;
    let replay_s = replaying.elapsed().as_secs_f64();
    let mut rows = Vec::new();
    for (number, job) in jobs.iter().enumerate() {
        rows.extend(cases.bounds.iter().map(|&buffer| Row::bound(job, buffer, bound(number, buffer))));
        let of_job = replays.iter().zip(&outcomes).filter(|((at, _), _)| *at == number);
        rows.extend(of_job.map(|((_, case), outcome)| Row::of(job, case, outcome, bound(number, case.buffer))));
    }
    let of_job = |job: &Job| job.notes.iter().map(|note| format!("{}: {note}", job.name)).collect::<Vec<_>>();
    Ok(Document {
        made: Made::here(FORMAT),
        settings: Settings {
            link: args.link.to_string(),
            slow: args.slow.map(|slow| slow.to_string()),
            ingress_only: args.ingress_only,
            decision_latency_s: args.run.decision_latency().as_secs_f64(),
            in_flight: args.run.in_flight(),
        },
        recorded: jobs.iter().map(Recorded::of).collect(),
        rows,
        notes: cases.note.iter().cloned().chain(jobs.iter().flat_map(of_job)).collect(),
        node_ids: jobs.iter().map(Job::wanted).sum::<u64>() * cases.cases.len() as u64,
        threads: threads.min(replays.len()),
        replay_s,
        wall_s: began.elapsed().as_secs_f64(),
    })
}

/// By job and buffer, the fewest rows that the buffers of a job's ranks can do with.
///
/// # Errors
/// The partitions of a trace do not hold together.
pub fn fewest_rows(threads: usize, jobs: &[Job], buffers: &[Buffer]) -> Result<Vec<Vec<u64>>> {
    let uses = parallel("next uses", threads, jobs, |job| {
        Ok(job.ranks.iter().map(|trace| NextUses::of(trace, job.steps)).collect::<Vec<_>>())
    })?;
    let pairs: Vec<(usize, Buffer)> =
        (0..jobs.len()).flat_map(|job| buffers.iter().map(move |&buffer| (job, buffer))).collect();
    let bounds = parallel("Belady's bound", threads, &pairs, |&(job, buffer)| {
        let rows = |(trace, uses): (_, &NextUses)| Ok(uses.rows(buffer.slots(trace)?));
        jobs[job].ranks.iter().zip(&uses[job]).map(rows).sum::<Result<u64>>()
    })?;
    Ok(bounds.chunks(buffers.len().max(1)).map(<[u64]>::to_vec).collect())
}

/// Replays a job under a case.
///
/// # Errors
/// The case does not fit the job.
pub fn outcome(job: &Job, case: &Case) -> Result<Outcome> {
    if let Some(latency) = oracle::latency(&case.controller_words)? {
        return oracle::replay(job, case, latency);
    }
    let replay = if rows::suffice(job, case)? { rows::replay } else { world::replay };
    replay(job, case)
}

/// Does the same to many things, on several cores, and shows how far it is. The results are in the things' order.
///
/// # Errors
/// That of the first of them which fails.
pub fn parallel<T: Sync, R: Send>(
    title: &str,
    threads: usize,
    things: &[T],
    work: impl Fn(&T) -> Result<R> + Sync,
) -> Result<Vec<R>> {
    let mut progress = Progress::new();
    progress.begin(title);
    let (next, (send, receive)) = (AtomicUsize::new(0), mpsc::channel());
    let mut results: Vec<Option<R>> = (0..things.len()).map(|_| None).collect();
    std::thread::scope(|scope| {
        for _ in 0..threads.min(things.len()) {
            let (next, send, work) = (&next, send.clone(), &work);
            scope.spawn(move || {
                while let Some((at, thing)) = take(next, things) {
                    if send.send((at, work(thing))).is_err() {
                        break;
                    }
                }
            });
        }
        drop(send);
        for (done, (at, result)) in (1..).zip(receive) {
            results[at] = Some(result?);
            progress.at(Event { stage: Stage::Replaying, done, of: things.len() as u64 });
        }
        Ok::<(), anyhow::Error>(())
    })?;
    progress.end(&format!("{} of them", things.len()));
    results.into_iter().collect::<Option<Vec<R>>>().context("a thread has ended without its result")
}

fn take<'a, T>(next: &AtomicUsize, things: &'a [T]) -> Option<(usize, &'a T)> {
    let at = next.fetch_add(1, Ordering::Relaxed);
    things.get(at).map(|thing| (at, thing))
}

/// The middle of the later epochs, in seconds; of the first where there is only one.
fn later_epochs(epochs: &[Duration]) -> f64 {
    let mut later: Vec<f64> = epochs[usize::from(epochs.len() > 1)..].iter().map(Duration::as_secs_f64).collect();
    later.sort_unstable_by(f64::total_cmp);
    crate::record::percentile(&later, 0.5)
}
