//! Policies tried on a sample of what the buffer is asked for: each has a buffer of its own, as large a share of the real one as the sample is of
//! the nodes, and rows that come at once. Its cost is how long its minibatches would have been waited for: rows that are fetched when a minibatch
//! wants them are, and of those that are fetched ahead as many as do not come while it computes. Which those are follows from what rows take, of
//! slow owners each for itself. What a slow owner sends is waited for in any case: by other ranks, where it came ahead of this one's need.

use super::{Decision, Observation, OwnerShare};
use crate::buffer::{
    BufferHints, Call, Event, Feed, Pin, PolicyConfig, PrefetchBuffer, Reserve, Residency, WINDOW_MAX, Watched,
    WindowPosition,
};
use crate::error::Result;
use crate::id::{NodeId, Slot};
use crate::partition::PartitionBook;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

/// What is left of a cost, and of what owners have sent, after each evaluation.
pub(super) const KEPT: f64 = 0.5;
/// What a second costs in which rows come that nobody waits for: they take the network from others, and no estimate of waits is so sure that the
/// fewest rows are not the best of equals.
const HIDDEN: f64 = 0.05;

/// An owner whose rows take so many times as long as the others' in the mean is slow. Where this rank's own link is full, rows of all owners wait for
/// each other, and those of the last of many owners on it take twice as long.
const SLOW: f64 = 2.4;

/// The simple policies that are tried, those of one file with several settings; `window` beside them once anything is announced.
pub(super) fn menu() -> Result<Vec<PolicyConfig>> {
    ["lfu", "lfu:64", "lfu:4096", "lru", "sieve", "s3fifo", "wtinylfu", "degree"]
        .map(PolicyConfig::named)
        .into_iter()
        .collect()
}

/// Nodes of an announced minibatch, and where the buffers have it.
type Announced = (WindowPosition, Arc<[NodeId]>);

/// Nodes of the sample that were wanted, and by partition the rows that were fetched, and those of them that a minibatch waited for.
#[derive(Clone)]
struct Counts {
    wanted: f64,
    fetched: Vec<f64>,
    late: Vec<f64>,
}

impl Counts {
    fn of(partitions: usize) -> Self {
        Self { wanted: 0.0, fetched: vec![0.0; partitions], late: vec![0.0; partitions] }
    }

    fn less(&self, other: &Self) -> Self {
        let less = |own: &[f64], other: &[f64]| own.iter().zip(other).map(|(own, other)| own - other).collect();
        Self {
            wanted: self.wanted - other.wanted,
            fetched: less(&self.fetched, &other.fetched),
            late: less(&self.late, &other.late),
        }
    }

    fn scale(&mut self, factor: f64) {
        self.wanted *= factor;
        self.fetched.iter_mut().chain(&mut self.late).for_each(|rows| *rows *= factor);
    }

    /// Of these seconds, those in which a minibatch would have waited, and all in which rows would have come; there is `room` for rows that nobody waits for.
    fn seconds(&self, prices: &Prices, room: f64) -> (f64, f64) {
        let fetching = prices.seconds(&self.fetched);
        (prices.seconds(&self.late).max(fetching - room), fetching)
    }
}

/// One policy on the sample.
pub(super) struct Shadow {
    pub(super) policy: PolicyConfig,
    buffer: PrefetchBuffer,
    feed: Option<Feed>,
    owners: PartitionBook,
    /// The share of the nodes that it sees.
    share: f64,
    /// The position that this buffer has for each of the watched one's.
    positions: [Option<WindowPosition>; WINDOW_MAX],
    /// Announcements whose nodes are not all looked at, and how many are.
    planning: VecDeque<(Announced, usize)>,
    /// Older ones count for less.
    counts: Counts,
    decided: Decision,
    pin: u64,
    found: Vec<Residency>,
    kept: Vec<(NodeId, Slot)>,
    fetches: Vec<(NodeId, Slot)>,
}

