//! Processor time: what others do with the core is not in it.

use rustix::time::{ClockId, clock_gettime};
use std::time::Duration;

/// That of the calling thread.
pub fn thread_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec as u32)
}
