//! Our transports, as contenders.

use super::contender::{Contender, bytes};
use super::content;
use super::wants::Wants;
use super::world::{Waiting, World};
use anyhow::{Context, Result, ensure};
use rudder::Rank;
use rudder::memory::{Access, Region};
use rudder::transport::{
    self, BatchId, Channel, Completion, Destination, RemoteRegion, RowBatch, Transport, TransportConfig, Wait,
};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A gather that takes longer is a failure, not a slow sample.
const GATHER_TIMEOUT: Duration = Duration::from_secs(30);

/// One of our transports, with every rank's table. Fields are dropped in this order: who reads goes before what is read.
pub struct Ours {
    name: String,
    channel: Box<dyn Channel>,
    landing: Region,
    tables: Vec<RemoteRegion>,
    #[expect(dead_code, reason = "held until the end: other ranks read it")]
    table: Region,
    #[expect(dead_code, reason = "as above")]
    transport: Arc<dyn Transport>,
    places: Vec<u32>,
    completions: Vec<Completion>,
    posted: usize,
    begun: Instant,
}

/// Opens a transport that has not met the other ranks yet.
pub fn open(world: &World, name: &str, listen: IpAddr) -> Result<Arc<dyn Transport>> {
    let job = TransportConfig::new(Rank(world.rank), world.size);
    let config = TransportConfig { ranks_on_host: world.ranks_on_host, listen, ..job };
    transport::open(name, &config).with_context(|| format!("transport {name}"))
}

impl Ours {
    /// Opens the transport and fills a table on every rank. Collective.
    pub fn new(world: &World, name: &str, listen: IpAddr, table_bytes: usize, landing_bytes: usize) -> Result<Self> {
        let transport = open(world, name, listen)?;
        transport.connect(&world.gather(&transport.address())?)?;
        let table = transport.allocate(table_bytes, Access::RemoteRead)?;
        content::fill_memory(world.rank, table.memory());
        let tokens = world.gather(table.token())?;
        let ranks = (0..world.size).filter(|&rank| rank != world.rank);
        // A rank does not read from itself.
        let own = RemoteRegion { peer: Rank(world.rank), index: u32::MAX, bytes: 0 };
        let mut tables = vec![own; world.size as usize];
        for rank in ranks {
            tables[rank as usize] = transport.import(Rank(rank), &tokens[rank as usize])?;
        }
        let landing = transport.allocate(landing_bytes, Access::Local)?;
        let channel = transport.channel()?;
        let (places, completions, begun) = (Vec::new(), Vec::new(), Instant::now());
        Ok(Self {
            name: name.into(),
            channel,
            landing,
            tables,
            table,
            transport,
            places,
            completions,
            posted: 0,
            begun,
        })
    }

    /// Posts as many rows as the channel takes.
    fn post(&mut self, wants: &Wants) -> Result<()> {
        while self.posted < wants.rows.len() {
            let part = wants.parts.iter().find(|part| part.places.contains(&self.posted)).context("parts have gaps")?;
            let memory = self.landing.memory();
            let destination =
                Destination { base: memory.base(), stride: wants.row_bytes, places: memory.bytes() / wants.row_bytes };
            let rest = self.posted..part.places.end;
            let batch = RowBatch {
                id: BatchId(self.posted as u64),
                region: self.tables[part.owner as usize],
                version: 0,
                row_bytes: wants.row_bytes,
                rows: &wants.rows[rest.clone()],
                places: &self.places[rest.clone()],
                destination,
            };
            // SAFETY: the landing is this value's, each row has a place of its own, and nobody looks at it before all have landed; an
            // error ends the program's use of it.
            let accepted = unsafe { self.channel.post(&batch)? };
            self.posted += accepted;
            if accepted < rest.len() {
                break;
            }
        }
        Ok(())
    }
}

impl Contender for Ours {
    fn name(&self) -> &str {
        &self.name
    }

    fn owners(&self) -> Waiting {
        // Those of the others need nothing of MPI, and a rank that calls it all the time takes a core from them.
        if self.name == "mpi" { Waiting::InMpi } else { Waiting::Outside }
    }

    fn start(&mut self, wants: &Wants) -> Result<()> {
        for place in self.places.len()..wants.rows.len() {
            self.places.push(place as u32);
        }
        (self.posted, self.begun) = (0, Instant::now());
        self.post(wants)
    }

    fn finish(&mut self, wants: &Wants) -> Result<()> {
        let mut landed = 0;
        while landed < wants.rows.len() {
            ensure!(
                self.begun.elapsed() < GATHER_TIMEOUT,
                "{}: a gather is not over after {GATHER_TIMEOUT:?}",
                self.name
            );
            self.channel.poll(&mut self.completions, Wait::For(Duration::from_millis(100)))?;
            for completion in self.completions.drain(..) {
                completion.status.with_context(|| format!("{}: a get failed", self.name))?;
                landed += completion.count as usize;
            }
            self.post(wants)?;
        }
        Ok(())
    }

    fn landed(&self) -> &[u8] {
        bytes(self.landing.memory())
    }
}
