//! How good answers are: against the labels, and in rows.

use super::samples::Sample;
use serde::{Deserialize, Serialize};

/// What answers to samples are worth.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Score {
    /// The share of answers that are yes.
    pub says_yes: f64,
    /// The share of right answers.
    pub accuracy: f64,
    /// The mean of that share where the label is yes and where it is no; a label that no sample has is left out.
    pub balanced_accuracy: f64,
    /// Twice the answers that are rightly yes, over those that are yes and the labels that are.
    pub f1: f64,
    /// Rows up to the horizons as answered, over those of the right answers.
    pub rows_over_best: f64,
}

impl Score {
    /// Of answers to samples, one each.
    pub fn of(samples: &[Sample], answers: &[bool]) -> Self {
        let pairs = || samples.iter().zip(answers.iter().copied());
        let count = |label: bool, answer: bool| pairs().filter(|(s, a)| (s.pays(), *a) == (label, answer)).count();
        let (yes_yes, yes_no) = (count(true, true), count(true, false));
        let (no_yes, no_no) = (count(false, true), count(false, false));
        let recalls: Vec<f64> = [(yes_yes, yes_yes + yes_no), (no_no, no_yes + no_no)]
            .into_iter()
            .filter(|(_, labels)| *labels > 0)
            .map(|(right, labels)| share(right, labels))
            .collect();
        let rows: u64 = pairs().map(|(sample, answer)| sample.rows(answer)).sum();
        let best: u64 = samples.iter().map(|sample| sample.rows(sample.pays())).sum();
        Self {
            says_yes: share(yes_yes + no_yes, samples.len()),
            accuracy: share(yes_yes + no_no, samples.len()),
            balanced_accuracy: recalls.iter().sum::<f64>() / recalls.len().max(1) as f64,
            f1: share(2 * yes_yes, 2 * yes_yes + no_yes + yes_no),
            rows_over_best: rows as f64 / best.max(1) as f64,
        }
    }
}

/// A share, 0 of nothing.
pub fn share(part: usize, whole: usize) -> f64 {
    part as f64 / whole.max(1) as f64
}

#[cfg(test)]
mod tests {
    //! Goal: the figures are the known ones. Method: four samples, by hand.
    use super::*;

    fn sample(keep_rows: u64, replace_rows: u64) -> Sample {
        Sample { values: Default::default(), keep_rows, replace_rows }
    }

    #[test]
    fn answers_are_weighed_by_label_and_by_rows() {
        let samples = [sample(100, 50), sample(100, 150), sample(100, 110), sample(100, 100)];
        let score = Score::of(&samples, &[true, true, false, false]);
        assert_eq!((score.says_yes, score.accuracy), (0.5, 0.75));
        assert!((score.balanced_accuracy - (1.0 + 2.0 / 3.0) / 2.0).abs() < 1e-12, "{score:?}");
        assert!((score.f1 - 2.0 / 3.0).abs() < 1e-12, "{score:?}");
        assert!((score.rows_over_best - 400.0 / 350.0).abs() < 1e-12, "{score:?}");
        let never = Score::of(&samples[1..], &[false; 3]);
        assert_eq!((never.balanced_accuracy, never.f1, never.rows_over_best), (1.0, 0.0, 1.0), "no label is yes");
    }
}
