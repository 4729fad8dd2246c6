//! `rudder train`: the same training once for each set-up, and what differed.
//!
//! Each set-up runs in fresh processes on one prepared graph, so that none inherits another's memory, caches or connections. The language
//! model is loaded once, in this process, and served to the ranks of this machine.

pub mod job;
mod launch;
mod launched;
mod loader;
pub mod rank;
mod warm;

use crate::cli::TrainArgs;
use crate::graph::{GraphSpec, Prepared};
use crate::partition::{self, Partitioner};
use crate::progress::Progress;
use crate::record::{Document, FORMAT, Made, Run, Settings};
use crate::report;
use crate::setup::{NO_CLASSIFIER, NO_PILOT, SetUp};
use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use job::Job;
use rudder::controller::classifier::Trained;
use rudder::controller::llm::{LlmService, ServiceConfig, default_model_path};
use rudder::controller::llm::{Pilot, PilotConfig};
use rudder::transport::hook::Link;
use rudder::{BufferSize, bootstrap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// A comparison: one training, and the set-ups to run it with.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The graph.
    pub graph: GraphSpec,
    /// How it is cut.
    pub partitioner: Partitioner,
    /// The set-ups, each with the number of minibatches announced ahead.
    pub cases: Vec<(SetUp, u32)>,
    /// The language model's file; `None` takes the installed default.
    pub model: Option<PathBuf>,
    /// What has started the ranks, where this command does not do so itself.
    pub launcher: Option<&'static str>,
    /// What all runs have in common. The set-up, the lookahead, the graph's directory and the model's socket are filled in.
    pub job: Job,
}

/// `rudder train`
///
/// # Errors
/// The settings contradict each other, a rank fails, or a file cannot be written.
pub fn run(args: &TrainArgs) -> Result<()> {
    let plan = Plan::from(args);
    let document = match bootstrap::environment()? {
        Some(place) => {
            let meeting = args.meeting.as_deref();
            let meeting = meeting.with_context(|| {
                format!(
                    "{} has started this as {} of {}: name a file for them to meet with --meeting",
                    place.launcher, place.rank, place.size
                )
            })?;
            match launched::run(&plan, &place, meeting, args.listen)? {
                Some(document) => document,
                None => return Ok(()),
            }
        }
        None => plan.run()?,
    };
    println!("{}", report::text(&document));
    if let Some(path) = &args.json {
        report::write(path, &document.to_json()?)?;
    }
    if let Some(path) = &args.report {
        report::write(path, &report::html(&document))?;
    }
    Ok(())
}

impl From<&TrainArgs> for Plan {
    fn from(args: &TrainArgs) -> Self {
        Self {
            graph: args.graph.clone(),
            partitioner: args.partitioner,
            cases: args.setups.iter().map(|&setup| (setup, args.lookahead)).collect(),
            model: args.model.clone(),
            launcher: None,
            job: Job {
                setup: SetUp::Off,
                lookahead: 0,
                graph: PathBuf::new(),
                ranks: args.ranks,
                ranks_per_host: args.ranks_per_host,
                transport: args.transport.clone(),
                link: args.link,
                buffer: args.buffer,
                batch: args.batch,
                fanout: args.fanout.clone(),
                hidden: args.hidden,
                learning_rate: args.learning_rate,
                epochs: args.epochs,
                seed: args.seed,
                controls: args.controls.into(),
                model: None,
                classifier: args.classifier.clone(),
                pilot: args.pilot.clone(),
                partitions_are_hosts: true,
                private_buffers: args.private_buffers,
                listen: args.listen,
                trace: args.trace.clone(),
                patience_s: args.patience,
            },
        }
    }
}

