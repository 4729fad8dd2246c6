//! What is told of an engine to those who watch it.

use super::{Engine, Shared, State, Stats};
use crate::bootstrap::Bootstrap;
use crate::error::Result;
use crate::id::{PartitionId, Rank};
use crate::memory;
use crate::telemetry::{Listener, OwnerSnapshot, Snapshot, TableSnapshot};
use std::net::SocketAddr;
use std::sync::Arc;

impl Shared {
    /// Counts of a table, by its place.
    pub(super) fn stats(&self, state: &State, at: usize) -> Stats {
        let buffer = state.pipeline.tables().nth(at).and_then(|table| table.buffer.as_ref());
        let slots = buffer.map_or(0, |buffer| buffer.slots());
        let memory = &self.tables[at];
        let metadata = buffer.map_or(0, |buffer| buffer.bytes());
        Stats {
            pipeline: state.pipeline.stats(at),
            buffer: buffer.map(|buffer| buffer.counters()).unwrap_or_default(),
            slots,
            buffer_bytes: u64::from(slots) * memory.row_bytes as u64 + metadata as u64 + memory.sharing_bytes,
        }
    }

    fn snapshot(&self, rank: Rank, ranks: u32) -> Snapshot {
        let state = self.lock();
        let table = |at: usize| {
            let owners = (0..).map(PartitionId).zip(state.pipeline.owners(at)).filter(|(_, load)| load.rows > 0);
            let owner = |(partition, load): (PartitionId, &crate::pipeline::OwnerLoad)| OwnerSnapshot {
                partition,
                rows: load.rows,
                busy_s: load.busy.as_secs_f64(),
            };
            TableSnapshot {
                id: state.pipeline.tables().nth(at).expect("a table has a place").id,
                row_bytes: self.tables[at].row_bytes as u64,
                stats: self.stats(&state, at),
                owners: owners.map(owner).collect(),
            }
        };
        let (tables, open_requests) =
            ((0..self.tables.len()).map(table).collect(), state.pipeline.open_requests() as u64);
        drop(state);
        Snapshot {
            uptime_s: self.now().as_secs_f64(),
            failure: self.failure.get().cloned(),
            open_requests,
            tables,
            decisions: self.controller.stats(),
            memory: memory::usage(),
            ..Snapshot::of(rank, ranks, self.transport.name(), self.config.policy.name())
        }
    }
}

/// Listens for watchers, where the configuration says so. That nobody can watch ends no job.
pub(super) fn listen(shared: &Arc<Shared>, bootstrap: &dyn Bootstrap) -> Option<Listener> {
    let wanted = shared.config.metrics?.0;
    let (rank, ranks, weak) = (bootstrap.rank(), bootstrap.size(), Arc::downgrade(shared));
    let render = move || weak.upgrade().map(|shared| shared.snapshot(rank, ranks).prometheus());
    let listener = address_of(wanted, rank).and_then(|address| Listener::start(address, render));
    listener.map_or_else(
        |cause| {
            tracing::warn!(
                "metrics: {rank} cannot listen by {wanted} ({cause}); name other ports, or 0, in RUDDER_METRICS"
            );
            None
        },
        |listener| {
            tracing::info!("metrics: http://{}/metrics, as the configuration says", listener.address());
            Some(listener)
        },
    )
}

/// Ranks count up from the configured port, wherever they run, so that no two of a machine ask for the same; port 0 is any.
fn address_of(mut address: SocketAddr, rank: Rank) -> std::io::Result<SocketAddr> {
    if address.port() != 0 {
        let port = u32::from(address.port()).saturating_add(rank.0);
        address.set_port(u16::try_from(port).map_err(|_| std::io::Error::other(format!("there is no port {port}")))?);
    }
    Ok(address)
}

impl Engine {
    /// All counts at this moment.
    ///
    /// ```
    /// # use rudder::bootstrap::local;
    /// # use rudder::{Config, Engine, NodeId, PartitionBook, PartitionId, TableId, TableSpec};
    /// # use std::sync::Arc;
    /// # const TABLE: TableId = TableId(0);
    /// # let spec = TableSpec::new(TABLE, PartitionBook::from_starts(vec![0, 3])?, PartitionId(0), 4);
    /// # let engine = Engine::builder(Config::default(), Arc::new(local::ranks(1).remove(0)))
    /// #     .table(spec, |rows| rows.copy_from_slice(b"aaaabbbbcccc"))
    /// #     .start()?;
    /// engine.gather(TABLE, &[NodeId(1)], None, &mut [0; 4])?;
    /// let snapshot = engine.snapshot()?;
    /// assert_eq!(snapshot.tables[0].stats.pipeline.local_rows, 1);
    /// assert!(snapshot.prometheus().contains("rudder_local_rows_total{table=\"0\",rank=\"0\"} 1\n"));
    /// # engine.shutdown()?;
    /// # Ok::<(), rudder::Error>(())
    /// ```
    ///
    /// # Errors
    /// In a forked child.
    pub fn snapshot(&self) -> Result<Snapshot> {
        self.shared.check_process()?;
        Ok(self.shared.snapshot(self.bootstrap.rank(), self.bootstrap.size()))
    }

    /// Where this rank's metrics can be read, by HTTP at `/metrics`; `None` where the configuration does not say so, or the address was taken.
    pub fn metrics_address(&self) -> Option<SocketAddr> {
        self.metrics.as_ref().map(Listener::address)
    }

    /// Leaves the counts where the configuration says so.
    pub(super) fn write_stats(&self) {
        let Some(prefix) = &self.shared.config.stats_file else { return };
        let snapshot = self.shared.snapshot(self.bootstrap.rank(), self.bootstrap.size());
        match snapshot.write(prefix) {
            Ok(path) => tracing::info!("counts are in {}", path.display()),
            Err(cause) => tracing::warn!("the counts are lost: {cause}"),
        }
    }
}

#[cfg(test)]
mod tests {
    //! Goal: no two ranks of a machine ask for the same port. Method: the first, the last that has one, and the next.

    use super::*;

    #[test]
    fn ranks_count_up_from_the_port() {
        let of =
            |address: &str, rank| address_of(address.parse().unwrap(), Rank(rank)).map(|address| address.to_string());
        assert_eq!(of("127.0.0.1:9400", 0).unwrap(), "127.0.0.1:9400");
        assert_eq!(of("[::1]:9400", 3).unwrap(), "[::1]:9403");
        assert_eq!(of("127.0.0.1:65000", 535).unwrap(), "127.0.0.1:65535");
        assert!(of("127.0.0.1:65000", 536).unwrap_err().to_string().contains("65536"));
        assert_eq!(of("127.0.0.1:0", 7).unwrap(), "127.0.0.1:0");
    }
}
