//! What a channel has asked the provider for, and the batches that it belongs to.

use super::library::Descriptor;
use crate::error::TransferError;
use crate::transport::batch::{Run, runs};
use crate::transport::{BatchId, Completion, Destination, RowBatch};
use std::ops::Range;
use std::time::{Duration, Instant};

/// Rows of a usual batch: room for them is made at the start.
const ROWS_WARM: usize = 4096;

/// How the rows of a batch come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// Read by this side.
    Read,
    /// Packed and sent by the owner.
    Ask,
}

/// The bytes `offset..offset + bytes` of consecutive rows of a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) first: usize,
    pub(super) rows: usize,
    pub(super) offset: usize,
    pub(super) bytes: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Read,
    /// A read of the word that says which version the owner holds.
    Check,
    Ask,
}

/// One thing that the provider is asked for.
#[derive(Clone, Debug)]
pub(super) struct Operation {
    pub(super) kind: Kind,
    pub(super) batch: usize,
    pub(super) peer: usize,
    pub(super) part: Part,
    /// Of a request: what its reply names.
    pub(super) sequence: u64,
    /// The provider has its context, and its buffers.
    pub(super) in_use: bool,
    /// Nobody waits for it any more: its slot is free once it is not in use.
    pub(super) over: bool,
    /// When it was made, and when it was last posted.
    pub(super) made: Instant,
    pub(super) posted: Option<Instant>,
}

impl Operation {
    pub(super) fn unused() -> Self {
        Self {
            kind: Kind::Read,
            batch: 0,
            peer: 0,
            part: Part::default(),
            sequence: 0,
            in_use: false,
            over: true,
            made: Instant::now(),
            posted: None,
        }
    }
}

/// A batch that was posted and is not over.
pub(super) struct Posted {
    pub(super) id: BatchId,
    pub(super) live: bool,
    pub(super) way: Way,
    pub(super) peer: usize,
    /// Index of the imported region.
    pub(super) import: usize,
    pub(super) version: u64,
    pub(super) row_bytes: usize,
    pub(super) rows: Vec<u64>,
    pub(super) places: Vec<u32>,
    pub(super) destination: Destination,
    pub(super) descriptor: Descriptor,
    /// The first row, and byte of it, that no part was made of.
    next_row: usize,
    next_offset: usize,
    pub(super) parts_open: usize,
    /// The rows have ended and the version is to be read.
    pub(super) checking: bool,
    /// Times that the version may still be read.
    pub(super) checks_left: u8,
    /// Not before this.
    check_at: Option<Instant>,
    pub(super) failed: Option<TransferError>,
}

/// A refused read can cost the connection, with all that goes over it: the version then says whether the region is gone or the peer. It can
/// be had once the provider has connected anew.
const CHECKS_MAX: u8 = 9;
/// Wait before the second check; it doubles with each further one.
const CHECK_AGAIN_AFTER: Duration = Duration::from_millis(5);

impl Posted {
    pub(super) fn unused() -> Self {
        Self {
            id: BatchId::default(),
            live: false,
            way: Way::Read,
            peer: 0,
            import: 0,
            version: 0,
            row_bytes: 1,
            rows: Vec::with_capacity(ROWS_WARM),
            places: Vec::with_capacity(ROWS_WARM),
            destination: Destination { base: std::ptr::null_mut(), stride: 0, places: 0 },
            descriptor: Descriptor::NONE,
            next_row: 0,
            next_offset: 0,
            parts_open: 0,
            checking: false,
            checks_left: 0,
            check_at: None,
            failed: None,
        }
    }

    pub(super) fn begin(&mut self, batch: &RowBatch<'_>, rows: usize, way: Way, descriptor: Descriptor) {
        self.id = batch.id;
        self.live = true;
        self.way = way;
        self.peer = batch.region.peer.index();
        self.import = batch.region.index as usize;
        self.version = batch.version;
        self.row_bytes = batch.row_bytes;
        self.rows.clear();
        self.rows.extend_from_slice(&batch.rows[..rows]);
        self.places.clear();
        self.places.extend_from_slice(&batch.places[..rows]);
        self.destination = batch.destination;
        self.descriptor = descriptor;
        self.next_row = 0;
        self.next_offset = 0;
        self.parts_open = 0;
        self.checking = false;
        self.checks_left = CHECKS_MAX;
        self.check_at = None;
        self.failed = None;
    }

