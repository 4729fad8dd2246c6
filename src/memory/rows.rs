//! Output buffers: rows in input order, for the caller.
//!
//! They belong to us and are registered once, or they are the caller's own, and registered by the caller's word or staged. Foreign
//! pointers are never registered on the fly: such caches have corrupted data elsewhere.

use super::{Access, Memory, Region};
use crate::error::{Error, Result};
use crate::transport::{Destination, Transport};
use crossbeam::queue::ArrayQueue;
use std::any::Any;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// Where each buffer of a pool begins: what array libraries ask of their data.
const ALIGNMENT: usize = 256;

/// A bounded set of reusable row buffers in one registered allocation.
#[derive(Clone, Debug)]
pub struct RowsPool {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    region: Region,
    free: ArrayQueue<u32>,
    row_bytes: usize,
    rows_max: usize,
    buffer_bytes: usize,
}

impl RowsPool {
    /// `buffers` buffers of up to `rows_max` rows of `row_bytes` bytes each, allocated and registered now.
    ///
    /// # Errors
    /// The memory cannot be had, or a number is 0.
    pub fn new(transport: &dyn Transport, row_bytes: usize, rows_max: usize, buffers: u32) -> Result<Self> {
        let sized = |bytes: usize| bytes.checked_next_multiple_of(ALIGNMENT)?.checked_mul(buffers as usize);
        let total = row_bytes.checked_mul(rows_max).and_then(sized).filter(|total| *total > 0);
        let Some(total) = total else {
            return Err(Error::argument(format!(
                "a pool of {buffers} buffers of {rows_max} rows of {row_bytes} bytes"
            )));
        };
        let region = transport.allocate(total, Access::Local)?;
        let free = ArrayQueue::new(buffers as usize);
        (0..buffers).for_each(|index| free.push(index).expect("the queue holds every buffer"));
        let buffer_bytes = total / buffers as usize;
        Ok(Self { shared: Arc::new(Shared { region, free, row_bytes, rows_max, buffer_bytes }) })
    }

    /// A buffer of `rows` rows, whose bytes are those of its last use; it comes back to the pool when dropped.
    ///
    /// # Errors
    /// All buffers are out, or `rows` is more than a buffer holds.
    pub fn take(&self, rows: usize) -> Result<Rows> {
        let Shared { row_bytes, rows_max, buffer_bytes, .. } = *self.shared;
        if rows > rows_max {
            return Err(Error::argument(format!("{rows} rows of a pool whose buffers hold {rows_max}")));
        }
        let Some(index) = self.shared.free.pop() else {
            return Err(Error::Full {
                queue: "the pool of row buffers",
                limit: self.shared.free.capacity(),
                remedy: "drop the rows of earlier minibatches, or make the pool larger",
            });
        };
        let base = self.shared.region.memory().base().wrapping_add(index as usize * buffer_bytes);
        let base = NonNull::new(base).expect("an offset within an allocation is not 0");
        Ok(Rows { base, rows, row_bytes, owner: Owner::Pool { shared: self.shared.clone(), index } })
    }

    /// Bytes of a row.
    pub fn row_bytes(&self) -> usize {
        self.shared.row_bytes
    }

    /// Most rows that a buffer holds.
    pub fn rows_max(&self) -> usize {
        self.shared.rows_max
    }

    /// Buffers that can be taken now.
    pub fn available(&self) -> usize {
        self.shared.free.len()
    }
}

/// The caller's own memory, registered once so that gathers can land in it: rows are taken from any part of it.
///
/// The registration ends, and the memory is let go, when this and all rows taken from it are dropped.
#[derive(Clone, Debug)]
pub struct RegisteredRows {
    shared: Arc<Registered>,
}

#[derive(Debug)]
struct Registered {
    region: Region,
    /// Byte ranges of the region that rows have out.
    taken: Mutex<Vec<Range<usize>>>,
}

/// A registration that may have ended.
pub(crate) struct WeakRegisteredRows(Weak<Registered>);

