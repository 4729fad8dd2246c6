//! What the facts mean for a job: a row each, of what was found, whether it will do, and what to do where it will not.

use super::facts::{Adapter, Carrier, Facts};
use super::row::Row;
use super::variables;
use rudder::placement::{NicKind, Topology};

/// Less locked memory than this holds no feature table worth distributing.
const PIN_BYTES_LEAST: u64 = 1 << 30;
/// Containers give `/dev/shm` 64 MB; DistDGL's features, MPI's and libfabric's queues lie there.
const DEV_SHM_BYTES_LEAST: u64 = 1 << 30;

/// The rows, in the order in which one would cure them.
pub fn judge(facts: &Facts) -> Vec<Row> {
    let mut rows = vec![settings(facts)];
    rows.extend(facts.transports.iter().map(|carrier| transport(facts, carrier)));
    rows.extend(nics(facts));
    rows.extend([pinned(facts), huge_pages(facts), dev_shm(facts), cpus(facts)]);
    rows.extend(variables::judge(facts));
    rows.extend([mpi(facts), model(facts), Row::ok("C interface", format!("version {}", facts.abi)), adapter(facts)]);
    rows
}

/// Whether a job of this environment takes the transport by name.
fn asked(facts: &Facts, transport: &str) -> bool {
    facts.settings.as_ref().is_ok_and(|settings| settings.transport == transport)
}

fn has(topology: &Topology, kinds: &[NicKind]) -> bool {
    topology.nics.iter().any(|nic| nic.up && kinds.contains(&nic.kind))
}

fn settings(facts: &Facts) -> Row {
    let what = "settings";
    let settings = match &facts.settings {
        Ok(settings) => settings,
        Err(cause) => return Row::missing(what, cause, "Correct or unset the variable that is named."),
    };
    let known = settings.transport == "auto" || facts.transports.iter().any(|known| known.name == settings.transport);
    let found = format!("transport {}, listening on {}", settings.transport, settings.listen);
    if !known {
        return Row::missing(what, found, "No transport has that name: set RUDDER_TRANSPORT to one of the rows below.");
    }
    let nodes = facts.variables.get("SLURM_JOB_NUM_NODES").and_then(|nodes| nodes.parse::<u32>().ok()).unwrap_or(1);
    if nodes > 1 && settings.listen.is_loopback() {
        let remedy = "Name the interface that other nodes reach, by RUDDER_LISTEN or --listen.";
        return Row::better(what, format!("{found}, which only this node of {nodes} reaches"), remedy);
    }
    Row::ok(what, found)
}

fn transport(facts: &Facts, carrier: &Carrier) -> Row {
    let Carrier { name, built, found, opens } = carrier;
    let what = format!("transport {name}");
    let asked = asked(facts, name);
    // Nobody misses what no job asks for and no device calls for.
    let wanted = |kinds: &[NicKind]| has(&facts.topology, kinds);
    let worth = match &**name {
        "verbs" => wanted(&[NicKind::Infiniband]),
        "fabric" => wanted(&[NicKind::Cxi, NicKind::Infiniband]),
        _ => false,
    };
    let failing = |found: String, remedy: &str| match (asked, worth) {
        (true, _) => Row::missing(&what, found, remedy),
        (false, true) => Row::better(&what, found, remedy),
        (false, false) => Row::ok(&what, found),
    };
    if !built {
        let (found, remedy) = match &**name {
            "mpi" => ("not built in", "Build with --features mpi and the MPICC of the job's MPI."),
            "fabric" => ("not built in", "Build with --features rudder/fabric, where libfabric's headers are."),
            _ => ("not built in", "Build with --features rudder/verbs, as `make build` does."),
        };
        return failing(found.to_owned(), remedy);
    }
    let remedy = match &**name {
        "verbs" => "Install rdma-core and the device's driver, and bring a port up; or use another transport.",
        "fabric" => "Install libfabric with a provider for this network, or name it in RUDDER_FABRIC_LIBRARY.",
        "tcp" => "Set RUDDER_LISTEN to an address of this host.",
        _ => "Allow memory files and Unix sockets to this container.",
    };
    if let Some(Err(cause)) = opens {
        // These two are what every job falls back on.
        return match &**name {
            "shm" | "tcp" => Row::missing(&what, cause, remedy),
            _ => failing(cause.clone(), remedy),
        };
    }
    match found {
        Err(cause) => failing(cause.clone(), remedy),
        Ok(devices) if devices.is_empty() && ["verbs", "fabric"].contains(&&**name) => {
            failing("built in; no device".to_owned(), remedy)
        }
        Ok(devices) => {
            let words = |device: &rudder::transport::Found| match &device.unusable {
                Some(why) => format!("{}: {why}", device.name),
                None => format!("{}: {}", device.name, device.detail),
            };
            let listed: Vec<String> = devices.iter().map(words).collect();
            let listed = if listed.is_empty() { "built in".to_owned() } else { listed.join("; ") };
            match !devices.is_empty() && devices.iter().all(|device| device.unusable.is_some()) {
                true => failing(listed, remedy),
                false => Row::ok(&what, listed),
            }
        }
    }
}

