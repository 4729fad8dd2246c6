//! MPI's one life in a process.
//!
//! A thread of its own starts MPI and ends it, because both belong on the same thread and the last handle may be dropped on any. Ending
//! is collective: it waits for the other ranks until a deadline, and where they do not come the process leaves without it, which the
//! launcher takes for the failure that it is.

use super::{check, wait};
use ::mpi::ffi;
use std::ffi::{c_char, c_int};
use std::ptr::null_mut;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Time for the other ranks to come to the end, and for MPI to end.
const END_TIMEOUT: Duration = Duration::from_secs(20);

enum State {
    /// Not started here, or ended where somebody else started it.
    Idle,
    Starting(Receiver<Result<Runtime, String>>),
    Running {
        runtime: Arc<Runtime>,
        users: usize,
    },
    Ended,
}

static STATE: Mutex<State> = Mutex::new(State::Idle);

fn state() -> MutexGuard<'static, State> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A running MPI.
struct Runtime {
    library: String,
    /// The thread that has started MPI and ends it; `None` where the program has.
    home: Option<Mutex<Home>>,
    /// What is being freed with the other ranks at this moment.
    closing: Mutex<usize>,
    closed: Condvar,
}

struct Home {
    end: Sender<()>,
    ended: Receiver<()>,
}

/// Keeps MPI running.
pub(crate) struct User {
    runtime: Arc<Runtime>,
    process: u32,
}

impl User {
    /// Starts MPI where nobody has, within the timeout.
    pub(crate) fn enter(timeout: Duration) -> Result<Self, String> {
        let mut state = state();
        if matches!(*state, State::Idle) {
            *state = match adopt()? {
                Some(runtime) => State::Running { runtime: Arc::new(runtime), users: 0 },
                None => State::Starting(start()?),
            };
        }
        if let State::Starting(answer) = &*state {
            let started = answer.recv_timeout(timeout).unwrap_or_else(|error| match error {
                RecvTimeoutError::Timeout => {
                    Err(format!("MPI_Init_thread did not return within {timeout:?}: were all ranks started?"))
                }
                RecvTimeoutError::Disconnected => Err("the thread that starts MPI is gone".into()),
            });
            *state = State::Running { runtime: Arc::new(started?), users: 0 };
        }
        match &mut *state {
            State::Running { runtime, users } => {
                *users += 1;
                Ok(Self { runtime: runtime.clone(), process: std::process::id() })
            }
            _ => Err("MPI has ended in this process and cannot start again: keep one bootstrap until the end".into()),
        }
    }

    /// What the library calls itself.
    pub(crate) fn library(&self) -> &str {
        &self.runtime.library
    }

    /// Whether this is the process that the handle was made in, and MPI has not been ended by the program.
    pub(crate) fn may_call(&self) -> bool {
        let mut ended = 0;
        // SAFETY: may be called at any time.
        self.process == std::process::id() && unsafe { ffi::MPI_Finalized(&mut ended) } == 0 && ended == 0
    }

    /// Runs `close` on a thread of its own; MPI is not ended before it is over.
    pub(crate) fn close_beside(&self, close: impl FnOnce() + Send + 'static) {
        let runtime = self.runtime.clone();
        *runtime.closing.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        let thread = std::thread::Builder::new().name("rudder-mpi-close".into()).spawn({
            let runtime = runtime.clone();
            move || {
                close();
                runtime.one_closed();
            }
        });
        if let Err(cause) = thread {
            tracing::warn!("mpi: no thread to free windows and communicators with, so they stay: {cause}");
            runtime.one_closed();
        }
    }
}

impl Clone for User {
    fn clone(&self) -> Self {
        if let State::Running { users, .. } = &mut *state() {
            *users += 1;
        }
        Self { runtime: self.runtime.clone(), process: self.process }
    }
}

impl Drop for User {
    fn drop(&mut self) {
        if self.process != std::process::id() {
            // A forked child: MPI is its parent's, whose threads may have held the lock.
            return;
        }
        let mut state = state();
        let State::Running { users, .. } = &mut *state else { return };
        *users -= 1;
        if *users > 0 {
            return;
        }
        *state = if self.runtime.home.is_some() { State::Ended } else { State::Idle };
        drop(state);
        self.runtime.end();
    }
}

impl Runtime {
    fn one_closed(&self) {
        *self.closing.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        self.closed.notify_all();
    }

