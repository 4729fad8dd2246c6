//! `rudder pilot` as a user runs it, and the pilot that it has left.
//!
//! Goal: samples are the same in every run, what is trained on them steers a job, and the repository's model is small and does too. Method: one
//! generated graph, whose samples stand for those of validation and those that are held out too: what is learnt from so little is worth nothing.

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;

fn rudder(folder: &Path, line: &str) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_rudder"))
        .args(line.split(' '))
        .current_dir(folder)
        .output()
        .expect("rudder starts");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "rudder {line}: {error}");
    String::from_utf8(output.stdout).expect("it prints text")
}

/// Samples of a graph, as if they were of this number.
fn numbered(samples: &str, graph: u64) -> String {
    let lines = samples.lines().map(|line| {
        let mut sample: Value = serde_json::from_str(line).unwrap();
        sample["graph"] = graph.into();
        sample.to_string() + "\n"
    });
    lines.collect()
}

#[test]
fn a_pilot_and_classifiers_are_made_of_samples_and_steer_a_job() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    rudder(folder.path(), "pilot samples --graphs 1 --seed 5 --threads 2 --out one.jsonl");
    let samples = std::fs::read_to_string(at("one.jsonl")).unwrap();
    rudder(folder.path(), "pilot samples --graphs 1 --seed 5 --threads 1 --out again.jsonl");
    assert_eq!(samples, std::fs::read_to_string(at("again.jsonl")).unwrap());
    let first: Value = serde_json::from_str(samples.lines().next().unwrap()).unwrap();
    assert!(first["text"].as_str().unwrap().starts_with(" minibatch 1 "), "{first}");
    let stalls = first["stalls"].as_array().unwrap();
    assert!(stalls.iter().any(|stall| *stall != stalls[0]), "plans differ: {stalls:?}");

    std::fs::write(at("samples.jsonl"), numbered(&samples, 0) + &numbered(&samples, 8) + &numbered(&samples, 9))
        .unwrap();
    rudder(folder.path(), "pilot train samples.jsonl --epochs 1 --trainings 2 --out pilot.gguf --json pilot.json");
    let document: Value = serde_json::from_str(&std::fs::read_to_string(at("pilot.json")).unwrap()).unwrap();
    assert!(
        document["trainings"][0]["losses"][0].as_f64().unwrap() > 0.0
            && document["bytes"].as_u64().unwrap() < 8_000_000
    );
    assert!((0.0..=1.0).contains(&document["margin"].as_f64().unwrap()), "{document}");
    let scores = document["scores"].as_array().unwrap();
    assert!(scores.iter().all(|score| score["stall"].as_f64().unwrap() >= 1.0), "{scores:?}");
    let validated = |training: &Value| training["validated"].as_f64().unwrap();
    let trainings = document["trainings"].as_array().unwrap();
    let kept = trainings.iter().min_by(|one, other| validated(one).total_cmp(&validated(other))).unwrap();
    let alone = format!("--seed {} --trainings 1", kept["seed"]);
    rudder(folder.path(), &format!("pilot train samples.jsonl --epochs 1 {alone} --out again.gguf"));
    assert!(std::fs::read(at("pilot.gguf")).unwrap() == std::fs::read(at("again.gguf")).unwrap(), "the same file");
    rudder(folder.path(), &format!("pilot train samples.jsonl --epochs 1 {alone} --without-job --json without.json"));
    let without: Value = serde_json::from_str(&std::fs::read_to_string(at("without.json")).unwrap()).unwrap();
    assert_ne!(without["trainings"], Value::from(vec![kept.clone()]), "it has read something else");
    rudder(folder.path(), "pilot classifiers samples.jsonl --model logistic --out plans.json");

    let job = "--graph ba:nodes=1500,degree=8,dim=1 --ranks 2 --batch 16 --fanout 4,4 --minibatches 64 --seeds 2 --scenario stationary";
    let contenders = "lfu,window,lfu/pilot:pilot.gguf,lfu/guard:pilot:pilot.gguf,lfu/plan-classifier:plans.json";
    let rest = "--lookahead 2 --slow none --buffer 0.2 --json study.json";
    rudder(folder.path(), &format!("study {job} {rest} --contender {contenders}"));
    let study: Value = serde_json::from_str(&std::fs::read_to_string(at("study.json")).unwrap()).unwrap();
    assert_eq!(study["runs"].as_array().unwrap().len(), 10);
}

#[test]
fn samples_that_are_none_are_refused_with_their_line() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |samples: &str| {
        std::fs::write(folder.path().join("samples.jsonl"), samples).unwrap();
        let output = Command::new(env!("CARGO_BIN_EXE_rudder"))
            .args("pilot train samples.jsonl --out pilot.gguf".split(' '))
            .current_dir(folder.path())
            .output()
            .unwrap();
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    assert!(refused("").contains("0 samples to train on"));
    assert!(refused("{\"format\":1").contains("samples.jsonl, line 1"));
    let strange = r#"{"format":3,"graph":0,"minibatch":1,"new":true,"job":"","text":"","values":[],"plan":0,"idle_s":0.1,"stalls":[]}"#;
    assert!(refused(strange).contains("not those of this version"));
    assert!(refused(&strange.replace("\"format\":3", "\"format\":7")).contains("format 7"));
}

/// The model that comes with the repository.
#[test]
fn the_pilot_is_small_and_keeps_what_is_announced() {
    let model = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("pilot/pilot.gguf");
    assert!(std::fs::metadata(&model).unwrap().len() <= 8 << 20);
    let folder = tempfile::tempdir().unwrap();
    let graph = "--graph ba:nodes=4000,degree=10,dim=1 --ranks 2 --batch 24 --fanout 4,8 --minibatches 64 --seeds 2 --scenario stationary";
    let rest = "--lookahead 8 --slow none --buffer 0.1 --json study.json --contender off,lfu,window";
    rudder(folder.path(), &format!("study {graph} {rest},lfu/pilot:{}", model.display()));
    let study: Value =
        serde_json::from_str(&std::fs::read_to_string(folder.path().join("study.json")).unwrap()).unwrap();
    let stall = |contender: &str| {
        let runs = study["runs"].as_array().unwrap().iter();
        let own = runs.filter(|run| run["contender"].as_str().unwrap().starts_with(contender));
        own.map(|run| run["stall_s"].as_f64().unwrap()).sum::<f64>()
    };
    let (pilot, both, window) = (stall("lfu/pilot"), stall("lfu"), stall("window"));
    assert!(
        pilot > 0.0 && pilot < both - pilot,
        "{pilot} s from lfu with the pilot, {both} s of both, {window} s of window"
    );
}
