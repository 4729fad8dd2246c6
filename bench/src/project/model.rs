//! What a step takes that asks so much of the network.

use super::network::Network;
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

/// What a job asks of the network at a number of ranks. Means are over ranks and minibatches.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Demand {
    /// Input nodes of a full minibatch that other ranks own.
    pub wanted: f64,
    /// Rows fetched for them.
    pub fetched: f64,
    /// Halo nodes of a rank.
    pub halo: f64,
    /// Slots of a rank's buffer for each of them.
    pub buffer: f64,
    /// What the rank fetches that fetches most, over the mean of its step.
    pub reader_skew: f64,
    /// What the owner sends that sends most, over the mean of its step.
    pub owner_skew: f64,
}

/// Bytes that a halo node's number and degree take.
const HALO_NODE_BYTES: f64 = 12.0;

impl Work {
    /// The same on a graph so many times as large.
    pub fn grown(self, times: f64) -> Self {
        Self { nodes: self.nodes * times, training: self.training * times, ..self }
    }

    /// What the job takes at so many ranks.
    pub fn takes(&self, ranks: f64, demand: &Demand) -> Estimate {
        let Self { network, row_bytes, .. } = *self;
        let seeds = self.training / ranks;
        // A minibatch that cannot be filled wants less in proportion.
        let filled = (seeds / self.batch).min(1.0);
        let (wanted, fetched) = (filled * demand.wanted, filled * demand.fetched);
        let reader_s = network.carrying(fetched * demand.reader_skew.max(1.0), row_bytes);
        let owner_s = network.carrying(fetched * demand.owner_skew.max(1.0), row_bytes);
        let latency_s = if fetched > 0.0 { network.latency_s } else { 0.0 };
        let fetch_s = latency_s + reader_s.max(owner_s);
        let compute_s = filled * self.compute_s;
        let allreduce_s = network.allreduce(ranks, self.gradient_bytes);
        let stall_s = (fetch_s - compute_s).max(0.0);
        let step_s = filled * self.sample_s + compute_s + stall_s + allreduce_s;
        let halo = demand.halo.min(self.nodes * (ranks - 1.0) / ranks);
        let memory_bytes = (self.nodes / ranks + halo * demand.buffer) * row_bytes + halo * HALO_NODE_BYTES;
        let own_s = filled * self.sample_s + compute_s;
        let bound = if self.memory.is_some_and(|memory| memory_bytes > memory) {
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
            steps: (seeds / self.batch).ceil().max(1.0),
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

    use super::super::document::Scaling;
    use super::super::law::Laws;
    use super::super::network::NetworkSpec;
    use super::super::point::Point;
    use super::*;

    const INPUTS: f64 = 1000.0;

    fn points() -> [Point; 3] {
        [2.0, 4.0, 8.0].map(|ranks| {
            let wanted = INPUTS * (1.0 - 1.0 / ranks);
            let (halo, skew) = (5000.0, 1.0);
            Point {
                ranks,
                nodes: 1e6,
                training: 1e6,
                edges: 1e7,
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
        let laws = Laws::through(Scaling::Strong, &points());
        for ranks in [2.0, 64.0, 1024.0] {
            let estimate = work("1gbit,50us").takes(ranks, &laws.at(ranks));
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
        let demand = Laws::through(Scaling::Strong, &points()).at(64.0);
        let bound = |work: &Work| work.takes(64.0, &demand).bound;
        let link = work("1gbit,50us");
        assert_eq!(bound(&link), Bound::Reader);
        assert_eq!(bound(&Work { compute_s: 1.0, ..link }), Bound::Compute);
        assert_eq!(bound(&Work { gradient_bytes: 1e9, ..link }), Bound::Allreduce);
        assert_eq!(bound(&work("1gbit,100ms")), Bound::Latency);
        assert_eq!(bound(&work("1e-6:1e-5:1e-10")), Bound::MessageRate);
        assert_eq!(bound(&Work { memory: Some(1e6), ..link }), Bound::Memory);
        assert_eq!(bound(&Work { training: 64.0 * 99.0, ..link }), Bound::Seeds);
        let busy = points().map(|point| Point { owner_skew: 3.0, ..point });
        let estimate = link.takes(64.0, &Laws::through(Scaling::Strong, &busy).at(64.0));
        assert_eq!(estimate.bound, Bound::Owner);
        assert!(estimate.stall_s > 2.0 * link.takes(64.0, &demand).stall_s);
    }
}
