//! The rudder command.
mod graph;
mod model;
mod partition;
mod sampler;

fn main() {}
