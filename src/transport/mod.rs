//! Moving rows: the [`Transport`] that a job shares and the [`Channel`] that one thread at a time drives.
//!
//! The unit that is posted is a [`RowBatch`], not a row and not a byte range: how it becomes one-sided reads, work-request
//! lists, MPI datatypes or a remote gather is each transport's own affair, and a batch that costs one message stays one message.
//! Nothing here locks across a post or a poll, because a channel has one driver.

use crate::error::{Result, TransferError};
use crate::id::Rank;
use crate::memory::{Access, Memory, Region, Version};
use std::time::Duration;

mod batch;
mod exports;
#[cfg(feature = "fabric")]
pub mod fabric;
mod handshake;
pub mod hook;
mod imports;
mod index_list;
#[cfg(feature = "mpi")]
pub mod mpi;
mod registry;
pub mod shm;
pub mod sim;
pub mod tcp;
mod token;
#[cfg(feature = "verbs")]
pub mod verbs;
mod waker;

pub use registry::{ALL, Found, TransportConfig, VerbsSettings, find, names, open};
pub use waker::Waker;

/// What a transport promises and where its limits are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// [`Channel::abort`] can promise that nothing will be written afterwards, so rows may land in the caller's memory.
    pub can_fence: bool,
    /// Gets stall unless the owner's process keeps calling into the transport.
    pub needs_target_progress: bool,
    /// The death of one peer leaves gets from the others intact.
    pub survives_peer_death: bool,
    /// Peers hold keys that allow reading only.
    pub read_only: bool,
    /// One-sided reads are emulated: an index list out and packed rows back is the faster form.
    pub prefers_remote_gather: bool,
    /// Destinations must lie in a registered region.
    pub needs_registered_destination: bool,
    /// Most rows that one batch may name.
    pub batch_rows_max: usize,
    /// Most batches that a channel holds at once.
    pub batches_in_flight_max: usize,
}

impl Capabilities {
    /// Whether an owner's rows are best asked for in the order of its table: a device that reads row by row finds neighbours in its caches. Where a
    /// list is sent, rows that come in the minibatch's order are written one behind the other, which is worth more than the owner's reading so,
    /// and nothing has to be sorted.
    pub fn by_row(&self) -> bool {
        !self.prefers_remote_gather
    }
}

/// A peer's region, as [`Transport::import`] numbered it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RemoteRegion {
    /// The rank that exports it.
    pub peer: Rank,
    /// The importing transport's own number for it.
    pub index: u32,
    /// Its size.
    pub bytes: u64,
}

/// A peer's region that is mapped into this process, so that its rows can be copied like local ones.
#[derive(Clone)]
pub struct MappedRegion {
    /// The bytes, never written through this.
    pub memory: std::sync::Arc<Memory>,
    /// The version that the owner shows: rows copied are of it when it is the same before the copy and
    /// [after](Version::get_after_reading).
    pub version: Version,
}

/// Names one posted batch in its completions; the caller chooses it and reuses it only after the batch is complete.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BatchId(pub u64);

/// Memory in which rows land: row `i` of a batch goes to `base + places[i] * stride`.
#[derive(Clone, Copy, Debug)]
pub struct Destination {
    /// The first byte of place 0.
    pub base: *mut u8,
    /// Bytes from one place to the next; at least the row's bytes.
    pub stride: usize,
    /// Number of places: every index is below it.
    pub places: usize,
}

// SAFETY: a destination is an address, not a reference; who may write through it, and when, is the contract of `Channel::post`.
unsafe impl Send for Destination {}
// SAFETY: as above.
unsafe impl Sync for Destination {}

/// Rows of one region of one peer, and where they go.
#[derive(Clone, Copy, Debug)]
pub struct RowBatch<'a> {
    /// Its name in completions.
    pub id: BatchId,
    /// The region to read.
    pub region: RemoteRegion,
    /// The version of the table that the reader imported; an owner that holds another one refuses.
    pub version: u64,
    /// Bytes of a row.
    pub row_bytes: usize,
    /// Row indexes within the region, ascending.
    pub rows: &'a [u64],
    /// For each row, its place in the destination.
    pub places: &'a [u32],
    /// Where the places are.
    pub destination: Destination,
}

