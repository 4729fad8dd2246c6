//! Goal: whatever the policy and the order of calls, the books agree with a plain map: a node has at most one slot, what is pinned or
//! filling is never given away, and a lookup says what the map says. Method: random calls as an engine makes them, every answer
//! checked against the map, the whole of it compared after every call.

use super::*;
use crate::controller::Cohort;
use crate::id::PartitionId;
use proptest::prelude::*;
use std::collections::{BTreeSet, HashMap};

const NODES: u64 = 60;
const SLOTS: u32 = 12;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Admit {
    Nothing,
    RowByRow,
    Missed { over_hits: bool },
}

#[derive(Clone, Debug)]
enum Call {
    Minibatch { nodes: BTreeSet<u64>, observed: bool, admit: Admit, replace: bool, quota: u32, oldest_position: bool },
    Announce(BTreeSet<u64>),
    Forget(prop::sample::Index),
    Reserve(prop::sample::Index, u64),
    Filled(prop::sample::Index),
    Abandon(prop::sample::Index),
    Release(u64),
    Switch(PolicyConfig),
}

fn calls() -> impl Strategy<Value = Vec<Call>> {
    let nodes = || prop::collection::btree_set(0..NODES, 0..10);
    let index = any::<prop::sample::Index>;
    let missed = |over_hits| Admit::Missed { over_hits };
    let admit = prop::sample::select(vec![Admit::Nothing, Admit::RowByRow, missed(false), missed(true)]);
    let minibatch = (nodes(), prop::bool::weighted(0.9), admit, any::<bool>(), 0u32..4, any::<bool>()).prop_map(
        |(nodes, observed, admit, replace, quota, oldest_position)| Call::Minibatch {
            nodes,
            observed,
            admit,
            replace,
            quota,
            oldest_position,
        },
    );
    let call = prop_oneof![
        6 => minibatch,
        3 => nodes().prop_map(Call::Announce),
        1 => index().prop_map(Call::Forget),
        5 => (index(), 0..NODES).prop_map(|(at, node)| Call::Reserve(at, node)),
        8 => index().prop_map(Call::Filled),
        1 => index().prop_map(Call::Abandon),
        4 => (0u64..5).prop_map(Call::Release),
        1 => policies().prop_map(Call::Switch),
    ];
    prop::collection::vec(call, 1..150)
}

/// Every policy there is, with settings at which it has decided a lot after a few calls.
fn policies() -> impl Strategy<Value = PolicyConfig> {
    let lfu = LfuConfig { half_life: 8, remembered: Some(16), cohorts: true, ..LfuConfig::default() };
    let rudder = |start| PolicyConfig::Rudder(RudderConfig { alpha: 0.3, delta: Some(2), start });
    let of_name = |name: &str| match PolicyConfig::named(name).unwrap() {
        PolicyConfig::Lfu(_) => vec![PolicyConfig::Lfu(lfu.clone())],
        PolicyConfig::Window(_) => vec![PolicyConfig::Window(lfu.clone())],
        PolicyConfig::Rudder(_) => [Start::Empty, Start::Degree, Start::Random(5)].map(rudder).to_vec(),
        PolicyConfig::Presc(_) => vec![PolicyConfig::Presc(PrescConfig { warm_up: 3 })],
        other => vec![other],
    };
    prop::sample::select(PolicyConfig::NAMES.into_iter().flat_map(of_name).collect::<Vec<_>>())
}

fn hints() -> BufferHints {
    let halo: Vec<_> = (0..NODES).filter(|node| node % 4 != 0).map(NodeId).collect();
    let degree = halo.iter().map(|node| (node.0 * 7 % 11) as u32).collect();
    BufferHints { nodes: NODES, halo, degree, owners: PartitionBook::from_starts(vec![0, 20, NODES]).unwrap() }
}

/// The buffer, and what it should say.
struct Checked {
    buffer: PrefetchBuffer,
    /// Where another policy can come from.
    feed: Option<Feed>,
    /// Nodes by slot, and whether their bytes are in place.
    held: HashMap<Slot, (NodeId, bool)>,
    pinned: HashMap<Slot, u64>,
    announced: Vec<(WindowPosition, Vec<NodeId>)>,
    oldest_live: u64,
    next_pin: u64,
    /// Decided replacements may take slots that are still read.
    replaces: bool,
}

