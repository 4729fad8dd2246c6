//! Feature rows, made when they are asked for.

use super::hash::{mix, mix_all, noise};
use super::prepared::Prepared;
use anyhow::Result;
use std::sync::Arc;

/// The feature rows of a graph: `f32`, `width` a node.
#[derive(Clone)]
pub struct Features {
    width: usize,
    // The node whose row is meant, where the graph was relabelled after its features were defined.
    origin: Option<Arc<Vec<u32>>>,
    source: Source,
}

#[derive(Clone)]
enum Source {
    Words(Arc<Words>),
    Classes(Arc<Classes>),
    Prepared(Arc<Prepared>),
}

/// A bag of words a node, weighted by TF-IDF and hashed to the width of a row.
pub(super) struct Words {
    /// `nodes + 1` offsets into `tokens`.
    pub offsets: Vec<u32>,
    /// Word ids, each once a node.
    pub tokens: Vec<u16>,
    /// The weight of each word.
    pub weights: Vec<f32>,
}

/// The centre of the node's class, scaled, plus noise of unit variance from a hash of the node.
pub(super) struct Classes {
    seed: u64,
    labels: Vec<u16>,
    centres: Vec<f32>,
}

impl Features {
    pub(super) fn words(width: usize, words: Words) -> Self {
        Self { width, origin: None, source: Source::Words(Arc::new(words)) }
    }

    /// Rows about a random centre for each class; `signal` is the expected distance of two centres in units of the noise's deviation.
    pub(super) fn classes(width: usize, seed: u64, labels: Vec<u16>, classes: usize, signal: f32) -> Self {
        let scale = signal / (2.0 * width as f32).sqrt();
        let centres = (0..(classes * width) as u64).map(|at| scale * noise(mix_all([seed, 0xCE27, at]))).collect();
        Self { width, origin: None, source: Source::Classes(Arc::new(Classes { seed, labels, centres })) }
    }

    pub(super) fn prepared(prepared: Arc<Prepared>) -> Self {
        Self { width: prepared.width(), origin: None, source: Source::Prepared(prepared) }
    }

    /// Number of `f32` in a row.
    pub fn width(&self) -> usize {
        self.width
    }

    /// The same rows under new node ids: node `n` of the result has the row of `old[n]`.
    pub fn relabelled(&self, old: &[u32]) -> Self {
        let origin = old.iter().map(|&node| self.origin(node)).collect();
        Self { width: self.width, origin: Some(Arc::new(origin)), source: self.source.clone() }
    }

    /// Write a node's row.
    ///
    /// # Errors
    /// The row is in a file that cannot be read.
    ///
    /// # Panics
    /// When `row` is not [`width`](Self::width) long or there is no such node.
    pub fn write_row(&self, node: u32, row: &mut [f32]) -> Result<()> {
        assert_eq!(row.len(), self.width, "a feature row of another width");
        let node = self.origin(node);
        match &self.source {
            Source::Words(words) => words.write_row(node, row),
            Source::Classes(classes) => classes.write_row(node, row),
            Source::Prepared(prepared) => prepared.write_row(node, row)?,
        }
        Ok(())
    }

    fn origin(&self, node: u32) -> u32 {
        self.origin.as_ref().map_or(node, |origin| origin[node as usize])
    }
}

impl Words {
    fn write_row(&self, node: u32, row: &mut [f32]) {
        row.fill(0.0);
        let range = self.offsets[node as usize] as usize..self.offsets[node as usize + 1] as usize;
        for &token in &self.tokens[range] {
            let hash = mix(u64::from(token));
            // A random sign keeps words that share a column from only ever adding up (Weinberger et al., 2009).
            let sign = if hash >> 63 == 0 { 1.0 } else { -1.0 };
            row[(hash % row.len() as u64) as usize] += sign * self.weights[token as usize];
        }
        let norm = row.iter().map(|value| value * value).sum::<f32>().sqrt();
        if norm > 0.0 {
            // Unit rows of 128 columns have tiny entries; this scale gives entries of about unit variance, which training likes.
            let scale = (row.len() as f32).sqrt() / norm;
            row.iter_mut().for_each(|value| *value *= scale);
        }
    }
}

impl Classes {
    fn write_row(&self, node: u32, row: &mut [f32]) {
        let centre = self.labels[node as usize] as usize * row.len();
        let stream = mix_all([self.seed, 0xFEA7, u64::from(node)]);
        for (column, (value, centre)) in row.iter_mut().zip(&self.centres[centre..]).enumerate() {
            *value = centre + noise(mix(stream.wrapping_add(column as u64)));
        }
    }
}
