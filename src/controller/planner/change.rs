//! When a job begins anew: at its start, at a change that was announced, and at one that shows.

use crate::controller::{JobFacts, Observation};
use std::collections::VecDeque;

/// Minibatches that are held against those before them.
const LATELY: usize = 4;
/// Least minibatches since the last change of which these are not the latest: with fewer nothing shows.
const SETTLED: u64 = 8;
/// A minibatch that wants so many times as much as those before, or as little, is another job's; so is a row that takes so many times as long.
const OTHER_SIZE: f64 = 1.5;
const OTHER_ROW: f64 = 2.0;
/// So much less of what is wanted is in the buffer when other nodes are wanted.
const OTHER_NODES: f64 = 0.1;

/// What some minibatches were like.
#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    minibatches: u64,
    wanted: u64,
    hits: u64,
    rows: u64,
    busy_s: f64,
}

impl Sums {
    fn of(observation: &Observation) -> Self {
        Self {
            minibatches: 1,
            wanted: observation.remote_nodes,
            hits: observation.hits,
            rows: observation.owners.iter().map(|owner| owner.rows).sum(),
            busy_s: observation.owners.iter().map(|owner| owner.busy.as_secs_f64()).sum(),
        }
    }

    fn add(&mut self, other: &Self) {
        self.minibatches += other.minibatches;
        self.wanted += other.wanted;
        self.hits += other.hits;
        self.rows += other.rows;
        self.busy_s += other.busy_s;
    }

    fn wanted(&self) -> f64 {
        self.wanted as f64 / self.minibatches.max(1) as f64
    }

    fn hits(&self) -> f64 {
        self.hits as f64 / self.wanted.max(1) as f64
    }

    fn row_s(&self) -> f64 {
        self.busy_s / self.rows.max(1) as f64
    }

    /// Whether a job is another one since minibatches like these.
    fn ends(&self, lately: &Self) -> bool {
        let (wanted, before) = (lately.wanted(), self.wanted());
        let size = wanted > before * OTHER_SIZE || wanted * OTHER_SIZE < before;
        let nodes = lately.hits() + OTHER_NODES < self.hits();
        // Of a single row the latency is told, not what the link can do.
        let row = self.rows > 0
            && lately.row_s() > self.row_s() * OTHER_ROW
            && lately.rows * self.minibatches >= self.rows * lately.minibatches;
        self.wanted > 0 && (size || nodes || row)
    }
}

/// Follows a job.
#[derive(Debug)]
pub(super) struct Changes {
    /// The minibatches, counted from 0, with which it changes.
    announced: Vec<u64>,
    /// Of these, how many have begun.
    begun: usize,
    /// Minibatches so far, and of these the ones before the last start or change.
    minibatch: u64,
    last: u64,
    /// Those since then but the latest, and the latest, oldest first.
    before: Sums,
    lately: VecDeque<Sums>,
}

impl Changes {
    pub(super) fn of(facts: &JobFacts) -> Self {
        let mut announced = facts.changes.clone();
        announced.sort_unstable();
        Self {
            announced,
            begun: 0,
            minibatch: 0,
            last: 0,
            before: Sums::default(),
            lately: VecDeque::with_capacity(LATELY + 1),
        }
    }

    /// Looks at a minibatch, and says whether the job has changed: with this one if that was announced, or by then if it shows.
    pub(super) fn observe(&mut self, observation: &Observation) -> Option<Change> {
        self.minibatch = observation.minibatch;
        let begun = self.announced.partition_point(|&first| first < self.minibatch);
        let announced = begun > std::mem::replace(&mut self.begun, begun);
        if announced {
            self.begin(self.announced[begun - 1]);
        }
        self.lately.push_back(Sums::of(observation));
        if self.lately.len() > LATELY {
            self.before.add(&self.lately.pop_front().expect("it has one"));
        }
        let mut lately = Sums::default();
        self.lately.iter().for_each(|sums| lately.add(sums));
        if self.before.minibatches >= SETTLED && self.before.ends(&lately) {
            self.begin(self.minibatch);
            return Some(Change::Shown);
        }
        announced.then_some(Change::Announced)
    }

