//! What there is on this machine, as plain values: what is judged, and what the tests make up.

use rudder::bootstrap::Environment;
use rudder::placement::Topology;
use rudder::transport::Found;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

/// All that is looked at.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Environment variables of launchers, networks and rudder, by name.
    pub variables: BTreeMap<String, String>,
    /// What the launcher says of this process.
    pub place: Result<Option<Environment>, String>,
    /// How a job of this environment would be set.
    pub settings: Result<Settings, String>,
    /// Every transport, in the library's order.
    pub transports: Vec<Carrier>,
    /// NUMA nodes and NICs.
    pub topology: Topology,
    /// Bytes that the process may pin; `None` is no limit.
    pub pin_limit: Option<u64>,
    /// Huge pages.
    pub huge: HugePages,
    /// Size and free bytes of `/dev/shm`, where it is.
    pub dev_shm: Option<(u64, u64)>,
    /// Cpus that the process may run on.
    pub cpus: Vec<u32>,
    /// Processors that its control group grants in time, where it sets a limit.
    pub cpu_quota: Option<f64>,
    /// The MPI launcher in PATH and the first line of what it says of itself.
    pub mpiexec: Option<(PathBuf, Result<String, String>)>,
    /// The language model.
    pub model: ModelFile,
    /// The version of the library's C interface.
    pub abi: u32,
    /// The DistDGL adapter.
    pub adapter: Adapter,
}

/// What the configuration comes to, by its defaults and `RUDDER_*` variables.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The transport's name.
    pub transport: String,
    /// The interface that listeners bind to.
    pub listen: IpAddr,
    /// The NIC that is asked for.
    pub nic: Option<String>,
    /// Whether the controller asks a language model in this process.
    pub asks_model: bool,
}

/// A transport of this build, or of another.
#[derive(Clone, Debug)]
pub struct Carrier {
    /// Its name.
    pub name: String,
    /// Whether this build has it.
    pub built: bool,
    /// What it would run over; or why it cannot be asked.
    pub found: Result<Vec<Found>, String>,
    /// Whether it opens; `None` where it was not tried.
    pub opens: Option<Result<(), String>>,
}

/// Huge pages that the kernel has.
#[derive(Clone, Debug, Default)]
pub struct HugePages {
    /// Bytes that the administrator has set aside and nobody uses.
    pub reserved_free_bytes: u64,
    /// The kernel's setting for shared memory, such as `never` or `advise`; empty where it has none.
    pub shared: String,
}

/// The language model's file.
#[derive(Clone, Debug)]
pub struct ModelFile {
    /// Where it is; or why it is nowhere.
    pub path: Result<PathBuf, String>,
    /// Its size.
    pub bytes: u64,
    /// Whether its header is one that the library can load; `None` where there is no file.
    pub header: Option<Result<(), String>>,
}

/// The adapter in the `python3` of PATH.
#[derive(Clone, Debug)]
pub enum Adapter {
    /// There is no python3.
    NoPython,
    /// python3 has no rudder_dgl.
    None,
    /// It is installed.
    Installed {
        /// Its version.
        version: String,
        /// The version of the C interface that it wants.
        wants: u32,
        /// The version that the library it finds speaks; or why that does not load.
        library: Result<u32, String>,
        /// DGL's version, where it is installed.
        dgl: Option<String>,
    },
    /// python3 does not answer as it should.
    Broken(String),
}