/// What a buffer for the sample knows of the graph.
fn sampled(watched: &Watched) -> (u32, BufferHints) {
    let Watched { slots, sample, hints, .. } = watched;
    let halo = || hints.halo.iter().zip(&hints.degree).filter(|(node, _)| sample.has(**node));
    let slots = (f64::from(*slots) * sample.share()).round().max(1.0) as u32;
    let (halo, degree) = halo().map(|(node, degree)| (*node, *degree)).unzip();
    (slots, BufferHints { nodes: hints.nodes, halo, degree, owners: hints.owners.clone() })
}

impl Shadow {
    /// Of a policy that stays what it is. It takes over the rows that the buffer begins with, as the buffer would if it followed.
    pub(super) fn new(policy: &PolicyConfig, watched: &Watched) -> Result<Self> {
        let mut shadow = Self::steered(&watched.policy, watched)?;
        if let Some(feed) = shadow.feed.take().filter(|_| *policy != watched.policy) {
            feed.prepare(policy)?;
            shadow.buffer.switch(policy);
            shadow.policy = policy.clone();
        }
        shadow.buffer.unwatch();
        Ok(shadow)
    }

    /// Of one that a controller may change.
    pub(super) fn steered(policy: &PolicyConfig, watched: &Watched) -> Result<Self> {
        let (slots, hints) = sampled(watched);
        let mut buffer = PrefetchBuffer::new(slots, policy, hints.clone())?;
        let feed = buffer.watch(policy, hints)?;
        Ok(Self::of(policy, buffer, Some(feed), watched))
    }

    fn of(policy: &PolicyConfig, buffer: PrefetchBuffer, feed: Option<Feed>, watched: &Watched) -> Self {
        let owners = watched.hints.owners.clone();
        let partitions = owners.partitions() as usize;
        let mut shadow = Self {
            policy: policy.clone(),
            buffer,
            feed,
            counts: Counts::of(partitions),
            owners,
            share: watched.sample.share(),
            positions: [None; WINDOW_MAX],
            planning: VecDeque::new(),
            decided: Decision::default(),
            pin: 0,
            found: Vec::new(),
            kept: Vec::new(),
            fetches: Vec::new(),
        };
        let mut fetches = std::mem::take(&mut shadow.fetches);
        shadow.buffer.initial_fill(&mut fetches);
        shadow.fetches = fetches;
        shadow.fetch();
        shadow
    }

    /// Carries a controller's decision out at the end of the minibatch.
    pub(super) fn decide(&mut self, decision: &Decision) {
        let mut sampled = decision.clone();
        // As many rows are pulled of the sample as its share of all.
        let scale = |rows: &mut u32| *rows = (f64::from(*rows) * self.share).round() as u32;
        sampled.quotas.iter_mut().flatten().for_each(scale);
        self.decided.merge(sampled);
    }

    /// What its rows cost: seconds, where it is known what rows take, and `room` what there was for rows that nobody waited for; else rows.
    fn cost(&self, prices: Option<&Prices>, room: f64) -> f64 {
        let Some(prices) = prices else { return self.counts.fetched.iter().sum::<f64>() / self.share };
        let (waited, fetching) = self.counts.seconds(prices, room * self.share);
        // There is no room at a slow owner: what it sends to one rank ahead, others wait for.
        let waited = waited.max(prices.slowest(&self.counts.fetched));
        (waited + HIDDEN * (fetching - waited)) / self.share
    }

    fn count(&mut self, node: NodeId, late: bool) {
        if let Some((owner, _)) = self.owners.locate(node) {
            self.counts.fetched[owner.index()] += 1.0;
            self.counts.late[owner.index()] += if late { 1.0 } else { 0.0 };
        }
    }

    /// Fetches what a boundary has decided to, at once.
    fn fetch(&mut self) {
        for (node, slot) in std::mem::take(&mut self.fetches) {
            self.count(node, false);
            self.buffer.filled(slot);
        }
    }

