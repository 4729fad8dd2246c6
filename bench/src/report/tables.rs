//! The comparison as rows of text, the same for the terminal and the page.

use super::plot::{escape, tidy};
use crate::record::{Document, Run};
use crate::setup::SetUp;
use tabled::builder::Builder;
use tabled::settings::object::{Columns, Rows};
use tabled::settings::{Alignment, Modify, Style};

/// Runs that knew equally much ahead, to be compared with each other.
pub struct Block<'a> {
    /// Minibatches announced ahead.
    pub lookahead: u32,
    /// The runs, in order.
    pub runs: Vec<&'a Run>,
}

impl<'a> Block<'a> {
    /// The blocks of a document, in the order in which they first ran.
    pub fn of(document: &'a Document) -> Vec<Self> {
        let mut blocks: Vec<Self> = Vec::new();
        for run in &document.runs {
            match blocks.iter_mut().find(|block| block.lookahead == run.lookahead) {
                Some(block) => block.runs.push(run),
                None => blocks.push(Self { lookahead: run.lookahead, runs: vec![run] }),
            }
        }
        blocks
    }

    /// Its heading.
    pub fn title(&self) -> String {
        match self.lookahead {
            0 => "Without lookahead".to_owned(),
            ahead => format!("With {ahead} minibatches announced ahead"),
        }
    }

    /// The run of a set-up.
    pub fn get(&self, setup: SetUp) -> Option<&'a Run> {
        self.runs.iter().find(|run| run.setup == setup).copied()
    }

    /// What ratios refer to: `off`, where it ran.
    pub fn base(&self) -> Option<&'a Run> {
        self.get(SetUp::Off)
    }
}

/// A column: its head, what it means, and its cell.
struct Column {
    head: &'static str,
    meaning: &'static str,
    cell: fn(&Cells) -> String,
}

/// What a cell is made of.
struct Cells<'a> {
    run: &'a Run,
    base: Option<&'a Run>,
    ranks: u32,
}

const COLUMNS: [Column; 15] = [
    Column { head: "set-up", meaning: "policy and controller, see below", cell: |c| c.run.setup.to_string() },
    Column {
        head: "epoch, s",
        meaning: "median of the epochs after the first",
        cell: |c| format!("{:.2}", c.run.epoch_s_median),
    },
    Column { head: "vs off", meaning: "epoch time relative to off", cell: |c| ratio(c, |run| run.epoch_s_median) },
    Column {
        head: "first, s",
        meaning: "the first epoch; filling the buffer comes before it",
        cell: |c| format!("{:.2}", c.run.epoch_s_first),
    },
    Column { head: "stall", meaning: "share of a step spent waiting for rows", cell: |c| percent(c.run.stall_share) },
    Column {
        head: "rows",
        meaning: "rows fetched a minibatch and rank, on demand and ahead, after the first epoch",
        cell: |c| tidy(c.run.steady.rows_per_minibatch(c.ranks)),
    },
    Column {
        head: "vs off",
        meaning: "rows relative to off",
        cell: |c| ratio(c, |run| (run.steady.demand_rows + run.steady.prefetched_rows) as f64),
    },
    Column {
        head: "fill",
        meaning: "rows fetched before the first minibatch, all ranks",
        cell: |c| dash(c.run.fill_rows > 0, || tidy(c.run.fill_rows as f64)),
    },
    Column {
        head: "hits",
        meaning: "share of the remote input nodes whose rows were in the buffer or on their way there",
        cell: |c| dash(c.run.keeps_rows(), || percent(c.run.hit_rate)),
    },
    Column { head: "test acc.", meaning: "accuracy on test nodes at the end", cell: |c| percent(c.run.test_accuracy) },
    Column {
        head: "decisions / replace",
        meaning: "decisions of all ranks, and how many of them were to replace",
        cell: |c| dash(c.run.decisions > 0, || format!("{} / {}", c.run.decisions, c.run.decisions_acted)),
    },
    Column {
        head: "late",
        meaning: "decisions that the fallback, periodic, made because the model's came too late or not at all",
        cell: |c| dash(c.run.setup.needs_model(), || c.run.fallbacks.to_string()),
    },
    Column {
        head: "p50 / p99, ms",
        meaning: "time of a decision",
        cell: |c| {
            dash(c.run.decisions > 0, || {
                format!("{} / {}", milliseconds(c.run.decision_ms_p50), milliseconds(c.run.decision_ms_p99))
            })
        },
    },
    Column {
        head: "model CPU, s",
        meaning: "processor time of the language model",
        cell: |c| dash(c.run.setup.needs_model(), || format!("{:.1}", c.run.model_cpu_s)),
    },
    Column {
        head: "ahead, s",
        meaning: "time of sampling ahead of need, a rank, part of the epochs",
        cell: |c| dash(c.run.lookahead > 0, || format!("{:.2}", c.run.sample_ahead_s)),
    },
];

