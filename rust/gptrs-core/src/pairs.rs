//! The merges as a table: pair of ids → rank, and rank → product.

#![allow(clippy::inline_always, reason = "each caller compiles it for its own instructions")]

#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
pub(crate) use self::avx512::Asked;

use std::hint::{black_box, select_unpredictable};

use crate::naive::Pair;
use crate::simd;

/// The rank of a pair that never merges; larger than every real one, and with six bits below it still positive in i32.
pub(crate) const NO_RANK: u32 = (1 << 25) - 1;

/// Bits of an id and of a rank.
pub(crate) const ID_BITS: u32 = 21;

/// A slot without a merge: its rank is none. Slots are above zero, since the least of signed numbers is found with fewer
/// instructions.
const EMPTY: i32 = i32::MAX;

/// Set in the last slot of a bucket from which others went on. Whatever is asked for, the least is below zero then.
const GOES_ON: i32 = i32::MIN;

/// The factors of the hash. Both are odd, so that the lower bits of ids side by side, which are as good as random, all count.
const LEFT: u32 = 0xC2B2_AE3D;
const RIGHT: u32 = 0x27D4_EB2F;

/// The slots of a bucket.
const SLOTS: usize = 8;

/// Merges for each line of sixteen slots: with more than these, too many go on to another bucket.
const MOST: usize = 7;

/// Two buckets, so that none lies in two cache lines.
#[derive(Debug, Clone, Copy)]
#[repr(align(64))]
struct Line([[i32; SLOTS]; 2]);

/// A merge stands in its pair's bucket, or, if this is full, in the first after it that is not, as its rank and all bits of
/// the pair's hash for which there is room. So a bucket tells the merges that a pair may be, few more than the one that it
/// is, and the pair of that rank whether it is. Look-ups wait for memory, and this way there is little: a look-up in vain, as
/// most are, reads half a cache line of a small table. Beside it a dense grid for the pairs of single bytes, which are all
/// that a fresh piece asks for.
#[derive(Debug, Clone)]
pub(crate) struct Pairs {
    grid: Vec<u32>,
    /// The upper bits of the hash, then the rank; [`EMPTY`], [`GOES_ON`].
    lines: Vec<Line>,
    /// By rank.
    merges: Vec<Pair>,
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
            merges: Vec::with_capacity(n_merges),
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
        self.insert(pair, rank);
        let offset = product.wrapping_sub(rank);
        self.offset = if rank == 0 { Some(offset) } else { self.offset.filter(|&known| known == offset) };
        self.merges.push(pair);
        self.products.push(product);
        if let &[left, right] = token {
            self.grid[grid_cell(left, right)] = rank;
        }
        true
    }

    /// The merges in order of rank.
    pub(crate) fn merges(&self) -> &[Pair] {
        &self.merges
    }

    /// What each of them makes.
    pub(crate) fn products(&self) -> impl Iterator<Item = u32> {
        self.products.iter().copied()
    }

    /// Reads where each of `pairs` may stand, so that the memory of all of them is fetched side by side.
    pub(crate) fn fetch(&self, pairs: &[Pair]) {
        let place = |&(left, right): &Pair| Self::place(left, right);
        black_box(pairs.iter().map(place).fold(0, |all, place| all | self.bucket(place)[0]));
    }

    /// The place of a pair for [`Pairs::guess_at`]: its hash.
    #[inline(always)]
    pub(crate) fn place(left: u32, right: u32) -> u32 {
        left.wrapping_mul(LEFT).wrapping_add(right.wrapping_mul(RIGHT)) & EMPTY as u32
    }

    /// Asks the processor to bring near what [`Pairs::guess_at`] looks up at `place`.
    #[inline(always)]
    pub(crate) fn prefetch(&self, place: u32) {
        simd::prefetch(&self.lines, self.line(place));
    }

    /// The rank of a pair of bytes.
    #[inline(always)]
    pub(crate) fn byte_rank(&self, left: u8, right: u8) -> u32 {
        self.grid[grid_cell(left, right)]
    }

    /// The rank of a pair, [`NO_RANK`] when it never merges.
    #[inline]
    pub(crate) fn rank(&self, left: u32, right: u32) -> u32 {
        let rank = self.guess_at(Self::place(left, right), left, right);
        if rank == NO_RANK || self.is_merge(rank, left, right) { rank } else { self.seek(left, right) }
    }

    /// Whether the merge of `rank`, which is one, is that of these.
    #[inline(always)]
    pub(crate) fn is_merge(&self, rank: u32, left: u32, right: u32) -> bool {
        self.merges[rank as usize] == (left, right)
    }

    /// A rank that is not above that of the pair with this place: [`NO_RANK`] when it never merges, else nearly always its
    /// own. Whether a pair is there cannot be predicted: no branch is taken.
    #[inline(always)]
    pub(crate) fn guess_at(&self, place: u32, left: u32, right: u32) -> u32 {
        let slots = self.bucket(place).iter();
        let least = slots.fold(EMPTY, |least, &slot| least.min(self.rank_in(slot, place)));
        if least < 0 { self.seek(left, right) } else { self.rank_or_none(least as u32) }
    }

    /// [`Pairs::rank`], bucket after bucket.
    #[cold]
    pub(crate) fn seek(&self, left: u32, right: u32) -> u32 {
        let place = Self::place(left, right);
        let mut at = place;
        loop {
            let bucket = self.bucket(at);
            for slot in bucket {
                let rank = self.rank_or_none(self.rank_in(slot & !GOES_ON, place) as u32);
                if rank != NO_RANK && self.is_merge(rank, left, right) {
                    return rank;
                }
            }
            if bucket[SLOTS - 1] & GOES_ON == 0 {
                return NO_RANK;
            }
            at = at.wrapping_add(1);
        }
    }

    /// The bits of slots that are a rank. All of them set are none.
    #[inline(always)]
    fn rank_bits(&self) -> u32 {
        (2 * SLOTS * self.lines.len()) as u32 - 1
    }

    /// The rank in a slot if it may be that of the pair with this hash; else a larger number than any rank.
    #[inline(always)]
    fn rank_in(&self, slot: i32, hash: u32) -> i32 {
        slot ^ (hash & !self.rank_bits()) as i32
    }

    #[inline(always)]
    fn rank_or_none(&self, found: u32) -> u32 {
        select_unpredictable(found < self.rank_bits(), found, NO_RANK)
    }

    #[inline(always)]
    fn line(&self, place: u32) -> usize {
        (place as usize / 2) & (self.lines.len() - 1)
    }

    #[inline(always)]
    fn bucket(&self, place: u32) -> &[i32; SLOTS] {
        &self.lines[self.line(place)].0[place as usize % 2]
    }

    /// The id that the merge of `rank` makes.
    #[inline(always)]
    pub(crate) fn product(&self, rank: u32) -> u32 {
        match self.offset {
            Some(offset) => rank.wrapping_add(offset),
            None => self.products[rank as usize],
        }
    }

    /// [`Pairs::product`], or `other` for [`NO_RANK`], without a branch where ids and ranks go side by side.
    #[inline]
    pub(crate) fn product_or(&self, rank: u32, other: u32) -> u32 {
        match self.offset {
            Some(offset) => select_unpredictable(rank == NO_RANK, other, rank.wrapping_add(offset)),
            None => self.products.get(rank as usize).copied().unwrap_or(other),
        }
    }

    /// Puts a merge into the first free slot from its bucket on.
    fn insert(&mut self, pair: Pair, rank: u32) {
        if self.products.len() >= MOST * self.lines.len() {
            self.lines = lines(2 * self.products.len());
            (0..).zip(self.merges.clone()).for_each(|(rank, pair)| self.put(pair, rank));
        }
        self.put(pair, rank);
    }

    fn put(&mut self, (left, right): Pair, rank: u32) {
        let place = Self::place(left, right);
        let (mut at, merge) = (place, (place & !self.rank_bits() | rank) as i32);
        loop {
            let line = self.line(at);
            let bucket = &mut self.lines[line].0[at as usize % 2];
            if let Some(slot) = bucket.iter_mut().find(|slot| **slot == EMPTY) {
                *slot = merge;
                return;
            }
            bucket[SLOTS - 1] |= GOES_ON;
            at = at.wrapping_add(1);
        }
    }
}

