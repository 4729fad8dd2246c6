//! The benchmarks that gather rows, and who takes part in them.

use super::Measured;
use super::args::{Benchmark, LANDING_BYTES, MpiArgs, ThreadLevel};
use super::contender::{Contender, Memcpy};
use super::document::{Line, Origin};
use super::ours::Ours;
use super::raw::{Caller, Form, Raw};
use super::traffic::Traffic;
use super::turns::{self, Case};
use super::wants::Pattern;
use super::world::{Waiting, World};
use anyhow::Result;

/// Rows of a gather in the sweep of the message rate.
const RATE_ROWS: [usize; 5] = [1, 4, 16, 64, 256];
const RATE_BYTES: usize = 8;
/// Bytes that the gathers of one latency sample bring together, and the most gathers.
const LATENCY_BYTES: usize = 256 << 10;
const LATENCY_GATHERS: usize = 20;
const BASELINES: [&str; 3] =
    [Raw::label(Form::Plain, Caller::Rust), Raw::label(Form::Hindexed, Caller::Rust), Memcpy::NAME];

/// Whether a benchmark is one of these.
pub fn is_gather(benchmark: Benchmark) -> bool {
    !matches!(benchmark, Benchmark::Overlap | Benchmark::Registration | Benchmark::Decision)
}

/// Why a transport cannot serve the job, where it cannot.
pub fn left_out(world: &World, transport: &str) -> Option<String> {
    match transport {
        "mpi" if world.level != ThreadLevel::Multiple => {
            Some("transport mpi is left out: it needs --thread-level multiple".to_owned())
        }
        "shm" if world.ranks_on_host < world.size => {
            Some("transport shm is left out: the ranks are on several hosts".to_owned())
        }
        _ => None,
    }
}

/// Runs those of the benchmarks asked for. Collective.
pub fn run(world: &World, args: &MpiArgs, benchmarks: &[Benchmark], measured: &mut Measured) -> Result<()> {
    let wanted: Vec<Benchmark> = benchmarks.iter().copied().filter(|&benchmark| is_gather(benchmark)).collect();
    if wanted.is_empty() {
        return Ok(());
    }
    let landing_bytes =
        wanted.iter().flat_map(|&benchmark| cases(args, benchmark)).map(|case| case.rows * case.row_bytes).max();
    let mut contenders = contenders(world, args, landing_bytes.unwrap_or_default())?;
    for benchmark in wanted {
        measured.begin(benchmark);
        match benchmark {
            Benchmark::Allreduce if world.level != ThreadLevel::Multiple => {
                measured.note(
                    "allreduce is left out: its traffic has a thread of its own, which needs --thread-level multiple",
                );
            }
            Benchmark::Allreduce => {
                sweep(world, args, benchmark, Some("quiet"), &mut contenders, measured)?;
                let traffic = Traffic::start(Traffic::ALLREDUCE)?;
                sweep(world, args, benchmark, Some("allreduce"), &mut contenders, measured)?;
                traffic.stop()?;
            }
            _ => sweep(world, args, benchmark, None, &mut contenders, measured)?,
        }
    }
    // Nobody lets go of rows that another still reads.
    world.meet(Waiting::InMpi)?;
    drop(contenders);
    world.meet(Waiting::InMpi)
}

/// Ours, the raw calls, the same from C, and memcpy, with room for gathers of so many bytes. Collective.
fn contenders(world: &World, args: &MpiArgs, landing_bytes: usize) -> Result<Vec<Box<dyn Contender>>> {
    let table_bytes = (args.table_mib as usize) << 20;
    let mut contenders: Vec<Box<dyn Contender>> = Vec::new();
    for name in args.transports.iter().filter(|name| left_out(world, name).is_none()) {
        contenders.push(Box::new(Ours::new(world, name, args.listen, table_bytes, landing_bytes)?));
    }
    for caller in [Caller::Rust, Caller::C] {
        for form in [Form::Plain, Form::Hindexed] {
            contenders.push(Box::new(Raw::new(world.rank, form, caller, table_bytes, landing_bytes)?));
        }
    }
    contenders.push(Box::new(Memcpy::new(world.rank, table_bytes, landing_bytes)?));
    // Every table is full now.
    world.meet(Waiting::InMpi)?;
    Ok(contenders)
}

fn sweep(
    world: &World,
    args: &MpiArgs,
    benchmark: Benchmark,
    state: Option<&'static str>,
    contenders: &mut [Box<dyn Contender>],
    measured: &mut Measured,
) -> Result<()> {
    for case in cases(args, benchmark) {
        let samples = turns::take(world, args, &case, contenders)?;
        let Case { benchmark, pattern, row_bytes: bytes, rows, .. } = case;
        let origin = Origin { benchmark, state, ranks: pattern.askers(world.size), bytes, rows };
        let named = || contenders.iter().map(|contender| contender.name()).zip(&samples);
        let baselines: Vec<_> =
            named().filter(|(name, _)| BASELINES.contains(name)).map(|(name, samples)| (name, &*samples.us)).collect();
        for (name, samples) in named() {
            let start = crate::statistics::sorted(samples.start_us.clone());
            let mut line = Line::new(origin, name, &samples.us, &baselines);
            line.start_us_p50 = Some(crate::statistics::quantile(&start, 0.5));
            measured.add(line);
        }
    }
    Ok(())
}

/// What is gathered in a benchmark.
fn cases(args: &MpiArgs, benchmark: Benchmark) -> Vec<Case> {
    let cut = |rows: usize, row_bytes: usize| rows.min(LANDING_BYTES / row_bytes).max(1);
    let batches = |pattern| {
        let case = |&row_bytes| Case { benchmark, pattern, row_bytes, rows: cut(args.batch, row_bytes), gathers: 1 };
        args.row_bytes.iter().map(case).collect()
    };
    let pattern = Pattern::One;
    match benchmark {
        Benchmark::Latency => {
            let gathers = |row_bytes: usize| (LATENCY_BYTES / row_bytes).clamp(1, LATENCY_GATHERS);
            let case = |row_bytes| Case { benchmark, pattern, row_bytes, rows: 1, gathers: gathers(row_bytes) };
            args.message_size.each().map(case).collect()
        }
        Benchmark::Bandwidth => {
            let rows = |row_bytes| cut(args.window_size, row_bytes);
            let case = |row_bytes| Case { benchmark, pattern, row_bytes, rows: rows(row_bytes), gathers: 1 };
            args.message_size.each().map(case).collect()
        }
        Benchmark::MessageRate => {
            let case = |rows| Case { benchmark, pattern, row_bytes: RATE_BYTES, rows, gathers: 1 };
            RATE_ROWS.into_iter().map(case).collect()
        }
        Benchmark::MultiPair => batches(Pattern::Pairs),
        Benchmark::AllToAll => batches(Pattern::AllToAll),
        Benchmark::Incast => batches(Pattern::Incast),
        _ => batches(Pattern::One),
    }
}
