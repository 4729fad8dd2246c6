//! Copying rows out of neighbours' slots while their keepers may give these to other nodes.

use super::Host;
use crate::memory::copy::{prefetch_row, rows_ahead};
use crate::pipeline::{SeenList, Sighting};
use crate::transport::Destination;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering, fence};

/// The threads' view of the neighbours' rows.
pub(crate) struct Reader {
    host: Host,
}

impl Reader {
    pub(crate) fn new(host: Host) -> Self {
        Self { host }
    }

    /// Copies what was seen to its places; what was gone by then goes to the list's [`lost`](SeenList::lost).
    ///
    /// # Safety
    /// The list's places are below the destination's, of a stride of at least the row's bytes, valid for writes, and nobody else touches them.
    pub(crate) unsafe fn copy(&self, list: &mut SeenList, to: Destination) {
        let row_bytes = self.host.own.layout.row_bytes;
        let ahead = rows_ahead(row_bytes);
        for at in 0..list.sightings.len() {
            if let Some(coming) = list.sightings.get(at + ahead)
                && let Some(row) = self.row(coming)
            {
                prefetch_row(row, row_bytes);
            }
            let (sighting, place) = (list.sightings[at], list.places[at]);
            // SAFETY: the caller's promise, passed on; the place is below the destination's places.
            let copied = unsafe { self.copy_one(&sighting, to.base.add(place as usize * to.stride), row_bytes) };
            if !copied {
                list.lost.push((list.nodes[at], place));
            }
        }
    }

    fn row(&self, seen: &Sighting) -> Option<*const u8> {
        let side = self.host.other(seen.neighbour as usize)?;
        (seen.slot.0 < side.layout.slots).then(|| side.row(seen.slot).cast_const())
    }

    /// Whether the row at `to` is the one that was seen.
    ///
    /// # Safety
    /// `to` is valid for writes of `row_bytes`.
    unsafe fn copy_one(&self, seen: &Sighting, to: *mut u8, row_bytes: usize) -> bool {
        let Some((side, row)) = self.host.other(seen.neighbour as usize).zip(self.row(seen)) else { return false };
        let version = &side.heads()[seen.slot.index()].version;
        // SAFETY: the slot is one of the part's, whose mapping is readable and outlives the call.
        unsafe { copy_words(row, to, row_bytes) };
        // Reads of the row come before this one of the version.
        fence(Ordering::Acquire);
        version.load(Ordering::Relaxed) == seen.version
    }
}

/// Copies bytes that another process may be writing, in the widest units that both the address and the length allow.
///
/// # Safety
/// `from` is readable and `to` writable for `bytes`; they do not overlap.
unsafe fn copy_words(from: *const u8, to: *mut u8, bytes: usize) {
    macro_rules! copy_by {
        ($atomic:ty, $unit:ty) => {{
            let count = bytes / size_of::<$unit>();
            for at in 0..count {
                // SAFETY: within the bytes that the caller promises, aligned as was checked; an atomic read of memory that others write
                // races with nothing, and what it brings is thrown away unless the version has stood still.
                unsafe {
                    let unit = (*from.cast::<$atomic>().add(at)).load(Ordering::Relaxed);
                    to.cast::<$unit>().add(at).write_unaligned(unit);
                }
            }
        }};
    }
    let both = from.addr() | bytes;
    if both.is_multiple_of(8) {
        copy_by!(AtomicU64, u64);
    } else if both.is_multiple_of(4) {
        copy_by!(AtomicU32, u32);
    } else if both.is_multiple_of(2) {
        copy_by!(AtomicU16, u16);
    } else {
        copy_by!(AtomicU8, u8);
    }
}
