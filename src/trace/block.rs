//! Blocks: each has its lengths, a checksum over all of it, and one zstd frame.

use super::damaged;
use crate::error::{Error, Result};
use std::io::{ErrorKind, Read, Write};
use zstd::bulk::{Compressor, Decompressor};

const MAGIC: [u8; 8] = *b"rudtrace";
const VERSION: u32 = 1;
/// Bytes of a block's numbers: small enough that little is lost with one, large enough to compress.
const BLOCK_BYTES: usize = 1 << 15;
const FRAME_BYTES: usize = 12;
/// The writer shares its host with the training: speed goes before the last tenth of the size.
const LEVEL: i32 = 1;

fn checksum(lengths: &[u8], stored: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(lengths);
    hasher.update(stored);
    hasher.finalize()
}

/// Takes numbers, and puts out blocks.
pub(super) struct BlockWriter<W> {
    sink: W,
    path: String,
    raw: Vec<u8>,
    stored: Vec<u8>,
    compressor: Compressor<'static>,
    written: u64,
}

impl<W: Write> BlockWriter<W> {
    pub fn new(sink: W, path: &str) -> Result<Self> {
        let compressor = Compressor::new(LEVEL).map_err(|cause| damaged(path, 0, cause.to_string()))?;
        let mut writer = Self {
            sink,
            path: path.to_owned(),
            // What is put in at one time is cut into blocks afterwards.
            raw: Vec::with_capacity(2 * BLOCK_BYTES),
            stored: Vec::with_capacity(zstd::zstd_safe::compress_bound(BLOCK_BYTES)),
            compressor,
            written: 0,
        };
        writer.stored.extend_from_slice(&VERSION.to_le_bytes());
        writer.put_out(&MAGIC)?;
        Ok(writer)
    }

    /// The buffer that numbers are appended to; [`BlockWriter::settle`] follows.
    pub fn raw(&mut self) -> &mut Vec<u8> {
        &mut self.raw
    }

    /// Writes the blocks that are full.
    pub fn settle(&mut self) -> Result<()> {
        let mut from = 0;
        while self.raw.len() - from >= BLOCK_BYTES {
            self.block(from, from + BLOCK_BYTES)?;
            from += BLOCK_BYTES;
        }
        self.raw.drain(..from);
        Ok(())
    }

    /// Writes what is left, in a block that is not full.
    pub fn flush(&mut self) -> Result<()> {
        self.settle()?;
        if !self.raw.is_empty() {
            self.block(0, self.raw.len())?;
            self.raw.clear();
        }
        let flushed = self.sink.flush();
        flushed.map_err(|cause| damaged(&self.path, self.written, cause.to_string()))
    }

    /// As [`BlockWriter::flush`], and gives the sink back.
    pub fn finish(mut self) -> Result<W> {
        self.flush()?;
        Ok(self.sink)
    }

    fn block(&mut self, from: usize, to: usize) -> Result<()> {
        self.stored.clear();
        let compressed = self.compressor.compress_to_buffer(&self.raw[from..to], &mut self.stored);
        let bytes = compressed.map_err(|cause| damaged(&self.path, self.written, cause.to_string()))?;
        let mut frame = [0; FRAME_BYTES];
        frame[..4].copy_from_slice(&((to - from) as u32).to_le_bytes());
        frame[4..8].copy_from_slice(&(bytes as u32).to_le_bytes());
        let checksum = checksum(&frame[..8], &self.stored);
        frame[8..].copy_from_slice(&checksum.to_le_bytes());
        self.put_out(&frame)
    }

    /// Writes what is in `stored`, behind its frame.
    fn put_out(&mut self, frame: &[u8]) -> Result<()> {
        let put = self.sink.write_all(frame).and_then(|()| self.sink.write_all(&self.stored));
        put.map_err(|cause| damaged(&self.path, self.written, cause.to_string()))?;
        self.written += (frame.len() + self.stored.len()) as u64;
        Ok(())
    }
}

/// Gives numbers back, block by block; no length of the file is believed beyond a block's own bounds.
pub(super) struct BlockReader<R> {
    source: R,
    path: String,
    raw: Vec<u8>,
    at: usize,
    stored: Vec<u8>,
    decompressor: Decompressor<'static>,
    /// Where the block at hand begins in the file, and where the next one does.
    begins: u64,
    ends: u64,
}

