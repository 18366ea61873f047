//! Where a piece falls apart: borders between characters that no token spans.
//!
//! A merge makes a token, and a token's bytes stand in the text. Where no token has two characters (or the ends of them
//! that it would cover) side by side, no merge ever crosses from one to the other, so both sides merge as if alone, and
//! a long run of characters costs as much as its parts. Most parts are one character, whose ids are in a table.

use std::ops::Range;

use crate::encode::{Id, Out, READY};
use crate::tokens::Tokens;

/// Code points with an entry of their own.
const N_CHARS: usize = 1 << 16;

/// The first entry of a space and a character of two bytes.
const SPACED: usize = N_CHARS;

/// The entry of what has no other: it may be in any token.
const UNKNOWN: usize = SPACED + 0x800;

const N_UNITS: usize = UNKNOWN + 1;

/// Room for the ids of a character with an entry, which is at most one for each of its three bytes, and one more. A space
/// and a character of two bytes never have more either.
pub(crate) const CHAR_IDS: usize = 4;

/// The bits of [`Char::meta`] that count ids.
const COUNT: u32 = 3;
/// Colors of borders where one of the characters is not whole in the token: such a border is marked at both characters
/// with its color. It is that of the one that is not whole, half of them for those at the left and half for those at the
/// right: most borders have few other characters beside it, so few pairs of characters without a border share a color.
const N_COLORS: u32 = 14;
/// The first flag of what may stand at the right of a character: a token has this character and one after it, whole,
/// or parts of them in one of the colors.
const RIGHT: u32 = 2;
/// The first flag of what may stand at its left, in the same order.
const LEFT: u32 = RIGHT + 1 + N_COLORS;
const RIGHTS: u32 = (1 << LEFT) - (1 << RIGHT);
const LEFTS: u32 = !((1 << LEFT) - 1);
const WHOLE_RIGHT: u32 = 1 << RIGHT;
const WHOLE_LEFT: u32 = 1 << LEFT;
/// Size of the hashed set of such borders; the largest vocabularies have some hundreds.
const PARTIAL_BITS: u32 = 16;

/// The ids of a character, their lower halves and what is above them; there is always room for one more. In registers
/// they travel as two numbers: an array would go through memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct CharIds {
    low: u64,
    high: u32,
}

impl CharIds {
    #[inline]
    pub(crate) fn narrow(self) -> [u16; CHAR_IDS] {
        std::array::from_fn(|i| (self.low >> (16 * i)) as u16)
    }

    #[inline]
    pub(crate) fn wide(self) -> [u32; CHAR_IDS] {
        std::array::from_fn(|i| u32::from((self.low >> (16 * i)) as u16) | (self.high >> (8 * i) & 0xFF) << 16)
    }

    fn of(ids: &[u32]) -> Self {
        ids.iter().enumerate().fold(Self::default(), |Self { low, high }, (i, &id)| Self {
            low: low | u64::from(id & 0xFFFF) << (16 * i),
            high: high | (id >> 16) << (8 * i),
        })
    }
}

/// What is known of a character.
#[derive(Debug, Clone, Copy, Default)]
#[repr(align(16))]
struct Char {
    /// [`CharIds`].
    low: u64,
    high: u32,
    /// How many ids, and flags.
    meta: u32,
}

impl Char {
    #[inline]
    fn ids(self) -> CharIds {
        CharIds { low: self.low, high: self.high }
    }

    #[inline]
    fn n_ids(self) -> usize {
        (self.meta & COUNT) as usize
    }

    /// Flags of what a token may have of this character and of `next` after it; none is certain.
    #[inline]
    fn shared(self, next: Self) -> u32 {
        (self.meta >> RIGHT) & (next.meta >> LEFT)
    }
}

/// What a vocabulary's tokens span, and the ids of single characters.
#[derive(Debug, Clone)]
pub(crate) struct Borders {
    /// By code; from [`SPACED`] on by the code of a character of two bytes that has a space before it, since most words of
    /// many scripts begin so, and most vocabularies have tokens of a space and half a character; then one of which nothing
    /// is known.
    units: Box<[Char; N_UNITS]>,
    /// Whole characters side by side in a token, as bits by hash; a bit set by another pair costs time only.
    pairs: Vec<u64>,
    shift: u32,
    /// Ends and starts of characters side by side in a token, at least one not whole, as bits by hash like `pairs`.
    partial: Vec<u64>,
}

