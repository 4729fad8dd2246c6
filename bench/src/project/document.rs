//! What a projection leaves behind: one JSON document.

use super::model::{Bound, Estimate};
use super::network::Network;
use crate::record::Made;
use serde::{Deserialize, Serialize};

/// The version of the document's layout.
pub const FORMAT: u32 = 2;

/// The document.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Document {
    /// [`FORMAT`], and what made it.
    #[serde(flatten)]
    pub made: Made,
    /// The graph.
    pub graph: String,
    /// The policy, and the controller that steers it.
    pub policy: String,
    /// The network, by the rank.
    pub network: Network,
    /// Seconds of sampling a minibatch.
    pub sample_s: f64,
    /// Seconds of computing on one.
    pub compute_s: f64,
    /// By how the graph goes with the ranks.
    pub projections: Vec<Projection>,
    /// Where sizes are all that is known of the graph: how far they are right about another.
    pub check: Option<Check>,
    /// What to know of where it is from.
    pub notes: Vec<String>,
    /// Seconds that it took.
    pub wall_s: f64,
}

/// How the graph goes with the ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scaling {
    /// It is the same, however many there are.
    Strong,
    /// It grows as they do: a rank's part is the same.
    Weak,
}

impl Scaling {
    /// As the document has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Strong => "strong",
            Self::Weak => "weak",
        }
    }

    /// How many times as large as the part that is held fixed the graph is at so many ranks.
    pub fn times(self, ranks: f64) -> f64 {
        match self {
            Self::Strong => 1.0,
            Self::Weak => ranks,
        }
    }
}

/// A job at all its numbers of ranks.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Projection {
    /// How the graph goes with them.
    pub scaling: Scaling,
    /// What is held fixed: nodes of the graph in strong scaling, of a rank's part of it in weak.
    pub nodes: f64,
    /// Of them, those that are trained on.
    pub training: f64,
    /// The least and the most such nodes among the simulated graphs, which generators give nearly as many as are asked for.
    pub simulated_nodes: Option<[f64; 2]>,
    /// The laws' error, where there are points enough to know one.
    pub held_out: Option<HeldOut>,
    /// By number of ranks.
    pub rows: Vec<Row>,
}

/// The largest simulated number of ranks, predicted from the smaller ones: the model's over the simulator's.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct HeldOut {
    /// Ranks.
    pub ranks: u64,
    /// Rows fetched.
    pub rows: f64,
    /// A step's time.
    pub step: f64,
}

/// What sizes alone say of a graph that can be simulated.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Check {
    /// The graph.
    pub graph: String,
    /// By number of ranks.
    pub rows: Vec<CheckRow>,
}

/// Of a number of ranks: the model's figures by sizes alone over the simulator's.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct CheckRow {
    /// Ranks.
    pub ranks: u64,
    /// Rows that a rank wants from others in a minibatch.
    pub wanted: f64,
    /// Rows that it fetches for one.
    pub fetched: f64,
    /// Halo nodes of a rank.
    pub halo: f64,
    /// A step's time.
    pub step: f64,
}

/// Where a row's `checked_s` is from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A recorded run.
    Measured,
    /// The simulator.
    Simulated,
    /// Nowhere: these are the model's figures alone.
    Model,
    /// Nowhere, and the model is fitted to nothing: these are of the graph's sizes alone.
    Sizes,
}

impl Kind {
    /// As the document has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Measured => "measured",
            Self::Simulated => "simulated",
            Self::Model => "model",
            Self::Sizes => "sizes alone",
        }
    }
}

/// A number of ranks. All but `checked_s` is the model's.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Row {
    /// Ranks.
    pub ranks: u64,
    /// What it is checked against.
    pub kind: Kind,
    /// Steps of an epoch.
    pub steps: f64,
    /// An epoch's time, in seconds.
    pub epoch_s: f64,
    /// The same as it was measured or simulated.
    pub checked_s: Option<f64>,
    /// How much of what the fewest ranks do in a second each of these does; not of a recorded run, whose computing is another.
    pub efficiency: Option<f64>,
    /// Of the epoch: waiting for rows.
    pub stall_s: f64,
    /// Of the epoch: averaging gradients.
    pub allreduce_s: f64,
    /// Rows that a rank wants from others in a minibatch.
    pub wanted: f64,
    /// Rows that it fetches for one.
    pub fetched: f64,
    /// Bytes that all ranks fetch in an epoch.
    pub epoch_bytes: f64,
    /// Share of the time in which the busiest NIC moves rows.
    pub nic_load: f64,
    /// Memory of a node for rows, in bytes.
    pub node_bytes: f64,
    /// What holds it back.
    pub bound: Bound,
}

impl Row {
    /// Of an estimate, unchecked.
    pub fn of(kind: Kind, ranks: f64, estimate: &Estimate, ranks_per_node: usize) -> Self {
        let Estimate { steps, .. } = *estimate;
        Self {
            ranks: ranks as u64,
            kind,
            steps,
            epoch_s: steps * estimate.step_s,
            checked_s: None,
            efficiency: None,
            stall_s: steps * estimate.stall_s,
            allreduce_s: steps * estimate.allreduce_s,
            wanted: estimate.wanted,
            fetched: estimate.fetched,
            epoch_bytes: steps * ranks * estimate.fetched * estimate.row_bytes,
            nic_load: estimate.nic_load,
            node_bytes: estimate.memory_bytes * (ranks_per_node as f64).min(ranks),
            bound: estimate.bound,
        }
    }
}