    /// Ends MPI if it was started here and the other ranks come.
    fn end(&self) {
        let deadline = Instant::now() + END_TIMEOUT;
        let closing = self.closing.lock().unwrap_or_else(PoisonError::into_inner);
        let (closing, _) = self
            .closed
            .wait_timeout_while(closing, END_TIMEOUT, |closing| *closing > 0)
            .unwrap_or_else(PoisonError::into_inner);
        let Some(home) = &self.home else { return };
        if *closing > 0 || std::thread::panicking() || !met(deadline) {
            tracing::warn!(
                "mpi: this process leaves without MPI_Finalize, because it failed or other ranks are not there"
            );
            return;
        }
        let home = home.lock().unwrap_or_else(PoisonError::into_inner);
        if home.end.send(()).is_err() || home.ended.recv_timeout(END_TIMEOUT).is_err() {
            tracing::warn!("mpi: MPI_Finalize did not return within {END_TIMEOUT:?}");
        }
    }
}

/// Whether every rank of the world has come to its end.
fn met(deadline: Instant) -> bool {
    // SAFETY: MPI was started here and has not ended; a request that is left behind has no buffer.
    let started = unsafe {
        let mut request = ffi::RSMPI_REQUEST_NULL;
        check(ffi::MPI_Ibarrier(ffi::RSMPI_COMM_WORLD, &mut request), "MPI_Ibarrier").map(|()| request)
    };
    started.and_then(|mut request| wait(&mut request, deadline)).unwrap_or(false)
}

/// The MPI that the program has started; `None` where it has not.
fn adopt() -> Result<Option<Runtime>, String> {
    let (mut started, mut ended, mut level) = (0, 0, 0);
    // SAFETY: both may be called at any time.
    unsafe {
        check(ffi::MPI_Initialized(&mut started), "MPI_Initialized")?;
        check(ffi::MPI_Finalized(&mut ended), "MPI_Finalized")?;
    }
    if ended != 0 {
        return Err("the program has ended MPI (MPI_Finalize): end the engine first".into());
    }
    if started == 0 {
        return Ok(None);
    }
    // SAFETY: MPI is started and not ended.
    check(unsafe { ffi::MPI_Query_thread(&mut level) }, "MPI_Query_thread")?;
    require_threads(level)?;
    Ok(Some(Runtime::new(None)))
}

impl Runtime {
    fn new(home: Option<Mutex<Home>>) -> Self {
        let library = library();
        tracing::info!(
            "mpi: {library}, {}",
            if home.is_some() { "started here" } else { "started by the program, which also ends it" }
        );
        Self { library, home, closing: Mutex::new(0), closed: Condvar::new() }
    }
}

fn require_threads(level: c_int) -> Result<(), String> {
    // SAFETY: constants of the library.
    if level == unsafe { ffi::RSMPI_THREAD_MULTIPLE } {
        return Ok(());
    }
    Err(format!(
        "MPI gives thread level {level}, and gets beside the program's own calls need MPI_THREAD_MULTIPLE: initialise with \
         MPI_Init_thread(…, MPI_THREAD_MULTIPLE, …), or use an MPI that is built with it"
    ))
}

fn library() -> String {
    let mut name = vec![0u8; ffi::MPI_MAX_LIBRARY_VERSION_STRING as usize + 1];
    let mut length = 0;
    // SAFETY: the buffer has room for the longest name that this MPI gives.
    unsafe { ffi::MPI_Get_library_version(name.as_mut_ptr().cast::<c_char>(), &mut length) };
    name.truncate(length.max(0) as usize);
    // MPICH lists its whole configuration after the first line.
    let name = String::from_utf8_lossy(&name);
    name.lines().next().unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Starts MPI on a thread that stays until it ends MPI.
fn start() -> Result<Receiver<Result<Runtime, String>>, String> {
    let (answer, answered) = channel();
    let thread = std::thread::Builder::new().name("rudder-mpi".into()).spawn(move || {
        let mut level = 0;
        // SAFETY: MPI is not started; it takes no arguments from a program that does not hand them over.
        let code = unsafe { ffi::MPI_Init_thread(null_mut(), null_mut(), ffi::RSMPI_THREAD_MULTIPLE, &mut level) };
        let started = check(code, "MPI_Init_thread").and_then(|()| require_threads(level));
        let (end, ends) = channel();
        let (over, ended) = channel();
        let home = Mutex::new(Home { end, ended });
        let may_end = started.is_ok();
        if answer.send(started.map(|()| Runtime::new(Some(home)))).is_err() || !may_end {
            return;
        }
        if ends.recv().is_ok() {
            // SAFETY: the thread that started MPI ends it, once no handle is left and every rank has come.
            unsafe { ffi::MPI_Finalize() };
            // Nobody listens where the time was up.
            let _ = over.send(());
        }
    });
    thread.map(|_| answered).map_err(|cause| format!("no thread to start MPI on: {cause}"))
}
