//! A study's document as tables for the terminal and as an HTML page.

use super::document::Document;
use super::standing::{Configuration, Lookahead, Standing};
use crate::replay::in_flight_words;
use crate::report::column::Column;
use crate::report::plot::{Bars, Line, Part, escape};
use crate::report::tables::{markup, table};
use crate::report::{figure, page};
use std::fmt::Write;

const COLUMNS: [Column<Standing>; 11] = [
    Column {
        head: "contender",
        meaning: "the policy, and the controller that steers it",
        cell: |standing| standing.contender.clone(),
    },
    Column {
        head: "stall",
        meaning: "time lost to stalls over that of each configuration's best contender: the initial fill, and each step's slowest rank; geometric mean over the configurations",
        cell: |standing| format!("{:.3}", standing.stall.mean),
    },
    Column {
        head: "95 %",
        meaning: "its interval, by the draws of the jobs",
        cell: |standing| format!("{:.3} - {:.3}", standing.stall.low, standing.stall.high),
    },
    Column {
        head: "worst",
        meaning: "the same in the configuration where it does worst",
        cell: |standing| format!("{:.2}", standing.worst),
    },
    Column {
        head: "best in",
        meaning: "configurations in which it stalls least",
        cell: |standing| standing.wins.to_string(),
    },
    Column {
        head: "first 32",
        meaning: "stall of the fill and of the first 32 minibatches, over the least of any contender",
        cell: |standing| format!("{:.2}", standing.start),
    },
    Column {
        head: "after change",
        meaning: "the same of the 32 minibatches after a change",
        cell: |standing| standing.change.map_or_else(|| "-".to_owned(), |change| format!("{change:.2}")),
    },
    Column {
        head: "x Belady",
        meaning: "rows fetched over the fewest possible",
        cell: |standing| format!("{:.3}", standing.x_belady),
    },
    Column {
        head: "closes",
        meaning: "share of what choosing a contender without a controller for each configuration saves over the best single one that a steered one saves",
        cell: |standing| standing.closes.map_or_else(|| "-".to_owned(), |share| format!("{:.0} %", share * 100.0)),
    },
    Column {
        head: "CPU, us",
        meaning: "what its controller takes of the processor a minibatch, measured; differs from run to run, as the next does",
        cell: |standing| {
            if standing.minibatch_us == 0.0 { "-".to_owned() } else { format!("{:.2}", standing.minibatch_us) }
        },
    },
    Column {
        head: "decides in, ms",
        meaning: "of this, what the decision that takes longest does, the median of the jobs: where a model is asked, its answer",
        cell: |standing| standing.longest_decision_ms.map_or_else(|| "-".to_owned(), |spent| format!("{spent:.3}")),
    },
];

impl Document {
    /// The standings of lookaheads that leave something to decide.
    fn decided(&self) -> impl Iterator<Item = &Lookahead> {
        self.standings.lookaheads.iter().filter(|standings| !standings.configurations.is_empty())
    }
}

fn title(standings: &Lookahead) -> String {
    match standings.lookahead {
        0 => "Nothing announced".to_owned(),
        1 => "1 minibatch announced".to_owned(),
        many => format!("{many} minibatches announced"),
    }
}

fn cells(standings: &Lookahead) -> Vec<Vec<String>> {
    standings.contenders.iter().map(|standing| Column::cells(&COLUMNS, standing)).collect()
}

const CONFIGURATION_HEADS: [&str; 7] = ["graph", "changes", "buffer", "slow rank", "best", "its stall, s", "as good"];

fn configuration(configuration: &Configuration) -> Vec<String> {
    let as_good = match &configuration.as_good[..] {
        [] => "-".to_owned(),
        few @ [_] | few @ [_, _] | few @ [_, _, _] => few.join(", "),
        [first, second, more @ ..] => format!("{first}, {second} and {} more", more.len()),
    };
    vec![
        configuration.graph.clone(),
        configuration.scenario.clone(),
        configuration.buffer.clone(),
        configuration.slow.clone().unwrap_or_else(|| "-".to_owned()),
        configuration.best.clone(),
        format!("{:.3}", configuration.stall_s),
        as_good,
    ]
}

fn studied(document: &Document) -> String {
    let settings = &document.settings;
    let fanout: Vec<String> = settings.fanout.iter().map(usize::to_string).collect();
    format!(
        "{} replays in virtual time. Sampled jobs: {} ranks, {} minibatches of {} seeds, fan-out {}, rows of {} bytes, {} ms of sampling and {} ms of \
         computing a minibatch, link {}{}{}.",
        document.runs.len(),
        settings.ranks,
        settings.minibatches,
        settings.batch,
        fanout.join(","),
        settings.row_bytes,
        settings.sample_s * 1e3,
        settings.compute_s * 1e3,
        settings.link,
        in_flight_words(settings.in_flight),
        if settings.announce_changes { ", changes announced" } else { "" }
    )
}