impl Plan {
    /// Runs every set-up and returns what was measured.
    ///
    /// # Errors
    /// As [`run`].
    pub fn run(&self) -> Result<Document> {
        self.check()?;
        let began = Instant::now();
        let stop = stop_on_signals()?;
        let directory = run_directory()?;
        let mut progress = Progress::new();
        progress.begin("preparing the graph");
        let graph = self.prepare(&directory.path().join("graph"))?;
        let prepared = Prepared::open(&graph)?;
        progress.end(&format!("{} nodes in {} partitions", prepared.book().nodes(), prepared.book().partitions()));
        let model = self.serve_model(directory.path())?;
        let socket = model.as_ref().map(|model| model.socket.clone());
        let mut runs = Vec::new();
        for (number, &(setup, lookahead)) in self.cases.iter().enumerate() {
            let job = Job { setup, lookahead, graph: graph.clone(), model: socket.clone(), ..self.job.clone() };
            let ahead = if lookahead > 0 { format!(" +{lookahead}") } else { String::new() };
            progress.begin(format!("{}/{} {setup}{ahead}", number + 1, self.cases.len()));
            let ranks = launch::run(&job, directory.path(), &stop, &progress)
                .with_context(|| format!("{setup}, lookahead {lookahead}"))?;
            let run = Run::merge(setup, lookahead, &ranks)?;
            progress.end(&format!("{:.2} s an epoch, {:.0} % stall", run.epoch_s_median, run.stall_share * 100.0));
            runs.push(run);
        }
        self.document(&prepared, model.as_ref(), runs, began)
    }

    fn document(&self, graph: &Prepared, model: Option<&Model>, runs: Vec<Run>, began: Instant) -> Result<Document> {
        let mut notes: Vec<String> =
            runs.iter().flat_map(|run| run.failures.iter().map(|why| format!("{}: {why}", run.setup))).collect();
        notes.dedup();
        Ok(Document {
            made: Made::here(FORMAT),
            settings: self.settings(graph, model.map(|model| model.file.as_path())),
            notes,
            runs,
            wall_s: began.elapsed().as_secs_f64(),
        })
    }

    fn check(&self) -> Result<()> {
        let job = &self.job;
        ensure!(
            job.ranks.is_multiple_of(job.ranks_per_host),
            "{} ranks do not fill hosts of {} ranks",
            job.ranks,
            job.ranks_per_host
        );
        ensure!(
            self.cases.iter().all(|&(setup, lookahead)| setup != SetUp::Window || lookahead > 0),
            "window keeps what announced minibatches want: give --lookahead, such as --lookahead 16"
        );
        ensure!(
            job.trace.is_none() || self.cases.len() == 1,
            "--trace records one set-up: give one --controller, such as --controller lfu, not {}",
            self.cases.len()
        );
        if self.cases.iter().any(|(setup, _)| *setup == SetUp::Classifier) {
            // A file that cannot be used shows here, and not in every rank.
            Trained::read(job.classifier.as_deref().context(NO_CLASSIFIER)?)?;
        }
        if self.cases.iter().any(|(setup, _)| *setup == SetUp::Pilot) {
            Pilot::new(&PilotConfig { file: job.pilot.clone().context(NO_PILOT)? })?;
        }
        // As the optimiser has it, in single precision.
        let step = job.learning_rate as f32;
        ensure!(step > 0.0 && step.is_finite(), "--learning-rate {} does not learn", job.learning_rate);
        Ok(())
    }

    /// The prepared graph's directory: the one that was named, where it has the right partitions, else `path`, made for this run.
    fn prepare(&self, path: &Path) -> Result<PathBuf> {
        let partitions = self.job.partitions();
        if let GraphSpec::Directory(path) = &self.graph
            && Prepared::open(path)?.book().partitions() == partitions
        {
            return Ok(path.clone());
        }
        let graph = self.graph.load(self.job.seed)?;
        Prepared::write(path, &partition::partition(&graph, partitions, self.partitioner, self.job.seed)?)?;
        Ok(path.to_owned())
    }

    fn asks_model(&self) -> bool {
        self.cases.iter().any(|(setup, _)| setup.needs_model())
    }

