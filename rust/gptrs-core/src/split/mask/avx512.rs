//! AVX-512: a block is one register, and a comparison is a mask.

#![allow(clippy::wildcard_imports)] // one name for each instruction

use std::arch::x86_64::*;

use super::chars::{
    ASCII, Ascii, High, IS_BLANK, IS_CONTROL, IS_LETTER, IS_LINE, IS_NUMBER, IS_QUOTE, IS_SPACE, IS_UPPER,
};
use super::kinds::{Kinds, Rule};
use super::utf8::{self, BEFORE, CONTINUES, Window};
use super::walk::{Borders, Ends, Vectors, Walk};
use crate::simd::avx512::{load, store};

/// [`Walk::fill`] with these instructions.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx2,bmi1,bmi2,lzcnt,popcnt")]
pub(super) fn fill<B: Borders>(walk: &mut Walk, text: &[u8], ends: &mut Ends) {
    let vectors = Vectors {
        ascii: |block: &[u8; 64]| ascii(block),
        high: |block: &[u8; 64], kinds: &Kinds| match B::RULE {
            Rule::Coarse => high::<2>(block, kinds),
            Rule::Case | Rule::Script => high::<3>(block, kinds),
        },
        flatten: |starts, base, list: &mut [u32; 64]| flatten(starts, base, list),
    };
    walk.fill::<B>(text, ends, &vectors);
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
fn ascii(block: &[u8; 64]) -> Ascii {
    let bytes = load(block);
    let high = _mm512_movepi8_mask(bytes);
    let (tables, _) = ASCII.as_chunks();
    let flags = _mm512_maskz_permutex2var_epi8(!high, load(&tables[0]), bytes, load(&tables[1]));
    let has = |flag: u8| _mm512_test_epi8_mask(flags, _mm512_set1_epi8(flag as i8));
    Ascii {
        letter: has(IS_LETTER),
        number: has(IS_NUMBER),
        space: has(IS_SPACE),
        blank: has(IS_BLANK),
        line: has(IS_LINE),
        quote: has(IS_QUOTE),
        upper: has(IS_UPPER),
        control: has(IS_CONTROL),
        slash: _mm512_cmpeq_epi8_mask(bytes, _mm512_set1_epi8(b'/' as i8)),
        high,
    }
}

/// Besides the easy ones: characters of two bytes, general punctuation and kana, each by tables of bits, unless the
/// block ends inside the character.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
fn high<const N: usize>(block: &[u8; 64], kinds: &Kinds) -> High {
    let bytes = load(block);
    let all = |byte: u8| _mm512_set1_epi8(byte as i8);
    let leads = _mm512_cmpge_epu8_mask(bytes, all(0xC0));
    let easy = _mm512_permutexvar_epi8(bytes, load(&kinds.easy));
    let cont = _mm512_cmplt_epi8_mask(bytes, all(0xC0));
    let mut high = High::easy(cont, _mm512_mask_test_epi8_mask(leads, easy, easy), kinds);
    let second = _mm512_permutexvar_epi8(load(&const { places(1) }), bytes);
    let third = _mm512_permutexvar_epi8(load(&const { places(2) }), bytes);
    // The place in a table, eight code points a byte, and the bit in that byte.
    let up = |of, bits: u8| _mm512_and_si512(_mm512_slli_epi16::<3>(of), all(bits));
    let down = |of| _mm512_and_si512(_mm512_srli_epi16::<3>(of), all(7));
    let bit = |of| _mm512_permutexvar_epi8(of, load(&const { bit_of() }));
    let two = leads & _mm512_cmplt_epu8_mask(bytes, all(0xE0)) & u64::MAX >> 1;
    if two != 0 {
        let place = _mm512_or_si512(up(bytes, 0xF8), down(second));
        for (bits, table) in high.bits.iter_mut().take(N).zip(&kinds.two) {
            let (quarters, _) = table.as_chunks();
            let of = |i: usize| _mm512_permutex2var_epi8(load(&quarters[i]), place, load(&quarters[i + 1]));
            let found = _mm512_mask_blend_epi8(_mm512_movepi8_mask(place), of(0), of(2));
            *bits |= _mm512_mask_test_epi8_mask(two, found, bit(second));
        }
    }
    let is_near = _mm512_cmplt_epu8_mask(second, all(0x84));
    let marks = _mm512_mask_cmpeq_epi8_mask(is_near, _mm512_or_si512(bytes, all(1)), all(0xE3)) & u64::MAX >> 2;
    if marks != 0 {
        let upper = _mm512_and_si512(_mm512_slli_epi16::<5>(bytes), all(0x20));
        let place = _mm512_or_si512(upper, _mm512_or_si512(up(second, 0x18), down(third)));
        for (bits, table) in high.bits.iter_mut().take(N).zip(&kinds.marks) {
            *bits |= _mm512_mask_test_epi8_mask(marks, _mm512_permutexvar_epi8(place, load(table)), bit(third));
        }
    }
    high.known |= two | marks;
    high
}

/// The place of each byte of a block and what is `ahead` of it.
const fn places(ahead: u8) -> [u8; 64] {
    let mut places = [0; 64];
    let mut i = 0;
    while i < 64 {
        places[i] = i as u8 + ahead;
        i += 1;
    }
    places
}

/// By the low six bits of a byte: one bit at the place that its low three bits say.
const fn bit_of() -> [u8; 64] {
    let mut bits = [0; 64];
    let mut i = 0;
    while i < 64 {
        bits[i] = 1 << (i % 8);
        i += 1;
    }
    bits
}

/// See [`utf8::is_valid`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx2,bmi1,bmi2,lzcnt,popcnt")]
pub(super) fn is_utf8(text: &[u8]) -> bool {
    utf8::is_valid(text, |block| _mm512_movepi8_mask(load(block)) == 0, |window| is_wrong(window))
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn is_wrong(window: &Window) -> bool {
    let seen =
        |before: usize| window[BEFORE - before..].first_chunk().map_or(_mm512_setzero_si512(), |bytes| load(bytes));
    let half = _mm512_set1_epi8(0x0F);
    let table = |i: usize| _mm512_broadcast_i32x4(load_table(&utf8::TABLES[i]));
    let (bytes, before) = (seen(0), seen(1));
    let upper = |bytes| _mm512_and_si512(_mm512_srli_epi16::<4>(bytes), half);
    let broken = _mm512_and_si512(
        _mm512_and_si512(
            _mm512_shuffle_epi8(table(0), upper(before)),
            _mm512_shuffle_epi8(table(1), _mm512_and_si512(before, half)),
        ),
        _mm512_shuffle_epi8(table(2), upper(bytes)),
    );
    let from = |bytes, byte: u8| _mm512_cmpge_epu8_mask(bytes, _mm512_set1_epi8(byte as i8));
    let continues = from(seen(2), 0xE0) | from(seen(3), 0xF0);
    // No other rule, and this one where it must be.
    let rest = _mm512_xor_si512(broken, _mm512_maskz_set1_epi8(continues, CONTINUES as i8));
    _mm512_test_epi8_mask(rest, rest) != 0
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi2")]
fn flatten(starts: u64, base: u32, list: &mut [u32; 64]) {
    let places = _mm512_maskz_compress_epi8(starts, load(&const { places(0) }));
    let base = _mm512_set1_epi32(base as i32);
    let (quarters, _) = list.as_chunks_mut::<16>();
    let [q0, q1, q2, q3] = quarters else { return };
    let widen = |sixteen, to: &mut [u32; 16]| store(_mm512_add_epi32(_mm512_cvtepu8_epi32(sixteen), base), to);
    widen(_mm512_castsi512_si128(places), q0);
    widen(_mm512_extracti32x4_epi32::<1>(places), q1);
    if starts.count_ones() > 32 {
        widen(_mm512_extracti32x4_epi32::<2>(places), q2);
        widen(_mm512_extracti32x4_epi32::<3>(places), q3);
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load_table(bytes: &[u8; 16]) -> __m128i {
    // SAFETY: the array is 16 readable bytes, and the load asks for no alignment.
    unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }
}
