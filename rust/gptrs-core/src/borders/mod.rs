//! Where a piece falls apart: borders between characters that no token spans.
//!
//! A merge makes a token, and a token's bytes stand in the text. Where no token has two characters (or the ends of them
//! that it would cover) side by side, no merge ever crosses from one to the other, so both sides merge as if alone, and
//! a long run of characters costs as much as its parts. Most parts are one character, whose ids are in a table.
//!
//! Tokens of parts of characters seldom have their turn: a merge of a low rank has joined the bytes of most characters before.
//! Such a character is solid. It always becomes one token first, whatever stands beside it, so that the merges of solid
//! characters begin with their tokens instead of their bytes.
//!
//! Why: let a character's own merges make one token of it, the last to come of them of rank r, and let every token that has
//! a part of it and something beside it have a higher rank. Until a merge crosses an end of the character, its bytes merge as
//! if alone. The first that does so before they are one token would join a part of it to something beside it, at a rank above
//! r, while a merge inside of at most r is still to be had; but the lowest rank merges first.

use std::hint::select_unpredictable;

mod build;
mod chars;
mod duos;
mod parts;
mod rows;
mod solid;

use self::chars::{char_at, is_tail, spell};
use self::duos::{Duo, Duos};
pub(crate) use self::parts::Parts;
pub(crate) use self::rows::Row;
use crate::vocab::Vocab;

/// Code points with an entry of their own.
const N_CHARS: usize = 1 << 16;

/// The first entry of a space and a character of two bytes.
const SPACED: usize = N_CHARS;

/// The first of these once more, where no characters have codes: entries by numbers of 16 bits.
const IN_ROW: u16 = 0xD800;

/// The entry of what has no other: it may be in any token.
const UNKNOWN: usize = SPACED + 0x800;

const N_UNITS: usize = UNKNOWN + 1;

/// Room for the ids of a character with an entry, which is at most one for each of its three bytes, and one more. A space
/// and a character of two bytes never have more either.
pub(crate) const CHAR_IDS: usize = 4;

/// The bits of [`Char::meta`] that count ids.
const COUNT: u32 = 3;
/// The flag of a character that becomes one token whatever stands behind it, and before it, but for some characters.
const FIRM: u32 = 1 << 2;
/// The flag of a firm one that does so whatever stands before it, but for a space. Of a space and a character: that they
/// become one token whatever stands behind.
const SOLID: u32 = 1 << 3;
/// The flag of a solid one that does so behind a space, too. Of a space and a character: that the character does.
const AFTER_SPACE: u32 = 1 << 4;
/// The flag of a character that may take a part of a firm one behind it.
const BREAKS: u32 = 1 << 5;
/// Colors of borders where one of the characters is not whole in the token: such a border is marked at both characters
/// with its color. It is that of the one that is not whole, half of them for those at the left and half for those at the
/// right: most borders have few other characters beside it, so few pairs of characters without a border share a color.
const N_COLORS: u32 = 12;
/// The first flag of what may stand at the right of a character: a token has this character and one after it, whole,
/// or parts of them in one of the colors. Tokens that have a part of a solid character do not count: no text makes them
/// there.
const RIGHT: u32 = 6;
/// The first flag of what may stand at its left, in the same order.
const LEFT: u32 = RIGHT + 1 + N_COLORS;
const RIGHTS: u32 = (1 << LEFT) - (1 << RIGHT);
const LEFTS: u32 = !((1 << LEFT) - 1);
const WHOLE_RIGHT: u32 = 1 << RIGHT;
const WHOLE_LEFT: u32 = 1 << LEFT;
/// Size of the hashed set of such borders; the largest vocabularies have some hundreds.
const PARTIAL_BITS: u32 = 16;

/// The ids of a character, each in half a word where all of the vocabulary fit, else in a word; behind them there may be
/// anything, and there is always room for one more.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CharIds([u32; CHAR_IDS]);

impl CharIds {
    #[inline]
    pub(crate) fn narrow(self) -> [u16; CHAR_IDS] {
        let low = u64::from(self.0[1]) << 32 | u64::from(self.0[0]);
        std::array::from_fn(|i| (low >> (16 * i)) as u16)
    }

    #[inline]
    pub(crate) fn wide(self, is_narrow: bool) -> [u32; CHAR_IDS] {
        if is_narrow { self.narrow().map(u32::from) } else { self.0 }
    }
}

