//! `rudder get`: how fast random rows come from another process, beside a baseline in the same run.
//!
//! The owner is this program once more, in a process of its own; the two speak over the owner's standard input and output until the
//! transport is up. Every measurement is a pair, ours and the baseline one right after the other and in alternating order, because on a
//! shared machine only what ran at the same time can be compared. The ratio is taken pair by pair.
//! Baselines: for `shm` a plain memcpy gather of the same rows within one process, for all others a plain stream of the same number of
//! bytes between the same two processes, in blocking reads and writes of large pieces.

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use rand::{Rng, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;
use rudder::Rank;
use rudder::memory::{Access, Memory, Region};
use rudder::transport::{
    self, BatchId, Channel, Destination, RemoteRegion, RowBatch, Transport, TransportConfig, Wait,
};
use serde::Serialize;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tabled::{Table, Tabled};

/// A batch that takes longer is a failure, not a slow sample.
const BATCH_TIMEOUT: Duration = Duration::from_secs(30);
/// Larger batches are cut to this, so that wide rows do not turn a sweep into an hour.
const BATCH_BYTES_MAX: usize = 64 << 20;
/// Pieces that the plain stream is written in: larger ones measured no faster.
const STREAM_PIECE_BYTES: usize = 1 << 20;
const OWNER: Rank = Rank(0);
const ASKER: Rank = Rank(1);

/// Measures gets of random rows from another process.
#[derive(Args, Clone, Debug)]
pub struct GetArgs {
    /// Transports to measure.
    #[arg(long = "transport", value_delimiter = ',', default_value = "shm,tcp")]
    transports: Vec<String>,
    /// Bytes of a row.
    #[arg(long, value_delimiter = ',', default_value = "8,400,512,2408,4096,65536")]
    row_bytes: Vec<usize>,
    /// Rows of a batch (cut to 64 MiB).
    #[arg(long = "batch", value_delimiter = ',', default_value = "10000,100")]
    batches: Vec<usize>,
    /// Size of the owner's table in MiB.
    #[arg(long, default_value_t = 256)]
    table_mib: usize,
    /// Pairs of measurements, at least 30.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(30..=100_000))]
    pairs: u32,
    /// Pairs that are run first and not counted.
    #[arg(long, default_value_t = 10)]
    warm_up: u32,
    /// Seed of the row numbers.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Where to write the results as CSV.
    #[arg(long)]
    csv: Option<PathBuf>,
    /// Where to write the results as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Be the owner of this transport: what the program starts in its second process.
    #[arg(long, hide = true)]
    serve: Option<String>,
}

/// One line of the results.
#[derive(Clone, Debug, Serialize, Tabled)]
struct Line {
    transport: String,
    provider: String,
    row_bytes: usize,
    batch: usize,
    #[tabled(display = "millions")]
    rows_per_s_p50: f64,
    #[tabled(display = "three_digits")]
    gb_per_s_p50: f64,
    #[tabled(display = "three_digits")]
    us_p5: f64,
    #[tabled(display = "three_digits")]
    us_p50: f64,
    #[tabled(display = "three_digits")]
    us_p99: f64,
    baseline: String,
    #[tabled(display = "three_digits")]
    baseline_us_p50: f64,
    #[tabled(display = "three_digits")]
    ratio: f64,
    #[tabled(display = "three_digits")]
    ratio_low95: f64,
}

fn millions(value: &f64) -> String {
    format!("{:.2} M", value / 1e6)
}

fn three_digits(value: &f64) -> String {
    if *value < 10.0 { format!("{value:.3}") } else { format!("{value:.1}") }
}

/// Where and with what the numbers were taken.
#[derive(Clone, Debug, Serialize)]
struct Setting {
    machine: String,
    commit: String,
    seed: u64,
    pairs: u32,
    warm_up: u32,
    table_mib: usize,
}

/// Runs the sweep, prints a table and writes the files asked for.
///
/// # Errors
/// A transport cannot be opened, the owner's process dies, or a row has wrong bytes.
pub fn run(args: &GetArgs) -> Result<()> {
    if let Some(name) = &args.serve {
        return serve(name);
    }
    ensure!(args.table_mib > 0 && !args.row_bytes.contains(&0) && !args.batches.contains(&0), "sizes must not be 0");
    let setting = Setting {
        machine: machine(),
        commit: commit(),
        seed: args.seed,
        pairs: args.pairs,
        warm_up: args.warm_up,
        table_mib: args.table_mib,
    };
    println!("machine {}; commit {}; seed {}", setting.machine, setting.commit, setting.seed);
    println!("{} pairs after {} of warm-up, table of {} MiB", args.pairs, args.warm_up, args.table_mib);
    let mut lines = Vec::new();
    for name in &args.transports {
        let mut asker = Asker::start(name)?;
        for &row_bytes in &args.row_bytes {
            let table = asker.table(args, row_bytes)?;
            for &batch in &args.batches {
                lines.push(asker.measure(args, &table, batch)?);
            }
        }
    }
    println!("{}", Table::new(&lines));
    write_files(args, &setting, &lines)
}

fn write_files(args: &GetArgs, setting: &Setting, lines: &[Line]) -> Result<()> {
    if let Some(path) = &args.csv {
        let mut csv = String::from(
            "transport,provider,row_bytes,batch,rows_per_s_p50,gb_per_s_p50,us_p5,us_p50,us_p99,baseline,baseline_us_p50,ratio,ratio_low95\n",
        );
        for l in lines {
            writeln!(
                csv,
                "{},{},{},{},{:.0},{:.4},{:.2},{:.2},{:.2},{},{:.2},{:.4},{:.4}",
                l.transport,
                l.provider,
                l.row_bytes,
                l.batch,
                l.rows_per_s_p50,
                l.gb_per_s_p50,
                l.us_p5,
                l.us_p50,
                l.us_p99,
                l.baseline,
                l.baseline_us_p50,
                l.ratio,
                l.ratio_low95
            )?;
        }
        std::fs::write(path, csv).with_context(|| format!("cannot write {}", path.display()))?;
    }
    if let Some(path) = &args.json {
        let json = serde_json::json!({ "setting": setting, "results": lines });
        std::fs::write(path, serde_json::to_vec_pretty(&json)?)
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

fn machine() -> String {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name")).and_then(|line| line.split_once(':'));
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!("{}, {cores} cores, Linux {}", model.map_or("unknown CPU", |(_, name)| name.trim()), kernel.trim())
}

fn commit() -> String {
    let git = Command::new("git").args(["describe", "--always", "--dirty"]).stderr(Stdio::null()).output();
    let known = git.ok().filter(|git| git.status.success()).and_then(|git| String::from_utf8(git.stdout).ok());
    known.map_or("unknown".into(), |commit| commit.trim().into())
}

fn splitmix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9E37_79B9_7F4A_7C15);
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

/// The content of a row: a function of its number.
fn fill_row(row: u64, bytes: &mut [u8]) {
    for (at, word) in bytes.chunks_mut(8).enumerate() {
        word.copy_from_slice(&splitmix(row ^ ((at as u64) << 40)).to_le_bytes()[..word.len()]);
    }
}

fn fill(memory: &Memory, rows: usize, row_bytes: usize) {
    let mut content = vec![0; row_bytes];
    for row in 0..rows {
        fill_row(row as u64, &mut content);
        // SAFETY: the row lies within the memory, which nobody else knows of yet.
        unsafe { std::ptr::copy_nonoverlapping(content.as_ptr(), memory.base().add(row * row_bytes), row_bytes) };
    }
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

fn from_hex(hex: &str) -> Result<Vec<u8>> {
    ensure!(hex.is_ascii() && hex.len().is_multiple_of(2), "not hexadecimal: {hex:?}");
    (0..hex.len()).step_by(2).map(|at| Ok(u8::from_str_radix(&hex[at..at + 2], 16)?)).collect()
}

fn open(name: &str, rank: Rank) -> Result<Arc<dyn Transport>> {
    Ok(transport::open(name, &TransportConfig::new(rank, 2))?)
}

/// The owner's process: answers lines on its standard input until that ends.
fn serve(name: &str) -> Result<()> {
    let transport = open(name, OWNER)?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let mut out = std::io::stdout();
    writeln!(out, "{} {}", to_hex(&transport.address()), listener.local_addr()?.port())?;
    out.flush()?;
    let (stream, _) = listener.accept()?;
    stream.set_nodelay(true)?;
    std::thread::spawn(move || stream_on_demand(stream));
    let mut table: Option<Region> = None;
    for line in std::io::stdin().lines() {
        let line = line?;
        match line.split(' ').collect::<Vec<_>>()[..] {
            ["connect", asker] => {
                transport.connect(&[transport.address(), from_hex(asker)?])?;
                writeln!(out, "connected")?;
            }
            ["table", rows, row_bytes] => {
                let (rows, row_bytes): (usize, usize) = (rows.parse()?, row_bytes.parse()?);
                drop(table.take());
                let region = transport.allocate(rows * row_bytes, Access::RemoteRead)?;
                fill(region.memory(), rows, row_bytes);
                writeln!(out, "{}", to_hex(region.token()))?;
                table = Some(region);
            }
            _ => bail!("unknown command {line:?}"),
        }
        out.flush()?;
    }
    Ok(())
}

/// The plain stream's far end: writes as many bytes as it is asked for.
fn stream_on_demand(mut stream: TcpStream) -> std::io::Result<()> {
    let bytes = vec![7; BATCH_BYTES_MAX.max(STREAM_PIECE_BYTES)];
    loop {
        let mut wanted = [0; 8];
        stream.read_exact(&mut wanted)?;
        let wanted = u64::from_le_bytes(wanted).min(bytes.len() as u64) as usize;
        for piece in bytes[..wanted].chunks(STREAM_PIECE_BYTES) {
            stream.write_all(piece)?;
        }
    }
}

/// The measuring process's side, with the owner's process as its child.
struct Asker {
    name: String,
    channel: Box<dyn Channel>,
    transport: Arc<dyn Transport>,
    stream: TcpStream,
    to_owner: Option<ChildStdin>,
    from_owner: BufReader<ChildStdout>,
    owner: Child,
}

/// The owner's table and, for the memcpy baseline, the same rows here.
struct Rows {
    region: RemoteRegion,
    row_bytes: usize,
    rows: usize,
    here: Option<Memory>,
}

impl Asker {
    fn start(name: &str) -> Result<Self> {
        let transport = open(name, ASKER)?;
        let mut owner = Command::new(std::env::current_exe()?)
            .args(["get", "--serve", name])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start the owner's process")?;
        let (Some(mut to_owner), Some(stdout)) = (owner.stdin.take(), owner.stdout.take()) else {
            bail!("the owner's process has no pipes");
        };
        let mut from_owner = BufReader::new(stdout);
        let hello = ask(&mut from_owner)?;
        let (address, port) = hello.split_once(' ').context("the owner's process did not say where it is")?;
        let addresses = [from_hex(address)?, transport.address()];
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port.parse()?))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(BATCH_TIMEOUT))?;
        writeln!(to_owner, "connect {}", to_hex(&addresses[1]))?;
        transport.connect(&addresses)?;
        ask(&mut from_owner)?;
        let channel = transport.channel()?;
        Ok(Self { name: name.into(), channel, transport, stream, to_owner: Some(to_owner), from_owner, owner })
    }

    fn table(&mut self, args: &GetArgs, row_bytes: usize) -> Result<Rows> {
        let rows = ((args.table_mib << 20) / row_bytes).max(1);
        let to_owner = self.to_owner.as_mut().context("the owner's process is gone")?;
        writeln!(to_owner, "table {rows} {row_bytes}")?;
        let token = from_hex(&ask(&mut self.from_owner)?)?;
        let region = self.transport.import(OWNER, &token)?;
        let here = if self.name == "shm" {
            let memory = Memory::allocate(rows * row_bytes)?;
            fill(&memory, rows, row_bytes);
            Some(memory)
        } else {
            None
        };
        Ok(Rows { region, row_bytes, rows, here })
    }

    fn measure(&mut self, args: &GetArgs, table: &Rows, batch: usize) -> Result<Line> {
        let row_bytes = table.row_bytes;
        let batch = batch.min((BATCH_BYTES_MAX / row_bytes).max(1));
        let landing = self.transport.allocate(batch * row_bytes, Access::Local)?;
        let beside = Memory::allocate(batch * row_bytes)?;
        let mut random = Xoshiro256PlusPlus::seed_from_u64(args.seed);
        let places: Vec<u32> = (0..batch as u32).collect();
        let mut rows = vec![0; batch];
        let (mut ours, mut baseline) = (Vec::new(), Vec::new());
        for pair in 0..args.warm_up + args.pairs {
            rows.fill_with(|| random.random_range(0..table.rows as u64));
            rows.sort_unstable();
            let mut times = [Duration::ZERO; 2];
            for turn in 0..2 {
                // The order alternates, so that neither side always runs on the other's warm caches.
                if (turn + pair) % 2 == 0 {
                    times[0] = self.gather(table, &rows, &places, landing.memory())?;
                } else {
                    times[1] = self.baseline(table, &rows, &beside)?;
                }
            }
            check(landing.memory(), &rows, row_bytes, if pair == 0 { batch } else { 16 }, &mut random)?;
            if pair >= args.warm_up {
                ours.push(times[0].as_secs_f64() * 1e6);
                baseline.push(times[1].as_secs_f64() * 1e6);
            }
        }
        Ok(self.line(table, batch, ours, baseline))
    }

    fn line(&self, table: &Rows, batch: usize, mut ours: Vec<f64>, mut baseline: Vec<f64>) -> Line {
        let mut ratios: Vec<f64> = ours.iter().zip(&baseline).map(|(ours, baseline)| baseline / ours).collect();
        for samples in [&mut ours, &mut baseline, &mut ratios] {
            samples.sort_unstable_by(f64::total_cmp);
        }
        let us_p50 = quantile(&ours, 0.5);
        Line {
            transport: self.name.clone(),
            provider: if self.name == "tcp" { "loopback" } else { "-" }.into(),
            row_bytes: table.row_bytes,
            batch,
            rows_per_s_p50: batch as f64 / us_p50 * 1e6,
            gb_per_s_p50: (batch * table.row_bytes) as f64 / us_p50 / 1e3,
            us_p5: quantile(&ours, 0.05),
            us_p50,
            us_p99: quantile(&ours, 0.99),
            baseline: if table.here.is_some() { "memcpy" } else { "stream" }.into(),
            baseline_us_p50: quantile(&baseline, 0.5),
            ratio: quantile(&ratios, 0.5),
            ratio_low95: median_low95(&ratios),
        }
    }

    /// One batch, from its post to its last completion.
    fn gather(&mut self, table: &Rows, rows: &[u64], places: &[u32], landing: &Memory) -> Result<Duration> {
        let begun = Instant::now();
        let mut posted = 0;
        let mut complete = 0;
        let mut completions = Vec::with_capacity(64);
        while complete < rows.len() {
            ensure!(begun.elapsed() < BATCH_TIMEOUT, "a batch is not complete after {BATCH_TIMEOUT:?}");
            if posted < rows.len() {
                let batch = RowBatch {
                    id: BatchId(posted as u64),
                    region: table.region,
                    version: 0,
                    row_bytes: table.row_bytes,
                    rows: &rows[posted..],
                    places: &places[posted..],
                    destination: Destination {
                        base: landing.base(),
                        stride: table.row_bytes,
                        places: landing.bytes() / table.row_bytes,
                    },
                };
                // SAFETY: the landing is ours alone until every row is complete, and an error ends the program's use of it.
                posted += unsafe { self.channel.post(&batch)? };
            }
            self.channel.poll(&mut completions, Wait::For(Duration::from_millis(100)))?;
            for completion in completions.drain(..) {
                completion.status.with_context(|| format!("get of rows from {OWNER}"))?;
                complete += completion.count as usize;
            }
        }
        Ok(begun.elapsed())
    }

    fn baseline(&mut self, table: &Rows, rows: &[u64], beside: &Memory) -> Result<Duration> {
        let begun = Instant::now();
        match &table.here {
            Some(here) => {
                for (place, &row) in rows.iter().enumerate() {
                    // SAFETY: rows were drawn from the table's, and the landing has a place for each.
                    unsafe {
                        let from = here.base().add(row as usize * table.row_bytes);
                        std::ptr::copy_nonoverlapping(
                            from,
                            beside.base().add(place * table.row_bytes),
                            table.row_bytes,
                        );
                    }
                }
            }
            None => {
                self.stream.write_all(&(beside.bytes() as u64).to_le_bytes())?;
                // SAFETY: fresh memory of this process that nobody else reads or writes.
                let bytes = unsafe { std::slice::from_raw_parts_mut(beside.base(), beside.bytes()) };
                self.stream.read_exact(bytes)?;
            }
        }
        Ok(begun.elapsed())
    }
}

