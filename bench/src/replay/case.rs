//! What a replay is of: a policy, a controller, a buffer and a lookahead. A list of each makes their products.

use super::links::SlowRank;
use super::oracle;
use super::traces::RankTrace;
use crate::cli::ReplayArgs;
use anyhow::{Result, ensure};
use rudder::buffer::PolicyConfig;
use rudder::controller::ControllerConfig;
use rudder::transport::hook::Link;
use rudder::{BufferSize, Config};
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// The name of the bound among the policies.
pub const BELADY: &str = "belady";

/// How large a buffer is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Buffer {
    /// As it was when the trace was recorded.
    Recorded,
    /// Of this size. Bytes are those of rows alone.
    Size(BufferSize),
}

impl Buffer {
    /// Slots of a rank's buffer.
    ///
    /// # Errors
    /// The trace's partitions do not hold together.
    pub fn slots(self, trace: &RankTrace) -> Result<u32> {
        let most = trace.header.tables[0].remote_nodes()?.min(u64::from(rudder::buffer::SLOTS_MAX));
        let slots = match self {
            Self::Recorded => return Ok(trace.header.tables[0].slots),
            Self::Size(BufferSize::Halo(share)) => (trace.hints.halo.len() as f64 * share) as u64,
            Self::Size(BufferSize::Bytes(bytes)) => bytes / trace.row_bytes(),
        };
        Ok(slots.min(most) as u32)
    }
}

impl FromStr for Buffer {
    type Err = rudder::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "recorded" { Ok(Self::Recorded) } else { text.parse().map(Self::Size) }
    }
}

impl fmt::Display for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Recorded => f.write_str("recorded"),
            Self::Size(BufferSize::Halo(share)) => write!(f, "{} %", (share * 1e4).round() / 100.0),
            Self::Size(BufferSize::Bytes(bytes)) => write!(f, "{bytes} B"),
        }
    }
}

/// One configuration.
#[derive(Clone, Debug)]
pub struct Case {
    /// The policy, as it was asked for.
    pub policy_words: String,
    /// The policy.
    pub policy: PolicyConfig,
    /// The controller, as it was asked for.
    pub controller_words: String,
    /// The controller.
    pub controller: ControllerConfig,
    /// The buffer.
    pub buffer: Buffer,
    /// Minibatches announced ahead.
    pub lookahead: usize,
    /// The links.
    pub link: Link,
    /// A rank that sends more slowly than the others.
    pub slow: Option<SlowRank>,
    /// Whether what owners send is shaped too.
    pub egress: bool,
    /// What a decision takes.
    pub decision_latency: Duration,
    /// Most rows fetched ahead that are on their way at once, of a rank; `None` as in the job.
    pub in_flight: Option<usize>,
}

impl Case {
    /// Whether anything decides while the job runs.
    pub fn steers(&self) -> bool {
        !matches!(self.controller, ControllerConfig::Off | ControllerConfig::Fixed)
    }
}

/// All that was asked for.
#[derive(Debug)]
pub struct Cases {
    /// To be replayed.
    pub cases: Vec<Case>,
    /// Buffers that the bound is asked for too.
    pub bounds: Vec<Buffer>,
    /// Tells of policies and controllers that do not go together.
    pub note: Option<String>,
}

impl Cases {
    /// The products of the lists.
    ///
    /// # Errors
    /// A name is unknown, a controller cannot be replayed, or nothing is left to do.
    pub fn of(args: &ReplayArgs) -> Result<Self> {
        let (mut cases, mut strangers, mut why) = (Vec::new(), Vec::new(), String::new());
        for policy in args.policy.iter().filter(|policy| *policy != BELADY) {
            for controller in &args.controller {
                match settled(policy, controller)? {
                    Ok(config) => cases.extend(products(args, &config, policy, controller)),
                    Err(cause) => {
                        strangers.push(format!("{controller} with {policy}"));
                        why = cause.to_string();
                    }
                }
            }
        }
        let bounds = if args.policy.iter().any(|policy| policy == BELADY) { args.buffer.clone() } else { Vec::new() };
        ensure!(!cases.is_empty() || !bounds.is_empty(), "nothing to replay; {why}");
        let note = format!("left out, since they do not go together: {}", strangers.join(", "));
        Ok(Self { cases, bounds, note: (!strangers.is_empty()).then_some(note) })
    }
}

/// The settings of a policy and a controller, or why they do not go together.
///
/// # Errors
/// A name is unknown, or the controller cannot be replayed.
pub fn settled(policy: &str, controller: &str) -> Result<Result<Config, rudder::Error>> {
    let decides = match oracle::latency(controller)? {
        // What the oracle decides on is when.
        Some(_) => ControllerConfig::Periodic { delta: oracle::DELTA },
        None => controller.parse()?,
    };
    let mut config = Config { policy: PolicyConfig::named(policy)?, controller: decides, ..Config::default() };
    ensure!(
        config.controller.is_replayable(),
        "controller {controller} asks a model that takes real time, which a replay has none of: run `rudder train` with it"
    );
    config.choose_controller(1);
    Ok(config.settle().map(|()| config))
}

fn products<'a>(
    args: &'a ReplayArgs,
    config: &'a Config,
    policy: &'a str,
    controller: &'a str,
) -> impl Iterator<Item = Case> + 'a {
    args.buffer.iter().flat_map(move |&buffer| {
        args.lookahead.iter().map(move |&lookahead| Case {
            policy_words: policy.to_owned(),
            policy: config.policy.clone(),
            controller_words: controller.to_owned(),
            controller: config.controller.clone(),
            buffer,
            lookahead: lookahead as usize,
            link: args.link,
            slow: args.slow,
            egress: !args.ingress_only,
            decision_latency: args.run.decision_latency(),
            in_flight: args.run.in_flight(),
        })
    })
}
