//! Rudder moves the feature rows that a distributed GNN minibatch needs from the ranks that own them.

pub mod bootstrap;
pub mod buffer;
mod config;
pub mod controller;
mod engine;
mod error;
mod id;
pub mod memory;
mod partition;
pub mod pipeline;
pub mod transport;

pub use config::{BufferSize, Config};
pub use engine::{Engine, EngineBuilder, Request, Stats, TableSpec};
pub use error::{Error, Result, TransferError};
pub use id::{NodeId, PartitionId, Rank, Slot, StreamId, TableId};
pub use partition::PartitionBook;
pub use pipeline::Ticket;

// The front page's example is compiled and run with the doc tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct FrontPage;