impl Borders {
    /// Borders of `tokens`; `encode` gives the ids of a character of at most three bytes that stands alone, and how many, or
    /// none when these are not always the same.
    pub(crate) fn new(tokens: &Tokens, encode: impl Fn(&[u8]) -> ([u32; CHAR_IDS - 1], usize)) -> Self {
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
        let units = vec![Char::default(); N_UNITS].into_boxed_slice().try_into();
        let units = units.unwrap_or_else(|_| unreachable!("as many as were made"));
        let bits = [n_bits, 1 << PARTIAL_BITS].map(|n| vec![0; n / 64]);
        let [pairs, no_partial] = bits;
        let mut borders = Self { units, pairs, shift, partial: no_partial };
        borders.units[UNKNOWN].meta = !COUNT;
        (0..0x80).for_each(|ascii| borders.flag(ascii, WHOLE_RIGHT | WHOLE_LEFT));
        for (left, right) in whole {
            borders.flag(left, WHOLE_RIGHT);
            borders.flag(right, WHOLE_LEFT);
            let bit = borders.bit(left, right);
            borders.pairs[bit / 64] |= 1 << (bit % 64);
        }
        borders.color(&partial);
        let set = |entry: &mut Char, text: &str| {
            let (ids, n_ids) = encode(text.as_bytes());
            CharIds { low: entry.low, high: entry.high } = CharIds::of(&ids[..n_ids]);
            entry.meta |= n_ids as u32;
        };
        for char in '\0'..='\u{FFFF}' {
            set(&mut borders.units[char as usize], char.encode_utf8(&mut [0; 4]));
        }
        let space = borders.units[usize::from(b' ')].meta & LEFTS;
        for char in '\u{80}'..='\u{7FF}' {
            let entry = &mut borders.units[SPACED + char as usize];
            set(entry, &format!(" {char}"));
            entry.meta |= space;
        }
        for code in 0x80..0x800 {
            borders.units[SPACED + code].meta |= borders.units[code].meta & RIGHTS;
        }
        borders
    }

    /// The parts of pieces that stand in a row in `text`, the first of them here.
    pub(crate) fn parts<'a>(&'a self, text: &'a [u8], first: Range<usize>) -> Parts<'a> {
        let start = first.start;
        let (unit, len) = unit(text, start, Some(&first.end));
        Parts { borders: self, text, n_pieces: 0, first: start, start, at: start + len, unit, is_single: true }
    }

    /// Whether a token may span the border at `at`, between characters of which tokens have `shared`; `false` is certain.
    #[inline(never)]
    fn spans(&self, text: &[u8], at: usize, shared: u32) -> bool {
        let n_tail = text[..at].iter().rev().take_while(|&&byte| is_tail(byte)).count();
        let (left, right) = (char_at(text, at.saturating_sub(n_tail + 1)).0, char_at(text, at).0);
        left | right < 0x80 || self.span(left, right, shared)
    }

    /// The same of characters with these codes, which are not both ASCII.
    #[inline]
    fn span(&self, left: u32, right: u32, shared: u32) -> bool {
        let bit = self.bit(left, right);
        let is_whole = (self.pairs[bit / 64] >> (bit % 64)) as u32 & shared & 1;
        is_whole != 0 || (shared > 1 && self.has_partial(left, right))
    }

    fn bit(&self, left: u32, right: u32) -> usize {
        let key = u64::from(left) << 32 | u64::from(right);
        (key.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> self.shift) as usize
    }

    /// Looks at all ends of `left` and starts of `right` without branches.
    #[inline(never)]
    fn has_partial(&self, left: u32, right: u32) -> bool {
        let ((left, left_len), (right, right_len)) = (spell(left), spell(right));
        let mut bits = 0;
        for n_left in 1..=left_len {
            let end = left & (u32::MAX >> (32 - 8 * n_left));
            for n_right in 1..=right_len {
                let bit = partial_bit((end, right >> (8 * (right_len - n_right))));
                bits |= self.partial[bit / 64] >> (bit % 64);
            }
        }
        bits & 1 == 1
    }

    fn flag(&mut self, code: u32, flag: u32) {
        if let Some(char) = self.units[..N_CHARS].get_mut(code as usize) {
            char.meta |= flag;
        }
    }

