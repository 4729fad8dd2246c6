//! The rudder command.
mod graph;
mod partition;
mod sampler;

fn main() {}
