//! Asking for cache lines before they are read, where many scattered ones are about to be.

/// Asks for the line of an address, which may be any, to be read soon.
#[inline(always)]
pub(super) fn prefetch_line(address: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch is a hint: it never faults, whatever the address.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(address.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

/// As [`prefetch_line`], to be read later: into the second-level cache only.
#[inline(always)]
pub(super) fn prefetch_line_far(address: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: as above.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T1 }>(address.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

/// Asks for the lines of a place of a slice; nothing happens where there is no such place.
#[inline(always)]
pub(crate) fn prefetch<T>(places: &[T], at: usize) {
    const LINE: usize = 64;
    if let Some(place) = places.get(at) {
        let first = std::ptr::from_ref(place).cast::<u8>();
        (0..size_of::<T>().div_ceil(LINE)).for_each(|line| prefetch_line(first.wrapping_add(line * LINE)));
    }
}