    /// Marks every character that ends or starts as a partial border does.
    fn color(&mut self, partial: &[(u32, u32)]) {
        let mut ends = Vec::new();
        let mut starts = Vec::new();
        for &(end, start) in partial {
            let bit = partial_bit((end, start));
            self.partial[bit / 64] |= 1 << (bit % 64);
            let bytes = unpack(start);
            let (part, side) = if bytes.len() == char_len(bytes[0]) { (end, 0) } else { (start, 1) };
            let color = (part.wrapping_mul(0x9E37_79B1) >> 16) % (N_COLORS / 2) * 2 + side;
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
            (first..N_CHARS).step_by(step).for_each(|code| self.flag(code as u32, WHOLE_RIGHT << 1 << color));
        }
        for (start, color) in starts {
            let mut bytes = unpack(start);
            let n_low = 6 * (char_len(bytes[0]) - bytes.len());
            bytes.resize(char_len(bytes[0]), 0x80);
            let first = char_at(&bytes, 0).0;
            (first..first + (1 << n_low)).for_each(|code| self.flag(code, WHOLE_LEFT << 1 << color));
        }
    }
}

/// See [`Borders::parts`].
#[derive(Debug)]
pub(crate) struct Parts<'a> {
    borders: &'a Borders,
    text: &'a [u8],
    /// How many pieces are done.
    n_pieces: usize,
    /// Where the first piece starts, and the next part.
    first: usize,
    start: usize,
    /// The last character of this part so far, which ends at `at`, and whether it is the only one.
    unit: usize,
    at: usize,
    is_single: bool,
}

impl Parts<'_> {
    /// Gives out the ids of characters that are parts of the pieces that end at `ends`, and calls `part` with all other
    /// parts: where they are in the text, and whether they are a whole piece. Ends when `part` returns false, when there is
    /// no room, or, with true, behind the last piece.
    #[inline]
    pub(crate) fn chars<I: Id>(
        &mut self,
        ends: &[usize],
        out: &mut Out<I>,
        mut part: impl FnMut(Range<usize>, bool, &mut Out<I>) -> bool,
    ) -> bool {
        let (borders, text) = (self.borders, self.text);
        loop {
            let mut is_border = self.plain(ends, out);
            let Some(&end) = ends.get(self.n_pieces) else { return true };
            let is_end = self.at >= end;
            let (next, len) = unit(text, self.at, if is_end { ends.get(self.n_pieces + 1) } else { None });
            let char = borders.units[self.unit];
            let shared = char.shared(borders.units[next]);
            is_border = is_border || is_end || shared == 0 || !borders.spans(text, self.at, shared);
            let mut goes_on = true;
            if is_border {
                if self.is_single && out.is_full() {
                    return false;
                }
                if self.is_single && char.n_ids() > 0 {
                    out.add_char(char.ids(), char.n_ids());
                } else {
                    let from = self.n_pieces.checked_sub(1).map_or(self.first, |before| ends[before]);
                    goes_on = part(self.start..self.at, is_end && self.start == from, out);
                }
                self.n_pieces += usize::from(is_end);
                self.start = self.at;
            }
            self.is_single = is_border;
            (self.unit, self.at) = (next, self.at + len);
            if !goes_on {
                return self.n_pieces == ends.len();
            }
        }
    }

    /// Goes on for as long as characters have two or three bytes, their ids are known, and there is room: nearly all of the
    /// time in scripts that are written without spaces, and in others where a vocabulary is not made for them. Few numbers are
    /// under way, so that they stay in registers. Ends, with true, where a part of several characters does.
    #[inline(never)]
    fn plain<I: Id>(&mut self, ends: &[usize], out: &mut Out<I>) -> bool {
        let (borders, text, room) = (self.borders, self.text, &mut out.room[..READY + CHAR_IDS]);
        let (mut n_pieces, mut start, mut at, mut n) = (self.n_pieces, self.start, self.at, out.n);
        let (mut this, mut is_single) = (self.unit as u32, self.is_single);
        let (mut char, mut is_part) = (borders.units[self.unit], false);
        while let Some(&end) = ends.get(n_pieces)
            && let Some(&[a, b, c]) = text.get(at..).and_then(<[u8]>::first_chunk)
            && let Some(room) = room.get_mut(n..n + CHAR_IDS)
        {
            let (next, len) = match (a >> 4, a >> 5) {
                (0xE, _) => (wide_code(a, b, c), 3),
                (_, 6) => (middle_code(a, b), 2),
                _ => break,
            };
            let next_char = borders.units[next as usize];
            let is_end = at == end;
            let shared = if is_end { 0 } else { char.shared(next_char) };
            if shared != 0 {
                // Others than characters with an entry of their own are rare.
                if this >= SPACED as u32 {
                    break;
                }
                if borders.span(this, next, shared) {
                    is_single = false;
                    (this, char, at) = (next, next_char, at + len);
                    continue;
                }
            }
            if !is_single || char.n_ids() == 0 {
                is_part = !is_single;
                break;
            }
            room.copy_from_slice(&I::of_char(char.ids()));
            n += char.n_ids();
            n_pieces += usize::from(is_end);
            (start, this, char, at) = (at, next, next_char, at + len);
        }
        (self.n_pieces, self.start, self.at, self.unit, out.n) = (n_pieces, start, at, this as usize, n);
        self.is_single = is_single;
        is_part
    }
}

