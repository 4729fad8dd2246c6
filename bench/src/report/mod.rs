//! The report: one HTML file that needs neither network nor script, and the same comparison as text.

pub mod column;
mod findings;
pub mod plot;
pub mod tables;

use crate::cli::ReportArgs;
use crate::record::{Document, FORMAT, Run, Settings};
use crate::setup::SetUp;
use anyhow::Context;
use plot::{Bars, Curve, Curves, Lane, Line, Part, Unit, escape, tidy};
use std::fmt::Write;
use std::path::Path;
use tables::{Block, percent};

/// Minibatches that a curve shows at most side by side; more are averaged.
const CURVE_POINTS: usize = 90;

/// A set-up's colour in every figure.
fn colour(setup: SetUp) -> &'static str {
    match setup {
        SetUp::OffSync => "#9aa0a6",
        SetUp::Off => "#4d5156",
        SetUp::Fixed => "#a6761d",
        SetUp::FixedRandom => "#c9a66b",
        SetUp::Presc => "#7a5a14",
        SetUp::Periodic => "#e08e0b",
        SetUp::Random => "#c45a9a",
        SetUp::Classifier => "#8c4a6b",
        SetUp::Llm => "#1769aa",
        SetUp::LlmCohorts => "#3fa7d6",
        SetUp::Lru => "#8fb339",
        SetUp::Sieve => "#5b8c2a",
        SetUp::S3fifo => "#2f9e8f",
        SetUp::Wtinylfu => "#57b894",
        SetUp::Lfu => "#0f8a5f",
        SetUp::Window => "#6d3fa0",
        SetUp::Analytic => "#1f8a70",
        SetUp::Ghost => "#7a6ff0",
        SetUp::Guard => "#b08968",
        SetUp::Pilot => "#b0413e",
    }
}

/// `rudder report`: draws a document again.
///
/// # Errors
/// The document cannot be read, is of another layout, or the page cannot be written.
pub fn run(args: &ReportArgs) -> anyhow::Result<()> {
    let path = args.document.display();
    let text = std::fs::read(&args.document).with_context(|| format!("reading {path}"))?;
    let document: Document =
        serde_json::from_slice(&text).with_context(|| format!("{path} is no document of rudder train"))?;
    anyhow::ensure!(
        document.made.format == FORMAT,
        "{path} has layout {}, this program reads layout {FORMAT}",
        document.made.format
    );
    let out = args.out.clone().unwrap_or_else(|| args.document.with_extension("html"));
    write(&out, &html(&document))
}

/// Writes a file and says where.
///
/// # Errors
/// It cannot be written.
pub fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    std::fs::write(path, text).with_context(|| format!("writing {}", path.display()))?;
    eprintln!("wrote {}", path.display());
    Ok(())
}

/// The comparison for a terminal: a table a block, then what it says.
pub fn text(document: &Document) -> String {
    let mut text = String::new();
    for block in Block::of(document) {
        let _ = writeln!(text, "{}\n", tables::text(&block, document.settings.ranks));
    }
    for sentence in findings::sentences(document).iter().chain(&document.notes) {
        let _ = writeln!(text, "- {sentence}");
    }
    text
}

/// The whole page.
pub fn html(document: &Document) -> String {
    let blocks = Block::of(document);
    let mut body = header(document);
    body += &section_findings(document);
    body += &figure(
        "Epoch time",
        &epoch_bars(&blocks),
        "Bars are the median epoch after the first, dots the single epochs; shorter is better. Compare within a group: the groups differ in \
         what is known ahead. Bars closer together than their dots are scattered are not different.",
    );
    body += &figure(
        "Where a step's time goes",
        &step_bars(&blocks),
        "Mean over ranks and minibatches after the first epoch. Stall is the wait for rows that rudder is there to remove. All-reduce holds \
         the wait for the slowest rank, so a stall on one rank shows as all-reduce on the others.",
    );
    body += &figure(
        "Rows fetched",
        &row_bars(&blocks, document.settings.ranks),
        "Rows fetched from other ranks a minibatch and rank, after the first epoch. Unlike times, row counts hardly depend on the machine. \
         Rows fetched ahead save a wait only if they are used.",
    );
    for block in &blocks {
        body += &curve_figures(block, document);
    }
    body += &section_tables(&blocks, document);
    body += &section_setups(document);
    body += &section_settings(document);
    page(&format!("Rudder: {}", document.settings.graph), &body)
}

