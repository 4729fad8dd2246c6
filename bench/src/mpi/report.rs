//! The document as tables for the terminal, in the manner of OSU's benchmarks, and as an HTML page with a plot a benchmark.

use super::args::Benchmark;
use super::document::{Document, Line, Ratio};
use crate::report::plot::{Bars, Line as BarLine, Part, escape, tidy};
use crate::report::tables::{markup, table};
use crate::report::{figure, page};
use std::fmt::Write;

const HEADS: [&str; 11] =
    ["who", "bytes", "rows", "p5, us", "p50, us", "p99, us", "GB/s", "M rows/s", "x plain", "x hindexed", "x memcpy"];
const LOGGP_HEADS: [&str; 5] = ["who", "L, us", "o, us", "g, us", "G, ns/byte"];

fn cells(line: &Line) -> Vec<String> {
    let beside = |baseline| line.ratio(baseline).map_or_else(|| "-".to_owned(), ratio);
    let who = line.state.map_or_else(|| line.contender.clone(), |state| format!("{}, {state}", line.contender));
    let mut cells = vec![who, line.bytes.to_string(), line.rows.to_string()];
    cells.extend([line.us_p5, line.us_p50, line.us_p99].map(|us| format!("{us:.2}")));
    cells.extend([format!("{:.3}", line.gb_per_s_p50), format!("{:.3}", line.rows_per_s_p50 / 1e6)]);
    cells.extend(["MPI_Get plain", "MPI_Get hindexed", "memcpy"].map(beside));
    cells
}

fn ratio(ratio: &Ratio) -> String {
    format!("{:.2} ({:.2})", ratio.p50, ratio.low95)
}

/// Heads and lines of a benchmark's table.
fn rows(document: &Document, benchmark: Benchmark) -> (Vec<&'static str>, Vec<Vec<String>>) {
    let lines = || document.lines.iter().filter(move |line| line.benchmark == benchmark);
    let beside = |line: &Line| match &line.ratios[..] {
        [] => "-".to_owned(),
        all => all.iter().map(|one| format!("{} x {}", ratio(one), one.baseline)).collect::<Vec<_>>().join(", "),
    };
    // What moves rows has all columns, what does not has those that mean something.
    match benchmark {
        Benchmark::Registration | Benchmark::Decision => {
            let heads = ["who", "bytes", "p5, us", "p50, us", "p99, us", "times as fast as"];
            let short = |line: &Line| {
                let mut short = cells(line);
                short.remove(2);
                short.truncate(5);
                short.push(beside(line));
                short
            };
            (heads.to_vec(), lines().map(short).collect())
        }
        Benchmark::Overlap => {
            let with_overlap = |line: &Line| {
                let mut all = cells(line);
                all.push(line.overlap_p50.map_or_else(|| "-".to_owned(), |share| format!("{:.1} %", share * 100.0)));
                all
            };
            (HEADS.iter().copied().chain(["overlap"]).collect(), lines().map(with_overlap).collect())
        }
        _ => (HEADS.to_vec(), lines().map(cells).collect()),
    }
}

fn loggp_rows(document: &Document) -> Vec<Vec<String>> {
    let row = |fit: &super::fitted::LogGp| {
        let numbers = [fit.latency_us, fit.o_us, fit.g_us, fit.gap_ns_per_byte].map(|number| format!("{number:.4}"));
        [vec![fit.contender.clone()], numbers.to_vec()].concat()
    };
    document.loggp.iter().map(row).collect()
}

fn facts(document: &Document) -> String {
    let (job, machine) = (&document.job, &document.made.machine);
    format!(
        "{}, thread level {:?}; {} ranks, {} of them on the first host; {}, {} cores, {}; rudder {} {}, {} build; {} samples after {}, tables of {} MiB, seed {}",
        job.mpi,
        job.thread_level,
        job.ranks,
        job.ranks_on_host,
        machine.cpu,
        machine.cores,
        machine.kernel,
        machine.rudder,
        machine.commit.as_deref().unwrap_or("(commit not known)"),
        machine.build,
        job.iterations,
        job.skip,
        job.table_mib,
        job.seed
    )
}

/// The document for a terminal.
pub fn text(document: &Document, benchmarks: &[Benchmark]) -> String {
    let mut text = format!("# {}\n", facts(document));
    for &benchmark in benchmarks {
        let (heads, lines) = rows(document, benchmark);
        if !lines.is_empty() {
            let _ = writeln!(
                text,
                "\n# Rudder MPI {}: {}\n{}",
                benchmark.name(),
                benchmark.meaning(),
                table(heads, &lines)
            );
        }
    }
    if !document.loggp.is_empty() {
        let _ = writeln!(text, "\n# LogGP, fitted\n{}", table(LOGGP_HEADS, &loggp_rows(document)));
    }
    for note in &document.notes {
        let _ = writeln!(text, "# {note}");
    }
    text
}

