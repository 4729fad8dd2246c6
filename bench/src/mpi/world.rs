//! MPI as the benchmarks call it themselves: its start at the thread level asked for, and the few collectives that a measurement needs.

use super::args::ThreadLevel;
use anyhow::{Result, bail, ensure};
use mpi::ffi;
use rudder::bootstrap::{Bootstrap, MpiBootstrap};
use rudder::{Error, Rank};
use std::ffi::c_int;
use std::ptr::null_mut;
use std::thread::ThreadId;
use std::time::{Duration, Instant};

/// Whoever does not come within this is taken for dead.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// How often a rank that computes looks into MPI.
const LOOK: Duration = Duration::from_micros(200);

/// What a rank does while others measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waiting {
    /// Calls MPI all the time, as some libraries need of the owner of a window.
    InMpi,
    /// Sleeps, and looks into MPI now and then.
    Outside,
}

/// The ranks of the job.
pub struct World {
    pub rank: u32,
    pub size: u32,
    /// Ranks on this rank's host.
    pub ranks_on_host: u32,
    pub level: ThreadLevel,
    /// `None` where MPI was started here, at a lower level than the library's own bootstrap asks for.
    started: Option<MpiBootstrap>,
}

/// What MPI answered, in words where it failed.
pub fn check(code: c_int, call: &str) -> Result<()> {
    if code == 0 {
        return Ok(());
    }
    let mut words = vec![0u8; ffi::MPI_MAX_ERROR_STRING as usize + 1];
    let mut length = 0;
    // SAFETY: the buffer has room for the longest text that this MPI gives.
    unsafe { ffi::MPI_Error_string(code, words.as_mut_ptr().cast(), &mut length) };
    words.truncate(length.max(0) as usize);
    bail!("{call}: {}", String::from_utf8_lossy(&words).trim());
}

impl World {
    /// Starts MPI. Collective.
    pub fn start(level: ThreadLevel) -> Result<Self> {
        let started = if level == ThreadLevel::Multiple {
            Some(MpiBootstrap::world(PATIENCE)?)
        } else {
            start_below(level)?;
            None
        };
        let (mut rank, mut size) = (0, 0);
        // SAFETY: MPI runs; the constants are the library's.
        unsafe {
            check(
                ffi::MPI_Comm_set_errhandler(ffi::RSMPI_COMM_WORLD, ffi::RSMPI_ERRORS_RETURN),
                "MPI_Comm_set_errhandler",
            )?;
            check(ffi::MPI_Comm_rank(ffi::RSMPI_COMM_WORLD, &mut rank), "MPI_Comm_rank")?;
            check(ffi::MPI_Comm_size(ffi::RSMPI_COMM_WORLD, &mut size), "MPI_Comm_size")?;
        }
        let mut world = Self { rank: rank as u32, size: size as u32, ranks_on_host: 0, level, started };
        let host = rustix::system::uname().nodename().to_bytes().to_vec();
        world.ranks_on_host = world.gather(&host)?.iter().filter(|name| **name == host).count() as u32;
        Ok(world)
    }

    /// The bytes of every rank, in rank order. Collective.
    pub fn gather(&self, mine: &[u8]) -> Result<Vec<Vec<u8>>> {
        gather(self.size, mine)
    }

    /// Returns once every rank has called it.
    pub fn meet(&self, waiting: Waiting) -> Result<()> {
        let begun = Instant::now();
        // SAFETY: a constant of the library.
        let mut request = unsafe { ffi::RSMPI_REQUEST_NULL };
        // SAFETY: no buffers; the request is waited for here.
        check(unsafe { ffi::MPI_Ibarrier(ffi::RSMPI_COMM_WORLD, &mut request) }, "MPI_Ibarrier")?;
        loop {
            let mut done = 0;
            // SAFETY: the request was just made, or is null once done.
            check(unsafe { ffi::MPI_Test(&mut request, &mut done, ffi::RSMPI_STATUS_IGNORE) }, "MPI_Test")?;
            if done != 0 {
                return Ok(());
            }
            ensure!(begun.elapsed() < PATIENCE, "not all ranks came within {PATIENCE:?}");
            match waiting {
                Waiting::InMpi => std::thread::yield_now(),
                Waiting::Outside => std::thread::sleep(LOOK),
            }
        }
    }

    /// Puts the largest of all ranks in place of each number. Collective.
    pub fn largest(&self, numbers: &mut [f64]) -> Result<()> {
        let mine = numbers.to_vec();
        // SAFETY: as many numbers from each rank as there is room for.
        let code = unsafe {
            let (kind, operation, world) = (ffi::RSMPI_DOUBLE, ffi::RSMPI_MAX, ffi::RSMPI_COMM_WORLD);
            let (from, to) = (mine.as_ptr().cast(), numbers.as_mut_ptr().cast());
            ffi::MPI_Allreduce(from, to, mine.len() as c_int, kind, operation, world)
        };
        check(code, "MPI_Allreduce")
    }