    fn look_up(&mut self, nodes: &[NodeId]) {
        self.pin += 1;
        self.buffer.lookup(Pin(self.pin), nodes, true, &mut self.found);
        let found = std::mem::take(&mut self.found);
        self.counts.wanted += nodes.len() as f64;
        let absent = nodes.iter().zip(&found).filter(|(_, found)| **found == Residency::Absent);
        absent.for_each(|(&node, _)| self.count(node, true));
        self.found = found;
    }

    fn end(&mut self) {
        self.buffer.admit_missed(true, &mut self.kept);
        let decided = std::mem::take(&mut self.decided);
        self.buffer.end_minibatch(decided.replace, decided.quotas.as_deref(), &mut self.fetches);
        self.buffer.release(Pin(self.pin + 1));
        // In the order in which rows of an owner travel, where they are asked for by row.
        self.kept.sort_unstable_by_key(|(node, _)| *node);
        self.kept.drain(..).for_each(|(_, slot)| self.buffer.filled(slot));
        self.fetch();
        if let (Some(policy), Some(feed)) = (&decided.policy, &self.feed)
            && feed.prepare(policy).is_ok()
            && self.buffer.switch(policy)
        {
            self.policy = policy.clone();
        }
        self.buffer.tell_end(std::iter::empty());
        self.feed.iter().for_each(|feed| feed.pass(|_| ()));
        if let Some(weights) = &decided.owner_weights {
            self.buffer.weigh(weights);
        }
        // Quotas stand until the next.
        self.decided.quotas = decided.quotas;
        self.plan();
    }

    fn announce(&mut self, announced: &Announced) {
        let position = self.buffer.announce(&announced.1);
        self.positions[usize::from(announced.0.0)] = position;
        if position.is_some() {
            self.planning.push_back((announced.clone(), 0));
        }
        self.plan();
    }

    fn retire(&mut self, announced: &Announced) {
        self.planning.retain(|((position, _), _)| *position != announced.0);
        if let Some(position) = self.positions[usize::from(announced.0.0)].take() {
            self.buffer.retire(position, &announced.1);
        }
    }

    /// Fetches announced nodes ahead, nearest minibatch first, until there is no room for more; as the pipeline does.
    fn plan(&mut self) {
        while let Some(((position, nodes), done)) = self.planning.pop_front() {
            let Some(own) = self.positions[usize::from(position.0)] else { continue };
            for at in done..nodes.len() {
                match self.buffer.reserve(nodes[at], own) {
                    Reserve::NoRoom => return self.planning.push_front(((position, nodes), at)),
                    Reserve::Here => {}
                    Reserve::Slot(slot) => {
                        self.count(nodes[at], false);
                        self.buffer.filled(slot);
                    }
                }
            }
        }
    }
}

/// What owners have sent.
struct Sent {
    /// By partition: since the start as it was last told, and lately, rows and seconds.
    told: Vec<OwnerShare>,
    lately: Vec<(f64, f64)>,
}

impl Sent {
    fn note(&mut self, owners: &[OwnerShare]) {
        for ((told, lately), owner) in self.told.iter_mut().zip(&mut self.lately).zip(owners) {
            let before = std::mem::replace(told, *owner);
            lately.0 += owner.rows.saturating_sub(before.rows) as f64;
            lately.1 += owner.busy.saturating_sub(before.busy).as_secs_f64();
        }
    }

    /// What rows take; none where no row has taken any time.
    fn prices(&self) -> Option<Prices> {
        let (rows, busy) = self.lately.iter().fold((0.0, 0.0), |sum, owner| (sum.0 + owner.0, sum.1 + owner.1));
        if rows == 0.0 || busy == 0.0 {
            return None;
        }
        let slow = |&(own, took): &(f64, f64)| own > 0.0 && took * (rows - own) > SLOW * own * (busy - took);
        // The fastest is among them.
        let others = self.lately.iter().filter(|owner| owner.0 > 0.0 && !slow(owner));
        let (sum, longest) = others.fold((0.0, 0.0f64), |(sum, longest), owner| (sum + owner.0, longest.max(owner.1)));
        // An owner of which no row came is as all are on average.
        let by_owner = self.lately.iter().map(|&(own, took)| if own > 0.0 { took / own } else { busy / rows });
        Some(Prices {
            by_owner: by_owner.collect(),
            slow: self.lately.iter().map(slow).collect(),
            together: longest / sum,
        })
    }

