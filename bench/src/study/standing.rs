//! What follows from the replays: who is best where, what one choice for everything costs, and how much a better choice could gain.
//!
//! Stalls are compared as ratios to those of the configuration's best contender on the same job. A configuration's best is the one with the
//! least mean stall over its jobs; ratios are averaged as logarithms over configurations, and the interval is that of the seeds' averages.
//! One that knows what is to come stands beside the others: it is nobody's best, and no choice that could be made.

use super::replayed::Run;
use crate::statistics::median;
use serde::{Deserialize, Serialize};
use statrs::distribution::{ContinuousCDF, StudentsT};
use std::collections::BTreeMap;

/// A configuration whose best contender waits for less than this share of its time has nothing to decide.
const IDLE: f64 = 0.01;

/// What a choice for each configuration gains over one for all, below which nobody need look for it.
const HEADROOM: f64 = 0.05;

/// All that is said of the contenders.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Standings {
    /// Each lookahead by itself: what is announced is the job's affair, and no policy can choose it.
    pub lookaheads: Vec<Lookahead>,
}

/// The standings with so many minibatches announced ahead.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Lookahead {
    /// So many.
    pub lookahead: usize,
    /// The configurations that leave something to decide.
    pub configurations: Vec<Configuration>,
    /// Configurations in which rows are hardly waited for, whatever is chosen.
    pub idle: usize,
    /// By contender, the one that is best for all first; none where nothing is to be decided.
    pub contenders: Vec<Standing>,
}

/// One configuration.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Configuration {
    /// The graph, or the recorded job.
    pub graph: String,
    /// What changes in it.
    pub scenario: String,
    /// The buffer.
    pub buffer: String,
    /// The slow rank, where there is one.
    pub slow: Option<String>,
    /// The contender with the least stall.
    pub best: String,
    /// Its mean stall, in seconds.
    pub stall_s: f64,
    /// By contender, in the order of the document: stall over the best one's.
    pub ratios: Vec<f64>,
    /// Contenders whose stall the jobs cannot tell from the best one's, at 95 %.
    pub as_good: Vec<String>,
}

/// A mean and its 95 % interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// The mean.
    pub mean: f64,
    /// The interval's lower end; the mean itself of a single value.
    pub low: f64,
    /// Its upper end.
    pub high: f64,
}

/// A contender's standing, chosen for everything.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Standing {
    /// Its name.
    pub contender: String,
    /// Stall over that of each configuration's best.
    pub stall: Estimate,
    /// The same where it does worst.
    pub worst: f64,
    /// Where that is.
    pub worst_at: String,
    /// Configurations in which it is best.
    pub wins: usize,
    /// Stall of the first 32 minibatches over the least of any contender in them.
    pub start: f64,
    /// The same of the 32 minibatches after a change; none where nothing changes.
    pub change: Option<f64>,
    /// Rows fetched over the fewest possible.
    pub x_belady: f64,
    /// Decisions that took effect, of all ranks and jobs.
    pub decisions: u64,
    /// Of one that is steered: the share of what choosing for each configuration would save over the best fixed choice, of the contenders that are
    /// not steered, that it saves; below 0 where it is worse than that choice. None where there is next to nothing to save.
    pub closes: Option<f64>,
    /// Processor microseconds of its controller, a minibatch and rank; measured.
    pub minibatch_us: f64,
    /// Processor milliseconds of the decision of a job that takes longest, the median of the jobs; measured. None without a controller.
    #[serde(default)]
    pub longest_decision_ms: Option<f64>,
}

impl Estimate {
    /// Of values whose logarithms are given, at most as many as there are degrees of freedom and one.
    fn of_logarithms(logarithms: &[f64]) -> Self {
        let mean = mean(logarithms.iter().copied());
        let spread = half_width(logarithms);
        Self { mean: mean.exp(), low: (mean - spread).exp(), high: (mean + spread).exp() }
    }
}

/// Half of the 95 % interval of a mean; 0 of a single value, which tells nothing of its spread.
fn half_width(values: &[f64]) -> f64 {
    let count = values.len() as f64;
    let Ok(distribution) = StudentsT::new(0.0, 1.0, count - 1.0) else { return 0.0 };
    let mean = mean(values.iter().copied());
    let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (count - 1.0);
    distribution.inverse_cdf(0.975) * (variance / count).sqrt()
}

fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (sum, count) = values.fold((0.0, 0u32), |(sum, count), value| (sum + value, count + 1));
    if count == 0 { 0.0 } else { sum / f64::from(count) }
}

/// A configuration's graph, what changes in it, its buffer and its slow rank.
type Key<'a> = (&'a str, &'a str, &'a str, Option<&'a str>);

