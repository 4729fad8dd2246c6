//! What a training run leaves behind: one JSON document with the machine, the settings and one [`Run`] a set-up.
//!
//! Ranks write a [`RankRecord`] each; [`Run::merge`] makes the job's numbers of them. Per-minibatch series are kept, so that a figure
//! can always be checked against what it was drawn from.

use crate::setup::{Controls, SetUp};
use serde::{Deserialize, Serialize};

/// The version of the document's layout.
pub const FORMAT: u32 = 1;

/// The document.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Document {
    /// [`FORMAT`], and what made it.
    #[serde(flatten)]
    pub made: Made,
    /// What all runs have in common.
    pub settings: Settings,
    /// One a set-up, in the order in which they ran.
    pub runs: Vec<Run>,
    /// What was left out, and why.
    pub notes: Vec<String>,
    /// Seconds from start to end, the preparation of the graph included.
    pub wall_s: f64,
}

impl Document {
    /// As one line of JSON.
    ///
    /// # Errors
    /// It does not go into JSON.
    pub fn to_json(&self) -> anyhow::Result<String> {
        Ok(serde_json::to_string(self)? + "\n")
    }
}

/// What every document begins with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Made {
    /// The version of the document's layout.
    pub format: u32,
    /// The command that made it.
    pub command: String,
    /// Where it ran.
    pub machine: Machine,
}

impl Made {
    /// By this process, on this machine.
    pub fn here(format: u32) -> Self {
        let command = std::env::args().collect::<Vec<_>>().join(" ");
        Self { format, command, machine: Machine::detect() }
    }
}

/// The machine of rank 0.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// The processor's name.
    pub cpu: String,
    /// Logical processors that this process may use.
    pub cores: usize,
    /// Memory, in bytes.
    pub memory_bytes: u64,
    /// Kernel name and release.
    pub kernel: String,
    /// The version of rudder.
    pub rudder: String,
    /// The commit it was built from, where known.
    pub commit: Option<String>,
    /// `release` or `debug`.
    pub build: String,
}

impl Machine {
    /// This machine.
    pub fn detect() -> Self {
        let line = |path: &str, key: &str| {
            let text = std::fs::read_to_string(path).unwrap_or_default();
            text.lines()
                .find_map(|line| line.strip_prefix(key).and_then(|rest| rest.split_once(':')))
                .map(|(_, value)| value.trim().to_owned())
        };
        let memory_kib = line("/proc/meminfo", "MemTotal")
            .and_then(|value| value.trim_end_matches("kB").trim().parse::<u64>().ok())
            .unwrap_or_default();
        let system = rustix::system::uname();
        Self {
            cpu: line("/proc/cpuinfo", "model name").unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory_bytes: memory_kib * 1024,
            kernel: format!("{} {}", system.sysname().to_string_lossy(), system.release().to_string_lossy()),
            rudder: env!("CARGO_PKG_VERSION").to_owned(),
            commit: option_env!("RUDDER_COMMIT").map(str::to_owned),
            build: if cfg!(debug_assertions) { "debug" } else { "release" }.to_owned(),
        }
    }
}

/// What all runs of a document have in common.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// The graph, as it was asked for.
    pub graph: String,
    /// Its nodes.
    pub nodes: u64,
    /// Its directed edges.
    pub edges: u64,
    /// Floats of a feature row.
    pub features: usize,
    /// Classes to tell apart.
    pub classes: usize,
    /// Share of edges whose ends lie in different partitions.
    pub cut: f64,
    /// Halo nodes of each partition.
    pub halo: Vec<u64>,
    /// How the graph was cut.
    pub partitioner: String,
    /// Number of ranks.
    pub ranks: u32,
    /// Ranks that stand for one host.
    pub ranks_per_host: u32,
    /// Each rank has kept a buffer for itself, where those of a host would share one.
    #[serde(default)]
    pub private_buffers: bool,
    /// What has started the ranks, on hosts of its choice; where nothing has, they are processes of one machine.
    #[serde(default)]
    pub launcher: Option<String>,
    /// The transport's name.
    pub transport: String,
    /// The shaped link, where there is one.
    pub link: Option<String>,
    /// The prefetch buffer's size.
    pub buffer: String,
    /// Seeds a minibatch and rank.
    pub batch: usize,
    /// Neighbours sampled a layer, outermost last.
    pub fanout: Vec<usize>,
    /// Width of the hidden layer.
    pub hidden: usize,
    /// The optimiser's step.
    pub learning_rate: f64,
    /// Epochs.
    pub epochs: u32,
    /// The seed of graph, sampler, weights and coin.
    pub seed: u64,
    /// The model file's name, where a set-up uses one.
    pub model: Option<String>,
    /// The settings of policies and controllers.
    pub controls: Controls,
}

