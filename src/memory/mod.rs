//! Memory that rows live in, and what makes it readable by peers.
//!
//! A [`Memory`] is bytes with an owner; a [`Region`] is memory that a transport has registered. The bytes are reached by raw
//! pointers only: peers and devices read and write them behind the compiler's back, so a `&[u8]` over them would be a lie.

use crate::error::{Error, Result};
use rustix::fd::{AsRawFd, OwnedFd};
use std::any::Any;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::Arc;

mod account;
mod available;
pub mod copy;
mod owned;
mod prefetch;
mod region;
mod rows;
mod table;
mod version;

pub use account::{Usage, usage};
pub use owned::Pages;
pub(crate) use prefetch::prefetch;
pub use region::Region;
pub use rows::{Rows, RowsPool};
pub use table::FeatureTable;
pub use version::Version;

/// Who may reach a region from outside the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Nobody: the memory is a destination of this rank's own gets.
    Local,
    /// Peers may read it.
    RemoteRead,
}

/// Bytes with an owner, at an address that does not move.
#[derive(Debug)]
pub struct Memory {
    base: NonNull<u8>,
    bytes: usize,
    backing: Backing,
}

#[derive(Debug)]
enum Backing {
    /// Our own mapping of a sealed memory file.
    Owned(owned::Mapping),
    /// A read-only mapping of a file, or of a peer's memory file.
    Mapped {
        file: Arc<OwnedFd>,
        #[expect(dead_code, reason = "held for its Drop")]
        map: memmap2::Mmap,
    },
    /// Somebody else's bytes, alive as long as this is held.
    Borrowed(#[expect(dead_code, reason = "held for its Drop")] Arc<dyn Any + Send + Sync>),
}

// SAFETY: the pointer is an address of memory that lives as long as the value; synchronising access is the users' contract.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    /// Fresh zeroed memory, really allocated: where there is not enough left this is an error, never a SIGBUS later.
    ///
    /// # Errors
    /// The machine or a control group has less left, or the system refuses; the message says what to do.
    pub fn allocate(bytes: usize) -> Result<Self> {
        Self::allocate_with(bytes, Pages::default())
    }

    /// As [`allocate`](Memory::allocate), with a say in the pages that back it. What the system does not grant is done without and
    /// warned of once.
    ///
    /// # Errors
    /// As [`allocate`](Memory::allocate).
    pub fn allocate_with(bytes: usize, pages: Pages) -> Result<Self> {
        let (base, mapping) = owned::allocate(bytes, pages)?;
        Ok(Self { base, bytes, backing: Backing::Owned(mapping) })
    }

    /// A file's bytes, read-only and in place: a table that exists on disk, or in a tmpfs such as /dev/shm. The file must not be
    /// shortened while it is mapped.
    ///
    /// # Errors
    /// The file cannot be opened or mapped, or is empty.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        use rustix::fs::{Mode, OFlags, open};
        let file = open(path.as_ref(), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).map_err(|e| Error::Memory {
            operation: "open a file of",
            bytes: 0,
            remedy: "check that the file exists and is readable",
            source: e.into(),
        })?;
        let bytes = file_bytes(&file)?;
        Self::map(Arc::new(file), bytes)
    }

    /// The first `bytes` of a file or of a peer's memory file, mapped read-only.
    pub(crate) fn map(file: Arc<OwnedFd>, bytes: usize) -> Result<Self> {
        let failed = |source| Error::Memory {
            operation: "map",
            bytes,
            remedy: "check the file's size and the address-space limit (ulimit -v)",
            source,
        };
        let there = file_bytes(&file)?;
        if there < bytes || there == 0 {
            return Err(failed(std::io::Error::other(format!("the file has {there} bytes"))));
        }
        // SAFETY: the mapping is reached through raw pointers only, so a concurrent writer breaks no reference; shortening is
        // excluded by a seal, or, for plain files, by the contract of `open`.
        let map = unsafe { memmap2::MmapOptions::new().len(there).map(file.as_raw_fd()) }.map_err(failed)?;
        let base = NonNull::new(map.as_ptr().cast_mut()).expect("a mapping is never at address 0");
        Ok(Self { base, bytes, backing: Backing::Mapped { file, map } })
    }

    /// Somebody else's bytes, kept alive by `owner`.
    ///
    /// # Safety
    /// `base..base + bytes` is readable (and writable, where it will be a destination) as long as `owner` lives.
    pub unsafe fn borrow(base: NonNull<u8>, bytes: usize, owner: Arc<dyn Any + Send + Sync>) -> Self {
        Self { base, bytes, backing: Backing::Borrowed(owner) }
    }

    /// The first byte.
    pub fn base(&self) -> *mut u8 {
        self.base.as_ptr()
    }

    /// Number of bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The file behind owned or file memory, to be passed to peers on this host.
    pub fn file(&self) -> Option<&Arc<OwnedFd>> {
        match &self.backing {
            Backing::Owned(mapping) => Some(mapping.file()),
            Backing::Mapped { file, .. } => Some(file),
            Backing::Borrowed(_) => None,
        }
    }

    /// Whether rows may be written into it by this process.
    pub fn is_writable(&self) -> bool {
        !matches!(self.backing, Backing::Mapped { .. })
    }

    /// Whether it is our own allocation, whose file can never shrink under a peer.
    pub fn is_sealed(&self) -> bool {
        matches!(self.backing, Backing::Owned(_))
    }
}

fn file_bytes(file: &OwnedFd) -> Result<usize> {
    let stat = rustix::fs::fstat(file).map_err(|e| Error::Memory {
        operation: "map",
        bytes: 0,
        remedy: "check that it is a regular file",
        source: e.into(),
    })?;
    usize::try_from(stat.st_size).map_err(|_| Error::argument("the file's size does not fit this machine's addresses"))
}
