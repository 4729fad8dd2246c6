//! Goal: a machine gets the judgement that a person who knows it would give, and only what makes a job impossible makes it not ready. Method:
//! made-up machines, each a laptop with one thing changed.

use super::facts::{Adapter, Carrier, Facts, HugePages, ModelFile, Settings};
use super::judge::{judge, size};
use super::row::{Row, State};
use rudder::bootstrap::Environment;
use rudder::placement::{Nic, NicKind, Node, Topology};
use rudder::transport::Found;
use rudder::{Rank, transport};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

/// No NIC, no MPI, no model, no python3, plain features; and two cpus that do well enough.
fn laptop() -> Facts {
    let carrier = |name: &&str| Carrier {
        name: (*name).to_owned(),
        built: ["shm", "tcp"].contains(name),
        found: Ok(Vec::new()),
        opens: ["shm", "tcp"].contains(name).then_some(Ok(())),
    };
    Facts {
        variables: BTreeMap::new(),
        place: Ok(None),
        settings: Ok(Settings {
            transport: "auto".into(),
            listen: IpAddr::V4(Ipv4Addr::LOCALHOST),
            nic: None,
            asks_model: false,
        }),
        transports: transport::ALL.iter().map(carrier).collect(),
        topology: Topology { nodes: vec![Node { id: 0, cpus: vec![0, 1], distances: vec![10] }], nics: Vec::new() },
        pin_limit: Some(8 << 20),
        huge: HugePages { reserved_free_bytes: 0, shared: "advise".into() },
        dev_shm: Some((8 << 30, 8 << 30)),
        cpus: vec![0, 1],
        cpu_quota: None,
        mpiexec: None,
        model: ModelFile { path: Err("there is no such file".into()), bytes: 0, header: None },
        abi: 1,
        adapter: Adapter::NoPython,
    }
}

fn with(change: impl FnOnce(&mut Facts)) -> Vec<Row> {
    let mut facts = laptop();
    change(&mut facts);
    judge(&facts)
}

fn state_of(rows: &[Row], what: &str) -> State {
    rows.iter().find(|row| row.what == what).unwrap_or_else(|| panic!("no row {what}: {rows:#?}")).state
}

fn worst(rows: &[Row]) -> State {
    rows.iter().map(|row| row.state).max().unwrap()
}

fn carrier<'a>(facts: &'a mut Facts, name: &str) -> &'a mut Carrier {
    facts.transports.iter_mut().find(|carrier| carrier.name == name).unwrap()
}

fn ask(facts: &mut Facts, transport: &str) {
    facts.settings.as_mut().unwrap().transport = transport.into();
}

