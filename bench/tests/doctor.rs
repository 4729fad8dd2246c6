//! Goal: `rudder doctor` tells what a machine lacks, works where there is nothing but the machine, and its exit status says whether a job can
//! run. Method: the real command in environments made for it, with programs that stand for python3 and mpiexec.

use serde_json::Value;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// The command with nothing around it: no variables, no programs, no model.
fn doctor(home: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rudder"));
    command.env_clear().env("HOME", home).env("PATH", home).arg("doctor").args(args);
    command
}

fn document(command: &mut Command) -> (Option<i32>, Value) {
    let Output { status, stdout, stderr } = command.arg("--json").output().unwrap();
    let document = serde_json::from_slice(&stdout);
    (status.code(), document.unwrap_or_else(|cause| panic!("{cause}: {}", String::from_utf8_lossy(&stderr))))
}

fn row<'a>(document: &'a Value, what: &str) -> &'a Value {
    let rows = document["rows"].as_array().unwrap();
    rows.iter().find(|row| row["what"] == what).unwrap_or_else(|| panic!("no row {what}: {document:#}"))
}

fn program(home: &Path, name: &str, script: &str) {
    let path = home.join(name);
    std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn a_machine_with_nothing_else_on_it_is_ready() {
    let home = tempfile::tempdir().unwrap();
    let (status, document) = document(&mut doctor(home.path(), &[]));
    assert_eq!((status, &document["ready"]), (Some(0), &Value::Bool(true)), "{document:#}");
    assert_eq!(document["format"], 1);
    for what in [
        "settings",
        "transport shm",
        "transport tcp",
        "transport verbs",
        "transport mpi",
        "transport fabric",
        "locked memory",
        "huge pages",
        "/dev/shm",
        "cpus",
        "MPI launcher",
        "language model",
        "C interface",
        "DistDGL adapter",
    ] {
        let row = row(&document, what);
        for key in ["host", "found", "state", "remedy"] {
            assert!(row[key].is_string(), "{key} of {row}");
        }
    }
    assert_eq!(row(&document, "language model")["state"], "could-be-better");
    let table = doctor(home.path(), &[]).output().unwrap();
    let table = String::from_utf8(table.stdout).unwrap();
    assert!(table.contains("could be better") && table.trim_end().ends_with("ready"), "{table}");
}

#[test]
fn what_makes_a_job_impossible_is_told_by_the_exit_status() {
    let home = tempfile::tempdir().unwrap();
    for (name, value, what) in [
        ("RUDDER_TRANSPORT", "pigeon", "settings"),
        ("RUDDER_BUFFER", "much", "settings"),
        ("RUDDER_LISTEN", "192.0.2.1", "transport tcp"),
        ("RUDDER_NIC", "cxi99", "NIC"),
        ("PMI_RANK", "many", "launcher"),
    ] {
        let (status, document) = document(doctor(home.path(), &[]).env(name, value));
        assert_eq!((status, &document["ready"]), (Some(1), &Value::Bool(false)), "{name}={value}");
        assert_eq!(row(&document, what)["state"], "missing", "{name}={value}");
    }
    for args in [&["--ranks", "3"][..], &["--patience", "0"], &["--no-such-thing"]] {
        assert_eq!(doctor(home.path(), args).output().unwrap().status.code(), Some(2), "{args:?}");
    }
}

#[test]
fn programs_are_asked_and_may_hang_or_contradict() {
    let home = tempfile::tempdir().unwrap();
    program(home.path(), "mpiexec", "echo 'mpiexec (OpenRTE) 4.1.4'");
    let said = r#"{"version": "0.1.0", "wants": 2, "library": null, "error": "it speaks version 1", "dgl": "2.1.0"}"#;
    program(home.path(), "python3", &format!("echo '{said}'"));
    let (status, document) = document(&mut doctor(home.path(), &[]));
    assert_eq!(status, Some(1), "an adapter without its library cannot run");
    assert!(row(&document, "MPI launcher")["found"].as_str().unwrap().contains("Open MPI"));
    let adapter = row(&document, "DistDGL adapter");
    assert!(
        adapter["state"] == "missing" && adapter["found"].as_str().unwrap().contains("speaks version 1"),
        "{adapter}"
    );
}

#[test]
fn ranks_that_this_command_starts_read_from_each_other() {
    let home = tempfile::tempdir().unwrap();
    for (transport, expected) in [("auto", "shm"), ("tcp", "tcp")] {
        let (status, document) =
            document(&mut doctor(home.path(), &["--peers", "--ranks", "3", "--transport", transport]));
        assert_eq!(status, Some(0), "{document:#}");
        let peers = &document["peers"];
        assert_eq!((&peers["transport"], &peers["pairs"]), (&expected.into(), &6.into()), "{peers:#}");
        assert!(peers["failures"].as_array().unwrap().is_empty() && peers["error"].is_null(), "{peers:#}");
        assert!(peers["slowest_us"].as_u64().unwrap() > 0);
    }
    // What a job's environment says of policies and files is not theirs.
    let kept = home.path().join("kept");
    let mut odd = doctor(home.path(), &["--peers"]);
    odd.env("RUDDER_STATS_FILE", &kept).env("RUDDER_TRACE", &kept).env("RUDDER_CONTROLLER", "periodic:8");
    odd.env("RUDDER_POLICY", "rudder").env("OMPI_COMM_WORLD_RANK", "many");
    let (status, told) = document(&mut odd);
    assert_eq!((status, row(&told, "launcher")["state"].as_str()), (Some(1), Some("missing")), "{told:#}");
    assert!(told["peers"]["error"].is_null() && told["peers"]["pairs"] == 2, "{told:#}");
    assert_eq!(std::fs::read_dir(home.path()).unwrap().count(), 0, "nothing is left behind");
    let (status, document) = document(&mut doctor(home.path(), &["--peers", "--transport", "pigeon"]));
    assert_eq!(status, Some(1));
    assert!(document["peers"]["error"].as_str().unwrap().contains("no transport is named 'pigeon'"), "{document:#}");
}

#[test]
fn ranks_of_a_launcher_meet_by_a_file_and_absent_ones_are_named() {
    let home = tempfile::tempdir().unwrap();
    let meeting = home.path().join("meeting");
    let rank = |rank: &str, size: &str, more: &[&str]| {
        let mut command = doctor(home.path(), &["--peers", "--json"]);
        command.args(more).env("PMI_RANK", rank).env("PMI_SIZE", size).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    };
    let file = ["--meeting", meeting.to_str().unwrap()];
    let other = rank("1", "2", &file).spawn().unwrap();
    let lead = rank("0", "2", &file).output().unwrap();
    let other = other.wait_with_output().unwrap();
    assert!(lead.status.success() && other.status.success(), "{}", String::from_utf8_lossy(&lead.stderr));
    let told: Value = serde_json::from_slice(&lead.stdout).unwrap();
    assert_eq!((&told["peers"]["ranks"], &told["peers"]["pairs"]), (&2.into(), &2.into()));
    assert!(other.stdout.is_empty(), "one rank tells for all");

    let began = Instant::now();
    let alone = rank("0", "2", &[&file[..], &["--patience", "1"]].concat()).output().unwrap();
    assert!(began.elapsed() < Duration::from_secs(40), "the wait for an absent rank has a deadline");
    assert_eq!(alone.status.code(), Some(1));
    let told: Value = serde_json::from_slice(&alone.stdout).unwrap();
    assert!(told["peers"]["error"].as_str().unwrap().contains("rank 1"), "{told:#}");
    let writes = rank("0", "2", &file).env("RUDDER_TRACE", home.path().join("trace")).output().unwrap();
    assert_eq!(writes.status.code(), Some(2), "a trace that a job has left stays");
    let by_hand = doctor(home.path(), &["--peers", "--only-peers", file[0], file[1]]).output().unwrap();
    assert_eq!(by_hand.status.code(), Some(1), "ranks start no ranks");
    let member = rank("1", "2", &[&file[..], &["--patience", "1"]].concat()).output().unwrap();
    assert_eq!(member.status.code(), Some(1), "rank 0 never came");
    assert_eq!(rank("0", "2", &[]).output().unwrap().status.code(), Some(2), "without a file there is no meeting");
}