/// What is known of a character.
#[derive(Debug, Clone, Copy, Default)]
#[repr(align(16))]
struct Char {
    /// [`CharIds`], but for the last.
    ids: [u32; CHAR_IDS - 1],
    /// How many ids, and flags.
    meta: u32,
}

impl Char {
    #[inline]
    fn ids(self) -> CharIds {
        let [a, b, c] = self.ids;
        CharIds([a, b, c, self.meta])
    }

    /// Its id, where it has one.
    #[inline]
    fn first_id(self, is_narrow: bool) -> u32 {
        self.ids[0] & if is_narrow { 0xFFFF } else { u32::MAX }
    }

    #[inline]
    fn n_ids(self) -> usize {
        (self.meta & COUNT) as usize
    }

    /// Flags of what a token may have of this character and of `next` after it; none is certain.
    #[inline]
    fn shared(self, next: Self) -> u32 {
        shared(self.meta, next.meta)
    }
}

#[inline]
fn shared(meta: u32, next: u32) -> u32 {
    (meta >> RIGHT) & (next >> LEFT)
}

/// The lowest bit: whether a token may have both characters whole. No code is above 2²¹, and most are below 2¹⁶.
#[inline]
fn is_whole(pairs: &[u32], shift: u32, left: u32, right: u32) -> u32 {
    let bit = pair_bit(left, right, shift);
    pairs[(bit / 32) as usize & (pairs.len() - 1)] >> (bit % 32) & 1
}

/// What spreads pairs of characters.
const PAIR_FACTOR: u32 = 0x9E37_79B1;

/// A place in the hashed set of 2^(32 - shift) pairs.
#[inline]
fn pair_bit(left: u32, right: u32, shift: u32) -> u32 {
    (left << 16 ^ left >> 16 ^ right).wrapping_mul(PAIR_FACTOR) >> shift
}

/// What a vocabulary's tokens span, and the ids of single characters.
#[derive(Debug, Clone)]
pub(crate) struct Borders {
    /// By code; from [`SPACED`] on by the code of a character of two bytes that has a space before it, since most words of
    /// many scripts begin so, and most vocabularies have tokens of a space and half a character; then one of which nothing
    /// is known.
    units: Box<[Char; N_UNITS]>,
    /// Whole characters side by side in a token, as bits by hash; a bit set by another pair costs time only.
    pairs: Vec<u32>,
    shift: u32,
    /// Ends and starts of characters side by side in a token, at least one not whole, as bits by hash.
    partial: Vec<u64>,
    /// Whether many characters stand whole side by side in tokens, so that a part is often two.
    has_many_pairs: bool,
    /// What such characters make where each is a token, by hash.
    duos: Duos,
}

impl Borders {
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
        is_whole(&self.pairs, self.shift, left, right) & shared != 0 || (shared > 1 && self.has_partial(left, right))
    }

    /// What two characters merge into that are a token each and merge with nothing else: one id, in front of anything, or
    /// both of theirs.
    #[inline]
    fn two(&self, vocab: &Vocab, left: u32, right: u32) -> ([u32; 2], usize) {
        let ids = [left, right].map(|code| self.units[code as usize].first_id(vocab.is_narrow()));
        match self.duos.find(left, right) {
            Duo { is_sure: false, .. } => vocab.merges_by_id().two(ids[0], ids[1]),
            Duo { is_there, id, .. } => {
                ([select_unpredictable(is_there, id, ids[0]), ids[1]], 2 - usize::from(is_there))
            }
        }
    }

    /// Looks at all ends of `left` and starts of `right` without branches.
    #[inline(never)]
    fn has_partial(&self, left: u32, right: u32) -> bool {
        let (left, right) = (spell(left), spell(right));
        // Of a shorter one the whole is looked at more than once.
        match left.1.max(right.1) {
            2 => self.has_any_partial::<2>(left.0, right.0),
            3 => self.has_any_partial::<3>(left.0, right.0),
            _ => self.has_any_partial::<4>(left.0, right.0),
        }
    }

    /// The same of characters of so many bytes, or fewer.
    #[inline]
    fn has_any_partial<const N: usize>(&self, left: u32, right: u32) -> bool {
        let n_right = (u32::BITS - right.leading_zeros()).div_ceil(8) as usize;
        // A key is spread by a factor, so by the sum of what its halves become.
        let ends: [u64; N] = std::array::from_fn(|n| partial_key(left & (u32::MAX >> (24 - 8 * n)), 0));
        let starts: [u64; N] = std::array::from_fn(|n| partial_key(0, right >> (8 * n_right.saturating_sub(n + 1))));
        let mut bits = 0;
        for end in ends {
            for start in starts {
                let bit = partial_bit(end.wrapping_add(start));
                bits |= self.partial[bit / 64] >> (bit % 64);
            }
        }
        bits & 1 == 1
    }
}

