//! The bytes on the wire and in address and token blobs: fixed layouts, little-endian, every length bounded before it is used.

use crate::error::TransferError;
use crate::transport::handshake::{NONCE_BYTES, Protocol};

/// What this file speaks; both sides of a connection must speak the same version.
pub const PROTOCOL: Protocol =
    Protocol { name: "tcp", version: 1, address: *b"RDTA", token: *b"RDTT", hello: *b"RDTH" };
/// Most rows of one request: it bounds the memory that a connection can make an owner hold.
pub const REQUEST_ROWS_MAX: usize = 16 * 1024;
pub const REQUEST_BYTES: usize = 40;
pub const REPLY_BYTES: usize = 32;

const REQUEST_MAGIC: [u8; 4] = *b"RDTQ";
const REPLY_MAGIC: [u8; 4] = *b"RDTR";
const TOKEN_BODY_BYTES: usize = 24;

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

/// Names a region of one rank; authenticated by that rank's own secret, so that a corrupted or foreign one is noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token {
    pub region: u64,
    pub bytes: u64,
}

impl Token {
    pub fn encode(&self, secret: &[u8; NONCE_BYTES]) -> Vec<u8> {
        PROTOCOL.seal_token(&[&self.region.to_le_bytes(), &self.bytes.to_le_bytes()], secret)
    }

    pub fn decode(blob: &[u8], secret: &[u8; NONCE_BYTES]) -> Result<Self, String> {
        let body = PROTOCOL.open_token(blob, TOKEN_BODY_BYTES, secret)?;
        Ok(Self { region: u64_at(body, 8), bytes: u64_at(body, 16) })
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
        fn no_bytes_make_a_decoder_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80), head: [u8; 40]) {
            let _ = Token::decode(&bytes, &SECRET);
            let _ = Request::decode(&head);
            let _ = Reply::decode(head[..REPLY_BYTES].try_into().unwrap());
        }
    }
}
