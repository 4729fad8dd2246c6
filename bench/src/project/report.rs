//! A projection as a table for the terminal and as an HTML page.

use super::document::{Check, CheckRow, Document, Kind, Projection, Row, Scaling};
use super::model::Bound;
use crate::report::column::Column;
use crate::report::plot::{Bars, Line, Part, escape, tidy};
use crate::report::tables::{markup, percent, table};
use crate::report::{figure, page};
use std::fmt::Write;

const COLUMNS: [Column<Row>; 13] = [
    Column { head: "ranks", meaning: "each with a partition", cell: |row| row.ranks.to_string() },
    Column {
        head: "checked by",
        meaning: "a recorded run, the simulator, or nothing: then all of the row is the model's, or of the graph's sizes alone",
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
        head: "efficiency",
        meaning: "what a rank does of the graph in a second, beside what each of the fewest ranks does",
        cell: |row| row.efficiency.map_or_else(|| "-".to_owned(), percent),
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

const CHECK_COLUMNS: [Column<CheckRow>; 5] = [
    Column { head: "ranks", meaning: "each with a partition", cell: |row| row.ranks.to_string() },
    Column { head: "wanted", meaning: "rows that a rank wants from others", cell: |row| times(row.wanted) },
    Column { head: "fetched", meaning: "rows that it fetches for a minibatch", cell: |row| times(row.fetched) },
    Column { head: "halo", meaning: "halo nodes of a rank", cell: |row| times(row.halo) },
    Column { head: "step", meaning: "time of a step", cell: |row| times(row.step) },
];

fn times(ratio: f64) -> String {
    format!("{ratio:.2} x")
}

/// What a check's table says, and its lines.
fn checked(check: &Check) -> (String, Vec<Vec<String>>) {
    let words = format!(
        "The projection is by the graph's sizes alone: a model that is fitted to nothing. Of {}, which can be simulated, the same model with its \
         sizes has so many times what the simulator has",
        check.graph
    );
    (words, check.rows.iter().map(|row| Column::cells(&CHECK_COLUMNS, row)).collect())
}

fn cells(projection: &Projection) -> Vec<Vec<String>> {
    projection.rows.iter().map(|row| Column::cells(&COLUMNS, row)).collect()
}

/// What a projection's scaling holds fixed.
fn held_fixed(projection: &Projection) -> String {
    let &Projection { scaling, nodes, training, simulated_nodes, .. } = projection;
    let (nodes, training) = (tidy(nodes.round()), tidy(training.round()));
    match scaling {
        Scaling::Strong => format!("Strong scaling: the same graph, {nodes} nodes, {training} of them trained on"),
        Scaling::Weak => {
            let found = simulated_nodes.map(|of| of.map(|nodes| tidy(nodes.round())));
            let found = found.map(|[least, most]| format!("; {least} to {most} a rank in the simulated ones"));
            format!(
                "Weak scaling: the graph grows with the ranks, {nodes} nodes a rank, {training} of them trained on{}",
                found.unwrap_or_default()
            )
        }
    }
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

fn findings(projection: &Projection) -> Vec<String> {
    let mut findings = Vec::new();
    if let Some(held_out) = projection.held_out {
        findings.push(format!(
            "From the smaller numbers of ranks alone the model has {:.2} times the rows and {:.2} times the step that the simulator has at {} ranks.",
            held_out.rows, held_out.step, held_out.ranks
        ));
    }
    let unchecked =
        |row: &Row| if matches!(row.kind, Kind::Model | Kind::Sizes) { "; nothing has checked that" } else { "" };
    let full = projection.rows.iter().filter(|row| row.kind != Kind::Measured && row.bound != Bound::Seeds);
    match projection.scaling {
        Scaling::Strong => {
            findings.extend(full.min_by(|one, other| one.epoch_s.total_cmp(&other.epoch_s)).map(|row| {
                format!(
                    "Of those whose minibatches are full, {} ranks have the shortest epoch, {} s, held back by {}{}.",
                    row.ranks,
                    tidy(row.epoch_s),
                    row.bound,
                    unchecked(row)
                )
            }))
        }
        Scaling::Weak => findings.extend(full.max_by_key(|row| row.ranks).and_then(|row| {
            let efficiency = percent(row.efficiency?);
            Some(format!(
                "{} ranks keep {efficiency} of the efficiency, held back by {}{}.",
                row.ranks,
                row.bound,
                unchecked(row)
            ))
        })),
    }
    findings
}

/// The document for a terminal.
pub fn text(document: &Document) -> String {
    let mut text = format!("{}\n", projected(document));
    for note in &document.notes {
        let _ = writeln!(text, "- {note}");
    }
    if let Some((words, lines)) = document.check.as_ref().map(checked) {
        let _ = writeln!(text, "\n{words}\n{}", table(Column::heads(&CHECK_COLUMNS), &lines));
    }
    for projection in &document.projections {
        let heads = Column::heads(&COLUMNS);
        let _ = writeln!(text, "\n{}\n{}\n", held_fixed(projection), table(heads, &cells(projection)));
        for finding in findings(projection) {
            let _ = writeln!(text, "- {finding}");
        }
    }
    text
}

/// The document as a page that loads nothing.
pub fn html(document: &Document) -> String {
    let mut body = format!(
        "<h1>A job at other numbers of ranks</h1><p class=\"lead\">{} What is not measured or simulated is the model's.</p>",
        escape(&projected(document))
    );
    if !document.notes.is_empty() {
        let _ = write!(body, "<section>{}</section>", list(&document.notes));
    }
    if let Some((words, lines)) = document.check.as_ref().map(checked) {
        let table = markup(Column::heads(&CHECK_COLUMNS), &lines);
        let _ = write!(
            body,
            "<section><h2>How far sizes alone are right</h2><p class=\"note\">{}.</p>{table}</section>",
            escape(&words)
        );
    }
    let bars = Bars {
        label: "An epoch by number of ranks".to_owned(),
        x: "seconds of an epoch".to_owned(),
        lines: document.projections.iter().flat_map(bars).collect(),
    };
    body += &figure("An epoch by number of ranks", &bars.svg(), "The dot is what was measured or simulated.");
    for projection in &document.projections {
        let name = projection.scaling.name();
        let _ = write!(
            body,
            "<section><h2>In {name} scaling</h2><p class=\"note\">{}.</p>",
            escape(&held_fixed(projection))
        );
        body += &list(&findings(projection));
        body += &markup(Column::heads(&COLUMNS), &cells(projection));
        body += "</section>";
    }
    body += "<section><h2>Columns</h2>";
    body += &Column::explained(&COLUMNS);
    let _ = write!(body, "<p class=\"note\"><code>{}</code></p></section>", escape(&document.made.command));
    page("Rudder: other numbers of ranks", &body)
}

/// A projection's bars, under what it holds fixed.
fn bars(projection: &Projection) -> Vec<Line> {
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
    std::iter::once(Line::Heading(held_fixed(projection))).chain(projection.rows.iter().map(bar)).collect()
}

fn list(sentences: &[String]) -> String {
    let item = |sentence: &String| format!("<li>{}</li>", escape(sentence));
    format!("<ul>{}</ul>", sentences.iter().map(item).collect::<String>())
}
