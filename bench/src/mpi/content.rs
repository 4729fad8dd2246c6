//! The bytes of every rank's table: a function of the owner and of the place, so that rows of any size can be checked.

use crate::graph::mix;
use anyhow::{Result, ensure};
use rudder::memory::Memory;
use std::ops::Range;

fn word(owner: u32, at: usize) -> [u8; 8] {
    mix((u64::from(owner) << 48) ^ at as u64).to_le_bytes()
}

/// Fills a table.
pub fn fill(owner: u32, table: &mut [u8]) {
    for (at, word_bytes) in table.chunks_mut(8).enumerate() {
        word_bytes.copy_from_slice(&word(owner, at)[..word_bytes.len()]);
    }
}

/// Fills memory that nobody else knows of yet.
pub fn fill_memory(owner: u32, memory: &Memory) {
    // SAFETY: initialised memory of this process, which nobody else reads or writes yet.
    fill(owner, unsafe { std::slice::from_raw_parts_mut(memory.base(), memory.bytes()) });
}

/// Compares bytes with those that the owner's table has there.
pub fn check(owner: u32, place: Range<usize>, found: &[u8]) -> Result<()> {
    let right = place.clone().zip(found).all(|(at, &byte)| word(owner, at / 8)[at % 8] == byte);
    ensure!(right && place.len() == found.len(), "bytes {place:?} of rank {owner}'s table came wrong");
    Ok(())
}

#[cfg(test)]
mod tests {
    //! Goal: wrong bytes are found wherever they are. Method: rows of odd sizes, right, of another owner, of another place, and broken.

    use super::*;

    #[test]
    fn wrong_rows_are_found() {
        let mut table = vec![0; 4099];
        fill(3, &mut table);
        for row_bytes in [1, 7, 8, 100] {
            for row in 0..table.len() / row_bytes {
                let place = row * row_bytes..(row + 1) * row_bytes;
                check(3, place.clone(), &table[place]).unwrap();
            }
        }
        assert!(check(2, 100..200, &table[100..200]).is_err());
        assert!(check(3, 108..208, &table[100..200]).is_err());
        assert!(check(3, 100..200, &table[100..199]).is_err());
        table[150] ^= 1;
        assert!(check(3, 100..200, &table[100..200]).is_err());
    }
}
