//! MPI itself: started and ended once a process, communicators whose collectives have deadlines, and its errors in words.
//!
//! The bootstrap and the transport stand on this. Every handle holds a [`User`], so that MPI ends with the last of them, and only where
//! it was started here: a program that has started MPI itself ends it itself.

mod comm;
mod runtime;

pub(crate) use comm::{Comm, arrived, receive_empty};
pub(crate) use runtime::User;

use ::mpi::ffi;
use std::ffi::{c_char, c_int};
use std::time::{Duration, Instant};

/// What MPI answered, in words.
pub(crate) fn check(code: c_int, call: &str) -> Result<(), String> {
    // Zero is success in every MPI: the standard says so.
    if code == 0 { Ok(()) } else { Err(format!("{call}: {}", text(code))) }
}

fn text(code: c_int) -> String {
    let mut words = vec![0u8; ffi::MPI_MAX_ERROR_STRING as usize + 1];
    let mut length = 0;
    // SAFETY: the buffer has room for the longest text that this MPI gives.
    let told = unsafe { ffi::MPI_Error_string(code, words.as_mut_ptr().cast::<c_char>(), &mut length) };
    if told != 0 {
        return format!("error {code}");
    }
    words.truncate(length.max(0) as usize);
    String::from_utf8_lossy(&words).trim().to_owned()
}

/// How often a request is asked for before its waiter sleeps, and the sleeps: short first, since most collectives end at once.
const TESTS_BEFORE_SLEEP: u32 = 200;
const SLEEP_MIN: Duration = Duration::from_micros(20);
const SLEEP_MAX: Duration = Duration::from_millis(1);

/// Waits for a request until the deadline; false where it is still under way then. The request and its buffers stay MPI's in that case.
pub(crate) fn wait(request: &mut ffi::MPI_Request, deadline: Instant) -> Result<bool, String> {
    let (mut tests, mut sleep) = (0, SLEEP_MIN);
    loop {
        if test(request)? {
            return Ok(true);
        }
        if Instant::now() >= deadline {
            return Ok(false);
        }
        tests += 1;
        if tests < TESTS_BEFORE_SLEEP {
            std::thread::yield_now();
        } else {
            std::thread::sleep(sleep);
            sleep = (sleep * 2).min(SLEEP_MAX);
        }
    }
}

/// Whether a request is done.
pub(crate) fn test(request: &mut ffi::MPI_Request) -> Result<bool, String> {
    let mut done = 0;
    // SAFETY: the request is one that this process started, or the null request, which is always done.
    check(unsafe { ffi::MPI_Test(request, &mut done, ffi::RSMPI_STATUS_IGNORE) }, "MPI_Test")?;
    Ok(done != 0)
}

/// An MPI handle that may go from thread to thread.
#[derive(Clone, Copy)]
pub(crate) struct Handle<T>(pub(crate) T);

// SAFETY: a handle is a name of something that MPI keeps, and MPI runs with MPI_THREAD_MULTIPLE.
unsafe impl<T> Send for Handle<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Handle<T> {}

impl<T: Copy> Handle<T> {
    pub(crate) fn get(&self) -> T {
        self.0
    }
}
