//! The llama architecture on candle's quantized matrix products: grouped-query attention, rotary positions, RMSNorm, SwiGLU.
//!
//! Weights are brought to Q8_0 with rows padded by zeros to a multiple of 256, whatever the file holds: candle has fast x86 kernels for that
//! shape alone, and small models miss it. Sources: Touvron et al., "LLaMA" (arXiv 2302.13971); Su et al., "RoFormer" (arXiv 2104.09864).

use super::gguf::{Gguf, Outcome};
use candle_core::quantized::{GgmlDType, QMatMul, QTensor};
use candle_core::{D, DType, Device, Module, Result, Tensor};

const PAD: usize = 256;
const MAX_LAYERS: usize = 256;
const MAX_WIDTH: usize = 1 << 14;
const MAX_HIDDEN: usize = 1 << 16;
const MAX_CONTEXT: usize = 1 << 20;

struct Shape {
    width: usize,
    hidden: usize,
    heads: usize,
    kv_heads: usize,
    head: usize,
    rotary: usize,
    epsilon: f32,
}

/// A matrix whose input is padded with zeros.
struct Matrix {
    product: QMatMul,
    padded: usize,
}

struct Layer {
    attention_norm: Vec<f32>,
    query_key_value: Matrix,
    output: Matrix,
    feed_norm: Vec<f32>,
    gate_up: Matrix,
    down: Matrix,
}

/// The weights.
pub(super) struct Llama {
    shape: Shape,
    layers: Vec<Layer>,
    embedding: QTensor,
    /// The rows that turn a state into logits, where they are not the embedding's.
    head: Option<QTensor>,
    output_norm: Vec<f32>,
    frequencies: Vec<f32>,
    pub context: usize,
}

/// Keys and values of the tokens evaluated so far. Forgetting the last ones is setting a length.
pub(super) struct Cache {
    keys: Vec<Tensor>,
    values: Vec<Tensor>,
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

impl Llama {
    pub fn from_gguf(gguf: &mut Gguf) -> Outcome<Self> {
        let shape = Shape::from_gguf(gguf)?;
        let context = gguf.count("llama.context_length", MAX_CONTEXT)?;
        let layers = gguf.count("llama.block_count", MAX_LAYERS)?;
        let vocabulary = gguf.texts("tokenizer.ggml.tokens")?.len();
        let embedding = gguf.quantized("token_embd.weight", &[vocabulary, shape.width])?;
        let tied = !gguf.has_tensor("output.weight");
        let head = if tied { None } else { Some(gguf.quantized("output.weight", &[vocabulary, shape.width])?) };
        let layers = (0..layers).map(|index| Layer::from_gguf(gguf, &shape, index)).collect::<Outcome<_>>()?;
        Ok(Self {
            frequencies: frequencies(gguf, shape.rotary)?,
            output_norm: vector(gguf, "output_norm.weight", shape.width)?,
            layers,
            embedding,
            head,
            shape,
            context,
        })
    }

    pub fn cache(&self, capacity: usize) -> Result<Cache> {
        let shape = (self.shape.kv_heads, capacity, self.shape.head);
        let zeros =
            || self.layers.iter().map(|_| Tensor::zeros(shape, DType::F32, &Device::Cpu)).collect::<Result<_>>();
        Ok(Cache { keys: zeros()?, values: zeros()?, capacity, length: 0 })
    }

    /// Evaluates tokens after those in the cache and returns the state of the last one, `[width]`.
    pub fn forward(&self, tokens: &[u32], cache: &mut Cache) -> Result<Vec<f32>> {
        let count = tokens.len();
        if count == 0 || cache.length + count > cache.capacity {
            let (length, capacity) = (cache.length, cache.capacity);
            candle_core::bail!("{count} tokens after {length} in a cache of {capacity}")
        }
        let mut states = self.rows(&self.embedding, tokens)?;
        for (index, layer) in self.layers.iter().enumerate() {
            let attended = self.attention(layer, &states, cache, index)?;
            add(&mut states, &attended);
            let fed = self.feed_forward(layer, &states)?;
            add(&mut states, &fed);
        }
        cache.length += count;
        let last = &states[(count - 1) * self.shape.width..];
        Ok(self.normed(last, &self.output_norm, self.shape.width))
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
        let width = self.shape.width;
        let mut normed = vec![0.0; states.len() / width * padded];
        for (from, to) in states.chunks_exact(width).zip(normed.chunks_exact_mut(padded)) {
            let mean = from.iter().map(|value| value * value).sum::<f32>() / width as f32;
            let scale = (mean + self.shape.epsilon).sqrt().recip();
            for ((to, from), weight) in to.iter_mut().zip(from).zip(weight) {
                *to = from * scale * weight;
            }
        }
        normed
    }

