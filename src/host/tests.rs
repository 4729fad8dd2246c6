//! Goal: what a rank copies out of a neighbour's slot is the row of the node it looked for, whatever the keeper does meanwhile; notes and rows
//! arrive whole, in order, or not at all; nothing that a broken neighbour leaves in its memory makes a rank read outside it. Method: the ranks
//! of a host in one process, over the same memory files as between processes.

use super::layout::Queue;
use super::{Exchange, Host, Keeper, Layout, Neighbourhood, Part, Reader, keeper_of};
use crate::buffer::Board;
use crate::id::{NodeId, Rank, Slot};
use crate::pipeline::{Neighbours, Note, Seen, SeenList};
use crate::transport::shm::ShmTransport;
use crate::transport::{Destination, Transport, TransportConfig};
use proptest::prelude::*;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};

/// Ranks of one host, each with so many slots.
fn hosts(ranks: u32, slots: u32, row_bytes: usize) -> Vec<Host> {
    let link = |rank| ShmTransport::new(&TransportConfig::new(Rank(rank), ranks)).unwrap();
    let links: Vec<_> = (0..ranks).map(link).collect();
    let addresses: Vec<_> = links.iter().map(Transport::address).collect();
    let layout = Layout::new(slots, row_bytes, ranks).unwrap();
    let parts: Vec<_> = links.iter().map(|link| Part::new(link, layout).unwrap()).collect();
    let tokens: Vec<_> = parts.iter().map(|part| (part.token().to_vec(), part.slots())).collect();
    let join = |(place, part): (usize, std::sync::Arc<Part>)| {
        links[place].connect(&addresses).unwrap();
        Host::join(part, &links[place], place, &tokens).unwrap()
    };
    parts.into_iter().enumerate().map(join).collect()
}

/// Nodes that the rank at a place keeps.
fn kept_by(place: usize, ranks: u32) -> impl Iterator<Item = NodeId> {
    (0..).map(NodeId).filter(move |&node| keeper_of(node, ranks) == place)
}

fn byte_of(node: NodeId) -> u8 {
    (node.0 * 151 + 7) as u8
}

/// Writes a node's row to a slot and shows it.
fn keep(host: &Host, keeper: &mut Keeper, slot: Slot, node: NodeId) {
    let row_bytes = host.own.layout.row_bytes;
    // SAFETY: the slot is withdrawn, and lies within the part.
    unsafe { std::ptr::write_bytes(host.own.side().row(slot), byte_of(node), row_bytes) };
    keeper.publish(slot, node);
}

/// Looks for nodes and copies what was seen: the rows, and which nodes were there.
fn copy(view: &Neighbourhood, reader: &Reader, nodes: &[NodeId], row_bytes: usize) -> Vec<(NodeId, Vec<u8>)> {
    let (mut seen, mut list) = (Vec::new(), SeenList::default());
    view.look_up(nodes, &mut seen);
    for (place, (seen, &node)) in seen.iter().zip(nodes).enumerate() {
        if let Seen::There(sighting) = seen {
            list.push(*sighting, node, place as u32);
        }
    }
    let mut rows = vec![0; nodes.len() * row_bytes];
    let to = Destination { base: rows.as_mut_ptr(), stride: row_bytes, places: nodes.len() };
    // SAFETY: the rows are ours, and have as many places as there are nodes.
    unsafe { reader.copy(&mut list, to) };
    let whole = |(node, place): (NodeId, u32)| (node, rows[place as usize * row_bytes..][..row_bytes].to_vec());
    let lost = |place: &u32| list.lost.iter().any(|(_, lost)| lost == place);
    let there = list.nodes.iter().copied().zip(list.places.iter().copied());
    there.filter(|(_, place)| !lost(place)).map(whole).collect()
}

#[test]
fn rows_are_whole_while_their_keeper_replaces_them() {
    for row_bytes in [8, 12, 13, 400] {
        let (slots, ranks) = (8, 2);
        let hosts = hosts(ranks, slots, row_bytes);
        let nodes: Vec<_> = kept_by(0, ranks).take(32).collect();
        let (stop, copied) = (AtomicBool::new(false), std::sync::atomic::AtomicUsize::new(0));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut keeper = Keeper::new(&hosts[0]);
                let mut held: Vec<Option<NodeId>> = vec![None; slots as usize];
                for round in 0.. {
                    let (slot, node) = (round % slots as usize, nodes[round * 7 % nodes.len()]);
                    if let Some(old) = held[slot].take() {
                        keeper.withdraw(Slot(slot as u32), old);
                    }
                    if !held.contains(&Some(node)) {
                        keep(&hosts[0], &mut keeper, Slot(slot as u32), node);
                        held[slot] = Some(node);
                    }
                    // Two threads may share one core: both must get on.
                    if round % 64 == 0 {
                        std::thread::yield_now();
                    }
                    if round > 200_000 || stop.load(Ordering::Relaxed) {
                        break;
                    }
                }
            });
            let (view, reader) = (Neighbourhood::new(hosts[1].clone()), Reader::new(hosts[1].clone()));
            for _ in 0..20_000 {
                for (node, row) in copy(&view, &reader, &nodes, row_bytes) {
                    assert!(row.iter().all(|&byte| byte == byte_of(node)), "{node}: {row:?}");
                    copied.fetch_add(1, Ordering::Relaxed);
                }
                if copied.load(Ordering::Relaxed) > 100_000 {
                    break;
                }
            }
            stop.store(true, Ordering::Relaxed);
        });
        assert!(copied.into_inner() > 1000, "too few rows were seen to tell");
    }
}