/// One minibatch of one rank.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// Mean loss over the seeds of all ranks.
    pub loss: f32,
    /// Seconds of sampling and announcing.
    pub sample_s: f64,
    /// Seconds of forward, backward and optimiser.
    pub compute_s: f64,
    /// Seconds of waiting for rows.
    pub stall_s: f64,
    /// Seconds of averaging gradients, the wait for slower ranks included.
    pub allreduce_s: f64,
    /// Remote input nodes.
    pub remote_nodes: u64,
    /// Of these, in the buffer.
    pub hits: u64,
    /// Rows fetched because this minibatch wanted them.
    pub demand_rows: u64,
    /// Rows fetched ahead.
    pub prefetched_rows: u64,
    /// Slots that changed hands by a decision.
    pub replaced_rows: u64,
}

/// A controller's doings on one rank.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Decisions {
    /// Decisions handed over, those of the fallback included.
    pub count: u64,
    /// Of these, decisions to replace.
    pub acted: u64,
    /// Decisions that the fallback made because the model's came too late or not at all.
    pub fallbacks: u64,
    /// Median milliseconds of a decision.
    pub ms_p50: f64,
    /// 99th percentile.
    pub ms_p99: f64,
    /// Processor seconds of the model for this rank.
    pub model_cpu_s: f64,
    /// Why the model does not decide, where it does not.
    pub failure: Option<String>,
}

/// Right and asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Score {
    /// Nodes whose class was told right.
    pub right: u64,
    /// Nodes asked.
    pub asked: u64,
}

impl Score {
    /// The share that was right; 0 when nothing was asked.
    pub fn accuracy(self) -> f64 {
        if self.asked == 0 { 0.0 } else { self.right as f64 / self.asked as f64 }
    }

    fn add(self, other: Self) -> Self {
        Self { right: self.right + other.right, asked: self.asked + other.asked }
    }
}

/// What one rank measured in one set-up.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RankRecord {
    /// The rank.
    pub rank: u32,
    /// Every minibatch.
    pub steps: Vec<Step>,
    /// Seconds of each epoch, barrier to barrier, evaluation left out.
    pub epoch_s: Vec<f64>,
    /// Rows fetched to fill the buffer at the start.
    pub fill_rows: u64,
    /// Seconds of start-up: registering the table, connecting, filling the buffer.
    pub start_s: f64,
    /// Seconds of sampling and announcing minibatches ahead of need.
    pub sample_ahead_s: f64,
    /// Among validation nodes.
    pub validation: Score,
    /// Among test nodes.
    pub test: Score,
    /// The controller.
    pub decisions: Decisions,
    /// The most memory that the process held, in bytes.
    pub peak_bytes: u64,
}

/// One phase of a run: its first epoch, or all later ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Phase {
    /// Epochs in it.
    pub epochs: u32,
    /// Minibatches in it, a rank.
    pub minibatches: u64,
    /// Median seconds of an epoch.
    pub epoch_s: f64,
    /// Mean over ranks and minibatches, in seconds.
    pub sample_s: f64,
    /// As above.
    pub compute_s: f64,
    /// As above.
    pub stall_s: f64,
    /// As above.
    pub allreduce_s: f64,
    /// Waiting for rows, as a share of the four.
    pub stall_share: f64,
    /// Remote input nodes, all ranks.
    pub remote_nodes: u64,
    /// Of these, in the buffer.
    pub hits: u64,
    /// Rows fetched on demand, all ranks.
    pub demand_rows: u64,
    /// Rows fetched ahead, all ranks.
    pub prefetched_rows: u64,
}

impl Phase {
    /// Share of the remote input nodes that were in the buffer.
    pub fn hit_rate(&self) -> f64 {
        if self.remote_nodes == 0 { 0.0 } else { self.hits as f64 / self.remote_nodes as f64 }
    }

    /// Rows fetched a minibatch and rank.
    pub fn rows_per_minibatch(&self, ranks: u32) -> f64 {
        let minibatches = self.minibatches * u64::from(ranks);
        if minibatches == 0 { 0.0 } else { (self.demand_rows + self.prefetched_rows) as f64 / minibatches as f64 }
    }
}

