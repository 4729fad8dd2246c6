//! Keeps candle on the calling thread.
//!
//! Candle's products of quantized matrices hand work to a process-wide pool whose threads spin while they wait: beside training that costs more
//! than it brings, and the model's promise is one thread.

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
