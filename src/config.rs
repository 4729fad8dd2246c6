//! Settings, with the bound of every queue, retry and wait.
//!
//! Defaults work on a laptop. `RUDDER_*` variables override what the program says, so that a job script can change a run without a
//! rebuild. In a document a setting is read as these variables are, or in full.

use crate::buffer::{LfuConfig, PolicyConfig};
use crate::controller::{ControllerConfig, RuntimeConfig};
use crate::error::{Error, Result};
use crate::transport::hook::Link;
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

pub(crate) mod spelled;

/// Most changes of a job that can be told beforehand.
const CHANGES_MAX: usize = 4096;

/// How much the prefetch buffer may hold.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum BufferSize {
    /// Slots for this share of the halo nodes, 0 to 1.
    Halo(f64),
    /// Bytes for all of it: slots and what is kept for each, staging, and announced ids, which get a quarter of it at most.
    Bytes(u64),
}

/// Whether memory and threads are placed near the NIC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Bind {
    /// On hosts with several NUMA nodes, near the NIC that the rank uses.
    #[default]
    Auto,
    /// Where the system and the launcher put them.
    Off,
}

impl FromStr for Bind {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "auto" => Ok(Self::Auto),
            "off" => Ok(Self::Off),
            _ => Err(Error::config(format!("bind `{text}`: expected `auto` or `off`"))),
        }
    }
}

/// A number and its unit, such as `64MiB`; a number alone has none.
fn quantity(text: &str) -> Option<(f64, &str)> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    Some((text[..digits].parse().ok()?, text[digits..].trim()))
}

/// A quantity in bytes; `None` where it is not one.
fn bytes((number, unit): (f64, &str)) -> Option<u64> {
    let unit = match unit {
        "B" => 1.0,
        "kB" | "KB" => 1e3,
        "MB" => 1e6,
        "GB" => 1e9,
        "KiB" => 1024.0,
        "MiB" => 1048576.0,
        "GiB" => 1073741824.0,
        _ => return None,
    };
    Some((number * unit) as u64)
}

impl FromStr for BufferSize {
    type Err = Error;

    /// `0.1` and `10%` are shares of the halo; `64MiB`, `2GB` and `100000B` are bytes.
    fn from_str(text: &str) -> Result<Self> {
        let bad = || {
            Error::config(format!(
                "buffer size `{text}`: expected a share such as `0.1` or `10%`, or bytes such as `64MiB`"
            ))
        };
        match quantity(text).ok_or_else(bad)? {
            (share, "") if share <= 1.0 => Ok(Self::Halo(share)),
            (share, "%") if share <= 100.0 => Ok(Self::Halo(share / 100.0)),
            quantity => bytes(quantity).map(Self::Bytes).ok_or_else(bad),
        }
    }
}