/// The replays of one configuration.
struct Cell<'a> {
    key: Key<'a>,
    /// By contender, by job.
    runs: Vec<Vec<&'a Run>>,
    /// Contenders that can be chosen.
    choices: &'a [usize],
    /// The one of them with the least mean stall.
    best: usize,
}

impl<'a> Cell<'a> {
    fn new(key: Key<'a>, runs: Vec<Vec<&'a Run>>, choices: &'a [usize]) -> Self {
        let mut cell = Self { key, runs, choices, best: 0 };
        cell.best = cell.least(&cell.means(|run| run.stall_s));
        cell
    }

    /// The contender with the least of some figure, of those that can be chosen.
    fn least(&self, figures: &[f64]) -> usize {
        let least = self.choices.iter().copied().min_by(|&one, &other| figures[one].total_cmp(&figures[other]));
        least.unwrap_or(0)
    }

    /// By contender, the mean of a figure over the jobs.
    fn means(&self, figure: impl Fn(&Run) -> f64) -> Vec<f64> {
        self.runs.iter().map(|runs| mean(runs.iter().map(|run| figure(run)))).collect()
    }

    fn is_idle(&self) -> bool {
        self.means(|run| run.stall_s)[self.best] < IDLE * self.means(|run| run.time_s)[self.best]
    }

    /// By job, the logarithm of a contender's stall over the best one's.
    fn logarithms(&self, contender: usize) -> Vec<f64> {
        let pairs = self.runs[contender].iter().zip(&self.runs[self.best]);
        pairs.map(|(run, best)| ratio(run.stall_s, best.stall_s).ln()).collect()
    }

    fn name(&self) -> String {
        let (graph, scenario, buffer, slow) = self.key;
        let slow = slow.map(|slow| format!(", slow rank {slow}")).unwrap_or_default();
        format!("{graph}, {scenario}, buffer {buffer}{slow}")
    }

    fn configuration(&self, contenders: &[String]) -> Configuration {
        let best = self.best;
        let stalls = self.means(|run| run.stall_s);
        let others = self.choices.iter().copied().filter(|&contender| contender != best);
        let as_good = others.filter(|&contender| {
            let logarithms = self.logarithms(contender);
            logarithms.len() > 1 && mean(logarithms.iter().copied()) - half_width(&logarithms) <= 0.0
        });
        let (graph, scenario, buffer, slow) = self.key;
        Configuration {
            graph: graph.to_owned(),
            scenario: scenario.to_owned(),
            buffer: buffer.to_owned(),
            slow: slow.map(str::to_owned),
            best: contenders[best].clone(),
            stall_s: stalls[best],
            ratios: stalls.iter().map(|&stall| ratio(stall, stalls[best])).collect(),
            as_good: as_good.map(|contender| contenders[contender].clone()).collect(),
        }
    }
}

/// A ratio of stalls; both are more than nothing where they are asked for, but for a job in a thousand.
fn ratio(stall: f64, best: f64) -> f64 {
    const NONE: f64 = 1e-9;
    stall.max(NONE) / best.max(NONE)
}

impl Standings {
    /// Of these replays; every contender has replayed every job.
    pub fn of(runs: &[Run], contenders: &[String]) -> Self {
        let mut cells: BTreeMap<usize, BTreeMap<_, Vec<Vec<&Run>>>> = BTreeMap::new();
        for run in runs {
            let Some(contender) = contenders.iter().position(|name| *name == run.contender) else { continue };
            let key = (run.graph.as_str(), run.scenario.as_str(), run.buffer.as_str(), run.slow.as_deref());
            let cell = cells
                .entry(run.lookahead)
                .or_default()
                .entry(key)
                .or_insert_with(|| vec![Vec::new(); contenders.len()]);
            cell[contender].push(run);
        }
        let choices: Vec<usize> = (0..contenders.len()).filter(|&at| !foresees(&contenders[at])).collect();
        let of = |(lookahead, cells): (usize, BTreeMap<_, _>)| {
            let cells: Vec<Cell> = cells.into_iter().map(|(key, runs)| Cell::new(key, runs, &choices)).collect();
            Lookahead::of(lookahead, &cells, contenders)
        };
        Self { lookaheads: cells.into_iter().map(of).collect() }
    }
}

