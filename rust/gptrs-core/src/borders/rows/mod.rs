//! Rows of characters, up to 64 at a time.
//!
//! Whether a token spans the border between two characters cannot be foreseen, and a processor that waits for each answer
//! does little else. So many are looked at without branches, all borders to one bit each, and the ids of all parts that are
//! characters, or pairs that merge as wholes, are given out together.

#![cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
#![allow(clippy::wildcard_imports)] // one name for each instruction

#[cfg(target_arch = "x86_64")]
mod look;

use std::ops::Range;

#[cfg(target_arch = "x86_64")]
use self::look::{ends_in, last_of, look, take};
#[cfg(target_arch = "x86_64")]
use super::chars::spell;
use super::{Borders, COUNT, IN_ROW};
use crate::encode::{Id, Out};
#[cfg(target_arch = "x86_64")]
use crate::simd::avx512::{load_words, store};
use crate::vocab::Vocab;

/// Characters looked at by the same instructions.
const LANES: usize = 16;

/// Characters of a row, one for each bit of a mask: those of two windows.
const ROW: usize = 64;

/// Pairs in a row at most.
const PAIRS: usize = ROW / 2;

/// Bytes seen together, those read for it, and characters taken of them at most.
const SEEN: usize = 64;
const WINDOW: usize = SEEN + 2;
const TAKEN: usize = 32;

/// Characters given out together.
const STEP: usize = 8;

/// Fewer characters are not worth more than a look.
const LEAST: usize = 3;

/// Characters of one to three bytes, from the start of a part to the end of one, but for spaces; one that starts a piece goes with
/// a character of two bytes behind it. Masks have a bit for each.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    /// The code of each and of one more; behind them there may be anything.
    codes: [u16; ROW + TAKEN],
    /// What is known of each; nothing of the second of a pair that merges.
    metas: [u32; ROW + STEP],
    /// Each and the next as [`super::duos::key`]; by the first of a pair that merges, its id.
    keys: [u32; ROW],
    merged: [u32; ROW + STEP],
    /// Where the first starts in the text, and where each starts from there.
    base: usize,
    starts: [u8; ROW + TAKEN],
    /// The last of a part, of a piece, and of a part that is given out here; the first of a pair that merges.
    parts: u64,
    pieces: u64,
    plain: u64,
    pairs: u64,
    /// How many are done, and how many there are.
    at: u32,
    n: u32,
}

impl Default for Row {
    fn default() -> Self {
        let (codes, starts, keys, [metas, merged]) =
            ([0; ROW + TAKEN], [0; ROW + TAKEN], [0; ROW], [[0; ROW + STEP]; 2]);
        Self { codes, metas, keys, merged, base: 0, starts, parts: 0, pieces: 0, plain: 0, pairs: 0, at: 0, n: 0 }
    }
}

/// What [`Row::give_out`] ended at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Next {
    /// Where the part after those given out starts, and how many pieces ended with them.
    pub(super) start: usize,
    pub(super) n_pieces: usize,
    /// That part, if there is one in the row, and whether its piece ends with it.
    pub(super) part: Option<(Range<usize>, bool)>,
}

impl Row {
    pub(super) fn forget(&mut self) {
        (self.at, self.n) = (0, 0);
    }

    #[inline]
    pub(super) fn is_done(&self) -> bool {
        self.at >= self.n
    }

