//! What this process holds for rows, for reports and limits.

use crate::error::{Error, Result};
use rustix::process::{Resource, getrlimit};
use serde::{Deserialize, Serialize};
use std::io;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

static OWNED: AtomicUsize = AtomicUsize::new(0);
static OWNED_PEAK: AtomicUsize = AtomicUsize::new(0);
static LOCKED: AtomicUsize = AtomicUsize::new(0);
static PINNED: AtomicUsize = AtomicUsize::new(0);
static PINNED_MAX: AtomicU64 = AtomicU64::new(u64::MAX);

/// Bytes that the process owns through [`Memory::allocate`](super::Memory::allocate), or has pinned for a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Allocated now.
    pub bytes: usize,
    /// The most that was ever allocated at once.
    pub peak_bytes: usize,
    /// Of those now allocated, the ones that the kernel may not swap out.
    pub locked_bytes: usize,
    /// Registered with devices now, whoever owns them; bytes registered twice count twice, as the kernel counts them.
    pub pinned_bytes: usize,
}

/// What is allocated and pinned now, and was allocated at most.
pub fn usage() -> Usage {
    Usage {
        bytes: OWNED.load(Relaxed),
        peak_bytes: OWNED_PEAK.load(Relaxed),
        locked_bytes: LOCKED.load(Relaxed),
        pinned_bytes: PINNED.load(Relaxed),
    }
}

pub(super) fn add(bytes: usize, locked_bytes: usize) {
    let now = OWNED.fetch_add(bytes, Relaxed) + bytes;
    OWNED_PEAK.fetch_max(now, Relaxed);
    LOCKED.fetch_add(locked_bytes, Relaxed);
}

pub(super) fn subtract(bytes: usize, locked_bytes: usize) {
    OWNED.fetch_sub(bytes, Relaxed);
    LOCKED.fetch_sub(locked_bytes, Relaxed);
}

/// The process pins no more than this from now on, whatever the system allows; what is pinned already stays.
pub fn limit_pinned(bytes_max: u64) {
    PINNED_MAX.store(bytes_max, Relaxed);
}

/// Bytes that a device may reach; they count as pinned until this is dropped, which follows the deregistration.
#[derive(Debug)]
#[must_use]
pub struct PinCharge {
    bytes: usize,
}

impl Drop for PinCharge {
    fn drop(&mut self) {
        PINNED.fetch_sub(self.bytes, Relaxed);
    }
}

/// How many bytes the system lets this process pin, RLIMIT_MEMLOCK; `None` where it sets no limit.
pub fn pin_limit() -> Option<u64> {
    system_limit().map(|limit| limit.bytes_max)
}

/// Counts bytes as pinned; a transport asks for this before it registers memory whose pages the device keeps in place.
///
/// # Errors
/// They would pass RLIMIT_MEMLOCK, which holds for processes without CAP_IPC_LOCK, or the configured `pinned_bytes_max`. The
/// message names the limit, what is used of it and the remedy.
pub fn pin_charge(bytes: usize) -> Result<PinCharge> {
    charge(bytes, &[system_limit(), Some(configured_limit())])
}

/// How many bytes may be pinned, and who says so.
struct Limit {
    bytes_max: u64,
    name: &'static str,
    remedy: &'static str,
}

fn configured_limit() -> Limit {
    Limit {
        bytes_max: PINNED_MAX.load(Relaxed),
        name: "pinned_bytes_max",
        remedy: "raise it (RUDDER_PINNED_BYTES_MAX), export less memory, or make the buffer smaller",
    }
}

/// `None` where the kernel sets this process no limit. It may grant less: other libraries of the process pin memory too.
fn system_limit() -> Option<Limit> {
    let bytes_max = getrlimit(Resource::Memlock).current?;
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    (!may_lock_all(&status)).then_some(Limit {
        bytes_max,
        name: "RLIMIT_MEMLOCK",
        remedy: "raise it: `ulimit -l unlimited` before the start; memlock in /etc/security/limits.d for logins; under Slurm, LimitMEMLOCK=infinity \
                 for slurmd, and `srun --propagate=NONE` or PropagateResourceLimitsExcept=MEMLOCK lest the login node's limit come along",
    })
}

/// Whether `/proc/self/status` shows CAP_IPC_LOCK, number 14 of capabilities(7), which RLIMIT_MEMLOCK does not bind.
fn may_lock_all(status: &str) -> bool {
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    effective.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask >> 14 & 1 == 1)
}

fn charge(bytes: usize, limits: &[Option<Limit>]) -> Result<PinCharge> {
    // Counted first and taken back on refusal: two threads that ask at once never pass a limit together.
    let used = PINNED.fetch_add(bytes, Relaxed);
    let charge = PinCharge { bytes };
    for Limit { bytes_max, name, remedy } in limits.iter().flatten() {
        if (used as u64).saturating_add(bytes as u64) > *bytes_max {
            let words = format!("{name} is {bytes_max} bytes, of which {used} are pinned already");
            let source = io::Error::new(io::ErrorKind::OutOfMemory, words);
            return Err(Error::Memory { operation: "pin", bytes, remedy, source });
        }
    }
    Ok(charge)
}

#[cfg(test)]
mod tests {
    //! Goal: what is pinned is counted, given back, and refused past either limit in words that say what to do.
    //! Method: limits of the test's own; one test holds the counter.

    use super::*;

    fn limit(bytes_max: u64) -> Option<Limit> {
        Some(Limit { bytes_max, name: "the limit", remedy: "raise it" })
    }

    #[test]
    fn pinned_bytes_are_counted_given_back_and_limited() {
        let first = charge(600, &[None, limit(1000)]).unwrap();
        let refused = charge(500, &[None, limit(1000)]).unwrap_err().to_string();
        assert_eq!(refused, "cannot pin 500 bytes: the limit is 1000 bytes, of which 600 are pinned already; raise it");
        let second = charge(400, &[limit(1000), None]).expect("it fits exactly, so the refusal was taken back");
        assert_eq!(usage().pinned_bytes, 1000);
        drop(first);
        assert_eq!(usage().pinned_bytes, 400);
        charge(usize::MAX - 400, &[limit(u64::MAX - 1)]).expect_err("more than there is");
        drop(second);
        assert_eq!(usage().pinned_bytes, 0);
        limit_pinned(1 << 10);
        let configured = charge(2 << 10, &[Some(configured_limit())]).unwrap_err().to_string();
        assert!(configured.contains("pinned_bytes_max is 1024 bytes"), "{configured}");
        assert!(configured.contains("RUDDER_PINNED_BYTES_MAX"), "{configured}");
        limit_pinned(u64::MAX);
    }

    #[test]
    fn the_capability_to_lock_is_read_from_the_status() {
        assert!(may_lock_all("Name:\trudder\nCapPrm:\t0000000000000000\nCapEff:\t000001ffffffffff\n"));
        assert!(may_lock_all("CapEff:\t0000000000004000\n"));
        for without in ["CapEff:\t0000000000003fff\n", "CapEff:\tmany\n", "CapPrm:\t0000000000004000\n", ""] {
            assert!(!may_lock_all(without), "{without}");
        }
    }

    #[test]
    fn the_system_says_what_to_do() {
        let bound = system_limit();
        assert!(
            bound.is_none_or(|limit| limit.remedy.contains("ulimit -l") && limit.remedy.contains("--propagate=NONE"))
        );
    }
}
