//! The row numbers of a remote gather, as they travel: little-endian, in 4 bytes each where all of them fit, else in 8.

/// Whether some row takes 8 bytes.
pub(super) fn is_wide(rows: &[u64]) -> bool {
    rows.iter().any(|&row| row > u64::from(u32::MAX))
}

/// Appends the rows to a message.
pub(super) fn encode(rows: &[u64], wide: bool, message: &mut Vec<u8>) {
    if wide {
        message.extend(rows.iter().flat_map(|row| row.to_le_bytes()));
    } else {
        message.extend(rows.iter().flat_map(|&row| (row as u32).to_le_bytes()));
    }
}

/// Replaces `rows` by those of a list.
pub(super) fn decode(list: &[u8], wide: bool, rows: &mut Vec<u64>) {
    rows.clear();
    if wide {
        rows.extend(list.as_chunks::<8>().0.iter().map(|row| u64::from_le_bytes(*row)));
    } else {
        rows.extend(list.as_chunks::<4>().0.iter().map(|row| u64::from(u32::from_le_bytes(*row))));
    }
}

#[cfg(test)]
mod tests {
    //! Goal: rows survive the trip in either width. Method: lists on both sides of the border.
    use super::*;

    #[test]
    fn rows_survive_the_trip() {
        for rows in [&[][..], &[0, 7, u64::from(u32::MAX)], &[1, u64::from(u32::MAX) + 1, u64::MAX]] {
            let (mut message, mut back) = (Vec::new(), vec![9]);
            encode(rows, is_wide(rows), &mut message);
            decode(&message, is_wide(rows), &mut back);
            assert_eq!((back.as_slice(), message.len()), (rows, rows.len() * if is_wide(rows) { 8 } else { 4 }));
        }
    }
}
