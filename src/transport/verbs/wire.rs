//! The bytes that ranks exchange beside the device: where a queue pair is, and what a region's token carries.

use super::device::PortAddress;
use super::registration::Exported;
use crate::transport::handshake::{NONCE_BYTES, Protocol};

/// What this file speaks; both sides of a connection must speak the same version.
pub const PROTOCOL: Protocol =
    Protocol { name: "verbs", version: 1, address: *b"RDVA", token: *b"RDVT", hello: *b"RDVH" };

pub const OFFER_BYTES: usize = 32;
const TOKEN_BODY_BYTES: usize = 40;

/// One end of a connection, as the other end must know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offer {
    pub queue_pair: u32,
    /// The first packet's sequence number, 24 bits.
    pub packet: u32,
    pub address: PortAddress,
    pub mtu: u8,
    pub reads_out: u8,
    pub reads_in: u8,
}

impl Offer {
    pub fn encode(&self) -> [u8; OFFER_BYTES] {
        let mut blob = [0; OFFER_BYTES];
        blob[..4].copy_from_slice(&self.queue_pair.to_le_bytes());
        blob[4..8].copy_from_slice(&self.packet.to_le_bytes());
        blob[8..24].copy_from_slice(&self.address.gid);
        blob[24..26].copy_from_slice(&self.address.lid.to_le_bytes());
        blob[26..29].copy_from_slice(&[self.mtu, self.reads_out, self.reads_in]);
        blob
    }

    pub fn decode(blob: &[u8; OFFER_BYTES]) -> Result<Self, String> {
        let number = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| blob[at + i]));
        let offer = Self {
            queue_pair: number(0),
            packet: number(4),
            address: PortAddress {
                gid: std::array::from_fn(|i| blob[8 + i]),
                lid: u16::from_le_bytes([blob[24], blob[25]]),
            },
            mtu: blob[26],
            reads_out: blob[27],
            reads_in: blob[28],
        };
        if offer.queue_pair >> 24 != 0 || offer.packet >> 24 != 0 {
            Err("a queue pair or packet number of more than 24 bits".into())
        } else if !(1..=5).contains(&offer.mtu) {
            Err(format!("an MTU of unknown code {}", offer.mtu))
        } else if offer.reads_out == 0 || offer.reads_in == 0 {
            Err("a device that does no reads".into())
        } else {
            Ok(offer)
        }
    }
}

/// A region's token, for its readers.
pub fn encode_token(region: &Exported, secret: &[u8; NONCE_BYTES]) -> Vec<u8> {
    let fields: [&[u8]; 5] = [
        &region.address.to_le_bytes(),
        &region.bytes.to_le_bytes(),
        &region.version_address.to_le_bytes(),
        &region.rkey.to_le_bytes(),
        &region.version_rkey.to_le_bytes(),
    ];
    PROTOCOL.seal_token(&fields, secret)
}

/// What a token says, once it is known to be its owner's.
pub fn decode_token(blob: &[u8], secret: &[u8; NONCE_BYTES]) -> Result<Exported, String> {
    let body = PROTOCOL.open_token(blob, TOKEN_BODY_BYTES, secret)?;
    let long = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| body[at + i]));
    let short = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| body[at + i]));
    let region = Exported {
        address: long(8),
        bytes: long(16),
        version_address: long(24),
        rkey: short(32),
        version_rkey: short(36),
    };
    // Addresses of rows are computed without further checks.
    region.address.checked_add(region.bytes).map(|_| region).ok_or_else(|| "the region wraps around".into())
}

#[cfg(test)]
mod tests {
    //! Goal: offers and tokens survive the trip, and no bytes whatever make a decoder panic or accept a damaged token.
    //! Method: round trips and arbitrary bytes by property tests; every single-byte corruption of a token.

    use super::*;
    use proptest::prelude::*;

    const SECRET: [u8; 32] = [7; 32];

    #[test]
    fn tokens_of_any_damage_are_refused() {
        let region = Exported { address: 1 << 40, bytes: 4096, rkey: 77, version_address: 8192, version_rkey: 78 };
        let blob = encode_token(&region, &SECRET);
        assert_eq!(decode_token(&blob, &SECRET), Ok(region));
        assert!(decode_token(&blob, &[8; 32]).is_err(), "another rank's secret");
        for end in 0..blob.len() {
            assert!(decode_token(&blob[..end], &SECRET).is_err(), "truncated to {end}");
        }
        for at in 0..blob.len() {
            let mut damaged = blob.clone();
            damaged[at] ^= 1;
            assert!(decode_token(&damaged, &SECRET).is_err(), "damaged at {at}");
        }
        let wraps = encode_token(&Exported { address: u64::MAX, ..region }, &SECRET);
        assert!(decode_token(&wraps, &SECRET).is_err());
    }

    proptest! {
        #[test]
        fn offers_survive_the_trip(queue_pair in 0u32..1 << 24, packet in 0u32..1 << 24, gid: [u8; 16], lid: u16, mtu in 1u8..=5, reads in 1u8..) {
            let offer = Offer { queue_pair, packet, address: PortAddress { gid, lid }, mtu, reads_out: reads, reads_in: 1 };
            prop_assert_eq!(Offer::decode(&offer.encode()), Ok(offer));
        }

        #[test]
        fn no_bytes_make_a_decoder_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80), offer: [u8; 32]) {
            let _ = decode_token(&bytes, &SECRET);
            let _ = Offer::decode(&offer);
        }
    }
}