impl WeakRegisteredRows {
    pub(crate) fn is_alive(&self) -> bool {
        self.0.strong_count() > 0
    }
}

impl Registered {
    fn taken(&self) -> MutexGuard<'_, Vec<Range<usize>>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl RegisteredRows {
    /// Registers `bytes` bytes at `base`, kept alive by `keep_alive`, as destinations of this rank's gets.
    ///
    /// # Errors
    /// The transport or a limit on pinned bytes refuses.
    ///
    /// # Safety
    /// `base..base + bytes` is initialised and valid for reads and writes as long as `keep_alive` lives, and nobody else touches
    /// the bytes of rows that are taken from it, as long as these or a request that holds them live.
    pub unsafe fn new(
        transport: &dyn Transport,
        base: NonNull<u8>,
        bytes: usize,
        keep_alive: Arc<dyn Any + Send + Sync>,
    ) -> Result<Self> {
        if bytes == 0 || (base.as_ptr() as usize).checked_add(bytes).is_none() {
            return Err(Error::argument(format!("{bytes} bytes at {base:p} are no memory that could be registered")));
        }
        // SAFETY: the caller promises the bytes as long as `keep_alive` lives, which the memory holds.
        let memory = unsafe { Memory::borrow(base, bytes, keep_alive) };
        // SAFETY: with local access no peer reads the table that these bytes are not.
        let region = unsafe { transport.register(memory, Access::Local) }?;
        Ok(Self { shared: Arc::new(Registered { region, taken: Mutex::new(Vec::with_capacity(16)) }) })
    }

    /// `rows` rows of `row_bytes` bytes each, beginning at byte `first_byte`; they keep the registration and the memory alive.
    ///
    /// # Errors
    /// They do not lie within the registered memory, or rows that are still held share bytes with them.
    pub fn rows(&self, first_byte: usize, rows: usize, row_bytes: usize) -> Result<Rows> {
        let there = self.shared.region.memory().bytes();
        let end = rows.checked_mul(row_bytes).and_then(|bytes| bytes.checked_add(first_byte));
        let Some(end) = end.filter(|end| *end <= there) else {
            return Err(Error::argument(format!(
                "{rows} rows of {row_bytes} bytes from byte {first_byte} pass the end of the {there} bytes that are registered"
            )));
        };
        let range = first_byte..end;
        let mut taken = self.shared.taken();
        if let Some(other) = taken.iter().find(|other| other.start < range.end && range.start < other.end) {
            return Err(Error::argument(format!("bytes {range:?} overlap {other:?}, whose rows are still held")));
        }
        // No bytes overlap nothing, and give nothing back.
        if !range.is_empty() {
            taken.push(range.clone());
        }
        let base = self.shared.region.memory().base().wrapping_add(first_byte);
        let base = NonNull::new(base).expect("an offset within memory is not 0");
        Ok(Rows { base, rows, row_bytes, owner: Owner::Registered { shared: self.shared.clone(), range } })
    }

    /// Knows it without holding it.
    pub(crate) fn downgrade(&self) -> WeakRegisteredRows {
        WeakRegisteredRows(Arc::downgrade(&self.shared))
    }

    /// Number of bytes.
    pub fn bytes(&self) -> usize {
        self.shared.region.memory().bytes()
    }
}

/// The rows of one minibatch, packed, in input order.
#[derive(Debug)]
pub struct Rows {
    base: NonNull<u8>,
    rows: usize,
    row_bytes: usize,
    owner: Owner,
}

#[derive(Debug)]
enum Owner {
    Pool {
        shared: Arc<Shared>,
        index: u32,
    },
    Registered {
        shared: Arc<Registered>,
        range: Range<usize>,
    },
    Caller {
        /// Memory of the caller's that he has registered and that these rows lie in.
        registered: Option<Arc<Registered>>,
        #[expect(dead_code, reason = "held for its Drop")]
        keep_alive: Arc<dyn Any + Send + Sync>,
    },
}

