//! A replay's document as a table for the terminal and as an HTML page.

use super::document::{Document, Recorded, Row};
use crate::report::column::Column;
use crate::report::plot::{Bars, Line, Part, escape, tidy};
use crate::report::tables::{markup, percent, table};
use crate::report::{figure, page};
use std::fmt::Write;

const COLUMNS: [Column<Row>; 13] = [
    Column { head: "policy", meaning: "what the buffer keeps", cell: |row| row.policy.clone() },
    Column { head: "controller", meaning: "what decides", cell: |row| row.controller.clone() },
    Column { head: "buffer", meaning: "share of the halo nodes, or bytes of rows", cell: |row| row.buffer.clone() },
    Column { head: "ahead", meaning: "minibatches announced ahead", cell: |row| row.lookahead.to_string() },
    Column {
        head: "rows",
        meaning: "rows fetched by all ranks: on demand, ahead and to fill the buffers",
        cell: |row| tidy(row.rows_fetched as f64),
    },
    Column {
        head: "ahead / fill",
        meaning: "of these, ahead of a minibatch, and before the first",
        cell: |row| match row.prefetched_rows + row.fill_rows {
            0 => "-".to_owned(),
            _ => format!("{} / {}", tidy(row.prefetched_rows as f64), tidy(row.fill_rows as f64)),
        },
    },
    Column {
        head: "x Belady",
        meaning: "rows over the fewest possible",
        cell: |row| format!("{:.3}", row.ratio_to_opt),
    },
    Column { head: "MB", meaning: "payload fetched, in millions of bytes", cell: |row| tidy(row.bytes as f64 / 1e6) },
    Column {
        head: "hits",
        meaning: "share of the wanted rows that were in the buffer or on their way there",
        cell: |row| percent(row.hit_rate),
    },
    Column {
        head: "useless",
        meaning: "rows fetched ahead that left the buffer unused",
        cell: |row| tidy(row.useless_rows as f64),
    },
    Column {
        head: "stall, s",
        meaning: "sum over the steps of the slowest rank's wait for rows",
        cell: |row| seconds(row.stall_s),
    },
    Column { head: "epoch, s", meaning: "median of the epochs after the first", cell: |row| seconds(row.epoch_s) },
    Column {
        head: "decisions / CPU, ms",
        meaning: "decisions of all ranks that took effect, and what the controllers took of the processor",
        cell: |row| match row.decisions {
            0 => "-".to_owned(),
            count => format!("{count} / {:.1}", row.decision_cpu_s * 1e3),
        },
    },
];

fn seconds(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.3}"))
}

fn rows_of<'a>(document: &'a Document, trace: &'a str) -> impl Iterator<Item = &'a Row> {
    document.rows.iter().filter(move |row| row.trace == trace)
}

fn cells<'a>(document: &'a Document, trace: &'a str) -> Vec<Vec<String>> {
    rows_of(document, trace).map(|row| Column::cells(&COLUMNS, row)).collect()
}

/// What the recorded run had, in a sentence.
fn recorded(run: &Recorded) -> String {
    format!(
        "Recorded with policy {}, controller {}, link {}: {} steps of {} ranks, {} rows beside the fill, hits {}, stall {:.3} s, epoch {:.3} s.",
        run.policy,
        run.controller,
        run.link,
        run.steps,
        run.ranks,
        tidy(run.rows_fetched as f64),
        percent(run.hit_rate),
        run.stall_s,
        run.epoch_s
    )
}

/// How reports tell of a bound on rows fetched ahead; empty where there is none.
pub fn in_flight_words(most: Option<usize>) -> String {
    most.map(|rows| format!(", at most {rows} rows fetched ahead on their way at once")).unwrap_or_default()
}

fn replayed(document: &Document) -> String {
    let settings = &document.settings;
    let shaped = match &settings.slow {
        Some(slow) => format!(", a slow rank {slow}"),
        None if settings.ingress_only => ", shaped at the reader only".to_owned(),
        None => String::new(),
    };
    let each = document.node_ids as f64 / (document.replay_s * document.threads as f64).max(1e-9);
    format!(
        "Replayed in virtual time with link {}{shaped}{}: {} node ids in {:.2} s, {:.1} million a second and core.",
        settings.link,
        in_flight_words(settings.in_flight),
        tidy(document.node_ids as f64),
        document.replay_s,
        each / 1e6
    )
}

