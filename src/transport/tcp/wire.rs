//! The bytes on the wire and in address and token blobs: fixed layouts, little-endian, every length bounded before it is used.

use super::JobSecret;
use crate::error::TransferError;
use hmac::{Hmac, Mac};
use sha2::Sha256;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Version of everything in this file; both sides of a connection must speak the same.
pub const PROTOCOL_VERSION: u32 = 1;
/// Most rows of one request: it bounds the memory that a connection can make an owner hold.
pub const REQUEST_ROWS_MAX: usize = 16 * 1024;
pub const NONCE_BYTES: usize = 32;
pub const PROOF_BYTES: usize = 32;
pub const HELLO_BYTES: usize = 8 + NONCE_BYTES;
pub const VERDICT_BYTES: usize = 4 + PROOF_BYTES;
pub const REQUEST_BYTES: usize = 40;
pub const REPLY_BYTES: usize = 32;

const ADDRESS_MAGIC: [u8; 4] = *b"RDTA";
const TOKEN_MAGIC: [u8; 4] = *b"RDTT";
const HELLO_MAGIC: [u8; 4] = *b"RDTH";
const REQUEST_MAGIC: [u8; 4] = *b"RDTQ";
const REPLY_MAGIC: [u8; 4] = *b"RDTR";
const ADDRESS_BYTES: usize = 8 + NONCE_BYTES + 19;
const TOKEN_BODY_BYTES: usize = 24;
const TOKEN_MAC_BYTES: usize = 16;

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

fn hmac(key: &[u8], parts: &[&[u8]]) -> Hmac<Sha256> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
    for part in parts {
        mac.update(part);
    }
    mac
}

/// Checks the eight bytes that open every blob and hello, and names both versions where they differ.
fn check_opening(bytes: &[u8], magic: [u8; 4], what: &str) -> Result<(), String> {
    if bytes.len() < 8 || bytes[..4] != magic {
        return Err(format!("this is not {what} of the tcp transport"));
    }
    match u32_at(bytes, 4) {
        PROTOCOL_VERSION => Ok(()),
        theirs => Err(format!(
            "the peer speaks protocol version {theirs}, this rank speaks {PROTOCOL_VERSION}: run the same release on every rank"
        )),
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
    pub fn encode(&self) -> Vec<u8> {
        let mut blob = Vec::with_capacity(ADDRESS_BYTES);
        blob.extend_from_slice(&ADDRESS_MAGIC);
        blob.extend_from_slice(&PROTOCOL_VERSION.to_le_bytes());
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

    pub fn decode(blob: &[u8]) -> Result<Self, String> {
        check_opening(blob, ADDRESS_MAGIC, "an address")?;
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

/// Names a region of one rank; authenticated by that rank's own secret, so that a corrupted or foreign one is noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token {
    pub region: u64,
    pub bytes: u64,
}

impl Token {
    pub fn encode(&self, secret: &[u8; NONCE_BYTES]) -> Vec<u8> {
        let mut blob = Vec::with_capacity(TOKEN_BODY_BYTES + TOKEN_MAC_BYTES);
        blob.extend_from_slice(&TOKEN_MAGIC);
        blob.extend_from_slice(&PROTOCOL_VERSION.to_le_bytes());
        blob.extend_from_slice(&self.region.to_le_bytes());
        blob.extend_from_slice(&self.bytes.to_le_bytes());
        let mac = hmac(secret, &[&blob]).finalize().into_bytes();
        blob.extend_from_slice(&mac[..TOKEN_MAC_BYTES]);
        blob
    }

    pub fn decode(blob: &[u8], secret: &[u8; NONCE_BYTES]) -> Result<Self, String> {
        check_opening(blob, TOKEN_MAGIC, "a token")?;
        if blob.len() != TOKEN_BODY_BYTES + TOKEN_MAC_BYTES {
            return Err(format!("the token has {} bytes, not {}", blob.len(), TOKEN_BODY_BYTES + TOKEN_MAC_BYTES));
        }
        let (body, mac) = blob.split_at(TOKEN_BODY_BYTES);
        hmac(secret, &[body])
            .verify_truncated_left(mac)
            .map_err(|_| "the token is corrupted or was issued by another rank".to_string())?;
        Ok(Self { region: u64_at(body, 8), bytes: u64_at(body, 16) })
    }
}

/// What each side opens with: its version and a fresh nonce.
pub fn encode_hello(nonce: &[u8; NONCE_BYTES]) -> [u8; HELLO_BYTES] {
    let mut hello = [0; HELLO_BYTES];
    hello[..4].copy_from_slice(&HELLO_MAGIC);
    hello[4..8].copy_from_slice(&PROTOCOL_VERSION.to_le_bytes());
    hello[8..].copy_from_slice(nonce);
    hello
}

/// The other side's nonce, or why it cannot be spoken with.
pub fn decode_hello(hello: &[u8; HELLO_BYTES]) -> Result<[u8; NONCE_BYTES], String> {
    check_opening(hello, HELLO_MAGIC, "a greeting")?;
    Ok(hello[8..].try_into().expect("32 bytes"))
}

/// Whether a hello is ours in all but the version, so that an answer would be understood.
pub fn is_hello(hello: &[u8; HELLO_BYTES]) -> bool {
    hello[..4] == HELLO_MAGIC
}

/// Which side proves that it belongs to the job: one side's proof is of no use as the other's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Asker,
    Owner,
}

/// What both sides know once the hellos are exchanged.
pub struct Handshake<'a> {
    pub job: &'a JobSecret,
    pub owner_secret: &'a [u8; NONCE_BYTES],
    pub asker_nonce: &'a [u8; NONCE_BYTES],
    pub owner_nonce: &'a [u8; NONCE_BYTES],
}

impl Handshake<'_> {
    fn mac(&self, side: Side) -> Hmac<Sha256> {
        let label: &[u8] = match side {
            Side::Asker => b"rudder tcp asker",
            Side::Owner => b"rudder tcp owner",
        };
        hmac(&self.job.0, &[label, self.owner_secret, self.asker_nonce, self.owner_nonce])
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
            _ => return None,
        };
        Some((which, &verdict[4..]))
    }
}

