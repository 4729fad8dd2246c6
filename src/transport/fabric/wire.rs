//! The bytes of addresses, tokens, requests and replies: fixed layouts, little-endian, every length bounded before it is used.
//!
//! A request carries the owner's secret, which the bootstrap spread with its address: whoever has not seen it is not answered. It
//! travels in the clear, as all else does, so that it keeps out strangers and mistakes, not whoever listens on the wire.

use super::library::{Key, NAME_BYTES_MAX};
use crate::error::TransferError;
use crate::transport::index_list;
use crate::transport::token::{self, Fields};
use std::fmt;

/// Version of everything in this file.
const PROTOCOL: u16 = 1;
const MAGIC: [u8; 6] = *b"rd-fab";
const REQUEST_MAGIC: [u8; 4] = *b"RDFQ";
const REPLY_MAGIC: [u8; 4] = *b"RDFR";

pub(super) const SECRET_BYTES: usize = 16;
const REQUEST_HEAD_BYTES: usize = 72;
pub(super) const REPLY_HEAD_BYTES: usize = 24;
/// Most rows of one request.
pub(super) const REQUEST_ROWS_MAX: usize = 2048;
pub(super) const REQUEST_BYTES_MAX: usize = REQUEST_HEAD_BYTES + NAME_BYTES_MAX + 8 * REQUEST_ROWS_MAX;

/// How a rank is reached.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Address {
    pub(super) secret: [u8; SECRET_BYTES],
    /// Ranks can only talk over the same provider.
    pub(super) provider: String,
    /// The owner's endpoint.
    pub(super) name: Vec<u8>,
}

/// Without the secret.
impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { secret: _, provider, name } = self;
        f.debug_struct("Address").field("provider", provider).field("name", name).finish_non_exhaustive()
    }
}

fn push_bytes(blob: &mut Vec<u8>, bytes: &[u8]) {
    blob.extend_from_slice(&(bytes.len() as u16).to_le_bytes());
    blob.extend_from_slice(bytes);
}

fn take_bytes<'a>(fields: &mut Fields<'a>, most: usize) -> Result<&'a [u8], String> {
    let count = usize::from(u16::from_le_bytes(fields.take()?));
    if count > most { Err(format!("a field of {count} bytes, at most {most}")) } else { fields.take_bytes(count) }
}

fn opening() -> Vec<u8> {
    [&MAGIC[..], &PROTOCOL.to_le_bytes()].concat()
}

fn open(blob: &[u8]) -> Result<Fields<'_>, String> {
    let mut fields = Fields::new(token::unseal(blob)?);
    if fields.take()? != MAGIC {
        return Err("not of the fabric transport".into());
    }
    match u16::from_le_bytes(fields.take()?) {
        PROTOCOL => Ok(fields),
        theirs => Err(format!(
            "the peer speaks protocol version {theirs}, this rank speaks {PROTOCOL}: run the same release on every rank"
        )),
    }
}

impl Address {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut blob = opening();
        blob.extend_from_slice(&self.secret);
        push_bytes(&mut blob, self.provider.as_bytes());
        push_bytes(&mut blob, &self.name);
        token::seal(blob)
    }

    pub(super) fn decode(blob: &[u8]) -> Result<Self, String> {
        let mut fields = open(blob)?;
        let secret = fields.take()?;
        let provider = String::from_utf8_lossy(take_bytes(&mut fields, 256)?).into_owned();
        let name = take_bytes(&mut fields, NAME_BYTES_MAX)?.to_vec();
        fields.end()?;
        Ok(Self { secret, provider, name })
    }
}

/// The keys by which peers read a region and the word that says which version it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Keys {
    pub(super) rows: Key,
    pub(super) version: Key,
}

/// Names a region of one rank.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Token {
    pub(super) number: u64,
    pub(super) bytes: u64,
    /// None where the region cannot be read and must be asked for.
    pub(super) keys: Option<Keys>,
}

fn push_key(blob: &mut Vec<u8>, key: &Key) {
    blob.extend_from_slice(&key.base.to_le_bytes());
    push_bytes(blob, &key.key[..key.bytes as usize]);
}

fn take_key(fields: &mut Fields<'_>) -> Result<Key, String> {
    let mut key = Key { base: u64::from_le_bytes(fields.take()?), bytes: 0, key: [0; _] };
    let bytes = take_bytes(fields, key.key.len())?;
    key.bytes = bytes.len() as u32;
    key.key[..bytes.len()].copy_from_slice(bytes);
    Ok(key)
}

impl Token {
    pub(super) fn encode(&self, owner: &Address) -> Vec<u8> {
        let mut blob = opening();
        blob.extend_from_slice(&owner.issuer());
        blob.extend_from_slice(&self.number.to_le_bytes());
        blob.extend_from_slice(&self.bytes.to_le_bytes());
        if let Some(Keys { rows, version }) = &self.keys {
            push_key(&mut blob, rows);
            push_key(&mut blob, version);
        }
        token::seal(blob)
    }

