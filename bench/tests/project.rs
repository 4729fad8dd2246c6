//! Goal: `rudder project` agrees with the simulator where that can be asked, says what nothing has checked, and refuses what it cannot mean.
//! Method: the command on small graphs of two kinds, and its document.

use serde_json::Value;
use std::path::Path;
use std::process::{Command, Output};

fn rudder(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_rudder")).args(arguments).output().expect("the command starts")
}

/// A document's only projection, of strong scaling.
fn project(graph: &str, folder: &Path, more: &[&str]) -> Value {
    let mut document = document(graph, folder, more);
    let projections = document["projections"].as_array_mut().unwrap();
    assert_eq!((projections.len(), projections[0]["scaling"].as_str()), (1, Some("strong")));
    projections.remove(0)
}

fn document(graph: &str, folder: &Path, more: &[&str]) -> Value {
    let file = folder.join("project.json");
    let base = ["project", "--graph", graph, "--simulate", "2,4,8", "--ranks", "4,16,64,256", "--minibatches", "64"];
    let output = rudder(&[&base[..], more, &["--json", file.to_str().unwrap()]].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap()
}

const RMAT: &str = "rmat:scale=13,degree=12,dim=1";
const SBM: &str = "sbm:nodes=12000,degree=16,communities=32,dim=1";

#[test]
fn the_model_agrees_with_the_simulator() {
    let folder = tempfile::tempdir().unwrap();
    for graph in [RMAT, SBM] {
        for link in ["1gbit,50us", "200mbit,10us"] {
            let document = document(graph, folder.path(), &["--network", link, "--gradient-bytes", "0", "--weak", "8"]);
            for projection in document["projections"].as_array().unwrap() {
                let told = format!("{graph}, {link}, {}", projection["scaling"]);
                let rows = projection["rows"].as_array().unwrap();
                for row in rows.iter().filter(|row| row["kind"] == "simulated") {
                    let error = row["epoch_s"].as_f64().unwrap() / row["checked_s"].as_f64().unwrap() - 1.0;
                    assert!(error.abs() < 0.2, "{told}: {error} in {row}");
                }
                let held_out = &projection["held_out"];
                for part in ["rows", "step"] {
                    let times = held_out[part].as_f64().unwrap();
                    assert!((0.8..1.25).contains(&times), "{told}: {part} {times} x");
                }
            }
        }
    }
}

#[test]
fn every_number_of_ranks_is_there_once_and_bytes_are_those_of_rows() {
    let folder = tempfile::tempdir().unwrap();
    let document = project(SBM, folder.path(), &["--row-bytes", "400"]);
    let again = project(SBM, folder.path(), &["--row-bytes", "400"]);
    assert_eq!(document["rows"], again["rows"], "the same whenever it is asked");
    let rows = document["rows"].as_array().unwrap();
    let ranks: Vec<(u64, &str)> =
        rows.iter().map(|row| (row["ranks"].as_u64().unwrap(), row["kind"].as_str().unwrap())).collect();
    let expected = [(2, "simulated"), (4, "simulated"), (8, "simulated"), (16, "model"), (64, "model"), (256, "model")];
    assert_eq!(ranks, expected);
    for row in rows {
        let number = |name: &str| row[name].as_f64().unwrap();
        let bytes = number("steps") * number("ranks") * number("fetched") * 400.0;
        assert!((number("epoch_bytes") / bytes - 1.0).abs() < 1e-9);
        assert!(number("fetched") <= number("wanted"));
        assert_eq!(row["checked_s"].is_null(), row["kind"] == "model");
    }
}

#[test]
fn in_weak_scaling_a_ranks_part_stays_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let document = document(SBM, folder.path(), &["--weak", "8", "--row-bytes", "400", "--batch", "32"]);
    let [strong, weak] = &document["projections"].as_array().unwrap()[..] else { panic!("{document}") };
    assert_eq!((strong["scaling"].as_str(), weak["scaling"].as_str()), (Some("strong"), Some("weak")));
    let number = |of: &Value, name: &str| of[name].as_f64().unwrap();
    // 12000 nodes are those of 8 ranks; the few without an edge are left out.
    assert!((1400.0..=1500.0).contains(&number(weak, "nodes")), "{}", weak["nodes"]);
    let [least, most] = [0, 1].map(|at| weak["simulated_nodes"][at].as_f64().unwrap());
    assert!(least <= number(weak, "nodes") && number(weak, "nodes") <= most && most / least < 1.02);
    let rows = |of: &Value| of["rows"].as_array().unwrap().clone();
    let at = |of: &Value, ranks: u64| rows(of).into_iter().find(|row| row["ranks"] == ranks).unwrap();
    // With 8 ranks it is the same job.
    assert_eq!(at(weak, 8)["checked_s"], at(strong, 8)["checked_s"]);
    for row in rows(weak) {
        assert_eq!(row["steps"], weak["rows"][0]["steps"], "as many minibatches, however many ranks");
        let efficiency = number(&weak["rows"][0], "epoch_s") / number(&row, "epoch_s");
        assert!((number(&row, "efficiency") - efficiency).abs() < 1e-9);
    }
    for row in rows(strong) {
        let epochs = number(&strong["rows"][0], "epoch_s") / number(&row, "epoch_s");
        assert!((number(&row, "efficiency") - epochs * 2.0 / number(&row, "ranks")).abs() < 1e-9);
    }
    assert_eq!(at(strong, 256)["bound"], "seeds");
    assert_ne!(at(weak, 256)["bound"], "seeds");
}

