//! Keeps candle on the calling thread.
//!
//! Candle's matrix products hand work to a process-wide pool whose threads spin while they wait: beside training that costs more than it
//! brings, and the model's promise is one thread. There are two such pools, each with its own switch.

use std::cell::OnceCell;
use std::sync::Once;

const CANDLE_THREADS: &str = "CANDLE_NUM_THREADS";

/// Keeps candle's process-wide pool to the thread that asks, before that thread exists: to be called by whoever starts it, the sooner the
/// better. Where `CANDLE_NUM_THREADS` is set already, that number stands.
pub(super) fn confine_process() {
    static QUANTIZED: Once = Once::new();
    QUANTIZED.call_once(|| {
        let stays_alone = std::env::var_os(CANDLE_THREADS).is_some() || candle_core::utils::get_num_threads() == 1;
        if !stays_alone {
            // SAFETY: no other thread may use the environment through C at the same moment; Rust's own functions take a lock. This happens
            // once a process, on the thread of the caller who starts a model, and the documentation of all ways to do so asks that of them:
            // see `llm`. The pool has no other switch.
            unsafe { std::env::set_var(CANDLE_THREADS, "1") };
        }
        candle_core::utils::barrier_pool();
    });
}

/// Makes all of candle's work that this thread asks for run on this thread.
pub(super) fn confine_to_this_thread() {
    thread_local! {
        static DENSE: OnceCell<Option<rayon::ThreadPool>> = const { OnceCell::new() };
    }
    // Done already where a runtime or a service started this thread.
    confine_process();
    // Dense products split their work over the rayon pool of the calling thread: here a pool of this one thread. A thread that is in a pool
    // already keeps it.
    DENSE.with(|pool| {
        pool.get_or_init(|| rayon::ThreadPoolBuilder::new().num_threads(1).use_current_thread().build().ok());
    });
}
