//! Whether bytes are valid UTF-8.
//!
//! A byte and the one before it tell every error but one: three half bytes name the rules that they may break, and the rule
//! that all three name is broken. What is left is that two or three bytes before there is the lead of a longer character where,
//! and only where, the byte is the second continuation in a row. The method is that of Keiser and Lemire, "Validating UTF-8
//! in less than one instruction per byte", 2021.

use crate::simd::prefetch;

/// A block with the three bytes before it.
pub(super) type Window = [u8; BEFORE + 64];

/// Bytes that a block is seen with.
pub(super) const BEFORE: usize = 3;

/// How far ahead bytes are asked for: this is where a text is first read, faster than most memory gives it unasked.
pub(super) const AHEAD: usize = 1 << 11;

/// Two continuations in a row, the only rule that a valid character may break: the third and fourth byte of a long one.
pub(super) const CONTINUES: u8 = 1 << 7;

/// Half bytes as a set of bits.
const ASCII: u16 = 0x00FF;
const CONT: u16 = 0x0F00;
const LEAD: u16 = 0xF000;
const ANY: u16 = 0xFFFF;

/// The upper and the lower half of a byte and the upper half of the next that break a rule, and its bit.
const RULES: [(u16, u16, u16, u8); 9] = [
    (LEAD, ANY, ASCII | LEAD, 1),
    (ASCII, ANY, CONT, 1 << 1),
    (CONT, ANY, CONT, CONTINUES),
    // What fewer bytes would do for: C0 and C1, E0 before 80 to 9F, F0 before 80 to 8F.
    (1 << 0xC, 0b11, CONT, 1 << 2),
    (1 << 0xE, 1, 0b11 << 8, 1 << 3),
    (1 << 0xF, 1, 1 << 8, 1 << 4),
    // Surrogates: ED before A0 to BF.
    (1 << 0xE, 1 << 0xD, 0b11 << 0xA, 1 << 5),
    // Above U+10FFFF: F4 before 90 to BF, and F5 to FF, whose last rule shares a bit with that of F0.
    (1 << 0xF, ANY << 4, 0b111 << 9, 1 << 6),
    (1 << 0xF, ANY << 5, 1 << 8, 1 << 4),
];

/// By half byte: the rules it may break as the upper half of a byte, as the lower, and as the upper of the next.
pub(super) const TABLES: [[u8; 16]; 3] = tables();

const fn tables() -> [[u8; 16]; 3] {
    let mut tables = [[0; 16]; 3];
    let mut rule = 0;
    while rule < RULES.len() {
        let (upper, lower, next, bit) = RULES[rule];
        let mut half = 0;
        while half < 16 {
            tables[0][half] |= if upper >> half & 1 == 1 { bit } else { 0 };
            tables[1][half] |= if lower >> half & 1 == 1 { bit } else { 0 };
            tables[2][half] |= if next >> half & 1 == 1 { bit } else { 0 };
            half += 1;
        }
        rule += 1;
    }
    tables
}

/// Whether `text` is valid UTF-8. `is_ascii` is asked of each block, and `is_wrong` of those that are not, and of the one
/// behind each of them: whether a byte of it does not go with those before.
#[inline(always)]
pub(super) fn is_valid(text: &[u8], is_ascii: impl Fn(&[u8; 64]) -> bool, is_wrong: impl Fn(&Window) -> bool) -> bool {
    let mut was_ascii = true;
    let mut is_bad = |window: &Window| {
        let is_skipped = window[BEFORE..].first_chunk().is_some_and(&is_ascii);
        let is_done = std::mem::replace(&mut was_ascii, is_skipped) && is_skipped;
        !is_done && is_wrong(window)
    };
    // The first block, and the last: at least one byte of ASCII ends a text that stops inside a character.
    let (mut edge, n_first) = ([0; BEFORE + 64], text.len().min(64));
    edge[BEFORE..][..n_first].copy_from_slice(&text[..n_first]);
    if is_bad(&edge) {
        return false;
    }
    let mut at = 64;
    while let Some(window) = text.get(at - BEFORE..).and_then(<[u8]>::first_chunk) {
        prefetch(text, at + AHEAD);
        if is_bad(window) {
            return false;
        }
        at += 64;
    }
    let rest = text.get(at - BEFORE..).unwrap_or_default();
    edge = [0; BEFORE + 64];
    edge[..rest.len()].copy_from_slice(rest);
    !is_bad(&edge)
}

#[cfg(test)]
mod tests {
    use super::super::is_utf8;
    use crate::simd::Level;

    /// Bytes at which something changes.
    const EDGES: [u8; 24] = [
        0, 0x41, 0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC0, 0xC1, 0xC2, 0xDF, 0xE0, 0xE1, 0xEC, 0xED, 0xEE, 0xEF,
        0xF0, 0xF3, 0xF4, 0xF5, 0xFF,
    ];

    fn check(level: Level, text: &[u8], n_valid: &mut usize) {
        let is_valid = std::str::from_utf8(text).is_ok();
        assert_eq!(is_utf8(level, text), is_valid, "{level}, {text:x?}");
        *n_valid += usize::from(is_valid);
    }

    #[test]
    fn a_text_is_valid_where_the_standard_library_says_so() {
        for level in Level::ALL.into_iter().filter(|level| level.is_available()) {
            let mut n_valid = 0;
            // All pairs of bytes, and four of those that matter, among ASCII and among characters of three bytes, over and
            // beside the border of a block and at the end.
            for among in ["a".repeat(192), "中".repeat(64)] {
                for pair in 0..=u16::MAX {
                    let mut text = among.clone().into_bytes();
                    text[63..65].copy_from_slice(&pair.to_be_bytes());
                    check(level, &text, &mut n_valid);
                    text.truncate(129);
                    text.extend(pair.to_be_bytes());
                    check(level, &text, &mut n_valid);
                }
                for i in 0..EDGES.len().pow(4) {
                    let four: [u8; 4] = std::array::from_fn(|at| EDGES[i / EDGES.len().pow(at as u32) % EDGES.len()]);
                    let mut text = among.clone().into_bytes();
                    let at = 60 + i % 7;
                    text[at..at + 4].copy_from_slice(&four);
                    check(level, &text, &mut n_valid);
                }
            }
            assert!(n_valid > 40_000, "{level}: only {n_valid} were valid");
        }
    }

    #[test]
    fn a_text_may_end_anywhere() {
        let text = "aé中😀".repeat(40).into_bytes();
        for level in Level::ALL.into_iter().filter(|level| level.is_available()) {
            let mut n_valid = 0;
            (96..text.len()).for_each(|n| check(level, &text[..n], &mut n_valid));
            assert!(n_valid > 100, "{level}: only {n_valid} were valid");
        }
    }
}
