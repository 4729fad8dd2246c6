//! Rows that tell where they belong.

use crate::graph::mix;
use anyhow::{Result, ensure};
use rand::Rng;
use rudder::memory::Memory;

/// The content of a row: a function of its number.
fn fill_row(row: u64, bytes: &mut [u8]) {
    for (at, word) in bytes.chunks_mut(8).enumerate() {
        word.copy_from_slice(&mix(row ^ ((at as u64) << 40)).to_le_bytes()[..word.len()]);
    }
}

/// Fills memory that nobody else knows of yet.
pub(super) fn fill(memory: &Memory, rows: usize, row_bytes: usize) {
    let mut content = vec![0; row_bytes];
    for row in 0..rows {
        fill_row(row as u64, &mut content);
        // SAFETY: the row lies within the memory, which nobody else knows of yet.
        unsafe { std::ptr::copy_nonoverlapping(content.as_ptr(), memory.base().add(row * row_bytes), row_bytes) };
    }
}

/// Compares so many of the rows that landed with what they must be.
pub(super) fn check(
    landing: &Memory,
    rows: &[u64],
    row_bytes: usize,
    count: usize,
    random: &mut impl Rng,
) -> Result<()> {
    let mut expected = vec![0; row_bytes];
    let mut found = vec![0; row_bytes];
    for i in 0..count {
        let place = if count == rows.len() { i } else { random.random_range(0..rows.len()) };
        fill_row(rows[place], &mut expected);
        // SAFETY: the place lies within the landing, whose rows are all complete.
        unsafe { std::ptr::copy_nonoverlapping(landing.base().add(place * row_bytes), found.as_mut_ptr(), row_bytes) };
        ensure!(found == expected, "row {} has wrong bytes", rows[place]);
    }
    Ok(())
}
