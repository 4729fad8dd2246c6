//! The text format of Prometheus: a line for each count, named as its field is, with the rank and the table as labels.
//!
//! Format: Prometheus' documentation, "Exposition formats", version 0.0.4.

use super::{OwnerSnapshot, Snapshot, TableSnapshot};
use std::fmt::{Display, Write};
use std::time::Duration;

const COUNTER: &str = "counter";
const GAUGE: &str = "gauge";

type OfTable = (&'static str, &'static str, &'static str, fn(&TableSnapshot) -> u64);

/// Of each table: name, kind, help, count.
const TABLE: &[OfTable] = &[
    ("minibatches_total", COUNTER, "Minibatches gathered, those observed", |t| t.stats.pipeline.minibatches),
    ("remote_nodes_total", COUNTER, "Remote input nodes that they wanted", |t| t.stats.pipeline.remote_nodes),
    ("hits_total", COUNTER, "Of these, nodes whose row was in the buffer or on its way", |t| t.stats.pipeline.hits),
    ("rows_fetched_total", COUNTER, "Rows fetched for any reason", TableSnapshot::rows_fetched),
    ("bytes_fetched_total", COUNTER, "Bytes of these rows", |t| t.rows_fetched() * t.row_bytes),
    ("demand_rows_total", COUNTER, "Rows fetched because a minibatch wanted them", |t| t.stats.pipeline.demand_rows),
    ("prefetched_rows_total", COUNTER, "Rows fetched ahead", |t| t.stats.pipeline.prefetched_rows),
    ("fill_rows_total", COUNTER, "Rows fetched for the initial fill", |t| t.stats.pipeline.fill_rows),
    ("retried_rows_total", COUNTER, "Rows that were tried again", |t| t.stats.pipeline.retried_rows),
    ("failovers_total", COUNTER, "Partitions that are asked of another exporter", |t| t.stats.pipeline.failovers),
    ("local_rows_total", COUNTER, "Rows on this rank or mapped from its host", |t| t.stats.pipeline.local_rows),
    ("neighbour_hits_total", COUNTER, "Hits in another rank's slots", |t| t.stats.pipeline.neighbour_hits),
    ("neighbour_losses_total", COUNTER, "Of these, rows gone before the copy", |t| t.stats.pipeline.neighbour_losses),
    ("buffer_minibatches_total", COUNTER, "Minibatches that the buffer observed", |t| t.stats.buffer.minibatches),
    ("buffer_hits_total", COUNTER, "Wanted rows that were in the buffer or on their way", |t| t.stats.buffer.hits),
    ("buffer_misses_total", COUNTER, "Wanted rows that were not", |t| t.stats.buffer.misses),
    ("buffer_halo_hits_total", COUNTER, "Hits of halo nodes", |t| t.stats.buffer.halo_hits),
    ("buffer_halo_misses_total", COUNTER, "Misses of halo nodes", |t| t.stats.buffer.halo_misses),
    ("buffer_initial_total", COUNTER, "Rows that a fill was to bring", |t| t.stats.buffer.initial),
    ("buffer_admissions_total", COUNTER, "Rows kept that were fetched anyway", |t| t.stats.buffer.admissions),
    ("buffer_adoptions_total", COUNTER, "Rows kept that another rank had fetched", |t| t.stats.buffer.adoptions),
    ("buffer_reservations_total", COUNTER, "Slots reserved for announced nodes", |t| t.stats.buffer.reservations),
    ("buffer_replacements_total", COUNTER, "Slots given away by decisions", |t| t.stats.buffer.replacements),
    ("buffer_pulled_total", COUNTER, "Rows pulled by quotas", |t| t.stats.buffer.pulled),
    ("buffer_evictions_total", COUNTER, "Rows that lost their slots to others", |t| t.stats.buffer.evictions),
    ("buffer_useless_total", COUNTER, "Of these, rows fetched ahead that never served", |t| t.stats.buffer.useless),
    ("buffer_abandoned_total", COUNTER, "Slots freed because their gets failed", |t| t.stats.buffer.abandoned),
    ("buffer_policies_total", COUNTER, "Times that another policy took the buffer over", |t| t.stats.buffer.policies),
    ("buffer_slots", GAUGE, "Slots of the buffer", |t| t.stats.slots.into()),
    ("buffer_bytes", GAUGE, "Bytes of the slots and of the books about them", |t| t.stats.buffer_bytes),
    ("row_bytes", GAUGE, "Bytes of a row", |t| t.row_bytes),
];

type OfRank = (&'static str, &'static str, &'static str, fn(&Snapshot) -> f64);

/// Of the rank: name, kind, help, value.
const RANK: &[OfRank] = &[
    ("uptime_seconds", GAUGE, "Time since the engine was made", |s| s.uptime_s),
    ("failed", GAUGE, "1 where the engine has ended by itself", |s| f64::from(s.failure.is_some())),
    ("open_requests", GAUGE, "Gathers started and not collected", |s| s.open_requests as f64),
    ("decisions_total", COUNTER, "Decisions handed over", |s| s.decisions.decisions as f64),
    ("replace_decisions_total", COUNTER, "Of these, to replace", |s| s.decisions.replace_decisions as f64),
    ("fallback_decisions_total", COUNTER, "Of these, by the fallback", |s| s.decisions.fallback_decisions as f64),
    ("fallbacks_total", COUNTER, "Times that the fallback took over", |s| s.decisions.fallbacks as f64),
    ("dropped_observations_total", COUNTER, "Pushed out of a full queue", |s| s.decisions.dropped_observations as f64),
    ("skipped_total", COUNTER, "Observations that no decision was based on", |s| s.decisions.skipped as f64),
    ("decision_latency_p50_seconds", GAUGE, "Median time to decide", |s| seconds(s.decisions.latency_p50)),
    ("decision_latency_p99_seconds", GAUGE, "99th percentile of it", |s| seconds(s.decisions.latency_p99)),
    ("decision_latency_max_seconds", GAUGE, "The longest", |s| seconds(s.decisions.latency_max)),
    ("model_load_seconds", GAUGE, "Time that the model took to load", |s| seconds(s.decisions.load)),
    ("model_cpu_seconds_total", COUNTER, "Processor time of the model", |s| seconds(s.decisions.model_cpu)),
    ("controller_failed", GAUGE, "1 where the model does not decide", |s| f64::from(s.decisions.failure.is_some())),
    ("memory_bytes", GAUGE, "Memory for rows", |s| s.memory.bytes as f64),
    ("memory_peak_bytes", GAUGE, "The most that it ever was", |s| s.memory.peak_bytes as f64),
    ("memory_locked_bytes", GAUGE, "Of it, what is not swapped out", |s| s.memory.locked_bytes as f64),
    ("memory_pinned_bytes", GAUGE, "Registered with devices", |s| s.memory.pinned_bytes as f64),
];

fn seconds(duration: Duration) -> f64 {
    duration.as_secs_f64()
}

/// The whole text.
pub(super) fn text(snapshot: &Snapshot) -> String {
    let rank = snapshot.rank.0;
    let mut out = String::new();
    let Snapshot { rudder, ranks, transport, policy, decisions, .. } = snapshot;
    let controller = &decisions.controller;
    begin(&mut out, "info", GAUGE, "What this rank runs");
    let labels = [("version", rudder), ("transport", transport), ("policy", policy), ("controller", controller)];
    let labels: String = labels.iter().map(|(name, value)| format!(",{name}=\"{}\"", escaped(value))).collect();
    line(&mut out, "info", format_args!("rank=\"{rank}\",ranks=\"{ranks}\"{labels}"), 1);
    for (name, kind, help, value) in RANK {
        begin(&mut out, name, kind, help);
        line(&mut out, name, format_args!("rank=\"{rank}\""), value(snapshot));
    }
    for (name, kind, help, count) in TABLE {
        begin(&mut out, name, kind, help);
        for table in &snapshot.tables {
            line(&mut out, name, format_args!("table=\"{}\",rank=\"{rank}\"", table.id.0), count(table));
        }
    }
    owners(snapshot, &mut out, "owner_rows_total", "Rows that came from a partition's owner", |owner| {
        owner.rows as f64
    });
    let help = "Time during which any of them were on their way";
    owners(snapshot, &mut out, "owner_busy_seconds_total", help, |owner| owner.busy_s);
    out
}

fn owners(snapshot: &Snapshot, out: &mut String, name: &str, help: &str, value: fn(&OwnerSnapshot) -> f64) {
    begin(out, name, COUNTER, help);
    for (table, owner) in snapshot.tables.iter().flat_map(|table| table.owners.iter().map(move |owner| (table, owner)))
    {
        let (table, partition, rank) = (table.id.0, owner.partition.0, snapshot.rank.0);
        let labels = format_args!("table=\"{table}\",partition=\"{partition}\",rank=\"{rank}\"").to_string();
        line(out, name, labels, value(owner));
    }
}

// Writing to a String cannot fail.

fn begin(out: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(out, "# HELP rudder_{name} {help}.\n# TYPE rudder_{name} {kind}");
}

fn line(out: &mut String, name: &str, labels: impl Display, value: impl Display) {
    let _ = writeln!(out, "rudder_{name}{{{labels}}} {value}");
}

/// A label's value: backslash, quote and line feed have an escape.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    //! Goal: what a program reads as Prometheus' text is that. Method: the lines' shape, for names that need an escape.

    use super::*;
    use crate::id::Rank;

    #[test]
    fn every_line_has_a_name_labels_and_a_number() {
        let mut snapshot = Snapshot::of(Rank(3), 4, "a \"quoted\"\nname\\", "lfu");
        snapshot.uptime_s = 0.25;
        let text = text(&snapshot);
        assert!(text.contains("rudder_uptime_seconds{rank=\"3\"} 0.25\n"), "{text}");
        assert!(text.contains("transport=\"a \\\"quoted\\\"\\nname\\\\\""), "{text}");
        for line in text.lines() {
            let comment = line.starts_with("# HELP rudder_") || line.starts_with("# TYPE rudder_");
            let sample = line.rsplit_once("} ").is_some_and(|(front, value)| {
                front.starts_with("rudder_") && front.contains("{rank=\"3\"") && value.parse::<f64>().is_ok()
            });
            assert!(comment || sample, "{line}");
        }
    }
}