/// What an [`Engine`](crate::Engine) is told.
///
/// ```
/// use rudder::{BufferSize, Config};
///
/// let mut config: Config = serde_json::from_str(r#"{"buffer": "25%", "policy": "lfu:64", "gather_timeout": 30}"#).unwrap();
/// // An engine takes the variables from its environment.
/// config.override_by(|name| (name == "RUDDER_BUFFER").then(|| "64MiB".into()))?;
/// config.settle()?;
/// assert_eq!((config.buffer, config.policy.name()), (BufferSize::Bytes(64 << 20), "lfu"));
/// // What cannot do anything is refused, with what could.
/// config.controller = "periodic:8".parse()?;
/// assert!(config.settle().unwrap_err().to_string().contains("choose policy rudder"));
/// # Ok::<(), rudder::Error>(())
/// ```
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The transport's name; `auto` chooses.
    pub transport: String,
    /// The interface that listeners bind to.
    pub listen: IpAddr,
    /// The NIC, for transports that take one (`cxi0`, `mlx5_0`), and that memory and threads are placed near; `None` takes the nearest.
    pub nic: Option<String>,
    /// Whether memory and threads are placed near the NIC.
    #[serde(deserialize_with = "spelled::bind")]
    pub bind: Bind,
    /// Most bytes that the process registers with devices; `None` leaves it to the system's limit, RLIMIT_MEMLOCK.
    #[serde(deserialize_with = "spelled::bytes_max")]
    pub pinned_bytes_max: Option<u64>,
    /// The speed to hold the transport to: a slower network, for experiments on one machine.
    pub link: Link,
    /// How much the buffer of each table may hold.
    #[serde(deserialize_with = "spelled::buffer")]
    pub buffer: BufferSize,
    /// What the buffer keeps.
    #[serde(deserialize_with = "spelled::policy")]
    pub policy: PolicyConfig,
    /// What decides on replacement and on what is pulled ahead. A rank has one controller for all its tables, and a decision goes to the table
    /// whose minibatch is the first to end once it is there; a table without a buffer takes none.
    /// A language model in this process may write to the environment, see [`ControllerRuntime::start`](crate::controller::ControllerRuntime::start).
    #[serde(deserialize_with = "spelled::controller")]
    pub controller: ControllerConfig,
    /// What a controller may cost.
    pub controller_bounds: RuntimeConfig,
    /// Copies rows of this host's other partitions straight from their mapped memory instead of fetching them.
    pub map_host_rows: bool,
    /// Whether the ranks of this host that have the same partitions share one buffer, in groups of at most 16: each brings as many slots as it
    /// would have for itself, up to its share of the remote nodes, and a row is kept once and serves all. Ranks that do not map each other's
    /// rows share none.
    pub share_buffer: bool,
    /// What this rank's host goes by; `None` takes the system's name. Ranks of one machine that give different names are to each other as if on
    /// different hosts: for experiments.
    pub host: Option<String>,
    /// Minibatches that may be announced and not gathered, up to 64.
    pub tickets: usize,
    /// Node ids that may be announced and not gathered.
    pub announced_nodes: usize,
    /// Gathers that may be open at once.
    pub requests: usize,
    /// Row buffers of the output pool of a table; each holds `rows_max` rows.
    pub rows_buffers: u32,
    /// Most rows of one gather into the output pool.
    pub rows_max: usize,
    /// Most rows of one demand batch.
    pub batch_rows: usize,
    /// Most rows of one prefetch batch.
    pub prefetch_batch_rows: usize,
    /// Most prefetched rows on their way at once.
    pub prefetch_rows_in_flight: usize,
    /// Times that a row is tried.
    pub attempts: u8,
    /// Wait before the second try, up to 60 s; it doubles with each further one.
    #[serde(deserialize_with = "spelled::seconds")]
    pub backoff: Duration,
    /// Time for a gather.
    #[serde(deserialize_with = "spelled::seconds")]
    pub gather_timeout: Duration,
    /// Time for one row batch before its peer is aborted.
    #[serde(deserialize_with = "spelled::seconds")]
    pub transfer_timeout: Duration,
    /// Time for start-up, for shutdown and for the ranks to meet.
    #[serde(deserialize_with = "spelled::seconds")]
    pub collective_timeout: Duration,
    /// Observations kept for [`Engine::observations`](crate::Engine::observations); the oldest go first.
    pub observations: usize,
    /// Seeds a minibatch and minibatches of the whole job, told to the controller; 0 where unknown.
    pub batch: u64,
    /// See `batch`.
    pub minibatches: u64,
    /// The minibatches, counted from 0 and ascending, with which the job changes, told to the controller: where another fan-out, batch or set of nodes
    /// to train on begins.
    pub changes: Vec<u64>,
    /// Records what minibatches want, in a file of this name and `.RANK.trace`; see [`crate::trace`].
    pub trace: Option<PathBuf>,
    /// Where Prometheus may read this rank's counts, by HTTP at `/metrics`; rank 3 listens 3 ports above this one. Nowhere, if not
    /// given.
    #[serde(deserialize_with = "spelled::metrics")]
    pub metrics: Option<MetricsAddress>,
    /// Leaves this rank's counts as JSON, in a file of this name and `.RANK.json`, when the engine ends.
    pub stats_file: Option<PathBuf>,
}

/// An address to listen on: `127.0.0.1:9400`; of a port alone, `9400`, it is the loopback interface's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MetricsAddress(pub SocketAddr);