    fn attention(&self, layer: &Layer, states: &[f32], cache: &mut Cache, index: usize) -> Result<Vec<f32>> {
        let Shape { heads, kv_heads, head, .. } = self.shape;
        let count = states.len() / self.shape.width;
        let (start, total) = (cache.length, cache.length + count);
        let normed = self.normed(states, &layer.attention_norm, layer.query_key_value.padded);
        let mut projected = layer.query_key_value.apply(normed)?;
        let stride = (heads + 2 * kv_heads) * head;
        for (row, states) in projected.chunks_exact_mut(stride).enumerate() {
            self.rotate(&mut states[..(heads + kv_heads) * head], start + row);
        }
        // Head by head, so that the query heads of a group form one matrix against their shared keys.
        let gather = |first: usize, heads: usize| {
            let rows = (first..first + heads)
                .flat_map(|h| projected.chunks_exact(stride).map(move |s| &s[h * head..][..head]));
            rows.flatten().copied().collect::<Vec<f32>>()
        };
        let tensor = |values: Vec<f32>, rows| Tensor::from_vec(values, (kv_heads, rows, head), &Device::Cpu);
        let queries = tensor(gather(0, heads), heads / kv_heads * count)?;
        cache.keys[index].slice_set(&tensor(gather(heads, kv_heads), count)?, 1, start)?;
        cache.values[index].slice_set(&tensor(gather(heads + kv_heads, kv_heads), count)?, 1, start)?;

        let keys = cache.keys[index].narrow(1, 0, total)?;
        let scores = queries.matmul(&keys.transpose(1, 2)?)?;
        let mut weights = scores.flatten_all()?.to_vec1::<f32>()?;
        let scale = (head as f32).sqrt().recip();
        for (row, scores) in weights.chunks_exact_mut(total).enumerate() {
            causal_softmax(scores, start + row % count + 1, scale);
        }
        let weights = Tensor::from_vec(weights, (kv_heads, heads / kv_heads * count, total), &Device::Cpu)?;
        let mixed = weights.matmul(&cache.values[index].narrow(1, 0, total)?)?.flatten_all()?.to_vec1::<f32>()?;

        let padded = layer.output.padded;
        let mut input = vec![0.0; count * padded];
        for (row, values) in mixed.chunks_exact(head).enumerate() {
            let (h, token) = (row / count, row % count);
            input[token * padded + h * head..][..head].copy_from_slice(values);
        }
        layer.output.apply(input)
    }

