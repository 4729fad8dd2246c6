//! Models that `smartcore` trains, written down as plain numbers.
//!
//! Its trees and support vectors are private; what it serialises of them is read instead, by the names that its own files have.

use super::table::Table;
use anyhow::{Context, Result};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_xoshiro::Xoshiro256PlusPlus;
use rudder::controller::classifier::{Kernel, Linear, Model, Node, Trees};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use smartcore::ensemble::random_forest_classifier::{RandomForestClassifier, RandomForestClassifierParameters};
use smartcore::linalg::basic::arrays::Array;
use smartcore::linalg::basic::matrix::DenseMatrix;
use smartcore::linear::logistic_regression::{LogisticRegression, LogisticRegressionParameters};
use smartcore::svm::Kernels;
use smartcore::svm::svc::{SVC, SVCParameters};
use smartcore::xgboost::xgb_regressor::{XGRegressor, XGRegressorParameters};

/// Strength of the logistic regression's ridge penalty, on a sum over samples.
const RIDGE: f64 = 1.0;
/// Trees of a forest, the fewest samples of a leaf, and the most splits on a way.
const FOREST: (u16, usize, u16) = (100, 5, 12);
/// Rounds of boosting, how much each counts, and the most splits on a way.
const BOOSTING: (usize, f64, u16) = (200, 0.05, 4);
/// Most samples of a support vector machine: most of them become support vectors, each of which an answer has to look at.
const SUPPORT_MAX: usize = 600;

type Matrix = DenseMatrix<f64>;

fn matrix(table: &Table) -> Result<(Matrix, Vec<u32>)> {
    let labels = table.labels.iter().map(|&label| u32::from(label)).collect();
    Ok((Matrix::from_2d_vec(&table.rows)?, labels))
}

/// What a model serialises of itself.
fn exported<T: DeserializeOwned>(model: &impl serde::Serialize) -> Result<T> {
    serde_json::from_value(serde_json::to_value(model)?).context("smartcore has changed the layout of its models")
}

/// Logistic regression with a ridge penalty.
///
/// # Errors
/// It cannot be trained.
pub fn logistic(table: &Table) -> Result<Model> {
    let (rows, labels) = matrix(table)?;
    let parameters = LogisticRegressionParameters::default().with_alpha(RIDGE);
    let trained = LogisticRegression::fit(&rows, &labels, parameters)?;
    let weights = trained.coefficients().iterator(0).copied().collect();
    Ok(Model::Linear(Linear { weights, bias: *trained.intercept().get((0, 0)) }))
}

#[derive(Deserialize)]
struct SmartForest {
    trees: Vec<SmartTree>,
}

#[derive(Deserialize)]
struct SmartTree {
    nodes: Vec<SmartNode>,
}

#[derive(Deserialize)]
struct SmartNode {
    output: usize,
    split_feature: usize,
    split_value: Option<f64>,
    true_child: Option<usize>,
    false_child: Option<usize>,
}

fn growing(seed: u64) -> RandomForestClassifierParameters {
    let (trees, leaf, depth) = FOREST;
    RandomForestClassifierParameters::default()
        .with_n_trees(trees)
        .with_min_samples_leaf(leaf)
        .with_max_depth(depth)
        .with_seed(seed)
}

/// A random forest; each tree has a vote.
///
/// # Errors
/// It cannot be trained.
pub fn forest(table: &Table, seed: u64) -> Result<Model> {
    let (rows, labels) = matrix(table)?;
    let trained: SmartForest = exported(&RandomForestClassifier::fit(&rows, &labels, growing(seed))?)?;
    let trees = trained.trees.iter().map(|tree| {
        let node = |node: &SmartNode| match (node.true_child, node.false_child, node.split_value) {
            (Some(left), Some(right), Some(at_most)) => {
                Node::Split { feature: node.split_feature as u32, at_most, left: left as u32, right: right as u32 }
            }
            _ => Node::Leaf(if node.output == 1 { 1.0 } else { -1.0 }),
        };
        tree.nodes.iter().map(node).collect()
    });
    Ok(Model::Trees(Trees { bias: 0.0, trees: trees.collect() }))
}

