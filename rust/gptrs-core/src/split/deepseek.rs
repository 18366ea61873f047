//! DeepSeek V3's pattern: three cuts, one after the other, each inside the pieces of the one before.
//!
//! Numbers and runs of ideographs and kana are cut out first, so the last expression sees each stretch between them, and
//! each such run, as a text of its own: its look-ahead ends at a border. What it leaves out stays as a piece.

use super::Scheme;
use super::cl100k::{Spaces, numbers_end};
use super::class::{ANY_CASE, ascii_letters_end};
use super::traits::{CJK, END, GAP, NUMBER, PUNCT, SPACE, Traits, WORD, traits_at};

/// As Hugging Face's `Sequence` of three `Split`s spells it.
pub(super) const SEQUENCE: [&str; 3] = [
    r"\p{N}{1,3}",
    "[一-龥\u{3040}-ゟ゠-ヿ]+",
    r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##,
];
/// One expression with the same pieces and no gap, in any of the engines.
pub(super) const REGEX: &str = concat!(
    r"\p{N}{1,3}",
    r"|[一-龥\x{3040}-ヿ&&[^\p{L}\p{P}\p{S}]]?[一-龥\x{3040}-ヿ&&[\p{L}\p{M}]]+",
    r"|[一-龥\x{3040}-ヿ&&[\p{P}\p{S}]]+",
    r"|[一-龥\x{3040}-ヿ&&[^\p{L}\p{M}\p{P}\p{S}]]+(?![一-龥\x{3040}-ヿ&&[\p{L}\p{M}]])",
    r"|[!-/:-@\[-`{-~][A-Za-z]+",
    r"|[^\r\n\p{L}\p{N}\p{P}\p{S}一-龥\x{3040}-ヿ]?[\p{L}\p{M}&&[^一-龥\x{3040}-ヿ]]+",
    r"| ?[\p{P}\p{S}&&[^一-龥\x{3040}-ヿ]]+[\r\n]*",
    r"|\s*[\r\n]+|\s+(?![^\s\p{N}一-龥\x{3040}-ヿ])|\s+",
    r"|[^\s\p{L}\p{M}\p{N}\p{P}\p{S}一-龥\x{3040}-ヿ]+(?![\p{L}\p{M}&&[^一-龥\x{3040}-ヿ]])",
);

pub(super) struct DeepSeekV3;

impl Scheme for DeepSeekV3 {
    #[inline]
    fn piece_end(text: &[u8], at: usize) -> usize {
        let byte = text[at];
        let (first, len) = traits_at(text, at);
        let (side, next) = (first & CJK, at + len);
        if first & WORD != 0 {
            return words_end(text, next, side);
        }
        if first & NUMBER != 0 {
            return numbers_end::<3>(text, next);
        }
        if byte.is_ascii_punctuation() && text.get(next).is_some_and(u8::is_ascii_alphabetic) {
            return ascii_letters_end::<ANY_CASE>(text, next + 1);
        }
        if first & PUNCT != 0 {
            return puncts_end(text, next, side);
        }
        let (second, n) = inside(text, next, side);
        if second & WORD != 0 && byte != b'\r' && byte != b'\n' {
            words_end(text, next + n, side)
        } else if byte == b' ' && second & PUNCT != 0 {
            puncts_end(text, next + n, side)
        } else if first & SPACE != 0 {
            spaces_end(text, at)
        } else {
            gap_end(text, at, side)
        }
    }

    fn is_cut(left: Traits, right: Traits, right_byte: u8) -> bool {
        if (left ^ right) & CJK != 0 || (left ^ right) & NUMBER != 0 {
            true
        } else if left & WORD != 0 {
            right & WORD == 0
        } else if left & PUNCT != 0 {
            right & PUNCT == 0 && !right_byte.is_ascii_alphabetic() && !matches!(right_byte, b'\r' | b'\n')
        } else {
            left & GAP != 0 && right & (SPACE | PUNCT) != 0
        }
    }
}

/// The character at `at` when it is on the same side of the borders, else the end.
#[inline(always)]
fn inside(text: &[u8], at: usize, side: Traits) -> (Traits, usize) {
    match traits_at(text, at) {
        (traits, len) if traits & (CJK | NUMBER) == side => (traits, len),
        _ => (END, 0),
    }
}

/// The end of the run of characters with any of `wanted` that continues at `at`, no further than the next border.
#[inline(always)]
fn run_end(text: &[u8], mut at: usize, side: Traits, wanted: Traits) -> usize {
    loop {
        match inside(text, at, side) {
            (traits, len) if traits & wanted != 0 => at += len,
            _ => return at,
        }
    }
}

#[inline(always)]
fn words_end(text: &[u8], mut at: usize, side: Traits) -> usize {
    loop {
        if side == 0 {
            at = ascii_letters_end::<ANY_CASE>(text, at);
        }
        match inside(text, at, side) {
            (traits, len) if traits & WORD != 0 => at += len,
            _ => return at,
        }
    }
}

/// Punctuation and symbols, then line breaks.
#[inline]
fn puncts_end(text: &[u8], at: usize, side: Traits) -> usize {
    let mut end = run_end(text, at, side, PUNCT);
    while side == 0 && matches!(text.get(end), Some(b'\r' | b'\n')) {
        end += 1;
    }
    end
}

#[inline]
fn spaces_end(text: &[u8], at: usize) -> usize {
    let spaces = Spaces::at(text, at);
    let (next, _) = inside(text, spaces.end, 0);
    spaces.piece_end(at, if next == END { spaces.end } else { text.len() })
}

/// What no alternative takes, up to the next border, or to the character that leads a word.
fn gap_end(text: &[u8], at: usize, side: Traits) -> usize {
    let (mut last, mut end) = (at, at);
    loop {
        match inside(text, end, side) {
            (traits, len) if traits & GAP != 0 => (last, end) = (end, end + len),
            (traits, _) => return if traits & WORD != 0 { last } else { end },
        }
    }
}
