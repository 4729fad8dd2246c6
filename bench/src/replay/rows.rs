//! Replays in which rows come at once, and nothing is announced or decided: a pipeline would only pass them through, so that the buffers are
//! used directly, one rank after the other. What they fetch and hit is the same.

use super::case::Case;
use super::traces::{Job, RankTrace, Work};
use super::world::Outcome;
use anyhow::Result;
use rudder::buffer::{Pin, PolicyConfig, PrefetchBuffer, Replaced, Residency};
use rudder::{NodeId, Slot};
use std::time::Duration;

/// Whether a job can be replayed so under a case.
///
/// # Errors
/// A trace's partitions do not hold together.
pub fn suffice(job: &Job, case: &Case) -> Result<bool> {
    let slots = job.ranks.iter().map(|trace| case.buffer.slots(trace)).collect::<Result<Vec<_>>>()?;
    Ok(case.link.is_none() && case.lookahead == 0 && !case.steers() && !slots.contains(&0))
}

/// Replays a job.
///
/// # Errors
/// The case does not fit the trace.
pub fn replay(job: &Job, case: &Case) -> Result<Outcome> {
    let mut outcome = Outcome { epochs: epochs(job), ..Outcome::default() };
    for trace in &job.ranks {
        let mut rows = AtOnce::new(case.buffer.slots(trace)?, &case.policy, trace)?;
        let ahead: u64 = (0..job.steps).map(|step| rows.gather(step, |_| false).1).sum();
        let counters = rows.buffer.counters();
        let stats = &mut outcome.stats;
        stats.minibatches += counters.minibatches;
        stats.remote_nodes += counters.hits + counters.misses;
        stats.hits += counters.hits;
        stats.demand_rows += counters.misses;
        stats.prefetched_rows += ahead;
        stats.fill_rows += counters.initial;
        outcome.useless_rows += counters.useless;
        outcome.bytes += (counters.misses + ahead + counters.initial) * trace.row_bytes();
    }
    Ok(outcome)
}

/// A rank's buffer whose rows come at once.
pub struct AtOnce<'a> {
    trace: &'a RankTrace,
    /// The buffer.
    pub buffer: PrefetchBuffer,
    found: Vec<Residency>,
    kept: Vec<(NodeId, Slot)>,
    fetches: Vec<(NodeId, Slot)>,
}

impl<'a> AtOnce<'a> {
    /// With its initial fill.
    ///
    /// # Errors
    /// The buffer does not fit the trace.
    pub fn new(slots: u32, policy: &PolicyConfig, trace: &'a RankTrace) -> Result<Self> {
        let mut buffer = PrefetchBuffer::new(slots, policy, trace.hints.clone())?;
        let mut fetches = Vec::new();
        buffer.initial_fill(&mut fetches);
        fetches.iter().for_each(|(_, slot)| buffer.filled(*slot));
        Ok(Self { trace, buffer, found: Vec::new(), kept: Vec::new(), fetches })
    }

    /// Gathers a minibatch, each in its turn; `replace` is asked once it has been looked up. What was replaced, and the rows fetched for it.
    pub fn gather(&mut self, step: usize, replace: impl FnOnce(&PrefetchBuffer) -> bool) -> (Replaced, u64) {
        let Self { trace, buffer, found, kept, fetches } = self;
        let pin = Pin(step as u64);
        buffer.lookup(pin, trace.nodes(step), true, found);
        let replace = replace(buffer);
        buffer.admit_missed(true, kept);
        // Which of two equal slots is given up depends on which was filled first. Rows of an owner travel in the order of its table, or in the
        // minibatch's.
        if trace.header.limits.by_row {
            kept.sort_unstable_by_key(|(node, _)| *node);
        } else {
            kept.clear();
            kept.extend(trace.nodes(step).iter().filter_map(|&node| match buffer.residency(node) {
                Residency::Filling(slot) => Some((node, slot)),
                Residency::Ready(_) | Residency::Absent => None,
            }));
            kept.sort_by_key(|(node, _)| trace.hints.owners.locate(*node).map(|(partition, _)| partition));
        }
        let replaced = buffer.end_minibatch(replace, None, fetches);
        buffer.release(Pin(pin.0 + 1));
        kept.iter().chain(&*fetches).for_each(|(_, slot)| buffer.filled(*slot));
        (replaced, fetches.len() as u64)
    }
}

/// The epochs of a job that waits for no row.
fn epochs(job: &Job) -> Vec<Duration> {
    let own = |step: usize| {
        let of = |trace: &RankTrace| {
            let Work { sample, compute, overlapped } = trace.work(step);
            // The last step has no minibatch to sample ahead.
            if overlapped && step + 1 == job.steps { compute } else { sample + compute }
        };
        job.ranks.iter().map(of).max().unwrap_or_default() + job.allreduce(step)
    };
    let starts = [0].into_iter().chain(job.epochs.iter().copied());
    starts.zip(&job.epochs).map(|(start, &end)| (start..end).map(own).sum()).collect()
}
