//! Random rows read by the `verbs` transport, beside `ib_read_bw` in the same run: two devices of one virtual machine, in turns.
//!
//! `make rates-verbs` runs it there. Both sides read by software emulation under an emulated processor: the ratio says what the transport
//! adds to bare reads, the rates say nothing of a network. `ib_read_bw` reads the same bytes over and over; rows are scattered over a table.

mod results;

use results::{Measured, Results};
use rudder::Rank;
use rudder::memory::{Access, Region};
use rudder::transport::verbs::{VerbsConfig, VerbsTransport};
use rudder::transport::{BatchId, Channel, Destination, RemoteRegion, RowBatch, Transport, TransportConfig, Wait};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const TABLE_BYTES: usize = 64 << 20;
const PAIRS: usize = 7;
const WARM_UP: usize = 1;
const SEED: u64 = 1;
const PATIENCE: Duration = Duration::from_secs(30);
/// Bytes of a row, and rows of a batch.
const SIZES: [(usize, usize); 4] = [(8, 10_000), (400, 10_000), (4096, 4000), (65536, 250)];

fn transport(device: &str) -> VerbsTransport {
    let mut job = TransportConfig::new(Rank(0), 2);
    job.verbs.device = Some(device.into());
    VerbsConfig::of(&job).and_then(VerbsTransport::new).expect("the device opens")
}

/// Random rows, ascending as batches are.
fn random_rows(count: usize, of: u64, state: &mut u64) -> Vec<u64> {
    let mut next = || {
        *state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (*state >> 33) % of
    };
    let mut rows: Vec<u64> = (0..count).map(|_| next()).collect();
    rows.sort_unstable();
    rows
}

/// Reads all rows and says how many a second.
fn read_rows(channel: &mut dyn Channel, region: RemoteRegion, landing: &Region, row_bytes: usize, rows: &[u64]) -> f64 {
    let places: Vec<u32> = (0..rows.len() as u32).collect();
    let destination = Destination { base: landing.memory().base(), stride: row_bytes, places: rows.len() };
    let (began, mut posted, mut ended, mut completions) = (Instant::now(), 0, 0, Vec::new());
    while ended < rows.len() {
        assert!(began.elapsed() < PATIENCE, "{ended} of {} rows after {PATIENCE:?}", rows.len());
        if posted < rows.len() {
            let (rows, places) = (&rows[posted..], &places[posted..]);
            let batch = RowBatch { id: BatchId(0), region, version: 0, row_bytes, rows, places, destination };
            // SAFETY: the landing outlives the batch, and nobody looks at it.
            posted += unsafe { channel.post(&batch) }.expect("the batch is good");
        }
        channel.poll(&mut completions, Wait::For(Duration::from_millis(100))).expect("the channel works");
        for completion in completions.drain(..) {
            completion.status.expect("the rows come");
            ended += completion.count as usize;
        }
    }
    rows.len() as f64 / began.elapsed().as_secs_f64()
}

/// `ib_read_bw` of so many bytes a read, as one side of the measurement or as the other.
fn start_ib_read_bw(device: &str, bytes: usize, reads: usize, peer: Option<&str>) -> Child {
    let root = std::env::var("RXE_TOOLS").expect("RXE_TOOLS is set in the virtual machine");
    let mut command = Command::new(format!("{root}/usr/bin/ib_read_bw"));
    command.env("LD_LIBRARY_PATH", format!("{root}/usr/lib/x86_64-linux-gnu:{root}/lib/x86_64-linux-gnu"));
    command.args(["-F", "-x", "1", "-d", device, "-s", &bytes.to_string(), "-n", &reads.to_string()]).args(peer);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("ib_read_bw starts")
}

/// Whether it waits for the other side, at port 18515.
fn is_listening() -> bool {
    ["/proc/net/tcp", "/proc/net/tcp6"].iter().any(|path| {
        let table = std::fs::read_to_string(path).unwrap_or_default();
        // Local address and state: 0A is to listen.
        table.lines().any(|line| {
            let mut fields = line.split_whitespace().skip(1);
            fields.next().is_some_and(|local| local.ends_with(":4853")) && fields.nth(1) == Some("0A")
        })
    })
}

/// Its reads a second.
fn ib_read_bw(bytes: usize, reads: usize) -> f64 {
    let mut owner = start_ib_read_bw("rxe0", bytes, reads, None);
    let began = Instant::now();
    while !is_listening() {
        assert!(began.elapsed() < PATIENCE, "ib_read_bw does not listen");
        std::thread::sleep(Duration::from_millis(20));
    }
    let reader = start_ib_read_bw("rxe1", bytes, reads, Some("127.0.0.1"));
    let output = reader.wait_with_output().expect("ib_read_bw ends");
    let _ = owner.kill();
    let _ = owner.wait();
    let text = String::from_utf8_lossy(&output.stdout);
    // The line of figures: bytes, reads, peak and average MiB/s, millions of reads a second.
    let figures =
        text.lines().map(|line| line.split_whitespace().map(str::parse::<f64>).collect::<Result<Vec<_>, _>>());
    let average = figures.flatten().find(|figures| figures.len() == 5).map(|figures| figures[3]);
    average.unwrap_or_else(|| panic!("ib_read_bw said: {text}")) * f64::from(1 << 20) / bytes as f64
}

fn main() {
    println!(
        "# Soft-RoCE under qemu's emulation; rows random, seed {SEED}; {PAIRS} pairs in turns after {WARM_UP}; medians"
    );
    let mut results = Results::new();
    let (owner, reader) = (transport("rxe0"), transport("rxe1"));
    reader.connect(&[owner.address(), reader.address()]).expect("the addresses are good");
    let table = owner.allocate(TABLE_BYTES, Access::RemoteRead).expect("memory is there");
    let region = reader.import(Rank(0), table.token()).expect("the token is good");
    let mut channel = reader.channel().expect("a channel is there");
    let mut state = SEED;
    for (row_bytes, batch) in SIZES {
        let landing = reader.allocate(row_bytes * batch, Access::Local).expect("memory is there");
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for pair in 0..WARM_UP + PAIRS {
            let rows = random_rows(batch, (TABLE_BYTES / row_bytes) as u64, &mut state);
            let mut mine = || read_rows(&mut *channel, region, &landing, row_bytes, &rows);
            // In turns, because only what ran at the same time can be compared.
            let (our, their) = if pair % 2 == 0 {
                let our = mine();
                (our, ib_read_bw(row_bytes, batch))
            } else {
                let their = ib_read_bw(row_bytes, batch);
                (mine(), their)
            };
            if pair >= WARM_UP {
                let us_at = |rows_per_s: f64| batch as f64 / rows_per_s * 1e6;
                ours.push(us_at(our));
                theirs.push(us_at(their));
            }
        }
        let (provider, owner) = ("Soft-RoCE in a virtual machine", "idle");
        let of = Measured { transport: "verbs", provider, owner, row_bytes, batch, baseline: "ib_read_bw" };
        results.add(of, &ours, &theirs);
    }
    results.write();
}
