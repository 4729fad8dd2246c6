//! Keeps candle on the calling thread.
//!
//! Candle's matrix products hand work to a process-wide pool whose threads spin while they wait: beside training that costs more than it
//! brings, and the model's promise is one thread. There are two such pools, each with its own switch.

use std::cell::OnceCell;
use std::sync::Once;

const CANDLE_THREADS: &str = "CANDLE_NUM_THREADS";

/// Makes all of candle's work that this thread asks for run on this thread. Where `CANDLE_NUM_THREADS` is set already, that number stands.
pub(super) fn confine_to_this_thread() {
    static QUANTIZED: Once = Once::new();
    thread_local! {
        static DENSE: OnceCell<Option<rayon::ThreadPool>> = const { OnceCell::new() };
    }
    QUANTIZED.call_once(|| {
        if std::env::var_os(CANDLE_THREADS).is_none() {
            // SAFETY: the environment must not be read through C at the same moment. This happens once a process, before candle's first
            // use; it adds a variable and replaces none, for which glibc leaves the strings that others may hold in place. The pool has no
            // other switch. A process that calls setenv from other threads sets the variable itself at its start.
            unsafe { std::env::set_var(CANDLE_THREADS, "1") };
        }
        candle_core::utils::barrier_pool();
    });
    // Dense products split their work over the rayon pool of the calling thread: here a pool of this one thread. A thread that is in a pool
    // already keeps it.
    DENSE.with(|pool| {
        pool.get_or_init(|| rayon::ThreadPoolBuilder::new().num_threads(1).use_current_thread().build().ok());
    });
}
