//! Scores a closed set of answers: what the model would say is never parsed, since it is never asked to speak.

use super::decoder::{Architecture, Cache, Decoder};
use super::gguf::{Gguf, Outcome};
use super::tokenizer::Tokenizer;
use crate::controller::threads::confine_process;
use crate::error::{Error, Result};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Tokens evaluated at once: bounds the memory of one pass.
const CHUNK: usize = 128;

/// Where a pilot's file has the version of the prompts that it was trained on.
pub const PROMPT_KEY: &str = "rudder.pilot.prompt";
/// Where it has by how much a plan must be likelier than the default to be chosen.
pub const MARGIN_KEY: &str = "rudder.pilot.margin";

/// Scores answers to a text that follows a prefix.
pub trait Scorer: Send {
    /// Log-probability of each label as the whole answer, given that the answer is one of them. The prefix is evaluated once and kept.
    ///
    /// # Errors
    /// The texts exceed the scorer's bounds, a label begins another one, or the model or its host failed.
    fn score(&mut self, prefix: &str, text: &str, labels: &[&str]) -> Result<Vec<f32>>;

    /// CPU time spent for this scorer outside the calling thread.
    fn remote_cpu(&self) -> Duration {
        Duration::ZERO
    }
}

/// Bounds of an in-process model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScorerLimits {
    /// Prefixes kept evaluated; the one unused for longest gives way.
    pub prefixes: usize,
    /// Tokens of a prefix.
    pub prefix_tokens: usize,
    /// Tokens of a text, its labels included.
    pub text_tokens: usize,
    /// Labels of a question.
    pub labels: usize,
}

impl Default for ScorerLimits {
    fn default() -> Self {
        Self { prefixes: 8, prefix_tokens: 2048, text_tokens: 512, labels: 64 }
    }
}

/// A model in this process.
///
/// A prefix keeps its keys and values, 46 KB a token for a model of 135 million parameters.
pub struct LocalScorer {
    path: PathBuf,
    decoder: Decoder,
    tokenizer: Tokenizer,
    limits: ScorerLimits,
    prefixes: Vec<Prefix>,
    uses: u64,
}

/// A prefix that is evaluated. Nothing else stays in its cache, so that a score depends on its arguments alone, to the bit.
struct Prefix {
    text: String,
    cache: Cache,
    /// Tokens of the prefix itself.
    length: usize,
    last_use: u64,
}

