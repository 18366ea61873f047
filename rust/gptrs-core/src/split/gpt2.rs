//! GPT-2's pattern (also r50k and p50k).

use super::Scheme;
use super::class::{LETTER, NUMBER, OTHER, SPACE, class_at, letters_end, run_end};
use super::traits::{self, Traits};

/// As tiktoken 0.14 spells it.
pub(super) const REGEX: &str = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s";
/// As Hugging Face's `ByteLevel` spells it.
pub(super) const ONIG_REGEX: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
/// The first release's spelling, with the same pieces.
pub(super) const OLD_REGEX: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?[\p{L}]+| ?[\p{N}]+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

pub(super) struct Gpt2;

impl Scheme for Gpt2 {
    #[inline(always)]
    fn piece_end(text: &[u8], at: usize) -> usize {
        let (first, len) = class_at(text, at);
        if text[at] == b' ' {
            return match class_at(text, at + 1) {
                (LETTER, n) => letters_end(text, at + 1 + n),
                (class @ (NUMBER | OTHER), n) => run_end(text, at + 1 + n, class),
                _ => spaces_end(text, at),
            };
        }
        match first {
            LETTER => letters_end(text, at + len),
            SPACE => spaces_end(text, at),
            OTHER if text[at] == b'\'' => match contraction(&text[at + 1..]) {
                0 => run_end(text, at + 1, OTHER),
                n => at + 1 + n,
            },
            class => run_end(text, at + len, class),
        }
    }

    fn is_cut(left: Traits, right: Traits, _: u8) -> bool {
        if traits::is_letter(left) {
            !traits::is_letter(right)
        } else if left & traits::NUMBER != 0 {
            right & traits::NUMBER == 0
        } else {
            left & traits::SPACE == 0 && right & (traits::SPACE | traits::NUMBER) != 0
        }
    }
}

/// Length of the ending that follows an apostrophe; lower case only.
pub(super) fn contraction(rest: &[u8]) -> usize {
    match rest {
        [b's' | b'd' | b'm' | b't', ..] => 1,
        [b'l', b'l', ..] | [b'v' | b'r', b'e', ..] => 2,
        _ => 0,
    }
}

/// White space keeps its last character for the next piece, unless the text ends there or there is no other.
fn spaces_end(text: &[u8], at: usize) -> usize {
    let (mut last, mut end) = (at, at);
    while let (SPACE, len) = class_at(text, end) {
        (last, end) = (end, end + len);
    }
    if end == text.len() || last == at { end } else { last }
}
