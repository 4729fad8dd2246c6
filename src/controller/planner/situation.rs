//! What there is to decide on: the job, what its minibatches were like since the last decision, and what the simple policies would have cost.

use super::menu::PLANS;
use crate::controller::{JobFacts, Observation, OwnerShare};
use std::fmt::Write;
use std::time::Duration;

/// Plans whose policies are tried beside the training: those without announcements, and `window`.
pub(super) const TRIED: usize = 6;

/// One situation.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Situation {
    /// What does not change.
    pub facts: JobFacts,
    /// Minibatches so far.
    pub minibatch: u64,
    /// Of these, those since the job's start or its last change.
    pub since: u64,
    /// Minibatches until the next change, if one is announced.
    pub coming: Option<u64>,
    /// Minibatches that are announced.
    pub announced: usize,
    /// The plan that stands, by its place in [`PLANS`].
    pub plan: usize,
    /// Remote nodes wanted a minibatch.
    pub wanted: f64,
    /// The share of them that were in the buffer.
    pub hits: f64,
    /// The same between the two decisions before.
    pub hits_before: Option<f64>,
    /// Microseconds that a row is on its way.
    pub row_us: f64,
    /// The share of the time in which the slowest owner's rows were on their way.
    pub busy: f64,
    /// How long was waited, over the time in which the slowest owner's rows were on their way.
    pub stalled: f64,
    /// What the slowest owner takes for a row, over all owners' mean.
    pub slowest: f64,
    /// What it takes in all, over all owners' mean.
    pub load: f64,
    /// By plan that is tried, how long would have been waited lately over the least; none before it was tried.
    pub costs: [Option<f64>; TRIED],
}

/// The names of a situation's numbers, in their order, for what is no language model: logarithms, shares and ratios.
pub const VALUES: [&str; OTHERS + TRIED] = [
    "nodes",
    "degree",
    "partitions",
    "halo_of_graph",
    "slots",
    "minibatch",
    "progress",
    "since",
    "coming",
    "announced",
    "wanted",
    "hits",
    "hits_change",
    "row_us",
    "busy",
    "stalled",
    "slowest",
    "load",
    "cost_lfu",
    "cost_lfubrief",
    "cost_lfulong",
    "cost_tiny",
    "cost_degree",
    "cost_window",
];
/// Those that are no costs.
const OTHERS: usize = 18;

impl Situation {
    /// Whether a plan can be chosen.
    pub fn allows(&self, plan: usize) -> bool {
        !PLANS[plan].announced || self.announced > 0
    }

    /// The part of its text that stays.
    pub fn job(&self) -> String {
        let JobFacts { nodes, edges, partitions, halo_nodes, slots, batch, minibatches, .. } = self.facts;
        let mut text = String::new();
        for (name, value) in [
            ("nodes", nodes),
            ("edges", edges),
            ("partitions", u64::from(partitions)),
            ("halo", halo_nodes),
            ("slots", slots),
            ("seeds", batch),
            ("minibatches", minibatches),
        ] {
            // Writing to a text cannot fail.
            let _ = write!(text, " {name} {}", rounded(value as f64));
        }
        let _ = write!(text, " share {}", step(slots as f64 / halo_nodes.max(1) as f64, &SHARES));
        text
    }

    /// The part that changes: words and rounded numbers, so that situations which are alike read alike. Shares and ratios are per cent.
    pub fn text(&self) -> String {
        let mut text = String::new();
        let mut say = |name: &str, value: u64| {
            let _ = write!(text, " {name} {value}");
        };
        say("minibatch", rounded(self.minibatch as f64));
        say("since", rounded(self.since as f64));
        if let Some(coming) = self.coming {
            say("coming", rounded(coming as f64));
        }
        say("announced", self.announced as u64);
        say("wanted", rounded(self.wanted / self.facts.slots.max(1) as f64 * 100.0));
        say("hits", step(self.hits, &SHARES));
        if let Some(before) = self.hits_before {
            say("before", step(before, &SHARES));
        }
        say("row", rounded(self.row_us));
        say("busy", step(self.busy, &SHARES));
        say("stalled", step(self.stalled, &SHARES));
        say("slowest", step(self.slowest, &RATIOS));
        say("load", step(self.load, &RATIOS));
        for (plan, cost) in PLANS.iter().zip(self.costs) {
            if let Some(cost) = cost {
                say(plan.name, step(cost, &RATIOS));
            }
        }
        let _ = write!(text, " now {}", PLANS[self.plan].name);
        text
    }

