//! What was measured: a line a contender and case, as JSON and as CSV.

use super::args::{Benchmark, ThreadLevel};
use super::fitted::{FORMAT, LogGp};
use super::loggp::Sweeps;
use crate::record::Made;
use crate::statistics::{median_low95, quantile, ratios, sorted};
use serde::Serialize;
use std::fmt::Write;

/// The document.
#[derive(Clone, Debug, Serialize)]
pub struct Document {
    /// [`FORMAT`], and what made it.
    #[serde(flatten)]
    pub made: Made,
    /// The job.
    pub job: Job,
    /// The figures.
    pub lines: Vec<Line>,
    /// Fitted where latency, bandwidth and message rate were measured.
    pub loggp: Vec<LogGp>,
    /// What was left out, and why.
    pub notes: Vec<String>,
    /// Seconds that it took.
    pub wall_s: f64,
}

/// What all figures have in common.
#[derive(Clone, Debug, Serialize)]
pub struct Job {
    /// The MPI library, and what it was told.
    pub mpi: String,
    /// The level that MPI was started at.
    pub thread_level: ThreadLevel,
    /// Number of ranks.
    pub ranks: u32,
    /// How many of them share the host of rank 0.
    pub ranks_on_host: u32,
    /// Samples of each contender.
    pub iterations: u32,
    /// Samples before these.
    pub skip: u32,
    /// Each rank's table.
    pub table_mib: u32,
    /// Of the row numbers.
    pub seed: u64,
}

/// One contender in one case.
#[derive(Clone, Debug, Serialize)]
pub struct Line {
    /// What was measured.
    pub benchmark: Benchmark,
    /// Who did it.
    pub contender: String,
    /// What else there was, where a benchmark has several such cases.
    pub state: Option<&'static str>,
    /// Ranks that did it at once.
    pub ranks: u32,
    /// Bytes of a row, a message or a region.
    pub bytes: usize,
    /// Rows of a gather.
    pub rows: usize,
    /// Percentiles of the time, on the slowest rank.
    pub us_p5: f64,
    /// The median.
    pub us_p50: f64,
    /// The slowest of a hundred.
    pub us_p99: f64,
    /// Of the median, until the start of the gather had returned.
    pub start_us_p50: Option<f64>,
    /// Of all ranks together.
    pub gb_per_s_p50: f64,
    /// Of all ranks together.
    pub rows_per_s_p50: f64,
    /// Share of the gather that hid behind computing.
    pub overlap_p50: Option<f64>,
    /// Beside each baseline.
    pub ratios: Vec<Ratio>,
}

/// How many times as fast as a baseline, pair by pair.
#[derive(Clone, Debug, Serialize)]
pub struct Ratio {
    /// The baseline's name.
    pub baseline: String,
    /// The median.
    pub p50: f64,
    /// The lower end of a one-sided 95 % interval for it.
    pub low95: f64,
}

/// Where a figure comes from.
#[derive(Clone, Copy, Debug)]
pub struct Origin {
    pub benchmark: Benchmark,
    pub state: Option<&'static str>,
    pub ranks: u32,
    pub bytes: usize,
    pub rows: usize,
}

impl Line {
    /// Of samples, in µs, beside those of baselines taken in the same turns.
    pub fn new(origin: Origin, contender: &str, us: &[f64], baselines: &[(&str, &[f64])]) -> Self {
        let Origin { benchmark, state, ranks, bytes, rows } = origin;
        let beside = |&(baseline, theirs): &(&str, &[f64])| {
            let ratios = ratios(us, theirs);
            Ratio { baseline: baseline.into(), p50: quantile(&ratios, 0.5), low95: median_low95(&ratios) }
        };
        let ratios = baselines.iter().filter(|(baseline, _)| *baseline != contender).map(beside).collect();
        let us = sorted(us.to_vec());
        let [us_p5, us_p50, us_p99] = [0.05, 0.5, 0.99].map(|q| quantile(&us, q));
        let all_rows = rows as f64 * f64::from(ranks);
        Self {
            benchmark,
            contender: contender.into(),
            state,
            ranks,
            bytes,
            rows,
            us_p5,
            us_p50,
            us_p99,
            start_us_p50: None,
            gb_per_s_p50: all_rows * bytes as f64 / us_p50 / 1e3,
            rows_per_s_p50: all_rows / us_p50 * 1e6,
            overlap_p50: None,
            ratios,
        }
    }