#[test]
fn sizes_alone_are_held_against_a_graph() {
    let folder = tempfile::tempdir().unwrap();
    let papers = "sizes:nodes=111059956,edges=3231371744,train=1207179";
    for (sizes, graph, least, most) in
        [(papers.to_owned(), RMAT, 0.8, 1.25), (format!("{papers},tail=1.3,local=0.5"), SBM, 0.7, 1.4)]
    {
        let document = document(&sizes, folder.path(), &["--check", graph, "--network", "1gbit,50us", "--weak", "4"]);
        assert_eq!(document["check"]["graph"], graph);
        let checked = document["check"]["rows"].as_array().unwrap();
        assert_eq!(checked.iter().map(|row| row["ranks"].as_u64().unwrap()).collect::<Vec<_>>(), [2, 4, 8]);
        for (row, part) in checked.iter().flat_map(|row| ["wanted", "fetched", "step"].map(|part| (row, part))) {
            let times = row[part].as_f64().unwrap();
            assert!((least..most).contains(&times), "{graph}: {part} {times} x in {row}");
        }
        let [strong, weak] = &document["projections"].as_array().unwrap()[..] else { panic!("{document}") };
        for row in [strong, weak].iter().flat_map(|of| of["rows"].as_array().unwrap()) {
            assert_eq!((row["kind"].as_str(), row["checked_s"].is_null()), (Some("sizes"), true));
        }
        let at = |of: &Value, ranks: u64| {
            of["rows"].as_array().unwrap().iter().find(|row| row["ranks"] == ranks).unwrap()["epoch_s"].clone()
        };
        let [one, other] = [strong, weak].map(|of| at(of, 4).as_f64().unwrap());
        assert!((one / other - 1.0).abs() < 1e-9, "with 4 ranks it is the same job");
    }
}

#[test]
fn a_recorded_job_stands_beside_the_model() {
    let folder = tempfile::tempdir().unwrap();
    let prefix = folder.path().join("two");
    let prefix = prefix.to_str().unwrap();
    let recording = ["--ranks", "2", "--batch", "64", "--fanout", "5,10", "--epochs", "2", "--controller", "lfu"];
    let train = [&["train", "--graph", SBM, "--trace", prefix][..], &recording].concat();
    let output = rudder(&train);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let document = project(SBM, folder.path(), &[prefix]);
    let measured = &document["rows"][0];
    assert_eq!((measured["kind"].as_str(), measured["ranks"].as_u64()), (Some("measured"), Some(2)));
    assert!(measured["checked_s"].as_f64().unwrap() > 0.0);
    let wrong = rudder(&["project", prefix, "--graph", RMAT, "--simulate", "2,4"]);
    let told = String::from_utf8_lossy(&wrong.stderr).into_owned();
    assert!(!wrong.status.success() && told.contains("a graph of 12000 nodes was recorded"), "{told}");
}

#[test]
fn what_cannot_be_meant_is_refused() {
    for (arguments, told) in [
        (&["--simulate", "4"][..], "at least two"),
        (&["--network", "quick"], "network"),
        (&["--buffer", "1.5"], "share of the halo"),
        (&["--ranks", "1"], "--ranks"),
        (&["--policy", "lru/periodic:8"], "--policy"),
        (&["nothing-here"], "nothing-here"),
        (&["--weak", "8"], "graph debian is the size it is"),
        (&["--graph", "sizes:nodes=9,edges=20"], "train is missing"),
        (
            &["--graph", "sizes:nodes=9,edges=20,train=5", "--policy", "window", "--lookahead", "4"],
            "not window with --lookahead 4",
        ),
        (&["--network", "loggp:no-such.json,tcp"], "reading no-such.json"),
    ] {
        let output = rudder(&[&["project"][..], arguments].concat());
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains(told), "{arguments:?}: {said}");
    }
}
