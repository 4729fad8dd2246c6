//! What a transport is measured beside: the same bytes by the plainest means there are.

use super::rows;
use anyhow::Result;
use rudder::memory::{Memory, copy};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::rc::Rc;

/// A plain way to the bytes of a batch.
pub(super) trait Floor {
    fn name(&self) -> &'static str;

    /// Brings the rows, or as many bytes, to the landing.
    fn gather(&mut self, rows: &[u64], landing: &Memory) -> Result<()>;
}

/// The owner's rows once more, within this process.
pub(super) struct Twin {
    memory: Memory,
    row_bytes: usize,
}

impl Twin {
    pub(super) fn new(rows: usize, row_bytes: usize) -> Result<Rc<Self>> {
        let memory = Memory::allocate(rows * row_bytes)?;
        rows::fill(&memory, rows, row_bytes);
        Ok(Rc::new(Self { memory, row_bytes }))
    }
}

/// The same rows by memcpy, one after the other.
pub(super) struct Memcpy(pub(super) Rc<Twin>);

impl Floor for Memcpy {
    fn name(&self) -> &'static str {
        "memcpy"
    }

    fn gather(&mut self, rows: &[u64], landing: &Memory) -> Result<()> {
        let Twin { memory, row_bytes } = &*self.0;
        for (place, &row) in rows.iter().enumerate() {
            // SAFETY: rows were drawn from the table's, and the landing has a place for each.
            unsafe {
                let from = memory.base().add(row as usize * row_bytes);
                std::ptr::copy_nonoverlapping(from, landing.base().add(place * row_bytes), *row_bytes);
            }
        }
        Ok(())
    }
}

/// The same rows by the library's own gather kernel: what it has over [`Memcpy`] is no merit of a transport.
pub(super) struct Kernel {
    pub(super) twin: Rc<Twin>,
    pub(super) places: Vec<u32>,
}

impl Floor for Kernel {
    fn name(&self) -> &'static str {
        "kernel"
    }

    fn gather(&mut self, rows: &[u64], landing: &Memory) -> Result<()> {
        let Twin { memory, row_bytes } = &*self.twin;
        // SAFETY: rows were drawn from the table's, the landing has a place for each, and the two were allocated apart.
        unsafe { copy::gather(memory.base(), *row_bytes, rows, &self.places, landing.base(), *row_bytes) };
        Ok(())
    }
}

/// As many bytes from the owner's process over sockets, each with a thread of its own there, in blocking reads and writes of large pieces.
pub(super) struct Streams {
    pub(super) name: &'static str,
    pub(super) sockets: Vec<TcpStream>,
    pub(super) row_bytes: usize,
}

impl Floor for Streams {
    fn name(&self) -> &'static str {
        self.name
    }

    fn gather(&mut self, rows: &[u64], landing: &Memory) -> Result<()> {
        let bytes = rows.len() * self.row_bytes;
        let share = bytes.div_ceil(self.sockets.len());
        // SAFETY: fresh memory of this process, as long as the batch, that nobody else reads or writes.
        let landing = unsafe { std::slice::from_raw_parts_mut(landing.base(), bytes) };
        for (mut socket, part) in self.sockets.iter().zip(landing.chunks(share)) {
            socket.write_all(&(part.len() as u64).to_le_bytes())?;
        }
        for (mut socket, part) in self.sockets.iter().zip(landing.chunks_mut(share)) {
            socket.read_exact(part)?;
        }
        Ok(())
    }
}
