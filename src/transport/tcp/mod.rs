//! Rows over TCP sockets, as a remote gather: an index list goes out, packed rows come back.
//!
//! One-sided reads emulated over a stream cost a message a row, and the message is the cost; so the asker names many rows at once
//! and the owner's own threads answer straight from the registered memory. Nothing is served to a peer that has not proved, by
//! HMAC over fresh nonces, that it holds the job's secret. The proof guards the door, not the wire: bytes are neither encrypted
//! nor authenticated after it.
//!
//! The owner holds, for each connection, one request and a fixed staging buffer, whatever peers send: excess requests wait in the
//! sockets' own buffers.

mod channel;
mod connection;
mod owner;
mod socket;
mod wire;

use crate::error::{Error, Result};
use crate::id::Rank;
use crate::memory::{Access, Memory, Region, Version};
use crate::transport::exports::Exports;
use crate::transport::handshake::{Address, NONCE_BYTES};
use crate::transport::imports::Imports;
use crate::transport::{Capabilities, Channel, RemoteRegion, Transport, TransportConfig};
use owner::Owner;
use std::fmt;
use std::ops::RangeInclusive;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::Duration;
use wire::{PROTOCOL, Token};

pub use crate::transport::handshake::JobSecret;

const NAME: &str = "tcp";

/// Settings of a [`TcpTransport`], each with the bounds that its field names.
#[derive(Clone, Debug)]
pub struct TcpConfig {
    /// The interface to listen on: its name or one of its addresses.
    pub interface: String,
    /// The port; 0 lets the system choose.
    pub port: u16,
    /// The job's secret.
    pub secret: JobSecret,
    /// Connections that a channel opens to each peer, 1..=16. Large batches are divided among them.
    pub connections_per_peer: usize,
    /// Connections that this rank serves at once, each by a thread, 1..=4096; more are turned away.
    pub connections_served_max: usize,
    /// Batches that a channel holds, 1..=4096.
    pub batches_in_flight_max: usize,
    /// Rows of a batch, 1..=1,048,576.
    pub batch_rows_max: usize,
    /// Time for a connection to be made and proved, 1 ms..=10 min.
    pub connect_timeout: Duration,
    /// After so long without a sign of life from the other end a connection is given up, 1 s..=1 h.
    pub silence_timeout: Duration,
    /// Socket buffers, 0 (the system's automatic sizes) or 64 KiB..=64 MiB.
    pub socket_buffer_bytes: usize,
}

impl TcpConfig {
    /// The defaults: loopback, a port of the system's choice.
    pub fn new(secret: JobSecret) -> Self {
        Self {
            interface: "127.0.0.1".into(),
            port: 0,
            secret,
            connections_per_peer: 2,
            connections_served_max: 256,
            batches_in_flight_max: 64,
            batch_rows_max: 64 * 1024,
            connect_timeout: Duration::from_secs(5),
            silence_timeout: Duration::from_secs(60),
            socket_buffer_bytes: 0,
        }
    }

    /// The defaults for a job.
    pub fn of(job: &TransportConfig) -> Self {
        Self { interface: job.listen.to_string(), ..Self::new(JobSecret(job.secret)) }
    }

    fn check(&self) -> Result<()> {
        fn within<T: PartialOrd + fmt::Debug>(name: &str, value: T, bounds: RangeInclusive<T>) -> Result<()> {
            if bounds.contains(&value) {
                Ok(())
            } else {
                Err(Error::config(format!("tcp.{name} is {value:?}, outside {bounds:?}")))
            }
        }
        within("connections_per_peer", self.connections_per_peer, 1..=16)?;
        within("connections_served_max", self.connections_served_max, 1..=4096)?;
        within("batches_in_flight_max", self.batches_in_flight_max, 1..=4096)?;
        within("batch_rows_max", self.batch_rows_max, 1..=1 << 20)?;
        within("connect_timeout", self.connect_timeout, Duration::from_millis(1)..=Duration::from_secs(600))?;
        within("silence_timeout", self.silence_timeout, Duration::from_secs(1)..=Duration::from_secs(3600))?;
        if self.socket_buffer_bytes != 0 {
            within("socket_buffer_bytes", self.socket_buffer_bytes, 64 << 10..=64 << 20)?;
        }
        Ok(())
    }
}

/// A region of a peer, under the peer's own number for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Import {
    peer: Rank,
    token: Token,
}

/// What the transport and its channels know of the peers.
struct Peers {
    config: TcpConfig,
    addresses: OnceLock<Vec<Address>>,
    /// Imported regions, by our index.
    imports: RwLock<Imports<Import>>,
}

/// The `tcp` transport of one rank: a listener, the threads that serve its connections, and the way to the peers.
///
/// Dropping it stops serving.
pub struct TcpTransport {
    peers: Arc<Peers>,
    exports: Arc<Exports>,
    owner: Owner,
    address: Address,
}

