//! Which version of a table a region holds.
//!
//! The version lives in a page of its own beside the region, because one-sided readers ask no CPU of the owner: a peer that maps the
//! rows maps this page too and compares before and after it copies, so that a table that changes under a reader is found out.

use super::{Memory, Pages};
use crate::error::Result;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering, fence};

/// The version of a region, shared with whoever maps the same page.
#[derive(Clone, Debug)]
pub struct Version {
    page: Arc<Memory>,
}

impl Version {
    /// What a region shows once its owner has let go of it; no reader's version equals it.
    pub const RETIRED: u64 = u64::MAX;

    /// A new page that says version 0.
    ///
    /// # Errors
    /// The page cannot be allocated.
    pub fn new() -> Result<Self> {
        Ok(Self { page: Arc::new(Memory::allocate_with(8, Pages { huge: false, locked: false })?) })
    }

    /// A page that a peer has passed; `None` where it is too small.
    pub(crate) fn mapped(page: Arc<Memory>) -> Option<Self> {
        (page.bytes() >= 8).then_some(Self { page })
    }

    /// The present version.
    pub fn get(&self) -> u64 {
        self.cell().load(Ordering::Acquire)
    }

    /// The present version, ordered after all reads of rows before it.
    pub fn get_after_reading(&self) -> u64 {
        fence(Ordering::Acquire);
        self.cell().load(Ordering::Relaxed)
    }

    /// Says that the rows are, from now on, of this version: called before the first of them changes. Does nothing on a peer's page.
    pub fn set(&self, version: u64) {
        if self.page.is_writable() {
            self.cell().store(version, Ordering::Relaxed);
            fence(Ordering::SeqCst);
        }
    }

    /// The page, to be passed to peers on this host.
    pub(crate) fn page(&self) -> &Arc<Memory> {
        &self.page
    }

    fn cell(&self) -> &AtomicU64 {
        // SAFETY: the page is at least 8 bytes, aligned as a mapping is, alive as long as `self`, and only ever accessed atomically;
        // a store to a read-only page is excluded by `set`.
        unsafe { AtomicU64::from_ptr(self.page.base().cast()) }
    }
}