/// A page of this body, which is markup; the title is not.
pub fn page(title: &str, body: &str) -> String {
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <title>{}</title><style>{STYLE}</style></head><body><main>{body}</main></body></html>\n",
        escape(title)
    )
}

const STYLE: &str = "
body{margin:0;background:#f6f7f9;color:#202124;font:16px/1.55 system-ui,-apple-system,'Segoe UI',Roboto,'Liberation Sans','DejaVu Sans',sans-serif}
main{max-width:1140px;margin:0 auto;padding:32px 24px 64px}
h1{font-size:29px;line-height:1.2;margin:0 0 6px}h2{font-size:19px;margin:0 0 10px}
.lead{color:#4d5156;margin:0 0 22px;max-width:80ch}
section,figure{background:#fff;border:1px solid #e3e6ea;border-radius:8px;margin:0 0 20px;padding:20px 24px;overflow-x:auto}
figcaption{color:#4d5156;font-size:14.5px;margin-top:8px;max-width:100ch}
svg{display:block;width:100%;height:auto;font-family:inherit}
.facts{display:flex;flex-wrap:wrap;gap:12px;margin:0 0 20px}
.facts div{background:#fff;border:1px solid #e3e6ea;border-radius:8px;padding:10px 16px;flex:1 1 150px}
.facts b{display:block;font-size:18px;font-weight:600}.facts span{color:#5f6368;font-size:13px}
table{border-collapse:collapse;font-size:13.5px;width:100%;font-variant-numeric:tabular-nums}
th,td{padding:6px 7px;text-align:right;border-bottom:1px solid #e3e6ea;white-space:nowrap}
th{white-space:normal;vertical-align:bottom;color:#5f6368;font-weight:600;border-bottom:2px solid #c6cbd1}
th:first-child,td:first-child{text-align:left}
.wide td{text-align:left;white-space:normal}.wide td:first-child{white-space:nowrap;color:#4d5156;width:1%;padding-right:24px}
.dot{display:inline-block;width:10px;height:10px;border-radius:2px;margin-right:7px}
h3{font-size:15px;margin:18px 0 6px}h2+h3{margin-top:0}
ul{margin:0;padding-left:20px}li{margin:5px 0;max-width:100ch}
.note{color:#4d5156;font-size:14px;margin:10px 0 0}
code{background:#f1f3f4;border-radius:4px;padding:1px 5px;font-size:13.5px;word-break:break-all}
";

fn header(document: &Document) -> String {
    let settings = &document.settings;
    let (runs, ranks) = (document.runs.len(), settings.ranks);
    let link = settings.link.as_ref().map_or_else(|| "an unshaped link".to_owned(), |link| format!("a link of {link}"));
    let mut text = format!(
        "<h1>GNN training over rudder</h1><p class=\"lead\">{}: the same GraphSAGE training, run {} with {ranks} ranks over {} with {}. The runs \
         differ only in which remote feature rows are kept and when they are fetched. Measured {} on {} ({} cores), not simulated.</p><div class=\"facts\">",
        escape(&settings.graph),
        if runs == 1 { "once".to_owned() } else { format!("{runs} times") },
        escape(&settings.transport),
        escape(&link),
        if document.made.machine.build == "debug" { "with a debug build" } else { "with a release build" },
        escape(&document.made.machine.cpu),
        document.made.machine.cores,
    );
    let mut fact = |value: String, name: &str| {
        let _ = write!(text, "<div><b>{}</b><span>{name}</span></div>", escape(&value));
    };
    fact(tidy(settings.nodes as f64), "nodes");
    fact(tidy(settings.edges as f64), "directed edges");
    fact(format!("{} B", tidy(settings.features as f64 * 4.0)), "a feature row");
    fact(percent(settings.cut), "edges between partitions");
    fact(settings.buffer.clone(), "prefetch buffer");
    text + "</div>"
}

fn section_findings(document: &Document) -> String {
    let mut text = "<section><h2>What the numbers say</h2><ul>".to_owned();
    for sentence in findings::sentences(document).iter().chain(&document.notes) {
        let _ = write!(text, "<li>{}</li>", escape(sentence));
    }
    text + "</ul></section>"
}

/// A figure with its title above and its caption below.
pub fn figure(title: &str, svg: &str, caption: &str) -> String {
    format!("<figure><h2>{}</h2>{svg}<figcaption>{}</figcaption></figure>", escape(title), escape(caption))
}

/// Bars of all blocks, a heading a block where there are several.
fn bar_lines(blocks: &[Block], bar: impl Fn(&Block, &Run) -> Line) -> Vec<Line> {
    let mut lines = Vec::new();
    for block in blocks {
        if blocks.len() > 1 || block.lookahead > 0 {
            lines.push(Line::Heading(block.title()));
        }
        lines.extend(block.runs.iter().map(|run| bar(block, run)));
    }
    lines
}

/// A value and how it compares with `off`.
fn beside_off(words: String, value: f64, base: Option<f64>) -> String {
    match base.filter(|&base| base > 0.0) {
        Some(base) => format!("{words}, {:.2} × off", value / base),
        None => words,
    }
}

fn epoch_bars(blocks: &[Block]) -> String {
    let lines = bar_lines(blocks, |block, run| Line::Bar {
        name: run.setup.to_string(),
        parts: vec![Part { value: run.epoch_s_median, colour: colour(run.setup), name: "median epoch, s" }],
        dots: run.epoch_s[usize::from(run.epoch_s.len() > 1)..].to_vec(),
        note: beside_off(
            format!("{:.2} s", run.epoch_s_median),
            run.epoch_s_median,
            block.base().map(|base| base.epoch_s_median),
        ),
    });
    Bars { label: "epoch time of every set-up".to_owned(), x: "seconds an epoch".to_owned(), lines }.svg()
}

fn step_bars(blocks: &[Block]) -> String {
    let lines = bar_lines(blocks, |_, run| {
        let phase = &run.steady;
        let part = |seconds: f64, colour, name| Part { value: seconds * 1e3, colour, name };
        Line::Bar {
            name: run.setup.to_string(),
            parts: vec![
                part(phase.sample_s, "#9bb8d3", "sample"),
                part(phase.compute_s, "#5b8db8", "compute"),
                part(phase.stall_s, "#d9573f", "stall"),
                part(phase.allreduce_s, "#c9ced4", "all-reduce"),
            ],
            dots: vec![],
            note: format!("stall {}", percent(phase.stall_share)),
        }
    });
    Bars { label: "parts of a step".to_owned(), x: "milliseconds a minibatch".to_owned(), lines }.svg()
}

fn row_bars(blocks: &[Block], ranks: u32) -> String {
    let lines = bar_lines(blocks, |block, run| {
        let count = (run.steady.minibatches * u64::from(ranks)).max(1) as f64;
        let rows = |run: &Run| run.steady.rows_per_minibatch(ranks);
        Line::Bar {
            name: run.setup.to_string(),
            parts: vec![
                Part { value: run.steady.demand_rows as f64 / count, colour: "#7a8794", name: "on demand" },
                Part { value: run.steady.prefetched_rows as f64 / count, colour: "#e0b04a", name: "ahead" },
            ],
            dots: vec![],
            note: beside_off(tidy(rows(run)), rows(run), block.base().map(rows)),
        }
    });
    Bars { label: "rows fetched by every set-up".to_owned(), x: "rows a minibatch and rank".to_owned(), lines }.svg()
}

fn curve_figures(block: &Block, document: &Document) -> String {
    let when = block.title().to_lowercase();
    let minibatches = block.runs.iter().map(|run| run.series.hits.len()).max().unwrap_or_default();
    let window = minibatches.div_ceil(CURVE_POINTS).max(1);
    let mean = if window > 1 { format!(" Curves are means over {window} minibatches.") } else { String::new() };
    let curve = |run: &&Run, values: Vec<f64>| Curve {
        name: run.setup.to_string(),
        colour: colour(run.setup),
        values: moving_mean(&values, window),
    };
    let keeping: Vec<&Run> = block.runs.iter().copied().filter(|run| run.keeps_rows()).collect();
    let mut text = String::new();
    if !keeping.is_empty() {
        let hit_rate = |run: &Run| -> Vec<f64> {
            let pairs = run.series.hits.iter().zip(&run.series.remote_nodes);
            pairs.map(|(&hits, &nodes)| if nodes == 0 { 0.0 } else { hits as f64 / nodes as f64 }).collect()
        };
        let lanes = lanes(&keeping);
        let marks = if lanes.is_empty() {
            ""
        } else {
            " Strokes below mark the minibatches in which a decision replaced rows on some rank."
        };
        let svg = Curves {
            label: format!("hit rate per minibatch, {when}"),
            y: "hit rate".to_owned(),
            unit: Unit::Percent,
            curves: keeping.iter().map(|run| curve(run, hit_rate(run))).collect(),
            epochs: epochs(document, minibatches),
            lanes,
        }
        .svg();
        let caption = format!(
            "Share of the remote input nodes whose rows were in the buffer or on their way there, all ranks; higher is better as long as fewer rows \
             are fetched for it.{mean}{marks}"
        );
        text += &figure(&format!("Hit rate, {when}"), &svg, &caption);
    }
    let ranks = f64::from(document.settings.ranks.max(1));
    let rows = |run: &Run| -> Vec<f64> {
        let pairs = run.series.demand_rows.iter().zip(&run.series.prefetched_rows);
        pairs.map(|(demand, ahead)| (demand + ahead) as f64 / ranks).collect()
    };
    let svg = Curves {
        label: format!("rows fetched per minibatch, {when}"),
        y: "rows a minibatch and rank".to_owned(),
        unit: Unit::Plain,
        curves: block.runs.iter().map(|run| curve(run, rows(run))).collect(),
        epochs: epochs(document, minibatches),
        lanes: vec![],
    }
    .svg();
    let caption = format!(
        "Rows fetched from other ranks, on demand and ahead together, the filling at the start left out; lower is better.{mean}"
    );
    text + &figure(&format!("Rows per minibatch, {when}"), &svg, &caption)
}

fn lanes(runs: &[&Run]) -> Vec<Lane> {
    let marked = |run: &&&Run| run.setup.controller_name() != "off";
    let lane = |run: &&Run| Lane {
        name: run.setup.to_string(),
        colour: colour(run.setup),
        at: run.series.replaced_rows.iter().enumerate().filter(|(_, rows)| **rows > 0).map(|(at, _)| at).collect(),
    };
    runs.iter().filter(marked).map(lane).filter(|lane| !lane.at.is_empty()).collect()
}

/// Where the epochs of so many minibatches begin.
fn epochs(document: &Document, minibatches: usize) -> Vec<usize> {
    let epochs = document.settings.epochs.max(1) as usize;
    (0..epochs).map(|epoch| epoch * minibatches / epochs).collect()
}

/// The mean over the last `window` values, fewer at the beginning.
fn moving_mean(values: &[f64], window: usize) -> Vec<f64> {
    let mut sum = 0.0;
    let mean = |(at, value): (usize, &f64)| {
        sum += value;
        if at >= window {
            sum -= values[at - window];
        }
        sum / (at + 1).min(window) as f64
    };
    values.iter().enumerate().map(mean).collect()
}

fn section_tables(blocks: &[Block], document: &Document) -> String {
    let mut text = "<section><h2>The numbers</h2>".to_owned();
    for block in blocks {
        let (heads, lines) = tables::cells(block, document.settings.ranks);
        let _ = write!(text, "<h3>{}</h3><table><tr>", block.title());
        for head in heads {
            let _ = write!(text, "<th>{head}</th>");
        }
        text += "</tr>";
        for (line, run) in lines.iter().zip(&block.runs) {
            text += "<tr>";
            for (at, cell) in line.iter().enumerate() {
                let dot = if at == 0 { dot(run.setup) } else { String::new() };
                let _ = write!(text, "<td>{dot}{}</td>", escape(cell));
            }
            text += "</tr>";
        }
        text += "</table>";
    }
    text += "<h3>Columns</h3><table class=\"wide\">";
    for (head, meaning) in tables::meanings() {
        let _ = write!(text, "<tr><td>{head}</td><td>{meaning}</td></tr>");
    }
    text + "</table></section>"
}

fn dot(setup: SetUp) -> String {
    format!("<span class=\"dot\" style=\"background:{}\"></span>", colour(setup))
}

fn section_setups(document: &Document) -> String {
    let mut text = "<section><h2>The set-ups</h2><table class=\"wide\">".to_owned();
    for setup in SetUp::ALL.iter().filter(|setup| document.runs.iter().any(|run| run.setup == **setup)) {
        let _ = write!(text, "<tr><td>{}{setup}</td><td>{}</td></tr>", dot(*setup), setup.meaning());
    }
    text + "</table></section>"
}

fn ranks_per_host(settings: &Settings) -> String {
    match (settings.ranks_per_host, settings.private_buffers) {
        (1, _) => "1".to_owned(),
        (ranks, false) => format!("{ranks}, which share one buffer"),
        (ranks, true) => format!("{ranks}, each with a buffer for itself"),
    }
}

fn section_settings(document: &Document) -> String {
    let (settings, machine) = (&document.settings, &document.made.machine);
    let controls = &settings.controls;
    let list = |numbers: &[usize]| numbers.iter().map(usize::to_string).collect::<Vec<_>>().join(", ");
    let halo: Vec<usize> = settings.halo.iter().map(|&nodes| nodes as usize).collect();
    let mut lines = vec![
        ("command", format!("<code>{}</code>", escape(&document.made.command))),
        ("graph", format!("{}, {} classes, seed {}", escape(&settings.graph), settings.classes, settings.seed)),
        ("partitions", format!("{} by {}, {} halo nodes", halo.len(), escape(&settings.partitioner), list(&halo))),
        ("ranks a host", ranks_per_host(settings)),
        ("transport", escape(&settings.transport)),
        ("link", settings.link.as_deref().map_or_else(|| "not shaped".to_owned(), escape)),
        ("buffer", escape(&settings.buffer)),
        ("minibatch", format!("{} seeds a rank, fan-out {}", settings.batch, list(&settings.fanout))),
        ("network", format!("GraphSAGE, hidden width {}, step {}", settings.hidden, settings.learning_rate)),
        ("epochs", settings.epochs.to_string()),
        (
            "controllers",
            format!(
                "interval {} minibatches, alpha {}, start {:?}, hit rate shown {:?}",
                controls.delta, controls.alpha, controls.start, controls.hit_rate
            )
            .to_lowercase(),
        ),
        (
            "machine",
            format!(
                "{}, {} cores, {} GiB, {}",
                escape(&machine.cpu),
                machine.cores,
                tidy(machine.memory_bytes as f64 / f64::from(1 << 30)),
                escape(&machine.kernel)
            ),
        ),
        (
            "rudder",
            format!(
                "{} {}, {} build",
                escape(&machine.rudder),
                machine.commit.as_deref().map_or_else(|| "(commit not known)".to_owned(), escape),
                escape(&machine.build)
            ),
        ),
        ("took", format!("{:.0} s", document.wall_s)),
    ];
    if let Some(model) = &settings.model {
        lines.insert(11, ("model", escape(model)));
    }
    let mut text = "<section><h2>Settings</h2><table class=\"wide\">".to_owned();
    for (name, value) in lines {
        let _ = write!(text, "<tr><td>{name}</td><td>{value}</td></tr>");
    }
    let ranks = settings.launcher.as_deref().map_or_else(
        || "Ranks are processes of one machine that stand for hosts.".to_owned(),
        |launcher| format!("Ranks were started by {}, on the hosts that it gave them.", escape(launcher)),
    );
    text + "</table><p class=\"note\">"
        + &ranks
        + " The topology is mapped by all of them; feature rows of other partitions are read through rudder only. The link is shaped inside \
           each rank, on the rows that it receives; gradients do not pass through it.</p></section>"
}

#[cfg(test)]
mod tests {
    //! Goal: the page and the text say everything about every set-up, for one run and for many, and load nothing. Method: render documents
    //! made of known numbers and look for what must, and must not, be in them.

    use super::*;
    use crate::record::{Machine, Made, RankRecord, Score, Step};
    use crate::setup::Controls;

    /// A document with every set-up in two blocks; its numbers are made up and only have the right shape.
    pub fn sample() -> Document {
        let ahead = [SetUp::Off, SetUp::Lfu, SetUp::Window].map(|setup| (setup, 16));
        let plain = SetUp::ALL.into_iter().filter(|setup| *setup != SetUp::Window).map(|setup| (setup, 0));
        Document {
            made: Made { command: "rudder demo".to_owned(), ..Made::here(FORMAT) },
            settings: Settings {
                graph: "debian".to_owned(),
                nodes: 60_580,
                edges: 593_020,
                features: 128,
                classes: 12,
                cut: 0.213,
                halo: vec![9000, 9100, 8700, 9400],
                partitioner: "metis".to_owned(),
                ranks: 4,
                ranks_per_host: 1,
                private_buffers: false,
                launcher: None,
                transport: "tcp".to_owned(),
                link: Some("1 Gbit/s, 50µs".to_owned()),
                buffer: "10 % of the halo".to_owned(),
                batch: 256,
                fanout: vec![10, 25],
                hidden: 64,
                learning_rate: 0.01,
                epochs: 4,
                seed: 1,
                model: Some("smollm2-135m.gguf".to_owned()),
                controls: Controls::default(),
            },
            runs: plain.chain(ahead).map(|(setup, lookahead)| run(setup, lookahead)).collect(),
            notes: vec!["A note.".to_owned()],
            wall_s: 300.0,
        }
    }

    fn run(setup: SetUp, lookahead: u32) -> Run {
        let kind = SetUp::ALL.iter().position(|other| *other == setup).unwrap() as u64;
        let warm = if setup.has_buffer() { 0.2 + 0.04 * kind as f64 } else { 0.0 };
        let record = |rank: u32| {
            let steps: Vec<Step> = (0..240u64)
                .map(|at| {
                    let wobble = (at * 37 + kind * 11 + u64::from(rank) * 5) % 17;
                    let nodes = 4000 + 20 * wobble;
                    let hits = (nodes as f64 * warm * (1.0 - (-(at as f64) / 20.0).exp())) as u64;
                    let acted = setup.controller_name() != "off" && at % (16 + kind) == 3;
                    Step {
                        loss: 2.5 / (1.0 + at as f32 / 40.0),
                        sample_s: 0.004,
                        compute_s: 0.022 + 1e-4 * wobble as f64,
                        stall_s: (nodes - hits) as f64 * if setup.overlaps() { 2e-6 } else { 6e-6 },
                        allreduce_s: 0.003,
                        remote_nodes: nodes,
                        hits,
                        demand_rows: nodes - hits,
                        prefetched_rows: if acted { 900 } else { 0 },
                        replaced_rows: if acted { 900 } else { 0 },
                    }
                })
                .collect();
            let seconds = |step: &Step| step.sample_s + step.compute_s + step.stall_s + step.allreduce_s;
            RankRecord {
                rank,
                epoch_s: steps.chunks(60).map(|epoch| epoch.iter().map(seconds).sum()).collect(),
                steps,
                test: Score { right: 700, asked: 1000 },
                ..Default::default()
            }
        };
        Run::merge(setup, lookahead, &[0, 1, 2, 3].map(record)).unwrap()
    }

    #[test]
    fn the_page_names_every_set_up_and_loads_nothing() {
        let document = sample();
        let page = html(&document);
        for setup in SetUp::ALL {
            assert!(page.contains(&format!(">{setup}</text>")), "{setup} is missing from the figures");
            assert!(page.contains(setup.meaning()), "{setup} is not explained");
        }
        for words in ["Without lookahead", "With 16 minibatches announced ahead", "A note.", "rudder demo", "1 Gbit/s"]
        {
            assert!(page.contains(words), "{words}");
        }
        for loaded in ["<script", "<link", "src=", "url(", "@import", "NaN", "inf\""] {
            assert!(!page.contains(loaded), "{loaded}");
        }
        assert_eq!(page.matches("<svg").count(), page.matches("</svg>").count());
        assert_eq!(page.matches("<figure>").count(), 7);
    }

    #[test]
    fn nothing_of_a_document_is_taken_for_markup() {
        let mut document = sample();
        let text = "<script>&\"".to_owned();
        let Settings { graph, partitioner, transport, buffer, link, model, launcher, .. } = &mut document.settings;
        [graph, partitioner, transport, buffer].into_iter().for_each(|field| field.clone_from(&text));
        [link, model, launcher].into_iter().for_each(|field| *field = Some(text.clone()));
        let Machine { cpu, kernel, rudder, build, commit, .. } = &mut document.made.machine;
        [cpu, kernel, rudder, build, &mut document.made.command].into_iter().for_each(|field| field.clone_from(&text));
        *commit = Some(text.clone());
        for run in &mut document.runs {
            run.failures = vec![text.clone()];
            (run.controller, run.policy) = (text.clone(), text.clone());
        }
        document.notes = vec![text];
        assert!(!html(&document).contains("<script"));
    }

    #[test]
    fn the_page_says_where_ranks_ran_and_what_they_shared() {
        let mut document = sample();
        document.settings.ranks = 8;
        let page = html(&document);
        assert!(page.contains("<td>4 by metis") && page.contains("processes of one machine"));
        document.settings.launcher = Some("Slurm".to_owned());
        let page = html(&document);
        assert!(page.contains("started by Slurm") && !page.contains("processes of one machine"));
    }

    #[test]
    fn one_run_without_its_base_renders_too() {
        let mut document = sample();
        document.runs.retain(|run| run.setup == SetUp::Window);
        let page = html(&document);
        assert!(page.contains(">window</text>") && !page.contains("NaN"));
        assert!(text(&document).contains("window"));
        document.runs.clear();
        assert!(html(&document).contains("Nothing ran."));
    }

    #[test]
    fn the_text_has_a_table_a_block_and_ratios_to_off() {
        let text = text(&sample());
        for words in ["Without lookahead", "With 16 minibatches", "llm-cohorts", "vs off", "1.00", "window"] {
            assert!(text.contains(words), "{words}: {text}");
        }
    }

    #[test]
    fn a_moving_mean_is_one() {
        assert_eq!(moving_mean(&[2.0, 4.0, 6.0, 8.0], 2), [2.0, 3.0, 5.0, 7.0]);
        assert_eq!(moving_mean(&[2.0, 4.0], 1), [2.0, 4.0]);
    }
}
