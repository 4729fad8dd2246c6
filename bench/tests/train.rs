//! Goal: `rudder train` computes the same numbers whatever keeps or moves the rows, says what it measured, and ends cleanly when a rank, a user
//! or a setting is at fault. Method: the real command on a small generated graph, its document read back, its processes killed.

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

const GRAPH: &str = "sbm:nodes=1500,degree=12,communities=6,dim=8";
/// Far more than any run here takes, far less than a hang.
const PATIENCE: Duration = Duration::from_secs(60);

fn rudder(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rudder"));
    // A launcher's variables, where the tests themselves run under one, are not meant for these runs.
    for variable in ["SLURM_PROCID", "PMI_RANK", "OMPI_COMM_WORLD_RANK"] {
        command.env_remove(variable);
    }
    command.args(args);
    command
}

fn train(more: &[&str]) -> Command {
    let mut args = vec!["train", "--batch", "64", "--fanout", "4,6", "--patience", "20"];
    for default in [["--graph", GRAPH], ["--ranks", "2"]] {
        if !more.contains(&default[0]) {
            args.extend(default);
        }
    }
    args.extend(more);
    rudder(&args)
}

/// The document of a run that must succeed.
fn document(directory: &Path, more: &[&str]) -> Value {
    let file = directory.join("run.json");
    let mut command = train(more);
    let output = command.arg("--json").arg(&file).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap()
}

fn runs(document: &Value) -> &Vec<Value> {
    document["runs"].as_array().unwrap()
}

#[test]
fn losses_are_the_same_bits_whatever_keeps_or_moves_the_rows() {
    let directory = tempfile::tempdir().unwrap();
    let mut expected: Option<Value> = None;
    for (transport, controllers, lookahead) in [
        ("shm", "off-sync,off,fixed,periodic,random,lfu", "0"),
        ("tcp", "off-sync,lfu,analytic", "0"),
        ("tcp", "off,lfu,window,analytic,ghost,guard,pilot", "6"),
    ] {
        let document = document(
            directory.path(),
            &[
                &["--transport", transport, "--controller", controllers, "--lookahead", lookahead, "--epochs", "3"][..],
                &["--pilot", concat!(env!("CARGO_MANIFEST_DIR"), "/pilot/pilot.gguf")],
            ]
            .concat(),
        );
        for run in runs(&document) {
            let loss = &run["series"]["loss"];
            assert!(loss.as_array().unwrap().len() > 20, "too few minibatches to tell anything");
            let expected = expected.get_or_insert_with(|| loss.clone());
            assert_eq!(loss, expected, "{transport}, {}, lookahead {lookahead}", run["setup"]);
        }
    }
}

#[test]
fn another_seed_is_another_training() {
    let directory = tempfile::tempdir().unwrap();
    let loss = |seed: &str| {
        let document = document(directory.path(), &["--controller", "off", "--epochs", "1", "--seed", seed]);
        runs(&document)[0]["series"]["loss"].clone()
    };
    assert_ne!(loss("1"), loss("2"));
}

#[test]
fn the_document_adds_up_and_the_report_shows_it() {
    let directory = tempfile::tempdir().unwrap();
    let document = document(
        directory.path(),
        &["--controller", "off,fixed,lfu", "--buffer", "20%", "--epochs", "2", "--link", "1gbit,50us"],
    );
    for field in ["cpu", "cores", "kernel", "build"] {
        assert!(!document["machine"][field].is_null(), "{field}");
    }
    assert_eq!(runs(&document).len(), 3);
    for run in runs(&document) {
        let total =
            |name: &str| run["series"][name].as_array().unwrap().iter().map(|v| v.as_u64().unwrap()).sum::<u64>();
        assert_eq!(run["demand_rows"], total("demand_rows"));
        assert_eq!(run["prefetched_rows"], total("prefetched_rows"));
        let fetched = ["demand_rows", "prefetched_rows", "fill_rows"].iter().map(|name| run[*name].as_u64().unwrap());
        assert_eq!(run["rows_fetched"], fetched.sum::<u64>());
        assert!(total("hits") + total("demand_rows") >= total("remote_nodes"));
        assert_eq!(run["epoch_s"].as_array().unwrap().len(), 2);
        let accuracy = run["test_accuracy"].as_f64().unwrap();
        assert!(accuracy > 0.5, "a network that learns tells 6 communities apart: {accuracy}");
        assert_eq!(run["hit_rate"].as_f64().unwrap() > 0.0, run["setup"] != "off", "{}", run["setup"]);
        assert_eq!(run["fill_rows"].as_u64().unwrap() > 0, run["setup"] == "fixed", "{}", run["setup"]);
        assert!(run["peak_bytes"].as_u64().unwrap() > 1 << 20);
    }
    let file = directory.path().join("run.json");
    let status = rudder(&["report", file.to_str().unwrap()]).stderr(Stdio::null()).status().unwrap();
    assert!(status.success());
    let page = std::fs::read_to_string(directory.path().join("run.html")).unwrap();
    for setup in ["off", "fixed", "lfu"] {
        assert!(page.contains(&format!(">{setup}</text>")), "{setup}");
    }
}

#[test]
fn ranks_of_a_host_share_a_partition() {
    let directory = tempfile::tempdir().unwrap();
    let document =
        document(directory.path(), &["--ranks", "4", "--ranks-per-host", "2", "--controller", "off", "--epochs", "1"]);
    assert_eq!(document["settings"]["halo"].as_array().unwrap().len(), 2);
}

/// A run that would last far too long, and its ranks' process ids.
fn endless(temporary: &Path) -> (Child, Vec<Pid>) {
    let mut command = train(&["--controller", "lfu", "--epochs", "10000"]);
    let parent = command.env("TMPDIR", temporary).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let ranks = both_ranks(parent.id());
    (parent, ranks)
}

