//! How two ends prove to each other that they hold the job's secret, without showing it.
//!
//! Both send a nonce, then each sends an HMAC-SHA256 over both nonces, the joining rank and the job's size, under a label of its own
//! side, so that neither's proof can be sent back to it. The joining side proves first: a stranger learns nothing.

use hmac::{Hmac, Mac};
use sha2::Sha256;

/// Bytes of a nonce and of a proof.
pub(super) const NONCE_BYTES: usize = 32;

/// What one handshake is about.
#[derive(Clone, Copy)]
pub(super) struct Claim {
    pub(super) version: u16,
    pub(super) joining_nonce: [u8; NONCE_BYTES],
    pub(super) root_nonce: [u8; NONCE_BYTES],
    pub(super) rank: u32,
    pub(super) size: u32,
}

/// Who proves.
#[derive(Clone, Copy)]
pub(super) enum Side {
    Joining,
    Root,
}

impl Claim {
    pub(super) fn prove(&self, secret: &[u8; 32], side: Side) -> [u8; NONCE_BYTES] {
        self.mac(secret, side).finalize().into_bytes().into()
    }

    /// Whether the proof holds, in a time that does not depend on where it fails.
    pub(super) fn holds(&self, secret: &[u8; 32], side: Side, proof: &[u8]) -> bool {
        self.mac(secret, side).verify_slice(proof).is_ok()
    }

    fn mac(&self, secret: &[u8; 32], side: Side) -> Hmac<Sha256> {
        let label: &[u8] = match side {
            Side::Joining => b"rudder bootstrap: joining rank",
            Side::Root => b"rudder bootstrap: root",
        };
        let mac = <Hmac<Sha256> as Mac>::new_from_slice(secret).expect("HMAC takes keys of any length");
        mac.chain_update(label)
            .chain_update(self.version.to_le_bytes())
            .chain_update(self.joining_nonce)
            .chain_update(self.root_nonce)
            .chain_update(self.rank.to_le_bytes())
            .chain_update(self.size.to_le_bytes())
    }
}

pub(super) fn nonce() -> std::io::Result<[u8; NONCE_BYTES]> {
    let mut nonce = [0; NONCE_BYTES];
    getrandom::fill(&mut nonce).map_err(std::io::Error::other)?;
    Ok(nonce)
}
