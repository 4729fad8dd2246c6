//! Trains a pilot on samples, and says what its choices cost on graphs that were held out.

use super::TrainArgs;
use super::gguf;
use super::network::Network;
use super::samples::{Parts, Sample, read};
use super::score::{self, Score, Scored, simple};
use super::vocabulary::Vocabulary;
use crate::record::{Made, percentile};
use crate::replay::{or_cores, parallel};
use crate::report;
use anyhow::{Context, Result};
use candle_core::{Device, Tensor};
use candle_nn::{AdamW, Optimizer, ParamsAdamW, ops};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_xoshiro::Xoshiro256PlusPlus;
use rudder::controller::llm::{LocalScorer, Pilot, ScorerLimits};
use rudder::controller::planner::PLANS;
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::Instant;

/// The document's version.
const FORMAT: u32 = 2;
/// Prompts of a step of the optimiser.
const BATCH: usize = 32;
/// The longest step, and how many steps it takes to grow to it; it shrinks to nothing along a quarter of a cosine after that.
const RATE: f64 = 1e-3;
const WARM_UP: usize = 50;
/// A plan whose stall is over the least by this share is worth 1/e of the best one.
const SHARPNESS: f64 = 0.02;
/// What the cross-entropy of the answers counts beside what they cost: it tells apart plans that cost nearly the same.
const CROSS_ENTROPY: f64 = 0.1;

/// What came of a training.
#[derive(Serialize)]
struct Document {
    #[serde(flatten)]
    made: Made,
    samples: usize,
    held_out: usize,
    epochs: usize,
    parameters: usize,
    bytes: u64,
    /// All trainings; the one that is kept costs least on what is for validation.
    trainings: Vec<Training>,
    /// By how much a plan must be likelier than the default to be chosen.
    margin: f64,
    /// Milliseconds of a decision, one thread.
    decision_ms_p50: f64,
    /// Milliseconds of a decision, one thread.
    decision_ms_p99: f64,
    /// On what was held out.
    scores: Vec<Score>,
    wall_s: f64,
}

/// One training.
#[derive(Serialize)]
struct Training {
    /// What it drew from.
    seed: u64,
    /// Mean loss of each epoch.
    losses: Vec<f64>,
    /// Stall over the least of any plan, on what is for validation, with the margin that suits it best.
    validated: f64,
}

/// A sample as tokens.
struct Prompt {
    tokens: Vec<u32>,
    /// By plan, what it is worth; together 1.
    worth: Vec<f32>,
    /// By plan, the logarithm of its stall over the least; 0 of one that cannot be chosen.
    cost: Vec<f32>,
    /// By plan, 0, or what a plan's logit is lowered by that cannot be chosen.
    lowered: Vec<f32>,
}

impl Prompt {
    fn of(sample: &Sample, scorer: &LocalScorer) -> Result<Self> {
        let tokens = scorer.prompt_tokens(&sample.job, &sample.text)?;
        let ratios = sample.ratios();
        let worth: Vec<f64> =
            ratios.iter().map(|ratio| ratio.map_or(0.0, |ratio| (-(ratio - 1.0) / SHARPNESS).exp())).collect();
        let sum: f64 = worth.iter().sum();
        Ok(Self {
            tokens,
            worth: worth.iter().map(|worth| (worth / sum) as f32).collect(),
            cost: ratios.iter().map(|ratio| ratio.map_or(0.0, f64::ln) as f32).collect(),
            lowered: ratios.iter().map(|ratio| if ratio.is_some() { 0.0 } else { -1e9 }).collect(),
        })
    }
}

