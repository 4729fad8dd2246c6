//! Policies tried on a sample of what the buffer is asked for: each has a buffer of its own, as large a share of the real one as the sample is of
//! the nodes, and rows that come at once. What it would have fetched, weighed by what rows of each owner take, is its cost.

use super::{Decision, OwnerShare};
use crate::buffer::{
    BufferHints, Call, Event, Feed, Pin, PolicyConfig, PrefetchBuffer, Reserve, Residency, WINDOW_MAX, Watched,
    WindowPosition,
};
use crate::error::Result;
use crate::id::{NodeId, Slot};
use crate::partition::PartitionBook;
use std::collections::VecDeque;
use std::sync::Arc;

/// What is left of a cost, and of what owners have sent, after each evaluation.
const KEPT: f64 = 0.5;

/// The simple policies that are tried, those of one file with several settings; `window` beside them once anything is announced.
pub(super) fn menu() -> Result<Vec<PolicyConfig>> {
    ["lfu", "lfu:64", "lfu:4096", "lru", "sieve", "s3fifo", "wtinylfu", "degree"]
        .map(PolicyConfig::named)
        .into_iter()
        .collect()
}

/// Nodes of an announced minibatch, and where the buffers have it.
type Announced = (WindowPosition, Arc<[NodeId]>);

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
    /// Rows that it would have fetched, by partition; older ones count for less.
    rows: Vec<f64>,
    /// Nodes that the last minibatch wanted, and those of them that were not there.
    pub(super) last: (u64, u64),
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
    /// Of a policy that stays what it is.
    pub(super) fn new(policy: &PolicyConfig, watched: &Watched) -> Result<Self> {
        let (slots, hints) = sampled(watched);
        Ok(Self::of(policy, PrefetchBuffer::new(slots, policy, hints)?, None, watched))
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
        let mut shadow = Self {
            policy: policy.clone(),
            buffer,
            feed,
            rows: vec![0.0; owners.partitions() as usize],
            owners,
            share: watched.sample.share(),
            positions: [None; WINDOW_MAX],
            planning: VecDeque::new(),
            last: (0, 0),
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

    /// What its rows cost.
    pub(super) fn cost(&self, prices: &[f64]) -> f64 {
        self.rows.iter().zip(prices).map(|(rows, price)| rows * price).sum()
    }

    fn fade(&mut self) {
        self.rows.iter_mut().for_each(|rows| *rows *= KEPT);
    }

    fn count(&mut self, node: NodeId) {
        if let Some((owner, _)) = self.owners.locate(node) {
            self.rows[owner.index()] += 1.0;
        }
    }

    /// Fetches what a boundary has decided to, at once.
    fn fetch(&mut self) {
        for (node, slot) in std::mem::take(&mut self.fetches) {
            self.count(node);
            self.buffer.filled(slot);
        }
    }

    fn look_up(&mut self, nodes: &[NodeId]) {
        self.pin += 1;
        self.buffer.lookup(Pin(self.pin), nodes, true, &mut self.found);
        let found = std::mem::take(&mut self.found);
        let absent = nodes.iter().zip(&found).filter(|(_, found)| **found == Residency::Absent);
        self.last = (nodes.len() as u64, absent.clone().count() as u64);
        absent.for_each(|(&node, _)| self.count(node));
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
                        self.count(nodes[at]);
                        self.buffer.filled(slot);
                    }
                }
            }
        }
    }
}

/// What rows of each owner take.
struct Prices {
    /// By partition: what it has sent since the start as it was last told, and lately.
    told: Vec<OwnerShare>,
    lately: Vec<(f64, f64)>,
}

impl Prices {
    fn note(&mut self, owners: &[OwnerShare]) {
        for ((told, lately), owner) in self.told.iter_mut().zip(&mut self.lately).zip(owners) {
            let before = std::mem::replace(told, *owner);
            lately.0 += owner.rows.saturating_sub(before.rows) as f64;
            lately.1 += owner.busy.saturating_sub(before.busy).as_secs_f64();
        }
    }

    /// Seconds a row by partition, and whether they are that: where no row has taken any time, all count alike. One of which no row came is as the
    /// others on average.
    fn of(&self) -> (Vec<f64>, bool) {
        let (rows, busy) = self.lately.iter().fold((0.0, 0.0), |sum, owner| (sum.0 + owner.0, sum.1 + owner.1));
        if rows == 0.0 || busy == 0.0 {
            return (vec![1.0; self.lately.len()], false);
        }
        let price = |&(own, took): &(f64, f64)| if own > 0.0 { took / own } else { busy / rows };
        (self.lately.iter().map(price).collect(), true)
    }

    fn fade(&mut self) {
        self.lately.iter_mut().for_each(|owner| *owner = (owner.0 * KEPT, owner.1 * KEPT));
    }
}

/// The simple policies on the sample, and one that is steered, if there is one.
pub(super) struct Shadows {
    watched: Watched,
    pub(super) simple: Vec<Shadow>,
    pub(super) steered: Option<Shadow>,
    announced: [Option<Announced>; WINDOW_MAX],
    window: bool,
    prices: Prices,
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
            prices: Prices { told: vec![OwnerShare::default(); partitions], lately: vec![(0.0, 0.0); partitions] },
        })
    }

    fn all(&mut self) -> impl Iterator<Item = &mut Shadow> {
        self.simple.iter_mut().chain(&mut self.steered)
    }

    pub(super) fn watch(&mut self, event: &Event) {
        match event.call {
            Call::Lookup => self.all().for_each(|shadow| shadow.look_up(&event.nodes)),
            Call::End => {
                self.all().for_each(Shadow::end);
                self.prices.note(&event.owners);
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

    fn retire(&mut self, position: WindowPosition) {
        if let Some(announced) = self.announced[usize::from(position.0)].take() {
            self.all().for_each(|shadow| shadow.retire(&announced));
        }
    }

    /// What each has cost lately.
    pub(super) fn evaluate(&mut self) -> Costs {
        let (prices, seconds) = self.prices.of();
        let share = self.watched.sample.share();
        let cost = |shadow: &Shadow| shadow.cost(&prices) / share;
        let costs =
            Costs { simple: self.simple.iter().map(cost).collect(), steered: self.steered.as_ref().map(cost), seconds };
        self.all().for_each(Shadow::fade);
        self.prices.fade();
        costs
    }

    /// The share of the nodes that are tried.
    pub(super) fn share(&self) -> f64 {
        self.watched.sample.share()
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