/// Free lines for so many merges, and for half of the ranks that have so many bits.
fn lines(n: usize) -> Vec<Line> {
    vec![Line([[EMPTY; SLOTS]; 2]); n.div_ceil(MOST).next_power_of_two().max(8)]
}

#[inline]
fn grid_cell(left: u8, right: u8) -> usize {
    usize::from(left) << 8 | usize::from(right)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::HashMap;

    use super::*;

    /// Two ids that look like chance. They are large, since those of small ones never share their bits.
    pub(crate) fn any_pair(i: u32) -> Pair {
        let any = u64::from(i + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32;
        (((any * any) >> 7) as u32 % 2_000_003, ((any * (any >> 3)) >> 20) as u32 % 1_999_993)
    }

    /// 40,000 of them that merge, into ids that go up by so much.
    pub(crate) fn any_pairs(stride: u32) -> Pairs {
        let (mut pairs, mut next) = (Pairs::with_capacity(16), 0);
        for product in (300..300 + 40_000 * stride).step_by(stride as usize) {
            while !pairs.push(any_pair(next), product, b"") {
                next += 1;
            }
        }
        pairs
    }

    #[test]
    fn a_rank_is_that_of_its_pair_alone() {
        let mut pairs = Pairs::with_capacity(16);
        let mut ranks = HashMap::new();
        for i in 0..40_000 {
            let pair = any_pair(i);
            assert_eq!(pairs.push(pair, 300_000 + i, b""), !ranks.contains_key(&pair), "{pair:?}");
            let rank = ranks.len() as u32;
            ranks.entry(pair).or_insert(rank);
        }
        let (mut n_wrong, mut n_vain) = (0, 0);
        for (left, right) in (0..1_000_000).map(any_pair) {
            let rank = ranks.get(&(left, right)).copied().unwrap_or(NO_RANK);
            assert_eq!(pairs.rank(left, right), rank, "{left}, {right}");
            assert_eq!(pairs.seek(left, right), rank, "{left}, {right}");
            let guess = pairs.guess_at(Pairs::place(left, right), left, right);
            assert!(guess <= rank, "{left}, {right}: {guess} above {rank}");
            n_wrong += u32::from(guess != rank);
            n_vain += u32::from(rank == NO_RANK);
        }
        assert!(n_vain > 800_000, "{n_vain} pairs that never merge");
        assert!((1..n_vain / 50).contains(&n_wrong), "{n_wrong} guesses were wrong");
    }
}