/// `rudder pilot train`
///
/// # Errors
/// Samples cannot be read or leave nothing to learn from, or a file cannot be written.
pub fn run(args: &TrainArgs) -> Result<()> {
    let began = Instant::now();
    let mut samples = read(&args.samples)?;
    if args.without_job {
        samples.iter_mut().for_each(|sample| sample.job.clear());
    }
    let Parts { training, validation, held_out } = Parts::of(&samples)?;
    let vocabulary = Vocabulary::new();
    let draw = |random: &mut Xoshiro256PlusPlus| Network::drawn(vocabulary.tokens.len(), random);
    // Prompts are cut by the tokenizer that cuts them later, which comes with a model's file: here with one that has learnt nothing.
    let draft = tempfile::NamedTempFile::new()?;
    gguf::write(draft.path(), &draw(&mut Xoshiro256PlusPlus::seed_from_u64(args.seed))?, &vocabulary, 0.0)?;
    let scorer = LocalScorer::load(draft.path(), ScorerLimits::default())?;
    let answers = PLANS.iter().map(|plan| Ok(scorer.tokenizer().encode(plan.name).map_err(anyhow::Error::msg)?[0]));
    let answers = answers.collect::<Result<Vec<u32>>>()?;
    let prompts = training.iter().map(|sample| Prompt::of(sample, &scorer)).collect::<Result<Vec<_>>>()?;

    let seeds: Vec<u64> = (args.seed..).take(args.trainings).collect();
    let trained = parallel("trainings", or_cores(args.threads), &seeds, |&seed| {
        let random = &mut Xoshiro256PlusPlus::seed_from_u64(seed);
        let network = draw(random)?;
        let losses = learn(args, &network, &prompts, &answers, random)?;
        Ok((network, losses))
    })?;
    let mut trainings = Vec::new();
    let mut best: Option<(f64, f64, Network, Pilot)> = None;
    for (seed, (network, losses)) in seeds.into_iter().zip(trained) {
        gguf::write(draft.path(), &network, &vocabulary, 0.0)?;
        let mut pilot = Pilot::with_scorer(Box::new(LocalScorer::load(draft.path(), ScorerLimits::default())?), 0.0);
        let likely = ask(&mut pilot, &validation)?.0;
        let margin = score::margin(&validation, &likely);
        let validated = Score::of("", &validation, &score::choices(&validation, &likely, margin)).stall;
        let epochs: Vec<String> = losses.iter().map(|loss| format!("{loss:.3}")).collect();
        println!("seed {seed}: losses of the epochs {}", epochs.join(", "));
        println!("seed {seed}: {validated:.3} of the least on the graphs for validation, by a margin of {margin:.3}");
        trainings.push(Training { seed, losses, validated });
        if best.as_ref().is_none_or(|(least, ..)| validated < *least) {
            best = Some((validated, margin, network, pilot));
        }
    }
    let (_, margin, network, mut pilot) = best.context("nothing is trained")?;
    let trained = args.out.as_deref().unwrap_or(draft.path());
    gguf::write(trained, &network, &vocabulary, margin)?;
    let (likely, mut took) = ask(&mut pilot, &held_out)?;
    let mut scores = simple(&held_out);
    scores.push(Score::of("pilot", &held_out, &score::choices(&held_out, &likely, margin)));
    took.sort_by(f64::total_cmp);
    let document = Document {
        made: Made::here(FORMAT),
        samples: training.len(),
        held_out: held_out.len(),
        epochs: args.epochs,
        parameters: network.parameters().iter().map(|tensor| tensor.elem_count()).sum(),
        bytes: std::fs::metadata(trained)?.len(),
        trainings,
        margin,
        decision_ms_p50: percentile(&took, 0.5),
        decision_ms_p99: percentile(&took, 0.99),
        scores,
        wall_s: began.elapsed().as_secs_f64(),
    };
    println!(
        "{} parameters in {} bytes, trained on {} samples, followed by a margin of {:.3}; a decision takes {:.1} ms (p99 {:.1})",
        document.parameters,
        document.bytes,
        document.samples,
        document.margin,
        document.decision_ms_p50,
        document.decision_ms_p99
    );
    score::print(&document.scores, document.held_out);
    if let Some(path) = &args.json {
        report::write(path, &(serde_json::to_string(&document)? + "\n"))?;
    }
    Ok(())
}

