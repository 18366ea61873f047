//! Where a piece falls apart: borders between characters that no token spans.
//!
//! A merge makes a token, and a token's bytes stand in the text. Where no token has two characters (or the ends of them
//! that it would cover) side by side, no merge ever crosses from one to the other, so both sides merge as if alone, and
//! a long run of characters costs as much as its parts. Most parts are one character, whose ids are in a table.

use crate::cache::INLINE;
use crate::table::Ids;
use crate::tokens::Tokens;

/// Code points with an entry of their own.
const N_CHARS: usize = 1 << 16;

/// The longest character with an entry, in bytes; it never has more ids.
pub(crate) const CHAR_BYTES: usize = 3;

/// The bits of [`Char::meta`] that count ids.
const COUNT: u32 = 3;
/// A token has this character and one after it.
const WHOLE_RIGHT: u32 = 1 << 2;
/// A token has this character and one before it.
const WHOLE_LEFT: u32 = 1 << 3;
/// Colors of borders where one of the characters is not whole in the token: such a border is marked at both characters
/// with its color, so that few pairs of characters without one share a color.
const N_COLORS: u32 = 14;
const COLORS: u32 = (1 << N_COLORS) - 1;
/// The first color of borders at the right of a character.
const RIGHT: u32 = 4;
/// The first color of borders at its left.
const LEFT: u32 = RIGHT + N_COLORS;
/// Size of the hashed set of such borders; the largest vocabularies have some hundreds.
const PARTIAL_BITS: u32 = 15;
/// A character without an entry may be in any token.
const UNKNOWN: u32 = !COUNT;

/// What is known of a character.
#[derive(Debug, Clone, Copy, Default)]
#[repr(align(16))]
struct Char {
    /// The lower halves of the ids, and what is above them.
    low: [u16; INLINE],
    high: [u8; INLINE],
    /// How many ids, and flags.
    meta: u32,
}

/// A part of a piece, between two borders that no token spans.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// A character: its ids and how many they are.
    Char(Ids, usize),
    /// From here to there in the piece; to be merged.
    Bytes(usize, usize),
}

/// What a vocabulary's tokens span, and the ids of single characters.
#[derive(Debug, Clone)]
pub(crate) struct Borders {
    chars: Vec<Char>,
    /// Whole characters side by side in a token, as bits by hash; a bit set by another pair costs time only.
    pairs: Vec<u64>,
    shift: u32,
    /// Ends and starts of characters side by side in a token, at least one not whole; sorted.
    partial: Vec<(u32, u32)>,
    /// The same as bits by hash, which spare most searches.
    partial_bits: Vec<u64>,
}

impl Borders {
    /// Borders of `tokens`; `encode` appends the ids of a character that stands alone.
    pub(crate) fn new(tokens: &Tokens, mut encode: impl FnMut(&[u8], &mut Vec<u32>)) -> Self {
        let (mut whole, mut partial) = (Vec::new(), Vec::new());
        for token in (0..tokens.len() as u32).filter_map(|id| tokens.get(id)) {
            collect(token, &mut whole, &mut partial);
        }
        for borders in [&mut whole, &mut partial] {
            borders.sort_unstable();
            borders.dedup();
        }
        let n_bits = (32 * whole.len()).next_power_of_two().max(64);
        let shift = 64 - n_bits.trailing_zeros();
        let (chars, pairs) = (vec![Char::default(); N_CHARS], vec![0; n_bits / 64]);
        let mut borders = Self { chars, pairs, shift, partial, partial_bits: vec![0; 1 << (PARTIAL_BITS - 6)] };
        (0..0x80).for_each(|ascii| borders.flag(ascii, WHOLE_RIGHT | WHOLE_LEFT));
        for (left, right) in whole {
            borders.flag(left, WHOLE_RIGHT);
            borders.flag(right, WHOLE_LEFT);
            let bit = borders.bit(left, right);
            borders.pairs[bit / 64] |= 1 << (bit % 64);
        }
        borders.color();
        let mut ids = Vec::new();
        for char in '\0'..='\u{FFFF}' {
            ids.clear();
            encode(char.encode_utf8(&mut [0; 4]).as_bytes(), &mut ids);
            let entry = &mut borders.chars[char as usize];
            for ((low, high), &id) in entry.low.iter_mut().zip(&mut entry.high).zip(&ids) {
                (*low, *high) = (id as u16, (id >> 16) as u8);
            }
            entry.meta |= ids.len() as u32;
        }
        borders
    }

