//! A projection as a table for the terminal and as an HTML page.

use super::document::{Document, Kind, Row};
use super::model::Bound;
use crate::report::column::Column;
use crate::report::plot::{Bars, Line, Part, escape, tidy};
use crate::report::tables::{markup, percent, table};
use crate::report::{figure, page};
use std::fmt::Write;

const COLUMNS: [Column<Row>; 12] = [
    Column { head: "ranks", meaning: "each with a partition", cell: |row| row.ranks.to_string() },
    Column {
        head: "checked by",
        meaning: "a recorded run, the simulator, or nothing: then all of the row is the model's alone",
        cell: |row| row.kind.name().to_owned(),
    },
    Column { head: "steps", meaning: "of an epoch", cell: |row| tidy(row.steps) },
    Column { head: "epoch, s", meaning: "by the model", cell: |row| tidy(row.epoch_s) },
    Column {
        head: "checked, s",
        meaning: "the same as measured or simulated; averaging gradients is the model's in a simulated one",
        cell: |row| row.checked_s.map_or_else(|| "-".to_owned(), tidy),
    },
    Column {
        head: "error",
        meaning: "the model's epoch over the checked one, less 1",
        cell: |row| row.checked_s.map_or_else(|| "-".to_owned(), |found| percent(row.epoch_s / found - 1.0)),
    },
    Column {
        head: "stall",
        meaning: "share of the epoch that waits for rows",
        cell: |row| percent(row.stall_s / row.epoch_s),
    },
    Column {
        head: "allreduce",
        meaning: "share of the epoch that averages gradients",
        cell: |row| percent(row.allreduce_s / row.epoch_s),
    },
    Column {
        head: "rows",
        meaning: "that a rank fetches for a minibatch",
        cell: |row| format!("{} of {}", tidy(row.fetched.round()), tidy(row.wanted.round())),
    },
    Column {
        head: "NIC load",
        meaning: "share of the time in which the busiest NIC moves rows",
        cell: |row| percent(row.nic_load),
    },
    Column {
        head: "GB a node",
        meaning: "partitions, buffers and lists of halo nodes of a node's ranks",
        cell: |row| tidy(row.node_bytes / 1e9),
    },
    Column { head: "held back by", meaning: "what takes longest", cell: |row| row.bound.to_string() },
];

fn cells(document: &Document) -> Vec<Vec<String>> {
    document.rows.iter().map(|row| Column::cells(&COLUMNS, row)).collect()
}

fn projected(document: &Document) -> String {
    let network = document.network;
    format!(
        "Graph {}, {}. A minibatch takes {} ms of sampling and {} ms of computing; a rank's network: L {} us, g {} ns, G {} ns a byte.",
        document.graph,
        document.policy,
        tidy(document.sample_s * 1e3),
        tidy(document.compute_s * 1e3),
        tidy(network.latency_s * 1e6),
        tidy(network.gap_s * 1e9),
        tidy(network.byte_s * 1e9),
    )
}

fn findings(document: &Document) -> Vec<String> {
    let mut findings = document.notes.clone();
    if let Some(held_out) = document.held_out {
        findings.push(format!(
            "From the smaller numbers of ranks alone the model has {:.2} times the rows and {:.2} times the step that the simulator has at {} ranks.",
            held_out.rows, held_out.step, held_out.ranks
        ));
    }
    let full = document.rows.iter().filter(|row| row.kind != Kind::Measured && row.bound != Bound::Seeds);
    if let Some(fastest) = full.min_by(|one, other| one.epoch_s.total_cmp(&other.epoch_s)) {
        findings.push(format!(
            "Of those whose minibatches are full, {} ranks have the shortest epoch, {} s, held back by {}{}.",
            fastest.ranks,
            tidy(fastest.epoch_s),
            fastest.bound,
            if fastest.kind == Kind::Model { "; nothing has checked that" } else { "" }
        ));
    }
    findings
}

/// The document for a terminal.
pub fn text(document: &Document) -> String {
    let heads = Column::heads(&COLUMNS);
    let mut text = format!("{}\n{}\n\n", projected(document), table(heads, &cells(document)));
    for finding in findings(document) {
        let _ = writeln!(text, "- {finding}");
    }
    text
}

/// The document as a page that loads nothing.
pub fn html(document: &Document) -> String {
    let mut body = format!(
        "<h1>A job at other numbers of ranks</h1><p class=\"lead\">{} What is not measured or simulated is the model's.</p><section><ul>",
        escape(&projected(document))
    );
    for finding in findings(document) {
        let _ = write!(body, "<li>{}</li>", escape(&finding));
    }
    body += "</ul></section>";
    let bar = |row: &Row| {
        let own = row.epoch_s - row.stall_s - row.allreduce_s;
        let part = |value, colour, name| Part { value, colour, name };
        Line::Bar {
            name: format!("{}, {}", row.ranks, row.kind.name()),
            parts: vec![
                part(own, "#7a8aa0", "sampling and computing"),
                part(row.stall_s, "#d9573f", "stall"),
                part(row.allreduce_s, "#e0a030", "allreduce"),
            ],
            dots: row.checked_s.into_iter().collect(),
            note: format!("{} s, {}", tidy(row.epoch_s), row.bound),
        }
    };
    let bars = Bars {
        label: "An epoch by number of ranks".to_owned(),
        x: "seconds of an epoch".to_owned(),
        lines: document.rows.iter().map(bar).collect(),
    };
    body += &figure("An epoch by number of ranks", &bars.svg(), "The dot is what was measured or simulated.");
    let _ = write!(body, "<section>{}", markup(Column::heads(&COLUMNS), &cells(document)));
    body += "</section><section><h2>Columns</h2>";
    body += &Column::explained(&COLUMNS);
    let _ = write!(body, "<p class=\"note\"><code>{}</code></p></section>", escape(&document.made.command));
    page("Rudder: other numbers of ranks", &body)
}
