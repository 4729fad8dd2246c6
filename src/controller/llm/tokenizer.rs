//! The model's tokenizer, built from the vocabulary and merges inside its GGUF file.
//!
//! Byte-level BPE as GPT-2 introduced it, with the pre-tokenizer that the file names: how digits and spaces are cut before merging differs from
//! model to model, and a wrong cut gives other tokens and worse answers without any error.

use super::gguf::{Gguf, Outcome};
use std::collections::HashSet;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, PreTokenizerWrapper, SplitDelimiterBehavior};

/// Kinds of the vocabulary's entries that are matched as a whole, before any cut: control tokens and those the model's authors added.
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;

/// Cut of Llama 3.
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Cut of Qwen 2.
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Turns text into the model's tokens and back.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// Token that texts of this model begin with, where it wants one.
    pub(super) begin: Option<u32>,
}

impl Tokenizer {
    pub(super) fn from_gguf(gguf: &Gguf) -> Outcome<Self> {
        let kind = gguf.text("tokenizer.ggml.model")?;
        if kind != "gpt2" {
            return Err(format!("its tokenizer is of kind {kind:?}; only byte-level BPE (\"gpt2\") is supported"));
        }
        let tokens = gguf.texts("tokenizer.ggml.tokens")?;
        let merges = gguf.texts("tokenizer.ggml.merges")?;
        let bpe = bpe(tokens, merges)?;
        let mut inner = tokenizers::Tokenizer::new(bpe);
        let pre = if gguf.has("tokenizer.ggml.pre") { gguf.text("tokenizer.ggml.pre")? } else { "default" };
        inner.with_pre_tokenizer(Some(cut(pre)?));
        inner.with_decoder(Some(ByteLevel::default()));
        inner.add_special_tokens(&whole_tokens(gguf, tokens)?);
        let wants_begin = gguf.has("tokenizer.ggml.add_bos_token") && gguf.flag("tokenizer.ggml.add_bos_token")?;
        let begin = if wants_begin { Some(gguf.token("tokenizer.ggml.bos_token_id", tokens.len())?) } else { None };
        Ok(Self { inner, begin })
    }

    /// The tokens of a text. Control tokens such as `<|im_start|>` are recognised: never pass text from outside.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, String> {
        let encoding = self.inner.encode(text, false).map_err(|cause| format!("cannot tokenize: {cause}"))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The text of tokens.
    pub fn decode(&self, tokens: &[u32]) -> Result<String, String> {
        self.inner.decode(tokens, false).map_err(|cause| format!("cannot decode: {cause}"))
    }

    /// Whether the vocabulary has this token.
    pub fn has(&self, token: &str) -> bool {
        self.inner.token_to_id(token).is_some()
    }
}

fn bpe(tokens: &[String], merges: &[String]) -> Outcome<BPE> {
    let mut vocabulary = Vocab::default();
    for (id, token) in tokens.iter().enumerate() {
        if vocabulary.insert(token.clone(), id as u32).is_some() {
            return Err(format!("token {token:?} appears twice in its vocabulary"));
        }
    }
    let pairs = merges.iter().map(|merge| {
        let pair = merge.split_once(' ').filter(|(left, right)| !left.is_empty() && !right.is_empty());
        pair.map(|(left, right)| (left.to_owned(), right.to_owned()))
            .ok_or_else(|| format!("merge {merge:?} is not a pair"))
    });
    let pairs = pairs.collect::<Outcome<Vec<_>>>()?;
    let builder = BPE::builder().vocab_and_merges(vocabulary, pairs);
    builder.build().map_err(|cause| format!("its vocabulary and merges do not fit together: {cause}"))
}

/// The cut before merging, by the name that llama.cpp gives it.
fn cut(name: &str) -> Outcome<PreTokenizerWrapper> {
    let bytes = |regex| PreTokenizerWrapper::from(ByteLevel::new(false, true, regex));
    let split = |pattern: &str| {
        Split::new(SplitPattern::Regex(pattern.into()), SplitDelimiterBehavior::Isolated, false)
            .map(PreTokenizerWrapper::from)
            .map_err(|cause| format!("cut {name:?}: {cause}"))
    };
    Ok(match name {
        "default" | "gpt-2" => bytes(true),
        "smollm" | "refact" | "command-r" | "codeshell" | "starcoder" => {
            Sequence::new(vec![Digits::new(true).into(), bytes(true)]).into()
        }
        "llama3" | "llama-v3" | "llama-bpe" | "smaug-bpe" => Sequence::new(vec![split(LLAMA3)?, bytes(false)]).into(),
        "qwen2" | "deepseek-r1-qwen" => Sequence::new(vec![split(QWEN2)?, bytes(false)]).into(),
        _ => {
            return Err(format!(
                "its text is cut the way of {name:?}; supported are gpt-2, smollm, starcoder, refact, command-r, llama-bpe and qwen2"
            ));
        }
    })
}

fn whole_tokens(gguf: &Gguf, tokens: &[String]) -> Outcome<Vec<AddedToken>> {
    let kinds = gguf.integers("tokenizer.ggml.token_type")?;
    if kinds.len() != tokens.len() {
        return Err(format!("{} token types for {} tokens", kinds.len(), tokens.len()));
    }
    let whole = |kind: i64| kind == CONTROL || kind == USER_DEFINED;
    let mut seen = HashSet::new();
    let chosen =
        tokens.iter().zip(kinds).filter(|(token, kind)| whole(**kind) && !token.is_empty() && seen.insert(*token));
    Ok(chosen.map(|(token, _)| AddedToken::from(token.clone(), true).normalized(false)).collect())
}
