//! Named set-ups: a replacement policy, a controller and a way to overlap, so that a comparison is a list of names.
//!
//! Every set-up trains on the same minibatches with the same weights; only where rows wait, and when they travel, differs.

use anyhow::Context;
use clap::ValueEnum;
use rudder::buffer::{self, LfuConfig, PolicyConfig, RandomConfig, RudderConfig};
use rudder::controller::ControllerConfig;
use rudder::controller::classifier::ClassifierConfig;
use rudder::controller::llm::{CohortsConfig, HitRate, ModelSource, PilotConfig, ReplaceConfig};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::Path;
use std::time::Duration;

/// Time for one answer of the language model: it shares a busy machine with the ranks, and nobody waits for it.
pub const ANSWER: Duration = Duration::from_secs(30);

/// What stands between the sampler and the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum SetUp {
    /// No buffer; the gather starts when its minibatch is due and training waits for it
    OffSync,
    /// No buffer; the next minibatch's gather runs while this one computes
    Off,
    /// Buffer filled at the start with the halo nodes of highest degree, never replaced
    Fixed,
    /// As fixed, with halo nodes drawn at random
    FixedRandom,
    /// Nothing kept for 64 minibatches, then the nodes that these wanted most, never replaced
    Presc,
    /// Scored replacement, every DELTA minibatches
    Periodic,
    /// Scored replacement, when a fair coin says so
    Random,
    /// Scored replacement, when a trained classifier says so; needs --classifier
    Classifier,
    /// Scored replacement, when the language model says so
    Llm,
    /// LFU, and the language model sets how many rows of each cohort are pulled ahead
    LlmCohorts,
    /// Rows that were fetched anyway are kept, the least recently used gives way
    Lru,
    /// As lru, but SIEVE's hand says which row gives way
    Sieve,
    /// As lru, with the queues of S3-FIFO
    S3fifo,
    /// As lru, with the window and the admission of W-TinyLFU
    Wtinylfu,
    /// LFU: rows that were fetched anyway are kept by frequency, nothing is fetched for the buffer alone
    Lfu,
    /// Keeps what the announced minibatches want next; needs --lookahead
    Window,
    /// As window, or lfu without --lookahead, and rows of owners that hold minibatches up are worth more
    Analytic,
    /// Begins as window, or lfu without --lookahead, and changes to the simple policy that does best on a sample
    Ghost,
    /// As analytic, while that costs no more than the best simple policy
    Guard,
    /// As analytic, and a small language model chooses the policy; needs --pilot
    Pilot,
}

impl SetUp {
    /// Every set-up, in the order of a comparison.
    pub const ALL: [Self; 20] = [
        Self::OffSync,
        Self::Off,
        Self::Fixed,
        Self::FixedRandom,
        Self::Presc,
        Self::Periodic,
        Self::Random,
        Self::Classifier,
        Self::Llm,
        Self::LlmCohorts,
        Self::Lru,
        Self::Sieve,
        Self::S3fifo,
        Self::Wtinylfu,
        Self::Lfu,
        Self::Window,
        Self::Analytic,
        Self::Ghost,
        Self::Guard,
        Self::Pilot,
    ];

