//! Reads GGUF files, which are untrusted: every length is checked against the file before anything is allocated for it.
//!
//! The reader is our own because a metadata array may hold millions of values of which only a few arrays matter: it keeps what the model and
//! its tokenizer ask for and skips the rest, so that memory is bounded by the file's own size. Format: ggml's `docs/gguf.md`, versions 2 and 3.

use candle_core::quantized::{GgmlDType, QTensor, ggml_file::qtensor_from_ggml};
use candle_core::{Device, Tensor};
use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::Path;

const MAGIC: u32 = 0x4655_4747;
const MAX_KEYS: u64 = 4096;
const MAX_TENSORS: u64 = 16_384;
const MAX_NAME: u64 = 1024;
const MAX_STRING: u64 = 1 << 20;
const MAX_ARRAY: u64 = 1 << 22;
const MAX_DEPTH: u32 = 4;

/// What is wrong, in plain words; the file's name is added by the caller.
pub(super) type Outcome<T> = std::result::Result<T, String>;

/// A metadata value, as far as models of our kind use them.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Integer(i64),
    Float(f64),
    Text(String),
    Texts(Vec<String>),
    Integers(Vec<i64>),
    Floats(Vec<f32>),
    /// An array of another kind, which was skipped.
    Skipped,
}

#[derive(Debug)]
struct TensorInfo {
    dtype: GgmlDType,
    /// Rows first, as candle counts them.
    shape: Vec<usize>,
    offset: u64,
}

/// An opened file: its metadata, and where its tensors lie.
#[derive(Debug)]
pub(super) struct Gguf {
    reader: BufReader<File>,
    length: u64,
    position: u64,
    metadata: HashMap<String, Value>,
    tensors: HashMap<String, TensorInfo>,
    data: u64,
    /// Bytes of tensors read so far.
    used: u64,
}

impl Gguf {
    pub fn open(path: &Path) -> Outcome<Self> {
        let file = File::open(path).map_err(|cause| format!("cannot open it: {cause}"))?;
        let meta = file.metadata().map_err(|cause| format!("cannot read its size: {cause}"))?;
        if !meta.is_file() {
            return Err("not a regular file".into());
        }
        let mut gguf = Self {
            reader: BufReader::new(file),
            length: meta.len(),
            position: 0,
            metadata: HashMap::new(),
            tensors: HashMap::new(),
            data: 0,
            used: 0,
        };
        gguf.read_header()?;
        Ok(gguf)
    }

    pub fn text(&self, key: &str) -> Outcome<&str> {
        match self.metadata.get(key) {
            Some(Value::Text(text)) => Ok(text),
            other => Err(unexpected(key, "a text", other)),
        }
    }

    pub fn texts(&self, key: &str) -> Outcome<&[String]> {
        match self.metadata.get(key) {
            Some(Value::Texts(texts)) => Ok(texts),
            other => Err(unexpected(key, "an array of texts", other)),
        }
    }

    pub fn integers(&self, key: &str) -> Outcome<&[i64]> {
        match self.metadata.get(key) {
            Some(Value::Integers(integers)) => Ok(integers),
            other => Err(unexpected(key, "an array of integers", other)),
        }
    }

    pub fn floats(&self, key: &str) -> Outcome<&[f32]> {
        match self.metadata.get(key) {
            Some(Value::Floats(floats)) => Ok(floats),
            other => Err(unexpected(key, "an array of numbers", other)),
        }
    }

    /// An integer from 1 to `max`.
    pub fn count(&self, key: &str, max: usize) -> Outcome<usize> {
        match self.metadata.get(key) {
            Some(Value::Integer(value)) if (1..=max as i64).contains(value) => Ok(*value as usize),
            Some(Value::Integer(value)) => Err(format!("{key} is {value}; 1 to {max} is supported")),
            other => Err(unexpected(key, "an integer", other)),
        }
    }

    /// A yes or no.
    pub fn flag(&self, key: &str) -> Outcome<bool> {
        match self.metadata.get(key) {
            Some(Value::Integer(value @ 0..=1)) => Ok(*value == 1),
            other => Err(unexpected(key, "true or false", other)),
        }
    }

    /// A token of a vocabulary of this size.
    pub fn token(&self, key: &str, vocabulary: usize) -> Outcome<u32> {
        match self.metadata.get(key) {
            Some(Value::Integer(value)) if (0..vocabulary as i64).contains(value) => Ok(*value as u32),
            other => Err(unexpected(key, "a token of the vocabulary", other)),
        }
    }

    /// A finite positive number.
    pub fn positive(&self, key: &str) -> Outcome<f64> {
        match self.metadata.get(key) {
            Some(Value::Float(value)) if value.is_finite() && *value > 0.0 => Ok(*value),
            Some(Value::Float(value)) => Err(format!("{key} is {value}, which is not a finite positive number")),
            other => Err(unexpected(key, "a number", other)),
        }
    }

