//! The gather kernel: rows from one place of memory to many.
//!
//! Rows are scattered, so that the time goes to cache misses and not to the copy: each row's lines are asked for some rows ahead. They
//! are asked for into the second-level cache, far ahead: the first level can wait for a dozen lines at once, the second for four times as many.

use super::prefetch::prefetch_line_far;

/// How far ahead rows are asked for: measured; half and double of it are as good.
const AHEAD_BYTES: usize = 16 << 10;
const AHEAD_ROWS_MAX: usize = 64;
/// A long row is asked for by its beginning: the hardware sees the rest coming.
const BEGINNING: usize = 4096;
const LINE: usize = 64;

/// How many rows ahead to ask for rows of so many bytes.
pub(crate) fn rows_ahead(row_bytes: usize) -> usize {
    (AHEAD_BYTES / row_bytes.max(1)).clamp(1, AHEAD_ROWS_MAX)
}

/// Asks for a row, to be copied some rows later.
#[inline(always)]
pub(crate) fn prefetch_row(row: *const u8, row_bytes: usize) {
    let lines = row_bytes.min(BEGINNING).div_ceil(LINE);
    (0..lines).for_each(|line| prefetch_line_far(row.wrapping_add(line * LINE)));
}

/// Copies row `rows[i]` of `row_bytes` bytes at `source` to `base + places[i] * stride`, for every `i` of the shorter list.
///
/// # Safety
/// `source + (rows[i] + 1) * row_bytes` stays within readable memory, `base + places[i] * stride` is valid for writes of
/// `row_bytes`, and the two memories do not overlap.
pub unsafe fn gather(source: *const u8, row_bytes: usize, rows: &[u64], places: &[u32], base: *mut u8, stride: usize) {
    let ahead = rows_ahead(row_bytes);
    for (i, (&row, &place)) in rows.iter().zip(places).enumerate() {
        if let Some(&next) = rows.get(i + ahead) {
            prefetch_row(source.wrapping_add(next as usize * row_bytes), row_bytes);
        }
        // SAFETY: the caller promises both addresses for `row_bytes` bytes, and that they do not overlap.
        unsafe {
            std::ptr::copy_nonoverlapping(
                source.add(row as usize * row_bytes),
                base.add(place as usize * stride),
                row_bytes,
            );
        }
    }
}
