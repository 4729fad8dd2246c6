//! Goal: the fabric transport keeps the contract over RDMA devices too.
//! Method: the suite of `common/suite.rs` over `verbs;ofi_rxm` and the device at 10.77.0.1, which is there in the virtual machine of
//! `tests/vm/rxe.sh` (by Soft-RoCE); rows read and rows asked for. FI_UNIVERSE_SIZE=16 keeps the queues within the device's limits, and
//! `--test-threads 1` the emulated processor within the checks' patience.

mod common;

use common::opened;
use rudder::transport::Transport;
use rudder::transport::fabric::ReadMode;
use std::sync::Arc;

fn over_rxe(rma: ReadMode, ranks: u32) -> Vec<Arc<dyn Transport>> {
    opened("fabric", ranks, |config| {
        config.listen = [10, 77, 0, 1].into();
        config.fabric.provider = Some("verbs;ofi_rxm".into());
        config.fabric.rma = rma;
    })
}

common::suite::transports! {
    verbs_reads: |ranks| crate::over_rxe(crate::ReadMode::Auto, ranks);
    verbs_asks: |ranks| crate::over_rxe(crate::ReadMode::Off, ranks);
}