#[test]
fn a_row_seen_and_replaced_before_it_is_copied_is_lost() {
    let hosts = hosts(2, 4, 16);
    let nodes: Vec<_> = kept_by(0, 2).take(2).collect();
    let mut keeper = Keeper::new(&hosts[0]);
    keep(&hosts[0], &mut keeper, Slot(3), nodes[0]);
    let (view, reader) = (Neighbourhood::new(hosts[1].clone()), Reader::new(hosts[1].clone()));
    let mut seen = Vec::new();
    view.look_up(&nodes, &mut seen);
    let [Seen::There(sighting), Seen::Missing] = seen[..] else { panic!("{seen:?}") };
    assert_eq!((sighting.neighbour, sighting.slot), (0, Slot(3)));

    let try_copy = || {
        let (mut rows, mut list) = ([0; 16], SeenList::default());
        list.push(sighting, nodes[0], 0);
        // SAFETY: room for one row.
        unsafe { reader.copy(&mut list, Destination { base: rows.as_mut_ptr(), stride: 16, places: 1 }) };
        (rows, list.lost)
    };
    assert_eq!(try_copy(), ([byte_of(nodes[0]); 16], vec![]));
    // In the middle of a write, as after the death of its keeper, a slot reads as a miss.
    keeper.withdraw(Slot(3), nodes[0]);
    assert_eq!(try_copy().1, [(nodes[0], 0)]);
    view.look_up(&nodes, &mut seen);
    assert_eq!(seen, [Seen::Missing, Seen::Missing]);
    // The same node in the same slot again is another version.
    keep(&hosts[0], &mut keeper, Slot(3), nodes[0]);
    assert_eq!(try_copy().1, [(nodes[0], 0)]);
    view.look_up(&nodes, &mut seen);
    assert!(matches!(seen[0], Seen::There(now) if now.version > sighting.version));
}

#[test]
fn nearly_all_of_many_rows_are_found() {
    let (ranks, slots) = (3, 10_000);
    let hosts = hosts(ranks, slots, 8);
    let nodes: Vec<_> = kept_by(2, ranks).take(slots as usize).collect();
    let mut keeper = Keeper::new(&hosts[2]);
    nodes.iter().enumerate().for_each(|(slot, &node)| keep(&hosts[2], &mut keeper, Slot(slot as u32), node));
    let (view, mut seen) = (Neighbourhood::new(hosts[0].clone()), Vec::new());
    view.look_up(&nodes, &mut seen);
    let found = seen.iter().filter(|seen| matches!(seen, Seen::There(_))).count();
    assert!(found * 1000 >= nodes.len() * 995, "{found} of {}", nodes.len());
    nodes.iter().enumerate().for_each(|(slot, &node)| keeper.withdraw(Slot(slot as u32), node));
    view.look_up(&nodes, &mut seen);
    assert!(seen.iter().all(|seen| *seen == Seen::Missing));
}

proptest! {
    #[test]
    fn notes_arrive_whole_and_in_order_or_not_at_all(
        steps in prop::collection::vec((0u8..4, 0u64..1 << 40, 0usize..90_000), 1..60)
    ) {
        let hosts = hosts(2, 1, 8);
        let (mut teller, mut hearer) = (Neighbourhood::new(hosts[0].clone()), Neighbourhood::new(hosts[1].clone()));
        let theirs: Vec<_> = kept_by(1, 2).take(90_000).collect();
        let (mut told, mut heard) = (VecDeque::new(), Vec::new());
        for (kind, announcement, nodes) in steps {
            let nodes = &theirs[..nodes];
            let note = match kind {
                0 => Note::Wanted,
                1 => Note::Announced(announcement),
                2 => Note::Retired(announcement),
                _ => {
                    let note = hearer.hear(0, &mut heard);
                    // Some that were told had no room; those that had come in order.
                    while let Some(note) = note
                        && let Some((next, nodes)) = told.pop_front()
                    {
                        if (next, nodes) == (note, heard.len()) {
                            prop_assert!(heard == theirs[..nodes]);
                            break;
                        }
                        prop_assert!(!told.is_empty(), "{note:?} was never told");
                    }
                    continue;
                }
            };
            let retired = matches!(note, Note::Retired(_));
            let nodes = if retired { &[] } else { nodes };
            teller.tell(note, nodes);
            if retired || !nodes.is_empty() {
                told.push_back((note, nodes.len()));
            }
        }
    }
}

