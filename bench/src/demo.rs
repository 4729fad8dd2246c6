//! `rudder demo`: the bundled graph under no buffer, one of each kind, and every controller, in one run and in two blocks.
//!
//! The blocks differ in what is known ahead. Within one, all set-ups know the same, so that a policy is never credited for information that
//! its rivals did not have.

use crate::cli::DemoArgs;
use crate::graph::GraphSpec;
use crate::partition::Partitioner;
use crate::report;
use crate::setup::{Controls, SetUp};
use crate::train::Plan;
use crate::train::job::Job;
use anyhow::{Context, Result};
use rudder::BufferSize;
use rudder::controller::llm::default_model_path;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

/// Minibatches that the second block announces ahead.
const LOOKAHEAD: u32 = 16;

/// `rudder demo`
///
/// # Errors
/// A rank fails, or the report cannot be written.
pub fn run(args: &DemoArgs) -> Result<()> {
    let (model, absent) = match &args.model {
        Some(file) => (Some(file.clone()), None),
        None => default_model_path().map_or_else(|error| (None, Some(error.to_string())), |file| (Some(file), None)),
    };
    if let Some(why) = &absent {
        eprintln!("without the language model's set-ups: {why} (`make model`, or --model FILE)");
    }
    let mut document = plan(args, model).run()?;
    document.notes.extend(absent.map(|why| {
        format!("The set-ups that ask the language model were left out: {why}. Get it with `make model`, or name one with --model FILE.")
    }));
    println!("{}", report::text(&document));
    let out = args.out.clone().unwrap_or_else(|| if Path::new("target").is_dir() { "target" } else { "." }.into());
    std::fs::create_dir_all(&out).with_context(|| format!("making {}", out.display()))?;
    report::write(&out.join("rudder-demo.json"), &document.to_json()?)?;
    report::write(&out.join("rudder-demo.html"), &report::html(&document))
}

/// Set-ups of the first block. Other sets that stay, and other caches of what was fetched anyway, are for `rudder train`.
const NOTHING_AHEAD: [SetUp; 8] = [
    SetUp::OffSync,
    SetUp::Off,
    SetUp::Fixed,
    SetUp::Periodic,
    SetUp::Random,
    SetUp::Llm,
    SetUp::LlmCohorts,
    SetUp::Lfu,
];

fn plan(args: &DemoArgs, model: Option<PathBuf>) -> Plan {
    let ahead = [SetUp::Off, SetUp::Lfu, SetUp::Window];
    let cases = NOTHING_AHEAD.into_iter().map(|setup| (setup, 0)).chain(ahead.map(|setup| (setup, LOOKAHEAD)));
    Plan {
        graph: GraphSpec::Debian,
        partitioner: Partitioner::Metis,
        cases: cases.filter(|(setup, _)| model.is_some() || !setup.needs_model()).collect(),
        model,
        launcher: None,
        job: Job {
            setup: SetUp::Off,
            lookahead: 0,
            graph: PathBuf::new(),
            ranks: 4,
            ranks_per_host: 1,
            transport: "tcp".to_owned(),
            link: args.link,
            buffer: BufferSize::Halo(0.10),
            batch: args.batch,
            fanout: vec![10, 25],
            hidden: 64,
            learning_rate: 0.01,
            epochs: args.epochs,
            seed: 1,
            controls: Controls::default(),
            model: None,
            classifier: None,
            pilot: None,
            partitions_are_hosts: true,
            private_buffers: false,
            listen: IpAddr::V4(Ipv4Addr::LOCALHOST),
            trace: None,
            patience_s: 120,
        },
    }
}
