//! Rudder's published question: shall rows of the buffer be replaced now, yes or no?
//!
//! The prompt carries what the published one carries, in fewer words: the role, the job's figures, what the metrics mean and guidelines, once;
//! then the latest metrics and the last five decisions with what came of each. A decision is asked for as soon as the last one took effect and
//! `delta` further minibatches were seen.

use super::window::{Window, hit_percent, percent_left};
use super::{ModelSource, Question, Scorer, check_delta};
use crate::controller::{Controller, Decision, Health, JobFacts, Observation};
use crate::error::Result;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::fmt::{Display, Write as _};

const LABELS: &[&str] = &["Yes", "No"];
const HISTORY: usize = 5;
const NEUTRAL: &str = "Past decisions: none.\nNow: no metrics are known.\nReplace rows now? Yes or No.";
/// Decisions by the guidelines: what was decided before, the metrics, and the answer.
const EXAMPLES: [(&[&str], &str, &str); 4] = [
    (&[], "hits 0%, fetched 900 of 900 wanted, 97% of minibatches left", "Yes"),
    (&["400: replacement found no candidates"], "hits 62%, fetched 310 of 820 wanted, 60% of minibatches left", "No"),
    (
        &["700: kept: hits -9, fetched +31%, wanted +1%"],
        "hits 41%, fetched 520 of 860 wanted, 48% of minibatches left",
        "Yes",
    ),
    (
        &["200: kept: hits +7, fetched -12%, wanted +0%"],
        "hits 58%, fetched 330 of 790 wanted, 80% of minibatches left",
        "No",
    ),
];

/// How hits are counted for the prompt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HitRate {
    /// Over all minibatches so far.
    #[default]
    Cumulative,
    /// Not at all: it reads 0 in every prompt, as with the published example's settings.
    Zero,
}

/// Settings of the yes-or-no controller.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ReplaceConfig {
    /// Where the model runs.
    pub model: ModelSource,
    /// Least number of minibatches between two decisions.
    pub delta: u64,
    /// How hits are counted for the prompt.
    pub hit_rate: HitRate,
    /// Takes the model's general leaning towards yes or no off its answers.
    pub calibrate: bool,
    /// Shows the model four decisions with their answers before it is asked.
    pub examples: bool,
}

impl Default for ReplaceConfig {
    fn default() -> Self {
        Self { model: ModelSource::Default, delta: 16, hit_rate: HitRate::Cumulative, calibrate: true, examples: false }
    }
}

/// What was last shown to the model, to compare with.
#[derive(Clone, Copy, Debug)]
struct Summary {
    hit_percent: u64,
    fetched: u64,
    remote: u64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Outcome {
    Replaced { rows: u64 },
    NoCandidates,
    Kept,
    Unanswered,
}

/// A decision whose effect the next window will show.
#[derive(Clone, Copy, Debug)]
struct Pending {
    minibatch: u64,
    outcome: Outcome,
    before: Summary,
}

/// A decision that nobody has taken yet.
#[derive(Clone, Copy, Debug)]
struct Decided {
    minibatch: u64,
    replace: bool,
}

/// Asks the model whether to replace.
pub struct LlmReplace {
    scorer: Box<dyn Scorer>,
    question: Question,
    config: ReplaceConfig,
    slots: u64,
    minibatches: u64,
    window: Window,
    hits: u64,
    halo_misses: u64,
    decided: Option<Decided>,
    /// Minibatches left in which a replacement that was taken may show; none is decided meanwhile.
    awaiting_replacement: u64,
    shown: Option<Summary>,
    pending: Option<Pending>,
    history: VecDeque<String>,
    failure: Option<String>,
}

impl LlmReplace {
    /// Loads the model, which may write to the [environment](crate::controller::llm#the-environment).
    ///
    /// # Errors
    /// A setting is out of its bounds, or the model cannot be loaded.
    pub fn new(config: &ReplaceConfig, facts: &JobFacts) -> Result<Self> {
        Self::with_scorer(config, facts, config.model.open()?)
    }

    /// Asks this scorer instead of the configured model.
    ///
    /// # Errors
    /// A setting is out of its bounds.
    pub fn with_scorer(config: &ReplaceConfig, facts: &JobFacts, scorer: Box<dyn Scorer>) -> Result<Self> {
        check_delta(config.delta)?;
        let mut prefix = Self::prefix(facts);
        if config.examples {
            prefix.push_str(&Self::examples());
        }
        Ok(Self {
            scorer,
            question: Question::new(prefix, LABELS, NEUTRAL, config.calibrate),
            config: config.clone(),
            slots: facts.slots,
            minibatches: facts.minibatches,
            window: Window::default(),
            hits: 0,
            halo_misses: 0,
            decided: None,
            awaiting_replacement: 0,
            shown: None,
            pending: None,
            history: VecDeque::with_capacity(HISTORY),
            failure: None,
        })
    }