impl<R: Read> BlockReader<R> {
    pub fn new(mut source: R, path: &str) -> Result<Self> {
        let mut start = [0; MAGIC.len() + 4];
        source.read_exact(&mut start).map_err(|cause| unread(path, 0, &cause))?;
        let (magic, version) = start.split_at(MAGIC.len());
        if magic != MAGIC {
            return Err(damaged(path, 0, "this is no trace of rudder"));
        }
        let version = u32::from_le_bytes(version.try_into().expect("four bytes are left"));
        if version != VERSION {
            let cause = format!("the trace has version {version}; this build of rudder reads version {VERSION}");
            return Err(damaged(path, MAGIC.len() as u64, cause));
        }
        let ends = start.len() as u64;
        let decompressor = Decompressor::new().map_err(|cause| damaged(path, 0, cause.to_string()))?;
        let raw = Vec::with_capacity(BLOCK_BYTES);
        Ok(Self { source, path: path.to_owned(), raw, at: 0, stored: Vec::new(), decompressor, begins: ends, ends })
    }

    /// Says of the block at hand what is wrong with it.
    pub fn damaged(&self, cause: impl Into<String>) -> Error {
        damaged(&self.path, self.begins, cause)
    }

    pub fn byte(&mut self) -> Result<u8> {
        while self.at == self.raw.len() {
            self.next_block()?;
        }
        self.at += 1;
        Ok(self.raw[self.at - 1])
    }

    /// A number of 7 bits a byte, the lowest first.
    pub fn number(&mut self) -> Result<u64> {
        let mut number = 0;
        for shift in (0..u64::BITS).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            if bits << shift >> shift != bits {
                break;
            }
            number |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(self.damaged("a number has more than 64 bits"))
    }

    /// A count that is at most `most`.
    pub fn count(&mut self, most: u64, of: &str) -> Result<usize> {
        match self.number()? {
            count if count <= most => Ok(count as usize),
            count => Err(self.damaged(format!("{count} {of}; the most are {most}"))),
        }
    }

    fn next_block(&mut self) -> Result<()> {
        self.begins = self.ends;
        let mut frame = [0; FRAME_BYTES];
        let path = &self.path;
        self.source.read_exact(&mut frame).map_err(|cause| unread(path, self.begins, &cause))?;
        let word = |at: usize| u32::from_le_bytes([frame[at], frame[at + 1], frame[at + 2], frame[at + 3]]);
        let (raw_bytes, stored_bytes) = (word(0) as usize, word(4) as usize);
        let lengths_hold =
            (1..=BLOCK_BYTES).contains(&raw_bytes) && stored_bytes <= zstd::zstd_safe::compress_bound(BLOCK_BYTES);
        if !lengths_hold {
            return Err(self.damaged("the block's lengths are none: the file is damaged here"));
        }
        self.stored.resize(stored_bytes, 0);
        self.source.read_exact(&mut self.stored).map_err(|cause| unread(path, self.begins, &cause))?;
        if checksum(&frame[..8], &self.stored) != word(8) {
            return Err(self.damaged("the block's checksum does not match: the file is damaged here"));
        }
        self.raw.clear();
        self.at = 0;
        // It writes no more than the vector has room for.
        let done = self.decompressor.decompress_to_buffer(&self.stored, &mut self.raw);
        match done {
            Ok(bytes) if bytes == raw_bytes => {}
            Ok(bytes) => return Err(self.damaged(format!("a block of {raw_bytes} bytes came out as {bytes}"))),
            Err(cause) => return Err(self.damaged(format!("a block does not decompress: {cause}"))),
        }
        self.ends += (FRAME_BYTES + stored_bytes) as u64;
        Ok(())
    }
}

fn unread(path: &str, at: u64, cause: &std::io::Error) -> Error {
    match cause.kind() {
        ErrorKind::UnexpectedEof => {
            damaged(path, at, "the trace is cut off: its job was killed, or the file was not copied whole")
        }
        _ => damaged(path, at, cause.to_string()),
    }
}
