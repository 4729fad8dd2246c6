//! Rudder moves the feature rows that a distributed GNN minibatch needs from the ranks that own them.

pub mod bootstrap;
pub mod buffer;
pub mod controller;
mod error;
mod id;
pub mod memory;
mod partition;
pub mod transport;

pub use error::{Error, Result, TransferError};
pub use id::{NodeId, PartitionId, Rank, Slot, StreamId, TableId};
pub use partition::PartitionBook;
