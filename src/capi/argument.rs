//! What a C program passes: checked before it is believed, as far as it can be.

use super::status::{Answer, Failure, RUDDER_ABI};
use std::ffi::{CStr, c_char};
use std::mem::MaybeUninit;

/// The most that a struct may ever say of its size: beyond it, a `struct_size` that was never set would have us read far beyond the struct.
const STRUCT_BYTES_MAX: u64 = 4096;

fn check<T>(pointer: *const T, name: &str) -> Answer {
    if pointer.is_null() {
        return Err(Failure::null(name));
    }
    if !pointer.is_aligned() {
        let cause = format!("argument: {name} is {pointer:p}, which is not aligned to {} bytes", align_of::<T>());
        return Err(Failure::argument(cause));
    }
    Ok(())
}

/// Where a result goes.
pub(super) struct Out<T>(*mut T);

impl<T> Out<T> {
    /// # Safety
    /// Unless it is NULL or not aligned, `pointer` is valid for writes during the call.
    pub unsafe fn new(pointer: *mut T, name: &str) -> Answer<Self> {
        check(pointer, name).map(|()| Self(pointer))
    }

    pub fn set(self, value: T) {
        // SAFETY: the pointer is aligned and not NULL, and whoever made it has promised the rest.
        unsafe { self.0.write(value) }
    }
}

/// # Safety
/// Unless it is NULL or not aligned, `pointer` is valid for reads during the call.
pub(super) unsafe fn read<T: Copy>(pointer: *const T, name: &str) -> Answer<T> {
    check(pointer, name)?;
    // SAFETY: it is aligned and not NULL; the caller promises the rest.
    Ok(unsafe { pointer.read() })
}

/// `count` elements; NULL will do for none.
///
/// # Safety
/// Unless it is NULL or not aligned, `first` is valid for reads of `count` elements, which nobody writes, as long as the result is used.
pub(super) unsafe fn list<'a, T>(first: *const T, count: u64, name: &str) -> Answer<&'a [T]> {
    if count == 0 {
        return Ok(&[]);
    }
    check(first, name)?;
    let elements = bytes(count, size_of::<T>() as u64, name)? / size_of::<T>();
    // SAFETY: aligned, not NULL, not beyond the address space; the caller promises the rest.
    Ok(unsafe { std::slice::from_raw_parts(first, elements) })
}

/// The bytes of `count` elements, which no memory has more of than half the address space.
pub(super) fn bytes(count: u64, each: u64, name: &str) -> Answer<usize> {
    let bytes = count.checked_mul(each).and_then(|bytes| isize::try_from(bytes).ok());
    let beyond = || Failure::argument(format!("argument: {count} {name} of {each} bytes are beyond all memory"));
    bytes.map(|bytes| bytes as usize).ok_or_else(beyond)
}

/// A string, `None` where it is NULL.
///
/// # Safety
/// `text` is NULL, or ends with a zero byte and is not written as long as the result is used.
pub(super) unsafe fn text<'a>(text: *const c_char) -> Option<&'a CStr> {
    // SAFETY: the caller's promise.
    (!text.is_null()).then(|| unsafe { CStr::from_ptr(text) })
}

/// As [`text`], where nothing but UTF-8 makes sense.
///
/// # Safety
/// As [`text`].
pub(super) unsafe fn words<'a>(pointer: *const c_char, name: &str) -> Answer<Option<&'a str>> {
    // SAFETY: the caller's promise.
    let found = unsafe { text(pointer) };
    let refused = |_| Failure::argument(format!("argument: {name} is not UTF-8"));
    found.map(CStr::to_str).transpose().map_err(refused)
}

/// A struct of C's that begins with a `uint64_t struct_size`, has had `least` bytes in the first version of the interface, and has grown since.
///
/// # Safety
/// It holds integers and pointers only, so that zeros are a value of it.
pub(super) unsafe trait Sized64: Copy {
    const NAME: &'static str;
    const LEAST: usize;
}

fn size_of_struct<T: Sized64>(said: u64) -> Answer<usize> {
    const { assert!(T::LEAST >= size_of::<u64>() && T::LEAST <= size_of::<T>()) };
    if (T::LEAST as u64..=STRUCT_BYTES_MAX).contains(&said) {
        return Ok(said as usize);
    }
    Err(Failure::new(
        RUDDER_ABI,
        format!("struct_size {said} of {}: set it to sizeof({}), which is {} here", T::NAME, T::NAME, size_of::<T>()),
    ))
}

