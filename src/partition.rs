//! Who owns which node.
//!
//! Partitions are contiguous ranges of global node ids, as DistDGL's `RangePartitionBook` has them after relabelling: an owner is
//! found by a search among as many numbers as there are partitions, and a row index is one subtraction. Nothing is kept per node.

use crate::error::{Error, Result};
use crate::id::{NodeId, PartitionId};

/// The contiguous ranges of one table's nodes, one a partition.
///
/// ```
/// use rudder::{NodeId, PartitionBook, PartitionId};
/// let book = PartitionBook::from_starts(vec![0, 3, 7])?;
/// assert_eq!(book.locate(NodeId(5)), Some((PartitionId(1), 2)));
/// assert_eq!(book.locate(NodeId(7)), None);
/// # Ok::<(), rudder::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionBook {
    starts: Vec<u64>,
}

impl PartitionBook {
    /// From `partitions + 1` ascending starts; the first is 0, the last is the number of nodes. Partitions may be empty.
    ///
    /// # Errors
    /// The starts do not ascend, do not begin at 0, or name no partition.
    pub fn from_starts(starts: Vec<u64>) -> Result<Self> {
        let bad = |cause: String| Err(Error::PartitionBook(cause));
        if starts.len() < 2 {
            return bad(format!("{} starts name no partition; n + 1 are needed for n partitions", starts.len()));
        }
        if starts[0] != 0 {
            return bad(format!("the first partition starts at {}, not at 0", starts[0]));
        }
        if let Some(at) = starts.windows(2).position(|pair| pair[0] > pair[1]) {
            return bad(format!("partition {at} starts at {} and ends before it, at {}", starts[at], starts[at + 1]));
        }
        if u32::try_from(starts.len() - 1).is_err() {
            return bad(format!("{} partitions are more than 2^32 - 1", starts.len() - 1));
        }
        Ok(Self { starts })
    }

    /// Number of nodes.
    pub fn nodes(&self) -> u64 {
        self.starts[self.starts.len() - 1]
    }

    /// Number of partitions.
    pub fn partitions(&self) -> u32 {
        (self.starts.len() - 1) as u32
    }

    /// The nodes of a partition.
    ///
    /// # Panics
    /// When there is no such partition.
    pub fn range(&self, partition: PartitionId) -> std::ops::Range<u64> {
        self.starts[partition.index()]..self.starts[partition.index() + 1]
    }

    /// The owner of a node and the node's row index there, or `None` for a node outside the table.
    #[inline]
    pub fn locate(&self, node: NodeId) -> Option<(PartitionId, u64)> {
        if node.0 >= self.nodes() {
            return None;
        }
        let partition = self.starts.partition_point(|&start| start <= node.0) - 1;
        Some((PartitionId(partition as u32), node.0 - self.starts[partition]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_node_is_in_the_range_of_its_owner() {
        let book = PartitionBook::from_starts(vec![0, 4, 4, 9, 10]).unwrap();
        for node in 0..book.nodes() {
            let (partition, row) = book.locate(NodeId(node)).unwrap();
            assert!(book.range(partition).contains(&node));
            assert_eq!(book.range(partition).start + row, node);
        }
        assert_eq!(book.locate(NodeId(10)), None);
    }

    #[test]
    fn books_that_do_not_hold_together_are_refused() {
        for (starts, words) in
            [(vec![], "n + 1"), (vec![0], "n + 1"), (vec![1, 2], "not at 0"), (vec![0, 5, 3], "ends before it")]
        {
            let error = PartitionBook::from_starts(starts).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }
}
