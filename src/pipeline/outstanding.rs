//! What a request waits for, by owner: for people who look for the rank that holds their job up.

use super::{Pipeline, RequestId};
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
    /// Who owes rows, by partition and peer; nobody where all that is missing is the copying of rows that are here.
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
            let at = flight.table as usize;
            let (table, partition) = (self.lanes[at].table.id, PartitionId(flight.owner));
            let posted = self.batches.posted_to(flight.batch);
            // The peer that has the rows by now may be another than the one that was asked.
            let peer = posted.map_or_else(|| self.region(at, flight.owner).peer, |(peer, _)| peer);
            let of = (table, partition, peer);
            let known = debts.iter().position(|debt| (debt.table, debt.partition, debt.peer) == of);
            let known = known.unwrap_or_else(|| {
                debts.push(Debt { table, partition, peer, rows: 0, queued: 0, oldest: None });
                debts.len() - 1
            });
            let debt = &mut debts[known];
            debt.rows += rows;
            match posted {
                Some((_, since)) => debt.oldest = debt.oldest.max(Some(now.saturating_sub(since))),
                None => debt.queued += rows,
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