fn variables(facts: &mut Facts, list: &[(&str, &str)]) {
    facts.variables.extend(list.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
}

fn slingshot(facts: &mut Facts) {
    facts.topology.nics = ["cxi0", "cxi1"].map(|name| nic(name, NicKind::Cxi, true)).to_vec();
}

fn nic(name: &str, kind: NicKind, up: bool) -> Nic {
    let mut nic = Nic::named(name, kind);
    (nic.nodes, nic.up) = (vec![0], up);
    nic
}

#[test]
fn a_laptop_is_ready_and_told_only_of_its_model() {
    let rows = judge(&laptop());
    assert_eq!(worst(&rows), State::CouldBeBetter);
    let better: Vec<&str> = rows.iter().filter(|row| row.state != State::Ok).map(|row| row.what.as_str()).collect();
    assert_eq!(better, ["language model"]);
}

#[test]
fn whatever_is_not_ok_has_a_remedy_in_one_sentence_and_nothing_else_has() {
    let mut machines = vec![judge(&laptop())];
    machines.push(with(|facts| {
        facts.huge.shared = "never".into();
        facts.dev_shm = Some((64 << 20, 64 << 20));
        facts.cpus = vec![0];
        slingshot(facts);
        ask(facts, "verbs");
    }));
    for row in machines.iter().flatten() {
        assert_eq!(row.state == State::Ok, row.remedy.is_empty(), "{row:?}");
        assert!(row.remedy.is_empty() || row.remedy.ends_with('.'), "{row:?}");
        assert!(!row.found.is_empty(), "{row:?}");
    }
}

#[test]
fn transports_are_missed_where_asked_for_and_wanted_where_a_device_is() {
    let what = "transport verbs";
    assert_eq!(state_of(&judge(&laptop()), what), State::Ok);
    assert_eq!(state_of(&with(|facts| ask(facts, "verbs")), what), State::Missing);
    let rdma = |facts: &mut Facts| {
        facts.topology.nics = vec![nic("mlx5_0", NicKind::Infiniband, true)];
    };
    assert_eq!(state_of(&with(rdma), what), State::CouldBeBetter);
    let device = |unusable: Option<&str>| {
        let unusable = unusable.map(str::to_owned);
        with(|facts| {
            rdma(facts);
            let verbs = carrier(facts, "verbs");
            verbs.built = true;
            verbs.found = Ok(vec![Found { name: "mlx5_0".into(), detail: "port 1".into(), unusable }]);
        })
    };
    assert_eq!(state_of(&device(None), what), State::Ok);
    assert_eq!(state_of(&device(Some("no active port")), what), State::CouldBeBetter);
    let rows = with(|facts| carrier(facts, "tcp").opens = Some(Err("cannot listen".into())));
    assert_eq!(state_of(&rows, "transport tcp"), State::Missing);
    assert_eq!(state_of(&with(|facts| ask(facts, "pigeon")), "settings"), State::Missing);
}

#[test]
fn limits_are_held_against_what_the_machine_needs() {
    // Nothing pins memory on a laptop; an RDMA device does.
    assert_eq!(state_of(&judge(&laptop()), "locked memory"), State::Ok);
    assert_eq!(state_of(&with(slingshot), "locked memory"), State::CouldBeBetter);
    let unlimited = |facts: &mut Facts| {
        slingshot(facts);
        facts.pin_limit = None;
    };
    assert_eq!(state_of(&with(unlimited), "locked memory"), State::Ok);
    let container = with(|facts| facts.dev_shm = Some((64 << 20, 64 << 20)));
    assert_eq!(state_of(&container, "/dev/shm"), State::CouldBeBetter);
    for (setting, reserved, state) in [
        ("never", 0, State::CouldBeBetter),
        ("never", 1 << 30, State::Ok),
        ("advise", 0, State::Ok),
        ("", 0, State::CouldBeBetter),
    ] {
        let rows = with(|facts| facts.huge = HugePages { reserved_free_bytes: reserved, shared: setting.into() });
        assert_eq!(state_of(&rows, "huge pages"), state, "{setting} {reserved}");
    }
    assert_eq!(state_of(&with(|facts| facts.cpus = vec![0]), "cpus"), State::CouldBeBetter);
    assert_eq!(state_of(&with(|facts| facts.cpu_quota = Some(1.0)), "cpus"), State::CouldBeBetter);
    let dropped = with(|facts| variables(facts, &[("SLURM_CPUS_PER_TASK", "16")]));
    assert_eq!(state_of(&dropped, "cpus"), State::CouldBeBetter);
}

#[test]
fn a_nic_that_is_asked_for_and_absent_is_missing_and_one_that_is_far_could_be_nearer() {
    let rows = with(|facts| facts.settings.as_mut().unwrap().nic = Some("cxi7".into()));
    assert_eq!(state_of(&rows, "NIC"), State::Missing);
    let two_nodes = |cpus: Vec<u32>| {
        with(|facts| {
            slingshot(facts);
            let node = |id: u32, distances: &[u32]| Node { id, cpus: vec![id], distances: distances.to_vec() };
            facts.topology.nodes = vec![node(0, &[10, 21]), node(1, &[21, 10])];
            facts.cpus = cpus;
        })
    };
    assert_eq!(state_of(&two_nodes(vec![0]), "NIC cxi0"), State::Ok);
    assert_eq!(state_of(&two_nodes(vec![1]), "NIC cxi0"), State::CouldBeBetter);
    let down = |facts: &mut Facts| {
        facts.topology.nics = vec![nic("mlx5_0", NicKind::Infiniband, false)];
    };
    assert_eq!(state_of(&with(down), "NIC mlx5_0"), State::CouldBeBetter);
}

#[test]
fn what_slurm_says_is_held_against_itself() {
    let place = |size| Environment { rank: Rank(0), size, local_rank: None, launcher: "Slurm" };
    let judged = |place: Result<Option<Environment>, String>, list: &[(&str, &str)]| {
        state_of(
            &with(|facts| {
                facts.place = place;
                variables(facts, list);
            }),
            "launcher",
        )
    };
    assert!(judge(&laptop()).iter().all(|row| row.what != "launcher"), "nothing is said where nothing launched");
    assert_eq!(judged(Err("SLURM_PROCID is 2 but SLURM_NTASKS is 2".into()), &[]), State::Missing);
    assert_eq!(judged(Ok(Some(place(2))), &[]), State::Missing, "a batch script is no rank");
    assert_eq!(judged(Ok(Some(place(2))), &[("SLURM_STEP_ID", "0")]), State::Ok);
    assert_eq!(judged(Ok(Some(place(2))), &[("SLURM_STEP_ID", "0"), ("SLURM_STEP_NUM_TASKS", "4")]), State::Missing);
    assert_eq!(
        judged(Ok(Some(place(1))), &[("SLURM_STEP_ID", "0"), ("SLURM_JOB_NUM_NODES", "4")]),
        State::CouldBeBetter
    );
    assert_eq!(judged(Ok(None), &[("SLURM_JOB_ID", "7")]), State::CouldBeBetter);
    // Loopback is no address for other nodes.
    let rows = with(|facts| variables(facts, &[("SLURM_JOB_NUM_NODES", "2")]));
    assert_eq!(state_of(&rows, "settings"), State::CouldBeBetter);
}

#[test]
fn what_slingshot_says_is_held_against_the_devices() {
    let what = "Slingshot";
    let judged = |list: &[(&str, &str)]| {
        state_of(
            &with(|facts| {
                slingshot(facts);
                variables(facts, list);
            }),
            what,
        )
    };
    assert_eq!(judged(&[]), State::Ok);
    assert_eq!(judged(&[("SLURM_JOB_ID", "7")]), State::CouldBeBetter, "a job without a VNI");
    let whole = [("SLURM_JOB_ID", "7"), ("SLINGSHOT_VNIS", "1234"), ("SLINGSHOT_DEVICES", "cxi0,cxi1")];
    let of = |services| [&whole[..], &[("SLINGSHOT_SVC_IDS", services)]].concat();
    assert_eq!(judged(&of("5,6")), State::Ok);
    assert_eq!(judged(&of("5")), State::Missing);
    assert_eq!(judged(&[("SLINGSHOT_VNIS", "none")]), State::Missing);
    assert_eq!(judged(&[("SLINGSHOT_VNIS", "70000")]), State::Missing);
    assert_eq!(judged(&[("SLINGSHOT_DEVICES", "cxi9"), ("SLINGSHOT_SVC_IDS", "1")]), State::Missing);
}

#[test]
fn libfabrics_variables_are_read_as_it_reads_them() {
    let judged =
        |name: &str, value: &str| state_of(&with(|facts| variables(facts, &[(name, value)])), "libfabric variables");
    assert_eq!(judged("FI_CXI_RX_MATCH_MODE", "hybrid"), State::Ok);
    assert_eq!(judged("FI_CXI_RX_MATCH_MODE", "hard"), State::CouldBeBetter);
    assert_eq!(judged("FI_CXI_DEFAULT_CQ_SIZE", "131072"), State::Ok);
    assert_eq!(judged("FI_CXI_DEFAULT_CQ_SIZE", "128k"), State::CouldBeBetter);
    assert_eq!(judged("FI_CXI_DEVICE_NAME", "cxi0"), State::CouldBeBetter, "there is none");
    assert_eq!(judged("FI_MR_CACHE_MONITOR", "memhooks"), State::CouldBeBetter);
    let rows = with(|facts| {
        ask(facts, "fabric");
        variables(facts, &[("FI_MR_CACHE_MONITOR", "memhooks")]);
    });
    assert_eq!(state_of(&rows, "libfabric variables"), State::Missing, "the transport refuses it");
}

#[test]
fn launchers_of_mpi_are_told_apart() {
    let found = |said: &str| {
        let rows = with(|facts| facts.mpiexec = Some(("/usr/bin/mpiexec".into(), Ok(said.to_owned()))));
        rows.into_iter().find(|row| row.what == "MPI launcher").unwrap().found
    };
    assert!(found("mpiexec (OpenRTE) 4.1.4\n\nReport bugs to http://www.open-mpi.org/").contains("Open MPI"));
    let hydra = "HYDRA build details:\n    Version:                                 4.0.2\n";
    assert!(found(hydra).contains("MPICH (Hydra) 4.0.2"), "{}", found(hydra));
    assert!(found("Intel(R) MPI Library for Linux* OS, Version 2021.11").contains("Intel MPI"));
    assert!(found("palsrun 1.2").contains("palsrun 1.2"));
    let rows = with(|facts| carrier(facts, "mpi").built = true);
    assert_eq!(state_of(&rows, "MPI launcher"), State::CouldBeBetter);
}

#[test]
fn a_model_is_missing_only_to_who_asks_it() {
    let damaged = |facts: &mut Facts| {
        facts.model.path = Ok("model.gguf".into());
        facts.model.header = Some(Err("not a GGUF file".into()));
    };
    assert_eq!(state_of(&with(damaged), "language model"), State::CouldBeBetter);
    let asked = |facts: &mut Facts| {
        damaged(facts);
        facts.settings.as_mut().unwrap().asks_model = true;
    };
    assert_eq!(state_of(&with(asked), "language model"), State::Missing);
}

#[test]
fn an_adapter_and_its_library_must_speak_the_same_interface() {
    let judged = |library: Result<u32, String>, dgl: Option<&str>| {
        let dgl = dgl.map(str::to_owned);
        let installed = Adapter::Installed { version: "0.1.0".into(), wants: 1, library, dgl };
        state_of(&with(|facts| facts.adapter = installed), "DistDGL adapter")
    };
    assert_eq!(judged(Ok(1), Some("2.1.0")), State::Ok);
    assert_eq!(judged(Ok(1), None), State::CouldBeBetter);
    assert_eq!(judged(Ok(2), Some("2.1.0")), State::Missing);
    assert_eq!(judged(Err("it speaks version 2".into()), Some("2.1.0")), State::Missing);
    let broken = with(|facts| facts.adapter = Adapter::Broken("python3 ended with status 1".into()));
    assert_eq!(state_of(&broken, "DistDGL adapter"), State::CouldBeBetter);
}

#[test]
fn bytes_are_told_in_a_unit_that_fits() {
    assert_eq!([0, 1023, 64 << 20, 3 << 29].map(size), ["0 B", "1023 B", "64 MiB", "1.5 GiB"]);
}