/// Per-minibatch numbers of a run, summed over its ranks.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Series {
    /// Mean loss over the seeds of all ranks; the same in every set-up of a document.
    pub loss: Vec<f32>,
    /// Remote input nodes.
    pub remote_nodes: Vec<u64>,
    /// Of these, in the buffer.
    pub hits: Vec<u64>,
    /// Rows fetched on demand.
    pub demand_rows: Vec<u64>,
    /// Rows fetched ahead.
    pub prefetched_rows: Vec<u64>,
    /// Slots that changed hands by decisions.
    pub replaced_rows: Vec<u64>,
    /// Longest wait for rows of any rank, in milliseconds.
    pub stall_ms: Vec<f64>,
}

/// One set-up: the job's numbers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// The named set-up.
    pub setup: SetUp,
    /// Its controller.
    pub controller: String,
    /// Its replacement policy.
    pub policy: String,
    /// Minibatches announced ahead.
    pub lookahead: u32,
    /// Seconds of the first epoch.
    pub epoch_s_first: f64,
    /// Median seconds of the later epochs; of the first where there is only one.
    pub epoch_s_median: f64,
    /// Seconds of every epoch.
    pub epoch_s: Vec<f64>,
    /// Seconds of start-up, the slowest rank's.
    pub start_s: f64,
    /// Waiting for rows as a share of the step, later epochs.
    pub stall_share: f64,
    /// Rows fetched in all: filling, on demand, ahead.
    pub rows_fetched: u64,
    /// Rows fetched because a minibatch wanted them then.
    pub demand_rows: u64,
    /// Rows fetched ahead of a minibatch.
    pub prefetched_rows: u64,
    /// Rows fetched to fill the buffer at the start.
    pub fill_rows: u64,
    /// Share of remote input nodes that were in the buffer, later epochs.
    pub hit_rate: f64,
    /// On validation nodes, at the end.
    pub validation_accuracy: f64,
    /// On test nodes, at the end.
    pub test_accuracy: f64,
    /// Decisions of all ranks, those of the fallback included.
    pub decisions: u64,
    /// Of these, decisions to replace.
    pub decisions_acted: u64,
    /// Milliseconds of a decision: the median of the ranks' medians.
    pub decision_ms_p50: f64,
    /// Milliseconds of a decision: the worst rank's 99th percentile.
    pub decision_ms_p99: f64,
    /// Decisions that the fallback made because the model's came too late or not at all.
    pub fallbacks: u64,
    /// Processor seconds of the model, for all ranks.
    pub model_cpu_s: f64,
    /// Why the model did not decide on some rank, where it did not.
    pub failures: Vec<String>,
    /// Seconds of sampling ahead, mean over ranks.
    pub sample_ahead_s: f64,
    /// Most memory of any rank, in bytes.
    pub peak_bytes: u64,
    /// The first epoch.
    pub first: Phase,
    /// The later epochs; the first where there is only one.
    pub steady: Phase,
    /// Per minibatch.
    pub series: Series,
}

impl Run {
    /// Whether rows can be in place before they are wanted: kept by a policy, or fetched for an announced minibatch.
    pub fn keeps_rows(&self) -> bool {
        self.setup.has_buffer() || self.lookahead > 0
    }