    /// Turns each head's first `rotary` values by the position's angles. GGUF files order the two values of an angle next to each other.
    fn rotate(&self, states: &mut [f32], position: usize) {
        let turns: Vec<(f32, f32)> =
            self.frequencies.iter().map(|frequency| (position as f32 * frequency).sin_cos()).collect();
        for head in states.chunks_exact_mut(self.shape.head) {
            for (pair, (sin, cos)) in head.chunks_exact_mut(2).zip(&turns) {
                (pair[0], pair[1]) = (pair[0] * cos - pair[1] * sin, pair[0] * sin + pair[1] * cos);
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
            for ((to, gate), up) in to.iter_mut().zip(gate).zip(up) {
                *to = gate / (1.0 + exp(-gate)) * up;
            }
        }
        layer.down.apply(input)
    }
}

impl Shape {
    fn from_gguf(gguf: &Gguf) -> Outcome<Self> {
        let width = gguf.count("llama.embedding_length", MAX_WIDTH)?;
        let heads = gguf.count("llama.attention.head_count", MAX_WIDTH)?;
        let grouped = gguf.has("llama.attention.head_count_kv");
        let kv_heads = if grouped { gguf.count("llama.attention.head_count_kv", heads)? } else { heads };
        let explicit = gguf.has("llama.attention.key_length");
        let head = if explicit { gguf.count("llama.attention.key_length", MAX_WIDTH)? } else { width / heads };
        let partial = gguf.has("llama.rope.dimension_count");
        let rotary = if partial { gguf.count("llama.rope.dimension_count", head)? } else { head };
        if heads % kv_heads != 0 || head == 0 || rotary % 2 != 0 || head % 2 != 0 {
            return Err(format!(
                "{heads} heads over {kv_heads}, of {head} values, {rotary} of them rotary, do not fit together"
            ));
        }
        if gguf.has("llama.rope.scaling.type") && gguf.text("llama.rope.scaling.type")? != "none" {
            return Err("scaled rotary positions are not supported".into());
        }
        Ok(Self {
            width,
            hidden: gguf.count("llama.feed_forward_length", MAX_HIDDEN)?,
            heads,
            kv_heads,
            head,
            rotary,
            epsilon: gguf.positive("llama.attention.layer_norm_rms_epsilon")? as f32,
        })
    }
}

impl Layer {
    fn from_gguf(gguf: &mut Gguf, shape: &Shape, index: usize) -> Outcome<Self> {
        let name = |part: &str| format!("blk.{index}.{part}.weight");
        let &Shape { width, hidden, heads, kv_heads, head, .. } = shape;
        let kv = kv_heads * head;
        let projections = [(name("attn_q"), heads * head), (name("attn_k"), kv), (name("attn_v"), kv)];
        Ok(Self {
            attention_norm: vector(gguf, &name("attn_norm"), width)?,
            query_key_value: Matrix::from_gguf(gguf, &projections, width)?,
            output: Matrix::from_gguf(gguf, &[(name("attn_output"), width)], heads * head)?,
            feed_norm: vector(gguf, &name("ffn_norm"), width)?,
            gate_up: Matrix::from_gguf(gguf, &[(name("ffn_gate"), hidden), (name("ffn_up"), hidden)], width)?,
            down: Matrix::from_gguf(gguf, &[(name("ffn_down"), width)], hidden)?,
        })
    }
}

impl Matrix {
    /// Reads matrices of the same input, `(name, rows)`, as one, so that the input is quantized once.
    fn from_gguf(gguf: &mut Gguf, parts: &[(String, usize)], columns: usize) -> Outcome<Self> {
        let dense =
            parts.iter().map(|(name, rows)| gguf.dense(name, &[*rows, columns])).collect::<Outcome<Vec<_>>>()?;
        let padded = columns.next_multiple_of(PAD);
        let quantize = || {
            let padded =
                Tensor::cat(&dense, 0)?.to_dtype(DType::F32)?.pad_with_zeros(D::Minus1, 0, padded - columns)?;
            QMatMul::from_qtensor(QTensor::quantize(&padded.contiguous()?, GgmlDType::Q8_0)?)
        };
        let product = quantize().map_err(|cause| format!("cannot quantize {}: {cause}", parts[0].0))?;
        Ok(Self { product, padded })
    }

    fn apply(&self, input: Vec<f32>) -> Result<Vec<f32>> {
        let rows = input.len() / self.padded;
        let input = Tensor::from_vec(input, (rows, self.padded), &Device::Cpu)?;
        self.product.forward(&input)?.flatten_all()?.to_vec1()
    }
}

fn vector(gguf: &mut Gguf, name: &str, length: usize) -> Outcome<Vec<f32>> {
    let read = |tensor: Tensor| tensor.to_dtype(DType::F32)?.to_vec1();
    read(gguf.dense(name, &[length])?).map_err(|cause: candle_core::Error| format!("tensor {name}: {cause}"))
}

fn frequencies(gguf: &mut Gguf, rotary: usize) -> Outcome<Vec<f32>> {
    let given = gguf.has("llama.rope.freq_base");
    let base = if given { gguf.positive("llama.rope.freq_base")? } else { 10_000.0 };
    let mut frequencies: Vec<f32> =
        (0..rotary / 2).map(|pair| base.powf(-2.0 * pair as f64 / rotary as f64) as f32).collect();
    // Llama 3.1 and later stretch some of them.
    if gguf.has_tensor("rope_freqs.weight") {
        let factors = vector(gguf, "rope_freqs.weight", rotary / 2)?;
        frequencies.iter_mut().zip(factors).for_each(|(frequency, factor)| *frequency /= factor);
    }
    Ok(frequencies)
}

fn add(states: &mut [f32], more: &[f32]) {
    states.iter_mut().zip(more).for_each(|(state, more)| *state += more);
}

/// Softmax of the first `seen` scores; what comes after is the future and weighs nothing.
fn causal_softmax(scores: &mut [f32], seen: usize, scale: f32) {
    let (past, future) = scores.split_at_mut(seen);
    let max = past.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    past.iter_mut().for_each(|score| *score = exp((*score - max) * scale));
    let norm = past.iter().sum::<f32>().recip();
    past.iter_mut().for_each(|score| *score *= norm);
    future.fill(0.0);
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
    //! The exponential must agree with the standard library's over the range that softmax and SiLU use.
    use super::exp;

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
}
