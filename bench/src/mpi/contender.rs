//! What is measured in turns: a way to gather rows.

use super::content;
use super::wants::Wants;
use super::world::Waiting;
use anyhow::Result;
use rudder::memory::Memory;

/// A way to gather rows.
pub trait Contender {
    /// Its name in tables and documents.
    fn name(&self) -> &str;

    /// What ranks must do whose rows are gathered.
    fn owners(&self) -> Waiting;

    /// Begins a gather.
    fn start(&mut self, wants: &Wants) -> Result<()>;

    /// Returns when all its rows have landed.
    fn finish(&mut self, wants: &Wants) -> Result<()>;

    /// The rows of the last gather.
    fn landed(&self) -> &[u8];

    /// Whose bytes stand for those of this owner.
    fn stands_for(&self, owner: u32) -> u32 {
        owner
    }
}

/// Checks the bytes of the rows at these places.
pub fn check(contender: &dyn Contender, wants: &Wants, places: impl Iterator<Item = usize>) -> Result<()> {
    let row_bytes = wants.row_bytes;
    for place in places {
        let first = wants.rows[place] as usize * row_bytes;
        let found = &contender.landed()[place * row_bytes..][..row_bytes];
        content::check(contender.stands_for(wants.owner_of(place)), first..first + row_bytes, found)?;
    }
    Ok(())
}

/// The same rows out of this rank's own memory, one after the other: what memory lets anyone do.
pub struct Memcpy {
    rank: u32,
    table: Memory,
    landing: Memory,
}

impl Memcpy {
    /// Its name in tables and documents.
    pub const NAME: &str = "memcpy";

    pub fn new(rank: u32, table_bytes: usize, landing_bytes: usize) -> Result<Self> {
        let (table, landing) = (Memory::allocate(table_bytes)?, Memory::allocate(landing_bytes)?);
        content::fill_memory(rank, &table);
        Ok(Self { rank, table, landing })
    }
}

impl Contender for Memcpy {
    fn name(&self) -> &str {
        Self::NAME
    }

    fn owners(&self) -> Waiting {
        Waiting::Outside
    }

    fn start(&mut self, wants: &Wants) -> Result<()> {
        let row_bytes = wants.row_bytes;
        for (place, &row) in wants.rows.iter().enumerate() {
            // SAFETY: rows were drawn from the table's, and the landing has a place for each.
            unsafe {
                let from = self.table.base().add(row as usize * row_bytes);
                std::ptr::copy_nonoverlapping(from, self.landing.base().add(place * row_bytes), row_bytes);
            }
        }
        Ok(())
    }

    fn finish(&mut self, _: &Wants) -> Result<()> {
        Ok(())
    }

    fn landed(&self) -> &[u8] {
        bytes(&self.landing)
    }

    fn stands_for(&self, _: u32) -> u32 {
        self.rank
    }
}

/// The bytes of memory that nobody writes to at the moment.
pub fn bytes(memory: &Memory) -> &[u8] {
    // SAFETY: initialised memory of this process; gathers to it are over when it is looked at.
    unsafe { std::slice::from_raw_parts(memory.base(), memory.bytes()) }
}
