//! Goal: the `fabric` transport keeps the contract of `Transport` and `Channel` over RDMA devices too, by `verbs;ofi_rxm`.
//! Method: the suite of `common/suite.rs`: `make test-verbs` runs it in a virtual machine with Soft-RoCE. Without a device every check
//! fails.

mod common;

use rudder::transport::Transport;
use rudder::transport::fabric::ReadMode;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

/// The address of the virtual machine's first device.
const DEVICE: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
/// `verbs;ofi_rxm` rings the device for each read, of which the emulated processor makes some 8,000 a second: more rows than this take
/// longer than the suite waits.
const BATCH_ROWS_MAX: usize = 4096;
/// A connection takes 1 to 3 s here, and several at once take as many times that.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(12);

common::suite::transports! {
    rxm_reads: |ranks| super::over_device(crate::ReadMode::On, ranks);
    rxm_asks: |ranks| super::over_device(crate::ReadMode::Off, ranks);
}

fn over_device(rma: ReadMode, ranks: u32) -> Vec<Arc<dyn Transport>> {
    common::opened("fabric", ranks, |config| {
        config.listen = DEVICE.into();
        config.fabric.provider = Some("verbs;ofi_rxm".into());
        config.fabric.rma = rma;
        config.fabric.batch_rows_max = BATCH_ROWS_MAX;
        config.fabric.connect_timeout = CONNECT_TIMEOUT;
    })
}