impl Checked {
    fn new(policy: &PolicyConfig) -> Self {
        let mut buffer = PrefetchBuffer::new(SLOTS, policy, hints()).unwrap();
        let feed = buffer.watch(policy, hints()).ok();
        assert_eq!(feed.is_some(), policy.check_follows().is_ok());
        let mut checked = Self {
            buffer,
            feed,
            held: HashMap::new(),
            pinned: HashMap::new(),
            announced: Vec::new(),
            oldest_live: 0,
            next_pin: 0,
            replaces: matches!(policy, PolicyConfig::Rudder(_)),
        };
        let mut fetches = Vec::new();
        checked.buffer.initial_fill(&mut fetches);
        fetches.into_iter().for_each(|(node, slot)| checked.given(node, slot));
        checked
    }

    fn is_live(&self, slot: Slot) -> bool {
        self.pinned.get(&slot).is_some_and(|&pin| pin >= self.oldest_live)
    }

    /// The slot was given to the node.
    fn given(&mut self, node: NodeId, slot: Slot) {
        assert!(slot.0 < SLOTS);
        assert!(self.held.values().all(|(other, _)| *other != node), "{node} has two slots");
        assert!(self.held.get(&slot).is_none_or(|(_, ready)| *ready), "{slot} was filling");
        assert!(self.replaces || !self.is_live(slot), "{slot} was pinned");
        self.held.insert(slot, (node, false));
    }

    fn residency(&self, node: NodeId) -> Residency {
        match self.held.iter().find(|(_, (other, _))| *other == node) {
            Some((&slot, (_, true))) => Residency::Ready(slot),
            Some((&slot, (_, false))) => Residency::Filling(slot),
            None => Residency::Absent,
        }
    }

    fn minibatch(&mut self, nodes: &[NodeId], observed: bool, admit: Admit, replace: bool, quota: u32) {
        let pin = self.next_pin;
        self.next_pin += 1;
        let mut found = Vec::new();
        self.buffer.lookup(Pin(pin), nodes, observed, &mut found);
        assert_eq!(found, nodes.iter().map(|&node| self.residency(node)).collect::<Vec<_>>());
        for residency in &found {
            if let Residency::Ready(slot) = residency {
                self.pinned.insert(*slot, pin);
            }
        }
        if let Some(at) = self.announced.iter().position(|(_, announced)| announced == nodes) {
            let (position, nodes) = self.announced.remove(at);
            self.buffer.retire(position, &nodes);
        }
        let mut admitted = Vec::new();
        match admit {
            Admit::Nothing => {}
            Admit::RowByRow => {
                let absent = nodes.iter().zip(&found).filter(|(_, found)| **found == Residency::Absent);
                admitted.extend(absent.filter_map(|(&node, _)| Some((node, self.buffer.admit(node)?))));
            }
            Admit::Missed { over_hits } => self.buffer.admit_missed(over_hits, &mut admitted),
        }
        assert!(observed || admitted.is_empty());
        for (node, slot) in admitted {
            assert!(nodes.contains(&node) && self.residency(node) == Residency::Absent);
            if admit == (Admit::Missed { over_hits: true }) && self.pinned.get(&slot) == Some(&pin) {
                self.held.insert(slot, (node, false));
            } else {
                self.given(node, slot);
            }
        }
        let mut fetches = Vec::new();
        let replaced = self.buffer.end_minibatch(replace, Some(&vec![quota; Cohort::count(2)]), &mut fetches);
        assert!(replaced.rows == 0 || (replace && self.replaces && observed));
        assert!(fetches.len() as u32 >= replaced.rows);
        self.buffer.tell_end(std::iter::empty());
        fetches.into_iter().for_each(|(node, slot)| self.given(node, slot));
    }

    fn filling(&self) -> Vec<Slot> {
        let mut slots: Vec<_> = self.held.iter().filter(|(_, (_, ready))| !ready).map(|(&slot, _)| slot).collect();
        slots.sort();
        slots
    }