    fn begin(&mut self, last: u64) {
        self.last = last;
        self.before = Sums::default();
        self.lately.clear();
    }

    /// Minibatches so far.
    pub(super) fn minibatch(&self) -> u64 {
        self.minibatch
    }

    /// Minibatches since the last start or change.
    pub(super) fn since(&self) -> u64 {
        self.minibatch - self.last
    }

    /// Minibatches until the next change that is announced, if one is.
    pub(super) fn coming(&self) -> Option<u64> {
        self.announced.get(self.begun).map(|first| first - self.minibatch)
    }
}

/// How it is known that a job has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// Beforehand: the latest minibatch is the first of what comes.
    Announced,
    /// By what minibatches are like: the next one is taken for the first.
    Shown,
}

#[cfg(test)]
mod tests {
    //! Goal: a job that goes on as it was has not changed, one that does is found soon, and what is announced is known to the minibatch. Method:
    //! observations by hand.
    use super::*;
    use crate::controller::OwnerShare;
    use std::time::Duration;

    fn observed(minibatch: u64, wanted: u64, hits: u64, row_us: u64) -> Observation {
        let rows = wanted - hits;
        let owners = vec![OwnerShare::default(), OwnerShare { rows, busy: Duration::from_micros(rows * row_us) }];
        Observation { minibatch, remote_nodes: wanted, hits, owners, ..Observation::default() }
    }

    /// The minibatch at which a change from `before`, after 20 minibatches, is found.
    fn found(before: [u64; 3], after: [u64; 3]) -> Option<u64> {
        let mut changes = Changes::of(&JobFacts::default());
        (1..=60).find(|&minibatch| {
            let [wanted, hits, row_us] = if minibatch <= 20 { before } else { after };
            // No two minibatches are alike.
            let change = changes.observe(&observed(minibatch, wanted + minibatch % 3 * wanted / 10, hits, row_us));
            assert_eq!(changes.since(), if change.is_some() { 0 } else { minibatch });
            change.is_some()
        })
    }

    #[test]
    fn what_shows_is_found_within_a_few_minibatches() {
        let usual = [1000, 600, 2];
        assert_eq!(found(usual, usual), None);
        assert_eq!(found(usual, [1000, 680, 2]), None, "a buffer that does better is no change");
        let shown = |after| found(usual, after).is_some_and(|minibatch| (21..=24).contains(&minibatch));
        assert!(shown([2000, 1200, 2]), "more is wanted");
        assert!(shown([500, 300, 2]), "less is wanted");
        assert!(shown([1000, 400, 2]), "other nodes are wanted");
        assert!(shown([1000, 600, 6]), "rows take longer");
        assert_eq!(found(usual, [1000, 990, 6]), None, "few rows tell their latency");
    }

    #[test]
    fn nothing_shows_before_it_is_known_what_the_job_is_like() {
        let mut changes = Changes::of(&JobFacts::default());
        for minibatch in 1..=SETTLED {
            assert_eq!(changes.observe(&observed(minibatch, 1 << minibatch, 0, 1)), None);
        }
    }

    #[test]
    fn what_is_announced_is_counted_from() {
        let mut changes = Changes::of(&JobFacts { changes: vec![5, 3], ..JobFacts::default() });
        assert_eq!(changes.coming(), Some(3));
        let mut told = Vec::new();
        for minibatch in 1..=7 {
            let change = changes.observe(&observed(minibatch, 100, 0, 1));
            told.push((change, changes.since(), changes.coming()));
        }
        let announced = Some(Change::Announced);
        assert_eq!(
            told,
            [
                (None, 1, Some(2)),
                (None, 2, Some(1)),
                (None, 3, Some(0)),
                (announced, 1, Some(1)),
                (None, 2, Some(0)),
                (announced, 1, None),
                (None, 2, None)
            ]
        );
        // Of observations that were lost none is missed.
        let mut changes = Changes::of(&JobFacts { changes: vec![3, 5], ..JobFacts::default() });
        assert_eq!(changes.observe(&observed(9, 100, 0, 1)), announced);
        assert_eq!((changes.since(), changes.coming()), (4, None));
    }
}
