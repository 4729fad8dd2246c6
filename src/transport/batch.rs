//! What every transport checks of a batch before it touches a byte.

use super::RowBatch;
use crate::error::{Error, Result};

impl RowBatch<'_> {
    /// Rows of `row_bytes` that the region holds.
    pub fn region_rows(&self) -> u64 {
        self.region.bytes / self.row_bytes.max(1) as u64
    }

    /// Checks the batch against itself: rows within the region, places within the destination, lists of one length.
    ///
    /// # Errors
    /// Says what is wrong with it.
    pub fn check(&self) -> Result<()> {
        let Self { rows, places, destination, row_bytes, .. } = *self;
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