    /// As numbers, finite and of moderate size.
    pub fn values(&self) -> [f64; VALUES.len()] {
        let facts = &self.facts;
        let over = |part: u64, whole: u64| part as f64 / whole.max(1) as f64;
        let mut values = [0.0; VALUES.len()];
        let (first, costs) = values.split_at_mut(OTHERS);
        first.copy_from_slice(&[
            (facts.nodes as f64).ln_1p(),
            over(facts.edges, facts.nodes),
            f64::from(facts.partitions),
            over(facts.halo_nodes, facts.nodes),
            over(facts.slots, facts.halo_nodes),
            (self.minibatch as f64).ln_1p(),
            over(self.minibatch, facts.minibatches).min(1.0),
            (self.since as f64).ln_1p(),
            self.coming.map_or(0.0, |coming| 1.0 / (coming as f64 + 1.0)),
            (self.announced as f64).ln_1p(),
            self.wanted / facts.slots.max(1) as f64,
            self.hits,
            self.hits - self.hits_before.unwrap_or(self.hits),
            self.row_us.ln_1p(),
            self.busy,
            self.stalled,
            self.slowest,
            self.load,
        ]);
        for (value, cost) in costs.iter_mut().zip(self.costs) {
            *value = cost.unwrap_or(0.0);
        }
        values
    }
}

/// Per cent at which shares are told.
const SHARES: [u64; 17] = [0, 2, 5, 10, 15, 20, 25, 30, 35, 40, 50, 60, 70, 80, 90, 95, 100];
/// Per cent at which ratios are told.
const RATIOS: [u64; 19] = [0, 20, 50, 80, 100, 101, 102, 103, 105, 107, 110, 115, 120, 130, 150, 200, 300, 500, 1000];

/// The highest step that a share or ratio reaches.
fn step(value: f64, steps: &[u64]) -> u64 {
    let percent = (value * 100.0).round();
    steps.iter().copied().take_while(|&step| step as f64 <= percent).last().unwrap_or(steps[0])
}

/// The nearest below of 1, 2 and 5 times a power of ten.
fn rounded(value: f64) -> u64 {
    let mut power = 1.0;
    while power * 10.0 <= value && power < 1e15 {
        power *= 10.0;
    }
    let digit = [5.0, 2.0, 1.0].into_iter().find(|digit| digit * power <= value);
    digit.map_or(0, |digit| (digit * power) as u64)
}

/// All words of texts, for who makes a vocabulary of them: names, and numbers.
pub fn words() -> (Vec<&'static str>, Vec<u64>) {
    let job = ["nodes", "edges", "partitions", "halo", "slots", "seeds", "minibatches", "share"];
    let changing = [
        "minibatch",
        "since",
        "coming",
        "announced",
        "wanted",
        "hits",
        "before",
        "row",
        "busy",
        "stalled",
        "slowest",
        "load",
        "now",
    ];
    let names = job.into_iter().chain(changing).chain(PLANS.iter().map(|plan| plan.name)).collect();
    let powers = (0..12).flat_map(|power| [1, 2, 5].map(|digit| digit * 10u64.pow(power)));
    let numbers = powers.chain(SHARES).chain(RATIOS).chain(0..64);
    let mut numbers: Vec<u64> = numbers.collect();
    numbers.sort_unstable();
    numbers.dedup();
    (names, numbers)
}

/// Follows a job's minibatches from one decision to the next.
#[derive(Clone, Debug, Default)]
pub(super) struct Since {
    minibatches: u64,
    wanted: u64,
    hits: u64,
    elapsed: Duration,
    stall: Duration,
    owners: Vec<OwnerShare>,
}