    /// Calls `f` with the parts of `piece`, which is not empty, in order. The piece itself is its only part when some
    /// token spans each of its borders.
    #[inline]
    pub(crate) fn for_each_part<E>(&self, piece: &[u8], mut f: impl FnMut(Part) -> Result<(), E>) -> Result<(), E> {
        let (mut code, mut at) = char_at(piece, 0);
        let mut char = self.char(code);
        let (mut start, mut is_single) = (0, true);
        loop {
            let (next_code, len) = char_at(piece, at);
            let next = self.char(next_code);
            if at < piece.len() && self.may_span(code, char.meta, next_code, next.meta) {
                is_single = false;
            } else {
                f(part(char, start, at, is_single))?;
                if at == piece.len() {
                    return Ok(());
                }
                (start, is_single) = (at, true);
            }
            (code, char) = (next_code, next);
            at += len;
        }
    }

    #[inline]
    fn char(&self, code: u32) -> Char {
        self.chars.get(code as usize).copied().unwrap_or(Char { meta: UNKNOWN, ..Char::default() })
    }

    /// Whether a token may span the border between two characters; `false` is certain.
    #[inline]
    fn may_span(&self, left: u32, left_meta: u32, right: u32, right_meta: u32) -> bool {
        let is_partial = (left_meta >> RIGHT) & (right_meta >> LEFT) & COLORS != 0;
        let is_whole = left_meta & (right_meta >> 1) & WHOLE_RIGHT != 0;
        if !is_partial && !is_whole {
            return false;
        }
        let bit = self.bit(left, right);
        self.pairs[bit / 64] >> (bit % 64) & 1 == 1
            || (is_partial && self.has_partial(left, right))
            || left | right < 0x80
    }

    fn bit(&self, left: u32, right: u32) -> usize {
        let key = u64::from(left) << 32 | u64::from(right);
        (key.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> self.shift) as usize
    }

    fn has_partial(&self, left: u32, right: u32) -> bool {
        let ((left, left_len), (right, right_len)) = (spell(left), spell(right));
        (1..=left_len).any(|from| {
            let end = left & (u32::MAX >> (32 - 8 * from));
            (1..=right_len).any(|to| {
                let border = (end, right >> (8 * (right_len - to)));
                let bit = partial_bit(border);
                self.partial_bits[bit / 64] >> (bit % 64) & 1 == 1 && self.partial.binary_search(&border).is_ok()
            })
        })
    }

    fn flag(&mut self, code: u32, flag: u32) {
        if let Some(char) = self.chars.get_mut(code as usize) {
            char.meta |= flag;
        }
    }

    /// Marks every character that ends or starts as a partial border does.
    fn color(&mut self) {
        let mut ends = Vec::new();
        let mut starts = Vec::new();
        for &(end, start) in &self.partial {
            let bit = partial_bit((end, start));
            self.partial_bits[bit / 64] |= 1 << (bit % 64);
            let color = (end ^ start).wrapping_mul(0x9E37_79B1) % N_COLORS;
            ends.push((end, color));
            starts.push((start, color));
        }
        for sides in [&mut ends, &mut starts] {
            sides.sort_unstable();
            sides.dedup();
        }
        for (end, color) in ends {
            let bytes = unpack(end);
            let tail = bytes.iter().fold(0, |code, &byte| code << 6 | usize::from(byte & 0x3F));
            let is_whole = !is_tail(bytes[0]);
            let first = if is_whole { char_at(&bytes, 0).0 as usize } else { tail };
            let step = if is_whole { N_CHARS } else { 1 << (6 * bytes.len()) };
            (first..N_CHARS).step_by(step).for_each(|code| self.flag(code as u32, 1 << (RIGHT + color)));
        }
        for (start, color) in starts {
            let mut bytes = unpack(start);
            let n_low = 6 * (char_len(bytes[0]) - bytes.len());
            bytes.resize(char_len(bytes[0]), 0x80);
            let first = char_at(&bytes, 0).0;
            (first..first + (1 << n_low)).for_each(|code| self.flag(code, 1 << (LEFT + color)));
        }
    }
}