/// The entry and the length of the character at `at`. Where a piece starts, whose end is given, a space goes with the
/// character after it.
#[inline]
fn unit(text: &[u8], at: usize, end: Option<&usize>) -> (usize, usize) {
    match text.get(at..).and_then(<[u8]>::first_chunk) {
        Some(&[a, b, c]) if a >> 4 == 0xE => (wide_code(a, b, c) as usize, 3),
        Some(&[a, b, _]) if a >> 5 == 6 => (middle_code(a, b) as usize, 2),
        _ => rare_unit(text, at, end),
    }
}

#[inline(never)]
fn rare_unit(text: &[u8], at: usize, end: Option<&usize>) -> (usize, usize) {
    if let Some(&[b' ', a, b]) = text.get(at..).and_then(<[u8]>::first_chunk)
        && a >> 5 == 6
        && end.is_some_and(|&end| at + 3 <= end)
    {
        return (SPACED + middle_code(a, b) as usize, 3);
    }
    let (code, len) = char_at(text, at);
    (if (code as usize) < N_CHARS { code as usize } else { UNKNOWN }, len)
}

#[inline]
fn middle_code(a: u8, b: u8) -> u32 {
    u32::from(a & 0x1F) << 6 | u32::from(b & 0x3F)
}

#[inline]
fn wide_code(a: u8, b: u8, c: u8) -> u32 {
    u32::from(a & 0x0F) << 12 | u32::from(b & 0x3F) << 6 | u32::from(c & 0x3F)
}

