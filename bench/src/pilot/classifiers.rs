//! Classifiers on the pilot's samples: the second form of the published ones, which are given what the pilot is given.

use super::ClassifiersArgs;
use super::samples::{Sample, halves};
use super::score::{Score, print, simple};
use crate::fit::{ModelName, Table, normalisation};
use crate::progress::Progress;
use anyhow::{Context, Result, ensure};
use rudder::controller::classifier::TrainedPlans;
use rudder::controller::planner::{PLANS, VALUES};
use std::path::PathBuf;

/// A plan is as good as the best if its stall is within this of the least.
const AS_GOOD: f64 = 1.01;

/// `rudder pilot classifiers`
///
/// # Errors
/// Samples cannot be read or leave nothing to learn from, a training fails, or a file cannot be written.
pub fn run(args: &ClassifiersArgs) -> Result<()> {
    let out = args.out.to_string_lossy();
    ensure!(
        args.model.len() == 1 || out.contains("{}"),
        "--out {out} would be written once for each of {} classifiers: put {{}} in the name, such as target/{{}}.json",
        args.model.len()
    );
    let samples = super::samples::read(&args.samples)?;
    let (training, held_out) = halves(&samples)?;
    let mut scores = simple(&held_out)?;
    let mut progress = Progress::new();
    for &name in &args.model {
        progress.begin(name.name());
        let trained = trained(name, &training, args).with_context(|| format!("training {name}"))?;
        let file = PathBuf::from(out.replace("{}", name.name()));
        trained.write(&file)?;
        progress.end(&format!("wrote {}", file.display()));
        scores.push(Score::of(name.name(), &held_out, |sample| {
            let values = sample.values.as_slice().try_into().expect("samples that were read have all values");
            Ok(trained.choose(values, |plan| sample.stalls[plan].is_some()).unwrap_or(sample.plan))
        })?);
    }
    print(&scores, held_out.len());
    Ok(())
}

fn trained(name: ModelName, training: &[&Sample], args: &ClassifiersArgs) -> Result<TrainedPlans> {
    let shown: Vec<&[f64]> = training.iter().map(|sample| &sample.values[..]).collect();
    let features = normalisation(&VALUES, &shown);
    let normal = |values: &[f64]| {
        let normal = values.iter().zip(&features).map(|(value, feature)| (value - feature.mean) / feature.deviation);
        normal.collect::<Vec<f64>>()
    };
    let of_plan = |(at, plan): (usize, &rudder::controller::planner::Plan)| {
        let ratios = training.iter().filter_map(|sample| Some((sample, sample.ratios()[at]?)));
        let (rows, labels) = ratios.map(|(sample, ratio)| (normal(&sample.values), ratio <= AS_GOOD)).unzip();
        Ok((plan.name.to_owned(), name.train(&Table { rows, labels }.balanced(), args.seed)?))
    };
    let plans = PLANS.iter().enumerate().map(of_plan).collect::<Result<Vec<_>>>()?;
    let training = format!("{} samples, seed {}, rudder {}", training.len(), args.seed, env!("CARGO_PKG_VERSION"));
    Ok(TrainedPlans { name: name.to_string(), training, features, plans })
}
