//! Memory that MPI allocates and every rank of a communicator can read.

use crate::mpi::{Comm, Handle, check};
use ::mpi::ffi;
use std::ffi::{c_int, c_void};
use std::ptr::null_mut;
use std::time::Duration;

/// Bytes before the rows of each rank's part: the version word, and room to keep the rows aligned as the part is.
pub(super) const HEADER_BYTES: usize = 256;

/// Parts are multiples of this, the largest page of common machines: where a part is no whole number of pages, MPICH 4.0 reads the parts
/// after it on the same host at wrong addresses.
const PAGES: usize = 64 << 10;

/// What `MPI_WIN_MODEL` says where a store of the owner is not seen by gets; the same number in MPICH, its relatives and Open MPI.
const SEPARATE: c_int = 1;

/// One window, with a part of each rank; freed by [`free`](Window::free), which is collective.
pub(super) struct Window {
    raw: Handle<ffi::MPI_Win>,
    base: Handle<*mut u8>,
    /// Bytes of rows in the part of each rank.
    pub(super) bytes: Vec<u64>,
}

impl Window {
    /// Zeroed memory for `bytes` bytes of rows here, and what each other rank asks for. Collective.
    pub(super) fn allocate(comm: &Comm, bytes: usize, timeout: Duration) -> Result<Self, String> {
        let all = comm.all_gather(&(bytes as u64).to_le_bytes(), timeout)?;
        let size = |bytes: &Vec<u8>| bytes.as_slice().try_into().map(u64::from_le_bytes);
        let sizes: Vec<u64> =
            all.iter().map(size).collect::<Result<_, _>>().map_err(|_| "the ranks are out of step".to_owned())?;
        let pages = bytes.checked_add(HEADER_BYTES).and_then(|total| total.checked_next_multiple_of(PAGES));
        let total = pages.and_then(|total| ffi::MPI_Aint::try_from(total).ok());
        let total = total.ok_or_else(|| format!("{bytes} bytes are more than an address space"))?;
        let mut base: *mut u8 = null_mut();
        // SAFETY: all ranks call it, as the sizes have shown; MPI writes the address to `base`, whatever its type says.
        let raw = unsafe {
            let mut raw = ffi::RSMPI_WIN_NULL;
            let address: *mut c_void = (&raw mut base).cast();
            check(
                ffi::MPI_Win_allocate(total, 1, ffi::RSMPI_INFO_NULL, comm.raw(), address, &mut raw),
                "MPI_Win_allocate",
            )?;
            raw
        };
        // SAFETY: the window and its memory were just made; no rank reads it before it has learned of it.
        unsafe {
            check(ffi::MPI_Win_set_errhandler(raw, ffi::RSMPI_ERRORS_RETURN), "MPI_Win_set_errhandler")?;
            require_unified(raw)?;
            base.write_bytes(0, total as usize);
            // Nobody ever takes an exclusive lock, so that no lock need travel.
            check(ffi::MPI_Win_lock_all(ffi::MPI_MODE_NOCHECK as c_int, raw), "MPI_Win_lock_all")?;
        }
        Ok(Self { raw: Handle(raw), base: Handle(base), bytes: sizes })
    }

    pub(super) fn raw(&self) -> ffi::MPI_Win {
        self.raw.get()
    }

    /// This rank's part: the version word, then, from [`HEADER_BYTES`] on, the rows.
    pub(super) fn base(&self) -> *mut u8 {
        self.base.get()
    }

    /// Frees the window. Collective, once nobody reads.
    pub(super) fn free(self) {
        let mut raw = self.raw.get();
        // SAFETY: all ranks have let go of it; a failure leaks it.
        unsafe {
            ffi::MPI_Win_unlock_all(raw);
            ffi::MPI_Win_free(&mut raw);
        }
    }
}

/// # Safety
/// `window` is a window.
unsafe fn require_unified(window: ffi::MPI_Win) -> Result<(), String> {
    let (mut model, mut there): (*mut c_int, c_int) = (null_mut(), 0);
    // SAFETY: the attribute is a pointer to an int, which MPI writes to `model`.
    let code =
        unsafe { ffi::MPI_Win_get_attr(window, ffi::MPI_WIN_MODEL as c_int, (&raw mut model).cast(), &mut there) };
    check(code, "MPI_Win_get_attr")?;
    // SAFETY: where it is there, it points to an int that lives as long as the window.
    if there == 0 || model.is_null() || unsafe { *model } == SEPARATE {
        return Err(
            "this MPI keeps a private copy of windows (MPI_WIN_SEPARATE), so that gets would miss what owners write: \
                    use one with the unified memory model"
                .into(),
        );
    }
    Ok(())
}
