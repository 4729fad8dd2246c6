//! The fewest rows that any buffer can fetch, which knows the whole trace: Belady's bound with a minibatch's semantics.
//!
//! All nodes of a minibatch are looked up at once; then any of them and of the residents may be kept, those that are wanted soonest. Which of
//! several nodes with the same next minibatch is kept makes no difference, so that a count for each minibatch is all there is to keep.

use super::traces::RankTrace;
use std::collections::{BinaryHeap, HashMap};

/// No later minibatch wants the node.
const NEVER: u32 = u32::MAX;

/// For each node of each minibatch, in order: the minibatch that wants it next.
pub struct NextUses {
    next: Vec<u32>,
    ends: Vec<usize>,
}

impl NextUses {
    /// Of the first `steps` minibatches of a trace.
    pub fn of(trace: &RankTrace, steps: usize) -> Self {
        Self::of_minibatches((0..steps).map(|step| trace.nodes(step).iter().map(|node| node.0)))
    }

    fn of_minibatches<M>(minibatches: impl DoubleEndedIterator<Item = M> + ExactSizeIterator + Clone) -> Self
    where
        M: ExactSizeIterator<Item = u64>,
    {
        let ends: Vec<usize> = minibatches
            .clone()
            .scan(0, |end, minibatch| {
                *end += minibatch.len();
                Some(*end)
            })
            .collect();
        let mut next = vec![NEVER; ends.last().copied().unwrap_or(0)];
        let mut seen: HashMap<u64, u32> = HashMap::new();
        for (at, minibatch) in minibatches.enumerate().rev() {
            let from = ends[at] - minibatch.len();
            for (place, node) in next[from..].iter_mut().zip(minibatch) {
                *place = seen.insert(node, at as u32).unwrap_or(NEVER);
            }
        }
        Self { next, ends }
    }

    /// The rows that a buffer of so many slots has to fetch.
    pub fn rows(&self, slots: u32) -> u64 {
        // By minibatch: residents that it is the next to want; and those with any, the farthest first.
        let mut residents = vec![0u64; self.ends.len()];
        let mut farthest = BinaryHeap::new();
        let (mut resident, mut fetched, mut from) = (0, 0, 0);
        for (at, &end) in self.ends.iter().enumerate() {
            let hits = std::mem::take(&mut residents[at]);
            resident -= hits;
            fetched += (end - from) as u64 - hits;
            for &next in self.next[from..end].iter().filter(|next| **next != NEVER) {
                if residents[next as usize] == 0 {
                    farthest.push(next);
                }
                residents[next as usize] += 1;
                resident += 1;
            }
            while resident > u64::from(slots) {
                let &last = farthest.peek().expect("a resident is wanted by some minibatch");
                let gone = (resident - u64::from(slots)).min(residents[last as usize]);
                residents[last as usize] -= gone;
                resident -= gone;
                if residents[last as usize] == 0 {
                    farthest.pop();
                }
            }
            from = end;
        }
        fetched
    }
}

#[cfg(test)]
mod tests {
    //! Goal: the counts are those of a buffer that is moved node by node. Method: random minibatches, against sorted residents.

    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn by_hand(minibatches: &[Vec<u64>], slots: usize) -> u64 {
        let (mut residents, mut fetched) = (BTreeSet::new(), 0);
        for (at, minibatch) in minibatches.iter().enumerate() {
            fetched += minibatch.iter().filter(|node| !residents.contains(*node)).count() as u64;
            residents.extend(minibatch);
            let next = |node: &u64| minibatches[at + 1..].iter().position(|later| later.contains(node));
            let mut wanted: Vec<_> = residents.iter().filter_map(|node| Some((next(node)?, *node))).collect();
            wanted.sort_unstable();
            residents = wanted.into_iter().take(slots).map(|(_, node)| node).collect();
        }
        fetched
    }

    proptest! {
        #[test]
        fn counting_is_as_good_as_moving(
            minibatches in prop::collection::vec(prop::collection::btree_set(0u64..30, 0..12), 0..40),
            slots in 0u32..20,
        ) {
            let minibatches: Vec<Vec<u64>> = minibatches.into_iter().map(|set| set.into_iter().collect()).collect();
            let uses = NextUses::of_minibatches(minibatches.iter().map(|nodes| nodes.iter().copied()));
            prop_assert_eq!(uses.rows(slots), by_hand(&minibatches, slots as usize));
        }
    }
}