    /// Ends MPI. Collective.
    pub fn end(self) -> Result<()> {
        self.meet(Waiting::InMpi)?;
        if self.started.is_none() {
            // SAFETY: started here, on this thread, and used no more.
            check(unsafe { ffi::MPI_Finalize() }, "MPI_Finalize")?;
        }
        Ok(())
    }
}

fn gather(ranks: u32, mine: &[u8]) -> Result<Vec<Vec<u8>>> {
    let size = ranks as usize;
    let (length, mut lengths) = (mine.len() as c_int, vec![0 as c_int; size]);
    // SAFETY: one int from each rank, into room for all.
    unsafe {
        let (kind, world) = (ffi::RSMPI_INT32_T, ffi::RSMPI_COMM_WORLD);
        let (from, to) = ((&raw const length).cast(), lengths.as_mut_ptr().cast());
        check(ffi::MPI_Allgather(from, 1, kind, to, 1, kind, world), "MPI_Allgather")?;
    }
    let starts: Vec<c_int> =
        lengths.iter().scan(0, |end, &length| Some(std::mem::replace(end, *end + length))).collect();
    let mut bytes = vec![0u8; lengths.iter().sum::<c_int>() as usize];
    if bytes.is_empty() {
        // An empty list's address can be the one that stands for MPI_IN_PLACE.
        return Ok(vec![Vec::new(); size]);
    }
    // SAFETY: each rank sends what it has said, into room for all.
    unsafe {
        let (kind, world) = (ffi::RSMPI_UINT8_T, ffi::RSMPI_COMM_WORLD);
        let (from, to) = (mine.as_ptr().cast(), bytes.as_mut_ptr().cast());
        let (counts, starts) = (lengths.as_ptr(), starts.as_ptr());
        check(ffi::MPI_Allgatherv(from, length, kind, to, counts, starts, kind, world), "MPI_Allgatherv")?;
    }
    Ok(starts.iter().zip(&lengths).map(|(&at, &length)| bytes[at as usize..][..length as usize].to_vec()).collect())
}

/// Ends all ranks, because this one cannot go on.
pub fn abort() -> ! {
    // SAFETY: MPI runs; the call does not come back.
    unsafe { ffi::MPI_Abort(ffi::RSMPI_COMM_WORLD, 1) };
    std::process::exit(1)
}

/// Starts MPI at a level at which the library's own bootstrap would refuse it.
fn start_below(level: ThreadLevel) -> Result<()> {
    let mut given = 0;
    // SAFETY: MPI is not started; it takes no arguments from a program that does not hand them over.
    unsafe {
        let wanted = match level {
            ThreadLevel::Single => ffi::RSMPI_THREAD_SINGLE,
            ThreadLevel::Funneled => ffi::RSMPI_THREAD_FUNNELED,
            ThreadLevel::Serialized => ffi::RSMPI_THREAD_SERIALIZED,
            ThreadLevel::Multiple => ffi::RSMPI_THREAD_MULTIPLE,
        };
        check(ffi::MPI_Init_thread(null_mut(), null_mut(), wanted, &mut given), "MPI_Init_thread")?;
        if given < wanted {
            bail!("MPI gives less than the thread level {level:?}");
        }
    }
    Ok(())
}

/// The MPI that this program is linked with, and what it was told of its ways.
pub fn library() -> String {
    let version = mpi::environment::library_version().unwrap_or_default();
    let name = version.lines().next().unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ");
    let name = name.split(", package").next().unwrap_or_default().to_owned();
    let ways = ["UCX_TLS", "MPIR_CVAR_NOLOCAL", "OMPI_MCA_pml", "OMPI_MCA_btl", "OMPI_MCA_osc"];
    let told = ways.map(|name| std::env::var(name).map(|value| format!(", {name}={value}")));
    told.into_iter().flatten().fold(name, |name, told| name + &told)
}

/// The job for our engine: its start-up by MPI calls of its caller, whatever level MPI runs at.
pub struct WorldBootstrap {
    rank: Rank,
    size: u32,
    /// Whose calls MPI takes.
    home: Option<ThreadId>,
}

impl WorldBootstrap {
    pub fn new(world: &World) -> Self {
        let home = (world.level != ThreadLevel::Multiple).then(|| std::thread::current().id());
        Self { rank: Rank(world.rank), size: world.size, home }
    }
}

impl Bootstrap for WorldBootstrap {
    fn rank(&self) -> Rank {
        self.rank
    }

    fn size(&self) -> u32 {
        self.size
    }

    /// Without a deadline of its own: MPI's collectives have none.
    fn all_gather(&self, mine: &[u8], _timeout: Duration) -> rudder::Result<Vec<Vec<u8>>> {
        let failed = |cause: String| Error::Bootstrap { rank: self.rank, cause };
        if self.home.is_some_and(|home| home != std::thread::current().id()) {
            return Err(failed("MPI takes calls of its first thread only: --thread-level multiple".into()));
        }
        gather(self.size, mine).map_err(|cause| failed(format!("{cause:#}")))
    }
}
