//! What the ranks of a job are told, so that they find each other and prove that they belong.

use crate::error::{Error, Result};
use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};

const MAGIC: [u8; 4] = *b"RDRU";
const FORMAT: u16 = 1;
/// Identifiers that were created and not yet joined; beyond this, something creates them and forgets to join.
const WAITING_MAX: usize = 64;

/// Listeners of identifiers that were created here, until rank 0 joins.
static WAITING: Mutex<Option<HashMap<UniqueId, TcpListener>>> = Mutex::new(None);

/// Names one job: where its root listens and the secret that its ranks share. Opaque bytes of a fixed size, to be handed to every rank by
/// whatever the launcher has; whoever holds them can join.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct UniqueId([u8; UniqueId::BYTES]);

impl UniqueId {
    /// Its size.
    pub const BYTES: usize = 64;

    /// Starts to listen for a job's ranks: on `listen`, or on a free port of the loopback interface. Rank 0 must join in this process.
    ///
    /// # Errors
    /// The address cannot be listened on, or is one that peers could not connect to (0.0.0.0).
    pub fn create(listen: Option<SocketAddr>) -> Result<Self> {
        let listen = listen.unwrap_or(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
        if listen.ip().is_unspecified() {
            return Err(Error::argument(format!("{listen} is every interface: name the one that the peers reach")));
        }
        let listener = TcpListener::bind(listen)
            .map_err(|e| Error::argument(format!("cannot listen on {listen}: {e}; name another address or port")))?;
        let bound = listener.local_addr().map_err(|e| Error::argument(format!("cannot listen on {listen}: {e}")))?;
        let mut secret = [0; 32];
        getrandom::fill(&mut secret).map_err(|e| Error::argument(format!("the system gives no random bytes: {e}")))?;
        let id = Self::of(bound, &secret);
        let mut waiting = WAITING.lock().unwrap_or_else(PoisonError::into_inner);
        let waiting = waiting.get_or_insert_default();
        if waiting.len() >= WAITING_MAX {
            let remedy = "join each unique id, or create fewer";
            return Err(Error::Full { queue: "the list of unique ids not joined", limit: WAITING_MAX, remedy });
        }
        waiting.insert(id, listener);
        Ok(id)
    }

    fn of(address: SocketAddr, secret: &[u8; 32]) -> Self {
        let (ip, scope) = match address {
            SocketAddr::V4(v4) => (v4.ip().to_ipv6_mapped(), 0),
            SocketAddr::V6(v6) => (*v6.ip(), v6.scope_id()),
        };
        let port = address.port().to_le_bytes();
        let mut bytes = [0; Self::BYTES];
        let fields = [&MAGIC[..], &FORMAT.to_le_bytes(), &port, &ip.octets(), &scope.to_le_bytes(), secret, &[0; 4]];
        bytes.copy_from_slice(&fields.concat());
        Self(bytes)
    }

    /// The identifier of these bytes.
    ///
    /// # Errors
    /// They are no identifier, or one of another version of the library.
    pub fn from_bytes(bytes: [u8; Self::BYTES]) -> Result<Self> {
        if bytes[..4] != MAGIC {
            return Err(Error::argument("these bytes are not a unique id"));
        }
        let format = u16::from_le_bytes([bytes[4], bytes[5]]);
        if format != FORMAT {
            return Err(Error::argument(format!("a unique id of format {format}; this library reads format {FORMAT}")));
        }
        Ok(Self(bytes))
    }

    /// Its bytes. They carry the secret: keep them out of logs.
    pub fn to_bytes(self) -> [u8; Self::BYTES] {
        self.0
    }

    /// The identifier as text for an environment variable or a file; [`FromStr`] reads it back. It carries the secret: keep it out of logs.
    pub fn to_hex(self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Where the root listens.
    pub fn address(&self) -> SocketAddr {
        let port = u16::from_le_bytes(self.field(6));
        let ip = Ipv6Addr::from(self.field::<16>(8));
        match ip.to_ipv4_mapped() {
            Some(v4) => SocketAddr::new(IpAddr::V4(v4), port),
            None => std::net::SocketAddrV6::new(ip, port, 0, u32::from_le_bytes(self.field(24))).into(),
        }
    }

    /// What the ranks share and prove to each other; transports that listen on a network use it too.
    pub fn secret(&self) -> [u8; 32] {
        self.field(28)
    }

    fn field<const N: usize>(&self, at: usize) -> [u8; N] {
        std::array::from_fn(|i| self.0[at + i])
    }

    /// The listener that `create` made, once.
    pub(super) fn take_listener(&self) -> Option<TcpListener> {
        WAITING.lock().unwrap_or_else(PoisonError::into_inner).as_mut()?.remove(self)
    }
}

impl FromStr for UniqueId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let digits = text.trim().as_bytes();
        let malformed = || Error::argument(format!("a unique id is {} hexadecimal digits", 2 * Self::BYTES));
        let digit = |at: usize| (digits[at] as char).to_digit(16).map(|digit| digit as u8).ok_or_else(malformed);
        if digits.len() != 2 * Self::BYTES {
            return Err(malformed());
        }
        let mut bytes = [0; Self::BYTES];
        for (i, byte) in bytes.iter_mut().enumerate() {
            *byte = digit(2 * i)? << 4 | digit(2 * i + 1)?;
        }
        Self::from_bytes(bytes)
    }
}

impl fmt::Debug for UniqueId {
    /// Says where, not the secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "UniqueId({})", self.address())
    }
}
