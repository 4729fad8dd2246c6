//! Feature tables.

use super::argument::{Out, Sized64, list, read_sized, text};
use super::comm::{self, Comm, rudder_comm};
use super::handle::{Handle, Kind, Registry};
use super::status::{Answer, Failure, RUDDER_PARTITION_BOOK, call, rudder_status};
use crate::engine::TableSpec;
use crate::error::Error;
use crate::id::{NodeId, PartitionId, TableId};
use crate::memory::Memory;
use crate::partition::PartitionBook;
use std::ffi::{OsStr, c_char, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::Arc;

/// One feature table of a job: rows of a fixed width, one for each node of one type, partitioned over the ranks.
pub struct rudder_table {
    _opaque: [u8; 0],
}

/// What a rank says of one table. All ranks say the same of `id`, `partitions`, `starts`, `row_bytes` and `version`.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct rudder_table_spec {
    /// sizeof(rudder_table_spec); see rudder_config.
    pub struct_size: u64,
    /// The table's name within the job.
    pub id: u32,
    /// The partition whose rows this rank gives; several ranks of a machine may give the same one.
    pub partition: u32,
    /// Number of partitions, at least 1.
    pub partitions: u32,
    /// partitions + 1 node ids that ascend from 0: partition p owns the nodes starts[p] to starts[p + 1] - 1. Copied.
    pub starts: *const i64,
    /// Bytes of a row, whatever the type of its elements.
    pub row_bytes: u64,
    /// Version of the rows; 0 will do.
    pub version: u64,
    /// The rows of `partition`, one after the other in the order of their nodes, used in place and not copied. They stay the caller's, who
    /// keeps them valid and unchanged until rudder_comm_destroy has returned. NULL where `path` is given, or the partition has no nodes.
    /// Memory without a file cannot be shared with other processes: the transport `shm` refuses it, and `auto` takes `tcp` for it.
    pub rows: *const c_void,
    /// Bytes at `rows`; at least those of the partition.
    pub bytes: u64,
    /// Instead of `rows`: a file that begins with them, mapped read-only, such as /dev/shm/NAME. It must not be shortened or rewritten
    /// while any rank's comm lives: the system ends a process that reads beyond a mapped file's end.
    pub path: *const c_char,
    /// `halo_nodes` remote nodes adjacent to the partition, ascending, or NULL. They set what a share of a buffer means. Copied.
    pub halo: *const i64,
    /// For each halo node its degree, or NULL where unknown. Copied.
    pub degree: *const u32,
    /// Number of halo nodes.
    pub halo_nodes: u64,
    /// Edges of the graph, 0 where unknown; controllers are told.
    pub edges: u64,
}

// SAFETY: integers and pointers.
unsafe impl Sized64 for rudder_table_spec {
    const NAME: &'static str = "rudder_table_spec";
    const LEAST: usize = 104;
}

pub(super) static TABLES: Registry<Table> = Registry::new(Kind::Table, 1 << 16);

/// What a table's handle names.
#[derive(Clone)]
pub(super) struct Table {
    pub comm: Arc<Comm>,
    pub id: TableId,
    pub row_bytes: usize,
}

/// The table of a handle, for one call.
pub(super) fn find(table: *const rudder_table) -> Answer<Table> {
    if table.is_null() {
        return Err(Failure::null("table"));
    }
    TABLES.with(Handle::of(table), |table| Ok(table.clone()))
}

/// Adds a table to a comm, before rudder_comm_start. Local; ranks add the same tables in the same order.
///
/// The table is freed by rudder_table_destroy or with its comm.
///
/// Errors: RUDDER_NULL_ARGUMENT, RUDDER_ARGUMENT (a number out of its bounds, rows that are too few, a halo that does not ascend...),
/// RUDDER_PARTITION_BOOK (starts that do not hold together), RUDDER_TABLE_FILE (with `path`), RUDDER_ABI, RUDDER_ALREADY_STARTED,
/// RUDDER_FULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rudder_table_create(
    comm: *mut rudder_comm,
    spec: *const rudder_table_spec,
    table: *mut *mut rudder_table,
) -> rudder_status {
    call(|| {
        // SAFETY: what the header asks of the caller.
        let (table, said) = unsafe { (Out::new(table, "table")?, read_sized(spec)?) };
        let comm = comm::find(comm)?;
        comm.build(|_| Ok(()))?;
        // SAFETY: as above; the lists are copied and the rows lent until the comm lets go of them.
        let (spec, rows) = unsafe { (read_spec(&said)?, rows_of(&said, &comm)?) };
        let (id, row_bytes) = (spec.id, spec.row_bytes);
        check_rows(&spec, &said, rows.as_ref())?;
        let handle = comm.build(|building| {
            if building.tables.iter().any(|(other, _)| other.id == id) {
                return Err(Failure::argument(format!("argument: {id} was created already in this comm")));
            }
            let open = || comm.check_open();
            let handle = TABLES.insert_if(Table { comm: comm.clone(), id, row_bytes }, open)?;
            building.tables.push((spec, rows));
            Ok(handle)
        })?;
        table.set(handle.to_pointer());
        Ok(())
    })
}