    fn run(&mut self, call: Call) {
        let ids = |nodes: BTreeSet<u64>| nodes.into_iter().map(NodeId).collect::<Vec<_>>();
        match call {
            Call::Minibatch { nodes, observed, admit, replace, quota, oldest_position } => {
                let announced = self.announced.first().filter(|_| oldest_position).map(|(_, nodes)| nodes.clone());
                self.minibatch(&announced.unwrap_or_else(|| ids(nodes)), observed, admit, replace, quota);
            }
            Call::Announce(nodes) => {
                let nodes = ids(nodes);
                let position = self.buffer.announce(&nodes);
                assert!(position.is_some() || self.announced.len() >= WINDOW_MAX / 2);
                self.announced.extend(position.map(|position| (position, nodes)));
            }
            Call::Forget(at) if !self.announced.is_empty() => {
                let (position, nodes) = self.announced.remove(at.index(self.announced.len()));
                self.buffer.retire(position, &nodes);
            }
            Call::Reserve(at, node) if !self.announced.is_empty() => {
                let (position, nodes) = self.announced[at.index(self.announced.len())].clone();
                let node = nodes.get(node as usize % nodes.len().max(1)).copied().unwrap_or(NodeId(node));
                let here = self.residency(node) != Residency::Absent;
                match self.buffer.reserve(node, position) {
                    Reserve::Slot(slot) => {
                        assert!(nodes.contains(&node) || self.announced.iter().any(|(_, nodes)| nodes.contains(&node)));
                        self.given(node, slot);
                    }
                    answer => assert_eq!(answer == Reserve::Here, here),
                }
            }
            Call::Filled(at) if !self.filling().is_empty() => {
                let slots = self.filling();
                let slot = slots[at.index(slots.len())];
                self.buffer.filled(slot);
                self.held.get_mut(&slot).unwrap().1 = true;
            }
            Call::Abandon(at) if !self.filling().is_empty() => {
                let slots = self.filling();
                let slot = slots[at.index(slots.len())];
                self.buffer.abandon(slot);
                self.held.remove(&slot);
            }
            Call::Switch(policy) if policy.check_follows().is_ok() => {
                let Some(feed) = &self.feed else { return };
                assert!(!self.buffer.switch(&policy), "it was not prepared");
                feed.prepare(&policy).unwrap();
                assert!(self.buffer.switch(&policy));
                self.replaces |= matches!(policy, PolicyConfig::Rudder(_));
            }
            Call::Release(behind) => {
                self.oldest_live = self.oldest_live.max(self.next_pin.saturating_sub(behind));
                self.buffer.release(Pin(self.oldest_live));
            }
            _ => {}
        }
    }

