//! Events as numbers: what is small takes one byte.

use super::block::BlockReader;
use super::{Event, Minibatch, NODES_MAX, OwnerCost, StepTimes};
use crate::error::Result;
use crate::id::{NodeId, PartitionId};
use std::io::Read;
use std::time::Duration;

const END: u8 = 0;
const MINIBATCH: u8 = 1;
const EPOCH_END: u8 = 2;
const GAP: u8 = 3;

const OBSERVED: u8 = 1;
const OVERLAPPED: u8 = 2;
const ANNOUNCED: u8 = 4;

pub(super) fn put_number(raw: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        raw.push(number as u8 | 0x80);
        number >>= 7;
    }
    raw.push(number as u8);
}

fn put_time(raw: &mut Vec<u8>, time: Duration) {
    put_number(raw, u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
}

/// Nodes as differences: of ascending ones the distances, of others with a sign.
pub(super) fn put_nodes(raw: &mut Vec<u8>, nodes: &[NodeId]) {
    let ascending = nodes.is_sorted();
    raw.push(u8::from(ascending));
    put_number(raw, nodes.len() as u64);
    let mut last = 0;
    for &NodeId(node) in nodes {
        let difference = node.wrapping_sub(last);
        last = node;
        if ascending {
            put_number(raw, difference);
        } else {
            // The sign goes to the lowest bit.
            put_number(raw, (difference << 1) ^ ((difference as i64) >> 63) as u64);
        }
    }
}

pub(super) fn put_event(raw: &mut Vec<u8>, event: Option<&Event>) {
    match event {
        None => raw.push(END),
        Some(Event::EpochEnd) => raw.push(EPOCH_END),
        Some(Event::Gap { events }) => {
            raw.push(GAP);
            put_number(raw, *events);
        }
        Some(Event::Minibatch(minibatch)) => put_minibatch(raw, minibatch),
    }
}

pub(super) fn put_minibatch(raw: &mut Vec<u8>, minibatch: &Minibatch) {
    raw.push(MINIBATCH);
    let flag = |set: bool, flag: u8| if set { flag } else { 0 };
    raw.push(
        flag(minibatch.observed, OBSERVED)
            | flag(minibatch.overlapped, OVERLAPPED)
            | flag(minibatch.announced.is_some(), ANNOUNCED),
    );
    put_number(raw, u64::from(minibatch.table));
    minibatch.announced.into_iter().for_each(|distance| put_number(raw, distance));
    let StepTimes { sample, compute, allreduce } = minibatch.step;
    [sample, compute, allreduce, minibatch.stall].into_iter().for_each(|time| put_time(raw, time));
    let counts = [minibatch.hits, minibatch.demand_rows, minibatch.prefetched_rows];
    counts.into_iter().for_each(|count| put_number(raw, count));
    put_number(raw, minibatch.owners.len() as u64);
    for owner in &minibatch.owners {
        put_number(raw, u64::from(owner.partition.0));
        put_number(raw, owner.rows);
        put_time(raw, owner.busy);
    }
    put_nodes(raw, &minibatch.nodes);
}

/// The nodes that follow, each below `nodes`; the list grows with what the file really has.
pub(super) fn take_nodes<R: Read>(blocks: &mut BlockReader<R>, most: usize, nodes: u64) -> Result<Vec<NodeId>> {
    let ascending = blocks.byte()? != 0;
    let count = blocks.count(most as u64, "nodes in one list")?;
    let (mut list, mut last) = (Vec::new(), 0u64);
    for _ in 0..count {
        let number = blocks.number()?;
        let difference = if ascending { number } else { (number >> 1) ^ (number & 1).wrapping_neg() };
        last = last.wrapping_add(difference);
        if last >= nodes {
            return Err(blocks.damaged(format!("node {last} of a table that has nodes 0..{nodes}")));
        }
        list.push(NodeId(last));
    }
    Ok(list)
}

/// What the header says that an event must keep to: by table, its nodes and its partitions.
pub(super) struct Bounds {
    pub tables: Vec<(u64, u32)>,
}

/// The next event; `None` at the trace's end.
pub(super) fn take_event<R: Read>(blocks: &mut BlockReader<R>, bounds: &Bounds) -> Result<Option<Event>> {
    match blocks.byte()? {
        END => Ok(None),
        EPOCH_END => Ok(Some(Event::EpochEnd)),
        GAP => Ok(Some(Event::Gap { events: blocks.number()? })),
        MINIBATCH => take_minibatch(blocks, bounds).map(Some),
        other => Err(blocks.damaged(format!("an event of kind {other}, which this build of rudder does not know"))),
    }
}

fn take_minibatch<R: Read>(blocks: &mut BlockReader<R>, bounds: &Bounds) -> Result<Event> {
    let flags = blocks.byte()?;
    let table = blocks.count(bounds.tables.len().saturating_sub(1) as u64, "as the number of a table")?;
    let Some(&(nodes, partitions)) = bounds.tables.get(table) else {
        return Err(blocks.damaged("a minibatch of a trace without tables"));
    };
    let announced = if flags & ANNOUNCED == 0 { None } else { Some(blocks.number()?) };
    let mut time = || blocks.number().map(Duration::from_nanos);
    let step = StepTimes { sample: time()?, compute: time()?, allreduce: time()? };
    let stall = time()?;
    let (hits, demand_rows, prefetched_rows) = (blocks.number()?, blocks.number()?, blocks.number()?);
    let mut owners = Vec::new();
    for _ in 0..blocks.count(u64::from(partitions), "owners")? {
        let partition = blocks.count(u64::from(partitions) - 1, "as the number of a partition")?;
        let (rows, busy) = (blocks.number()?, Duration::from_nanos(blocks.number()?));
        owners.push(OwnerCost { partition: PartitionId(partition as u32), rows, busy });
    }
    Ok(Event::Minibatch(Minibatch {
        table: table as u32,
        nodes: take_nodes(blocks, NODES_MAX, nodes)?,
        announced,
        observed: flags & OBSERVED != 0,
        overlapped: flags & OVERLAPPED != 0,
        step,
        stall,
        hits,
        demand_rows,
        prefetched_rows,
        owners,
    }))
}
