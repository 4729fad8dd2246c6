//! The process that measures, with the owner's process as its child.

#[cfg(feature = "fabric")]
use super::fi_read::FiRead;
use super::floor::{Floor, Kernel, Memcpy, Streams, Twin};
use super::hex::{from_hex, to_hex};
use super::{ASKER, BATCH_TIMEOUT, OWNER, Opened, STREAMS, open};
use anyhow::{Context, Result, anyhow, bail, ensure};
use rudder::memory::Memory;
use rudder::transport::{BatchId, Channel, Destination, RemoteRegion, RowBatch, Transport, Wait};
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// It fills its table before it answers.
const OWNER_SAYS_WITHIN: Duration = Duration::from_secs(60);
const OWNER_ENDS_WITHIN: Duration = Duration::from_secs(5);

/// A transport that has met its owner.
pub(super) struct Asker {
    pub(super) transport: Arc<dyn Transport>,
    pub(super) provider: String,
    /// To the owner, for plain streams.
    pub(super) sockets: Vec<TcpStream>,
    to_owner: Option<ChildStdin>,
    from_owner: Receiver<String>,
    owner: Child,
}

/// The owner's table.
#[derive(Clone, Copy)]
pub(super) struct Table {
    pub(super) region: RemoteRegion,
    pub(super) row_bytes: usize,
    pub(super) rows: usize,
}

impl Asker {
    pub(super) fn start(name: &str) -> Result<Self> {
        let Opened { transport, provider } = open(name, ASKER)?;
        let mut owner = Command::new(std::env::current_exe()?)
            .args(["get", "--serve", name])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start the owner's process")?;
        let (Some(mut to_owner), Some(stdout)) = (owner.stdin.take(), owner.stdout.take()) else {
            bail!("the owner's process has no pipes");
        };
        let from_owner = lines_of(stdout);
        let hello = hear(&from_owner)?;
        let (address, port) = hello.split_once(' ').context("the owner's process did not say where it is")?;
        let addresses = [from_hex(address)?, transport.address()];
        let sockets = streams(port.parse()?)?;
        writeln!(to_owner, "connect {}", to_hex(&addresses[1]))?;
        transport.connect(&addresses)?;
        hear(&from_owner)?;
        Ok(Self { transport, provider, sockets, to_owner: Some(to_owner), from_owner, owner })
    }

    pub(super) fn table(&mut self, bytes: usize, row_bytes: usize) -> Result<Table> {
        let rows = (bytes / row_bytes).max(1);
        let to_owner = self.to_owner.as_mut().context("the owner's process is gone")?;
        writeln!(to_owner, "table {rows} {row_bytes}")?;
        let token = from_hex(&hear(&self.from_owner)?)?;
        Ok(Table { region: self.transport.import(OWNER, &token)?, row_bytes, rows })
    }

    /// What the table's rows are measured beside: where memory is shared, what memory gives; elsewhere, what sockets give, and libfabric by
    /// itself beside the transport over it.
    pub(super) fn floors(
        &mut self,
        table: Table,
        twins: Option<&[Rc<Twin>; 2]>,
        batch: usize,
    ) -> Result<Vec<Box<dyn Floor>>> {
        if let Some([first, second]) = twins {
            let kernel = Kernel { twin: second.clone(), places: (0..batch as u32).collect() };
            return Ok(vec![Box::new(Memcpy(first.clone())), Box::new(kernel)]);
        }
        let streams = |name, count| -> Result<Box<dyn Floor>> {
            let sockets = self.sockets[..count].iter().map(TcpStream::try_clone).collect::<Result<_, _>>()?;
            Ok(Box::new(Streams { name, sockets, row_bytes: table.row_bytes }))
        };
        #[cfg_attr(not(feature = "fabric"), expect(unused_mut, reason = "libfabric adds one"))]
        let mut floors = vec![streams("stream", 1)?, streams("2 streams", STREAMS)?];
        #[cfg(feature = "fabric")]
        if self.transport.name() == "fabric" {
            let to_owner = self.to_owner.as_mut().context("the owner's process is gone")?;
            writeln!(to_owner, "offer")?;
            floors.push(Box::new(FiRead::new(&self.provider, &hear(&self.from_owner)?, table.row_bytes)?));
        }
        Ok(floors)
    }
}

impl Drop for Asker {
    fn drop(&mut self) {
        // The owner ends when its input does, unless something is wrong with it.
        drop(self.to_owner.take());
        let begun = Instant::now();
        while begun.elapsed() < OWNER_ENDS_WITHIN && matches!(self.owner.try_wait(), Ok(None)) {
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = self.owner.kill();
        let _ = self.owner.wait();
    }
}

fn streams(port: u16) -> Result<Vec<TcpStream>> {
    let stream = |_| {
        let socket = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(BATCH_TIMEOUT))?;
        Ok(socket)
    };
    (0..STREAMS).map(stream).collect()
}

/// What the owner says, line by line.
fn lines_of(stdout: ChildStdout) -> Receiver<String> {
    let (say, hear) = channel();
    std::thread::spawn(move || {
        BufReader::new(stdout).lines().map_while(Result::ok).try_for_each(|line| say.send(line))
    });
    hear
}

fn hear(from_owner: &Receiver<String>) -> Result<String> {
    from_owner.recv_timeout(OWNER_SAYS_WITHIN).map_err(|cause| match cause {
        RecvTimeoutError::Timeout => anyhow!("the owner's process says nothing for {OWNER_SAYS_WITHIN:?}"),
        RecvTimeoutError::Disconnected => anyhow!("the owner's process ended"),
    })
}

/// Gets rows, the first of them to place `first`, and returns when all are there.
pub(super) fn gather(
    channel: &mut dyn Channel,
    table: Table,
    rows: &[u64],
    first: usize,
    landing: &Memory,
) -> Result<()> {
    let begun = Instant::now();
    let places: Vec<u32> = (first as u32..(first + rows.len()) as u32).collect();
    let (mut posted, mut complete) = (0, 0);
    let mut completions = Vec::with_capacity(64);
    while complete < rows.len() {
        ensure!(begun.elapsed() < BATCH_TIMEOUT, "a batch is not complete after {BATCH_TIMEOUT:?}");
        if posted < rows.len() {
            let batch = RowBatch {
                id: BatchId(posted as u64),
                region: table.region,
                version: 0,
                row_bytes: table.row_bytes,
                rows: &rows[posted..],
                places: &places[posted..],
                destination: Destination {
                    base: landing.base(),
                    stride: table.row_bytes,
                    places: landing.bytes() / table.row_bytes,
                },
            };
            // SAFETY: these places of the landing are this call's alone until every row is complete, and an error ends the program's
            // use of it.
            posted += unsafe { channel.post(&batch)? };
        }
        channel.poll(&mut completions, Wait::For(Duration::from_millis(100)))?;
        for completion in completions.drain(..) {
            completion.status.with_context(|| format!("get of rows from {OWNER}"))?;
            complete += completion.count as usize;
        }
    }
    Ok(())
}
