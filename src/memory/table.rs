//! The rows of one table that this rank owns.

use super::{Region, Version};
use crate::error::{Error, Result};
use crate::id::TableId;

/// One partition's rows of a feature table, in a registered region: row `i` is at byte `i * row_bytes`.
#[derive(Debug)]
pub struct FeatureTable {
    table: TableId,
    row_bytes: usize,
    rows: u64,
    region: Region,
}

impl FeatureTable {
    /// Rows of `row_bytes` bytes each, at the start of `region`, published as `version`.
    ///
    /// # Errors
    /// The region is too small for them, or the version is the reserved [`Version::RETIRED`].
    pub fn new(table: TableId, row_bytes: usize, rows: u64, version: u64, region: Region) -> Result<Self> {
        let there = region.memory().bytes();
        let needed = (row_bytes as u64).checked_mul(rows).filter(|needed| *needed <= there as u64);
        if row_bytes == 0 || needed.is_none() {
            return Err(Error::argument(format!(
                "{table}: {rows} rows of {row_bytes} bytes do not fit a region of {there} bytes"
            )));
        }
        let table = Self { table, row_bytes, rows, region };
        table.publish(version)?;
        Ok(table)
    }

    /// Which table the rows are of.
    pub fn table(&self) -> TableId {
        self.table
    }

    /// Bytes of a row.
    pub fn row_bytes(&self) -> usize {
        self.row_bytes
    }

    /// Rows here.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// The version that gets must name.
    pub fn version(&self) -> u64 {
        self.region.version().map_or(0, Version::get)
    }

    /// Refuses, from now on, gets that name another version. Called before the first row of the new version is written; readers are
    /// told the version by the caller.
    ///
    /// # Errors
    /// The version is the reserved [`Version::RETIRED`].
    pub fn publish(&self, version: u64) -> Result<()> {
        if version == Version::RETIRED {
            return Err(Error::argument(format!(
                "{}: version {version} is reserved: publish a smaller one",
                self.table
            )));
        }
        if let Some(cell) = self.region.version() {
            cell.set(version);
        }
        Ok(())
    }

    /// Where the rows are, and the token for peers.
    pub fn region(&self) -> &Region {
        &self.region
    }
}
