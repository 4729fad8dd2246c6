//! Hashes that decide what must come out alike on every machine: splits, generated features, random streams, file checksums.

/// One round of SplitMix64 (Steele, Lea and Flood, 2014): a bijection of 64 bits that leaves no visible structure.
#[inline]
pub fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// A hash of several numbers, in order.
#[inline]
pub fn mix_all<const N: usize>(values: [u64; N]) -> u64 {
    values.into_iter().fold(0, |state, value| mix(state ^ value))
}

/// A number of zero mean and unit variance: the sum of a hash's four 16-bit lanes, which is near enough to a Gaussian.
#[inline]
pub fn noise(hash: u64) -> f32 {
    const MEAN: f32 = 4.0 * 65535.0 / 2.0;
    // Four uniform lanes have a variance of 4 * 65536^2 / 12.
    const DEVIATION: f32 = 37836.9;
    let sum = (hash & 0xFFFF) + (hash >> 16 & 0xFFFF) + (hash >> 32 & 0xFFFF) + (hash >> 48);
    (sum as f32 - MEAN) / DEVIATION
}

/// A checksum against truncation and damage (not against an adversary), fast enough to run over every mapped byte.
pub fn checksum(bytes: &[u8]) -> u64 {
    let mut lanes = [1u64, 2, 3, 4];
    let mut blocks = bytes.chunks_exact(32);
    for block in &mut blocks {
        for (lane, word) in lanes.iter_mut().zip(block.chunks_exact(8)) {
            let word = u64::from_le_bytes([word[0], word[1], word[2], word[3], word[4], word[5], word[6], word[7]]);
            *lane = (*lane ^ word).wrapping_mul(0x9FB2_1C65_1E98_DF25).rotate_left(29);
        }
    }
    let tail = blocks.remainder().iter().fold(bytes.len() as u64, |state, &byte| mix(state ^ u64::from(byte)));
    lanes.into_iter().fold(tail, |state, lane| mix(state ^ lane))
}

#[cfg(test)]
mod tests {
    //! Goal: damage changes the checksum, and noise has the moments it claims. Method: every bit of a few lengths; many draws.

    use super::*;

    #[test]
    fn every_bit_and_the_length_count() {
        for length in [0usize, 1, 7, 31, 32, 33, 100] {
            let bytes: Vec<u8> = (0..length).map(|at| at as u8).collect();
            let sound = checksum(&bytes);
            for bit in 0..8 * length {
                let mut damaged = bytes.clone();
                damaged[bit / 8] ^= 1 << (bit % 8);
                assert_ne!(checksum(&damaged), sound, "bit {bit} of {length} bytes");
            }
            assert_ne!(checksum(&[&bytes[..], &[0]].concat()), sound);
        }
        // Equal blocks in another order are another file.
        let [a, b] = [[1u8; 32], [2; 32]];
        assert_ne!(checksum(&[a, b].concat()), checksum(&[b, a].concat()));
    }

    #[test]
    fn noise_has_zero_mean_and_unit_variance() {
        let draws: Vec<f64> = (0..100_000).map(|at| f64::from(noise(mix(at)))).collect();
        let mean = draws.iter().sum::<f64>() / draws.len() as f64;
        let variance = draws.iter().map(|draw| draw * draw).sum::<f64>() / draws.len() as f64;
        assert!(mean.abs() < 0.02 && (variance - 1.0).abs() < 0.02, "{mean} {variance}");
    }
}