    fn fade(&mut self) {
        self.lately.iter_mut().for_each(|owner| *owner = (owner.0 * KEPT, owner.1 * KEPT));
    }
}

/// What rows take.
struct Prices {
    /// By partition: seconds that its owner takes for a row, and whether it is slow.
    by_owner: Vec<f64>,
    slow: Vec<bool>,
    /// Seconds in which a row of any of the others comes.
    together: f64,
}

impl Prices {
    /// Seconds in which the slow owner that takes longest sends so many rows.
    fn slowest(&self, rows: &[f64]) -> f64 {
        let slow = rows.iter().zip(&self.by_owner).zip(&self.slow).filter(|(_, slow)| **slow);
        slow.map(|((rows, seconds), _)| rows * seconds).fold(0.0, f64::max)
    }

    /// Seconds until so many rows by partition are here. Owners send at the same time: what is waited for is the slow one that takes longest, or all the
    /// others together.
    fn seconds(&self, rows: &[f64]) -> f64 {
        let others = rows.iter().zip(&self.slow).filter(|(_, slow)| !**slow).map(|(rows, _)| rows);
        self.slowest(rows).max(others.sum::<f64>() * self.together)
    }
}

/// The simple policies on the sample, and one that is steered, if there is one.
pub(super) struct Shadows {
    watched: Watched,
    pub(super) simple: Vec<Shadow>,
    pub(super) steered: Option<Shadow>,
    announced: [Option<Announced>; WINDOW_MAX],
    window: bool,
    sent: Sent,
    /// Seconds in which no row was waited for, lately.
    room: f64,
    /// What the steered one had counted when it was last looked at, and what of that was new.
    seen: Counts,
    latest: Counts,
}

/// What an evaluation has found.
pub(super) struct Costs {
    /// Of the simple policies, for all nodes.
    pub(super) simple: Vec<f64>,
    /// Of the steered one.
    pub(super) steered: Option<f64>,
    /// Whether they are seconds; else rows.
    pub(super) seconds: bool,
}

impl Shadows {
    /// Of the menu and the buffer's own policy, which is the first.
    pub(super) fn new(watched: &Watched, menu: &[PolicyConfig], steered: bool) -> Result<Self> {
        let own = [&watched.policy].into_iter().filter(|own| !steered || menu.contains(own));
        let policies = own.chain(menu.iter().filter(|policy| **policy != watched.policy));
        let partitions = watched.hints.owners.partitions() as usize;
        Ok(Self {
            simple: policies.map(|policy| Shadow::new(policy, watched)).collect::<Result<_>>()?,
            steered: if steered { Some(Shadow::steered(&watched.policy, watched)?) } else { None },
            watched: watched.clone(),
            announced: [const { None }; WINDOW_MAX],
            window: matches!(watched.policy, PolicyConfig::Window(_)) && !steered,
            room: 0.0,
            seen: Counts::of(partitions),
            latest: Counts::of(partitions),
            sent: Sent { told: vec![OwnerShare::default(); partitions], lately: vec![(0.0, 0.0); partitions] },
        })
    }

    pub(super) fn observe(&mut self, observation: &Observation) {
        self.room += observation.elapsed.saturating_sub(observation.stall).as_secs_f64();
        let Some(counts) = self.steered.as_ref().map(|shadow| &shadow.counts) else { return };
        // Calls may come late, those of several minibatches together.
        if counts.wanted > self.seen.wanted {
            self.latest = counts.less(&self.seen);
            self.seen = counts.clone();
        }
    }

