//! Memory that rows live in, and what makes it readable by peers.
//!
//! A [`Memory`] is bytes with an owner; a [`Region`] is memory that a transport has registered. The bytes are reached by raw
//! pointers only: peers and devices read and write them behind the compiler's back, so a `&[u8]` over them would be a lie.

use crate::error::{Error, Result};
use rustix::fd::OwnedFd;
use std::any::Any;
use std::ptr::NonNull;
use std::sync::Arc;

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
    Owned { file: Arc<OwnedFd>, mapped: usize },
    /// Somebody else's bytes, alive as long as this is held.
    Borrowed(#[expect(dead_code, reason = "held for its Drop")] Arc<dyn Any + Send + Sync>),
}

// SAFETY: the pointer is an address of memory that lives as long as the value; synchronising access is the users' contract.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    /// Fresh zeroed memory, really allocated: where there is none left this is an error, never a SIGBUS later.
    ///
    /// # Errors
    /// The system refuses; the message says what to do.
    pub fn allocate(bytes: usize) -> Result<Self> {
        use rustix::fs::{FallocateFlags, MemfdFlags, SealFlags, fallocate, fcntl_add_seals, ftruncate, memfd_create};
        use rustix::mm::{MapFlags, ProtFlags, mmap};
        let failed = |operation, source: rustix::io::Errno| Error::Memory {
            operation,
            bytes,
            remedy: "free memory, or ask for less",
            source: source.into(),
        };
        let mapped = bytes.max(1);
        let file =
            memfd_create("rudder", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).map_err(|e| failed("create", e))?;
        ftruncate(&file, mapped as u64).map_err(|e| failed("allocate", e))?;
        fallocate(&file, FallocateFlags::empty(), 0, mapped as u64).map_err(|e| failed("allocate", e))?;
        fcntl_add_seals(&file, SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL).map_err(|e| failed("seal", e))?;
        // SAFETY: a new shared mapping at an address of the kernel's choice aliases nothing that exists.
        let base = unsafe {
            mmap(std::ptr::null_mut(), mapped, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED, &file, 0)
        }
        .map_err(|e| failed("map", e))?;
        let base = NonNull::new(base.cast()).expect("mmap never returns address 0 on success");
        Ok(Self { base, bytes, backing: Backing::Owned { file: Arc::new(file), mapped } })
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

    /// The sealed memory file behind owned memory, to be passed to peers on this host.
    pub fn file(&self) -> Option<&Arc<OwnedFd>> {
        match &self.backing {
            Backing::Owned { file, .. } => Some(file),
            Backing::Borrowed(_) => None,
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if let Backing::Owned { mapped, .. } = self.backing {
            // SAFETY: the mapping was made by `allocate` with this length, and no pointer into it outlives its owner by contract.
            // A failure can only mean a wrong length, and leaks.
            let _ = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), mapped) };
        }
    }
}

/// Memory that a transport has registered. Dropping it deregisters first and frees the bytes after.
pub struct Region {
    // Field order is load-bearing: what deregisters is dropped before the bytes are freed.
    registration: Box<dyn Any + Send + Sync>,
    memory: Arc<Memory>,
    token: Vec<u8>,
}

impl Region {
    /// A region whose `registration` ends with its drop; for transports.
    pub(crate) fn new(registration: Box<dyn Any + Send + Sync>, memory: Arc<Memory>, token: Vec<u8>) -> Self {
        Self { registration, memory, token }
    }

    /// The bytes.
    pub fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }

    /// The serialised address and keys that [`Transport::import`](crate::transport::Transport::import) takes at the peers; empty
    /// where the access is [`Access::Local`].
    pub fn token(&self) -> &[u8] {
        &self.token
    }
}

impl std::fmt::Debug for Region {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Region").field("memory", &self.memory).finish_non_exhaustive()
    }
}