    pub(super) fn decode(blob: &[u8], owner: &Address) -> Result<Self, String> {
        let mut fields = open(blob)?;
        if fields.take()? != owner.issuer() {
            return Err("issued by another rank or transport".into());
        }
        let (number, bytes) = (u64::from_le_bytes(fields.take()?), u64::from_le_bytes(fields.take()?));
        let keys = match fields.end() {
            Ok(()) => None,
            Err(_) => Some(Keys { rows: take_key(&mut fields)?, version: take_key(&mut fields)? }),
        };
        fields.end()?;
        Ok(Self { number, bytes, keys })
    }
}

impl Address {
    /// What tokens call their issuer by; says nothing about the secret.
    fn issuer(&self) -> [u8; 8] {
        use sha2::{Digest, Sha256};
        let digest = Sha256::new().chain_update(b"rudder fabric issuer").chain_update(self.secret).finalize();
        *digest.first_chunk().expect("a digest has 32 bytes")
    }
}

/// Asks for the bytes `offset..offset + bytes` of each of some rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Request {
    /// Given back by the reply.
    pub(super) sequence: u64,
    pub(super) region: u64,
    pub(super) version: u64,
    pub(super) row_bytes: u32,
    pub(super) offset: u32,
    pub(super) bytes: u32,
}

impl Request {
    /// The whole message: the head, the name of the endpoint to answer to, the rows.
    pub(super) fn encode(&self, secret: &[u8; SECRET_BYTES], reply_to: &[u8], rows: &[u64], message: &mut Vec<u8>) {
        let wide = index_list::is_wide(rows);
        message.clear();
        message.extend_from_slice(&REQUEST_MAGIC);
        message.extend_from_slice(&u16::from(wide).to_le_bytes());
        message.extend_from_slice(&(reply_to.len() as u16).to_le_bytes());
        message.extend_from_slice(secret);
        for word in [self.sequence, self.region, self.version] {
            message.extend_from_slice(&word.to_le_bytes());
        }
        for word in [self.row_bytes, self.offset, self.bytes, rows.len() as u32] {
            message.extend_from_slice(&word.to_le_bytes());
        }
        // Keeps the name at an address of its usual alignment.
        message.resize(REQUEST_HEAD_BYTES, 0);
        message.extend_from_slice(reply_to);
        index_list::encode(rows, wide, message);
    }

    /// The request, the name to answer to and, in `rows`, its rows; None where the sender does not know the secret or the protocol, or asks
    /// for more than a reply may carry.
    pub(super) fn decode<'a>(
        message: &'a [u8],
        secret: &[u8; SECRET_BYTES],
        reply_rows_bytes_max: usize,
        rows: &mut Vec<u64>,
    ) -> Option<(Self, &'a [u8])> {
        let (head, rest) = message.split_first_chunk::<REQUEST_HEAD_BYTES>()?;
        let half = |at: usize| u16::from_le_bytes([head[at], head[at + 1]]);
        let word = |at: usize| u32::from_le_bytes(head[at..at + 4].try_into().expect("four bytes"));
        let long = |at: usize| u64::from_le_bytes(head[at..at + 8].try_into().expect("eight bytes"));
        let proof = head[8..8 + SECRET_BYTES].iter().zip(secret).fold(0, |differs, (a, b)| differs | (a ^ b));
        let (wide, count) = (half(4) == 1, word(60) as usize);
        if head[..4] != REQUEST_MAGIC || half(4) > 1 || proof != 0 || !(1..=REQUEST_ROWS_MAX).contains(&count) {
            return None;
        }
        let request = Self {
            sequence: long(24),
            region: long(32),
            version: long(40),
            row_bytes: word(48),
            offset: word(52),
            bytes: word(56),
        };
        let (name, list) = rest.split_at_checked(usize::from(half(6)))?;
        let within = request.bytes > 0 && request.offset.checked_add(request.bytes)? <= request.row_bytes;
        let fits = count * request.bytes as usize <= reply_rows_bytes_max;
        if !within || !fits || name.len() > NAME_BYTES_MAX || list.len() != count * if wide { 8 } else { 4 } {
            return None;
        }
        index_list::decode(list, wide, rows);
        Some((request, name))
    }
}

/// How a request went; only `Rows` is followed by a payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Status {
    Rows,
    OutOfRegion { region_bytes: u64 },
    StaleRegion,
}

/// The head of a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reply {
    pub(super) sequence: u64,
    pub(super) status: Status,
}

impl Reply {
    pub(super) fn encode(&self) -> [u8; REPLY_HEAD_BYTES] {
        let (status, detail) = match self.status {
            Status::Rows => (0u32, 0),
            Status::OutOfRegion { region_bytes } => (1, region_bytes),
            Status::StaleRegion => (2, 0),
        };
        let mut head = [0; REPLY_HEAD_BYTES];
        head[..4].copy_from_slice(&REPLY_MAGIC);
        head[4..8].copy_from_slice(&status.to_le_bytes());
        head[8..16].copy_from_slice(&self.sequence.to_le_bytes());
        head[16..].copy_from_slice(&detail.to_le_bytes());
        head
    }

