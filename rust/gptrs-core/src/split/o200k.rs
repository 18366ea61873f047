//! The pattern of GPT-4o and gpt-oss (`o200k_base`): words end where lower case turns to upper case and keep their
//! contraction, and marks may be followed by slashes.

use super::Scheme;
use super::cl100k::{Spaces, contraction, ends_marks, numbers_end};
use super::class::{LOWER_CASE, ascii_letters_end};
use super::traits::{GAP, HEAD, MARK, NUMBER, PUNCT, TAIL, Traits, WORD, is_letter, run_end, traits_at};

/// As tiktoken 0.14 and Hugging Face spell it.
pub(super) const REGEX: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);

pub(super) struct O200k;

impl Scheme for O200k {
    #[inline]
    fn piece_end(text: &[u8], at: usize) -> usize {
        let byte = text[at];
        let (first, len) = traits_at(text, at);
        // A combining mark is in the class of leading characters too; with or without it before the word, the end is
        // the same.
        if first & WORD != 0 {
            return word_end(text, at, (first, len));
        }
        if first & NUMBER != 0 {
            return numbers_end::<3>(text, at + len);
        }
        let (second, n) = traits_at(text, at + len);
        if second & WORD != 0 && byte != b'\r' && byte != b'\n' {
            word_end(text, at + len, (second, n))
        } else if first & (PUNCT | GAP) != 0 {
            marks_end(text, at + len)
        } else if byte == b' ' && second & (PUNCT | GAP) != 0 {
            marks_end(text, at + 1 + n)
        } else {
            Spaces::at(text, at).piece_end(at, text.len())
        }
    }

    fn is_cut(left: Traits, right: Traits, right_byte: u8) -> bool {
        if is_letter(left) {
            right & WORD == 0 && right_byte != b'\''
        } else if left & NUMBER != 0 {
            right & NUMBER == 0
        } else {
            left & (MARK | PUNCT | GAP) != 0 && ends_marks(right, right_byte)
        }
    }
}

/// Heads, then tails, then perhaps a contraction; `first` is the character at `at`. Without a character that is only a tail, the pattern gives back heads
/// until one of them can be the tail, so the word ends after the last character without case (before `A` in `中A`);
/// upper case alone makes a word by the second alternative.
#[inline(always)]
fn word_end(text: &[u8], at: usize, first: (Traits, usize)) -> usize {
    let (mut end, mut caseless, mut next) = (at, at, first);
    let end = loop {
        let (traits, len) = next;
        if traits & HEAD != 0 {
            end += len;
            caseless = if traits & TAIL != 0 { end } else { caseless };
            next = traits_at(text, end);
        } else if traits & TAIL != 0 {
            break tails_end(text, end + len);
        } else {
            break if caseless > at { caseless } else { end };
        }
    };
    match text.get(end) {
        Some(b'\'') => match contraction(&text[end + 1..]) {
            0 => end,
            n => end + 1 + n,
        },
        _ => end,
    }
}

/// The end of the run of tails that continues at `at`.
#[inline(always)]
fn tails_end(text: &[u8], mut at: usize) -> usize {
    loop {
        at = ascii_letters_end::<LOWER_CASE>(text, at);
        match traits_at(text, at) {
            (traits, len) if traits & TAIL != 0 => at += len,
            _ => return at,
        }
    }
}

/// Marks (combining ones too), then line breaks and slashes.
#[inline]
fn marks_end(text: &[u8], at: usize) -> usize {
    let mut end = run_end(text, at, MARK | PUNCT | GAP);
    while let Some(b'\r' | b'\n' | b'/') = text.get(end) {
        end += 1;
    }
    end
}
