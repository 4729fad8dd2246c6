//! Goal: the initial fill of a huge buffer holds a bounded number of flights and batches, and no row of it is fetched twice, though minibatches
//! want some before their turn.
//! Method: a pipeline is driven by hand against a transport that completes whatever it is given.

use super::*;
use crate::buffer::{BufferHints, PolicyConfig};
use crate::transport::Completion;

const NODES: u64 = 100_000;
const LOCAL: u64 = 10;
const IN_FLIGHT: usize = 256;
const NOW: Duration = Duration::ZERO;

/// A pipeline whose every remote node belongs into the buffer.
fn filling() -> Pipeline {
    let book = PartitionBook::from_starts(vec![0, LOCAL, NODES / 2, NODES]).unwrap();
    let halo: Vec<_> = (LOCAL..NODES).map(NodeId).collect();
    let degree = (LOCAL..NODES).map(|node| (node * 7 % 1009) as u32).collect();
    let hints = BufferHints { nodes: NODES, halo, degree, owners: book.clone() };
    let buffer = PrefetchBuffer::new((NODES - LOCAL) as u32, &PolicyConfig::Degree, hints).unwrap();
    let remote = |rank| Source::Remote(RemoteRegion { peer: Rank(rank), index: 0, bytes: NODES * 8 });
    let sources = vec![Source::Local, remote(1), remote(2)];
    let table = Table { id: TableId(0), book, sources, row_bytes: 8, version: 0, buffer: Some(buffer) };
    let limits = Limits {
        batch_rows: 64,
        prefetch_batch_rows: 64,
        prefetch_rows_in_flight: IN_FLIGHT,
        requests: 4,
        tickets: 4,
        announced_nodes: 1000,
        attempts: 3,
        backoff: Duration::from_millis(1),
        transfer_timeout: Duration::from_secs(1),
        staging_chunks: 0,
    };
    Pipeline::new(limits, vec![table])
}

/// Takes what is to be posted now; returns the completions of all of it.
fn post(pipeline: &mut Pipeline) -> Vec<Completion> {
    let mut completions = Vec::new();
    while let Some(transmit) = pipeline.poll_transmit(NOW) {
        let count = transmit.rows.len();
        completions.push(Completion { batch: transmit.id, first: 0, count: count as u32, status: Ok(()) });
        pipeline.handle_posted(NOW, transmit, count);
    }
    completions
}

#[test]
fn a_huge_fill_is_fetched_once_and_little_by_little() {
    let mut pipeline = filling();
    assert_eq!(pipeline.fill(), NODES - LOCAL);
    let mut plan = pipeline.plan();
    let (mut rows, mut copies, mut wanted) = (0, Vec::new(), NODES);
    while !pipeline.is_idle() {
        if pipeline.requests.iter().all(|(_, request)| request.is_over()) && wanted > NODES / 2 {
            // Nodes of low and of high degree, whose turns come early and late.
            wanted -= 1000;
            let nodes: Vec<_> = (wanted..wanted + 20).map(NodeId).collect();
            let options = StartOptions { ticket: None, observed: true, timeout: Duration::from_secs(1) };
            pipeline.start(NOW, 0, &nodes, options, &mut plan, &mut |_| Decision::default()).unwrap();
            pipeline.handle_plan_done(&plan);
        }
        let completions = post(&mut pipeline);
        assert!(!completions.is_empty(), "it waits for nothing");
        rows += completions.iter().map(|completion| u64::from(completion.count)).sum::<u64>();
        assert!(pipeline.flights.len() <= 3 * IN_FLIGHT, "{} flights", pipeline.flights.len());
        assert!(pipeline.batches.iter().count() <= 3 * IN_FLIGHT / 64 + 8);
        pipeline.handle_completions(NOW, &completions, &mut copies);
        copies.clear();
        pipeline.handle_copied();
        let over: Vec<_> = pipeline.requests.iter().map(|(id, _)| id).filter(|&id| pipeline.is_over(id)).collect();
        over.into_iter().for_each(|id| pipeline.collect(id).0.unwrap());
    }
    let stats = pipeline.stats(0);
    assert_eq!(rows, NODES - LOCAL, "each row comes once");
    assert_eq!(stats.fill_rows + stats.demand_rows, rows);
    assert!(stats.demand_rows > 100, "minibatches wanted {} rows before their turn", stats.demand_rows);
    let buffer = pipeline.lanes[0].table.buffer.as_ref().unwrap();
    assert!((LOCAL..NODES).all(|node| matches!(buffer.residency(NodeId(node)), Residency::Ready(_))));
}