// SAFETY: the bytes belong to this value alone (a pool's index is handed out once; a caller promises it), wherever it is moved.
unsafe impl Send for Rows {}
// SAFETY: shared access only reads.
unsafe impl Sync for Rows {}

impl Rows {
    /// The caller's own memory for `rows` rows of `row_bytes` bytes each, kept alive by `keep_alive`. Rows are staged on their way to it.
    ///
    /// # Safety
    /// `base..base + rows * row_bytes` is initialised and valid for reads and writes, and nobody else touches it, as long as this
    /// value or a request that holds it lives.
    pub unsafe fn borrowed(
        base: NonNull<u8>,
        rows: usize,
        row_bytes: usize,
        keep_alive: Arc<dyn Any + Send + Sync>,
    ) -> Self {
        Self { base, rows, row_bytes, owner: Owner::Caller { registered: None, keep_alive } }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Bytes of a row.
    pub fn row_bytes(&self) -> usize {
        self.row_bytes
    }

    /// The bytes, row after row. Whoever holds the rows holds the bytes: a request in flight has taken the rows by value.
    pub fn as_bytes(&self) -> &[u8] {
        // SAFETY: the memory is initialised, alive through `owner`, and written only through a request that owns the `Rows`.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr(), self.rows * self.row_bytes) }
    }

    /// The first byte, for array libraries.
    pub fn as_ptr(&self) -> *mut u8 {
        self.base.as_ptr()
    }

    /// Whether the memory is registered, so that every transport can write to it.
    pub fn is_registered(&self) -> bool {
        self.region().is_some()
    }

    /// Whether the memory is only lent until the request is over, and so can never be given up.
    pub(crate) fn is_lent(&self) -> bool {
        matches!(self.owner, Owner::Caller { .. })
    }

    /// Looks for memory that the caller has registered among `all` where these rows lie, and holds that registration.
    pub(crate) fn find_registration(&mut self, all: &[WeakRegisteredRows]) {
        let Owner::Caller { registered, .. } = &mut self.owner else { return };
        let first = self.base.as_ptr() as usize;
        let Some(end) = self.rows.checked_mul(self.row_bytes).and_then(|bytes| bytes.checked_add(first)) else {
            return;
        };
        let holds = |shared: &Arc<Registered>| {
            let memory = shared.region.memory();
            memory.base() as usize <= first && end <= memory.base() as usize + memory.bytes()
        };
        *registered = all.iter().filter_map(|known| known.0.upgrade()).find(holds);
    }

    /// The registered region that the rows lie in.
    pub fn region(&self) -> Option<&Region> {
        match &self.owner {
            Owner::Pool { shared, .. } => Some(&shared.region),
            Owner::Registered { shared, .. } => Some(&shared.region),
            Owner::Caller { registered, .. } => registered.as_ref().map(|registered| &registered.region),
        }
    }

    /// The rows as places of a get. Writing through it is for whoever holds the rows by value, or exclusively.
    pub fn destination(&mut self) -> Destination {
        Destination { base: self.base.as_ptr(), stride: self.row_bytes, places: self.rows }
    }

    /// Gives the memory up for good: for what a transport cannot promise to leave alone.
    pub fn leak(self) {
        tracing::warn!(
            "leaked {} bytes of rows: a transport could not promise to leave them alone",
            self.rows * self.row_bytes
        );
        std::mem::forget(self);
    }
}

impl Drop for Rows {
    fn drop(&mut self) {
        match &self.owner {
            Owner::Pool { shared, index } => {
                // The queue has room for every index, and each is out once.
                let _ = shared.free.push(*index);
            }
            Owner::Registered { shared, range } => {
                let mut taken = shared.taken();
                if let Some(at) = taken.iter().position(|other| other == range) {
                    taken.swap_remove(at);
                }
            }
            Owner::Caller { .. } => {}
        }
    }
}
