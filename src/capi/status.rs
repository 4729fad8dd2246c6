//! What a call answers, and why.

use crate::error::Error;
use crate::id::NodeId;
use std::borrow::Cow;
use std::cell::RefCell;
use std::ffi::{CStr, CString, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU32, Ordering};

/// What a call answers: 0 done, above 0 not an error, below 0 an error. Errors come in bands, by what they leave unharmed; a number is
/// never given another meaning.
pub type rudder_status = i32;

/// Done.
pub const RUDDER_DONE: i32 = 0;
/// Not an error: the request is still on its way.
pub const RUDDER_IN_PROGRESS: i32 = 1;

/// A pointer is NULL that may not be. From here to -99 the call is at fault: nothing has happened.
pub const RUDDER_NULL_ARGUMENT: i32 = -1;
/// An argument is wrong, or at odds with another; the last error says which.
pub const RUDDER_ARGUMENT: i32 = -2;
/// A node id is negative or beyond the table.
pub const RUDDER_NODE_OUT_OF_RANGE: i32 = -3;
/// A setting is unknown, out of its bounds, or contradicts another.
pub const RUDDER_CONFIG: i32 = -4;
/// A ticket was gathered or forgotten already, or is of other nodes or tables.
pub const RUDDER_TICKET: i32 = -5;
/// Something bounded is full: try again when what is open has ended.
pub const RUDDER_FULL: i32 = -6;
/// A `struct_size` is none that this library knows: header and library are of different versions.
pub const RUDDER_ABI: i32 = -7;
/// A handle was destroyed, by itself or with its comm, is of another kind, or never was one.
pub const RUDDER_HANDLE: i32 = -8;
/// The comm was not started yet.
pub const RUDDER_NOT_STARTED: i32 = -9;
/// The comm was started already.
pub const RUDDER_ALREADY_STARTED: i32 = -10;
/// This process is a forked child of one that has, or has had, a comm; it owns no device, file or peer: make comms after the fork.
pub const RUDDER_FORKED: i32 = -11;

/// Time is over. From here to -199 this request has failed; others go on.
pub const RUDDER_DEADLINE: i32 = -100;

/// A peer did not give its rows. From here to -299 what concerns this peer has failed; rows of others can be had.
pub const RUDDER_GET: i32 = -200;

/// The ranks did not come together. From here to -399 the comm, or what was to be made for it, has failed.
pub const RUDDER_BOOTSTRAP: i32 = -300;
/// A transport cannot be opened, or cannot do what is asked of it.
pub const RUDDER_TRANSPORT: i32 = -301;
/// Memory cannot be had, mapped or registered.
pub const RUDDER_MEMORY: i32 = -302;
/// The comm was shut down or aborted, or has ended by an error.
pub const RUDDER_CLOSED: i32 = -303;
/// The file of a table cannot be used.
pub const RUDDER_TABLE_FILE: i32 = -304;
/// A model's file cannot be used.
pub const RUDDER_MODEL: i32 = -305;
/// The starts of a table's partitions do not hold together.
pub const RUDDER_PARTITION_BOOK: i32 = -306;

/// A bug of this library: it has panicked, and what it was doing is undone as far as it could be. Please report it.
pub const RUDDER_PANIC: i32 = -400;

