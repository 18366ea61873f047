//! The pattern of GPT-3.5 and GPT-4 (`cl100k_base`), with tiktoken's rule for white space at the end of the text.

use super::Scheme;
use super::class::{Class, LETTER, NUMBER, OTHER, SPACE, class_at, letters_end, run_end};

/// As tiktoken 0.14 spells it.
pub(super) const REGEX: &str = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s";
/// Oniguruma reads `{1,3}+` as a repeated `{1,3}` and `$` as the end of a line.
pub(super) const ONIG_REGEX: &str = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++\z|\s*[\r\n]|\s+(?!\S)|\s";

pub(super) struct Cl100k;

impl Scheme for Cl100k {
    #[inline(always)]
    fn piece_end(text: &[u8], at: usize) -> usize {
        let byte = text[at];
        let (first, len) = class_at(text, at);
        match first {
            LETTER => return letters_end(text, at + len),
            NUMBER => return numbers_end(text, at + len),
            _ => {}
        }
        if byte == b'\'' {
            let n = contraction(&text[at + 1..]);
            if n > 0 {
                return at + 1 + n;
            }
        }
        let (second, n) = class_at(text, at + len);
        if second == LETTER && byte != b'\r' && byte != b'\n' {
            letters_end(text, at + len + n)
        } else if first == OTHER {
            marks_end(text, at + len)
        } else if byte == b' ' && second == OTHER {
            marks_end(text, at + 1 + n)
        } else {
            spaces_end(text, at)
        }
    }

    fn is_cut(left: Class, right: Class, right_byte: u8) -> bool {
        match left {
            LETTER | NUMBER => left != right,
            OTHER => right == NUMBER || (right == SPACE && right_byte != b'\r' && right_byte != b'\n'),
            _ => false,
        }
    }
}

/// Length of the ending that follows an apostrophe, in either case; the long s folds to s.
pub(super) fn contraction(rest: &[u8]) -> usize {
    match rest {
        [b's' | b'd' | b'm' | b't' | b'S' | b'D' | b'M' | b'T', ..] => 1,
        [b'l' | b'L', b'l' | b'L', ..] | [b'v' | b'V' | b'r' | b'R', b'e' | b'E', ..] | [0xC5, 0xBF, ..] => 2,
        _ => 0,
    }
}

/// At most two more numbers.
fn numbers_end(text: &[u8], mut at: usize) -> usize {
    for _ in 0..2 {
        match class_at(text, at) {
            (NUMBER, len) => at += len,
            _ => break,
        }
    }
    at
}

/// Marks, then line breaks.
#[inline]
fn marks_end(text: &[u8], at: usize) -> usize {
    let mut end = run_end(text, at, OTHER);
    while let Some(b'\r' | b'\n') = text.get(end) {
        end += 1;
    }
    end
}

/// White space to the end of the text, else to its last line break, else all but its last character, else that one.
fn spaces_end(text: &[u8], at: usize) -> usize {
    let (mut last, mut end, mut line) = (at, at, at);
    while let (SPACE, len) = class_at(text, end) {
        (last, end) = (end, end + len);
        if matches!(text[last], b'\r' | b'\n') {
            line = end;
        }
    }
    if end == text.len() {
        end
    } else if line > at {
        line
    } else if last > at {
        last
    } else {
        end
    }
}
