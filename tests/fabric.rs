//! Goal: the fabric transport keeps the contract over every kind of provider that can be had without a NIC.
//! Method: the suite of `common/suite.rs`, rows read and rows asked for, over libfabric's own software providers and over a fake library
//! that asks for all that the hardware's providers ask for.

mod common;
#[path = "common/fake_libfabric.rs"]
mod fake_libfabric;

use common::{Landing, PATIENCE, fill, get_all, opened};
use rudder::memory::Access;
use rudder::transport::fabric::{FabricConfig, FabricTransport, ReadMode};
use rudder::transport::{BatchId, Channel, RemoteRegion, RowBatch, Transport};
use rudder::{Rank, TransferError};
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

fn over(provider: &str, rma: ReadMode, ranks: u32) -> Vec<Arc<dyn Transport>> {
    opened("fabric", ranks, |config| {
        config.fabric.provider = Some(provider.into());
        config.fabric.rma = rma;
        config.fabric.connect_timeout = Duration::from_secs(2);
    })
}

fn over_fake(provider: &str, rma: ReadMode, ranks: u32) -> Vec<Arc<dyn Transport>> {
    opened("fabric", ranks, |config| {
        config.fabric.provider = Some(provider.into());
        config.fabric.rma = rma;
        config.fabric.library = Some(fake_libfabric::path().into());
    })
}

common::suite::transports! {
    rxm_reads: |ranks| crate::over("tcp;ofi_rxm", crate::ReadMode::On, ranks);
    rxm_asks: |ranks| crate::over("tcp;ofi_rxm", crate::ReadMode::Auto, ranks);
    net_reads: |ranks| crate::over("net", crate::ReadMode::On, ranks);
    net_asks: |ranks| crate::over("net", crate::ReadMode::Auto, ranks);
    fake_cxi_reads: |ranks| crate::over_fake("cxi", crate::ReadMode::Auto, ranks);
    fake_cxi_asks: |ranks| crate::over_fake("cxi", crate::ReadMode::Off, ranks);
    fake_raw_reads: |ranks| crate::over_fake("fakeraw", crate::ReadMode::Auto, ranks);
    fake_raw_asks: |ranks| crate::over_fake("fakeraw", crate::ReadMode::Off, ranks);
}

const OWNER: Rank = Rank(0);
const ASKER: Rank = Rank(1);
const ROWS: usize = 4000;
const ROW_BYTES: usize = 400;

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_hex(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hexadecimal")).collect()
}

fn two_ranks(provider: &str, rma: ReadMode) -> FabricTransport {
    let timeouts = FabricConfig {
        connect_timeout: Duration::from_secs(1),
        silence_timeout: Duration::from_secs(4),
        ..FabricConfig::default()
    };
    FabricTransport::new(FabricConfig { provider: Some(provider.into()), rma, ..timeouts })
        .expect("the transport opens")
}

/// The second process of `a_killed_owner_is_an_error_in_time`, which starts it by this name.
#[test]
#[ignore = "started by another test"]
fn owner_process() {
    let setting = |name| std::env::var(name).expect("started by another test");
    let transport = two_ranks(&setting("OWNER_PROVIDER"), setting("OWNER_RMA").parse().unwrap());
    let tell = |what: &[u8]| println!("\n@{}", to_hex(what));
    tell(&transport.address());
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).unwrap();
    transport.connect(&[transport.address(), from_hex(line.trim())]).unwrap();
    let region = transport.allocate(ROWS * ROW_BYTES, Access::RemoteRead).unwrap();
    fill(&region, OWNER, ROW_BYTES);
    tell(region.token());
    // Until the asker's process is gone, where this one is not killed before.
    std::io::stdin().read_line(&mut line).unwrap();
}

struct OwnerProcess {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl OwnerProcess {
    fn start(provider: &str, rma: ReadMode) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["owner_process", "--exact", "--ignored", "--nocapture"])
            .envs([("OWNER_PROVIDER", provider), ("OWNER_RMA", &rma.to_string())])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the test binary starts");
        let (input, output) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        Self { child, input, output }
    }

    fn told(&mut self) -> Vec<u8> {
        let line = self
            .output
            .by_ref()
            .lines()
            .map_while(Result::ok)
            .find_map(|line| Some(line.strip_prefix('@')?.to_owned()));
        from_hex(&line.expect("the owner's process works"))
    }

    /// The processor time that it has used so far, in clock ticks.
    fn ticks(&self) -> u64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).expect("the process is there");
        // The name, which is in parentheses, may hold spaces; user and system time are the 12th and 13th field behind it.
        let (_, fields) = stat.rsplit_once(')').expect("a name in parentheses");
        fields.split_whitespace().skip(11).take(2).map(|ticks| ticks.parse::<u64>().expect("a number")).sum()
    }
}