/// Statuses and their names.
const NAMES: [(rudder_status, &CStr); 23] = [
    (RUDDER_DONE, c"RUDDER_DONE"),
    (RUDDER_IN_PROGRESS, c"RUDDER_IN_PROGRESS"),
    (RUDDER_NULL_ARGUMENT, c"RUDDER_NULL_ARGUMENT"),
    (RUDDER_ARGUMENT, c"RUDDER_ARGUMENT"),
    (RUDDER_NODE_OUT_OF_RANGE, c"RUDDER_NODE_OUT_OF_RANGE"),
    (RUDDER_CONFIG, c"RUDDER_CONFIG"),
    (RUDDER_TICKET, c"RUDDER_TICKET"),
    (RUDDER_FULL, c"RUDDER_FULL"),
    (RUDDER_ABI, c"RUDDER_ABI"),
    (RUDDER_HANDLE, c"RUDDER_HANDLE"),
    (RUDDER_NOT_STARTED, c"RUDDER_NOT_STARTED"),
    (RUDDER_ALREADY_STARTED, c"RUDDER_ALREADY_STARTED"),
    (RUDDER_FORKED, c"RUDDER_FORKED"),
    (RUDDER_DEADLINE, c"RUDDER_DEADLINE"),
    (RUDDER_GET, c"RUDDER_GET"),
    (RUDDER_BOOTSTRAP, c"RUDDER_BOOTSTRAP"),
    (RUDDER_TRANSPORT, c"RUDDER_TRANSPORT"),
    (RUDDER_MEMORY, c"RUDDER_MEMORY"),
    (RUDDER_CLOSED, c"RUDDER_CLOSED"),
    (RUDDER_TABLE_FILE, c"RUDDER_TABLE_FILE"),
    (RUDDER_MODEL, c"RUDDER_MODEL"),
    (RUDDER_PARTITION_BOOK, c"RUDDER_PARTITION_BOOK"),
    (RUDDER_PANIC, c"RUDDER_PANIC"),
];

/// Why a call fails.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    pub status: rudder_status,
    pub cause: Cow<'static, str>,
}

/// What the inside of a call comes to.
pub(super) type Answer<T = ()> = Result<T, Failure>;

impl Failure {
    pub fn new(status: rudder_status, cause: impl Into<Cow<'static, str>>) -> Self {
        Self { status, cause: cause.into() }
    }

    pub fn argument(cause: impl Into<Cow<'static, str>>) -> Self {
        Self::new(RUDDER_ARGUMENT, cause)
    }

    /// The argument of this name is NULL.
    pub fn null(name: &str) -> Self {
        Self::new(RUDDER_NULL_ARGUMENT, format!("argument: {name} is NULL"))
    }

    /// Remembers the cause for the thread.
    fn tell(self) -> rudder_status {
        tell(self.cause);
        self.status
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let status = match &error {
            // A trace is a setting that could not be carried out.
            Error::Config(_) | Error::Trace { .. } => RUDDER_CONFIG,
            Error::Argument(_) | Error::UnknownTable(_) => RUDDER_ARGUMENT,
            Error::NodeOutOfRange { .. } => RUDDER_NODE_OUT_OF_RANGE,
            Error::PartitionBook(_) => RUDDER_PARTITION_BOOK,
            Error::Memory { .. } => RUDDER_MEMORY,
            Error::TableFile { .. } => RUDDER_TABLE_FILE,
            Error::Bootstrap { .. } => RUDDER_BOOTSTRAP,
            Error::Token { .. } | Error::Transport { .. } => RUDDER_TRANSPORT,
            Error::Get { .. } => RUDDER_GET,
            Error::Deadline { .. } => RUDDER_DEADLINE,
            Error::Full { .. } => RUDDER_FULL,
            Error::Ticket(_) => RUDDER_TICKET,
            Error::Model { .. } => RUDDER_MODEL,
            Error::Closed => RUDDER_CLOSED,
            Error::Forked => RUDDER_FORKED,
        };
        let cause = match error {
            // C's ids have a sign.
            Error::NodeOutOfRange { table, node: NodeId(node), nodes } if i64::try_from(node).is_err() => {
                format!("node {} is negative; {table} has nodes 0..{nodes}", node as i64)
            }
            error => error.to_string(),
        };
        Self::new(status, cause)
    }
}

thread_local! {
    static LAST: RefCell<Cow<'static, CStr>> = const { RefCell::new(Cow::Borrowed(c"")) };
}