    /// Looks at the characters from `start` on, where a part starts, and a piece if `is_first`, in pieces that end at `ends`;
    /// false when there are too few.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx2,bmi1,bmi2,lzcnt,popcnt")]
    pub(super) fn look(
        &mut self,
        vocab: &Vocab,
        borders: &Borders,
        text: &[u8],
        start: usize,
        is_first: bool,
        ends: &[usize],
    ) -> bool {
        let Some(&row_end) = ends.last() else { return false };
        let Some(window) = text.get(start..).and_then(<[u8]>::first_chunk::<WINDOW>) else { return false };
        let n_left = row_end - start;
        let (Some(codes), Some(starts)) = (self.codes.first_chunk_mut(), self.starts.first_chunk_mut()) else {
            return false;
        };
        let (all_ends, later_ends) = ends_in(start, ends);
        let bounds = all_ends | u128::from(is_first);
        let mut taken = take(window, n_left, bounds, false, 0, codes, starts);
        let (first, mut second) = (taken.firsts, 0);
        let mut n = first.count_ones() as usize;
        if taken.goes_on
            && let Some(window) = text.get(start + SEEN..).and_then(<[u8]>::first_chunk::<WINDOW>)
            && let Some(codes) = self.codes[n..].first_chunk_mut()
            && let Some(starts) = self.starts[n..].first_chunk_mut()
        {
            taken = take(
                window,
                n_left.saturating_sub(SEEN),
                bounds >> SEEN | 1 << SEEN,
                taken.is_inside,
                SEEN as u8,
                codes,
                starts,
            );
            second = taken.firsts;
            n += second.count_ones() as usize;
        }
        if n < LEAST {
            return false;
        }
        let n_bytes = usize::from(self.starts[n - 1]) + spell(self.code(n - 1)).1 as usize;
        self.starts[n] = n_bytes as u8;
        let is_end = match n_bytes.checked_sub(2 * SEEN) {
            None => all_ends >> n_bytes & 1 == 1,
            Some(behind) => later_ends >> behind & 1 == 1,
        };
        let pieces = last_of(all_ends, is_end, [first, second]);
        let (mut whole, mut unsure, mut pairable, mut known) = (0, 0, 0, 0);
        let lanes = self.metas.as_chunks_mut().0.iter_mut().zip(self.keys.as_chunks_mut().0).enumerate();
        for (i, (metas, keys)) in lanes.take(n.div_ceil(LANES)) {
            let Some(codes) = self.codes[LANES * i..].first_chunk() else { break };
            let look = look(borders, codes, (pieces >> (LANES * i)) as u16, metas, keys);
            let put = |mask: u16| u64::from(mask) << (LANES * i);
            (whole, unsure) = (whole | put(look.whole), unsure | put(look.unsure));
            (pairable, known) = (pairable | put(look.pairable), known | put(look.known));
        }
        // What is behind the last is not known, unless its piece ends.
        let inner = below(n as u32 - 1);
        for i in bits(unsure & inner) {
            whole |= u64::from(borders.has_partial(char_of(self.code(i)), char_of(self.code(i + 1)))) << i;
        }
        let parts = (!whole | pieces) & below((inner | pieces).trailing_ones());
        let starts = parts << 1 | 1;
        let of_two = if vocab.ignore_merges() { 0 } else { starts & !parts & parts >> 1 & pairable };
        self.merge_pairs(vocab, borders, of_two);
        (self.base, self.parts, self.pieces, self.plain) =
            (start, parts, pieces, (starts & parts & known) | of_two << 1);
        (self.at, self.n) = (0, u64::BITS - parts.leading_zeros());
        self.n > 0
    }

    /// Finds which of the pairs merge whose first characters are set.
    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx2,bmi1,bmi2,lzcnt,popcnt")]
    fn merge_pairs(&mut self, vocab: &Vocab, borders: &Borders, of_two: u64) {
        use std::arch::x86_64::*;
        self.pairs = 0;
        if of_two == 0 {
            return;
        }
        // Of sixteen characters in a row: no two pairs share one.
        let here = |i: usize| (of_two >> (LANES * i)) as u16;
        let (mut keys, mut ids, mut n) = ([0; PAIRS + LANES], [0; PAIRS + LANES], 0);
        for (i, row) in self.keys.as_chunks().0.iter().enumerate() {
            let Some(keys) = keys[n..].first_chunk_mut() else { break };
            store(_mm512_maskz_compress_epi32(here(i), load_words(row)), keys);
            n += here(i).count_ones() as usize;
        }
        let (mut there, mut unsure) = (0, 0);
        for (i, (keys, ids)) in keys.as_chunks().0.iter().zip(ids.as_chunks_mut().0).take(n.div_ceil(8)).enumerate() {
            let (are_there, are_sure) = borders.duos.find_eight(keys, ids);
            there |= u64::from(are_there) << (8 * i);
            unsure |= u64::from(!are_sure) << (8 * i);
        }
        for i in bits(unsure & below(n as u32)) {
            let (two, n_ids) = borders.two(vocab, keys[i] >> 16, keys[i] & 0xFFFF);
            ids[i] = two[0];
            there |= u64::from(n_ids == 1) << i;
        }
        self.pairs = _pdep_u64(there, of_two);
        let seconds = self.pairs << 1;
        n = 0;
        let rows = self.merged.as_chunks_mut().0.iter_mut().zip(self.metas.as_chunks_mut::<LANES>().0);
        for (i, (merged, metas)) in rows.enumerate() {
            let Some(ids) = ids[n..].first_chunk() else { break };
            store(_mm512_maskz_expand_epi32(here(i), load_words(ids)), merged);
            let second = (seconds >> (LANES * i)) as u16;
            // SAFETY: the array has room for 16 words, and the store asks for no alignment.
            unsafe { _mm512_mask_storeu_epi32(metas.as_mut_ptr().cast(), second, _mm512_setzero_si512()) }
            n += here(i).count_ones() as usize;
        }
    }

