//! `rudder trace`: what is in the files that an engine records.

use crate::cli::{TraceArgs, TraceShow};
use crate::report::plot::tidy;
use crate::report::tables::percent;
use crate::timeline;
use anyhow::{Context, Result, ensure};
use rudder::trace::{Event, Header, Minibatch, Reader, TraceTable};
use rudder::{NodeId, PartitionBook};
use std::path::Path;
use std::time::Duration;

/// `rudder trace`
///
/// # Errors
/// A file cannot be read, or is damaged; what is before the damage has been shown by then.
pub fn run(args: &TraceArgs) -> Result<()> {
    match &args.show {
        TraceShow::Info { files } => {
            let damaged = files.iter().map(|file| info(file)).collect::<Result<Vec<bool>>>()?;
            let damaged = damaged.into_iter().filter(|damaged| *damaged).count();
            ensure!(damaged == 0, "{damaged} of {} traces are damaged", files.len());
            Ok(())
        }
        TraceShow::Timeline { files, output } => timeline::write(files, output),
        TraceShow::Head { file, number } => {
            let reader = Reader::open(file)?;
            let table = |table: &TraceTable| Ok((table.halo.clone(), table.book()?));
            let tables = reader.header().tables.iter().map(table).collect::<Result<Vec<_>>>()?;
            for event in reader.take(*number) {
                println!("{}", line(&event?, &tables));
            }
            Ok(())
        }
    }
}

/// Sums over a trace.
#[derive(Default)]
struct Sums {
    minibatches: u64,
    observed: u64,
    announced: u64,
    epochs: u64,
    missing: u64,
    nodes: u64,
    hits: u64,
    demand_rows: u64,
    prefetched_rows: u64,
    times: [Duration; 4],
    /// By partition: rows, and time on their way.
    owners: Vec<(u64, Duration)>,
}

impl Sums {
    fn add(&mut self, event: &Event) {
        match event {
            Event::EpochEnd => self.epochs += 1,
            Event::Gap { events } => self.missing += events,
            Event::Minibatch(minibatch) => self.add_minibatch(minibatch),
        }
    }

    fn add_minibatch(&mut self, minibatch: &Minibatch) {
        self.minibatches += 1;
        for owner in &minibatch.owners {
            if let Some((rows, busy)) = self.owners.get_mut(owner.partition.index()) {
                (*rows, *busy) = (*rows + owner.rows, busy.saturating_add(owner.busy));
            }
        }
        if !minibatch.observed {
            return;
        }
        self.observed += 1;
        self.announced += u64::from(minibatch.announced.is_some());
        self.nodes += minibatch.nodes.len() as u64;
        self.hits += minibatch.hits;
        self.demand_rows += minibatch.demand_rows;
        self.prefetched_rows += minibatch.prefetched_rows;
        let step = minibatch.step;
        let times = [step.sample, step.compute, minibatch.stall, step.allreduce];
        self.times.iter_mut().zip(times).for_each(|(sum, time)| *sum = sum.saturating_add(time));
    }
}

/// Shows one trace; whether it is damaged.
fn info(file: &Path) -> Result<bool> {
    let mut reader = Reader::open(file)?;
    let header = reader.header().clone();
    let partitions = header.tables.iter().map(|table| table.peers.len()).max().unwrap_or(0);
    let mut sums = Sums { owners: vec![Default::default(); partitions], ..Sums::default() };
    let mut damage = None;
    for event in &mut reader {
        match event {
            Ok(event) => sums.add(&event),
            Err(cause) => damage = Some(cause),
        }
    }
    let bytes = std::fs::metadata(file).with_context(|| format!("reading {}", file.display()))?.len();
    println!("{}", file.display());
    tell_header(&header);
    tell_sums(&sums, bytes);
    if let Some(cause) = &damage {
        println!("  damaged      {cause}");
    }
    Ok(damage.is_some())
}

