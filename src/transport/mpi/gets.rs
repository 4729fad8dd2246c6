//! How rows become MPI calls.
//!
//! Two choices make four forms: one `MPI_Get` a run of adjacent rows or one for the whole batch, and a row counted in bytes or as a type
//! of its own. Which is fastest differs by more than ten times between libraries and between row sizes, so it is measured at start-up.

use crate::mpi::{Handle, check};
use crate::transport::Destination;
use ::mpi::ffi;
use std::ffi::c_int;

/// Whether a batch is one call or many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Batching {
    /// One get a run of adjacent rows.
    Plain,
    /// One get a batch, with a type that lists where the rows are.
    Hindexed,
}

/// How a row is described.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unit {
    /// As so many bytes.
    Bytes,
    /// As one element of a contiguous type.
    Row,
}

/// One way to issue a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Form {
    pub(super) batching: Batching,
    pub(super) unit: Unit,
}

/// Every form there is.
pub(super) const FORMS: [Form; 4] = [
    Form { batching: Batching::Plain, unit: Unit::Bytes },
    Form { batching: Batching::Plain, unit: Unit::Row },
    Form { batching: Batching::Hindexed, unit: Unit::Bytes },
    Form { batching: Batching::Hindexed, unit: Unit::Row },
];

/// Rows of one peer's part of a window, and where they go.
#[derive(Clone, Copy)]
pub(super) struct Gets<'a> {
    pub(super) window: ffi::MPI_Win,
    pub(super) peer: c_int,
    /// From the beginning of the peer's part to its row 0.
    pub(super) offset: usize,
    pub(super) row_bytes: usize,
    pub(super) rows: &'a [u64],
    pub(super) places: &'a [u32],
    pub(super) destination: Destination,
}

impl Gets<'_> {
    /// Rows from `at` on that are adjacent on both sides.
    fn run(&self, at: usize) -> usize {
        let follows = |i: &usize| self.rows[*i] == self.rows[i - 1] + 1 && self.places[*i] == self.places[i - 1] + 1;
        let adjacent =
            (at + 1..self.rows.len()).take_while(|i| self.destination.stride == self.row_bytes && follows(i));
        1 + adjacent.count()
    }

    /// Whether the rows land one after another.
    fn lands_packed(&self) -> bool {
        self.destination.stride == self.row_bytes && self.places.windows(2).all(|pair| pair[1] == pair[0] + 1)
    }

    fn source(&self, at: usize) -> ffi::MPI_Aint {
        (self.offset + self.rows[at] as usize * self.row_bytes) as ffi::MPI_Aint
    }

    fn landing(&self, at: usize) -> usize {
        self.places[at] as usize * self.destination.stride
    }
}

/// Issues batches; holds the lists and types that they need, so that a batch allocates nothing of ours.
#[derive(Default)]
pub(super) struct Issuer {
    sources: Vec<ffi::MPI_Aint>,
    landings: Vec<ffi::MPI_Aint>,
    /// A committed type for each size of row seen.
    row_types: Vec<(usize, Handle<ffi::MPI_Datatype>)>,
}

/// Sizes of rows that an issuer keeps types for; a job has a few tables.
const ROW_TYPES_MAX: usize = 16;

impl Issuer {
    /// Starts the gets of a batch, which a flush of the peer completes.
    ///
    /// # Safety
    /// Rows lie in the peer's part of the window and places in the destination; the destination is valid for writes of whole rows at these
    /// places, and nobody else touches them, until the flush; `rows.len() * row_bytes` fits a C int.
    pub(super) unsafe fn issue(&mut self, form: Form, gets: &Gets<'_>) -> Result<(), String> {
        let (element, each) = self.element(form.unit, gets.row_bytes)?;
        match form.batching {
            // SAFETY: the caller's promise.
            Batching::Plain => unsafe { plain(gets, element, each) },
            // SAFETY: as above.
            Batching::Hindexed => unsafe { self.hindexed(gets, element, each) },
        }
    }

