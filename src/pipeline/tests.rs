//! Goal: the initial fill of a huge buffer holds a bounded number of flights and batches, and no row of it is fetched twice or lost, though
//! minibatches want some before their turn; and a waiter that runs out of patience leaves nothing behind.
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

fn start(pipeline: &mut Pipeline, nodes: &[NodeId]) -> RequestId {
    let mut plan = pipeline.plan();
    let options = StartOptions { ticket: None, observed: true, timeout: Duration::from_secs(1), direct: true };
    let id = pipeline.start(NOW, 0, nodes, options, &mut plan, &mut |_, _| Decision::default()).unwrap();
    pipeline.handle_plan_done(&plan);
    id
}

#[test]
fn a_request_that_expires_leaves_nothing_to_post() {
    let mut pipeline = filling();
    let nodes: Vec<_> = (LOCAL..LOCAL + 100).map(NodeId).collect();
    let id = start(&mut pipeline, &nodes);
    pipeline.expire(Duration::from_millis(5), id);
    assert!(pipeline.is_over(id), "nothing was posted for it");
    let (result, leaked) = pipeline.collect(id);
    assert!(matches!(result, Err(Error::Deadline { missing: 100, .. })) && !leaked, "{result:?}");
    assert!(pipeline.poll_transmit(NOW).is_none() && pipeline.is_idle());
}

#[test]
fn a_request_given_up_for_lost_posts_nothing_more() {
    let mut pipeline = filling();
    let nodes: Vec<_> = (LOCAL..LOCAL + 300).map(NodeId).collect();
    let id = start(&mut pipeline, &nodes);
    let transmit = pipeline.poll_transmit(NOW).expect("rows to get");
    let posted = transmit.rows.len();
    pipeline.handle_posted(NOW, transmit, posted);
    assert!(posted < nodes.len() && !pipeline.is_over(id));
    assert!(matches!(pipeline.collect(id), (Err(Error::Closed), _)));
    assert!(pipeline.poll_transmit(NOW).is_none(), "its rows would land in memory that is not its own any more");
}

#[test]
fn a_row_of_the_fill_outlives_who_asked_for_it() {
    let mut pipeline = filling();
    pipeline.fill();
    let mut copies = Vec::new();
    // Not of the first rows of the fill, which are on their way by now.
    let waits = |pipeline: &Pipeline, node: &NodeId| pipeline.lanes[0].flights.find(*node, &pipeline.flights).is_none();
    let nodes: Vec<_> = (LOCAL..NODES).map(NodeId).filter(|node| waits(&pipeline, node)).take(50).collect();
    let id = start(&mut pipeline, &nodes);
    pipeline.cancel(NOW, id, Duration::ZERO);
    assert!(pipeline.is_over(id));
    let _ = pipeline.collect(id);
    while !pipeline.is_idle() {
        let completions = post(&mut pipeline);
        assert!(!completions.is_empty(), "it waits for nothing");
        pipeline.handle_completions(NOW, &completions, &mut copies);
        copies.clear();
        pipeline.handle_copied();
    }
    let buffer = pipeline.lanes[0].table.buffer.as_ref().unwrap();
    assert!(nodes.iter().all(|&node| matches!(buffer.residency(node), Residency::Ready(_))));
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
            let options = StartOptions { ticket: None, observed: true, timeout: Duration::from_secs(1), direct: true };
            pipeline.start(NOW, 0, &nodes, options, &mut plan, &mut |_, _| Decision::default()).unwrap();
            pipeline.handle_plan_done(&plan);
        }
        let completions = post(&mut pipeline);
        assert!(!completions.is_empty(), "it waits for nothing");
        rows += completions.iter().map(|completion| u64::from(completion.count)).sum::<u64>();
        assert!(pipeline.flights.len() <= 3 * IN_FLIGHT, "{} flights", pipeline.flights.len());
        assert!(pipeline.batches.len() <= 3 * IN_FLIGHT / 64 + 8);
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
