//! What a language model costs: the time to load it, the memory it takes at most, and the time of a decision, which is
//! a short text after a prefix that is evaluated already. Of the file that `RUDDER_MODEL` names, else of the one that
//! `make model` has fetched.
//!
//! And what it says: of minibatches for which the guidelines of its prompt leave one answer, how often it gives that one, with the prompt as it is
//! and with the examples that it may be shown.
//!
//! Every decision's text differs, and is as short as an update is once what stays the same is in the prefix. Wall time
//! is what a job waits for; the thread's own is beside it, since waiting for a core does not lengthen that.

#[path = "../src/clock.rs"]
mod clock;
#[path = "../src/peak.rs"]
mod peak;

use clock::thread_time;
use peak::peak_bytes;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;
use rudder::controller::JobFacts;
use rudder::controller::llm::{LlmReplace, LocalScorer, Scorer, ScorerLimits, default_model_path};
use std::time::{Duration, Instant};

const SEED: u64 = 20_240_611;
const WARM_UP: usize = 20;
const DECISIONS: usize = 200;
/// Tokens of a decision's text, the words around it included.
const TOKENS: usize = 16;
const WORDS: [&str; 8] = [" hits", " up", " down", " many", " few", " rows", " now", " more"];

fn peak_mb() -> u64 {
    peak_bytes() / 1_000_000
}

/// A text of as many tokens, or a few more where the model's words are longer.
fn text(scorer: &LocalScorer, random: &mut impl Rng) -> (String, usize) {
    let mut text = String::new();
    loop {
        text.push_str(WORDS.choose(random).expect("there are words"));
        let (_, tokens) = scorer.count_tokens("", &text).expect("a text that fits");
        if tokens >= TOKENS {
            return (text, tokens);
        }
    }
}

/// What was decided before, the metrics, and whether the guidelines ask for a replacement then.
const GUIDED: [(&[&str], &str, bool); 12] = [
    (&[], "hits 0%, fetched 2310 of 2310 wanted, 99% of minibatches left", true),
    (&[], "hits 3%, fetched 1210 of 1250 wanted, 96% of minibatches left", true),
    (
        &["120: replaced 20%: hits +18, fetched -21%, wanted +0%"],
        "hits 21%, fetched 1010 of 1280 wanted, 93% of minibatches left",
        true,
    ),
    (
        &["900: kept: hits -4, fetched +9%, wanted +1%", "960: kept: hits -5, fetched +11%, wanted -1%"],
        "hits 38%, fetched 800 of 1290 wanted, 64% of minibatches left",
        true,
    ),
    (
        &["1500: kept: hits -12, fetched +40%, wanted +2%"],
        "hits 29%, fetched 930 of 1310 wanted, 50% of minibatches left",
        true,
    ),
    (
        &["300: no answer: hits -8, fetched +17%, wanted +0%"],
        "hits 12%, fetched 1140 of 1290 wanted, 88% of minibatches left",
        true,
    ),
    (&["120: replacement found no candidates"], "hits 66%, fetched 430 of 1280 wanted, 93% of minibatches left", false),
    (
        &[
            "1000: replaced 3%: hits +0, fetched +0%, wanted +0%",
            "1060: replaced 3%: hits +0, fetched +1%, wanted +0%",
            "1120: replaced 2%: hits +0, fetched +0%, wanted +0%",
        ],
        "hits 68%, fetched 410 of 1290 wanted, 60% of minibatches left",
        false,
    ),
    (
        &["400: kept: hits +4, fetched -7%, wanted +1%", "460: kept: hits +3, fetched -6%, wanted +0%"],
        "hits 72%, fetched 360 of 1290 wanted, 82% of minibatches left",
        false,
    ),
    (
        &["800: kept: hits +2, fetched -20%, wanted +0%"],
        "hits 88%, fetched 150 of 1300 wanted, 70% of minibatches left",
        false,
    ),
    (
        &["2900: kept: hits -1, fetched +2%, wanted +0%"],
        "hits 61%, fetched 500 of 1290 wanted, 2% of minibatches left",
        false,
    ),
    (
        &["2880: replaced 2%: hits +1, fetched -1%, wanted +0%"],
        "hits 70%, fetched 390 of 1300 wanted, 3% of minibatches left",
        false,
    ),
];

/// Of each answer that the guidelines ask for, how often it is given: yes, and no.
fn guided(scorer: &mut LocalScorer, prefix: &str) -> [usize; 2] {
    let mut given = [0; 2];
    let mut leaning = |text: &str| {
        let scores = scorer.score(prefix, text, &["Yes", "No"]).expect("a score");
        scores[0] - scores[1]
    };
    // As the controller does, less what the model says of nothing.
    let neutral = leaning(&LlmReplace::text_of(std::iter::empty::<&str>(), "no metrics are known"));
    for (past, now, replace) in GUIDED {
        let says = leaning(&LlmReplace::text_of(past.iter(), now)) > neutral;
        given[usize::from(!replace)] += usize::from(says == replace);
    }
    given
}

fn milliseconds(times: &mut [Duration], share: f64) -> f64 {
    times.sort_unstable();
    times[((times.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e3
}

fn main() {
    let path = match default_model_path() {
        Ok(path) => path,
        Err(cause) => return println!("# left out: {cause}"),
    };
    let start = Instant::now();
    let mut scorer = LocalScorer::load(&path, ScorerLimits::default()).expect("a model that loads");
    let loaded = start.elapsed();
    let loaded_mb = peak_mb();
    let prefix =
        LlmReplace::prefix(&JobFacts { nodes: 2_449_029, partitions: 4, slots: 96_000, ..JobFacts::default() });
    let (prefix_tokens, _) = scorer.count_tokens(&prefix, "").expect("a prefix that fits");
    let mut random = Xoshiro256PlusPlus::seed_from_u64(SEED);
    let (mut wall, mut cpu, mut tokens) = (Vec::new(), Vec::new(), 0);
    for decision in 0..WARM_UP + DECISIONS {
        let (text, length) = text(&scorer, &mut random);
        let (start, start_cpu) = (Instant::now(), thread_time());
        scorer.score(&prefix, &text, &["Yes", "No"]).expect("a score");
        if decision >= WARM_UP {
            wall.push(start.elapsed());
            cpu.push(thread_time() - start_cpu);
            tokens = tokens.max(length);
        }
    }
    println!("# {}", path.display());
    println!("# seed {SEED}, warm-up {WARM_UP}, {DECISIONS} decisions, {}", std::env::consts::ARCH);
    println!("load_s,load_peak_mb,peak_mb,prefix_tokens,tokens,decision_ms_p50,decision_ms_p99,cpu_ms_p50,cpu_ms_p99");
    println!(
        "{:.2},{loaded_mb},{},{prefix_tokens},{tokens},{:.1},{:.1},{:.1},{:.1}",
        loaded.as_secs_f64(),
        peak_mb(),
        milliseconds(&mut wall, 0.5),
        milliseconds(&mut wall, 0.99),
        milliseconds(&mut cpu, 0.5),
        milliseconds(&mut cpu, 0.99),
    );
    let yes_due = GUIDED.iter().filter(|(_, _, replace)| *replace).count();
    println!("prompt,yes of {yes_due} that are due,no of {}", GUIDED.len() - yes_due);
    for (prompt, examples) in [("as it is", String::new()), ("with examples", LlmReplace::examples())] {
        let [yes, no] = guided(&mut scorer, &format!("{prefix}{examples}"));
        println!("{prompt},{yes},{no}");
    }
}
