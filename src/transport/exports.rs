//! The regions that a rank serves to requests of its peers, by number.

use crate::memory::{Memory, Version};
use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

/// A region that peers may read.
#[derive(Clone)]
pub(super) struct Exported {
    pub(super) memory: Arc<Memory>,
    pub(super) version: Version,
}

#[derive(Default)]
struct ExportTable {
    last: u64,
    regions: HashMap<u64, Exported>,
}

/// The regions that peers may read.
#[derive(Default)]
pub(super) struct Exports {
    table: RwLock<ExportTable>,
}

impl Exports {
    /// Offers memory to the peers until the registration is dropped.
    pub(super) fn add(self: &Arc<Self>, memory: Arc<Memory>, version: Version) -> Registration {
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        table.last += 1;
        let number = table.last;
        table.regions.insert(number, Exported { memory, version: version.clone() });
        Registration { exports: Arc::clone(self), number, version, process: std::process::id() }
    }

    /// A region, where it holds that version. Its memory, held by the reader, outlives a registration that ends meanwhile.
    pub(super) fn find(&self, region: u64, version: u64) -> Option<Exported> {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        table.regions.get(&region).filter(|exported| exported.version.get() == version).cloned()
    }
}

/// The right of peers to read a region; ends with its drop. Numbers are never used twice.
pub(super) struct Registration {
    exports: Arc<Exports>,
    number: u64,
    version: Version,
    /// Whose registration this is: to a forked child it is nothing.
    process: u32,
}

impl Registration {
    pub(super) fn number(&self) -> u64 {
        self.number
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        if std::process::id() != self.process {
            // The parent's threads may have held the lock when the child was forked, and the version page is the parent's too.
            return;
        }
        // A thread that answers a request holds the region beyond its removal: this is how it hears of the end.
        self.version.set(Version::RETIRED);
        let ended = self.exports.table.write().unwrap_or_else(PoisonError::into_inner).regions.remove(&self.number);
        // Freed outside the lock: unmapping gigabytes takes a while.
        drop(ended);
    }
}