/// The document as a page that loads nothing.
pub fn html(document: &Document, benchmarks: &[Benchmark]) -> String {
    let mut body = format!("<h1>Gets between MPI ranks</h1><p class=\"lead\">{}</p>", escape(&facts(document)));
    for &benchmark in benchmarks {
        let (heads, lines) = rows(document, benchmark);
        if !lines.is_empty() {
            let title = format!("{}: {}", benchmark.name(), benchmark.meaning());
            body += &figure(
                &title,
                &bars(document, benchmark).svg(),
                "Bars are medians, the dots the 5 % and 99 % points.",
            );
            let _ = write!(body, "<section>{}</section>", markup(heads, &lines));
        }
    }
    if !document.loggp.is_empty() {
        let _ = write!(body, "<section><h2>LogGP, fitted</h2>{}</section>", markup(LOGGP_HEADS, &loggp_rows(document)));
    }
    body += "<section><h2>Notes</h2><ul>";
    for note in &document.notes {
        let _ = write!(body, "<li>{}</li>", escape(note));
    }
    let _ = write!(body, "</ul><p class=\"note\"><code>{}</code></p></section>", escape(&document.made.command));
    page("Rudder: gets between MPI ranks", &body)
}

/// What grows with speed where bytes move, what shrinks with it elsewhere.
fn bars(document: &Document, benchmark: Benchmark) -> Bars {
    let by_rate =
        !matches!(benchmark, Benchmark::Latency | Benchmark::Registration | Benchmark::Decision | Benchmark::Overlap);
    let moved = |line: &Line| line.gb_per_s_p50 * line.us_p50;
    let value = |line: &Line, us: f64| if by_rate { moved(line) / us } else { us };
    let mut lines = Vec::new();
    let mut last = None;
    for line in document.lines.iter().filter(|line| line.benchmark == benchmark) {
        let case = (line.bytes, line.rows, line.state);
        if last != Some(case) {
            let state = line.state.map_or_else(String::new, |state| format!(", {state}"));
            lines.push(BarLine::Heading(format!("{} rows of {} bytes{state}", line.rows, line.bytes)));
            last = Some(case);
        }
        let median = value(line, line.us_p50);
        lines.push(BarLine::Bar {
            name: line.contender.clone(),
            parts: vec![Part { value: median, colour: colour(&line.contender), name: "median" }],
            dots: vec![value(line, line.us_p5), value(line, line.us_p99)],
            note: tidy(median),
        });
    }
    let x = if by_rate { "GB/s of all ranks; longer is better" } else { "us; shorter is better" };
    Bars { label: benchmark.name(), x: x.to_owned(), lines }
}

/// Baselines are grey, C's darker, ours blue.
fn colour(contender: &str) -> &'static str {
    match contender {
        "memcpy" | "touch" => "#c6cbd1",
        _ if contender.starts_with("C MPI") => "#4d5156",
        _ if contender.starts_with("MPI") => "#9aa0a6",
        _ => "#1769aa",
    }
}

#[cfg(test)]
mod tests {
    //! Goal: text, page and CSV tell every figure, and the page loads nothing and takes nothing for markup. Method: a document of two
    //! contenders with known numbers.

    use super::super::document::Origin;
    use super::*;
    use crate::mpi::args::ThreadLevel;
    use crate::mpi::document::Job;

    fn document() -> Document {
        let job = Job {
            mpi: "<MPI>".into(),
            thread_level: ThreadLevel::Multiple,
            ranks: 2,
            ranks_on_host: 2,
            iterations: 4,
            skip: 1,
            table_mib: 64,
            seed: 1,
        };
        let mut document = Document::new(job);
        let origin = |benchmark, bytes, rows| Origin { benchmark, state: None, ranks: 1, bytes, rows };
        let raw = [10.0, 20.0, 30.0, 40.0];
        let ours = [5.0, 10.0, 15.0, 20.0];
        for (benchmark, sweep) in [
            (Benchmark::Latency, [(8, 1), (1024, 1)]),
            (Benchmark::Bandwidth, [(8, 64), (1024, 64)]),
            (Benchmark::MessageRate, [(8, 1), (8, 64)]),
        ] {
            for (bytes, rows) in sweep {
                let at = origin(benchmark, bytes, rows);
                for (name, us) in [("<shm>", ours), ("MPI_Get plain", raw)] {
                    let mut line = Line::new(at, name, &us, &[("MPI_Get plain", &raw)]);
                    line.start_us_p50 = Some(rows as f64);
                    document.lines.push(line);
                }
            }
        }
        document.fit();
        document
    }

    #[test]
    fn ratios_are_of_pairs() {
        let document = document();
        let ratio = document.lines[0].ratio("MPI_Get plain").unwrap();
        assert_eq!((ratio.p50, ratio.low95), (2.0, 2.0));
        assert!(document.lines[1].ratios.is_empty(), "a baseline is not beside itself");
        assert_eq!(document.lines[0].us_p5, 5.0);
        assert_eq!(document.lines[0].us_p99, 20.0);
    }

    #[test]
    fn everything_is_told_and_nothing_is_markup() {
        let document = document();
        let benchmarks = [Benchmark::Latency, Benchmark::Bandwidth, Benchmark::MessageRate, Benchmark::Overlap];
        let (text, html) = (text(&document, &benchmarks), html(&document, &benchmarks));
        assert!(
            text.contains("Rudder MPI bandwidth") && text.contains("2.00 (2.00)") && text.contains("LogGP"),
            "{text}"
        );
        assert!(!text.contains("Rudder MPI overlap"), "{text}");
        assert_eq!(html.matches("<svg").count(), 3);
        assert!(!html.contains("<shm>") && !html.contains("<MPI>") && !html.contains("src=") && !html.contains("NaN"));
        let csv = document.csv();
        assert_eq!(csv.lines().count(), 1 + document.lines.len());
        let fields = csv.lines().map(|line| line.split(',').count()).collect::<Vec<_>>();
        assert!(fields.iter().all(|&count| count == fields[0]), "{csv}");
    }
}
