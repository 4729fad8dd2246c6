//! Gets of random rows beside raw `MPI_Get`, in one run of two processes of one host:
//!
//! ```text
//! MPICC=mpicc.mpich cargo bench --no-default-features --features mpi --bench mpi_get --no-run --target-dir target/mpich
//! mpiexec.mpich -n 2 target/mpich/release/deps/mpi_get-… [row bytes] [batch] [pairs]
//! ```
//!
//! With `MPIR_CVAR_NOLOCAL=1 UCX_TLS=tcp,self` MPICH (over UCX) takes loopback instead of shared memory, Open MPI with
//! `--mca pml ob1 --mca btl tcp,self --mca osc rdma`: that is what our own `tcp` is held against.
//!
//! Each measurement is a pair, ours and the raw calls on the same rows one right after the other and in alternating order, since on a shared
//! machine only what ran at the same time can be compared. The raw calls are what a program would write: one `MPI_Get` of bytes a row, or
//! one with a datatype of byte blocks, made for the batch, and a flush. Their owner waits in MPI, as some libraries need; ours is measured
//! so too, and once more while its owner computes.

mod results;

use mpi::ffi;
use rand::{Rng, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;
use results::{Measured, Results};
use rudder::Rank;
use rudder::bootstrap::{Bootstrap, MpiBootstrap};
use rudder::memory::{Access, Region};
use rudder::transport::mpi::MpiTransport;
use rudder::transport::{
    self, BatchId, Channel, Completion, Destination, RemoteRegion, RowBatch, Transport, TransportConfig, Wait,
};
use std::ffi::{c_int, c_void};
use std::ptr::null_mut;
use std::sync::Arc;
use std::time::{Duration, Instant};

const TABLE_BYTES: usize = 256 << 20;
const WARM_UP: usize = 10;
/// Longer means that something hangs.
const TIMEOUT: Duration = Duration::from_secs(60);
const OWNER: c_int = 1;
const TAG: c_int = 77;

/// What the owner does while rows are read from it.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(u8)]
enum Owner {
    WaitsInMpi = 1,
    Computes = 2,
    Leaves = 3,
}

fn ok(code: c_int) {
    assert_eq!(code, 0, "an MPI call failed");
}

fn byte(at: usize) -> u8 {
    (at as u64 / 8).wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes()[at % 8]
}

/// A window of raw MPI with the same rows.
struct Raw {
    window: ffi::MPI_Win,
    offsets: Vec<ffi::MPI_Aint>,
}

impl Raw {
    fn new() -> Self {
        let mut base: *mut u8 = null_mut();
        // SAFETY: both processes call it; the memory is filled before the barrier that lets the other read it.
        unsafe {
            let mut window = ffi::RSMPI_WIN_NULL;
            let address: *mut c_void = (&raw mut base).cast();
            let bytes = TABLE_BYTES as ffi::MPI_Aint;
            ok(ffi::MPI_Win_allocate(bytes, 1, ffi::RSMPI_INFO_NULL, ffi::RSMPI_COMM_WORLD, address, &mut window));
            (0..TABLE_BYTES).for_each(|at| base.add(at).write(byte(at)));
            ok(ffi::MPI_Win_lock_all(0, window));
            ok(ffi::MPI_Barrier(ffi::RSMPI_COMM_WORLD));
            Self { window, offsets: Vec::new() }
        }
    }

    fn plain(&mut self, rows: &[u64], row_bytes: usize, landing: &mut [u8]) {
        let count = row_bytes as c_int;
        // SAFETY: the rows lie in the owner's part, and the landing is borrowed until the flush.
        unsafe {
            let kind = ffi::RSMPI_UINT8_T;
            for (row, to) in rows.iter().zip(landing.chunks_mut(row_bytes)) {
                let at = (*row as usize * row_bytes) as ffi::MPI_Aint;
                ok(ffi::MPI_Get(to.as_mut_ptr().cast(), count, kind, OWNER, at, count, kind, self.window));
            }
            ok(ffi::MPI_Win_flush(OWNER, self.window));
        }
    }

    fn hindexed(&mut self, rows: &[u64], row_bytes: usize, landing: &mut [u8]) {
        self.offsets.clear();
        self.offsets.extend(rows.iter().map(|row| (*row as usize * row_bytes) as ffi::MPI_Aint));
        let (count, total) = (rows.len() as c_int, (rows.len() * row_bytes) as c_int);
        // SAFETY: as above; MPI copies the list.
        unsafe {
            let (kind, to) = (ffi::RSMPI_UINT8_T, landing.as_mut_ptr().cast());
            let mut list = kind;
            ok(ffi::MPI_Type_create_hindexed_block(count, row_bytes as c_int, self.offsets.as_ptr(), kind, &mut list));
            ok(ffi::MPI_Type_commit(&mut list));
            ok(ffi::MPI_Get(to, total, kind, OWNER, 0, 1, list, self.window));
            ok(ffi::MPI_Win_flush(OWNER, self.window));
            ok(ffi::MPI_Type_free(&mut list));
        }
    }

    fn end(mut self) {
        // SAFETY: both processes call it, and nobody reads any more.
        unsafe {
            ok(ffi::MPI_Win_unlock_all(self.window));
            ok(ffi::MPI_Win_free(&mut self.window));
        }
    }
}

/// One of our transports, and the owner's rows through it.
struct Ours {
    channel: Box<dyn Channel>,
    region: RemoteRegion,
    completions: Vec<Completion>,
    places: Vec<u32>,
    #[expect(dead_code, reason = "held until the end: the other process reads it")]
    table: Region,
    #[expect(dead_code, reason = "as above")]
    transport: Arc<dyn Transport>,
}

impl Ours {
    fn new(bootstrap: &MpiBootstrap, transport: Arc<dyn Transport>, batch: usize) -> Self {
        let gather = |mine: &[u8]| bootstrap.all_gather(mine, TIMEOUT).expect("both processes take part");
        transport.connect(&gather(&transport.address())).expect("the addresses are good");
        let table = transport.allocate(TABLE_BYTES, Access::RemoteRead).expect("memory is there");
        for at in 0..TABLE_BYTES {
            // SAFETY: within the region, which nobody has imported yet.
            unsafe { table.memory().base().add(at).write(byte(at)) };
        }
        let tokens = gather(table.token());
        let region = transport.import(Rank(OWNER as u32), &tokens[OWNER as usize]).expect("the token is good");
        let channel = transport.channel().expect("a channel is there");
        let places = (0..batch as u32).collect();
        Self { channel, region, completions: Vec::new(), places, table, transport }
    }

    fn get(&mut self, rows: &[u64], row_bytes: usize, landing: &mut [u8]) {
        let destination = Destination { base: landing.as_mut_ptr(), stride: row_bytes, places: rows.len() };
        let (region, places) = (self.region, &self.places[..rows.len()]);
        let batch = RowBatch { id: BatchId(0), region, version: 0, row_bytes, rows, places, destination };
        // SAFETY: the landing is borrowed until all rows have ended.
        let posted = unsafe { self.channel.post(&batch) }.expect("the batch is good");
        assert_eq!(posted, rows.len());
        let (began, mut ended) = (Instant::now(), 0);
        while ended < rows.len() {
            assert!(began.elapsed() < TIMEOUT, "a batch hangs");
            self.channel.poll(&mut self.completions, Wait::For(Duration::from_secs(1))).expect("the channel works");
            for completion in self.completions.drain(..) {
                completion.status.expect("the rows come");
                ended += completion.count as usize;
            }
        }
    }
}

/// Tells the owner what to do, and returns once it does it.
fn tell(owner: Owner) {
    let mut word = owner as u8;
    // SAFETY: a message of one byte and one back, both blocking.
    unsafe {
        let (kind, world) = (ffi::RSMPI_UINT8_T, ffi::RSMPI_COMM_WORLD);
        let address = (&raw mut word).cast();
        ok(ffi::MPI_Send(address, 1, kind, OWNER, TAG, world));
        ok(ffi::MPI_Recv(address, 1, kind, OWNER, TAG, world, ffi::RSMPI_STATUS_IGNORE));
    }
}

/// Does as told: waits in MPI, or stays out of it but for a look each ten milliseconds.
fn own() {
    let mut word = Owner::WaitsInMpi as u8;
    while word != Owner::Leaves as u8 {
        // SAFETY: a message of one byte and one back.
        unsafe {
            let (kind, world, ignore) = (ffi::RSMPI_UINT8_T, ffi::RSMPI_COMM_WORLD, ffi::RSMPI_STATUS_IGNORE);
            let mut there = 0;
            while word == Owner::Computes as u8 && there == 0 {
                std::thread::sleep(Duration::from_millis(10));
                ok(ffi::MPI_Iprobe(0, TAG, world, &mut there, ignore));
            }
            let address = (&raw mut word).cast();
            ok(ffi::MPI_Recv(address, 1, kind, 0, TAG, world, ignore));
            ok(ffi::MPI_Send(address, 1, kind, 0, TAG, world));
        }
    }
}

fn main() {
    let number = |at: usize, default: usize| {
        let numbers = std::env::args().skip(1).filter_map(|argument| argument.parse().ok());
        numbers.collect::<Vec<usize>>().get(at).copied().unwrap_or(default)
    };
    let (row_bytes, batch, pairs) = (number(0, 400), number(1, 10_000), number(2, 60).max(30));
    let bootstrap = MpiBootstrap::world(TIMEOUT).expect("MPI starts");
    assert_eq!(bootstrap.size(), 2, "started by mpiexec -n 2");
    let config = TransportConfig::new(bootstrap.rank(), 2);
    let over_mpi = MpiTransport::over(&bootstrap).expect("the transport opens");
    let mut over_mpi = Ours::new(&bootstrap, Arc::new(over_mpi), batch);
    let open = |name| {
        let transport = transport::open(name, &config).expect("the transport opens");
        Ours::new(&bootstrap, transport, batch)
    };
    let (mut over_shm, mut over_tcp) = (open("shm"), open("tcp"));
    let mut raw = Raw::new();
    if bootstrap.rank() == Rank(0) {
        let provider = provider();
        let mut results = Results::new();
        let mut run = |name, baseline: &str, owner, ours: &mut Ours| {
            tell(owner);
            let raw_get = if baseline == "MPI_Get plain" { Raw::plain } else { Raw::hindexed };
            let (us, baseline_us) = compare(row_bytes, batch, pairs, owner, ours, |rows, landing| {
                if owner != Owner::WaitsInMpi {
                    tell(Owner::WaitsInMpi);
                }
                let began = Instant::now();
                raw_get(&mut raw, rows, row_bytes, landing);
                let time = began.elapsed();
                if owner != Owner::WaitsInMpi {
                    tell(owner);
                }
                time
            });
            let (transport, provider, owner) = (name, &*provider, &*format!("{owner:?}"));
            results.add(Measured { transport, provider, owner, row_bytes, batch, baseline }, &us, &baseline_us);
        };
        for baseline in ["MPI_Get plain", "MPI_Get hindexed"] {
            run("mpi", baseline, Owner::WaitsInMpi, &mut over_mpi);
            run("mpi", baseline, Owner::Computes, &mut over_mpi);
            run("shm", baseline, Owner::WaitsInMpi, &mut over_shm);
            // Its owner has a thread that answers, to which a wait in MPI would deny a core.
            run("tcp", baseline, Owner::Computes, &mut over_tcp);
        }
        tell(Owner::Leaves);
        results.write();
    } else {
        own();
    }
    raw.end();
    drop((over_mpi, over_shm, over_tcp));
    bootstrap.barrier(TIMEOUT).expect("both processes end");
}

/// The MPI, and what it was told of its ways.
fn provider() -> String {
    let version = mpi::environment::library_version().unwrap_or_default();
    let name = if version.starts_with("Open MPI") { "Open MPI" } else { "MPICH" };
    let told = ["UCX_TLS", "OMPI_MCA_btl"].map(|name| std::env::var(name).map(|value| format!(", {name}={value}")));
    told.into_iter().flatten().fold(name.to_owned(), |provider, told| provider + &told)
}

/// Pairs of ours and `raw`: the times in µs.
fn compare(
    row_bytes: usize,
    batch: usize,
    pairs: usize,
    owner: Owner,
    ours: &mut Ours,
    mut raw: impl FnMut(&[u64], &mut [u8]) -> Duration,
) -> (Vec<f64>, Vec<f64>) {
    let mut chance = Xoshiro256PlusPlus::seed_from_u64(1);
    let table_rows = (TABLE_BYTES / row_bytes) as u64;
    let mut landing = vec![0u8; batch * row_bytes];
    let (mut ours_us, mut raw_us) = (Vec::new(), Vec::new());
    for pair in 0..WARM_UP + pairs {
        let mut rows: Vec<u64> = (0..batch).map(|_| chance.random_range(0..table_rows)).collect();
        rows.sort_unstable();
        let mut our_time = Duration::ZERO;
        let mut raw_time = Duration::ZERO;
        for turn in 0..2 {
            if (pair + turn) % 2 == 0 {
                if owner == Owner::Computes {
                    // Long enough for the owner to have left MPI.
                    std::thread::sleep(Duration::from_millis(1));
                }
                let began = Instant::now();
                ours.get(&rows, row_bytes, &mut landing);
                our_time = began.elapsed();
            } else {
                raw_time = raw(&rows, &mut landing);
            }
            assert_rows(&rows, row_bytes, &landing);
            landing.fill(0);
        }
        if pair >= WARM_UP {
            ours_us.push(our_time.as_secs_f64() * 1e6);
            raw_us.push(raw_time.as_secs_f64() * 1e6);
        }
    }
    (ours_us, raw_us)
}

fn assert_rows(rows: &[u64], row_bytes: usize, landing: &[u8]) {
    for (row, bytes) in rows.iter().zip(landing.chunks(row_bytes)) {
        let first = *row as usize * row_bytes;
        assert!(bytes.iter().enumerate().all(|(at, &found)| found == byte(first + at)), "row {row} has wrong bytes");
    }
}
