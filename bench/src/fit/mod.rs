//! `rudder fit`: trains the published classifiers on recorded jobs, for the controller `classifier:FILE`.
//!
//! A classifier answers whether to replace now. The label of a sample is what came of both answers in two replays that are alike up to there: yes where
//! the rows of a replacement are fewer than those that it saves up to a horizon. Each fourth trace is held out, and explored by a
//! coin of its own, so that what is said of a classifier is said of a partition and of decisions that it has not seen.

mod branch;
mod document;
mod models;
mod network;
mod samples;
mod score;
mod smart;
mod table;

pub use models::ModelName;
pub use table::{Table, normalisation};

use crate::progress::Progress;
use crate::record::Made;
use crate::replay::{Buffer, Job, or_cores, parallel};
use crate::report;
use anyhow::{Context, Result, ensure};
use branch::Rank;
use clap::Args;
use document::{Document, FORMAT, Row, Samples};
use rudder::buffer::PolicyConfig;
use rudder::controller::classifier::{FEATURES, Model, Trained};
use samples::{Exploration, Sample, explore};
use score::{Score, share};
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Of so many traces one is held out, and of fewer one too.
const HELD_OUT_OF: usize = 4;
/// Least decisions that a classifier's speed is measured on.
const TIMED: usize = 100_000;

/// `rudder fit`
#[derive(Args, Clone, Debug)]
pub struct FitArgs {
    /// Recorded jobs: traces of their ranks, or the prefixes that they were recorded with
    #[arg(value_name = "TRACE", required = true)]
    pub traces: Vec<PathBuf>,
    /// What is trained, and where it is left.
    #[command(flatten)]
    pub models: ModelArgs,
    /// Seed of the explorations and of what training draws
    #[arg(long, value_name = "S", default_value_t = 1)]
    pub seed: u64,
    /// The buffers: `recorded`, shares of the halo, such as `0.10`, or bytes of rows, such as `64MiB`
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "0.05,0.25")]
    pub buffer: Vec<Buffer>,
    /// Minibatches between two decisions
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub interval: u32,
    /// Minibatches after a decision in which a replacement must pay
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub horizon: u32,
    /// Replays of each trace and buffer that replace by chance, each with a coin of its own; traces that are held out have one more
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=1000))]
    pub explorations: u64,
    /// Replays at a time; as many as there are cores, if not given
    #[arg(long, value_name = "N")]
    pub threads: Option<NonZero<usize>>,
    /// Write the document here
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

/// Classifiers to train.
#[derive(Args, Clone, Debug)]
pub struct ModelArgs {
    /// The classifiers to train
    #[arg(long, value_name = "LIST", value_enum, value_delimiter = ',', required = true)]
    pub model: Vec<ModelName>,
    /// Where to leave them; of several, {} in the name stands for the classifier's
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

impl ModelArgs {
    /// Refuses one name for several files.
    ///
    /// # Errors
    /// It is.
    pub fn check(&self) -> Result<()> {
        ensure!(
            self.model.len() == 1 || self.out.to_string_lossy().contains("{}"),
            "--out {} would be written once for each of {} classifiers: put {{}} in the name, such as target/{{}}.json",
            self.out.display(),
            self.model.len()
        );
        Ok(())
    }

