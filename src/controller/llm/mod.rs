//! A small quantized language model that steers the buffer, in this process or served to the ranks of a host.
//!
//! The model scores a closed set of answers and cannot say anything else; every prompt is a fixed part, evaluated once, and a short one, as the
//! tokens of a decision are its latency. Everything here runs on one thread.
//!
//! # The environment
//!
//! Candle would share the work among threads that spin beside training, and takes their number from the environment alone. So the first model
//! that runs in a process sets `CANDLE_NUM_THREADS` to 1 there, unless it is set, or candle would use one thread anyway. No other thread may use
//! the environment through C (`getenv`, `setenv`, and what calls them, such as `localtime`) at the same moment. A process in which one may sets
//! the variable itself before, as a job script does best. With a model behind an [`LlmService`] only the service's process is concerned.

mod cohorts;
mod decoder;
mod gguf;
mod matrix;
mod pilot;
mod replace;
mod scorer;
mod service;
mod tokenizer;
mod window;

pub use cohorts::{CohortsConfig, LlmCohorts};
pub use pilot::{PROMPT, Pilot, PilotConfig};
pub use replace::{HitRate, LlmReplace, ReplaceConfig};
pub use scorer::{LocalScorer, MARGIN_KEY, PROMPT_KEY, Scorer, ScorerLimits, check_model_file};
pub use service::{LlmService, RemoteScorer, ServiceConfig};
pub use tokenizer::Tokenizer;

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::time::Duration;

/// Name of the model file in the cache directory.
const MODEL_FILE: &str = "smollm2-135m-instruct.gguf";

/// Where the model runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ModelSource {
    /// In this process, from the file at [`default_model_path`].
    #[default]
    Default,
    /// In this process, from this GGUF file.
    File(PathBuf),
    /// In the host's [`LlmService`].
    Service {
        /// The service's socket.
        socket: PathBuf,
        /// Time for one answer.
        #[serde(deserialize_with = "crate::config::spelled::seconds")]
        deadline: Duration,
    },
}

impl ModelSource {
    pub(super) fn runs_here(&self) -> bool {
        matches!(self, Self::Default | Self::File(_))
    }

    /// Loads the model, or makes ready to ask the service, which is not contacted yet. Loading may write to the
    /// [environment](crate::controller::llm#the-environment).
    ///
    /// # Errors
    /// The file is absent, damaged, or holds a model of another kind.
    pub fn open(&self) -> Result<Box<dyn Scorer>> {
        Ok(match self {
            Self::Default => {
                let path = default_model_path()?;
                tracing::info!("model {}: the default, or what RUDDER_MODEL names", path.display());
                Box::new(LocalScorer::load(&path, ScorerLimits::default())?)
            }
            Self::File(path) => {
                tracing::info!("model {}: as the configuration says", path.display());
                Box::new(LocalScorer::load(path, ScorerLimits::default())?)
            }
            Self::Service { socket, deadline } => {
                tracing::info!("model: that of the service at {}, as the configuration says", socket.display());
                Box::new(RemoteScorer::new(socket, *deadline))
            }
        })
    }
}

/// The model file that `RUDDER_MODEL` names, else the one that `tools/model.sh` fetched into `RUDDER_MODEL_DIR` or the user's cache directory.
///
/// # Errors
/// There is no such file.
pub fn default_model_path() -> Result<PathBuf> {
    let named = std::env::var_os("RUDDER_MODEL").map(PathBuf::from);
    let folder = std::env::var_os("RUDDER_MODEL_DIR").map(PathBuf::from);
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
    let path = named
        .or_else(|| {
            folder
                .or_else(|| cache.or_else(home).map(|cache| cache.join("rudder")))
                .map(|folder| folder.join(MODEL_FILE))
        })
        .ok_or_else(|| Error::config("no model: HOME is not set; name a GGUF file in RUDDER_MODEL"))?;
    if path.is_file() {
        return Ok(path);
    }
    let cause = "there is no such file; tools/model.sh fetches it, or name a GGUF file in RUDDER_MODEL".to_owned();
    Err(scorer::model_error(&path, cause))
}

/// Log-probabilities of labels, less what the model gives each of them for a text that says nothing.
///
/// Small models prefer some words whatever they are asked; see Zhao et al., "Calibrate Before Use" (arXiv 2102.09690).
struct Question {
    prefix: String,
    labels: &'static [&'static str],
    neutral: &'static str,
    bias: Option<Vec<f32>>,
}

impl Question {
    fn new(prefix: String, labels: &'static [&'static str], neutral: &'static str, calibrate: bool) -> Self {
        let bias = (!calibrate).then(|| vec![0.0; labels.len()]);
        Self { prefix, labels, neutral, bias }
    }

    /// The probability of each label.
    fn ask(&mut self, scorer: &mut dyn Scorer, text: &str) -> Result<Vec<f32>> {
        let bias = match self.bias.take() {
            Some(bias) => bias,
            None => scorer.score(&self.prefix, self.neutral, self.labels)?,
        };
        let scores = scorer.score(&self.prefix, text, self.labels);
        let adjusted =
            scores.map(|scores| scores.iter().zip(&bias).map(|(score, bias)| score - bias).collect::<Vec<_>>());
        self.bias = Some(bias);
        Ok(scorer::log_softmax(&adjusted?).into_iter().map(f32::exp).collect())
    }
}

fn check_delta(delta: u64) -> Result<()> {
    if delta == 0 {
        Err(Error::config("delta is 0; give the least number of minibatches between decisions, at least 1"))
    } else {
        Ok(())
    }
}
