//! What only environment variables tell libfabric: set before it is loaded, where nobody has set them otherwise.

use super::failed;
use crate::error::Result;

/// Keeps libfabric from caching registrations by their addresses. Its default is to learn from hooks in the C library's `munmap` which
/// addresses have new pages: ours are unmapped by system calls, and a stale registration would bring rows to pages that nobody sees.
const CACHE_MONITOR: (&str, &str) = ("FI_MR_CACHE_MONITOR", "disabled");

/// Lets `tcp;ofi_rxm` send replies at once and receive them in place. Above its limit of 16 KiB it has the receiver fetch a message, which
/// costs a round trip and takes both sides' time. Other providers, and later releases, do not read it.
const EAGER_LIMIT: (&str, &str) = ("FI_OFI_RXM_EAGER_LIMIT", "1048576");
/// The release from which on it is not read.
const EAGER_LIMIT_ENDS: (u32, u32) = (1, 20);

/// Prepares the environment of a library that is about to be loaded.
///
/// # Errors
/// The cache of registrations is asked for in its wrong form.
pub(super) fn prepare() -> Result<()> {
    let (monitor, _) = CACHE_MONITOR;
    if std::env::var(monitor).is_ok_and(|value| value == "memhooks") {
        return Err(failed(format!(
            "{monitor}=memhooks caches registrations of memory that is gone: unset it, or set it to disabled, kdreg2 or userfaultfd"
        )));
    }
    set(CACHE_MONITOR, "registrations are made once and explicitly");
    set(EAGER_LIMIT, "a reply is asked for and has a buffer that waits for it");
    Ok(())
}

/// Whether a provider of a release sends and receives replies in place, once the environment is prepared.
pub(super) fn sends_in_place(provider: &str, version: (u32, u32)) -> bool {
    provider == "tcp;ofi_rxm" && version < EAGER_LIMIT_ENDS
}

fn set((name, value): (&str, &str), because: &str) {
    if std::env::var_os(name).is_some() {
        return;
    }
    tracing::info!("transport fabric: {name}={value}, because {because}");
    // SAFETY: this is once a process, before libfabric is loaded and reads it; Rust's own readers are locked out meanwhile, and C code
    // that reads its environment while other threads start is as wrong with anybody's change.
    unsafe { std::env::set_var(name, value) };
}
