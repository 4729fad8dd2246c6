//! `rudder get`: how fast random rows come from another process, beside plainer means in the same run.
//!
//! The owner is this program once more, in a process of its own; the two speak over the owner's standard input and output until the
//! transport is up. Every measurement is a turn of ours and of each baseline, one right after the other and in changing order, because on
//! a shared machine only what ran at the same time can be compared. The ratio is taken turn by turn.

mod asker;
mod crew;
#[cfg(feature = "fabric")]
mod fi_read;
mod floor;
mod hex;
mod owner;
mod result;
mod rows;

use anyhow::{Result, ensure};
use asker::{Asker, Table};
use clap::Args;
use crew::with_channels;
use floor::{Floor, Twin};
use rand::{Rng, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;
use result::{Line, Measured, Setting};
use rudder::Rank;
use rudder::memory::{Access, Memory};
#[cfg(feature = "fabric")]
use rudder::transport::fabric::{FabricConfig, FabricTransport};
use rudder::transport::{self, Transport, TransportConfig};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A batch that takes longer is a failure, not a slow sample.
const BATCH_TIMEOUT: Duration = Duration::from_secs(30);
/// Larger batches are cut to this, so that wide rows do not turn a sweep into an hour.
const BATCH_BYTES_MAX: usize = 64 << 20;
/// Plain streams between the two processes: as many as the tcp transport has connections to a peer.
const STREAMS: usize = 2;
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
    /// Channels that share a batch, each driven by a thread of its own.
    #[arg(long, value_delimiter = ',', default_value = "1")]
    channels: Vec<usize>,
    /// Size of the owner's table in MiB.
    #[arg(long, default_value_t = 256)]
    table_mib: usize,
    /// Turns of ours and of each baseline, at least 30.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(30..=100_000))]
    pairs: u32,
    /// Turns that are run first and not counted.
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

/// Runs the sweep, prints a table and writes the files asked for.
///
/// # Errors
/// A transport cannot be opened, the owner's process dies, or a row has wrong bytes.
pub fn run(args: &GetArgs) -> Result<()> {
    if let Some(name) = &args.serve {
        return owner::serve(name);
    }
    let sizes = [&args.row_bytes, &args.batches, &args.channels];
    ensure!(args.table_mib > 0 && sizes.iter().all(|sizes| !sizes.contains(&0)), "sizes must not be 0");
    ensure!(args.channels.iter().all(|&channels| channels <= 64), "--channels goes up to 64");
    let setting = Setting::of(args);
    setting.print();
    let mut lines = Vec::new();
    for name in &args.transports {
        let mut asker = Asker::start(name)?;
        for &row_bytes in &args.row_bytes {
            let table = asker.table(args.table_mib << 20, row_bytes)?;
            // One each: what another has just read of the same memory would still be in the caches.
            let twin = || Twin::new(table.rows, row_bytes);
            let twins = if name == "shm" { Some([twin()?, twin()?]) } else { None };
            for &batch in &args.batches {
                let batch = batch.min((BATCH_BYTES_MAX / row_bytes).max(1));
                for &channels in &args.channels {
                    let mut floors = asker.floors(table, twins.as_ref(), batch)?;
                    lines.extend(measure(args, name, &asker, table, (batch, channels), &mut floors)?);
                }
            }
        }
    }
    result::tell(args, &setting, &lines)
}

/// A transport, and what it runs over.
struct Opened {
    transport: Arc<dyn Transport>,
    provider: String,
}

fn open(name: &str, rank: Rank) -> Result<Opened> {
    let config = TransportConfig::new(rank, 2);
    #[cfg(feature = "fabric")]
    if name == "fabric" {
        let transport = FabricTransport::new(FabricConfig::of(&config)?)?;
        return Ok(Opened { provider: transport.provider(), transport: Arc::new(transport) });
    }
    let provider = if name == "tcp" { "loopback" } else { "-" };
    Ok(Opened { transport: transport::open(name, &config)?, provider: provider.into() })
}

/// Takes turns and makes a line of each baseline.
fn measure(
    args: &GetArgs,
    name: &str,
    asker: &Asker,
    table: Table,
    (batch, channels): (usize, usize),
    floors: &mut [Box<dyn Floor + '_>],
) -> Result<Vec<Line>> {
    let row_bytes = table.row_bytes;
    let landing = asker.transport.allocate(batch * row_bytes, Access::Local)?;
    let beside = Memory::allocate(batch * row_bytes)?;
    let mut random = Xoshiro256PlusPlus::seed_from_u64(args.seed);
    let mut rows = vec![0; batch];
    // As the engine asks.
    let by_row = asker.transport.capabilities().by_row();
    let contenders = 1 + floors.len();
    let mut us = vec![Vec::new(); contenders];
    with_channels(&*asker.transport, channels, table, landing.memory(), |get| {
        for turn in 0..args.warm_up + args.pairs {
            rows.fill_with(|| random.random_range(0..table.rows as u64));
            if by_row {
                rows.sort_unstable();
            }
            // The order changes, so that nobody always runs on another's warm caches.
            for place in 0..contenders {
                let contender = (place + turn as usize) % contenders;
                let begun = Instant::now();
                match contender.checked_sub(1) {
                    None => get(&rows)?,
                    Some(floor) => floors[floor].gather(&rows, &beside)?,
                }
                if turn >= args.warm_up {
                    us[contender].push(begun.elapsed().as_secs_f64() * 1e6);
                }
            }
            let checked = if turn == 0 { batch } else { batch.min(16) };
            rows::check(landing.memory(), &rows, row_bytes, checked, &mut random)?;
        }
        Ok(())
    })?;
    let ours = Measured { transport: name, provider: &asker.provider, row_bytes, batch, channels, us: &us[0] };
    Ok(floors.iter().zip(&us[1..]).map(|(floor, us)| Line::new(ours, floor.name(), us)).collect())
}
