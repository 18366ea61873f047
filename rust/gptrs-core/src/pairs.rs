//! The merges as a table: pair of ids → rank, and rank → product.

use crate::naive::Pair;

/// The rank of a pair that never merges; larger than every real one.
pub(crate) const NO_RANK: u32 = u32::MAX;

/// Bits of an id and of a rank, so that a pair and its rank fit into one word.
pub(crate) const ID_BITS: u32 = 21;

/// A slot without a merge; its rank reads as [`NO_RANK`] and its pair is none, since ids stay below 2²¹ − 1.
const EMPTY: u64 = u64::MAX;

/// Flat open addressing at a load of at most 1/2, beside a dense grid for the pairs of single bytes, which are all that a
/// fresh piece asks for.
#[derive(Debug, Clone)]
pub(crate) struct Pairs {
    grid: Vec<u32>,
    /// Left id, right id, rank.
    slots: Vec<u64>,
    shift: u32,
    products: Vec<u32>,
}

impl Pairs {
    /// An empty table with room for `n_merges`.
    pub(crate) fn with_capacity(n_merges: usize) -> Self {
        let n_slots = (2 * n_merges).next_power_of_two().max(16);
        Self {
            grid: vec![NO_RANK; 256 * 256],
            slots: vec![EMPTY; n_slots],
            shift: 64 - n_slots.trailing_zeros(),
            products: Vec::with_capacity(n_merges),
        }
    }

    /// Appends the merge of the next rank; false when the pair is already there. `token` spells the product, so that a
    /// pair of bytes also enters the grid. The caller keeps to the capacity.
    pub(crate) fn push(&mut self, pair: Pair, product: u32, token: &[u8]) -> bool {
        debug_assert!(2 * self.products.len() < self.slots.len(), "the table was made for fewer merges");
        let key = key(pair.0, pair.1);
        let mut at = home(key, self.shift);
        while self.slots[at] != EMPTY {
            if self.slots[at] >> ID_BITS == key {
                return false;
            }
            at = (at + 1) & (self.slots.len() - 1);
        }
        let rank = self.products.len() as u32;
        self.slots[at] = key << ID_BITS | u64::from(rank);
        self.products.push(product);
        if let &[left, right] = token {
            self.grid[grid_cell(left, right)] = rank;
        }
        true
    }

    /// The rank of a pair of bytes.
    #[inline]
    pub(crate) fn byte_rank(&self, left: u8, right: u8) -> u32 {
        self.grid[grid_cell(left, right)]
    }

    /// The rank of a pair, [`NO_RANK`] when it never merges.
    #[inline]
    pub(crate) fn rank(&self, left: u32, right: u32) -> u32 {
        let key = key(left, right);
        let mut at = home(key, self.shift);
        loop {
            let slot = self.slots[at];
            if slot >> ID_BITS == key {
                return slot as u32 & ((1 << ID_BITS) - 1);
            }
            if slot == EMPTY {
                return NO_RANK;
            }
            at = (at + 1) & (self.slots.len() - 1);
        }
    }

    /// The id that the merge of `rank` makes.
    #[inline]
    pub(crate) fn product(&self, rank: u32) -> u32 {
        self.products[rank as usize]
    }
}

#[inline]
fn grid_cell(left: u8, right: u8) -> usize {
    usize::from(left) << 8 | usize::from(right)
}

#[inline]
fn key(left: u32, right: u32) -> u64 {
    u64::from(left) << ID_BITS | u64::from(right)
}

/// Fibonacci hashing: the multiplication mixes into the top bits, which the shift keeps.
#[inline]
fn home(key: u64, shift: u32) -> usize {
    (key.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> shift) as usize
}
