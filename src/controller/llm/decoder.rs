//! The decoder-only transformers that we run: grouped-query attention, rotary positions, RMSNorm, a gated feed-forward
//! network. The architectures are options of one code path.
//!
//! Sources: Touvron et al., "LLaMA" (arXiv 2302.13971); Gemma Team, "Gemma 3 Technical Report" (arXiv 2503.19786); Su et
//! al., "RoFormer" (arXiv 2104.09864).

use super::gguf::{Gguf, Outcome};
use super::matrix::{Matrix, Storage, View, multiply};
use candle_core::quantized::QTensor;
use candle_core::{DType, Device, Result, Tensor};
use std::ops::Range;
use std::sync::Arc;

const MAX_LAYERS: usize = 256;
const MAX_WIDTH: usize = 1 << 14;
const MAX_HIDDEN: usize = 1 << 16;
const MAX_CONTEXT: usize = 1 << 20;
/// Gemma 3 of 27 billion parameters has as many layers, and divides what attention compares by a number that its files
/// do not tell.
const LAYERS_OF_27B: usize = 62;

/// What a file says its model is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Architecture {
    Llama,
    Gemma3,
}

struct Shape {
    architecture: Architecture,
    width: usize,
    hidden: usize,
    heads: usize,
    kv_heads: usize,
    head: usize,
    rotary: usize,
    epsilon: f32,
}

/// How far a layer's tokens look back, themselves included, and how fast positions turn.
struct Reach {
    window: usize,
    frequencies: Vec<f32>,
}

struct Layer {
    reach: Arc<Reach>,
    attention_norm: Vec<f32>,
    query_key_value: Matrix,
    /// Norms of each head's query and key.
    head_norms: Option<[Vec<f32>; 2]>,
    output: Matrix,
    /// Norm of what attention adds.
    attended_norm: Option<Vec<f32>>,
    feed_norm: Vec<f32>,
    gate_up: Matrix,
    down: Matrix,
    /// Norm of what the feed-forward network adds.
    fed_norm: Option<Vec<f32>>,
}

/// The weights.
pub(super) struct Decoder {
    shape: Shape,
    layers: Vec<Layer>,
    embedding: QTensor,
    embedding_scale: f32,
    /// The rows that turn a state into logits, where they are not the embedding's.
    head: Option<QTensor>,
    output_norm: Vec<f32>,
    pub context: usize,
}

/// Keys and values of the tokens evaluated so far, by layer, token and head. Forgetting the last ones is setting a length.
pub(super) struct Cache {
    keys: Vec<Vec<f32>>,
    values: Vec<Vec<f32>>,
    capacity: usize,
    length: usize,
}

impl Cache {
    pub fn length(&self) -> usize {
        self.length
    }

    pub fn truncate(&mut self, length: usize) {
        self.length = self.length.min(length);
    }
}

impl Architecture {
    /// That of the file, if it is one of these.
    pub fn of(gguf: &Gguf) -> Outcome<Self> {
        match gguf.text("general.architecture")? {
            "llama" => Ok(Self::Llama),
            "gemma3" => Ok(Self::Gemma3),
            other => Err(format!(
                "it is a model of architecture {other:?}; \"llama\" (SmolLM2, Llama) and \"gemma3\" are supported"
            )),
        }
    }

    /// The metadata key of this architecture's option.
    fn key(self, option: &str) -> String {
        let name = match self {
            Self::Llama => "llama",
            Self::Gemma3 => "gemma3",
        };
        format!("{name}.{option}")
    }
}

impl Decoder {
    pub fn from_gguf(gguf: &mut Gguf) -> Outcome<Self> {
        let architecture = Architecture::of(gguf)?;
        let shape = Shape::from_gguf(gguf, architecture)?;
        let context = gguf.count(&architecture.key("context_length"), MAX_CONTEXT)?;
        let reaches = reaches(gguf, &shape)?;
        let vocabulary = gguf.texts("tokenizer.ggml.tokens")?.len();
        let embedding = gguf.quantized("token_embd.weight", &[vocabulary, shape.width])?;
        let tied = !gguf.has_tensor("output.weight");
        let head = if tied { None } else { Some(gguf.quantized("output.weight", &[vocabulary, shape.width])?) };
        let storage = Storage::for_numbers(reaches.len() * shape.numbers());
        let layers = reaches.into_iter().enumerate();
        let layers = layers
            .map(|(index, reach)| Layer::from_gguf(gguf, &shape, index, reach, storage))
            .collect::<Outcome<_>>()?;
        Ok(Self {
            output_norm: vector(gguf, "output_norm.weight", shape.width)?,
            layers,
            embedding,
            embedding_scale: match architecture {
                Architecture::Llama => 1.0,
                Architecture::Gemma3 => (shape.width as f32).sqrt(),
            },
            head,
            shape,
            context,
        })
    }

