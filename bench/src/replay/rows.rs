//! Replays in which rows come at once, and nothing is announced or decided: a pipeline would only pass them through, so that the buffers are
//! used directly, one rank after the other. What they fetch and hit is the same.

use super::case::Case;
use super::traces::{Job, RankTrace, Work};
use super::world::Outcome;
use anyhow::Result;
use rudder::buffer::{Pin, PrefetchBuffer};
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
        let slots = case.buffer.slots(trace)?;
        let mut buffer = PrefetchBuffer::new(slots, &case.policy, trace.hints.clone())?;
        let before = outcome.stats;
        gather_all(trace, job.steps, &mut buffer, &mut outcome);
        let (counters, stats) = (buffer.counters(), &mut outcome.stats);
        stats.minibatches += counters.minibatches;
        stats.remote_nodes += counters.hits + counters.misses;
        stats.hits += counters.hits;
        stats.demand_rows += counters.misses;
        stats.fill_rows += counters.initial;
        outcome.useless_rows += counters.useless;
        let rows = stats.demand_rows + stats.prefetched_rows + stats.fill_rows;
        let rows_before = before.demand_rows + before.prefetched_rows + before.fill_rows;
        outcome.bytes += (rows - rows_before) * trace.row_bytes();
    }
    Ok(outcome)
}

/// All minibatches of a rank.
fn gather_all(trace: &RankTrace, steps: usize, buffer: &mut PrefetchBuffer, outcome: &mut Outcome) {
    let (mut found, mut kept) = (Vec::new(), Vec::new());
    buffer.initial_fill(&mut kept);
    kept.iter().for_each(|(_, slot)| buffer.filled(*slot));
    let mut fetches = Vec::new();
    for step in 0..steps {
        let pin = Pin(step as u64);
        buffer.lookup(pin, trace.nodes(step), true, &mut found);
        buffer.admit_missed(true, &mut kept);
        buffer.end_minibatch(false, None, &mut fetches);
        outcome.stats.prefetched_rows += fetches.len() as u64;
        buffer.release(Pin(pin.0 + 1));
        // Rows of an owner travel in order, and which of two equal slots is given up depends on which was filled first.
        kept.sort_unstable_by_key(|(node, _)| *node);
        kept.iter().chain(&fetches).for_each(|(_, slot)| buffer.filled(*slot));
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
