//! One prefetch buffer for the ranks of a host: each keeps the rows of the nodes that hash to it, and reads the others' in place.
//!
//! A rank's part is one sealed memory file that it alone can write: the rows of its slots, a head a slot, an index from nodes to slots, and
//! its ends of the queues to its neighbours. Neighbours map it for reading. So nobody takes a lock, and a rank that dies, even in the
//! middle of a write, leaves behind memory that reads as it did before, or as a miss:
//! - A slot's head has a version, odd while there is no row to read. A reader takes the version, copies the row, and looks again: where the
//!   version has moved on the copy is void, and the row is fetched like any other.
//! - A rank tells the keepers of the nodes that its minibatches want and will want ([`Note`](crate::pipeline::Note)), and hands them the rows that it had to fetch, so
//!   that they can keep them for the price of a copy. These queues are bounded; what does not fit is dropped, which costs hits. Nobody is woken
//!   for them: a rank looks at what it was told whenever its I/O thread runs, as each gather of its own has it do.
//!
//! A part has four users, each with a handle of its own: the buffer's books ([`Keeper`]), the pipeline ([`Neighbourhood`]), the threads that copy
//! rows to their places ([`Reader`]), and the I/O thread ([`Exchange`]).

mod exchange;
mod keeper;
mod layout;
mod neighbourhood;
mod queue;
mod reader;
#[cfg(test)]
mod tests;

pub(crate) use exchange::{Exchange, Offered};
pub(crate) use keeper::Keeper;
pub(crate) use layout::Layout;
pub(crate) use neighbourhood::Neighbourhood;
pub(crate) use reader::Reader;

use crate::error::{Error, Result};
use crate::id::{NodeId, Rank};
use crate::memory::{Access, Memory, Region};
use crate::transport::Transport;
use layout::Side;
use std::ptr::NonNull;
use std::sync::Arc;

/// This rank's part: its memory, and where peers of the host can ask for it.
pub(crate) struct Part {
    region: Region,
    layout: Layout,
}

impl Part {
    /// A part of this shape, empty, that peers can import from `transport`.
    ///
    /// # Errors
    /// The memory cannot be had.
    pub(crate) fn new(transport: &dyn Transport, layout: Layout) -> Result<Arc<Self>> {
        let region = transport.allocate(layout.bytes(), Access::RemoteRead)?;
        Ok(Arc::new(Self { region, layout }))
    }

    /// What peers import it by.
    pub(crate) fn token(&self) -> &[u8] {
        self.region.token()
    }

    /// How many slots it has.
    pub(crate) fn slots(&self) -> u32 {
        self.layout.slots
    }

    /// The rows of the slots, as memory that keeps the part alive.
    pub(crate) fn rows(self: &Arc<Self>) -> Memory {
        let base = NonNull::new(self.side().rows()).expect("memory is never at address 0");
        let bytes = self.layout.slots as usize * self.layout.row_bytes;
        // SAFETY: the layout places so many bytes of rows within the region, which lives as long as the part.
        unsafe { Memory::borrow(base, bytes, self.clone()) }
    }

    fn side(&self) -> Side<'_> {
        Side::new(self.region.memory(), &self.layout)
    }
}

/// All parts of a host, as one of its ranks sees them.
#[derive(Clone)]
pub(crate) struct Host {
    own: Arc<Part>,
    /// By place among the ranks of the host; this rank's own is `None`.
    others: Arc<[Option<Other>]>,
    place: usize,
}

/// A neighbour's part, mapped for reading.
struct Other {
    memory: Arc<Memory>,
    layout: Layout,
}

impl Host {
    /// Maps the neighbours' parts: `tokens` and `slots` are those of the ranks of the host, in their order, which `transport` numbers its peers
    /// by; this rank has place `place`.
    ///
    /// # Errors
    /// A part cannot be mapped, or is smaller than its slots take.
    pub(crate) fn join(
        own: Arc<Part>,
        transport: &dyn Transport,
        place: usize,
        parts: &[(Vec<u8>, u32)],
    ) -> Result<Self> {
        let map = |at: usize, (token, slots): &(Vec<u8>, u32)| {
            let peer = Rank(at as u32);
            let layout = Layout::new(*slots, own.layout.row_bytes, own.layout.ranks)?;
            let region = transport.import(peer, token)?;
            let mapped = transport.mapped(region).filter(|mapped| mapped.memory.bytes() >= layout.bytes());
            let mapped = mapped.ok_or_else(|| Error::Token {
                peer,
                cause: format!("its part of the host's buffer has not the {} bytes of {slots} slots", layout.bytes()),
            })?;
            Ok(Other { memory: mapped.memory, layout })
        };
        let others = parts.iter().enumerate().map(|(at, part)| (at != place).then(|| map(at, part)).transpose());
        Ok(Self { others: others.collect::<Result<Vec<_>>>()?.into(), own, place })
    }

    /// Bytes of memory beside the rows.
    pub(crate) fn books_bytes(&self) -> u64 {
        self.own.layout.books_bytes()
    }

    /// How many ranks share.
    pub(crate) fn ranks(&self) -> u32 {
        self.own.layout.ranks
    }

    fn other(&self, place: usize) -> Option<Side<'_>> {
        let other = self.others.get(place)?.as_ref()?;
        Some(Side::new(&other.memory, &other.layout))
    }

    fn neighbours(&self) -> impl Iterator<Item = usize> {
        let own = self.place;
        (0..self.others.len()).filter(move |&place| place != own)
    }

    /// The place of the rank that keeps a node.
    fn keeper(&self, node: NodeId) -> usize {
        keeper_of(node, self.ranks())
    }
}

/// Well mixed: the upper half is a node's tag in the index, and says who keeps it; the lower half is its bucket.
fn hash(node: NodeId) -> u64 {
    let mut hash = node.0 ^ 0x9e37_79b9_7f4a_7c15;
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

/// Which of so many ranks of a host keeps a node.
pub(crate) fn keeper_of(node: NodeId, ranks: u32) -> usize {
    (((hash(node) >> 32) * u64::from(ranks)) >> 32) as usize
}
