//! The pilot's network in training: the llama architecture, as `rudder`'s loader of GGUF files reads it.

use anyhow::Result;
use candle_core::{D, DType, Device, Tensor, Var};
use candle_nn::ops;
use rand::Rng;
use rand_xoshiro::Xoshiro256PlusPlus;

/// Values of a token: a multiple of 256, which Candle's fast products want of a small model.
pub const WIDTH: usize = 256;
/// Values between the two products of a feed-forward layer.
pub const HIDDEN: usize = 512;
/// Attention heads.
pub const HEADS: usize = 4;
/// Values of a head.
pub const HEAD: usize = WIDTH / HEADS;
/// Layers.
pub const LAYERS: usize = 4;
/// Most tokens of a prompt.
pub const CONTEXT: usize = 256;
/// Of RMSNorm.
pub const EPSILON: f64 = 1e-5;
/// Of rotary positions.
pub const BASE: f64 = 10_000.0;

/// One layer; matrices are inputs by outputs.
pub struct Layer {
    attention_norm: Var,
    query: Var,
    key: Var,
    value: Var,
    output: Var,
    feed_norm: Var,
    gate: Var,
    up: Var,
    down: Var,
}

/// The network.
pub struct Network {
    embedding: Var,
    layers: Vec<Layer>,
    output_norm: Var,
}

/// Numbers evenly drawn around 0, of a deviation.
fn drawn(shape: (usize, usize), deviation: f64, random: &mut Xoshiro256PlusPlus) -> Result<Var> {
    let bound = (deviation * 3f64.sqrt()) as f32;
    let values: Vec<f32> = (0..shape.0 * shape.1).map(|_| random.random_range(-bound..bound)).collect();
    Ok(Var::from_tensor(&Tensor::from_vec(values, shape, &Device::Cpu)?)?)
}

fn ones() -> Result<Var> {
    Ok(Var::ones(WIDTH, DType::F32, &Device::Cpu)?)
}

impl Layer {
    fn drawn(random: &mut Xoshiro256PlusPlus) -> Result<Self> {
        let into = |rows: usize| (1.0 / rows as f64).sqrt();
        // What is added to the states is small at first, and the smaller the more layers add to it.
        let back = |rows: usize| into(rows) / (2.0 * LAYERS as f64).sqrt();
        let mut matrix = |rows, columns, deviation| drawn((rows, columns), deviation, random);
        Ok(Self {
            attention_norm: ones()?,
            query: matrix(WIDTH, WIDTH, into(WIDTH))?,
            key: matrix(WIDTH, WIDTH, into(WIDTH))?,
            value: matrix(WIDTH, WIDTH, into(WIDTH))?,
            output: matrix(WIDTH, WIDTH, back(WIDTH))?,
            feed_norm: ones()?,
            gate: matrix(WIDTH, HIDDEN, into(WIDTH))?,
            up: matrix(WIDTH, HIDDEN, into(WIDTH))?,
            down: matrix(HIDDEN, WIDTH, back(HIDDEN))?,
        })
    }

    /// Its tensors by the names that GGUF files give them.
    fn named(&self) -> [(&'static str, &Var); 9] {
        [
            ("attn_norm", &self.attention_norm),
            ("attn_q", &self.query),
            ("attn_k", &self.key),
            ("attn_v", &self.value),
            ("attn_output", &self.output),
            ("ffn_norm", &self.feed_norm),
            ("ffn_gate", &self.gate),
            ("ffn_up", &self.up),
            ("ffn_down", &self.down),
        ]
    }
}

/// RMSNorm of states, a row each.
fn normed(states: &Tensor, weight: &Var) -> Result<Tensor> {
    let mean = (states.sqr()?.sum_keepdim(D::Minus1)? / WIDTH as f64)?;
    Ok(states.broadcast_div(&(mean + EPSILON)?.sqrt()?)?.broadcast_mul(weight)?)
}

/// What stays for a number of tokens: the turns of positions, and what a token may not look at.
struct Places {
    cosines: Tensor,
    sines: Tensor,
    future: Tensor,
}

impl Places {
    fn of(tokens: usize) -> Result<Self> {
        let pairs = HEAD / 2;
        let angle = |at: usize| (at / pairs) as f64 * BASE.powf(-2.0 * (at % pairs) as f64 / HEAD as f64);
        let turns = |turn: fn(f64) -> f64| {
            let values: Vec<f32> = (0..tokens * pairs).map(|at| turn(angle(at)) as f32).collect();
            Tensor::from_vec(values, (tokens, pairs), &Device::Cpu)
        };
        let hidden = |at: usize| if at % tokens > at / tokens { f32::NEG_INFINITY } else { 0.0 };
        let future = (0..tokens * tokens).map(hidden).collect::<Vec<f32>>();
        Ok(Self {
            cosines: turns(f64::cos)?,
            sines: turns(f64::sin)?,
            future: Tensor::from_vec(future, (tokens, tokens), &Device::Cpu)?,
        })
    }

