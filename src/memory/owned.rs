//! Our own memory: sealed memory files, so that same-host peers can map it and nobody can shrink it under them.
//!
//! Every page is had before the memory is handed out: a page that could not be had later would be a SIGBUS. It is had through the mapping, since
//! advice about huge pages belongs to a mapping and counts only where that is what asks for them.

use super::account;
use super::available::available;
use crate::error::{Error, Result};
use rustix::fd::OwnedFd;
use rustix::fs::{FallocateFlags, MemfdFlags, SealFlags, fallocate, fcntl_add_seals, ftruncate, memfd_create};
use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mlock, mmap};
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
    /// Of these, what the account has been told of: nothing until all pages are had.
    counted: usize,
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
        account::subtract(self.counted, self.locked);
        // By the C library and not by the system call alone: whoever caches registrations by address (an MPI, a libfabric) watches its `munmap`
        // for those that end.
        // SAFETY: the mapping was made by `map` with this length, and no pointer into it outlives its owner by contract. A failure
        // can only mean a wrong length, and leaks.
        let _ = unsafe { libc::munmap(self.base.as_ptr().cast(), self.mapped) };
    }
}

pub(super) fn allocate(bytes: usize, pages: Pages) -> Result<(NonNull<u8>, Mapping)> {
    if pages.huge && bytes >= SMALL {
        // Reserved pages are scarce and often absent, so that failing to get them is no news; the fallback speaks where it fails too.
        if let Ok(mapping) = map(bytes, Backing::Reserved) {
            return Ok((mapping.base, mapping));
        }
    }
    let transparent = pages.huge && bytes >= SMALL;
    let mut mapping = map(bytes, if transparent { Backing::Transparent } else { Backing::Small })?;
    if pages.locked && bytes >= SMALL {
        lock(&mut mapping);
    }
    Ok((mapping.base, mapping))
}

/// Where pages come from.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Backing {
    /// The huge pages that the administrator has set aside.
    Reserved,
    /// Huge pages as far as the kernel has them, small ones elsewhere.
    Transparent,
    Small,
}

fn map(bytes: usize, backing: Backing) -> Result<Mapping> {
    let failed = |operation, source: Errno| refused(operation, bytes, source.into());
    let (page, kind) = match backing {
        Backing::Reserved => (HUGE_PAGE, MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB),
        Backing::Transparent | Backing::Small => (SMALL_PAGE, MemfdFlags::empty()),
    };
    let mapped = bytes
        .max(1)
        .checked_next_multiple_of(page)
        .filter(|mapped| isize::try_from(*mapped).is_ok())
        .ok_or_else(|| failed("allocate", Errno::OVERFLOW))?;
    if backing != Backing::Reserved {
        // Reserved huge pages are a store of their own, which refuses by itself.
        check_available(mapped).map_err(|source| refused("allocate", bytes, source))?;
    }
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING | kind;
    let file = memfd_create("rudder", flags).map_err(|e| failed("create", e))?;
    ftruncate(&file, mapped as u64).map_err(|e| failed("allocate", e))?;
    // SAFETY: a new shared mapping at an address of the kernel's choice aliases nothing that exists.
    let base: *mut c_void =
        unsafe { mmap(std::ptr::null_mut(), mapped, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED, &file, 0) }
            .map_err(|e| failed("map", e))?;
    let base = NonNull::new(base.cast()).expect("mmap never returns address 0 on success");
    let mut mapping = Mapping { base, mapped, counted: 0, locked: 0, file: Arc::new(file) };
    if backing == Backing::Transparent {
        ask_for_transparent_huge_pages(&mapping);
    }
    populate(&mapping).map_err(|e| failed("allocate", e))?;
    mapping.counted = mapped;
    // Reserved pages are never swapped out, asked for or not.
    mapping.locked = if backing == Backing::Reserved { mapped } else { 0 };
    account::add(mapping.counted, mapping.locked);
    // Peers that receive the file can map it for reading only; kernels before 5.1 do not know that seal.
    let _ = fcntl_add_seals(&*mapping.file, SealFlags::FUTURE_WRITE);
    fcntl_add_seals(&*mapping.file, SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL)
        .map_err(|e| failed("seal", e))?;
    Ok(mapping)
}

/// Has every page of the mapping, or says which way the system refused.
fn populate(mapping: &Mapping) -> rustix::io::Result<()> {
    // SAFETY: populating a range that this mapping owns changes no contents.
    match unsafe { madvise(mapping.base.as_ptr().cast(), mapping.mapped, Advice::LinuxPopulateWrite) } {
        // The kernel's word for what an access would have met with a SIGBUS: the file has no room for the page.
        Err(Errno::FAULT) => Err(Errno::NOSPC),
        // Kernels before 5.14 do not know this advice; the file's own way to have pages is always of small ones.
        Err(Errno::INVAL) => fallocate(&*mapping.file, FallocateFlags::empty(), 0, mapping.mapped as u64),
        outcome => outcome,
    }
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

#[cfg(test)]
mod tests {
    //! Goal: a page that cannot be had is an error and no SIGBUS, and all pages are there before the first access.
    //! Method: a mapping that is longer than its file stands for a store without room; the kernel's own table says which pages are there.

    use super::*;

    #[test]
    fn a_page_that_cannot_be_had_is_an_error() {
        let mapping = map(8 * SMALL_PAGE, Backing::Small).unwrap();
        let file = memfd_create("short", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&file, SMALL_PAGE as u64).unwrap();
        // SAFETY: replaces the pages of a mapping that nobody looks at, in the same range.
        let base = unsafe {
            let flags = MapFlags::SHARED | MapFlags::FIXED;
            let access = ProtFlags::READ | ProtFlags::WRITE;
            mmap(mapping.base.as_ptr().cast(), mapping.mapped, access, flags, &file, 0)
        };
        assert_eq!(base.unwrap(), mapping.base.as_ptr().cast());
        assert_eq!(populate(&mapping), Err(Errno::NOSPC));
    }

    #[test]
    fn all_pages_are_there_before_the_first_access() {
        for backing in [Backing::Small, Backing::Transparent] {
            let mapping = map(3 * HUGE_PAGE, backing).unwrap();
            let blocks = rustix::fs::fstat(&*mapping.file).unwrap().st_blocks;
            assert!(blocks as usize * 512 >= 3 * HUGE_PAGE, "{blocks} blocks");
            let mut resident = vec![0u8; mapping.mapped / SMALL_PAGE];
            // SAFETY: the range is mapped, and the table has a byte for each of its pages.
            let asked = unsafe { libc::mincore(mapping.base.as_ptr().cast(), mapping.mapped, resident.as_mut_ptr()) };
            assert_eq!(asked, 0);
            assert!(resident.iter().all(|&page| page & 1 == 1));
        }
    }

    #[test]
    fn huge_pages_result_where_the_system_gives_them() {
        let setting = std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/shmem_enabled").unwrap_or_default();
        let given = ["[always]", "[within_size]", "[advise]", "[force]"].iter().any(|word| setting.contains(word));
        let mapping = map(8 * HUGE_PAGE, Backing::Transparent).unwrap();
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let start = format!("{:x}-", mapping.base.as_ptr() as usize);
        let entry = smaps.split_once(&start).expect("the mapping is listed").1;
        let kib = entry.lines().find_map(|line| line.strip_prefix("ShmemPmdMapped:")).unwrap().trim();
        assert!(!given || kib != "0 kB", "{kib} under {setting}");
    }
}