/// A part of a posted batch that has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Completion {
    /// The batch.
    pub batch: BatchId,
    /// The first row that this speaks of, counted within the accepted rows of the batch.
    pub first: u32,
    /// How many rows.
    pub count: u32,
    /// Whether they are in place.
    pub status: Result<(), TransferError>,
}

/// How long [`Channel::poll`] may wait when nothing has completed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Not at all.
    No,
    /// At most so long; a call of the channel's [`Waker`] ends it.
    For(Duration),
}

/// Proof that an abort is over: nothing posted to that peer before it will be written any more.
#[derive(Debug)]
#[must_use]
pub struct Fenced(());

impl Fenced {
    /// For a channel's `abort`, once it holds.
    pub(crate) fn new() -> Self {
        Self(())
    }
}

/// A way to move rows, shared by the threads of a process.
///
/// Start-up: [`address`](Transport::address) is spread to every rank, then [`connect`](Transport::connect) is called once with
/// all of them; regions are made or registered, their tokens spread, and imported by the peers.
pub trait Transport: Send + Sync {
    /// Its name in the configuration.
    fn name(&self) -> &'static str;

    /// What it promises.
    fn capabilities(&self) -> Capabilities;

    /// What peers need to reach this rank; opaque bytes.
    fn address(&self) -> Vec<u8>;

    /// Learns every rank's address, this one's included, in rank order. Connections may be made later, on first use.
    ///
    /// # Errors
    /// A malformed address, or a peer of another protocol version.
    fn connect(&self, addresses: &[Vec<u8>]) -> Result<()>;

    /// Allocates memory that peers can read. May be collective.
    ///
    /// # Errors
    /// The memory cannot be had; the message carries the remedy.
    fn allocate(&self, bytes: usize, access: Access) -> Result<Region>;

    /// Registers memory that exists.
    ///
    /// # Errors
    /// The kind of memory cannot be registered with this transport.
    ///
    /// # Safety
    /// While the region lives, the bytes are written only by those who have told every reader of the table.
    unsafe fn register(&self, memory: Memory, access: Access) -> Result<Region>;

    /// Makes a peer's region addressable here.
    ///
    /// # Errors
    /// A truncated, corrupted or foreign token.
    fn import(&self, peer: Rank, token: &[u8]) -> Result<RemoteRegion>;

    /// The imported region's bytes in this process's own address space, where the transport has them there.
    fn mapped(&self, region: RemoteRegion) -> Option<MappedRegion> {
        let _ = region;
        None
    }

    /// Makes a channel.
    ///
    /// # Errors
    /// The resources for one more are not there.
    fn channel(&self) -> Result<Box<dyn Channel>>;
}

/// A way to post batches and learn of their end, for one thread at a time.
///
/// # Safety
/// An implementor writes exactly the rows of a posted batch, each to its place and nowhere else, before it reports them complete;
/// after a row's completion is polled, or [`abort`](Channel::abort) of its peer has returned, it never touches that place again.
pub unsafe trait Channel: Send {
    /// Starts a batch and says how many of its rows, from the first, were accepted; fewer than all means full, or more rows than a
    /// batch may have: the rest is posted again, as a batch of its own.
    ///
    /// Accepted rows end in completions, in parts and in any order, errors included. An empty batch has none.
    ///
    /// # Errors
    /// The batch itself is wrong (a row outside the region, a place outside the destination, lists of different lengths); nothing
    /// was started. A peer's trouble comes as completions.
    ///
    /// # Safety
    /// Each place of the destination is valid for writes of `row_bytes`, and nobody else reads or writes it, until its row's
    /// completion has been polled or `abort` of the peer has returned. Places of batches in flight do not overlap.
    unsafe fn post(&mut self, batch: &RowBatch<'_>) -> Result<usize>;

    /// Appends what has completed; with nothing to report it waits as told, and may return early with nothing.
    ///
    /// # Errors
    /// The channel as a whole is unusable.
    fn poll(&mut self, completions: &mut Vec<Completion>, wait: Wait) -> Result<()>;

    /// Stops all that is posted to a peer. Its rows are reported by the next `poll`, complete or [`TransferError::Aborted`]. A later post to the
    /// peer may connect anew.
    ///
    /// # Errors
    /// The transport cannot promise it: the memory must then be leaked, not freed.
    fn abort(&mut self, peer: Rank) -> Result<Fenced>;

    /// What ends a waiting [`poll`](Channel::poll) from another thread.
    fn waker(&self) -> Waker;
}