#[test]
fn a_full_queue_takes_more_once_it_was_read() {
    let hosts = hosts(2, 1, 8);
    let (mut teller, mut hearer) = (Neighbourhood::new(hosts[0].clone()), Neighbourhood::new(hosts[1].clone()));
    let theirs: Vec<_> = kept_by(1, 2).take(100_000).collect();
    (0..10).for_each(|_| teller.tell(Note::Wanted, &theirs));
    let mut nodes = Vec::new();
    let mut drain = || std::iter::from_fn(|| hearer.hear(0, &mut nodes)).count();
    assert_eq!(drain(), 2, "200 000 nodes fit, 300 000 do not");
    teller.tell(Note::Announced(1), &theirs);
    assert_eq!(drain(), 1);
}

#[test]
fn rows_reach_their_keeper_until_its_queue_is_full() {
    for row_bytes in [1, 20, 5000] {
        let hosts = hosts(3, 1, row_bytes);
        let (mut from, mut to) = (Exchange::new(hosts[0].clone()), Exchange::new(hosts[2].clone()));
        let nodes: Vec<_> = kept_by(2, 3).take(3000).collect();
        let most = hosts[0].own.layout.offered_rows;
        let (mut sent, mut taken) = (nodes.iter(), Vec::new());
        let mut next = 0;
        for burst in [most + 5, 3, most] {
            for &node in sent.by_ref().take(burst) {
                let row = vec![byte_of(node); row_bytes];
                // SAFETY: the row is as long as rows are.
                unsafe { from.offer(node, row.as_ptr()) };
            }
            let mut arrived = 0;
            loop {
                to.take(100, &mut taken);
                if taken.is_empty() {
                    break;
                }
                for row in &taken {
                    assert_eq!(row.node, nodes[next + arrived]);
                    // SAFETY: the row was not released.
                    let bytes = unsafe { std::slice::from_raw_parts(row.row, row_bytes) };
                    assert!(bytes.iter().all(|&byte| byte == byte_of(row.node)));
                    arrived += 1;
                }
                to.release();
            }
            assert_eq!(arrived, burst.min(most), "what has no room is dropped");
            next += burst;
        }
    }
}

#[test]
fn a_broken_neighbour_is_heard_as_silence() {
    let hosts = hosts(2, 1, 8);
    let (broken, mut hearer) = (hosts[0].own.side(), Neighbourhood::new(hosts[1].clone()));
    let mut exchange = Exchange::new(hosts[1].clone());
    let (mut nodes, mut rows) = (Vec::new(), Vec::new());
    for written in [u64::MAX, 1 << 40, u64::MAX / 2] {
        broken.written(1, Queue::Notes).store(written, Ordering::Relaxed);
        broken.written(1, Queue::Rows).store(written, Ordering::Relaxed);
        assert_eq!(hearer.hear(0, &mut nodes), None);
        exchange.take(100, &mut rows);
        assert!(rows.is_empty());
    }
    // Notes of no kind, or of more nodes than there are words, are passed over.
    for head in [u64::MAX, 0, 9, (50 << 8) | 1] {
        let read = hosts[1].own.side().read(0, Queue::Notes).load(Ordering::Relaxed);
        broken.queue(1, Queue::Notes)[read as usize].store(head, Ordering::Relaxed);
        broken.written(1, Queue::Notes).store(read + 5, Ordering::Relaxed);
        assert_eq!(hearer.hear(0, &mut nodes), None);
        assert_eq!(hosts[1].own.side().read(0, Queue::Notes).load(Ordering::Relaxed), read + 5);
    }
    // An index that points outside the slots, and a reader's count that cannot be.
    let node = kept_by(0, 2).next().unwrap();
    let (bucket, tag) = broken.layout.bucket(node);
    broken.index()[bucket * super::layout::WAYS].store(u64::from(tag) << 32 | 77, Ordering::Relaxed);
    let mut seen = Vec::new();
    hearer.look_up(&[node], &mut seen);
    assert_eq!(seen, [Seen::Missing]);
    broken.read(1, Queue::Notes).store(1 << 50, Ordering::Relaxed);
    hearer.tell(Note::Wanted, &[node]);
    assert_eq!(hosts[1].own.side().written(0, Queue::Notes).load(Ordering::Relaxed), 0);
}

#[test]
fn parts_are_checked_against_their_slots() {
    let link = |rank| ShmTransport::new(&TransportConfig::new(Rank(rank), 2)).unwrap();
    let links = [link(0), link(1)];
    let addresses: Vec<_> = links.iter().map(Transport::address).collect();
    links[0].connect(&addresses).unwrap();
    let part = |at: usize| Part::new(&links[at], Layout::new(10, 400, 2).unwrap()).unwrap();
    let (own, other) = (part(0), part(1));
    let claimed = [(own.token().to_vec(), 10), (other.token().to_vec(), 100_000)];
    let error = Host::join(own, &links[0], 0, &claimed).err().unwrap().to_string();
    assert!(error.contains("rank 1") && error.contains("100000 slots"), "{error}");
    assert!(Layout::new(u32::MAX, usize::MAX / 2, 2).is_err());
}