    /// Turns each pair of neighbouring values by its position's angle.
    fn turn(&self, states: &Tensor) -> Result<Tensor> {
        let (prompts, heads, tokens, _) = states.dims4()?;
        let pairs = states.reshape((prompts, heads, tokens, HEAD / 2, 2))?;
        let (one, other) = (pairs.narrow(4, 0, 1)?.squeeze(4)?, pairs.narrow(4, 1, 1)?.squeeze(4)?);
        let turned = (one.broadcast_mul(&self.cosines)? - other.broadcast_mul(&self.sines)?)?;
        let other = (one.broadcast_mul(&self.sines)? + other.broadcast_mul(&self.cosines)?)?;
        Ok(Tensor::stack(&[turned, other], 4)?.reshape((prompts, heads, tokens, HEAD))?)
    }
}

impl Network {
    /// With numbers drawn from a source, for a vocabulary.
    ///
    /// # Errors
    /// Candle refuses.
    pub fn drawn(vocabulary: usize, random: &mut Xoshiro256PlusPlus) -> Result<Self> {
        Ok(Self {
            embedding: drawn((vocabulary, WIDTH), (1.0 / WIDTH as f64).sqrt(), random)?,
            layers: (0..LAYERS).map(|_| Layer::drawn(random)).collect::<Result<_>>()?,
            output_norm: ones()?,
        })
    }

    /// All that is learnt.
    pub fn parameters(&self) -> Vec<Var> {
        self.named().into_iter().map(|(_, tensor, _)| tensor.clone()).collect()
    }

    /// All tensors by their names in a GGUF file, and whether they are products' matrices, which files hold the other way round.
    pub fn named(&self) -> Vec<(String, &Var, bool)> {
        let mut named = vec![
            ("token_embd.weight".to_owned(), &self.embedding, false),
            ("output_norm.weight".to_owned(), &self.output_norm, false),
        ];
        for (at, layer) in self.layers.iter().enumerate() {
            for (part, tensor) in layer.named() {
                named.push((format!("blk.{at}.{part}.weight"), tensor, tensor.rank() == 2));
            }
        }
        named
    }

    /// The logits of these answers after prompts of equal length: prompts by answers.
    ///
    /// # Errors
    /// Candle refuses.
    pub fn logits(&self, prompts: &[Vec<u32>], answers: &[u32]) -> Result<Tensor> {
        let (count, tokens) = (prompts.len(), prompts[0].len());
        let ids = Tensor::from_vec(prompts.concat(), count * tokens, &Device::Cpu)?;
        let places = Places::of(tokens)?;
        let mut states = self.embedding.index_select(&ids, 0)?;
        for layer in &self.layers {
            states = (&states + attention(layer, &normed(&states, &layer.attention_norm)?, count, &places)?)?;
            let fed = normed(&states, &layer.feed_norm)?;
            let hidden = (fed.matmul(&layer.gate)?.silu()? * fed.matmul(&layer.up)?)?;
            states = (states + hidden.matmul(&layer.down)?)?;
        }
        let last = states.reshape((count, tokens, WIDTH))?.narrow(1, tokens - 1, 1)?.squeeze(1)?;
        let answers = self.embedding.index_select(&Tensor::new(answers, &Device::Cpu)?, 0)?;
        Ok(normed(&last, &self.output_norm)?.matmul(&answers.t()?)?)
    }
}

fn attention(layer: &Layer, normed: &Tensor, count: usize, places: &Places) -> Result<Tensor> {
    let rows = normed.dim(0)?;
    let heads = |matrix: &Var| -> Result<Tensor> {
        let projected = normed.matmul(matrix)?.reshape((count, rows / count, HEADS, HEAD))?;
        Ok(projected.transpose(1, 2)?.contiguous()?)
    };
    let (queries, keys) = (places.turn(&heads(&layer.query)?)?, places.turn(&heads(&layer.key)?)?);
    let scores = (queries.matmul(&keys.transpose(2, 3)?.contiguous()?)? * (1.0 / (HEAD as f64).sqrt()))?;
    let weights = ops::softmax(&scores.broadcast_add(&places.future)?, D::Minus1)?;
    let mixed = weights.matmul(&heads(&layer.value)?)?.transpose(1, 2)?.reshape((rows, WIDTH))?;
    Ok(mixed.matmul(&layer.output)?)
}
