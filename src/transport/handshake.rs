//! How one rank proves to another that it belongs to the job, before it learns anything; for transports that meet over sockets.
//!
//! Both sides send a hello with a fresh nonce; the asker proves first, by an HMAC under the job's secret over both nonces and the
//! owner's own random secret, and the owner answers with its verdict and a proof of its own. A proof serves one side, one connection
//! and one protocol.

use hmac::{Hmac, Mac};
use rustix::fd::AsFd;
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{RecvFlags, SendFlags, recv, send};
use sha2::Sha256;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Instant;

pub const NONCE_BYTES: usize = 32;
pub const PROOF_BYTES: usize = 32;
pub const HELLO_BYTES: usize = 8 + NONCE_BYTES;
pub const VERDICT_BYTES: usize = 4 + PROOF_BYTES;
const ADDRESS_BYTES: usize = 8 + NONCE_BYTES + 19;

/// What every rank of a job knows and no stranger does.
#[derive(Clone, PartialEq, Eq)]
pub struct JobSecret(pub [u8; 32]);

impl fmt::Debug for JobSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JobSecret(..)")
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

/// An HMAC over parts, one after the other.
fn hmac(key: &[u8], parts: &[&[u8]]) -> Hmac<Sha256> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
    for part in parts {
        mac.update(part);
    }
    mac
}

/// Bytes of a token's proof.
const TOKEN_MAC_BYTES: usize = 16;

/// A protocol that opens with this handshake: what its blobs begin with, and what its proofs are bound to.
#[derive(Debug)]
pub struct Protocol {
    /// The transport's name.
    pub name: &'static str,
    pub version: u32,
    pub address: [u8; 4],
    pub token: [u8; 4],
    pub hello: [u8; 4],
}

impl Protocol {
    /// A region's token: the opening bytes, its fields, and a proof by its owner's own secret, so that a corrupted or foreign one is noticed.
    pub fn seal_token(&self, fields: &[&[u8]], secret: &[u8; NONCE_BYTES]) -> Vec<u8> {
        let mut token = Vec::new();
        self.open(self.token, &mut token);
        fields.iter().for_each(|field| token.extend_from_slice(field));
        let mac = hmac(secret, &[&token]).finalize().into_bytes();
        token.extend_from_slice(&mac[..TOKEN_MAC_BYTES]);
        token
    }

    /// The `body_bytes` bytes before a token's proof, its opening ones included, once it is known to be its owner's.
    pub fn open_token<'a>(
        &self,
        token: &'a [u8],
        body_bytes: usize,
        secret: &[u8; NONCE_BYTES],
    ) -> Result<&'a [u8], String> {
        self.check_opening(token, self.token, "a token")?;
        if token.len() != body_bytes + TOKEN_MAC_BYTES {
            return Err(format!("the token has {} bytes, not {}", token.len(), body_bytes + TOKEN_MAC_BYTES));
        }
        let (body, mac) = token.split_at(body_bytes);
        hmac(secret, &[body])
            .verify_truncated_left(mac)
            .map_err(|_| "the token is corrupted or was issued by another rank".to_string())?;
        Ok(body)
    }

    /// Writes the eight bytes that open every blob and hello.
    pub fn open(&self, magic: [u8; 4], blob: &mut Vec<u8>) {
        blob.extend_from_slice(&magic);
        blob.extend_from_slice(&self.version.to_le_bytes());
    }

    /// Checks those eight bytes, and names both versions where they differ.
    pub fn check_opening(&self, bytes: &[u8], magic: [u8; 4], what: &str) -> Result<(), String> {
        if bytes.len() < 8 || bytes[..4] != magic {
            return Err(format!("this is not {what} of the {} transport", self.name));
        }
        match u32_at(bytes, 4) {
            ours if ours == self.version => Ok(()),
            theirs => Err(format!(
                "the peer speaks protocol version {theirs}, this rank speaks {}: run the same release on every rank",
                self.version
            )),
        }
    }
}

/// Where a rank listens, and the random secret that only members of its job have seen.
#[derive(Clone, PartialEq, Eq)]
pub struct Address {
    pub socket: SocketAddr,
    pub secret: [u8; NONCE_BYTES],
}

