//! Goal: no change of a policy goes unseen, and none beats what is possible. Method: the recorded trace, replayed under each policy,
//! against rows fetched and hits written down here, with slots for half the halo; and against Belady's bound, computed here from the
//! whole future: all nodes of a minibatch are looked up at once, then any of them and of the residents may be kept, the nearest next
//! uses first. A figure that changes for a good reason is written down anew, with the reason in the commit.

mod replay;

use replay::{Replay, Trace, recorded};
use rudder::NodeId;
use rudder::buffer::{BufferCounters, LfuConfig, PolicyConfig, Reserve, RudderConfig, Start, WindowPosition};
use std::collections::{BTreeMap, VecDeque};

/// How the trace is replayed.
#[derive(Clone, Copy, Default)]
struct Plan {
    /// Minibatches announced ahead.
    lookahead: usize,
    /// Of these, how many are fetched ahead.
    fetch_ahead: usize,
    /// Decide a replacement every so many minibatches.
    replace_every: Option<usize>,
}

/// Fetches what an announced minibatch lacks, as far as there is room.
fn fetch_ahead(replay: &mut Replay, nodes: &[NodeId], position: WindowPosition) {
    for &node in nodes {
        if let Reserve::Slot(slot) = replay.buffer.reserve(node, position) {
            replay.buffer.filled(slot);
            replay.fetched += 1;
        }
    }
}

/// Replays a trace; the rows fetched, and the counters.
fn replay(trace: &Trace, slots: u32, policy: &PolicyConfig, plan: Plan) -> (u64, BufferCounters) {
    let mut replay = Replay::new(slots, policy, trace.hints.clone());
    let mut announced = VecDeque::new();
    for (at, nodes) in trace.minibatches.iter().enumerate() {
        for coming in trace.minibatches[at..].iter().take(plan.lookahead).skip(announced.len()) {
            announced.push_back(replay.buffer.announce(coming).unwrap());
        }
        for (nodes, &position) in trace.minibatches[at..].iter().zip(announced.iter().take(plan.fetch_ahead)) {
            fetch_ahead(&mut replay, nodes, position);
        }
        let replaces = plan.replace_every.is_some_and(|every| (at + 1) % every == 0);
        replay.gather(nodes, announced.pop_front(), replaces);
    }
    (replay.fetched, replay.buffer.counters())
}

/// The fewest rows that any policy can fetch.
fn belady(trace: &Trace, slots: usize) -> u64 {
    let mut uses: BTreeMap<u64, Vec<usize>> = BTreeMap::new();
    for (at, nodes) in trace.minibatches.iter().enumerate() {
        nodes.iter().for_each(|node| uses.entry(node.0).or_default().push(at));
    }
    let next_use = |node: u64, after: usize| {
        let uses = &uses[&node];
        uses.get(uses.partition_point(|&at| at <= after)).copied()
    };
    let (mut residents, mut fetched) = (Vec::<u64>::new(), 0);
    for (at, nodes) in trace.minibatches.iter().enumerate() {
        let missed: Vec<u64> = nodes.iter().map(|node| node.0).filter(|node| !residents.contains(node)).collect();
        fetched += missed.len() as u64;
        residents.extend(missed);
        let mut kept: Vec<_> = residents.iter().filter_map(|&node| Some((next_use(node, at)?, node))).collect();
        kept.sort_unstable();
        residents = kept.into_iter().take(slots).map(|(_, node)| node).collect();
    }
    fetched
}

struct Golden {
    name: &'static str,
    policy: PolicyConfig,
    plan: Plan,
    fetched: u64,
    hits: u64,
}

