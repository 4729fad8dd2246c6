//! The model: laws through the simulated numbers of ranks, and what a step takes by them.

use super::law::{Law, Scale};
use super::network::Network;
use super::point::Point;
use serde::{Deserialize, Serialize};
use std::fmt;

/// What the job is, whatever its ranks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Work {
    /// Nodes of the graph.
    pub nodes: f64,
    /// Of them, those that are trained on.
    pub training: f64,
    /// Seeds a minibatch and rank.
    pub batch: f64,
    /// Bytes of a row.
    pub row_bytes: f64,
    /// Seconds of sampling a minibatch.
    pub sample_s: f64,
    /// Seconds of computing on one.
    pub compute_s: f64,
    /// Bytes of gradients that each step averages.
    pub gradient_bytes: f64,
    /// Of each rank's NIC, with what the ranks that share it leave.
    pub network: Network,
    /// Memory that a rank has for rows; none is no limit.
    pub memory: Option<f64>,
}

/// What holds a job back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Bound {
    /// Sampling and computing.
    Compute,
    /// Bytes that a rank receives.
    Reader,
    /// Bytes that the owner sends which is asked most.
    Owner,
    /// Rows, however short, that a NIC handles one by one.
    MessageRate,
    /// The way there and back, whatever is fetched.
    Latency,
    /// Averaging gradients.
    Allreduce,
    /// What a rank holds does not fit.
    Memory,
    /// There are fewer nodes to train on than all ranks' minibatches take.
    Seeds,
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Compute => "compute",
            Self::Reader => "reader's NIC",
            Self::Owner => "busiest owner's NIC",
            Self::MessageRate => "message rate",
            Self::Latency => "latency",
            Self::Allreduce => "allreduce",
            Self::Memory => "memory",
            Self::Seeds => "too few seeds",
        })
    }
}

/// What a job takes at a number of ranks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    pub steps: f64,
    pub wanted: f64,
    pub fetched: f64,
    pub step_s: f64,
    /// Of a step, what is waited for rows.
    pub stall_s: f64,
    pub allreduce_s: f64,
    /// Share of the time in which the busiest NIC moves rows.
    pub nic_load: f64,
    /// Of a rank: its partition, its buffer, and its list of halo nodes.
    pub memory_bytes: f64,
    /// Bytes of a row.
    pub row_bytes: f64,
    pub bound: Bound,
}

/// Laws of a job's quantities.
#[derive(Clone, Debug)]
pub struct Model {
    /// Input nodes of a minibatch: the fewer nodes a partition has, the more of their neighbours are the same.
    inputs: Law,
    /// Share of a minibatch's inputs that is the rank's own.
    local: Law,
    /// Rows fetched for a row wanted.
    misses: Law,
    halo: Law,
    reader_skew: Law,
    owner_skew: Law,
    /// Slots for a halo node.
    buffer: f64,
}

/// Bytes that a halo node's number and degree take.
const HALO_NODE_BYTES: f64 = 12.0;

impl Model {
    /// Through these points, of which there is at least one.
    pub fn through(points: &[Point]) -> Self {
        let law =
            |scale, of: fn(&Point) -> f64| Law::through(scale, points.iter().map(|point| (point.ranks, of(point))));
        let mean = |of: fn(&Point) -> f64| points.iter().map(of).sum::<f64>() / points.len() as f64;
        Self {
            inputs: law(Scale::Power, |point| point.inputs),
            local: law(Scale::Power, |point| 1.0 - point.wanted / point.inputs),
            misses: law(Scale::Share, |point| point.fetched / point.wanted),
            halo: law(Scale::Power, |point| point.halo),
            reader_skew: law(Scale::Linear, |point| point.reader_skew),
            owner_skew: law(Scale::Linear, |point| point.owner_skew),
            buffer: mean(|point| point.slots / point.halo),
        }
    }

