//! Goal: whoever watches a job sees every count, and the right one; and one that stands still says whom it waits for. Method: a snapshot of
//! which every number differs, held against the text; a running job read over HTTP and from its files; a peer that never answers, and a
//! subscriber that remembers what it is told.

use rudder::bootstrap::local;
use rudder::buffer::PolicyConfig;
use rudder::controller::{Controller, ControllerRuntime, Decision, Observation, RuntimeConfig};
use rudder::telemetry::Snapshot;
use rudder::transport::hook::{FaultConfig, Faulty};
use rudder::transport::{Transport, TransportConfig, open};
use rudder::{BufferSize, Config, Engine, Error, NodeId, PartitionBook, PartitionId, Rank, TableId, TableSpec};
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::{Arc, Barrier, Mutex};
use std::time::{Duration, Instant};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

const NODES: u64 = 1000;
const ROW_BYTES: usize = 32;
const TABLES: [TableId; 2] = [TableId(0), TableId(7)];

/// The metrics of a text, by name and labels.
fn samples(text: &str) -> BTreeMap<String, f64> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let samples = lines.map(|line| line.rsplit_once(' ').expect("a name and a number"));
    samples.map(|(name, value)| (name.to_owned(), value.parse().expect("a number"))).collect()
}

fn engine(rank: Rank, bootstrap: local::LocalBootstrap, config: Config, transport: Arc<dyn Transport>) -> Engine {
    // Each rank is a host of its own, so that rows travel.
    let config = Config { host: Some(format!("host-{rank}")), ..config };
    let book = PartitionBook::from_starts(vec![0, NODES / 2, NODES]).unwrap();
    let other = book.range(PartitionId(1 - rank.0));
    let mut builder = Engine::builder(config, Arc::new(bootstrap)).transport(transport);
    for table in TABLES {
        let halo = other.clone().map(NodeId).collect();
        let spec = TableSpec { halo, ..TableSpec::new(table, book.clone(), PartitionId(rank.0), ROW_BYTES) };
        builder = builder.table(spec, |rows| rows.fill(7));
    }
    builder.start().unwrap()
}

/// Runs `body` on two ranks, each a thread.
fn job(config: &Config, faults: Option<FaultConfig>, body: impl Fn(Engine, Rank) + Sync) {
    let body = &body;
    std::thread::scope(|scope| {
        for (rank, bootstrap) in (0..).map(Rank).zip(local::ranks(2)) {
            scope.spawn(move || {
                let mut transport = open("tcp", &TransportConfig::new(rank, 2)).unwrap();
                if let Some(faults) = faults {
                    transport = Arc::new(Faulty::new(transport, faults));
                }
                body(engine(rank, bootstrap, config.clone(), transport), rank);
            });
        }
    });
}

/// Gives every number below a value another number, durations too.
fn number(value: &mut Value, next: &mut u64) {
    match value {
        Value::Object(fields) if fields.contains_key("nanos") => {
            *next += 1;
            fields.insert("secs".into(), (*next).into());
            fields.insert("nanos".into(), 0.into());
        }
        Value::Object(fields) => fields.values_mut().for_each(|value| number(value, next)),
        Value::Number(_) => {
            *next += 1;
            *value = (*next).into();
        }
        _ => {}
    }
}

/// What the metric of a field is called, beside the rule.
fn controller_metric(field: &str) -> String {
    match field {
        "latency_p50" | "latency_p99" | "latency_max" => format!("decision_{field}_seconds"),
        "load" => "model_load_seconds".into(),
        "model_cpu" => "model_cpu_seconds_total".into(),
        other => format!("{other}_total"),
    }
}