impl Lookahead {
    fn of(lookahead: usize, cells: &[Cell], contenders: &[String]) -> Self {
        let busy: Vec<&Cell> = cells.iter().filter(|cell| !cell.is_idle()).collect();
        let standing = |contender: usize| Standing::of(contender, &contenders[contender], &busy);
        let competing = if busy.is_empty() { 0 } else { contenders.len() };
        let mut standings: Vec<Standing> = (0..competing).map(standing).collect();
        let fixed: Vec<usize> = (0..competing).filter(|&contender| !is_steered(&contenders[contender])).collect();
        let gap = Gap::of(&fixed, &busy);
        for (contender, standing) in standings.iter_mut().enumerate().filter(|(at, _)| is_steered(&contenders[*at])) {
            standing.closes = gap.as_ref().and_then(|gap| gap.closed_by(contender, &busy));
        }
        standings.sort_by(|one, other| one.stall.mean.total_cmp(&other.stall.mean));
        Self {
            lookahead,
            configurations: busy.iter().map(|cell| cell.configuration(contenders)).collect(),
            idle: cells.len() - busy.len(),
            contenders: standings,
        }
    }

    /// The share of its stall that the best single contender would save, were the best one chosen for each configuration.
    pub fn headroom(&self) -> Option<f64> {
        Some(1.0 - 1.0 / self.single()?.stall.mean)
    }

    /// The best single one of those that can be chosen.
    fn single(&self) -> Option<&Standing> {
        self.choices().next()
    }

    fn choices(&self) -> impl Iterator<Item = &Standing> {
        self.contenders.iter().filter(|standing| !foresees(&standing.contender))
    }
}

impl Standing {
    fn of(contender: usize, name: &str, cells: &[&Cell]) -> Self {
        let worst = |cell: &&&Cell| mean(cell.logarithms(contender).into_iter());
        let worst = cells.iter().max_by(|one, other| worst(one).total_cmp(&worst(other)));
        let runs = || cells.iter().flat_map(|cell| &cell.runs[contender]);
        let decisions: u64 = runs().map(|run| run.decisions).sum();
        let cpu: f64 = runs().map(|run| run.decision_cpu_s).sum();
        Self {
            contender: name.to_owned(),
            stall: Estimate::of_logarithms(&by_seed(contender, cells)),
            worst: worst.map_or(1.0, |cell| mean(cell.logarithms(contender).into_iter()).exp()),
            worst_at: worst.map(|cell| cell.name()).unwrap_or_default(),
            wins: cells.iter().filter(|cell| cell.best == contender).count(),
            start: over_least(contender, cells, |run| Some(run.stall_start_s)).unwrap_or(1.0),
            change: over_least(contender, cells, |run| run.stall_change_s),
            x_belady: mean(runs().map(|run| (run.rows_fetched as f64 / run.fewest_rows.max(1) as f64).ln())).exp(),
            decisions,
            closes: None,
            minibatch_us: cpu / (runs().map(|run| run.minibatches).sum::<u64>().max(1)) as f64 * 1e6,
            longest_decision_ms: median(runs().filter_map(|run| run.longest_decision_s)).map(|seconds| seconds * 1e3),
        }
    }
}

/// Whether a controller steers the contender.
fn is_steered(contender: &str) -> bool {
    contender.contains('/')
}

/// Whether the contender knows what is to come.
fn foresees(contender: &str) -> bool {
    contender.split_once('/').is_some_and(|(_, controller)| controller.starts_with("oracle"))
}

/// Between the best fixed choice for all configurations and that for each: mean logarithms of stalls over those of each configuration's best.
struct Gap {
    single: f64,
    each: f64,
}

impl Gap {
    /// None where nobody is fixed.
    fn of(fixed: &[usize], cells: &[&Cell]) -> Option<Self> {
        let all = |contender: usize| level(contender, cells);
        let each =
            |cell: &&Cell| fixed.iter().map(|&one| mean(cell.logarithms(one).into_iter())).min_by(f64::total_cmp);
        let single = fixed.iter().map(|&contender| all(contender)).min_by(f64::total_cmp)?;
        Some(Self { single, each: mean(cells.iter().filter_map(each)) })
    }

    /// The share of it; none where it is a per cent or less.
    fn closed_by(&self, contender: usize, cells: &[&Cell]) -> Option<f64> {
        let gap = self.single - self.each;
        (gap > GAP).then(|| (self.single - level(contender, cells)) / gap)
    }
}

/// Below this there is nothing to close.
const GAP: f64 = 0.01;

/// The mean logarithm of a contender's stalls over those of each configuration's best.
fn level(contender: usize, cells: &[&Cell]) -> f64 {
    mean(cells.iter().map(|cell| mean(cell.logarithms(contender).into_iter())))
}