    /// A number from 0 to 1.
    pub fn share(&self, key: &str) -> Outcome<f64> {
        match self.metadata.get(key) {
            Some(Value::Float(value)) if (0.0..=1.0).contains(value) => Ok(*value),
            Some(Value::Float(value)) => Err(format!("{key} is {value}; 0 to 1 is supported")),
            other => Err(unexpected(key, "a number", other)),
        }
    }

    pub fn has(&self, key: &str) -> bool {
        self.metadata.contains_key(key)
    }

    pub fn has_tensor(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Reads a tensor as stored. Its shape must be the one given.
    pub fn quantized(&mut self, name: &str, shape: &[usize]) -> Outcome<QTensor> {
        let info = self.tensors.get(name).ok_or_else(|| format!("tensor {name} is missing"))?;
        if info.shape != shape {
            return Err(format!("tensor {name} has shape {:?} where {shape:?} is expected", info.shape));
        }
        let (dtype, start) = (info.dtype, self.data.saturating_add(info.offset));
        let elements = shape.iter().try_fold(1usize, |product, dim| product.checked_mul(*dim));
        let row = shape.last().copied().unwrap_or(0);
        let bytes = elements
            .filter(|_| row % dtype.block_size() == 0)
            .and_then(|elements| (elements / dtype.block_size()).checked_mul(dtype.type_size()))
            .ok_or_else(|| format!("tensor {name} of {shape:?} does not divide into blocks of {dtype:?}"))?;
        if start.checked_add(bytes as u64).is_none_or(|end| end > self.length) {
            let length = self.length;
            return Err(format!("truncated: tensor {name} needs {bytes} bytes from {start} on, the file has {length}"));
        }
        // Tensors may not overlap, else a small file could ask for any amount of memory.
        self.used += bytes as u64;
        if self.used > self.length {
            return Err(format!("tensor {name} overlaps another one"));
        }
        let mut raw = vec![0; bytes];
        let read = self.reader.seek(SeekFrom::Start(start)).and_then(|_| self.reader.read_exact(&mut raw));
        read.map_err(|cause| format!("cannot read tensor {name}: {cause}"))?;
        qtensor_from_ggml(dtype, &raw, shape.to_vec(), &Device::Cpu).map_err(|cause| format!("tensor {name}: {cause}"))
    }

    /// Reads a tensor as f32.
    pub fn dense(&mut self, name: &str, shape: &[usize]) -> Outcome<Tensor> {
        let tensor = self.quantized(name, shape)?;
        tensor.dequantize(&Device::Cpu).map_err(|cause| format!("tensor {name}: {cause}"))
    }

    fn read_header(&mut self) -> Outcome<()> {
        let magic = self.u32()?;
        if magic != MAGIC {
            return Err(format!("not a GGUF file: it begins with {magic:#010x}"));
        }
        let version = self.u32()?;
        if !(2..=3).contains(&version) {
            return Err(format!("GGUF version {version}; 2 and 3 are supported"));
        }
        let tensors = bounded("tensors", self.u64()?, MAX_TENSORS)?;
        let keys = bounded("metadata keys", self.u64()?, MAX_KEYS)?;
        for _ in 0..keys {
            let key = self.string(MAX_NAME)?;
            let kind = self.u32()?;
            let value = self.value(kind)?;
            self.metadata.insert(key, value);
        }
        for _ in 0..tensors {
            let name = self.string(MAX_NAME)?;
            let info = self.tensor_info().map_err(|cause| format!("tensor {name}: {cause}"))?;
            self.tensors.insert(name, info);
        }
        let alignment = match self.metadata.get("general.alignment") {
            None => 32,
            Some(Value::Integer(value)) if (1..=1 << 20).contains(value) => *value as u64,
            Some(other) => return Err(format!("general.alignment is {other:?}")),
        };
        self.data = self.position.next_multiple_of(alignment);
        Ok(())
    }

    fn tensor_info(&mut self) -> Outcome<TensorInfo> {
        let dims = self.u32()?;
        if !(1..=4).contains(&dims) {
            return Err(format!("{dims} dimensions; 1 to 4 are supported"));
        }
        let mut shape = Vec::with_capacity(4);
        for _ in 0..dims {
            shape.push(usize::try_from(self.u64()?).map_err(|_| "a dimension is too large")?);
        }
        shape.reverse();
        let dtype = dtype(self.u32()?)?;
        Ok(TensorInfo { dtype, shape, offset: self.u64()? })
    }

    fn value(&mut self, kind: u32) -> Outcome<Value> {
        Ok(match kind {
            6 => Value::Float(f32::from_bits(self.u32()?).into()),
            8 => Value::Text(self.string(MAX_STRING)?),
            9 => self.array(0)?,
            12 => Value::Float(f64::from_bits(self.u64()?)),
            _ => Value::Integer(self.integer(kind)?),
        })
    }

    fn integer(&mut self, kind: u32) -> Outcome<i64> {
        Ok(match kind {
            0 | 7 => i64::from(self.bytes::<1>()?[0]),
            1 => i64::from(i8::from_le_bytes(self.bytes()?)),
            2 => i64::from(u16::from_le_bytes(self.bytes()?)),
            3 => i64::from(i16::from_le_bytes(self.bytes()?)),
            4 => i64::from(self.u32()?),
            5 => i64::from(i32::from_le_bytes(self.bytes()?)),
            10 => i64::try_from(self.u64()?).unwrap_or(i64::MAX),
            11 => i64::from_le_bytes(self.bytes()?),
            _ => return Err(format!("metadata of unknown kind {kind}")),
        })
    }

    fn array(&mut self, depth: u32) -> Outcome<Value> {
        let (kind, count) = (self.u32()?, self.u64()?);
        let least = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            8 | 10..=12 => 8,
            9 => 12,
            _ => return Err(format!("metadata array of unknown kind {kind}")),
        };
        let count = bounded("elements of a metadata array", count, MAX_ARRAY)?;
        self.need(count * least)?;
        match kind {
            8 => (0..count).map(|_| self.string(MAX_STRING)).collect::<Outcome<_>>().map(Value::Texts),
            9 if depth >= MAX_DEPTH => Err(format!("metadata arrays nested deeper than {MAX_DEPTH}")),
            9 => {
                for _ in 0..count {
                    self.array(depth + 1)?;
                }
                Ok(Value::Skipped)
            }
            // Token types and scores, the arrays of numbers that are used, are 4 bytes wide.
            6 => (0..count).map(|_| self.u32().map(f32::from_bits)).collect::<Outcome<_>>().map(Value::Floats),
            4 | 5 => (0..count).map(|_| self.integer(kind)).collect::<Outcome<_>>().map(Value::Integers),
            _ => self.skip(count * least).map(|()| Value::Skipped),
        }
    }

