//! Who competes: a policy, and a controller that steers it.

use crate::replay::{Buffer, Case, settled};
use anyhow::{Result, ensure};
use rudder::buffer::PolicyConfig;
use rudder::controller::{ControllerConfig, JobFacts};
use rudder::transport::hook::Link;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// A policy with a controller, written POLICY or POLICY/CONTROLLER.
#[derive(Clone, Debug, PartialEq)]
pub struct Contender {
    policy_words: String,
    /// The controller as it was written.
    controller_words: String,
    /// The policy, as the controller needs it.
    policy: PolicyConfig,
    /// The controller.
    controller: ControllerConfig,
}

/// All that can compete without asking a language model: the published scoring replaces always, often, now and then, and by chance.
pub const DEFAULT: &str = "off,degree,presc,lru,sieve,s3fifo,wtinylfu,lfu,window,lfu/analytic,window/analytic,\
    rudder/periodic:1,rudder/periodic:8,rudder/periodic:32,rudder/periodic:128,rudder/random:1:8";

/// Controllers that choose, without and with the guard.
pub const ABLATION: &str = "lfu/ghost,lfu/guard:ghost,lfu/bandit:1,lfu/guard:bandit:1,rudder/random:1:8,rudder/guard:random:1:8,lfu/analytic,lfu/guard:analytic,\
    rudder/oracle";

impl Contender {
    /// Its replay, over links that owners share too.
    pub fn case(&self, buffer: Buffer, lookahead: u32, link: Link, decision_latency: Duration) -> Case {
        Case {
            policy_words: self.policy_words.clone(),
            policy: self.policy.clone(),
            controller_words: self.controller_words.clone(),
            controller: self.controller.clone(),
            buffer,
            lookahead: lookahead as usize,
            link,
            slow: None,
            egress: true,
            decision_latency,
            in_flight: None,
        }
    }
}

impl FromStr for Contender {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (policy, controller) = text.split_once('/').unwrap_or((text, "off"));
        ensure!(!policy.is_empty() && !controller.is_empty(), "contender {text:?}: write POLICY or POLICY/CONTROLLER");
        let config = settled(policy, controller)??;
        // A setting that is out of its bounds shows here, and not in the middle of a study.
        config.controller.build(&JobFacts::default())?;
        Ok(Self {
            policy_words: policy.to_owned(),
            controller_words: controller.to_owned(),
            policy: config.policy,
            controller: config.controller,
        })
    }
}

impl fmt::Display for Contender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.policy_words)?;
        if self.controller == ControllerConfig::Off { Ok(()) } else { write!(f, "/{}", self.controller_words) }
    }
}

#[cfg(test)]
mod tests {
    //! Goal: contenders are what they are called. Method: round trips and refusals.
    use super::*;

    #[test]
    fn names_survive_a_round_trip() {
        for name in DEFAULT.split(',').chain(ABLATION.split(',')) {
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