/// The comparison of a block: heads, then a line a run.
pub fn cells(block: &Block, ranks: u32) -> (Vec<&'static str>, Vec<Vec<String>>) {
    let all: Vec<Vec<String>> = block
        .runs
        .iter()
        .map(|run| {
            let cells = Cells { run, base: block.base(), ranks };
            COLUMNS.iter().map(|column| (column.cell)(&cells)).collect()
        })
        .collect();
    // A column that says nothing about any run of the block is left out.
    let told: Vec<usize> = (0..COLUMNS.len()).filter(|&at| all.iter().any(|line| line[at] != "-")).collect();
    let heads = told.iter().map(|&at| COLUMNS[at].head).collect();
    (heads, all.iter().map(|line| told.iter().map(|&at| line[at].clone()).collect()).collect())
}

/// What each column means.
pub fn meanings() -> impl Iterator<Item = (&'static str, &'static str)> {
    COLUMNS.iter().skip(1).map(|column| (column.head, column.meaning))
}

/// The comparison of a block for a terminal.
pub fn text(block: &Block, ranks: u32) -> String {
    let (heads, lines) = cells(block, ranks);
    format!("{}\n{}", block.title(), table(heads, &lines))
}

/// A table for a terminal: heads, then lines, all but the first column to the right.
pub fn table(heads: impl IntoIterator<Item = &'static str>, lines: &[Vec<String>]) -> String {
    let mut builder = Builder::default();
    builder.push_record(heads);
    lines.iter().for_each(|line| builder.push_record(line));
    let mut table = builder.build();
    table
        .with(Style::sharp())
        .with(Modify::new(Columns::new(1..)).with(Alignment::right()))
        .with(Modify::new(Rows::first()).with(Alignment::left()));
    table.to_string()
}

/// The same for a page.
pub fn markup(heads: impl IntoIterator<Item = &'static str>, lines: &[Vec<String>]) -> String {
    let row = |cells: String| format!("<tr>{cells}</tr>");
    let heads = heads.into_iter().map(|head| format!("<th>{}</th>", escape(head))).collect();
    let line = |cells: &Vec<String>| row(cells.iter().map(|cell| format!("<td>{}</td>", escape(cell))).collect());
    format!("<table>{}{}</table>", row(heads), lines.iter().map(line).collect::<String>())
}

fn ratio(cells: &Cells, pick: fn(&Run) -> f64) -> String {
    let base = cells.base.map(pick).filter(|&base| base > 0.0);
    base.map_or_else(|| "-".to_owned(), |base| format!("{:.2}", pick(cells.run) / base))
}

/// A share of 1, in percent.
pub fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

fn milliseconds(ms: f64) -> String {
    if ms < 0.01 { "<0.01".to_owned() } else { tidy(ms) }
}

fn dash(told: bool, words: impl FnOnce() -> String) -> String {
    if told { words() } else { "-".to_owned() }
}
