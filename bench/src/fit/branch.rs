//! A rank's buffer under the published scoring, while its trace goes by, and what would have come of deciding otherwise.
//!
//! Rows come at once and nothing is announced, so that a rank's rows follow from its own minibatches and replacements alone: there is no virtual
//! time here. A buffer cannot be copied. A branch begins at the job's start instead, with the same replacements up to where it parts.

use crate::replay::{AtOnce, RankTrace};
use anyhow::Result;
use rudder::buffer::{BufferCounters, PolicyConfig, Replaced};
use rudder::controller::{JobFacts, Observation};

/// A rank of a recorded job, with a buffer of so many slots.
#[derive(Clone, Copy)]
pub struct Rank<'a> {
    /// What its minibatches want.
    pub trace: &'a RankTrace,
    /// Slots of its buffer.
    pub slots: u32,
    /// The published scoring's settings.
    pub policy: &'a PolicyConfig,
}

impl<'a> Rank<'a> {
    /// What its controller is told.
    pub fn facts(&self) -> JobFacts {
        JobFacts { slots: self.slots.into(), ..self.trace.header.facts.clone() }
    }

    /// Its job's beginning.
    ///
    /// # Errors
    /// The buffer does not fit the trace.
    pub fn begin(self) -> Result<Past<'a>> {
        let rows_at_once = AtOnce::new(self.slots, self.policy, self.trace)?;
        let (counted, replaced) = (rows_at_once.buffer.counters(), Replaced { rows: 0, skipped: false });
        Ok(Past { rank: self, rows_at_once, counted, replaced, step: 0, rows: 0 })
    }

    /// Rows that minibatch `at` and those after it fetch before `end`, where `replaced` says after which minibatches before it there were
    /// replacements, `replace` whether there is one after it, and none comes later.
    ///
    /// # Errors
    /// As [`Rank::begin`].
    pub fn rows(self, replaced: &[usize], at: usize, replace: bool, end: usize) -> Result<u64> {
        let mut past = self.begin()?;
        let mut replaced = replaced.iter().copied().peekable();
        while past.step < at {
            let due = replaced.next_if_eq(&past.step).is_some();
            past.gather(|_| due);
        }
        let before = past.rows;
        past.gather(|_| replace);
        while past.step < end {
            past.gather(|_| false);
        }
        Ok(past.rows - before)
    }
}

/// A job up to some minibatch.
pub struct Past<'a> {
    rank: Rank<'a>,
    rows_at_once: AtOnce<'a>,
    /// As of the minibatch before.
    counted: BufferCounters,
    replaced: Replaced,
    /// Minibatches gathered.
    pub step: usize,
    /// Rows fetched but for the initial fill: those that minibatches missed, and those of replacements.
    pub rows: u64,
}

impl Past<'_> {
    /// Gathers the next minibatch; `decide` is shown what a controller is shown then, and says whether to replace.
    pub fn gather(&mut self, decide: impl FnOnce(&Observation) -> bool) {
        let (before, replaced) = (self.counted, u64::from(self.replaced.rows));
        let (trace, counted) = (self.rank.trace, &mut self.counted);
        let (replaced, ahead) = self.rows_at_once.gather(self.step, |buffer| {
            let now = buffer.counters();
            *counted = now;
            let (hits, misses) = (now.hits - before.hits, now.misses - before.misses);
            let halo_misses = now.halo_misses - before.halo_misses;
            decide(&Observation {
                minibatch: self.step as u64 + 1,
                minibatches: trace.header.facts.minibatches,
                remote_nodes: hits + misses,
                halo_nodes: now.halo_hits - before.halo_hits + halo_misses,
                hits,
                halo_misses,
                demand_rows: misses,
                prefetched_rows: replaced,
                useless_rows: now.useless - before.useless,
                replaced_rows: replaced,
                replace_skipped: self.replaced.skipped,
                bytes: (misses + replaced) * trace.row_bytes(),
                ..Observation::default()
            })
        });
        self.replaced = replaced;
        self.rows += self.counted.misses - before.misses + ahead;
        self.step += 1;
    }
}

#[cfg(test)]
mod tests {
    //! Goal: what samples are drawn from is what a controller steers in a replay, and a branch is the past but for its decision. Method: a
    //! classifier that says yes now and then steers the same job in both, over links and without.
    use super::*;
    use crate::replay::{Buffer, Case, Job, outcome};
    use rand::{Rng, SeedableRng};
    use rand_xoshiro::Xoshiro256PlusPlus;
    use rudder::controller::classifier::{FEATURES, Feature, Linear, Model, Trained};
    use rudder::controller::{Controller, ControllerConfig};
    use rudder::trace::{Header, Minibatch, TraceTable};
    use rudder::{BufferSize, NodeId, PartitionBook, PartitionId, TableId, TableSpec};
    use std::time::Duration;

