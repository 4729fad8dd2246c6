//! What every transport checks of a batch before it touches a byte.

use super::RowBatch;
use crate::error::{Error, Result};
use crate::memory::Version;

impl RowBatch<'_> {
    /// Rows of `row_bytes` that the region holds.
    pub fn region_rows(&self) -> u64 {
        self.region.bytes / self.row_bytes.max(1) as u64
    }

    /// Checks the batch against itself: rows within the region, places within the destination, lists of one length, a version that
    /// a region can hold.
    ///
    /// # Errors
    /// Says what is wrong with it.
    pub fn check(&self) -> Result<()> {
        let Self { rows, places, destination, row_bytes, version, .. } = *self;
        if version == Version::RETIRED {
            // It would equal what a region shows after its end.
            return Err(Error::argument(format!("version {version} is reserved: no region holds it")));
        }
        if row_bytes == 0 || destination.stride < row_bytes {
            return Err(Error::argument(format!("rows of {row_bytes} bytes at a stride of {}", destination.stride)));
        }
        if rows.len() != places.len() || u32::try_from(rows.len()).is_err() {
            return Err(Error::argument(format!("{} rows and {} places", rows.len(), places.len())));
        }
        let region_rows = self.region_rows();
        // Maxima rather than early exits: these compile to a few vector instructions for thousands of rows.
        let row_max = rows.iter().copied().max().unwrap_or(0);
        if row_max >= region_rows && !rows.is_empty() {
            let peer = self.region.peer;
            return Err(Error::argument(format!(
                "row {row_max} outside the region of {peer}, which has {region_rows}"
            )));
        }
        let place_max = places.iter().copied().max().unwrap_or(0) as usize;
        if place_max >= destination.places && !places.is_empty() {
            return Err(Error::argument(format!("place {place_max} of a destination of {}", destination.places)));
        }
        Ok(())
    }
}

/// Neighbouring rows of a batch that lie as they will land: one read fetches them all.
#[cfg(any(feature = "verbs", feature = "fabric", feature = "mpi", test))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    /// The first row, within the region.
    pub row: u64,
    /// Its place.
    pub place: u32,
    /// How many.
    pub rows: usize,
}

/// Cuts rows into runs of exactly adjacent ones: each next row to the next place, at most `rows_max` at once. Where places lie apart
/// (a stride longer than a row) nothing is adjacent, and `rows_max` must be 1.
#[cfg(any(feature = "verbs", feature = "fabric", feature = "mpi", test))]
pub(super) fn runs<'a>(rows: &'a [u64], places: &'a [u32], rows_max: usize) -> impl Iterator<Item = Run> + 'a {
    let mut at = 0;
    std::iter::from_fn(move || {
        let (&row, &place) = (rows.get(at)?, places.get(at)?);
        let follows = |&(i, (&next_row, &next_place)): &(usize, (&u64, &u32))| {
            row.checked_add(i as u64) == Some(next_row) && place as usize + i == next_place as usize
        };
        let count = rows[at..].iter().zip(&places[at..]).enumerate().take(rows_max.max(1)).take_while(follows).count();
        at += count;
        Some(Run { row, place, rows: count })
    })
}

#[cfg(test)]
mod tests {
    //! Goal: runs cover a batch exactly, in its order, and join all that is adjacent and nothing else.
    //! Method: a worked example, and a property test against the rows one by one.

    use super::*;
    use crate::id::Rank;
    use crate::transport::{BatchId, Destination, RemoteRegion};
    use proptest::prelude::*;

    #[test]
    fn the_version_of_ended_regions_cannot_be_asked_for() {
        let destination = Destination { base: std::ptr::null_mut(), stride: 8, places: 1 };
        let region = RemoteRegion { peer: Rank(0), index: 0, bytes: 8 };
        let batch =
            |version| RowBatch { id: BatchId(1), region, version, row_bytes: 8, rows: &[0], places: &[0], destination };
        assert!(batch(Version::RETIRED - 1).check().is_ok());
        assert!(batch(Version::RETIRED).check().unwrap_err().to_string().contains("reserved"));
    }

    #[test]
    fn only_neighbours_on_both_sides_are_joined() {
        let found: Vec<_> = runs(&[4, 5, 6, 7, 9, 9, 10], &[0, 1, 3, 4, 5, 6, 7], 8).collect();
        let run = |row, place, rows| Run { row, place, rows };
        assert_eq!(found, [run(4, 0, 2), run(6, 3, 2), run(9, 5, 1), run(9, 6, 2)]);
    }

    proptest! {
        #[test]
        fn runs_are_the_batch(steps in proptest::collection::vec((0u64..3, 0u32..3), 0..60), rows_max in 1usize..6) {
            let (mut rows, mut places, mut row, mut place) = (vec![], vec![], 0, 0);
            for (row_step, place_step) in steps {
                row += row_step;
                place += place_step;
                rows.push(row);
                places.push(place);
            }
            let found: Vec<_> = runs(&rows, &places, rows_max).collect();
            let each = |run: &Run| (0..run.rows).map(|i| (run.row + i as u64, run.place + i as u32)).collect::<Vec<_>>();
            let covered: Vec<_> = found.iter().flat_map(each).collect();
            let whole: Vec<_> = rows.iter().copied().zip(places.iter().copied()).collect();
            prop_assert_eq!(covered, whole);
            for pair in found.windows(2) {
                prop_assert!(pair[0].rows <= rows_max);
                let end = (pair[0].row + pair[0].rows as u64, pair[0].place + pair[0].rows as u32);
                prop_assert!(pair[0].rows == rows_max || end != (pair[1].row, pair[1].place));
            }
        }
    }
}