    /// The minibatch that was observed last as it would have been with the steered one: what it would have found, fetched and waited for.
    pub(super) fn as_steered(&self, observation: &Observation) -> Observation {
        let Some(prices) = self.sent.prices().filter(|_| self.latest.wanted > 0.0) else { return observation.clone() };
        let mut counts = self.latest.clone();
        counts.scale(observation.remote_nodes as f64 / counts.wanted);
        let room = observation.elapsed.saturating_sub(observation.stall);
        let stall = Duration::from_secs_f64(counts.seconds(&prices, room.as_secs_f64()).0);
        let absent = counts.late.iter().sum::<f64>().round() as u64;
        let rows = counts.fetched.iter().sum::<f64>().round() as u64;
        let owner = |(rows, seconds): (&f64, &f64)| OwnerShare {
            rows: rows.round() as u64,
            busy: Duration::from_secs_f64(rows * seconds),
        };
        let weighed = !observation.owners.is_empty();
        Observation {
            hits: observation.remote_nodes.saturating_sub(absent),
            halo_misses: absent * observation.halo_nodes / observation.remote_nodes.max(1),
            demand_rows: absent,
            prefetched_rows: rows.saturating_sub(absent),
            elapsed: room + stall,
            stall,
            owners: counts.fetched.iter().zip(&prices.by_owner).map(owner).filter(|_| weighed).collect(),
            ..observation.clone()
        }
    }

    fn all(&mut self) -> impl Iterator<Item = &mut Shadow> {
        self.simple.iter_mut().chain(&mut self.steered)
    }

    pub(super) fn watch(&mut self, event: &Event) {
        match event.call {
            Call::Lookup => self.all().for_each(|shadow| shadow.look_up(&event.nodes)),
            Call::End => {
                self.all().for_each(Shadow::end);
                self.sent.note(&event.owners);
            }
            Call::Announce(position) => self.announce(position, event.nodes.as_slice().into()),
            Call::Retire(position) => self.retire(position),
        }
    }

    fn announce(&mut self, position: WindowPosition, nodes: Arc<[NodeId]>) {
        // A call may have been left out.
        self.retire(position);
        if !std::mem::replace(&mut self.window, true) {
            let window = PolicyConfig::Window(Default::default());
            self.simple.extend(Shadow::new(&window, &self.watched));
        }
        let announced = (position, nodes);
        self.all().for_each(|shadow| shadow.announce(&announced));
        self.announced[usize::from(position.0)] = Some(announced);
    }

    /// Whether minibatches to come are known.
    pub(super) fn has_announcements(&self) -> bool {
        self.announced.iter().any(Option::is_some)
    }

    fn retire(&mut self, position: WindowPosition) {
        if let Some(announced) = self.announced[usize::from(position.0)].take() {
            self.all().for_each(|shadow| shadow.retire(&announced));
        }
    }

    /// What each has cost lately.
    pub(super) fn evaluate(&mut self) -> Costs {
        let prices = self.sent.prices();
        let cost = |shadow: &Shadow| shadow.cost(prices.as_ref(), self.room);
        let costs = Costs {
            simple: self.simple.iter().map(cost).collect(),
            steered: self.steered.as_ref().map(cost),
            seconds: prices.is_some(),
        };
        self.all().map(|shadow| &mut shadow.counts).for_each(|counts| counts.scale(KEPT));
        self.seen.scale(KEPT);
        self.sent.fade();
        self.room *= KEPT;
        costs
    }
}

/// Follows the cheapest, but not at once.
#[derive(Debug, Default)]
pub(super) struct Chooser {
    /// The one that is in use.
    pub(super) current: usize,
    challenger: Option<usize>,
}

/// What another must save to be followed.
const MARGIN: f64 = 0.03;

impl Chooser {
    /// The one to use from now on, where it is another: one that has saved enough in two evaluations, one after the other.
    pub(super) fn choose(&mut self, costs: &[f64]) -> Option<usize> {
        let best = (0..costs.len()).min_by(|&one, &other| costs[one].total_cmp(&costs[other]))?;
        if best == self.current || costs[best] >= (1.0 - MARGIN) * costs[self.current] {
            self.challenger = None;
            return None;
        }
        if self.challenger.replace(best) != Some(best) {
            return None;
        }
        self.challenger = None;
        Some(best)
    }
}