/// Without the secret.
impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Address").field("socket", &self.socket).finish_non_exhaustive()
    }
}

impl Address {
    pub fn encode(&self, protocol: &Protocol) -> Vec<u8> {
        let mut blob = Vec::with_capacity(ADDRESS_BYTES);
        protocol.open(protocol.address, &mut blob);
        blob.extend_from_slice(&self.secret);
        blob.extend_from_slice(&self.socket.port().to_le_bytes());
        match self.socket.ip() {
            IpAddr::V4(ip) => {
                blob.push(4);
                blob.extend_from_slice(&ip.octets());
                blob.extend_from_slice(&[0; 12]);
            }
            IpAddr::V6(ip) => {
                blob.push(6);
                blob.extend_from_slice(&ip.octets());
            }
        }
        blob
    }

    pub fn decode(protocol: &Protocol, blob: &[u8]) -> Result<Self, String> {
        protocol.check_opening(blob, protocol.address, "an address")?;
        if blob.len() != ADDRESS_BYTES {
            return Err(format!("the address has {} bytes, not {ADDRESS_BYTES}", blob.len()));
        }
        let secret = blob[8..40].try_into().expect("32 bytes");
        let port = u16::from_le_bytes([blob[40], blob[41]]);
        let octets: [u8; 16] = blob[43..59].try_into().expect("16 bytes");
        let ip = match blob[42] {
            4 => IpAddr::V4(Ipv4Addr::new(octets[0], octets[1], octets[2], octets[3])),
            6 => IpAddr::V6(Ipv6Addr::from(octets)),
            family => return Err(format!("the address is of unknown family {family}")),
        };
        Ok(Self { socket: SocketAddr::new(ip, port), secret })
    }
}

/// What each side opens with: its version and a fresh nonce.
pub fn encode_hello(protocol: &Protocol, nonce: &[u8; NONCE_BYTES]) -> [u8; HELLO_BYTES] {
    let mut hello = [0; HELLO_BYTES];
    hello[..4].copy_from_slice(&protocol.hello);
    hello[4..8].copy_from_slice(&protocol.version.to_le_bytes());
    hello[8..].copy_from_slice(nonce);
    hello
}

/// The other side's nonce, or why it cannot be spoken with.
pub fn decode_hello(protocol: &Protocol, hello: &[u8; HELLO_BYTES]) -> Result<[u8; NONCE_BYTES], String> {
    protocol.check_opening(hello, protocol.hello, "a greeting")?;
    Ok(hello[8..].try_into().expect("32 bytes"))
}

/// Whether a hello is ours in all but the version, so that an answer would be understood.
pub fn is_hello(protocol: &Protocol, hello: &[u8; HELLO_BYTES]) -> bool {
    hello[..4] == protocol.hello
}

/// Which side proves that it belongs to the job: one side's proof is of no use as the other's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Asker,
    Owner,
}

/// What both sides know once the hellos are exchanged.
#[derive(Clone, Copy)]
pub struct Handshake<'a> {
    pub protocol: &'a Protocol,
    pub job: &'a JobSecret,
    pub owner_secret: &'a [u8; NONCE_BYTES],
    pub asker_nonce: &'a [u8; NONCE_BYTES],
    pub owner_nonce: &'a [u8; NONCE_BYTES],
}

impl Handshake<'_> {
    fn mac(&self, side: Side) -> Hmac<Sha256> {
        let side: &[u8] = match side {
            Side::Asker => b" asker",
            Side::Owner => b" owner",
        };
        let name = self.protocol.name.as_bytes();
        hmac(&self.job.0, &[b"rudder ", name, side, self.owner_secret, self.asker_nonce, self.owner_nonce])
    }

    pub fn proof(&self, side: Side) -> [u8; PROOF_BYTES] {
        self.mac(side).finalize().into_bytes().into()
    }

    /// Compares in constant time.
    pub fn verify(&self, side: Side, proof: &[u8]) -> bool {
        self.mac(side).verify_slice(proof).is_ok()
    }
}

/// An owner's answer to a right proof.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Welcome,
    /// The owner serves as many connections as it may.
    Busy,
    /// The owner cannot make its end of the connection; its own log says why.
    Unable,
}

