//! AVX2: a block is two registers, and a comparison is a vector whose top bits are the mask.

#![allow(clippy::wildcard_imports)] // one name for each instruction

use std::arch::x86_64::*;

use super::chars::{Ascii, High};
use super::kinds::Kinds;
use super::utf8::{self, BEFORE, CONTINUES, Window};
use super::walk::{Borders, Ends, Vectors, Walk};

/// [`Walk::fill`] with these instructions.
#[target_feature(enable = "avx2,bmi1,bmi2,lzcnt,popcnt")]
pub(super) fn fill<B: Borders>(walk: &mut Walk, text: &[u8], ends: &mut Ends) {
    let vectors = Vectors {
        ascii: |block: &[u8; 64]| ascii(block),
        high: |block: &[u8; 64], kinds: &Kinds| high(block, kinds),
        flatten,
    };
    walk.fill::<B>(text, ends, &vectors);
}

#[inline]
#[target_feature(enable = "avx2")]
fn ascii(block: &[u8; 64]) -> Ascii {
    let halves = load_halves(block);
    let is = |byte: u8| mask(halves, |half| _mm256_cmpeq_epi8(half, _mm256_set1_epi8(byte as i8)));
    // `min(x, last) == x` is `x <= last` without signs.
    let within = |case: u8, first: u8, last: u8| {
        mask(halves, |half| {
            let cased = _mm256_or_si256(half, _mm256_set1_epi8(case as i8));
            let from = _mm256_sub_epi8(cased, _mm256_set1_epi8(first as i8));
            _mm256_cmpeq_epi8(_mm256_min_epu8(from, _mm256_set1_epi8((last - first) as i8)), from)
        })
    };
    let blank = is(b' ');
    let space = within(0, b'\t', b'\r') | blank;
    Ascii {
        letter: within(0x20, b'a', b'z'),
        number: within(0, b'0', b'9'),
        space,
        blank,
        line: is(b'\n') | is(b'\r'),
        quote: is(b'\''),
        upper: within(0, b'A', b'Z'),
        control: within(0, 0, 0x1F) & !space | is(0x7F),
        slash: is(b'/'),
        high: mask(halves, |half| half),
    }
}

/// Characters of one row of [`Kinds::rows`] that are worth looking up together, and characters among which to seek such.
const FEW: u32 = 5;
const MANY: u32 = 8;

#[inline]
#[target_feature(enable = "avx2,bmi1,bmi2,lzcnt,popcnt")]
fn high(block: &[u8; 64], kinds: &Kinds) -> High {
    let halves = load_halves(block);
    let high = mask(halves, |half| half);
    let cont = mask(halves, |half| _mm256_cmpgt_epi8(_mm256_set1_epi8(0xC0_u8 as i8), half));
    let leads = high & !cont;
    let mut found = High::easy(cont, mask(halves, |half| easy_leads(half, kinds)) & leads, kinds);
    let hard = leads & !found.known;
    if hard.count_ones() >= MANY {
        by_rows(block, halves, hard, kinds, &mut found);
    }
    found
}

/// Finds characters that have all bytes but the last in common with others of the block, by tables of bits, unless the
/// block ends inside the character.
#[inline(never)]
#[target_feature(enable = "avx2,bmi1,bmi2,lzcnt,popcnt")]
fn by_rows(block: &[u8; 64], halves: [__m256i; 2], mut hard: u64, kinds: &Kinds, found: &mut High) {
    // `max(x, first) == x` is `x >= first` without signs.
    let from = |byte: u8| {
        let first = _mm256_set1_epi8(byte as i8);
        mask(halves, |half| _mm256_cmpeq_epi8(_mm256_max_epu8(half, first), half))
    };
    let is = |byte: u8| mask(halves, |half| _mm256_cmpeq_epi8(half, _mm256_set1_epi8(byte as i8)));
    let is_long = from(0xE0);
    hard &= !from(0xF0) & (u64::MAX >> 1) & (!is_long | u64::MAX >> 2);
    // What each byte names as the last of a character: the byte of a row, and its bit.
    let seven = _mm256_set1_epi8(7);
    let places = halves.map(|half| _mm256_and_si256(_mm256_srli_epi16::<3>(half), seven));
    let bits = halves.map(|half| _mm256_shuffle_epi8(load(&const { one_of(8) }), _mm256_and_si256(half, seven)));
    let mut n_alone = 0;
    while hard.count_ones() >= FEW && n_alone < 2 {
        let at = hard.trailing_zeros() as usize;
        let Some(&[first, second]) = block[at..].first_chunk() else { break };
        let (same, n_after, row) = if is_long >> at & 1 == 0 {
            (is(first), 1, usize::from(first & 0x1F))
        } else {
            (is(first) & is(second) >> 1, 2, usize::from(first & 0x0F) << 6 | usize::from(second & 0x3F))
        };
        let same = same & hard;
        hard &= !same;
        if same.count_ones() < FEW {
            n_alone += 1;
            continue;
        }
        for (kind, &row) in found.bits.iter_mut().zip(&kinds.rows[row]) {
            let table = _mm256_set1_epi64x(row as i64);
            let has = |i: usize| {
                let byte = _mm256_shuffle_epi8(table, places[i]);
                _mm256_cmpeq_epi8(_mm256_and_si256(byte, bits[i]), bits[i])
            };
            *kind |= joined([has(0), has(1)]) >> n_after & same;
        }
        found.known |= same;
    }
}

