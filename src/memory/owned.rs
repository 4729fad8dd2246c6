//! Our own memory: sealed memory files, so that same-host peers can map it and nobody can shrink it under them.

use super::account;
use super::available::available;
use crate::error::{Error, Result};
use rustix::fd::OwnedFd;
use rustix::fs::{FallocateFlags, MemfdFlags, SealFlags, fallocate, fcntl_add_seals, ftruncate, memfd_create};
use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mlock, mmap, munmap};
use std::ffi::c_void;
use std::io;
use std::ptr::NonNull;
use std::sync::{Arc, Once};

const SMALL_PAGE: usize = 4 << 10;
const HUGE_PAGE: usize = 2 << 20;
/// Below this, large pages and locking change nothing that can be measured.
const SMALL: usize = HUGE_PAGE;

/// What to ask of the pages that back an allocation; allocations below 2 MiB ignore it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pages {
    /// Ask for 2 MiB pages: a random gather over 4 KiB pages misses the TLB on nearly every row.
    pub huge: bool,
    /// Lock them into memory, as a registration with a NIC would.
    pub locked: bool,
}

impl Default for Pages {
    fn default() -> Self {
        Self { huge: true, locked: true }
    }
}

/// A mapped memory file, unmapped on drop.
#[derive(Debug)]
pub(super) struct Mapping {
    base: NonNull<u8>,
    mapped: usize,
    locked: usize,
    file: Arc<OwnedFd>,
}

// SAFETY: the mapping is an address range that belongs to this value; no access happens through it but unmapping.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    pub(super) fn file(&self) -> &Arc<OwnedFd> {
        &self.file
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        account::subtract(self.mapped, self.locked);
        // SAFETY: the mapping was made by `map` with this length, and no pointer into it outlives its owner by contract. A failure
        // can only mean a wrong length, and leaks.
        let _ = unsafe { munmap(self.base.as_ptr().cast(), self.mapped) };
    }
}

pub(super) fn allocate(bytes: usize, pages: Pages) -> Result<(NonNull<u8>, Mapping)> {
    if pages.huge && bytes >= SMALL {
        // Reserved pages are scarce and often absent, so that failing to get them is no news; the fallback speaks where it fails too.
        if let Ok(mapping) = map(bytes, HUGE_PAGE, MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB) {
            return Ok((mapping.base, mapping));
        }
    }
    let mut mapping = map(bytes, SMALL_PAGE, MemfdFlags::empty())?;
    if bytes >= SMALL {
        if pages.huge {
            ask_for_transparent_huge_pages(&mapping);
        }
        if pages.locked {
            lock(&mut mapping);
        }
    }
    Ok((mapping.base, mapping))
}

fn map(bytes: usize, page: usize, kind: MemfdFlags) -> Result<Mapping> {
    let failed = |operation, source: Errno| refused(operation, bytes, source.into());
    let mapped = bytes
        .max(1)
        .checked_next_multiple_of(page)
        .filter(|mapped| isize::try_from(*mapped).is_ok())
        .ok_or_else(|| failed("allocate", Errno::OVERFLOW))?;
    if page == SMALL_PAGE {
        // Reserved huge pages are a store of their own, which refuses by itself.
        check_available(mapped).map_err(|source| refused("allocate", bytes, source))?;
    }
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING | kind;
    let file = memfd_create("rudder", flags).map_err(|e| failed("create", e))?;
    ftruncate(&file, mapped as u64).map_err(|e| failed("allocate", e))?;
    fallocate(&file, FallocateFlags::empty(), 0, mapped as u64).map_err(|e| failed("allocate", e))?;
    // SAFETY: a new shared mapping at an address of the kernel's choice aliases nothing that exists.
    let base: *mut c_void = unsafe {
        let flags = MapFlags::SHARED | MapFlags::POPULATE;
        mmap(std::ptr::null_mut(), mapped, ProtFlags::READ | ProtFlags::WRITE, flags, &file, 0)
    }
    .map_err(|e| failed("map", e))?;
    let base = NonNull::new(base.cast()).expect("mmap never returns address 0 on success");
    account::add(mapped, 0);
    let mapping = Mapping { base, mapped, locked: 0, file: Arc::new(file) };
    // Peers that receive the file can map it for reading only; kernels before 5.1 do not know that seal.
    let _ = fcntl_add_seals(&*mapping.file, SealFlags::FUTURE_WRITE);
    fcntl_add_seals(&*mapping.file, SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL)
        .map_err(|e| failed("seal", e))?;
    Ok(mapping)
}

fn refused(operation: &'static str, bytes: usize, source: io::Error) -> Error {
    let remedy = "free memory, ask for less, or raise the job's memory limit (cgroup memory.max, ulimit -v)";
    Error::Memory { operation, bytes, remedy, source }
}

fn check_available(bytes: usize) -> io::Result<()> {
    match available() {
        Some(left) if left.bytes < bytes as u64 => {
            Err(io::Error::new(io::ErrorKind::OutOfMemory, format!("{} has {} bytes left", left.by, left.bytes)))
        }
        _ => Ok(()),
    }
}

fn ask_for_transparent_huge_pages(mapping: &Mapping) {
    static WARNED: Once = Once::new();
    let setting = std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/shmem_enabled").unwrap_or_default();
    // SAFETY: advice about a range that this mapping owns changes no contents.
    let advised = unsafe { madvise(mapping.base.as_ptr().cast(), mapping.mapped, Advice::LinuxHugepage) };
    if advised.is_err() || setting.contains("[never]") || setting.contains("[deny]") {
        WARNED.call_once(|| {
            tracing::warn!(
                "no huge pages for {} bytes: reserve some (sysctl vm.nr_hugepages) or write 'advise' to \
                 /sys/kernel/mm/transparent_hugepage/shmem_enabled; random gathers are slower without",
                mapping.mapped
            );
        });
    }
}

fn lock(mapping: &mut Mapping) {
    static WARNED: Once = Once::new();
    // SAFETY: locking a range that this mapping owns changes no contents.
    match unsafe { mlock(mapping.base.as_ptr().cast(), mapping.mapped) } {
        Ok(()) => {
            mapping.locked = mapping.mapped;
            account::add(0, mapping.mapped);
        }
        Err(cause) => WARNED.call_once(|| {
            tracing::warn!(
                "cannot lock {} bytes ({cause}): raise RLIMIT_MEMLOCK (ulimit -l); rows may be swapped out until then",
                mapping.mapped
            );
        }),
    }
}
