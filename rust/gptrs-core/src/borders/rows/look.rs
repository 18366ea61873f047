//! What sixteen or more characters are, by vector instructions.

#![allow(clippy::wildcard_imports)] // one name for each instruction

use std::arch::x86_64::*;

use super::{LANES, SEEN, TAKEN, WINDOW, below};
use crate::borders::{Borders, COUNT, Char, IN_ROW, LEFT, N_UNITS, PAIR_FACTOR, RIGHT};
use crate::simd::avx512::{load, store};

/// The first characters of a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Taken {
    /// A bit for the first byte of each.
    pub(super) firsts: u64,
    /// Whether others may follow.
    pub(super) goes_on: bool,
    /// Whether the last goes on with a character of two bytes behind what is seen.
    pub(super) is_inside: bool,
}

/// What is known of sixteen characters, of each and the next: a bit for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Look {
    /// A token may have both whole.
    pub(super) whole: u16,
    /// One may have parts of them, which is not looked up here.
    pub(super) unsure: u16,
    /// They may merge with each other, but not before each is one token, and with nothing else.
    pub(super) pairable: u16,
    /// Its ids are known.
    pub(super) known: u16,
}

/// The first characters of a window of valid UTF-8, of which `n_left` bytes may be read: their codes, and where they start,
/// `base` bytes further. A space ends them, or a character of four bytes; the last may go on behind what is seen. But a space
/// goes with a character of two bytes behind it where a piece starts with both, and they have a code from [`IN_ROW`] on: pieces
/// start where `pieces` has a bit. The first bytes may be inside of such a character.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx2,bmi1,bmi2,lzcnt,popcnt")]
pub(super) fn take(
    window: &[u8; WINDOW],
    n_left: usize,
    pieces: u128,
    is_inside: bool,
    base: u8,
    codes: &mut [u16; TAKEN],
    starts: &mut [u8; TAKEN],
) -> Taken {
    let all = |byte: u8| _mm512_set1_epi8(byte as i8);
    let words = |word: u16| _mm512_set1_epi16(word as i16);
    let [bytes, second, third] = [0, 1, 2].map(|i| load(window[i..].first_chunk().unwrap_or(&[0; SEEN])));
    // Bytes of ASCII are not below zero, and first bytes are above those that follow.
    let first = _mm512_cmpge_epi8_mask(bytes, all(0xC0));
    let is_space = _mm512_cmpeq_epi8_mask(bytes, all(b' '));
    let here = if n_left < SEEN { !(u64::MAX << n_left) } else { u64::MAX };
    let mut spaced = 0;
    if is_space != 0 {
        let is_two = _mm512_cmplt_epu8_mask(_mm512_sub_epi8(second, all(0xC0)), all(0x20));
        spaced =
            is_space & is_two & pieces as u64 & !(pieces >> 1) as u64 & (here >> 1 | u64::from(n_left > SEEN) << 63);
    }
    let first = first & !(spaced << 1 | u64::from(is_inside));
    let is_other = _mm512_cmpge_epu8_mask(bytes, all(0xF0)) | (is_space & !spaced);
    let stop = is_other | !here;
    let before = first & !stop & stop.wrapping_sub(1);
    let firsts = _pdep_u64(u64::from(u32::MAX), before);
    let places = _mm512_maskz_compress_epi8(firsts, load(&NUMBERS));
    let byte = |bytes| _mm512_cvtepu8_epi16(_mm512_castsi512_si256(_mm512_permutexvar_epi8(places, bytes)));
    let (a, b, c) = (byte(bytes), byte(second), byte(third));
    let low = |of, bits| _mm512_and_si512(of, words(bits));
    let two = _mm512_or_si512(_mm512_slli_epi16::<6>(low(a, 0x1F)), low(b, 0x3F));
    let upper = _mm512_or_si512(_mm512_slli_epi16::<12>(a), _mm512_slli_epi16::<6>(low(b, 0x3F)));
    let three = _mm512_or_si512(upper, low(c, 0x3F));
    let from = |lead| _mm512_cmpge_epu16_mask(a, words(lead));
    let mut found = _mm512_mask_blend_epi16(from(0xE0), _mm512_mask_blend_epi16(from(0xC0), a, two), three);
    if spaced != 0 {
        let two = _mm512_or_si512(_mm512_slli_epi16::<6>(low(b, 0x1F)), low(c, 0x3F));
        let is_spaced = _mm512_cmpeq_epi16_mask(a, words(0x20));
        found = _mm512_mask_add_epi16(found, is_spaced, two, words(IN_ROW));
    }
    let places = _mm256_add_epi8(_mm512_castsi512_si256(places), _mm256_set1_epi8(base as i8));
    // SAFETY: the arrays have room for 32 words and 32 bytes, and the stores ask for no alignment.
    unsafe {
        _mm512_storeu_si512(codes.as_mut_ptr().cast(), found);
        _mm256_storeu_si256(starts.as_mut_ptr().cast(), places);
    }
    Taken { firsts, goes_on: stop == 0 && firsts == before, is_inside: spaced >> 63 == 1 }
}

