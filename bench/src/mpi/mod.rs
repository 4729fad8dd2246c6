//! `rudder mpi`: gets between the ranks of an MPI job, beside raw `MPI_Get` from Rust and from C, and beside memcpy, in one run.
//!
//! MPI's launcher starts it, as any MPI program; rank 0 speaks. It starts MPI itself, at the thread level asked for: some one-sided
//! components refuse the one that our transport `mpi` needs, and the other transports can be held against them all the same. Options are
//! those of OSU's benchmarks where these have them.

mod args;
mod contender;
mod content;
mod decision;
mod document;
pub mod fitted;
mod gathers;
mod loggp;
mod ours;
mod overlap;
mod raw;
mod registration;
mod report;
mod traffic;
mod turns;
mod wants;
mod world;

pub use args::MpiArgs;
#[cfg(test)]
pub use document::sample;

use anyhow::{Result, ensure};
use args::Benchmark;
use clap::ValueEnum;
use document::{Document, Job, Line};
use std::time::Instant;
use world::World;

/// What rank 0 has to tell; other ranks keep it to themselves.
struct Measured {
    document: Document,
    speaks: bool,
}

impl Measured {
    fn begin(&self, benchmark: Benchmark) {
        if self.speaks {
            eprintln!("{}: {}", benchmark.name(), benchmark.meaning());
        }
    }

    fn add(&mut self, line: Line) {
        self.document.lines.push(line);
    }

    fn note(&mut self, words: &str) {
        if !self.document.notes.iter().any(|note| note == words) {
            self.document.notes.push(words.to_owned());
        }
    }
}

/// Measures, prints tables and writes the files asked for.
///
/// # Errors
/// MPI does not start, there is one rank only, a transport fails, or a row has wrong bytes. An error on one rank ends all.
pub fn run(args: &MpiArgs) -> Result<()> {
    let mut benchmarks = args.benchmarks.clone();
    if benchmarks.is_empty() {
        benchmarks.extend(Benchmark::value_variants());
    }
    let mut deciders = if benchmarks.contains(&Benchmark::Decision) { decision::open(args)? } else { vec![] };
    let world = World::start(args.thread_level)?;
    let measured = measure(&world, args, &benchmarks, &mut deciders);
    match measured.and_then(|document| if world.rank == 0 { tell(args, &benchmarks, &document) } else { Ok(()) }) {
        Ok(()) => world.end(),
        Err(error) => {
            // The others wait for this rank, and would do so for ever.
            eprintln!("rudder: rank {}: {error:#}", world.rank);
            world::abort();
        }
    }
}

fn measure(
    world: &World,
    args: &MpiArgs,
    benchmarks: &[Benchmark],
    deciders: &mut [decision::Decider],
) -> Result<Document> {
    ensure!(
        world.size > 1,
        "one rank has nobody to get rows from: start it by mpiexec -n 2, or by srun with the --mpi= that this MPI needs"
    );
    let begun = Instant::now();
    let mut measured = Measured { document: Document::new(job(world, args)), speaks: world.rank == 0 };
    for words in args.transports.iter().filter_map(|name| gathers::left_out(world, name)) {
        measured.note(&words);
    }
    gathers::run(world, args, benchmarks, &mut measured)?;
    if benchmarks.contains(&Benchmark::Overlap) {
        overlap::run(world, args, &mut measured)?;
    }
    if benchmarks.contains(&Benchmark::Registration) {
        registration::run(world, args, &mut measured)?;
    }
    if benchmarks.contains(&Benchmark::Decision) {
        decision::run(world, args, deciders, &mut measured)?;
    }
    measured.document.fit();
    measured.document.wall_s = begun.elapsed().as_secs_f64();
    Ok(measured.document)
}

fn job(world: &World, args: &MpiArgs) -> Job {
    let &MpiArgs { iterations, skip, table_mib, seed, .. } = args;
    Job {
        mpi: world::library(),
        thread_level: world.level,
        ranks: world.size,
        ranks_on_host: world.ranks_on_host,
        iterations,
        skip,
        table_mib,
        seed,
    }
}

fn tell(args: &MpiArgs, benchmarks: &[Benchmark], document: &Document) -> Result<()> {
    print!("{}", report::text(document, benchmarks));
    if let Some(path) = &args.json {
        crate::report::write(path, &(serde_json::to_string_pretty(document)? + "\n"))?;
    }
    if let Some(path) = &args.csv {
        crate::report::write(path, &document.csv())?;
    }
    if let Some(path) = &args.report {
        crate::report::write(path, &report::html(document, benchmarks))?;
    }
    Ok(())
}