    /// Serves the language model, where a set-up asks it.
    fn serve_model(&self, directory: &Path) -> Result<Option<Model>> {
        if !self.asks_model() {
            return Ok(None);
        }
        let file = self.model.clone().map_or_else(default_model_path, Ok)?;
        let socket = directory.join("model.sock");
        let mut config = ServiceConfig::new(&file, &socket);
        config.clients = config.clients.max(self.job.ranks as usize);
        // Each rank's prompt begins with its own job's facts, in two forms.
        config.limits.prefixes = config.limits.prefixes.max(2 * self.job.ranks as usize);
        let service = LlmService::start(&config)?;
        Ok(Some(Model { file, socket, _service: service }))
    }

    fn settings(&self, graph: &Prepared, model: Option<&Path>) -> Settings {
        let job = &self.job;
        let arcs = graph.topology().arcs() as u64;
        let partitions = (0..graph.book().partitions()).map(rudder::PartitionId);
        Settings {
            graph: graph.name().to_owned(),
            nodes: graph.book().nodes(),
            edges: arcs,
            features: graph.width(),
            classes: graph.classes(),
            cut: if arcs == 0 { 0.0 } else { graph.edge_cut() as f64 * 2.0 / arcs as f64 },
            halo: partitions.map(|partition| graph.halo(partition).len() as u64).collect(),
            partitioner: graph
                .partitioner()
                .to_possible_value()
                .map_or_else(String::new, |name| name.get_name().to_owned()),
            ranks: job.ranks,
            ranks_per_host: job.ranks_per_host,
            private_buffers: job.private_buffers,
            launcher: self.launcher.map(str::to_owned),
            transport: job.transport.clone(),
            link: link_words(&job.link),
            buffer: buffer_words(job.buffer),
            batch: job.batch,
            fanout: job.fanout.clone(),
            hidden: job.hidden,
            learning_rate: job.learning_rate,
            epochs: job.epochs,
            seed: job.seed,
            model: model.and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned()),
            controls: job.controls,
        }
    }
}

/// The served model; its service ends with it.
struct Model {
    file: PathBuf,
    socket: PathBuf,
    _service: LlmService,
}

/// A directory for a run, gone with it.
fn run_directory() -> Result<TempDir> {
    tempfile::Builder::new().prefix("rudder-").tempdir().context("making a directory for the run")
}

/// Set by the first Ctrl-C or SIGTERM, so that ranks are stopped and the run's directory is removed; a second one ends the process at once.
fn stop_on_signals() -> Result<Arc<AtomicBool>> {
    use signal_hook::consts::TERM_SIGNALS;
    let stop = Arc::new(AtomicBool::new(false));
    for &signal in TERM_SIGNALS {
        // The order matters: the first signal finds the flag unset and sets it.
        signal_hook::flag::register_conditional_shutdown(signal, 1, stop.clone())?;
        signal_hook::flag::register(signal, stop.clone())?;
    }
    Ok(stop)
}

fn link_words(link: &Link) -> Option<String> {
    let rate = link.bytes_per_second.map(|rate| match rate as f64 * 8.0 {
        bits if bits >= 1e9 => format!("{} Gbit/s", bits / 1e9),
        bits if bits >= 1e6 => format!("{} Mbit/s", bits / 1e6),
        bits => format!("{} kbit/s", bits / 1e3),
    });
    let latency = (link.latency > Duration::ZERO).then(|| format!("{:?} latency", link.latency));
    let words: Vec<String> = rate.into_iter().chain(latency).collect();
    (!words.is_empty()).then(|| words.join(" and "))
}

fn buffer_words(size: BufferSize) -> String {
    match size {
        BufferSize::Halo(share) => format!("{} % of the halo", (share * 1e4).round() / 100.0),
        BufferSize::Bytes(bytes) => format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20)),
    }
}
