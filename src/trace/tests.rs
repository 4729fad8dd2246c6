//! Goal: what is written is read again, and a trace that was damaged in any way gives a true prefix and an error, never a panic, a wrong
//! event or memory that the file does not account for. Method: random traces there and back; every truncation and every flipped byte of a
//! small one; blocks whose checksum holds but whose numbers lie.

use super::block::BlockWriter;
use super::event::put_number;
use super::*;
use crate::controller::JobFacts;
use crate::id::TableId;
use crate::transport::hook::Link;
use proptest::prelude::*;
use std::io::{Read, Write};

const NODES: u64 = 1 << 32;

fn header() -> Header {
    let table = |id: u32| TraceTable {
        id: TableId(id),
        row_bytes: 400,
        partition: PartitionId(1),
        starts: vec![0, 100, 200, NODES],
        peers: vec![Some(Rank(0)), None, Some(Rank(2))],
        slots: 64,
        halo: (0..40).map(|at| NodeId(at * 2 + 200)).collect(),
        degree: (0..40).map(|at| at * at).collect(),
    };
    Header {
        rank: Rank(1),
        ranks: 3,
        sharing: 1,
        policy: "lfu".into(),
        controller: "periodic".into(),
        link: "1gbit,50us".parse::<Link>().unwrap(),
        facts: JobFacts { nodes: NODES, partitions: 3, partition: 1, batch: 128, ..JobFacts::default() },
        limits: TrafficLimits::default(),
        tables: vec![table(0), TraceTable { degree: vec![], ..table(7) }],
    }
}

fn written(header: &Header, events: &[Event]) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new(), "memory", header).unwrap();
    events.iter().for_each(|event| writer.event(event).unwrap());
    writer.finish().unwrap()
}

/// The events before the damage, and the error.
fn read(bytes: &[u8]) -> Result<(Header, Vec<Event>, Option<Error>), Error> {
    let mut reader = Reader::new(bytes, "memory")?;
    let (mut events, mut error) = (Vec::new(), None);
    for event in &mut reader {
        match event {
            Ok(event) => events.push(event),
            Err(cause) => error = Some(cause),
        }
    }
    assert!(reader.next().is_none());
    Ok((reader.header().clone(), events, error))
}

fn times() -> impl Strategy<Value = Duration> {
    prop_oneof![Just(0), 0..10_000_000u64, Just(u64::MAX)].prop_map(Duration::from_nanos)
}

fn minibatch() -> impl Strategy<Value = Event> {
    let nodes = prop_oneof![
        prop::collection::vec(0..NODES, 0..300),
        prop::collection::btree_set(0..NODES, 0..300).prop_map(|set| set.into_iter().collect()),
    ];
    let owner = (0..3u32, any::<u64>(), times()).prop_map(|(partition, rows, busy)| OwnerCost {
        partition: PartitionId(partition),
        rows,
        busy,
    });
    let step =
        (times(), times(), times()).prop_map(|(sample, compute, allreduce)| StepTimes { sample, compute, allreduce });
    let counts = any::<(u64, u64, u64)>();
    (
        0..2u32,
        nodes,
        any::<Option<u64>>(),
        any::<(bool, bool)>(),
        step,
        times(),
        counts,
        prop::collection::vec(owner, 0..4),
    )
        .prop_map(|(table, nodes, announced, (observed, overlapped), step, stall, counts, owners)| {
            Event::Minibatch(Minibatch {
                table,
                nodes: nodes.into_iter().map(NodeId).collect(),
                announced,
                observed,
                overlapped,
                step,
                stall,
                hits: counts.0,
                demand_rows: counts.1,
                prefetched_rows: counts.2,
                owners,
            })
        })
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let gap = any::<u64>().prop_map(|events| Event::Gap { events });
    prop::collection::vec(prop_oneof![4 => minibatch(), 1 => Just(Event::EpochEnd), 1 => gap], 0..12)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn what_is_written_is_read_again(events in events()) {
        let (found, again, error) = read(&written(&header(), &events)).unwrap();
        prop_assert!(error.is_none(), "{error:?}");
        prop_assert_eq!(found, header());
        prop_assert_eq!(again, events);
    }
}

/// A trace of several blocks, where minibatches have thousands of nodes.
fn made(minibatches: u64, nodes: u64) -> (Vec<Event>, Vec<u8>) {
    let minibatch = |at: u64| Minibatch {
        nodes: (0..nodes).map(|i| NodeId((i * i * 31 + at * 977) % 100_003)).collect(),
        observed: true,
        announced: at.is_multiple_of(2).then_some(at),
        stall: Duration::from_micros(at),
        ..Minibatch::default()
    };
    let mut events: Vec<Event> = (0..minibatches).map(|at| Event::Minibatch(minibatch(at))).collect();
    events.insert(1, Event::EpochEnd);
    let bytes = written(&header(), &events);
    (events, bytes)
}

