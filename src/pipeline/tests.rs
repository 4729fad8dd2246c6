//! Goal: the initial fill of a huge buffer holds a bounded number of flights and batches, and no row of it is fetched twice or lost, though
//! minibatches want some before their turn; and a waiter that runs out of patience leaves nothing behind. What a peer that is gone was to
//! give is asked of the next one that has it, while there is one.
//! Method: a pipeline is driven by hand against a transport that completes whatever it is given, or fails it where the peer is gone.

use super::*;
use crate::buffer::{BufferHints, PolicyConfig};
use crate::transport::Completion;
use proptest::prelude::*;

const NODES: u64 = 100_000;
const LOCAL: u64 = 10;
const IN_FLIGHT: usize = 256;
const NOW: Duration = Duration::ZERO;

fn limits() -> Limits {
    Limits {
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
        by_row: true,
    }
}

/// A pipeline whose every remote node belongs into the buffer.
fn filling() -> Pipeline {
    let book = PartitionBook::from_starts(vec![0, LOCAL, NODES / 2, NODES]).unwrap();
    let halo: Vec<_> = (LOCAL..NODES).map(NodeId).collect();
    let degree = (LOCAL..NODES).map(|node| (node * 7 % 1009) as u32).collect();
    let hints = BufferHints { nodes: NODES, halo, degree, owners: book.clone() };
    let buffer = PrefetchBuffer::new((NODES - LOCAL) as u32, &PolicyConfig::Degree, hints).unwrap();
    let remote = |rank| Source::Remote(RemoteRegion { peer: Rank(rank), index: 0, bytes: NODES * 8 });
    let sources = vec![Source::Local, remote(1), remote(2)];
    let spares = vec![VecDeque::new(); sources.len()];
    let table = Table { id: TableId(0), book, sources, spares, row_bytes: 8, version: 0, buffer: Some(buffer) };
    Pipeline::new(limits(), vec![table])
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
fn rows_are_asked_for_by_owner_and_in_the_order_that_the_transport_likes() {
    // Of two owners in turns, each owner's rows backwards.
    let (of_first, of_second) = (LOCAL..LOCAL + 40, NODES - 40..NODES);
    let nodes: Vec<_> = of_first.clone().rev().zip(of_second.rev()).flat_map(|(a, b)| [NodeId(a), NodeId(b)]).collect();
    for by_row in [true, false] {
        let mut pipeline = exported_by(&[Rank(1)]);
        pipeline.limits = Limits { by_row, batch_rows: 16, ..limits() };
        start(&mut pipeline, &nodes);
        let mut asked: [Vec<u64>; 2] = Default::default();
        while let Some(transmit) = pipeline.poll_transmit(NOW) {
            let owner = usize::from(transmit.region.peer == ALONE);
            for (&row, &place) in transmit.rows.iter().zip(&transmit.places) {
                let first = [LOCAL, NODES / 2][owner];
                assert_eq!(nodes[place as usize], NodeId(first + row), "a row goes where its node is wanted");
            }
            asked[owner].extend(&transmit.rows);
            let rows = transmit.rows.len();
            pipeline.handle_posted(NOW, transmit, rows);
        }
        for rows in asked {
            assert_eq!(rows.len(), 40);
            assert!(rows.is_sorted_by(|a, b| (a < b) == by_row), "{by_row}: {rows:?}");
        }
    }
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

/// The peer that alone has partition 2.
const ALONE: Rank = Rank(9);

/// A pipeline without a buffer, whose partition 1 these peers have, to be asked in this order.
fn exported_by(peers: &[Rank]) -> Pipeline {
    let remote = |&peer: &Rank| RemoteRegion { peer, index: peer.0, bytes: NODES * 8 };
    let book = PartitionBook::from_starts(vec![0, LOCAL, NODES / 2, NODES]).unwrap();
    let sources = vec![Source::Local, Source::Remote(remote(&peers[0])), Source::Remote(remote(&ALONE))];
    let spares = vec![VecDeque::new(), peers[1..].iter().map(remote).collect(), VecDeque::new()];
    Pipeline::new(
        limits(),
        vec![Table { id: TableId(0), book, sources, spares, row_bytes: 8, version: 0, buffer: None }],
    )
}

/// Gathers these nodes; answers who was asked for how many rows, one after the other, and how it ended. Those of `dead` are gone, even ones
/// with their last word; those of `silent` say nothing until they are aborted.
fn gather(
    pipeline: &mut Pipeline,
    nodes: &[NodeId],
    dead: &[Rank],
    silent: &[Rank],
) -> (Vec<(Rank, usize)>, Result<()>) {
    let mut plan = pipeline.plan();
    let options = StartOptions { ticket: None, observed: true, timeout: Duration::from_secs(60), direct: true };
    let id = pipeline.start(NOW, 0, nodes, options, &mut plan, &mut |_, _| Decision::default()).unwrap();
    pipeline.handle_plan_done(&plan);
    let (mut now, mut asked, mut held) = (NOW, Vec::new(), Vec::new());
    let (mut completions, mut copies, mut aborts) = (Vec::new(), Vec::new(), Vec::new());
    while !pipeline.is_over(id) {
        assert!(now < Duration::from_secs(90), "it hangs");
        while let Some(transmit) = pipeline.poll_transmit(now) {
            let (peer, count) = (transmit.region.peer, transmit.rows.len());
            asked.push((peer, count));
            let status = match (dead.contains(&peer), peer.0 % 2) {
                (false, _) => Ok(()),
                (true, 0) => Err(TransferError::StaleRegion { region: 0, version: 0 }),
                (true, _) => Err(TransferError::PeerGone("it is dead".into())),
            };
            let completion = Completion { batch: transmit.id, first: 0, count: count as u32, status };
            pipeline.handle_posted(now, transmit, count);
            match silent.contains(&peer) {
                true => held.push((peer, Completion { status: Err(TransferError::Aborted), ..completion })),
                false => completions.push(completion),
            }
        }
        pipeline.handle_completions(now, &completions, &mut copies);
        pipeline.handle_copied();
        completions.clear();
        now += Duration::from_millis(1);
        pipeline.handle_timeout(now, &mut aborts);
        completions.extend(held.extract_if(.., |(peer, _)| aborts.contains(peer)).map(|(_, completion)| completion));
        aborts.clear();
    }
    (asked, pipeline.collect(id).0)
}

#[test]
fn what_a_peer_that_is_gone_cannot_give_is_asked_of_the_next() {
    let nodes: Vec<_> = (LOCAL..LOCAL + 90).map(NodeId).collect();
    let (first, next) = (Rank(1), Rank(3));
    let batches = |peer| [(peer, 64), (peer, 26)];
    let mut pipeline = exported_by(&[first, next]);
    let (asked, result) = gather(&mut pipeline, &nodes, &[first], &[]);
    assert_eq!(asked, [batches(first), batches(next)].concat());
    assert!(result.is_ok(), "{result:?}");
    assert_eq!((pipeline.stats(0).failovers, pipeline.stats(0).retried_rows), (1, 90));
    // It is known from then on, and never asked again.
    let (asked, result) = gather(&mut pipeline, &nodes, &[first], &[]);
    assert!(asked == batches(next) && result.is_ok(), "{asked:?}, {result:?}");
    // The last one has as many tries as an only one, and is named.
    let (asked, result) = gather(&mut pipeline, &nodes, &[first, next], &[]);
    assert_eq!(asked, batches(next).repeat(3));
    assert!(matches!(result, Err(Error::Get { peer, .. }) if peer == next), "{result:?}");
    assert_eq!(pipeline.stats(0).failovers, 1);
}

#[test]
fn an_only_peer_that_is_gone_is_an_error_after_all_tries() {
    let mut pipeline = exported_by(&[Rank(1), Rank(3)]);
    let (asked, result) = gather(&mut pipeline, &[NodeId(NODES - 1)], &[ALONE], &[]);
    assert_eq!(asked, [(ALONE, 1); 3]);
    assert!(matches!(result, Err(Error::Get { peer: ALONE, .. })), "{result:?}");
    assert_eq!(pipeline.stats(0).failovers, 0);
}

#[test]
fn a_peer_that_is_given_up_for_its_silence_is_as_good_as_gone() {
    let (first, next) = (Rank(1), Rank(3));
    let mut pipeline = exported_by(&[first, next]);
    let (asked, result) = gather(&mut pipeline, &[NodeId(LOCAL)], &[], &[first]);
    assert!(asked == [(first, 1), (next, 1)] && result.is_ok(), "{asked:?}, {result:?}");
    assert_eq!(pipeline.stats(0).failovers, 1);
}

#[test]
fn a_deadline_names_the_peer_that_was_asked_though_another_has_the_rows_by_now() {
    let (first, next) = (Rank(1), Rank(3));
    let mut pipeline = exported_by(&[first, next]);
    let mut plan = pipeline.plan();
    let (given_up, late) = (limits().transfer_timeout, 2 * limits().transfer_timeout);
    let options = StartOptions { ticket: None, observed: true, timeout: late, direct: true };
    let id = pipeline.start(NOW, 0, &[NodeId(LOCAL)], options, &mut plan, &mut |_, _| Decision::default()).unwrap();
    pipeline.handle_plan_done(&plan);
    let transmit = pipeline.poll_transmit(NOW).expect("a row to get");
    pipeline.handle_posted(NOW, transmit, 1);
    let mut aborts = Vec::new();
    pipeline.handle_timeout(NOW + given_up, &mut aborts);
    assert_eq!((&aborts[..], pipeline.stats(0).failovers), (&[first][..], 1));
    // The transport has not said yet that the row will not come.
    pipeline.handle_timeout(NOW + late, &mut aborts);
    pipeline.handle_lost(first, true);
    let (result, _) = pipeline.collect(id);
    assert!(matches!(&result, Err(Error::Deadline { peer, .. }) if *peer == first), "{result:?}");
}

proptest! {
    /// Peers that die one by one, or all at once, between gathers.
    #[test]
    fn a_gather_fails_only_where_nobody_is_left(
        peers in Just((1..6).map(Rank).collect::<Vec<_>>()).prop_shuffle(),
        exporters in 1usize..6,
        deaths in prop::collection::vec(prop::collection::vec(0usize..5, 0..3), 1..12),
        first in LOCAL..NODES / 2 - 200,
        rows in 1u64..200,
    ) {
        let nodes: Vec<_> = (first..first + rows).map(NodeId).collect();
        let exporters = &peers[..exporters];
        let run = || {
            let (mut pipeline, mut dead, mut told) = (exported_by(exporters), Vec::new(), Vec::new());
            for dying in &deaths {
                dead.extend(dying.iter().map(|&at| peers[at]));
                let (asked, result) = gather(&mut pipeline, &nodes, &dead, &[]);
                let living = exporters.iter().find(|peer| !dead.contains(peer));
                match (living, result) {
                    (Some(living), Ok(())) => {
                        let given: usize = asked.iter().filter(|(peer, _)| peer == living).map(|(_, rows)| rows).sum();
                        assert_eq!(given, nodes.len(), "the first that lives gives all rows");
                    }
                    (None, Err(Error::Get { peer, .. })) => assert_eq!(peer, exporters[exporters.len() - 1]),
                    (living, result) => panic!("{living:?} lives, and {result:?}"),
                }
                told.push(asked);
            }
            let gone = exporters.iter().take_while(|peer| dead.contains(peer)).count();
            assert_eq!(pipeline.stats(0).failovers as usize, gone.min(exporters.len() - 1));
            told
        };
        assert_eq!(run(), run(), "the same deaths give the same posts");
    }
}