/// The words around a prompt's parts that a model was trained with.
struct Template {
    system: [&'static str; 2],
    user: [&'static str; 2],
}

const PLAIN: Template = Template { system: ["", "\n\n"], user: ["", "\nAnswer: "] };
const CHATML: Template = Template {
    system: ["<|im_start|>system\n", "<|im_end|>\n<|im_start|>user\n"],
    user: ["", "<|im_end|>\n<|im_start|>assistant\n"],
};
const LLAMA3: Template = Template {
    system: [
        "<|start_header_id|>system<|end_header_id|>\n\n",
        "<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n",
    ],
    user: ["", "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"],
};

// Gemma has no system text: what it would say opens the user's turn.
const GEMMA: Template =
    Template { system: ["<start_of_turn>user\n", "\n\n"], user: ["", "<end_of_turn>\n<start_of_turn>model\n"] };

impl LocalScorer {
    /// Loads a GGUF file of the llama or the gemma3 architecture. Takes about a second for 135 million parameters.
    ///
    /// The first model of a process sets `CANDLE_NUM_THREADS` to 1 where it is not set: no other thread may use the
    /// [environment](crate::controller::llm#the-environment) through C at the same moment.
    ///
    /// # Errors
    /// The file cannot be read, is damaged, or holds a model of another kind; the message says which.
    pub fn load(path: &Path, limits: ScorerLimits) -> Result<Self> {
        confine_process();
        // The file is untrusted, and candle asserts where it should refuse.
        let loaded = catch_unwind(AssertUnwindSafe(|| load(path, limits)));
        let loaded = loaded.unwrap_or_else(|_| Err("its contents make the model code panic: it is damaged".into()));
        loaded.map_err(|cause| model_error(path, cause))
    }

    /// The model's tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Tokens of a prompt's two parts, the words around them included: `(prefix, text)`.
    ///
    /// # Errors
    /// The text cannot be tokenized.
    pub fn count_tokens(&self, prefix: &str, text: &str) -> Result<(usize, usize)> {
        let counts = || Ok((self.prefix_tokens(prefix)?.len(), self.text_tokens(text)?.len()));
        counts().map_err(|cause| model_error(&self.path, cause))
    }

    /// The tokens of a whole prompt, the words around its parts included: for who trains a model on it.
    ///
    /// # Errors
    /// The text cannot be tokenized, or is longer than the limits allow.
    pub fn prompt_tokens(&self, prefix: &str, text: &str) -> Result<Vec<u32>> {
        let tokens = || Ok([self.prefix_tokens(prefix)?, self.text_tokens(text)?].concat());
        tokens().map_err(|cause| model_error(&self.path, cause))
    }

    fn template(&self) -> &'static Template {
        if self.tokenizer.has("<|im_start|>") {
            &CHATML
        } else if self.tokenizer.has("<|start_header_id|>") {
            &LLAMA3
        } else if self.tokenizer.has("<start_of_turn>") {
            &GEMMA
        } else {
            &PLAIN
        }
    }

    fn prefix_tokens(&self, prefix: &str) -> Outcome<Vec<u32>> {
        let [before, after] = self.template().system;
        let mut tokens: Vec<u32> = self.tokenizer.begin.into_iter().collect();
        tokens.extend(self.tokenizer.encode(&format!("{before}{prefix}{after}"))?);
        within("prefix", tokens, self.limits.prefix_tokens)
    }

    fn text_tokens(&self, text: &str) -> Outcome<Vec<u32>> {
        let [before, after] = self.template().user;
        within("text", self.tokenizer.encode(&format!("{before}{text}{after}"))?, self.limits.text_tokens)
    }

    /// The place of the evaluated prefix.
    fn evaluate_prefix(&mut self, text: &str) -> Outcome<usize> {
        if let Some(found) = self.prefixes.iter().position(|prefix| prefix.text == text) {
            return Ok(found);
        }
        let tokens = self.prefix_tokens(text)?;
        let capacity = (tokens.len() + self.limits.text_tokens).min(self.decoder.context);
        let mut cache = self.decoder.cache(capacity);
        self.decoder.evaluate(&tokens, &mut cache)?;
        if self.prefixes.len() >= self.limits.prefixes.max(1) {
            let oldest = (0..self.prefixes.len()).min_by_key(|&place| self.prefixes[place].last_use);
            oldest.map(|place| self.prefixes.swap_remove(place));
        }
        let length = tokens.len();
        self.prefixes.push(Prefix { text: text.to_owned(), cache, length, last_use: self.uses });
        Ok(self.prefixes.len() - 1)
    }

    fn score_all(&mut self, prefix: &str, text: &str, labels: &[&str]) -> Outcome<Vec<f32>> {
        let tokens = self.text_tokens(text)?;
        let labels = self.label_tokens(labels)?;
        let place = self.evaluate_prefix(prefix)?;
        self.uses += 1;
        let Self { prefixes, decoder, uses, .. } = self;
        let prefix = &mut prefixes[place];
        prefix.last_use = *uses;
        prefix.cache.truncate(prefix.length);
        let state = decoder.evaluate(&tokens, &mut prefix.cache)?;
        let mut scores = vec![0.0; labels.len()];
        let everyone: Vec<usize> = (0..labels.len()).collect();
        Branch { decoder, labels: &labels, scores: &mut scores }.descend(&state, &everyone, 0, &mut prefix.cache)?;
        Ok(scores)
    }

    fn label_tokens(&self, labels: &[&str]) -> Outcome<Vec<Vec<u32>>> {
        if labels.is_empty() || labels.len() > self.limits.labels {
            return Err(format!("{} labels; 1 to {} are supported", labels.len(), self.limits.labels));
        }
        let tokens = labels.iter().map(|label| self.tokenizer.encode(label)).collect::<Outcome<Vec<_>>>()?;
        for (index, mine) in tokens.iter().enumerate() {
            let begins = tokens.iter().enumerate().any(|(other, theirs)| other != index && theirs.starts_with(mine));
            if mine.is_empty() || begins {
                return Err(format!("label {:?} is empty or begins another label", labels[index]));
            }
            within("label", mine.clone(), 16)?;
        }
        Ok(tokens)
    }
}

impl Scorer for LocalScorer {
    fn score(&mut self, prefix: &str, text: &str, labels: &[&str]) -> Result<Vec<f32>> {
        let scores = self.score_all(prefix, text, labels).map_err(|cause| model_error(&self.path, cause))?;
        if scores.iter().any(|score| !score.is_finite()) {
            return Err(model_error(
                &self.path,
                "it answers with something that is not a number: the file is damaged".into(),
            ));
        }
        Ok(scores)
    }
}

impl Decoder {
    fn evaluate(&self, tokens: &[u32], cache: &mut Cache) -> Outcome<Vec<f32>> {
        let mut state = Err("nothing to evaluate".to_owned());
        for chunk in tokens.chunks(CHUNK) {
            state = Ok(self.forward(chunk, cache).map_err(|cause| cause.to_string())?);
        }
        state
    }
}

/// Walks the tree of the labels' tokens: at each fork the probability is shared among the tokens that continue a label.
struct Branch<'a> {
    decoder: &'a Decoder,
    labels: &'a [Vec<u32>],
    scores: &'a mut [f32],
}