/// The end of one character and the start of another, spread over a word.
#[inline]
fn partial_key(end: u32, start: u32) -> u64 {
    (u64::from(end) << 32 | u64::from(start)).wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

/// A place in the hashed set of partial borders.
#[inline]
fn partial_bit(key: u64) -> usize {
    (key >> (64 - PARTIAL_BITS)) as usize
}

#[cfg(test)]
mod tests {
    use std::ops::Range;

    use super::{Parts, Row};
    use crate::control::Control;
    use crate::encode::{Out, READY, Ready};
    use crate::merge::{Few, Room, SHORT, Scratch, Start};
    use crate::naive::{self, Pair};
    use crate::simd::Level;
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
            self.text_of("a  éжз一丁中乀のー한\u{10436}\u{200d}😀😁", n)
        }

        /// The same of those that a row may have, and few others.
        fn row(&mut self, n: usize) -> String {
            self.text_of(&("é1a".to_owned() + &"жз一丁中乀のー한一丁中の".repeat(6) + " 😀"), n)
        }

        /// A word of letters of two bytes, most often behind a space.
        fn word(&mut self, n: usize) -> String {
            let word = self.text_of(&("éa一".to_owned() + &"жзий".repeat(4)), n);
            if self.below(4) > 0 { format!(" {word}") } else { word }
        }

        fn text_of(&mut self, chars: &str, n: usize) -> String {
            let chars: Vec<char> = chars.chars().collect();
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

    fn parts(vocab: &Vocab, level: Level, text: &[u8], ends: &[usize]) -> Vec<Part> {
        let mut row = Row::default();
        let mut parts = Parts::new(vocab, level, text, 0..ends[0], &mut row);
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

    /// The ids of a part or a piece that merges from what its bytes become first, and how many of these there are.
    fn encode_from_starts(vocab: &Vocab, piece: &[u8]) -> (Vec<u32>, usize) {
        let (mut tokens, mut ids, mut places) = (Vec::new(), Vec::new(), vec![0..0, 0..0]);
        vocab.borders().starts(vocab.merges_by_id(), piece, vocab.is_narrow(), &mut tokens);
        let n_tokens = tokens.len();
        let mut starts = [Start { bytes: piece, tokens: 0..n_tokens }, Start { bytes: piece, tokens: 0..0 }];
        vocab.merges_by_id().encode_many(
            Level::detected(),
            &mut starts,
            &mut tokens,
            &mut Room::default(),
            &mut ids,
            &mut places,
        );
        assert_eq!(ids[places[0].clone()], ids[places[1].clone()], "{piece:?}");
        (ids[places[1].clone()].to_vec(), n_tokens)
    }

    #[test]
    fn the_parts_of_pieces_merge_as_the_whole_does() {
        let mut rng = Rng(3);
        let (mut n_chars, mut n_with_pairs, mut n_joined) = (0, 0, 0);
        for i in 0..300 {
            let merges = rng.merges();
            let vocab = Vocab::from_merges(&merges).unwrap();
            let mut ranked: Vec<_> = merges.iter().zip(256..).map(|(&pair, id)| (pair, id)).collect();
            let vocab = if i % 3 == 0 {
                // Merges before those that make their parts, as files of others may have them.
                (0..ranked.len()).rev().for_each(|i| ranked.swap(i, rng.below(i + 1)));
                let tokens: Vec<_> = (0..vocab.len() as u32).map(|id| vocab.token(id).unwrap()).collect();
                Vocab::from_tokens(&tokens, ranked.iter().map(|&(pair, _)| pair).collect(), false).unwrap()
            } else {
                vocab
            };
            n_with_pairs += usize::from(vocab.borders().has_many_pairs);
            let encode = |bytes: &[u8]| {
                let mut ids = Vec::new();
                vocab.merge_piece(bytes, &mut Scratch::default(), &Control::new(), &mut ids).unwrap();
                let is_equal = i % 3 == 0 || ids == naive::encode_piece(bytes, vocab.byte_ids(), &ranked);
                assert!(is_equal, "{bytes:?}, merges {ranked:?}");
                ids
            };
            for _ in 0..60 {
                let n_pieces = 1 + rng.below(6);
                let pieces: Vec<_> = (0..n_pieces)
                    .map(|_| {
                        let (kind, n) = (rng.below(4), rng.below(if n_pieces == 1 { 200 } else { 40 }));
                        match kind {
                            0 => rng.text(1 + n % 16),
                            1 => rng.word(1 + n % 24),
                            _ => rng.row(1 + n),
                        }
                    })
                    .collect();
                let ends: Vec<_> = (1..=pieces.len()).map(|n| pieces[..n].concat().len()).collect();
                // There may be more behind the last.
                let text = (pieces.concat() + &[String::new(), rng.row(40), rng.word(40)][i % 3]).into_bytes();
                let starts: Vec<_> = std::iter::once(0).chain(ends.iter().copied()).collect();
                let mut encode_parts = |level| -> Vec<u32> {
                    let ids_of = |part| match part {
                        Part::Chars(ids) => {
                            n_chars += ids.len();
                            ids
                        }
                        Part::Bytes(bytes, is_piece) => {
                            let is_own = starts.windows(2).any(|piece| bytes == (piece[0]..piece[1]));
                            assert_eq!(is_piece, is_own, "{level}, {pieces:?}, {bytes:?}");
                            encode(&text[bytes])
                        }
                    };
                    parts(&vocab, level, &text, &ends).into_iter().flat_map(ids_of).collect()
                };
                let all = Level::ALL.into_iter().filter(|level| level.is_available());
                let ids: Vec<_> = all.map(|level| (level, encode_parts(level))).collect();
                let expected: Vec<_> = pieces.iter().flat_map(|piece| encode(piece.as_bytes())).collect();
                for (level, ids) in ids {
                    assert_eq!(ids, expected, "{level}, {pieces:?}, merges {merges:?}");
                }
                for piece in pieces.into_iter().filter(|piece| piece.len() <= SHORT) {
                    let (ids, n_starts) = encode_from_starts(&vocab, piece.as_bytes());
                    assert_eq!(ids, encode(piece.as_bytes()), "{piece:?}, merges {ranked:?}");
                    n_joined += piece.len() - n_starts;
                }
            }
        }
        assert!(n_chars > 200_000, "only {n_chars} ids of characters: nothing fell apart");
        assert!(n_joined > 10_000, "only {n_joined} bytes joined before merging began");
        assert!((50..250).contains(&n_with_pairs), "{n_with_pairs} of 300 vocabularies have pairs of characters");
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
                let Few { ids, n, .. } = vocab.merges_by_id().few(bytes);
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
        let of_text = |text: &str| parts(&vocab, Level::detected(), text.as_bytes(), &[text.len()]);
        assert_eq!(of_text("中a"), [Part::Bytes(0..4, true)]);
        assert_eq!(of_text("中b"), [Part::Chars(vec![0xE4, 256, 0x62])]);
        assert_eq!(of_text("ab"), [Part::Bytes(0..2, true)], "ASCII is never cut");
        assert_eq!(of_text("😀中"), [Part::Bytes(0..4, false), Part::Chars(vec![0xE4, 256])]);
    }

    #[test]
    fn a_space_goes_with_a_character_of_its_own_piece() {
        // Space and D0: a token of a space and half of ж, D0 B6.
        let vocab = Vocab::from_merges(&[(0x20, 0xD0)]).unwrap();
        let of_text = |text: &str, ends: &[usize]| parts(&vocab, Level::detected(), text.as_bytes(), ends);
        assert_eq!(of_text(" жж", &[5]), [Part::Chars(vec![256, 0xB6, 0xD0, 0xB6])]);
        assert_eq!(of_text(" жж", &[1, 5]), [Part::Chars(vec![0x20, 0xD0, 0xB6, 0xD0, 0xB6])]);
        assert_eq!(of_text("ж ж", &[5]), [Part::Chars(vec![0xD0, 0xB6]), Part::Bytes(2..5, false)]);
        // Far behind others, too: a space that is a piece, and one that starts a piece.
        for n in 10..60 {
            let text = "一".repeat(n) + &"ж".repeat(n % 3) + " ж" + &"z".repeat(40);
            let before = text.find(' ').unwrap();
            let end = before + 3;
            for (first, ends) in
                [([0x20, 0xD0], &[before, before + 1, end, text.len()][..]), ([256, 0xB6], &[before, end, text.len()])]
            {
                let ids: Vec<_> = of_text(&text, ends)
                    .into_iter()
                    .flat_map(|part| match part {
                        Part::Chars(ids) => ids,
                        Part::Bytes(bytes, _) => text[bytes].bytes().map(u32::from).collect(),
                    })
                    .collect();
                assert_eq!(ids[before..before + 2], first, "{n}: {ids:?}");
            }
        }
    }

    #[test]
    fn a_piece_merges_from_what_its_bytes_become_first() {
        // ж is D0 B6, г D0 B3, 中 E4 B8 AD.
        let cases: [(&[Pair], &str, &[u32]); 6] = [
            (&[(0xD0, 0xB6), (256, 256), (0x20, 256)], " жж", &[0x20, 257]),
            (&[(0x20, 0xD0), (0xB6, 0xD0), (256, 0xB6)], " жж", &[256, 257, 0xB6]),
            (&[(0x20, 0xD0), (256, 0xB6), (0xD0, 0xB6)], " жж", &[257, 258]),
            (&[(0x20, 0xD0), (0xD0, 0xB6), (0xB6, 0xD0)], " жг", &[256, 258, 0xB3]),
            (&[(0x20, 0xD0), (0xD0, 0xB6), (0xB6, 0xD0)], "ж жг", &[257, 256, 258, 0xB3]),
            (&[(0xD0, 0xB6), (256, 0xD0), (0xD0, 0xB3), (257, 0xB3)], "жгг", &[259, 258]),
        ];
        for (merges, text, expected) in cases {
            let vocab = Vocab::from_merges(merges).unwrap();
            assert_eq!(encode_from_starts(&vocab, text.as_bytes()).0, expected, "{text:?}, {merges:?}");
            let parts =
                parts(&vocab, Level::detected(), text.as_bytes(), &[text.len()]).into_iter().flat_map(
                    |part| match part {
                        Part::Chars(ids) => ids,
                        Part::Bytes(bytes, _) => encode_from_starts(&vocab, &text.as_bytes()[bytes]).0,
                    },
                );
            assert_eq!(parts.collect::<Vec<_>>(), expected, "{text:?}, {merges:?}");
        }
        // Two merges make 中; the one that a text takes has its turn after those of 中a and ab.
        let others: [&[u8]; 5] = [b"\xE4\xB8", b"\xB8\xAD", "中".as_bytes(), "中a".as_bytes(), b"ab"];
        let tokens: Vec<_> = (0..=255).map(|byte| vec![byte]).chain(others.map(<[u8]>::to_vec)).collect();
        let merges = vec![(0xE4, 0xB8), (0xB8, 0xAD), (0xE4, 257), (258, 0x61), (0x61, 0x62), (256, 0xAD)];
        let vocab = Vocab::from_tokens(&tokens, merges, false).unwrap();
        assert_eq!(encode_from_starts(&vocab, "中ab".as_bytes()).0, [258, 260]);
        // Half of 丁, E4 B8 81, is made after 丁 from it, and after what 丁 merges with.
        let others: [&[u8]; 4] = [b"\xB8\x80", b"\xB8\x81", "丁".as_bytes(), b"\x80\xE4\xB8\x81"];
        let tokens: Vec<_> = (0..=255).map(|byte| vec![byte]).chain(others.map(<[u8]>::to_vec)).collect();
        let vocab = Vocab::from_tokens(&tokens, vec![(0xE4, 257), (0x80, 258), (0xB8, 0x80), (0xB8, 0x81)], false);
        assert_eq!(encode_from_starts(&vocab.unwrap(), "一丁".as_bytes()).0, [0xE4, 256, 258]);
    }

    #[test]
    fn a_token_that_no_merge_makes_may_be_a_whole_piece() {
        for text in ["中国", "жж", "😀\u{200d}", "aж"] {
            let tokens: Vec<_> = (0..=255).map(|byte| vec![byte]).chain([text.as_bytes().to_vec()]).collect();
            let vocab = Vocab::from_tokens(&tokens, vec![], true).unwrap();
            assert_eq!(
                parts(&vocab, Level::detected(), text.as_bytes(), &[text.len()]),
                [Part::Bytes(0..text.len(), true)]
            );
        }
    }
}
