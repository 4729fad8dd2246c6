//! What a trace says once: the job, the rank's tables, and the settings that shape its traffic.

use super::block::BlockReader;
use super::event::{Bounds, put_nodes, put_number, take_nodes};
use crate::buffer::{BufferHints, SLOTS_MAX};
use crate::controller::JobFacts;
use crate::engine::TableSpec;
use crate::error::{Error, Result};
use crate::id::{NodeId, PartitionId, Rank, TableId};
use crate::partition::PartitionBook;
use crate::transport::hook::Link;
use serde::{Deserialize, Serialize};
use std::io::Read;

/// Most bytes of the header's words; its nodes follow them.
const WORDS_MAX: u64 = 1 << 20;
/// Bounds on what a header may say, so that a lie in it costs no memory to speak of.
const TABLES_MAX: usize = 64;
const RANKS_MAX: u32 = 1 << 20;
const HALO_MAX: usize = 1 << 26;
const NODES_MAX: u64 = 1 << 33;
const BATCH_ROWS_MAX: usize = 1 << 20;
const IN_FLIGHT_MAX: usize = 1 << 24;
const STAGING_MAX: u32 = 1024;

/// What a trace begins with.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Header {
    /// Whose trace it is.
    pub rank: Rank,
    /// Ranks of the job.
    pub ranks: u32,
    /// Ranks that shared one buffer with this one, itself included.
    pub sharing: u32,
    /// The policy that the buffer had while it was recorded.
    pub policy: String,
    /// The controller.
    pub controller: String,
    /// The speed that the transport was held to.
    pub link: Link,
    /// What the controller was told.
    pub facts: JobFacts,
    /// How rows travelled.
    pub limits: TrafficLimits,
    /// The tables.
    pub tables: Vec<TraceTable>,
}

/// The bounds on traffic that the engine had; the settings of these names, as far as the transport had taken them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TrafficLimits {
    /// Most rows of one demand batch.
    pub batch_rows: usize,
    /// Most rows of one prefetch batch.
    pub prefetch_batch_rows: usize,
    /// Most prefetched rows on their way at once.
    pub prefetch_rows_in_flight: usize,
    /// Chunks of staging memory, 0 where rows landed in place.
    pub staging_chunks: u32,
    /// Whether rows were asked for in the order of their owner's table, and not in that of the minibatch.
    pub by_row: bool,
}

impl Default for TrafficLimits {
    fn default() -> Self {
        let crate::Config { batch_rows, prefetch_batch_rows, prefetch_rows_in_flight, .. } = crate::Config::default();
        Self { batch_rows, prefetch_batch_rows, prefetch_rows_in_flight, staging_chunks: 0, by_row: true }
    }
}

/// One table, as its rank has it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceTable {
    /// Its name.
    pub id: TableId,
    /// Bytes of a row.
    pub row_bytes: u64,
    /// The rank's own partition.
    pub partition: PartitionId,
    /// Where each partition's nodes begin, and where the last one's end.
    pub starts: Vec<u64>,
    /// By partition: who is asked for its rows; none where they are the rank's own or mapped from its host.
    pub peers: Vec<Option<Rank>>,
    /// Slots of the buffer.
    pub slots: u32,
    /// Remote nodes adjacent to the partition, ascending.
    #[serde(skip)]
    pub halo: Vec<NodeId>,
    /// For each halo node, its degree; empty where unknown.
    #[serde(skip)]
    pub degree: Vec<u32>,
}

impl TraceTable {
    /// A table, whom its rank asks for the rows of each partition, and how many it can keep.
    pub fn new(spec: &TableSpec, peers: Vec<Option<Rank>>, slots: u32) -> Self {
        let partitions = (0..spec.book.partitions()).map(PartitionId);
        Self {
            id: spec.id,
            row_bytes: spec.row_bytes as u64,
            partition: spec.partition,
            starts: partitions.map(|at| spec.book.range(at).start).chain([spec.book.nodes()]).collect(),
            peers,
            slots,
            halo: spec.halo.clone(),
            degree: spec.degree.clone(),
        }
    }

    /// Nodes of the graph.
    pub fn nodes(&self) -> u64 {
        self.starts.last().copied().unwrap_or(0)
    }

    /// Who owns which node.
    ///
    /// # Errors
    /// The starts do not hold together.
    pub fn book(&self) -> Result<PartitionBook> {
        PartitionBook::from_starts(self.starts.clone())
    }

    /// What a buffer is told: of the halo nodes, those whose rows travel.
    ///
    /// # Errors
    /// As [`TraceTable::book`].
    pub fn hints(&self) -> Result<BufferHints> {
        let owners = self.book()?;
        let travels = |node| owners.locate(node).is_some_and(|(partition, _)| self.peers[partition.index()].is_some());
        let degree = |at: usize| self.degree.get(at).copied().unwrap_or(0);
        let halo = self.halo.iter().enumerate().filter(|(_, node)| travels(**node));
        let (halo, degree) = halo.map(|(at, &node)| (node, degree(at))).unzip();
        Ok(BufferHints { nodes: owners.nodes(), halo, degree, owners })
    }