/// The head of a request; `rows` indexes of `index_bytes` each follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    pub sequence: u64,
    pub region: u64,
    pub version: u64,
    pub row_bytes: u32,
    pub rows: u32,
    /// 4 or 8: a request whose indexes all fit in 32 bits is half as long.
    pub index_bytes: u32,
}

impl Request {
    pub fn encode(&self) -> [u8; REQUEST_BYTES] {
        let mut head = [0; REQUEST_BYTES];
        head[..4].copy_from_slice(&REQUEST_MAGIC);
        head[4..8].copy_from_slice(&self.index_bytes.to_le_bytes());
        head[8..16].copy_from_slice(&self.sequence.to_le_bytes());
        head[16..24].copy_from_slice(&self.region.to_le_bytes());
        head[24..32].copy_from_slice(&self.version.to_le_bytes());
        head[32..36].copy_from_slice(&self.row_bytes.to_le_bytes());
        head[36..40].copy_from_slice(&self.rows.to_le_bytes());
        head
    }

    pub fn decode(head: &[u8; REQUEST_BYTES]) -> Result<Self, &'static str> {
        let request = Self {
            index_bytes: u32_at(head, 4),
            sequence: u64_at(head, 8),
            region: u64_at(head, 16),
            version: u64_at(head, 24),
            row_bytes: u32_at(head, 32),
            rows: u32_at(head, 36),
        };
        if head[..4] != REQUEST_MAGIC {
            Err("not a request")
        } else if request.rows == 0 || request.rows as usize > REQUEST_ROWS_MAX {
            Err("too many rows, or none")
        } else if request.row_bytes == 0 {
            Err("rows of no bytes")
        } else if request.index_bytes != 4 && request.index_bytes != 8 {
            Err("indexes are neither of 4 nor of 8 bytes")
        } else {
            Ok(request)
        }
    }

    pub fn index_list_bytes(&self) -> usize {
        self.rows as usize * self.index_bytes as usize
    }
}

/// How a request went; only `Rows` is followed by a payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    Rows { payload_bytes: u64 },
    OutOfRegion { region_bytes: u64 },
    StaleRegion,
}

/// The head of a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reply {
    pub sequence: u64,
    pub status: Status,
}

