//! Characters side by side that are a token each, and one together.

#![allow(clippy::wildcard_imports)] // one name for each instruction

use std::hint::select_unpredictable;

use super::PAIR_FACTOR;
use crate::simd;

/// No entry: no pair of characters is two zeros.
const FREE: u64 = 0;

/// By the codes of two characters what their tokens merge into. Nearly all that is asked for is here, or its bucket has room
/// for it: one look at a small table answers, where that of all merges is ten times as large.
#[derive(Debug, Clone)]
pub(super) struct Duos {
    /// Codes in the upper half, 16 bits each, the id in the lower.
    buckets: Vec<[u64; 2]>,
    shift: u32,
}

/// What two characters together are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Duo {
    pub(super) id: u32,
    /// Whether they merge at all.
    pub(super) is_there: bool,
    /// Whether that is certain: there may have been no room for them.
    pub(super) is_sure: bool,
}

impl Duos {
    /// Those of `(left, right, id)`, codes below 2¹⁶.
    pub(super) fn new(duos: &[(u32, u32, u32)]) -> Self {
        let n_buckets = duos.len().next_power_of_two().max(2);
        let shift = u32::BITS - n_buckets.trailing_zeros();
        let mut buckets = vec![[FREE; 2]; n_buckets];
        for &(left, right, id) in duos {
            let bucket = &mut buckets[place(key(left, right), shift)];
            if let Some(entry) = bucket.iter_mut().find(|entry| **entry == FREE) {
                *entry = u64::from(key(left, right)) << 32 | u64::from(id);
            }
        }
        Self { buckets, shift }
    }

    #[inline]
    pub(super) fn prefetch(&self, left: u32, right: u32) {
        simd::prefetch(&self.buckets, place(key(left, right), self.shift));
    }

    /// Whether two characters merge cannot be foreseen: no branch is taken.
    #[inline]
    pub(super) fn find(&self, left: u32, right: u32) -> Duo {
        let key = key(left, right);
        let [first, second] = self.buckets[place(key, self.shift)];
        let entry = select_unpredictable((second >> 32) as u32 == key, second, first);
        let is_there = (entry >> 32) as u32 == key;
        Duo { id: entry as u32, is_there, is_sure: is_there || second == FREE }
    }

    /// [`Duos::find`] of eight [`key`]s: ids, where there are any, and a bit for each that is there, and that is sure.
    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx2,bmi1,bmi2,lzcnt,popcnt")]
    pub(super) fn find_eight(&self, keys: &[u32; 8], ids: &mut [u32; 8]) -> (u8, u8) {
        use std::arch::x86_64::*;
        // SAFETY: the array is 32 readable bytes, and the load asks for no alignment.
        let keys = unsafe { _mm256_loadu_si256(keys.as_ptr().cast()) };
        let product = _mm256_mullo_epi32(keys, _mm256_set1_epi32(PAIR_FACTOR as i32));
        let bucket = _mm256_srl_epi32(product, _mm_cvtsi32_si128(self.shift as i32));
        let first = _mm256_slli_epi32::<1>(bucket);
        let entries = self.buckets.as_ptr();
        // SAFETY: what is left of a word after the shift is below the number of buckets, of two words each.
        let [first, second] = unsafe {
            [first, _mm256_or_si256(first, _mm256_set1_epi32(1))]
                .map(|at| _mm512_i32gather_epi64::<8>(at, entries.cast()))
        };
        let keys = _mm512_cvtepu32_epi64(keys);
        let has = |entries| _mm512_cmpeq_epi64_mask(_mm512_srli_epi64::<32>(entries), keys);
        let is_second = has(second);
        let found = _mm512_cvtepi64_epi32(_mm512_mask_blend_epi64(is_second, first, second));
        // SAFETY: the array has room for 32 bytes, and the store asks for no alignment.
        unsafe { _mm256_storeu_si256(ids.as_mut_ptr().cast(), found) }
        let are_there = has(first) | is_second;
        (are_there, are_there | _mm512_testn_epi64_mask(second, second))
    }
}

/// Two characters with codes below 2¹⁶ as one number.
#[inline]
pub(super) fn key(left: u32, right: u32) -> u32 {
    left << 16 | right
}

#[inline]
fn place(key: u32, shift: u32) -> usize {
    (key.wrapping_mul(PAIR_FACTOR) >> shift) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_certain_is_true_and_little_is_not() {
        let all: Vec<_> = (0..5000).map(|i| (0x4E00 + i * 7 % 997, 0x3040 + i * 31 % 1009, 300 + i)).collect();
        let duos = Duos::new(&all);
        let mut n_unsure = 0;
        for &(left, right, id) in &all {
            let duo = duos.find(left, right);
            assert!(if duo.is_there { duo.id == id } else { !duo.is_sure }, "{left} {right}: {duo:?}");
            n_unsure += u32::from(!duo.is_sure);
        }
        assert!((1..500).contains(&n_unsure), "{n_unsure} of 5,000 are not here");
        let others = (0..5000).map(|i| duos.find(0x5E00 + i % 997, 0x3040 + i % 1009));
        let n_unsure = others.inspect(|duo| assert!(!duo.is_there)).filter(|duo| !duo.is_sure).count();
        assert!((1..2000).contains(&n_unsure), "{n_unsure} of 5,000 others are not certain");
        assert_eq!(Duos::new(&[]).find(0x4E00, 0x4E01), Duo { id: 0, is_there: false, is_sure: true });
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn eight_are_found_as_one_by_one() {
        if !simd::Level::Avx512.is_available() {
            return;
        }
        for n in [0, 1, 2, 3, 5, 100, 5000] {
            let all: Vec<_> = (0..n).map(|i| (0xFF00 - i * 7 % 997, 0x3040 + i * 31 % 1009, 300 + i)).collect();
            let duos = Duos::new(&all);
            let others = (0..n + 80).map(|i| (0xFE00 - i % 997, 0x3040 + i % 1009));
            let asked: Vec<_> = all.iter().map(|&(left, right, _)| (left, right)).chain(others).collect();
            let mut counts = [0; 3];
            for eight in asked.as_chunks::<8>().0 {
                let mut ids = [0; 8];
                // SAFETY: this processor has the level.
                let (there, sure) = unsafe { duos.find_eight(&eight.map(|(left, right)| key(left, right)), &mut ids) };
                for (i, &(left, right)) in eight.iter().enumerate() {
                    let duo = duos.find(left, right);
                    assert_eq!(
                        (there >> i & 1 == 1, sure >> i & 1 == 1),
                        (duo.is_there, duo.is_sure),
                        "{left} {right}"
                    );
                    assert!(!duo.is_there || duo.id == ids[i], "{left} {right}: {}, {duo:?}", ids[i]);
                    counts[usize::from(duo.is_there) + usize::from(duo.is_sure)] += 1;
                }
            }
            assert!(n < 5000 || counts.iter().all(|&n| n > 300), "{counts:?}");
        }
    }
}