fn nics(facts: &Facts) -> Vec<Row> {
    let topology = &facts.topology;
    let mut rows: Vec<Row> = Vec::new();
    if let Ok(settings) = &facts.settings
        && let Some(name) = &settings.nic
        && !topology.nics.iter().any(|nic| nic.name == *name)
    {
        let found = format!("RUDDER_NIC={name}, which is not on this host");
        rows.push(Row::missing("NIC", found, "Set RUDDER_NIC to a NIC of the rows below, or unset it."));
    }
    if topology.nics.is_empty() {
        rows.push(Row::ok("NIC", "none; one host is enough for shm, and for tcp over loopback"));
    }
    for nic in &topology.nics {
        let what = format!("NIC {}", nic.name);
        let kind = match nic.kind {
            NicKind::Cxi => "Slingshot",
            NicKind::Infiniband => "RDMA",
            NicKind::Net => "network interface",
        };
        let rate = nic.link_mbit.map_or("rate unknown".to_owned(), |mbit| format!("{} Gbit/s", f64::from(mbit) / 1e3));
        let distance = topology.distance(nic, &facts.cpus);
        let nodes: Vec<String> = nic.nodes.iter().map(u32::to_string).collect();
        let place = match nodes.is_empty() {
            true => "NUMA node unknown".to_owned(),
            false => format!("NUMA node {} at distance {distance}", nodes.join(",")),
        };
        let found = format!("{kind}, {}, {rate}, {place}", if nic.up { "up" } else { "down" });
        rows.push(match nic.kind {
            NicKind::Net => Row::ok(&what, found),
            _ if !nic.up => Row::better(&what, found, "Bring its port up, or leave it be if another NIC is used."),
            _ if topology.nodes.len() > 1 && distance > 10 && !nearer(facts, nic.kind, distance) => Row::better(
                &what,
                found,
                "Bind ranks to its NUMA node: srun --cpu-bind=map_ldom, mpirun --map-by numa.",
            ),
            _ => Row::ok(&what, found),
        });
    }
    rows
}

/// Whether another NIC of the kind is nearer, so that this one is not what the rank would take.
fn nearer(facts: &Facts, kind: NicKind, distance: u32) -> bool {
    let topology = &facts.topology;
    topology.nics.iter().any(|nic| nic.up && nic.kind == kind && topology.distance(nic, &facts.cpus) < distance)
}

fn pinned(facts: &Facts) -> Row {
    let what = "locked memory";
    let Some(bytes) = facts.pin_limit else { return Row::ok(what, "no limit") };
    let found = format!("limit of {}", size(bytes));
    let remedy = "Run `ulimit -l unlimited` before the start; under Slurm set LimitMEMLOCK=infinity for slurmd.";
    let needed =
        asked(facts, "verbs") || asked(facts, "fabric") || has(&facts.topology, &[NicKind::Cxi, NicKind::Infiniband]);
    match bytes < PIN_BYTES_LEAST && needed {
        true => Row::better(what, found, remedy),
        false => Row::ok(what, found),
    }
}

fn huge_pages(facts: &Facts) -> Row {
    let what = "huge pages";
    let (free, shared) = (facts.huge.reserved_free_bytes, &*facts.huge.shared);
    let shared = if shared.is_empty() { "not in this kernel" } else { shared };
    let found = format!("{} reserved and free, transparent for shared memory: {shared}", size(free));
    if free > 0 || !["never", "deny", "not in this kernel"].contains(&shared) {
        return Row::ok(what, found);
    }
    let remedy =
        "As root, write 'advise' to /sys/kernel/mm/transparent_hugepage/shmem_enabled, or set vm.nr_hugepages.";
    Row::better(what, found, remedy)
}

fn dev_shm(facts: &Facts) -> Row {
    let what = "/dev/shm";
    let Some((bytes, free)) = facts.dev_shm else {
        let remedy = "Mount it for DistDGL, MPI and libfabric; rudder's own shm transport does not need it.";
        return Row::better(what, "not there", remedy);
    };
    let found = format!("{}, {} free", size(bytes), size(free));
    if free >= DEV_SHM_BYTES_LEAST {
        return Row::ok(what, found);
    }
    let remedy =
        "Give the container more (docker run --shm-size=16g) where DistDGL or MPI runs; rudder itself needs none.";
    Row::better(what, found, remedy)
}

