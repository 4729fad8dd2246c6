//! Minibatches to come.

use super::argument::{Out, list};
use super::comm::{self, rudder_comm};
use super::gather::nodes_of;
use super::handle::Handle;
use super::status::{Answer, Failure, RUDDER_TICKET, call, rudder_status};
use super::table::{TABLES, rudder_table};
use crate::id::{StreamId, TableId};
use crate::pipeline::Ticket;
use std::sync::Arc;

/// Names an announced minibatch until it is gathered from each of its tables or forgotten; 0 is none.
pub type rudder_ticket = u64;

/// Most tables of one announcement.
pub const RUDDER_ANNOUNCE_TABLES_MAX: u32 = 64;

/// The ticket of a number, `None` for 0.
pub(super) fn ticket_of(ticket: rudder_ticket) -> Answer<Option<Ticket>> {
    let none = || Failure::new(RUDDER_TICKET, format!("ticket: {ticket:#x} was given out by no announcement"));
    if ticket == 0 { Ok(None) } else { Ticket::from_bits(ticket).ok_or_else(none).map(Some) }
}

/// Says that the rows of `count` nodes will be gathered from each of `tables_count` tables, so that they can be fetched ahead. Tickets of
/// one `stream`, a number of the caller's such as one for each data loader, are gathered in the order in which they were announced.
/// At most the settings `tickets` (64) and `announced_nodes` may be open. The nodes are copied.
///
/// Errors: RUDDER_NULL_ARGUMENT, RUDDER_ARGUMENT (no table, one named twice or of another comm), RUDDER_NODE_OUT_OF_RANGE, RUDDER_FULL
/// (gathering without a ticket is always right, only slower), RUDDER_NOT_STARTED, RUDDER_CLOSED.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rudder_announce(
    comm: *mut rudder_comm,
    stream: u32,
    tables: *const *mut rudder_table,
    tables_count: u32,
    nodes: *const i64,
    count: u64,
    ticket: *mut rudder_ticket,
) -> rudder_status {
    call(|| {
        // SAFETY: what the header asks of the caller.
        let (ticket, tables, nodes) = unsafe {
            (Out::new(ticket, "ticket")?, list(tables, tables_count.into(), "tables")?, nodes_of(nodes, count)?)
        };
        if tables.is_empty() || tables.len() > RUDDER_ANNOUNCE_TABLES_MAX as usize {
            let cause = format!("argument: {tables_count} tables; give 1 to {RUDDER_ANNOUNCE_TABLES_MAX}");
            return Err(Failure::argument(cause));
        }
        let comm = comm::find(comm)?;
        let mut ids = [TableId(0); RUDDER_ANNOUNCE_TABLES_MAX as usize];
        for (id, &table) in ids.iter_mut().zip(tables) {
            if table.is_null() {
                return Err(Failure::null("a table"));
            }
            *id = TABLES.with(Handle::of(table), |table| match Arc::ptr_eq(&table.comm, &comm) {
                true => Ok(table.id),
                false => Err(Failure::argument(format!("argument: {} is of another comm", table.id))),
            })?;
        }
        let announced = comm.engine()?.announce(StreamId(stream), &ids[..tables.len()], nodes);
        ticket.set(announced.map_err(|error| comm.explain(error))?.to_bits());
        Ok(())
    })
}

/// Takes an announcement back; one that was gathered or forgotten already is ignored, as is 0.
#[unsafe(no_mangle)]
pub extern "C" fn rudder_forget(comm: *mut rudder_comm, ticket: rudder_ticket) -> rudder_status {
    call(|| {
        let comm = comm::find(comm)?;
        let engine = comm.engine()?;
        if let Some(ticket) = ticket_of(ticket)? {
            engine.forget(ticket);
        }
        Ok(())
    })
}

/// Takes back all that a stream has announced and not gathered: a loop that breaks off need not know its tickets.
#[unsafe(no_mangle)]
pub extern "C" fn rudder_forget_stream(comm: *mut rudder_comm, stream: u32) -> rudder_status {
    call(|| {
        comm::find(comm)?.engine()?.forget_stream(StreamId(stream));
        Ok(())
    })
}