    /// Where a classifier is left.
    pub fn file(&self, name: ModelName) -> PathBuf {
        PathBuf::from(self.out.to_string_lossy().replace("{}", name.name()))
    }
}

/// `rudder fit`
///
/// # Errors
/// A trace cannot be read, leaves nothing to learn from, or a file cannot be written.
pub fn run(args: &FitArgs) -> Result<()> {
    args.models.check()?;
    let began = Instant::now();
    let jobs = Job::read_all(&args.traces)?;
    jobs.iter().flat_map(|job| &job.notes).for_each(|note| eprintln!("rudder: {note}"));
    let (training, held_out) = explored(args, &jobs)?;
    let sampling_s = began.elapsed().as_secs_f64();
    ensure!(
        !training.is_empty() && !held_out.is_empty(),
        "{} samples to train on and {} to hold out: give longer traces, or less --interval and --horizon",
        training.len(),
        held_out.len()
    );
    let mut rows = trivial(&training, &held_out);
    let mut progress = Progress::new();
    for &name in &args.models.model {
        progress.begin(name.name());
        let (row, trained) = fitted(args, name, &training, &held_out)?;
        trained.write(&args.models.file(name))?;
        progress.end(&format!("wrote {}", args.models.file(name).display()));
        rows.push(row);
    }
    let yes = |samples: &[Sample]| share(samples.iter().filter(|sample| sample.pays()).count(), samples.len());
    let samples = Samples {
        training: training.len(),
        training_yes: yes(&training),
        held_out: held_out.len(),
        held_out_yes: yes(&held_out),
    };
    let document = Document {
        made: Made::here(FORMAT),
        features: FEATURES.map(str::to_owned).to_vec(),
        samples,
        findings: document::findings(&samples, &rows),
        models: rows,
        sampling_s,
        wall_s: began.elapsed().as_secs_f64(),
    };
    println!("{}", document::text(&document));
    if let Some(path) = &args.json {
        report::write(path, &(serde_json::to_string(&document)? + "\n"))?;
    }
    Ok(())
}

/// Explores every rank of every job with every buffer: samples to train on, and those that are held out.
fn explored(args: &FitArgs, jobs: &[Job]) -> Result<(Vec<Sample>, Vec<Sample>)> {
    let policy = PolicyConfig::named("rudder")?;
    let traces: Vec<_> = jobs.iter().flat_map(|job| job.ranks.iter().map(move |trace| (job, trace))).collect();
    ensure!(traces.len() > 1, "one trace alone leaves none to hold out: give those of two ranks or jobs at least");
    let last = HELD_OUT_OF.min(traces.len()) - 1;
    let (mut training, mut held_out) = (Vec::new(), Vec::new());
    for (at, &(job, trace)) in traces.iter().enumerate() {
        for buffer in &args.buffer {
            let slots = buffer.slots(trace)?;
            ensure!(slots > 0, "{}, buffer {buffer}: no slots, so that there is nothing to decide", job.name);
            let (interval, horizon) = (args.interval as usize, args.horizon as usize);
            let exploration = |number| {
                let exploration = Exploration { number, seed: args.seed, interval, horizon, steps: job.steps };
                (Rank { trace, slots, policy: &policy }, exploration)
            };
            if at % HELD_OUT_OF == last {
                held_out.push(exploration(args.explorations));
            } else {
                training.extend((0..args.explorations).map(exploration));
            }
        }
    }
    let threads = or_cores(args.threads);
    let samples = |title, explorations: &[(Rank, Exploration)]| {
        let explored = parallel(title, threads, explorations, |&(rank, exploration)| explore(rank, exploration))?;
        Ok::<_, anyhow::Error>(explored.concat())
    };
    Ok((samples("explorations", &training)?, samples("held out", &held_out)?))
}

/// The answers of those that have learnt nothing: yes, and what most training samples say.
fn trivial(training: &[Sample], held_out: &[Sample]) -> Vec<Row> {
    let most = 2 * training.iter().filter(|sample| sample.pays()).count() > training.len();
    let row = |(name, answer): (&str, bool)| Row {
        model: name.to_owned(),
        file: None,
        score: Score::of(held_out, &vec![answer; held_out.len()]),
        train_s: None,
        inference_ns: None,
    };
    [("always", true), ("majority", most)].map(row).to_vec()
}

/// Trains a classifier and tries it.
fn fitted(args: &FitArgs, name: ModelName, training: &[Sample], held_out: &[Sample]) -> Result<(Row, Trained)> {
    let began = Instant::now();
    let shown: Vec<&[f64]> = training.iter().map(|sample| &sample.values[..]).collect();
    let features = normalisation(&FEATURES, &shown);
    let constant = Model::Linear(Default::default());
    let mut trained = Trained {
        name: name.to_string(),
        training: words(args, training.len()),
        interval: args.interval.into(),
        features,
        model: constant,
    };
    let rows = training.iter().map(|sample| trained.normalised(sample.values).to_vec()).collect();
    let table = Table { rows, labels: training.iter().map(Sample::pays).collect() };
    trained.model = name.train(&table.balanced(), args.seed).with_context(|| format!("training {name}"))?;
    let train_s = began.elapsed().as_secs_f64();
    let rows: Vec<_> = held_out.iter().map(|sample| trained.normalised(sample.values)).collect();
    let mut scratch = vec![0.0; trained.model.scratch()];
    let answers: Vec<bool> = rows.iter().map(|row| trained.model.score(row, &mut scratch) > 0.0).collect();
    let timing = Instant::now();
    let rounds = TIMED.div_ceil(rows.len());
    for row in std::iter::repeat_n(&rows, rounds).flatten() {
        std::hint::black_box(trained.model.score(std::hint::black_box(row), &mut scratch));
    }
    let inference_ns = timing.elapsed().as_secs_f64() * 1e9 / (rounds * rows.len()) as f64;
    let row = Row {
        model: name.to_string(),
        file: Some(args.models.file(name).display().to_string()),
        score: Score::of(held_out, &answers),
        train_s: Some(train_s),
        inference_ns: Some(inference_ns),
    };
    Ok((row, trained))
}

/// How it was trained, for who opens the file.
fn words(args: &FitArgs, samples: usize) -> String {
    let name =
        |path: &PathBuf| Path::new(path).file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned());
    let traces: Vec<String> = args.traces.iter().map(name).collect();
    format!(
        "{samples} samples of {}, horizon {}, seed {}, rudder {}",
        traces.join(", "),
        args.horizon,
        args.seed,
        env!("CARGO_PKG_VERSION")
    )
}
