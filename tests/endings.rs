//! Goal: an engine that is aborted, or whose channel dies or panics, says why, ends what is open, and leaves the other ranks alone; whether
//! its own thread drives the channel or a caller does. Method: jobs of two ranks over a real transport whose channel fails when it is told
//! to, and remembers who has called it.

use rudder::bootstrap::{Bootstrap, local};
use rudder::memory::{Access, Memory, Region};
use rudder::transport::{
    Capabilities, Channel, Completion, Fenced, RemoteRegion, RowBatch, Transport, TransportConfig, Wait, Waker, open,
};
use rudder::{Config, Engine, Error, NodeId, PartitionBook, PartitionId, Rank, Result, TableId, TableSpec};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Barrier, Mutex};
use std::thread::ThreadId;
use std::time::{Duration, Instant};

const TABLE: TableId = TableId(0);
const PATIENCE: Duration = Duration::from_secs(20);

const DIES: u8 = 1;
const PANICS: u8 = 2;

/// What a channel is told, and what it tells.
#[derive(Default)]
struct Fate {
    end: AtomicU8,
    poster: Mutex<Option<ThreadId>>,
}

impl Fate {
    /// Who has posted since the last call.
    fn poster(&self) -> Option<ThreadId> {
        self.poster.lock().unwrap().take()
    }
}

/// A transport whose channel ends as it is told.
struct Mortal {
    inner: Arc<dyn Transport>,
    fate: Arc<Fate>,
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
        Ok(Box::new(MortalChannel { inner: self.inner.channel()?, fate: self.fate.clone() }))
    }
}

struct MortalChannel {
    inner: Box<dyn Channel>,
    fate: Arc<Fate>,
}

// SAFETY: every call goes to a channel that keeps the contract, or does nothing.
unsafe impl Channel for MortalChannel {
    unsafe fn post(&mut self, batch: &RowBatch<'_>) -> Result<usize> {
        *self.fate.poster.lock().unwrap() = Some(std::thread::current().id());
        // SAFETY: the caller's promise, passed on.
        unsafe { self.inner.post(batch) }
    }

    fn poll(&mut self, completions: &mut Vec<Completion>, wait: Wait) -> Result<()> {
        match self.fate.end.load(Ordering::Acquire) {
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
fn job(body: impl Fn(&Engine, &Fate) + Sync) {
    let over = Barrier::new(2);
    std::thread::scope(|scope| {
        for bootstrap in local::ranks(2) {
            let (body, over) = (&body, &over);
            scope.spawn(move || {
                let rank = bootstrap.rank();
                let fate = Arc::new(Fate::default());
                let inner = open("tcp", &TransportConfig::new(rank, 2)).unwrap();
                let book = PartitionBook::from_starts(vec![0, 2, 4]).unwrap();
                let config = Config { map_host_rows: false, rows_max: 16, ..Config::default() };
                let engine = Engine::builder(config, Arc::new(bootstrap))
                    .transport(Arc::new(Mortal { inner, fate: fate.clone() }))
                    .table(TableSpec::new(TABLE, book, PartitionId(rank.0), 2), |rows| rows.fill(rank.0 as u8 + 1))
                    .start()
                    .unwrap();
                assert_eq!(gather(&engine).unwrap(), [1, 1, 2, 2]);
                assert_eq!((engine.failure(), engine.transport()), (None, "tcp"));
                if rank.0 == 0 {
                    body(&engine, &fate);
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
    for (way, words) in [(DIES, "it was told to die"), (PANICS, "a turn of I/O panicked")] {
        job(|engine, fate| {
            fate.end.store(way, Ordering::Release);
            let began = Instant::now();
            while engine.failure().is_none() {
                assert!(began.elapsed() < PATIENCE, "the engine has not noticed");
                std::thread::sleep(Duration::from_millis(5));
            }
            assert!(engine.failure().unwrap().contains(words), "{:?}", engine.failure());
        });
    }
}

/// Waits until a gather is posted by the thread that asks for it: until then the I/O thread may be at the end of what came before.
fn until_driven(engine: &Engine, fate: &Fate) {
    let began = Instant::now();
    while {
        gather(engine).unwrap();
        fate.poster() != Some(std::thread::current().id())
    } {
        assert!(began.elapsed() < PATIENCE, "the I/O thread does not let go of a channel that rests");
    }
}

#[test]
fn few_rows_are_driven_by_their_caller_and_many_are_not() {
    job(|engine, fate| {
        until_driven(engine, fate);
        let nodes = vec![NodeId(3); 2000];
        let mut rows = vec![0; 2 * nodes.len()];
        engine.gather(TABLE, &nodes, None, &mut rows).unwrap();
        assert!(rows.iter().all(|&byte| byte == 2));
        assert_ne!(fate.poster().unwrap(), std::thread::current().id());
        until_driven(engine, fate);
        engine.abort();
    });
}

#[test]
fn a_channel_that_fails_under_its_caller_ends_the_engine_and_no_more() {
    for (way, words) in [(DIES, "it was told to die"), (PANICS, "a turn of I/O panicked")] {
        job(|engine, fate| {
            until_driven(engine, fate);
            fate.end.store(way, Ordering::Release);
            assert!(matches!(gather(engine), Err(Error::Closed)));
            assert!(engine.failure().unwrap().contains(words), "{:?}", engine.failure());
        });
    }
}
