//! A job at a number of ranks: what its minibatches want and what is fetched for them, counted in the simulator.

use crate::replay::{Case, Job, Outcome, RankTrace};
use crate::workload::Workload;
use anyhow::{Context, Result};
use rudder::NodeId;
use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};

/// What is known of a job at a number of ranks. Means are over ranks and minibatches.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    /// Ranks, each with a partition.
    pub ranks: f64,
    /// Nodes of the graph.
    pub nodes: f64,
    /// Of them, those that are trained on.
    pub training: f64,
    /// Edges, in both directions.
    pub edges: f64,
    /// Input nodes of a minibatch, whoever owns them.
    pub inputs: f64,
    /// Of them, those of other ranks.
    pub wanted: f64,
    /// Rows fetched, ahead or not.
    pub fetched: f64,
    /// Halo nodes of a rank.
    pub halo: f64,
    /// Slots of a rank's buffer.
    pub slots: f64,
    /// What the rank fetches that fetches most, over the mean of its step.
    pub reader_skew: f64,
    /// What the owner sends that sends most, over the mean of its step.
    pub owner_skew: f64,
    /// A step's time in the simulator, without averaging gradients.
    pub step_s: f64,
}

impl Point {
    /// Of a sampled job and what came of its replay.
    ///
    /// # Errors
    /// The partitions do not hold together, or a rank has nothing to train on.
    pub fn of(workload: &Workload, job: &Job, case: &Case, outcome: &Outcome) -> Result<Self> {
        let (nodes, training) = workload.nodes();
        let ranks = job.ranks.len() as f64;
        let minibatches = ranks * job.steps as f64;
        let slots = job.ranks.iter().map(|trace| case.buffer.slots(trace)).collect::<Result<Vec<_>>>()?;
        // Without a hit nothing is kept, whatever there is room for.
        let kept = if outcome.stats.hits == 0 { vec![0; slots.len()] } else { slots.clone() };
        let (reader_skew, owner_skew) = skews(job, &kept)?;
        Ok(Self {
            ranks,
            nodes: nodes as f64,
            training: training as f64,
            edges: workload.edges() as f64,
            inputs: workload.inputs()?,
            wanted: job.wanted() as f64 / minibatches,
            fetched: (outcome.stats.demand_rows + outcome.stats.prefetched_rows) as f64 / minibatches,
            halo: job.ranks.iter().map(|trace| trace.hints.halo.len()).sum::<usize>() as f64 / ranks,
            slots: slots.iter().map(|&slots| f64::from(slots)).sum::<f64>() / ranks,
            reader_skew,
            owner_skew,
            step_s: outcome.epochs.iter().map(|epoch| epoch.as_secs_f64()).sum::<f64>() / job.steps as f64,
        })
    }
}

/// How uneven the fetches of a step are, for readers and for owners, in the mean over steps. Which rows are fetched is taken for those that are not
/// among the most wanted of a rank, as many as it keeps: hubs, which make owners uneven, are wanted often and fetched once.
fn skews(job: &Job, kept: &[u32]) -> Result<(f64, f64)> {
    let book = job.ranks[0].header.tables[0].book()?;
    let keeps: Vec<HashSet<NodeId>> =
        job.ranks.iter().zip(kept).map(|(trace, &slots)| most_wanted(trace, job.steps, slots as usize)).collect();
    let (mut readers, mut owners) = (0.0, 0.0);
    let (mut asking, mut asked) = (vec![0usize; job.ranks.len()], vec![0usize; job.ranks.len()]);
    for step in 0..job.steps {
        asking.fill(0);
        asked.fill(0);
        for (reader, (trace, keeps)) in job.ranks.iter().zip(&keeps).enumerate() {
            for node in trace.nodes(step).iter().filter(|node| !keeps.contains(node)) {
                let (owner, _) = book.locate(*node).context("a node that no rank owns")?;
                asking[reader] += 1;
                asked[owner.index()] += 1;
            }
        }
        let mean = asked.iter().sum::<usize>() as f64 / job.ranks.len() as f64;
        let skew = |counts: &[usize]| {
            let most = counts.iter().copied().max().unwrap_or(0) as f64;
            if mean > 0.0 { most / mean } else { 1.0 }
        };
        readers += skew(&asking);
        owners += skew(&asked);
    }
    Ok((readers / job.steps as f64, owners / job.steps as f64))
}

/// The nodes that a rank wants most often.
fn most_wanted(trace: &RankTrace, steps: usize, count: usize) -> HashSet<NodeId> {
    let mut wants: HashMap<NodeId, u32> = HashMap::new();
    for node in (0..steps).flat_map(|step| trace.nodes(step)) {
        *wants.entry(*node).or_default() += 1;
    }
    let mut nodes: Vec<(NodeId, u32)> = wants.into_iter().collect();
    nodes.sort_unstable_by_key(|&(node, wants)| (Reverse(wants), node));
    nodes.into_iter().take(count).map(|(node, _)| node).collect()
}
