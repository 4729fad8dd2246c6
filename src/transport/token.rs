//! What tokens and addresses are made of: fixed fields and a checksum, read from bytes that nobody vouches for.

use sha2::{Digest, Sha256};

/// Ends a token with a checksum, against accidents; it keeps nobody out.
pub(super) fn seal(body: Vec<u8>) -> Vec<u8> {
    let sum = checksum(&body);
    [body, sum.to_vec()].concat()
}

/// The token's fields, once the checksum is right.
pub(super) fn unseal(token: &[u8]) -> Result<&[u8], String> {
    let (body, sum) = token.split_last_chunk::<8>().ok_or("truncated")?;
    if *sum == checksum(body) { Ok(body) } else { Err("truncated or corrupted".into()) }
}

fn checksum(bytes: &[u8]) -> [u8; 8] {
    *Sha256::digest(bytes).first_chunk().expect("a digest has 32 bytes")
}

/// Takes fixed-size fields off the front of bytes.
pub(super) struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(super) fn take<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let (field, rest) = self.0.split_first_chunk().ok_or("truncated")?;
        self.0 = rest;
        Ok(*field)
    }

    /// So many bytes, for fields whose length is a field before them.
    #[cfg(feature = "fabric")]
    pub(super) fn take_bytes(&mut self, count: usize) -> Result<&'a [u8], String> {
        let (field, rest) = self.0.split_at_checked(count).ok_or("truncated")?;
        self.0 = rest;
        Ok(field)
    }

    /// That nothing is left.
    pub(super) fn end(&self) -> Result<(), String> {
        if self.0.is_empty() { Ok(()) } else { Err(format!("{} bytes too long", self.0.len())) }
    }
}