    /// The part of the prompt that stays.
    pub fn prefix(facts: &JobFacts) -> String {
        let known = |value: u64| if value == 0 { "unknown".to_owned() } else { value.to_string() };
        let (nodes, edges, minibatches) = (facts.nodes, known(facts.edges), known(facts.minibatches));
        let JobFacts { partition, partitions, halo_nodes, slots, batch, .. } = facts;
        format!(
            "You steer the buffer of remote node features in distributed graph neural network training. \
             A replacement drops the rows that were used least and fetches rows that were missed often. It costs network traffic, \
             so it must pay off. The buffer starts empty.\n\
             Job: {nodes} nodes, {edges} edges, partition {partition} of {partitions}, {halo_nodes} remote neighbours, buffer of {slots} rows, \
             {batch} seeds a minibatch, {minibatches} minibatches.\n\
             Metrics: hits is the percentage of wanted remote rows found in the buffer, higher is better. \
             fetched is the number of remote rows fetched a minibatch, lower is better. \
             wanted is the number of remote rows sampled, which replacement does not change. \
             A past decision shows how they changed after it.\n\
             Replace if hits is 0, if hits fell or stays low, or if fetched grows.\n\
             Do not replace if the last replacement found no candidates, if the last two or three changed nothing, \
             if hits rises by itself, or if less than 5% of the minibatches are left."
        )
    }

    /// What follows the [prefix](Self::prefix) where [examples](ReplaceConfig::examples) are shown.
    pub fn examples() -> String {
        let example = |(past, now, answer): &(&[&str], &str, &str)| {
            format!("\n\nExample. {}\nAnswer: {answer}", Self::text_of(past.iter(), now))
        };
        EXAMPLES.iter().map(example).collect()
    }

    /// The part of the prompt that changes: the decisions so far with their effects, and the metrics now.
    pub fn text_of(past: impl Iterator<Item = impl Display>, now: &str) -> String {
        let (mut text, mut past) = (String::from("Past decisions:"), past.peekable());
        if past.peek().is_none() {
            text.push_str(" none.");
        }
        for record in past {
            _ = write!(text, "\n{record}");
        }
        _ = write!(text, "\nNow: {now}.\nReplace rows now? Yes or No.");
        text
    }

    fn text(&self, now: Summary) -> String {
        let Summary { hit_percent, fetched, remote } = now;
        let mut metrics = format!("hits {hit_percent}%, fetched {fetched} of {remote} wanted");
        if let Some(left) = percent_left(self.window.last_minibatch, self.minibatches) {
            _ = write!(metrics, ", {left}% of minibatches left");
        }
        Self::text_of(self.history.iter(), &metrics)
    }

    fn summary(&self) -> Summary {
        let hit_percent = match self.config.hit_rate {
            HitRate::Cumulative => hit_percent(self.hits, self.halo_misses),
            HitRate::Zero => 0,
        };
        let Window { fetched, remote_nodes, .. } = self.window;
        Summary { hit_percent, fetched: self.window.mean(fetched), remote: self.window.mean(remote_nodes) }
    }

    fn record_effect(&mut self, now: Summary) {
        let Some(Pending { minibatch, outcome, before }) = self.pending.take() else { return };
        let effect = || {
            let hits = now.hit_percent as i64 - before.hit_percent as i64;
            let (fetched, wanted) = (change(before.fetched, now.fetched), change(before.remote, now.remote));
            format!("hits {hits:+}, fetched {fetched}, wanted {wanted}")
        };
        let record = match outcome {
            Outcome::Replaced { rows } => {
                let share = rows * 100 / self.slots.max(1);
                format!("{minibatch}: replaced {share}%: {}", effect())
            }
            Outcome::NoCandidates => format!("{minibatch}: replacement found no candidates"),
            Outcome::Kept => format!("{minibatch}: kept: {}", effect()),
            Outcome::Unanswered => format!("{minibatch}: no answer: {}", effect()),
        };
        if self.history.len() == HISTORY {
            self.history.pop_front();
        }
        self.history.push_back(record);
    }

    fn await_effect(&mut self, outcome: Outcome, minibatch: u64) {
        self.pending = self.shown.map(|before| Pending { minibatch, outcome, before });
    }
}

impl Controller for LlmReplace {
    fn name(&self) -> &'static str {
        "llm-replace"
    }

