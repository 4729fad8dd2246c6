//! How much of a gather hides behind computing, as OSU's and Intel's benchmarks of nonblocking calls define it.
//!
//! A turn is a gather alone, computing alone, of about as long, and the same computing between the start of a gather and its end. What the
//! last takes longer than the computing is what did not hide: overlap = 1 - (both - computing) / gather. Computing is an amount of work, not of
//! time, so that a thread that helps a gather and takes a core from it counts against it. Ours gathers by the engine, whose thread drives the
//! transport, as in training. Owners stay out of MPI, but for a look each 200 µs.

use super::args::{Benchmark, LANDING_BYTES, MpiArgs};
use super::contender::{self, Contender};
use super::document::{Line, Origin};
use super::gathers::left_out;
use super::raw::{Caller, Form, Raw};
use super::traffic::compute;
use super::turns::Order;
use super::wants::{Pattern, Wants};
use super::world::{PATIENCE, Waiting, World, WorldBootstrap};
use super::{Measured, content};
use crate::statistics::median;
use anyhow::{Context, Result};
use rand::SeedableRng;
use rand_xoshiro::Xoshiro256PlusPlus;
use rudder::buffer::PolicyConfig;
use rudder::memory::Rows;
use rudder::{Config, Engine, NodeId, PartitionBook, PartitionId, Request, TableId, TableSpec};
use std::sync::Arc;
use std::time::Instant;

const TABLE: TableId = TableId(0);
/// Rounds by which the speed of computing is found.
const CALIBRATION: u64 = 1_000_000;

/// Gathers by an engine.
struct Engined<'a> {
    name: &'a str,
    engine: &'a Engine,
    table_rows: u64,
    nodes: Vec<NodeId>,
    request: Option<Request>,
    rows: Option<Rows>,
}

impl Contender for Engined<'_> {
    fn name(&self) -> &str {
        self.name
    }

    fn owners(&self) -> Waiting {
        Waiting::Outside
    }

    fn start(&mut self, wants: &Wants) -> Result<()> {
        self.nodes.clear();
        for part in &wants.parts {
            let first = u64::from(part.owner) * self.table_rows;
            self.nodes.extend(wants.rows[part.places.clone()].iter().map(|row| NodeId(first + row)));
        }
        self.rows = None;
        let rows = self.engine.rows(TABLE, self.nodes.len())?;
        self.request = Some(self.engine.start(TABLE, &self.nodes, None, rows)?);
        Ok(())
    }

    fn finish(&mut self, _: &Wants) -> Result<()> {
        let request = self.request.take().context("a gather was started")?;
        self.rows = Some(request.wait()?);
        Ok(())
    }

    fn landed(&self) -> &[u8] {
        self.rows.as_ref().map_or(&[], Rows::as_bytes)
    }
}

/// Starts an engine over a transport, with a table on every rank. Collective.
fn engine(world: &World, args: &MpiArgs, transport: &str, row_bytes: usize, table_rows: u64) -> Result<Engine> {
    let book = PartitionBook::from_starts((0..=u64::from(world.size)).map(|rank| rank * table_rows).collect())?;
    let spec = TableSpec::new(TABLE, book, PartitionId(world.rank), row_bytes);
    let config = Config {
        transport: transport.into(),
        listen: args.listen,
        policy: PolicyConfig::named("off")?,
        rows_max: args.batch,
        gather_timeout: PATIENCE,
        ..Config::default()
    };
    let engine = Engine::builder(config, Arc::new(WorldBootstrap::new(world)));
    Ok(engine.table(spec, |rows| content::fill(world.rank, rows)).start()?)
}