/// What a pilot finds likely in each sample, and the milliseconds that each answer takes.
fn ask(pilot: &mut Pilot, samples: &[&Sample]) -> Result<(Scored, Vec<f64>)> {
    let mut took = Vec::new();
    let likely = samples.iter().map(|sample| -> Result<_> {
        let asked = Instant::now();
        let likely = pilot.ask(&sample.job, &sample.text, |plan| sample.stalls[plan].is_some())?;
        took.push(asked.elapsed().as_secs_f64() * 1e3);
        Ok(likely)
    });
    Ok((likely.collect::<Result<Scored>>()?, took))
}

/// Takes the optimiser's steps; the mean loss of each epoch.
fn learn(
    args: &TrainArgs,
    network: &Network,
    prompts: &[Prompt],
    answers: &[u32],
    random: &mut Xoshiro256PlusPlus,
) -> Result<Vec<f64>> {
    let mut optimiser =
        AdamW::new(network.parameters(), ParamsAdamW { lr: RATE, weight_decay: 0.05, ..ParamsAdamW::default() })?;
    let mut lengths = by_length(prompts);
    let steps = args.epochs * lengths.iter().map(|of_length| of_length.len().div_ceil(BATCH)).sum::<usize>();
    let (mut step, mut losses) = (0, Vec::new());
    for _ in 0..args.epochs {
        let (mut sum, batches) = (0.0, batches(&mut lengths, random));
        for batch in &batches {
            let done = step.max(WARM_UP) - WARM_UP;
            let falling = (done as f64 / (steps.max(WARM_UP + 1) - WARM_UP) as f64 * std::f64::consts::FRAC_PI_2).cos();
            optimiser.set_learning_rate(RATE * falling * ((step + 1) as f64 / WARM_UP as f64).min(1.0));
            let loss = loss(network, prompts, batch, answers)?;
            optimiser.backward_step(&loss)?;
            sum += f64::from(loss.to_scalar::<f32>()?);
            step += 1;
        }
        losses.push(sum / batches.len() as f64);
    }
    Ok(losses)
}

/// Prompts by their length.
fn by_length(prompts: &[Prompt]) -> Vec<Vec<usize>> {
    let mut lengths: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (at, prompt) in prompts.iter().enumerate() {
        lengths.entry(prompt.tokens.len()).or_default().push(at);
    }
    lengths.into_values().collect()
}

/// All prompts in a drawn order, those of one length together.
fn batches(lengths: &mut [Vec<usize>], random: &mut Xoshiro256PlusPlus) -> Vec<Vec<usize>> {
    let mut batches = Vec::new();
    for of_length in lengths {
        of_length.shuffle(random);
        batches.extend(of_length.chunks(BATCH).map(<[usize]>::to_vec));
    }
    batches.shuffle(random);
    batches
}

/// What the answers cost in the mean, and a share of their cross-entropy with what plans are worth.
fn loss(network: &Network, prompts: &[Prompt], batch: &[usize], answers: &[u32]) -> Result<Tensor> {
    let table = |of: fn(&Prompt) -> &[f32]| {
        let values: Vec<f32> = batch.iter().flat_map(|&at| of(&prompts[at])).copied().collect();
        Tensor::from_vec(values, (batch.len(), answers.len()), &Device::Cpu)
    };
    let tokens: Vec<Vec<u32>> = batch.iter().map(|&at| prompts[at].tokens.clone()).collect();
    let logits = (network.logits(&tokens, answers)? + table(|prompt| &prompt.lowered)?)?;
    let answered = ops::log_softmax(&logits, 1)?;
    let cost = (answered.exp()? * table(|prompt| &prompt.cost)?)?.sum_all()?;
    let entropy = (answered * table(|prompt| &prompt.worth)?)?.sum_all()?;
    Ok(((cost - (entropy * CROSS_ENTROPY)?)? / batch.len() as f64)?)
}