impl Reply {
    pub fn encode(&self) -> [u8; REPLY_BYTES] {
        let (status, detail) = match self.status {
            Status::Rows { payload_bytes } => (0u32, payload_bytes),
            Status::OutOfRegion { region_bytes } => (1, region_bytes),
            Status::StaleRegion => (2, 0),
        };
        let mut head = [0; REPLY_BYTES];
        head[..4].copy_from_slice(&REPLY_MAGIC);
        head[4..8].copy_from_slice(&status.to_le_bytes());
        head[8..16].copy_from_slice(&self.sequence.to_le_bytes());
        head[16..24].copy_from_slice(&detail.to_le_bytes());
        head
    }

    pub fn decode(head: &[u8; REPLY_BYTES]) -> Result<Self, TransferError> {
        if head[..4] != REPLY_MAGIC {
            return Err(TransferError::Protocol("the owner sent something that is no reply".into()));
        }
        let detail = u64_at(head, 16);
        let status = match u32_at(head, 4) {
            0 => Status::Rows { payload_bytes: detail },
            1 => Status::OutOfRegion { region_bytes: detail },
            2 => Status::StaleRegion,
            other => return Err(TransferError::Protocol(format!("the owner answered with unknown status {other}"))),
        };
        Ok(Self { sequence: u64_at(head, 8), status })
    }
}

#[cfg(test)]
mod tests {
    //! Goal: blobs and frames survive the trip, and no bytes whatever make a decoder panic or accept a damaged blob.
    //! Method: round trips and arbitrary bytes by property tests; every single-byte corruption of a token.

    use super::*;
    use proptest::prelude::*;

    const SECRET: [u8; 32] = [7; 32];

    #[test]
    fn tokens_of_any_damage_are_refused() {
        let token = Token { region: 3, bytes: 4096 };
        let blob = token.encode(&SECRET);
        assert_eq!(Token::decode(&blob, &SECRET), Ok(token));
        assert!(Token::decode(&blob, &[8; 32]).is_err(), "another rank's secret");
        for end in 0..blob.len() {
            assert!(Token::decode(&blob[..end], &SECRET).is_err(), "truncated to {end}");
        }
        for at in 0..blob.len() {
            let mut damaged = blob.clone();
            damaged[at] ^= 1;
            assert!(Token::decode(&damaged, &SECRET).is_err(), "damaged at {at}");
        }
    }

    #[test]
    fn another_version_names_both() {
        let mut blob = Address { socket: "127.0.0.1:80".parse().unwrap(), secret: SECRET }.encode();
        blob[4..8].copy_from_slice(&9u32.to_le_bytes());
        let cause = Address::decode(&blob).unwrap_err();
        assert!(cause.contains("version 9") && cause.contains("speaks 1"), "{cause}");
    }

    #[test]
    fn a_proof_serves_one_side_and_one_connection() {
        let job = JobSecret([1; 32]);
        let hand = Handshake { job: &job, owner_secret: &SECRET, asker_nonce: &[2; 32], owner_nonce: &[3; 32] };
        let proof = hand.proof(Side::Asker);
        assert!(hand.verify(Side::Asker, &proof));
        assert!(!hand.verify(Side::Owner, &proof));
        let other = Handshake { owner_nonce: &[4; 32], ..hand };
        assert!(!other.verify(Side::Asker, &proof));
    }

    proptest! {
        #[test]
        fn frames_survive_the_trip(sequence: u64, region: u64, version: u64, row_bytes in 1u32.., rows in 1..=REQUEST_ROWS_MAX as u32, wide: bool) {
            let request = Request { sequence, region, version, row_bytes, rows, index_bytes: if wide { 8 } else { 4 } };
            prop_assert_eq!(Request::decode(&request.encode()), Ok(request));
            for status in [Status::Rows { payload_bytes: version }, Status::OutOfRegion { region_bytes: region }, Status::StaleRegion] {
                let reply = Reply { sequence, status };
                prop_assert_eq!(Reply::decode(&reply.encode()), Ok(reply));
            }
        }

        #[test]
        fn addresses_survive_the_trip(ip: IpAddr, port: u16, secret: [u8; 32]) {
            let address = Address { socket: SocketAddr::new(ip, port), secret };
            prop_assert_eq!(Address::decode(&address.encode()), Ok(address));
        }

        #[test]
        fn no_bytes_make_a_decoder_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80), head: [u8; 40]) {
            let _ = Address::decode(&bytes);
            let _ = Token::decode(&bytes, &SECRET);
            let _ = Request::decode(&head);
            let _ = decode_hello(&head);
            let _ = Reply::decode(head[..REPLY_BYTES].try_into().unwrap());
        }
    }
}
