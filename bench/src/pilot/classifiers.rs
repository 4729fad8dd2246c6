//! Classifiers on the pilot's samples: the second form of the published ones, which are given what the pilot is given.

use super::ClassifiersArgs;
use super::samples::{Parts, Sample};
use super::score::{Score, Scored, choices, margin, print, simple};
use crate::fit::{ModelName, Table, normalisation};
use crate::progress::Progress;
use anyhow::{Context, Result};
use rudder::controller::classifier::{AS_GOOD, TrainedPlans};
use rudder::controller::planner::{PLANS, VALUES};

/// `rudder pilot classifiers`
///
/// # Errors
/// Samples cannot be read or leave nothing to learn from, a training fails, or a file cannot be written.
pub fn run(args: &ClassifiersArgs) -> Result<()> {
    args.models.check()?;
    let samples = super::samples::read(&args.samples)?;
    let Parts { training, validation, held_out } = Parts::of(&samples)?;
    let mut scores = simple(&held_out);
    let mut progress = Progress::new();
    for &name in &args.models.model {
        progress.begin(name.name());
        let mut trained = trained(name, &training, args).with_context(|| format!("training {name}"))?;
        let scored = |samples: &[&Sample]| -> Scored {
            let of = |sample: &&Sample| trained.scores(sample.values(), |plan| sample.stalls[plan].is_some());
            samples.iter().map(of).collect()
        };
        let on_held_out = scored(&held_out);
        trained.margin = margin(&validation, &scored(&validation));
        let file = args.models.file(name);
        trained.write(&file)?;
        progress.end(&format!("wrote {}", file.display()));
        scores.push(Score::of(name.name(), &held_out, &choices(&held_out, &on_held_out, trained.margin)));
    }
    print(&scores, held_out.len());
    Ok(())
}

fn trained(name: ModelName, training: &[&Sample], args: &ClassifiersArgs) -> Result<TrainedPlans> {
    let shown: Vec<&[f64]> = training.iter().map(|sample| &sample.values[..]).collect();
    let mut trained = TrainedPlans {
        name: name.to_string(),
        training: format!("{} samples, seed {}, rudder {}", training.len(), args.seed, env!("CARGO_PKG_VERSION")),
        features: normalisation(&VALUES, &shown),
        plans: Vec::new(),
        margin: 0.0,
    };
    for (at, plan) in PLANS.iter().enumerate() {
        let ratios = training.iter().filter_map(|sample| Some((sample, sample.ratios()[at]?)));
        let (rows, labels) =
            ratios.map(|(sample, ratio)| (trained.normalised(sample.values()).to_vec(), ratio <= AS_GOOD)).unzip();
        let model = name.train(&Table { rows, labels }.balanced(), args.seed)?;
        trained.plans.push((plan.name.to_owned(), model));
    }
    Ok(trained)
}
