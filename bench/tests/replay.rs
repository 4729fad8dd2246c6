//! Goal: `rudder replay` fetches what the recorded run fetched, what the buffer alone fetches, and takes the time that its rules say; the same
//! in every run; and `rudder trace` shows what is in a file. Method: the real command on a run that is recorded here, on the checked-in
//! trace beside a direct use of the buffer, and on traces made for it.

#[path = "../../tests/replay/mod.rs"]
mod direct;

use direct::{Replay, Trace, recorded};
use rudder::buffer::PolicyConfig;
use rudder::trace::{Event, Header, Minibatch, StepTimes, TraceTable, Writer, file_of};
use rudder::{NodeId, PartitionBook, PartitionId, Rank, TableId, TableSpec};
use serde_json::Value;
use std::ops::Range;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

fn rudder(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rudder"));
    // A launcher's variables, where the tests themselves run under one, are not meant for these runs.
    for variable in ["SLURM_PROCID", "PMI_RANK", "OMPI_COMM_WORLD_RANK"] {
        command.env_remove(variable);
    }
    command.args(args).output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// The document of a command that must succeed and writes one by `--json`.
fn document(directory: &Path, args: &[&str]) -> Value {
    let file = directory.join("document.json");
    let output = rudder(&[args, &["--json", file.to_str().unwrap()]].concat());
    assert!(output.status.success(), "{}", said(&output));
    serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap()
}

fn number(row: &Value, field: &str) -> u64 {
    row[field].as_u64().unwrap_or_else(|| panic!("{field} of {row}"))
}

/// Trains on a small graph with two ranks and records it.
fn train(directory: &Path, prefix: &str, more: &[&str]) -> Value {
    let graph = "sbm:nodes=1500,degree=12,communities=6,dim=8";
    let args = [
        "train", "--graph", graph, "--ranks", "2", "--batch", "64", "--fanout", "4,6", "--epochs", "3", "--trace",
        prefix,
    ];
    document(directory, &[&args, more].concat())["runs"][0].clone()
}

#[test]
fn a_run_replays_to_its_own_rows_and_hits() {
    let directory = tempfile::tempdir().unwrap();
    let prefix = directory.path().join("job");
    let prefix = prefix.to_str().unwrap();
    // Rows come so late that what is copied meanwhile has been copied by then, as in a replay.
    for (controller, policy, decides) in [("lfu", "lfu", "off"), ("fixed", "degree", "fixed"), ("off", "off", "off")] {
        let run = train(directory.path(), prefix, &["--controller", controller, "--buffer", "0.2", "--link", "20ms"]);
        let replay = ["replay", prefix, "--policy", policy, "--controller", decides];
        for link in ["none", "10mbit,1ms"] {
            let document = document(directory.path(), &[&replay[..], &["--link", link]].concat());
            let row = &document["rows"][0];
            for field in ["demand_rows", "prefetched_rows", "fill_rows"] {
                assert_eq!(row[field], run[field], "{field} of {controller}, link {link}");
            }
            let sum =
                |field: &str| run["series"][field].as_array().unwrap().iter().map(|v| v.as_u64().unwrap()).sum::<u64>();
            let hit_rate = sum("hits") as f64 / sum("remote_nodes") as f64;
            assert!((row["hit_rate"].as_f64().unwrap() - hit_rate).abs() < 1e-12, "{controller}");
            assert_eq!(row["epochs_s"].as_array().unwrap().len(), 3);
            let own = &document["recorded"][0];
            assert_eq!(number(own, "rows_fetched"), number(row, "demand_rows") + number(row, "prefetched_rows"));
        }
    }
}

#[test]
fn what_is_announced_is_recorded_and_replayed() {
    let directory = tempfile::tempdir().unwrap();
    let prefix = directory.path().join("job");
    let prefix = prefix.to_str().unwrap();
    train(directory.path(), prefix, &["--controller", "window", "--lookahead", "4"]);
    let file = format!("{prefix}.1.trace");
    let info = said(&rudder(&["trace", "info", &file]));
    for words in ["rank 1 of 2", "policy window", "in 3 epochs", "of evaluation; 0 missing", "hits", "partition 0:"] {
        assert!(info.contains(words), "{words}: {info}");
    }
    let head = said(&rudder(&["trace", "head", &file, "-n", "7"]));
    assert_eq!(head.lines().count(), 7);
    let seventh = head.lines().nth(6).unwrap();
    // Two ranks: what travels is the other's.
    for words in ["announced 4 ahead, overlapped", "of the halo (", "@0* ", "; partition 0: "] {
        assert!(seventh.contains(words), "{words}: {head}");
    }
    assert!(!seventh.contains("@1"), "{head}");
    let document = document(
        directory.path(),
        &["replay", prefix, "--policy", "lfu,window,belady", "--lookahead", "0,4", "--buffer", "0.1,0.3"],
    );
    let ratio = |policy: &str, buffer: &str, ahead: u64| {
        let rows = document["rows"].as_array().unwrap();
        let row = rows.iter().find(|row| {
            (row["policy"].as_str(), row["buffer"].as_str()) == (Some(policy), Some(buffer))
                && row["lookahead"] == ahead
        });
        row.unwrap()["ratio_to_opt"].as_f64().unwrap()
    };
    for buffer in ["10 %", "30 %"] {
        assert_eq!(ratio("belady", buffer, 0), 1.0);
        let (lfu, window) = (ratio("lfu", buffer, 0), ratio("window", buffer, 4));
        assert!(lfu > window && window >= 1.0, "lfu {lfu}, window {window}");
    }
}

/// The checked-in trace as a file of rank 0.
fn checked_in(prefix: &Path, trace: &Trace, slots: u32) {
    let book = trace.hints.owners.clone();
    let peers = (0..book.partitions()).map(|at| (at > 0).then_some(Rank(at))).collect();
    let (halo, degree) = (trace.hints.halo.clone(), trace.hints.degree.clone());
    let ranks = book.partitions();
    let spec = TableSpec { halo, degree, ..TableSpec::new(TableId(0), book, PartitionId(0), 64) };
    let header = Header { ranks, tables: vec![TraceTable::new(&spec, peers, slots)], ..Header::default() };
    let mut writer = Writer::create(&file_of(prefix, Rank(0)), &header).unwrap();
    for nodes in &trace.minibatches {
        let minibatch = Minibatch { nodes: nodes.clone(), observed: true, overlapped: true, ..Minibatch::default() };
        writer.minibatch(&minibatch).unwrap();
    }
    writer.finish().unwrap();
}

#[test]
fn rows_are_those_of_the_buffer_used_directly() {
    let directory = tempfile::tempdir().unwrap();
    let (trace, prefix) = (recorded(), directory.path().join("one"));
    let slots = trace.hints.halo.len() as u32 / 2;
    checked_in(&prefix, &trace, slots);
    let prefix = prefix.to_str().unwrap();
    for (policy, controller, every) in
        [("lfu", "off", None), ("degree", "off", None), ("rudder", "periodic:8", Some(8)), ("off", "off", None)]
    {
        let mut direct = Replay::new(slots, &PolicyConfig::named(policy).unwrap(), trace.hints.clone());
        for (at, nodes) in trace.minibatches.iter().enumerate() {
            direct.gather(nodes, None, every.is_some_and(|every| (at + 1) % every == 0));
        }
        for link in ["none", "100mbit,50us"] {
            let args = ["replay", prefix, "--policy", policy, "--controller", controller, "--link", link];
            let row = document(directory.path(), &args)["rows"][0].clone();
            let hits = (row["hit_rate"].as_f64().unwrap()
                * trace.minibatches.iter().map(Vec::len).sum::<usize>() as f64)
                .round();
            assert_eq!(
                (number(&row, "rows_fetched"), hits as u64),
                (direct.fetched, direct.buffer.counters().hits),
                "{policy}"
            );
            assert_eq!(number(&row, "useless_rows"), direct.buffer.counters().useless, "{policy}");
        }
    }
}

#[test]
fn a_replay_is_the_same_in_every_run_and_on_any_number_of_threads() {
    let directory = tempfile::tempdir().unwrap();
    let (trace, prefix) = (recorded(), directory.path().join("one"));
    checked_in(&prefix, &trace, 300);
    let rows = |threads: &str| {
        let lists =
            ["--policy", "off,lfu,rudder,window", "--controller", "off,periodic:8,random:3:4", "--lookahead", "0,8"];
        let link = ["--link", "1gbit,50us", "--decision-latency", "0.001", "--threads", threads];
        let args = [&["replay", prefix.to_str().unwrap(), "--buffer", "recorded,0.1"], &lists[..], &link[..]].concat();
        let mut rows = document(directory.path(), &args)["rows"].clone();
        // The one figure that is measured.
        rows.as_array_mut().unwrap().iter_mut().for_each(|row| row["decision_cpu_s"] = Value::Null);
        rows
    };
    let first = rows("1");
    assert_eq!(first.as_array().unwrap().len(), 24);
    assert_eq!(first, rows("1"));
    assert_eq!(first, rows("3"));
}

/// Two ranks, two minibatches: rank 0 wants these 10 rows of 100 bytes each and computes for 5 ms, rank 1 wants none and computes for 6 ms.
fn two_ranks(prefix: &Path, overlapped: bool, wanted: [Range<u64>; 2]) {
    let ms = Duration::from_millis;
    for rank in 0..2 {
        let book = PartitionBook::from_starts(vec![0, 100, 200]).unwrap();
        let peers = [0, 1].map(|peer| (peer != rank).then_some(Rank(peer)));
        let spec = TableSpec::new(TableId(0), book, PartitionId(rank), 100);
        let table = TraceTable::new(&spec, peers.to_vec(), 0);
        let header = Header { rank: Rank(rank), ranks: 2, tables: vec![table], ..Header::default() };
        let mut writer = Writer::create(&file_of(prefix, Rank(rank)), &header).unwrap();
        for wanted in wanted.clone() {
            let nodes = if rank == 0 { wanted.map(NodeId).collect() } else { vec![] };
            let compute = ms(5 + u64::from(rank));
            // The slower rank averages for 1 ms, the other waits for it meanwhile.
            let step = StepTimes { sample: ms(1), compute, allreduce: ms(2 - u64::from(rank)) };
            writer.minibatch(&Minibatch { nodes, observed: true, overlapped, step, ..Minibatch::default() }).unwrap();
        }
        writer.event(&Event::EpochEnd).unwrap();
        writer.finish().unwrap();
    }
}

#[test]
fn a_step_takes_what_its_slowest_rank_takes() {
    let directory = tempfile::tempdir().unwrap();
    let prefix = directory.path().join("two");
    // 1000 bytes take 1 ms, after a latency of 2 ms.
    let replay = ["replay", prefix.to_str().unwrap(), "--policy", "off", "--link", "8mbit,2ms"];
    // One step after the other: sample 1, stall 3, compute 5, average 1.
    two_ranks(&prefix, false, [100..110, 100..110]);
    let row = document(directory.path(), &replay)["rows"][0].clone();
    assert_eq!((row["stall_s"].as_f64(), row["epoch_s"].as_f64()), (Some(0.006), Some(0.020)));
    assert_eq!((number(&row, "rows_fetched"), number(&row, "bytes")), (20, 2000));
    // The second gather flies while the first minibatch computes: the second step is as long as rank 1, which waits for nothing.
    two_ranks(&prefix, true, [100..110, 100..110]);
    let row = document(directory.path(), &replay)["rows"][0].clone();
    assert_eq!((row["stall_s"].as_f64(), row["epoch_s"].as_f64()), (Some(0.003), Some(0.017)));
    // It arrives while gradients are averaged, before anyone waits for it.
    let replay = ["replay", prefix.to_str().unwrap(), "--policy", "off", "--link", "8mbit,4500us"];
    let row = document(directory.path(), &replay)["rows"][0].clone();
    assert_eq!((row["stall_s"].as_f64(), row["epoch_s"].as_f64()), (Some(0.0055), Some(0.0195)));
}

#[test]
fn rows_fetched_ahead_one_at_a_time_come_later() {
    let directory = tempfile::tempdir().unwrap();
    let prefix = directory.path().join("two");
    two_ranks(&prefix, false, [100..110, 110..120]);
    let list = ["--policy", "off", "--buffer", "2000B", "--lookahead", "1", "--link", "8mbit,2ms"];
    let replay = [&["replay", prefix.to_str().unwrap()], &list[..]].concat();
    let stall = |more: &[&str]| {
        let document = document(directory.path(), &[&replay[..], more].concat());
        assert_eq!(document["settings"]["in_flight"].to_string(), more.get(1).unwrap_or(&"null").to_string());
        document["rows"][0]["stall_s"].as_f64().unwrap()
    };
    // All of the second minibatch comes while the first computes.
    assert_eq!((stall(&[]), stall(&["--in-flight", "2048"])), (0.003, 0.003));
    // The first row is asked for when those of the first minibatch have come, after 4 ms, and every 2.1 ms another: after 11 ms three are there and one is on
    // its way, and the six others, on demand, take 2.6 ms.
    assert_eq!(stall(&["--in-flight", "1"]), 0.0056);
}

#[test]
fn of_a_damaged_trace_what_is_before_the_damage_is_used() {
    let directory = tempfile::tempdir().unwrap();
    let (trace, prefix) = (recorded(), directory.path().join("cut"));
    checked_in(&prefix, &trace, 300);
    let file = file_of(&prefix, Rank(0));
    let bytes = std::fs::read(&file).unwrap();
    std::fs::write(&file, &bytes[..bytes.len() - 10]).unwrap();
    let info = rudder(&["trace", "info", file.to_str().unwrap()]);
    let words = said(&info);
    assert!(!info.status.success() && words.contains("cut off") && words.contains("1 of 1 traces"), "{words}");
    let document = document(directory.path(), &["replay", file.to_str().unwrap(), "--policy", "lfu"]);
    let steps = number(&document["recorded"][0], "steps");
    assert!(steps > 0 && steps < trace.minibatches.len() as u64, "{steps}");
    let notes = document["notes"].to_string();
    assert!(notes.contains("cut off") && notes.contains("1 of the job's 4 ranks"), "{notes}");
    std::fs::write(&file, b"this is something else altogether").unwrap();
    let other = said(&rudder(&["trace", "head", file.to_str().unwrap()]));
    assert!(other.contains("no trace of rudder"), "{other}");
}

#[test]
fn the_report_shows_every_row_and_loads_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let (trace, prefix) = (recorded(), directory.path().join("<one>"));
    checked_in(&prefix, &trace, 300);
    let report = directory.path().join("report.html");
    let args = ["replay", prefix.to_str().unwrap(), "--policy", "lfu,window,belady", "--link", "100mbit", "--report"];
    let output = rudder(&[&args[..], &[report.to_str().unwrap()]].concat());
    assert!(output.status.success(), "{}", said(&output));
    let page = std::fs::read_to_string(&report).unwrap();
    for words in
        [">lfu</text>", ">window</text>", ">belady</text>", "Rows fetched", "Time lost to stalls", "&lt;one&gt;"]
    {
        assert!(page.contains(words), "{words}");
    }
    for loaded in ["<script", "<link", "src=", "url(", "@import", "NaN", "<one>"] {
        assert!(!page.contains(loaded), "{loaded}");
    }
}

#[test]
fn what_cannot_be_replayed_is_refused_with_a_remedy() {
    let directory = tempfile::tempdir().unwrap();
    let (trace, prefix) = (recorded(), directory.path().join("one"));
    checked_in(&prefix, &trace, 300);
    let prefix = prefix.to_str().unwrap();
    for (args, words) in [
        (&["replay", prefix, "--controller", "llm-replace", "--policy", "rudder"][..], "rudder train"),
        (&["replay", prefix, "--policy", "best"], "choose one of"),
        (&["replay", prefix, "--policy", "lfu", "--controller", "periodic:8"], "choose policy rudder"),
        (&["replay", "nothing"], "nothing is no trace"),
        (&["replay", prefix, "--lookahead", "64"], "63"),
        (&["train", "--controller", "off,lfu", "--trace", prefix], "one set-up"),
    ] {
        let output = rudder(args);
        let words_said = said(&output);
        assert!(!output.status.success() && words_said.contains(words), "{args:?}: {words_said}");
    }
}
