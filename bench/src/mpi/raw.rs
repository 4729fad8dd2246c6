//! The baselines: `MPI_Get` as a program would call it, from Rust and from C.

use super::contender::{Contender, bytes};
use super::content;
use super::wants::{Part, Wants};
use super::world::{Waiting, check};
use anyhow::{Context, Result};
use mpi::ffi;
use rudder::memory::Memory;
use std::ffi::{c_int, c_void};
use std::ptr::null_mut;

/// Parts of a window are multiples of this: where one is no whole number of pages, MPICH 4.0 reads those after it at wrong addresses.
const PAGES: usize = 64 << 10;

unsafe extern "C" {
    fn rudder_twin_plain(
        window: ffi::MPI_Win,
        owner: c_int,
        rows: *const u64,
        count: c_int,
        row_bytes: c_int,
        landing: *mut u8,
    ) -> c_int;
    fn rudder_twin_hindexed(
        window: ffi::MPI_Win,
        owner: c_int,
        rows: *const u64,
        count: c_int,
        row_bytes: c_int,
        landing: *mut u8,
        offsets: *mut ffi::MPI_Aint,
    ) -> c_int;
    fn rudder_twin_flush(window: ffi::MPI_Win, owner: c_int) -> c_int;
}

/// A window with every rank's table, in a shared epoch from its beginning to its end.
struct Window(ffi::MPI_Win);

impl Window {
    /// Allocates and fills a table on every rank. Collective.
    fn new(rank: u32, table_bytes: usize) -> Result<Self> {
        let mut base: *mut u8 = null_mut();
        let size = table_bytes.next_multiple_of(PAGES);
        // SAFETY: all ranks call it; MPI writes the address to `base`, and nobody reads the memory before they have met again.
        unsafe {
            let mut window = ffi::RSMPI_WIN_NULL;
            let (world, address): (_, *mut c_void) = (ffi::RSMPI_COMM_WORLD, (&raw mut base).cast());
            let code =
                ffi::MPI_Win_allocate(size as ffi::MPI_Aint, 1, ffi::RSMPI_INFO_NULL, world, address, &mut window);
            check(code, "MPI_Win_allocate")
                .context("this MPI makes no window here; some need --thread-level serialized for one (docs/mpi.md)")?;
            content::fill(rank, std::slice::from_raw_parts_mut(base, table_bytes));
            check(ffi::MPI_Win_lock_all(0, window), "MPI_Win_lock_all")?;
            check(ffi::MPI_Win_sync(window), "MPI_Win_sync")?;
            Ok(Self(window))
        }
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        // SAFETY: every rank lets go of its window at the same point, when nobody reads any more; a failure leaks it.
        unsafe {
            ffi::MPI_Win_unlock_all(self.0);
            ffi::MPI_Win_free(&mut self.0);
        }
    }
}

/// How rows become calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// One `MPI_Get` of bytes a row.
    Plain,
    /// One `MPI_Get` with a datatype of byte blocks, made for the gather.
    Hindexed,
}

/// Who calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caller {
    Rust,
    C,
}

/// Raw gets of one form.
pub struct Raw {
    window: Window,
    form: Form,
    caller: Caller,
    landing: Memory,
    offsets: Vec<ffi::MPI_Aint>,
}

impl Raw {
    /// Allocates and fills its own table on every rank: the second to read the rows of a turn in a shared one would find them in the
    /// caches. Collective.
    pub fn new(rank: u32, form: Form, caller: Caller, table_bytes: usize, landing_bytes: usize) -> Result<Self> {
        let window = Window::new(rank, table_bytes)?;
        Ok(Self { window, form, caller, landing: Memory::allocate(landing_bytes)?, offsets: Vec::new() })
    }