/// The document for a terminal.
pub fn text(document: &Document) -> String {
    let heads = || Column::heads(&COLUMNS);
    let mut text = String::new();
    for run in &document.recorded {
        let _ = writeln!(text, "{}\n{}\n{}\n", run.trace, recorded(run), table(heads(), &cells(document, &run.trace)));
    }
    for sentence in [replayed(document)].iter().chain(&document.notes) {
        let _ = writeln!(text, "- {sentence}");
    }
    text
}

/// What tells a row from its neighbours.
fn name(row: &Row) -> String {
    let ahead = if row.lookahead > 0 { format!(" +{}", row.lookahead) } else { String::new() };
    let controller = if row.controller == "off" { String::new() } else { format!(" {}", row.controller) };
    format!("{}{controller}{ahead}", row.policy)
}

/// Bars of all rows that have a value, a heading a buffer.
fn bars(rows: &[&Row], x: &str, value: fn(&Row) -> Option<Vec<Part>>, note: fn(&Row) -> String) -> String {
    let mut lines = Vec::new();
    let mut buffer = None;
    for row in rows {
        let Some(parts) = value(row) else { continue };
        if buffer != Some(&row.buffer) {
            buffer = Some(&row.buffer);
            lines.push(Line::Heading(format!("buffer {}", row.buffer)));
        }
        lines.push(Line::Bar { name: name(row), parts, dots: Vec::new(), note: note(row) });
    }
    Bars { label: x.to_owned(), x: x.to_owned(), lines }.svg()
}

fn part(value: f64, colour: &'static str, name: &'static str) -> Part {
    Part { value, colour, name }
}

/// The document as a page that loads nothing.
pub fn html(document: &Document) -> String {
    let mut body = format!(
        "<h1>Replayed jobs</h1><p class=\"lead\">{} Times are the simulator's, not measured; rows are what the same buffer and pipeline fetch.</p>",
        escape(&replayed(document))
    );
    for run in &document.recorded {
        body += &section(document, run);
    }
    body += "<section><h2>Columns</h2>";
    body += &Column::explained(&COLUMNS);
    let _ = write!(body, "<p class=\"note\"><code>{}</code></p>", escape(&document.made.command));
    for note in &document.notes {
        let _ = write!(body, "<p class=\"note\">{}</p>", escape(note));
    }
    page("Rudder: replayed jobs", &(body + "</section>"))
}

fn section(document: &Document, run: &Recorded) -> String {
    let mut rows: Vec<&Row> = rows_of(document, &run.trace).collect();
    // Bars of one buffer stand together.
    rows.sort_by_key(|row| document.rows.iter().position(|first| first.buffer == row.buffer));
    let mut text = format!("<section><h2>{}</h2><p class=\"lead\">{}</p>", escape(&run.trace), escape(&recorded(run)));
    text += &markup(Column::heads(&COLUMNS), &cells(document, &run.trace));
    text += "</section>";
    let fetched = |row: &Row| {
        Some(vec![
            part(row.demand_rows as f64, "#7a8794", "on demand"),
            part(row.prefetched_rows as f64, "#e0b04a", "ahead"),
            part(row.fill_rows as f64, "#9bb8d3", "fill"),
        ])
    };
    text += &figure(
        "Rows fetched",
        &bars(&rows, "rows of all ranks", fetched, |row| format!("{:.3} × Belady", row.ratio_to_opt)),
        "Belady's bound knows the whole trace; nothing can fetch fewer rows with the same slots.",
    );
    if rows.iter().any(|row| row.stall_s.is_some_and(|stall| stall > 0.0)) {
        let stall = |row: &Row| row.stall_s.map(|stall| vec![part(stall, "#d9573f", "stall")]);
        text += &figure(
            "Time lost to stalls",
            &bars(&rows, "seconds, sum over steps of the slowest rank's wait", stall, |row| {
                format!("{} s, epoch {} s", seconds(row.stall_s), seconds(row.epoch_s))
            }),
            "A step lasts as long as its slowest rank.",
        );
    }
    text
}
