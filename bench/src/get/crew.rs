//! Several channels that share a batch, each driven by a thread of its own.

use super::asker::{Table, gather};
use anyhow::Result;
use rudder::memory::Memory;
use rudder::transport::{Channel, Transport};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Barrier, Mutex, PoisonError, RwLock};

/// The channels' common work: the rows of the present batch, and what went wrong with it.
struct Work<'a> {
    table: Table,
    landing: &'a Memory,
    rows: RwLock<Vec<u64>>,
    begin: Barrier,
    end: Barrier,
    over: AtomicBool,
    failure: Mutex<Option<anyhow::Error>>,
}

impl Work<'_> {
    /// One channel's share of the present batch.
    fn take_part(&self, channel: &mut dyn Channel, part: usize, parts: usize) {
        let rows = self.rows.read().unwrap_or_else(PoisonError::into_inner);
        let share: Range<usize> = rows.len() * part / parts..rows.len() * (part + 1) / parts;
        if let Err(error) = gather(channel, self.table, &rows[share.clone()], share.start, self.landing) {
            self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        }
    }
}

/// Runs `measure` with a function that gets the rows of a batch to the landing by so many channels.
///
/// # Errors
/// A channel cannot be had, or whatever `measure` fails with.
pub(super) fn with_channels<R>(
    transport: &dyn Transport,
    channels: usize,
    table: Table,
    landing: &Memory,
    measure: impl FnOnce(&mut dyn FnMut(&[u64]) -> Result<()>) -> Result<R>,
) -> Result<R> {
    let mut first = transport.channel()?;
    let others = (1..channels).map(|_| transport.channel()).collect::<Result<Vec<_>, _>>()?;
    let work = Work {
        table,
        landing,
        rows: RwLock::default(),
        begin: Barrier::new(channels),
        end: Barrier::new(channels),
        over: AtomicBool::new(false),
        failure: Mutex::default(),
    };
    let drive = |mut channel: Box<dyn Channel>, part: usize| {
        loop {
            work.begin.wait();
            if work.over.load(Ordering::Acquire) {
                return;
            }
            work.take_part(&mut *channel, part, channels);
            work.end.wait();
        }
    };
    std::thread::scope(|scope| {
        for (part, channel) in others.into_iter().enumerate() {
            let drive = &drive;
            scope.spawn(move || drive(channel, part + 1));
        }
        let mut get = |rows: &[u64]| {
            if channels == 1 {
                return gather(&mut *first, table, rows, 0, landing);
            }
            work.rows.write().unwrap_or_else(PoisonError::into_inner).splice(.., rows.iter().copied());
            work.begin.wait();
            work.take_part(&mut *first, 0, channels);
            work.end.wait();
            work.failure.lock().unwrap_or_else(PoisonError::into_inner).take().map_or(Ok(()), Err)
        };
        let result = measure(&mut get);
        work.over.store(true, Ordering::Release);
        work.begin.wait();
        result
    })
}
