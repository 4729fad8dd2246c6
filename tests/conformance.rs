//! Goal: every transport keeps the contract of `Transport` and `Channel`, whatever moves its bytes.
//! Method: the suite of `common/suite.rs`, run over every line below, ranks as threads. Rows carry bytes that only one row of one rank can
//! have, destinations lie between guard bytes, and every wait has an end. A new transport is one line, here or in a target of its own
//! where it takes a device that most machines lack.

mod common;

common::suite::transports! {
    shm: |ranks| crate::common::named("shm", ranks);
    tcp: |ranks| crate::common::named("tcp", ranks);
    sim: |ranks| crate::common::simulated(ranks);
    throttled_shm: |ranks| crate::common::opened("shm", ranks, |config| config.link = "8gbit,20us".parse().unwrap());
    throttled_tcp: |ranks| crate::common::opened("tcp", ranks, |config| config.link = "8gbit,20us".parse().unwrap());
    faultless_shm: |ranks| crate::common::opened("shm", ranks, |config| config.faults = Some(Default::default()));
    faultless_tcp: |ranks| crate::common::opened("tcp", ranks, |config| config.faults = Some(Default::default()));
    disturbed_shm: |ranks| crate::common::disturbed(crate::common::named("shm", ranks));
    disturbed_tcp: |ranks| crate::common::disturbed(crate::common::named("tcp", ranks));
    disturbed_sim: |ranks| crate::common::disturbed(crate::common::simulated(ranks));
}
