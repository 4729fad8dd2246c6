//! Memory of the program's own that requests fill.

use super::argument::{self, Out};
use super::comm::{self, Comm, LET_GO_WITHIN, rudder_comm};
use super::handle::{Handle, Kind, Registry};
use super::loan::Lender;
use super::rows::{Held, rudder_rows};
use super::status::{Answer, Failure, RUDDER_DEADLINE, call, rudder_status};
use crate::memory::RegisteredRows;
use std::ffi::c_void;
use std::ptr::NonNull;
use std::sync::Arc;

/// Memory of the program's own, registered once so that many gathers can land in it without a copy.
pub struct rudder_registration {
    _opaque: [u8; 0],
}

pub(super) static REGISTRATIONS: Registry<Registration> = Registry::new(Kind::Registration, 1 << 16);

/// What a registration's handle names.
pub(super) struct Registration {
    pub comm: Arc<Comm>,
    rows: RegisteredRows,
    lender: Arc<Lender>,
    /// One more is held for each handle of rows.
    of: Arc<()>,
}

impl Registration {
    fn check_unused(&self) -> Answer {
        match Arc::strong_count(&self.of) {
            1 => Ok(()),
            held => {
                let cause =
                    format!("argument: {} handles of rows of this registration are held: destroy them first", held - 1);
                Err(Failure::argument(cause))
            }
        }
    }
}

/// Registers `bytes` bytes at `base`, which stay the caller's: rows for requests are taken from them by rudder_registration_rows, and a
/// rudder_gather into any part of them goes there directly too. Until rudder_registration_destroy or rudder_comm_destroy has returned they
/// must stay valid. Register once and use it many times: registering pins pages, which costs more than a gather.
///
/// Errors: RUDDER_NULL_ARGUMENT, RUDDER_ARGUMENT, RUDDER_MEMORY (a limit on pinned bytes), RUDDER_TRANSPORT, RUDDER_NOT_STARTED,
/// RUDDER_CLOSED.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rudder_registration_create(
    comm: *mut rudder_comm,
    base: *mut c_void,
    bytes: u64,
    registration: *mut *mut rudder_registration,
) -> rudder_status {
    call(|| {
        // SAFETY: what the header asks of the caller.
        let registration = unsafe { Out::new(registration, "registration")? };
        let comm = comm::find(comm)?;
        let base = NonNull::new(base.cast::<u8>()).ok_or_else(|| Failure::null("base"))?;
        let bytes = argument::bytes(bytes, 1, "bytes")?;
        let lender = Arc::new(Lender::default());
        let loans = Arc::new((lender.lend(), comm.lender.lend()));
        // SAFETY: the header asks that the memory stay valid until a destroy has returned, which waits for the loans, and that nobody
        // touch rows that a request fills.
        let rows = unsafe { comm.engine()?.register_rows(base, bytes, loans) };
        let rows = rows.map_err(|error| comm.explain(error))?;
        let made = Registration { comm: comm.clone(), rows, lender, of: Arc::new(()) };
        registration.set(REGISTRATIONS.insert_if(made, || comm.check_open())?.to_pointer());
        Ok(())
    })
}

/// Takes `count` rows of `row_bytes` bytes each, from byte `first_byte` of the registration on, for a request. No two handles of rows may
/// share bytes. Freed by rudder_rows_destroy.
///
/// Errors: RUDDER_ARGUMENT (beyond the end, or bytes of other rows that are held), RUDDER_FULL, RUDDER_CLOSED.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rudder_registration_rows(
    registration: *mut rudder_registration,
    first_byte: u64,
    count: u64,
    row_bytes: u64,
    rows: *mut *mut rudder_rows,
) -> rudder_status {
    call(|| {
        // SAFETY: what the header asks of the caller.
        let rows = unsafe { Out::new(rows, "rows")? };
        if registration.is_null() {
            return Err(Failure::null("registration"));
        }
        if row_bytes == 0 {
            return Err(Failure::argument("argument: rows of 0 bytes"));
        }
        argument::bytes(count, row_bytes, "rows")?;
        let first_byte = argument::bytes(first_byte, 1, "bytes before the first row")?;
        let (comm, taken, of) = REGISTRATIONS.with(Handle::of(registration), |registration| {
            let taken = registration.rows.rows(first_byte, count as usize, row_bytes as usize)?;
            Ok((registration.comm.clone(), taken, registration.of.clone()))
        })?;
        rows.set(Held::keep(&comm, taken, Some(of))?);
        Ok(())
    })
}

/// Ends the registration: when it returns, the library does not use the memory any more. NULL is fine.
///
/// Errors: RUDDER_ARGUMENT while rows of it are held, and nothing has happened; RUDDER_DEADLINE, where a gather of another thread is
/// still under way after 30 s: the memory must stay valid until the process ends.
#[unsafe(no_mangle)]
pub extern "C" fn rudder_registration_destroy(registration: *mut rudder_registration) -> rudder_status {
    call(|| {
        if registration.is_null() {
            return Ok(());
        }
        let Registration { rows, lender, .. } =
            REGISTRATIONS.remove_if(Handle::of(registration), Registration::check_unused)?;
        drop(rows);
        if lender.wait(LET_GO_WITHIN) {
            return Ok(());
        }
        let cause = format!("a gather into this memory is still under way after {LET_GO_WITHIN:?}: it must stay valid");
        Err(Failure::new(RUDDER_DEADLINE, cause))
    })
}
