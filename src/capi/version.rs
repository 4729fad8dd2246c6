//! Which library this is.

use std::ffi::{CStr, c_char};

/// The version of this interface. It grows where a program that was built with an older header could not run any more; what is only
/// added, at the end of structs too, leaves it.
pub const RUDDER_ABI_VERSION: u32 = 1;

/// The version of the interface that the library has: compare it with the header's `RUDDER_ABI_VERSION` (`RUDDER_ABI_MATCHES()`) before
/// any other call.
#[unsafe(no_mangle)]
pub extern "C" fn rudder_abi_version() -> u32 {
    RUDDER_ABI_VERSION
}

/// The version of the library, such as "0.1.0"; never NULL, valid for ever.
#[unsafe(no_mangle)]
pub extern "C" fn rudder_version() -> *const c_char {
    const VERSION: &CStr = match CStr::from_bytes_with_nul(concat!(env!("CARGO_PKG_VERSION"), "\0").as_bytes()) {
        Ok(version) => version,
        Err(_) => panic!("a version holds no zero"),
    };
    VERSION.as_ptr()
}