#[test]
fn a_trace_that_was_cut_off_gives_what_is_before_the_cut() {
    let (events, bytes) = made(9, 9000);
    assert_eq!(read(&bytes).unwrap().1, events);
    let mut most = 0;
    // Every place near the ends, and many between.
    let places = (0..bytes.len()).filter(|at| *at < 600 || at % 97 == 0 || *at > bytes.len() - 600);
    for at in places {
        match read(&bytes[..at]) {
            Ok((found, before, error)) => {
                let error = error.unwrap_or_else(|| panic!("cut at {at} of {}, nobody noticed", bytes.len()));
                assert!(error.to_string().contains("cut off"), "{error}");
                assert_eq!(found, header());
                assert_eq!(before, events[..before.len()]);
                most = most.max(before.len());
            }
            Err(error) => assert!(error.to_string().contains("cut off"), "{error}"),
        }
    }
    assert!(most + 2 >= events.len(), "{most} of {} events are readable just before the end", events.len());
}

#[test]
fn a_flipped_byte_is_found_and_what_is_before_it_is_right() {
    let (events, mut bytes) = made(2, 500);
    for at in 0..bytes.len() {
        for mask in [0x01, 0x80, 0xff] {
            bytes[at] ^= mask;
            match read(&bytes) {
                Ok((found, before, error)) => {
                    assert!(error.is_some(), "byte {at} ^ {mask:#x} went unnoticed");
                    assert_eq!((&found, &before[..]), (&header(), &events[..before.len()]));
                }
                Err(error) => assert!(error.to_string().contains("at byte"), "{error}"),
            }
            bytes[at] ^= mask;
        }
    }
}

#[test]
fn numbers_that_lie_under_a_good_checksum_are_refused() {
    let mut plain = Vec::new();
    header().put(&mut plain).unwrap();
    let whole = |tail: &[u8]| {
        let mut blocks = BlockWriter::new(Vec::new(), "memory").unwrap();
        blocks.raw().extend_from_slice(&plain);
        blocks.raw().extend_from_slice(tail);
        blocks.finish().unwrap()
    };
    let numbers = |kind: &[u8], numbers: &[u64]| {
        let mut tail = kind.to_vec();
        numbers.iter().for_each(|&number| put_number(&mut tail, number));
        tail
    };
    let quiet = [0; 8];
    for (tail, words) in [
        (vec![9], "kind 9"),
        (numbers(&[1, 1], &[2]), "number of a table"),
        (numbers(&[1, 1, 0], &[&quiet[1..], &[4]].concat()), "4 owners"),
        (numbers(&[1, 1, 0], &[&quiet[..], &[0, u64::MAX]].concat()), "nodes in one list"),
        (numbers(&[1, 1, 0], &[&quiet[..], &[1, 1, NODES]].concat()), "of a table that has nodes"),
        (vec![3, 255, 255, 255, 255, 255, 255, 255, 255, 255, 2], "more than 64 bits"),
        (numbers(&[1, 1, 0], &[&quiet[..], &[1, 1 << 24, 5]].concat()), "cut off"),
    ] {
        let (_, before, error) = read(&whole(&tail)).unwrap();
        let error = error.expect(words).to_string();
        assert!(before.is_empty() && error.contains(words), "{words}: {error}");
    }
}

#[test]
fn headers_that_do_not_hold_together_are_refused() {
    let changed = |change: &dyn Fn(&mut Header)| {
        let mut header = header();
        change(&mut header);
        Writer::new(Vec::new(), "memory", &header).map(drop).unwrap_err().to_string()
    };
    type Change = dyn Fn(&mut Header);
    let changes: [(&Change, &str); 6] = [
        (&|header| header.rank = Rank(3), "rank 3 of 3 ranks"),
        (&|header| header.limits.batch_rows = 1 << 40, "bounds on traffic"),
        (&|header| header.tables[0].starts = vec![0, 5, 3, 9], "ends before it"),
        (&|header| header.tables[0].peers[0] = Some(Rank(9)), "rank 9 in a job of 3"),
        (&|header| header.tables[1].halo.reverse(), "do not ascend"),
        (&|header| header.tables = vec![header.tables[0].clone(); 65], "65 tables"),
    ];
    for (change, words) in changes {
        let error = changed(change);
        assert!(error.contains(words), "{words}: {error}");
    }
}

/// Gives one byte at a time, and fails at the end instead of ending.
struct Trickle<'a>(&'a [u8]);

impl Read for Trickle<'_> {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        let Some((first, rest)) = self.0.split_first() else { return Err(std::io::Error::other("the cable is out")) };
        (into[0], self.0) = (*first, rest);
        Ok(1)
    }
}

/// Takes so many bytes.
struct Full(usize);

impl Write for Full {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0 = self.0.checked_sub(bytes.len()).ok_or_else(|| std::io::Error::other("no space is left"))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn sources_and_sinks_that_fail_are_named() {
    let (events, bytes) = made(9, 9000);
    let mut reader = Reader::new(Trickle(&bytes[..bytes.len() - 1]), "the-file").unwrap();
    let error = reader.find_map(Result::err).unwrap().to_string();
    assert!(error.contains("trace the-file, at byte") && error.contains("the cable is out"), "{error}");
    let mut writer = Writer::new(Full(bytes.len() / 2), "the-file", &header()).unwrap();
    let error = events.iter().find_map(|event| writer.event(event).err()).unwrap().to_string();
    assert!(error.contains("no space is left"), "{error}");
}