impl FromStr for MetricsAddress {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let port = text.parse().map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
        let address = port.or_else(|_| text.parse());
        address
            .map(Self)
            .map_err(|_| Error::config(format!("`{text}`: expected an address and a port, such as `127.0.0.1:9400`")))
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            transport: "auto".into(),
            listen: IpAddr::V4(Ipv4Addr::LOCALHOST),
            nic: None,
            bind: Bind::Auto,
            pinned_bytes_max: None,
            link: Link::default(),
            buffer: BufferSize::Halo(0.1),
            policy: PolicyConfig::Window(LfuConfig::default()),
            controller: ControllerConfig::Auto,
            controller_bounds: RuntimeConfig::default(),
            map_host_rows: true,
            share_buffer: true,
            host: None,
            tickets: 64,
            announced_nodes: 1 << 24,
            requests: 64,
            rows_buffers: 4,
            rows_max: 1 << 16,
            batch_rows: 4096,
            prefetch_batch_rows: 512,
            prefetch_rows_in_flight: 2048,
            attempts: 3,
            backoff: Duration::from_millis(20),
            gather_timeout: Duration::from_secs(60),
            transfer_timeout: Duration::from_secs(20),
            collective_timeout: Duration::from_secs(60),
            observations: 4096,
            batch: 0,
            minibatches: 0,
            changes: Vec::new(),
            trace: None,
            metrics: None,
            stats_file: None,
        }
    }
}

impl Config {
    /// The variables that [`Config::override_by`] knows, without their prefix `RUDDER_`.
    pub const VARIABLES: [&'static str; 17] = [
        "TRANSPORT",
        "LISTEN",
        "NIC",
        "BIND",
        "PINNED_BYTES_MAX",
        "LINK",
        "BUFFER",
        "SHARE_BUFFER",
        "HOST",
        "POLICY",
        "CONTROLLER",
        "GATHER_TIMEOUT",
        "TRANSFER_TIMEOUT",
        "COLLECTIVE_TIMEOUT",
        "TRACE",
        "METRICS",
        "STATS_FILE",
    ];

    /// Takes settings from variables; an engine does so from its environment when it starts. Timeouts are in seconds.
    ///
    /// # Errors
    /// Names the first variable that cannot be read, and why.
    pub fn override_by(&mut self, variable: impl Fn(&str) -> Option<String>) -> Result<()> {
        for name in Self::VARIABLES {
            let variable_name = format!("RUDDER_{name}");
            let Some(value) = variable(&variable_name) else { continue };
            tracing::info!("{variable_name}={value} overrides the configuration");
            self.set(name, &value).map_err(|error| Error::config(format!("{variable_name}={value}: {error}")))?;
        }
        Ok(())
    }

    fn set(&mut self, name: &str, value: &str) -> Result<()> {
        let seconds = || spelled::seconds_of(value);
        match name {
            "TRANSPORT" => self.transport = value.into(),
            "LISTEN" => {
                self.listen = value.parse().map_err(|_| Error::config("expected the address of an interface"))?;
            }
            "NIC" => self.nic = Some(nic_name(value)?.into()),
            "BIND" => self.bind = value.parse()?,
            "PINNED_BYTES_MAX" => {
                self.pinned_bytes_max = Some(spelled::bytes_of(value)?);
            }
            "LINK" => self.link = value.parse()?,
            "BUFFER" => self.buffer = value.parse()?,
            "SHARE_BUFFER" => {
                self.share_buffer = value.parse().map_err(|_| Error::config("expected `true` or `false`"))?;
            }
            "HOST" => self.host = Some(value.into()),
            "POLICY" => self.policy = PolicyConfig::named(value)?,
            "CONTROLLER" => self.controller = value.parse()?,
            "GATHER_TIMEOUT" => self.gather_timeout = seconds()?,
            "TRANSFER_TIMEOUT" => self.transfer_timeout = seconds()?,
            "COLLECTIVE_TIMEOUT" => self.collective_timeout = seconds()?,
            "TRACE" => self.trace = Some(value.into()),
            "METRICS" => self.metrics = Some(value.parse()?),
            "STATS_FILE" => self.stats_file = Some(value.into()),
            other => return Err(Error::config(format!("{other} is no setting"))),
        }
        Ok(())
    }