    pub fn cache(&self, capacity: usize) -> Cache {
        let zeros = || vec![vec![0.0; capacity * self.shape.kv_heads * self.shape.head]; self.layers.len()];
        Cache { keys: zeros(), values: zeros(), capacity, length: 0 }
    }

    /// Evaluates tokens after those in the cache and returns the state of the last one, `[width]`.
    pub fn forward(&self, tokens: &[u32], cache: &mut Cache) -> Result<Vec<f32>> {
        let count = tokens.len();
        if count == 0 || cache.length + count > cache.capacity {
            let (length, capacity) = (cache.length, cache.capacity);
            candle_core::bail!("{count} tokens after {length} in a cache of {capacity}")
        }
        let mut states = self.rows(&self.embedding, tokens)?;
        states.iter_mut().for_each(|state| *state *= self.embedding_scale);
        let width = self.shape.width;
        for (index, layer) in self.layers.iter().enumerate() {
            // Of the last layer's states one is wanted, and no other layer sees the others.
            let from = if index + 1 == self.layers.len() { count - 1 } else { 0 };
            let attended = self.attention(layer, &states, from, cache, index)?;
            states.drain(..from * width);
            add(&mut states, &attended);
            let fed = self.feed_forward(layer, &states)?;
            add(&mut states, &fed);
        }
        cache.length += count;
        let last = &states[states.len() - width..];
        Ok(self.normed(last, &self.output_norm, width))
    }

    /// The logits of some tokens after a state.
    pub fn logits(&self, state: &[f32], tokens: &[u32]) -> Result<Vec<f32>> {
        let rows = self.rows(self.head.as_ref().unwrap_or(&self.embedding), tokens)?;
        let dot = |row: &[f32]| row.iter().zip(state).map(|(weight, value)| weight * value).sum();
        Ok(rows.chunks_exact(self.shape.width).map(dot).collect())
    }

    fn rows(&self, table: &QTensor, tokens: &[u32]) -> Result<Vec<f32>> {
        let ids = Tensor::from_slice(tokens, tokens.len(), &Device::Cpu)?;
        table.embedding(&ids)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1()
    }

    /// RMSNorm of each state, written with a stride of `padded`.
    fn normed(&self, states: &[f32], weight: &[f32], padded: usize) -> Vec<f32> {
        let width = weight.len();
        let mut normed = vec![0.0; states.len() / width * padded];
        for (from, to) in states.chunks_exact(width).zip(normed.chunks_exact_mut(padded)) {
            let scale = self.rms_scale(from);
            for ((to, from), weight) in to.iter_mut().zip(from).zip(weight) {
                *to = from * scale * weight;
            }
        }
        normed
    }

    fn rms_scale(&self, state: &[f32]) -> f32 {
        let mean = state.iter().map(|value| value * value).sum::<f32>() / state.len() as f32;
        (mean + self.shape.epsilon).sqrt().recip()
    }