#[derive(Deserialize)]
struct SmartBooster {
    regressors: Vec<SmartStep>,
}

#[derive(Deserialize)]
struct SmartStep {
    left: Option<Box<SmartStep>>,
    right: Option<Box<SmartStep>>,
    value: f64,
    threshold: f64,
    split_feature_idx: usize,
}

impl SmartStep {
    /// Appends the tree below here, each node before its children, with leaves that count as much as a round does.
    fn flatten(&self, rate: f64, nodes: &mut Vec<Node>) {
        let (Some(one), Some(other)) = (&self.left, &self.right) else {
            nodes.push(Node::Leaf(rate * self.value));
            return;
        };
        let at = nodes.len();
        nodes.push(Node::Leaf(0.0));
        let left = nodes.len() as u32;
        one.flatten(rate, nodes);
        let right = nodes.len() as u32;
        other.flatten(rate, nodes);
        nodes[at] = Node::Split { feature: self.split_feature_idx as u32, at_most: self.threshold, left, right };
    }
}

fn boosting(seed: u64) -> XGRegressorParameters {
    let (rounds, rate, depth) = BOOSTING;
    XGRegressorParameters::default()
        .with_n_estimators(rounds)
        .with_learning_rate(rate)
        .with_max_depth(depth)
        .with_subsample(0.8)
        .with_seed(seed)
}

/// Trees, gradient-boosted on the squared error of 0 and 1: yes is above a half.
///
/// # Errors
/// It cannot be trained.
pub fn boosted(table: &Table, seed: u64) -> Result<Model> {
    let (rows, labels) = matrix(table)?;
    let trained: SmartBooster = exported(&XGRegressor::fit(&rows, &labels, boosting(seed))?)?;
    let (_, rate, _) = BOOSTING;
    let trees = trained.regressors.iter().map(|step| {
        let mut nodes = Vec::new();
        step.flatten(rate, &mut nodes);
        nodes
    });
    // Its first guess is a half.
    Ok(Model::Trees(Trees { bias: 0.0, trees: trees.collect() }))
}

#[derive(Deserialize)]
struct SmartSupport {
    instances: Vec<Vec<f64>>,
    w: Vec<f64>,
    b: f64,
}

/// At most so many rows, drawn.
fn drawn(table: &Table, most: usize, seed: u64) -> Table {
    let mut order: Vec<usize> = (0..table.rows.len()).collect();
    order.shuffle(&mut Xoshiro256PlusPlus::seed_from_u64(seed));
    order.truncate(most);
    order.sort_unstable();
    let (rows, labels) = order.iter().map(|&at| (table.rows[at].clone(), table.labels[at])).unzip();
    Table { rows, labels }
}

fn support(table: &Table, kernel: Kernels, seed: u64) -> Result<SmartSupport> {
    let table = drawn(table, SUPPORT_MAX, seed);
    let rows = Matrix::from_2d_vec(&table.rows)?;
    let labels: Vec<i32> = table.labels.iter().map(|&label| if label { 1 } else { -1 }).collect();
    let parameters = SVCParameters::default().with_kernel(kernel).with_seed(Some(seed));
    exported(&SVC::fit(&rows, &labels, &parameters)?)
}

/// A linear support vector machine.
///
/// # Errors
/// It cannot be trained.
pub fn linear_svm(table: &Table, seed: u64) -> Result<Model> {
    let SmartSupport { instances, w, b } = support(table, Kernels::linear(), seed)?;
    let mut weights = vec![0.0; table.rows[0].len()];
    for (vector, weight) in instances.iter().zip(&w) {
        weights.iter_mut().zip(vector).for_each(|(sum, value)| *sum += weight * value);
    }
    Ok(Model::Linear(Linear { weights, bias: b }))
}

