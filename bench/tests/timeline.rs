//! Goal: a timeline shows what a trace recorded, each part of a step once and in a row, and its gathers beside it. Method: a small job that
//! is trained and recorded; its timeline held against its traces.

use rudder::trace::{Event, Reader};
use serde_json::Value;
use std::path::Path;
use std::process::Command;

fn rudder(args: &[&str], more: &[&Path]) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rudder"));
    for variable in ["SLURM_PROCID", "PMI_RANK", "OMPI_COMM_WORLD_RANK"] {
        command.env_remove(variable);
    }
    let output = command.args(args).args(more).output().unwrap();
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Microseconds that a trace has of each part, and rows of owners.
fn recorded(file: &Path) -> ([f64; 4], u64, usize) {
    let (mut times, mut rows, mut minibatches) = ([0.0; 4], 0, 0);
    for event in Reader::open(file).unwrap() {
        let Event::Minibatch(minibatch) = event.unwrap() else { continue };
        let step = minibatch.step;
        for (sum, time) in times.iter_mut().zip([step.sample, minibatch.stall, step.compute, step.allreduce]) {
            *sum += time.as_nanos() as f64 / 1e3;
        }
        rows += minibatch.owners.iter().map(|owner| owner.rows).sum::<u64>();
        minibatches += 1;
    }
    (times, rows, minibatches)
}

#[test]
fn a_timeline_is_what_the_traces_recorded() {
    let directory = tempfile::tempdir().unwrap();
    let prefix = directory.path().join("job");
    let train = "train --graph sbm:nodes=1500,degree=12,communities=6,dim=8 --batch 64 --fanout 4,6 --ranks 2 --patience 60 \
                 --epochs 2 --controller lfu --link 100mbit,50us --trace";
    rudder(&train.split_whitespace().collect::<Vec<_>>(), &[&prefix]);
    let traces = [0, 1].map(|rank| directory.path().join(format!("job.{rank}.trace")));
    let file = directory.path().join("timeline.json");
    rudder(&["trace", "timeline", "--output"], &[&file, &traces[0], &traces[1]]);
    let document: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    let events = document["traceEvents"].as_array().unwrap();
    for (rank, trace) in traces.iter().enumerate() {
        let (times, rows, minibatches) = recorded(trace);
        let of = |phase: &str| events.iter().filter(|e| e["pid"] == rank && e["ph"] == phase).collect::<Vec<_>>();
        let spans = of("X");
        let number = |event: &Value, key: &str| event[key].as_f64().unwrap();
        let (training, gathers): (Vec<&Value>, Vec<&Value>) = spans.into_iter().partition(|span| span["tid"] == 0);
        let total = |names: &[&str]| {
            let named = training.iter().filter(|span| names.contains(&span["name"].as_str().unwrap()));
            named.map(|span| number(span, "dur")).sum::<f64>()
        };
        for (names, time) in
            [&["sample"][..], &["stall"], &["compute", "evaluate"], &["allreduce"]].into_iter().zip(times)
        {
            assert!((total(names) - time).abs() < 1.0, "rank {rank}: {names:?} {} {time}", total(names));
        }
        // Nothing overlaps on a thread, and a gather ends no earlier than it begins.
        for pair in training.windows(2) {
            let end = number(pair[0], "ts") + number(pair[0], "dur");
            assert!((number(pair[1], "ts") - end).abs() < 0.01, "{pair:?}");
        }
        assert_eq!(gathers.len(), minibatches);
        assert!(gathers.iter().any(|gather| gather["name"] == "overlapped gather"), "{:?}", gathers[0]);
        assert!(gathers.iter().all(|gather| number(gather, "dur") >= 0.0));
        let counters = of("C");
        let counted = counters.iter().flat_map(|event| event["args"].as_object().unwrap().values());
        assert_eq!(counted.map(|rows| rows.as_u64().unwrap()).sum::<u64>(), rows);
        assert!(rows > 0 && of("i").iter().any(|event| event["name"] == "epoch ends"));
        let name = of("M").iter().any(|event| event["args"]["name"] == format!("rank {rank}"));
        assert!(name);
    }
}