    /// The type that a row is counted in, and how many of it a row is.
    fn element(&mut self, unit: Unit, row_bytes: usize) -> Result<(ffi::MPI_Datatype, c_int), String> {
        // SAFETY: a constant of the library.
        let byte = unsafe { ffi::RSMPI_UINT8_T };
        let each = c_int::try_from(row_bytes).map_err(|_| format!("rows of {row_bytes} bytes are too long for MPI"))?;
        if unit == Unit::Bytes {
            return Ok((byte, each));
        }
        if let Some((_, row)) = self.row_types.iter().find(|(known, _)| *known == row_bytes) {
            return Ok((row.get(), 1));
        }
        if self.row_types.len() == ROW_TYPES_MAX {
            free(&mut self.row_types.swap_remove(0).1.0);
        }
        let mut row = byte;
        // SAFETY: makes a new type, which is freed with the issuer.
        unsafe {
            check(ffi::MPI_Type_contiguous(each, byte, &mut row), "MPI_Type_contiguous")?;
            check(ffi::MPI_Type_commit(&mut row), "MPI_Type_commit")?;
        }
        self.row_types.push((row_bytes, Handle(row)));
        Ok((row, 1))
    }

    /// # Safety
    /// As [`issue`](Self::issue).
    unsafe fn hindexed(&mut self, gets: &Gets<'_>, element: ffi::MPI_Datatype, each: c_int) -> Result<(), String> {
        let count = gets.rows.len();
        self.sources.clear();
        self.sources.extend((0..count).map(|at| gets.source(at)));
        let mut sources = indexed(&self.sources, element, each)?;
        let got = if gets.lands_packed() {
            let base = gets.destination.base.wrapping_add(gets.landing(0));
            // SAFETY: the caller's promise; a packed landing is its places from the first on.
            unsafe { get(gets, base, each * count as c_int, element, 0, 1, sources) }
        } else {
            self.landings.clear();
            self.landings.extend((0..count).map(|at| gets.landing(at) as ffi::MPI_Aint));
            indexed(&self.landings, element, each).and_then(|mut landings| {
                // SAFETY: the caller's promise.
                let got = unsafe { get(gets, gets.destination.base, 1, landings, 0, 1, sources) };
                free(&mut landings);
                got
            })
        };
        // MPI keeps what a get under way needs of it.
        free(&mut sources);
        got
    }
}

impl Drop for Issuer {
    fn drop(&mut self) {
        self.row_types.drain(..).for_each(|(_, mut row)| free(&mut row.0));
    }
}

/// # Safety
/// As [`Issuer::issue`].
unsafe fn plain(gets: &Gets<'_>, element: ffi::MPI_Datatype, each: c_int) -> Result<(), String> {
    let mut at = 0;
    while at < gets.rows.len() {
        let run = gets.run(at);
        let (base, count) = (gets.destination.base.wrapping_add(gets.landing(at)), each * run as c_int);
        // SAFETY: the caller's promise; a run is adjacent on both sides.
        unsafe { get(gets, base, count, element, gets.source(at), count, element) }?;
        at += run;
    }
    Ok(())
}

/// A committed type of `each` elements at each of the displacements.
fn indexed(at: &[ffi::MPI_Aint], element: ffi::MPI_Datatype, each: c_int) -> Result<ffi::MPI_Datatype, String> {
    let mut list = element;
    // SAFETY: the list has as many displacements as said, and MPI copies them.
    unsafe {
        let code = ffi::MPI_Type_create_hindexed_block(at.len() as c_int, each, at.as_ptr(), element, &mut list);
        check(code, "MPI_Type_create_hindexed_block")?;
        check(ffi::MPI_Type_commit(&mut list), "MPI_Type_commit")?;
    }
    Ok(list)
}

fn free(kind: &mut ffi::MPI_Datatype) {
    // SAFETY: a type made here and freed once; a failure leaks it.
    unsafe { ffi::MPI_Type_free(kind) };
}

/// # Safety
/// As [`Issuer::issue`].
unsafe fn get(
    gets: &Gets<'_>,
    base: *mut u8,
    count: c_int,
    kind: ffi::MPI_Datatype,
    at: ffi::MPI_Aint,
    target_count: c_int,
    target_kind: ffi::MPI_Datatype,
) -> Result<(), String> {
    // SAFETY: the caller's promise.
    let code = unsafe { ffi::MPI_Get(base.cast(), count, kind, gets.peer, at, target_count, target_kind, gets.window) };
    check(code, "MPI_Get")
}
