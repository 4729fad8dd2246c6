//! What is said of samples.

/// In ascending order.
pub fn sorted(mut samples: Vec<f64>) -> Vec<f64> {
    samples.sort_unstable_by(f64::total_cmp);
    samples
}

/// Of sorted samples.
pub fn quantile(sorted: &[f64], q: f64) -> f64 {
    sorted[((sorted.len() - 1) as f64 * q).round() as usize]
}

/// The median, if there is any sample.
pub fn median(samples: impl Iterator<Item = f64>) -> Option<f64> {
    let samples = sorted(samples.collect());
    (!samples.is_empty()).then(|| quantile(&samples, 0.5))
}

/// The lower end of a one-sided 95 % interval for the median of sorted samples: the order statistic whose rank the binomial distribution
/// (in its normal approximation) puts below the median 95 times in 100.
pub fn median_low95(sorted: &[f64]) -> f64 {
    let n = sorted.len() as f64;
    let rank = (n / 2.0 - 1.645 * n.sqrt() / 2.0).floor().max(1.0);
    sorted[rank as usize - 1]
}

/// Baseline over ours, pair by pair, in ascending order.
pub fn ratios(ours: &[f64], baseline: &[f64]) -> Vec<f64> {
    sorted(ours.iter().zip(baseline).map(|(ours, baseline)| baseline / ours).collect())
}