    /// The job's numbers from its ranks' records.
    ///
    /// # Errors
    /// The records disagree on the number of minibatches or epochs, or there is none.
    pub fn merge(setup: SetUp, lookahead: u32, ranks: &[RankRecord]) -> anyhow::Result<Self> {
        let lead = ranks.first().ok_or_else(|| anyhow::anyhow!("no rank left a record"))?;
        let (steps, epochs) = (lead.steps.len(), lead.epoch_s.len());
        if let Some(other) = ranks.iter().find(|rank| rank.steps.len() != steps || rank.epoch_s.len() != epochs) {
            anyhow::bail!(
                "rank {} recorded {} minibatches in {} epochs, rank {} {steps} in {epochs}",
                other.rank,
                other.steps.len(),
                other.epoch_s.len(),
                lead.rank
            );
        }
        anyhow::ensure!(epochs > 0 && steps.is_multiple_of(epochs), "{steps} minibatches do not make {epochs} epochs");
        // An epoch is as long as its slowest rank.
        let epoch_s: Vec<f64> =
            (0..epochs).map(|at| ranks.iter().map(|rank| rank.epoch_s[at]).fold(0.0, f64::max)).collect();
        let per_epoch = steps / epochs;
        let later = usize::from(epochs > 1);
        let first = phase(ranks, &epoch_s[..1], 0..per_epoch);
        let steady = phase(ranks, &epoch_s[later..], later * per_epoch..steps);
        let series = series(ranks, steps);
        let total = |pick: fn(&RankRecord) -> u64| ranks.iter().map(pick).sum::<u64>();
        let score =
            |pick: fn(&RankRecord) -> Score| ranks.iter().map(pick).fold(Score::default(), Score::add).accuracy();
        let mut medians: Vec<f64> =
            ranks.iter().filter(|rank| rank.decisions.count > 0).map(|rank| rank.decisions.ms_p50).collect();
        medians.sort_unstable_by(f64::total_cmp);
        let (demand_rows, prefetched_rows) = (series.demand_rows.iter().sum(), series.prefetched_rows.iter().sum());
        let fill_rows = total(|rank| rank.fill_rows);
        Ok(Self {
            setup,
            controller: setup.controller_name().to_owned(),
            policy: setup.policy_name().to_owned(),
            lookahead,
            epoch_s_first: epoch_s[0],
            epoch_s_median: steady.epoch_s,
            epoch_s,
            start_s: ranks.iter().map(|rank| rank.start_s).fold(0.0, f64::max),
            stall_share: steady.stall_share,
            rows_fetched: fill_rows + demand_rows + prefetched_rows,
            demand_rows,
            prefetched_rows,
            fill_rows,
            hit_rate: steady.hit_rate(),
            validation_accuracy: score(|rank| rank.validation),
            test_accuracy: score(|rank| rank.test),
            decisions: total(|rank| rank.decisions.count),
            decisions_acted: total(|rank| rank.decisions.acted),
            decision_ms_p50: percentile(&medians, 0.5),
            decision_ms_p99: ranks.iter().map(|rank| rank.decisions.ms_p99).fold(0.0, f64::max),
            fallbacks: total(|rank| rank.decisions.fallbacks),
            model_cpu_s: ranks.iter().map(|rank| rank.decisions.model_cpu_s).sum(),
            failures: ranks.iter().filter_map(|rank| rank.decisions.failure.clone()).collect(),
            sample_ahead_s: ranks.iter().map(|rank| rank.sample_ahead_s).sum::<f64>() / ranks.len() as f64,
            peak_bytes: ranks.iter().map(|rank| rank.peak_bytes).max().unwrap_or_default(),
            first,
            steady,
            series,
        })
    }
}

/// The numbers of the minibatches `range`, whose epochs took `epoch_s`.
fn phase(ranks: &[RankRecord], epoch_s: &[f64], range: std::ops::Range<usize>) -> Phase {
    let steps = || ranks.iter().flat_map(|rank| &rank.steps[range.clone()]);
    let count = steps().count().max(1) as f64;
    let mean = |pick: fn(&Step) -> f64| steps().map(pick).sum::<f64>() / count;
    let sum = |pick: fn(&Step) -> u64| steps().map(pick).sum::<u64>();
    let mut sorted = epoch_s.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let (sample_s, compute_s) = (mean(|step| step.sample_s), mean(|step| step.compute_s));
    let (stall_s, allreduce_s) = (mean(|step| step.stall_s), mean(|step| step.allreduce_s));
    let step_s = sample_s + compute_s + stall_s + allreduce_s;
    Phase {
        epochs: epoch_s.len() as u32,
        minibatches: range.len() as u64,
        epoch_s: percentile(&sorted, 0.5),
        sample_s,
        compute_s,
        stall_s,
        allreduce_s,
        stall_share: if step_s > 0.0 { stall_s / step_s } else { 0.0 },
        remote_nodes: sum(|step| step.remote_nodes),
        hits: sum(|step| step.hits),
        demand_rows: sum(|step| step.demand_rows),
        prefetched_rows: sum(|step| step.prefetched_rows),
    }
}

fn series(ranks: &[RankRecord], steps: usize) -> Series {
    let sum = |pick: fn(&Step) -> u64| -> Vec<u64> {
        (0..steps).map(|at| ranks.iter().map(|rank| pick(&rank.steps[at])).sum()).collect()
    };
    Series {
        loss: ranks[0].steps.iter().map(|step| step.loss).collect(),
        remote_nodes: sum(|step| step.remote_nodes),
        hits: sum(|step| step.hits),
        demand_rows: sum(|step| step.demand_rows),
        prefetched_rows: sum(|step| step.prefetched_rows),
        replaced_rows: sum(|step| step.replaced_rows),
        stall_ms: (0..steps)
            .map(|at| ranks.iter().map(|rank| rank.steps[at].stall_s).fold(0.0, f64::max) * 1e3)
            .collect(),
    }
}

