//! The merges as a table: pair of ids → rank, and rank → product.

use std::hint::black_box;

use crate::naive::Pair;
use crate::tokens::fold;

/// The rank of a pair that never merges; larger than every real one, and with six bits below it still positive in i32.
pub(crate) const NO_RANK: u32 = (1 << 25) - 1;

/// Bits of an id and of a rank, so that a pair and its rank fit into one word.
pub(crate) const ID_BITS: u32 = 21;

const RANK: u64 = (1 << ID_BITS) - 1;

/// A slot without a merge; its pair is none, since ids have 21 bits.
const EMPTY: u64 = u64::MAX;

/// Entries moved for one that is inserted before the table grows.
const MAX_MOVES: usize = 64;

/// Two buckets of two slots may hold a pair, so that a look-up reads four slots and takes no branch: most pairs that
/// are asked for do not merge, and which do is not to be predicted. Beside it a dense grid for the pairs of single bytes,
/// which are all that a fresh piece asks for.
#[derive(Debug, Clone)]
pub(crate) struct Pairs {
    grid: Vec<u32>,
    /// Left id, right id, rank.
    buckets: Vec<[u64; 2]>,
    products: Vec<u32>,
    /// What to add to a rank for its product, where that is the same for all.
    offset: Option<u32>,
}

impl Pairs {
    /// An empty table with room for `n_merges`.
    pub(crate) fn with_capacity(n_merges: usize) -> Self {
        // A load of at most 0.83, at which moves are few.
        let n_buckets = (n_merges * 6 / 10).next_power_of_two().max(16);
        Self {
            grid: vec![NO_RANK; 256 * 256],
            buckets: vec![[EMPTY; 2]; n_buckets],
            products: Vec::with_capacity(n_merges),
            offset: None,
        }
    }

    /// Appends the merge of the next rank; false when the pair is already there. `token` spells the product, so that a
    /// pair of bytes also enters the grid. The caller keeps ranks and ids below 2²¹.
    pub(crate) fn push(&mut self, pair: Pair, product: u32, token: &[u8]) -> bool {
        if self.rank(pair.0, pair.1) != NO_RANK {
            return false;
        }
        let rank = self.products.len() as u32;
        self.insert(key(pair.0, pair.1) << ID_BITS | u64::from(rank));
        let offset = product.wrapping_sub(rank);
        self.offset = if rank == 0 { Some(offset) } else { self.offset.filter(|&known| known == offset) };
        self.products.push(product);
        if let &[left, right] = token {
            self.grid[grid_cell(left, right)] = rank;
        }
        true
    }

    /// Reads where each of `pairs` may stand, so that the memory of all of them is fetched side by side.
    pub(crate) fn fetch(&self, pairs: &[Pair]) {
        let mask = self.buckets.len() - 1;
        let places = pairs.iter().flat_map(|&(left, right)| homes(key(left, right), mask));
        black_box(places.fold(0, |all, place| all | self.buckets[place][0]));
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
        let [first, second] = homes(key, self.buckets.len() - 1);
        let ([a, b], [c, d]) = (self.buckets[first], self.buckets[second]);
        let mut rank = NO_RANK;
        for slot in [a, b, c, d] {
            rank = std::hint::select_unpredictable(slot >> ID_BITS == key, (slot & RANK) as u32, rank);
        }
        rank
    }

    /// The id that the merge of `rank` makes.
    #[inline]
    pub(crate) fn product(&self, rank: u32) -> u32 {
        match self.offset {
            Some(offset) => rank.wrapping_add(offset),
            None => self.products[rank as usize],
        }
    }

    /// Puts a slot into one of its buckets; one that stands there moves to its other bucket.
    fn insert(&mut self, mut slot: u64) {
        for turn in 0..MAX_MOVES {
            let homes = homes(slot >> ID_BITS, self.buckets.len() - 1);
            for home in homes {
                if let Some(free) = self.buckets[home].iter_mut().find(|slot| **slot == EMPTY) {
                    *free = slot;
                    return;
                }
            }
            slot = std::mem::replace(&mut self.buckets[homes[turn % 2]][turn / 2 % 2], slot);
        }
        let n_buckets = 2 * self.buckets.len();
        let old = std::mem::replace(&mut self.buckets, vec![[EMPTY; 2]; n_buckets]);
        old.into_iter().flatten().filter(|&slot| slot != EMPTY).for_each(|slot| self.insert(slot));
        self.insert(slot);
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

/// The two buckets of a key; `mask` is below 2³².
#[inline]
fn homes(key: u64, mask: usize) -> [usize; 2] {
    let hash = fold(key ^ 0x9E37_79B9_7F4A_7C15, 0xD6E8_FEB8_6659_FD93);
    [hash as usize & mask, (hash >> 32) as usize & mask]
}
