//! What a classifier is shown: the job's figures and what the minibatches since the last decision were like, as the published controllers are told
//! them, in shares and ratios, so that they mean the same in jobs of other sizes.

use crate::controller::{JobFacts, Observation};

/// The names of the features, in their order.
pub const FEATURES: [&str; 17] = [
    // Since the last decision: hits, of hits and misses of halo nodes, and the change of it from the interval before.
    "hits",
    "hits_change",
    // The same since the job's start.
    "hits_so_far",
    // Rows fetched for each one wanted, and the relative change of their number.
    "fetched",
    "fetched_change",
    // Remote nodes wanted a minibatch, over the slots, and the relative change of their number.
    "wanted",
    "wanted_change",
    // Of the wanted nodes, those of the halo.
    "halo",
    // Of the slots, those that the last replacement gave to other nodes; how many minibatches ago, as a logarithm; whether it found no candidates;
    // and what hits had changed by after it.
    "replaced",
    "replaced_ago",
    "replaced_none",
    "replaced_effect",
    // Rows fetched ahead that left unused since the last decision, over the slots.
    "useless",
    // The share of the job's minibatches that are over, 0 where their number is unknown; and their number, as a logarithm.
    "progress",
    "minibatches",
    // The slots over the halo, and the halo over the graph.
    "slots",
    "halo_of_graph",
];

/// The place of `fetched_change`.
pub(super) const FETCHED_CHANGE: usize = 4;

/// The features of one decision.
pub type Values = [f64; FEATURES.len()];

/// Sums over minibatches.
#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    minibatches: u64,
    remote_nodes: u64,
    halo_nodes: u64,
    hits: u64,
    halo_misses: u64,
    fetched: u64,
    useless: u64,
}

impl Sums {
    fn add(&mut self, observation: &Observation) {
        self.minibatches += 1;
        self.remote_nodes += observation.remote_nodes;
        self.halo_nodes += observation.halo_nodes;
        self.hits += observation.hits;
        self.halo_misses += observation.halo_misses;
        self.fetched += observation.demand_rows + observation.prefetched_rows;
        self.useless += observation.useless_rows;
    }

    fn hit_rate(&self) -> f64 {
        share(self.hits, self.hits + self.halo_misses)
    }

    fn mean(&self, sum: u64) -> f64 {
        share(sum, self.minibatches)
    }
}

/// A ratio, 0 of nothing.
fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

/// A relative change, 0 where there was nothing, and bounded, so that no outlier rules what is learnt.
fn change(before: f64, now: f64) -> f64 {
    if before == 0.0 { 0.0 } else { (now / before - 1.0).clamp(-1.0, 4.0) }
}

/// The last replacement that was carried out.
#[derive(Clone, Copy, Debug, Default)]
struct Replacement {
    minibatch: u64,
    rows: u64,
    found_none: bool,
    /// What hits had changed by in the interval after it.
    effect: f64,
    /// That interval is not over yet.
    shows: bool,
}

/// Follows a job's minibatches, and says what they were like.
#[derive(Clone, Debug, Default)]
pub struct Features {
    facts: JobFacts,
    so_far: Sums,
    window: Sums,
    before: Sums,
    replacement: Replacement,
}

impl Features {
    /// Of a job.
    pub fn new(facts: &JobFacts) -> Self {
        Self { facts: facts.clone(), ..Self::default() }
    }

    /// Takes note of a minibatch.
    pub fn observe(&mut self, observation: &Observation) {
        if observation.minibatches > 0 {
            self.facts.minibatches = observation.minibatches;
        }
        if observation.replaced_rows > 0 || observation.replace_skipped {
            self.replacement = Replacement {
                minibatch: observation.minibatch,
                rows: observation.replaced_rows,
                found_none: observation.replace_skipped,
                effect: 0.0,
                shows: true,
            };
        }
        self.so_far.add(observation);
        self.window.add(observation);
    }

    /// Minibatches since the last decision.
    pub fn minibatches(&self) -> u64 {
        self.window.minibatches
    }

