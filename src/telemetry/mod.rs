//! What an engine counts, for those who watch it: as a document, in the text format of Prometheus, and at an address where that is asked for.
//!
//! Everything is made of one [`Snapshot`], taken by whoever asks and off the data path: that counts into plain fields whether anybody watches
//! or not.

mod listener;
mod prometheus;

pub(crate) use listener::Listener;

use crate::controller::DecisionStats;
use crate::engine::Stats;
use crate::error::{Error, Result};
use crate::id::{PartitionId, Rank, TableId};
use crate::memory::Usage;
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// The document's format; a reader checks it.
const FORMAT: u32 = 1;

/// All counts of one rank's engine at one moment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// 1.
    pub format: u32,
    /// The version of the library.
    pub rudder: String,
    /// This rank.
    pub rank: Rank,
    /// Number of ranks.
    pub ranks: u32,
    /// The transport that moves rows.
    pub transport: String,
    /// The replacement policy.
    pub policy: String,
    /// Seconds since the engine was made.
    pub uptime_s: f64,
    /// Why the engine has ended by itself, where it has.
    pub failure: Option<String>,
    /// Gathers that were started and not collected.
    pub open_requests: u64,
    /// By table, in the order of registration.
    pub tables: Vec<TableSnapshot>,
    /// The controller.
    pub decisions: DecisionStats,
    /// What the process holds for rows, all its engines together.
    pub memory: Usage,
}

/// Counts of one table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TableSnapshot {
    /// Its name.
    pub id: TableId,
    /// Bytes of a row.
    pub row_bytes: u64,
    /// As [`Engine::stats`](crate::Engine::stats).
    #[serde(flatten)]
    pub stats: Stats,
    /// Of the partitions whose rows have travelled.
    pub owners: Vec<OwnerSnapshot>,
}

/// What one partition's rows have cost.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OwnerSnapshot {
    /// The partition.
    pub partition: PartitionId,
    /// Rows that came.
    pub rows: u64,
    /// Seconds during which any were on their way.
    pub busy_s: f64,
}

impl TableSnapshot {
    /// Rows that were fetched, for whatever reason.
    pub fn rows_fetched(&self) -> u64 {
        let counts = &self.stats.pipeline;
        counts.demand_rows + counts.prefetched_rows + counts.fill_rows
    }
}

impl Snapshot {
    /// What is the same whenever it is taken, without any counts yet.
    pub(crate) fn of(rank: Rank, ranks: u32, transport: &str, policy: &str) -> Self {
        Self {
            format: FORMAT,
            rudder: env!("CARGO_PKG_VERSION").to_owned(),
            rank,
            ranks,
            transport: transport.to_owned(),
            policy: policy.to_owned(),
            uptime_s: 0.0,
            failure: None,
            open_requests: 0,
            tables: Vec::new(),
            decisions: DecisionStats::default(),
            memory: Usage::default(),
        }
    }

    /// In the text format of Prometheus, version 0.0.4.
    pub fn prometheus(&self) -> String {
        prometheus::text(self)
    }

    /// Writes it as JSON to `PREFIX.RANK.json`: under another name first, so that nobody reads half of it.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(crate) fn write(&self, prefix: &Path) -> Result<PathBuf> {
        let mut name = OsString::from(prefix);
        name.push(format!(".{}.json", self.rank.0));
        let path = PathBuf::from(name);
        let partial = path.with_extension("partial");
        let json = serde_json::to_vec_pretty(self).map_err(std::io::Error::other);
        let written =
            json.and_then(|json| std::fs::write(&partial, json)).and_then(|()| std::fs::rename(&partial, &path));
        written.map_err(|cause| Error::config(format!("stats_file {}: {cause}", path.display())))?;
        Ok(path)
    }
}
