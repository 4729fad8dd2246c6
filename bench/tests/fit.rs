//! Goal: `rudder fit` learns the same in every run, says how good that is beside answers that have learnt nothing, and leaves a file that a replay and a
//! study steer by. Method: the real command on the checked-in trace, from a buffer that replacement has something to do with.

#[expect(dead_code, reason = "the trace is taken from it, and not the engine")]
#[path = "../../tests/replay/mod.rs"]
mod direct;

use direct::{Trace, recorded};
use rudder::controller::JobFacts;
use rudder::trace::{Header, Minibatch, TraceTable, Writer, file_of};
use rudder::{PartitionId, Rank, TableId, TableSpec};
use serde_json::Value;
use std::path::Path;
use std::process::{Command, Output};

fn rudder(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_rudder")).args(args).output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// The halves of the checked-in trace, as two jobs of which rank 0 is known; one is held out.
fn checked_in(directory: &Path) -> [String; 2] {
    let Trace { hints, mut minibatches } = recorded();
    let second = minibatches.split_off(minibatches.len() / 2);
    [("one", minibatches), ("two", second)].map(|(name, minibatches)| {
        let prefix = directory.join(name);
        write(&prefix, &Trace { hints: hints.clone(), minibatches });
        prefix.to_str().unwrap().to_owned()
    })
}

fn write(prefix: &Path, trace: &Trace) {
    let book = trace.hints.owners.clone();
    let peers = (0..book.partitions()).map(|at| (at > 0).then_some(Rank(at))).collect();
    let (halo, degree) = (trace.hints.halo.clone(), trace.hints.degree.clone());
    let facts = JobFacts {
        nodes: book.nodes(),
        halo_nodes: halo.len() as u64,
        minibatches: trace.minibatches.len() as u64,
        ..JobFacts::default()
    };
    let ranks = book.partitions();
    let spec = TableSpec { halo, degree, ..TableSpec::new(TableId(0), book, PartitionId(0), 64) };
    let header = Header { ranks, facts, tables: vec![TraceTable::new(&spec, peers, 300)], ..Header::default() };
    let mut writer = Writer::create(&file_of(prefix, Rank(0)), &header).unwrap();
    for nodes in &trace.minibatches {
        let minibatch = Minibatch { nodes: nodes.clone(), observed: true, overlapped: true, ..Minibatch::default() };
        writer.minibatch(&minibatch).unwrap();
    }
    writer.finish().unwrap();
}

const MODELS: [&str; 7] = ["logistic", "mlp", "forest", "boosted", "svm-linear", "svm", "attention"];

/// Fits all classifiers; the document, and what the files hold.
fn fit(directory: &Path, traces: &[String; 2], seed: &str, threads: &str) -> (Value, Vec<Vec<u8>>, String) {
    let (out, json) = (directory.join("{}.json"), directory.join("fit.json"));
    let output = rudder(&[
        "fit",
        &traces[0],
        &traces[1],
        "--model",
        &MODELS.join(","),
        "--out",
        out.to_str().unwrap(),
        "--seed",
        seed,
        "--threads",
        threads,
        "--buffer",
        "recorded,0.1,0.5",
        "--interval",
        "4",
        "--horizon",
        "12",
        "--json",
        json.to_str().unwrap(),
    ]);
    assert!(output.status.success(), "{}", said(&output));
    let files = MODELS.map(|name| std::fs::read(directory.join(format!("{name}.json"))).unwrap());
    (serde_json::from_slice(&std::fs::read(json).unwrap()).unwrap(), files.to_vec(), said(&output))
}

/// What is measured differs from run to run.
fn without_measures(mut document: Value) -> Value {
    for field in ["command", "sampling_s", "wall_s"] {
        document[field] = Value::Null;
    }
    for row in document["models"].as_array_mut().unwrap() {
        (row["train_s"], row["inference_ns"]) = (Value::Null, Value::Null);
    }
    document
}

#[test]
fn a_fit_is_the_same_in_every_run_and_says_what_it_is_worth() {
    let directory = tempfile::tempdir().unwrap();
    let traces = checked_in(directory.path());
    let (document, files, text) = fit(directory.path(), &traces, "1", "1");
    let samples = &document["samples"];
    assert!(samples["training"].as_u64() > Some(30) && samples["held_out"].as_u64() > Some(5), "{samples}");
    let yes = samples["training_yes"].as_f64().unwrap();
    assert!(yes > 0.0 && yes < 1.0, "replacing pays now and then: {yes}");
    let rows = document["models"].as_array().unwrap();
    let names: Vec<&str> = rows.iter().map(|row| row["model"].as_str().unwrap()).collect();
    assert_eq!(names, [&["always", "majority"], &MODELS[..]].concat());
    for row in rows {
        let score = |field: &str| row["score"][field].as_f64().unwrap();
        for field in ["accuracy", "balanced_accuracy", "f1", "says_yes"] {
            assert!((0.0..=1.0).contains(&score(field)), "{field}: {row}");
        }
        assert!(score("rows_over_best") >= 1.0, "no answer is better than the right one: {row}");
        assert_eq!(row["train_s"].is_null(), row["file"].is_null(), "{row}");
    }
    assert_eq!(rows[0]["score"]["says_yes"], 1.0);
    let findings = document["findings"].as_array().unwrap();
    for (row, finding) in rows[2..].iter().zip(findings) {
        let balanced = |row: &Value| row["score"]["balanced_accuracy"].as_f64().unwrap();
        let beats = balanced(row) > balanced(&rows[0]).max(balanced(&rows[1]));
        let finding = finding.as_str().unwrap();
        assert_eq!(finding.contains("beats the trivial answers in balanced accuracy"), beats, "{finding}");
        assert!(text.contains(finding), "{text}");
    }

    let (again, same, _) = fit(directory.path(), &traces, "1", "3");
    assert_eq!(without_measures(again), without_measures(document.clone()));
    assert!(files == same, "the same seed leaves the same files");
    let (other, _, _) = fit(directory.path(), &traces, "2", "3");
    assert_ne!(without_measures(other)["models"], without_measures(document)["models"]);
}

#[test]
fn replays_and_studies_steer_by_what_was_fitted() {
    let directory = tempfile::tempdir().unwrap();
    let traces = checked_in(directory.path());
    fit(directory.path(), &traces, "1", "2");
    let prefix = traces[1].as_str();
    let json = directory.path().join("replay.json");
    let controllers = MODELS.map(|name| format!("classifier:{}/{name}.json", directory.path().display()));
    let list = format!("off,periodic:4,{}", controllers.join(","));
    let args = ["replay", prefix, "--policy", "rudder,lfu", "--controller", &list, "--json", json.to_str().unwrap()];
    let output = rudder(&args);
    assert!(output.status.success(), "{}", said(&output));
    let document: Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    let rows = document["rows"].as_array().unwrap();
    // With lfu only no controller goes, which is noted.
    assert_eq!(rows.len(), 2 + MODELS.len() + 1);
    assert!(document["notes"].to_string().contains("classifier:"), "{}", document["notes"]);
    let steered = rows.iter().filter(|row| row["controller"].as_str().unwrap().starts_with("classifier:"));
    let every_fourth = recorded().minibatches.len().div_ceil(2) / 4;
    assert!(steered.clone().all(|row| row["decisions"] == every_fourth), "as often as they were trained for: {rows:?}");
    assert_eq!(steered.count(), MODELS.len());
    let contenders = format!("rudder/periodic:4,rudder/{}", controllers[0]);
    let study = ["study", prefix, "--traces-only", "--contender", &contenders, "--link", "10mbit,1ms"];
    let words = said(&rudder(&study));
    assert!(words.contains(&format!("rudder/{}", controllers[0])), "{words}");
}

#[test]
fn a_job_is_trained_with_what_was_fitted() {
    let directory = tempfile::tempdir().unwrap();
    let [one, two] = checked_in(directory.path());
    let (file, json) = (directory.path().join("logistic.json"), directory.path().join("train.json"));
    let (file, json) = (file.to_str().unwrap(), json.to_str().unwrap());
    let fit = rudder(&["fit", &one, &two, "--model", "logistic", "--out", file, "--buffer", "recorded"]);
    assert!(fit.status.success(), "{}", said(&fit));
    let graph = "sbm:nodes=1500,degree=12,communities=6,dim=8";
    let job = ["train", "--graph", graph, "--ranks", "2", "--batch", "64", "--fanout", "4,6", "--epochs", "2"];
    let train = rudder(&[&job[..], &["--controller", "classifier", "--classifier", file, "--json", json]].concat());
    assert!(train.status.success(), "{}", said(&train));
    let document: Value = serde_json::from_slice(&std::fs::read(json).unwrap()).unwrap();
    let run = &document["runs"][0];
    assert_eq!(run["controller"], "classifier");
    let minibatches = run["series"]["hits"].as_array().unwrap().len() as u64;
    assert_eq!(run["decisions"].as_u64(), Some(2 * (minibatches / 8)), "each rank, every 8 minibatches: {minibatches}");
}

#[test]
fn what_cannot_be_fitted_or_steered_by_is_refused_with_a_remedy() {
    let directory = tempfile::tempdir().unwrap();
    let [one, two] = checked_in(directory.path());
    let prefix = one.as_str();
    let file = directory.path().join("file.json");
    std::fs::write(&file, "{\"format\":7}").unwrap();
    let file = file.to_str().unwrap();
    let steered = format!("classifier:{file}");
    let contenders = format!("lfu,rudder/{steered}");
    for (args, words) in [
        (&["fit", prefix, "--model", "oracle", "--out", file][..], "logistic"),
        (&["fit", prefix, "--model", "mlp,svm", "--out", file], "put {} in the name"),
        (&["fit", prefix, &two, "--model", "mlp", "--out", file, "--interval", "5000"], "longer traces"),
        (&["fit", prefix, &two, "--model", "mlp", "--out", file, "--buffer", "0"], "nothing to decide"),
        (&["fit", prefix, "--model", "mlp", "--out", file], "one trace alone"),
        (&["fit", "nothing", "--model", "mlp", "--out", file], "nothing is no trace"),
        (&["replay", prefix, "--policy", "rudder", "--controller", &steered], "format is 7"),
        (&["study", prefix, "--traces-only", "--contender", &contenders], "format is 7"),
    ] {
        let output = rudder(args);
        let words_said = said(&output);
        assert!(!output.status.success() && words_said.contains(words), "{args:?}: {words_said}");
    }
}
