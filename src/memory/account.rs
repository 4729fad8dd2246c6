//! What this process holds for rows, for reports and limits.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

static OWNED: AtomicUsize = AtomicUsize::new(0);
static OWNED_PEAK: AtomicUsize = AtomicUsize::new(0);
static LOCKED: AtomicUsize = AtomicUsize::new(0);

/// Bytes that the process owns through [`Memory::allocate`](super::Memory::allocate).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Allocated now.
    pub bytes: usize,
    /// The most that was ever allocated at once.
    pub peak_bytes: usize,
    /// Of those now allocated, the ones that the kernel may not swap out.
    pub locked_bytes: usize,
}

/// What is allocated now, and was at most.
pub fn usage() -> Usage {
    Usage { bytes: OWNED.load(Relaxed), peak_bytes: OWNED_PEAK.load(Relaxed), locked_bytes: LOCKED.load(Relaxed) }
}

pub(super) fn add(bytes: usize, locked_bytes: usize) {
    let now = OWNED.fetch_add(bytes, Relaxed) + bytes;
    OWNED_PEAK.fetch_max(now, Relaxed);
    LOCKED.fetch_add(locked_bytes, Relaxed);
}

pub(super) fn subtract(bytes: usize, locked_bytes: usize) {
    OWNED.fetch_sub(bytes, Relaxed);
    LOCKED.fetch_sub(locked_bytes, Relaxed);
}
