//! One rank's part in a job.

use super::argument::Out;
use super::config::{read_config, rudder_config};
use super::handle::{Handle, Kind, Registry};
use super::loan::{Lender, Loan};
use super::registration::REGISTRATIONS;
use super::request::REQUESTS;
use super::rows::ROWS;
use super::status::{
    Answer, Failure, RUDDER_ALREADY_STARTED, RUDDER_CLOSED, RUDDER_DEADLINE, RUDDER_DONE, RUDDER_NOT_STARTED,
    RUDDER_TRANSPORT, call, claim_process, rudder_status,
};
use super::table::TABLES;
use super::unique_id::{read_id, rudder_unique_id};
use super::{log, status};
use crate::bootstrap::{Bootstrap, TcpBootstrap};
use crate::config::Config;
use crate::engine::{Engine, TableSpec};
use crate::error::Error;
use crate::id::Rank;
use crate::memory::Memory;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

/// One rank's part in a job: its tables, and what reads those of the other ranks. Any number of threads may use it at once.
pub struct rudder_comm {
    _opaque: [u8; 0],
}

pub(super) static COMMS: Registry<Arc<Comm>> = Registry::new(Kind::Comm, 1024);

/// What calls of other threads are given to end, and the library to let go of the program's memory.
pub(super) const LET_GO_WITHIN: Duration = Duration::from_secs(30);

/// What a start takes.
pub(super) struct Building {
    config: Config,
    bootstrap: Arc<dyn Bootstrap>,
    /// Rows are `None` where the partition has none.
    pub tables: Vec<(TableSpec, Option<Memory>)>,
}

/// What a comm's handle names.
pub(super) struct Comm {
    building: Mutex<Option<Building>>,
    engine: OnceLock<Engine>,
    /// Why it takes no calls any more.
    ended: OnceLock<String>,
    pub lender: Arc<Lender>,
    // Last: the engine is gone, and with it its hold on all other memory, when this ends.
    _loan: Loan,
}

impl Comm {
    fn new(building: Option<Building>, engine: OnceLock<Engine>) -> Self {
        let lender = Arc::new(Lender::default());
        let (building, ended) = (Mutex::new(building), OnceLock::new());
        Self { building, engine, ended, _loan: lender.lend(), lender }
    }

    /// A comm that has started.
    #[cfg(test)]
    pub fn started_as(engine: Engine) -> Self {
        Self::new(None, OnceLock::from(engine))
    }

    fn building(&self) -> MutexGuard<'_, Option<Building>> {
        self.building.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether nothing has ended it.
    pub fn check_open(&self) -> Answer {
        let closed = |cause: String| Err(Failure::new(RUDDER_CLOSED, cause));
        match (self.ended.get(), self.engine.get().and_then(Engine::failure)) {
            (_, Some(cause)) => closed(format!("the comm has ended by an error: {cause}")),
            (Some(cause), None) => closed(cause.clone()),
            (None, None) => Ok(()),
        }
    }

    /// The engine, for calls that need it running.
    pub fn engine(&self) -> Answer<&Engine> {
        self.check_open()?;
        let not_started = || Failure::new(RUDDER_NOT_STARTED, "the comm is not started: call rudder_comm_start");
        self.engine.get().ok_or_else(not_started)
    }

    /// The engine, whether it runs or has ended.
    pub fn started(&self) -> Option<&Engine> {
        self.engine.get()
    }

    /// What went wrong in the engine, in the comm's words.
    pub fn explain(&self, error: Error) -> Failure {
        match (error, self.check_open()) {
            (Error::Closed, Err(ended)) => ended,
            (error, _) => error.into(),
        }
    }

    /// Shows what is built so far to `body`.
    pub fn build<R>(&self, body: impl FnOnce(&mut Building) -> Answer<R>) -> Answer<R> {
        self.check_open()?;
        body(self.building().as_mut().ok_or_else(already_started)?)
    }

    fn end(&self, cause: &str) {
        self.ended.get_or_init(|| cause.to_owned());
    }

    fn abort(&self) {
        self.end("the comm was aborted");
        if let Some(engine) = self.engine.get() {
            engine.abort();
        }
    }