impl Drop for OwnerProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Gets all rows; the first error, and how long it took.
fn get(channel: &mut dyn Channel, region: RemoteRegion, landing: &Landing) -> (Result<(), TransferError>, Duration) {
    let rows: Vec<u64> = (0..ROWS as u64).collect();
    let places: Vec<u32> = (0..ROWS as u32).rev().collect();
    let (row_bytes, destination) = (landing.row_bytes, landing.destination());
    let batch = RowBatch { id: BatchId(0), region, version: 0, row_bytes, rows: &rows, places: &places, destination };
    let began = Instant::now();
    let result = get_all(channel, &batch).into_iter().collect();
    if result == Ok(()) {
        landing.assert_rows(region.peer, &rows, &places);
    }
    (result, began.elapsed())
}

/// An owner in a process of its own, this process's rank, and the owner's region.
fn meet(provider: &str, rma: ReadMode) -> (OwnerProcess, FabricTransport, RemoteRegion) {
    let mut owner = OwnerProcess::start(provider, rma);
    let transport = two_ranks(provider, rma);
    let addresses = [owner.told(), transport.address()];
    transport.connect(&addresses).unwrap();
    writeln!(owner.input, "{}", to_hex(&addresses[1])).unwrap();
    let region = transport.import(OWNER, &owner.told()).unwrap();
    (owner, transport, region)
}

#[test]
fn an_owner_that_has_served_sleeps() {
    for (provider, rma) in [("tcp;ofi_rxm", ReadMode::Off), ("net", ReadMode::Off)] {
        let (owner, transport, region) = meet(provider, rma);
        let landing = Landing::new(&transport, ROWS, ROW_BYTES, ROW_BYTES);
        let mut channel = transport.channel().unwrap();
        get(&mut *channel, region, &landing).0.expect("the owner lives");
        let before = owner.ticks();
        std::thread::sleep(Duration::from_secs(1));
        let spent = owner.ticks() - before;
        assert!(spent <= 10, "{provider}: a second of nothing cost the owner {spent} ticks of 10 ms");
    }
}

#[test]
fn a_killed_owner_is_an_error_in_time() {
    for (provider, rma) in
        [("tcp;ofi_rxm", ReadMode::On), ("tcp;ofi_rxm", ReadMode::Off), ("net", ReadMode::On), ("net", ReadMode::Off)]
    {
        let (mut owner, transport, region) = meet(provider, rma);
        let own = transport.allocate(ROWS * ROW_BYTES, Access::RemoteRead).unwrap();
        fill(&own, ASKER, ROW_BYTES);
        let own_region = transport.import(ASKER, own.token()).unwrap();
        let landing = Landing::new(&transport, ROWS, ROW_BYTES, ROW_BYTES + 8);
        let mut channel = transport.channel().unwrap();
        get(&mut *channel, region, &landing).0.expect("the owner lives");
        let killer = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(30));
            owner.child.kill().unwrap();
            owner
        });
        let until = Instant::now() + PATIENCE;
        let mut failures = 0;
        while failures < 2 {
            assert!(Instant::now() < until, "{provider}, rma {rma}: rows of a dead owner's still come");
            let (result, took) = get(&mut *channel, region, &landing);
            match result {
                Ok(()) => assert_eq!(failures, 0, "{provider}, rma {rma}: rows of a dead owner's came"),
                Err(TransferError::PeerGone(_) | TransferError::DeadlineExceeded(_)) => failures += 1,
                Err(other) => panic!("{provider}, rma {rma}: a dead owner reads as '{other}'"),
            }
            assert!(took < Duration::from_secs(15), "{provider}, rma {rma}: it took {took:?}");
        }
        drop(killer.join().unwrap());
        get(&mut *channel, own_region, &landing).0.expect("other owners are unharmed");
    }
}
