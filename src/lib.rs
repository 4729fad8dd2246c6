//! Rudder moves the feature rows that a distributed GNN minibatch needs from the ranks that own them, and keeps the most useful ones.
//!
//! Begin with [`Engine`]: every rank of a job starts one with its part of each feature table, announces minibatches if it knows them
//! ahead, and gathers rows. A gather gives the bytes of a plain read, in the order asked for, or an error that names rank, range and cause.
//!
//! The map of the house, along the way of a minibatch:
//! - [`bootstrap`]: who is in the job; one collective with a deadline.
//! - [`placement`]: the NIC that a rank uses, and the memory and cpus near it.
//! - [`memory`]: tables, registered regions, output buffers.
//! - [`PartitionBook`]: which rank owns a node, and where its row is there.
//! - [`pipeline`]: split, look up, join, batch, prioritise, retry; a state machine without clock, thread or socket.
//! - [`buffer`]: the prefetch buffer's books, and one file a replacement policy. `host` has what ranks of a host share of it.
//! - [`transport`]: how row batches move: `shm`, `tcp`, `sim` in virtual time, and hooks that slow or disturb any of them.
//! - [`controller`]: what to pull ahead and when, from `off` to a small language model; it costs hits at worst, never bytes or a wait.
//! - [`telemetry`]: what an engine counts, for those who watch it.
//! - [`trace`]: what a rank's minibatches wanted, recorded in a file.
//! - `capi`: all of this for C, by `native/include/rudder.h`; its types and functions have no other use in Rust.
//!
//! [`Config`] has the bound of every queue, retry and wait; `RUDDER_*` variables ([`Config::VARIABLES`]) override it.

pub mod bootstrap;
pub mod buffer;
#[cfg(feature = "capi")]
mod capi;
mod config;
pub mod controller;
mod engine;
mod error;
mod host;
mod id;
mod listening;
pub mod memory;
#[cfg(feature = "mpi")]
mod mpi;
mod node_table;
mod partition;
pub mod pipeline;
pub mod placement;
pub mod telemetry;
pub mod trace;
pub mod transport;

#[cfg(feature = "capi")]
pub use capi::RUDDER_ABI_VERSION;
pub use config::{Bind, BufferSize, Config, MetricsAddress};
pub use engine::{Engine, EngineBuilder, Request, Stats, TableSpec};
pub use error::{Error, Result, TransferError};
pub use id::{NodeId, PartitionId, Rank, Slot, StreamId, TableId};
pub use partition::PartitionBook;
pub use pipeline::Ticket;

// The examples of the pages for programmers are compiled and run with the doc tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct FrontPage;
#[cfg(doctest)]
#[doc = include_str!("../docs/extend.md")]
struct Extend;
