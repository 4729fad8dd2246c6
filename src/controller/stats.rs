//! What a controller did and what it cost, counted without a lock.

use serde::{Deserialize, Serialize};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Counts of one controller since it started.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DecisionStats {
    /// The controller's name.
    pub controller: String,
    /// Decisions handed over, those of the fallback included.
    pub decisions: u64,
    /// Of these, decisions to replace.
    pub replace_decisions: u64,
    /// Of these, decisions that the fallback made.
    pub fallback_decisions: u64,
    /// Times that the fallback took over: the model did not load, panicked, answered with an error, or was late.
    pub fallbacks: u64,
    /// Observations that a full queue pushed out.
    pub dropped_observations: u64,
    /// Observations that no decision was based on, as they were made before the last one took effect.
    pub skipped: u64,
    /// Median time to decide; of the model where there is one, late answers included.
    pub latency_p50: Duration,
    /// 99th percentile of the time to decide.
    pub latency_p99: Duration,
    /// Longest time to decide.
    pub latency_max: Duration,
    /// Time that the model took to load.
    pub load: Duration,
    /// CPU time of the model's thread, loading included; with a model service, the service's CPU time for this rank.
    pub model_cpu: Duration,
    /// Why the model does not decide, where it does not.
    pub failure: Option<String>,
}

/// Log-linear histogram of durations: eight buckets a power of two, so a percentile is at most 1/8 too high.
#[derive(Debug)]
pub(super) struct Latencies {
    buckets: Box<[AtomicU64]>,
    max: AtomicU64,
}

const SUB: u64 = 8;
const SUB_BITS: u32 = SUB.trailing_zeros();

impl Default for Latencies {
    fn default() -> Self {
        let buckets = (0..(u64::BITS - SUB_BITS + 1) as u64 * SUB).map(|_| AtomicU64::new(0)).collect();
        Self { buckets, max: AtomicU64::new(0) }
    }
}

impl Latencies {
    pub fn record(&self, latency: Duration) {
        let nanos = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        self.buckets[bucket(nanos)].fetch_add(1, Relaxed);
        self.max.fetch_max(nanos, Relaxed);
    }

    pub fn max(&self) -> Duration {
        Duration::from_nanos(self.max.load(Relaxed))
    }

    /// The upper bound of the bucket that holds this share of the durations.
    pub fn percentile(&self, share: f64) -> Duration {
        let counts: Vec<u64> = self.buckets.iter().map(|count| count.load(Relaxed)).collect();
        let wanted = (counts.iter().sum::<u64>() as f64 * share).ceil() as u64;
        let mut seen = 0;
        for (index, count) in counts.iter().enumerate() {
            seen += count;
            if *count > 0 && seen >= wanted {
                return Duration::from_nanos(upper_bound(index)).min(self.max());
            }
        }
        Duration::ZERO
    }
}

fn bucket(nanos: u64) -> usize {
    if nanos < SUB {
        return nanos as usize;
    }
    let shift = nanos.ilog2() - SUB_BITS;
    (u64::from(shift + 1) * SUB + (nanos >> shift) - SUB) as usize
}

fn upper_bound(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    if bucket < SUB {
        return bucket;
    }
    let shift = bucket / SUB - 1;
    (((bucket % SUB + SUB + 1) as u128) << shift).saturating_sub(1).min(u128::from(u64::MAX)) as u64
}

/// CPU time of the calling thread.
pub(super) fn thread_cpu() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.max(0) as u64, time.tv_nsec.clamp(0, 999_999_999) as u32)
}

#[cfg(test)]
mod tests {
    //! The histogram must never report less than what was recorded, nor more than 1/8 above it.
    use super::*;

    #[test]
    fn percentiles_are_at_most_an_eighth_too_high() {
        for nanos in [0, 1, 7, 8, 9, 15, 16, 1_000, 123_456_789, u64::MAX / 3, u64::MAX] {
            let upper = upper_bound(bucket(nanos));
            assert!(upper >= nanos && upper - nanos <= nanos / 8, "{nanos} -> {upper}");
        }
        let latencies = Latencies::default();
        for micros in 1..=1000 {
            latencies.record(Duration::from_micros(micros));
        }
        let (p50, p99) = (latencies.percentile(0.5).as_micros(), latencies.percentile(0.99).as_micros());
        assert!((500..=563).contains(&p50), "{p50}");
        assert!((990..=1000).contains(&p99), "{p99}");
    }

    #[test]
    fn an_empty_histogram_reports_zero() {
        assert_eq!(Latencies::default().percentile(0.99), Duration::ZERO);
    }
}