/// Gives the handle back. The rows stay registered, and other ranks may read them, until the comm is destroyed. NULL is fine.
#[unsafe(no_mangle)]
pub extern "C" fn rudder_table_destroy(table: *mut rudder_table) -> rudder_status {
    call(|| match table.is_null() {
        true => Ok(()),
        false => TABLES.remove(Handle::of(table)).map(drop),
    })
}

/// # Safety
/// The lists of `said` are as long as it says.
unsafe fn read_spec(said: &rudder_table_spec) -> Answer<TableSpec> {
    if said.starts.is_null() {
        return Err(Failure::null("starts"));
    }
    // SAFETY: the caller's promise.
    let (starts, halo, degree) = unsafe {
        let starts = list(said.starts, u64::from(said.partitions) + 1, "starts")?;
        let halo = list(said.halo, said.halo_nodes, "halo")?;
        // Where it is NULL, degrees are unknown.
        (starts, halo, list(said.degree, if said.degree.is_null() { 0 } else { said.halo_nodes }, "degree")?)
    };
    let unsigned = |start: &i64| u64::try_from(*start);
    let starts: Result<Vec<u64>, _> = starts.iter().map(unsigned).collect();
    let negative = |_| Failure::new(RUDDER_PARTITION_BOOK, "partition book: a start is negative");
    let book = PartitionBook::from_starts(starts.map_err(negative)?)?;
    let row_bytes = usize::try_from(said.row_bytes)
        .map_err(|_| Failure::argument(format!("argument: rows of {} bytes", said.row_bytes)))?;
    let spec = TableSpec {
        version: said.version,
        halo: halo.iter().map(|&node| NodeId(node as u64)).collect(),
        degree: degree.to_vec(),
        edges: said.edges,
        ..TableSpec::new(TableId(said.id), book, PartitionId(said.partition), row_bytes)
    };
    if let Some(node) = halo.iter().find(|node| **node < 0) {
        return Err(Failure::argument(format!("argument: {}: halo node {node} is negative", spec.id)));
    }
    spec.check()?;
    Ok(spec)
}

/// The rows, wherever they are; none where neither memory nor a file is named.
///
/// # Safety
/// `rows` is valid for reads of `bytes` bytes until the comm lets go of it; `path` is NULL or a string.
unsafe fn rows_of(said: &rudder_table_spec, comm: &Comm) -> Answer<Option<Memory>> {
    // SAFETY: the caller's promise.
    let path = unsafe { text(said.path) };
    let base = NonNull::new(said.rows.cast_mut().cast::<u8>());
    match (base, path) {
        (Some(_), Some(_)) => Err(Failure::argument("argument: both rows and path are given: choose one")),
        (None, Some(path)) => {
            let path = Path::new(OsStr::from_bytes(path.to_bytes()));
            // An empty file will do for no rows, and cannot be mapped.
            match std::fs::metadata(path) {
                Ok(file) if file.is_file() && file.len() == 0 => Ok(None),
                _ => Ok(Some(Memory::open(path)?)),
            }
        }
        (Some(base), None) => {
            let bytes = super::argument::bytes(said.bytes, 1, "rows")?;
            // SAFETY: the caller's promise; the loan ends when nothing uses the memory any more, which a comm's destroy waits for.
            Ok(Some(unsafe { Memory::borrow(base, bytes, Arc::new(comm.lender.lend())) }))
        }
        (None, None) => Ok(None),
    }
}

fn check_rows(spec: &TableSpec, said: &rudder_table_spec, rows: Option<&Memory>) -> Answer {
    let range = spec.book.range(spec.partition);
    let count = range.end - range.start;
    let needed = super::argument::bytes(count, said.row_bytes, "rows")?;
    let there = rows.map_or(0, Memory::bytes);
    if there >= needed {
        return Ok(());
    }
    let cause =
        format!("{} of {} has {count} rows of {} bytes, {needed} in all", spec.partition, spec.id, spec.row_bytes);
    // SAFETY: the string was read before.
    match unsafe { text(said.path) } {
        Some(path) => {
            let path = path.to_string_lossy().into_owned();
            Err(Error::TableFile { path, cause: format!("it has {there} bytes, but {cause}") }.into())
        }
        None if said.rows.is_null() => {
            Err(Failure::argument(format!("argument: neither rows nor path is given, but {cause}")))
        }
        None => Err(Failure::argument(format!("argument: {there} bytes of rows, but {cause}"))),
    }
}
