//! Memory that requests fill.

use super::argument::Out;
use super::comm::Comm;
use super::handle::{Handle, Kind, Registry};
use super::status::{Answer, Failure, RUDDER_HANDLE, call, rudder_status};
use super::table::{self, rudder_table};
use crate::memory::Rows;
use std::ffi::c_void;
use std::sync::Arc;

/// Memory for the rows of one request, registered so that every transport can write to it: out of the comm's pool, or a part of a
/// registration.
pub struct rudder_rows {
    _opaque: [u8; 0],
}

pub(super) static ROWS: Registry<Held> = Registry::new(Kind::Rows, 1 << 16);

/// What a handle of rows names.
pub(super) struct Held {
    pub comm: Arc<Comm>,
    pub state: State,
    /// Tells a registration that they are there.
    _of: Option<Arc<()>>,
}

pub(super) enum State {
    Idle(Rows),
    /// A request fills them.
    Lent,
    /// A transport may still write to them, so that they were given up.
    Lost,
}

impl Held {
    /// Gives rows a handle.
    pub fn keep(comm: &Arc<Comm>, rows: Rows, of: Option<Arc<()>>) -> Answer<*mut rudder_rows> {
        let held = Self { comm: comm.clone(), state: State::Idle(rows), _of: of };
        Ok(ROWS.insert_if(held, || comm.check_open())?.to_pointer())
    }

    fn idle(&self) -> Answer<&Rows> {
        match &self.state {
            State::Idle(rows) => Ok(rows),
            State::Lent => {
                Err(Failure::argument("argument: an open request fills these rows: wait for it or destroy it first"))
            }
            State::Lost => Err(Failure::new(
                RUDDER_HANDLE,
                "these rows were given up when their request failed, as a transport may still write to them: create others",
            )),
        }
    }

    /// Takes the rows out for a request.
    pub fn lend(&mut self) -> Answer<Rows> {
        self.idle()?;
        match std::mem::replace(&mut self.state, State::Lent) {
            State::Idle(rows) => Ok(rows),
            State::Lent | State::Lost => unreachable!("they were idle"),
        }
    }
}

/// What a request has left of its rows goes back to their handle, unless that is gone with its comm.
pub(super) fn give_back(handle: Handle, rows: Option<Rows>) {
    let gone = ROWS.with(handle, |held| {
        held.state = rows.map_or(State::Lost, State::Idle);
        Ok(())
    });
    drop(gone);
}

/// Takes memory for `count` rows of a table out of the comm's pool, which is allocated and registered at the first call: buffers by the
/// setting `rows_buffers` (4) of at most `rows_max` (65,536) rows each. Freed by rudder_rows_destroy, which gives it back to the pool,
/// or with its comm.
///
/// Errors: RUDDER_FULL (all are out), RUDDER_ARGUMENT (more than `rows_max`), RUDDER_MEMORY, RUDDER_NOT_STARTED, RUDDER_CLOSED.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rudder_rows_create(
    table: *mut rudder_table,
    count: u64,
    rows: *mut *mut rudder_rows,
) -> rudder_status {
    call(|| {
        // SAFETY: what the header asks of the caller.
        let rows = unsafe { Out::new(rows, "rows")? };
        let table = table::find(table)?;
        let bytes = super::argument::bytes(count, table.row_bytes as u64, "rows")?;
        let taken = table.comm.engine()?.rows(table.id, bytes / table.row_bytes);
        rows.set(Held::keep(&table.comm, taken.map_err(|error| table.comm.explain(error))?, None)?);
        Ok(())
    })
}

/// Where the rows are, and their bytes: count * row_bytes, row after row in the order of the nodes once a request has filled them. Valid, at
/// the same address, until rudder_rows_destroy.
///
/// Errors: RUDDER_ARGUMENT while an open request fills them; RUDDER_HANDLE, also where they were given up with a failed request.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rudder_rows_data(
    rows: *const rudder_rows,
    data: *mut *mut c_void,
    bytes: *mut u64,
) -> rudder_status {
    call(|| {
        // SAFETY: what the header asks of the caller.
        let (data, bytes) = unsafe { (Out::new(data, "data")?, Out::new(bytes, "bytes")?) };
        let (base, there) = with(rows, |held| held.idle().map(|rows| (rows.as_ptr(), rows.rows() * rows.row_bytes())))?;
        data.set(base.cast());
        bytes.set(there as u64);
        Ok(())
    })
}

/// Gives the memory back. NULL is fine.
///
/// Errors: RUDDER_ARGUMENT while an open request fills them.
#[unsafe(no_mangle)]
pub extern "C" fn rudder_rows_destroy(rows: *mut rudder_rows) -> rudder_status {
    call(|| {
        if rows.is_null() {
            return Ok(());
        }
        let idle_or_lost = |held: &Held| match held.state {
            State::Lent => held.idle().map(drop),
            State::Idle(_) | State::Lost => Ok(()),
        };
        ROWS.remove_if(Handle::of(rows), idle_or_lost).map(drop)
    })
}

/// Shows what a handle of rows names to `body`.
pub(super) fn with<R>(rows: *const rudder_rows, body: impl FnOnce(&mut Held) -> Answer<R>) -> Answer<R> {
    if rows.is_null() {
        return Err(Failure::null("rows"));
    }
    ROWS.with(Handle::of(rows), body)
}
