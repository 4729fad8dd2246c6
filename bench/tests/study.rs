//! Goal: `rudder study` replays every contender on the same jobs, says the same in every run, and names the best. Method: the real command on a small
//! graph, whose replays are held against each other and against the standings that follow from them.

use rudder::controller::classifier::{Feature, Linear, Model, TrainedPlans};
use rudder::controller::planner::{PLANS, VALUES};
use serde_json::Value;
use std::path::Path;
use std::process::{Command, Output};

fn rudder(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_rudder")).args(args).output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// A job whose rows are waited for.
const SMALL: [&str; 14] = [
    "study",
    "--graph",
    "sbm:nodes=4000,degree=12,communities=8,dim=1",
    "--ranks",
    "4",
    "--seeds",
    "2",
    "--batch",
    "32",
    "--buffer",
    "0.2",
    "--link",
    "100mbit,50us",
    "--json",
];

fn study(file: &Path, more: &[&str]) -> (Value, String) {
    let output = rudder(&[&SMALL[..], &[file.to_str().unwrap()], more].concat());
    assert!(output.status.success(), "{}", said(&output));
    (serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap(), said(&output))
}

/// The sum of a field over a document's runs, of those that are asked for.
fn sum(document: &Value, field: &str, asked: impl Fn(&Value) -> bool) -> f64 {
    let runs = document["runs"].as_array().unwrap().iter().filter(|run| asked(run));
    runs.map(|run| run[field].as_f64().unwrap()).sum()
}

/// Seconds that a contender's jobs waited with so many minibatches announced.
fn stall(document: &Value, contender: &str, ahead: u64) -> f64 {
    sum(document, "stall_s", |run| run["contender"] == contender && run["lookahead"] == ahead)
}

/// What is measured differs from run to run.
fn without_measures(mut document: Value) -> Value {
    for field in ["wall_s", "command"] {
        document[field] = Value::Null;
    }
    let runs = document["runs"].as_array_mut().unwrap().iter_mut();
    runs.for_each(|run| (run["decision_cpu_s"], run["longest_decision_s"]) = (Value::Null, Value::Null));
    for standings in document["standings"]["lookaheads"].as_array_mut().unwrap() {
        let contenders = standings["contenders"].as_array_mut().unwrap().iter_mut();
        let measures = ["minibatch_us", "longest_decision_ms"];
        contenders.for_each(|contender| measures.iter().for_each(|measure| contender[measure] = Value::Null));
    }
    document
}

#[test]
fn contenders_are_compared_on_the_same_jobs() {
    let directory = tempfile::tempdir().unwrap();
    let (file, page) = (directory.path().join("study.json"), directory.path().join("study.html"));
    let list = [
        "--contender",
        "off,lfu,window,rudder/periodic:8",
        "--lookahead",
        "0,4",
        "--slow",
        "none",
        "--minibatches",
        "64",
    ];
    let (document, text) = study(&file, &[&list[..], &["--report", page.to_str().unwrap()]].concat());
    let runs = document["runs"].as_array().unwrap();
    // Scenarios, seeds, lookaheads, contenders.
    assert_eq!(runs.len(), 3 * 2 * 2 * 4);
    let number = |run: &Value, field: &str| run[field].as_f64().unwrap_or_else(|| panic!("{field} of {run}"));
    for run in runs {
        assert!(run["rows_fetched"].as_u64() >= run["fewest_rows"].as_u64(), "{run}");
        let parts = number(run, "stall_start_s") + run["stall_change_s"].as_f64().unwrap_or(0.0);
        let (stall, time) = (number(run, "stall_s"), number(run, "time_s"));
        assert!(parts <= stall + 1e-9 && stall < time, "the parts of a stall are less than it: {run}");
        assert_eq!(run["stall_change_s"].is_null(), run["scenario"] == "stationary");
        let decides = run["contender"] == "rudder/periodic:8";
        assert_eq!((run["decisions"].as_u64() > Some(0), run["longest_decision_s"].is_f64()), (decides, decides));
    }
    // Without announcements the two are one policy, and on one job they do the same.
    let of = |contender: &str| {
        let own = runs.iter().filter(move |run| run["contender"] == contender && run["lookahead"] == 0);
        own.map(|run| (number(run, "stall_s"), number(run, "rows_fetched"))).collect::<Vec<_>>()
    };
    assert_eq!(of("lfu"), of("window"));
    let standings = document["standings"]["lookaheads"].as_array().unwrap();
    assert_eq!(standings.len(), 2);
    for at in standings {
        let contenders = at["contenders"].as_array().unwrap();
        assert_eq!(contenders.len(), 4);
        let stalls: Vec<f64> = contenders.iter().map(|one| number(&one["stall"], "mean")).collect();
        assert!(stalls.is_sorted() && stalls[0] >= 0.9, "the best choice for all comes first: {stalls:?}");
        let best = contenders[0]["contender"].as_str().unwrap();
        assert!(text.contains(&format!("{best} is the best single choice")), "{text}");
    }
    assert!(text.contains("headroom."), "{text}");
    let page = std::fs::read_to_string(page).unwrap();
    for drawn in ["one choice for everything", "while there is still to learn", "rows", "what a decision takes"] {
        assert!(page.contains(&format!("<h2>4 minibatches announced: {drawn}</h2>")), "{drawn}");
    }
    assert!(page.contains("rudder/periodic:8"));
    let (again, _) = study(&file, &list);
    assert_eq!(without_measures(again), without_measures(document));
}

#[test]
fn rows_of_a_rank_that_sends_slowly_are_kept_rather_than_others() {
    let directory = tempfile::tempdir().unwrap();
    let more = [
        "--contender",
        "lfu,lfu/analytic",
        "--lookahead",
        "0",
        "--slow",
        "none,0:0.2",
        "--scenario",
        "stationary",
        "--minibatches",
        "192",
    ];
    let (document, _) = study(&directory.path().join("study.json"), &more);
    let stall = |contender: &str, slow: Option<&str>| {
        sum(&document, "stall_s", |run| run["contender"] == contender && run["slow"].as_str() == slow)
    };
    let (plain, weighed) = (stall("lfu", Some("0:0.2")), stall("lfu/analytic", Some("0:0.2")));
    assert!(weighed < 0.97 * plain, "{weighed} s and {plain} s");
    let (plain, weighed) = (stall("lfu", None), stall("lfu/analytic", None));
    assert!(weighed < 1.03 * plain, "without one it costs nothing to speak of: {weighed} s and {plain} s");
}

#[test]
fn a_rank_that_becomes_slow_is_soon_made_up_for() {
    let directory = tempfile::tempdir().unwrap();
    let more = [
        "--contender",
        "window,window/analytic",
        "--lookahead",
        "0,2",
        "--slow",
        "0:0.2:96",
        "--scenario",
        "stationary",
        "--minibatches",
        "192",
    ];
    let (document, _) = study(&directory.path().join("study.json"), &more);
    for ahead in [0, 2] {
        let [plain, weighed] = ["window", "window/analytic"].map(|contender| stall(&document, contender, ahead));
        assert!(weighed < 0.77 * plain, "{ahead} announced: {weighed} s and {plain} s");
    }
}

#[test]
fn what_is_announced_makes_no_job_with_a_slow_rank_wait_longer() {
    let directory = tempfile::tempdir().unwrap();
    let more = [
        "--contender",
        "window,window/analytic",
        "--lookahead",
        "0,2,16",
        "--slow",
        "0:0.2",
        "--scenario",
        "stationary",
    ];
    let (document, _) = study(&directory.path().join("study.json"), &more);
    let stalls = [0, 2, 16].map(|ahead| stall(&document, "window/analytic", ahead));
    assert!(stalls[1] < stalls[0] && stalls[2] < stalls[1], "{stalls:?} s");
}

#[test]
fn controllers_that_choose_are_studied_with_the_guard_and_without() {
    let directory = tempfile::tempdir().unwrap();
    let trained = directory.path().join("trained.json");
    cautious(&trained);
    let learned = format!("plan-classifier:{}", trained.display());
    let more = ["--contender", "lfu,lru", "--ablation", "--lookahead", "0", "--slow", "none", "--scenario", "nodes"];
    let args = [&more[..], &["--minibatches", "128", "--learned", &learned]].concat();
    let (document, text) = study(&directory.path().join("study.json"), &args);
    let stall = |contender: &str| {
        let own = document["runs"].as_array().unwrap().iter().filter(|run| run["contender"] == contender);
        assert_eq!(own.count(), 2, "{contender}");
        sum(&document, "stall_s", |run| run["contender"] == contender)
    };
    // The oracle answers as the coin would where that is better.
    let (oracle, coin, guarded) =
        (stall("rudder/oracle"), stall("rudder/random:1:8"), stall("rudder/guard:random:1:8"));
    assert!(oracle <= 1.01 * coin && guarded <= 1.01 * coin, "{oracle} s, {guarded} s and {coin} s");
    assert!(stall("lfu/ghost") <= 1.05 * stall("lfu"), "what does not gain costs little");
    // It is told of no change, and then chooses as nobody would.
    let (alone, guarded) = (stall(&format!("window/{learned}")), stall(&format!("window/guard:{learned}")));
    assert!((guarded / alone - 1.0).abs() < 0.05, "{guarded} s and {alone} s");
    assert!(text.contains("closes"), "{text}");
    let (again, _) = study(&directory.path().join("again.json"), &args);
    assert_eq!(without_measures(again), without_measures(document));
}

#[test]
fn a_slow_oracle_gains_less() {
    let directory = tempfile::tempdir().unwrap();
    let list =
        ["--contender", "rudder/oracle,rudder/oracle:0.3,rudder/periodic:8", "--lookahead", "0", "--slow", "none"];
    let more = [&list[..], &["--scenario", "nodes", "--minibatches", "128"]].concat();
    let (document, _) = study(&directory.path().join("study.json"), &more);
    let sum = |contender: &str, field: &str| sum(&document, field, |run| run["contender"] == contender);
    let (quick, slow, always) = ("rudder/oracle", "rudder/oracle:0.3", "rudder/periodic:8");
    assert!(sum(quick, "stall_s") <= sum(always, "stall_s"));
    assert!(sum(quick, "stall_s") <= sum(slow, "stall_s"));
    assert!(sum(slow, "decisions") < sum(quick, "decisions"), "one is not asked while it thinks");
}

#[test]
fn a_recorded_job_is_studied_alone() {
    let directory = tempfile::tempdir().unwrap();
    let prefix = directory.path().join("job");
    let prefix = prefix.to_str().unwrap();
    let graph = "sbm:nodes=1500,degree=12,communities=6,dim=8";
    let train =
        rudder(&["train", "--graph", graph, "--ranks", "2", "--controller", "lfu", "--epochs", "2", "--trace", prefix]);
    assert!(train.status.success(), "{}", said(&train));
    let (document, _) = study(
        &directory.path().join("study.json"),
        &[prefix, "--traces-only", "--contender", "off,lfu", "--lookahead", "0", "--slow", "none"],
    );
    let runs = document["runs"].as_array().unwrap();
    assert_eq!(runs.len(), 2);
    assert!(runs.iter().all(|run| run["graph"] == prefix && run["scenario"] == "recorded"));
}

#[test]
fn what_makes_no_study_is_refused_in_words() {
    for (more, words) in [
        (&["--link", "none"][..], "--link a rate"),
        (&["--contender", "lfu"], "nobody to win against"),
        (&["--contender", "lfu,rudder/llm-replace"], "real time"),
        (&["--traces-only"], "TRACE"),
        (&["--seeds", "1"], "2..=1000"),
        (&["--learned", "pilot:none.gguf"], "--ablation"),
    ] {
        let output = rudder(&[&["study", "--graph", "sbm:nodes=2000"][..], more].concat());
        let words_said = said(&output);
        assert!(!output.status.success() && words_said.contains(words), "{more:?}: {words_said}");
    }
}

/// Classifiers that find `tiny` likeliest while they know of a change to come, and `lfu` else.
fn cautious(file: &Path) {
    let feature = |name: &&str| Feature { name: (*name).to_owned(), mean: 0.0, deviation: 1.0 };
    let coming = VALUES.map(|name| if name == "coming" { 1000.0 } else { 0.0 });
    let model = |plan: &str| match plan {
        "tiny" => Linear { weights: coming.to_vec(), bias: 0.0 },
        _ => Linear { weights: vec![0.0; VALUES.len()], bias: f64::from(u8::from(plan == "lfu")) },
    };
    let trained = TrainedPlans {
        name: "cautious".to_owned(),
        training: String::new(),
        features: VALUES.iter().map(feature).collect(),
        plans: PLANS.map(|plan| (plan.name.to_owned(), Model::Linear(model(plan.name)))).to_vec(),
        margin: 0.0,
    };
    trained.write(file).unwrap();
}

#[test]
fn changes_are_announced_to_those_who_look_at_them_where_that_is_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let plans = folder.path().join("plans.json");
    cautious(&plans);
    let asks = format!("lfu/plan-classifier:{}", plans.display());
    let contenders = format!("lfu,{asks}");
    let list = [
        "--scenario",
        "nodes",
        "--minibatches",
        "64",
        "--lookahead",
        "0",
        "--slow",
        "none",
        "--contender",
        &contenders,
    ];
    let rows = |more: &[&str]| {
        let (document, text) = study(&folder.path().join("study.json"), &[&list[..], more].concat());
        assert_eq!(text.contains("changes announced"), !more.is_empty(), "{text}");
        ["lfu", &asks].map(|contender| sum(&document, "rows_fetched", |run| run["contender"] == contender))
    };
    let ([plain, untold], [same, told]) = (rows(&[]), rows(&["--announce-changes"]));
    assert_eq!(plain, same, "the jobs are the same");
    assert!(told != untold, "{untold} and {told} rows");
}