/// The code and the length of the character at `at`; no character's code where the text ends inside of one.
#[inline]
fn char_at(text: &[u8], at: usize) -> (u32, usize) {
    let tail = |byte: u8| u32::from(byte & 0x3F);
    match text[at..] {
        [a, b, c, ..] if a >> 4 == 0xE => (wide_code(a, b, c), 3),
        [a, b, ..] if a >> 5 == 6 => (middle_code(a, b), 2),
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
    use super::*;
    use crate::encode::Ready;
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
            let chars: Vec<char> = "a éжз一丁中乀のー한\u{10436}\u{200d}😀😁".chars().collect();
            (0..n).map(|_| chars[self.below(chars.len())]).collect()
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

    /// Parts of pieces that end at `ends`: the ids of characters, or where others are and whether they are a piece.
    #[derive(Debug, Clone, PartialEq, Eq)]
    enum Part {
        Chars(Vec<u32>),
        Bytes(Range<usize>, bool),
    }

    fn parts(vocab: &Vocab, text: &[u8], ends: &[usize]) -> Vec<Part> {
        let mut parts = vocab.borders().parts(text, 0..ends[0]);
        let (mut all, mut ready) = (Vec::new(), Ready::default());
        loop {
            let mut found = None;
            // Ids of characters up to another part, sometimes with little room.
            let mut out = Out::<u32>::new(&mut ready);
            let first = if all.is_empty() { READY } else { 0 };
            out.n = first;
            let is_done = parts.chars(ends, &mut out, |bytes, is_piece, _| {
                found = Some(Part::Bytes(bytes, is_piece));
                false
            });
            match all.last_mut() {
                Some(Part::Chars(ids)) => ids.extend(&out.room[first..out.n]),
                _ if out.n == first => {}
                _ => all.push(Part::Chars(out.room[first..out.n].to_vec())),
            }
            all.extend(found);
            if is_done {
                return all;
            }
        }
    }

    #[test]
    fn the_parts_of_pieces_merge_as_the_whole_does() {
        let mut rng = Rng(3);
        let mut n_chars = 0;
        for _ in 0..150 {
            let merges = rng.merges();
            let vocab = Vocab::from_merges(&merges).unwrap();
            let ranked: Vec<_> = merges.iter().zip(256..).map(|(&pair, id)| (pair, id)).collect();
            let encode = |bytes: &[u8]| naive::encode_piece(bytes, vocab.byte_ids(), &ranked);
            for _ in 0..60 {
                let lengths: Vec<_> = (0..=rng.below(3)).map(|_| 1 + rng.below(16)).collect();
                let pieces: Vec<_> = lengths.into_iter().map(|n| rng.text(n)).collect();
                let ends: Vec<_> = (1..=pieces.len()).map(|n| pieces[..n].concat().len()).collect();
                let text = pieces.concat().into_bytes();
                let starts: Vec<_> = std::iter::once(0).chain(ends.iter().copied()).collect();
                let ids: Vec<u32> = parts(&vocab, &text, &ends)
                    .into_iter()
                    .flat_map(|part| match part {
                        Part::Chars(ids) => {
                            n_chars += ids.len();
                            ids
                        }
                        Part::Bytes(bytes, is_piece) => {
                            let is_own = starts.windows(2).any(|piece| bytes == (piece[0]..piece[1]));
                            assert_eq!(is_piece, is_own, "{pieces:?}, {bytes:?}");
                            encode(&text[bytes])
                        }
                    })
                    .collect();
                let expected: Vec<_> = pieces.iter().flat_map(|piece| encode(piece.as_bytes())).collect();
                assert_eq!(ids, expected, "{pieces:?}, merges {merges:?}");
            }
        }
        assert!(n_chars > 100_000, "only {n_chars} ids of characters: nothing fell apart");
    }

    #[test]
    fn few_bytes_merge_as_a_piece_does() {
        let mut rng = Rng(4);
        let mut n_merged = 0;
        for _ in 0..2000 {
            let merges = rng.merges();
            let vocab = Vocab::from_merges(&merges).unwrap();
            let ranked: Vec<_> = merges.iter().zip(256..).map(|(&pair, id)| (pair, id)).collect();
            let text = rng.text(8).into_bytes();
            for bytes in (1..=3).flat_map(|n| text.windows(n)) {
                let (ids, n) = vocab.merges_by_id().few(bytes);
                assert_eq!(ids[..n], naive::encode_piece(bytes, vocab.byte_ids(), &ranked), "{bytes:?}, {merges:?}");
                n_merged += bytes.len() - n;
            }
        }
        assert!(n_merged > 1000, "only {n_merged} merges");
    }

    #[test]
    fn a_border_inside_of_a_token_is_no_border() {
        // 中 is E4 B8 AD; the token B8 AD 'a' spans the border of "中a", E4 joins nothing.
        let vocab = Vocab::from_merges(&[(0xB8, 0xAD), (256, 0x61)]).unwrap();
        let of_text = |text: &str| parts(&vocab, text.as_bytes(), &[text.len()]);
        assert_eq!(of_text("中a"), [Part::Bytes(0..4, true)]);
        assert_eq!(of_text("中b"), [Part::Chars(vec![0xE4, 256, 0x62])]);
        assert_eq!(of_text("ab"), [Part::Bytes(0..2, true)], "ASCII is never cut");
        assert_eq!(of_text("😀中"), [Part::Bytes(0..4, false), Part::Chars(vec![0xE4, 256])]);
    }

    #[test]
    fn a_space_goes_with_a_character_of_its_own_piece() {
        // Space and D0: a token of a space and half of ж, D0 B6.
        let vocab = Vocab::from_merges(&[(0x20, 0xD0)]).unwrap();
        let of_text = |text: &str, ends: &[usize]| parts(&vocab, text.as_bytes(), ends);
        assert_eq!(of_text(" жж", &[5]), [Part::Chars(vec![256, 0xB6, 0xD0, 0xB6])]);
        assert_eq!(of_text(" жж", &[1, 5]), [Part::Chars(vec![0x20, 0xD0, 0xB6, 0xD0, 0xB6])]);
        assert_eq!(of_text("ж ж", &[5]), [Part::Chars(vec![0xD0, 0xB6]), Part::Bytes(2..5, false)]);
    }
}
