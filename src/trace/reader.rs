//! Reads a trace, event by event.

use super::block::BlockReader;
use super::event::{Bounds, take_event};
use super::{Event, Header, damaged};
use crate::error::Result;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

/// The events of a trace, in order. Of a damaged one, all before the damage, then the error, which says at which byte the damage begins.
pub struct Reader<R> {
    blocks: BlockReader<R>,
    header: Header,
    bounds: Bounds,
    ended: bool,
}

impl Reader<BufReader<File>> {
    /// Opens a file.
    ///
    /// # Errors
    /// It cannot be opened, is no trace, or has a damaged header.
    pub fn open(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        let file = File::open(path).map_err(|cause| damaged(&name, 0, cause.to_string()))?;
        Self::new(BufReader::new(file), &name)
    }
}

impl<R: Read> Reader<R> {
    /// Reads a source, which errors call `name`.
    ///
    /// # Errors
    /// It is no trace, or has a damaged header.
    pub fn new(source: R, name: &str) -> Result<Self> {
        let mut blocks = BlockReader::new(source, name)?;
        let header = Header::take(&mut blocks)?;
        Ok(Self { blocks, bounds: header.bounds(), header, ended: false })
    }

    /// What the trace begins with.
    pub fn header(&self) -> &Header {
        &self.header
    }
}

impl<R: Read> Iterator for Reader<R> {
    type Item = Result<Event>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let event = take_event(&mut self.blocks, &self.bounds).transpose();
        self.ended = !matches!(event, Some(Ok(_)));
        event
    }
}