/// By seed, the mean logarithm over the configurations that have a job of it.
fn by_seed(contender: usize, cells: &[&Cell]) -> Vec<f64> {
    let mut seeds: BTreeMap<u64, Vec<f64>> = BTreeMap::new();
    for cell in cells {
        for (run, logarithm) in cell.runs[contender].iter().zip(cell.logarithms(contender)) {
            seeds.entry(run.seed).or_default().push(logarithm);
        }
    }
    seeds.into_values().map(|logarithms| mean(logarithms.into_iter())).collect()
}

/// Part of a stall over the least of any contender in each configuration, both summed over the configurations that have it: of one part of a job,
/// hardly anything may be left in one configuration, and a ratio of it would drown the others.
fn over_least(contender: usize, cells: &[&Cell], part: impl Fn(&Run) -> Option<f64>) -> Option<f64> {
    let whole = |cell: &&&Cell| cell.runs[contender].iter().all(|run| part(run).is_some());
    let means = cells.iter().filter(whole).map(|cell| (cell, cell.means(|run| part(run).unwrap_or_default())));
    let sums = means.map(|(cell, means)| (means[contender], means[cell.least(&means)]));
    let (own, fewest) = sums.reduce(|(own, fewest), (more, least)| (own + more, fewest + least))?;
    Some(ratio(own, fewest))
}

/// Who wins where, in words.
pub fn findings(standings: &Standings) -> Vec<String> {
    standings.lookaheads.iter().flat_map(sentences).collect()
}

fn sentences(standings: &Lookahead) -> Vec<String> {
    let ahead = match standings.lookahead {
        0 => "With nothing announced".to_owned(),
        many => format!("With {many} announced"),
    };
    let (Some(headroom), Some(single)) = (standings.headroom(), standings.single()) else {
        return vec![format!("{ahead}, rows are hardly waited for, whoever competes.")];
    };
    let room = if headroom < HEADROOM { "no headroom" } else { "headroom" };
    let mut sentences = vec![format!(
        "{ahead}, {} is the best single choice: {:.2} x the stall of each configuration's best ({:.2} in the worst: {}). \
         Choosing for each configuration would save {:.1} % of its stall: {room}.",
        single.contender,
        single.stall.mean,
        single.worst,
        single.worst_at,
        headroom * 100.0
    )];
    let quickest = |of: fn(&Standing) -> Option<f64>| {
        let known = standings.choices().filter_map(|standing| of(standing).map(|ratio| (ratio, standing)));
        known.min_by(|one, other| one.0.total_cmp(&other.0)).map(|(_, standing)| standing)
    };
    if let Some(first) = quickest(|standing| Some(standing.start)) {
        let Standing { start, change, .. } = single;
        let mut sentence = format!(
            "{ahead}, {} stalls least in the first 32 minibatches ({:.2} x each configuration's least; {} {start:.2})",
            first.contender, first.start, single.contender
        );
        if let (Some(first), Some(change)) = (quickest(|standing| standing.change), *change) {
            let own = first.change.unwrap_or(1.0);
            sentence += &format!(
                " and {} in the 32 after a change ({own:.2}; {} {change:.2})",
                first.contender, single.contender
            );
        }
        sentences.push(sentence + ".");
    }
    if standings.idle > 0 {
        sentences.push(format!("{ahead}, {} configurations hardly wait for rows and are left out.", standings.idle));
    }
    sentences
}

#[cfg(test)]
mod tests {
    //! Goal: standings follow from stalls by the rules at the top. Method: hand-made stalls of which the answers are known.
    use super::*;

    fn run(graph: &str, seed: u64, contender: &str, stall_s: f64) -> Run {
        Run {
            graph: graph.to_owned(),
            scenario: "nodes".to_owned(),
            seed,
            buffer: "5 %".to_owned(),
            slow: None,
            lookahead: 0,
            contender: contender.to_owned(),
            rows_fetched: 200,
            fewest_rows: 100,
            hit_rate: 0.5,
            stall_s,
            stall_start_s: stall_s / 2.0,
            stall_change_s: Some(1.0),
            time_s: 10.0,
            minibatches: 4,
            decisions: 2,
            decision_cpu_s: 1e-5,
            longest_decision_s: Some(stall_s * 1e-3),
        }
    }

    fn standings(stalls: &[(&str, [[f64; 2]; 2])]) -> Lookahead {
        let names = ["a".to_owned(), "b".to_owned()];
        let runs: Vec<Run> = stalls
            .iter()
            .flat_map(|&(graph, contenders)| {
                contenders.into_iter().zip(["a", "b"]).flat_map(move |(stalls, name)| {
                    stalls.into_iter().zip(1..).map(move |(stall, seed)| run(graph, seed, name, stall))
                })
            })
            .collect();
        Standings::of(&runs, &names).lookaheads.remove(0)
    }

