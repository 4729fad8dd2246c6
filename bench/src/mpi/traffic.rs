//! What a training job does besides gathering: computing, and allreduce of gradients over all ranks.

use super::world::check;
use anyhow::{Context, Result, anyhow};
use mpi::ffi;
use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// Numbers of an allreduce: 1 MiB.
const GRADIENTS: usize = 256 << 10;
/// Between two of them, where nothing is computed: on few cores a rank that waits for the others would leave nothing for gathers.
const PAUSE: Duration = Duration::from_millis(1);
/// Rounds of computing between two of them: some milliseconds.
const STEP: u64 = 2_000_000;

/// What the traffic is of.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    computes: bool,
}

/// Traffic of all ranks, on a thread of each.
pub struct Traffic {
    over: Arc<AtomicBool>,
    thread: JoinHandle<Result<()>>,
}

impl Traffic {
    /// An allreduce, a pause, and so on.
    pub const ALLREDUCE: Load = Load { computes: false };
    /// Computing, an allreduce, and so on.
    pub const TRAINING: Load = Load { computes: true };

    /// Begins it. Every rank calls it; MPI must run at the level `multiple`.
    pub fn start(load: Load) -> Result<Self> {
        let mut own = Own(null_comm());
        // SAFETY: MPI runs; every rank calls this at the same point. A communicator of the thread's own keeps its collectives apart.
        check(unsafe { ffi::MPI_Comm_dup(ffi::RSMPI_COMM_WORLD, &mut own.0) }, "MPI_Comm_dup")?;
        let over = Arc::new(AtomicBool::new(false));
        let seen = over.clone();
        let thread = std::thread::Builder::new().name("traffic".into()).spawn(move || run(load, own, &seen));
        Ok(Self { over, thread: thread.context("no thread for traffic")? })
    }

    /// Ends it, once every rank has called this.
    pub fn stop(self) -> Result<()> {
        self.over.store(true, Ordering::Release);
        self.thread.join().map_err(|_| anyhow!("the traffic's thread panicked"))?
    }
}

/// The traffic's communicator.
struct Own(ffi::MPI_Comm);

// SAFETY: a handle is a name, and MPI runs at the level `multiple`.
unsafe impl Send for Own {}

fn null_comm() -> ffi::MPI_Comm {
    // SAFETY: a constant of the library.
    unsafe { ffi::RSMPI_COMM_NULL }
}

fn run(load: Load, mut own: Own, over: &AtomicBool) -> Result<()> {
    let (mut mine, mut sum) = (vec![1f32; GRADIENTS], vec![0f32; GRADIENTS]);
    let mut size = 0;
    // SAFETY: the communicator is this thread's.
    check(unsafe { ffi::MPI_Comm_size(own.0, &mut size) }, "MPI_Comm_size")?;
    // The first number counts the ranks that want to end: all see the same sum, and end after the same allreduce.
    while sum[0] < size as f32 {
        mine[0] = f32::from(u8::from(over.load(Ordering::Acquire)));
        if load.computes {
            compute(STEP);
        } else {
            std::thread::sleep(PAUSE);
        }
        // SAFETY: as many numbers from each rank as there is room for.
        let code = unsafe {
            let (from, to) = (mine.as_ptr().cast(), sum.as_mut_ptr().cast());
            ffi::MPI_Allreduce(from, to, GRADIENTS as i32, ffi::RSMPI_FLOAT, ffi::RSMPI_SUM, own.0)
        };
        check(code, "MPI_Allreduce")?;
    }
    // SAFETY: every rank has left the loop after the same allreduce.
    check(unsafe { ffi::MPI_Comm_free(&mut own.0) }, "MPI_Comm_free")
}

/// So many rounds of arithmetic that stay in registers: work of a known amount, however long it takes.
pub fn compute(rounds: u64) {
    let mut value = 1.0f64;
    for round in 0..rounds {
        value = black_box(value * 0.999_999 + round as f64 * 1e-9);
    }
    black_box(value);
}