impl Verdict {
    pub fn encode(self, proof: &[u8; PROOF_BYTES]) -> [u8; VERDICT_BYTES] {
        let mut verdict = [0; VERDICT_BYTES];
        verdict[..4].copy_from_slice(&(self as u32).to_le_bytes());
        verdict[4..].copy_from_slice(proof);
        verdict
    }

    pub fn decode(verdict: &[u8; VERDICT_BYTES]) -> Option<(Self, &[u8])> {
        let which = match u32_at(verdict, 0) {
            0 => Self::Welcome,
            1 => Self::Busy,
            2 => Self::Unable,
            _ => return None,
        };
        Some((which, &verdict[4..]))
    }
}

/// Fills the buffer before the deadline, however slowly a stranger drips.
pub fn receive_by(socket: impl AsFd, mut buffer: &mut [u8], deadline: Instant) -> bool {
    let socket = socket.as_fd();
    while !buffer.is_empty() {
        let left = deadline.saturating_duration_since(Instant::now());
        // A zero timeout would mean none.
        if left.is_zero() || set_socket_timeout(socket, Timeout::Recv, Some(left)).is_err() {
            return false;
        }
        match recv(socket, &mut *buffer, RecvFlags::empty()) {
            Ok((0, _)) => return false,
            Ok((received, _)) => buffer = &mut buffer[received..],
            Err(Errno::INTR) => {}
            Err(_) => return false,
        }
    }
    true
}

/// Sends a handshake's few bytes, which an empty socket buffer always takes whole.
pub fn send_small(socket: impl AsFd, bytes: &[u8]) -> bool {
    send(socket, bytes, SendFlags::NOSIGNAL).is_ok_and(|sent| sent == bytes.len())
}

#[cfg(test)]
mod tests {
    //! Goal: blobs survive the trip, a proof serves one side, one connection and one protocol, and no bytes whatever make a decoder panic.
    //! Method: round trips and arbitrary bytes by property tests.

    use super::*;
    use proptest::prelude::*;

    const SECRET: [u8; 32] = [7; 32];
    const PROTOCOL: Protocol =
        Protocol { name: "tcp", version: 1, address: *b"RDTA", token: *b"RDTT", hello: *b"RDTH" };

    #[test]
    fn another_version_names_both() {
        let mut blob = Address { socket: "127.0.0.1:80".parse().unwrap(), secret: SECRET }.encode(&PROTOCOL);
        blob[4..8].copy_from_slice(&9u32.to_le_bytes());
        let cause = Address::decode(&PROTOCOL, &blob).unwrap_err();
        assert!(cause.contains("version 9") && cause.contains("speaks 1"), "{cause}");
    }

    #[test]
    fn a_proof_serves_one_side_and_one_connection() {
        let job = JobSecret([1; 32]);
        let hand = Handshake {
            protocol: &PROTOCOL,
            job: &job,
            owner_secret: &SECRET,
            asker_nonce: &[2; 32],
            owner_nonce: &[3; 32],
        };
        let proof = hand.proof(Side::Asker);
        assert!(hand.verify(Side::Asker, &proof));
        assert!(!hand.verify(Side::Owner, &proof));
        let other = Handshake { owner_nonce: &[4; 32], ..hand };
        assert!(!other.verify(Side::Asker, &proof));
        let foreign = Protocol { name: "verbs", ..PROTOCOL };
        assert!(!Handshake { protocol: &foreign, ..hand }.verify(Side::Asker, &proof));
    }

    proptest! {
        #[test]
        fn addresses_survive_the_trip(ip: IpAddr, port: u16, secret: [u8; 32]) {
            let address = Address { socket: SocketAddr::new(ip, port), secret };
            prop_assert_eq!(Address::decode(&PROTOCOL, &address.encode(&PROTOCOL)), Ok(address));
        }

        #[test]
        fn no_bytes_make_a_decoder_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80), head: [u8; 40]) {
            let _ = Address::decode(&PROTOCOL, &bytes);
            let _ = decode_hello(&PROTOCOL, &head);
        }
    }
}