/// The places within two windows behind `start` at which pieces end, and those behind these two: a bit for each.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx2,bmi1,bmi2,lzcnt,popcnt")]
pub(super) fn ends_in(start: usize, ends: &[usize]) -> (u128, u64) {
    let all = |word: usize| _mm512_set1_epi64(word as i64);
    let mut bits = [_mm512_setzero_si512(); 3];
    for ends in ends.chunks(8) {
        // SAFETY: the words that are read are those of the slice, and the load asks for no alignment.
        let ends = unsafe { _mm512_maskz_loadu_epi64(below(ends.len() as u32) as u8, ends.as_ptr().cast()) };
        let ends = _mm512_sub_epi64(ends, all(start));
        for (i, bits) in bits.iter_mut().enumerate() {
            *bits = _mm512_or_si512(*bits, _mm512_sllv_epi64(all(1), _mm512_sub_epi64(ends, all(i * SEEN))));
        }
        if _mm512_cmpge_epu64_mask(ends, all(3 * SEEN)) != 0 {
            break;
        }
    }
    let [first, second, later] = bits.map(|bits| _mm512_reduce_or_epi64(bits) as u64);
    (u128::from(second) << SEEN | u128::from(first), later)
}

/// The last characters of pieces that end at these places, and at `n_bytes` if `is_end`: a bit for each. The first bytes of
/// characters are those of the first bytes that are seen together, and of the second.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx2,bmi1,bmi2,lzcnt,popcnt")]
pub(super) fn last_of(ends: u128, is_end: bool, [first, second]: [u64; 2]) -> u64 {
    let n_first = first.count_ones();
    let n = n_first + second.count_ones();
    let next = _pext_u64(ends as u64, first) | _pext_u64((ends >> SEEN) as u64, second) << (n_first % u64::BITS);
    next >> 1 | u64::from(is_end) << ((n - 1) % u64::BITS)
}

/// All places of a window.
const NUMBERS: [u8; SEEN] = {
    let mut numbers = [0; SEEN];
    let mut i = 0;
    while i < SEEN {
        numbers[i] = i as u8;
        i += 1;
    }
    numbers
};

