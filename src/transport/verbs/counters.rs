//! What the transport did, for tests and reports.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// What a [`VerbsTransport`](super::VerbsTransport) has done so far; all channels together.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct VerbsCounters {
            $($(#[$doc])* pub $name: u64,)*
        }

        /// The same, as it is counted: by each list of reads, never by each row.
        #[derive(Default)]
        pub struct Counters {
            $(pub $name: AtomicU64,)*
        }

        impl Counters {
            pub fn read(&self) -> VerbsCounters {
                VerbsCounters { $($name: self.$name.load(Relaxed),)* }
            }
        }
    };
}

counters! {
    /// Rows that channels accepted.
    rows,
    /// One-sided reads posted for rows: fewer than rows where neighbours were merged.
    row_reads,
    /// One-sided reads posted for versions: two a list.
    version_reads,
    /// Lists posted, each by one ring of the doorbell.
    doorbells,
    /// Completions taken from the device.
    completions,
    /// Posts of a batch that found the channel full.
    posts_refused,
    /// Lists that the device did not take at once and that were posted again.
    posts_retried,
    /// Memory registrations.
    registrations,
    /// Bytes that are pinned by registrations now.
    pinned_bytes,
    /// Connections made to peers.
    connections,
    /// Connections that ended by an error.
    connections_failed,
}

pub fn add(counter: &AtomicU64, value: usize) {
    counter.fetch_add(value as u64, Relaxed);
}

pub fn subtract(counter: &AtomicU64, value: usize) {
    counter.fetch_sub(value as u64, Relaxed);
}
