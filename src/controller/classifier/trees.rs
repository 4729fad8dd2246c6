//! Decision trees, whose answers are summed: a forest's votes, or the steps of gradient boosting.

use serde::{Deserialize, Serialize};

/// Most nodes of all trees.
const NODES_MAX: usize = 1 << 20;

/// A node of a tree.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Node {
    /// Which way to go.
    Split {
        /// The feature's place.
        feature: u32,
        /// The left way is for values up to this.
        at_most: f64,
        /// The left child's place in the tree, after this node's own.
        left: u32,
        /// The right child's.
        right: u32,
    },
    /// The tree's answer.
    Leaf(f64),
}

/// Trees, and what the sum of their answers begins with.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Trees {
    /// The sum's first term.
    pub bias: f64,
    /// The trees' nodes, each tree's root first.
    pub trees: Vec<Vec<Node>>,
}

impl Trees {
    /// Refuses trees that lead nowhere.
    pub(super) fn check(&self, features: usize) -> Result<(), String> {
        let nodes: usize = self.trees.iter().map(Vec::len).sum();
        if nodes > NODES_MAX {
            return Err(format!("{nodes} nodes of trees; the most are {NODES_MAX}"));
        }
        for (number, tree) in self.trees.iter().enumerate() {
            if tree.is_empty() {
                return Err(format!("tree {number} is empty"));
            }
            for (at, node) in tree.iter().enumerate() {
                let Node::Split { feature, left, right, .. } = *node else { continue };
                // Since a way only leads on, it ends.
                let leads_on = |child: u32| child as usize > at && (child as usize) < tree.len();
                if feature as usize >= features || !leads_on(left) || !leads_on(right) {
                    return Err(format!("node {at} of tree {number} leads nowhere: {node:?}"));
                }
            }
        }
        Ok(())
    }

    pub(super) fn score(&self, values: &[f64]) -> f64 {
        self.trees.iter().fold(self.bias, |sum, tree| sum + answer(tree, values))
    }
}

fn answer(tree: &[Node], values: &[f64]) -> f64 {
    let mut at = 0;
    loop {
        match tree[at] {
            Node::Leaf(answer) => return answer,
            Node::Split { feature, at_most, left, right } => {
                at = if values[feature as usize] <= at_most { left } else { right } as usize;
            }
        }
    }
}