    fn start(&self) -> Answer {
        self.check_open()?;
        let taken = self.building().take();
        let Building { config, bootstrap, tables } = taken.ok_or_else(already_started)?;
        let mut builder = Engine::builder(config, bootstrap);
        for (spec, rows) in tables {
            builder = match rows {
                // SAFETY: the header forbids the program to write to its rows while the comm lives.
                Some(rows) => unsafe { builder.table_memory(spec, rows) },
                None => builder.table(spec, |_| ()),
            };
        }
        let engine = builder.start().inspect_err(|error| self.end(&format!("the start has failed: {error}")))?;
        let engine = self.engine.get_or_init(|| engine);
        if self.ended.get().is_some() {
            // Another thread has aborted meanwhile.
            engine.abort();
        }
        self.check_open()
    }
}

/// The settings as the start will make them, which tells of each variable that it heeds: wrong ones are found before the ranks meet.
fn settled(config: &Config) -> Answer<Config> {
    tracing::subscriber::with_default(tracing::subscriber::NoSubscriber::default(), || {
        let mut config = config.clone();
        config.override_by(|name| std::env::var(name).ok())?;
        config.settle()?;
        Ok(config)
    })
}

fn already_started() -> Failure {
    let cause = "the comm is started, or starting: it is started once, and its tables are created before";
    Failure::new(RUDDER_ALREADY_STARTED, cause)
}

/// The comm of a handle, for one call.
pub(super) fn find(comm: *const rudder_comm) -> Answer<Arc<Comm>> {
    if comm.is_null() {
        return Err(Failure::null("comm"));
    }
    COMMS.with(Handle::of(comm), |comm| Ok(comm.clone()))
}

/// Joins the job of `id` as one of `ranks` ranks, and returns once all have. Collective: every rank calls it, rank 0 in the process that
/// created the id. `config` may be NULL. Waits for at most the setting `collective_timeout`, 60 s by default.
///
/// The comm is the caller's, to be destroyed by rudder_comm_destroy. Next come its tables, then rudder_comm_start.
///
/// Errors: RUDDER_NULL_ARGUMENT, RUDDER_ARGUMENT (a rank not below `ranks`, bytes that are no unique id), RUDDER_ABI, RUDDER_CONFIG,
/// RUDDER_BOOTSTRAP (names the ranks that did not come, or why this one was refused), RUDDER_FULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rudder_comm_create(
    id: *const rudder_unique_id,
    ranks: u32,
    rank: u32,
    config: *const rudder_config,
    comm: *mut *mut rudder_comm,
) -> rudder_status {
    call(|| {
        log::install();
        // SAFETY: what the header asks of the caller.
        let (comm, id, config) = unsafe { (Out::new(comm, "comm")?, read_id(id)?, read_config(config)?) };
        let timeout = settled(&config)?.collective_timeout;
        let bootstrap = Arc::new(TcpBootstrap::join(&id, Rank(rank), ranks, timeout)?);
        claim_process();
        let joined = Comm::new(Some(Building { config, bootstrap, tables: Vec::new() }), OnceLock::new());
        comm.set(COMMS.insert(Arc::new(joined))?.to_pointer());
        Ok(())
    })
}

/// Opens the transport, exchanges the tables made so far and begins to serve. Collective: all ranks call it, with tables of the same ids,
/// row bytes, versions and starts, made in the same order. Waits for at most the setting `collective_timeout` at each of its steps.
///
/// After an error the comm can only be destroyed. With a language model in this process (controllers llm-replace, llm-cohorts) it may set
/// CANDLE_NUM_THREADS: no other thread may call getenv or setenv meanwhile.
///
/// Errors: RUDDER_ALREADY_STARTED, RUDDER_CONFIG, RUDDER_BOOTSTRAP, RUDDER_TRANSPORT, RUDDER_MEMORY, RUDDER_TABLE_FILE, RUDDER_MODEL,
/// RUDDER_CLOSED (aborted meanwhile, or an earlier start has failed).
#[unsafe(no_mangle)]
pub extern "C" fn rudder_comm_start(comm: *mut rudder_comm) -> rudder_status {
    call(|| find(comm)?.start())
}

/// Ends this rank's part at once, without the others: all open requests and calls of other threads end with RUDDER_CLOSED, and so does
/// every later call but those that read counts, read what has ended, and destroy. A start under way ends by its own deadline.
/// Other ranks can read this rank's rows until the comm is destroyed. Aborting again does nothing.
#[unsafe(no_mangle)]
pub extern "C" fn rudder_comm_abort(comm: *mut rudder_comm) -> rudder_status {
    call(|| {
        find(comm)?.abort();
        Ok(())
    })
}