    /// Gives out the ids of parts for as long as they are plain; there must be room for those of a row.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx2,bmi1,bmi2,lzcnt,popcnt")]
    pub(super) fn give_out<I: Id>(&mut self, borders: &Borders, is_narrow: bool, out: &mut Out<I>) -> Next {
        let left = u64::MAX << self.at;
        let other = self.parts & !self.plain & left;
        let stop = other.trailing_zeros();
        let given = self.parts & left & below(stop);
        let until = if given == 0 { self.at } else { u64::BITS - given.leading_zeros() };
        let (from, to) = (self.at as usize, until as usize);
        for at in (from..to).step_by(STEP) {
            let here = below((to - at).min(STEP) as u32) as u8;
            if is_narrow {
                self.put_narrow(borders, at, here, out);
            } else {
                self.put_wide(borders, at, here, out);
            }
        }
        let place = |at: u32| self.base + usize::from(self.starts[at as usize]);
        let n_pieces = (self.pieces & left & below(until)).count_ones() as usize;
        let part = (other != 0).then(|| (place(until)..place(stop + 1), self.pieces >> stop & 1 == 1));
        self.at = if other == 0 { until } else { stop + 1 };
        Next { start: place(until), n_pieces, part }
    }

    /// Puts the ids of the characters from `at` on for which a bit is set, of a vocabulary whose ids are half a word each.
    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx2,bmi1,bmi2,lzcnt,popcnt")]
    fn put_narrow<I: Id>(&self, borders: &Borders, at: usize, here: u8, out: &mut Out<I>) {
        use std::arch::x86_64::*;
        let (ids, counts) = self.step(borders, at, here);
        // How many a character has, in each half of its word: those above the place of the half are there.
        let counts = _mm512_shuffle_epi8(counts, _mm512_set4_epi32(0x0908_0908, 0x0908_0908, 0x0100_0100, 0x0100_0100));
        let there = _mm512_cmpgt_epu16_mask(counts, _mm512_set1_epi64(0x0003_0002_0001_0000));
        let mut halves = [0_u16; 4 * STEP];
        // SAFETY: the array has room for 64 bytes, and the store asks for no alignment.
        unsafe { _mm512_storeu_si512(halves.as_mut_ptr().cast(), _mm512_maskz_compress_epi16(there, ids)) }
        let room = &mut out.room[out.n..out.n + 4 * STEP];
        room.iter_mut().zip(halves).for_each(|(room, id)| *room = I::narrow(id.into()));
        out.n += there.count_ones() as usize;
    }

    /// The same where ids are words.
    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx2,bmi1,bmi2,lzcnt,popcnt")]
    fn put_wide<I: Id>(&self, borders: &Borders, at: usize, here: u8, out: &mut Out<I>) {
        use std::arch::x86_64::*;
        let (ids, counts) = self.step(borders, at, here);
        if _mm512_cmpgt_epu64_mask(counts, _mm512_set1_epi64(2)) != 0 {
            for i in at..at + here.count_ones() as usize {
                let n = (self.metas[i] & COUNT) as usize;
                if self.pairs >> i & 1 == 1 {
                    out.room[out.n] = I::narrow(self.merged[i]);
                    out.n += n;
                } else {
                    out.add_char(borders.units[usize::from(self.codes[i])].ids(), n, false);
                }
            }
            return;
        }
        let counts = _mm512_shuffle_epi32::<0b10_10_00_00>(counts);
        let there = _mm512_cmpgt_epu32_mask(counts, _mm512_set1_epi64(1 << 32));
        let mut words = [0; 2 * STEP];
        store(_mm512_maskz_compress_epi32(there, ids), &mut words);
        let room = &mut out.room[out.n..out.n + 2 * STEP];
        room.iter_mut().zip(words).for_each(|(room, id)| *room = I::narrow(id));
        out.n += there.count_ones() as usize;
    }

