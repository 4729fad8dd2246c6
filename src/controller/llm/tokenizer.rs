//! The model's tokenizer, built from the vocabulary inside its GGUF file.
//!
//! Either byte-level BPE as GPT-2 introduced it, with the pre-tokenizer that the file names: how digits and spaces are
//! cut before merging differs from model to model, and a wrong cut gives other tokens and worse answers without any
//! error. Or SentencePiece's BPE, which cuts nothing and has scores instead of merges: Kudo and Richardson,
//! "SentencePiece" (arXiv 1808.06226).

use super::gguf::{Gguf, Outcome};
use std::collections::HashSet;
use tokenizers::decoders::DecoderWrapper;
use tokenizers::decoders::byte_fallback::ByteFallback;
use tokenizers::decoders::fuse::Fuse;
use tokenizers::decoders::sequence::Sequence as Decoders;
use tokenizers::decoders::strip::Strip;
use tokenizers::models::bpe::{BPE, BpeBuilder, Merges, Vocab};
use tokenizers::normalizers::{NormalizerWrapper, Prepend, Replace, Sequence as Normalizers};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, PreTokenizerWrapper, SplitDelimiterBehavior};

/// Kinds of the vocabulary's entries. Control tokens and those the model's authors added are matched as a whole, before
/// any cut.
const NORMAL: i64 = 1;
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;

/// How SentencePiece writes a space.
const SPACE: &str = "\u{2581}";
/// Bytes of a token that others merge into, and merges of a token on average: a vocabulary of any size is read in a time
/// that its size bounds.
const MAX_MERGED: usize = 512;
const MAX_MERGES_OF_TOKEN: usize = 8;

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
        let byte_level = match gguf.text("tokenizer.ggml.model")? {
            "gpt2" => true,
            "llama" => false,
            kind => {
                return Err(format!(
                    "its tokenizer is of kind {kind:?}; BPE of bytes (\"gpt2\") and of SentencePiece (\"llama\") is supported"
                ));
            }
        };
        let vocabulary = Vocabulary::from_gguf(gguf)?;
        let mut inner = if byte_level { from_merges(gguf, &vocabulary)? } else { from_scores(gguf, &vocabulary)? };
        inner.add_special_tokens(&vocabulary.whole());
        let wants_begin = optional_flag(gguf, "tokenizer.ggml.add_bos_token", !byte_level)?;
        let size = vocabulary.tokens.len();
        let begin = if wants_begin { Some(gguf.token("tokenizer.ggml.bos_token_id", size)?) } else { None };
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

/// The tokens by their numbers, and the kind of each.
struct Vocabulary<'a> {
    tokens: &'a [String],
    kinds: &'a [i64],
}

impl<'a> Vocabulary<'a> {
    fn from_gguf(gguf: &'a Gguf) -> Outcome<Self> {
        let tokens = gguf.texts("tokenizer.ggml.tokens")?;
        let kinds = gguf.integers("tokenizer.ggml.token_type")?;
        if kinds.len() != tokens.len() {
            return Err(format!("{} token types for {} tokens", kinds.len(), tokens.len()));
        }
        Ok(Self { tokens, kinds })
    }

    fn numbers(&self) -> Outcome<Vocab> {
        let mut numbers = Vocab::with_capacity(self.tokens.len());
        for (id, token) in self.tokens.iter().enumerate() {
            if numbers.insert(token.clone(), id as u32).is_some() {
                return Err(format!("token {token:?} appears twice in its vocabulary"));
            }
        }
        Ok(numbers)
    }

    fn whole(&self) -> Vec<AddedToken> {
        let whole = |kind: i64| kind == CONTROL || kind == USER_DEFINED;
        let mut seen = HashSet::new();
        let all = self.tokens.iter().zip(self.kinds);
        let chosen = all.filter(|(token, kind)| whole(**kind) && !token.is_empty() && seen.insert(*token));
        chosen.map(|(token, _)| AddedToken::from(token.clone(), true).normalized(false)).collect()
    }

