//! The pattern of GPT-3.5 and GPT-4 (`cl100k_base`) and its relatives: Llama 3, Qwen 2, nanochat.
//!
//! They differ in how many digits make a piece and in white space at the end of the text, which tiktoken's `cl100k_base`
//! keeps together and the others end after its last line break.

use super::Scheme;
use super::class::{LETTER, NUMBER, OTHER, SPACE, class_at, letters_end, run_end};
use super::traits::{self, Traits};

/// As tiktoken 0.14 spells it.
pub(super) const REGEX: &str = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s";
/// Oniguruma reads `{1,3}+` as a repeated `{1,3}` and `$` as the end of a line.
pub(super) const ONIG_REGEX: &str = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++\z|\s*[\r\n]|\s+(?!\S)|\s";

/// Up to `DIGITS` numbers make a piece; `WHOLE_END`: white space at the end of the text is one piece.
pub(super) struct Cl100kLike<const DIGITS: usize, const WHOLE_END: bool>;

pub(super) type Cl100k = Cl100kLike<3, true>;
pub(super) type Llama3 = Cl100kLike<3, false>;
pub(super) type Qwen2 = Cl100kLike<1, false>;
pub(super) type Nanochat = Cl100kLike<2, false>;

impl<const DIGITS: usize, const WHOLE_END: bool> Scheme for Cl100kLike<DIGITS, WHOLE_END> {
    #[inline(always)]
    fn piece_end(text: &[u8], at: usize) -> usize {
        let byte = text[at];
        let (first, len) = class_at(text, at);
        match first {
            LETTER => return letters_end(text, at + len),
            NUMBER => return numbers_end::<DIGITS>(text, at + len),
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
            let spaces = Spaces::at(text, at);
            if WHOLE_END && spaces.end == text.len() { spaces.end } else { spaces.piece_end(at, text.len()) }
        }
    }

    fn is_cut(left: Traits, right: Traits, right_byte: u8) -> bool {
        if traits::is_letter(left) {
            !traits::is_letter(right)
        } else if left & traits::NUMBER != 0 {
            DIGITS == 1 || right & traits::NUMBER == 0
        } else {
            left & traits::SPACE == 0 && ends_marks(right, right_byte)
        }
    }
}

/// Whether a run of marks ends before a character with these traits and no piece joins the two.
pub(super) fn ends_marks(right: Traits, right_byte: u8) -> bool {
    right & traits::NUMBER != 0 || (right & traits::SPACE != 0 && right_byte != b'\r' && right_byte != b'\n')
}

/// Length of the ending that follows an apostrophe, in either case; the long s folds to s.
pub(super) fn contraction(rest: &[u8]) -> usize {
    match rest {
        [b's' | b'd' | b'm' | b't' | b'S' | b'D' | b'M' | b'T', ..] => 1,
        [b'l' | b'L', b'l' | b'L', ..] | [b'v' | b'V' | b'r' | b'R', b'e' | b'E', ..] | [0xC5, 0xBF, ..] => 2,
        _ => 0,
    }
}

/// One number has been read; at most `DIGITS` make a piece.
#[inline(always)]
pub(super) fn numbers_end<const DIGITS: usize>(text: &[u8], mut at: usize) -> usize {
    for _ in 1..DIGITS {
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

/// A run of white space.
pub(super) struct Spaces {
    /// Where its last character starts.
    last: usize,
    pub(super) end: usize,
    /// Where its last line break ends, or the start of the run when it has none.
    line: usize,
}

impl Spaces {
    #[inline(always)]
    pub(super) fn at(text: &[u8], at: usize) -> Self {
        let mut run = Self { last: at, end: at, line: at };
        while let (SPACE, len) = class_at(text, run.end) {
            (run.last, run.end) = (run.end, run.end + len);
            if matches!(text[run.last], b'\r' | b'\n') {
                run.line = run.end;
            }
        }
        run
    }

    /// The run to its last line break, else all of it when it ends at `text_end`, else all but its last character, else
    /// that one: `\s*[\r\n]+|\s+(?!\S)|\s+`.
    #[inline(always)]
    pub(super) fn piece_end(&self, at: usize, text_end: usize) -> usize {
        if self.line > at {
            self.line
        } else if self.end == text_end || self.last == at {
            self.end
        } else {
            self.last
        }
    }
}