/// A support vector machine with a Gaussian kernel, as wide as the square root of the number of features.
///
/// # Errors
/// It cannot be trained.
pub fn svm(table: &Table, seed: u64) -> Result<Model> {
    let gamma = 1.0 / table.rows[0].len() as f64;
    let SmartSupport { instances, w, b } = support(table, Kernels::rbf().with_gamma(gamma), seed)?;
    Ok(Model::Kernel(Kernel { gamma, vectors: instances, weights: w, bias: b }))
}

#[cfg(test)]
mod tests {
    //! Goal: what is exported answers as smartcore does. Method: tables drawn at random, and rows that it was not trained on.
    use super::*;
    use proptest::prelude::*;

    /// A table in which labels follow from features, but for some.
    fn tables() -> impl Strategy<Value = Table> {
        let row = proptest::collection::vec(-2.0..2.0f64, 4);
        proptest::collection::vec((row, proptest::bool::weighted(0.15)), 40..80).prop_map(|samples| {
            let label = |row: &[f64], wrong: bool| (row[0] * row[1] + row[2] > 0.0) != wrong;
            let labels = samples.iter().map(|(row, wrong)| label(row, *wrong)).collect();
            Table { rows: samples.into_iter().map(|(row, _)| row).collect(), labels }
        })
    }

    fn yes(model: &Model, row: &[f64]) -> bool {
        model.score(row, &mut []) > 0.0
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn answers_are_those_of_smartcore(table in tables(), others in tables(), seed in any::<u64>()) {
            prop_assume!(!table.is_of_one_label());
            let (rows, labels) = matrix(&table).unwrap();
            let (tried, _) = matrix(&others).unwrap();

            let ridge = LogisticRegressionParameters::default().with_alpha(RIDGE);
            let said: Vec<u32> = LogisticRegression::fit(&rows, &labels, ridge).unwrap().predict(&tried).unwrap();
            let model = logistic(&table).unwrap();
            for (row, said) in others.rows.iter().zip(said) {
                prop_assert_eq!(yes(&model, row), said == 1);
            }

            let said: Vec<u32> = RandomForestClassifier::fit(&rows, &labels, growing(seed)).unwrap().predict(&tried).unwrap();
            let model = forest(&table, seed).unwrap();
            for (row, said) in others.rows.iter().zip(said) {
                prop_assert_eq!(yes(&model, row), said == 1);
            }

            let said = XGRegressor::fit(&rows, &labels, boosting(seed)).unwrap().predict(&tried).unwrap();
            let model = boosted(&table, seed).unwrap();
            for (row, said) in others.rows.iter().zip(said) {
                prop_assert!((model.score(row, &mut []) - (said - 0.5)).abs() < 1e-9);
            }
        }

        #[test]
        fn support_vectors_are_those_of_smartcore(table in tables(), others in tables(), seed in any::<u64>()) {
            prop_assume!(!table.is_of_one_label());
            let labels: Vec<i32> = table.labels.iter().map(|&label| if label { 1 } else { -1 }).collect();
            let rows = Matrix::from_2d_vec(&table.rows).unwrap();
            let tried = Matrix::from_2d_vec(&others.rows).unwrap();
            let gaussian = Kernels::rbf().with_gamma(0.25);
            for (kernel, model) in [
                (Kernels::linear(), linear_svm(&table, seed).unwrap()),
                (gaussian, svm(&table, seed).unwrap()),
            ] {
                let parameters = SVCParameters::default().with_kernel(kernel).with_seed(Some(seed));
                let machine = SVC::fit(&rows, &labels, &parameters).unwrap();
                for (row, said) in others.rows.iter().zip(machine.decision_function(&tried).unwrap()) {
                    let score = model.score(row, &mut []);
                    prop_assert!((score - said).abs() < 1e-9 * (1.0 + said.abs()), "{score} and {said}");
                }
            }
        }
    }
}