/// Makes this the thread's last error.
pub(super) fn tell(cause: Cow<'static, str>) {
    let text = match cause {
        Cow::Borrowed("") => Cow::Borrowed(c""),
        cause => {
            let bytes = cause.into_owned().into_bytes();
            // A path of the caller's may hold anything but this.
            let bytes: Vec<u8> = bytes.into_iter().filter(|&byte| byte != 0).collect();
            CString::new(bytes).map_or(Cow::Borrowed(c"the cause cannot be told"), Cow::Owned)
        }
    };
    // A thread that is ending has nobody to tell.
    let _ = LAST.try_with(|last| *last.borrow_mut() = text);
}

/// The process that has a comm, or has had one; 0 before.
static PROCESS: AtomicU32 = AtomicU32::new(0);

/// From now on, children of this process are told that they are.
pub(super) fn claim_process() {
    PROCESS.store(std::process::id(), Ordering::Relaxed);
}

fn is_forked() -> bool {
    let process = PROCESS.load(Ordering::Relaxed);
    process != 0 && process != std::process::id()
}

/// The frame of every call that has a status.
pub(super) fn call_for(body: impl FnOnce() -> Answer<rudder_status>) -> rudder_status {
    // Before any lock: a thread of the parent's may have held it at the fork.
    if is_forked() {
        return Failure::from(Error::Forked).tell();
    }
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(status)) => status,
        Ok(Err(failure)) => failure.tell(),
        Err(panic) => {
            let words = panic.downcast_ref::<&str>().copied();
            let words = words.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no words");
            let cause = format!("a bug of rudder, please report it: it panicked with `{words}`");
            // What was thrown may itself panic when it is dropped.
            std::mem::forget(panic);
            Failure::new(RUDDER_PANIC, cause).tell()
        }
    }
}

/// As [`call_for`], for calls that are done when they return.
pub(super) fn call(body: impl FnOnce() -> Answer) -> rudder_status {
    call_for(|| body().map(|()| RUDDER_DONE))
}

/// Why the last failing call of this thread failed: never NULL, empty before the first; valid until the thread's next failing call or its end.
/// Calls that succeed leave it alone.
#[unsafe(no_mangle)]
pub extern "C" fn rudder_last_error() -> *const c_char {
    LAST.try_with(|last| last.borrow().as_ptr()).unwrap_or(c"".as_ptr())
}

/// The name of a status, such as "RUDDER_CLOSED"; never NULL, "unknown" for a number that is none.
#[unsafe(no_mangle)]
pub extern "C" fn rudder_status_name(status: rudder_status) -> *const c_char {
    NAMES.iter().find(|(known, _)| *known == status).map_or(c"unknown", |(_, name)| name).as_ptr()
}

#[cfg(test)]
mod tests {
    //! Goal: a panic ends a call, not the process, and only failures change the last error. Method: calls made for it.
    use super::*;

    fn last() -> String {
        // SAFETY: the text is the thread's own, and no call comes between.
        unsafe { CStr::from_ptr(rudder_last_error()) }.to_string_lossy().into_owned()
    }

    #[test]
    fn a_panic_is_a_status() {
        assert_eq!(last(), "");
        let at = [1];
        let beyond = std::hint::black_box(1);
        assert_eq!(call(|| panic!("at {}", at[beyond])), RUDDER_PANIC);
        assert!(last().contains("a bug of rudder") && last().contains("out of bounds"), "{}", last());
        assert_eq!(call(|| Ok(())), RUDDER_DONE);
        assert!(last().contains("out of bounds"));
        assert_eq!(call(|| Err(Failure::argument("zeros\0within"))), RUDDER_ARGUMENT);
        assert_eq!(last(), "zeroswithin");
    }

    #[test]
    fn negative_nodes_are_told_with_their_sign() {
        let node = NodeId(-3i64 as u64);
        let failure = Failure::from(Error::NodeOutOfRange { table: crate::TableId(2), node, nodes: 10 });
        assert_eq!(
            (failure.status, &*failure.cause),
            (RUDDER_NODE_OUT_OF_RANGE, "node -3 is negative; table 2 has nodes 0..10")
        );
    }
}
