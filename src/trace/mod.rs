//! What a rank's minibatches wanted, in a file: recorded by an engine ([`Config::trace`](crate::Config::trace)), replayed by `rudder replay`.
//!
//! A trace is one stream of numbers, cut into blocks that are compressed and checksummed by themselves. So it is written while the job runs,
//! in memory of fixed size, and of a file that was cut off or damaged everything before the damage can be read. Who owns a node, and whether
//! it is a halo node, follows from the header; it is not said again of each node. Nodes keep the order in which they were wanted, since that
//! order decides which of two equal rows is kept: ascending ones would take a third of the bytes, but would not replay exactly.
//!
//! ```
//! use rudder::trace::{Event, Header, Minibatch, Reader, TraceTable, Writer};
//! use rudder::{NodeId, PartitionBook, PartitionId, Rank, TableSpec, TableId};
//!
//! let spec = TableSpec::new(TableId(0), PartitionBook::from_starts(vec![0, 3, 9])?, PartitionId(0), 400);
//! let table = TraceTable::new(&spec, vec![None, Some(Rank(1))], 2);
//! let header = Header { ranks: 2, tables: vec![table], ..Header::default() };
//! let minibatch = Minibatch { nodes: vec![NodeId(8), NodeId(4)], observed: true, ..Minibatch::default() };
//!
//! let mut writer = Writer::new(Vec::new(), "example", &header)?;
//! writer.minibatch(&minibatch)?;
//! let bytes = writer.finish()?;
//!
//! let mut reader = Reader::new(bytes.as_slice(), "example")?;
//! assert_eq!(reader.header(), &header);
//! assert_eq!(reader.next().transpose()?, Some(Event::Minibatch(minibatch)));
//! assert!(reader.next().is_none());
//! # Ok::<(), rudder::Error>(())
//! ```
#![forbid(unsafe_code)]

mod block;
mod event;
mod header;
mod reader;
#[cfg(test)]
mod tests;
mod writer;

pub use header::{Header, TraceTable, TrafficLimits};
pub use reader::Reader;
pub use writer::Writer;

use crate::error::Error;
use crate::id::{NodeId, PartitionId, Rank};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Most remote nodes of a recorded minibatch; larger ones are left out and counted as a gap.
pub const NODES_MAX: usize = 1 << 24;

/// The file of a rank's trace.
pub fn file_of(prefix: &Path, rank: Rank) -> PathBuf {
    let mut name = prefix.as_os_str().to_owned();
    name.push(format!(".{}.trace", rank.0));
    name.into()
}

/// What a trace tells of, in the order in which it happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A minibatch was gathered. They come in the order in which they were started.
    Minibatch(Minibatch),
    /// An epoch has ended.
    EpochEnd,
    /// So much was not recorded here, as the disk did not keep up.
    Gap {
        /// Minibatches, or marks of them, that are missing.
        events: u64,
    },
}

/// One gather.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Minibatch {
    /// Which of the header's tables.
    pub table: u32,
    /// The nodes whose rows travel, as they were wanted.
    pub nodes: Vec<NodeId>,
    /// Gathers that were started between its announcement and its own start; `None` where it was not announced.
    pub announced: Option<u64>,
    /// Whether the buffer learnt from it; evaluation is not observed.
    pub observed: bool,
    /// Whether it was started well before its rows were waited for, while the minibatch before computed.
    pub overlapped: bool,
    /// The step that its rows were waited for in.
    pub step: StepTimes,
    /// Time of waiting for its rows.
    pub stall: Duration,
    /// Of its nodes, those whose rows were in the buffer or on their way.
    pub hits: u64,
    /// Rows fetched because it wanted them.
    pub demand_rows: u64,
    /// Rows fetched ahead since the minibatch before.
    pub prefetched_rows: u64,
    /// What owners have cost since the minibatch before.
    pub owners: Vec<OwnerCost>,
}

/// A training step's time beside its wait for rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StepTimes {
    /// Sampling and announcing.
    pub sample: Duration,
    /// Forward, backward and update; all of the step, where its parts are not known.
    pub compute: Duration,
    /// Averaging gradients, the wait for slower ranks included.
    pub allreduce: Duration,
}

/// What one owner has cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OwnerCost {
    /// Whose rows.
    pub partition: PartitionId,
    /// Rows that came.
    pub rows: u64,
    /// Time during which any were on their way.
    pub busy: Duration,
}

/// An error of the file at a byte of it.
fn damaged(path: &str, at: u64, cause: impl Into<String>) -> Error {
    Error::Trace { path: path.to_owned(), at, cause: cause.into() }
}
