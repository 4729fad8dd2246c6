//! Which form of get is fastest here, measured at start-up.

use super::gets::{Batching, FORMS, Form, Gets, Issuer};
use super::window::{HEADER_BYTES, Window};
use super::{GetForm, NAME};
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
const TABLE_BYTES: usize = 16 << 20;
const ROUNDS: usize = 3;
/// A form that takes so many times as long as the best one in its first round is not tried again.
const HOPELESS: u32 = 4;

/// The form for each size of row.
#[derive(Clone, Copy, Debug)]
pub(super) struct Forms([Form; SIZES.len()]);

impl Forms {
    pub(super) fn for_rows_of(&self, row_bytes: usize) -> Form {
        let class = SIZES.iter().position(|(_, up_to)| row_bytes <= *up_to);
        self.0[class.unwrap_or(SIZES.len() - 1)]
    }
}

/// Measures gets from the next rank. Collective.
pub(super) fn forms(comm: &Comm, choice: GetForm, timeout: Duration) -> Result<Forms, String> {
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
    let mut best = [FORMS[0]; SIZES.len()];
    comm.barrier(timeout)?;
    for (best, (row_bytes, _)) in best.iter_mut().zip(SIZES) {
        let gets = Gets {
            window: window.raw(),
            peer: ((comm.rank() + 1) % comm.size()) as c_int,
            offset: HEADER_BYTES,
            row_bytes,
            rows: &[],
            places: &places,
            destination: Destination { base, stride: row_bytes, places: ROWS },
        };
        let times = FORMS.map(|form| allowed(choice, form).then_some(Duration::MAX));
        *best = fastest(&mut issuer, &mut chance, gets, times)?;
    }
    comm.barrier(timeout)?;
    window.free();
    if comm.rank() == 0 {
        tracing::info!("transport {NAME}: gets of short, middle and long rows: {best:?} ({choice:?})");
    }
    Ok(Forms(best))
}

fn allowed(choice: GetForm, form: Form) -> bool {
    match choice {
        GetForm::Probe => true,
        GetForm::Plain => form.batching == Batching::Plain,
        GetForm::Hindexed => form.batching == Batching::Hindexed,
    }
}

/// Byte `at` of a rank's table.
fn pattern(rank: u32, at: usize) -> u8 {
    (at as u32).wrapping_add(rank).wrapping_mul(0x9E37_79B9).to_be_bytes()[0]
}
/// The form with the least time, of those that bring the right bytes; `times` is `None` for what is not to be tried.
fn fastest(
    issuer: &mut Issuer,
    chance: &mut Xoshiro256PlusPlus,
    gets: Gets<'_>,
    mut times: [Option<Duration>; FORMS.len()],
) -> Result<Form, String> {
    let mut rows = vec![0; ROWS];
    for round in 0..ROUNDS {
        let least = times.iter().flatten().min().copied().unwrap_or(Duration::MAX);
        for (form, tried) in FORMS.into_iter().zip(&mut times) {
            let Some(time) = tried.filter(|time| round == 0 || *time / HOPELESS <= least) else { continue };
            rows.fill_with(|| chance.random_range(0..(TABLE_BYTES / gets.row_bytes) as u64));
            rows.sort_unstable();
            let gets = &Gets { rows: &rows, ..gets };
            let began = Instant::now();
            // SAFETY: rows and places lie in the table and the landing, which is the caller's and outlives the flush below.
            unsafe { issuer.issue(form, gets) }?;
            // SAFETY: the window is locked for all ranks.
            check(unsafe { ffi::MPI_Win_flush(gets.peer, gets.window) }, "MPI_Win_flush")?;
            *tried = Some(began.elapsed().min(time));
            if round == 0 && !are_right(gets) {
                tracing::warn!("transport {NAME}: this MPI gets wrong bytes for {form:?} of {} bytes", gets.row_bytes);
                *tried = None;
            }
        }
    }
    let times = FORMS.into_iter().zip(times).filter_map(|(form, time)| Some((time?, form)));
    let fastest = times.min_by_key(|(time, _)| *time);
    fastest.map(|(_, form)| form).ok_or_else(|| "this MPI's gets bring wrong bytes: use another version of it".into())
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