#[cfg(test)]
mod tests {
    //! Goal: a cost is what would be waited, and a minibatch is told as it would have been. Method: minibatches whose rows take a millisecond each,
    //! announced and not, and more or less computing; and rows and times of owners by hand.
    use super::*;

    /// Four nodes of one owner and eight of another.
    fn nodes() -> Vec<NodeId> {
        (1..=4).chain(101..=108).map(NodeId).collect()
    }

    /// Of a buffer of 16 slots with this policy, for the halo of these nodes; with others beside it.
    fn shadows(policy: &str, others: &[&str], steered: bool) -> Shadows {
        let policy = PolicyConfig::named(policy).unwrap();
        let others: Vec<_> = others.iter().map(|other| PolicyConfig::named(other).unwrap()).collect();
        let owners = PartitionBook::from_starts(vec![0, 100, 200]).unwrap();
        let hints = BufferHints { nodes: 200, halo: nodes(), degree: vec![1; 12], owners };
        let feed = PrefetchBuffer::new(16, &policy, hints.clone()).unwrap().watch(&policy, hints).unwrap();
        Shadows::new(feed.watched(), &others, steered).unwrap()
    }

    /// Milliseconds that a minibatch of these nodes costs each, beside so many of computing; a row of the second owner takes so many.
    fn costs_ms(mut shadows: Shadows, announced: bool, computing: u64, row: u64) -> Vec<f64> {
        let nodes = nodes();
        let sent = |rows, row| OwnerShare { rows, busy: Duration::from_millis(rows * row) };
        let position = WindowPosition(0);
        for call in [Call::Announce(position), Call::Lookup, Call::Retire(position), Call::End] {
            if announced || matches!(call, Call::Lookup | Call::End) {
                shadows.watch(&Event { call, nodes: nodes.clone(), owners: vec![sent(4, 1), sent(8, row)] });
            }
        }
        let stall = Duration::from_millis(30);
        let elapsed = stall + Duration::from_millis(computing);
        shadows.observe(&Observation { elapsed, stall, ..Observation::default() });
        shadows.evaluate().simple.iter().map(|cost| cost * 1e3).collect()
    }

    #[test]
    fn rows_of_owners_wait_for_each_other_and_a_slow_one_is_waited_for_alone() {
        let seconds = |sent: [(f64, f64); 3], rows: &[f64]| {
            let sent = Sent { told: Vec::new(), lately: sent.to_vec() };
            sent.prices().map(|prices| prices.seconds(rows))
        };
        // The link is full: the rows of one owner come after those of another.
        let full = [(10.0, 1.0), (10.0, 2.0), (0.0, 0.0)];
        assert_eq!(seconds(full, &[10.0, 10.0, 0.0]), Some(2.0));
        assert_eq!(seconds(full, &[20.0, 5.0, 0.0]), Some(2.5), "whose rows they are does not matter");
        assert_eq!(seconds(full, &[10.0, 10.0, 5.0]), Some(2.5), "nor of one that has sent none");
        let slow = [(10.0, 1.0), (10.0, 1.0), (10.0, 8.0)];
        assert_eq!(
            seconds(slow, &[40.0, 40.0, 5.0]),
            Some(4.0),
            "the slow one is in time: its rows count by themselves"
        );
        assert_eq!(seconds(slow, &[10.0, 10.0, 10.0]), Some(8.0));
        assert_eq!(seconds([(0.0, 0.0); 3], &[1.0; 3]), None);
        assert_eq!(seconds([(5.0, 1.0), (0.0, 0.0), (0.0, 0.0)], &[5.0, 0.0, 5.0]), Some(2.0), "of a single owner");
    }