    /// Makes what follows from other settings so, and refuses the rest as [`Config::check`] does; an engine does so when it starts. A controller
    /// that decides by cohorts has the policy count them, and one that replaces at an interval has published scores suit it.
    ///
    /// # Errors
    /// As [`Config::check`].
    pub fn settle(&mut self) -> Result<()> {
        if let PolicyConfig::Lfu(counting) | PolicyConfig::Window(counting) = &mut self.policy {
            counting.cohorts |= self.controller.wants_cohorts();
            counting.owners |= self.controller.weighs_owners();
        }
        if let (PolicyConfig::Rudder(scoring), Some(interval)) = (&mut self.policy, self.controller.interval()) {
            scoring.delta.get_or_insert(u32::try_from(interval).unwrap_or(u32::MAX));
        }
        self.check()
    }

    /// Where the controller is [`ControllerConfig::Auto`], puts in its place what does best with the policy in a job of so many tables; an engine does so
    /// when it starts, before it settles the rest.
    pub fn choose_controller(&mut self, tables: usize) {
        if self.controller == ControllerConfig::Auto {
            let analytic = self.counts_wants() && tables == 1;
            self.controller = if analytic { ControllerConfig::Analytic } else { ControllerConfig::Off };
        }
    }

    /// Whether the policy counts wants, which can be weighed and pulled by cohort then.
    fn counts_wants(&self) -> bool {
        matches!(self.policy, PolicyConfig::Lfu(_) | PolicyConfig::Window(_))
    }

    /// Refuses settings that contradict each other or leave their bounds.
    ///
    /// # Errors
    /// The first such setting, with its bounds.
    pub fn check(&self) -> Result<()> {
        let within = |name: &str, value: usize, least: usize, most: usize| {
            if (least..=most).contains(&value) {
                Ok(())
            } else {
                Err(Error::config(format!("{name} = {value} is outside {least}..={most}")))
            }
        };
        self.nic.as_deref().map(nic_name).transpose()?;
        within("tickets", self.tickets, 1, crate::buffer::WINDOW_MAX)?;
        within("announced_nodes", self.announced_nodes, 1, 1 << 32)?;
        within("requests", self.requests, 1, 1024)?;
        within("rows_buffers", self.rows_buffers as usize, 1, 1024)?;
        within("rows_max", self.rows_max, 1, 1 << 28)?;
        within("batch_rows", self.batch_rows, 1, 1 << 20)?;
        within("prefetch_batch_rows", self.prefetch_batch_rows, 1, self.batch_rows)?;
        within("prefetch_rows_in_flight", self.prefetch_rows_in_flight, self.prefetch_batch_rows, 1 << 24)?;
        within("attempts", usize::from(self.attempts), 1, 16)?;
        within("observations", self.observations, 1, 1 << 24)?;
        if let BufferSize::Halo(share) = self.buffer
            && !(0.0..=1.0).contains(&share)
        {
            return Err(Error::config(format!("buffer = {share} is not a share between 0 and 1")));
        }
        within("changes", self.changes.len(), 0, CHANGES_MAX)?;
        if let Some(pair) = self.changes.windows(2).find(|pair| pair[0] >= pair[1]) {
            return Err(Error::config(format!(
                "changes: {} comes after {}; name them in their order",
                pair[1], pair[0]
            )));
        }
        if self.backoff > Duration::from_secs(60) {
            return Err(Error::config(format!("backoff = {:?} is more than 60 s", self.backoff)));
        }
        for (name, value) in [
            ("gather_timeout", self.gather_timeout),
            ("transfer_timeout", self.transfer_timeout),
            ("collective_timeout", self.collective_timeout),
        ] {
            if value.is_zero() || value > Duration::from_secs(86_400) {
                return Err(Error::config(format!("{name} = {value:?} is outside 0 s to 24 h")));
            }
        }
        self.check_steering()
    }

