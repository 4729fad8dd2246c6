//! What a rank says of a table when the engine starts.

use crate::error::{Error, Result};
use crate::id::{NodeId, PartitionId, TableId};
use crate::partition::PartitionBook;

/// What a rank says of one table.
#[derive(Clone, Debug)]
pub struct TableSpec {
    /// Its name, the same on every rank.
    pub id: TableId,
    /// Who owns which node, the same on every rank.
    pub book: PartitionBook,
    /// The partition that this rank exports. Several ranks of a host may have the same one; where its rows are in memory or a file already, the
    /// first of those that are near the same NIC registers it for them all.
    pub partition: PartitionId,
    /// Bytes of a row, the same on every rank.
    pub row_bytes: usize,
    /// Version of the rows.
    pub version: u64,
    /// Remote nodes adjacent to the partition, ascending.
    pub halo: Vec<NodeId>,
    /// For each halo node, its degree; empty where unknown.
    pub degree: Vec<u32>,
    /// Edges of the graph, 0 where unknown.
    pub edges: u64,
}

impl TableSpec {
    /// A table without halo, at version 0.
    pub fn new(id: TableId, book: PartitionBook, partition: PartitionId, row_bytes: usize) -> Self {
        Self { id, book, partition, row_bytes, version: 0, halo: Vec::new(), degree: Vec::new(), edges: 0 }
    }

    pub(crate) fn check(&self) -> Result<()> {
        let bad = |cause: String| Err(Error::argument(format!("{}: {cause}", self.id)));
        if self.row_bytes == 0 {
            return bad("rows of 0 bytes".into());
        }
        if self.partition.0 >= self.book.partitions() {
            return bad(format!("{} of {} partitions", self.partition, self.book.partitions()));
        }
        if !self.degree.is_empty() && self.degree.len() != self.halo.len() {
            return bad(format!("{} degrees for {} halo nodes", self.degree.len(), self.halo.len()));
        }
        if let Some(pair) = self.halo.windows(2).find(|pair| pair[0] >= pair[1]) {
            return bad(format!("halo nodes do not ascend at {}", pair[1]));
        }
        let own = self.book.range(self.partition);
        if let Some(node) = self.halo.iter().find(|node| node.0 >= self.book.nodes() || own.contains(&node.0)) {
            return bad(format!("halo {node} is not a remote node"));
        }
        Ok(())
    }
}
