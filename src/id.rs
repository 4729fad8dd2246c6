//! Identifiers: one newtype for each thing that the library counts, so that no two can be swapped.

use serde::{Deserialize, Serialize};
use std::fmt;

macro_rules! identifiers {
    ($($(#[$doc:meta])* $name:ident($int:ty), $label:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[repr(transparent)]
        pub struct $name(pub $int);

        impl $name {
            /// The identifier as an index.
            #[inline]
            pub fn index(self) -> usize {
                self.0 as usize
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($label, " {}"), self.0)
            }
        }
    )*};
}

identifiers! {
    /// One process of the job.
    Rank(u32), "rank";
    /// Rows owned together.
    PartitionId(u32), "partition";
    /// One feature table of the job: a node type and one of its features.
    TableId(u32), "table";
    /// A graph vertex, global within its table.
    NodeId(u64), "node";
    /// One row of the prefetch buffer.
    Slot(u32), "slot";
    /// One order of minibatches, such as a data loader's: tickets of a stream are used in the order in which they were announced.
    StreamId(u32), "stream";
}