#[inline]
fn part(char: Char, start: usize, end: usize, is_single: bool) -> Part {
    let n = char.meta & COUNT;
    let ids = Ids { low: char.low, high: char.high.map(u16::from) };
    if is_single && n > 0 { Part::Char(ids, n as usize) } else { Part::Bytes(start, end) }
}

/// The code and the length of the character at `at`; no character's code where the text ends inside of one.
#[inline]
fn char_at(text: &[u8], at: usize) -> (u32, usize) {
    let tail = |byte: u8| u32::from(byte & 0x3F);
    match text[at..] {
        [a, b, c, ..] if a >> 4 == 0xE => (u32::from(a & 0x0F) << 12 | tail(b) << 6 | tail(c), 3),
        [a, b, ..] if a >> 5 == 6 => (u32::from(a & 0x1F) << 6 | tail(b), 2),
        [a, b, c, d, ..] if a >= 0xF0 => (u32::from(a & 7) << 18 | tail(b) << 12 | tail(c) << 6 | tail(d), 4),
        [a, ..] if a < 0x80 => (u32::from(a), 1),
        [_, ..] => (u32::MAX, 1),
        [] => (u32::MAX, 0),
    }
}

/// The length that a first byte tells.
fn char_len(first: u8) -> usize {
    match first {
        0..0xC0 => 1,
        0xC0..0xE0 => 2,
        0xE0..0xF0 => 3,
        0xF0.. => 4,
    }
}

fn is_tail(byte: u8) -> bool {
    byte & 0xC0 == 0x80
}

/// Adds the character borders inside of `token`: codes of whole characters, bytes of others. What no UTF-8 text has at a
/// border is left out, and so is what stands between two ASCII characters: there is always a border that may be spanned.
fn collect(token: &[u8], whole: &mut Vec<(u32, u32)>, partial: &mut Vec<(u32, u32)>) {
    for at in (1..token.len()).filter(|&at| !is_tail(token[at]) && !token[at - 1..=at].is_ascii()) {
        let n_tail = token[..at].iter().rev().take_while(|&&byte| is_tail(byte)).count();
        let from = at - (n_tail + 1).min(at);
        let (left, rest) = (&token[from..at], &token[at..]);
        let is_left_whole = !is_tail(left[0]);
        let right = &rest[..char_len(rest[0]).min(rest.len())];
        let is_right_whole = right.len() == char_len(right[0]);
        if n_tail > 3 || !right[1..].iter().copied().all(is_tail) || (is_left_whole && char_len(left[0]) != left.len())
        {
            continue;
        }
        if is_left_whole && is_right_whole {
            whole.push((char_at(left, 0).0, char_at(right, 0).0));
        } else {
            partial.push((pack(left), pack(right)));
        }
    }
}

/// A place in the hashed set of partial borders.
#[inline]
fn partial_bit((end, start): (u32, u32)) -> usize {
    let key = u64::from(end) << 32 | u64::from(start);
    (key.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> (64 - PARTIAL_BITS)) as usize
}

/// The bytes of a character as [`pack`] gives them, and how many.
#[inline]
fn spell(code: u32) -> (u32, u32) {
    let low = |shift: u32| 0x80 | (code >> shift & 0x3F);
    match code {
        0..0x80 => (code, 1),
        0x80..0x800 => ((0xC0 | code >> 6) << 8 | low(0), 2),
        0x800..0x1_0000 => ((0xE0 | code >> 12) << 16 | low(6) << 8 | low(0), 3),
        _ => ((0xF0 | (code >> 18 & 7)) << 24 | low(12) << 16 | low(6) << 8 | low(0), 4),
    }
}