#[test]
fn every_count_has_a_metric_and_it_is_the_right_one() {
    let bootstrap = local::ranks(1).remove(0);
    let book = PartitionBook::from_starts(vec![0, 1]).unwrap();
    let spec = TableSpec::new(TableId(5), book, PartitionId(0), 1);
    let engine = Engine::builder(Config::default(), Arc::new(bootstrap)).table(spec, |_| ()).start().unwrap();
    let mut document = serde_json::to_value(engine.snapshot().unwrap()).unwrap();
    engine.shutdown().unwrap();
    let mut next = 1000;
    for path in ["/tables/0/pipeline", "/tables/0/buffer", "/decisions", "/memory"] {
        number(document.pointer_mut(path).unwrap(), &mut next);
    }
    document["tables"][0]["slots"] = 11.into();
    document["tables"][0]["buffer_bytes"] = 12.into();
    document["open_requests"] = 13.into();
    document["tables"][0]["owners"] = serde_json::json!([{ "partition": 3, "rows": 14, "busy_s": 1.5 }]);
    let snapshot: Snapshot = serde_json::from_value(document.clone()).unwrap();
    let samples = samples(&snapshot.prometheus());
    let mut seen = 0;
    let mut holds = |name: String, labels: &str, value: &Value| {
        let name = format!("rudder_{name}{{{labels}}}");
        let expected = value.as_f64().or(value["secs"].as_f64()).expect("a number");
        assert_eq!(samples.get(&name), Some(&expected), "{name}");
        seen += 1;
    };
    let table = "table=\"5\",rank=\"0\"";
    let table_of = |part: &str| document["tables"][0][part].as_object().unwrap().clone();
    for (field, value) in table_of("pipeline") {
        holds(format!("{field}_total"), table, &value);
    }
    for (field, value) in table_of("buffer") {
        holds(format!("buffer_{field}_total"), table, &value);
    }
    for (name, value) in [("buffer_slots", 11), ("buffer_bytes", 12), ("row_bytes", 1)] {
        holds(name.into(), table, &value.into());
    }
    let numbers = |value: &Value| value.is_number() || value.is_object();
    for (field, value) in document["decisions"].as_object().unwrap().iter().filter(|(_, value)| numbers(value)) {
        holds(controller_metric(field), "rank=\"0\"", value);
    }
    for (field, value) in document["memory"].as_object().unwrap() {
        let name = if field == "bytes" { "memory_bytes".into() } else { format!("memory_{field}") };
        holds(name, "rank=\"0\"", value);
    }
    holds("open_requests".into(), "rank=\"0\"", &13.into());
    holds("owner_rows_total".into(), "table=\"5\",partition=\"3\",rank=\"0\"", &14.into());
    holds("owner_busy_seconds_total".into(), "table=\"5\",partition=\"3\",rank=\"0\"", &1.5.into());
    let fetched = snapshot.tables[0].rows_fetched();
    let counts = &snapshot.tables[0].stats.pipeline;
    assert_eq!(fetched, counts.demand_rows + counts.prefetched_rows + counts.fill_rows);
    holds("rows_fetched_total".into(), table, &fetched.into());
    holds("bytes_fetched_total".into(), table, &fetched.into());
    // Beside these: info, uptime, and whether engine and controller have failed.
    assert_eq!(samples.len(), seen + 4, "{samples:#?}");
}

fn get(address: std::net::SocketAddr) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: here\r\n\r\n").unwrap();
    let mut said = String::new();
    stream.read_to_string(&mut said).unwrap();
    said.split_once("\r\n\r\n").unwrap().1.to_owned()
}

fn written(prefix: &Path, rank: Rank) -> Snapshot {
    let file = format!("{}.{}.json", prefix.display(), rank.0);
    serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap()
}

#[test]
fn a_running_job_is_read_over_http_and_leaves_its_counts() {
    let directory = tempfile::tempdir().unwrap();
    let prefix = directory.path().join("stats");
    let config = Config {
        metrics: Some("0".parse().unwrap()),
        stats_file: Some(prefix.clone()),
        buffer: BufferSize::Halo(0.1),
        ..Config::default()
    };
    let together = Barrier::new(2);
    job(&config, None, |engine, rank| {
        let nodes: Vec<NodeId> = (0..NODES).step_by(2).map(NodeId).collect();
        let mut rows = vec![0; nodes.len() * ROW_BYTES];
        for turn in 0..6 {
            let table = TABLES[usize::from(turn % 3 == 0)];
            engine.gather(table, &nodes, None, &mut rows).unwrap();
        }
        engine.wait_idle(Duration::from_secs(20)).unwrap();
        let address = engine.metrics_address().expect("it listens");
        assert!(address.ip().is_loopback(), "{address}");
        let samples = samples(&get(address));
        let value = |name: &str, table: TableId| {
            samples[&format!("rudder_{name}{{table=\"{}\",rank=\"{}\"}}", table.0, rank.0)] as u64
        };
        for (table, minibatches) in [(TABLES[0], 4), (TABLES[1], 2)] {
            let remote = minibatches * NODES / 4;
            assert_eq!(value("minibatches_total", table), minibatches);
            assert_eq!(value("remote_nodes_total", table), remote);
            assert_eq!(value("local_rows_total", table), remote, "half of the nodes are this rank's");
            assert_eq!(value("hits_total", table) + value("demand_rows_total", table), remote);
            assert!(value("hits_total", table) > 0, "the buffer has kept some");
            assert_eq!(value("bytes_fetched_total", table), value("rows_fetched_total", table) * ROW_BYTES as u64);
            let stats = engine.stats(table).unwrap();
            assert_eq!(value("demand_rows_total", table), stats.pipeline.demand_rows);
            assert_eq!(value("buffer_slots", table), u64::from(stats.slots));
            let partition = 1 - rank.0;
            let owner = format!("{{table=\"{}\",partition=\"{partition}\",rank=\"{}\"}}", table.0, rank.0);
            assert_eq!(samples[&format!("rudder_owner_rows_total{owner}")] as u64, value("rows_fetched_total", table));
        }
        let before = engine.snapshot().unwrap();
        together.wait();
        engine.shutdown().unwrap();
        assert!(TcpStream::connect(address).is_err(), "nobody listens for an engine that is gone");
        let left = written(&prefix, rank);
        assert_eq!((&left.tables, left.rank, left.ranks), (&before.tables, rank, 2));
    });
}

