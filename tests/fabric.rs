//! Goal: the fabric transport keeps the contract over every kind of provider that can be had without a NIC.
//! Method: the suite of `common/suite.rs` over libfabric's own software providers, rows read and rows asked for.

mod common;

use common::opened;
use rudder::transport::Transport;
use rudder::transport::fabric::ReadMode;
use std::sync::Arc;
use std::time::Duration;

fn over(provider: &str, rma: ReadMode, ranks: u32) -> Vec<Arc<dyn Transport>> {
    opened("fabric", ranks, |config| {
        config.fabric.provider = Some(provider.into());
        config.fabric.rma = rma;
        config.fabric.connect_timeout = Duration::from_secs(2);
    })
}

common::suite::transports! {
    rxm_reads: |ranks| crate::over("tcp;ofi_rxm", crate::ReadMode::On, ranks);
    rxm_asks: |ranks| crate::over("tcp;ofi_rxm", crate::ReadMode::Off, ranks);
    net_reads: |ranks| crate::over("net", crate::ReadMode::On, ranks);
    net_asks: |ranks| crate::over("net", crate::ReadMode::Off, ranks);
}
