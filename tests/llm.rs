//! The language model that the project fetches, end to end.
//!
//! Goal: tokens, scores, caching and the service are right for real weights. Method: known token ids (from an independent implementation of the
//! file's merges), questions whose answer any working model of this kind knows, and the same score by different ways. These tests need the
//! model: `tools/model.sh` fetches it, and without it they fail.

#![cfg(feature = "llm")]

use rudder::controller::JobFacts;
use rudder::controller::llm::{
    LlmReplace, LlmService, LocalScorer, RemoteScorer, Scorer, ScorerLimits, ServiceConfig, default_model_path,
};
use std::path::PathBuf;
use std::time::Duration;

fn model() -> PathBuf {
    default_model_path().unwrap_or_else(|cause| panic!("these tests need the model: {cause}"))
}

fn scorer() -> LocalScorer {
    LocalScorer::load(&model(), ScorerLimits::default()).unwrap()
}

fn facts() -> JobFacts {
    JobFacts {
        nodes: 2_449_029,
        edges: 123_718_280,
        partitions: 4,
        partition: 1,
        halo_nodes: 480_000,
        slots: 96_000,
        batch: 2000,
        minibatches: 3000,
        changes: Vec::new(),
    }
}

fn best(scorer: &mut dyn Scorer, prefix: &str, text: &str, labels: &[&str]) -> usize {
    let scores = scorer.score(prefix, text, labels).unwrap();
    (0..labels.len()).max_by(|&a, &b| scores[a].total_cmp(&scores[b])).unwrap()
}

#[test]
fn tokens_are_the_models_own() {
    let known: &[(&str, &[u32])] = &[
        ("Yes", &[10539]),
        ("No", &[5230]),
        ("Hello, world!", &[19556, 28, 905, 17]),
        (
            "hits 62%, fetched 12034 of 15000 wanted",
            &[88, 842, 216, 38, 34, 9812, 10766, 2823, 216, 33, 34, 32, 35, 36, 282, 216, 33, 37, 32, 32, 32, 4146],
        ),
        ("Past decisions: none.\nNow: hits 0%", &[37754, 3884, 42, 7182, 30, 198, 2696, 42, 15743, 216, 32, 21]),
        ("don't we'll  two  spaces\n\n\ttab", &[12420, 982, 392, 3060, 216, 827, 216, 5600, 1116, 197, 15999]),
        (
            "naïve café, Straße, 東京, 😀",
            &[3546, 46494, 37366, 28, 19144, 34878, 85, 28, 17097, 247, 126, 16736, 122, 28, 40303, 218],
        ),
        ("<|im_start|>system\nYou<|im_end|>\n", &[1, 9690, 198, 2683, 2, 198]),
        ("x_1 = (a+b)[3]; // c++", &[104, 79, 33, 446, 365, 81, 27, 82, 12993, 35, 26695, 13241, 265, 11444]),
        (" leading and trailing  ", &[2899, 284, 35079, 256]),
    ];
    let scorer = scorer();
    for (text, ids) in known {
        assert_eq!(scorer.tokenizer().encode(text).unwrap(), *ids, "{text:?}");
        assert_eq!(scorer.tokenizer().decode(ids).unwrap(), *text);
    }
}

#[test]
fn it_knows_what_such_a_model_knows() {
    let mut scorer = scorer();
    let prefix = "You answer questions with one word.";
    for (question, labels) in [
        ("What is the capital of France?", ["Paris", "London", "Berlin", "Madrid"]),
        ("What is the capital of Japan?", ["Tokyo", "Seoul", "Paris", "Berlin"]),
        ("What color is the clear sky by day?", ["Blue", "Green", "Purple", "Black"]),
        ("Which of these is an animal?", ["Dog", "Chair", "Stone", "Table"]),
        ("Which planet do humans live on?", ["Earth", "Mars", "Venus", "Saturn"]),
    ] {
        assert_eq!(best(&mut scorer, prefix, question, &labels), 0, "{question}");
    }
}

#[test]
fn scores_are_probabilities_of_a_closed_set_and_repeat() {
    let mut scorer = scorer();
    // Labels that share their first tokens, so that the tree of tokens forks late.
    let labels = ["replace few rows", "replace many rows", "keep all rows"];
    let text = "Hits fell from 60% to 20%. What now?";
    let scores = scorer.score("You steer a buffer.", text, &labels).unwrap();
    assert!(scores.iter().all(|score| score.is_finite() && *score <= 0.0), "{scores:?}");
    let sum: f32 = scores.iter().map(|score| score.exp()).sum();
    assert!((sum - 1.0).abs() < 1e-4, "{sum}");
    assert_eq!(
        scores,
        self::scorer().score("You steer a buffer.", text, &labels).unwrap(),
        "a fresh model must agree to the bit"
    );
}

