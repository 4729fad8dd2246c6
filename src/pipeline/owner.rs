//! What the owners of rows cost, one by one.

use crate::controller::OwnerShare;
use std::time::Duration;

/// What one owner's rows have cost since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OwnerLoad {
    /// Rows that came.
    pub rows: u64,
    /// Time during which any were on their way, as far as they have come.
    pub busy: Duration,
    /// Batches that are on their way, and since when any has been.
    open: u32,
    since: Duration,
}

impl OwnerLoad {
    /// A batch goes out.
    pub(super) fn post(&mut self, now: Duration) {
        if self.open == 0 {
            self.since = now;
        }
        self.open += 1;
    }

    /// A batch has ended.
    pub(super) fn end(&mut self, now: Duration) {
        self.busy += now.saturating_sub(self.since);
        self.since = now;
        self.open -= 1;
    }

    /// A batch will not end: what it has taken says nothing of the owner's rows.
    pub(super) fn lose(&mut self) {
        self.open -= 1;
    }
}

/// Replaces `shares` by what each owner has sent since it was `seen`, which it is now.
pub(super) fn shares_since(owners: &[OwnerLoad], seen: &mut [OwnerShare], shares: &mut Vec<OwnerShare>) {
    let since = |(owner, seen): (&OwnerLoad, &mut OwnerShare)| {
        let now = OwnerShare { rows: owner.rows, busy: owner.busy };
        let before = std::mem::replace(seen, now);
        OwnerShare { rows: now.rows - before.rows, busy: now.busy - before.busy }
    };
    shares.clear();
    shares.extend(owners.iter().zip(seen).map(since));
}
