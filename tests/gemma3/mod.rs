//! A tiny random Gemma 3 file, and a plain implementation of the published architecture to hold the library's against.
//!
//! The reference follows the Gemma 3 report and Hugging Face's `modeling_gemma3.py` one position and one head at a
//! time. It has no cache, pads nothing and rounds nothing, and shares with the library only the weights as the file
//! holds them.

use candle_core::quantized::gguf_file::Value;
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use rand::{Rng, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;
use std::collections::HashMap;

const WIDTH: usize = 64;
const HIDDEN: usize = 96;
const HEADS: usize = 4;
const KV_HEADS: usize = 2;
/// Not the width over the number of heads.
const HEAD: usize = 32;
/// One global layer, the sixth, and a local one after it.
const LAYERS: usize = 7;
const WINDOW: usize = 20;
const GLOBAL_BASE: f32 = 1e6;

pub const BEGIN: u32 = 2;
pub const TURN: [u32; 2] = [4, 5];
/// The token of a blank line, which is matched as a whole.
pub const BLANK_LINE: u32 = 6;
const FIRST_BYTE: u32 = 7;
/// Tokens that merge from others, those of the best score first. The parts of "wor" are no tokens, so that it is never
/// reached.
const MERGED: [&str; 11] = ["bc", "he", "ll", "hell", "ab", "hello", "▁w", "wor", "▁▁", "aa", "aaa"];
const CHARACTERS: &str = "▁abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,?";

/// The number of the token of a byte.
pub fn byte(byte: u8) -> u32 {
    FIRST_BYTE + u32::from(byte)
}

/// The number of a token that is not a byte's.
pub fn piece(text: &str) -> u32 {
    byte(255) + 1 + pieces().position(|piece| piece == text).expect(text) as u32
}

/// The tokens that are neither special nor bytes.
fn pieces() -> impl Iterator<Item = String> {
    MERGED.iter().map(|piece| (*piece).to_owned()).chain(CHARACTERS.chars().map(String::from))
}

/// `(text, kind, score)` of each token.
fn vocabulary() -> Vec<(String, i32, f32)> {
    let special = [
        ("<pad>", 3),
        ("<eos>", 3),
        ("<bos>", 3),
        ("<unk>", 2),
        ("<start_of_turn>", 3),
        ("<end_of_turn>", 3),
        ("\n\n", 4),
    ];
    let special = special.into_iter().map(|(text, kind)| (text.to_owned(), kind, 0.0));
    let bytes = (0..=255).map(|byte: u8| (format!("<0x{byte:02X}>"), 6, 0.0));
    let pieces = pieces().enumerate().map(|(place, text)| (text, 1, -(place as f32)));
    special.chain(bytes).chain(pieces).collect()
}

pub fn metadata() -> Vec<(String, Value)> {
    let vocabulary = vocabulary();
    let number = |value: usize| Value::U32(value as u32);
    [
        ("general.architecture", Value::String("gemma3".into())),
        ("gemma3.context_length", number(4096)),
        ("gemma3.block_count", number(LAYERS)),
        ("gemma3.embedding_length", number(WIDTH)),
        ("gemma3.feed_forward_length", number(HIDDEN)),
        ("gemma3.attention.head_count", number(HEADS)),
        ("gemma3.attention.head_count_kv", number(KV_HEADS)),
        ("gemma3.attention.key_length", number(HEAD)),
        ("gemma3.attention.value_length", number(HEAD)),
        ("gemma3.attention.layer_norm_rms_epsilon", Value::F32(1e-6)),
        ("gemma3.attention.sliding_window", number(WINDOW)),
        ("gemma3.rope.freq_base", Value::F32(GLOBAL_BASE)),
        ("tokenizer.ggml.model", Value::String("llama".into())),
        ("tokenizer.ggml.add_bos_token", Value::Bool(true)),
        ("tokenizer.ggml.add_space_prefix", Value::Bool(false)),
        ("tokenizer.ggml.bos_token_id", Value::U32(BEGIN)),
        ("tokenizer.ggml.token_type", Value::Array(vocabulary.iter().map(|(_, kind, _)| Value::I32(*kind)).collect())),
        ("tokenizer.ggml.scores", Value::Array(vocabulary.iter().map(|(.., score)| Value::F32(*score)).collect())),
        ("tokenizer.ggml.tokens", Value::Array(vocabulary.into_iter().map(|(text, ..)| Value::String(text)).collect())),
    ]
    .map(|(key, value)| (key.to_owned(), value))
    .into()
}

pub fn tensors() -> Vec<(String, QTensor)> {
    let mut shapes = vec![
        ("token_embd.weight".to_owned(), vec![vocabulary().len(), WIDTH]),
        ("output_norm.weight".into(), vec![WIDTH]),
    ];
    for layer in 0..LAYERS {
        for (part, shape) in [
            ("attn_norm", vec![WIDTH]),
            ("attn_q", vec![HEADS * HEAD, WIDTH]),
            ("attn_k", vec![KV_HEADS * HEAD, WIDTH]),
            ("attn_v", vec![KV_HEADS * HEAD, WIDTH]),
            ("attn_q_norm", vec![HEAD]),
            ("attn_k_norm", vec![HEAD]),
            ("attn_output", vec![WIDTH, HEADS * HEAD]),
            ("post_attention_norm", vec![WIDTH]),
            ("ffn_norm", vec![WIDTH]),
            ("ffn_gate", vec![HIDDEN, WIDTH]),
            ("ffn_up", vec![HIDDEN, WIDTH]),
            ("ffn_down", vec![WIDTH, HIDDEN]),
            ("post_ffw_norm", vec![WIDTH]),
        ] {
            shapes.push((format!("blk.{layer}.{part}.weight"), shape));
        }
    }
    let mut random = Xoshiro256PlusPlus::seed_from_u64(3);
    let drawn = shapes.into_iter().map(|(name, shape)| {
        // Norms as they are after training, near 1; attention sharp enough for positions to matter.
        let (range, dtype) = match shape.len() {
            1 => (0.5..2.0, GgmlDType::F32),
            _ => (-0.5..0.5, GgmlDType::Q8_0),
        };
        let values: Vec<f32> = (0..shape.iter().product()).map(|_| random.random_range(range.clone())).collect();
        let tensor = Tensor::from_vec(values, shape, &Device::Cpu).unwrap();
        (name, QTensor::quantize(&tensor, dtype).unwrap())
    });
    drawn.collect()
}

/// The published architecture, each of whose properties can be taken away to see that it matters.
#[derive(Clone)]
pub struct Plain {
    weights: HashMap<String, Vec<f32>>,
    pub window: usize,
    /// Every such layer is global.
    pub period: usize,
    pub local_base: f32,
    pub global_base: f32,
    pub embedding_scale: f32,
    pub attention_scale: f32,
    /// Whether the values of an angle are half a head apart, not next to each other.
    pub halves: bool,
    pub gelu: bool,
    pub head_norms: bool,
    pub post_norms: bool,
}

impl Plain {
    pub fn new() -> Self {
        let dense =
            |tensor: QTensor| tensor.dequantize(&Device::Cpu).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        Self {
            weights: tensors().into_iter().map(|(name, tensor)| (name, dense(tensor))).collect(),
            window: WINDOW,
            period: 6,
            local_base: 1e4,
            global_base: GLOBAL_BASE,
            embedding_scale: (WIDTH as f32).sqrt(),
            attention_scale: (HEAD as f32).sqrt().recip(),
            halves: true,
            gelu: true,
            head_norms: true,
            post_norms: true,
        }
    }

    /// The logits of some tokens after a text.
    pub fn logits(&self, text: &[u32], tokens: &[u32]) -> Vec<f32> {
        let row = |token: &u32| &self.weights["token_embd.weight"][*token as usize * WIDTH..][..WIDTH];
        let mut states: Vec<Vec<f32>> =
            text.iter().map(|token| row(token).iter().map(|value| value * self.embedding_scale).collect()).collect();
        for layer in 0..LAYERS {
            self.attend(layer, &mut states);
            states.iter_mut().for_each(|state| self.feed(layer, state));
        }
        let state = self.norm(&states[states.len() - 1], "output_norm.weight");
        tokens.iter().map(|token| dot(row(token), &state)).collect()
    }

    fn attend(&self, layer: usize, states: &mut [Vec<f32>]) {
        let global = (layer + 1).is_multiple_of(self.period);
        let name = |part: &str| format!("blk.{layer}.{part}.weight");
        let normed: Vec<Vec<f32>> = states.iter().map(|state| self.norm(state, &name("attn_norm"))).collect();
        // Position by position, head by head.
        let project = |part: &str, norm: Option<&str>| -> Vec<Vec<Vec<f32>>> {
            let positions = normed.iter().enumerate();
            let heads = positions.map(|(position, state)| {
                let projected = self.times(&name(part), state);
                let heads = projected.chunks(HEAD).map(|head| match norm {
                    Some(norm) if self.head_norms => self.turned(self.norm(head, &name(norm)), position, global),
                    Some(_) => self.turned(head.to_vec(), position, global),
                    None => head.to_vec(),
                });
                heads.collect()
            });
            heads.collect()
        };
        let queries = project("attn_q", Some("attn_q_norm"));
        let keys = project("attn_k", Some("attn_k_norm"));
        let values = project("attn_v", None);
        for (position, state) in states.iter_mut().enumerate() {
            let oldest = if global { 0 } else { (position + 1).saturating_sub(self.window) };
            let mut attended = Vec::new();
            for (head, query) in queries[position].iter().enumerate() {
                let shared = head / (HEADS / KV_HEADS);
                let scores = (oldest..=position).map(|at| dot(query, &keys[at][shared]) * self.attention_scale);
                let weights: Vec<f32> = scores.map(f32::exp).collect();
                let sum: f32 = weights.iter().sum();
                let mixed = |at: usize| {
                    (oldest..=position)
                        .zip(&weights)
                        .map(|(from, weight)| values[from][shared][at] * weight)
                        .sum::<f32>()
                };
                attended.extend((0..HEAD).map(|at| mixed(at) / sum));
            }
            let added = self.times(&name("attn_output"), &attended);
            self.add(state, added, &name("post_attention_norm"));
        }
    }

    fn feed(&self, layer: usize, state: &mut [f32]) {
        let name = |part: &str| format!("blk.{layer}.{part}.weight");
        let normed = self.norm(state, &name("ffn_norm"));
        let (gate, up) = (self.times(&name("ffn_gate"), &normed), self.times(&name("ffn_up"), &normed));
        let activation = |x: f32| match self.gelu {
            true => 0.5 * x * (1.0 + ((2.0 / std::f32::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh()),
            false => x / (1.0 + (-x).exp()),
        };
        let hidden: Vec<f32> = gate.into_iter().zip(up).map(|(gate, up)| activation(gate) * up).collect();
        let added = self.times(&name("ffn_down"), &hidden);
        self.add(state, added, &name("post_ffw_norm"));
    }

    fn add(&self, state: &mut [f32], added: Vec<f32>, norm: &str) {
        let added = if self.post_norms { self.norm(&added, norm) } else { added };
        state.iter_mut().zip(added).for_each(|(state, added)| *state += added);
    }

    fn norm(&self, values: &[f32], name: &str) -> Vec<f32> {
        let root = (dot(values, values) / values.len() as f32 + 1e-6).sqrt();
        values.iter().zip(&self.weights[name]).map(|(value, weight)| value / root * weight).collect()
    }

    fn times(&self, name: &str, values: &[f32]) -> Vec<f32> {
        self.weights[name].chunks(values.len()).map(|row| dot(row, values)).collect()
    }

    fn turned(&self, head: Vec<f32>, position: usize, global: bool) -> Vec<f32> {
        let base = if global { self.global_base } else { self.local_base };
        let mut turned = head.clone();
        for pair in 0..HEAD / 2 {
            let (left, right) = if self.halves { (pair, pair + HEAD / 2) } else { (2 * pair, 2 * pair + 1) };
            let (sin, cos) = (position as f32 * base.powf(-2.0 * pair as f32 / HEAD as f32)).sin_cos();
            turned[left] = head[left] * cos - head[right] * sin;
            turned[right] = head[right] * cos + head[left] * sin;
        }
        turned
    }
}

fn dot(left: &[f32], right: &[f32]) -> f32 {
    left.iter().zip(right).map(|(left, right)| left * right).sum()
}
