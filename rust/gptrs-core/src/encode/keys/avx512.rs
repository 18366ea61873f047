//! AVX-512: four pieces, a lane of 16 bytes each.

#![allow(clippy::wildcard_imports)] // one name for each instruction

use std::arch::x86_64::*;

use super::{Batch, LAST_LEAD, WIDE_LEAD};
use crate::cache::{LONGEST, MIX, PACKED, PLACE, View, WIDE, long_key, place};
use crate::encode::{LONG_LEAD, OTHER_LEAD};
use crate::simd::avx512::load;

/// The first byte of each lane in a mask of bytes.
const FIRST: u64 = 0x0001_0001_0001_0001;

/// [`Batch::make_keys`] of the first pieces; how many. Where runs are expected, those in them get no keys.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx2,bmi1,bmi2,lzcnt,popcnt")]
pub(super) fn make_keys(batch: &mut Batch, text: &[u8], apart: u8, table: &View<'_>, expects_runs: bool) -> usize {
    let Batch { keys, places, bounds, runs, n } = batch;
    *runs = if expects_runs { runs_of(text, &bounds[..=*n]) } else { 0 };
    let mut nearest = _mm512_set1_epi8(-1);
    let (fours, mut n_done) = (keys.as_chunks_mut().0.iter_mut().zip(places.as_chunks_mut().0), 0);
    for (keys, places) in fours.take(*n / 4) {
        if *runs != 0 && *runs >> n_done & 0xF == 0xF {
            n_done += 4;
            continue;
        }
        let Some(bounds) = bounds[n_done..].first_chunk() else { break };
        let Some(are_long) = four(text, bounds, apart, keys, places, &mut nearest) else { break };
        if are_long != 0 {
            for i in (0..4).filter(|i| are_long >> i & 1 == 1) {
                keys[i] = long_key(&text[bounds[i]..bounds[i + 1]]);
                places[i] = place(keys[i]);
            }
        }
        for &place in &*places {
            table.prefetch(place);
        }
        n_done += 4;
    }
    let is_near = _mm512_cmplt_epu8_mask(nearest, _mm512_set1_epi8((LONG_LEAD - OTHER_LEAD) as i8)) != 0;
    if is_near && !expects_runs && apart < LONG_LEAD {
        *runs = runs_of(text, &bounds[..=*n]);
    }
    n_done
}

/// Keys and places, but a bit for each piece with a long key; `None` where the text ends too soon behind one's start.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx2,bmi1,bmi2,lzcnt,popcnt")]
fn four(
    text: &[u8],
    bounds: &[usize; 5],
    apart: u8,
    keys: &mut [u128; 4],
    places: &mut [u32; 4],
    nearest: &mut __m512i,
) -> Option<u8> {
    const { assert!(size_of::<usize>() == 8 && PACKED == 15 && cfg!(target_endian = "little")) }
    let words = |word: u64| _mm256_set1_epi64x(word as i64);
    let (bytes, lens) = lanes(text, bounds)?;
    let lens_are = |from: usize, until: usize| {
        _mm256_cmplt_epu64_mask(_mm256_sub_epi64(lens, words(from as u64)), words((until - from) as u64))
    };
    let are_below = |byte: u8| _mm512_cmplt_epu8_mask(bytes, _mm512_set1_epi8(byte as i8));
    let of_lanes = |mask: u64| _pext_u64(mask, FIRST) as u8;

    let are_low = of_lanes(are_below(WIDE_LEAD));
    let are_packed = are_low & lens_are(1, PACKED + 1);
    let len = _mm512_permutexvar_epi8(load(&const { lengths() }), _mm512_castsi256_si512(lens));
    let inside = _mm512_cmplt_epu8_mask(load(&const { places_in_lanes() }), len);
    let mut key = _mm512_mask_mov_epi8(_mm512_maskz_mov_epi8(inside, bytes), FIRST << PACKED, len);
    let mut are_long = 0;
    if are_packed != 0xF {
        let are_wide = !are_low & of_lanes(are_below(LAST_LEAD)) & lens_are(3, usize::MAX);
        let are_early = are_below(apart);
        are_long = of_lanes(are_early & are_early >> 1) & !are_wide & lens_are(PACKED + 1, LONGEST + 1);
        let [place, wide] = [PLACE, WIDE].map(|tag| words((tag >> 64) as u64));
        let tagged = _mm256_or_si256(lens, _mm256_mask_blend_epi64(are_wide, place, wide));
        let upper = _mm512_set_epi64(3, 3, 2, 2, 1, 1, 0, 0);
        let far = _mm512_maskz_permutexvar_epi64(0b1010_1010, upper, _mm512_castsi256_si512(tagged));
        let lanes = _pdep_u64(u64::from(!are_packed), 0b0101_0101) as u8 * 0b11;
        key = _mm512_mask_mov_epi64(key, lanes, far);
    }
    // SAFETY: the array has room for 64 bytes, and the store asks for no alignment.
    unsafe { _mm512_storeu_si512(keys.as_mut_ptr().cast(), key) }

    // As [`place`], in the lower half of each lane.
    let mixed = _mm512_xor_si512(key, _mm512_set1_epi64(MIX as i64));
    let sum = _mm512_add_epi64(mixed, _mm512_shuffle_epi32::<0b00_01_10_11>(key));
    let product = _mm512_mul_epu32(sum, _mm512_srli_epi64::<32>(sum));
    let folded = _mm512_xor_si512(product, _mm512_srli_epi64::<32>(product));
    let firsts = _mm512_set_epi32(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 12, 8, 4, 0);
    let found = _mm512_castsi512_si128(_mm512_permutexvar_epi32(firsts, folded));
    // SAFETY: the array has room for 16 bytes, and the store asks for no alignment.
    unsafe { _mm_storeu_si128(places.as_mut_ptr().cast(), found) }
    *nearest = _mm512_min_epu8(*nearest, _mm512_sub_epi8(bytes, _mm512_set1_epi8(OTHER_LEAD as i8)));
    Some(are_long)
}

