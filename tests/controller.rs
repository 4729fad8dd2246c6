//! Controllers and their runtime.
//!
//! Goal: the simple controllers follow their published schedules to the minibatch, and no controller, however late, dead or broken, makes the
//! training loop wait or stays uncounted. Method: scripted controllers that block, panic or fail stand in for a model.

use proptest::prelude::*;
use rudder::buffer::{BufferHints, Pin, PolicyConfig, PrefetchBuffer, Residency};
use rudder::controller::classifier::{Feature, Linear, Model, TrainedPlans};
use rudder::controller::planner::{PLANS, VALUES};
use rudder::controller::{
    Cohort, Controller, ControllerConfig, ControllerRuntime, Decision, Health, JobFacts, Observation, RuntimeConfig,
    Shutdown,
};
use rudder::{Config, Error, NodeId, PartitionBook, PartitionId, Result};
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

/// No call may take longer; a model of these tests takes at least ten times as long. Wide, as test machines are shared.
const NEVER_WAITS: Duration = Duration::from_millis(20);
const PATIENCE: Duration = Duration::from_secs(10);
const REPLACE: Decision = Decision { replace: true, quotas: None, owner_weights: None, policy: None };

fn at(minibatch: u64) -> Observation {
    Observation { minibatch, ..Observation::default() }
}

fn schedule(config: &str, minibatches: u64) -> Vec<Option<bool>> {
    let config: ControllerConfig = config.parse().unwrap();
    let runtime = ControllerRuntime::start(&config, &JobFacts::default(), &RuntimeConfig::default()).unwrap();
    (1..=minibatches)
        .map(|minibatch| {
            runtime.observe(&at(minibatch));
            runtime.take_decision().map(|decision| decision.replace)
        })
        .collect()
}

/// Does as it is told, once per call to decide.
enum Act {
    Answer(Decision),
    Wait(Duration, Decision),
    Panic,
    Fail,
}

struct Scripted {
    acts: Receiver<Act>,
    observed: Sender<u64>,
    failure: Option<String>,
}

impl Controller for Scripted {
    fn name(&self) -> &'static str {
        "scripted"
    }

    fn observe(&mut self, observation: &Observation) {
        let _ = self.observed.send(observation.minibatch);
    }

    fn decide(&mut self) -> Option<Decision> {
        self.failure = None;
        match self.acts.try_recv().ok()? {
            Act::Answer(decision) => Some(decision),
            Act::Wait(time, decision) => {
                std::thread::sleep(time);
                Some(decision)
            }
            Act::Panic => panic!("scripted panic"),
            Act::Fail => {
                self.failure = Some("scripted failure".into());
                None
            }
        }
    }

    fn health(&self) -> Health {
        Health { failure: self.failure.clone(), ..Health::default() }
    }
}

struct Stage {
    runtime: ControllerRuntime,
    acts: Sender<Act>,
    observed: Receiver<u64>,
    minibatch: u64,
}

impl Stage {
    fn new(bounds: RuntimeConfig) -> Self {
        let (acts, script) = channel();
        let (sink, observed) = channel();
        let runtime = ControllerRuntime::threaded("scripted", &bounds, move || {
            Ok(Box::new(Scripted { acts: script, observed: sink, failure: None }))
        })
        .unwrap();
        Self { runtime, acts, observed, minibatch: 0 }
    }

    /// One minibatch, which must not wait.
    fn step(&mut self) -> Option<Decision> {
        self.minibatch += 1;
        let start = Instant::now();
        self.runtime.observe(&at(self.minibatch));
        let decision = self.runtime.take_decision();
        assert!(start.elapsed() < NEVER_WAITS, "a minibatch waited {:?} for the controller", start.elapsed());
        decision
    }