/// Top bit: [`Kinds::easy`] names the byte. By halves of a byte: the low one picks which high ones are in.
#[inline]
#[target_feature(enable = "avx2")]
fn easy_leads(half: __m256i, kinds: &Kinds) -> __m256i {
    let nibble = _mm256_set1_epi8(0x0F);
    let low = _mm256_shuffle_epi8(load(&kinds.easy_by_low), _mm256_and_si256(half, nibble));
    let high = _mm256_shuffle_epi8(load(&const { one_of(4) }), _mm256_and_si256(_mm256_srli_epi16::<4>(half), nibble));
    _mm256_cmpgt_epi8(_mm256_and_si256(low, high), _mm256_setzero_si256())
}

/// By index: one bit, at the place that the index has modulo `n`.
const fn one_of(n: usize) -> [u8; 32] {
    let mut bits = [0; 32];
    let mut i = 0;
    while i < 32 {
        bits[i] = 1 << (i % n);
        i += 1;
    }
    bits
}

/// See [`utf8::is_valid`].
#[target_feature(enable = "avx2,bmi1,bmi2,lzcnt,popcnt")]
pub(super) fn is_utf8(text: &[u8]) -> bool {
    utf8::is_valid(text, |block| mask(load_halves(block), |half| half) == 0, |window| is_wrong(window))
}

#[inline]
#[target_feature(enable = "avx2")]
fn is_wrong(window: &Window) -> bool {
    let nibble = _mm256_set1_epi8(0x0F);
    let table = |i: usize| load(&const { twice(utf8::TABLES) }[i]);
    let upper = |bytes| _mm256_and_si256(_mm256_srli_epi16::<4>(bytes), nibble);
    let wrong = [0, 32].map(|from: usize| {
        let seen = |before: usize| {
            window[from + BEFORE - before..].first_chunk().map_or(_mm256_setzero_si256(), |bytes| load(bytes))
        };
        let (bytes, before) = (seen(0), seen(1));
        let broken = _mm256_and_si256(
            _mm256_and_si256(
                _mm256_shuffle_epi8(table(0), upper(before)),
                _mm256_shuffle_epi8(table(1), _mm256_and_si256(before, nibble)),
            ),
            _mm256_shuffle_epi8(table(2), upper(bytes)),
        );
        // The top bit is set from a byte on where the difference to what is 0x80 below it is.
        let above = |bytes, byte: u8| _mm256_subs_epu8(bytes, _mm256_set1_epi8((byte - 0x80) as i8));
        let continues = _mm256_or_si256(above(seen(2), 0xE0), above(seen(3), 0xF0));
        // No other rule, and this one where it must be.
        _mm256_xor_si256(broken, _mm256_and_si256(continues, _mm256_set1_epi8(CONTINUES as i8)))
    });
    let any = _mm256_or_si256(wrong[0], wrong[1]);
    _mm256_testz_si256(any, any) == 0
}

/// Each table for both halves of a register.
const fn twice(tables: [[u8; 16]; 3]) -> [[u8; 32]; 3] {
    let mut both = [[0; 32]; 3];
    let mut i = 0;
    while i < 3 * 32 {
        both[i / 32][i % 32] = tables[i / 32][i % 16];
        i += 1;
    }
    both
}

#[inline]
fn flatten(mut starts: u64, base: u32, list: &mut [u32; 64]) {
    let n = starts.count_ones() as usize;
    let (eights, _) = list.as_chunks_mut::<8>();
    for (i, eight) in eights.iter_mut().enumerate() {
        // More than there are, but eight at a time: the branch is seldom one the processor does not foresee.
        if i >= 2 && 8 * i >= n {
            break;
        }
        for place in eight {
            *place = base.wrapping_add(starts.trailing_zeros());
            starts &= starts.wrapping_sub(1);
        }
    }
}

#[inline]
#[target_feature(enable = "avx2")]
fn mask(halves: [__m256i; 2], of: impl Fn(__m256i) -> __m256i) -> u64 {
    joined(halves.map(of))
}

/// The top bits of a block's bytes.
#[inline]
#[target_feature(enable = "avx2")]
fn joined(halves: [__m256i; 2]) -> u64 {
    let [low, high] = halves.map(|half| u64::from(_mm256_movemask_epi8(half) as u32));
    low | high << 32
}

#[inline]
#[target_feature(enable = "avx2")]
fn load_halves(block: &[u8; 64]) -> [__m256i; 2] {
    let (halves, _) = block.as_chunks();
    [load(&halves[0]), load(&halves[1])]
}

#[inline]
#[target_feature(enable = "avx2")]
fn load(bytes: &[u8; 32]) -> __m256i {
    // SAFETY: the array is 32 readable bytes, and the load asks for no alignment.
    unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
}
