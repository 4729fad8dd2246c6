//! Which rows a rank gathers, and of whom.

use rand::Rng;
use std::ops::Range;

/// Who gathers from whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pattern {
    /// The first rank from the last.
    One,
    /// Each rank of the first half from one of the second.
    Pairs,
    /// Every rank from all others.
    AllToAll,
    /// All others from the first.
    Incast,
}

impl Pattern {
    /// Whom a rank gathers from.
    pub fn owners(self, rank: u32, size: u32) -> Vec<u32> {
        match self {
            Self::One if rank == 0 => vec![size - 1],
            Self::Pairs if rank < size / 2 => vec![rank + size / 2],
            Self::AllToAll => (0..size).filter(|&owner| owner != rank).collect(),
            Self::Incast if rank > 0 => vec![0],
            Self::One | Self::Pairs | Self::Incast => vec![],
        }
    }

    /// How many ranks gather.
    pub fn askers(self, size: u32) -> u32 {
        (0..size).filter(|&rank| !self.owners(rank, size).is_empty()).count() as u32
    }
}

/// Rows of one gather, owner by owner; row `i` lands at place `i`.
#[derive(Clone, Debug, Default)]
pub struct Wants {
    pub rows: Vec<u64>,
    pub parts: Vec<Part>,
    pub row_bytes: usize,
}

/// Rows of one owner, ascending.
#[derive(Clone, Debug)]
pub struct Part {
    pub owner: u32,
    pub places: Range<usize>,
}

impl Wants {
    /// So many random rows of tables of so many, each of a random owner.
    pub fn draw(&mut self, owners: &[u32], count: usize, row_bytes: usize, table_rows: u64, chance: &mut impl Rng) {
        let mut drawn: Vec<(u32, u64)> = (0..count)
            .map(|_| (owners[chance.random_range(0..owners.len())], chance.random_range(0..table_rows)))
            .collect();
        drawn.sort_unstable();
        self.row_bytes = row_bytes;
        self.rows.clear();
        self.rows.extend(drawn.iter().map(|&(_, row)| row));
        self.parts.clear();
        for same in drawn.chunk_by(|a, b| a.0 == b.0) {
            let first = self.parts.last().map_or(0, |part| part.places.end);
            self.parts.push(Part { owner: same[0].0, places: first..first + same.len() });
        }
    }

    /// The owner of the row at a place.
    pub fn owner_of(&self, place: usize) -> u32 {
        self.parts[self.parts.partition_point(|part| part.places.end <= place)].owner
    }
}

#[cfg(test)]
mod tests {
    //! Goal: patterns are what their names say, and drawn rows are all of the owners named. Method: small jobs, counted.

    use super::*;
    use rand::SeedableRng;
    use rand_xoshiro::Xoshiro256PlusPlus;

    #[test]
    fn patterns_are_what_their_names_say() {
        assert_eq!(Pattern::One.owners(0, 4), [3]);
        assert!((1..4).all(|rank| Pattern::One.owners(rank, 4).is_empty()));
        assert_eq!(Pattern::Pairs.owners(1, 4), [3]);
        assert_eq!(Pattern::AllToAll.owners(1, 3), [0, 2]);
        assert_eq!(Pattern::Incast.owners(2, 3), [0]);
        let askers = [Pattern::One, Pattern::Pairs, Pattern::AllToAll, Pattern::Incast].map(|all| all.askers(5));
        assert_eq!(askers, [1, 2, 5, 4]);
    }

    #[test]
    fn every_row_has_its_owner_and_place() {
        let mut wants = Wants::default();
        wants.draw(&[1, 4, 9], 1000, 16, 50, &mut Xoshiro256PlusPlus::seed_from_u64(3));
        assert_eq!(wants.parts.iter().map(|part| part.owner).collect::<Vec<_>>(), [1, 4, 9]);
        assert_eq!(wants.parts.last().unwrap().places.end, 1000);
        for part in &wants.parts {
            assert!(
                wants.rows[part.places.clone()].is_sorted()
                    && part.places.clone().all(|at| wants.owner_of(at) == part.owner)
            );
        }
    }
}
