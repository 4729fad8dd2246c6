//! The parent of a job: starts its ranks, watches them, and stops all when one fails.
//!
//! A rank is this same program. Its orders, the job's secret among them, go through its standard input, so that neither the process list
//! nor the environment shows them. Its record comes back as a file of the run's directory, its last words as the tail of its standard error.

use super::job::{Job, Order};
use super::record::RankRecord;
use crate::progress::{Event, Progress};
use anyhow::{Context, bail};
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

/// How often the parent looks after its ranks.
const WATCH: Duration = Duration::from_millis(20);
/// How long other ranks are given to fail too once one has, so that the first cause can be told from its consequences.
const GRACE: Duration = Duration::from_millis(300);
/// How long a killed rank may take to be gone.
const REAP: Duration = Duration::from_secs(5);
/// How long a rank that has finished waits at most for the slowest to finish.
const TAIL_BYTES: u64 = 4096;
/// Lines of a failed rank's standard error that are shown.
const TAIL_LINES: usize = 12;

/// Ranks of this machine, stopped when this is dropped.
struct Ranks {
    members: Vec<Member>,
}

struct Member {
    child: Child,
    errors: PathBuf,
    record: PathBuf,
    ended: Option<ExitStatus>,
}

/// Runs a job on ranks of its own and returns their records in rank order.
///
/// # Errors
/// A rank fails (the message names it, its status and its last words), nothing moves for `patience`, or `stop` is set.
pub fn run(
    job: &Job,
    directory: &Path,
    patience: Duration,
    stop: &Arc<AtomicBool>,
    progress: &Progress,
) -> anyhow::Result<Vec<RankRecord>> {
    let unique_id = String::new();
    let mut ranks = Ranks { members: Vec::with_capacity(job.ranks as usize) };
    for rank in 0..job.ranks {
        let record = directory.join(format!("rank-{rank}.json"));
        let order = Order { job: job.clone(), rank, unique_id: unique_id.clone(), record: record.clone() };
        ranks.members.push(start(&order, directory, record)?);
    }
    let events = listen(ranks.members[0].child.stdout.take())?;
    ranks.watch(&events, patience, stop, progress)?;
    ranks.members.iter().enumerate().map(|(rank, member)| read_record(rank, &member.record)).collect()
}

fn start(order: &Order, directory: &Path, record: PathBuf) -> anyhow::Result<Member> {
    let rank = order.rank;
    let errors = directory.join(format!("rank-{rank}.err"));
    let program = std::env::current_exe().context("finding this program's own file")?;
    let mut child = Command::new(&program)
        .arg("rank")
        // One core each: ranks stand for hosts, and the network's kernels must not spread over the others' cores.
        .env("RAYON_NUM_THREADS", "1")
        // A group of its own: Ctrl-C reaches the parent alone, which then stops the ranks in order.
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(if rank == 0 { Stdio::piped() } else { Stdio::null() })
        .stderr(File::create(&errors).with_context(|| format!("creating {}", errors.display()))?)
        .spawn()
        .with_context(|| format!("starting rank {rank} ({})", program.display()))?;
    let mut orders = child.stdin.take().context("the rank's standard input")?;
    let member = Member { child, errors, record, ended: None };
    // A rank that dies before it has read its orders breaks the pipe; its status says more than the pipe does.
    let sent = serde_json::to_vec(order).map(|text| orders.write_all(&text))?;
    drop(orders);
    if let Err(error) = sent
        && error.kind() != std::io::ErrorKind::BrokenPipe
    {
        drop(Ranks { members: vec![member] });
        return Err(error).with_context(|| format!("sending rank {rank} its orders"));
    }
    Ok(member)
}

/// The events that rank 0 writes, over a bounded channel; what does not fit is dropped, since only the latest counts.
fn listen(stdout: Option<ChildStdout>) -> anyhow::Result<Receiver<Event>> {
    let stdout = stdout.context("rank 0's standard output")?;
    let (sender, receiver) = sync_channel(64);
    std::thread::Builder::new().name("progress".to_owned()).spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            if let Ok(event) = serde_json::from_str(&line) {
                let _ = sender.try_send(event);
            }
        }
    })?;
    Ok(receiver)
}