impl TcpTransport {
    /// Listens on the configured interface and begins to serve.
    ///
    /// # Errors
    /// A setting out of its bounds, an unknown interface, a port in use.
    pub fn new(config: TcpConfig) -> Result<Self> {
        config.check()?;
        let mut secret = [0; NONCE_BYTES];
        getrandom::fill(&mut secret).map_err(|e| failure(format!("no random bytes: {e}")))?;
        let exports = Arc::new(Exports::default());
        let owner = Owner::listen(&config, secret, Arc::clone(&exports))?;
        let address = Address { socket: owner.socket_address(), secret };
        let peers = Peers { config, addresses: OnceLock::new(), imports: RwLock::default() };
        Ok(Self { peers: Arc::new(peers), exports, owner, address })
    }

    /// Connections being served now.
    pub fn connections_served(&self) -> usize {
        self.owner.connections_served()
    }
}

fn failure(cause: impl Into<String>) -> Error {
    Error::Transport { transport: NAME, cause: cause.into() }
}

impl Transport for TcpTransport {
    fn name(&self) -> &'static str {
        NAME
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            can_fence: true,
            needs_target_progress: false,
            survives_peer_death: true,
            read_only: true,
            prefers_remote_gather: true,
            needs_registered_destination: false,
            batch_rows_max: self.peers.config.batch_rows_max,
            batches_in_flight_max: self.peers.config.batches_in_flight_max,
        }
    }

    fn address(&self) -> Vec<u8> {
        self.address.encode(&PROTOCOL)
    }

    fn connect(&self, addresses: &[Vec<u8>]) -> Result<()> {
        let decoded: Vec<Address> = (addresses.iter().enumerate())
            .map(|(rank, blob)| {
                Address::decode(&PROTOCOL, blob).map_err(|cause| failure(format!("{}: {cause}", Rank(rank as u32))))
            })
            .collect::<Result<_>>()?;
        let known = self.peers.addresses.get_or_init(|| decoded.clone());
        if *known == decoded { Ok(()) } else { Err(failure("connect was called before with other addresses")) }
    }

    fn allocate(&self, bytes: usize, access: Access) -> Result<Region> {
        let memory = Memory::allocate(bytes)?;
        // SAFETY: fresh memory is written only through the region that this returns, whose holder has this contract too.
        unsafe { self.register(memory, access) }
    }

    unsafe fn register(&self, memory: Memory, access: Access) -> Result<Region> {
        let memory = Arc::new(memory);
        if access == Access::Local {
            return Ok(Region::new(Box::new(()), memory, Vec::new()));
        }
        let version = Version::new()?;
        let registration = self.exports.add(Arc::clone(&memory), version.clone());
        let token = Token { region: registration.number(), bytes: memory.bytes() as u64 };
        let token = token.encode(&self.address.secret);
        Ok(Region::new(Box::new(registration), memory, token).with_version(version))
    }

    fn import(&self, peer: Rank, token: &[u8]) -> Result<RemoteRegion> {
        let refused = |cause: String| Error::Token { peer, cause };
        let addresses = self.peers.addresses.get().ok_or_else(|| refused("connect before importing tokens".into()))?;
        let address = addresses
            .get(peer.index())
            .ok_or_else(|| refused(format!("there is no such rank: {} addresses are known", addresses.len())))?;
        let token = Token::decode(token, &address.secret).map_err(refused)?;
        let mut imports = self.peers.imports.write().unwrap_or_else(PoisonError::into_inner);
        imports.add(peer, token.region, token.bytes, |_| Import { peer, token })
    }

    fn channel(&self) -> Result<Box<dyn Channel>> {
        Ok(Box::new(channel::TcpChannel::new(Arc::clone(&self.peers))?))
    }
}

#[cfg(test)]
mod tests {
    //! Goal: an owner trusts no asker: it refuses rows that the asker's own checks should have refused.
    //! Method: the asker is made to believe that the region is larger than it is.

    use super::*;
    use crate::error::TransferError;
    use crate::transport::{BatchId, Destination, RowBatch, Wait};

    #[test]
    fn rows_outside_the_region_are_refused_by_the_owner() {
        let transport = TcpTransport::new(TcpConfig::new(JobSecret([1; 32]))).unwrap();
        transport.connect(&[transport.address()]).unwrap();
        let region = transport.allocate(6400, Access::RemoteRead).unwrap();
        transport.import(Rank(0), region.token()).unwrap();
        transport.peers.imports.write().unwrap()[0].token.bytes = 1 << 20;
        let mut channel = transport.channel().unwrap();
        let mut landing = [0xEE; 128];
        let destination = Destination { base: landing.as_mut_ptr(), stride: 64, places: 2 };
        let batch = RowBatch {
            id: BatchId(1),
            region: RemoteRegion { peer: Rank(0), index: 0, bytes: 1 << 20 },
            version: 0,
            row_bytes: 64,
            rows: &[5, 100],
            places: &[0, 1],
            destination,
        };
        // SAFETY: the landing lives until the channel has reported both rows.
        assert_eq!(unsafe { channel.post(&batch) }.unwrap(), 2);
        let mut completions = Vec::new();
        while completions.is_empty() {
            channel.poll(&mut completions, Wait::For(Duration::from_secs(20))).unwrap();
        }
        assert_eq!(completions[0].status, Err(TransferError::OutOfRegion { region_rows: 100 }));
        assert_eq!((completions[0].first, completions[0].count), (0, 2));
        assert_eq!(landing, [0xEE; 128]);
    }
}
