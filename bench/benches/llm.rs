//! What a language model costs: the time to load it, the memory it takes at most, and the time of a decision, which is
//! a short text after a prefix that is evaluated already. Of the file that `RUDDER_MODEL` names, else of the one that
//! `make model` has fetched.
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
}