    /// What attention adds to the states from one on. The keys and values of all go into the cache.
    fn attention(
        &self,
        layer: &Layer,
        states: &[f32],
        from: usize,
        cache: &mut Cache,
        index: usize,
    ) -> Result<Vec<f32>> {
        let Shape { heads, kv_heads, head, .. } = self.shape;
        let count = states.len() / self.shape.width;
        let (start, total) = (cache.length, cache.length + count);
        let normed = self.normed(states, &layer.attention_norm, layer.query_key_value.padded);
        let mut projected = layer.query_key_value.apply(normed)?;
        let kv = kv_heads * head;
        let stride = heads * head + 2 * kv;
        for (row, states) in projected.chunks_exact_mut(stride).enumerate() {
            let (queries, rest) = states.split_at_mut(heads * head);
            let keys = &mut rest[..kv];
            if let Some([query_norm, key_norm]) = &layer.head_norms {
                self.norm_heads(queries, query_norm);
                self.norm_heads(keys, key_norm);
            }
            self.rotate(&mut states[..heads * head + kv], start + row, &layer.reach.frequencies);
            let (keys, values) = states[heads * head..].split_at(kv);
            let place = (start + row) * kv..(start + row + 1) * kv;
            cache.keys[index][place.clone()].copy_from_slice(keys);
            cache.values[index][place].copy_from_slice(values);
        }

        // What the first of the tokens no longer sees, none of the others does.
        let window = layer.reach.window;
        let first = (start + from + 1).saturating_sub(window);
        let (asking, reached) = (count - from, total - first);
        let scale = (head as f32).sqrt().recip();
        let padded = layer.output.padded;
        let mut mixed = vec![0.0; asking * padded];
        let mut weights = vec![0.0; asking * reached];
        for h in 0..heads {
            // Query heads of a group share their keys and values.
            let of_kv = first * kv + h / (heads / kv_heads) * head;
            let queries = View::of_rows(&projected[from * stride + h * head..], asking, head, stride);
            let keys = View::of_rows(&cache.keys[index][of_kv..], reached, head, kv);
            multiply(queries, keys.transposed(), &mut weights, reached);
            for (row, scores) in weights.chunks_exact_mut(reached).enumerate() {
                let end = start + from + row + 1;
                softmax(scores, end.saturating_sub(window).max(first) - first..end - first, scale);
            }
            let weights = View::of_rows(&weights, asking, reached, reached);
            let values = View::of_rows(&cache.values[index][of_kv..], reached, head, kv);
            multiply(weights, values, &mut mixed[h * head..], padded);
        }
        Ok(self.normed_if(layer.output.apply(mixed)?, layer.attended_norm.as_deref()))
    }

    /// RMSNorm of each head, in place.
    fn norm_heads(&self, states: &mut [f32], weight: &[f32]) {
        for head in states.chunks_exact_mut(weight.len()) {
            let scale = self.rms_scale(head);
            head.iter_mut().zip(weight).for_each(|(value, weight)| *value *= scale * weight);
        }
    }

    fn normed_if(&self, states: Vec<f32>, weight: Option<&[f32]>) -> Vec<f32> {
        match weight {
            Some(weight) => self.normed(&states, weight, weight.len()),
            None => states,
        }
    }

    /// Turns each head's first `rotary` values by the position's angles.
    fn rotate(&self, states: &mut [f32], position: usize, frequencies: &[f32]) {
        let turns: Vec<(f32, f32)> =
            frequencies.iter().map(|frequency| (position as f32 * frequency).sin_cos()).collect();
        for head in states.chunks_exact_mut(self.shape.head) {
            match self.shape.architecture {
                // Files of this architecture order the two values of an angle next to each other,
                Architecture::Llama => {
                    for (pair, (sin, cos)) in head.chunks_exact_mut(2).zip(&turns) {
                        (pair[0], pair[1]) = (pair[0] * cos - pair[1] * sin, pair[0] * sin + pair[1] * cos);
                    }
                }
                // and of this one half a head apart.
                Architecture::Gemma3 => {
                    let (left, right) = head[..self.shape.rotary].split_at_mut(turns.len());
                    for ((left, right), (sin, cos)) in left.iter_mut().zip(right).zip(&turns) {
                        (*left, *right) = (*left * cos - *right * sin, *left * sin + *right * cos);
                    }
                }
            }
        }
    }

    fn feed_forward(&self, layer: &Layer, states: &[f32]) -> Result<Vec<f32>> {
        let hidden = self.shape.hidden;
        let both = layer.gate_up.apply(self.normed(states, &layer.feed_norm, layer.gate_up.padded))?;
        let padded = layer.down.padded;
        let mut input = vec![0.0; both.len() / (2 * hidden) * padded];
        for (to, from) in input.chunks_exact_mut(padded).zip(both.chunks_exact(2 * hidden)) {
            let (gate, up) = from.split_at(hidden);
            match self.shape.architecture {
                Architecture::Llama => gated(to, gate, up, silu),
                Architecture::Gemma3 => gated(to, gate, up, gelu),
            }
        }
        Ok(self.normed_if(layer.down.apply(input)?, layer.fed_norm.as_deref()))
    }
}

fn gated(to: &mut [f32], gate: &[f32], up: &[f32], activation: impl Fn(f32) -> f32) {
    for ((to, gate), up) in to.iter_mut().zip(gate).zip(up) {
        *to = activation(*gate) * up;
    }
}

fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

