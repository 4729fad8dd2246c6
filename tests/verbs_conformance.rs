//! Goal: the `verbs` transport keeps the contract of `Transport` and `Channel`.
//! Method: the suite of `common/suite.rs` over RDMA devices: `make test-verbs` runs it in a virtual machine with Soft-RoCE. Without a
//! device every check fails.

mod common;

use rudder::transport::Transport;
use std::sync::Arc;

common::suite::transports! {
    verbs: super::between_devices;
    throttled_verbs: |ranks| crate::common::opened("verbs", ranks, |config| config.link = "8gbit,20us".parse().unwrap());
    disturbed_verbs: |ranks| crate::common::disturbed(super::between_devices(ranks));
}

/// Ranks on the virtual machine's two devices in turn, so that rows travel between devices and within one.
fn between_devices(ranks: u32) -> Vec<Arc<dyn Transport>> {
    common::opened("verbs", ranks, |config| config.verbs.device = Some(format!("rxe{}", config.rank.0 % 2)))
}