fn table() -> Vec<Golden> {
    let ahead = |lookahead, fetch_ahead| Plan { lookahead, fetch_ahead, replace_every: None };
    let named = |name| PolicyConfig::named(name).unwrap();
    let every = |minibatches| Plan { replace_every: Some(minibatches), ..Plan::default() };
    let rudder = |alpha, delta| PolicyConfig::Rudder(RudderConfig { alpha, delta: Some(delta), start: Start::Degree });
    let undecayed = PolicyConfig::Lfu(LfuConfig { half_life: 0, ..LfuConfig::default() });
    let unshared = PolicyConfig::Lfu(LfuConfig { ahead: 1.0, ..LfuConfig::default() });
    let row = |name, policy, plan, fetched, hits| Golden { name, policy, plan, fetched, hits };
    vec![
        row("off", named("off"), Plan::default(), 46_578, 0),
        row("off, one ahead", named("off"), ahead(2, 1), 22_090, 46_578),
        row("degree", named("degree"), Plan::default(), 20_241, 26_859),
        row("random", named("random"), Plan::default(), 27_811, 19_289),
        row("presc", named("presc"), Plan::default(), 28_295, 18_805),
        row("lru", named("lru"), Plan::default(), 25_196, 21_382),
        row("lru, four ahead", named("lru"), ahead(4, 4), 26_157, 27_021),
        row("sieve", named("sieve"), Plan::default(), 21_351, 25_227),
        row("sieve, four ahead", named("sieve"), ahead(4, 4), 22_298, 30_880),
        row("s3fifo", named("s3fifo"), Plan::default(), 21_971, 24_607),
        row("s3fifo, four ahead", named("s3fifo"), ahead(4, 4), 22_704, 30_474),
        row("wtinylfu", named("wtinylfu"), Plan::default(), 20_575, 26_003),
        row("wtinylfu, four ahead", named("wtinylfu"), ahead(4, 4), 22_038, 31_140),
        row("lfu", named("lfu"), Plan::default(), 19_520, 27_058),
        row("lfu without decay", undecayed, Plan::default(), 19_500, 27_078),
        row("lfu, all of four ahead", named("lfu"), ahead(4, 4), 20_505, 32_673),
        row("lfu, four ahead, no share", unshared, ahead(4, 4), 27_778, 44_309),
        row("rudder every 8", rudder(0.005, 8), every(8), 24_822, 23_167),
        row("rudder always", rudder(0.05, 1), every(1), 34_047, 25_789),
        row("window 1", named("window"), ahead(1, 0), 19_522, 27_056),
        row("window 2, two ahead", named("window"), ahead(2, 2), 18_374, 41_696),
        row("window 4", named("window"), ahead(4, 0), 15_618, 30_960),
        row("window 4, two ahead", named("window"), ahead(4, 2), 16_085, 43_837),
        row("window 16", named("window"), ahead(16, 0), 12_603, 33_975),
        row("window 16, two ahead", named("window"), ahead(16, 2), 12_603, 34_877),
        row("window 16, all of them ahead", named("window"), ahead(16, 16), 12_603, 34_877),
        row("window 64", named("window"), ahead(64, 0), 12_603, 33_975),
    ]
}

fn slots(trace: &Trace) -> u32 {
    trace.hints.halo.len() as u32 / 2
}

#[test]
fn rows_fetched_and_hits_are_those_written_down() {
    let trace = recorded();
    let bound = belady(&trace, slots(&trace) as usize);
    let mut changed = Vec::new();
    println!("belady: {bound}");
    for Golden { name, policy, plan, fetched, hits } in table() {
        let (now_fetched, counters) = replay(&trace, slots(&trace), &policy, plan);
        println!(
            "{name}: {now_fetched} rows ({:.3} x Belady), {} hits",
            now_fetched as f64 / bound as f64,
            counters.hits
        );
        assert!(now_fetched >= bound, "{name} fetched {now_fetched} rows; Belady cannot do with fewer than {bound}");
        if (now_fetched, counters.hits) != (fetched, hits) {
            changed.push(format!("{name}: {now_fetched} rows and {} hits, not {fetched} and {hits}", counters.hits));
        }
    }
    assert!(changed.is_empty(), "{}", changed.join("\n"));
}

#[test]
fn foresight_beats_counting_and_counting_beats_periodic_replacement() {
    let trace = recorded();
    for share in [10, 4, 2] {
        let slots = trace.hints.halo.len() as u32 / share;
        let fetched = |policy: &PolicyConfig, plan| replay(&trace, slots, policy, plan).0;
        let window = fetched(&PolicyConfig::named("window").unwrap(), Plan { lookahead: 16, ..Plan::default() });
        let lfu = fetched(&PolicyConfig::named("lfu").unwrap(), Plan::default());
        let rudder =
            fetched(&PolicyConfig::named("rudder").unwrap(), Plan { replace_every: Some(8), ..Plan::default() });
        assert!(window < lfu && lfu < rudder, "1/{share} of the halo: window {window}, lfu {lfu}, rudder {rudder}");
        let short = Plan { lookahead: 2, fetch_ahead: 2, ..Plan::default() };
        let short = fetched(&PolicyConfig::named("window").unwrap(), short);
        assert!(short < lfu, "1/{share} of the halo: window {short} with two announced, lfu {lfu}");
        let bound = belady(&trace, slots as usize);
        assert!(window as f64 <= bound as f64 * 1.05, "1/{share} of the halo: window {window}, Belady {bound}");
    }
}

#[test]
fn a_window_over_the_whole_trace_is_belady() {
    let mut trace = recorded();
    trace.minibatches.truncate(64);
    let slots = slots(&trace);
    let (fetched, _) =
        replay(&trace, slots, &PolicyConfig::named("window").unwrap(), Plan { lookahead: 64, ..Plan::default() });
    assert_eq!(fetched, belady(&trace, slots as usize));
}
