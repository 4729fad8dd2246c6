//! Goal: a forked child owns no device, file or peer of its parent: every call answers that it is forked, and dropping touches nothing.
//! Method: the child of a process with an engine tries each call and leaves with a status; the parent gathers before and after.

use rudder::bootstrap::{Bootstrap, local};
use rudder::memory::Access;
use rudder::transport::{BatchId, Destination, RowBatch, TransportConfig, Wait, open};
use rudder::{Config, Engine, Error, NodeId, PartitionBook, PartitionId, Rank, StreamId, TableId, TableSpec};
use std::sync::Arc;
use std::time::Duration;

#[cfg(feature = "fabric")]
const TRANSPORTS: &[&str] = &["shm", "tcp", "fabric"];
#[cfg(not(feature = "fabric"))]
const TRANSPORTS: &[&str] = &["shm", "tcp"];
const TABLE: TableId = TableId(0);

fn gather(engine: &Engine) -> Result<[u8; 4], Error> {
    let mut rows = [0; 4];
    engine.gather(TABLE, &[NodeId(0), NodeId(3)], None, &mut rows).map(|()| rows)
}

/// The number of the first call that a child may make, or 0.
fn try_everything(engine: Engine, request: rudder::Request) -> i32 {
    let forked = |result: Result<(), Error>| matches!(result, Err(Error::Forked));
    let refused = [
        forked(gather(&engine).map(drop)),
        forked(engine.announce(StreamId(0), &[TABLE], &[NodeId(1)]).map(drop)),
        forked(engine.rows(TABLE, 1).map(drop)),
        forked(request.test().map(drop)),
        forked(request.wait().map(drop)),
        forked(engine.shutdown()),
    ];
    refused.iter().position(|refused| !refused).map_or(0, |at| at as i32 + 1)
}

#[test]
fn a_forked_child_is_told_so_and_harms_nothing() {
    for name in TRANSPORTS {
        std::thread::scope(|scope| {
            for bootstrap in local::ranks(2) {
                scope.spawn(move || {
                    let rank = bootstrap.rank();
                    let transport = open(name, &TransportConfig::new(rank, 2)).unwrap();
                    let config = Config { map_host_rows: false, rows_max: 16, ..Config::default() };
                    let book = PartitionBook::from_starts(vec![0, 2, 4]).unwrap();
                    let spec = TableSpec::new(TABLE, book, PartitionId(rank.0), 2);
                    let fill = |rows: &mut [u8]| rows.fill(rank.0 as u8 + 1);
                    let engine = Engine::builder(config, Arc::new(bootstrap));
                    let engine = engine.transport(transport).table(spec, fill).start().unwrap();
                    assert_eq!(gather(&engine).unwrap(), [1, 1, 2, 2]);
                    if rank.0 == 0 {
                        let rows = engine.rows(TABLE, 1).unwrap();
                        let request = engine.start(TABLE, &[NodeId(2)], None, rows).unwrap();
                        // SAFETY: the child runs Rust code that takes no lock which another thread of the parent may hold, but the
                        // allocator's, which the C library makes usable in the child; it ends by `_exit`.
                        match unsafe { libc::fork() } {
                            0 => {
                                let status = try_everything(engine, request);
                                // SAFETY: ends the child without running what belongs to the parent.
                                unsafe { libc::_exit(status) }
                            }
                            child => {
                                assert!(child > 0, "fork failed");
                                let mut status = 0;
                                // SAFETY: waits for the child just made.
                                unsafe { libc::waitpid(child, &mut status, 0) };
                                assert_eq!(status, 0, "{name}: the child made call {}", status >> 8);
                                assert_eq!(request.wait().unwrap().as_bytes(), [2, 2]);
                            }
                        }
                        for _ in 0..20 {
                            assert_eq!(gather(&engine).unwrap(), [1, 1, 2, 2]);
                        }
                        engine.shutdown().unwrap();
                    } else {
                        engine.shutdown().unwrap();
                    }
                });
            }
        });
    }
}

#[test]
fn a_child_that_drops_its_parents_transport_leaves_it_serving() {
    for name in TRANSPORTS {
        let transport = open(name, &TransportConfig::new(Rank(0), 1)).unwrap();
        transport.connect(&[transport.address()]).unwrap();
        let region = transport.allocate(64, Access::RemoteRead).unwrap();
        // SAFETY: as above; a child that waits for its parent's threads is ended by the alarm.
        match unsafe { libc::fork() } {
            0 => {
                // SAFETY: the alarm's default action ends the child.
                unsafe { libc::alarm(20) };
                drop(region);
                drop(transport);
                // SAFETY: ends the child without running what belongs to the parent.
                unsafe { libc::_exit(0) }
            }
            child => {
                assert!(child > 0, "fork failed");
                let mut status = -1;
                // SAFETY: waits for the child just made.
                unsafe { libc::waitpid(child, &mut status, 0) };
                assert_eq!(status, 0, "{name}: the child did not end");
            }
        }
        let imported = transport.import(Rank(0), region.token()).unwrap();
        let mut channel = transport.channel().unwrap();
        let mut landing = [0xEE; 64];
        let destination = Destination { base: landing.as_mut_ptr(), stride: 64, places: 1 };
        let (rows, places) = (&[0], &[0]);
        let batch = RowBatch { id: BatchId(1), region: imported, version: 0, row_bytes: 64, rows, places, destination };
        // SAFETY: the landing lives until the channel has reported the row.
        assert_eq!(unsafe { channel.post(&batch) }.unwrap(), 1);
        let mut completions = Vec::new();
        while completions.is_empty() {
            channel.poll(&mut completions, Wait::For(Duration::from_secs(20))).unwrap();
        }
        assert_eq!((completions[0].status.clone(), landing), (Ok(()), [0; 64]), "{name}");
    }
}