impl Since {
    pub(super) fn add(&mut self, observation: &Observation) {
        self.minibatches += 1;
        self.wanted += observation.remote_nodes;
        self.hits += observation.hits;
        self.elapsed += observation.elapsed;
        self.stall += observation.stall;
        self.owners.resize(self.owners.len().max(observation.owners.len()), OwnerShare::default());
        for (sum, owner) in self.owners.iter_mut().zip(&observation.owners) {
            sum.rows += owner.rows;
            sum.busy += owner.busy;
        }
    }

    pub(super) fn hits(&self) -> f64 {
        self.hits as f64 / self.wanted.max(1) as f64
    }

    /// What of a situation follows from it.
    pub(super) fn describe(&self, situation: &mut Situation) {
        situation.wanted = self.wanted as f64 / self.minibatches.max(1) as f64;
        situation.hits = self.hits();
        let sent: Vec<&OwnerShare> = self.owners.iter().filter(|owner| owner.rows > 0).collect();
        let busy: f64 = sent.iter().map(|owner| owner.busy.as_secs_f64()).sum();
        let rows: u64 = sent.iter().map(|owner| owner.rows).sum();
        let of_row = |owner: &&&OwnerShare| owner.busy.as_secs_f64() / owner.rows as f64;
        let Some(slowest) = sent.iter().max_by(|one, other| of_row(one).total_cmp(&of_row(other))) else { return };
        if busy == 0.0 {
            return;
        }
        situation.row_us = busy / rows as f64 * 1e6;
        situation.slowest = of_row(&slowest) / (busy / rows as f64);
        situation.load = slowest.busy.as_secs_f64() / (busy / sent.len() as f64);
        let longest = sent.iter().map(|owner| owner.busy).max().unwrap_or_default();
        situation.busy = (longest.as_secs_f64() / self.elapsed.as_secs_f64().max(f64::MIN_POSITIVE)).min(1.0);
        situation.stalled = (self.stall.as_secs_f64() / longest.as_secs_f64()).min(1.0);
    }
}

#[cfg(test)]
mod tests {
    //! Goal: whatever a job is like, it is told in words of the vocabulary and in finite numbers. Method: situations drawn wide.
    use super::*;
    use proptest::prelude::*;

    fn said(text: &str) -> bool {
        let (names, numbers) = words();
        text.starts_with(' ')
            && text.split_whitespace().all(|word| {
                names.contains(&word) || word.parse().is_ok_and(|number: u64| numbers.binary_search(&number).is_ok())
            })
    }

    proptest! {
        #[test]
        fn all_that_is_said_is_in_the_vocabulary(
            (nodes, edges, partitions) in (any::<u32>(), 0..1u64 << 36, any::<u32>()),
            (slots, minibatch, announced) in (any::<u32>(), 0..1u64 << 32, 0..WINDOW),
            (wanted, ratio, cost) in (0.0..1e8f64, 0.0..1e6f64, proptest::option::of(1.0..1e9f64)),
            (hits, plan) in (0.0..=1.0f64, 0..PLANS.len()),
        ) {
            let facts = JobFacts { nodes: nodes.into(), edges, partitions, slots: slots.into(), ..JobFacts::default() };
            let situation = Situation {
                facts,
                minibatch,
                since: minibatch / 2,
                coming: cost.map(|_| minibatch),
                announced,
                plan,
                wanted,
                hits,
                hits_before: cost.map(|_| hits),
                row_us: ratio,
                busy: hits,
                stalled: hits,
                slowest: ratio,
                load: ratio,
                costs: [cost; TRIED],
            };
            for text in [situation.job(), situation.text()] {
                prop_assert!(said(&text), "{text}");
            }
            prop_assert!(situation.values().iter().all(|value| value.is_finite()));
        }
    }

    const WINDOW: usize = crate::buffer::WINDOW_MAX;

    #[test]
    fn numbers_are_rounded_down_to_few() {
        assert_eq!([0.0, 0.9, 1.0, 4.9, 5.0, 1999.0, 2000.0].map(rounded), [0, 0, 1, 2, 5, 1000, 2000]);
        assert_eq!([0.0, 0.019, 0.333, 1.0].map(|share| step(share, &SHARES)), [0, 2, 30, 100]);
        assert_eq!([0.5, 1.0, 1.014, 99.0].map(|ratio| step(ratio, &RATIOS)), [50, 100, 101, 1000]);
    }
}