    fn observe(&mut self, observation: &Observation) {
        self.hits += observation.hits;
        self.halo_misses += observation.halo_misses;
        if observation.minibatches > 0 {
            self.minibatches = observation.minibatches;
        }
        // Only its own replacement restarts the window: the fallback's go on until the model is asked again.
        if self.awaiting_replacement > 0 && (observation.replaced_rows > 0 || observation.replace_skipped) {
            let rows = observation.replaced_rows;
            let outcome = if rows > 0 { Outcome::Replaced { rows } } else { Outcome::NoCandidates };
            self.await_effect(outcome, observation.minibatch);
            self.awaiting_replacement = 0;
            // A replacing minibatch's own traffic says nothing of what it brought.
            self.window = Window::default();
            return;
        }
        self.awaiting_replacement = self.awaiting_replacement.saturating_sub(1);
        self.window.add(observation);
    }

    fn decide(&mut self) -> Option<Decision> {
        // A turn without an attempt has not failed.
        self.failure = None;
        if self.window.minibatches < self.config.delta || self.decided.is_some() || self.awaiting_replacement > 0 {
            return None;
        }
        let now = self.summary();
        self.record_effect(now);
        self.shown = Some(now);
        let text = self.text(now);
        let answer = self.question.ask(&mut *self.scorer, &text);
        let minibatch = self.window.last_minibatch;
        self.window = Window::default();
        let replace = match answer {
            Ok(probabilities) => probabilities[0] > probabilities[1],
            Err(cause) => {
                self.failure = Some(cause.to_string());
                self.await_effect(Outcome::Unanswered, minibatch);
                return None;
            }
        };
        self.decided = Some(Decided { minibatch, replace });
        Some(Decision { replace, ..Decision::default() })
    }

    fn handle_taken(&mut self) {
        self.window = Window::default();
        // Only now: what was seen while the model thought is older than the replacement, and would use up the minibatches to see it in.
        match self.decided.take() {
            Some(Decided { replace: true, .. }) => self.awaiting_replacement = self.config.delta,
            Some(Decided { minibatch, .. }) => self.await_effect(Outcome::Kept, minibatch),
            None => {}
        }
    }

    fn handle_discarded(&mut self) {
        if let Some(Decided { minibatch, .. }) = self.decided.take() {
            self.await_effect(Outcome::Unanswered, minibatch);
        }
    }

    fn health(&self) -> Health {
        Health { failure: self.failure.clone(), remote_cpu: self.scorer.remote_cpu() }
    }
}

/// A change in percent of what was before.
fn change(before: u64, now: u64) -> String {
    if before == 0 {
        return "?".into();
    }
    format!("{:+}%", (now as i64 - before as i64) * 100 / before as i64)
}

#[cfg(test)]
mod tests {
    //! The prompt must show each kind of past decision with the effect that was measured. Method: a scripted scorer that keeps the prompts.
    use super::*;
    use std::sync::{Arc, Mutex};

    struct Script {
        answers: VecDeque<Result<Vec<f32>>>,
        prompts: Arc<Mutex<Vec<String>>>,
    }

    impl Scorer for Script {
        fn score(&mut self, _prefix: &str, text: &str, _labels: &[&str]) -> Result<Vec<f32>> {
            self.prompts.lock().unwrap().push(text.to_owned());
            self.answers.pop_front().unwrap_or(Ok(vec![-1.0, -0.5]))
        }
    }

    fn observation(minibatch: u64, hits: u64) -> Observation {
        Observation { minibatch, remote_nodes: 100, hits, halo_misses: 100 - hits, ..Observation::default() }
    }

    #[test]
    fn past_decisions_appear_with_their_effect() {
        let prompts = Arc::new(Mutex::new(Vec::new()));
        let (yes, no) = (|| Ok(vec![-0.1, -2.0]), || Ok(vec![-2.0, -0.1]));
        let broken = Err(crate::Error::Closed);
        let script = Script { answers: [yes(), yes(), no(), broken, no()].into(), prompts: Arc::clone(&prompts) };
        let config = ReplaceConfig { delta: 2, calibrate: false, ..ReplaceConfig::default() };
        let facts = JobFacts { slots: 50, minibatches: 100, ..JobFacts::default() };
        let mut controller = LlmReplace::with_scorer(&config, &facts, Box::new(script)).unwrap();
        let mut decisions = Vec::new();
        for minibatch in 1..=12 {
            let mut seen = observation(minibatch, if minibatch <= 2 { 0 } else { 50 });
            match minibatch {
                3 => seen.replaced_rows = 10,
                6 => seen.replace_skipped = true,
                _ => {}
            }
            controller.observe(&seen);
            if let Some(decision) = controller.decide() {
                controller.handle_taken();
                decisions.push((minibatch, decision.replace));
            }
        }
        assert_eq!(decisions, [(2, true), (5, true), (8, false), (12, false)]);
        let prompts = prompts.lock().unwrap();
        assert!(
            prompts[0]
                .contains("Past decisions: none.\nNow: hits 0%, fetched 100 of 100 wanted, 98% of minibatches left.")
        );
        assert!(prompts[1].contains("3: replaced 20%: hits +30, fetched -50%, wanted +0%"), "{}", prompts[1]);
        assert!(prompts[2].contains("6: replacement found no candidates"), "{}", prompts[2]);
        assert!(prompts[3].contains("8: kept: hits +2, fetched +0%, wanted +0%"), "{}", prompts[3]);
        assert!(prompts[4].contains("10: no answer: hits +"), "{}", prompts[4]);
    }