/// GELU by the hyperbolic tangent, of which (1 + tanh y) / 2 = 1 / (1 + e^-2y): Hendrycks and Gimpel (arXiv 1606.08415).
fn gelu(x: f32) -> f32 {
    const TWICE_ROOT_2_OVER_PI: f32 = 1.595_769;
    x / (1.0 + exp(-TWICE_ROOT_2_OVER_PI * (x + 0.044_715 * x * x * x)))
}

impl Shape {
    fn from_gguf(gguf: &Gguf, architecture: Architecture) -> Outcome<Self> {
        let key = |option| architecture.key(option);
        let width = gguf.count(&key("embedding_length"), MAX_WIDTH)?;
        let heads = gguf.count(&key("attention.head_count"), MAX_WIDTH)?;
        let grouped = gguf.has(&key("attention.head_count_kv"));
        let kv_heads = if grouped { gguf.count(&key("attention.head_count_kv"), heads)? } else { heads };
        let explicit = gguf.has(&key("attention.key_length"));
        let head = if explicit { gguf.count(&key("attention.key_length"), MAX_WIDTH)? } else { width / heads };
        let partial = gguf.has(&key("rope.dimension_count"));
        let rotary = if partial { gguf.count(&key("rope.dimension_count"), head)? } else { head };
        if heads % kv_heads != 0 || head == 0 || rotary % 2 != 0 || head % 2 != 0 {
            return Err(format!(
                "{heads} heads over {kv_heads}, of {head} values, {rotary} of them rotary, do not fit together"
            ));
        }
        if gguf.has(&key("rope.scaling.type")) && gguf.text(&key("rope.scaling.type"))? != "none" {
            return Err("scaled rotary positions are not supported".into());
        }
        for capped in ["attn_logit_softcapping", "final_logit_softcapping"] {
            if gguf.has(&key(capped)) {
                return Err(format!("{} is set; capped logits are not supported", key(capped)));
            }
        }
        Ok(Self {
            architecture,
            width,
            hidden: gguf.count(&key("feed_forward_length"), MAX_HIDDEN)?,
            heads,
            kv_heads,
            head,
            rotary,
            epsilon: gguf.positive(&key("attention.layer_norm_rms_epsilon"))? as f32,
        })
    }

    /// Numbers of a layer's matrices.
    fn numbers(&self) -> usize {
        self.width * (2 * (self.heads + self.kv_heads) * self.head + 3 * self.hidden)
    }
}

impl Layer {
    fn from_gguf(gguf: &mut Gguf, shape: &Shape, index: usize, reach: Arc<Reach>, storage: Storage) -> Outcome<Self> {
        let name = |part: &str| format!("blk.{index}.{part}.weight");
        let &Shape { architecture, width, hidden, heads, kv_heads, head, .. } = shape;
        let kv = kv_heads * head;
        let projections = [(name("attn_q"), heads * head), (name("attn_k"), kv), (name("attn_v"), kv)];
        let matrix =
            |gguf: &mut Gguf, parts: &[(String, usize)], columns| Matrix::from_gguf(gguf, parts, columns, storage);
        let mut layer = Self {
            reach,
            attention_norm: vector(gguf, &name("attn_norm"), width)?,
            query_key_value: matrix(gguf, &projections, width)?,
            head_norms: None,
            output: matrix(gguf, &[(name("attn_output"), width)], heads * head)?,
            attended_norm: None,
            feed_norm: vector(gguf, &name("ffn_norm"), width)?,
            gate_up: matrix(gguf, &[(name("ffn_gate"), hidden), (name("ffn_up"), hidden)], width)?,
            down: matrix(gguf, &[(name("ffn_down"), width)], hidden)?,
            fed_norm: None,
        };
        if architecture == Architecture::Gemma3 {
            layer.head_norms =
                Some([vector(gguf, &name("attn_q_norm"), head)?, vector(gguf, &name("attn_k_norm"), head)?]);
            layer.attended_norm = Some(vector(gguf, &name("post_attention_norm"), width)?);
            layer.fed_norm = Some(vector(gguf, &name("post_ffw_norm"), width)?);
        }
        Ok(layer)
    }
}

fn vector(gguf: &mut Gguf, name: &str, length: usize) -> Outcome<Vec<f32>> {
    let read = |tensor: Tensor| tensor.to_dtype(DType::F32)?.to_vec1();
    read(gguf.dense(name, &[length])?).map_err(|cause: candle_core::Error| format!("tensor {name}: {cause}"))
}