/// What a subscriber was told: spans by name, and the text of warnings.
#[derive(Default)]
struct Told {
    spans: Mutex<Vec<String>>,
    warnings: Mutex<Vec<String>>,
}

struct Listening(Arc<Told>);

struct Message(String);

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        if field.name() == "message" {
            self.0 = format!("{value:?}");
        }
    }
}

impl Subscriber for Listening {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("rudder")
    }

    fn new_span(&self, span: &Attributes<'_>) -> Id {
        self.0.spans.lock().unwrap().push(span.metadata().name().to_owned());
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        if *event.metadata().level() <= tracing::Level::WARN {
            let mut message = Message(String::new());
            event.record(&mut message);
            self.0.warnings.lock().unwrap().push(message.0);
        }
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

struct Ready;

impl Controller for Ready {
    fn name(&self) -> &'static str {
        "ready"
    }

    fn observe(&mut self, _: &Observation) {}

    fn decide(&mut self) -> Option<Decision> {
        Some(Decision::default())
    }
}

#[test]
fn a_stuck_gather_says_whom_it_waits_for_and_slow_paths_have_spans() {
    let told = Arc::new(Told::default());
    tracing::subscriber::set_global_default(Listening(told.clone())).expect("this test alone of its process");
    let config = Config {
        gather_timeout: Duration::from_secs(2),
        transfer_timeout: Duration::from_secs(60),
        buffer: BufferSize::Halo(0.0),
        policy: PolicyConfig::Off,
        ..Config::default()
    };
    let silent = FaultConfig { seed: 1, drop: 1.0, ..FaultConfig::default() };
    job(&config, Some(silent), |engine, rank| {
        let nodes: Vec<NodeId> = (0..NODES).map(NodeId).collect();
        let mut rows = vec![0; nodes.len() * ROW_BYTES];
        let error = engine.gather(TABLES[1], &nodes, None, &mut rows).unwrap_err();
        let Error::Deadline { missing, peer, .. } = &error else { panic!("{error}") };
        let other = 1 - rank.0;
        // The fault drops what is left of a batch, whose first rows have come.
        assert!((1..=NODES / 2).contains(&(*missing as u64)) && peer.0 == other, "{error}");
        let from = format!(
            "{missing} of table 7 from rank {other} (partition {other}), 0 of them not posted, the oldest batch posted"
        );
        assert!(error.to_string().contains(&format!("{from} 2")), "{error}");
        let warnings = told.warnings.lock().unwrap().clone();
        let half = format!("a gather of 1000 rows waits for {missing} of them after 1");
        let said = warnings.iter().any(|warning| warning.starts_with(&half) && warning.contains(&format!("{from} 1")));
        assert!(said, "{warnings:?}");
        engine.shutdown().unwrap();
    });
    let runtime = ControllerRuntime::threaded("ready", &RuntimeConfig::default(), || Ok(Box::new(Ready))).unwrap();
    let began = Instant::now();
    while runtime.take_decision().is_none() {
        assert!(began.elapsed() < Duration::from_secs(20), "no decision");
        runtime.observe(&Observation::default());
        std::thread::sleep(Duration::from_millis(5));
    }
    let spans = told.spans.lock().unwrap().clone();
    for name in ["start", "meet", "export", "connect", "abort", "load", "decide"] {
        assert!(spans.iter().any(|span| span == name), "no span {name} in {spans:?}");
    }
}