impl Branch<'_> {
    fn descend(&mut self, state: &[f32], members: &[usize], depth: usize, cache: &mut Cache) -> Outcome<()> {
        let mut choices: Vec<u32> = members.iter().map(|&label| self.labels[label][depth]).collect();
        choices.sort_unstable();
        choices.dedup();
        let logits = self.decoder.logits(state, &choices).map_err(|cause| cause.to_string())?;
        for (choice, log_probability) in choices.iter().zip(log_softmax(&logits)) {
            let chosen: Vec<usize> =
                members.iter().copied().filter(|&label| self.labels[label][depth] == *choice).collect();
            chosen.iter().for_each(|&label| self.scores[label] += log_probability);
            if chosen.len() > 1 {
                let length = cache.length();
                let state = self.decoder.evaluate(&[*choice], cache)?;
                self.descend(&state, &chosen, depth + 1, cache)?;
                cache.truncate(length);
            }
        }
        Ok(())
    }
}

/// Log-probabilities of these logits among each other.
pub(super) fn log_softmax(logits: &[f32]) -> Vec<f32> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let norm = max + logits.iter().map(|logit| (logit - max).exp()).sum::<f32>().ln();
    logits.iter().map(|logit| logit - norm).collect()
}

/// Reads the header of a model file, and so tells in milliseconds what most files that [`LocalScorer::load`] would refuse are not.
///
/// # Errors
/// The file cannot be read, is no GGUF file, or holds a model of another kind.
pub fn check_model_file(path: &Path) -> Result<()> {
    open(path).map(|_| ()).map_err(|cause| model_error(path, cause))
}

/// The margin of a pilot's file, 0 of one that has none: it was made to be followed always.
///
/// # Errors
/// It was not trained on prompts of this version, its margin is none, or [`check_model_file`] refuses it.
pub(super) fn pilot_margin(path: &Path, expected: u32) -> Result<f64> {
    let margin = |gguf: Gguf| {
        if !gguf.has(PROMPT_KEY) {
            return Err("it is no pilot: train one with `rudder pilot`".to_owned());
        }
        let found = gguf.count(PROMPT_KEY, u32::MAX as usize)?;
        if found != expected as usize {
            return Err(format!(
                "it was trained on prompts of version {found}, and this is version {expected}: train it again"
            ));
        }
        if gguf.has(MARGIN_KEY) { gguf.share(MARGIN_KEY) } else { Ok(0.0) }
    };
    open(path).and_then(margin).map_err(|cause| model_error(path, cause))
}

fn open(path: &Path) -> Outcome<Gguf> {
    let gguf = Gguf::open(path)?;
    Architecture::of(&gguf)?;
    Ok(gguf)
}

fn load(path: &Path, limits: ScorerLimits) -> Outcome<LocalScorer> {
    let mut gguf = open(path)?;
    let tokenizer = Tokenizer::from_gguf(&gguf)?;
    let decoder = Decoder::from_gguf(&mut gguf)?;
    Ok(LocalScorer { path: path.to_owned(), decoder, tokenizer, limits, prefixes: Vec::new(), uses: 0 })
}

fn within(what: &str, tokens: Vec<u32>, max: usize) -> Outcome<Vec<u32>> {
    if tokens.len() > max {
        Err(format!("the {what} has {} tokens; up to {max} fit", tokens.len()))
    } else {
        Ok(tokens)
    }
}

pub(super) fn model_error(path: &Path, cause: String) -> Error {
    Error::Model { path: path.display().to_string(), cause }
}
