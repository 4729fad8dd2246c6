//! Goal: an engine that is aborted, or whose channel dies or panics, says why, ends what is open, and leaves the other ranks alone.
//! Method: jobs of two ranks over a real transport whose channel fails when it is told to.

use rudder::bootstrap::{Bootstrap, local};
use rudder::memory::{Access, Memory, Region};
use rudder::transport::{
    Capabilities, Channel, Completion, Fenced, RemoteRegion, RowBatch, Transport, TransportConfig, Wait, Waker, open,
};
use rudder::{Config, Engine, Error, NodeId, PartitionBook, PartitionId, Rank, Result, TableId, TableSpec};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

const TABLE: TableId = TableId(0);
const PATIENCE: Duration = Duration::from_secs(20);

const WELL: u8 = 0;
const DIES: u8 = 1;
const PANICS: u8 = 2;

/// A transport whose channel ends as it is told.
struct Mortal {
    inner: Arc<dyn Transport>,
    end: Arc<AtomicU8>,
}

impl Transport for Mortal {
    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn address(&self) -> Vec<u8> {
        self.inner.address()
    }

    fn connect(&self, addresses: &[Vec<u8>]) -> Result<()> {
        self.inner.connect(addresses)
    }

    fn allocate(&self, bytes: usize, access: Access) -> Result<Region> {
        self.inner.allocate(bytes, access)
    }

    unsafe fn register(&self, memory: Memory, access: Access) -> Result<Region> {
        // SAFETY: the caller's promise, passed on.
        unsafe { self.inner.register(memory, access) }
    }

    fn import(&self, peer: Rank, token: &[u8]) -> Result<RemoteRegion> {
        self.inner.import(peer, token)
    }

    fn channel(&self) -> Result<Box<dyn Channel>> {
        Ok(Box::new(MortalChannel { inner: self.inner.channel()?, end: self.end.clone() }))
    }
}

struct MortalChannel {
    inner: Box<dyn Channel>,
    end: Arc<AtomicU8>,
}

// SAFETY: every call goes to a channel that keeps the contract, or does nothing.
unsafe impl Channel for MortalChannel {
    unsafe fn post(&mut self, batch: &RowBatch<'_>) -> Result<usize> {
        // SAFETY: the caller's promise, passed on.
        unsafe { self.inner.post(batch) }
    }

    fn poll(&mut self, completions: &mut Vec<Completion>, wait: Wait) -> Result<()> {
        match self.end.load(Ordering::Acquire) {
            DIES => Err(Error::Transport { transport: "mortal", cause: "it was told to die".into() }),
            PANICS => panic!("told to panic"),
            _ => self.inner.poll(completions, wait),
        }
    }

    fn abort(&mut self, peer: Rank) -> Result<Fenced> {
        self.inner.abort(peer)
    }

    fn waker(&self) -> Waker {
        self.inner.waker()
    }
}

fn gather(engine: &Engine) -> Result<[u8; 4]> {
    let mut rows = [0; 4];
    engine.gather(TABLE, &[NodeId(0), NodeId(3)], None, &mut rows).map(|()| rows)
}

/// Runs `body` with the engine of rank 0, whose end it decides on; rank 1 gathers after it as before it.
fn job(body: impl Fn(&Engine, &AtomicU8) + Sync) {
    let over = Barrier::new(2);
    std::thread::scope(|scope| {
        for bootstrap in local::ranks(2) {
            let (body, over) = (&body, &over);
            scope.spawn(move || {
                let rank = bootstrap.rank();
                let end = Arc::new(AtomicU8::new(WELL));
                let inner = open("tcp", &TransportConfig::new(rank, 2)).unwrap();
                let book = PartitionBook::from_starts(vec![0, 2, 4]).unwrap();
                let config = Config { map_host_rows: false, rows_max: 16, ..Config::default() };
                let engine = Engine::builder(config, Arc::new(bootstrap))
                    .transport(Arc::new(Mortal { inner, end: end.clone() }))
                    .table(TableSpec::new(TABLE, book, PartitionId(rank.0), 2), |rows| rows.fill(rank.0 as u8 + 1))
                    .start()
                    .unwrap();
                assert_eq!(gather(&engine).unwrap(), [1, 1, 2, 2]);
                assert_eq!((engine.failure(), engine.transport()), (None, "tcp"));
                if rank.0 == 0 {
                    body(&engine, &end);
                    assert!(matches!(gather(&engine), Err(Error::Closed)));
                    over.wait();
                } else {
                    over.wait();
                    assert_eq!(gather(&engine).unwrap(), [1, 1, 2, 2]);
                    assert_eq!(engine.failure(), None);
                }
                // The rows of a rank are served until it drops its engine.
                over.wait();
            });
        }
    });
}

#[test]
fn an_aborted_engine_ends_alone() {
    job(|engine, _| {
        let rows = engine.rows(TABLE, 1).unwrap();
        let request = engine.start(TABLE, &[NodeId(3)], None, rows).unwrap();
        engine.abort();
        engine.abort();
        // Its row may have come before.
        assert!(request.test().unwrap());
        assert!(matches!(request.wait().map(drop), Ok(()) | Err(Error::Closed)));
        assert_eq!(engine.failure(), None);
    });
}

#[test]
fn an_engine_that_fails_says_why() {
    for (way, words) in [(DIES, "it was told to die"), (PANICS, "the I/O thread panicked")] {
        job(|engine, end| {
            end.store(way, Ordering::Release);
            let began = Instant::now();
            while engine.failure().is_none() {
                assert!(began.elapsed() < PATIENCE, "the engine has not noticed");
                std::thread::sleep(Duration::from_millis(5));
            }
            assert!(engine.failure().unwrap().contains(words), "{:?}", engine.failure());
        });
    }
}