#[test]
fn a_cached_prefix_changes_no_score() {
    let labels = ["Yes", "No"];
    let prefix = LlmReplace::prefix(&facts());
    let mut cached = scorer();
    // Room for one prefix: another one in between makes the next question start from nothing.
    let mut single = LocalScorer::load(&model(), ScorerLimits { prefixes: 1, ..ScorerLimits::default() }).unwrap();
    for hits in [0, 17, 60] {
        let text = format!(
            "Past decisions: none.\nNow: hits {hits}%, fetched 12000 of 30000 wanted.\nReplace rows now? Yes or No."
        );
        // The first text leaves its tokens behind the prefix, the second truncates them.
        let warm = cached.score(&prefix, &text, &labels).unwrap();
        single.score("Another.", "x", &labels).unwrap();
        let cold = single.score(&prefix, &text, &labels).unwrap();
        for (warm, cold) in warm.iter().zip(&cold) {
            assert!((warm - cold).abs() < 2e-3, "hits {hits}: {warm} with a cached prefix, {cold} without");
        }
    }
    let text = "Now: hits 5%.";
    let first = cached.score(&prefix, text, &labels).unwrap();
    cached.score(&prefix, "Something else in between.", &labels).unwrap();
    assert_eq!(cached.score(&prefix, text, &labels).unwrap(), first, "what was truncated must leave no trace");
}

#[test]
fn prefixes_give_way_to_each_other_without_mixing() {
    let limits = ScorerLimits { prefixes: 2, ..ScorerLimits::default() };
    let mut small = LocalScorer::load(&model(), limits).unwrap();
    let mut large = scorer();
    let prefixes = ["You are rank 0.", "You are rank 1.", "You are rank 2, a stubborn one."];
    for round in 0..3 {
        for prefix in prefixes {
            let text = format!("Round {round}: go on?");
            let (one, other) = (small.score(prefix, &text, &["Yes", "No"]), large.score(prefix, &text, &["Yes", "No"]));
            for (one, other) in one.unwrap().iter().zip(other.unwrap()) {
                assert!((one - other).abs() < 2e-3, "{prefix:?}: {one} and {other}");
            }
        }
    }
}

#[test]
fn out_of_bounds_questions_are_refused() {
    let mut scorer = scorer();
    let long = "word ".repeat(3000);
    for (prefix, text, labels, cause) in [
        (long.as_str(), "x", &["Yes", "No"] as &[&str], "the prefix has"),
        ("p", &long, &["Yes", "No"], "the text has"),
        ("p", "x", &[], "0 labels"),
        ("p", "x", &["Yes", "Yes"], "begins another"),
        ("p", "x", &["Yes", ""], "is empty"),
    ] {
        let error = scorer.score(prefix, text, labels).unwrap_err().to_string();
        assert!(error.contains(cause), "{error}");
    }
}

#[test]
fn the_service_gives_each_rank_its_own_answers() {
    let folder = std::env::temp_dir().join(format!("rudder-llm-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let config = ServiceConfig { cpus: Some(vec![0]), ..ServiceConfig::new(model(), folder.join("model")) };
    let service = LlmService::start(&config).unwrap();
    let ranks: Vec<_> = (0..3)
        .map(|rank| {
            let socket = config.socket.clone();
            std::thread::spawn(move || {
                let mut remote = RemoteScorer::new(socket, Duration::from_secs(120));
                let prefix = format!("You are rank {rank}.");
                let ask = |text| remote.score(&prefix, text, &["Yes", "No"]).unwrap();
                (prefix.clone(), ["Replace?", "Keep?", "Replace?"].map(ask), remote.remote_cpu())
            })
        })
        .collect();
    let mut local = scorer();
    for rank in ranks {
        let (prefix, answers, cpu) = rank.join().unwrap();
        assert!(cpu > Duration::ZERO && cpu <= service.model_cpu());
        for (text, answer) in ["Replace?", "Keep?", "Replace?"].iter().zip(answers) {
            let expected = local.score(&prefix, text, &["Yes", "No"]).unwrap();
            answer.iter().zip(expected).for_each(|(a, b)| assert!((a - b).abs() < 2e-3, "{prefix}: {a} and {b}"));
        }
    }
    assert_eq!((service.requests(), service.refused()), (9, 0));
    drop(service);
    assert!(!config.socket.exists(), "the socket is removed");
    std::fs::remove_dir_all(folder).unwrap();
}
