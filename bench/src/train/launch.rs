//! The parent of a job: starts its ranks, watches them, and stops all when one fails.
//!
//! A rank is this same program. Its orders, the job's secret among them, go through its standard input, so that neither the process list
//! nor the environment shows them. Its record comes back as a file of the run's directory, its last words as the tail of its standard error.

use super::job::{Job, Order, Said};
use crate::progress::Progress;
use crate::record::RankRecord;
use anyhow::{Context, bail};
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

/// How often the parent looks after its ranks.
const WATCH: Duration = Duration::from_millis(20);
/// How long other ranks are given to fail too once one has, so that the first cause can be told from its consequences.
const GRACE: Duration = Duration::from_millis(300);
/// How long a killed rank may take to be gone.
const REAP: Duration = Duration::from_secs(5);
/// Bytes of a failed rank's standard error that are looked at.
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
/// A rank fails (the message names it, its status and its last words), nothing moves for the job's patience, or `stop` is set.
pub fn run(job: &Job, directory: &Path, stop: &AtomicBool, progress: &Progress) -> anyhow::Result<Vec<RankRecord>> {
    let mut ranks = Ranks { members: Vec::with_capacity(job.ranks as usize) };
    let order = |rank: u32, unique_id: Option<String>| {
        let record = directory.join(format!("rank-{rank}.json"));
        Order { job: job.clone(), rank, unique_id, record }
    };
    ranks.members.push(start(&order(0, None), directory)?);
    let said = listen(ranks.members[0].child.stdout.take())?;
    let watch = Watch { patience: job.patience(), stop, progress };
    // Rank 0 listens for the others, so it is the one to make the id that they are told.
    let Some(unique_id) = ranks.watch(&said, &watch, Until::UniqueId)? else { bail!("rank 0 made no unique id") };
    for rank in 1..job.ranks {
        ranks.members.push(start(&order(rank, Some(unique_id.clone())), directory)?);
    }
    ranks.watch(&said, &watch, Until::AllEnded)?;
    ranks.members.iter().enumerate().map(|(rank, member)| read_record(rank, &member.record)).collect()
}

/// What the parent watches for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Until {
    /// Rank 0 has said the job's unique id.
    UniqueId,
    /// All ranks have ended well.
    AllEnded,
}

/// What ends the watch early, and who hears of progress.
struct Watch<'a> {
    patience: Duration,
    stop: &'a AtomicBool,
    progress: &'a Progress,
}

fn start(order: &Order, directory: &Path) -> anyhow::Result<Member> {
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
    let member = Member { child, errors, record: order.record.clone(), ended: None };
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

/// What rank 0 says, over a bounded channel; progress that does not fit is dropped, since only the latest counts.
fn listen(stdout: Option<ChildStdout>) -> anyhow::Result<Receiver<Said>> {
    let stdout = stdout.context("rank 0's standard output")?;
    let (sender, receiver) = sync_channel(64);
    std::thread::Builder::new().name("progress".to_owned()).spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            if let Ok(said) = serde_json::from_str(&line) {
                let _ = sender.try_send(said);
            }
        }
    })?;
    Ok(receiver)
}

impl Ranks {
    /// Watches until what is waited for has come; the unique id where that is it.
    fn watch(&mut self, said: &Receiver<Said>, watch: &Watch, until: Until) -> anyhow::Result<Option<String>> {
        let mut moved = Instant::now();
        loop {
            match said.recv_timeout(WATCH) {
                Ok(Said::UniqueId(id)) => return Ok(Some(id)),
                Ok(Said::Progress(event)) => {
                    moved = Instant::now();
                    watch.progress.at(event);
                }
                // Rank 0 has closed its output, so the wait above no longer paces the loop.
                Err(RecvTimeoutError::Disconnected) => std::thread::sleep(WATCH),
                Err(RecvTimeoutError::Timeout) => {}
            }
            if watch.stop.load(Ordering::Relaxed) {
                bail!("stopped by a signal");
            }
            self.look()?;
            if self.members.iter().any(Member::failed) {
                return Err(self.first_cause());
            }
            if self.members.iter().all(|member| member.ended.is_some()) {
                return match until {
                    Until::AllEnded => {
                        self.tell();
                        Ok(None)
                    }
                    Until::UniqueId => bail!("rank 0 ended before it made a unique id"),
                };
            }
            if moved.elapsed() > watch.patience {
                bail!(
                    "no progress for {} s (still running: rank {}); --patience allows more",
                    watch.patience.as_secs(),
                    self.running().join(", ")
                );
            }
        }
    }

    /// Passes on what rank 0 has told of its choices, where somebody asked.
    fn tell(&self) {
        let asked = std::env::var_os("RUDDER_DEBUG").is_some();
        if let Some(member) = self.members.first().filter(|_| asked) {
            eprintln!("rank 0 told:\n{}", tail(&member.errors));
        }
    }

    fn running(&self) -> Vec<String> {
        let running = self.members.iter().enumerate().filter(|(_, member)| member.ended.is_none());
        running.map(|(rank, _)| rank.to_string()).collect()
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
