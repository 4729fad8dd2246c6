//! Gathers that are waited for.

use super::announce::{rudder_ticket, ticket_of};
use super::argument::{self, list};
use super::status::{Answer, Failure, call, rudder_status};
use super::table::{self, rudder_table};
use crate::id::NodeId;
use std::ffi::c_void;
use std::ptr::NonNull;

/// C's ids as the engine's, in place: a negative one becomes one that is beyond every table, whose starts are not negative either.
///
/// # Safety
/// Unless it is NULL or not aligned, `nodes` is valid for reads of `count` ids, which nobody writes, as long as the result is used.
pub(super) unsafe fn nodes_of<'a>(nodes: *const i64, count: u64) -> Answer<&'a [NodeId]> {
    const _: () = assert!(size_of::<NodeId>() == size_of::<i64>() && align_of::<NodeId>() == align_of::<i64>());
    // SAFETY: a `NodeId` is a u64 and nothing else (repr(transparent)), for which every i64 has a value; the rest is the caller's promise.
    unsafe { list(nodes.cast::<NodeId>(), count, "nodes") }
}

/// Reads the rows of `count` nodes, in their order, into `rows`, and returns when they are there: count * row_bytes bytes, which
/// `rows_bytes` must say. `ticket` is that of the announcement of these very nodes, or 0. Nodes may repeat.
///
/// The memory is the caller's and need not be registered (see rudder_registration_create, which saves a copy on some transports).
/// After an error its bytes are undefined, and nothing will write to it any more. Several threads may gather at once.
///
/// Errors: RUDDER_NULL_ARGUMENT, RUDDER_ARGUMENT (another number of bytes), RUDDER_NODE_OUT_OF_RANGE, RUDDER_TICKET, RUDDER_FULL (the
/// setting `requests`), RUDDER_GET (names rank, range and cause), RUDDER_DEADLINE (the setting `gather_timeout`), RUDDER_NOT_STARTED,
/// RUDDER_CLOSED.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rudder_gather(
    table: *mut rudder_table,
    nodes: *const i64,
    count: u64,
    ticket: rudder_ticket,
    rows: *mut c_void,
    rows_bytes: u64,
) -> rudder_status {
    call(|| {
        let table = table::find(table)?;
        // SAFETY: what the header asks of the caller.
        let nodes = unsafe { nodes_of(nodes, count)? };
        let bytes = argument::bytes(rows_bytes, 1, "rows")?;
        let base = match NonNull::new(rows.cast::<u8>()) {
            Some(base) => base,
            None if bytes == 0 => NonNull::dangling(),
            None => return Err(Failure::null("rows")),
        };
        let ticket = ticket_of(ticket)?;
        // SAFETY: as above: so many bytes are there to be written, by nobody else meanwhile.
        let gathered = unsafe { table.comm.engine()?.gather_into(table.id, nodes, ticket, base, bytes) };
        gathered.map_err(|error| table.comm.explain(error))
    })
}