/// Measures overlap. Collective.
pub fn run(world: &World, args: &MpiArgs, measured: &mut Measured) -> Result<()> {
    measured.begin(Benchmark::Overlap);
    let row_bytes = args.row_bytes[0];
    let batch = args.batch.min(LANDING_BYTES / row_bytes).max(1);
    let table_bytes = (args.table_mib as usize) << 20;
    let table_rows = (table_bytes / row_bytes) as u64;
    let names = args.transports.iter().filter(|name| left_out(world, name).is_none());
    let engines = names
        .map(|name| {
            Ok((name, engine(world, args, name, row_bytes, table_rows).with_context(|| format!("transport {name}"))?))
        })
        .collect::<Result<Vec<_>>>()?;
    let mut contenders: Vec<Box<dyn Contender + '_>> = Vec::new();
    for (name, engine) in &engines {
        let (nodes, request, rows) = (Vec::new(), None, None);
        contenders.push(Box::new(Engined { name, engine, table_rows, nodes, request, rows }));
    }
    for form in [Form::Plain, Form::Hindexed] {
        contenders.push(Box::new(Raw::new(world.rank, form, Caller::Rust, table_bytes, LANDING_BYTES)?));
    }
    let case = Case { row_bytes, batch, table_rows };
    let samples = take(world, args, case, &mut contenders)?;
    if world.rank == 0 {
        tell(case, &contenders, &samples, measured);
    }
    world.meet(Waiting::InMpi)?;
    drop(contenders);
    engines.into_iter().try_for_each(|(_, engine)| Ok(engine.shutdown()?))
}

#[derive(Clone, Copy)]
struct Case {
    row_bytes: usize,
    batch: usize,
    table_rows: u64,
}

/// Times of one contender, in µs.
#[derive(Clone, Debug, Default)]
struct Samples {
    gather: Vec<f64>,
    both: Vec<f64>,
    overlap: Vec<f64>,
}

fn take(world: &World, args: &MpiArgs, case: Case, contenders: &mut [Box<dyn Contender + '_>]) -> Result<Vec<Samples>> {
    let owners = Pattern::One.owners(world.rank, world.size);
    let rounds_per_us = (0..5).map(|_| CALIBRATION as f64 / computing(CALIBRATION)).fold(0.0, f64::max);
    let mut chance = Xoshiro256PlusPlus::seed_from_u64(args.seed);
    let mut wants = Wants::default();
    let mut samples = vec![Samples::default(); contenders.len()];
    let mut order = Order::new(args.seed, contenders.len());
    for turn in 0..(args.skip + args.iterations) as usize {
        if !owners.is_empty() {
            wants.draw(&owners, case.batch, case.row_bytes, case.table_rows, &mut chance);
        }
        for &at in order.next() {
            let contender = &mut *contenders[at];
            world.meet(Waiting::InMpi)?;
            if !owners.is_empty() {
                let gather = gathering(contender, &wants, 0)?;
                let rounds = (gather * rounds_per_us) as u64;
                let alone = computing(rounds);
                let both = gathering(contender, &wants, rounds)?;
                contender::check(contender, &wants, 0..if turn == 0 { case.batch } else { 16.min(case.batch) })?;
                if turn >= args.skip as usize {
                    samples[at].gather.push(gather);
                    samples[at].both.push(both);
                    samples[at].overlap.push((1.0 - (both - alone) / gather).clamp(0.0, 1.0));
                }
            }
            world.meet(Waiting::Outside)?;
        }
    }
    Ok(samples)
}

/// The time of a gather with so many rounds of computing between its start and its end.
fn gathering(contender: &mut dyn Contender, wants: &Wants, rounds: u64) -> Result<f64> {
    let begun = Instant::now();
    contender.start(wants)?;
    compute(rounds);
    contender.finish(wants)?;
    Ok(begun.elapsed().as_secs_f64() * 1e6)
}

fn computing(rounds: u64) -> f64 {
    let begun = Instant::now();
    compute(rounds);
    begun.elapsed().as_secs_f64() * 1e6
}

fn tell(case: Case, contenders: &[Box<dyn Contender + '_>], samples: &[Samples], measured: &mut Measured) {
    let named = || contenders.iter().map(|contender| contender.name()).zip(samples);
    let is_raw = |name: &str| name.starts_with("MPI_Get");
    let baselines: Vec<_> =
        named().filter(|(name, _)| is_raw(name)).map(|(name, samples)| (name, &*samples.gather)).collect();
    let origin = |state| Origin {
        benchmark: Benchmark::Overlap,
        state: Some(state),
        ranks: 1,
        bytes: case.row_bytes,
        rows: case.batch,
    };
    for (name, samples) in named() {
        measured.add(Line::new(origin("gather alone"), name, &samples.gather, &baselines));
        let mut beside = Line::new(origin("beside computing"), name, &samples.both, &[]);
        beside.overlap_p50 = median(samples.overlap.iter().copied());
        measured.add(beside);
    }
}