/// The bytes of a character of up to four bytes as a number.
fn pack(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0, |packed, &byte| packed << 8 | u32::from(byte))
}

fn unpack(packed: u32) -> Vec<u8> {
    let bytes = packed.to_be_bytes();
    let n_zeros = bytes.iter().take_while(|&&byte| byte == 0).count();
    bytes[n_zeros.min(3)..].to_vec()
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;
    use crate::naive::{self, Pair};
    use crate::vocab::Vocab;

    /// `SplitMix64`.
    struct Rng(u64);

    impl Rng {
        fn below(&mut self, n: usize) -> usize {
            self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            let z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
            ((z ^ z >> 31) % n as u64) as usize
        }

        /// Characters of one to four bytes, few enough to meet again.
        fn text(&mut self, n: usize) -> String {
            const CHARS: [char; 16] =
                ['a', ' ', 'é', 'ж', 'з', '一', '丁', '中', '乀', 'の', 'ー', '한', '한', '\u{200d}', '😀', '😁'];
            (0..n).map(|_| CHARS[self.below(CHARS.len())]).collect()
        }

        /// Merges of words that begin and end anywhere, so that tokens have parts of characters.
        fn merges(&mut self) -> Vec<Pair> {
            let words: Vec<_> = (0..2 + self.below(30))
                .map(|_| {
                    let n = 1 + self.below(4);
                    let word = self.text(n).into_bytes();
                    let from = self.below(word.len());
                    (word[from..][..=self.below(word.len() - from)].to_vec(), 1 + self.below(9) as u64)
                })
                .collect();
            naive::train(&words, 1 + self.below(80), 1)
        }
    }

    fn parts(vocab: &Vocab, piece: &[u8]) -> Vec<Part> {
        let mut parts = Vec::new();
        let Ok(()) = vocab.borders().for_each_part(piece, |part| {
            parts.push(part);
            Ok::<(), Infallible>(())
        });
        parts
    }

    #[test]
    fn the_parts_of_a_piece_merge_as_the_whole_does() {
        let mut rng = Rng(3);
        let mut n_parts = 0;
        for _ in 0..150 {
            let merges = rng.merges();
            let vocab = Vocab::from_merges(&merges).unwrap();
            let ranked: Vec<_> = merges.iter().zip(256..).map(|(&pair, id)| (pair, id)).collect();
            let encode = |bytes: &[u8]| naive::encode_piece(bytes, vocab.byte_ids(), &ranked);
            for _ in 0..60 {
                let n = 1 + rng.below(24);
                let piece = rng.text(n);
                let parts = parts(&vocab, piece.as_bytes());
                n_parts += parts.len();
                let ids: Vec<u32> = parts
                    .into_iter()
                    .flat_map(|part| match part {
                        Part::Char(ids, n) => ids.wide()[..n].to_vec(),
                        Part::Bytes(start, end) => encode(&piece.as_bytes()[start..end]),
                    })
                    .collect();
                assert_eq!(ids, encode(piece.as_bytes()), "{piece:?}, merges {merges:?}");
            }
        }
        assert!(n_parts > 40_000, "only {n_parts} parts: nothing fell apart");
    }

    #[test]
    fn a_border_inside_of_a_token_is_no_border() {
        // 中 is E4 B8 AD; the token B8 AD 'a' spans the border of "中a", E4 joins nothing.
        let vocab = Vocab::from_merges(&[(0xB8, 0xAD), (256, 0x61)]).unwrap();
        assert_eq!(parts(&vocab, "中a".as_bytes()), [Part::Bytes(0, 4)]);
        let char = |low: [u16; INLINE], n| Part::Char(Ids { low, high: [0; INLINE] }, n);
        assert_eq!(parts(&vocab, "中b".as_bytes()), [char([0xE4, 256, 0, 0], 2), char([0x62, 0, 0, 0], 1)]);
        assert_eq!(parts(&vocab, "ab".as_bytes()), [Part::Bytes(0, 2)], "ASCII is never cut");
        assert_eq!(parts(&vocab, "😀中".as_bytes()), [Part::Bytes(0, 4), char([0xE4, 256, 0, 0], 2)]);
    }
}
