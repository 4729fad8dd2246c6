//! Misses by cohort, and the recently missed nodes that a cohort's quota can pull.

use super::policy::Wanted;
use crate::controller::Cohort;
use crate::id::NodeId;
use crate::partition::PartitionBook;
use std::collections::VecDeque;

/// Most candidates of all cohorts together, and of one.
const CANDIDATES: usize = 1 << 18;
const CANDIDATES_PER_COHORT: usize = 4096;

/// A node that the open minibatch missed, and what was known of it before.
#[derive(Clone, Copy)]
struct Miss {
    node: NodeId,
    before: Option<Wanted>,
}

/// What is kept by [`Cohort::index`].
pub(super) struct Cohorts {
    owners: PartitionBook,
    open: Vec<Miss>,
    misses: Vec<u32>,
    candidates: Vec<VecDeque<NodeId>>,
    limit: usize,
}

impl Cohorts {
    pub(super) fn new(owners: PartitionBook) -> Self {
        let count = Cohort::count(owners.partitions());
        let limit = (CANDIDATES / count).clamp(1, CANDIDATES_PER_COHORT);
        let candidates = (0..count).map(|_| VecDeque::with_capacity(limit)).collect();
        Self { owners, open: Vec::new(), misses: vec![0; count], candidates, limit }
    }

    pub(super) fn count(&self) -> usize {
        self.misses.len()
    }

    pub(super) fn open_minibatch(&mut self) {
        self.open.clear();
    }

    /// Notes a miss; `before` is what was known of the node until now.
    pub(super) fn note(&mut self, node: NodeId, before: Option<Wanted>) {
        self.open.push(Miss { node, before });
    }

    /// Counts the open minibatch's misses and makes candidates of the nodes that are still absent; the oldest make room.
    pub(super) fn close_minibatch(&mut self, announced: impl Fn(NodeId) -> bool, absent: impl Fn(NodeId) -> bool) {
        self.misses.fill(0);
        for miss in self.open.drain(..) {
            let Some((owner, _)) = self.owners.locate(miss.node) else { continue };
            let cohort = Cohort {
                owner,
                frequency: frequency_band(miss.before.map_or(1.0, |before| before.score + 1.0)),
                recency: recency_band(miss.before.map(|before| before.minibatches_ago)),
                announced: announced(miss.node),
            };
            let at = cohort.index();
            self.misses[at] += 1;
            if absent(miss.node) {
                let candidates = &mut self.candidates[at];
                if candidates.len() == self.limit {
                    candidates.pop_front();
                }
                candidates.push_back(miss.node);
            }
        }
    }

    /// The cohort's most recently missed candidate; it may have become resident since.
    pub(super) fn pull(&mut self, cohort: usize) -> Option<NodeId> {
        self.candidates[cohort].pop_back()
    }

    /// Misses of the minibatch closed last.
    pub(super) fn misses(&self) -> &[u32] {
        &self.misses
    }

    pub(super) fn bytes(&self) -> usize {
        let candidates: usize = self.candidates.iter().map(VecDeque::capacity).sum();
        candidates * size_of::<NodeId>()
            + self.misses.capacity() * size_of::<u32>()
            + self.open.capacity() * size_of::<Miss>()
    }
}

/// The band of a decayed count, to the nearest whole number.
fn frequency_band(score: f32) -> u8 {
    match score {
        score if score < 1.5 => 0,
        score if score < 3.5 => 1,
        score if score < 7.5 => 2,
        _ => 3,
    }
}

fn recency_band(minibatches_ago: Option<u32>) -> u8 {
    match minibatches_ago {
        Some(0..=2) => 0,
        Some(3..=8) => 1,
        _ => 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bands_are_those_that_the_cohort_documents() {
        assert_eq!([1.0, 2.0, 3.0, 4.0, 7.0, 8.0].map(frequency_band), [0, 1, 1, 2, 2, 3]);
        assert_eq!([Some(1), Some(2), Some(3), Some(8), Some(9), None].map(recency_band), [0, 0, 1, 1, 2, 2]);
    }

    #[test]
    fn candidates_are_bounded_and_the_latest_comes_first() {
        let mut cohorts = Cohorts::new(PartitionBook::from_starts(vec![0, 100_000]).unwrap());
        (0..10_000).for_each(|node| cohorts.note(NodeId(node), None));
        cohorts.close_minibatch(|_| false, |node| node != NodeId(9_999));
        let at = cohorts.misses().iter().position(|&misses| misses == 10_000).unwrap();
        assert_eq!(cohorts.pull(at), Some(NodeId(9_998)));
        assert_eq!(std::iter::from_fn(|| cohorts.pull(at)).count(), CANDIDATES_PER_COHORT - 1);
    }
}