/// The document for a terminal.
pub fn text(document: &Document) -> String {
    let mut text = format!("{}\n\n", studied(document));
    for standings in document.decided() {
        let heads = Column::heads(&COLUMNS);
        let _ = writeln!(text, "{}\n{}\n", title(standings), table(heads, &cells(standings)));
    }
    for finding in &document.findings {
        let _ = writeln!(text, "- {finding}");
    }
    text
}

/// The document as a page that loads nothing.
pub fn html(document: &Document) -> String {
    let mut body = format!(
        "<h1>Who wins where</h1><p class=\"lead\">{} Stalls are the simulator's, not measured.</p><section><h2>What the numbers say</h2><ul>",
        escape(&studied(document))
    );
    for finding in &document.findings {
        let _ = write!(body, "<li>{}</li>", escape(finding));
    }
    body += "</ul></section>";
    for standings in document.decided() {
        body += &section(standings);
    }
    body += "<section><h2>Columns</h2>";
    body += &Column::explained(&COLUMNS);
    let _ = write!(body, "<p class=\"note\"><code>{}</code></p></section>", escape(&document.made.command));
    page("Rudder: who wins where", &body)
}

/// One figure of a lookahead's standings.
struct Figure {
    /// Set over it, after what is announced.
    title: &'static str,
    /// The x axis in words.
    x: &'static str,
    /// A contender's bar; none of one that this says nothing of.
    bar: fn(&Standing) -> Option<f64>,
    /// A dot on its line.
    dot: fn(&Standing) -> Option<f64>,
    /// Set to the right.
    note: fn(&Standing) -> String,
    /// Set below.
    caption: &'static str,
}

const FIGURES: [Figure; 5] = [
    Figure {
        title: "one choice for everything",
        x: "stall over that of each configuration's best contender",
        bar: |standing| Some(standing.stall.mean),
        dot: |standing| Some(standing.worst),
        note: |standing| format!("{:.2}, worst {:.2}", standing.stall.mean, standing.worst),
        caption: "The dot is the configuration where a contender does worst.",
    },
    Figure {
        title: "while there is still to learn",
        x: "stall of 32 minibatches over the least of any contender in them",
        bar: |standing| Some(standing.start),
        dot: |standing| standing.change,
        note: |standing| {
            let change = standing.change.map(|change| format!(", after a change {change:.2}")).unwrap_or_default();
            format!("{:.2}{change}", standing.start)
        },
        caption: "The bar is the start of a job, its initial fill included; the dot is what follows a change.",
    },
    Figure {
        title: "rows",
        x: "rows fetched over the fewest possible",
        bar: |standing| Some(standing.x_belady),
        dot: |_| None,
        note: |standing| format!("{:.3}", standing.x_belady),
        caption: "The fewest are those of Belady's rule, which knows all that is to come. Fewer rows are not always less stall: rows of slow owners count for more.",
    },
    Figure {
        title: "what steering gains",
        x: "share of the gap between the best single choice without a controller and the best for each configuration",
        bar: |standing| standing.closes.map(|share| share.max(0.0)),
        dot: |_| None,
        note: |standing| standing.closes.map(|share| format!("{:.0} %", share * 100.0)).unwrap_or_default(),
        caption: "More than 1: better than the best for each. No bar and a figure below 0: worse than the single choice.",
    },
    Figure {
        title: "what a decision takes",
        x: "milliseconds of the processor, the longest of a job, the median of the jobs",
        bar: |standing| standing.longest_decision_ms,
        dot: |_| None,
        note: |standing| standing.longest_decision_ms.map(|spent| format!("{spent:.3} ms")).unwrap_or_default(),
        caption: "Off the training's thread: no step waits for it.",
    },
];

impl Figure {
    /// Drawn, if there is something to draw.
    fn drawn(&self, standings: &Lookahead) -> Option<String> {
        let title = format!("{}: {}", title(standings), self.title);
        let line = |standing: &Standing| {
            Some(Line::Bar {
                name: standing.contender.clone(),
                parts: vec![Part { value: (self.bar)(standing)?, colour: "#d9573f", name: self.title }],
                dots: (self.dot)(standing).into_iter().collect(),
                note: (self.note)(standing),
            })
        };
        let lines: Vec<Line> = standings.contenders.iter().filter_map(line).collect();
        if lines.is_empty() {
            return None;
        }
        let bars = Bars { label: title.clone(), x: self.x.to_owned(), lines };
        Some(figure(&title, &bars.svg(), self.caption))
    }
}

fn section(standings: &Lookahead) -> String {
    let figures: String = FIGURES.iter().filter_map(|figure| figure.drawn(standings)).collect();
    let lines: Vec<Vec<String>> = standings.configurations.iter().map(configuration).collect();
    format!(
        "{figures}<section><h3>Contenders</h3>{}<h3>Configurations</h3>{}</section>",
        markup(Column::heads(&COLUMNS), &cells(standings)),
        markup(CONFIGURATION_HEADS, &lines)
    )
}
