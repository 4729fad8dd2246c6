//! The buffers of a rank's tables: how many slots, and what the ranks of a host share of them.

use super::meeting::{Peers, gather};
use super::spec::TableSpec;
use crate::bootstrap::Bootstrap;
use crate::buffer::{BufferHints, Feed, PrefetchBuffer, SLOTS_MAX};
use crate::config::{BufferSize, Config};
use crate::error::Result;
use crate::host::{Exchange, Host, Layout, Part, keeper_of};
use crate::id::{NodeId, PartitionId};
use crate::memory::{Access, Region};
use crate::pipeline::Source;
use crate::transport::Transport;
use crate::transport::shm::ShmTransport;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// What an announced node costs: its id, and its entry in the window's table when that is at its emptiest.
const ANNOUNCED_NODE_BYTES: u64 = 8 + 16 * 4;

/// What keeps the remote rows of a table.
#[derive(Default)]
pub(super) struct Buffers {
    pub buffer: Option<PrefetchBuffer>,
    pub slots: Option<Region>,
    pub part: Option<Arc<Part>>,
    /// Where a controller watches the buffer.
    pub feed: Option<Feed>,
}

/// Which part of its host's buffer a rank keeps.
pub(super) struct Shard<'a> {
    /// By which the others get at its memory.
    pub link: &'a ShmTransport,
    pub ranks: u32,
    pub place: usize,
}

/// The buffer of a table and the memory of its slots. It is for rows that travel: mapped ones are as near as their slots would be.
pub(super) fn buffers(
    config: &Config,
    spec: &TableSpec,
    sources: &[Source],
    staging_bytes: usize,
    transport: &dyn Transport,
    shard: Option<&Shard<'_>>,
) -> Result<Buffers> {
    let travels = |partition: PartitionId| matches!(sources[partition.index()], Source::Remote(_));
    let degree = |at: usize| spec.degree.get(at).copied().unwrap_or(0);
    let halo = spec.halo.iter().enumerate().map(|(at, &node)| (node, degree(at)));
    let halo = halo.filter(|&(node, _)| spec.book.locate(node).is_some_and(|(partition, _)| travels(partition)));
    let halo_nodes = halo.clone().count();
    let kept = |node| shard.is_none_or(|shard| keeper_of(node, shard.ranks) == shard.place);
    let (halo, degree): (Vec<NodeId>, Vec<u32>) = halo.filter(|&(node, _)| kept(node)).unzip();
    let hints = BufferHints { nodes: spec.book.nodes(), halo, degree, owners: spec.book.clone() };
    let make = |slots: u32| PrefetchBuffer::new(slots, &config.policy, hints.clone());
    let remote = (0..spec.book.partitions()).map(PartitionId).filter(|&partition| travels(partition));
    let remote_nodes: u64 =
        remote.map(|partition| spec.book.range(partition)).map(|range| range.end - range.start).sum();
    // Shards are not all of one size: an eighth more than the average is for the larger ones.
    let kept_nodes = shard.map_or(remote_nodes, |shard| (remote_nodes / u64::from(shard.ranks) * 9).div_ceil(8));
    let most = kept_nodes.min(u64::from(SLOTS_MAX)) as u32;
    let made = match config.buffer {
        BufferSize::Halo(share) => made_of((halo_nodes as f64 * share).min(f64::from(most)) as u32, make)?,
        BufferSize::Bytes(bytes) => {
            let ids = announced_nodes(config) as u64 * ANNOUNCED_NODE_BYTES;
            let books = |slots| {
                shard.map_or(Ok(0), |shard| Layout::new(slots, spec.row_bytes, shard.ranks).map(|l| l.books_bytes()))
            };
            made_within(bytes.saturating_sub(ids + staging_bytes as u64), spec.row_bytes as u64, most, make, books)?
        }
    };
    let why = match config.buffer {
        BufferSize::Halo(share) => format!("{} % of the {halo_nodes} halo nodes whose rows travel", share * 100.0),
        BufferSize::Bytes(bytes) => format!("what {bytes} bytes hold, of {kept_nodes} nodes whose rows travel"),
    };
    let Some(mut buffer) = made else {
        tracing::info!("{}: no buffer, for it would be {why}", spec.id);
        return Ok(Buffers::default());
    };
    let (slots, bytes) = (buffer.slots(), buffer.slots() as usize * spec.row_bytes);
    let part =
        shard.map(|shard| Part::new(shard.link, Layout::new(slots, spec.row_bytes, shard.ranks)?)).transpose()?;
    let region = match &part {
        None => transport.allocate(bytes, Access::Local)?,
        // SAFETY: nobody but this engine writes the slots.
        Some(part) => unsafe { transport.register(part.rows(), Access::Local) }?,
    };
    let (policy, shared) =
        (config.policy.name(), shard.map(|shard| format!(", shared by {} ranks of this host", shard.ranks)));
    let shared = shared.unwrap_or_default();
    tracing::info!("{}: a buffer of {slots} slots, {bytes} bytes of rows{shared}, policy {policy}: {why}", spec.id);
    let feed = config.controller.watches().then(|| buffer.watch(&config.policy, hints)).transpose()?;
    Ok(Buffers { buffer: Some(buffer), slots: Some(region), part, feed })
}