fn both_ranks(parent: u32) -> Vec<Pid> {
    let until = Instant::now() + PATIENCE;
    loop {
        let ranks = children(parent);
        if ranks.len() == 2 {
            // Both are well into the training: past start-up, whose errors are others.
            std::thread::sleep(Duration::from_secs(2));
            return ranks;
        }
        assert!(Instant::now() < until, "the ranks did not start");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn children(parent: u32) -> Vec<Pid> {
    let listed = std::fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let is_child = |pid: &i32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // After the name, in brackets: state and parent.
        let after = stat.rsplit_once(')').map_or("", |(_, after)| after);
        after.split_whitespace().nth(1) == Some(parent.to_string().as_str())
    };
    let mut pids: Vec<i32> = listed.filter(is_child).collect();
    pids.sort_unstable();
    pids.into_iter().filter_map(Pid::from_raw).collect()
}

fn ends(parent: Child) -> Output {
    let pid = Pid::from_child(&parent);
    let (done, wait) = std::sync::mpsc::channel();
    std::thread::spawn(move || done.send(parent.wait_with_output()));
    wait.recv_timeout(PATIENCE).map(Result::unwrap).unwrap_or_else(|_| {
        let _ = kill_process(pid, Signal::KILL);
        panic!("the command hangs")
    })
}

fn gone(ranks: &[Pid]) -> bool {
    ranks.iter().all(|rank| !Path::new(&format!("/proc/{}", rank.as_raw_nonzero())).exists())
}

#[test]
fn a_killed_rank_ends_the_run_with_its_name_and_leaves_nothing() {
    for killed in [0, 1] {
        let temporary = tempfile::tempdir().unwrap();
        let (parent, ranks) = endless(temporary.path());
        kill_process(ranks[killed], Signal::KILL).unwrap();
        let output = ends(parent);
        let words = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success());
        assert!(words.contains(&format!("rank {killed} was killed by signal 9")), "{words}");
        assert!(gone(&ranks));
        assert_eq!(std::fs::read_dir(temporary.path()).unwrap().count(), 0, "the run's directory is still there");
    }
}

#[test]
fn an_interrupt_stops_all_ranks_and_leaves_nothing() {
    let temporary = tempfile::tempdir().unwrap();
    let (parent, ranks) = endless(temporary.path());
    kill_process(Pid::from_child(&parent), Signal::INT).unwrap();
    let output = ends(parent);
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(words.contains("stopped by a signal"), "{words}");
    assert!(gone(&ranks));
    assert_eq!(std::fs::read_dir(temporary.path()).unwrap().count(), 0, "the run's directory is still there");
}

#[test]
fn ranks_end_with_a_parent_that_was_killed() {
    let temporary = tempfile::tempdir().unwrap();
    let (parent, ranks) = endless(temporary.path());
    kill_process(Pid::from_child(&parent), Signal::KILL).unwrap();
    ends(parent);
    let until = Instant::now() + Duration::from_secs(10);
    // Whoever adopts orphans may take its time to reap them: a zombie runs no more.
    let over = |rank: &Pid| {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", rank.as_raw_nonzero())).unwrap_or_default();
        stat.rsplit_once(')').is_none_or(|(_, after)| after.trim_start().starts_with('Z'))
    };
    while !ranks.iter().all(over) {
        assert!(Instant::now() < until, "ranks outlived their parent");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn ranks_that_a_launcher_started_meet_by_a_file() {
    let directory = tempfile::tempdir().unwrap();
    let (meeting, file) = (directory.path().join("meeting"), directory.path().join("run.json"));
    let start = |rank: &str| {
        let mut command = train(&["--controller", "off,lfu", "--epochs", "2"]);
        command.arg("--meeting").arg(&meeting).arg("--json").arg(&file);
        command.env("PMI_RANK", rank).env("PMI_SIZE", "2").stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let ranks = [start("1"), start("0")];
    for rank in ranks {
        let output = ends(rank);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let document: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    assert_eq!(runs(&document).len(), 2);
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1, "only the document is left");
}

#[test]
fn a_launched_run_that_fails_leaves_nothing_behind() {
    let directory = tempfile::tempdir().unwrap();
    let start = |rank: &str| {
        // The graph is prepared by then.
        let mut command = train(&["--controller", "off", "--hidden", "1000000"]);
        command.arg("--meeting").arg(directory.path().join("meeting"));
        command.env("PMI_RANK", rank).env("PMI_SIZE", "2").stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let ranks = [start("1"), start("0")];
    for rank in ranks {
        let output = ends(rank);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains("a smaller --hidden"), "{said}");
    }
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0, "the prepared graph is still there");
}

#[test]
fn settings_that_cannot_work_are_refused_with_a_remedy() {
    for (args, words) in [
        (&["--controller", "window"][..], "--lookahead"),
        (&["--controller", "magic"], "off-sync"),
        (&["--transport", "pigeon"], "no transport is named 'pigeon'"),
        (&["--ranks", "3", "--ranks-per-host", "2"], "do not fill"),
        (&["--controller", "llm", "--model", "/nonexistent.gguf"], "/nonexistent.gguf"),
        (&["--controller", "classifier"], "--classifier"),
        (&["--controller", "classifier", "--classifier", "/nonexistent.json"], "/nonexistent.json"),
        (&["--ranks", "2", "--graph", "cora"], "cora"),
        (&["--learning-rate", "inf"], "does not learn"),
        (&["--learning-rate", "1e-60"], "does not learn"),
        (&["--learning-rate", "1e38"], "the training diverged: the loss of minibatch"),
    ] {
        let output = train(args).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains(words), "{args:?}: {said}");
    }
}
