//! `rudder trace timeline`: recorded traces in the format of Chrome's trace viewer, which Perfetto opens.
//!
//! A trace tells how long each part of a step took, not when it began. So a rank's steps are laid end to end from 0, in the order in which a
//! rank does things: a gather that was started ahead begins while the step before computes, and what samples for it comes before. Ranks
//! that average gradients wait for each other there, so that their steps stay side by side.
//!
//! Format: "Trace Event Format", complete events (X), counters (C), instants (i) and names (M); times are microseconds.

use anyhow::{Context, Result, ensure};
use rudder::trace::{Event, Minibatch, Reader};
use serde_json::{Map, Value, json};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The rows of a rank: what its training thread does, and the gathers beside it.
const TRAINING: u32 = 0;
const GATHERS: u32 = 1;

/// Writes the timeline of these traces.
///
/// # Errors
/// A file cannot be read or written, or a trace is damaged; what is before the damage has been written by then.
pub fn write(traces: &[PathBuf], output: &Path) -> Result<()> {
    let file = File::create(output).with_context(|| format!("cannot write {}", output.display()))?;
    let mut out = Events { out: BufWriter::new(file), any: false };
    out.out.write_all(b"{\"displayTimeUnit\":\"ms\",\"traceEvents\":[")?;
    let mut damage = Vec::new();
    for trace in traces {
        let mut reader = Reader::open(trace)?;
        let mut rank = RankLine { rank: reader.header().rank.0, now: Duration::ZERO, ahead: Duration::ZERO };
        rank.name(&mut out)?;
        for event in &mut reader {
            match event {
                Ok(Event::Minibatch(minibatch)) => rank.step(&minibatch, &mut out)?,
                Ok(Event::EpochEnd) => rank.mark("epoch ends".into(), &mut out)?,
                Ok(Event::Gap { events }) => rank.mark(format!("{events} events are missing"), &mut out)?,
                Err(cause) => damage.push(cause.to_string()),
            }
        }
    }
    out.out.write_all(b"\n]}\n")?;
    out.out.flush().with_context(|| format!("cannot write {}", output.display()))?;
    ensure!(damage.is_empty(), "what is written ends where a trace is damaged: {}", damage.join("; "));
    Ok(())
}

/// Events as they are written, one a line.
struct Events {
    out: BufWriter<File>,
    any: bool,
}

impl Events {
    fn put(&mut self, event: &Value) -> Result<()> {
        let comma = if std::mem::replace(&mut self.any, true) { "," } else { "" };
        write!(self.out, "{comma}\n{event}")?;
        Ok(())
    }
}

fn us(time: Duration) -> f64 {
    time.as_nanos() as f64 / 1e3
}

/// One rank, as far as it is written.
struct RankLine {
    rank: u32,
    now: Duration,
    /// When a gather for the next step could begin, in the present one.
    ahead: Duration,
}

impl RankLine {
    fn name(&self, out: &mut Events) -> Result<()> {
        let rank = self.rank;
        out.put(&json!({"ph": "M", "name": "process_name", "pid": rank, "args": {"name": format!("rank {rank}")}}))?;
        for (thread, name) in [(TRAINING, "training"), (GATHERS, "gathers")] {
            out.put(&json!({"ph": "M", "name": "thread_name", "pid": rank, "tid": thread, "args": {"name": name}}))?;
        }
        Ok(())
    }

    fn mark(&self, name: String, out: &mut Events) -> Result<()> {
        out.put(&json!({"ph": "i", "s": "p", "name": name, "pid": self.rank, "tid": TRAINING, "ts": us(self.now)}))
    }

    /// A part of the training thread's time, which goes on by it.
    fn part(&mut self, name: &str, took: Duration, out: &mut Events) -> Result<()> {
        if !took.is_zero() {
            let (ts, dur) = (us(self.now), us(took));
            out.put(&json!({"ph": "X", "name": name, "pid": self.rank, "tid": TRAINING, "ts": ts, "dur": dur}))?;
        }
        self.now += took;
        Ok(())
    }

    fn step(&mut self, minibatch: &Minibatch, out: &mut Events) -> Result<()> {
        let (step, overlapped) = (minibatch.step, minibatch.overlapped);
        let begins = if overlapped {
            self.ahead
        } else {
            self.part("sample", step.sample, out)?;
            self.now
        };
        self.part("stall", minibatch.stall, out)?;
        self.gather(minibatch, begins, out)?;
        if overlapped {
            self.part("sample", step.sample, out)?;
        }
        self.ahead = self.now;
        self.part(if minibatch.observed { "compute" } else { "evaluate" }, step.compute, out)?;
        self.part("allreduce", step.allreduce, out)
    }

    /// The gather, from its start to the end of the wait for it, and the rows that owners have sent by then.
    fn gather(&self, minibatch: &Minibatch, begins: Duration, out: &mut Events) -> Result<()> {
        let (rank, ts, dur) = (self.rank, us(begins), us(self.now.saturating_sub(begins)));
        let args = json!({
            "table": minibatch.table,
            "remote nodes": minibatch.nodes.len(),
            "hits": minibatch.hits,
            "rows on demand": minibatch.demand_rows,
            "rows ahead": minibatch.prefetched_rows,
            "announced": minibatch.announced,
        });
        let name = if minibatch.overlapped { "overlapped gather" } else { "gather" };
        out.put(&json!({"ph": "X", "name": name, "pid": rank, "tid": GATHERS, "ts": ts, "dur": dur, "args": args}))?;
        let rows = minibatch.owners.iter().map(|owner| (owner.partition.to_string(), owner.rows.into()));
        let rows: Map<String, Value> = rows.collect();
        if rows.is_empty() {
            return Ok(());
        }
        out.put(&json!({"ph": "C", "name": "rows by owner", "pid": rank, "ts": us(self.now), "args": rows}))
    }
}
