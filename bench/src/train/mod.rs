//! `rudder train`: the same training once for each set-up, and what differed.

pub mod job;
pub mod launch;
pub mod record;
pub mod setup;
