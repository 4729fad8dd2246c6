//! What a fit leaves behind, as a JSON document and as a table for the terminal.

use super::score::Score;
use crate::record::Made;
use crate::report::tables::{percent, table};
use serde::{Deserialize, Serialize};
use std::fmt::Write;

/// The version of the document's layout.
pub const FORMAT: u32 = 1;

/// The document.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Document {
    /// [`FORMAT`], and what made it.
    #[serde(flatten)]
    pub made: Made,
    /// The names of the features.
    pub features: Vec<String>,
    /// What was trained on, and what it was tried on.
    pub samples: Samples,
    /// The classifiers, after the two that have learnt nothing.
    pub models: Vec<Row>,
    /// What follows, in words.
    pub findings: Vec<String>,
    /// Seconds that sampling took, and all of it.
    pub sampling_s: f64,
    /// See `sampling_s`.
    pub wall_s: f64,
}

/// The samples.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Samples {
    /// Those that were trained on.
    pub training: usize,
    /// Of these, the share whose label is yes.
    pub training_yes: f64,
    /// Those that were held out.
    pub held_out: usize,
    /// Of these, the share whose label is yes.
    pub held_out_yes: f64,
}

/// One classifier.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Row {
    /// Its name.
    pub model: String,
    /// Where it was left.
    pub file: Option<String>,
    /// On the held-out samples.
    pub score: Score,
    /// Seconds of training; measured.
    pub train_s: Option<f64>,
    /// Nanoseconds of a decision, features apart; measured.
    pub inference_ns: Option<f64>,
}

/// What the rows say.
pub fn findings(samples: &Samples, rows: &[Row]) -> Vec<String> {
    let (trivial, learnt): (Vec<&Row>, Vec<&Row>) = rows.iter().partition(|row| row.file.is_none());
    let mut findings = Vec::new();
    if samples.training_yes == 0.0 || samples.training_yes == 1.0 {
        findings.push("All training samples have one label: there is nothing to learn.".to_owned());
    }
    for row in learnt {
        let Score { balanced_accuracy, rows_over_best, .. } = row.score;
        let best_trivial = |of: fn(&Score) -> f64, better: fn(f64, f64) -> f64| {
            trivial.iter().map(|row| of(&row.score)).reduce(better).unwrap_or_default()
        };
        let labels = best_trivial(|score| score.balanced_accuracy, f64::max);
        let fewest = best_trivial(|score| score.rows_over_best, f64::min);
        let beats = |better: bool| if better { "beats" } else { "does not beat" };
        findings.push(format!(
            "{} {} the trivial answers in balanced accuracy, {} against {}, and {} them in rows, {rows_over_best:.4} against {fewest:.4}.",
            row.model,
            beats(balanced_accuracy > labels),
            percent(balanced_accuracy),
            percent(labels),
            beats(rows_over_best < fewest),
        ));
    }
    findings
}

/// For a terminal.
pub fn text(document: &Document) -> String {
    let Samples { training, training_yes, held_out, held_out_yes } = document.samples;
    let mut text = format!(
        "{training} training samples, {} of them yes; {held_out} held out, {} of them yes\n\n",
        percent(training_yes),
        percent(held_out_yes)
    );
    let dash = |value: Option<f64>, digits: usize| value.map_or_else(|| "-".to_owned(), |v| format!("{v:.digits$}"));
    let lines: Vec<Vec<String>> = document
        .models
        .iter()
        .map(|row| {
            vec![
                row.model.clone(),
                percent(row.score.accuracy),
                percent(row.score.balanced_accuracy),
                format!("{:.3}", row.score.f1),
                percent(row.score.says_yes),
                format!("{:.4}", row.score.rows_over_best),
                dash(row.train_s, 2),
                dash(row.inference_ns, 0),
            ]
        })
        .collect();
    let heads = ["model", "accuracy", "balanced", "F1", "says yes", "rows / best", "training, s", "a decision, ns"];
    text.push_str(&table(heads, &lines));
    text.push('\n');
    document.findings.iter().for_each(|finding| _ = write!(text, "\n{finding}"));
    text
}