    /// Its name in tables and documents.
    pub const fn label(form: Form, caller: Caller) -> &'static str {
        match (form, caller) {
            (Form::Plain, Caller::Rust) => "MPI_Get plain",
            (Form::Hindexed, Caller::Rust) => "MPI_Get hindexed",
            (Form::Plain, Caller::C) => "C MPI_Get plain",
            (Form::Hindexed, Caller::C) => "C MPI_Get hindexed",
        }
    }

    /// # Safety
    /// The rows lie in the owner's table, and the landing has room for them.
    unsafe fn plain(&self, owner: c_int, rows: &[u64], row_bytes: usize, landing: *mut u8) -> Result<()> {
        let count = row_bytes as c_int;
        for (place, row) in rows.iter().enumerate() {
            let at = (*row as usize * row_bytes) as ffi::MPI_Aint;
            // SAFETY: the caller's promise.
            let code = unsafe {
                let (kind, to) = (ffi::RSMPI_UINT8_T, landing.add(place * row_bytes).cast());
                ffi::MPI_Get(to, count, kind, owner, at, count, kind, self.window.0)
            };
            check(code, "MPI_Get")?;
        }
        Ok(())
    }

    /// # Safety
    /// As [`plain`](Self::plain).
    unsafe fn hindexed(&mut self, owner: c_int, rows: &[u64], row_bytes: usize, landing: *mut u8) -> Result<()> {
        self.offsets.clear();
        self.offsets.extend(rows.iter().map(|row| (*row as usize * row_bytes) as ffi::MPI_Aint));
        let (count, total) = (rows.len() as c_int, (rows.len() * row_bytes) as c_int);
        // SAFETY: the caller's promise; MPI copies the list.
        unsafe {
            let kind = ffi::RSMPI_UINT8_T;
            let mut list = kind;
            let (each, at) = (row_bytes as c_int, self.offsets.as_ptr());
            check(
                ffi::MPI_Type_create_hindexed_block(count, each, at, kind, &mut list),
                "MPI_Type_create_hindexed_block",
            )?;
            check(ffi::MPI_Type_commit(&mut list), "MPI_Type_commit")?;
            check(ffi::MPI_Get(landing.cast(), total, kind, owner, 0, 1, list, self.window.0), "MPI_Get")?;
            check(ffi::MPI_Type_free(&mut list), "MPI_Type_free")
        }
    }

    /// # Safety
    /// As [`plain`](Self::plain).
    unsafe fn twin(&mut self, owner: c_int, rows: &[u64], row_bytes: usize, landing: *mut u8) -> Result<()> {
        self.offsets.resize(rows.len(), 0);
        let (at, count, each) = (rows.as_ptr(), rows.len() as c_int, row_bytes as c_int);
        // SAFETY: the caller's promise; there is room for as many offsets as rows.
        let code = unsafe {
            match self.form {
                Form::Plain => rudder_twin_plain(self.window.0, owner, at, count, each, landing),
                Form::Hindexed => {
                    rudder_twin_hindexed(self.window.0, owner, at, count, each, landing, self.offsets.as_mut_ptr())
                }
            }
        };
        check(code, "the C twin's MPI_Get")
    }

    fn flush(&self, part: &Part) -> Result<()> {
        let owner = part.owner as c_int;
        // SAFETY: the window lives, in its epoch.
        let code = unsafe {
            match self.caller {
                Caller::Rust => ffi::MPI_Win_flush(owner, self.window.0),
                Caller::C => rudder_twin_flush(self.window.0, owner),
            }
        };
        check(code, "MPI_Win_flush")
    }
}

impl Contender for Raw {
    fn name(&self) -> &str {
        Self::label(self.form, self.caller)
    }

    fn owners(&self) -> Waiting {
        Waiting::InMpi
    }

    fn start(&mut self, wants: &Wants) -> Result<()> {
        let row_bytes = wants.row_bytes;
        for part in &wants.parts {
            let (rows, owner) = (&wants.rows[part.places.clone()], part.owner as c_int);
            let landing = self.landing.base().wrapping_add(part.places.start * row_bytes);
            // SAFETY: rows were drawn from the tables', and the landing, which is this value's, has a place for each until the flush.
            unsafe {
                match (self.caller, self.form) {
                    (Caller::C, _) => self.twin(owner, rows, row_bytes, landing),
                    (Caller::Rust, Form::Plain) => self.plain(owner, rows, row_bytes, landing),
                    (Caller::Rust, Form::Hindexed) => self.hindexed(owner, rows, row_bytes, landing),
                }
            }?;
        }
        Ok(())
    }

    fn finish(&mut self, wants: &Wants) -> Result<()> {
        wants.parts.iter().try_for_each(|part| self.flush(part))
    }

    fn landed(&self) -> &[u8] {
        bytes(&self.landing)
    }
}
