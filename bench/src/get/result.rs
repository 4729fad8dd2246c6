//! What was measured, as a table, as CSV and as JSON.

use super::GetArgs;
use crate::record::Machine;
use crate::statistics::{median_low95, quantile, ratios, sorted};
use anyhow::{Context, Result};
use serde::Serialize;
use std::fmt::Write as _;
use tabled::{Table, Tabled};

/// One transport at one size beside one baseline.
#[derive(Clone, Debug, Serialize, Tabled)]
pub(super) struct Line {
    pub(super) transport: String,
    pub(super) provider: String,
    pub(super) row_bytes: usize,
    pub(super) batch: usize,
    pub(super) channels: usize,
    #[tabled(display = "millions")]
    rows_per_s_p50: f64,
    #[tabled(display = "three_digits")]
    gb_per_s_p50: f64,
    #[tabled(display = "three_digits")]
    us_p5: f64,
    #[tabled(display = "three_digits")]
    us_p50: f64,
    #[tabled(display = "three_digits")]
    us_p99: f64,
    baseline: String,
    #[tabled(display = "three_digits")]
    baseline_us_p50: f64,
    #[tabled(display = "three_digits")]
    ratio: f64,
    #[tabled(display = "three_digits")]
    ratio_low95: f64,
}

impl Line {
    /// Of the times of pairs, in µs: ours, and the baseline's in the same turns.
    pub(super) fn new(measured: Measured<'_>, baseline: &str, baseline_us: &[f64]) -> Self {
        let Measured { transport, provider, row_bytes, batch, channels, us } = measured;
        let ratios = ratios(us, baseline_us);
        let (ours, baseline_us) = (sorted(us.to_vec()), sorted(baseline_us.to_vec()));
        let us_p50 = quantile(&ours, 0.5);
        Self {
            transport: transport.into(),
            provider: provider.into(),
            row_bytes,
            batch,
            channels,
            rows_per_s_p50: batch as f64 / us_p50 * 1e6,
            gb_per_s_p50: (batch * row_bytes) as f64 / us_p50 / 1e3,
            us_p5: quantile(&ours, 0.05),
            us_p50,
            us_p99: quantile(&ours, 0.99),
            baseline: baseline.into(),
            baseline_us_p50: quantile(&baseline_us, 0.5),
            ratio: quantile(&ratios, 0.5),
            ratio_low95: median_low95(&ratios),
        }
    }
}

/// A transport's own part of a line.
#[derive(Clone, Copy)]
pub(super) struct Measured<'a> {
    pub(super) transport: &'a str,
    pub(super) provider: &'a str,
    pub(super) row_bytes: usize,
    pub(super) batch: usize,
    pub(super) channels: usize,
    /// Time of each turn.
    pub(super) us: &'a [f64],
}

fn millions(value: &f64) -> String {
    format!("{:.2} M", value / 1e6)
}

fn three_digits(value: &f64) -> String {
    if *value < 10.0 { format!("{value:.3}") } else { format!("{value:.1}") }
}

/// Where and with what the numbers were taken.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Setting {
    machine: Machine,
    seed: u64,
    pairs: u32,
    warm_up: u32,
    table_mib: usize,
}

impl Setting {
    pub(super) fn of(args: &GetArgs) -> Self {
        let &GetArgs { seed, pairs, warm_up, table_mib, .. } = args;
        Self { machine: Machine::detect(), seed, pairs, warm_up, table_mib }
    }

    pub(super) fn print(&self) {
        let Machine { cpu, cores, kernel, commit, .. } = &self.machine;
        let commit = commit.as_deref().unwrap_or("unknown");
        println!("{cpu}, {cores} cores, {kernel}; commit {commit}; seed {}", self.seed);
        println!("{} pairs after {} of warm-up, table of {} MiB", self.pairs, self.warm_up, self.table_mib);
    }
}

/// Prints the lines and writes the files asked for.
pub(super) fn tell(args: &GetArgs, setting: &Setting, lines: &[Line]) -> Result<()> {
    println!("{}", Table::new(lines));
    if let Some(path) = &args.csv {
        std::fs::write(path, csv(lines)?).with_context(|| format!("cannot write {}", path.display()))?;
    }
    if let Some(path) = &args.json {
        let json = serde_json::json!({ "setting": setting, "results": lines });
        std::fs::write(path, serde_json::to_vec_pretty(&json)?)
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

fn csv(lines: &[Line]) -> Result<String> {
    let mut csv = String::from(
        "transport,provider,row_bytes,batch,channels,rows_per_s_p50,gb_per_s_p50,us_p5,us_p50,us_p99,baseline,baseline_us_p50,ratio,ratio_low95\n",
    );
    for l in lines {
        write!(csv, "{},{},{},{},{}", l.transport, l.provider, l.row_bytes, l.batch, l.channels)?;
        write!(csv, ",{:.0},{:.4},{:.2},{:.2},{:.2}", l.rows_per_s_p50, l.gb_per_s_p50, l.us_p5, l.us_p50, l.us_p99)?;
        writeln!(csv, ",{},{:.2},{:.4},{:.4}", l.baseline, l.baseline_us_p50, l.ratio, l.ratio_low95)?;
    }
    Ok(csv)
}
