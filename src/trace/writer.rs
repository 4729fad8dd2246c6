//! Writes a trace, event by event.

use super::block::BlockWriter;
use super::event::{put_event, put_minibatch};
use super::{Event, Header, Minibatch, damaged};
use crate::error::Result;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

/// A trace under construction. It is whole once [`Writer::finish`] has returned; left without it, it reads as cut off.
pub struct Writer<W> {
    blocks: BlockWriter<W>,
}

impl Writer<BufWriter<File>> {
    /// Begins a file; one of that name is overwritten.
    ///
    /// # Errors
    /// The header does not hold together, or the file cannot be made.
    pub fn create(path: &Path, header: &Header) -> Result<Self> {
        let name = path.display().to_string();
        let file = File::create(path).map_err(|cause| damaged(&name, 0, cause.to_string()))?;
        Self::new(BufWriter::new(file), &name, header)
    }
}

impl<W: Write> Writer<W> {
    /// Begins a trace in a sink, which errors call `name`.
    ///
    /// # Errors
    /// The header does not hold together, or the sink fails.
    pub fn new(sink: W, name: &str, header: &Header) -> Result<Self> {
        header.check()?;
        let mut blocks = BlockWriter::new(sink, name)?;
        header.put(blocks.raw())?;
        blocks.settle()?;
        Ok(Self { blocks })
    }

    /// Appends an event.
    ///
    /// # Errors
    /// The sink fails.
    pub fn event(&mut self, event: &Event) -> Result<()> {
        put_event(self.blocks.raw(), Some(event));
        self.blocks.settle()
    }

    /// As [`Writer::event`], of a minibatch.
    ///
    /// # Errors
    /// The sink fails.
    pub fn minibatch(&mut self, minibatch: &Minibatch) -> Result<()> {
        put_minibatch(self.blocks.raw(), minibatch);
        self.blocks.settle()
    }

    /// Hands over what is there, so that it can be read even if the rest never comes. Blocks that are not full compress less.
    ///
    /// # Errors
    /// The sink fails.
    pub fn flush(&mut self) -> Result<()> {
        self.blocks.flush()
    }

    /// Ends the trace and gives the sink back.
    ///
    /// # Errors
    /// The sink fails.
    pub fn finish(mut self) -> Result<W> {
        put_event(self.blocks.raw(), None);
        self.blocks.finish()
    }
}
