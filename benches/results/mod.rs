//! What these benchmarks tell: a line of CSV for each measurement and, where `RUDDER_RESULTS` names a file, all of them as JSON in the shape
//! of `rudder get --json`.

use serde_json::{Value, json};

/// What was measured beside what.
#[derive(Clone, Copy)]
pub struct Measured<'a> {
    pub transport: &'a str,
    pub provider: &'a str,
    /// What the owner did meanwhile.
    pub owner: &'a str,
    pub row_bytes: usize,
    pub batch: usize,
    pub baseline: &'a str,
}

/// All measurements of a run.
pub struct Results(Vec<Value>);

impl Results {
    pub fn new() -> Self {
        println!(
            "transport,baseline,owner,row_bytes,batch,us_p50,baseline_us_p50,rows_per_s_p50,gb_per_s_p50,ratio,ratio_low95"
        );
        Self(Vec::new())
    }

    /// Takes the times of pairs, in µs: ours, and the baseline's of the same turns.
    pub fn add(&mut self, of: Measured<'_>, us: &[f64], baseline_us: &[f64]) {
        let Measured { transport, provider, owner, row_bytes, batch, baseline } = of;
        let ratios = sorted(us.iter().zip(baseline_us).map(|(ours, baseline)| baseline / ours).collect());
        let (us, baseline_us) = (sorted(us.to_vec()), sorted(baseline_us.to_vec()));
        let [us_p5, us_p50, us_p99] = [0.05, 0.5, 0.99].map(|q| quantile(&us, q));
        let (baseline_p50, ratio) = (quantile(&baseline_us, 0.5), quantile(&ratios, 0.5));
        // The order statistic that lies below the median 95 times in 100, by the binomial distribution's normal approximation.
        let pairs = ratios.len() as f64;
        let low = ratios[((pairs / 2.0 - 1.645 * pairs.sqrt() / 2.0).floor().max(1.0)) as usize - 1];
        let (rows_per_s, gb_per_s) = (batch as f64 / us_p50 * 1e6, (batch * row_bytes) as f64 / us_p50 / 1e3);
        println!(
            "{transport},{baseline},{owner},{row_bytes},{batch},{us_p50:.0},{baseline_p50:.0},{rows_per_s:.0},{gb_per_s:.3},{ratio:.2},{low:.2}"
        );
        self.0.push(json!({
            "transport": transport, "provider": provider, "owner": owner, "row_bytes": row_bytes, "batch": batch, "channels": 1,
            "rows_per_s_p50": rows_per_s, "gb_per_s_p50": gb_per_s, "us_p5": us_p5, "us_p50": us_p50, "us_p99": us_p99,
            "baseline": baseline, "baseline_us_p50": baseline_p50, "ratio": ratio, "ratio_low95": low,
        }));
    }

    /// Writes the file asked for.
    pub fn write(self) {
        if let Ok(path) = std::env::var("RUDDER_RESULTS") {
            let json = serde_json::to_vec_pretty(&json!({ "results": self.0 })).expect("numbers and text are JSON");
            std::fs::write(&path, json).unwrap_or_else(|cause| panic!("cannot write {path}: {cause}"));
        }
    }
}

fn sorted(mut samples: Vec<f64>) -> Vec<f64> {
    samples.sort_unstable_by(f64::total_cmp);
    samples
}

/// Of sorted samples.
fn quantile(sorted: &[f64], q: f64) -> f64 {
    sorted[((sorted.len() - 1) as f64 * q).round() as usize]
}