    /// The head and what follows it.
    pub(super) fn decode(message: &[u8]) -> Result<(Self, &[u8]), TransferError> {
        let wrong = |what: &str| TransferError::Protocol(format!("the owner sent {what}"));
        let Some((head, rest)) = message.split_first_chunk::<REPLY_HEAD_BYTES>() else {
            return Err(wrong("half a reply"));
        };
        if head[..4] != REPLY_MAGIC {
            return Err(wrong("something that is no reply"));
        }
        let long = |at: usize| u64::from_le_bytes(head[at..at + 8].try_into().expect("eight bytes"));
        let status = match head[4..8] {
            [0, 0, 0, 0] => Status::Rows,
            [1, 0, 0, 0] => Status::OutOfRegion { region_bytes: long(16) },
            [2, 0, 0, 0] => Status::StaleRegion,
            _ => return Err(wrong("a reply of unknown status")),
        };
        Ok((Self { sequence: long(8), status }, rest))
    }
}

#[cfg(test)]
mod tests {
    //! Goal: blobs and messages survive the trip, and no bytes whatever make a decoder panic or pass for another rank's.
    //! Method: round trips and arbitrary bytes by property tests.

    use super::*;
    use proptest::prelude::*;

    const SECRET: [u8; SECRET_BYTES] = [7; SECRET_BYTES];
    const MAX: usize = 64 << 10;

    fn address(name: Vec<u8>) -> Address {
        Address { secret: SECRET, provider: "tcp;ofi_rxm".into(), name }
    }

    proptest! {
        #[test]
        fn messages_survive_the_trip(sequence: u64, region: u64, version: u64, offset in 0u32..1 << 31, bytes in 1u32..=32,
            rows in proptest::collection::vec(any::<u64>(), 1..=REQUEST_ROWS_MAX), name in proptest::collection::vec(any::<u8>(), 0..=NAME_BYTES_MAX)) {
            let request = Request { sequence, region, version, row_bytes: offset + bytes, offset, bytes };
            let (mut message, mut back) = (Vec::new(), Vec::new());
            request.encode(&SECRET, &name, &rows, &mut message);
            prop_assert!(message.len() <= REQUEST_BYTES_MAX);
            prop_assert_eq!(Request::decode(&message, &SECRET, MAX, &mut back), Some((request, &name[..])));
            prop_assert_eq!(&back, &rows);
            let carried = rows.len() * bytes as usize;
            prop_assert_eq!(Request::decode(&message, &SECRET, carried - 1, &mut back), None);
            prop_assert_eq!(Request::decode(&message, &[8; SECRET_BYTES], MAX, &mut back), None);
            for status in [Status::Rows, Status::OutOfRegion { region_bytes: region }, Status::StaleRegion] {
                let reply = Reply { sequence, status };
                let message = [&reply.encode()[..], &name].concat();
                prop_assert_eq!(Reply::decode(&message), Ok((reply, &name[..])));
            }
        }

        #[test]
        fn tokens_and_addresses_survive_the_trip(number: u64, bytes: u64, base: u64, key in proptest::option::of(1usize..128), name in proptest::collection::vec(any::<u8>(), 0..64)) {
            let address = address(name);
            prop_assert_eq!(Address::decode(&address.encode()), Ok(address.clone()));
            let keys = key.map(|length| {
                let mut key = Key { base, bytes: length as u32, key: [0; _] };
                key.key[..length].fill(length as u8);
                Keys { rows: key, version: Key { base: !base, ..key } }
            });
            let token = Token { number, bytes, keys };
            prop_assert_eq!(Token::decode(&token.encode(&address), &address), Ok(token.clone()));
            let other = Address { secret: [8; SECRET_BYTES], ..address.clone() };
            prop_assert!(Token::decode(&token.encode(&address), &other).is_err());
        }

        #[test]
        fn no_bytes_make_a_decoder_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), cut in 0usize..200) {
            let sealed = token::seal([&opening()[..], &bytes].concat());
            let _ = Address::decode(&sealed);
            let _ = Token::decode(&token::seal([&opening()[..], &address(Vec::new()).issuer(), &bytes].concat()), &address(Vec::new()));
            let _ = Reply::decode(&bytes);
            let mut message = Vec::new();
            let request = Request { sequence: 0, region: 0, version: 0, row_bytes: 8, offset: 0, bytes: 8 };
            request.encode(&SECRET, &[1; 16], &[1, 2, 3], &mut message);
            for (at, byte) in bytes.iter().enumerate().take(cut.min(message.len())) {
                message[at] ^= byte;
            }
            message.truncate(cut);
            let _ = Request::decode(&message, &SECRET, MAX, &mut Vec::new());
        }
    }
}
