//! Which form of get is fastest here, measured at start-up.

use super::gets::{FORMS, Form, Gets, Issuer};
use super::window::{HEADER_BYTES, Window};
use super::{GetForm, NAME, progress};
use crate::mpi::{Comm, check};
use crate::transport::Destination;
use ::mpi::ffi;
use rand::{Rng, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;
use std::ffi::c_int;
use std::time::{Duration, Instant};

/// Sizes of rows that are tried, and up to which size each speaks for others.
const SIZES: [(usize, usize); 3] = [(64, 160), (400, 1280), (4096, usize::MAX)];
const ROWS: usize = 512;
/// Every try reads other rows of a table that is larger than the caches near a core: what was read before would be fast in any form.
const TABLE_BYTES: usize = 8 << 20;
const ROUNDS: usize = 6;
/// Where nothing is to be chosen, one try shows that the bytes are right.
const ROUNDS_WITHOUT_CHOICE: usize = 1;
/// Says of a form that it was not tried, or brought wrong bytes.
const UNFIT: u64 = u64::MAX;

/// The least time of each form, in ns, for each size of row.
type Times = [[u64; FORMS.len()]; SIZES.len()];

/// The form for each size of row.
#[derive(Clone, Copy, Debug)]
pub(super) struct Forms([Form; SIZES.len()]);

impl Forms {
    pub(super) fn for_rows_of(&self, row_bytes: usize) -> Form {
        let class = SIZES.iter().position(|(_, up_to)| row_bytes <= *up_to);
        self.0[class.unwrap_or(SIZES.len() - 1)]
    }
}

/// Measures gets from the next rank, first those of even ranks and then those of odd ones: an owner is as good as outside MPI meanwhile,
/// as it will be while it computes. With `nudges` it is told of them. Collective.
pub(super) fn forms(comm: &Comm, choice: GetForm, nudges: bool, timeout: Duration) -> Result<Forms, String> {
    let window = Window::allocate(comm, TABLE_BYTES, timeout)?;
    for at in 0..TABLE_BYTES {
        // SAFETY: within this rank's part, which nobody reads before the barrier below.
        unsafe { window.base().add(HEADER_BYTES + at).write(pattern(comm.rank(), at)) };
    }
    let largest = SIZES.map(|(size, _)| size).into_iter().max().unwrap_or(0);
    let mut landing = vec![0u8; ROWS * largest];
    let base = landing.as_mut_ptr();
    let places: Vec<u32> = (0..ROWS as u32).collect();
    let mut issuer = Issuer::default();
    let mut chance = Xoshiro256PlusPlus::seed_from_u64(0);
    let mut times: Times = [FORMS.map(|form| if allowed(choice, form) { 0 } else { UNFIT }); SIZES.len()];
    let peer = ((comm.rank() + 1) % comm.size()) as c_int;
    comm.barrier(timeout)?;
    if !comm.rank().is_multiple_of(2) {
        comm.barrier(timeout)?;
    }
    for (times, (row_bytes, _)) in times.iter_mut().zip(SIZES) {
        let gets = Gets {
            window: window.raw(),
            peer,
            offset: HEADER_BYTES,
            row_bytes,
            rows: &[],
            places: &places,
            destination: Destination { base, stride: row_bytes, places: ROWS },
        };
        let call = || if nudges { progress::nudge(comm.raw(), peer) } else { Ok(()) };
        measure(&mut issuer, &mut chance, &gets, call, times)?;
    }
    if comm.rank().is_multiple_of(2) {
        comm.barrier(timeout)?;
    }
    let best = agree(comm, &times, nudges, timeout)?;
    window.free();
    if comm.rank() == 0 {
        tracing::info!("transport {NAME}: gets of short, middle and long rows: {best:?} ({choice:?})");
    }
    Ok(Forms(best))
}

/// The form that is fastest over all ranks, so that one which was disturbed does not choose wrongly. Lists are given half of their time
/// for short and middle rows, and a fifth for long ones: in a table far larger than the one tried here, whose rows miss the TLB too, they
/// gain more. With `nudges` those of short and middle rows win by being fit: where an owner's thread answers, what a try takes says more
/// of the scheduler. Collective.
fn agree(comm: &Comm, mine: &Times, nudges: bool, timeout: Duration) -> Result<[Form; SIZES.len()], String> {
    let words: Vec<u8> = mine.iter().flatten().flat_map(|time| time.to_le_bytes()).collect();
    let mut sums: Times = Default::default();
    for said in comm.all_gather(&words, timeout)? {
        let times = said.chunks_exact(8).map(|word| word.try_into().map_or(UNFIT, u64::from_le_bytes));
        sums.iter_mut().flatten().zip(times).for_each(|(sum, time)| *sum = sum.saturating_add(time));
    }
    let mut best = [FORMS[0]; SIZES.len()];
    for ((best, sums), (_, up_to)) in best.iter_mut().zip(&sums).zip(SIZES) {
        let fit = FORMS.into_iter().zip(sums).filter(|(_, sum)| **sum != UNFIT);
        let fastest = fit.min_by_key(|(form, sum)| match (form, up_to) {
            (Form::Plain, _) => **sum,
            (Form::Hindexed, usize::MAX) => **sum / 5 * 4,
            (Form::Hindexed, _) if nudges => 0,
            (Form::Hindexed, _) => **sum / 2,
        });
        *best = fastest.ok_or("this MPI's gets bring wrong bytes: use another version of it")?.0;
    }
    Ok(best)
}

fn allowed(choice: GetForm, form: Form) -> bool {
    match choice {
        GetForm::Probe => true,
        GetForm::Plain => form == Form::Plain,
        GetForm::Hindexed => form == Form::Hindexed,
    }
}

/// Byte `at` of a rank's table.
fn pattern(rank: u32, at: usize) -> u8 {
    (at as u32).wrapping_add(rank).wrapping_mul(0x9E37_79B9).to_be_bytes()[0]
}
/// Sets, after a `call` to the owner for each try, the least time of each form that is fit.
fn measure(
    issuer: &mut Issuer,
    chance: &mut Xoshiro256PlusPlus,
    gets: &Gets<'_>,
    call: impl Fn() -> Result<(), String>,
    times: &mut [u64; FORMS.len()],
) -> Result<(), String> {
    let mut rows = vec![0; ROWS];
    let choice = times.iter().filter(|time| **time != UNFIT).count() > 1;
    for round in 0..if choice { ROUNDS } else { ROUNDS_WITHOUT_CHOICE } {
        for (form, time) in FORMS.into_iter().zip(&mut *times).filter(|(_, time)| **time != UNFIT) {
            rows.fill_with(|| chance.random_range(0..(TABLE_BYTES / gets.row_bytes) as u64));
            rows.sort_unstable();
            let gets = Gets { rows: &rows, ..*gets };
            let began = Instant::now();
            call()?;
            // SAFETY: rows and places lie in the table and the landing, which is the caller's and outlives the flush below.
            unsafe { issuer.issue(form, &gets, || ()) }?;
            // SAFETY: the window is locked for all ranks.
            check(unsafe { ffi::MPI_Win_flush(gets.peer, gets.window) }, "MPI_Win_flush")?;
            let took = began.elapsed().as_nanos() as u64;
            *time = if round == 0 { took } else { took.min(*time) };
            if round == 0 && !are_right(&gets) {
                tracing::warn!("transport {NAME}: this MPI gets wrong bytes for {form:?} of {} bytes", gets.row_bytes);
                *time = UNFIT;
            }
        }
    }
    Ok(())
}

/// Whether the rows that have landed are the peer's.
fn are_right(gets: &Gets<'_>) -> bool {
    let Destination { base, stride, .. } = gets.destination;
    let mut bytes = gets.rows.iter().zip(gets.places).flat_map(|(&row, &place)| {
        (0..gets.row_bytes).map(move |at| (row as usize * gets.row_bytes + at, place as usize * stride + at))
    });
    // SAFETY: places lie in the landing, and what was posted to it has been flushed.
    bytes.all(|(from, to)| unsafe { base.add(to).read() } == pattern(gets.peer as u32, from))
}
