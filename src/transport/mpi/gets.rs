//! How rows become MPI calls.
//!
//! One `MPI_Get` a run of adjacent rows, or one for many rows with a type that lists them. Which is faster differs between libraries and
//! between row sizes, so it is measured at start-up.

use crate::mpi::check;
use crate::transport::Destination;
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
        let count = gets.rows.len();
        self.sources.clear();
        self.sources.extend((0..count).map(|at| gets.source(at)));
        let mut sources = list(&self.sources, gets.row_bytes)?;
        let got = if gets.lands_packed() {
            let base = gets.destination.base.wrapping_add(gets.landing(0));
            // SAFETY: the caller's promise; a packed landing is its places from the first on.
            unsafe { get(gets, base, (gets.row_bytes * count) as c_int, byte(), 0, 1, sources) }
        } else {
            self.landings.clear();
            self.landings.extend((0..count).map(|at| gets.landing(at) as ffi::MPI_Aint));
            list(&self.landings, gets.row_bytes).and_then(|mut landings| {
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
    let mut at = 0;
    while at < gets.rows.len() {
        let run = gets.run(at);
        let (base, bytes) = (gets.destination.base.wrapping_add(gets.landing(at)), (gets.row_bytes * run) as c_int);
        // SAFETY: the caller's promise; a run is adjacent on both sides.
        unsafe { get(gets, base, bytes, byte(), gets.source(at), bytes, byte()) }?;
        at += run;
    }
    Ok(())
}

fn byte() -> ffi::MPI_Datatype {
    // SAFETY: a constant of the library.
    unsafe { ffi::RSMPI_UINT8_T }
}

/// A committed type of a row at each of the displacements.
fn list(at: &[ffi::MPI_Aint], row_bytes: usize) -> Result<ffi::MPI_Datatype, String> {
    let mut list = byte();
    // SAFETY: the list has as many displacements as said, and MPI copies them.
    unsafe {
        let (count, each) = (at.len() as c_int, row_bytes as c_int);
        let code = ffi::MPI_Type_create_hindexed_block(count, each, at.as_ptr(), byte(), &mut list);
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