/// Reads a struct of an older header, whose missing fields are zero, of this one, or of a newer one, whose further fields must be zero.
///
/// # Safety
/// Unless it is NULL or not aligned, `pointer` is valid for reads of 8 bytes, and of as many as they say if these are a size that the
/// struct can have.
pub(super) unsafe fn read_sized<T: Sized64>(pointer: *const T) -> Answer<T> {
    check(pointer, T::NAME)?;
    // SAFETY: a struct begins with its size, and is aligned for it.
    let said = size_of_struct::<T>(unsafe { pointer.cast::<u64>().read() })?;
    let (known, further) = (said.min(size_of::<T>()), said.saturating_sub(size_of::<T>()));
    // SAFETY: the caller promises so many bytes; they may be padding, and none are looked at that are.
    let further = unsafe { std::slice::from_raw_parts(pointer.cast::<u8>().add(known), further) };
    if further.iter().any(|&byte| byte != 0) {
        let cause = format!("{} has fields set that this library does not know: use a newer one", T::NAME);
        return Err(Failure::new(RUDDER_ABI, cause));
    }
    let mut value = MaybeUninit::<T>::zeroed();
    // SAFETY: both have `known` bytes, and zeros for the rest make a value.
    unsafe {
        std::ptr::copy_nonoverlapping(pointer.cast::<u8>(), value.as_mut_ptr().cast(), known);
        Ok(value.assume_init())
    }
}

/// Where a struct goes, cut to what the caller's header knows.
pub(super) struct SizedOut<T> {
    to: *mut T,
    bytes: usize,
}

impl<T: Sized64> SizedOut<T> {
    /// # Safety
    /// As [`read_sized`], for writes too, during the call.
    pub unsafe fn new(to: *mut T) -> Answer<Self> {
        check(to, T::NAME)?;
        // SAFETY: a struct begins with its size, and is aligned for it.
        let bytes = size_of_struct::<T>(unsafe { to.cast::<u64>().read() })?;
        Ok(Self { to, bytes })
    }

    /// Writes all but the size; fields that only the caller knows become zero.
    pub fn set(self, value: T) {
        let known = self.bytes.min(size_of::<T>());
        let size = size_of::<u64>();
        // SAFETY: whoever made it has promised so many bytes; padding is copied as bytes that may hold nothing, and not looked at.
        unsafe {
            let to = self.to.cast::<u8>();
            std::ptr::copy_nonoverlapping((&raw const value).cast::<u8>().add(size), to.add(size), known - size);
            std::ptr::write_bytes(to.add(known), 0, self.bytes - known);
        }
    }
}

#[cfg(test)]
mod tests {
    //! Goal: programs built with older and newer headers are understood or refused. Method: a struct of three sizes.
    use super::*;

    #[derive(Clone, Copy, Debug, PartialEq)]
    #[repr(C)]
    struct Now {
        struct_size: u64,
        first: u64,
        second: u64,
    }

    // SAFETY: integers only.
    unsafe impl Sized64 for Now {
        const NAME: &'static str = "now";
        const LEAST: usize = 16;
    }

    fn read_of(size: u64, further: u64) -> Answer<Now> {
        let newer = [size, 1, 2, further];
        // SAFETY: the size is one that the four numbers have, or is refused.
        unsafe { read_sized(newer.as_ptr().cast::<Now>()) }
    }

    #[test]
    fn older_and_newer_structs_are_read() {
        assert_eq!(read_of(16, 9).unwrap(), Now { struct_size: 16, first: 1, second: 0 });
        assert_eq!(read_of(24, 9).unwrap(), Now { struct_size: 24, first: 1, second: 2 });
        assert_eq!(read_of(32, 0).unwrap(), Now { struct_size: 32, first: 1, second: 2 });
        for (size, words) in [(32, "use a newer one"), (0, "sizeof(now)"), (15, "sizeof(now)"), (4097, "is 24 here")] {
            let failure = read_of(size, 9).unwrap_err();
            assert!(failure.status == RUDDER_ABI && failure.cause.contains(words), "{size}: {failure:?}");
        }
    }

    #[test]
    fn results_are_cut_to_what_the_caller_knows() {
        for (size, expected) in [(16u64, [16, 1, 7, 7]), (24, [24, 1, 2, 7]), (32, [32, 1, 2, 0])] {
            let mut to = [size, 7, 7, 7];
            // SAFETY: the size is one that the four numbers have.
            let out = unsafe { SizedOut::new(to.as_mut_ptr().cast::<Now>()) }.unwrap();
            out.set(Now { struct_size: 0, first: 1, second: 2 });
            assert_eq!(to, expected);
        }
    }

    #[test]
    fn counts_beyond_memory_are_refused() {
        assert_eq!(bytes(3, 8, "nodes").unwrap(), 24);
        assert!(bytes(1 << 61, 8, "nodes").is_err() && bytes(u64::MAX, 1, "rows").is_err());
        // SAFETY: refused before anything is read.
        assert!(unsafe { list(std::ptr::dangling::<u64>(), 1 << 60, "nodes") }.is_err());
    }
}