    /// Of eight characters from `at` on the first two words of what they become, and how many ids that is; none where no bit
    /// is set.
    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx2,bmi1,bmi2,lzcnt,popcnt")]
    fn step(&self, borders: &Borders, at: usize, here: u8) -> (std::arch::x86_64::__m512i, std::arch::x86_64::__m512i) {
        use std::arch::x86_64::*;
        let codes: &[u16; STEP] = self.codes[at..].first_chunk().unwrap_or(&[0; STEP]);
        let [merged, metas] = [&self.merged, &self.metas].map(|of| of[at..].first_chunk().unwrap_or(&[0; STEP]));
        let widen = |words: &[u32; STEP]| {
            // SAFETY: the array is 32 readable bytes, and the load asks for no alignment.
            _mm512_cvtepu32_epi64(unsafe { _mm256_loadu_si256(words.as_ptr().cast()) })
        };
        // SAFETY: the array is 16 readable bytes, and the load asks for no alignment.
        let places = _mm512_cvtepu16_epi64(unsafe { _mm_loadu_si128(codes.as_ptr().cast()) });
        let places = _mm512_slli_epi64::<1>(places);
        // SAFETY: a code is below 2^16, there are more entries than that, and each has two words of 64 bits.
        let own = unsafe { _mm512_i64gather_epi64::<8>(places, borders.units.as_ptr().cast()) };
        let ids = _mm512_mask_blend_epi64((self.pairs >> at) as u8, own, widen(merged));
        (ids, _mm512_maskz_and_epi64(here, widen(metas), _mm512_set1_epi64(COUNT.into())))
    }

    #[inline]
    fn code(&self, at: usize) -> u32 {
        u32::from(self.codes[at])
    }
}

/// The character of a code, which may have a space before it.
#[inline]
fn char_of(code: u32) -> u32 {
    if code >> 11 == u32::from(IN_ROW >> 11) { code & 0x7FF } else { code }
}

/// The numbers of the bits that are set.
#[inline]
fn bits(mut mask: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let at = mask.trailing_zeros() as usize;
        mask &= mask.wrapping_sub(1);
        (at < ROW).then_some(at)
    })
}

/// So many bits.
#[inline]
fn below(n: u32) -> u64 {
    if n < u64::BITS { (1 << n) - 1 } else { u64::MAX }
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::look::tests::text;
    use super::*;
    use crate::encode::Ready;
    use crate::naive;
    use crate::simd::Level;

    #[test]
    fn ids_are_given_out_as_one_by_one() {
        if !Level::Avx512.is_available() {
            return;
        }
        let mut counts = [0; 5];
        for seed in 0..300 {
            // Of some characters the bytes do not all merge, and some pairs of others do.
            let words: Vec<_> =
                ["一丁", "の一", "ж", "éж", "の", "丁\u{4e03}"].map(|word| word.as_bytes().to_vec()).into();
            let words: Vec<_> = words.into_iter().zip((0..).map(|i| 1 + (seed + i) as u64 % 5)).collect();
            let merges = naive::train(&words, 3 + seed % 9, 1);
            let vocab = Vocab::from_merges(&merges).unwrap();
            let vocab = if seed % 2 == 0 {
                vocab
            } else {
                // Too many for half a word each.
                let own = (0..vocab.len() as u32).map(|id| vocab.token(id).unwrap().to_vec());
                let tokens: Vec<_> = own.chain((0..1 << 16).map(|i| format!("{i:08}").into_bytes())).collect();
                Vocab::from_tokens(&tokens, merges, false).unwrap()
            };
            let (borders, is_narrow) = (vocab.borders(), vocab.is_narrow());
            assert_eq!(is_narrow, seed % 2 == 0);
            for i in 0..20 {
                let text = text("一丁の\u{4e03}éж1", 80, 31 * seed + i);
                let mut row = Row::default();
                // SAFETY: this processor has the level.
                if !unsafe { row.look(&vocab, borders, &text, 0, true, &[text.len()]) } {
                    continue;
                }
                let (mut ready, mut expected) = (Ready::default(), Vec::<u32>::new());
                let mut out = Out::<u32>::new(&mut ready);
                while !row.is_done() {
                    let before = row.clone();
                    // SAFETY: as above.
                    let next = unsafe { row.give_out(borders, is_narrow, &mut out) };
                    let given = (before.at as usize..).take_while(|&at| usize::from(row.starts[at]) < next.start);
                    for at in given {
                        let n = (row.metas[at] & COUNT) as usize;
                        let is_pair = row.pairs >> at & 1 == 1;
                        let ids = borders.units[usize::from(row.codes[at])].ids().wide(is_narrow);
                        expected.extend(if is_pair { &row.merged[at..=at] } else { &ids[..n] });
                        counts[if is_pair { 4 } else { n }] += 1;
                    }
                    if next.part.is_none() {
                        break;
                    }
                }
                assert_eq!(out.room[..out.n], expected, "{seed}: {text:?}");
            }
        }
        assert!(counts.iter().all(|&n| n > 300), "{counts:?}");
    }
}