fn cpus(facts: &Facts) -> Row {
    let what = "cpus";
    let online: usize = facts.topology.nodes.iter().map(|node| node.cpus.len()).sum();
    let mut found = format!("may run on {} of {}", facts.cpus.len(), online.max(facts.cpus.len()));
    if let Some(quota) = facts.cpu_quota {
        found += &format!(", {quota:.1} of them at a time");
    }
    let granted = facts.cpu_quota.unwrap_or(f64::INFINITY).min(facts.cpus.len() as f64);
    let asked = facts.variables.get("SLURM_CPUS_PER_TASK").and_then(|cpus| cpus.parse::<usize>().ok());
    match asked {
        Some(asked) if asked > facts.cpus.len() => {
            let found = format!("{found}, though Slurm's job asks for {asked} a task");
            Row::better(what, found, "Pass --cpus-per-task to srun as well: it is not inherited from sbatch.")
        }
        _ if granted < 2.0 => {
            Row::better(what, found, "Give each rank two cpus: one computes while the other moves rows.")
        }
        _ => Row::ok(what, found),
    }
}

fn mpi(facts: &Facts) -> Row {
    let what = "MPI launcher";
    let built = facts.transports.iter().any(|carrier| carrier.name == "mpi" && carrier.built);
    match &facts.mpiexec {
        Some((path, Ok(said))) => Row::ok(what, format!("{}: {}", path.display(), implementation(said))),
        Some((path, Err(cause))) => {
            Row::better(what, format!("{}: {cause}", path.display()), "Repair or reload the MPI of this environment.")
        }
        None if built => {
            Row::better(what, "no mpiexec in PATH", "Load the MPI that this build was made for, or use srun.")
        }
        None => Row::ok(what, "no mpiexec in PATH, and none is needed"),
    }
}

/// Whose launcher it is, by what it says of its version.
fn implementation(said: &str) -> String {
    let first = said.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or("says nothing of itself");
    let version = said.lines().find_map(|line| line.trim().strip_prefix("Version:")).map(str::trim);
    let name = match said {
        said if said.contains("OpenRTE") || said.contains("Open MPI") => "Open MPI",
        said if said.contains("Intel(R) MPI") => "Intel MPI",
        said if said.contains("HYDRA") => "MPICH (Hydra)",
        _ => return first.to_owned(),
    };
    match version {
        Some(version) => format!("{name} {version}"),
        None => format!("{name} ({first})"),
    }
}

fn model(facts: &Facts) -> Row {
    let what = "language model";
    let asked = facts.settings.as_ref().is_ok_and(|settings| settings.asks_model);
    let failing = |found: String, remedy: &str| match asked {
        true => Row::missing(what, found, remedy),
        false => Row::better(what, found, remedy),
    };
    let remedy = "Run `make model`, or name a GGUF file in RUDDER_MODEL; only the controllers llm-* need it.";
    match (&facts.model.path, &facts.model.header) {
        (Err(cause), _) => failing(cause.clone(), remedy),
        (Ok(_), Some(Err(cause))) => failing(cause.clone(), remedy),
        (Ok(path), _) => Row::ok(what, format!("{}, {}", path.display(), size(facts.model.bytes))),
    }
}

fn adapter(facts: &Facts) -> Row {
    let what = "DistDGL adapter";
    match &facts.adapter {
        Adapter::NoPython => Row::ok(what, "no python3 in PATH"),
        Adapter::None => Row::ok(what, "rudder_dgl is not installed for the python3 in PATH"),
        Adapter::Broken(cause) => Row::better(what, cause, "Repair the python3 in PATH, or put another before it."),
        Adapter::Installed { version, wants, library, dgl } => {
            let beside = dgl.as_ref().map_or("no dgl".to_owned(), |dgl| format!("dgl {dgl}"));
            let found = format!("rudder_dgl {version} beside {beside}, wants version {wants} of the C interface");
            match library {
                Err(cause) => {
                    Row::missing(what, format!("{found}: {cause}"), "Install the wheel of this build: `make wheel`.")
                }
                Ok(_) if dgl.is_none() => {
                    Row::better(what, found, "Install DGL for this python3; docs/dgl.md says which.")
                }
                Ok(speaks) if speaks != wants => {
                    let found = format!("{found}, its library speaks {speaks}");
                    Row::missing(what, found, "Install the wheel of this build: `make wheel`.")
                }
                Ok(_) => Row::ok(what, found),
            }
        }
    }
}

/// Bytes in the largest unit that leaves a whole number or one decimal.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let unit = (0..UNITS.len()).rev().find(|&unit| bytes >> (10 * unit) > 0).unwrap_or(0);
    let value = bytes as f64 / (1u64 << (10 * unit)) as f64;
    if value.fract() < 0.05 { format!("{value:.0} {}", UNITS[unit]) } else { format!("{value:.1} {}", UNITS[unit]) }
}