    /// How it stands beside a baseline.
    pub fn ratio(&self, baseline: &str) -> Option<&Ratio> {
        self.ratios.iter().find(|ratio| ratio.baseline == baseline)
    }
}

impl Document {
    pub fn new(job: Job) -> Self {
        let words: Vec<String> = std::env::args().skip(1).collect();
        let command = format!("rudder {}", words.join(" "));
        Self {
            made: Made { command, ..Made::here(FORMAT) },
            job,
            lines: vec![],
            loggp: vec![],
            notes: vec![],
            wall_s: 0.0,
        }
    }

    /// Fits LogGP parameters to each contender whose three sweeps there are.
    pub fn fit(&mut self) {
        let mut names: Vec<&str> = Vec::new();
        for line in self.lines.iter().filter(|line| line.benchmark == Benchmark::Latency) {
            if !names.contains(&&*line.contender) {
                names.push(&line.contender);
            }
        }
        self.loggp = names.into_iter().filter_map(|name| self.sweeps(name).fit(name)).collect();
    }

    fn sweeps(&self, contender: &str) -> Sweeps {
        let mut sweeps = Sweeps::default();
        for line in self.lines.iter().filter(|line| line.contender == contender) {
            let (bytes, rows) = (line.bytes as f64, line.rows as f64);
            match line.benchmark {
                Benchmark::Latency => sweeps.latency.push((bytes, line.us_p50)),
                Benchmark::Bandwidth => sweeps.bandwidth.push((bytes, line.us_p50 / rows)),
                Benchmark::MessageRate => {
                    sweeps.rate.push((rows, line.us_p50));
                    sweeps.start.extend(line.start_us_p50.map(|us| (rows, us)));
                }
                _ => {}
            }
        }
        sweeps
    }

    /// A line of CSV for each figure and baseline.
    pub fn csv(&self) -> String {
        let mut csv = String::from(
            "benchmark,contender,state,ranks,bytes,rows,us_p5,us_p50,us_p99,start_us_p50,gb_per_s_p50,rows_per_s_p50,overlap_p50,baseline,ratio,ratio_low95\n",
        );
        for line in &self.lines {
            let optional = |value: Option<f64>| value.map_or_else(String::new, |value| format!("{value:.4}"));
            let fields = format!(
                "{},{},{},{},{},{},{:.4},{:.4},{:.4},{},{:.5},{:.0},{}",
                line.benchmark.name(),
                line.contender,
                line.state.unwrap_or_default(),
                line.ranks,
                line.bytes,
                line.rows,
                line.us_p5,
                line.us_p50,
                line.us_p99,
                optional(line.start_us_p50),
                line.gb_per_s_p50,
                line.rows_per_s_p50,
                optional(line.overlap_p50)
            );
            if line.ratios.is_empty() {
                let _ = writeln!(csv, "{fields},,,");
            }
            for Ratio { baseline, p50, low95 } in &line.ratios {
                let _ = writeln!(csv, "{fields},{baseline},{p50:.4},{low95:.4}");
            }
        }
        csv
    }
}

/// A document of two contenders between two hosts, whose sweeps follow LogGP.
#[cfg(test)]
pub fn sample() -> Document {
    let mut document = Document::new(Job {
        mpi: "MPICH".to_owned(),
        thread_level: ThreadLevel::Multiple,
        ranks: 2,
        ranks_on_host: 1,
        iterations: 30,
        skip: 1,
        table_mib: 1,
        seed: 1,
    });
    for (contender, there_and_back, o, g, byte) in
        [("MPI_Get plain", 4.0, 0.2, 0.4, 0.001), ("tcp", 60.0, 0.05, 0.1, 0.002)]
    {
        let mut line = |benchmark, bytes, rows, us: f64, start: Option<f64>| {
            let origin = Origin { benchmark, state: None, ranks: 1, bytes, rows };
            let line = Line::new(origin, contender, &[us], &[]);
            document.lines.push(Line { start_us_p50: start, ..line });
        };
        for bytes in [8, 512, 32_768] {
            line(Benchmark::Latency, bytes, 1, there_and_back + byte * bytes as f64, None);
            line(Benchmark::Bandwidth, bytes, 64, 64.0 * (g + byte * bytes as f64), None);
        }
        for rows in [1, 16, 256] {
            let many = rows as f64;
            line(Benchmark::MessageRate, 8, rows, there_and_back + g * many, Some(o * many));
        }
    }
    document.fit();
    document
}
