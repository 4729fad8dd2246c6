//! Reads the machine. Whatever may hang - a provider, a program - is asked on a thread or in a process of its own, with a deadline.

use super::facts::{Adapter, Carrier, Facts, HugePages, ModelFile, Settings};
use super::{DoctorArgs, program};
use rudder::bootstrap;
use rudder::controller::llm::{check_model_file, default_model_path};
use rudder::placement::{Topology, allowed_cpus};
use rudder::transport::{self, TransportConfig};
use rudder::{Config, Rank};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::mpsc::sync_channel;
use std::time::Duration;

/// Time for a transport to say what it finds, and for a program to answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Variables that are looked at begin so.
const PREFIXES: [&str; 6] = ["SLURM_", "SLINGSHOT_", "FI_", "RUDDER_", "PMI_", "OMPI_COMM_WORLD_"];

/// All facts; the job's transport is tried too, beside those that every machine can open.
pub fn facts(args: &DoctorArgs) -> Facts {
    let settings = settings(args);
    Facts {
        variables: variables(),
        place: bootstrap::environment().map_err(|cause| cause.to_string()),
        transports: transport::ALL.iter().map(|name| carrier(name, &settings)).collect(),
        topology: Topology::read(),
        pin_limit: rudder::memory::pin_limit(),
        huge: huge_pages(),
        dev_shm: dev_shm(),
        cpus: allowed_cpus(),
        cpu_quota: cpu_quota(),
        mpiexec: mpiexec(),
        model: model(),
        abi: rudder::RUDDER_ABI_VERSION,
        adapter: adapter(),
        settings,
    }
}

fn variables() -> BTreeMap<String, String> {
    let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
        Some((name.into_string().ok()?, value.to_string_lossy().into_owned()))
    };
    let wanted = |(name, _): &(String, String)| PREFIXES.iter().any(|prefix| name.starts_with(prefix));
    std::env::vars_os().filter_map(text).filter(wanted).collect()
}

fn settings(args: &DoctorArgs) -> Result<Settings, String> {
    let mut config = Config { listen: args.listen, ..Config::default() };
    if let Some(name) = &args.transport {
        config.transport.clone_from(name);
    }
    config.override_by(|name| std::env::var(name).ok()).map_err(|cause| cause.to_string())?;
    config.settle().map_err(|cause| cause.to_string())?;
    Ok(Settings {
        transport: config.transport,
        listen: config.listen,
        nic: config.nic,
        asks_model: config.controller.name().starts_with("llm"),
    })
}

fn carrier(name: &'static str, settings: &Result<Settings, String>) -> Carrier {
    let built = transport::names().any(|known| known == name);
    let mut config = TransportConfig::new(Rank(0), 1);
    if let Ok(settings) = settings {
        config.listen = settings.listen;
    }
    let asked = settings.as_ref().is_ok_and(|settings| settings.transport == name);
    // MPI is started by a launcher, once a process.
    let tried = built && (asked || ["shm", "tcp"].contains(&name)) && name != "mpi";
    let found = match built {
        true => answer({
            let config = config.clone();
            move || transport::find(name, &config).map_err(|cause| cause.to_string())
        }),
        false => Ok(Vec::new()),
    };
    let open = move || transport::open(name, &config).map(drop).map_err(|cause| cause.to_string());
    Carrier { name: name.to_owned(), built, found, opens: tried.then(|| answer(open)) }
}

/// What a function of a thread of its own answers in time; one that does not is left behind.
fn answer<T: Send + 'static>(ask: impl FnOnce() -> Result<T, String> + Send + 'static) -> Result<T, String> {
    let (sender, receiver) = sync_channel(1);
    let started = std::thread::Builder::new().name("doctor".into()).spawn(move || {
        let _ = sender.send(ask());
    });
    started.map_err(|cause| format!("no thread to ask on: {cause}"))?;
    receiver.recv_timeout(PATIENCE).unwrap_or_else(|_| Err(format!("no answer within {PATIENCE:?}")))
}

fn text_of(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

fn huge_pages() -> HugePages {
    let meminfo = text_of("/proc/meminfo");
    let field = |name: &str| {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse::<u64>().ok()
    };
    let (free, kib) = (field("HugePages_Free:").unwrap_or(0), field("Hugepagesize:").unwrap_or(0));
    let setting = text_of("/sys/kernel/mm/transparent_hugepage/shmem_enabled");
    let chosen = setting.split(['[', ']']).nth(1).unwrap_or_default();
    HugePages { reserved_free_bytes: free * kib * 1024, shared: chosen.to_owned() }
}

fn dev_shm() -> Option<(u64, u64)> {
    let stat = rustix::fs::statvfs("/dev/shm").ok()?;
    Some((stat.f_blocks * stat.f_frsize, stat.f_bavail * stat.f_frsize))
}

/// Of version 2 control groups, that of this process's namespace: `200000 100000` is two processors, `max` is no limit.
fn cpu_quota() -> Option<f64> {
    let text = text_of("/sys/fs/cgroup/cpu.max");
    let mut numbers = text.split_whitespace().map(str::parse::<f64>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(quota)), Some(Ok(period))) if period > 0.0 => Some(quota / period),
        _ => None,
    }
}

fn mpiexec() -> Option<(std::path::PathBuf, Result<String, String>)> {
    let path = program::find("mpiexec")?;
    let said = program::output(&path, &["--version"], PATIENCE);
    Some((path, said))
}

fn model() -> ModelFile {
    let path = default_model_path().map_err(|cause| cause.to_string());
    let bytes = |path: &Path| std::fs::metadata(path).map_or(0, |meta| meta.len());
    match path {
        Ok(path) => ModelFile {
            bytes: bytes(&path),
            header: Some(check_model_file(&path).map_err(|cause| cause.to_string())),
            path: Ok(path),
        },
        Err(cause) => ModelFile { path: Err(cause), bytes: 0, header: None },
    }
}

/// Asks without importing the package, which would bring DGL and PyTorch: its binding to the library stands alone.
const ASK_ADAPTER: &str = r#"
import importlib.metadata as metadata, importlib.util as util, json, pathlib
def version(name):
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
spec = util.find_spec("rudder_dgl")
if spec is None:
    print(json.dumps(None))
else:
    path = pathlib.Path(spec.origin).with_name("_native.py")
    binding = util.spec_from_file_location("rudder_binding", path)
    native = util.module_from_spec(binding)
    binding.loader.exec_module(native)
    try:
        library, error = native.library().rudder_abi_version(), ""
    except native.RudderError as cause:
        library, error = None, str(cause)
    print(json.dumps({"version": version("rudder_dgl") or version("rudder-dgl") or "unknown", "wants": native.ABI_VERSION,
                      "library": library, "error": error, "dgl": version("dgl")}))
"#;

/// What the lines above print.
#[derive(Deserialize)]
struct Answer {
    version: String,
    wants: u32,
    library: Option<u32>,
    error: String,
    dgl: Option<String>,
}

fn adapter() -> Adapter {
    let Some(python) = program::find("python3") else { return Adapter::NoPython };
    let said = match program::output(&python, &["-c", ASK_ADAPTER], PATIENCE) {
        Ok(said) => said,
        Err(cause) => return Adapter::Broken(cause),
    };
    let last = said.lines().last().unwrap_or_default();
    match serde_json::from_str::<Option<Answer>>(last) {
        Ok(None) => Adapter::None,
        Ok(Some(Answer { version, wants, library, error, dgl })) => {
            Adapter::Installed { version, wants, library: library.ok_or(error), dgl }
        }
        Err(_) => Adapter::Broken(format!("{} answers {last:?}", python.display())),
    }
}
