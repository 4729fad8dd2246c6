//! The registry: which controllers there are and how each is built. A new one is its file, its variant and its line in [`ControllerConfig::build`].

use super::bandit;
use super::classifier::{Classifier, ClassifierConfig, PlanClassifier};
#[cfg(feature = "llm")]
use super::llm;
use super::planner::Planner;
use super::watching::Watching;
use super::{Analytic, Bandit, Controller, Fixed, Ghost, Guard, JobFacts, Off, Periodic, Quotas, Random};
use crate::buffer::Feed;
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::str::FromStr;

#[cfg(feature = "llm")]
const CHOICES: &str = "auto, off, fixed, periodic:DELTA, random:SEED:DELTA, quotas:PERCENT, analytic, classifier:FILE, ghost, bandit:SEED, plan-classifier:FILE, pilot:FILE, llm-replace or llm-cohorts; guard: before one guards it, online: before a classifier lets it learn";
#[cfg(not(feature = "llm"))]
const CHOICES: &str = "auto, off, fixed, periodic:DELTA, random:SEED:DELTA, quotas:PERCENT, analytic, classifier:FILE, ghost, bandit:SEED or plan-classifier:FILE; guard: before one guards it, online: before a classifier lets it learn";

/// Which controller steers the buffer, and how.
///
/// ```
/// use rudder::controller::{ControllerConfig, JobFacts, Observation};
///
/// let config: ControllerConfig = "periodic:2".parse()?;
/// assert_eq!(config, ControllerConfig::Periodic { delta: 2 });
/// let mut controller = config.build(&JobFacts::default())?;
/// controller.observe(&Observation { minibatch: 2, ..Observation::default() });
/// assert!(controller.decide().is_some_and(|decision| decision.replace));
/// assert!("periodic".parse::<ControllerConfig>().unwrap_err().to_string().contains("periodic:DELTA"));
/// # Ok::<(), rudder::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum ControllerConfig {
    /// `analytic` where the policy counts wants and the job has one table, else none: see [`Config::choose_controller`](crate::Config::choose_controller).
    #[default]
    Auto,
    /// No controller.
    Off,
    /// The buffer is never replaced.
    Fixed,
    /// Replacement every `delta` minibatches.
    Periodic {
        /// Minibatches between replacements, at least 1.
        delta: u64,
    },
    /// A fair coin every `delta` minibatches.
    Random {
        /// Seed of the coin.
        seed: u64,
        /// Minibatches between tosses, at least 1.
        delta: u64,
    },
    /// Of each cohort the same share of what it misses is pulled ahead.
    Quotas {
        /// That share in per cent, 1 to 100.
        percent: u64,
        /// Of cohorts only whose nodes were wanted so often lately: 1, 2, 4 or 8 times.
        times: u64,
    },
    /// Rows of owners that take long are kept rather than those of others.
    Analytic,
    /// A trained classifier answers yes or no to replacement.
    Classifier(ClassifierConfig),
    /// The simple policy that does best on a sample takes the buffer over.
    Ghost,
    /// The simple policies take the buffer over in turn, those that have done well more often.
    Bandit {
        /// Seed of the order in which they are tried.
        seed: u64,
        /// Minibatches of a turn, at least 1.
        episode: u64,
    },
    /// Another controller's choices are taken only while they cost no more than the best simple policy.
    Guard {
        /// The controller.
        inner: Box<ControllerConfig>,
    },
    /// Trained classifiers choose among plans.
    PlanClassifier(ClassifierConfig),
    /// A language model that was trained for it chooses among plans.
    #[cfg(feature = "llm")]
    Pilot(llm::PilotConfig),
    /// A language model answers yes or no to replacement.
    #[cfg(feature = "llm")]
    LlmReplace(llm::ReplaceConfig),
    /// A language model scores cohorts, and the scores become standing quotas.
    #[cfg(feature = "llm")]
    LlmCohorts(llm::CohortsConfig),
}