    /// Nodes whose rows travel.
    ///
    /// # Errors
    /// As [`TraceTable::book`].
    pub fn remote_nodes(&self) -> Result<u64> {
        let book = self.book()?;
        let remote = (0..).map(PartitionId).zip(&self.peers).filter(|(_, peer)| peer.is_some());
        Ok(remote.map(|(partition, _)| book.range(partition)).map(|range| range.end - range.start).sum())
    }

    fn check(&self, ranks: u32) -> Result<()> {
        let bad = |cause: String| Err(Error::argument(format!("{}: {cause}", self.id)));
        let book = self.book()?;
        let partitions = book.partitions();
        if book.nodes() > NODES_MAX {
            return bad(format!("{} nodes; the most are {NODES_MAX}", book.nodes()));
        }
        if self.partition.0 >= partitions || self.peers.len() != partitions as usize {
            let peers = self.peers.len();
            return bad(format!("{} and {peers} peers of {partitions} partitions", self.partition));
        }
        if let Some(peer) = self.peers.iter().flatten().find(|peer| peer.0 >= ranks) {
            return bad(format!("{peer} in a job of {ranks} ranks"));
        }
        if !(1..=1 << 32).contains(&self.row_bytes) || self.slots > SLOTS_MAX {
            return bad(format!("rows of {} bytes, {} slots", self.row_bytes, self.slots));
        }
        if !self.degree.is_empty() && self.degree.len() != self.halo.len() {
            return bad(format!("{} degrees for {} halo nodes", self.degree.len(), self.halo.len()));
        }
        if !self.halo.is_sorted_by(|a, b| a < b) || self.halo.last().is_some_and(|node| node.0 >= book.nodes()) {
            return bad("halo nodes do not ascend, or reach beyond the graph".into());
        }
        Ok(())
    }
}

impl Header {
    /// Refuses what does not hold together.
    pub(super) fn check(&self) -> Result<()> {
        let bad = |cause: String| Err(Error::argument(cause));
        if !(1..=RANKS_MAX).contains(&self.ranks) || self.rank.0 >= self.ranks {
            return bad(format!("{} of {} ranks", self.rank, self.ranks));
        }
        if self.tables.len() > TABLES_MAX {
            return bad(format!("{} tables; the most are {TABLES_MAX}", self.tables.len()));
        }
        let TrafficLimits { batch_rows, prefetch_batch_rows, prefetch_rows_in_flight, staging_chunks, .. } =
            self.limits;
        let within = (1..=BATCH_ROWS_MAX).contains(&batch_rows)
            && (1..=batch_rows).contains(&prefetch_batch_rows)
            && (prefetch_batch_rows..=IN_FLIGHT_MAX).contains(&prefetch_rows_in_flight)
            && staging_chunks <= STAGING_MAX;
        if !within {
            return bad(format!("bounds on traffic that no engine has: {:?}", self.limits));
        }
        self.tables.iter().try_for_each(|table| table.check(self.ranks))
    }

    pub(super) fn bounds(&self) -> Bounds {
        Bounds { tables: self.tables.iter().map(|table| (table.nodes(), table.peers.len() as u32)).collect() }
    }

    /// The words, in JSON, then the nodes of each table.
    pub(super) fn put(&self, raw: &mut Vec<u8>) -> Result<()> {
        let words = serde_json::to_vec(self).map_err(|cause| Error::argument(format!("a trace's header: {cause}")))?;
        put_number(raw, words.len() as u64);
        raw.extend_from_slice(&words);
        for table in &self.tables {
            put_nodes(raw, &table.halo);
            put_number(raw, table.degree.len() as u64);
            table.degree.iter().for_each(|&degree| put_number(raw, u64::from(degree)));
        }
        Ok(())
    }

    pub(super) fn take<R: Read>(blocks: &mut BlockReader<R>) -> Result<Self> {
        let count = blocks.count(WORDS_MAX, "bytes of words")?;
        let words = (0..count).map(|_| blocks.byte()).collect::<Result<Vec<u8>>>()?;
        let mut header: Self =
            serde_json::from_slice(&words).map_err(|cause| blocks.damaged(format!("the header: {cause}")))?;
        for table in &mut header.tables {
            table.halo = take_nodes(blocks, HALO_MAX, NODES_MAX)?;
            for _ in 0..blocks.count(HALO_MAX as u64, "degrees")? {
                table.degree.push(blocks.count(u64::from(u32::MAX), "as a degree")? as u32);
            }
        }
        header.check().map_err(|cause| blocks.damaged(format!("the header: {cause}")))?;
        Ok(header)
    }
}
