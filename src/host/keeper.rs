//! What a rank shows its neighbours of its own slots.

use super::layout::{Side, WAYS};
use super::{Host, Part};
use crate::buffer::Board;
use crate::id::{NodeId, Slot};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering, fence};

/// The writer of a part's heads and index; the only one.
pub(crate) struct Keeper {
    own: Arc<Part>,
}

impl Keeper {
    /// The keeper of this rank's part, in which no slot has a row yet.
    pub(crate) fn new(host: &Host) -> Self {
        let own = host.own.clone();
        own.side().heads().iter().for_each(|head| head.version.store(1, Ordering::Relaxed));
        Self { own }
    }

    fn bucket<'a>(side: &Side<'a>, node: NodeId) -> (&'a [AtomicU64], u32) {
        let (bucket, tag) = side.layout.bucket(node);
        (&side.index()[bucket * WAYS..][..WAYS], tag)
    }
}

/// How the index says that a node with this tag is in a slot.
fn entry(tag: u32, slot: Slot) -> u64 {
    u64::from(tag) << 32 | u64::from(slot.0 + 1)
}

impl Board for Keeper {
    fn publish(&mut self, slot: Slot, node: NodeId) {
        let side = self.own.side();
        let head = &side.heads()[slot.index()];
        head.node.store(node.0, Ordering::Relaxed);
        let version = head.version.load(Ordering::Relaxed) | 1;
        // Release: whoever sees this version sees the row and the node.
        head.version.store(version.wrapping_add(1), Ordering::Release);
        let (ways, tag) = Self::bucket(&side, node);
        // In a full bucket the row goes unseen: neighbours fetch it.
        if let Some(way) = ways.iter().find(|way| way.load(Ordering::Relaxed) == 0) {
            way.store(entry(tag, slot), Ordering::Release);
        }
    }

    fn withdraw(&mut self, slot: Slot, node: NodeId) {
        let side = self.own.side();
        let version = &side.heads()[slot.index()].version;
        version.store(version.load(Ordering::Relaxed) | 1, Ordering::Relaxed);
        // No byte of the next row is written before the version says so.
        fence(Ordering::SeqCst);
        let (ways, tag) = Self::bucket(&side, node);
        if let Some(way) = ways.iter().find(|way| way.load(Ordering::Relaxed) == entry(tag, slot)) {
            way.store(0, Ordering::Relaxed);
        }
    }
}
