//! The one error type of the library.
//!
//! A variant is an operation, so that a message always says what was being done, to which rank and range, and why it failed.

use crate::id::{NodeId, PartitionId, Rank, TableId};
use std::ops::Range;
use std::time::Duration;

/// The library's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a transfer did not bring its rows.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TransferError {
    /// The peer closed its end or died.
    #[error("the peer is gone: {0}")]
    PeerGone(String),
    /// The rows lie outside the region that the peer exported.
    #[error("rows outside the exported region ({region_rows} rows)")]
    OutOfRegion {
        /// Rows of the region that was addressed.
        region_rows: u64,
    },
    /// The peer knows no such region, or holds another version of it.
    #[error("the peer does not export region {region} at version {version}")]
    StaleRegion {
        /// The region asked for.
        region: u64,
        /// The version asked for.
        version: u64,
    },
    /// The transfer was stopped by our own side.
    #[error("aborted by this rank")]
    Aborted,
    /// It was not done by its deadline.
    #[error("not done within {0:?}")]
    DeadlineExceeded(Duration),
    /// What arrived does not follow the protocol.
    #[error("protocol violation: {0}")]
    Protocol(String),
    /// The transport's own words.
    #[error("{0}")]
    Io(String),
}

/// What went wrong, where, and what to do about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A setting is out of its bounds or contradicts another.
    #[error("configuration: {0}")]
    Config(String),
    /// An argument of a call is wrong.
    #[error("argument: {0}")]
    Argument(String),
    /// A node is not in its table.
    #[error("{node} is not in {table}, which has nodes 0..{nodes}")]
    NodeOutOfRange {
        /// The table that was asked.
        table: TableId,
        /// The offending node.
        node: NodeId,
        /// Nodes of the table.
        nodes: u64,
    },
    /// A table is not registered.
    #[error("{0} is not registered")]
    UnknownTable(TableId),
    /// A partition book does not hold together.
    #[error("partition book: {0}")]
    PartitionBook(String),
    /// Memory could not be had.
    #[error("cannot {operation} {bytes} bytes: {source}; {remedy}")]
    Memory {
        /// What was tried: allocate, lock, map, …
        operation: &'static str,
        /// How much of it.
        bytes: usize,
        /// What the user can do.
        remedy: &'static str,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The file of a table cannot be used.
    #[error("table file {path}: {cause}")]
    TableFile {
        /// The file.
        path: String,
        /// What is wrong with it.
        cause: String,
    },
    /// The ranks of the job did not come together.
    #[error("bootstrap of {rank}: {cause}")]
    Bootstrap {
        /// The rank that reports it.
        rank: Rank,
        /// What happened, naming the ranks that are missing.
        cause: String,
    },
    /// A region's token cannot be imported.
    #[error("token of {peer}: {cause}")]
    Token {
        /// The peer that issued the token.
        peer: Rank,
        /// What is wrong with it.
        cause: String,
    },
    /// A transport cannot be opened or cannot do what was asked of it.
    #[error("transport {transport}: {cause}")]
    Transport {
        /// The transport's name.
        transport: &'static str,
        /// What happened.
        cause: String,
    },
    /// Rows could not be read.
    #[error("get of rows {rows:?} of {table} ({partition}) from {peer}: {source}")]
    Get {
        /// The owner that was asked.
        peer: Rank,
        /// The table read.
        table: TableId,
        /// The partition read.
        partition: PartitionId,
        /// Rows of the failed part, by their indexes within the partition.
        rows: Range<u64>,
        /// Why.
        source: TransferError,
    },
    /// A request was not complete by its deadline.
    #[error("gather of {rows} rows not complete after {after:?}: {missing} rows outstanding: {waits}")]
    Deadline {
        /// Rows of the request.
        rows: usize,
        /// Rows that had not arrived.
        missing: usize,
        /// The owner that owes most of them.
        peer: Rank,
        /// The time it was given.
        after: Duration,
        /// Which owners owe how many, and since when; a [`crate::pipeline::Outstanding`] in words.
        waits: String,
    },
    /// A bounded queue is full.
    #[error("{queue} is full ({limit}): {remedy}")]
    Full {
        /// Which queue.
        queue: &'static str,
        /// Its bound.
        limit: usize,
        /// What to do.
        remedy: &'static str,
    },
    /// A ticket was used twice, forgotten, or belongs to another minibatch.
    #[error("ticket: {0}")]
    Ticket(String),
    /// A model file cannot be used.
    #[error("model {path}: {cause}")]
    Model {
        /// The file.
        path: String,
        /// What is wrong with it.
        cause: String,
    },
    /// A trace cannot be written or read.
    #[error("trace {path}, at byte {at}: {cause}")]
    Trace {
        /// The file.
        path: String,
        /// Where in it.
        at: u64,
        /// What is wrong there.
        cause: String,
    },
    /// The engine was shut down.
    #[error("the engine is shut down")]
    Closed,
    /// The process is a forked child, which owns no device, file or peer.
    #[error("this is a forked child: create the engine after the fork")]
    Forked,
}

impl Error {
    /// An [`Error::Config`] of these words.
    pub fn config(cause: impl Into<String>) -> Self {
        Self::Config(cause.into())
    }

    /// An [`Error::Argument`] of these words.
    pub fn argument(cause: impl Into<String>) -> Self {
        Self::Argument(cause.into())
    }
}
