//! Numbers that are either in this process's memory or in a file that all ranks map.
//!
//! Everything downstream sees a slice, so the graph that was just generated and the one that the launcher prepared run the same code.

use anyhow::{Context, Result, ensure};
use bytemuck::Pod;
use memmap2::Mmap;
use std::fs::File;
use std::marker::PhantomData;
use std::ops::Deref;
use std::path::Path;
use std::sync::Arc;

/// A read-only array, owned or mapped; a clone of a mapped array shares the mapping.
#[derive(Clone)]
pub enum Array<T: Pod> {
    /// In this process's memory.
    Owned(Arc<Vec<T>>),
    /// In a mapped file.
    Mapped(Mapped<T>),
}

/// A whole file as an array of little-endian numbers.
#[derive(Clone)]
pub struct Mapped<T: Pod> {
    // None for an empty file, which cannot be mapped.
    map: Option<Arc<Mmap>>,
    element: PhantomData<T>,
}

const _: () = assert!(cfg!(target_endian = "little"), "the file formats here are little-endian and mapped as they are");

impl<T: Pod> Array<T> {
    /// Map a file that must be exactly `bytes` long.
    ///
    /// # Errors
    /// The file cannot be opened or mapped, or has another length.
    pub fn map(path: &Path, bytes: u64) -> Result<Self> {
        let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
        let found = file.metadata().with_context(|| format!("cannot stat {}", path.display()))?.len();
        ensure!(
            found == bytes,
            "{} has {found} bytes, not {bytes}: it is truncated or from another run",
            path.display()
        );
        ensure!(bytes.is_multiple_of(size_of::<T>() as u64), "{}: {bytes} bytes are not whole numbers", path.display());
        if bytes == 0 {
            return Ok(Self::Mapped(Mapped { map: None, element: PhantomData }));
        }
        // SAFETY: the file belongs to a prepared graph, which is written under another name, renamed when complete, and never
        // written again; this is the crate's documented condition for a mapping to be sound.
        let map = unsafe { Mmap::map(&file) }.with_context(|| format!("cannot map {}", path.display()))?;
        Ok(Self::Mapped(Mapped { map: Some(Arc::new(map)), element: PhantomData }))
    }
}

impl<T: Pod> Deref for Array<T> {
    type Target = [T];

    #[inline]
    fn deref(&self) -> &[T] {
        match self {
            Self::Owned(values) => values,
            // A mapping begins on a page, so the cast can only fail on a length that `map` has refused.
            Self::Mapped(Mapped { map: Some(map), .. }) => bytemuck::cast_slice(map),
            Self::Mapped(Mapped { map: None, .. }) => &[],
        }
    }
}

impl<T: Pod> From<Vec<T>> for Array<T> {
    fn from(values: Vec<T>) -> Self {
        Self::Owned(Arc::new(values))
    }
}
