//! How rows become MPI calls.
//!
//! One `MPI_Get` a run of adjacent rows, or one for many rows with a type that lists them. Which is faster differs between libraries and
//! between row sizes, so it is known or measured at start-up.

use crate::mpi::check;
use crate::transport::Destination;
use crate::transport::batch::runs;
use ::mpi::ffi;
use std::ffi::c_int;

/// One way to issue a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// One get a run of adjacent rows.
    Plain,
    /// One get for up to [`PART_ROWS_MAX`] rows.
    Hindexed,
}

/// Every form there is.
pub(super) const FORMS: [Form; 2] = [Form::Plain, Form::Hindexed];

/// Rows that are issued together, and of one list: what a library makes of it should stay in the cache near the core. Open MPI gains a twentieth by it over one list for
/// 10,000 rows, MPICH the half.
const PART_ROWS_MAX: usize = 512;

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
    /// Whether the rows land one after another.
    fn lands_packed(&self) -> bool {
        self.destination.stride == self.row_bytes && self.places.windows(2).all(|pair| pair[1] == pair[0] + 1)
    }

    /// What rows are listed in: MPICH copies the rows of a list element by element, so that words take an eighth of the time of bytes.
    fn unit(&self) -> Unit {
        let sizes = [self.row_bytes, self.destination.stride, self.destination.base as usize];
        // SAFETY: constants of the library.
        let (long, short) = unsafe { (ffi::RSMPI_UINT64_T, ffi::RSMPI_UINT32_T) };
        let units = [Unit { kind: long, bytes: 8 }, Unit { kind: short, bytes: 4 }];
        let fits = |unit: &Unit| sizes.iter().all(|size| size.is_multiple_of(unit.bytes));
        units.into_iter().find(fits).unwrap_or(Unit { kind: byte(), bytes: 1 })
    }

    fn source(&self, row: u64) -> ffi::MPI_Aint {
        (self.offset + row as usize * self.row_bytes) as ffi::MPI_Aint
    }

    fn landing(&self, place: u32) -> usize {
        place as usize * self.destination.stride
    }
}

/// An element of rows.
#[derive(Clone, Copy)]
struct Unit {
    kind: ffi::MPI_Datatype,
    bytes: usize,
}

/// Issues batches; holds the lists that they need, so that a batch allocates nothing of ours.
#[derive(Default)]
pub(super) struct Issuer {
    sources: Vec<ffi::MPI_Aint>,
    landings: Vec<ffi::MPI_Aint>,
}

impl Issuer {
    /// Starts the gets of a batch, which a flush of the peer completes. Calls `each_part` before each part of it, since issuing many
    /// gets may itself wait for the owner.
    ///
    /// # Safety
    /// Rows lie in the peer's part of the window and places in the destination; the destination is valid for writes of whole rows at these
    /// places, and nobody else touches them, until the flush; `rows.len() * row_bytes` fits a C int.
    pub(super) unsafe fn issue(
        &mut self,
        form: Form,
        gets: &Gets<'_>,
        mut each_part: impl FnMut(),
    ) -> Result<(), String> {
        for (rows, places) in gets.rows.chunks(PART_ROWS_MAX).zip(gets.places.chunks(PART_ROWS_MAX)) {
            each_part();
            let part = Gets { rows, places, ..*gets };
            match form {
                // SAFETY: a part of what the caller promises.
                Form::Plain => unsafe { plain(&part) },
                // SAFETY: as above.
                Form::Hindexed => unsafe { self.listed(&part) },
            }?;
        }
        Ok(())
    }

    /// # Safety
    /// As [`issue`](Self::issue).
    unsafe fn listed(&mut self, gets: &Gets<'_>) -> Result<(), String> {
        let (count, unit) = (gets.rows.len(), gets.unit());
        let each = (gets.row_bytes / unit.bytes) as c_int;
        self.sources.clear();
        self.sources.extend(gets.rows.iter().map(|&row| gets.source(row)));
        let mut sources = list(&self.sources, each, unit.kind)?;
        let got = if gets.lands_packed() {
            let base = gets.destination.base.wrapping_add(gets.landing(gets.places[0]));
            // SAFETY: the caller's promise; a packed landing is its places from the first on.
            unsafe { get(gets, base, each * count as c_int, unit.kind, 0, 1, sources) }
        } else {
            self.landings.clear();
            self.landings.extend(gets.places.iter().map(|&place| gets.landing(place) as ffi::MPI_Aint));
            list(&self.landings, each, unit.kind).and_then(|mut landings| {
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

/// # Safety
/// As [`Issuer::issue`].
unsafe fn plain(gets: &Gets<'_>) -> Result<(), String> {
    let rows_max = if gets.destination.stride == gets.row_bytes { gets.rows.len() } else { 1 };
    for run in runs(gets.rows, gets.places, rows_max) {
        let base = gets.destination.base.wrapping_add(gets.landing(run.place));
        let bytes = (gets.row_bytes * run.rows) as c_int;
        // SAFETY: the caller's promise; a run is adjacent on both sides.
        unsafe { get(gets, base, bytes, byte(), gets.source(run.row), bytes, byte()) }?;
    }
    Ok(())
}

fn byte() -> ffi::MPI_Datatype {
    // SAFETY: a constant of the library.
    unsafe { ffi::RSMPI_UINT8_T }
}

/// A committed type of a row, of `each` elements, at each of the displacements.
fn list(at: &[ffi::MPI_Aint], each: c_int, element: ffi::MPI_Datatype) -> Result<ffi::MPI_Datatype, String> {
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