/// The reach of each layer.
fn reaches(gguf: &mut Gguf, shape: &Shape) -> Outcome<Vec<Arc<Reach>>> {
    let key = |option| shape.architecture.key(option);
    let layers = gguf.count(&key("block_count"), MAX_LAYERS)?;
    let base = |gguf: &Gguf, option, otherwise| {
        if gguf.has(&key(option)) { gguf.positive(&key(option)) } else { Ok(otherwise) }
    };
    let (global_base, local) = match shape.architecture {
        Architecture::Llama => (base(gguf, "rope.freq_base", 1e4)?, None),
        Architecture::Gemma3 if layers == LAYERS_OF_27B => {
            return Err(format!("it has {layers} layers: Gemma 3 of 27 billion parameters is not supported"));
        }
        Architecture::Gemma3 => {
            let window = gguf.count(&key("attention.sliding_window"), MAX_CONTEXT)?;
            let frequencies = frequencies(base(gguf, "rope.freq_base_swa", 1e4)?, shape.rotary);
            (base(gguf, "rope.freq_base", 1e6)?, Some(Arc::new(Reach { window, frequencies })))
        }
    };
    let pattern = key("attention.sliding_window_pattern");
    let period = if gguf.has(&pattern) { gguf.count(&pattern, MAX_LAYERS)? } else { 6 };
    let frequencies = stretched(gguf, frequencies(global_base, shape.rotary))?;
    let global = Arc::new(Reach { window: usize::MAX, frequencies });
    let of = |layer: usize| local.as_ref().filter(|_| !(layer + 1).is_multiple_of(period)).unwrap_or(&global).clone();
    Ok((0..layers).map(of).collect())
}

fn frequencies(base: f64, rotary: usize) -> Vec<f32> {
    (0..rotary / 2).map(|pair| base.powf(-2.0 * pair as f64 / rotary as f64) as f32).collect()
}

/// Llama 3.1 and later stretch some of the frequencies.
fn stretched(gguf: &mut Gguf, mut frequencies: Vec<f32>) -> Outcome<Vec<f32>> {
    if gguf.has_tensor("rope_freqs.weight") {
        let factors = vector(gguf, "rope_freqs.weight", frequencies.len())?;
        frequencies.iter_mut().zip(factors).for_each(|(frequency, factor)| *frequency /= factor);
    }
    Ok(frequencies)
}

fn add(states: &mut [f32], more: &[f32]) {
    states.iter_mut().zip(more).for_each(|(state, more)| *state += more);
}

/// Softmax of the scores that are seen; what is before or after weighs nothing.
fn softmax(scores: &mut [f32], seen: Range<usize>, scale: f32) {
    scores[..seen.start].fill(0.0);
    scores[seen.end..].fill(0.0);
    let scores = &mut scores[seen];
    let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    scores.iter_mut().for_each(|score| *score = exp((*score - max) * scale));
    let norm = scores.iter().sum::<f32>().recip();
    scores.iter_mut().for_each(|score| *score *= norm);
}

/// e^x to about 2e-7 of its value, in a form that compilers turn into vector code: softmax calls it millions of times a prompt.
fn exp(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0;
    const LN2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];
    let x = x.clamp(-87.0, 88.0);
    let rounded = x * std::f32::consts::LOG2_E + ROUND;
    let power = rounded - ROUND;
    let rest = x - power * LN2[0] - power * LN2[1];
    let tail = [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0];
    let value = tail.into_iter().fold(0.0, |sum, term| sum * rest + term);
    let exponent = rounded.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127) << 23;
    value * f32::from_bits(exponent)
}

#[cfg(test)]
mod tests {
    //! The exponential must agree with the standard library's over the range that softmax and the activations use, and
    //! so must GELU.
    use super::{exp, gelu};

    #[test]
    fn exp_agrees_with_the_standard_library() {
        for step in -8700..8800 {
            let x = step as f32 / 100.0;
            let relative = (f64::from(exp(x)) / f64::from(x).exp() - 1.0).abs();
            assert!(relative < 1e-6, "exp({x}) is off by {relative}");
        }
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(f32::NEG_INFINITY) < 1e-37);
    }

    #[test]
    fn gelu_agrees_with_the_standard_library() {
        for step in -2000..2000 {
            let x = f64::from(step) / 100.0;
            let tanh = ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3))).tanh();
            let off = (f64::from(gelu(x as f32)) - 0.5 * x * (1.0 + tanh)).abs();
            assert!(off < 1e-5, "gelu({x}) is off by {off}");
        }
        assert_eq!((gelu(1e30), gelu(-1e30).abs() < 1e-6), (1e30, true));
    }
}
