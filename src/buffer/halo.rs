//! Which nodes are halo nodes, and their rank among them: a bitmap with a running count every 512 nodes.

use crate::error::{Error, Result};
use crate::id::NodeId;

const WORDS_PER_COUNT: usize = 8;

/// The halo as a set with ranks; one bit a node of the graph, and a sixteenth of that for the counts.
pub(super) struct Halo {
    words: Vec<u64>,
    counts: Vec<u32>,
}

impl Halo {
    /// Of ascending nodes below `nodes`.
    ///
    /// # Errors
    /// The halo is not strictly ascending, or reaches beyond the graph.
    pub(super) fn new(nodes: u64, halo: &[NodeId]) -> Result<Self> {
        if let Some(pair) = halo.windows(2).find(|pair| pair[0] >= pair[1]) {
            return Err(Error::argument(format!("the halo is not strictly ascending: {} before {}", pair[0], pair[1])));
        }
        if let Some(last) = halo.last().filter(|last| last.0 >= nodes) {
            return Err(Error::argument(format!("halo {last} is not in the graph, which has nodes 0..{nodes}")));
        }
        if u32::try_from(halo.len()).is_err() {
            return Err(Error::argument(format!("{} halo nodes are more than 2^32 - 1", halo.len())));
        }
        let mut words = vec![0u64; nodes.div_ceil(64) as usize];
        for node in halo {
            words[(node.0 / 64) as usize] |= 1 << (node.0 % 64);
        }
        let mut counts = Vec::with_capacity(words.len() / WORDS_PER_COUNT + 1);
        let mut below = 0;
        for group in words.chunks(WORDS_PER_COUNT) {
            counts.push(below);
            below += group.iter().map(|word| word.count_ones()).sum::<u32>();
        }
        Ok(Self { words, counts })
    }

    #[inline]
    pub(super) fn contains(&self, node: NodeId) -> bool {
        self.words.get((node.0 / 64) as usize).is_some_and(|word| word >> (node.0 % 64) & 1 == 1)
    }

    /// Its place in the ascending halo.
    #[inline]
    pub(super) fn rank(&self, node: NodeId) -> Option<usize> {
        if !self.contains(node) {
            return None;
        }
        let at = (node.0 / 64) as usize;
        let group = at / WORDS_PER_COUNT;
        let before: u32 = self.words[group * WORDS_PER_COUNT..at].iter().map(|word| word.count_ones()).sum();
        let below = (self.words[at] & ((1 << (node.0 % 64)) - 1)).count_ones();
        Some((self.counts[group] + before + below) as usize)
    }

    pub(super) fn bytes(&self) -> usize {
        self.words.capacity() * size_of::<u64>() + self.counts.capacity() * size_of::<u32>()
    }
}

#[cfg(test)]
mod tests {
    //! Goal: ranks are places in the sorted list. Method: random sets, every node asked.
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn ranks_are_places(set in prop::collection::btree_set(0u64..3000, 0..300)) {
            let halo: Vec<_> = set.iter().copied().map(NodeId).collect();
            let index = Halo::new(3000, &halo).unwrap();
            for node in 0..3100 {
                prop_assert_eq!(index.rank(NodeId(node)), halo.binary_search(&NodeId(node)).ok());
            }
        }
    }

    #[test]
    fn a_halo_that_is_none_is_refused() {
        assert!(Halo::new(10, &[NodeId(3), NodeId(3)]).is_err());
        assert!(Halo::new(10, &[NodeId(4), NodeId(3)]).is_err());
        assert!(Halo::new(10, &[NodeId(10)]).is_err());
    }
}