    fn string(&mut self, max: u64) -> Outcome<String> {
        let length = bounded("bytes of a text", self.u64()?, max)?;
        self.need(length)?;
        let mut bytes = vec![0; length as usize];
        self.read(&mut bytes)?;
        String::from_utf8(bytes).map_err(|_| "a text is not UTF-8".into())
    }

    fn u32(&mut self) -> Outcome<u32> {
        self.bytes().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Outcome<u64> {
        self.bytes().map(u64::from_le_bytes)
    }

    fn bytes<const N: usize>(&mut self) -> Outcome<[u8; N]> {
        let mut bytes = [0; N];
        self.read(&mut bytes)?;
        Ok(bytes)
    }

    fn read(&mut self, bytes: &mut [u8]) -> Outcome<()> {
        self.need(bytes.len() as u64)?;
        self.reader.read_exact(bytes).map_err(|cause| format!("cannot read at byte {}: {cause}", self.position))?;
        self.position += bytes.len() as u64;
        Ok(())
    }

    fn skip(&mut self, bytes: u64) -> Outcome<()> {
        self.reader.seek_relative(bytes as i64).map_err(|cause| format!("cannot seek: {cause}"))?;
        self.position += bytes;
        Ok(())
    }

    fn need(&self, bytes: u64) -> Outcome<()> {
        let left = self.length - self.position;
        if bytes > left {
            return Err(format!("truncated: {bytes} bytes wanted at byte {}, {left} left", self.position));
        }
        Ok(())
    }
}

fn bounded(what: &str, count: u64, max: u64) -> Outcome<u64> {
    if count > max { Err(format!("{count} {what}; up to {max} are supported")) } else { Ok(count) }
}

fn unexpected(key: &str, wanted: &str, found: Option<&Value>) -> String {
    match found {
        None => format!("{key} is missing"),
        Some(_) => format!("{key} is not {wanted}"),
    }
}

fn dtype(code: u32) -> Outcome<GgmlDType> {
    Ok(match code {
        0 => GgmlDType::F32,
        1 => GgmlDType::F16,
        2 => GgmlDType::Q4_0,
        3 => GgmlDType::Q4_1,
        6 => GgmlDType::Q5_0,
        7 => GgmlDType::Q5_1,
        8 => GgmlDType::Q8_0,
        10 => GgmlDType::Q2K,
        11 => GgmlDType::Q3K,
        12 => GgmlDType::Q4K,
        13 => GgmlDType::Q5K,
        14 => GgmlDType::Q6K,
        30 => GgmlDType::BF16,
        _ => {
            return Err(format!(
                "number format {code} is not supported; F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0 and Q2_K to Q6_K are"
            ));
        }
    })
}
