//! Goal: every transport keeps the contract of `Transport` and `Channel`, whatever moves its bytes.
//! Method: one suite, run over every line of `transports!` below, ranks as threads. Rows carry bytes that only one row of one rank can
//! have, destinations lie between guard bytes, and every wait has an end. A new transport is one line.

mod common;

use common::{Landing, Make, get_all, job, named};
use rudder::Rank;
use rudder::transport::{BatchId, RowBatch};

/// Runs every check over every transport, each as a test of its own.
macro_rules! transports {
    ($($name:ident: $make:expr;)*) => {$(
        mod $name {
            use super::*;
            const MAKE: Make = $make;
            checks!(
                rows_are_right_to_the_byte,
            );
        }
    )*};
}

macro_rules! checks {
    ($($check:ident,)*) => {$(
        #[test]
        fn $check() {
            super::$check(MAKE);
        }
    )*};
}

transports! {
    shm: |ranks| named("shm", ranks);
}

const ROWS: u64 = 200;

fn rows_are_right_to_the_byte(make: Make) {
    let rows = [0, 1, 1, 7, 63, 64, ROWS - 1, ROWS - 1];
    let places = [9, 0, 3, 11, 2, 7, 5, 6];
    for row_bytes in [1, 2, 3, 7, 8, 63, 64, 65, 400, 1000, 4095, 4096, 4097] {
        job(make, 2, |me| {
            let (_region, regions) = me.share(ROWS, row_bytes);
            let mut channel = me.channel();
            for (peer, stride) in [(Rank(0), row_bytes), (Rank(1), row_bytes + 3), (Rank(1 - me.rank.0), row_bytes + 64)] {
                let landing = Landing::new(&*me.transport, 12, row_bytes, stride);
                let batch = RowBatch {
                    id: BatchId(0),
                    region: regions[peer.index()],
                    version: 0,
                    row_bytes,
                    rows: &rows,
                    places: &places,
                    destination: landing.destination(),
                };
                get_all(&mut *channel, &batch).into_iter().for_each(|status| status.expect("the row is there"));
                landing.assert_rows(peer, &rows, &places);
                landing.assert_untouched_except(&places);
            }
            me.barrier();
        });
    }
}
