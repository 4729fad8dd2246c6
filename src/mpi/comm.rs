//! A communicator of our own, whose collectives have deadlines.

use super::{Handle, User, check, test, wait};
use ::mpi::ffi;
use std::ffi::c_int;
use std::ptr::null;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Marks the empty messages by which rank 0 knows who has come to a collective.
const PRESENT: c_int = 1;

/// A duplicate of some communicator, used by nobody else.
pub(crate) struct Comm {
    raw: ffi::MPI_Comm,
    rank: u32,
    size: u32,
    user: User,
    /// One collective at a time; why there can be no more.
    broken: Mutex<Option<String>>,
}

// SAFETY: a handle is a name, and MPI runs with MPI_THREAD_MULTIPLE; collectives are in turn by `broken`.
unsafe impl Send for Comm {}
// SAFETY: as above.
unsafe impl Sync for Comm {}

impl Comm {
    /// All ranks that were launched. Collective.
    pub(crate) fn world(timeout: Duration) -> Result<Self, String> {
        let user = User::enter(timeout)?;
        // SAFETY: a constant of the library.
        let world = unsafe { ffi::RSMPI_COMM_WORLD };
        Self::duplicate(world, user, timeout)
    }

    /// Collective over `of`.
    fn duplicate(of: ffi::MPI_Comm, user: User, timeout: Duration) -> Result<Self, String> {
        // SAFETY: `of` is a communicator; the new handle and the request outlive the call, boxed, because MPI writes the handle later.
        let (mut raw, mut request) = unsafe { (Box::new(ffi::RSMPI_COMM_NULL), ffi::RSMPI_REQUEST_NULL) };
        // SAFETY: as above.
        check(unsafe { ffi::MPI_Comm_idup(of, &mut *raw, &mut request) }, "MPI_Comm_idup")?;
        if !wait(&mut request, Instant::now() + timeout)? {
            // MPI may still write to it.
            Box::leak(raw);
            return Err(format!("not all ranks took part within {timeout:?}"));
        }
        Self::own(*raw, user)
    }

    fn own(raw: ffi::MPI_Comm, user: User) -> Result<Self, String> {
        let (mut rank, mut size) = (0, 0);
        // SAFETY: a communicator that was just made for this value.
        unsafe {
            check(ffi::MPI_Comm_set_errhandler(raw, ffi::RSMPI_ERRORS_RETURN), "MPI_Comm_set_errhandler")?;
            check(ffi::MPI_Comm_rank(raw, &mut rank), "MPI_Comm_rank")?;
            check(ffi::MPI_Comm_size(raw, &mut size), "MPI_Comm_size")?;
        }
        Ok(Self { raw, rank: rank as u32, size: size as u32, user, broken: Mutex::new(None) })
    }

    pub(crate) fn rank(&self) -> u32 {
        self.rank
    }

    pub(crate) fn size(&self) -> u32 {
        self.size
    }

    pub(crate) fn raw(&self) -> ffi::MPI_Comm {
        self.raw
    }

    pub(crate) fn user(&self) -> &User {
        &self.user
    }

    /// The ranks of each colour, ordered by `key`; `None` to a rank without colour. Collective.
    pub(crate) fn split(&self, color: Option<u32>, key: u32, timeout: Duration) -> Result<Option<Self>, String> {
        // Splitting has no deadline of its own: nobody begins before all have come.
        self.barrier(timeout)?;
        // SAFETY: constants of the library.
        let (mut raw, without) = unsafe { (ffi::RSMPI_COMM_NULL, ffi::RSMPI_UNDEFINED) };
        let color = color.map_or(Ok(without), c_int::try_from).map_err(|_| "a colour is below 2^31".to_owned())?;
        let key = c_int::try_from(key).map_err(|_| "a rank is below 2^31".to_owned())?;
        let _turn = self.turn()?;
        // SAFETY: all ranks call it; the communicator is this value's.
        check(unsafe { ffi::MPI_Comm_split(self.raw, color, key, &mut raw) }, "MPI_Comm_split")?;
        if color == without {
            return Ok(None);
        }
        Self::own(raw, self.user.clone()).map(Some)
    }

    /// The same ranks once more. Collective.
    pub(crate) fn again(&self, timeout: Duration) -> Result<Self, String> {
        let _turn = self.turn()?;
        Self::duplicate(self.raw, self.user.clone(), timeout)
    }