    /// What there is to decide on; a new interval begins.
    pub fn take(&mut self) -> Values {
        let Self { facts, so_far, window, before, replacement } = self;
        let known = before.minibatches > 0;
        let hits_change = if known { window.hit_rate() - before.hit_rate() } else { 0.0 };
        if std::mem::take(&mut replacement.shows) {
            replacement.effect = hits_change;
        }
        let ago = if replacement.minibatch == 0 { 0 } else { so_far.minibatches + 1 - replacement.minibatch };
        let values = [
            window.hit_rate(),
            hits_change,
            so_far.hit_rate(),
            share(window.fetched, window.remote_nodes),
            change(before.mean(before.fetched), window.mean(window.fetched)),
            window.mean(window.remote_nodes) / facts.slots.max(1) as f64,
            change(before.mean(before.remote_nodes), window.mean(window.remote_nodes)),
            share(window.halo_nodes, window.remote_nodes),
            share(replacement.rows, facts.slots),
            (ago as f64).ln_1p(),
            f64::from(u8::from(replacement.found_none)),
            replacement.effect,
            share(window.useless, facts.slots),
            share(so_far.minibatches, facts.minibatches).min(1.0),
            (so_far.minibatches as f64).ln_1p(),
            share(facts.slots, facts.halo_nodes),
            share(facts.halo_nodes, facts.nodes),
        ];
        *before = std::mem::take(window);
        values
    }

    /// A decision has taken effect: what was seen since it was made is not to be taken for its effect.
    pub fn restart(&mut self) {
        self.window = Sums::default();
    }
}

#[cfg(test)]
mod tests {
    //! Goal: features are what they are called. Method: minibatches made for it.
    use super::*;

    fn value(values: &Values, name: &str) -> f64 {
        values[FEATURES.iter().position(|feature| *feature == name).unwrap()]
    }

    fn minibatch(minibatch: u64, hits: u64) -> Observation {
        Observation {
            minibatch,
            remote_nodes: 100,
            halo_nodes: 80,
            hits,
            halo_misses: 80 - hits,
            demand_rows: 100 - hits,
            ..Observation::default()
        }
    }

    #[test]
    fn they_tell_of_the_interval_the_last_one_and_the_replacement_between() {
        let facts = JobFacts { nodes: 1000, halo_nodes: 200, slots: 50, minibatches: 8, ..JobFacts::default() };
        let mut features = Features::new(&facts);
        (1..=2).for_each(|at| features.observe(&minibatch(at, 20)));
        assert_eq!(features.minibatches(), 2);
        let first = features.take();
        let rounded = |values: &Values, name| (value(values, name) * 1e6).round() / 1e6;
        for (name, expected) in [
            ("hits", 0.25),
            ("hits_change", 0.0),
            ("fetched", 0.8),
            ("wanted", 2.0),
            ("halo", 0.8),
            ("replaced_ago", 0.0),
            ("progress", 0.25),
            ("slots", 0.25),
            ("halo_of_graph", 0.2),
        ] {
            assert_eq!(rounded(&first, name), expected, "{name}");
        }
        assert_eq!(FEATURES[FETCHED_CHANGE], "fetched_change");
        features.observe(&Observation { replaced_rows: 10, prefetched_rows: 10, useless_rows: 5, ..minibatch(3, 40) });
        features.observe(&minibatch(4, 40));
        let second = features.take();
        for (name, expected) in [
            ("hits", 0.5),
            ("hits_change", 0.25),
            ("hits_so_far", 0.375),
            ("fetched", 0.65),
            ("fetched_change", -0.1875),
            ("wanted_change", 0.0),
            ("replaced", 0.2),
            ("replaced_effect", 0.25),
            ("replaced_none", 0.0),
            ("useless", 0.1),
            ("progress", 0.5),
        ] {
            assert_eq!(rounded(&second, name), expected, "{name}");
        }
        assert_eq!(value(&second, "replaced_ago"), 2f64.ln_1p());
        features.observe(&Observation { replace_skipped: true, ..minibatch(5, 40) });
        assert_eq!(value(&features.take(), "replaced_none"), 1.0);
    }

    #[test]
    fn of_a_job_that_nothing_is_known_of_they_are_finite() {
        let mut features = Features::default();
        features.observe(&Observation::default());
        assert!(features.take().iter().chain(&features.take()).all(|value| value.is_finite()));
    }
}