/// Says whether the comm is well: `*error` becomes RUDDER_DONE while it is, RUDDER_TRANSPORT once it has ended by an error that no
/// request could be told of, RUDDER_CLOSED where it was aborted, shut down or did not start; for these rudder_last_error() tells why, though this
/// call itself is done. What fails for one request or one peer is that request's status only.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rudder_comm_async_error(comm: *const rudder_comm, error: *mut rudder_status) -> rudder_status {
    call(|| {
        // SAFETY: what the header asks of the caller.
        let error = unsafe { Out::new(error, "error")? };
        let comm = find(comm)?;
        let failed = comm.engine.get().is_some_and(|engine| engine.failure().is_some());
        error.set(match comm.check_open() {
            Ok(()) => RUDDER_DONE,
            Err(Failure { status, cause }) => {
                status::tell(cause);
                if failed { RUDDER_TRANSPORT } else { status }
            }
        });
        Ok(())
    })
}

/// Ends the job together: no rank reads any more when it returns, so that all may destroy their comms. Collective, within the setting
/// `collective_timeout`; open requests end with RUDDER_CLOSED, as does every later call (see rudder_comm_abort).
///
/// Errors: RUDDER_NOT_STARTED, RUDDER_CLOSED, RUDDER_BOOTSTRAP (names the ranks that did not come; this rank has ended all the same).
#[unsafe(no_mangle)]
pub extern "C" fn rudder_comm_shutdown(comm: *mut rudder_comm) -> rudder_status {
    call(|| {
        let comm = find(comm)?;
        let engine = comm.engine()?;
        comm.end("the comm was shut down");
        Ok(engine.close()?)
    })
}

/// While paused (`paused` is not 0), gathers are served, but the buffer and the controller learn nothing from them: for evaluation and
/// inference. Applies to requests that start after it.
#[unsafe(no_mangle)]
pub extern "C" fn rudder_comm_pause(comm: *mut rudder_comm, paused: i32) -> rudder_status {
    call(|| {
        find(comm)?.engine()?.pause(paused != 0);
        Ok(())
    })
}

/// Waits until no row is on its way: the buffers' first fill is in place, rows fetched ahead have landed.
///
/// Errors: RUDDER_TRANSPORT where it is not so within `timeout_ms` milliseconds; RUDDER_NOT_STARTED, RUDDER_CLOSED.
#[unsafe(no_mangle)]
pub extern "C" fn rudder_comm_wait_idle(comm: *mut rudder_comm, timeout_ms: u32) -> rudder_status {
    call(|| {
        let comm = find(comm)?;
        let waited = comm.engine()?.wait_idle(Duration::from_millis(timeout_ms.into()));
        waited.map_err(|error| comm.explain(error))
    })
}

/// Ends the comm as rudder_comm_abort does and frees it with all that was made of it: its tables, rows, registrations and requests, whose
/// handles answer RUDDER_HANDLE from then on. When it returns, nothing of the library uses the program's memory any more. Other ranks
/// that still read get errors: call rudder_comm_shutdown before where the job ends well. NULL is fine.
///
/// Errors: RUDDER_HANDLE (destroyed already); RUDDER_DEADLINE, where a call of another thread is still inside after 30 s: the comm is
/// gone, but the program's rows must stay valid until the process ends. In a forked child it touches nothing.
#[unsafe(no_mangle)]
pub extern "C" fn rudder_comm_destroy(comm: *mut rudder_comm) -> rudder_status {
    call(|| {
        if comm.is_null() {
            return Ok(());
        }
        let comm = COMMS.remove(Handle::of(comm))?;
        comm.end("the comm was destroyed");
        comm.abort();
        while REQUESTS.remove_any(|request| Arc::ptr_eq(&request.comm, &comm)).is_some() {}
        while ROWS.remove_any(|rows| Arc::ptr_eq(&rows.comm, &comm)).is_some() {}
        while REGISTRATIONS.remove_any(|registration| Arc::ptr_eq(&registration.comm, &comm)).is_some() {}
        while TABLES.remove_any(|table| Arc::ptr_eq(&table.comm, &comm)).is_some() {}
        let lender = comm.lender.clone();
        drop(comm);
        if lender.wait(LET_GO_WITHIN) {
            return Ok(());
        }
        let cause = format!(
            "the comm is still in use {LET_GO_WITHIN:?} after its end, by a call of another thread: rows given to it must stay valid"
        );
        Err(Failure::new(RUDDER_DEADLINE, cause))
    })
}