    /// Returns when every rank has called it.
    pub(crate) fn barrier(&self, timeout: Duration) -> Result<(), String> {
        let deadline = Instant::now() + timeout;
        let mut turn = self.turn()?;
        self.say_present()?;
        // SAFETY: a constant of the library.
        let mut request = unsafe { ffi::RSMPI_REQUEST_NULL };
        // SAFETY: the communicator is this value's, and `turn` keeps its collectives in order.
        check(unsafe { ffi::MPI_Ibarrier(self.raw, &mut request) }, "MPI_Ibarrier")?;
        self.finish(&mut request, deadline, timeout, &mut turn)?;
        self.hear_present()
    }

    /// The bytes of every rank, in rank order.
    pub(crate) fn all_gather(&self, mine: &[u8], timeout: Duration) -> Result<Vec<Vec<u8>>, String> {
        let deadline = Instant::now() + timeout;
        let mut turn = self.turn()?;
        self.say_present()?;
        let size = self.size as usize;
        // Where the time is up, MPI may still read and write these: they are leaked then.
        let mut lengths = (vec![mine.len() as u64], vec![0u64; size]);
        // SAFETY: constants of the library.
        let (mut request, word, byte) = unsafe { (ffi::RSMPI_REQUEST_NULL, ffi::RSMPI_UINT64_T, ffi::RSMPI_UINT8_T) };
        let (sent, received) = (lengths.0.as_ptr().cast(), lengths.1.as_mut_ptr().cast());
        // SAFETY: one word from each rank, into room for all; both stay until the request is done.
        let code = unsafe { ffi::MPI_Iallgather(sent, 1, word, received, 1, word, self.raw, &mut request) };
        check(code, "MPI_Iallgather")?;
        if let Err(cause) = self.finish(&mut request, deadline, timeout, &mut turn) {
            std::mem::forget(lengths);
            return Err(cause);
        }
        let (counts, starts, total) = layout(&lengths.1)?;
        if total == 0 {
            self.hear_present()?;
            return Ok(vec![Vec::new(); size]);
        }
        let mut bytes = (mine.to_vec(), vec![0u8; total], counts, starts);
        let (sent, received) = (bytes.0.as_ptr().cast(), bytes.1.as_mut_ptr().cast());
        let (counts, starts) = (bytes.2.as_ptr(), bytes.3.as_ptr());
        let length = bytes.2[self.rank as usize];
        // SAFETY: each rank sends what it has said, into room for all; the buffers stay until the request is done.
        let code =
            unsafe { ffi::MPI_Iallgatherv(sent, length, byte, received, counts, starts, byte, self.raw, &mut request) };
        check(code, "MPI_Iallgatherv")?;
        if let Err(cause) = self.finish(&mut request, deadline, timeout, &mut turn) {
            std::mem::forget(bytes);
            return Err(cause);
        }
        self.hear_present()?;
        let part = |(&start, &count): (&c_int, &c_int)| bytes.1[start as usize..][..count as usize].to_vec();
        Ok(bytes.3.iter().zip(&bytes.2).map(part).collect())
    }

