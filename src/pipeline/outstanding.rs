//! What a request waits for, by owner: for people who look for the rank that holds their job up.

use super::batch::BatchState;
use super::{Pipeline, RequestId, Source};
use crate::id::{PartitionId, Rank, TableId};
use std::fmt;
use std::time::Duration;

/// The rows that a request waits for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outstanding {
    /// Rows of the request.
    pub rows: usize,
    /// Rows that are not in place.
    pub missing: usize,
    /// Time since it was started.
    pub age: Duration,
    /// Who owes rows, by partition; nobody where all that is missing is the copying of rows that are here.
    pub debts: Vec<Debt>,
}

/// Rows of one owner that have not come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Debt {
    /// The table.
    pub table: TableId,
    /// The partition.
    pub partition: PartitionId,
    /// The rank that is asked for them.
    pub peer: Rank,
    /// How many.
    pub rows: usize,
    /// Of these, rows that were not posted yet, or wait to be tried again.
    pub queued: usize,
    /// Time since the oldest batch with any of them was posted; `None` where none is.
    pub oldest: Option<Duration>,
}

impl Pipeline {
    /// What a request waits for; `None` where it is collected. It looks at every row under way.
    pub fn outstanding(&self, now: Duration, id: RequestId) -> Option<Outstanding> {
        let request = self.requests.get(id)?;
        let mut debts: Vec<Debt> = Vec::new();
        for (flight, rows) in self.flights.awaited(id) {
            let lane = &self.lanes[flight.table as usize];
            let (table, partition) = (lane.table.id, PartitionId(flight.owner));
            let Source::Remote(region) = lane.table.sources[partition.index()] else { continue };
            let known = debts.iter().position(|debt| (debt.table, debt.partition) == (table, partition));
            let at = known.unwrap_or_else(|| {
                debts.push(Debt { table, partition, peer: region.peer, rows: 0, queued: 0, oldest: None });
                debts.len() - 1
            });
            let debt = &mut debts[at];
            debt.rows += rows;
            match self.batches.state_of(flight.batch) {
                Some((BatchState::Posted, posted_at)) => {
                    debt.oldest = debt.oldest.max(Some(now.saturating_sub(posted_at)));
                }
                _ => debt.queued += rows,
            }
        }
        debts.sort_unstable_by_key(|debt| std::cmp::Reverse(debt.rows));
        let age = now.saturating_sub(request.started);
        Some(Outstanding { rows: request.rows, missing: request.missing as usize, age, debts })
    }
}

/// Owners that are named.
const NAMED_MAX: usize = 8;

impl fmt::Display for Outstanding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.debts.is_empty() {
            return f.write_str("all have come, and are being copied");
        }
        for (at, debt) in self.debts.iter().take(NAMED_MAX).enumerate() {
            let Debt { table, partition, peer, rows, queued, oldest } = debt;
            let comma = if at > 0 { "; " } else { "" };
            write!(f, "{comma}{rows} of {table} from {peer} ({partition}), {queued} of them not posted")?;
            if let Some(oldest) = oldest {
                write!(f, ", the oldest batch posted {:.1} s ago", oldest.as_secs_f64())?;
            }
        }
        match self.debts.len().saturating_sub(NAMED_MAX) {
            0 => Ok(()),
            more => write!(f, "; and rows of {more} more owners"),
        }
    }
}
