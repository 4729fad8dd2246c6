//! Declarations of the C shims under `shim/`, one module a shim. What they do stands in their headers; what may be called when is kept by
//! the library's transports, the only callers.

#[cfg(feature = "fabric")]
pub mod fabric;
