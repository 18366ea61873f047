//! AVX-512: sixteen pairs at once.

#![allow(clippy::wildcard_imports)] // one name for each instruction

use std::arch::x86_64::*;
use std::hint::black_box;

use super::{EMPTY, LEFT, Line, NO_RANK, Pairs, RIGHT};
use crate::naive::Pair;
use crate::simd::avx512::{load_words, store};

type Row = [u32; 16];

/// Sixteen pairs that are looked up: where, and what the slots of each have in their upper bits.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asked {
    left: Row,
    right: Row,
    places: Row,
    upper: Row,
}

impl Asked {
    pub(crate) const NONE: Self = Self { left: [0; 16], right: [0; 16], places: [0; 16], upper: [0; 16] };
}

impl Pairs {
    /// Begins to look up these pairs.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512cd,avx2,bmi1,bmi2,lzcnt,popcnt")]
    pub(crate) fn ask(&self, left: __m512i, right: __m512i, asked: &mut Asked) {
        let all = |word: u32| _mm512_set1_epi32(word as i32);
        let hash = _mm512_add_epi32(_mm512_mullo_epi32(left, all(LEFT)), _mm512_mullo_epi32(right, all(RIGHT)));
        let hash = _mm512_and_si512(hash, all(EMPTY as u32));
        let place = _mm512_and_si512(hash, all(2 * self.lines.len() as u32 - 1));
        store(_mm512_slli_epi32::<5>(place), &mut asked.places);
        store(_mm512_andnot_si512(all(self.rank_bits()), hash), &mut asked.upper);
        store(left, &mut asked.left);
        store(right, &mut asked.right);
    }

    /// Asks the processor to bring near what is looked up.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512cd,avx2,bmi1,bmi2,lzcnt,popcnt")]
    pub(crate) fn prefetch_sixteen(&self, asked: &Asked) {
        let (places, lines) = (black_box(&asked.places), self.lines.as_ptr());
        for &place in places {
            _mm_prefetch::<_MM_HINT_T0>(lines.wrapping_byte_add(place as usize).cast());
        }
    }

    /// [`Pairs::guess_at`] for pairs side by side.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512cd,avx2,bmi1,bmi2,lzcnt,popcnt")]
    pub(crate) fn guess_sixteen(&self, asked: &Asked) -> __m512i {
        const { assert!(size_of::<Line>() == 64) }
        let all = |word: u32| _mm512_set1_epi32(word as i32);
        let (upper, rank_bits) = (load_words(&asked.upper), all(self.rank_bits()));
        let (mut places, end) = ([0; 16], all(64 * self.lines.len() as u32 - 32));
        store(_mm512_min_epu32(load_words(&asked.places), end), &mut places);
        // From memory, where each is one load.
        let (places, lines) = (black_box(&places), self.lines.as_ptr());
        // SAFETY: each place is that of a bucket or before it, and the load asks for no alignment.
        let bucket = |i: usize| unsafe { _mm256_loadu_si256(lines.byte_add(places[i] as usize).cast()) };
        // Two buckets; what is no rank of these pairs is a large number, or one below zero.
        let two = |i: usize| {
            let of_lanes = _mm512_add_epi32(load_words(&const { halves() }), all(i as u32));
            let upper = _mm512_permutexvar_epi32(of_lanes, upper);
            let slots = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(bucket(i)), bucket(i + 4));
            _mm512_xor_si512(slots, upper)
        };
        // In each quarter of the registers: of two numbers of each of two, then of four.
        let of_two = |a, b| _mm512_min_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
        let of_four = |a, b| _mm512_min_epi32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
        let quarters = |i| of_four(of_two(two(i), two(i + 1)), of_two(two(i + 2), two(i + 3)));
        let (a, b) = (quarters(0), quarters(8));
        let least = _mm512_min_epi32(_mm512_shuffle_i32x4::<0x88>(a, b), _mm512_shuffle_i32x4::<0xDD>(a, b));
        let ranks = _mm512_mask_blend_epi32(_mm512_cmplt_epi32_mask(least, rank_bits), all(NO_RANK), least);
        let go_on = _mm512_cmplt_epi32_mask(least, _mm512_setzero_si512());
        if go_on == 0 { ranks } else { self.seek_each(go_on, asked, ranks) }
    }

    /// These ranks, but those of the pairs with a bit sought for.
    #[cold]
    #[target_feature(enable = "avx512f")]
    fn seek_each(&self, which: u16, asked: &Asked, ranks: __m512i) -> __m512i {
        let mut words = [0; 16];
        store(ranks, &mut words);
        for i in (0..16).filter(|i| which >> i & 1 == 1) {
            words[i] = self.seek(asked.left[i], asked.right[i]);
        }
        load_words(&words)
    }

    /// Asks the processor to bring near what [`Pairs::are_merges`] looks at.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512cd,avx2,bmi1,bmi2,lzcnt,popcnt")]
    pub(crate) fn prefetch_merges(&self, ranks: &Row) {
        let (ranks, merges) = (black_box(ranks), self.merges.as_ptr());
        for &rank in ranks {
            _mm_prefetch::<_MM_HINT_T0>(merges.wrapping_add(rank as usize).cast());
        }
    }

    /// Whether the merges of these ranks are those of the pairs, a bit for each.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512cd,avx2,bmi1,bmi2,lzcnt,popcnt")]
    pub(crate) fn are_merges(&self, ranks: __m512i, left: __m512i, right: __m512i) -> u16 {
        const { assert!(size_of::<Pair>() == 8 && std::mem::offset_of!(Pair, 1) == 4) }
        let are_ranks = _mm512_cmplt_epu32_mask(ranks, _mm512_set1_epi32(self.merges.len() as i32));
        let sides = self.merges.as_ptr().cast::<i32>();
        let none = _mm512_setzero_si512();
        // SAFETY: the ranks are below the number of merges, each of which is two words.
        let [lefts, rights] = unsafe {
            [sides, sides.add(1)].map(|side| _mm512_mask_i32gather_epi32::<8>(none, are_ranks, ranks, side.cast()))
        };
        are_ranks & _mm512_cmpeq_epi32_mask(lefts, left) & _mm512_cmpeq_epi32_mask(rights, right)
    }

    /// What the merges of these ranks make, where there is a bit.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512cd,avx2,bmi1,bmi2,lzcnt,popcnt")]
    pub(crate) fn products_of(&self, which: u16, ranks: __m512i) -> __m512i {
        if let Some(offset) = self.offset {
            return _mm512_add_epi32(ranks, _mm512_set1_epi32(offset as i32));
        }
        let are_ranks = _mm512_mask_cmplt_epu32_mask(which, ranks, _mm512_set1_epi32(self.products.len() as i32));
        // SAFETY: the ranks are below the number of products.
        unsafe { _mm512_mask_i32gather_epi32::<4>(ranks, are_ranks, ranks, self.products.as_ptr().cast()) }
    }
}