    /// A controller whose decisions the policy cannot carry out would cost its time and change nothing.
    fn check_steering(&self) -> Result<()> {
        let (controller, policy) = (self.controller.name(), self.policy.name());
        if self.controller.decides_on_replacement() && !matches!(self.policy, PolicyConfig::Rudder(_)) {
            return Err(Error::config(format!(
                "controller {controller} decides when to replace, and policy {policy} never does so when told: choose policy rudder"
            )));
        }
        let counts = self.counts_wants();
        if self.controller.wants_cohorts() && !counts {
            return Err(Error::config(format!(
                "controller {controller} decides by cohorts, which policy {policy} does not count: choose policy lfu or window"
            )));
        }
        if self.controller.watches() {
            self.policy.check_follows()?;
        }
        if self.controller.weighs_owners() && !counts {
            return Err(Error::config(format!(
                "controller {controller} weighs wants, which policy {policy} does not count: choose policy lfu or window"
            )));
        }
        Ok(())
    }
}

/// The name, if it can be one.
fn nic_name(name: &str) -> Result<&str> {
    let first = name.starts_with(|first: char| first.is_ascii_alphanumeric());
    if first && name.chars().all(|c| c.is_ascii_alphanumeric() || "_-.:".contains(c)) {
        Ok(name)
    } else {
        Err(Error::config(format!("nic `{name}`: expected a device's name, such as `cxi0`, `mlx5_0` or `eth0`")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buffer::RudderConfig;

    #[test]
    fn buffer_sizes_read_as_people_write_them() {
        assert_eq!("0.10".parse::<BufferSize>().unwrap(), BufferSize::Halo(0.1));
        assert_eq!("25%".parse::<BufferSize>().unwrap(), BufferSize::Halo(0.25));
        assert_eq!("64MiB".parse::<BufferSize>().unwrap(), BufferSize::Bytes(64 << 20));
        for bad in ["", "2", "101%", "-1", "many", "3TiB"] {
            assert!(bad.parse::<BufferSize>().is_err(), "{bad}");
        }
    }

    #[test]
    fn variables_override_and_are_named_when_wrong() {
        let mut config = Config::default();
        let set = |name: &str| match name {
            "RUDDER_BUFFER" => Some("25%".into()),
            "RUDDER_GATHER_TIMEOUT" => Some("1.5".into()),
            "RUDDER_POLICY" => Some("window".into()),
            "RUDDER_NIC" => Some("cxi2".into()),
            "RUDDER_BIND" => Some("off".into()),
            "RUDDER_PINNED_BYTES_MAX" => Some("2GiB".into()),
            _ => None,
        };
        config.override_by(set).unwrap();
        assert_eq!(config.buffer, BufferSize::Halo(0.25));
        assert_eq!(config.gather_timeout, Duration::from_millis(1500));
        assert_eq!(config.policy.name(), "window");
        assert_eq!(
            (config.nic.as_deref(), config.bind, config.pinned_bytes_max),
            (Some("cxi2"), Bind::Off, Some(2 << 30))
        );
        for name in Config::VARIABLES {
            let variable = format!("RUDDER_{name}");
            let wrong = config.override_by(|asked| (asked == variable).then(|| "-".into()));
            // Any word may be a host's name, a file's, or a transport's, which the registry refuses later.
            assert_eq!(wrong.is_ok(), ["TRANSPORT", "HOST", "TRACE", "STATS_FILE"].contains(&name), "{variable}");
            assert!(wrong.err().is_none_or(|error| error.to_string().contains(&variable)));
        }
    }

    #[test]
    fn a_controller_that_nobody_names_weighs_wants_where_they_are_counted() {
        let chosen = |policy: &str, controller: &str, tables| {
            let (policy, controller) = (PolicyConfig::named(policy).unwrap(), controller.parse().unwrap());
            let mut config = Config { policy, controller, ..Config::default() };
            config.choose_controller(tables);
            config.settle().unwrap();
            config.controller.name()
        };
        assert_eq!(Config::default().controller.name(), "auto");
        assert_eq!(["lfu", "window"].map(|policy| chosen(policy, "auto", 1)), ["analytic"; 2]);
        assert_eq!(["lfu", "window"].map(|policy| chosen(policy, "auto", 2)), ["off"; 2]);
        assert_eq!(["off", "degree", "lru", "rudder"].map(|policy| chosen(policy, "auto", 1)), ["off"; 4]);
        assert_eq!(["off", "ghost"].map(|controller| chosen("window", controller, 1)), ["off", "ghost"]);
    }

    #[test]
    fn published_scores_suit_the_interval_of_replacements_where_nothing_else_is_said() {
        let settled = |policy: PolicyConfig, controller: &str| {
            let mut config = Config { policy, controller: controller.parse().unwrap(), ..Config::default() };
            config.settle().unwrap();
            config.policy
        };
        let rudder = |alpha, delta| PolicyConfig::Rudder(RudderConfig { alpha, delta, ..RudderConfig::default() });
        let (named, said) = (PolicyConfig::named("rudder:0.1").unwrap(), rudder(0.1, Some(3)));
        for controller in ["periodic:32", "random:1:32", "guard:periodic:32"] {
            assert_eq!(settled(named.clone(), controller), rudder(0.1, Some(32)), "{controller}");
            assert_eq!(settled(said.clone(), controller), said, "{controller}");
        }
        assert_eq!(settled(named, "off"), rudder(0.1, None));
        assert!(PolicyConfig::named("rudder:x").unwrap_err().to_string().contains("no share between 0 and 1"));
    }

    /// For each policy: whether the controller goes with it.
    fn goes_with(controller: &str) -> Vec<(&'static str, bool)> {
        let settled = |policy| {
            let (policy, controller) = (PolicyConfig::named(policy).unwrap(), controller.parse().unwrap());
            let mut config = Config { policy, controller, ..Config::default() };
            let outcome = config.settle();
            if let Err(cause) = &outcome {
                assert!(cause.to_string().contains("choose policy"), "{cause}");
            }
            assert_eq!(config.policy.tracks_cohorts(), outcome.is_ok() && config.controller.wants_cohorts());
            assert_eq!(config.policy.weighs_owners(), outcome.is_ok() && config.controller.weighs_owners());
            outcome.is_ok()
        };
        PolicyConfig::NAMES.into_iter().map(|policy| (policy, settled(policy))).collect()
    }

    #[test]
    fn a_controller_goes_with_policies_that_carry_its_decisions_out() {
        let only = |chosen: &[&str]| PolicyConfig::NAMES.map(|policy| (policy, chosen.contains(&policy))).to_vec();
        assert_eq!(goes_with("auto"), only(&PolicyConfig::NAMES));
        assert_eq!(goes_with("off"), only(&PolicyConfig::NAMES));
        assert_eq!(goes_with("fixed"), only(&PolicyConfig::NAMES));
        assert_eq!(goes_with("periodic:16"), only(&["rudder"]));
        assert_eq!(goes_with("random:1:16"), only(&["rudder"]));
        assert_eq!(goes_with("quotas:25"), only(&["lfu", "window"]));
        assert_eq!(goes_with("analytic"), only(&["lfu", "window"]));
        let follow = ["degree", "lru", "sieve", "s3fifo", "wtinylfu", "lfu", "rudder", "window"];
        for controller in ["ghost", "bandit:1"] {
            assert_eq!(goes_with(controller), only(&follow));
        }
        assert_eq!(goes_with("guard:ghost"), only(&follow));
        assert_eq!(goes_with("guard:periodic:8"), only(&["rudder"]));
        assert_eq!(goes_with("guard:analytic"), only(&["lfu", "window"]));
        #[cfg(feature = "llm")]
        {
            assert_eq!(goes_with("llm-replace"), only(&["rudder"]));
            assert_eq!(goes_with("llm-cohorts"), only(&["lfu", "window"]));
        }
    }

    #[test]
    fn bounds_are_named() {
        let config = Config { tickets: 65, ..Config::default() };
        assert!(config.check().unwrap_err().to_string().contains("tickets = 65 is outside 1..=64"));
        assert!(Config::default().check().is_ok());
        for (changes, cause) in
            [(vec![8, 8], "changes: 8 comes after 8"), (vec![9; 5000], "changes = 5000 is outside 0..=4096")]
        {
            let config = Config { changes, ..Config::default() };
            assert!(config.check().unwrap_err().to_string().contains(cause));
        }
        let config = Config { nic: Some("../eth0".into()), ..Config::default() };
        assert!(config.check().unwrap_err().to_string().contains("expected a device's name"));
    }
}
