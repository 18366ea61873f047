//! The merges as a table: pair of ids → rank, and rank → product.

use std::hint::{black_box, select_unpredictable};

use crate::naive::Pair;
use crate::simd;
use crate::tokens::fold;

/// The rank of a pair that never merges; larger than every real one, and with six bits below it still positive in i32.
pub(crate) const NO_RANK: u32 = (1 << 25) - 1;

/// Bits of an id and of a rank, so that a pair and its rank fit into one word.
pub(crate) const ID_BITS: u32 = 21;

const RANK: u64 = (1 << ID_BITS) - 1;

/// A slot without a merge; its pair is none, since ids have 21 bits.
const EMPTY: u64 = u64::MAX;

/// The slots of a bucket.
const SLOTS: usize = 4;

/// Two buckets, so that none lies in two cache lines.
#[derive(Debug, Clone, Copy)]
#[repr(align(64))]
struct Line([[u64; SLOTS]; 2]);

/// A pair stands in its bucket, or, if this is full, in the first after it that is not. Few are, so that a look-up reads one
/// cache line and takes a branch that is easy to predict: time goes by waiting for the lines. Beside it a dense grid for the
/// pairs of single bytes, which are all that a fresh piece asks for.
#[derive(Debug, Clone)]
pub(crate) struct Pairs {
    grid: Vec<u32>,
    /// Left id, right id, rank.
    lines: Vec<Line>,
    products: Vec<u32>,
    /// What to add to a rank for its product, where that is the same for all.
    offset: Option<u32>,
}

impl Pairs {
    /// An empty table with room for `n_merges`.
    pub(crate) fn with_capacity(n_merges: usize) -> Self {
        Self {
            grid: vec![NO_RANK; 256 * 256],
            lines: lines(n_merges),
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
        let place = |&(left, right): &Pair| home(key(left, right), self.lines.len());
        black_box(pairs.iter().map(place).fold(0, |all, place| all | self.bucket(place)[0]));
    }

    /// The place of a pair for [`Pairs::rank_at`].
    #[inline]
    pub(crate) fn place(&self, left: u32, right: u32) -> u32 {
        home(key(left, right), self.lines.len()) as u32
    }

    /// Asks the processor to bring near what [`Pairs::rank_at`] looks up at `place`.
    #[inline]
    pub(crate) fn prefetch(&self, place: u32) {
        simd::prefetch(&self.lines, place as usize / 2);
    }

    /// The rank of a pair of bytes.
    #[inline]
    pub(crate) fn byte_rank(&self, left: u8, right: u8) -> u32 {
        self.grid[grid_cell(left, right)]
    }

    /// The rank of a pair, [`NO_RANK`] when it never merges.
    #[inline]
    pub(crate) fn rank(&self, left: u32, right: u32) -> u32 {
        self.rank_at(self.place(left, right), left, right)
    }

    /// [`Pairs::rank`] of a pair whose place is known.
    #[inline]
    pub(crate) fn rank_at(&self, place: u32, left: u32, right: u32) -> u32 {
        let (place, key) = (place as usize, key(left, right));
        let (rank, is_full) = self.rank_in(place, key);
        if is_full { self.rank_on(place, key) } else { rank }
    }

    /// The rank of a pair in the bucket at `place`, and whether others may have gone on from there. Whether a pair is there
    /// cannot be predicted: no branch is taken.
    #[inline]
    fn rank_in(&self, place: usize, key: u64) -> (u32, bool) {
        let bucket = self.bucket(place);
        let mut rank = NO_RANK;
        for &slot in bucket {
            rank = select_unpredictable(slot >> ID_BITS == key, (slot & RANK) as u32, rank);
        }
        (rank, bucket[SLOTS - 1] != EMPTY)
    }

    #[cold]
    fn rank_on(&self, mut place: usize, key: u64) -> u32 {
        loop {
            let (rank, is_full) = self.rank_in(place, key);
            if rank != NO_RANK || !is_full {
                return rank;
            }
            place += 1;
        }
    }

    #[inline]
    fn bucket(&self, place: usize) -> &[u64; SLOTS] {
        &self.lines[(place / 2) & (self.lines.len() - 1)].0[place % 2]
    }

    /// The id that the merge of `rank` makes.
    #[inline]
    pub(crate) fn product(&self, rank: u32) -> u32 {
        match self.offset {
            Some(offset) => rank.wrapping_add(offset),
            None => self.products[rank as usize],
        }
    }

    /// Puts a slot into the first free place from its bucket on.
    fn insert(&mut self, slot: u64) {
        if 2 * self.products.len() > SLOTS * self.lines.len() {
            let old = std::mem::replace(&mut self.lines, lines(2 * self.products.len()));
            old.iter().flat_map(|line| line.0).flatten().filter(|&slot| slot != EMPTY).for_each(|slot| self.put(slot));
        }
        self.put(slot);
    }

    fn put(&mut self, slot: u64) {
        let (first, mask) = (home(slot >> ID_BITS, self.lines.len()), self.lines.len() - 1);
        let free = (first..).find_map(|place| {
            let slots = &self.lines[(place / 2) & mask].0[place % 2];
            slots.iter().position(|&slot| slot == EMPTY).map(|at| (place, at))
        });
        if let Some((place, at)) = free {
            self.lines[(place / 2) & mask].0[place % 2][at] = slot;
        }
    }
}

/// Free lines for so many pairs: of eight slots about three are taken.
fn lines(n: usize) -> Vec<Line> {
    vec![Line([[EMPTY; SLOTS]; 2]); (n / 4).next_power_of_two().max(8)]
}

#[inline]
fn grid_cell(left: u8, right: u8) -> usize {
    usize::from(left) << 8 | usize::from(right)
}

#[inline]
fn key(left: u32, right: u32) -> u64 {
    u64::from(left) << ID_BITS | u64::from(right)
}

/// The bucket of a key.
#[inline]
fn home(key: u64, n_lines: usize) -> usize {
    fold(key ^ 0x9E37_79B9_7F4A_7C15, 0xD6E8_FEB8_6659_FD93) as usize & (2 * n_lines - 1)
}
