//! The gather kernel: rows from one place of memory to many.
//!
//! Rows are scattered, so that the time goes to cache misses and not to the copy: each row's lines are asked for some rows ahead. They
//! are asked for into the second-level cache, far ahead: the first level can wait for a dozen lines at once, the second for four times as many.
//!
//! Where more is written than caches hold, lines are written past them: an ordinary store first reads the line that it is about to replace.

use super::prefetch::prefetch_line_far;
use std::ptr::copy_nonoverlapping;

/// How far ahead rows are asked for: measured; half and double of it are as good.
const AHEAD_BYTES: usize = 16 << 10;
const AHEAD_ROWS_MAX: usize = 64;
/// A long row is asked for by its beginning: the hardware sees the rest coming.
const BEGINNING: usize = 4096;
const LINE: usize = 64;
/// Gathers of so many bytes are written past the caches: measured; below 4 MiB that loses, from 10 MiB on it wins.
const STREAMED_BYTES_MIN: usize = 8 << 20;
/// Of shorter rows too many lines would be written in two parts, each of which then costs a memory access.
const STREAMED_ROW_BYTES_MIN: usize = 512;

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
    let bytes = rows.len().min(places.len()).saturating_mul(row_bytes);
    let streamed = row_bytes >= STREAMED_ROW_BYTES_MIN && bytes >= STREAMED_BYTES_MIN;
    let to = |place: u32| base.wrapping_add(place as usize * stride);
    if streamed {
        for_each_row(source, row_bytes, rows, places, |row, place| {
            // SAFETY: the caller promises both addresses for `row_bytes` bytes, and that they do not overlap.
            unsafe { copy_past_caches(row, to(place), row_bytes) }
        });
        end_of_streams();
    } else {
        for_each_row(source, row_bytes, rows, places, |row, place| {
            // SAFETY: as above.
            unsafe { copy_nonoverlapping(row, to(place), row_bytes) }
        });
    }
}

/// Calls `copy` with the address and the place of each row, long after its lines were asked for.
#[inline(always)]
fn for_each_row(
    source: *const u8,
    row_bytes: usize,
    rows: &[u64],
    places: &[u32],
    mut copy: impl FnMut(*const u8, u32),
) {
    let ahead = rows_ahead(row_bytes);
    let address = |row: u64| source.wrapping_add(row as usize * row_bytes);
    for (i, (&row, &place)) in rows.iter().zip(places).enumerate() {
        if let Some(&next) = rows.get(i + ahead) {
            prefetch_row(address(next), row_bytes);
        }
        copy(address(row), place);
    }
}

/// Copies bytes, whole lines of them without reading the destination into a cache. [`end_of_streams`] is due before others look at them.
///
/// # Safety
/// As [`copy_nonoverlapping`] of bytes.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn copy_past_caches(from: *const u8, to: *mut u8, bytes: usize) {
    use std::arch::x86_64::{__m128i, _mm_loadu_si128, _mm_stream_si128};
    let head = to.align_offset(LINE).min(bytes);
    let end_of_lines = bytes - (bytes - head) % LINE;
    // SAFETY: all within the `bytes` bytes that the caller promises; stores of 16 bytes begin at multiples of 16 from the start of a line.
    unsafe {
        copy_nonoverlapping(from, to, head);
        for at in (head..end_of_lines).step_by(size_of::<__m128i>()) {
            _mm_stream_si128(to.add(at).cast(), _mm_loadu_si128(from.add(at).cast()));
        }
        copy_nonoverlapping(from.add(end_of_lines), to.add(end_of_lines), bytes - end_of_lines);
    }
}

/// Other processors have no such stores that Rust offers.
///
/// # Safety
/// As [`copy_nonoverlapping`] of bytes.
#[cfg(not(target_arch = "x86_64"))]
#[inline(always)]
unsafe fn copy_past_caches(from: *const u8, to: *mut u8, bytes: usize) {
    // SAFETY: the caller's promise.
    unsafe { copy_nonoverlapping(from, to, bytes) }
}

/// Orders what was written past the caches before all later stores, as ordinary stores are.
fn end_of_streams() {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every x86-64 processor has this instruction, which touches no memory.
    unsafe {
        std::arch::x86_64::_mm_sfence();
    }
}

#[cfg(test)]
mod tests {
    //! Goal: every byte of every row comes to its place and no other byte is touched, whichever way rows are written.
    //! Method: sizes around both limits, places apart and unaligned, against the rows one by one.

    use super::*;

    const UNTOUCHED: u8 = 0xEE;

    fn check(row_bytes: usize, count: usize, gap: usize, offset: usize) {
        let table: Vec<u8> =
            (0..64 * row_bytes).map(|at| (at as u32).wrapping_mul(0x9E37_79B9).to_be_bytes()[0]).collect();
        let rows: Vec<u64> = (0..count as u64).map(|i| i * 37 % 64).collect();
        let places: Vec<u32> = (0..count as u32).rev().collect();
        let stride = row_bytes + gap;
        let mut landing = vec![UNTOUCHED; offset + count * stride + LINE];
        // SAFETY: rows lie in the table, and the landing has a place for each.
        unsafe { gather(table.as_ptr(), row_bytes, &rows, &places, landing.as_mut_ptr().add(offset), stride) };
        let (before, rest) = landing.split_at(offset);
        assert!(before.iter().all(|&byte| byte == UNTOUCHED));
        for (&row, &place) in rows.iter().zip(&places) {
            let (found, after) = rest[place as usize * stride..].split_at(row_bytes);
            assert_eq!(found, &table[row as usize * row_bytes..][..row_bytes], "{row_bytes} bytes at place {place}");
            let gap = if place as usize + 1 == count { LINE } else { gap };
            assert!(after[..gap].iter().all(|&byte| byte == UNTOUCHED), "behind place {place}");
        }
    }

    #[test]
    fn rows_come_to_their_places_alone() {
        for row_bytes in [STREAMED_ROW_BYTES_MIN - 1, STREAMED_ROW_BYTES_MIN, 600, 2408, 4096] {
            let limit = STREAMED_BYTES_MIN.div_ceil(row_bytes);
            for (count, gap, offset) in
                [(100, 0, 0), (limit - 1, 3, 1), (limit, 0, 0), (limit, 5, 7), (limit + 1, 64, 32)]
            {
                check(row_bytes, count, gap, offset);
            }
        }
    }
}