fn tell_header(header: &Header) {
    let Header { rank, ranks, sharing, policy, controller, link, facts, .. } = header;
    let shared = if *sharing > 1 { format!(", {sharing} ranks sharing their buffers") } else { String::new() };
    println!("  job          {rank} of {ranks}{shared}, batch {}, link {link}", facts.batch);
    for table in &header.tables {
        println!(
            "  {:<12} {} nodes in {} partitions, rows of {} bytes, {}, {} halo nodes, {} slots, policy {policy}, controller {controller}",
            table.id.to_string(),
            tidy(table.nodes() as f64),
            table.peers.len(),
            table.row_bytes,
            table.partition,
            tidy(table.halo.len() as f64),
            tidy(f64::from(table.slots)),
        );
    }
}

fn tell_sums(sums: &Sums, bytes: u64) {
    let Sums { minibatches, observed, announced, epochs, missing, nodes, .. } = *sums;
    let evaluated = minibatches - observed;
    println!(
        "  minibatches  {observed} in {epochs} epochs, {announced} of them announced; {evaluated} of evaluation; {missing} missing"
    );
    let each = |sum: u64, of: u64| if of == 0 { 0.0 } else { sum as f64 / of as f64 };
    println!("  nodes        {}, {} a minibatch", tidy(nodes as f64), tidy(each(nodes, observed)));
    println!(
        "  rows         {} on demand, {} ahead, hits {}",
        tidy(sums.demand_rows as f64),
        tidy(sums.prefetched_rows as f64),
        percent(each(sums.hits, nodes))
    );
    let mean = |time: Duration| format!("{:.2}", time.as_secs_f64() * 1e3 / observed.max(1) as f64);
    let [sample, compute, stall, allreduce] = sums.times.map(mean);
    println!("  step, ms     sample {sample}, compute {compute}, stall {stall}, all-reduce {allreduce}");
    for (partition, (rows, busy)) in sums.owners.iter().enumerate().filter(|(_, (rows, _))| *rows > 0) {
        let each = busy.as_secs_f64() * 1e6 / *rows as f64;
        println!("  owner        partition {partition}: {} rows, {each:.2} us each", tidy(*rows as f64));
    }
    println!("  file         {} bytes", tidy(bytes as f64));
}

/// One event in a line, with the halo and the owners of each table.
fn line(event: &Event, tables: &[(Vec<NodeId>, PartitionBook)]) -> String {
    let minibatch = match event {
        Event::EpochEnd => return "epoch ends".to_owned(),
        Event::Gap { events } => return format!("{events} events are missing"),
        Event::Minibatch(minibatch) => minibatch,
    };
    let ms = |time: Duration| format!("{:.3}", time.as_secs_f64() * 1e3);
    let (halo, owners) = &tables[minibatch.table as usize];
    let is_halo = |node: &NodeId| halo.binary_search(node).is_ok();
    let named = |node: &NodeId| {
        let owner = owners.locate(*node).map(|(partition, _)| format!("@{}", partition.0)).unwrap_or_default();
        format!("{}{owner}{}", node.0, if is_halo(node) { "*" } else { "" })
    };
    let first: Vec<String> = minibatch.nodes.iter().take(4).map(named).collect();
    let sent = minibatch.owners.iter().filter(|owner| owner.rows > 0);
    let sent =
        sent.map(|owner| format!("; partition {}: {} rows in {} ms", owner.partition.0, owner.rows, ms(owner.busy)));
    format!(
        "minibatch of {} nodes, {} of the halo ({}{}), {}{}{}; sample {}, compute {}, stall {}, all-reduce {} ms; {} hits, {} rows on demand, {} ahead{}",
        minibatch.nodes.len(),
        minibatch.nodes.iter().filter(|node| is_halo(node)).count(),
        first.join(" "),
        if minibatch.nodes.len() > first.len() { " …" } else { "" },
        minibatch.announced.map_or_else(|| "not announced".to_owned(), |ahead| format!("announced {ahead} ahead")),
        if minibatch.observed { "" } else { ", of evaluation" },
        if minibatch.overlapped { ", overlapped" } else { "" },
        ms(minibatch.step.sample),
        ms(minibatch.step.compute),
        ms(minibatch.stall),
        ms(minibatch.step.allreduce),
        minibatch.hits,
        minibatch.demand_rows,
        minibatch.prefetched_rows,
        sent.collect::<String>(),
    )
}