    /// The rows have ended: their version is to be read, at once or after a wait.
    pub(super) fn begin_check(&mut self) {
        let before = CHECKS_MAX - self.checks_left;
        self.check_at = (before > 0).then(|| Instant::now() + CHECK_AGAIN_AFTER * (1 << before));
        self.checks_left -= 1;
        self.checking = true;
    }

    /// Whether the version was in vain asked for so often that the connection must be taken for broken beyond the provider's own repair.
    pub(super) fn is_cut_off(&self) -> bool {
        self.checks_left == CHECKS_MAX / 2
    }

    /// Whether it is time to read the version.
    pub(super) fn is_check_due(&self) -> bool {
        self.checking && self.parts_open == 0 && self.check_at.is_none_or(|at| at <= Instant::now())
    }

    /// Whether parts are left to be made.
    pub(super) fn has_more(&self) -> bool {
        self.next_row < self.rows.len()
    }

    /// Whether its rows are reported part by part, or all at its end.
    pub(super) fn reports_parts(&self, bytes_max: usize) -> bool {
        self.way == Way::Ask && self.row_bytes <= bytes_max
    }

    /// The next part: as many rows as `rows_of` finds to fit one operation, or a piece of a row that is longer than `bytes_max`.
    pub(super) fn next_part(&mut self, bytes_max: usize, rows_of: impl Fn(&Self, usize) -> usize) -> Part {
        let (first, offset) = (self.next_row, self.next_offset);
        if self.row_bytes <= bytes_max {
            let rows = rows_of(self, first);
            self.next_row += rows;
            return Part { first, rows, offset: 0, bytes: self.row_bytes };
        }
        let bytes = bytes_max.min(self.row_bytes - offset);
        self.next_offset += bytes;
        if self.next_offset == self.row_bytes {
            (self.next_row, self.next_offset) = (first + 1, 0);
        }
        Part { first, rows: 1, offset, bytes }
    }

    /// No more parts are made; the rows that none was made of.
    pub(super) fn skip_rest(&mut self) -> Range<usize> {
        let rest = self.next_row..self.rows.len();
        (self.next_row, self.next_offset) = (self.rows.len(), 0);
        rest
    }

    /// Some rows in the runs that lie one after another at the owner and here.
    pub(super) fn runs(&self, rows: Range<usize>) -> impl Iterator<Item = Run> {
        let rows_max = if self.destination.stride == self.row_bytes { rows.len() } else { 1 };
        runs(&self.rows[rows.clone()], &self.places[rows], rows_max)
    }

    /// Where the row of a place, or a piece of it, goes.
    pub(super) fn landing(&self, place: u32, offset: usize) -> *mut u8 {
        self.destination.base.wrapping_add(place as usize * self.destination.stride + offset)
    }

    /// Copies packed rows, or packed pieces of them, to their places.
    ///
    /// # Safety
    /// The places of the part are lent to the caller, and not part of `packed`.
    pub(super) unsafe fn land(&self, part: Part, packed: &[u8]) {
        let mut places = &self.places[part.first..part.first + part.rows];
        let mut packed = packed;
        while let Some(&place) = places.first() {
            // Rows that lie one after another here are one copy.
            let follows = |&(i, &next): &(usize, &u32)| next as usize == place as usize + i;
            let run = if part.bytes == self.destination.stride {
                places.iter().enumerate().take_while(follows).count()
            } else {
                1
            };
            let (rows, rest) = packed.split_at(run * part.bytes);
            // SAFETY: this function's contract; the batch was found to lie within its destination.
            unsafe { std::ptr::copy_nonoverlapping(rows.as_ptr(), self.landing(place, part.offset), rows.len()) };
            (places, packed) = (&places[run..], rest);
        }
    }

    /// The end of some rows.
    pub(super) fn completion(&self, rows: Range<usize>, status: Result<(), TransferError>) -> Option<Completion> {
        let (first, count) = (rows.start as u32, rows.len() as u32);
        (count > 0).then_some(Completion { batch: self.id, first, count, status })
    }
}