/// The value below which a share of the sorted values lies (nearest rank; the mean of the middle two for the median of an even
/// number); 0 of none.
pub fn percentile(sorted: &[f64], share: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else { return 0.0 };
    if share == 0.5 && sorted.len().is_multiple_of(2) {
        return (sorted[last / 2] + sorted[last / 2 + 1]) / 2.0;
    }
    sorted[((share * sorted.len() as f64).ceil() as usize).saturating_sub(1).min(last)]
}

#[cfg(test)]
pub mod tests {
    //! Goal: the job's numbers follow from the ranks' by the rules that the fields state. Method: two hand-made ranks whose sums, medians
    //! and shares are known.

    use super::*;

    /// A rank with two minibatches an epoch and the same step throughout, but a slower first epoch.
    fn rank(rank: u32, epochs: usize) -> RankRecord {
        let step = Step {
            loss: 0.5,
            sample_s: 0.1,
            compute_s: 0.2,
            stall_s: 0.3 + 0.1 * f64::from(rank),
            allreduce_s: 0.05,
            remote_nodes: 100,
            hits: 40,
            demand_rows: 50,
            prefetched_rows: 10,
            replaced_rows: 0,
        };
        RankRecord {
            rank,
            steps: vec![step; 2 * epochs],
            epoch_s: (0..epochs).map(|at| if at == 0 { 9.0 } else { at as f64 + f64::from(rank) }).collect(),
            fill_rows: 7,
            test: Score { right: 3 + u64::from(rank), asked: 5 },
            decisions: Decisions {
                count: 3,
                acted: 2,
                fallbacks: 1,
                ms_p50: 2.0 + f64::from(rank),
                ms_p99: 30.0 + f64::from(rank),
                model_cpu_s: 0.5,
                failure: None,
            },
            ..Default::default()
        }
    }

    #[test]
    fn a_run_sums_rows_and_reports_the_first_epoch_apart() {
        let run = Run::merge(SetUp::Llm, 0, &[rank(0, 4), rank(1, 4)]).unwrap();
        assert_eq!((run.epoch_s_first, run.epoch_s_median), (9.0, 3.0));
        assert_eq!((run.fill_rows, run.demand_rows, run.prefetched_rows, run.rows_fetched), (14, 800, 160, 974));
        assert_eq!((run.steady.minibatches, run.steady.demand_rows), (6, 600));
        assert!((run.hit_rate - 0.4).abs() < 1e-12 && (run.test_accuracy - 0.7).abs() < 1e-12);
        assert!((run.stall_share - 0.35 / 0.70).abs() < 1e-9, "{}", run.stall_share);
        assert_eq!((run.decisions, run.decisions_acted, run.fallbacks), (6, 4, 2));
        assert_eq!((run.decision_ms_p50, run.decision_ms_p99), (2.5, 31.0));
        assert_eq!(run.series.demand_rows, vec![100; 8]);
    }

    #[test]
    fn a_single_epoch_is_its_own_steady_state() {
        let run = Run::merge(SetUp::Off, 0, &[rank(0, 1)]).unwrap();
        assert_eq!((run.epoch_s_median, run.steady.minibatches), (9.0, 2));
    }

    #[test]
    fn ranks_that_disagree_are_refused() {
        let error = Run::merge(SetUp::Off, 0, &[rank(0, 2), rank(1, 3)]).unwrap_err().to_string();
        assert!(error.contains("rank 1 recorded 6 minibatches"), "{error}");
        assert!(Run::merge(SetUp::Off, 0, &[]).is_err());
    }

    #[test]
    fn the_document_names_every_field_that_readers_rely_on() {
        let run = Run::merge(SetUp::Lfu, 16, &[rank(0, 2)]).unwrap();
        let json = serde_json::to_value(&run).unwrap();
        for field in [
            "setup",
            "controller",
            "policy",
            "lookahead",
            "epoch_s_median",
            "epoch_s_first",
            "stall_share",
            "rows_fetched",
            "demand_rows",
            "prefetched_rows",
            "fill_rows",
            "hit_rate",
            "test_accuracy",
            "decisions",
            "decision_ms_p50",
            "decision_ms_p99",
            "fallbacks",
            "model_cpu_s",
            "sample_ahead_s",
            "peak_bytes",
            "series",
        ] {
            assert!(json.get(field).is_some_and(|value| !value.is_null()), "{field} is missing");
        }
        assert_eq!(serde_json::from_value::<Run>(json).unwrap(), run);
    }
}