    /// What the job takes at so many ranks.
    pub fn at(&self, ranks: f64, work: &Work) -> Estimate {
        let Work { network, row_bytes, .. } = *work;
        let seeds = work.training / ranks;
        // A minibatch that cannot be filled wants less in proportion.
        let filled = (seeds / work.batch).min(1.0);
        let wanted = filled * self.inputs.at(ranks) * (1.0 - self.local.at(ranks)).max(0.0);
        let fetched = wanted * self.misses.at(ranks);
        let skew = |law: &Law| law.at(ranks).max(1.0);
        let reader_s = network.carrying(fetched * skew(&self.reader_skew), row_bytes);
        let owner_s = network.carrying(fetched * skew(&self.owner_skew), row_bytes);
        let latency_s = if fetched > 0.0 { network.latency_s } else { 0.0 };
        let fetch_s = latency_s + reader_s.max(owner_s);
        let compute_s = filled * work.compute_s;
        let allreduce_s = network.allreduce(ranks, work.gradient_bytes);
        let stall_s = (fetch_s - compute_s).max(0.0);
        let step_s = filled * work.sample_s + compute_s + stall_s + allreduce_s;
        let halo = self.halo.at(ranks).min(work.nodes * (ranks - 1.0) / ranks);
        let memory_bytes = (work.nodes / ranks + halo * self.buffer) * row_bytes + halo * HALO_NODE_BYTES;
        let own_s = filled * work.sample_s + compute_s;
        let bound = if work.memory.is_some_and(|memory| memory_bytes > memory) {
            Bound::Memory
        } else if filled < 1.0 {
            Bound::Seeds
        } else if allreduce_s > own_s.max(fetch_s) {
            Bound::Allreduce
        } else if stall_s == 0.0 {
            Bound::Compute
        } else if latency_s > reader_s.max(owner_s) {
            Bound::Latency
        } else if network.gap_s > row_bytes * network.byte_s {
            Bound::MessageRate
        } else if owner_s > reader_s {
            Bound::Owner
        } else {
            Bound::Reader
        };
        Estimate {
            steps: (seeds / work.batch).ceil().max(1.0),
            wanted,
            fetched,
            step_s,
            stall_s,
            allreduce_s,
            nic_load: if step_s > 0.0 { reader_s.max(owner_s) / step_s } else { 0.0 },
            memory_bytes,
            row_bytes,
            bound,
        }
    }
}

#[cfg(test)]
mod tests {
    //! Goal: a job that follows a law is projected by it, and what holds it back is told. Method: points of a random partition, whose shares
    //! are known for every number of ranks, and networks that are slow in one way each.

    use super::super::network::NetworkSpec;
    use super::*;

    const INPUTS: f64 = 1000.0;

    fn points() -> [Point; 3] {
        [2.0, 4.0, 8.0].map(|ranks| {
            let wanted = INPUTS * (1.0 - 1.0 / ranks);
            let (halo, skew) = (5000.0, 1.0);
            Point {
                ranks,
                inputs: INPUTS,
                wanted,
                fetched: wanted / 2.0,
                halo,
                slots: halo / 10.0,
                reader_skew: skew,
                owner_skew: skew,
                step_s: 0.0,
            }
        })
    }

    fn work(network: &str) -> Work {
        Work {
            nodes: 1e6,
            training: 1e6,
            batch: 100.0,
            row_bytes: 400.0,
            sample_s: 0.0,
            compute_s: 1e-4,
            gradient_bytes: 0.0,
            network: network.parse::<NetworkSpec>().unwrap().load().unwrap().0,
            memory: None,
        }
    }

    #[test]
    fn a_random_partition_goes_on_as_one() {
        let model = Model::through(&points());
        for ranks in [2.0, 64.0, 1024.0] {
            let estimate = model.at(ranks, &work("1gbit,50us"));
            let wanted = INPUTS * (1.0 - 1.0 / ranks);
            assert!((estimate.wanted / wanted - 1.0).abs() < 1e-9, "{ranks}: {estimate:?}");
            assert!((estimate.fetched / estimate.wanted - 0.5).abs() < 1e-9);
            assert_eq!(estimate.steps, (1e4 / ranks).ceil());
            let fetching = 50e-6 + estimate.fetched * 400.0 * 8e-9;
            assert!((estimate.step_s - fetching.max(1e-4)).abs() < 1e-12);
        }
    }

    #[test]
    fn what_is_slowest_holds_a_job_back() {
        let model = Model::through(&points());
        let bound = |work: &Work| model.at(64.0, work).bound;
        let link = work("1gbit,50us");
        assert_eq!(bound(&link), Bound::Reader);
        assert_eq!(bound(&Work { compute_s: 1.0, ..link }), Bound::Compute);
        assert_eq!(bound(&Work { gradient_bytes: 1e9, ..link }), Bound::Allreduce);
        assert_eq!(bound(&work("1gbit,100ms")), Bound::Latency);
        assert_eq!(bound(&work("1e-6:1e-5:1e-10")), Bound::MessageRate);
        assert_eq!(bound(&Work { memory: Some(1e6), ..link }), Bound::Memory);
        assert_eq!(bound(&Work { training: 64.0 * 99.0, ..link }), Bound::Seeds);
        let busy = points().map(|point| Point { owner_skew: 3.0, ..point });
        let estimate = Model::through(&busy).at(64.0, &link);
        assert_eq!(estimate.bound, Bound::Owner);
        assert!(estimate.stall_s > 2.0 * model.at(64.0, &link).stall_s);
    }
}
