//! Who competes: a policy, and a controller that steers it.

use crate::replay::settled;
use anyhow::{Result, ensure};
use rudder::Config;
use rudder::controller::JobFacts;
use std::fmt;
use std::str::FromStr;

/// A policy with a controller, written POLICY or POLICY/CONTROLLER.
#[derive(Clone, Debug, PartialEq)]
pub struct Contender {
    /// The policy's name.
    pub policy: String,
    /// The controller in words.
    pub controller: String,
}

/// All that can compete without asking a language model: the published scoring replaces always, often, now and then, and by chance.
pub const DEFAULT: &str = "off,degree,presc,lru,sieve,s3fifo,wtinylfu,lfu,window,lfu/analytic,window/analytic,\
    rudder/periodic:1,rudder/periodic:8,rudder/periodic:32,rudder/periodic:128,rudder/random:1:8";

impl Contender {
    /// Whether something decides while the job runs.
    pub fn is_steered(&self) -> bool {
        self.controller != "off"
    }

    /// Its settings.
    ///
    /// # Errors
    /// There is no such policy or controller, they do not go together, or the controller asks a model.
    pub fn settle(&self) -> Result<Config> {
        let config = settled(&self.policy, &self.controller)??;
        config.controller.build(&JobFacts::default())?;
        Ok(config)
    }
}

impl FromStr for Contender {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (policy, controller) = text.split_once('/').unwrap_or((text, "off"));
        ensure!(!policy.is_empty() && !controller.is_empty(), "contender {text:?}: write POLICY or POLICY/CONTROLLER");
        let contender = Self { policy: policy.to_owned(), controller: controller.to_owned() };
        contender.settle()?;
        Ok(contender)
    }
}

impl fmt::Display for Contender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.policy)?;
        if self.is_steered() { write!(f, "/{}", self.controller) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    //! Goal: contenders are what they are called. Method: round trips and refusals.
    use super::*;

    #[test]
    fn names_survive_a_round_trip() {
        for name in DEFAULT.split(',') {
            assert_eq!(name.parse::<Contender>().unwrap().to_string(), name);
        }
    }

    #[test]
    fn what_cannot_compete_is_refused() {
        for (name, words) in [
            ("best", "unknown"),
            ("lfu/", "POLICY/CONTROLLER"),
            ("rudder/llm-replace", "real time"),
            ("lfu/periodic:8", "rudder"),
            ("rudder/periodic:0", "delta"),
        ] {
            let cause = format!("{:#}", name.parse::<Contender>().unwrap_err());
            assert!(cause.contains(words), "{name}: {cause}");
        }
    }
}