    fn check(&self) {
        for node in (0..NODES).map(NodeId) {
            assert_eq!(self.buffer.residency(node), self.residency(node));
        }
        for slot in (0..SLOTS).map(Slot) {
            assert_eq!(self.buffer.node(slot), self.held.get(&slot).map(|(node, _)| *node));
            assert_eq!(self.buffer.is_pinned(slot), self.is_live(slot));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn the_books_agree_with_a_map(policy in policies(), calls in calls()) {
        let mut checked = Checked::new(&policy);
        for call in calls {
            checked.run(call);
            checked.check();
        }
    }
}

fn lfu(slots: u32, cohorts: bool) -> PrefetchBuffer {
    let config = LfuConfig { half_life: 0, cohorts, ..LfuConfig::default() };
    PrefetchBuffer::new(slots, &PolicyConfig::Lfu(config), hints()).unwrap()
}

/// One minibatch whose gets are all done at once.
fn gather(buffer: &mut PrefetchBuffer, nodes: &[u64], quotas: Option<&[u32]>) -> (Vec<Residency>, Vec<NodeId>) {
    let (mut found, mut fetches) = (Vec::new(), Vec::new());
    let nodes: Vec<_> = nodes.iter().copied().map(NodeId).collect();
    buffer.lookup(Pin(0), &nodes, true, &mut found);
    buffer.release(Pin(1));
    let absent = nodes.iter().zip(&found).filter(|(_, found)| **found == Residency::Absent);
    let admitted: Vec<_> = absent.filter_map(|(node, _)| buffer.admit(*node)).collect();
    buffer.end_minibatch(false, quotas, &mut fetches);
    let slots = admitted.into_iter().chain(fetches.iter().map(|(_, slot)| *slot));
    slots.for_each(|slot| buffer.filled(slot));
    (found, fetches.into_iter().map(|(node, _)| node).collect())
}

#[test]
fn a_row_is_admitted_only_if_it_is_wanted_more_than_the_least() {
    let mut buffer = lfu(2, false);
    gather(&mut buffer, &[1, 2], None);
    gather(&mut buffer, &[1], None);
    gather(&mut buffer, &[3], None);
    assert_eq!(buffer.residency(NodeId(3)), Residency::Absent, "a tie goes to the resident");
    gather(&mut buffer, &[3], None);
    assert_ne!(buffer.residency(NodeId(3)), Residency::Absent);
    assert_eq!(buffer.residency(NodeId(2)), Residency::Absent);
}

/// Two slots under a policy that weighs wants by owner, whose counts do not fade; rows fetched ahead may have both.
fn weighing(policy: &str) -> PrefetchBuffer {
    let config = LfuConfig { half_life: 0, owners: true, ahead: 1.0, ..LfuConfig::default() };
    let config = if policy == "lfu" { PolicyConfig::Lfu(config) } else { PolicyConfig::Window(config) };
    PrefetchBuffer::new(2, &config, hints()).unwrap()
}

#[test]
fn a_want_counts_what_its_owner_weighs() {
    for name in ["lfu", "window"] {
        let mut buffer = weighing(name);
        assert!(buffer.weighs_owners() && !lfu(2, false).weighs_owners());
        // The second partition has the later half of the nodes.
        let far = hints().owners.range(PartitionId(1)).start;
        (0..3).for_each(|_| drop(gather(&mut buffer, &[1, 2], None)));
        gather(&mut buffer, &[far], None);
        assert_eq!(buffer.residency(NodeId(far)), Residency::Absent, "{name}: wanted once, and the others three times");
        buffer.weigh(&[0.5, 1.0]);
        gather(&mut buffer, &[far], None);
        assert_ne!(buffer.residency(NodeId(far)), Residency::Absent, "{name}: twice two, one of them before, are four");
        gather(&mut buffer, &[3], None);
        gather(&mut buffer, &[3], None);
        assert_eq!(buffer.residency(NodeId(3)), Residency::Absent, "{name}: two are less than three");
        buffer.weigh(&[f32::NAN, -1.0]);
        gather(&mut buffer, &[far, far + 1], None);
        gather(&mut buffer, &[far + 1], None);
        assert_ne!(buffer.residency(NodeId(far + 1)), Residency::Absent, "{name}: what is no weight changes nothing");
    }
}

#[test]
fn what_was_kept_by_weights_of_before_goes_by_those_that_stand() {
    for name in ["lfu", "window"] {
        let mut buffer = weighing(name);
        let far = hints().owners.range(PartitionId(1)).start;
        buffer.weigh(&[1.0, 4.0]);
        gather(&mut buffer, &[far, far + 1], None);
        (0..2).for_each(|_| drop(gather(&mut buffer, &[1], None)));
        assert_eq!(buffer.residency(NodeId(1)), Residency::Absent, "{name}: two are less than four");
        buffer.weigh(&[1.0, 1.0]);
        (0..2).for_each(|_| drop(gather(&mut buffer, &[2], None)));
        assert_ne!(buffer.residency(NodeId(2)), Residency::Absent, "{name}: two are more than one");
    }
}

#[test]
fn an_announcement_gives_no_precedence_over_rows_of_owners_that_are_waited_for() {
    for (policy, weights) in ["lfu", "window"].into_iter().flat_map(|name| [(name, [1.0, 1.0]), (name, [0.5, 1.5])]) {
        let far = hints().owners.range(PartitionId(1)).start;
        let announced = [NodeId(1), NodeId(2)];
        let alike = weights[0] == weights[1];

        let mut buffer = weighing(policy);
        buffer.weigh(&weights);
        gather(&mut buffer, &[far, far + 1], None);
        let position = buffer.announce(&announced).unwrap();
        let ahead = buffer.reserve(announced[0], position);
        assert_eq!(matches!(ahead, Reserve::Slot(_)), alike, "{policy}, {weights:?}: it was never wanted");

        let mut buffer = weighing(policy);
        buffer.weigh(&weights);
        gather(&mut buffer, &[1, 2], None);
        buffer.announce(&announced).unwrap();
        gather(&mut buffer, &[far], None);
        assert_eq!(
            buffer.residency(NodeId(far)) != Residency::Absent,
            !alike,
            "{policy}, {weights:?}: what is worth three is more than one want and what is expected after a single minibatch"
        );
    }
}

#[test]
fn what_is_announced_of_owners_in_time_is_worth_more_than_what_is_seldom_waited_for() {
    let far = hints().owners.range(PartitionId(1)).start;
    for (minibatches, kept) in [(1, false), (40, true)] {
        let mut buffer = weighing("window");
        buffer.weigh(&[1.0, 4.0]);
        gather(&mut buffer, &[far, far + 1], None);
        (1..minibatches).for_each(|_| drop(gather(&mut buffer, &[], None)));
        let position = buffer.announce(&[NodeId(1)]).unwrap();
        assert_eq!(matches!(buffer.reserve(NodeId(1), position), Reserve::Slot(_)), kept, "{minibatches} minibatches");
    }
}

#[test]
fn a_row_fetched_ahead_is_kept_until_its_use_or_its_ticket_is_forgotten() {
    for forget in [false, true] {
        let mut buffer = lfu(2, false);
        gather(&mut buffer, &[1, 2], None);
        let position = buffer.announce(&[NodeId(9)]).unwrap();
        let Reserve::Slot(slot) = buffer.reserve(NodeId(9), position) else {
            panic!("no room beside unprotected slots")
        };
        buffer.filled(slot);
        (0..5).for_each(|_| drop(gather(&mut buffer, &[4, 5, 6], None)));
        assert_eq!(buffer.residency(NodeId(9)), Residency::Ready(slot));
        if forget {
            buffer.retire(position, &[NodeId(9)]);
        } else {
            gather(&mut buffer, &[9], None);
            buffer.retire(position, &[NodeId(9)]);
        }
        gather(&mut buffer, &[4, 5, 6], None);
        assert_eq!(buffer.residency(NodeId(9)), Residency::Absent);
        assert_eq!(buffer.counters().useless, u64::from(forget));
    }
}

fn watched(slots: u32, policy: &PolicyConfig) -> (PrefetchBuffer, Feed) {
    let mut buffer = PrefetchBuffer::new(slots, policy, hints()).unwrap();
    let feed = buffer.watch(policy, hints()).unwrap();
    (buffer, feed)
}

/// Minibatches of these nodes, one after the other, and whether each hit.
fn hits(buffer: &mut PrefetchBuffer, nodes: &[u64]) -> Vec<bool> {
    let hit = |found: Vec<Residency>| found[0] != Residency::Absent;
    nodes.iter().map(|&node| hit(gather(buffer, &[node], None).0)).collect()
}

#[test]
fn another_policy_keeps_the_rows_and_what_was_counted_of_them() {
    let counting = PolicyConfig::Lfu(LfuConfig { half_life: 0, ..LfuConfig::default() });
    let (mut buffer, feed) = watched(3, &counting);
    hits(&mut buffer, &[1, 1, 1, 2, 3, 3]);
    feed.prepare(&PolicyConfig::Lru).unwrap();
    assert!(buffer.switch(&PolicyConfig::Lru) && !buffer.switch(&PolicyConfig::Lru));
    assert_eq!(hits(&mut buffer, &[1, 2, 3]), [true; 3], "all rows are where they were");
    assert_eq!(hits(&mut buffer, &[5, 2, 3, 5, 1]), [false, true, true, true, false], "the least recently used goes");
    let counting_on = PolicyConfig::Lfu(LfuConfig { half_life: 1000, ..LfuConfig::default() });
    feed.prepare(&counting_on).unwrap();
    assert!(buffer.switch(&counting_on));
    hits(&mut buffer, &[1, 1, 1, 3, 3, 3]);
    let other = PolicyConfig::Window(LfuConfig { half_life: 0, ..LfuConfig::default() });
    feed.prepare(&other).unwrap();
    assert!(buffer.switch(&other));
    assert_eq!(hits(&mut buffer, &[7, 8, 9, 1, 3]), [false, false, false, true, true], "they were wanted most");
    assert_eq!(buffer.counters().policies, 3);
}

#[test]
fn nodes_of_high_degree_take_the_place_of_others_as_they_are_fetched() {
    let (mut buffer, feed) = watched(2, &PolicyConfig::Lru);
    let chosen = {
        let mut fetches = Vec::new();
        PrefetchBuffer::new(2, &PolicyConfig::Degree, hints()).unwrap().initial_fill(&mut fetches);
        fetches.into_iter().map(|(node, _)| node.0).collect::<Vec<_>>()
    };
    hits(&mut buffer, &[chosen[0], 4]);
    feed.prepare(&PolicyConfig::Degree).unwrap();
    assert!(buffer.switch(&PolicyConfig::Degree));
    let all = [8, 4, chosen[0], chosen[1], 4, chosen[1], 8, chosen[0]];
    assert_eq!(hits(&mut buffer, &all), [false, true, true, false, false, true, false, true]);
}

#[test]
fn quotas_pull_recently_missed_nodes_of_their_cohort() {
    let mut buffer = lfu(2, true);
    gather(&mut buffer, &[1, 2], None);
    gather(&mut buffer, &[1, 2], None);
    gather(&mut buffer, &[30, 5], None);
    let missed: Vec<_> = (0..Cohort::count(2)).filter(|&at| buffer.cohort_misses()[at] > 0).map(Cohort::at).collect();
    assert_eq!(missed.iter().map(|cohort| cohort.owner.0).collect::<Vec<_>>(), [0, 1]);
    assert!(missed.iter().all(|cohort| (cohort.frequency, cohort.recency, cohort.announced) == (0, 2, false)));
    let mut quotas = vec![0; Cohort::count(2)];
    quotas[missed[1].index()] = 3;
    assert_eq!(gather(&mut buffer, &[1], Some(&quotas)).1, [NodeId(30)]);
    assert_eq!(buffer.counters().pulled, 1);
    assert_eq!(gather(&mut buffer, &[1], Some(&quotas)).1, [], "nothing is left to pull");
}

#[test]
fn a_minibatch_that_is_not_observed_leaves_no_trace() {
    let mut buffer = lfu(2, true);
    gather(&mut buffer, &[1, 2], None);
    let before = buffer.counters();
    for _ in 0..5 {
        let mut found = Vec::new();
        buffer.lookup(Pin(3), &[NodeId(1), NodeId(3)], false, &mut found);
        assert!(matches!(found[..], [Residency::Ready(_), Residency::Absent]));
        assert_eq!(buffer.admit(NodeId(3)), None);
        assert_eq!(buffer.end_minibatch(true, None, &mut Vec::new()), Replaced::default());
    }
    assert_eq!(buffer.counters(), before);
    buffer.release(Pin(4));
    gather(&mut buffer, &[3], None);
    assert_eq!(buffer.residency(NodeId(3)), Residency::Absent, "its unobserved wants were not counted");
}

#[test]
fn without_retention_the_rows_that_served_give_way_first() {
    let mut buffer = PrefetchBuffer::new(2, &PolicyConfig::Off, hints()).unwrap();
    let (first, second) = ([NodeId(1)], [NodeId(2), NodeId(3)]);
    let one = buffer.announce(&first).unwrap();
    let two = buffer.announce(&second).unwrap();
    for (node, position) in [(first[0], one), (second[0], two)] {
        let Reserve::Slot(slot) = buffer.reserve(node, position) else { panic!("a slot is free") };
        buffer.filled(slot);
    }
    assert_eq!(buffer.reserve(second[1], two), Reserve::NoRoom);
    assert!(matches!(gather(&mut buffer, &[1], None).0[..], [Residency::Ready(_)]));
    buffer.retire(one, &first);
    assert!(matches!(buffer.reserve(second[1], two), Reserve::Slot(_)));
    assert_eq!(buffer.residency(first[0]), Residency::Absent);
    gather(&mut buffer, &[50], None);
    assert_eq!(buffer.residency(NodeId(50)), Residency::Absent, "nothing is admitted");
}

#[test]
fn the_window_gives_up_the_farthest_use_for_a_row_in_hand_and_none_for_a_row_ahead() {
    let config = LfuConfig::default();
    let mut buffer = PrefetchBuffer::new(2, &PolicyConfig::Window(config), hints()).unwrap();
    gather(&mut buffer, &[1, 2], None);
    let uses: Vec<_> = [3u64, 1, 3, 2].iter().map(|&node| buffer.announce(&[NodeId(node)]).unwrap()).collect();
    assert_eq!(buffer.reserve(NodeId(3), uses[0]), Reserve::NoRoom, "both residents are announced");
    gather(&mut buffer, &[3], None);
    assert_eq!(buffer.residency(NodeId(2)), Residency::Absent, "its use was the farthest, and node 3 was in hand");
    assert!(matches!(buffer.residency(NodeId(1)), Residency::Ready(_)));
    assert_eq!(buffer.reserve(NodeId(2), uses[3]), Reserve::NoRoom);
    for _ in 0..10 {
        gather(&mut buffer, &[7], None);
    }
    assert_eq!(buffer.residency(NodeId(7)), Residency::Absent, "counts do not beat announced uses");
}

#[test]
fn rows_of_far_minibatches_take_only_slots_that_nobody_has() {
    let mut buffer = PrefetchBuffer::new(16, &PolicyConfig::Window(LfuConfig::default()), hints()).unwrap();
    gather(&mut buffer, &(1..16).collect::<Vec<_>>(), None);
    let uses: Vec<_> = [40u64, 41, 20, 21].iter().map(|&node| buffer.announce(&[NodeId(node)]).unwrap()).collect();
    assert!(matches!(buffer.reserve(NodeId(20), uses[2]), Reserve::Slot(_)), "a slot is free");
    assert_eq!(buffer.reserve(NodeId(21), uses[3]), Reserve::NoRoom, "it is too early to take another's slot");
    buffer.retire(uses[0], &[NodeId(40)]);
    buffer.retire(uses[1], &[NodeId(41)]);
    assert!(matches!(buffer.reserve(NodeId(21), uses[3]), Reserve::Slot(_)), "now it is near");
    assert_eq!(buffer.counters().evictions, 1, "of a row that is not announced");
}

#[test]
fn rows_fetched_ahead_hold_more_slots_of_a_window_the_farther_it_reaches() {
    for (reach, ranks, most) in [(1, 1, 4), (8, 1, 4), (16, 1, 8), (32, 1, 16), (32, 4, 4)] {
        let mut buffer = PrefetchBuffer::new(32, &PolicyConfig::Window(LfuConfig::default()), hints()).unwrap();
        buffer.view.window.serve(ranks);
        gather(&mut buffer, &(28..NODES).collect::<Vec<_>>(), None);
        let coming: Vec<_> = (0..24).map(NodeId).collect();
        let uses: Vec<_> = (0..reach).map(|_| buffer.announce(&coming).unwrap()).collect();
        let reserve = |buffer: &mut PrefetchBuffer, nodes: &[NodeId], position| {
            let reserved = nodes.iter().map(|&node| buffer.reserve(node, position));
            let slots: Vec<_> =
                reserved.filter_map(|found| if let Reserve::Slot(slot) = found { Some(slot) } else { None }).collect();
            slots.iter().for_each(|&slot| buffer.filled(slot));
            slots.len()
        };
        assert_eq!(reserve(&mut buffer, &coming, uses[0]), most, "{reach} announced by {ranks}");
        buffer.retire(uses[0], &coming);
        let position = uses.get(1).copied().unwrap_or_else(|| buffer.announce(&coming).unwrap());
        assert_eq!(reserve(&mut buffer, &coming[most..], position), most.min(24 - most), "their minibatch has come");
    }
}

#[test]
fn pre_sampling_brings_the_most_wanted_of_its_warm_up_no_faster_than_minibatches_come() {
    let mut buffer = PrefetchBuffer::new(3, &PolicyConfig::Presc(PrescConfig { warm_up: 3 }), hints()).unwrap();
    assert_eq!(gather(&mut buffer, &[1, 2, 3], None).1, []);
    assert_eq!(gather(&mut buffer, &[2, 3, 4], None).1, []);
    let ids = |nodes: &[u64]| nodes.iter().copied().map(NodeId).collect::<Vec<_>>();
    assert_eq!(
        gather(&mut buffer, &[3, 9], None).1,
        ids(&[3, 2]),
        "the most wanted first, as many as the minibatch had"
    );
    assert_eq!(gather(&mut buffer, &[4, 9], None).1, ids(&[1]), "the lower node first where two are equal");
    assert_eq!(gather(&mut buffer, &[4, 9], None).1, []);
    assert_eq!((buffer.counters().initial, buffer.counters().evictions), (3, 0));
}

#[test]
fn a_drawn_set_is_that_of_its_seed_and_stays() {
    let drawn = |seed| {
        let mut buffer = PrefetchBuffer::new(9, &PolicyConfig::Random(RandomConfig { seed }), hints()).unwrap();
        let mut fetches = Vec::new();
        buffer.initial_fill(&mut fetches);
        gather(&mut buffer, &[0, 4, 8], None);
        let nodes: BTreeSet<_> = fetches.iter().map(|(node, _)| *node).collect();
        assert!(nodes.iter().all(|node| hints().halo.contains(node) && buffer.residency(*node) != Residency::Absent));
        assert_eq!((nodes.len(), buffer.counters().evictions), (9, 0));
        nodes
    };
    assert_eq!(drawn(1), drawn(1));
    assert_ne!(drawn(1), drawn(2));
}

#[test]
fn a_row_fetched_ahead_enters_a_cache_with_its_first_use() {
    for name in ["lru", "sieve", "s3fifo", "wtinylfu"] {
        for forget in [false, true] {
            let mut buffer = PrefetchBuffer::new(2, &PolicyConfig::named(name).unwrap(), hints()).unwrap();
            gather(&mut buffer, &[1, 2], None);
            let position = buffer.announce(&[NodeId(9)]).unwrap();
            let Reserve::Slot(slot) = buffer.reserve(NodeId(9), position) else { panic!("{name}: no room") };
            buffer.filled(slot);
            (20..30).for_each(|node| drop(gather(&mut buffer, &[node], None)));
            assert_eq!(buffer.residency(NodeId(9)), Residency::Ready(slot), "{name}");
            if !forget {
                gather(&mut buffer, &[9], None);
            }
            buffer.retire(position, &[NodeId(9)]);
            // Each of these is wanted more often than node 9, and none is a scan.
            (0..40).for_each(|at| drop(gather(&mut buffer, &[30 + at % 2, 32 + at % 2], None)));
            assert_eq!(buffer.residency(NodeId(9)), Residency::Absent, "{name}");
            assert_eq!(buffer.counters().useless, u64::from(forget), "{name}");
        }
    }
}

#[test]
fn rows_fetched_ahead_hold_no_more_than_their_share_of_an_lfu() {
    for (ahead, most) in [(0.0, 0), (0.25, 2), (1.0, 8)] {
        let config = LfuConfig { ahead, ..LfuConfig::default() };
        let mut buffer = PrefetchBuffer::new(8, &PolicyConfig::Lfu(config), hints()).unwrap();
        let coming: Vec<_> = (20..40).map(NodeId).collect();
        let position = buffer.announce(&coming).unwrap();
        let mut reserve = |nodes: &[NodeId]| {
            let reserved = nodes.iter().filter(|node| buffer.reserve(**node, position) != Reserve::NoRoom);
            reserved.count()
        };
        assert_eq!(reserve(&coming), most);
        gather(&mut buffer, &[20, 21, 22], None);
        let reserved = coming.iter().filter(|node| matches!(buffer.reserve(**node, position), Reserve::Slot(_)));
        assert_eq!(reserved.count(), most.min(3).min(8 - most), "rows that have served make room for others");
    }
}

#[test]
fn hints_and_settings_that_cannot_be_are_refused() {
    let short = BufferHints { degree: vec![1], ..hints() };
    assert!(PrefetchBuffer::new(4, &PolicyConfig::Degree, short).is_err());
    for (alpha, delta) in [(0.0, 4), (1.0, 4), (f64::NAN, 4), (0.1, 0)] {
        let config = PolicyConfig::Rudder(RudderConfig { alpha, delta: Some(delta), start: Start::Empty });
        assert!(PrefetchBuffer::new(4, &config, hints()).is_err());
    }
    assert!(PrefetchBuffer::new(4, &PolicyConfig::Presc(PrescConfig { warm_up: 0 }), hints()).is_err());
    for ahead in [-0.1, 1.1, f64::NAN] {
        let config = LfuConfig { ahead, ..LfuConfig::default() };
        assert!(PrefetchBuffer::new(4, &PolicyConfig::Lfu(config), hints()).is_err());
    }
    assert!(PolicyConfig::named("best").is_err_and(|error| error.to_string().contains("off, degree, random")));
    for name in PolicyConfig::NAMES {
        let config = PolicyConfig::named(name).unwrap();
        assert_eq!(config.name(), name);
        let text = serde_json::to_string(&config).unwrap();
        assert_eq!(serde_json::from_str::<PolicyConfig>(&text).unwrap(), config);
    }
}
