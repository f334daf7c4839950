//! What a shard of a replay knows of the rows that it has not got in memory, in a bounded part of that memory.

use std::collections::HashSet;
use std::mem::size_of;

use super::hashed::ByHash;

/// What is known of the rows that a shard has not got in memory.
#[derive(Debug, Clone)]
pub enum Known {
    /// The tables hold none of them.
    Empty,
    /// The tables may hold those whose keys have one of these hashes.
    Stored(Hashes),
    /// The tables may hold any.
    Nothing,
}

/// Hashes of keys.
#[derive(Debug, Clone)]
pub struct Hashes(HashSet<u64, ByHash>);

/// What a place in a set of hashes takes up.
const PLACE: usize = size_of::<u64>() + 1;

/// A set has room for so many at least.
const FEWEST: usize = 3;

impl Known {
    /// Whether the tables may hold the row whose key has this hash.
    pub(super) fn may_be_stored(&self, hash: u64) -> bool {
        match self {
            Self::Empty => false,
            Self::Stored(Hashes(hashes)) => hashes.contains(&hash),
            Self::Nothing => true,
        }
    }

    /// A row is in the tables, and not in memory any more. Past so many bytes of hashes nothing is known any more: then every row
    /// that is not in memory is looked for.
    pub(super) fn store(&mut self, hash: u64, most_bytes: usize) {
        if let Self::Empty = self {
            *self = Self::Stored(Hashes(HashSet::default()));
        }
        let Self::Stored(Hashes(hashes)) = self else { return };
        // A set that is full doubles, and has both its old and its new places while it does.
        let is_full = hashes.len() == hashes.capacity();
        if is_full && bytes(hashes.capacity().max(FEWEST)) * 3 > most_bytes {
            *self = Self::Nothing;
        } else {
            hashes.insert(hash);
        }
    }

    /// What it takes up.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Stored(Hashes(hashes)) => bytes(hashes.capacity()),
            Self::Empty | Self::Nothing => 0,
        }
    }
}

/// Of a set with room for so many: an eighth of its places stays empty.
fn bytes(capacity: usize) -> usize {
    capacity * 8 / 7 * PLACE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_known_takes_up_no_more_than_it_may_and_denies_no_row_that_is_stored() {
        const MOST: usize = 10_000;
        let mut known = Known::Empty;
        assert!(!known.may_be_stored(1));
        let mut held = 0;
        for hash in 0..2_000 {
            known.store(hash, MOST);
            assert!(known.bytes() <= MOST, "{} bytes after {hash} rows", known.bytes());
            assert!((0..=hash).all(|stored| known.may_be_stored(stored)));
            if let Known::Stored(Hashes(hashes)) = &known {
                assert!(!known.may_be_stored(hash + 1));
                held = hashes.len();
            }
        }
        assert!(matches!(known, Known::Nothing), "{known:?}");
        assert!(held * PLACE > MOST / 4, "{held} rows were known");
    }
}
