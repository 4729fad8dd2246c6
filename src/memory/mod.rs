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
pub(crate) mod near;
mod owned;
mod prefetch;
mod region;
mod rows;
mod table;
mod version;

pub use account::{PinCharge, Usage, limit_pinned, pin_charge, pin_limit, usage};
pub use owned::Pages;
pub(crate) use prefetch::prefetch;
pub use region::Region;
pub(crate) use rows::WeakRegisteredRows;
pub use rows::{RegisteredRows, Rows, RowsPool};
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

    /// A file's bytes, read-only and in place: a table that exists on disk, or in a tmpfs such as /dev/shm.
    ///
    /// The file must not be shortened while it is mapped, here or by peers of this host: the kernel ends a process with SIGBUS when it
    /// reads a page that its file has lost, and nothing in the process can turn that into an error.
    /// [`check_file`](Memory::check_file) finds a shortened file as long as nobody has read beyond its end.
    ///
    /// # Errors
    /// The file cannot be opened or mapped, is no regular file, or is empty.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        use rustix::fs::{FileType, Mode, OFlags, fstat, open};
        let path = path.as_ref();
        let bad = |cause: String| Error::TableFile { path: path.display().to_string(), cause };
        // A pipe without a writer would hold an open for ever.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let file = open(path, flags, Mode::empty())
            .map_err(|e| bad(format!("{e}; check that the file exists and is readable")))?;
        let stat = fstat(&file).map_err(|e| bad(e.to_string()))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(bad("it is not a regular file, which alone can be mapped".into()));
        }
        match file_bytes(&file)? {
            0 => Err(bad("it is empty".into())),
            bytes => Self::map(Arc::new(file), bytes),
        }
    }

    /// Whether the file behind file memory still has all its bytes; memory without a file always has.
    ///
    /// # Errors
    /// Says how many bytes are left: whoever reads the others is ended by SIGBUS.
    pub fn check_file(&self) -> Result<()> {
        let Backing::Mapped { file, .. } = &self.backing else { return Ok(()) };
        match file_bytes(file)? {
            left if left < self.bytes => Err(Error::argument(format!(
                "a mapped file was shortened from {} to {left} bytes: write a new file and rename it over the old one instead",
                self.bytes
            ))),
            _ => Ok(()),
        }
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