    #[test]
    fn what_the_steered_one_takes_is_told_in_place_of_what_was_taken() {
        let (mut shadows, nodes) = (shadows("lfu", &[], true), nodes());
        let call = |shadows: &mut Shadows, call, nodes: &[NodeId]| {
            let sent = |rows| OwnerShare { rows, busy: Duration::from_millis(rows) };
            shadows.watch(&Event { call, nodes: nodes.to_vec(), owners: vec![sent(4), sent(8)] });
        };
        let sent = vec![OwnerShare { rows: 50, busy: Duration::from_millis(50) }; 2];
        let (stall, elapsed) = (Duration::from_millis(50), Duration::from_millis(60));
        let observed = |wanted| Observation {
            remote_nodes: wanted,
            halo_nodes: wanted,
            demand_rows: 100,
            stall,
            elapsed,
            owners: sent.clone(),
            ..Observation::default()
        };
        assert_eq!(shadows.as_steered(&observed(12)), observed(12), "nothing is known yet");
        call(&mut shadows, Call::Lookup, &nodes);
        call(&mut shadows, Call::End, &[]);
        shadows.observe(&observed(12));
        assert_eq!(shadows.as_steered(&observed(12)).demand_rows, 12);
        // It has kept all of these, and fetches but the two that are new.
        call(&mut shadows, Call::Lookup, &[&nodes[..], &[NodeId(9), NodeId(109)]].concat());
        shadows.observe(&observed(14));
        shadows.evaluate();
        // A later minibatch, of which no call has come yet, is as the latest.
        for wanted in [14, 28] {
            let told = shadows.as_steered(&observed(wanted));
            let rows = wanted / 7;
            assert_eq!((told.hits, told.halo_misses, told.demand_rows), (wanted - rows, rows, rows));
            assert_eq!(told.owners, [OwnerShare { rows: rows / 2, busy: Duration::from_millis(rows / 2) }; 2]);
            let expected = Duration::from_micros(rows * 8000 / 12);
            assert!(told.stall.abs_diff(expected) < Duration::from_micros(1), "{:?}", told.stall);
            assert_eq!(told.elapsed - told.stall, elapsed - stall);
            shadows.observe(&observed(wanted));
        }
        assert!(shadows.as_steered(&Observation { owners: Vec::new(), ..observed(14) }).owners.is_empty());
    }

    #[test]
    fn rows_fetched_ahead_are_waited_for_where_there_is_no_room_for_them() {
        let mut counts = Counts::of(2);
        counts.fetched = vec![0.0, 10.0];
        let sent = Sent { told: Vec::new(), lately: vec![(0.0, 0.0), (10.0, 1.0)] };
        let seconds = |room| counts.seconds(&sent.prices().unwrap(), room);
        assert_eq!([seconds(0.25), seconds(2.0)], [(0.75, 1.0), (0.0, 1.0)]);
    }

    #[test]
    fn rows_are_waited_for_that_come_late_or_find_no_room_beside_computing() {
        for (announced, computing, row, expected) in [
            (false, 100, 1, 8.0),
            (false, 0, 1, 8.0),
            (true, 100, 1, HIDDEN * 8.0),
            (true, 2, 1, 6.0 + HIDDEN * 2.0),
            (true, 0, 1, 8.0),
            // The second owner is slow: others wait for what it sends here, when nobody here does.
            (false, 100, 4, 32.0),
            (true, 100, 4, 32.0),
        ] {
            let found = costs_ms(shadows("window", &[], false), announced, computing, row);
            let case = format!("announced {announced}, computing {computing}, {row} ms a row");
            assert!((found[0] - expected).abs() < 1e-9, "{case}: {found:?}");
        }
    }

    #[test]
    fn all_begin_with_the_rows_that_the_buffer_begins_with() {
        for (own, other, expected) in [("lfu", "degree", 8.0), ("degree", "lfu", HIDDEN * 8.0)] {
            let found = costs_ms(shadows(own, &[other], false), false, 100, 1);
            assert_eq!(found.len(), 2);
            assert!(found.iter().all(|cost| (cost - expected).abs() < 1e-9), "{own} and {other}: {found:?}");
        }
    }
}