/// The numbers of the upper halves of two slots: four lanes of zeros and four of fours, twice.
const fn halves() -> [u32; 16] {
    let mut halves = [0; 16];
    let mut i = 8;
    while i < 16 {
        halves[i] = 4;
        i += 1;
    }
    halves
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pairs::tests::{any_pair, any_pairs};
    use crate::simd::Level;

    #[test]
    fn sixteen_pairs_are_looked_up_as_one_by_one() {
        if !Level::Avx512.is_available() {
            return;
        }
        for stride in [1, 2] {
            let pairs = any_pairs(stride);
            assert_eq!(pairs.offset.is_some(), stride == 1);
            let least = |place| pairs.bucket(place).iter().map(|&slot| pairs.rank_in(slot, place)).min().unwrap();
            let (mut n_ranks, mut n_beyond, mut n_wrong) = (0, 0, 0);
            for first in (0..200_000).step_by(16) {
                let pair = |i: u32| match i % 3 {
                    0 => pairs.merges[i as usize % 40_000],
                    _ => any_pair(i + 100_000),
                };
                let (mut left, mut right) = ([0; 16], [0; 16]);
                for ((left, right), i) in left.iter_mut().zip(&mut right).zip(first..) {
                    (*left, *right) = pair(i);
                }
                let (mut asked, mut ranks, mut products) = (Asked::NONE, [0; 16], [0; 16]);
                // SAFETY: this processor has the level.
                let are_merges = unsafe {
                    let (left, right) = (load_words(&left), load_words(&right));
                    pairs.ask(left, right, &mut asked);
                    pairs.prefetch_sixteen(&asked);
                    let found = pairs.guess_sixteen(&asked);
                    store(found, &mut ranks);
                    pairs.prefetch_merges(&ranks);
                    let are_merges = pairs.are_merges(found, left, right);
                    store(pairs.products_of(are_merges, found), &mut products);
                    are_merges
                };
                for i in 0..16 {
                    let (place, rank) = (Pairs::place(left[i], right[i]), ranks[i]);
                    assert_eq!(rank, pairs.guess_at(place, left[i], right[i]), "{}, {}", left[i], right[i]);
                    let is_merge = rank != NO_RANK && pairs.is_merge(rank, left[i], right[i]);
                    assert_eq!(are_merges >> i & 1 == 1, is_merge, "{}, {}", left[i], right[i]);
                    if is_merge {
                        assert_eq!(products[i], pairs.product(rank));
                    }
                    n_ranks += u32::from(is_merge);
                    n_wrong += u32::from(rank != NO_RANK && !is_merge);
                    n_beyond += u32::from(least(place) < 0);
                }
            }
            assert!(n_ranks > 60_000 && n_wrong > 5 && n_beyond > 50, "{n_ranks}, {n_wrong}, {n_beyond}");
        }
    }
}
