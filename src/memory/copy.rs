//! The gather kernel: rows from one place of memory to many.
//!
//! Rows are scattered, so that the time goes to cache misses and not to the copy: each row's lines are asked for some rows ahead.

use super::prefetch::prefetch_line;

/// How far ahead rows are asked for: enough bytes to cover a miss at the speed of a copy, few enough to stay in the fill buffers.
const AHEAD_BYTES: usize = 4096;
const LINE: usize = 64;

/// Copies row `rows[i]` of `row_bytes` bytes at `source` to `base + places[i] * stride`, for every `i` of the shorter list.
///
/// # Safety
/// `source + (rows[i] + 1) * row_bytes` stays within readable memory, `base + places[i] * stride` is valid for writes of
/// `row_bytes`, and the two memories do not overlap.
pub unsafe fn gather(source: *const u8, row_bytes: usize, rows: &[u64], places: &[u32], base: *mut u8, stride: usize) {
    let ahead = (AHEAD_BYTES / row_bytes.max(1)).clamp(1, 64);
    // A long row prefetches itself once the hardware has seen its first lines.
    let lines = row_bytes.min(AHEAD_BYTES).div_ceil(LINE);
    for (i, (&row, &place)) in rows.iter().zip(places).enumerate() {
        if let Some(&next) = rows.get(i + ahead) {
            let next = source.wrapping_add(next as usize * row_bytes);
            (0..lines).for_each(|line| prefetch_line(next.wrapping_add(line * LINE)));
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