impl ControllerConfig {
    /// The controller of this configuration. Those with a model load it here, which takes about a second and may write to the environment: see
    /// [`ControllerRuntime::start`](super::ControllerRuntime::start).
    ///
    /// # Errors
    /// A setting is out of its bounds, or the model cannot be loaded.
    pub fn build(&self, facts: &JobFacts) -> Result<Box<dyn Controller>> {
        Ok(match self {
            // What nobody has chosen for decides nothing.
            Self::Auto | Self::Off => Box::new(Off),
            Self::Fixed => Box::new(Fixed),
            Self::Periodic { delta } => Box::new(Periodic::new(*delta)?),
            Self::Random { seed, delta } => Box::new(Random::new(*seed, *delta)?),
            Self::Quotas { percent, times } => Box::new(Quotas::new(*percent, *times, facts)?),
            Self::Analytic => Box::new(Analytic::new()),
            Self::Classifier(config) => Box::new(Classifier::new(config, facts)?),
            Self::Ghost => Box::new(Ghost::new()),
            Self::Bandit { seed, episode } => Box::new(Bandit::new(*seed, *episode)?),
            Self::Guard { inner } => Box::new(Guard::new(inner.build(facts)?)),
            Self::PlanClassifier(config) => Box::new(Planner::new(Box::new(PlanClassifier::new(config)?), facts)),
            #[cfg(feature = "llm")]
            Self::Pilot(config) => Box::new(Planner::new(Box::new(llm::Pilot::new(config)?), facts)),
            #[cfg(feature = "llm")]
            Self::LlmReplace(config) => Box::new(llm::LlmReplace::new(config, facts)?),
            #[cfg(feature = "llm")]
            Self::LlmCohorts(config) => Box::new(llm::LlmCohorts::new(config, facts)?),
        })
    }

    /// As [`build`](Self::build), of a controller that watches a buffer at this end of its feed.
    ///
    /// # Errors
    /// As [`build`](Self::build); or it cannot work with the buffer.
    pub fn build_watching(&self, facts: &JobFacts, feed: Feed) -> Result<Box<dyn Controller>> {
        Ok(Box::new(Watching::new(self.build(facts)?, feed)?))
    }

    /// The controller's name.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Off => "off",
            Self::Fixed => "fixed",
            Self::Periodic { .. } => "periodic",
            Self::Random { .. } => "random",
            Self::Quotas { .. } => "quotas",
            Self::Analytic => "analytic",
            Self::Classifier(_) => "classifier",
            Self::Ghost => "ghost",
            Self::Bandit { .. } => "bandit",
            Self::Guard { .. } => "guard",
            Self::PlanClassifier(_) => "plan-classifier",
            #[cfg(feature = "llm")]
            Self::Pilot(_) => "pilot",
            #[cfg(feature = "llm")]
            Self::LlmReplace(_) => "llm-replace",
            #[cfg(feature = "llm")]
            Self::LlmCohorts(_) => "llm-cohorts",
        }
    }

    /// Minibatches between two replacements, where it replaces at an interval.
    pub fn interval(&self) -> Option<u64> {
        match self {
            Self::Periodic { delta } | Self::Random { delta, .. } => Some(*delta),
            Self::Guard { inner } => inner.interval(),
            _ => None,
        }
    }

    /// Whether replacement is all that it decides on.
    pub fn decides_on_replacement(&self) -> bool {
        match self {
            Self::Auto | Self::Off | Self::Fixed | Self::Quotas { .. } | Self::Analytic => false,
            Self::Ghost | Self::Bandit { .. } | Self::PlanClassifier(_) => false,
            Self::Periodic { .. } | Self::Random { .. } | Self::Classifier(_) => true,
            Self::Guard { inner } => inner.decides_on_replacement(),
            #[cfg(feature = "llm")]
            Self::LlmReplace(_) => true,
            #[cfg(feature = "llm")]
            Self::Pilot(_) | Self::LlmCohorts(_) => false,
        }
    }

    /// Whether observations must carry misses by cohort, which cost some counting.
    pub fn wants_cohorts(&self) -> bool {
        match self {
            Self::Guard { inner } => inner.wants_cohorts(),
            Self::Quotas { .. } => true,
            #[cfg(feature = "llm")]
            Self::LlmCohorts(_) => true,
            _ => false,
        }
    }

    /// Whether the policy must weigh wants by owner, and observations carry the owners' loads.
    pub fn weighs_owners(&self) -> bool {
        match self {
            Self::Guard { inner } => inner.weighs_owners(),
            Self::PlanClassifier(_) => true,
            #[cfg(feature = "llm")]
            Self::Pilot(_) => true,
            _ => *self == Self::Analytic,
        }
    }

    /// Does to the environment what a model in this process needs, so that it is done before a caller starts threads.
    pub(crate) fn prepare_process(&self) {
        match self {
            Self::Guard { inner } => inner.prepare_process(),
            #[cfg(feature = "llm")]
            Self::Pilot(_) => super::threads::confine_process(),
            #[cfg(feature = "llm")]
            Self::LlmReplace(llm::ReplaceConfig { model, .. }) | Self::LlmCohorts(llm::CohortsConfig { model, .. })
                if model.runs_here() =>
            {
                super::threads::confine_process();
            }
            _ => {}
        }
    }

    /// Whether it decides in microseconds, so that it runs at the minibatch boundary itself: its decisions are then the same in every run.
    pub fn runs_inline(&self) -> bool {
        match self {
            Self::Auto | Self::Off | Self::Fixed | Self::Periodic { .. } | Self::Random { .. } => true,
            Self::Quotas { .. } | Self::Analytic | Self::Classifier(_) => true,
            Self::Ghost | Self::Bandit { .. } | Self::Guard { .. } | Self::PlanClassifier(_) => false,
            #[cfg(feature = "llm")]
            Self::Pilot(_) | Self::LlmReplace(_) | Self::LlmCohorts(_) => false,
        }
    }

    /// Whether it is to see what the buffer is asked for, and may change its policy.
    pub fn watches(&self) -> bool {
        match self {
            Self::Ghost | Self::Bandit { .. } | Self::Guard { .. } | Self::PlanClassifier(_) => true,
            #[cfg(feature = "llm")]
            Self::Pilot(_) => true,
            _ => false,
        }
    }

    /// Whether what it decides follows from what it is shown alone, so that a replay can ask it whenever it likes.
    pub fn is_replayable(&self) -> bool {
        match self {
            Self::Guard { inner } => inner.is_replayable(),
            _ => self.runs_inline() || self.watches(),
        }
    }
}

