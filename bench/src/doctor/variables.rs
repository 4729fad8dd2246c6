//! Variables of Slurm and of Slingshot, held against each other and against the machine: what is plainly wrong is told.
//!
//! What the variables mean is from sbatch(1), srun(1) and fi_cxi(7).

use super::facts::Facts;
use super::row::Row;
use rudder::placement::NicKind;

/// Rows of what the variables say.
pub fn judge(facts: &Facts) -> Vec<Row> {
    [launcher(facts), slingshot(facts), fabric(facts)].into_iter().flatten().collect()
}

fn value<'a>(facts: &'a Facts, name: &str) -> Option<&'a str> {
    facts.variables.get(name).map(String::as_str)
}

fn number(facts: &Facts, name: &str) -> Option<u32> {
    value(facts, name)?.trim().parse().ok()
}

fn launcher(facts: &Facts) -> Option<Row> {
    let what = "launcher";
    let place = match &facts.place {
        Err(cause) => {
            let remedy = "Start the ranks by srun or mpiexec, and pass its variables on unchanged.";
            return Some(Row::missing(what, cause, remedy));
        }
        Ok(place) => place,
    };
    let Some(place) = place else {
        let job = value(facts, "SLURM_JOB_ID")?;
        let remedy = "Start the ranks by srun: this process is in the job, and not in a step of it.";
        return Some(Row::better(what, format!("Slurm job {job}, no rank"), remedy));
    };
    let found = format!("{}, {} of {}", place.launcher, place.rank, place.size);
    let step = value(facts, "SLURM_STEP_ID").or(value(facts, "SLURM_STEPID"));
    if place.launcher == "Slurm" && place.size > 1 && step.is_none() {
        let remedy =
            "Start the ranks by srun: a batch script is run once, as rank 0, and waits for the others in vain.";
        return Some(Row::missing(what, format!("{found}, in the batch script"), remedy));
    }
    match number(facts, "SLURM_STEP_NUM_TASKS") {
        Some(tasks) if place.launcher == "Slurm" && tasks != place.size => {
            let found = format!("{found}, in a step of {tasks} tasks");
            Some(Row::missing(what, found, "Unset SLURM_NTASKS before srun, or give srun --ntasks."))
        }
        _ if place.launcher == "Slurm" && place.size == 1 && number(facts, "SLURM_JOB_NUM_NODES") > Some(1) => {
            let remedy = "Give srun --ntasks: one rank uses one node.";
            Some(Row::better(what, format!("{found} on several nodes"), remedy))
        }
        _ => Some(Row::ok(what, found)),
    }
}

fn list(text: &str) -> Vec<&str> {
    text.split(',').map(str::trim).filter(|item| !item.is_empty()).collect()
}

fn cxi_names(facts: &Facts) -> Vec<&str> {
    let nics = facts.topology.nics.iter().filter(|nic| nic.kind == NicKind::Cxi);
    nics.map(|nic| nic.name.as_str()).collect()
}

fn slingshot(facts: &Facts) -> Option<Row> {
    let what = "Slingshot";
    let here = cxi_names(facts);
    let (vnis, devices, services) =
        (value(facts, "SLINGSHOT_VNIS"), value(facts, "SLINGSHOT_DEVICES"), value(facts, "SLINGSHOT_SVC_IDS"));
    if here.is_empty() && vnis.is_none() && devices.is_none() {
        return None;
    }
    let wrong = |found: String, remedy: &str| Some(Row::missing(what, found, remedy));
    if let Some(text) = vnis
        && (list(text).is_empty() || list(text).iter().any(|vni| !matches!(vni.parse::<u32>(), Ok(1..=65_535))))
    {
        return wrong(
            format!("SLINGSHOT_VNIS={text}"),
            "Leave SLINGSHOT_VNIS as Slurm sets it: numbers from 1 to 65535.",
        );
    }
    if let Some(text) = devices {
        let devices = list(text);
        if let Some(absent) = devices.iter().find(|name| !here.contains(name)) {
            let found = format!("SLINGSHOT_DEVICES={text}, and {absent} is not on this host");
            return wrong(
                found,
                "Show the container /sys/class/cxi and /dev/cxi*, or leave the variable as Slurm sets it.",
            );
        }
        let services = services.map_or(0, |services| list(services).len());
        if services != devices.len() {
            let found =
                format!("{} devices in SLINGSHOT_DEVICES, {services} services in SLINGSHOT_SVC_IDS", devices.len());
            return wrong(found, "Leave both variables as Slurm sets them: one service a device.");
        }
    }
    let found = format!("{} devices, VNIs {}", here.len(), vnis.unwrap_or("not set"));
    // Without a VNI of the job's own, ranks use the default service, which many sites close.
    match (vnis, value(facts, "SLURM_JOB_ID")) {
        (None, Some(_)) => {
            let remedy = "Start by srun --network=job_vni (or single_node_vni), so that Slurm gives the job a VNI.";
            Some(Row::better(what, found, remedy))
        }
        _ => Some(Row::ok(what, found)),
    }
}

/// What a variable of libfabric's may say.
enum Form {
    Number,
    OneOf(&'static [&'static str]),
    Devices,
}

const FORMS: &[(&str, Form)] = &[
    ("FI_CXI_RX_MATCH_MODE", Form::OneOf(&["hardware", "software", "hybrid"])),
    ("FI_CXI_DEVICE_NAME", Form::Devices),
    ("FI_CXI_DEFAULT_CQ_SIZE", Form::Number),
    ("FI_CXI_DEFAULT_TX_SIZE", Form::Number),
    ("FI_CXI_RDZV_THRESHOLD", Form::Number),
    ("FI_CXI_RDZV_GET_MIN", Form::Number),
    ("FI_CXI_RDZV_EAGER_SIZE", Form::Number),
    ("FI_UNIVERSE_SIZE", Form::Number),
];

fn fabric(facts: &Facts) -> Option<Row> {
    let what = "libfabric variables";
    let set: Vec<&String> = facts.variables.keys().filter(|name| name.starts_with("FI_")).collect();
    if set.is_empty() {
        return None;
    }
    if value(facts, "FI_MR_CACHE_MONITOR") == Some("memhooks") {
        let remedy = "Unset it, or set it to disabled, kdreg2 or userfaultfd: the fabric transport refuses memhooks.";
        let row = if facts.settings.as_ref().is_ok_and(|settings| settings.transport == "fabric") {
            Row::missing
        } else {
            Row::better
        };
        return Some(row(what, "FI_MR_CACHE_MONITOR=memhooks".to_owned(), remedy));
    }
    let here = cxi_names(facts);
    for (name, form) in FORMS {
        let Some(text) = value(facts, name) else { continue };
        let expected = match form {
            Form::Number if text.parse::<u64>().is_err() => "a whole number".to_owned(),
            Form::OneOf(words) if !words.contains(&text) => words.join(", "),
            Form::Devices if list(text).iter().any(|device| !here.contains(device)) => {
                if here.is_empty() {
                    "no device, since there is none".to_owned()
                } else {
                    here.join(",")
                }
            }
            _ => continue,
        };
        let remedy = format!("Correct or unset {name}; expected here: {expected}.");
        return Some(Row::better(what, format!("{name}={text}"), remedy));
    }
    let names: Vec<&str> = set.iter().map(|name| name.as_str()).collect();
    Some(Row::ok(what, names.join(", ")))
}
