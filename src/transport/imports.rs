//! The regions of peers that a transport has imported, under its own numbers for them.

use super::RemoteRegion;
use crate::error::{Error, Result};
use crate::id::Rank;
use std::collections::HashMap;
use std::ops::{Deref, DerefMut};

/// Regions that one transport imports. A mapped one costs two of the 65,530 mappings that a process may have.
pub(super) const IMPORTS_MAX: usize = 16 << 10;

/// Which region of a peer: rank, the peer's own number, bytes.
type Key = (Rank, u64, u64);

/// A table of at most [`IMPORTS_MAX`] imported regions, each once; as a slice it is in the order of [`RemoteRegion::index`].
pub(super) struct Imports<T> {
    entries: Vec<T>,
    known: HashMap<Key, u32>,
}

impl<T> Default for Imports<T> {
    fn default() -> Self {
        Self { entries: Vec::new(), known: HashMap::new() }
    }
}

impl<T> Imports<T> {
    /// The region under the number that an earlier import gave it.
    pub(super) fn find(&self, peer: Rank, id: u64, bytes: u64) -> Option<RemoteRegion> {
        self.known.get(&(peer, id, bytes)).map(|&index| RemoteRegion { peer, index, bytes })
    }

    /// Numbers a region, and keeps what `entry` makes of that; a known one keeps its number and its entry.
    ///
    /// # Errors
    /// The table is full.
    pub(super) fn add(
        &mut self,
        peer: Rank,
        id: u64,
        bytes: u64,
        entry: impl FnOnce(RemoteRegion) -> T,
    ) -> Result<RemoteRegion> {
        if let Some(known) = self.find(peer, id, bytes) {
            return Ok(known);
        }
        if self.entries.len() >= IMPORTS_MAX {
            let remedy = "import fewer, larger regions";
            return Err(Error::Full { queue: "the table of imported regions", limit: IMPORTS_MAX, remedy });
        }
        let region = RemoteRegion { peer, index: self.entries.len() as u32, bytes };
        self.entries.push(entry(region));
        self.known.insert((peer, id, bytes), region.index);
        Ok(region)
    }
}

impl<T> Deref for Imports<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.entries
    }
}

impl<T> DerefMut for Imports<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.entries
    }
}

#[cfg(test)]
mod tests {
    //! Goal: a region has one number however often it is imported, and the table ends. Method: regions up to the limit, and again.

    use super::*;

    #[test]
    fn regions_are_numbered_once_and_the_table_ends() {
        let mut imports = Imports::default();
        for _ in 0..2 {
            for id in 0..IMPORTS_MAX as u64 {
                let region = imports.add(Rank(1), id, 8, |region| region).unwrap();
                assert_eq!((region.peer, u64::from(region.index), region.bytes), (Rank(1), id, 8));
                assert_eq!(imports[region.index as usize], region);
            }
        }
        assert_eq!(imports.len(), IMPORTS_MAX);
        assert!(matches!(imports.add(Rank(2), 0, 8, |region| region), Err(Error::Full { .. })));
    }
}
