//! Samples as a table of numbers: normalised features, and labels.

use rudder::controller::classifier::Feature;

/// A deviation below this is that of a feature which never changes.
const CONSTANT: f64 = 1e-9;

/// How features of these names are normalised: by the means and standard deviations of these samples' values.
pub fn normalisation(names: &[&str], values: &[&[f64]]) -> Vec<Feature> {
    let count = values.len().max(1) as f64;
    let of_feature = |(at, name): (usize, &&str)| {
        let mean = values.iter().map(|values| values[at]).sum::<f64>() / count;
        let variance = values.iter().map(|values| (values[at] - mean).powi(2)).sum::<f64>() / count;
        let deviation = if variance.sqrt() > CONSTANT { variance.sqrt() } else { 1.0 };
        Feature { name: (*name).to_owned(), mean, deviation }
    };
    names.iter().enumerate().map(of_feature).collect()
}

/// Rows of features, and a label each, such as whether replacing pays.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Table {
    /// Normalised features, a row each.
    pub rows: Vec<Vec<f64>>,
    /// Labels.
    pub labels: Vec<bool>,
}

impl Table {
    /// With as many rows of either label: those of the rarer one are repeated, since the published classifiers weigh labels so.
    pub fn balanced(mut self) -> Self {
        let yes = self.labels.iter().filter(|label| **label).count();
        let no = self.labels.len() - yes;
        let (rare, missing) = (yes < no, yes.abs_diff(no));
        let of_label: Vec<usize> = (0..self.labels.len()).filter(|&at| self.labels[at] == rare).collect();
        for &at in of_label.iter().cycle().take(missing) {
            self.rows.push(self.rows[at].clone());
            self.labels.push(rare);
        }
        self
    }

    /// Values of a row.
    pub fn columns(&self) -> usize {
        self.rows.first().map_or(0, Vec::len)
    }

    /// Whether all labels are one.
    pub fn is_of_one_label(&self) -> bool {
        self.labels.windows(2).all(|pair| pair[0] == pair[1])
    }
}