    /// What SentencePiece merges: any neighbours that are a token together, those of the best score first, and of one
    /// token's those with the longest left part, as Hugging Face converts such vocabularies.
    fn merges(&self, scores: &[f32], numbers: &Vocab) -> Outcome<Merges> {
        let most = self.tokens.len().saturating_mul(MAX_MERGES_OF_TOKEN);
        let merges_to = |id: usize| self.kinds[id] == NORMAL;
        let known = |part: &str| !part.is_empty() && numbers.get(part).is_some_and(|id| merges_to(*id as usize));
        let mut order: Vec<usize> = (0..self.tokens.len()).filter(|id| merges_to(*id)).collect();
        order.sort_by(|one, other| scores[*other].total_cmp(&scores[*one]));
        let mut merges = Merges::new();
        for token in order.into_iter().map(|id| &self.tokens[id]) {
            if token.len() > MAX_MERGED {
                return Err(format!("a token of {} bytes; up to {MAX_MERGED} are supported", token.len()));
            }
            let parts = token.char_indices().rev().map(|(at, _)| token.split_at(at));
            let parts = parts.filter(|(left, right)| known(left) && known(right));
            merges.extend(parts.map(|(left, right)| (left.to_owned(), right.to_owned())));
            if merges.len() > most {
                return Err(format!("its tokens merge in more than {most} ways"));
            }
        }
        Ok(merges)
    }
}

fn optional_flag(gguf: &Gguf, key: &str, otherwise: bool) -> Outcome<bool> {
    if gguf.has(key) { gguf.flag(key) } else { Ok(otherwise) }
}

/// Byte-level BPE.
fn from_merges(gguf: &Gguf, vocabulary: &Vocabulary) -> Outcome<tokenizers::Tokenizer> {
    let pairs = gguf.texts("tokenizer.ggml.merges")?.iter().map(|merge| {
        let pair = merge.split_once(' ').filter(|(left, right)| !left.is_empty() && !right.is_empty());
        pair.map(|(left, right)| (left.to_owned(), right.to_owned()))
            .ok_or_else(|| format!("merge {merge:?} is not a pair"))
    });
    let pairs = pairs.collect::<Outcome<Merges>>()?;
    let mut inner = built(BPE::builder().vocab_and_merges(vocabulary.numbers()?, pairs))?;
    let pre = if gguf.has("tokenizer.ggml.pre") { gguf.text("tokenizer.ggml.pre")? } else { "default" };
    inner.with_pre_tokenizer(Some(cut(pre)?));
    inner.with_decoder(Some(ByteLevel::default()));
    Ok(inner)
}

/// SentencePiece's BPE.
fn from_scores(gguf: &Gguf, vocabulary: &Vocabulary) -> Outcome<tokenizers::Tokenizer> {
    let scores = gguf.floats("tokenizer.ggml.scores")?;
    if scores.len() != vocabulary.tokens.len() {
        return Err(format!("{} scores for {} tokens", scores.len(), vocabulary.tokens.len()));
    }
    let numbers = vocabulary.numbers()?;
    // Characters that the vocabulary lacks are written as bytes; without those they would be dropped silently.
    if let Some(byte) = (0..=u8::MAX).find(|byte| !numbers.contains_key(&format!("<{byte:#04X}>"))) {
        return Err(format!("its vocabulary lacks the token <{byte:#04X}>"));
    }
    let merges = vocabulary.merges(scores, &numbers)?;
    // Texts are not cut into words that would come again, so that a cache of them would only grow.
    let builder = BPE::builder().vocab_and_merges(numbers, merges).byte_fallback(true).cache_capacity(0);
    let mut inner = built(builder)?;
    let replace = |from, to| Replace::new(from, to).map_err(|cause| format!("spaces: {cause}"));
    let mut normalizers = vec![NormalizerWrapper::from(replace(" ", SPACE)?)];
    let mut decoders: Vec<DecoderWrapper> =
        vec![replace(SPACE, " ")?.into(), ByteFallback::default().into(), Fuse::default().into()];
    if optional_flag(gguf, "tokenizer.ggml.add_space_prefix", true)? {
        normalizers.insert(0, Prepend::new(SPACE.to_owned()).into());
        decoders.push(Strip::new(' ', 1, 0).into());
    }
    inner.with_normalizer(Some(Normalizers::new(normalizers)));
    inner.with_decoder(Some(Decoders::new(decoders)));
    Ok(inner)
}

fn built(builder: BpeBuilder) -> Outcome<tokenizers::Tokenizer> {
    let bpe = builder.build().map_err(|cause| format!("its vocabulary and merges do not fit together: {cause}"))?;
    Ok(tokenizers::Tokenizer::new(bpe))
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