/// Of four pieces the first 16 bytes, a lane each, and the lengths; `None` where the text ends too soon behind one's start.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx2,bmi1,bmi2,lzcnt,popcnt")]
fn lanes(text: &[u8], bounds: &[usize; 5]) -> Option<(__m512i, __m256i)> {
    // SAFETY: the last and the first four words of the array are 32 readable bytes, and the loads ask for no alignment.
    let [ends, starts] = unsafe { [1, 0].map(|i| _mm256_loadu_si256(bounds.as_ptr().add(i).cast())) };
    if _mm256_cmpgt_epu64_mask(starts, _mm256_set1_epi64x(text.len().checked_sub(16)? as i64)) != 0 {
        return None;
    }
    // SAFETY: there are 16 bytes of text from each start on, and the loads ask for no alignment.
    let lane = |i: usize| unsafe { _mm_loadu_si128(text.as_ptr().add(bounds[i]).cast()) };
    let two = |i| _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(lane(i)), lane(i + 1));
    let bytes = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(two(0)), two(2));
    let lens = _mm256_sub_epi64(ends, starts);
    Some((bytes, lens))
}

/// A bit for each piece in a run, up to where the text ends too soon.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx2,bmi1,bmi2,lzcnt,popcnt")]
fn runs_of(text: &[u8], bounds: &[usize]) -> u128 {
    let all = |byte: u8| _mm512_set1_epi8(byte as i8);
    let of_lanes = |mask: u64| _pext_u64(mask, FIRST) as u8;
    let mut runs = 0;
    for at in (0..bounds.len() - 1).step_by(4) {
        let Some(bounds) = bounds[at..].first_chunk::<5>() else { break };
        let Some((bytes, lens)) = lanes(text, bounds) else { break };
        let are_two = _mm512_cmplt_epu8_mask(_mm512_sub_epi8(bytes, all(OTHER_LEAD)), all(LONG_LEAD - OTHER_LEAD));
        let are_spaces = _mm512_cmpeq_epi8_mask(bytes, all(b' '));
        let are_other = _mm512_movepi8_mask(bytes) | are_spaces;
        let are_longer = _mm256_cmpgt_epu64_mask(lens, _mm256_set1_epi64x(1));
        let are_one = _mm256_cmpeq_epi64_mask(lens, _mm256_set1_epi64x(1));
        let in_run = of_lanes(are_spaces & are_two >> 1 | are_two) & are_longer | of_lanes(!are_other) & are_one;
        runs |= u128::from(in_run) << at;
    }
    // Of these the ones that are at least four.
    let two = runs & runs >> 1;
    let four = two & two >> 2;
    let two = four | four << 1;
    two | two << 2
}

/// The place of each byte in its lane.
const fn places_in_lanes() -> [u8; 64] {
    let mut places = [0; 64];
    let mut i = 0;
    while i < 64 {
        places[i] = i as u8 % 16;
        i += 1;
    }
    places
}

/// For each byte the first one of the length of its lane, lengths being words of eight bytes.
const fn lengths() -> [u8; 64] {
    let mut places = [0; 64];
    let mut i = 0;
    while i < 64 {
        places[i] = i as u8 / 16 * 8;
        i += 1;
    }
    places
}