    const STEPS: usize = 120;

    /// A job of one rank whose halo is asked for unevenly, and otherwise in its second half.
    fn job() -> Job {
        let book = PartitionBook::from_starts(vec![0, 100, 900]).unwrap();
        let halo: Vec<NodeId> = (100..700).map(NodeId).collect();
        let spec = TableSpec { halo, degree: vec![1; 600], ..TableSpec::new(TableId(0), book, PartitionId(0), 100) };
        let peers = vec![None, Some(rudder::Rank(1))];
        let mut header = Header { ranks: 2, tables: vec![TraceTable::new(&spec, peers, 0)], ..Header::default() };
        header.facts = JobFacts { nodes: 900, halo_nodes: 600, minibatches: STEPS as u64, ..JobFacts::default() };
        let mut trace = RankTrace::new(header).unwrap();
        let mut random = Xoshiro256PlusPlus::seed_from_u64(5);
        for step in 0..STEPS {
            let mut nodes: Vec<NodeId> = (0..80)
                .map(|_| {
                    let at: f64 = random.random_range(0.0..1.0);
                    let base = if step < STEPS / 2 { 100 } else { 300 };
                    NodeId(base + (at * at * 600.0) as u64)
                })
                .collect();
            nodes.sort_unstable();
            nodes.dedup();
            trace.push(&Minibatch { nodes, observed: true, ..Minibatch::default() });
        }
        Job::of("job", vec![trace]).unwrap()
    }

    #[test]
    fn rows_and_decisions_are_those_of_a_replay() {
        let (job, policy) = (job(), PolicyConfig::named("rudder").unwrap());
        let buffer = Buffer::Size(BufferSize::Halo(0.2));
        let rank = Rank { trace: &job.ranks[0], slots: buffer.slots(&job.ranks[0]).unwrap(), policy: &policy };
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut random = Xoshiro256PlusPlus::seed_from_u64(9);
        let mut mixed = 0;
        for _ in 0..20 {
            let weights: Vec<f64> = FEATURES.iter().map(|_| random.random_range(-1.0..1.0)).collect();
            let feature = |name: &&str| Feature { name: (*name).to_owned(), mean: 0.3, deviation: 0.5 };
            let trained = Trained {
                name: "drawn".into(),
                training: String::new(),
                interval: 4,
                features: FEATURES.iter().map(feature).collect(),
                model: Model::Linear(Linear { weights, bias: random.random_range(-1.0..1.0) }),
            };
            trained.write(file.path()).unwrap();
            let words = format!("classifier:{}", file.path().display());
            let controller: ControllerConfig = words.parse().unwrap();
            let case = Case {
                policy_words: "rudder".to_owned(),
                policy: policy.clone(),
                controller_words: words,
                controller: controller.clone(),
                buffer,
                lookahead: 0,
                link: "none".parse().unwrap(),
                slow: None,
                egress: true,
                decision_latency: Duration::ZERO,
                in_flight: None,
            };
            let replayed = outcome(&job, &case).unwrap();
            let mut controller: Box<dyn Controller> = controller.build(&rank.facts()).unwrap();
            let (mut past, mut decided) = (rank.begin().unwrap(), Vec::new());
            while past.step < STEPS {
                let at = past.step;
                past.gather(|observation| {
                    controller.observe(observation);
                    let decision = controller.decide();
                    let Some(decision) = decision else { return false };
                    controller.handle_taken();
                    decided.push((at, decision.replace));
                    decision.replace
                });
            }
            let replaced: Vec<usize> = decided.iter().filter(|(_, replace)| *replace).map(|(at, _)| *at).collect();
            let stats = replayed.stats;
            assert_eq!((replayed.decisions, replayed.replacements), (decided.len() as u64, replaced.len() as u64));
            assert_eq!(past.rows, stats.demand_rows + stats.prefetched_rows);
            mixed += usize::from(!replaced.is_empty() && replaced.len() < decided.len());
            // The branch that does what was done, up to the next decision to replace, is the past.
            if let [first, second, ..] = replaced[..] {
                let rows = |from, to| {
                    let mut past = rank.begin().unwrap();
                    let mut sums = vec![0];
                    while past.step < STEPS {
                        let due = replaced.contains(&past.step);
                        past.gather(|_| due);
                        sums.push(past.rows);
                    }
                    sums[to] - sums[from]
                };
                assert_eq!(rank.rows(&[], first, true, second).unwrap(), rows(first, second));
                assert_eq!(rank.rows(&[first], second, true, second + 1).unwrap(), rows(second, second + 1));
            }
        }
        assert!(mixed >= 5, "classifiers that say both: {mixed}");
    }
}