    /// Its name on the command line and in documents.
    pub fn name(self) -> &'static str {
        match self {
            Self::OffSync => "off-sync",
            Self::Off => "off",
            Self::Fixed => "fixed",
            Self::FixedRandom => "fixed-random",
            Self::Presc => "presc",
            Self::Periodic => "periodic",
            Self::Random => "random",
            Self::Classifier => "classifier",
            Self::Llm => "llm",
            Self::LlmCohorts => "llm-cohorts",
            Self::Lru => "lru",
            Self::Sieve => "sieve",
            Self::S3fifo => "s3fifo",
            Self::Wtinylfu => "wtinylfu",
            Self::Lfu => "lfu",
            Self::Window => "window",
            Self::Analytic => "analytic",
            Self::Ghost => "ghost",
            Self::Guard => "guard",
            Self::Pilot => "pilot",
        }
    }

    /// What it is, in a sentence's part.
    pub fn meaning(self) -> &'static str {
        match self {
            Self::OffSync => "no buffer; every gather is waited for in full",
            Self::Off => "no buffer; the next gather runs while this minibatch computes",
            Self::Fixed => "buffer filled once with the halo nodes of highest degree",
            Self::FixedRandom => "buffer filled once with halo nodes drawn at random",
            Self::Presc => "buffer filled after 64 minibatches with the nodes that these wanted most",
            Self::Periodic => "scored replacement at a fixed interval",
            Self::Random => "scored replacement when a fair coin says so",
            Self::Classifier => "scored replacement when a trained classifier says so",
            Self::Llm => "scored replacement when the language model says so",
            Self::LlmCohorts => "LFU, and the language model sets quotas of rows to pull ahead",
            Self::Lru => "keeps rows that were fetched anyway, by recency",
            Self::Sieve => "keeps rows that were fetched anyway, by SIEVE",
            Self::S3fifo => "keeps rows that were fetched anyway, by S3-FIFO",
            Self::Wtinylfu => "keeps rows that were fetched anyway, by W-TinyLFU",
            Self::Lfu => "keeps rows that were fetched anyway, by frequency",
            Self::Window => "keeps what the announced minibatches want next",
            Self::Analytic => "as window or lfu, and rows of owners that hold minibatches up are worth more",
            Self::Ghost => "changes to the simple policy that does best on a sample",
            Self::Guard => "as analytic, while that costs no more than the best simple policy",
            Self::Pilot => "as analytic, and a small language model chooses the policy",
        }
    }

    /// The replacement policy's name.
    pub fn policy_name(self) -> &'static str {
        match self {
            Self::OffSync | Self::Off => "none",
            Self::Fixed => "degree",
            Self::FixedRandom => "random",
            Self::Periodic | Self::Random | Self::Classifier | Self::Llm => "rudder",
            Self::LlmCohorts => "lfu",
            Self::Analytic | Self::Ghost | Self::Guard | Self::Pilot => "window",
            Self::Presc | Self::Lru | Self::Sieve | Self::S3fifo | Self::Wtinylfu | Self::Lfu | Self::Window => {
                self.name()
            }
        }
    }

    /// The controller's name.
    pub fn controller_name(self) -> &'static str {
        match self {
            Self::Periodic
            | Self::Random
            | Self::Classifier
            | Self::Llm
            | Self::LlmCohorts
            | Self::Analytic
            | Self::Ghost
            | Self::Guard
            | Self::Pilot => self.name(),
            _ => "off",
        }
    }

    /// The library's settings for it.
    ///
    /// # Errors
    /// It asks a language model, and no service is named, or a classifier or the pilot, and there is no file.
    pub fn configure(
        self,
        controls: &Controls,
        asked: Asked,
        seed: u64,
    ) -> anyhow::Result<(PolicyConfig, ControllerConfig)> {
        let policy = match self.policy_name() {
            "rudder" => PolicyConfig::Rudder(RudderConfig {
                alpha: controls.alpha,
                delta: Some(controls.delta),
                start: match controls.start {
                    Start::Empty => buffer::Start::Empty,
                    Start::Degree => buffer::Start::Degree,
                    Start::Random => buffer::Start::Random(seed),
                },
            }),
            "lfu" => PolicyConfig::Lfu(LfuConfig { cohorts: self == Self::LlmCohorts, ..LfuConfig::default() }),
            "random" => PolicyConfig::Random(RandomConfig { seed }),
            "none" => PolicyConfig::Off,
            name => PolicyConfig::named(name)?,
        };
        let delta = u64::from(controls.delta);
        let controller = match self {
            Self::Periodic => ControllerConfig::Periodic { delta },
            Self::Random => ControllerConfig::Random { seed, delta },
            Self::Classifier => {
                let file = asked.classifier.context(NO_CLASSIFIER)?.to_owned();
                ControllerConfig::Classifier(ClassifierConfig { file, online: false })
            }
            Self::Llm => {
                let hit_rate = match controls.hit_rate {
                    HitRateShown::Cumulative => HitRate::Cumulative,
                    HitRateShown::Zero => HitRate::Zero,
                };
                let model = service(asked.model)?;
                ControllerConfig::LlmReplace(ReplaceConfig { model, delta, hit_rate, ..ReplaceConfig::default() })
            }
            Self::LlmCohorts => {
                let model = service(asked.model)?;
                ControllerConfig::LlmCohorts(CohortsConfig { model, delta, ..CohortsConfig::default() })
            }
            Self::Analytic => ControllerConfig::Analytic,
            Self::Ghost => ControllerConfig::Ghost,
            Self::Guard => ControllerConfig::Guard { inner: Box::new(ControllerConfig::Analytic) },
            Self::Pilot => ControllerConfig::Pilot(PilotConfig { file: asked.pilot.context(NO_PILOT)?.to_owned() }),
            _ => ControllerConfig::Off,
        };
        Ok((policy, controller))
    }

    /// Whether rows are kept at all.
    pub fn has_buffer(self) -> bool {
        !matches!(self, Self::OffSync | Self::Off)
    }

    /// Whether it asks the language model.
    pub fn needs_model(self) -> bool {
        matches!(self, Self::Llm | Self::LlmCohorts)
    }

    /// Whether the next minibatch's gather runs while the present one computes.
    pub fn overlaps(self) -> bool {
        self != Self::OffSync
    }
}