    fn step_until(&mut self, what: &str, done: impl Fn(&Self, &Option<Decision>) -> bool) -> Option<Decision> {
        let until = Instant::now() + PATIENCE;
        loop {
            let decision = self.step();
            if done(self, &decision) {
                return decision;
            }
            assert!(Instant::now() < until, "no {what} within {PATIENCE:?}: {:?}", self.runtime.stats());
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

fn bounds() -> RuntimeConfig {
    RuntimeConfig { fallback_delta: 4, ..RuntimeConfig::default() }
}

#[test]
fn off_and_fixed_never_decide() {
    assert!(schedule("off", 100).iter().chain(&schedule("fixed", 100)).all(Option::is_none));
}

#[test]
fn random_tosses_the_same_coins_for_a_seed() {
    let tosses = schedule("random:7:4", 4000);
    assert_eq!(tosses, schedule("random:7:4", 4000));
    assert_ne!(tosses, schedule("random:8:4", 4000));
    let first: Vec<bool> = tosses.iter().flatten().copied().take(16).collect();
    // Golden: the first coins of seed 7.
    assert_eq!(first, GOLDEN_COINS);
    for (index, toss) in tosses.iter().enumerate() {
        assert_eq!(toss.is_some(), (index + 1) % 4 == 0, "minibatch {}", index + 1);
    }
    let heads = tosses.iter().flatten().filter(|heads| **heads).count();
    assert!((420..=580).contains(&heads), "{heads} heads of 1000");
}

const GOLDEN_COINS: [bool; 16] =
    [false, false, true, false, true, false, true, false, true, false, false, false, true, false, false, false];

proptest! {
    #[test]
    fn periodic_replaces_at_multiples_of_delta(delta in 1u64..50, minibatches in 1u64..200) {
        for (index, decision) in schedule(&format!("periodic:{delta}"), minibatches).into_iter().enumerate() {
            let minibatch = index as u64 + 1;
            prop_assert_eq!(decision, minibatch.is_multiple_of(delta).then_some(true));
        }
    }

    #[test]
    fn cohorts_and_their_indices_match(index in 0usize..Cohort::count(16)) {
        prop_assert_eq!(Cohort::at(index).index(), index);
        prop_assert!(Cohort::at(index).owner < PartitionId(16));
    }
}

#[test]
fn wrong_settings_are_refused() {
    for config in ["periodic:0", "random:1:0"] {
        let config: ControllerConfig = config.parse().unwrap();
        let error = ControllerRuntime::start(&config, &JobFacts::default(), &RuntimeConfig::default()).unwrap_err();
        assert!(error.to_string().contains("delta is 0"), "{error}");
    }
    assert!("bandit:1:0".parse::<ControllerConfig>().unwrap().build(&JobFacts::default()).is_err());
    for text in [
        "",
        "periodic",
        "periodic:x",
        "random:1",
        "oracle",
        "bandit",
        "guard:",
        "guard:off",
        "guard:guard:ghost",
        "pilot",
        "pilot:",
        "plan-classifier:",
    ] {
        assert!(matches!(text.parse::<ControllerConfig>(), Err(Error::Config(_))), "{text:?}");
    }
    let unknown = "oracle".parse::<ControllerConfig>().unwrap_err().to_string();
    assert_eq!(unknown.contains("llm"), cfg!(feature = "llm"), "it advises what this build knows: {unknown}");
    for text in ["llm-replace", "llm-cohorts"] {
        let built = text.parse::<ControllerConfig>();
        let absent = built.as_ref().err().map(Error::to_string);
        assert_eq!(absent.is_none(), cfg!(feature = "llm"), "{built:?}");
        assert!(absent.is_none_or(|cause| cause.contains("feature llm")), "{built:?}");
    }
    let periodic = ControllerConfig::Periodic { delta: 1 };
    for bounds in [
        RuntimeConfig { queue: 0, ..RuntimeConfig::default() },
        RuntimeConfig { fallback_delta: 0, ..RuntimeConfig::default() },
        RuntimeConfig { decision_deadline: Duration::ZERO, ..RuntimeConfig::default() },
        RuntimeConfig { decision_deadline: Duration::MAX, ..RuntimeConfig::default() },
        RuntimeConfig { load_deadline: Duration::MAX, ..RuntimeConfig::default() },
        RuntimeConfig { shutdown_deadline: Duration::MAX, ..RuntimeConfig::default() },
    ] {
        assert!(ControllerRuntime::start(&periodic, &JobFacts::default(), &bounds).is_err(), "{bounds:?}");
    }
}

#[test]
fn configurations_survive_json() {
    for text in [
        "off",
        "fixed",
        "periodic:16",
        "random:7:16",
        "quotas:25:4",
        "analytic",
        "ghost",
        "bandit:1:4",
        "guard:random:7:16",
        "guard:plan-classifier:plans.json",
    ] {
        let config: ControllerConfig = text.parse().unwrap();
        let json = serde_json::to_string(&config).unwrap();
        assert_eq!(serde_json::from_str::<ControllerConfig>(&json).unwrap(), config, "{json}");
    }
}

/// A buffer of 40 slots that a controller steers, over as many minibatches: the policies that it had, each with the minibatch from which on, and hits.
fn steer(
    controller: &str,
    policy: &str,
    minibatches: u64,
    wants: impl Fn(u64) -> Vec<u64>,
) -> (Vec<(u64, String)>, u64) {
    let policy = PolicyConfig::named(policy).unwrap();
    let owners = PartitionBook::from_starts(vec![0, 1 << 20]).unwrap();
    let hints = BufferHints { nodes: 1 << 20, halo: vec![], degree: vec![], owners };
    let mut config = Config { policy, controller: controller.parse().unwrap(), ..Config::default() };
    config.settle().unwrap();
    let mut buffer = PrefetchBuffer::new(40, &config.policy, hints.clone()).unwrap();
    let feed = buffer.watch(&config.policy, hints).unwrap().assuming(Duration::ZERO);
    let mut steering = config.controller.build_watching(&JobFacts::default(), feed).unwrap();
    let (mut had, mut found, mut kept) = (Vec::new(), Vec::new(), Vec::new());
    for minibatch in 1..=minibatches {
        let nodes: Vec<NodeId> = wants(minibatch).into_iter().map(NodeId).collect();
        buffer.lookup(Pin(minibatch), &nodes, true, &mut found);
        let demand_rows = found.iter().filter(|found| **found == Residency::Absent).count() as u64;
        buffer.admit_missed(true, &mut kept);
        steering.observe(&Observation {
            minibatch,
            remote_nodes: nodes.len() as u64,
            demand_rows,
            ..Default::default()
        });
        let decision = steering.decide().unwrap_or_default();
        buffer.end_minibatch(decision.replace, None, &mut Vec::new());
        buffer.release(Pin(minibatch + 1));
        kept.iter().for_each(|(_, slot)| buffer.filled(*slot));
        if let Some(policy) = decision.policy {
            assert!(buffer.switch(&policy), "what is decided is prepared");
            had.push((minibatch, serde_json::to_string(&policy).unwrap()));
        }
        buffer.tell_end([].into_iter());
        if decision.replace || had.last().is_some_and(|(at, _)| *at == minibatch) {
            steering.handle_taken();
        }
    }
    (had, buffer.counters().hits)
}

/// The same 30 nodes in every other minibatch, and nodes that come once between.
fn with_scans(minibatch: u64) -> Vec<u64> {
    if minibatch.is_multiple_of(2) { (0..30).collect() } else { (0..60).map(|at| 1000 + minibatch * 60 + at).collect() }
}

/// Other nodes every 40 minibatches: what was wanted before is wanted never more.
fn with_drift(minibatch: u64) -> Vec<u64> {
    let phase = minibatch / 40;
    (0..50).map(|at| phase * 1000 + (minibatch * 7 + at) % 60).collect()
}

#[test]
fn ghost_leaves_a_policy_that_others_would_do_better_than_and_stays_with_the_best() {
    let (had, hits) = steer("ghost", "lru", 400, with_scans);
    let (_, kept) = steer("guard:bandit:1:4000", "lru", 16, with_scans);
    assert_eq!(kept, 0, "least recently used is what scans push out");
    assert!(!had.is_empty() && had[0].0 <= 48, "it has seen enough by then: {had:?}");
    assert!(!had.last().unwrap().1.contains("lru") && had.len() <= 3, "{had:?}");
    assert!(hits > 30 * 160, "{hits} of {}", 30 * 200);
    let (had, _) = steer("ghost", "lfu", 400, with_scans);
    assert_eq!(had, [], "none does better");
}

#[test]
fn the_bandit_plays_each_policy_and_then_those_that_do_well_and_the_same_in_every_run() {
    let (had, hits) = steer("bandit:5:8", "lru", 1600, with_scans);
    assert_eq!((had.clone(), hits), steer("bandit:5:8", "lru", 1600, with_scans));
    assert_ne!(had, steer("bandit:6:8", "lru", 1600, with_scans).0);
    let first: std::collections::BTreeSet<_> = had.iter().take(8).map(|(_, policy)| policy).collect();
    assert_eq!(first.len(), 8, "each in its turn: {first:?}");
    let (_, lru) = steer("bandit:5:2000", "lru", 1600, with_scans);
    assert!(lru == 0 && hits > 1600 / 2 * 30 / 3, "{hits}");
}

#[test]
fn a_guard_takes_what_is_worth_it_and_overrules_what_is_not() {
    // Replacing all the time by the published scores, of a buffer without a halo, keeps nothing.
    let (had, guarded) = steer("guard:periodic:1", "rudder", 400, with_scans);
    let (_, alone) = steer("ghost", "lfu", 400, with_scans);
    assert!(had[0].0 <= 32 && had[0].1.contains("lfu"), "{had:?}");
    assert!(guarded * 10 > alone * 8, "{guarded} hits, and {alone} of the simple policy from the start");
    let (had, _) = steer("guard:ghost", "lfu", 400, with_drift);
    let (free, _) = steer("ghost", "lfu", 400, with_drift);
    assert!(!free.is_empty() && !had.is_empty(), "one that follows the best has its way: {had:?}, alone {free:?}");
}

/// Classifiers that find one plan likeliest, whatever the situation.
fn always(plan: &str, folder: &Path) -> String {
    let feature = |name: &&str| Feature { name: (*name).to_owned(), mean: 0.0, deviation: 1.0 };
    let model = |bias| Model::Linear(Linear { weights: vec![0.0; VALUES.len()], bias });
    let trained = TrainedPlans {
        name: plan.to_owned(),
        training: String::new(),
        features: VALUES.iter().map(feature).collect(),
        plans: PLANS.map(|other| (other.name.to_owned(), model(f64::from(u8::from(other.name == plan))))).to_vec(),
        margin: 0.0,
    };
    let file = folder.join(format!("{plan}.json"));
    trained.write(&file).unwrap();
    file.display().to_string()
}

#[test]
fn a_plan_is_in_place_from_the_first_minibatch_on_and_a_guard_keeps_a_bad_one_from_doing_harm() {
    let folder = tempfile::tempdir().unwrap();
    let tiny = format!("plan-classifier:{}", always("tiny", folder.path()));
    let (had, hits) = steer(&tiny, "lfu", 400, with_scans);
    assert_eq!(had.iter().map(|(at, _)| *at).collect::<Vec<_>>(), [1], "{had:?}");
    assert!(had[0].1.contains("wtinylfu"), "{had:?}");
    assert_eq!((had, hits), steer(&tiny, "lfu", 400, with_scans), "the same in every run");
    assert_eq!(steer(&format!("plan-classifier:{}", always("lfu", folder.path())), "lfu", 400, with_scans).0, []);
    // Nothing is announced, so that there is nothing for a window to keep.
    let window = format!("plan-classifier:{}", always("window", folder.path()));
    assert!(steer(&window, "lfu", 40, with_scans).0.iter().all(|(_, policy)| !policy.contains("window")));
    // Of a buffer without a halo this one keeps nothing.
    let degree = format!("plan-classifier:{}", always("degree", folder.path()));
    let (_, alone) = steer(&degree, "lfu", 400, with_scans);
    let (had, guarded) = steer(&format!("guard:{degree}"), "lfu", 400, with_scans);
    let (_, best) = steer("ghost", "lfu", 400, with_scans);
    assert!(
        guarded > 2 * alone && guarded * 10 > best * 8,
        "{alone} hits alone, {guarded} guarded, {best} of lfu: {had:?}"
    );
}

#[test]
fn an_inline_controller_counts_what_it_could_not_see() {
    let bounds = RuntimeConfig { queue: 2, ..RuntimeConfig::default() };
    let runtime =
        ControllerRuntime::start(&ControllerConfig::Periodic { delta: 4 }, &JobFacts::default(), &bounds).unwrap();
    (1..=5).for_each(|minibatch| runtime.observe(&at(minibatch)));
    assert_eq!(runtime.take_decision(), Some(REPLACE), "minibatch 4 is still queued");
    let stats = runtime.stats();
    assert_eq!((stats.dropped_observations, stats.decisions, stats.replace_decisions), (3, 1, 1));
}

#[test]
fn a_model_decides_once_per_answer_and_pauses_until_it_is_taken() {
    let mut stage = Stage::new(bounds());
    let quotas = Decision { quotas: Some(vec![1, 2, 3]), ..Decision::default() };
    stage.acts.send(Act::Answer(quotas.clone())).unwrap();
    stage.acts.send(Act::Answer(REPLACE)).unwrap();
    stage.runtime.observe(&at(1));
    assert_eq!(stage.observed.recv_timeout(PATIENCE).unwrap(), 1);
    // Nobody takes the answer: the observations up to then are passed on, but nothing is decided on them.
    stage.runtime.observe(&at(2));
    assert_eq!(stage.observed.recv_timeout(PATIENCE).unwrap(), 2);
    stage.minibatch = 2;
    assert_eq!(stage.step_until("answer", |_, decision| decision.is_some()), Some(quotas));
    assert_eq!(stage.step_until("answer", |_, decision| decision.is_some()), Some(REPLACE));
    let stats = stage.runtime.stats();
    assert_eq!((stats.decisions, stats.replace_decisions, stats.fallbacks), (2, 1, 0));
    assert!(stats.skipped >= 1, "minibatch 2 came before its decision was taken: {stats:?}");
    assert_eq!(stage.runtime.shutdown(PATIENCE), Shutdown::Joined);
}

#[test]
fn a_late_answer_is_dropped_and_the_fallback_decides_until_the_next() {
    let mut stage = Stage::new(RuntimeConfig { decision_deadline: Duration::from_millis(30), ..bounds() });
    stage.acts.send(Act::Wait(Duration::from_millis(300), REPLACE)).unwrap();
    stage.step_until("fallback decision", |stage, decision| {
        assert!(decision.is_none() || stage.minibatch.is_multiple_of(4), "not periodic: {}", stage.minibatch);
        stage.runtime.stats().fallback_decisions >= 2
    });
    assert_eq!(stage.runtime.stats().fallbacks, 1, "one late decision is one fallback");
    stage.step_until("late answer", |stage, _| stage.runtime.stats().latency_max >= Duration::from_millis(300));
    let taken = stage.runtime.stats().fallback_decisions;
    (0..20).for_each(|_| assert_eq!(stage.step(), None, "the model has answered, and its late answer is stale"));
    assert_eq!(stage.runtime.stats().fallback_decisions, taken);
    stage.acts.send(Act::Answer(REPLACE)).unwrap();
    stage.step_until("answer in time", |_, decision| decision.is_some());
    assert_eq!(stage.runtime.stats().fallbacks, 1);
}

#[test]
fn a_model_that_never_answers_costs_no_wait_and_is_left_behind() {
    let mut stage = Stage::new(RuntimeConfig { decision_deadline: Duration::from_millis(20), ..bounds() });
    stage.acts.send(Act::Wait(Duration::from_secs(3600), REPLACE)).unwrap();
    stage.step_until("fallback decision", |stage, _| stage.runtime.stats().fallback_decisions >= 3);
    (0..1000).for_each(|_| _ = stage.step());
    let stats = stage.runtime.stats();
    assert_eq!(stats.fallbacks, 1);
    assert!(stats.dropped_observations > 0, "{stats:?}");
    let start = Instant::now();
    assert_eq!(stage.runtime.shutdown(Duration::from_millis(50)), Shutdown::Detached);
    assert!(start.elapsed() < PATIENCE);
}

#[test]
fn a_panicking_model_is_replaced_by_the_fallback() {
    let mut stage = Stage::new(bounds());
    stage.acts.send(Act::Panic).unwrap();
    stage.step_until("fallback decision", |stage, _| stage.runtime.stats().fallback_decisions >= 2);
    let stats = stage.runtime.stats();
    assert_eq!(stats.fallbacks, 1);
    assert_eq!(stats.failure.as_deref(), Some("panicked: scripted panic"));
    assert_eq!(stage.runtime.shutdown(PATIENCE), Shutdown::Joined);
}

#[test]
fn a_failing_model_falls_back_until_it_answers_again() {
    let mut stage = Stage::new(bounds());
    stage.acts.send(Act::Fail).unwrap();
    stage.step_until("fallback decision", |stage, _| stage.runtime.stats().fallback_decisions >= 1);
    assert_eq!(stage.runtime.stats().failure.as_deref(), Some("scripted failure"));
    let quotas = Decision { quotas: Some(vec![7]), ..Decision::default() };
    stage.acts.send(Act::Answer(quotas.clone())).unwrap();
    stage.step_until("answer", |_, decision| decision.as_ref() == Some(&quotas));
    let stats = stage.runtime.stats();
    assert_eq!((stats.fallbacks, stats.failure), (1, None));
}

#[test]
fn a_model_that_does_not_load_is_replaced_by_the_fallback() {
    type Build = fn() -> Result<Box<dyn Controller>>;
    let no_file: Build = || Err(Error::config("no such model"));
    let panic: Build = || panic!("scripted panic");
    let slow: Build = || {
        std::thread::sleep(Duration::from_secs(3600));
        Err(Error::Closed)
    };
    for (build, cause) in [(no_file, Some("no such model")), (panic, Some("panicked while loading")), (slow, None)] {
        let bounds =
            RuntimeConfig { load_deadline: Duration::from_millis(20), shutdown_deadline: Duration::ZERO, ..bounds() };
        let runtime = ControllerRuntime::threaded("broken", &bounds, build).unwrap();
        let (_, observed) = channel();
        let mut stage = Stage { runtime, acts: channel().0, observed, minibatch: 0 };
        stage.step_until("fallback decision", |stage, _| {
            let stats = stage.runtime.stats();
            stats.fallback_decisions >= 2 && stats.failure.is_some() == cause.is_some()
        });
        let stats = stage.runtime.stats();
        assert_eq!(stats.fallbacks, 1, "{stats:?}");
        match cause {
            Some(cause) => assert!(stats.failure.as_ref().is_some_and(|failure| failure.contains(cause)), "{stats:?}"),
            None => assert_eq!(stats.failure, None, "{stats:?}"),
        }
    }
}

#[test]
fn a_forked_child_drops_a_runtime_without_waiting_for_it() {
    let mut stage = Stage::new(RuntimeConfig { shutdown_deadline: Duration::from_secs(600), ..bounds() });
    // SAFETY: the child drops the runtime, which takes no lock that the model's thread may hold, and ends by `_exit`, or by the alarm.
    match unsafe { libc::fork() } {
        0 => {
            // SAFETY: the alarm's default action ends the child.
            unsafe { libc::alarm(10) };
            drop(stage);
            // SAFETY: ends the child without running what belongs to the parent.
            unsafe { libc::_exit(0) }
        }
        child => {
            assert!(child > 0, "fork failed");
            let mut status = -1;
            // SAFETY: waits for the child just made.
            unsafe { libc::waitpid(child, &mut status, 0) };
            assert_eq!(status, 0, "the child waited for a thread that it does not have");
        }
    }
    stage.acts.send(Act::Answer(REPLACE)).unwrap();
    stage.step_until("answer", |_, decision| decision.is_some());
    assert_eq!(stage.runtime.shutdown(PATIENCE), Shutdown::Joined);
}