    #[test]
    fn a_choice_for_all_is_held_against_the_best_for_each() {
        let standings = standings(&[("one", [[1.0, 1.0], [2.0, 2.0]]), ("two", [[8.0, 8.0], [1.0, 1.0]])]);
        let [b, a] = &standings.contenders[..] else { panic!("{standings:?}") };
        assert_eq!((b.contender.as_str(), a.contender.as_str()), ("b", "a"));
        assert!((b.stall.mean - 2f64.sqrt()).abs() < 1e-9 && (a.stall.mean - 8f64.sqrt()).abs() < 1e-9);
        assert_eq!((b.wins, a.wins), (1, 1));
        assert!((b.worst - 2.0).abs() < 1e-9 && b.worst_at.starts_with("one, nodes"));
        assert!((standings.headroom().unwrap() - (1.0 - 0.5f64.sqrt())).abs() < 1e-9);
        assert_eq!((b.x_belady, b.change, b.closes), (2.0, Some(1.0), None));
        assert!((b.minibatch_us - 2.5).abs() < 1e-9);
        assert_eq!((a.longest_decision_ms, b.longest_decision_ms), (Some(8.0), Some(2.0)));
        assert_eq!(standings.configurations[1].best, "b");
        assert!(sentences(&standings)[0].contains("29.3 % of its stall: headroom"), "{:?}", sentences(&standings));
    }

    #[test]
    fn what_the_jobs_cannot_tell_apart_is_as_good() {
        let apart = standings(&[("one", [[1.0, 2.0], [1.1, 2.2]])]);
        assert!(apart.configurations[0].as_good.is_empty(), "always a tenth more");
        let alike = standings(&[("one", [[1.0, 2.0], [1.3, 1.9]])]);
        assert_eq!(alike.configurations[0].as_good, ["b"], "sometimes more and sometimes less");
        assert_eq!(apart.contenders[0].stall, Estimate { mean: 1.0, low: 1.0, high: 1.0 });
        let spread = alike.contenders[1].stall;
        assert!(spread.low < spread.mean && spread.mean < spread.high, "{spread:?}");
    }

    #[test]
    fn what_is_steered_is_held_against_choosing_among_the_fixed() {
        let names = ["a", "b", "a/good", "b/bad"].map(str::to_owned);
        let stalls = [("one", [1.0, 2.0, 1.0, 4.0]), ("two", [8.0, 1.0, 2.0, 1.0])];
        let runs: Vec<Run> = stalls
            .iter()
            .flat_map(|(graph, stalls)| names.iter().zip(stalls).map(|(name, stall)| run(graph, 1, name, *stall)))
            .collect();
        let standings = Standings::of(&runs, &names).lookaheads.remove(0);
        let closes = |name: &str| standings.contenders.iter().find(|one| one.contender == name).unwrap().closes;
        // The best fixed one, b, stalls by the root of 2 over the best of each; so does a/good, and b/bad by 2.
        assert!(closes("a/good").unwrap().abs() < 1e-9 && (closes("b/bad").unwrap() + 1.0).abs() < 1e-9);
        assert_eq!((closes("a"), closes("b")), (None, None));
    }

    #[test]
    fn who_knows_what_is_to_come_stands_beside() {
        let names = ["a", "b", "a/oracle"].map(str::to_owned);
        let runs: Vec<Run> =
            names.iter().zip([2.0, 3.0, 1.0]).map(|(name, stall)| run("one", 1, name, stall)).collect();
        let standings = Standings::of(&runs, &names).lookaheads.remove(0);
        assert_eq!((standings.contenders[0].contender.as_str(), standings.contenders[0].wins), ("a/oracle", 0));
        assert!((standings.contenders[0].stall.mean - 0.5).abs() < 1e-9);
        assert_eq!((standings.configurations[0].best.as_str(), standings.headroom()), ("a", Some(0.0)));
        assert!(sentences(&standings).iter().all(|sentence| !sentence.contains("oracle")));
    }

    #[test]
    fn where_nobody_waits_there_is_nothing_to_decide() {
        let standings = standings(&[("one", [[0.01, 0.01], [2.0, 2.0]])]);
        assert_eq!((standings.idle, standings.configurations.len(), standings.headroom()), (1, 0, None));
        assert!(sentences(&standings)[0].contains("hardly waited for"));
    }

    #[test]
    fn an_interval_is_that_of_student() {
        // 1 and 3: the mean is 2, its error 1, and 12.706 the quantile of one degree of freedom.
        assert!((half_width(&[1.0, 3.0]) - 12.706).abs() < 1e-3);
        assert_eq!(half_width(&[1.0]), 0.0);
    }
}