/// Whom a set-up can ask.
#[derive(Clone, Copy, Debug, Default)]
pub struct Asked<'a> {
    /// The language model's socket.
    pub model: Option<&'a Path>,
    /// The classifier's file.
    pub classifier: Option<&'a Path>,
    /// The pilot's file.
    pub pilot: Option<&'a Path>,
}

/// What is to be said where a classifier is asked and none is named.
pub const NO_CLASSIFIER: &str =
    "set-up classifier asks one: name its file, which `rudder fit` leaves, with --classifier";

/// What is to be said where the pilot is asked and none is named.
pub const NO_PILOT: &str = "set-up pilot asks one: name its file, such as bench/pilot/pilot.gguf, with --pilot";

/// The machine's one model, behind its socket.
fn service(socket: Option<&Path>) -> anyhow::Result<ModelSource> {
    let socket = socket.context("the set-up asks a language model and none is served")?.to_owned();
    Ok(ModelSource::Service { socket, deadline: ANSWER })
}

impl fmt::Display for SetUp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// What a buffer holds before the first minibatch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Start {
    /// Nothing
    Empty,
    /// The halo nodes of highest degree
    #[default]
    Degree,
    /// Halo nodes drawn at random
    Random,
}

/// Which hit rate the language model is shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum HitRateShown {
    /// Over all minibatches so far
    #[default]
    Cumulative,
    /// Always 0, as the published example configuration shows it
    Zero,
}

/// Settings of policies and controllers.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Controls {
    /// Minibatches between two decisions, and those without a hit after which scored replacement may give a row up.
    pub delta: u32,
    /// What a minibatch without a hit takes off a row's score, as a share.
    pub alpha: f64,
    /// What the buffer of a scored policy holds at the start.
    pub start: Start,
    /// Which hit rate the language model is shown.
    pub hit_rate: HitRateShown,
}

impl Default for Controls {
    fn default() -> Self {
        Self { delta: 8, alpha: 0.005, start: Start::Degree, hit_rate: HitRateShown::Cumulative }
    }
}

#[cfg(test)]
mod tests {
    //! Goal: a set-up has one name everywhere. Method: compare the command line's, the document's and the display's.

    use super::*;

    #[test]
    fn a_set_up_has_one_name_everywhere() {
        assert_eq!(SetUp::ALL, *SetUp::value_variants());
        for setup in SetUp::ALL {
            assert_eq!(setup.to_possible_value().unwrap().get_name(), setup.name());
            assert_eq!(serde_json::to_value(setup).unwrap(), setup.name());
            assert_eq!(setup.to_string(), setup.name());
        }
    }
}
