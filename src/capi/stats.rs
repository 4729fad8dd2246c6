//! Counts.

use super::argument::{Sized64, SizedOut};
use super::comm::{self, rudder_comm};
use super::status::{Failure, RUDDER_NOT_STARTED, call, rudder_status};
use super::table::{self, rudder_table};
use std::ffi::c_char;
use std::time::Duration;

/// Bytes of a name in counts, its zero included.
pub const RUDDER_NAME_BYTES: usize = 32;

/// Counts of a comm since it was started.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct rudder_comm_counts {
    /// sizeof(rudder_comm_counts), set by the caller; fewer or more bytes than this library knows are filled as far as both know them.
    pub struct_size: u64,
    /// Decisions of the controller that took effect, those of its fallback included.
    pub decisions: u64,
    /// Of these, decisions to replace.
    pub replace_decisions: u64,
    /// Of these, decisions that the fallback made.
    pub fallback_decisions: u64,
    /// Times that the fallback took over, as a model did not load, failed or was late.
    pub fallbacks: u64,
    /// Observations that a full queue pushed out.
    pub dropped_observations: u64,
    /// Observations that no decision was based on.
    pub skipped_observations: u64,
    /// Median time of a decision, in nanoseconds.
    pub decision_ns_p50: u64,
    /// 99th percentile of it.
    pub decision_ns_p99: u64,
    /// The longest.
    pub decision_ns_max: u64,
    /// Time that a model took to load, in nanoseconds.
    pub model_load_ns: u64,
    /// Processor time of a model, in nanoseconds.
    pub model_cpu_ns: u64,
    /// The transport that moves rows, such as "tcp".
    pub transport: [c_char; RUDDER_NAME_BYTES],
    /// The controller, such as "off".
    pub controller: [c_char; RUDDER_NAME_BYTES],
}

// SAFETY: integers only.
unsafe impl Sized64 for rudder_comm_counts {
    const NAME: &'static str = "rudder_comm_counts";
    const LEAST: usize = 160;
}

/// Counts of a table since the comm was started, on this rank. Minibatches while paused are not in those of the buffer.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct rudder_table_counts {
    /// sizeof(rudder_table_counts); see rudder_comm_counts.
    pub struct_size: u64,
    /// Bytes of a row.
    pub row_bytes: u64,
    /// Gathers that the buffer and the controller have learnt from.
    pub minibatches: u64,
    /// Remote nodes that they wanted.
    pub remote_nodes: u64,
    /// Of these, nodes whose row was in the buffer or on its way there.
    pub hits: u64,
    /// Rows fetched because a gather wanted them.
    pub demand_rows: u64,
    /// Rows fetched ahead, the buffer's first fill not included.
    pub prefetched_rows: u64,
    /// Rows fetched for the first fill.
    pub fill_rows: u64,
    /// Rows that were tried again.
    pub retried_rows: u64,
    /// Rows copied from this rank or from mapped memory of its machine.
    pub local_rows: u64,
    /// Slots of the buffer; one holds one row.
    pub buffer_slots: u64,
    /// Bytes of the slots and of all that is kept about them.
    pub buffer_bytes: u64,
    /// Rows kept that a gather fetched anyway.
    pub buffer_admissions: u64,
    /// Slots given to other nodes by decided replacements.
    pub buffer_replacements: u64,
    /// Rows that lost their slots to others.
    pub buffer_evictions: u64,
    /// Of these, rows fetched before anyone asked that never served.
    pub buffer_useless: u64,
    /// Partitions that are asked of another rank, as the one before is gone.
    pub failovers: u64,
}

// SAFETY: integers only.
unsafe impl Sized64 for rudder_table_counts {
    const NAME: &'static str = "rudder_table_counts";
    const LEAST: usize = 128;
}

/// Reads the counts of a comm; also of one that has ended. Errors: RUDDER_ABI, RUDDER_NOT_STARTED.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rudder_comm_stats(comm: *const rudder_comm, stats: *mut rudder_comm_counts) -> rudder_status {
    call(|| {
        // SAFETY: what the header asks of the caller.
        let stats = unsafe { SizedOut::new(stats)? };
        let comm = comm::find(comm)?;
        let engine = comm.started().ok_or_else(not_started)?;
        let found = engine.decision_stats();
        stats.set(rudder_comm_counts {
            struct_size: 0,
            decisions: found.decisions,
            replace_decisions: found.replace_decisions,
            fallback_decisions: found.fallback_decisions,
            fallbacks: found.fallbacks,
            dropped_observations: found.dropped_observations,
            skipped_observations: found.skipped,
            decision_ns_p50: ns(found.latency_p50),
            decision_ns_p99: ns(found.latency_p99),
            decision_ns_max: ns(found.latency_max),
            model_load_ns: ns(found.load),
            model_cpu_ns: ns(found.model_cpu),
            transport: name(engine.transport()),
            controller: name(&found.controller),
        });
        Ok(())
    })
}

/// Reads the counts of a table; also where its comm has ended. Errors: RUDDER_ABI, RUDDER_NOT_STARTED.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rudder_table_stats(
    table: *const rudder_table,
    stats: *mut rudder_table_counts,
) -> rudder_status {
    call(|| {
        // SAFETY: what the header asks of the caller.
        let stats = unsafe { SizedOut::new(stats)? };
        let table = table::find(table)?;
        let found = table.comm.started().ok_or_else(not_started)?.stats(table.id)?;
        stats.set(rudder_table_counts {
            struct_size: 0,
            row_bytes: table.row_bytes as u64,
            minibatches: found.pipeline.minibatches,
            remote_nodes: found.pipeline.remote_nodes,
            hits: found.pipeline.hits,
            demand_rows: found.pipeline.demand_rows,
            prefetched_rows: found.pipeline.prefetched_rows,
            fill_rows: found.pipeline.fill_rows,
            retried_rows: found.pipeline.retried_rows,
            local_rows: found.pipeline.local_rows,
            buffer_slots: found.slots.into(),
            buffer_bytes: found.buffer_bytes,
            buffer_admissions: found.buffer.admissions,
            buffer_replacements: found.buffer.replacements,
            buffer_evictions: found.buffer.evictions,
            buffer_useless: found.buffer.useless,
            failovers: found.pipeline.failovers,
        });
        Ok(())
    })
}

fn not_started() -> Failure {
    Failure::new(RUDDER_NOT_STARTED, "the comm has nothing to count: it was not started")
}

fn ns(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

fn name(text: &str) -> [c_char; RUDDER_NAME_BYTES] {
    let mut name = [0; RUDDER_NAME_BYTES];
    for (to, from) in name[..RUDDER_NAME_BYTES - 1].iter_mut().zip(text.bytes()) {
        *to = from as c_char;
    }
    name
}