/// What is known of the first sixteen of these characters, and the flags of each; no token spans what is behind one that ends
/// a piece. Keys are those of characters that may be in a token with the next.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx2,bmi1,bmi2,lzcnt,popcnt")]
pub(super) fn look(
    borders: &Borders,
    codes: &[u16; LANES + 1],
    ends: u16,
    metas: &mut [u32; LANES],
    keys: &mut [u32; LANES],
) -> Look {
    const { assert!(size_of::<Char>() == 16 && std::mem::offset_of!(Char, meta) == 12 && N_UNITS > 1 << 16) }
    let all = |word: u32| _mm512_set1_epi32(word as i32);
    let widen = |codes: &[u16]| {
        let codes: &[u16; LANES] = codes.first_chunk().unwrap_or(&[0; LANES]);
        // SAFETY: the array is 32 readable bytes, and the load asks for no alignment.
        _mm512_cvtepu16_epi32(unsafe { _mm256_loadu_si256(codes.as_ptr().cast()) })
    };
    let left = widen(codes);
    let places = _mm512_add_epi32(_mm512_slli_epi32::<2>(left), all(3));
    // SAFETY: a code is below 2^16, there are more entries than that, and each has its meta as the last of four words.
    let this = unsafe { _mm512_i32gather_epi32::<4>(places, borders.units.as_ptr().cast()) };
    let last = borders.units[usize::from(codes[LANES])].meta;
    let next = _mm512_alignr_epi32::<1>(all(last), this);
    let is_spaced = _mm512_cmplt_epu32_mask(_mm512_sub_epi32(left, all(IN_ROW.into())), all(0x800));
    let left = _mm512_mask_sub_epi32(left, is_spaced, left, all(IN_ROW.into()));
    let shared = _mm512_and_si512(_mm512_srli_epi32::<RIGHT>(this), _mm512_srli_epi32::<LEFT>(next));
    store(this, metas);
    let may = _mm512_test_epi32_mask(shared, all(1)) & !ends;
    let (mut whole, mut pairable) = (0, 0);
    if may != 0 {
        let right = widen(&codes[1..]);
        let key = _mm512_or_si512(_mm512_slli_epi32::<16>(left), right);
        store(key, keys);
        let bit = _mm512_mullo_epi32(key, all(PAIR_FACTOR));
        let bit = _mm512_srl_epi32(bit, _mm_cvtsi32_si128(borders.shift as i32));
        let words = _mm512_and_si512(_mm512_srli_epi32::<5>(bit), all(borders.pairs.len() as u32 - 1));
        // SAFETY: the places are below the number of words, which is a power of two.
        let words = unsafe { _mm512_mask_i32gather_epi32::<4>(all(0), may, words, borders.pairs.as_ptr().cast()) };
        let found = _mm512_srlv_epi32(words, _mm512_and_si512(bit, all(31)));
        let are_ascii = _mm512_cmplt_epu32_mask(_mm512_or_si512(left, right), all(0x80));
        whole = (_mm512_test_epi32_mask(found, all(1)) | are_ascii) & may;
        let is_token = |meta| _mm512_cmpeq_epi32_mask(_mm512_and_si512(meta, all(COUNT)), all(1));
        pairable =
            _mm512_cmpeq_epi32_mask(shared, all(1)) & is_token(this) & is_token(next) & !are_ascii & !is_spaced & may;
    }
    Look {
        whole,
        unsure: _mm512_cmpgt_epu32_mask(shared, all(1)) & !whole & !ends,
        pairable,
        known: _mm512_test_epi32_mask(this, all(COUNT)),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::borders::chars::{char_at, is_tail};
    use crate::borders::duos::key;
    use crate::borders::{is_whole, shared};
    use crate::naive;
    use crate::simd::Level;
    use crate::vocab::Vocab;

    /// [`super::take`], character by character.
    fn take_each(window: &[u8; WINDOW], n_left: usize, pieces: u128, is_inside: bool) -> (Vec<(u16, u8)>, Taken) {
        let (mut chars, mut firsts) = (Vec::new(), 0);
        let is_spaced =
            |at: usize| window[at] == b' ' && window[at + 1] >> 5 == 6 && at + 1 < n_left && pieces >> at & 3 == 1;
        let is_stop = |at: usize| at >= n_left || (window[at] == b' ' && !is_spaced(at)) || window[at] >= 0xF0;
        let n_before = window.iter().take_while(|&&byte| is_tail(byte)).count();
        let mut at = if is_inside { 2 } else { n_before };
        while chars.len() < TAKEN && at < SEEN && !(0..=at).any(is_stop) {
            let ((code, len), first) = if is_spaced(at) {
                let (code, len) = char_at(window, at + 1);
                ((code + u32::from(IN_ROW), 1 + len), at)
            } else {
                (char_at(window, at), at)
            };
            chars.push((code as u16, at as u8));
            firsts |= 1 << first;
            at += len;
        }
        let goes_on = at >= SEEN && (0..SEEN).all(|at| !is_stop(at));
        (chars, Taken { firsts, goes_on, is_inside: is_spaced(SEEN - 1) })
    }

    /// [`super::look`], character by character.
    fn look_each(borders: &Borders, codes: &[u16; LANES + 1], ends: u16) -> (Look, Vec<u32>) {
        let mut look = Look { whole: 0, unsure: 0, pairable: 0, known: 0 };
        for (i, pair) in codes.windows(2).enumerate() {
            let [left, right] = [pair[0], pair[1]].map(u32::from);
            let [this, next] = [left, right].map(|code| borders.units[code as usize].meta);
            let (shared, are_ascii) = (if ends >> i & 1 == 1 { 0 } else { shared(this, next) }, left.max(right) < 0x80);
            let is_spaced = (IN_ROW.into()..u32::from(IN_ROW) + 0x800).contains(&left);
            let char = if is_spaced { left - u32::from(IN_ROW) } else { left };
            let is_whole = shared & 1 == 1 && (is_whole(&borders.pairs, borders.shift, char, right) == 1 || are_ascii);
            let are_tokens = this & COUNT == 1 && next & COUNT == 1 && !is_spaced;
            look.whole |= u16::from(is_whole) << i;
            look.unsure |= u16::from(shared > 1 && !is_whole) << i;
            look.pairable |= u16::from(shared == 1 && are_tokens && !are_ascii) << i;
            look.known |= u16::from(this & COUNT != 0) << i;
        }
        (look, codes[..LANES].iter().map(|&code| borders.units[usize::from(code)].meta).collect())
    }

    /// Text of these characters in an order that does not repeat soon.
    pub(in crate::borders::rows) fn text(chars: &str, n: usize, seed: usize) -> Vec<u8> {
        let chars: Vec<char> = chars.chars().collect();
        let mut state = seed as u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            chars[(state >> 33) as usize % chars.len()]
        };
        (0..n).map(|_| next()).collect::<String>().into_bytes()
    }

    #[test]
    fn characters_are_taken_as_one_by_one() {
        if !Level::Avx512.is_available() {
            return;
        }
        let (mut n_all, mut n_full, mut n_stopped, mut n_spaced, mut n_inside) = (0, 0, 0, 0, 0);
        for (seed, chars) in ["一丁の한", "жзéא", "ab1.", "aж一é2の", "一丁の한乀ー中 😀ж", "a 😀", "жзéאийк ", "жз é"]
            .into_iter()
            .cycle()
            .take(3000)
            .enumerate()
        {
            let text = text(chars, 80, seed);
            // Where a character starts, or inside of one.
            let start = seed % 9;
            let is_inside = seed % 2 == 0 && start > 0 && text[start - 1] == b' ' && text[start] >> 5 == 6;
            let is_bound =
                |at: usize| if text[start + at] == b' ' { seed % 5 != at % 5 } else { (seed + at).is_multiple_of(16) };
            let pieces = (0..=SEEN).fold(0, |pieces, at| pieces | u128::from(is_bound(at)) << at);
            let window = text[start..].first_chunk().unwrap();
            let n_tail = text[start..].iter().take_while(|&&byte| is_tail(byte)).count();
            for n_left in (n_tail..=WINDOW + 9).filter(|&n| text.get(start + n).is_none_or(|&byte| !is_tail(byte))) {
                let base = (seed % 60) as u8;
                let (mut codes, mut starts) = ([0; TAKEN], [0; TAKEN]);
                // SAFETY: this processor has the level.
                let taken = unsafe { take(window, n_left, pieces, is_inside, base, &mut codes, &mut starts) };
                let (chars, expected) = take_each(window, n_left, pieces, is_inside);
                assert_eq!(taken, expected, "{n_left} of {window:?}");
                let found: Vec<_> = codes.into_iter().zip(starts.map(|start| start - base)).take(chars.len()).collect();
                assert_eq!(found, chars, "{n_left} of {window:?}");
                n_all += chars.len();
                n_full += usize::from(chars.len() == TAKEN);
                n_stopped += usize::from(!taken.goes_on);
                n_spaced += chars.iter().filter(|(code, _)| (IN_ROW..IN_ROW + 0x800).contains(code)).count();
                n_inside += usize::from(taken.is_inside);
            }
        }
        let counts = [n_full, n_stopped, n_spaced, 10 * n_inside];
        assert!(n_all > 100_000 && counts.iter().all(|&n| n > 1000), "{n_all} characters, {counts:?}");
    }

    #[test]
    fn sixteen_characters_are_known_as_one_by_one() {
        if !Level::Avx512.is_available() {
            return;
        }
        let mut counts = [0; 4];
        for seed in 0..200 {
            let words: Vec<_> = (0..40)
                .map(|i| {
                    let word = text("aж一丁の한é乀1", 1 + i % 4, 99 * seed + i);
                    let space = if i % 4 == 0 { &b" "[..] } else { b"" };
                    ([space, &word[i % 3 % word.len()..]].concat(), 1 + i as u64 % 7)
                })
                .collect();
            let vocab = Vocab::from_merges(&naive::train(&words, 60, 1)).unwrap();
            let borders = vocab.borders();
            for i in 0..40 {
                let text = text("aж一丁の한é乀1中", 64, 7919 * seed + i);
                let (mut codes, mut starts) = ([0; TAKEN], [0; TAKEN]);
                // SAFETY: this processor has the level.
                let taken = unsafe { take(text.first_chunk().unwrap(), SEEN, 0, false, 0, &mut codes, &mut starts) };
                assert!(taken.firsts.count_ones() > LANES as u32);
                // Some with a space before them.
                let two = codes.iter_mut().filter(|code| (0x80..0x800).contains(*code));
                two.skip(i % 2).step_by(2).for_each(|code| *code += IN_ROW);
                let (codes, mut metas, mut keys) = (codes.first_chunk().unwrap(), [0; LANES], [0; LANES]);
                let ends = (seed * i) as u16 & (i as u16).rotate_left(seed as u32);
                // SAFETY: as above.
                let found = unsafe { look(borders, codes, ends, &mut metas, &mut keys) };
                assert_eq!((found, metas.to_vec()), look_each(borders, codes, ends), "{codes:?}");
                let pairs = keys.iter().zip(codes.windows(2)).map(|(&key, pair)| (key, pair));
                for (i, (found_key, pair)) in pairs.enumerate().filter(|(i, _)| found.pairable >> i & 1 == 1) {
                    assert_eq!(found_key, key(pair[0].into(), pair[1].into()), "{i} of {codes:?}");
                }
                let masks = [found.whole, found.unsure, found.pairable, !found.known];
                counts.iter_mut().zip(masks).for_each(|(count, mask)| *count += mask.count_ones());
            }
        }
        assert!(counts[..3].iter().all(|&count| count > 100), "{counts:?}");
    }
}