impl Drop for Asker {
    fn drop(&mut self) {
        // The owner ends when its input does.
        drop(self.to_owner.take());
        let _ = self.owner.wait();
    }
}

fn ask(from_owner: &mut impl BufRead) -> Result<String> {
    let mut line = String::new();
    from_owner.read_line(&mut line)?;
    ensure!(!line.is_empty(), "the owner's process ended");
    Ok(line.trim().into())
}

/// Compares some of the rows that landed with what they must be.
fn check(landing: &Memory, rows: &[u64], row_bytes: usize, count: usize, random: &mut impl Rng) -> Result<()> {
    let mut expected = vec![0; row_bytes];
    let mut found = vec![0; row_bytes];
    for i in 0..count {
        let place = if count == rows.len() { i } else { random.random_range(0..rows.len()) };
        fill_row(rows[place], &mut expected);
        // SAFETY: the place lies within the landing, whose rows are all complete.
        unsafe { std::ptr::copy_nonoverlapping(landing.base().add(place * row_bytes), found.as_mut_ptr(), row_bytes) };
        ensure!(found == expected, "row {} has wrong bytes", rows[place]);
    }
    Ok(())
}

/// Of sorted samples.
fn quantile(sorted: &[f64], q: f64) -> f64 {
    sorted[((sorted.len() - 1) as f64 * q).round() as usize]
}

/// The lower end of a one-sided 95 % interval for the median of sorted samples: the order statistic whose rank the binomial distribution
/// (in its normal approximation) puts below the median 95 times in 100.
fn median_low95(sorted: &[f64]) -> f64 {
    let n = sorted.len() as f64;
    let rank = (n / 2.0 - 1.645 * n.sqrt() / 2.0).floor().max(1.0);
    sorted[rank as usize - 1]
}