impl Ranks {
    fn watch(
        &mut self,
        events: &Receiver<Event>,
        patience: Duration,
        stop: &AtomicBool,
        progress: &Progress,
    ) -> anyhow::Result<()> {
        let mut moved = Instant::now();
        loop {
            match events.recv_timeout(WATCH) {
                Ok(event) => {
                    moved = Instant::now();
                    progress.at(event);
                }
                // Rank 0 has closed its output, so the wait above no longer paces the loop.
                Err(RecvTimeoutError::Disconnected) => std::thread::sleep(WATCH),
                Err(RecvTimeoutError::Timeout) => {}
            }
            if stop.load(Ordering::Relaxed) {
                bail!("stopped by a signal");
            }
            self.look()?;
            if self.members.iter().any(Member::failed) {
                return Err(self.first_cause());
            }
            if self.members.iter().all(|member| member.ended.is_some()) {
                return Ok(());
            }
            if moved.elapsed() > patience {
                let waiting: Vec<String> = (0..)
                    .zip(&self.members)
                    .filter(|(_, m)| m.ended.is_none())
                    .map(|(rank, _): (u32, _)| rank.to_string())
                    .collect();
                bail!(
                    "no progress for {} s (still running: rank {}); --patience allows more",
                    patience.as_secs(),
                    waiting.join(", ")
                );
            }
        }
    }

    /// Takes note of the ranks that have ended.
    fn look(&mut self) -> anyhow::Result<()> {
        for member in self.members.iter_mut().filter(|member| member.ended.is_none()) {
            member.ended = member.child.try_wait().context("asking after a rank")?;
        }
        Ok(())
    }

    /// The failure that the others follow from: a rank that a signal killed, else the one that failed first.
    fn first_cause(&mut self) -> anyhow::Error {
        let known: Vec<bool> = self.members.iter().map(Member::failed).collect();
        let until = Instant::now() + GRACE;
        while Instant::now() < until && self.look().is_ok() {
            std::thread::sleep(WATCH);
        }
        let failed = || self.members.iter().enumerate().filter(|(_, member)| member.failed());
        let killed = failed().find(|(_, member)| member.ended.is_some_and(|status| status.signal().is_some()));
        let Some((rank, member)) = killed.or_else(|| failed().find(|(rank, _)| known[*rank])) else {
            return anyhow::anyhow!("a rank failed");
        };
        let how = match member.ended.map(|status| (status.signal(), status.code())) {
            Some((Some(signal), _)) => format!("was killed by signal {signal}"),
            Some((_, Some(code))) => format!("ended with status {code}"),
            _ => "ended".to_owned(),
        };
        match tail(&member.errors) {
            words if words.is_empty() => anyhow::anyhow!("rank {rank} {how} and said nothing"),
            words => anyhow::anyhow!("rank {rank} {how}; its last words:\n{words}"),
        }
    }
}

impl Member {
    fn failed(&self) -> bool {
        self.ended.is_some_and(|status| !status.success())
    }
}

impl Drop for Ranks {
    fn drop(&mut self) {
        for member in self.members.iter_mut().filter(|member| member.ended.is_none()) {
            let _ = member.child.kill();
        }
        let until = Instant::now() + REAP;
        while Instant::now() < until && self.look().is_ok() && self.members.iter().any(|member| member.ended.is_none())
        {
            std::thread::sleep(WATCH);
        }
    }
}

/// The last lines of a file, bounded.
fn tail(path: &Path) -> String {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let bytes = file.metadata()?.len();
        file.seek(SeekFrom::Start(bytes.saturating_sub(TAIL_BYTES)))?;
        let mut text = Vec::new();
        file.take(TAIL_BYTES).read_to_end(&mut text)?;
        Ok(text)
    };
    let text = String::from_utf8_lossy(&read().unwrap_or_default()).into_owned();
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..]
        .iter()
        .map(|line| format!("  {line}"))
        .collect::<Vec<_>>()
        .join("\n")
}

fn read_record(rank: usize, path: &Path) -> anyhow::Result<RankRecord> {
    let text = std::fs::read(path).with_context(|| format!("rank {rank} ended well but left no record"))?;
    serde_json::from_slice(&text).with_context(|| format!("the record of rank {rank}"))
}