/// A buffer of so many slots; none of no slots.
fn made_of(slots: u32, make: impl Fn(u32) -> Result<PrefetchBuffer>) -> Result<Option<PrefetchBuffer>> {
    if slots == 0 { Ok(None) } else { make(slots).map(Some) }
}

/// A buffer whose rows, books and what is `beside` so many slots together take at most so many bytes; none where not even one slot fits. Books grow with the slots, though not
/// evenly, so it is made smaller until it fits.
fn made_within(
    bytes: u64,
    row_bytes: u64,
    most: u32,
    make: impl Fn(u32) -> Result<PrefetchBuffer>,
    beside: impl Fn(u32) -> Result<u64>,
) -> Result<Option<PrefetchBuffer>> {
    let mut slots = (bytes / row_bytes).min(u64::from(most)) as u32;
    while let Some(buffer) = made_of(slots, &make)? {
        let taken = u64::from(slots) * row_bytes + buffer.bytes() as u64 + beside(slots)?;
        if taken <= bytes {
            return Ok(Some(buffer));
        }
        // A tenth at least, so that this ends soon.
        let share = (bytes as f64 / taken as f64).min(0.9);
        slots = (f64::from(slots) * share) as u32;
    }
    Ok(None)
}

/// Node ids that may be announced: a buffer held to a number of bytes gives them a quarter of it.
pub(super) fn announced_nodes(config: &Config) -> usize {
    match config.buffer {
        BufferSize::Halo(_) => config.announced_nodes,
        BufferSize::Bytes(bytes) => config.announced_nodes.min((bytes / 4 / ANNOUNCED_NODE_BYTES) as usize),
    }
}

/// What the ranks of a host share, beside what the engine holds of it.
pub(super) struct Sharing {
    /// Where the others have asked for this rank's parts.
    pub link: Option<ShmTransport>,
    /// By table, for the I/O thread.
    pub exchanges: Vec<Option<Exchange>>,
}

/// What a rank says of its parts of the host's buffers.
#[derive(Default, Serialize, Deserialize)]
struct Parts {
    address: Vec<u8>,
    /// By table: the token, and how many slots it has; none where there is no buffer.
    parts: Vec<Option<(Vec<u8>, u32)>>,
}

/// Maps the parts of the host's other ranks, by table; none of a table of which one of them has no buffer. Collective over all ranks of the
/// job, whether they share or not.
pub(super) fn join_host(
    config: &Config,
    bootstrap: &dyn Bootstrap,
    sharing: &Sharing,
    peers: &Peers,
    parts: Vec<Option<Arc<Part>>>,
) -> Result<Vec<Option<Host>>> {
    let mine = Parts {
        address: sharing.link.as_ref().map(Transport::address).unwrap_or_default(),
        parts: parts.iter().map(|part| part.as_ref().map(|part| (part.token().to_vec(), part.slots()))).collect(),
    };
    let all = gather(config, bootstrap, &mine)?;
    let Some(link) = &sharing.link else { return Ok(vec![None; parts.len()]) };
    let ranks = || peers.sharing.iter().map(|&rank| &all[rank]);
    let addresses: Vec<Vec<u8>> = ranks().map(|rank| rank.address.clone()).collect();
    link.connect(&addresses)?;
    let place = peers.sharing.iter().position(|&rank| rank == bootstrap.rank().index());
    let join = |(table, own): (usize, Option<Arc<Part>>)| {
        let others: Option<Vec<_>> = ranks().map(|rank| rank.parts.get(table).cloned().flatten()).collect();
        let Some(((own, others), place)) = own.zip(others).zip(place) else { return Ok(None) };
        Host::join(own, link, place, &others).map(Some)
    };
    parts.into_iter().enumerate().map(join).collect()
}