    fn turn(&self) -> Result<MutexGuard<'_, Option<String>>, String> {
        let turn = self.broken.lock().unwrap_or_else(PoisonError::into_inner);
        match &*turn {
            Some(cause) => Err(cause.clone()),
            None => Ok(turn),
        }
    }

    /// Waits for a collective; one that is not over in time breaks the communicator, since its ranks are out of step.
    fn finish(
        &self,
        request: &mut ffi::MPI_Request,
        deadline: Instant,
        timeout: Duration,
        turn: &mut Option<String>,
    ) -> Result<(), String> {
        let cause = match wait(request, deadline) {
            Ok(true) => return Ok(()),
            Ok(false) => format!("{} within {timeout:?}", self.absent()),
            Err(cause) => cause,
        };
        *turn = Some(cause.clone());
        Err(cause)
    }

    /// Tells rank 0 that this rank has come.
    fn say_present(&self) -> Result<(), String> {
        if self.rank == 0 {
            return Ok(());
        }
        // SAFETY: constants of the library.
        let (mut request, byte) = unsafe { (ffi::RSMPI_REQUEST_NULL, ffi::RSMPI_UINT8_T) };
        // SAFETY: an empty message has no buffer to keep.
        unsafe {
            check(ffi::MPI_Isend(null(), 0, byte, 0, PRESENT, self.raw, &mut request), "MPI_Isend")?;
            check(ffi::MPI_Request_free(&mut request), "MPI_Request_free")
        }
    }

    /// Takes in what the ranks of a collective that is over have told.
    fn hear_present(&self) -> Result<(), String> {
        let sources = if self.rank == 0 { 1..self.size } else { 0..0 };
        sources.into_iter().try_for_each(|source| receive_empty(self.raw, source as c_int, PRESENT))
    }

    /// Who is missing, as far as this rank can know.
    fn absent(&self) -> String {
        if self.rank != 0 {
            return format!("not all of the {} ranks took part (rank 0 says which are missing)", self.size);
        }
        let present = |rank: u32| rank == 0 || arrived(self.raw, rank as c_int, PRESENT).unwrap_or(false);
        format!("{} did not take part", crate::bootstrap::missing((0..self.size).map(present)))
    }

    /// Frees the communicator once every rank has let go of it, on a thread of its own: `work` is done before, and `serve` is called now
    /// and then until all have come, and says for how long to sleep.
    pub(crate) fn close(self, serve: impl FnMut() -> Duration + Send + 'static, work: impl FnOnce() + Send + 'static) {
        let Self { raw, user, broken, .. } = self;
        if !user.may_call() {
            // A forked child, or MPI is over: what is left of it is not ours.
            return std::mem::forget((user, serve, work));
        }
        let in_step = broken.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err);
        let raw = Handle(raw);
        user.close_beside(move || {
            let met = in_step.and_then(|()| meet(raw.get(), serve));
            if let Err(cause) = met {
                tracing::warn!("mpi: a communicator and its windows stay: {cause}");
                return;
            }
            work();
            // SAFETY: every rank has come to the end of this communicator, whose owner is gone.
            unsafe { ffi::MPI_Comm_free(&mut raw.get()) };
        });
    }
}

/// Returns once every rank has called it.
fn meet(comm: ffi::MPI_Comm, mut serve: impl FnMut() -> Duration) -> Result<(), String> {
    // SAFETY: a constant of the library.
    let mut request = unsafe { ffi::RSMPI_REQUEST_NULL };
    // SAFETY: a communicator that is not freed before all ranks have come here.
    check(unsafe { ffi::MPI_Ibarrier(comm, &mut request) }, "MPI_Ibarrier")?;
    // Without a deadline of its own: who ends MPI waits only so long for this.
    while !test(&mut request)? {
        let pause = serve();
        if pause.is_zero() { std::thread::yield_now() } else { std::thread::sleep(pause) }
    }
    Ok(())
}

/// Where each rank's bytes lie.
fn layout(lengths: &[u64]) -> Result<(Vec<c_int>, Vec<c_int>, usize), String> {
    let too_long = || "the ranks' words are 2 GiB together, which MPI cannot count".to_owned();
    let mut total: c_int = 0;
    let (mut counts, mut starts) = (Vec::new(), Vec::new());
    for &length in lengths {
        let count = c_int::try_from(length).map_err(|_| too_long())?;
        starts.push(total);
        counts.push(count);
        total = total.checked_add(count).ok_or_else(too_long)?;
    }
    Ok((counts, starts, total as usize))
}

/// Whether a message has come, without taking it.
pub(crate) fn arrived(comm: ffi::MPI_Comm, source: c_int, tag: c_int) -> Result<bool, String> {
    let mut there = 0;
    // SAFETY: asks about a communicator that the caller holds.
    check(unsafe { ffi::MPI_Iprobe(source, tag, comm, &mut there, ffi::RSMPI_STATUS_IGNORE) }, "MPI_Iprobe")?;
    Ok(there != 0)
}

/// Takes an empty message that has been sent.
pub(crate) fn receive_empty(comm: ffi::MPI_Comm, source: c_int, tag: c_int) -> Result<(), String> {
    // SAFETY: an empty message needs no buffer; the communicator is the caller's.
    let code = unsafe {
        ffi::MPI_Recv(std::ptr::null_mut(), 0, ffi::RSMPI_UINT8_T, source, tag, comm, ffi::RSMPI_STATUS_IGNORE)
    };
    check(code, "MPI_Recv")
}