    #[test]
    fn the_fallbacks_replacements_do_not_put_off_the_next_question() {
        let broken = || Err(crate::Error::Closed);
        let script = Script { answers: [broken(), broken(), Ok(vec![-2.0, -0.1])].into(), prompts: Arc::default() };
        let config = ReplaceConfig { delta: 4, calibrate: false, ..ReplaceConfig::default() };
        let mut controller = LlmReplace::with_scorer(&config, &JobFacts::default(), Box::new(script)).unwrap();
        let (mut failed, mut decided) = (Vec::new(), None);
        for minibatch in 1..=40 {
            // The fallback replaces after every fourth minibatch from the first failure on.
            let replaced_rows = if !failed.is_empty() && minibatch % 4 == 1 { 10 } else { 0 };
            controller.observe(&Observation { replaced_rows, ..observation(minibatch, 50) });
            let decision = controller.decide();
            if controller.health().failure.is_some() {
                failed.push(minibatch);
            }
            if decision.is_some() {
                decided = Some(minibatch);
                break;
            }
        }
        assert_eq!(
            (failed, decided),
            (vec![4, 8], Some(12)),
            "failures are told once each, and the model is asked again"
        );
    }

    #[test]
    fn hits_read_zero_where_they_are_not_counted() {
        let prompts = Arc::new(Mutex::new(Vec::new()));
        let script = Script { answers: VecDeque::new(), prompts: Arc::clone(&prompts) };
        let config = ReplaceConfig { delta: 1, hit_rate: HitRate::Zero, calibrate: false, ..ReplaceConfig::default() };
        let mut controller = LlmReplace::with_scorer(&config, &JobFacts::default(), Box::new(script)).unwrap();
        controller.observe(&observation(1, 80));
        assert_eq!(controller.decide(), Some(Decision::default()));
        assert!(prompts.lock().unwrap()[0].contains("hits 0%, fetched 20 of 100"));
    }

    #[test]
    fn calibration_takes_the_leaning_off() {
        // Leans to no by 1.0 whatever it is told, and to yes by 0.5 for the text: yes must win.
        let script = Script { answers: [Ok(vec![-1.3, -0.3]), Ok(vec![-0.9, -0.4])].into(), prompts: Arc::default() };
        let config = ReplaceConfig { delta: 1, ..ReplaceConfig::default() };
        let mut controller = LlmReplace::with_scorer(&config, &JobFacts::default(), Box::new(script)).unwrap();
        controller.observe(&observation(1, 80));
        assert_eq!(controller.decide(), Some(Decision { replace: true, ..Decision::default() }));
    }

    /// Keeps the prefix alone.
    struct Prefixes(Arc<Mutex<Vec<String>>>);

    impl Scorer for Prefixes {
        fn score(&mut self, prefix: &str, _text: &str, labels: &[&str]) -> Result<Vec<f32>> {
            self.0.lock().unwrap().push(prefix.to_owned());
            Ok(vec![-1.0; labels.len()])
        }
    }

    #[test]
    fn examples_follow_the_prefix_in_the_form_of_what_is_asked() {
        let prefixes = Arc::new(Mutex::new(Vec::new()));
        for examples in [false, true] {
            let config = ReplaceConfig { delta: 1, calibrate: false, examples, ..ReplaceConfig::default() };
            let scorer = Box::new(Prefixes(Arc::clone(&prefixes)));
            let mut controller = LlmReplace::with_scorer(&config, &JobFacts::default(), scorer).unwrap();
            controller.observe(&observation(1, 80));
            controller.decide().unwrap();
        }
        let prefixes = prefixes.lock().unwrap();
        assert_eq!(prefixes[0], LlmReplace::prefix(&JobFacts::default()));
        let shown = prefixes[1].strip_prefix(&prefixes[0]).expect("what stays comes first");
        let first = "\n\nExample. Past decisions: none.\nNow: hits 0%, fetched 900 of 900 wanted, 97% of minibatches left.\n\
                     Replace rows now? Yes or No.\nAnswer: Yes\n\nExample. Past decisions:\n400: replacement found no candidates\n";
        assert!(shown.starts_with(first), "{shown}");
        assert_eq!(shown.matches("Answer: Yes").count(), shown.matches("Answer: No").count());
        assert_eq!(LlmReplace::text_of(std::iter::empty::<&str>(), "no metrics are known"), NEUTRAL);
    }
}
