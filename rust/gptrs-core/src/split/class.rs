//! Coarse character classes, and runs of them in UTF-8 text. Unicode 16, as the regex engine of the same release line.
//!
//! Every function takes bytes that are valid UTF-8 and positions that are character borders.

include!(concat!(env!("OUT_DIR"), "/unicode_classes.rs"));

/// A character's class; most patterns know no finer difference, but for a few ASCII characters.
pub(super) type Class = u8;
/// Neither letter, number nor white space.
pub(super) const OTHER: Class = 0;
/// `\p{L}`
pub(super) const LETTER: Class = 1;
/// `\p{N}`
pub(super) const NUMBER: Class = 2;
/// `\s`, that is `White_Space`
pub(super) const SPACE: Class = 3;
/// No character: the end of the text.
pub(super) const END: Class = 4;
/// In [`BYTE_CLASS`]: the byte is part of a longer character.
const WIDE: Class = 5;

static BYTE_CLASS: [Class; 256] = byte_classes();

const fn byte_classes() -> [Class; 256] {
    let mut classes = [WIDE; 256];
    let mut byte = 0;
    while byte < 128 {
        classes[byte] = match byte as u8 {
            b'a'..=b'z' | b'A'..=b'Z' => LETTER,
            b'0'..=b'9' => NUMBER,
            b'\t'..=b'\r' | b' ' => SPACE,
            _ => OTHER,
        };
        byte += 1;
    }
    classes
}

/// The class of a code point.
pub(super) fn class_of(code: u32) -> Class {
    let block = usize::from(CLASS_BLOCK_OF[(code >> 8) as usize]);
    CLASS_BLOCKS[block << 8 | (code & 0xFF) as usize]
}

/// The class and the length in bytes of the character at `at`; ([`END`], 0) at the end.
#[inline(always)]
pub(super) fn class_at(text: &[u8], at: usize) -> (Class, usize) {
    let Some(&byte) = text.get(at) else { return (END, 0) };
    match BYTE_CLASS[usize::from(byte)] {
        WIDE => wide_class(&text[at..]),
        class => (class, 1),
    }
}

/// The class and the length of the character of two to four bytes that `text` starts with.
#[inline]
fn wide_class(text: &[u8]) -> (Class, usize) {
    decode(text).map_or((END, 0), |(code, len)| (class_of(code), len))
}

/// The code point and the length of the character of two to four bytes that `text` starts with.
#[inline(always)]
pub(super) fn decode(text: &[u8]) -> Option<(u32, usize)> {
    let tail = |byte: u8| u32::from(byte & 0x3F);
    match *text {
        [a, b, ..] if a < 0xE0 => Some((u32::from(a & 0x1F) << 6 | tail(b), 2)),
        [a, b, c, ..] if a < 0xF0 => Some((u32::from(a & 0x0F) << 12 | tail(b) << 6 | tail(c), 3)),
        [a, b, c, d, ..] => Some((u32::from(a & 0x07) << 18 | tail(b) << 12 | tail(c) << 6 | tail(d), 4)),
        _ => None,
    }
}

/// The end of the run of letters that continues at `at`.
// Called from so many scanners that the inliner would leave it outside: a fifth more instructions on English.
#[inline(always)]
pub(super) fn letters_end(text: &[u8], mut at: usize) -> usize {
    loop {
        at = ascii_letters_end::<ANY_CASE>(text, at);
        loop {
            match text.get(at) {
                Some(&byte) if byte >= 0x80 => match wide_class(&text[at..]) {
                    (LETTER, len) => at += len,
                    _ => return at,
                },
                Some(&byte) if BYTE_CLASS[usize::from(byte)] == LETTER => break,
                _ => return at,
            }
        }
    }
}

/// As a parameter of [`ascii_letters_end`]: letters of both cases.
pub(super) const ANY_CASE: u8 = 0x20;
/// As a parameter of [`ascii_letters_end`]: lower case only.
pub(super) const LOWER_CASE: u8 = 0;

/// The end of the run of ASCII letters that continues at `at`: eight bytes a step, so a word costs no loop exit of its
/// own length for the branch predictor to miss.
#[inline(always)]
pub(super) fn ascii_letters_end<const CASE: u8>(text: &[u8], mut at: usize) -> usize {
    while let Some(bytes) = text.get(at..).and_then(|rest| rest.first_chunk::<8>()) {
        let n = leading_letters::<CASE>(u64::from_le_bytes(*bytes));
        at += n;
        if n < 8 {
            return at;
        }
    }
    while text.get(at).is_some_and(|byte| (byte | CASE).is_ascii_lowercase()) {
        at += 1;
    }
    at
}

/// How many of the eight bytes, lowest first, are ASCII letters before the first that is not.
#[inline(always)]
fn leading_letters<const CASE: u8>(word: u64) -> usize {
    const ONES: u64 = u64::MAX / 255;
    let lower = (word | (u64::from(CASE) * ONES)) & (0x7F * ONES);
    let from_a = lower + (0x80 - u64::from(b'a')) * ONES; // high bit: at least 'a'
    let past_z = lower + (0x7F - u64::from(b'z')) * ONES; // high bit: beyond 'z'
    let letters = from_a & !past_z & !word & (0x80 * ONES);
    ((letters ^ (0x80 * ONES)).trailing_zeros() / 8) as usize
}

/// The end of the run of characters of one class that continues at `at`.
#[inline]
pub(super) fn run_end(text: &[u8], mut at: usize, class: Class) -> usize {
    loop {
        match class_at(text, at) {
            (next, len) if next == class => at += len,
            _ => return at,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tables_are_unicode_16() {
        assert_eq!(class_of(0x1C89), LETTER, "U+1C89 became a letter in 16.0");
        assert_eq!(class_of(0x3_23B0), OTHER, "U+323B0 becomes a letter in 17.0");
        assert_eq!("²½٣".chars().map(|c| class_of(c.into())).collect::<Vec<_>>(), [NUMBER; 3]);
        assert_eq!("\u{85}\u{a0}\u{3000}".chars().map(|c| class_of(c.into())).collect::<Vec<_>>(), [SPACE; 3]);
        assert_eq!(class_of(0x1C), OTHER, "the ASCII separators are not white space");
    }

    #[test]
    fn eight_bytes_at_a_time_find_the_letters_that_one_at_a_time_finds() {
        for byte in 0..=255u8 {
            for place in 0..8 {
                let mut bytes = *b"azAZmMqQ";
                bytes[place] = byte;
                let expected = bytes.iter().take_while(|b| b.is_ascii_alphabetic()).count();
                assert_eq!(leading_letters::<ANY_CASE>(u64::from_le_bytes(bytes)), expected, "{bytes:?}");
                let mut bytes = *b"azqzmmaq";
                bytes[place] = byte;
                let expected = bytes.iter().take_while(|b| b.is_ascii_lowercase()).count();
                assert_eq!(leading_letters::<LOWER_CASE>(u64::from_le_bytes(bytes)), expected, "{bytes:?}");
            }
        }
    }
}