/// Reads `auto`, `off`, `fixed`, `periodic:DELTA`, `random:SEED:DELTA`, `quotas:PERCENT`, `quotas:PERCENT:TIMES`, `analytic`, `classifier:FILE`, `ghost`,
/// `bandit:SEED`, `bandit:SEED:EPISODE`, `plan-classifier:FILE`, `online:` and a classifier, `guard:` and one of these, and only with the feature `llm` `pilot:FILE`, `llm-replace` and `llm-cohorts`, the last two with their default settings.
impl FromStr for ControllerConfig {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let file = |kind: &str| text.strip_prefix(kind).filter(|file| !file.is_empty()).map(PathBuf::from);
        if let Some(file) = file("classifier:") {
            return Ok(Self::Classifier(ClassifierConfig { file, online: false }));
        }
        if let Some(file) = file("plan-classifier:") {
            return Ok(Self::PlanClassifier(ClassifierConfig { file, online: false }));
        }
        if let Some(inner) = text.strip_prefix("online:") {
            let online = |config: ClassifierConfig| ClassifierConfig { online: true, ..config };
            return match inner.parse()? {
                Self::Classifier(config) => Ok(Self::Classifier(online(config))),
                Self::PlanClassifier(config) => Ok(Self::PlanClassifier(online(config))),
                _ => Err(Error::config(format!(
                    "controller {text:?}: only classifier:FILE and plan-classifier:FILE learn online"
                ))),
            };
        }
        #[cfg(feature = "llm")]
        if let Some(file) = file("pilot:") {
            return Ok(Self::Pilot(llm::PilotConfig { file }));
        }
        if let Some(inner) = text.strip_prefix("guard:") {
            let inner: Self = inner.parse()?;
            if matches!(inner, Self::Auto | Self::Off | Self::Fixed | Self::Guard { .. }) {
                return Err(Error::config(format!("controller {text:?}: {} decides nothing to guard", inner.name())));
            }
            return Ok(Self::Guard { inner: Box::new(inner) });
        }
        let fields: Vec<&str> = text.split(':').collect();
        let number = |field: &str| {
            field
                .parse::<u64>()
                .map_err(|_| Error::config(format!("controller {text:?}: {field:?} is not a whole number")))
        };
        match fields.as_slice() {
            ["auto"] => Ok(Self::Auto),
            ["off"] => Ok(Self::Off),
            ["fixed"] => Ok(Self::Fixed),
            ["analytic"] => Ok(Self::Analytic),
            ["ghost"] => Ok(Self::Ghost),
            ["bandit", seed] => Ok(Self::Bandit { seed: number(seed)?, episode: bandit::EPISODE }),
            ["bandit", seed, episode] => Ok(Self::Bandit { seed: number(seed)?, episode: number(episode)? }),
            ["periodic", delta] => Ok(Self::Periodic { delta: number(delta)? }),
            ["quotas", percent] => Ok(Self::Quotas { percent: number(percent)?, times: 1 }),
            ["quotas", percent, times] => Ok(Self::Quotas { percent: number(percent)?, times: number(times)? }),
            ["random", seed, delta] => Ok(Self::Random { seed: number(seed)?, delta: number(delta)? }),
            #[cfg(feature = "llm")]
            ["llm-replace"] => Ok(Self::LlmReplace(llm::ReplaceConfig::default())),
            #[cfg(feature = "llm")]
            ["llm-cohorts"] => Ok(Self::LlmCohorts(llm::CohortsConfig::default())),
            #[cfg(not(feature = "llm"))]
            ["pilot", ..] | ["llm-replace" | "llm-cohorts"] => Err(Error::config(format!(
                "controller {text:?} asks a language model, which this build leaves out: build rudder with its feature llm"
            ))),
            _ => Err(Error::config(format!("unknown controller {text:?}: give {CHOICES}"))),
        }
    }
}
