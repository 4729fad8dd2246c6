//! Gathers that run while the program does something else.

use super::announce::{rudder_ticket, ticket_of};
use super::argument::Out;
use super::comm::Comm;
use super::gather::nodes_of;
use super::handle::{Handle, Kind, Registry};
use super::rows::{self, give_back, rudder_rows};
use super::status::{Answer, Failure, RUDDER_DONE, RUDDER_IN_PROGRESS, call, call_for, rudder_status};
use super::table::{self, Table, rudder_table};
use crate::engine::Request;
use crate::id::NodeId;
use crate::pipeline::Ticket;
use std::sync::Arc;

/// A gather that was started.
pub struct rudder_request {
    _opaque: [u8; 0],
}

pub(super) static REQUESTS: Registry<Started> = Registry::new(Kind::Request, 1 << 16);

/// What a request's handle names.
pub(super) struct Started {
    pub comm: Arc<Comm>,
    rows: Handle,
    state: State,
}

enum State {
    Open(Request),
    /// A thread has it in hand.
    Taken,
    Over(Answer),
}

impl Started {
    fn check_free(&self) -> Answer {
        match self.state {
            State::Taken => Err(Failure::argument("argument: another thread waits for this request")),
            State::Open(_) | State::Over(_) => Ok(()),
        }
    }

    /// Takes the request out, to wait for it without holding a lock.
    fn take(&mut self) -> Answer<Found> {
        self.check_free()?;
        match std::mem::replace(&mut self.state, State::Taken) {
            State::Open(request) => Ok(Found::Open(self.comm.clone(), self.rows, request)),
            State::Over(answer) => {
                self.state = State::Over(answer.clone());
                answer.map(|()| Found::Over)
            }
            State::Taken => unreachable!("it was free"),
        }
    }
}

enum Found {
    Open(Arc<Comm>, Handle, Request),
    Over,
}

/// Waits for what was taken out of a handle, and leaves there what it came to.
fn collect(handle: Handle, comm: &Comm, rows: Handle, request: Request) -> Answer {
    let (result, filled) = request.collect();
    give_back(rows, filled);
    let answer = result.map_err(|error| comm.explain(error));
    let kept = REQUESTS.with(handle, |started| {
        started.state = State::Over(answer.clone());
        Ok(())
    });
    // A handle that is gone went with its comm.
    kept.and(answer)
}

/// Starts to read the rows of `count` nodes, in their order, into `rows`, which holds exactly `count` rows of the table's width, and
/// returns at once. The request has the rows until it is over: rudder_request_test or rudder_request_wait says so, and then their handle
/// can be read, and used for another request. The nodes are copied; `ticket` is as in rudder_gather. Freed by rudder_request_destroy or with
/// the comm.
///
/// Errors: as rudder_gather, and RUDDER_ARGUMENT where the rows are of another shape or comm, or another request fills them. The rows
/// are left as they were then.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rudder_request_start(
    table: *mut rudder_table,
    nodes: *const i64,
    count: u64,
    ticket: rudder_ticket,
    rows: *mut rudder_rows,
    request: *mut *mut rudder_request,
) -> rudder_status {
    call(|| {
        // SAFETY: what the header asks of the caller.
        let (request, nodes) = unsafe { (Out::new(request, "request")?, nodes_of(nodes, count)?) };
        let table = table::find(table)?;
        let ticket = ticket_of(ticket)?;
        let comm = &table.comm;
        comm.engine()?;
        let mut lent = Some(rows::with(rows, |held| {
            if !Arc::ptr_eq(&held.comm, comm) {
                return Err(Failure::argument("argument: the rows are of another comm than the table"));
            }
            held.lend()
        })?);
        let started = Started { comm: comm.clone(), rows: Handle::of(rows), state: State::Taken };
        let started = REQUESTS
            .insert_if(started, || comm.check_open())
            .and_then(|handle| start(&table, nodes, ticket, &mut lent, handle));
        if let Some(rest) = lent {
            give_back(Handle::of(rows), Some(rest));
        }
        request.set(started?.to_pointer());
        Ok(())
    })
}

/// Starts the request of a handle that was made for it.
fn start(
    table: &Table,
    nodes: &[NodeId],
    ticket: Option<Ticket>,
    lent: &mut Option<crate::memory::Rows>,
    handle: Handle,
) -> Answer<Handle> {
    let engine = table.comm.engine();
    let started = engine
        .and_then(|engine| engine.start_with(table.id, nodes, ticket, lent).map_err(|error| table.comm.explain(error)));
    match started {
        // If its handle is gone with the comm, the request is dropped here, which aborts it.
        Ok(request) => REQUESTS.with(handle, |started| {
            started.state = State::Open(request);
            Ok(handle)
        }),
        Err(failure) => {
            let _ = REQUESTS.remove(handle);
            Err(failure)
        }
    }
}

/// Answers RUDDER_IN_PROGRESS while rows are on their way, RUDDER_DONE when all are there, or why the request has failed; it never waits.
#[unsafe(no_mangle)]
pub extern "C" fn rudder_request_test(request: *const rudder_request) -> rudder_status {
    call_for(|| {
        let found = with(request, |started| match &started.state {
            State::Taken => Ok(None),
            State::Open(open) if !open.test().map_err(|error| started.comm.explain(error))? => Ok(None),
            State::Open(_) | State::Over(_) => started.take().map(Some),
        })?;
        match found {
            None => Ok(RUDDER_IN_PROGRESS),
            Some(Found::Over) => Ok(RUDDER_DONE),
            Some(Found::Open(comm, rows, open)) => {
                collect(Handle::of(request), &comm, rows, open).map(|()| RUDDER_DONE)
            }
        }
    })
}

/// Waits for the rows, for at most the setting `gather_timeout` and the time that an abort takes. Afterwards the handle of the rows can be
/// read, after an error too: their bytes are undefined then. Asked again, it answers the same.
///
/// Errors: RUDDER_GET, RUDDER_DEADLINE, RUDDER_CLOSED; RUDDER_ARGUMENT while another thread waits for it.
#[unsafe(no_mangle)]
pub extern "C" fn rudder_request_wait(request: *mut rudder_request) -> rudder_status {
    call(|| match with(request, Started::take)? {
        Found::Over => Ok(()),
        Found::Open(comm, rows, open) => collect(Handle::of(request), &comm, rows, open),
    })
}

/// Frees a request; one that is open is aborted, and its rows can be read again, though their bytes are undefined. NULL is fine.
///
/// Errors: RUDDER_ARGUMENT while another thread waits for it.
#[unsafe(no_mangle)]
pub extern "C" fn rudder_request_destroy(request: *mut rudder_request) -> rudder_status {
    call(|| {
        if request.is_null() {
            return Ok(());
        }
        let started = REQUESTS.remove_if(Handle::of(request), Started::check_free)?;
        if let State::Open(open) = started.state {
            give_back(started.rows, open.cancel());
        }
        Ok(())
    })
}

fn with<R>(request: *const rudder_request, body: impl FnOnce(&mut Started) -> Answer<R>) -> Answer<R> {
    if request.is_null() {
        return Err(Failure::null("request"));
    }
    REQUESTS.with(Handle::of(request), body)
}
