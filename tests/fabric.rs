//! Goal: the fabric transport keeps the contract over every kind of provider that can be had without a NIC.
//! Method: the suite of `common/suite.rs`, rows read and rows asked for, over libfabric's own software providers and over a fake library
//! that asks for all that the hardware's providers ask for.

mod common;
#[path = "common/fake_libfabric.rs"]
mod fake_libfabric;

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

fn over_fake(provider: &str, rma: ReadMode, ranks: u32) -> Vec<Arc<dyn Transport>> {
    opened("fabric", ranks, |config| {
        config.fabric.provider = Some(provider.into());
        config.fabric.rma = rma;
        config.fabric.library = Some(fake_libfabric::path().into());
    })
}

common::suite::transports! {
    rxm_reads: |ranks| crate::over("tcp;ofi_rxm", crate::ReadMode::On, ranks);
    rxm_asks: |ranks| crate::over("tcp;ofi_rxm", crate::ReadMode::Auto, ranks);
    net_reads: |ranks| crate::over("net", crate::ReadMode::On, ranks);
    net_asks: |ranks| crate::over("net", crate::ReadMode::Auto, ranks);
    fake_cxi_reads: |ranks| crate::over_fake("cxi", crate::ReadMode::Auto, ranks);
    fake_cxi_asks: |ranks| crate::over_fake("cxi", crate::ReadMode::Off, ranks);
    fake_raw_reads: |ranks| crate::over_fake("fakeraw", crate::ReadMode::Auto, ranks);
    fake_raw_asks: |ranks| crate::over_fake("fakeraw", crate::ReadMode::Off, ranks);
}
