//! Goal: a comm whose transport fails by itself says so by `rudder_comm_async_error` and at every call after it. Method: a comm over a channel that
//! fails at the first gather. What can be done from outside is tested by the programs under tests/capi/.

use super::comm::{COMMS, Comm, rudder_comm, rudder_comm_async_error, rudder_comm_destroy};
use super::gather::rudder_gather;
use super::handle::Handle;
use super::status::{RUDDER_CLOSED, RUDDER_DONE, RUDDER_TRANSPORT, rudder_last_error};
use super::table::{TABLES, Table, rudder_table};
use crate::bootstrap::local;
use crate::engine::{Engine, TableSpec};
use crate::error::{Error, Result};
use crate::memory::{Access, Memory, Region};
use crate::transport::{
    Capabilities, Channel, Completion, Fenced, RemoteRegion, RowBatch, Transport, TransportConfig, Wait, Waker, open,
};
use crate::{Config, PartitionBook, PartitionId, Rank, TableId};
use std::ffi::CStr;
use std::sync::Arc;

struct Doomed(Arc<dyn Transport>);

impl Transport for Doomed {
    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn capabilities(&self) -> Capabilities {
        self.0.capabilities()
    }

    fn address(&self) -> Vec<u8> {
        self.0.address()
    }

    fn connect(&self, addresses: &[Vec<u8>]) -> Result<()> {
        self.0.connect(addresses)
    }

    fn allocate(&self, bytes: usize, access: Access) -> Result<Region> {
        self.0.allocate(bytes, access)
    }

    unsafe fn register(&self, memory: Memory, access: Access) -> Result<Region> {
        // SAFETY: the caller's promise, passed on.
        unsafe { self.0.register(memory, access) }
    }

    fn import(&self, peer: Rank, token: &[u8]) -> Result<RemoteRegion> {
        self.0.import(peer, token)
    }

    fn channel(&self) -> Result<Box<dyn Channel>> {
        Ok(Box::new(DoomedChannel { inner: self.0.channel()?, posted: false }))
    }
}

struct DoomedChannel {
    inner: Box<dyn Channel>,
    posted: bool,
}

// SAFETY: it takes batches and never writes a row of them.
unsafe impl Channel for DoomedChannel {
    unsafe fn post(&mut self, batch: &RowBatch<'_>) -> Result<usize> {
        self.posted = true;
        Ok(batch.rows.len())
    }

    fn poll(&mut self, completions: &mut Vec<Completion>, wait: Wait) -> Result<()> {
        if self.posted {
            return Err(Error::Transport { transport: "tcp", cause: "its cable was cut".into() });
        }
        self.inner.poll(completions, wait)
    }

    fn abort(&mut self, peer: Rank) -> Result<Fenced> {
        self.inner.abort(peer)
    }

    fn waker(&self) -> Waker {
        self.inner.waker()
    }
}

fn engine(bootstrap: local::LocalBootstrap, rank: u32) -> Engine {
    let book = PartitionBook::from_starts(vec![0, 1, 2]).unwrap();
    let inner = open("tcp", &TransportConfig::new(Rank(rank), 2)).unwrap();
    let config = Config { map_host_rows: false, ..Config::default() };
    Engine::builder(config, Arc::new(bootstrap))
        .transport(Arc::new(Doomed(inner)))
        .table(TableSpec::new(TableId(0), book, PartitionId(rank), 4), |_| ())
        .start()
        .unwrap()
}

fn last_error() -> String {
    // SAFETY: the text is the thread's own until its next failing call.
    unsafe { CStr::from_ptr(rudder_last_error()) }.to_string_lossy().into_owned()
}

#[test]
fn a_comm_that_fails_by_itself_says_why() {
    let mut ranks = local::ranks(2);
    let other = ranks.pop().unwrap();
    let other = std::thread::spawn(move || engine(other, 1));
    let comm = Arc::new(Comm::started_as(engine(ranks.remove(0), 0)));
    let table = Table { comm: comm.clone(), id: TableId(0), row_bytes: 4 };
    let handle: Handle = COMMS.insert(comm).unwrap();
    let table: *mut rudder_table = TABLES.insert(table).unwrap().to_pointer();
    let comm: *mut rudder_comm = handle.to_pointer();
    let (node, mut row, mut error) = (1, [0u8; 4], RUDDER_CLOSED);
    // SAFETY: everything pointed to is there, and as long as the calls are told.
    unsafe {
        assert_eq!((rudder_comm_async_error(comm, &mut error), error), (RUDDER_DONE, RUDDER_DONE));
        for _ in 0..2 {
            assert_eq!(rudder_gather(table, &node, 1, 0, row.as_mut_ptr().cast(), 4), RUDDER_CLOSED);
            assert_eq!(last_error(), "the comm has ended by an error: transport tcp: its cable was cut");
        }
        assert_eq!((rudder_comm_async_error(comm, &mut error), error), (RUDDER_DONE, RUDDER_TRANSPORT));
        assert!(last_error().contains("its cable was cut"));
    }
    assert_eq!(rudder_comm_destroy(comm), RUDDER_DONE);
    drop(other.join());
}
