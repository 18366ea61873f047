//! What kind of character a code point is to a pattern's borders: tables of four bits a character.

use super::super::traits::{CJK, GAP, HEAD, MARK, NUMBER, SPACE, TAIL, WORD, is_letter, traits_of};

/// How a pattern tells characters apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::split) enum Rule {
    /// Letters, numbers, white space, others.
    Coarse,
    /// Letters by case, and combining marks.
    Case,
    /// Ideographs and kana apart; what has no class apart.
    Script,
}

/// Kinds are numbers of three bits; these are the same for every rule.
pub(super) const OTHER: u8 = 0;
/// Letters that no other kind of the rule takes.
pub(super) const LETTER: u8 = 1;
pub(super) const NUMBERS: u8 = 2;
pub(super) const SPACES: u8 = 3;
/// The first of four kinds that depend on the rule: [`Rule::Case`] has combining marks, upper case, lower case;
/// [`Rule::Script`] has gaps, then words, punctuation and gaps among ideographs and kana.
pub(super) const EXTRA: u8 = 4;

impl Rule {
    /// The kind of a code point.
    #[inline]
    pub(super) const fn kind(self, code: u32) -> u8 {
        let traits = traits_of(code);
        if traits & NUMBER != 0 {
            return NUMBERS;
        }
        if traits & SPACE != 0 {
            return SPACES;
        }
        match self {
            Self::Coarse => is_letter(traits) as u8,
            Self::Case if traits & MARK != 0 => EXTRA,
            Self::Case => match traits & WORD {
                HEAD => EXTRA + 1,
                TAIL => EXTRA + 2,
                0 => OTHER,
                _ => LETTER,
            },
            Self::Script => match (traits & CJK != 0, traits & WORD != 0, traits & GAP != 0) {
                (false, true, _) => LETTER,
                (false, _, true) => EXTRA,
                (false, ..) => OTHER,
                (true, true, _) => EXTRA + 1,
                (true, _, false) => EXTRA + 2,
                (true, _, true) => EXTRA + 3,
            },
        }
    }
}

/// What one rule says.
#[derive(Debug)]
pub(in crate::split) struct Kinds {
    rule: Rule,
    /// The first plane, four bits each.
    plane: [u64; 4096],
    /// The kind that most first bytes in `easy` have.
    pub(super) easy_kind: u8,
    /// By the low six bits of a first byte 0xC0..=0xFF: 1 when all characters that start with it are of `easy_kind`.
    pub(super) easy: [u8; 64],
    /// The same by the low four bits, one bit for each of the four upper halves; twice.
    pub(super) easy_by_low: [u8; 32],
    /// The characters of two bytes, eight code points a byte; one table for each bit of a kind.
    pub(super) two: [[u8; 256]; 3],
    /// The same for U+2000..=U+20FF and U+3000..=U+30FF: general punctuation, kana and their marks.
    pub(super) marks: [[u8; 64]; 3],
    /// The first plane, 64 code points a row: those that differ in a character's last byte alone. A number for each bit of
    /// a kind.
    pub(super) rows: [[u64; 3]; 1024],
}

pub(super) static COARSE: Kinds = Kinds::new(Rule::Coarse, LETTER);
pub(super) static CASE: Kinds = Kinds::new(Rule::Case, LETTER);
pub(super) static SCRIPT: Kinds = Kinds::new(Rule::Script, EXTRA + 1);

impl Kinds {
    #[allow(clippy::large_stack_arrays)] // runs in the compiler only
    const fn new(rule: Rule, easy_kind: u8) -> Self {
        let (mut plane, mut easy, mut easy_by_low) = ([0; 4096], [1; 64], [0; 32]);
        let (mut two, mut marks, mut rows) = ([[0; 256]; 3], [[0; 64]; 3], [[0; 3]; 1024]);
        let mut code = 0;
        while code < 0x1_0000 {
            let kind = rule.kind(code as u32);
            plane[code >> 4] |= (kind as u64) << (4 * (code & 15));
            let mut bit = 0;
            while bit < 3 {
                rows[code >> 6][bit] |= ((kind >> bit & 1) as u64) << (code & 63);
                let here = (kind >> bit & 1) << (code & 7);
                if code < 0x800 {
                    two[bit][code >> 3] |= here;
                } else if code & !0x10FF == 0x2000 {
                    marks[bit][code >> 7 & 32 | code >> 3 & 31] |= here;
                }
                bit += 1;
            }
            if kind != easy_kind {
                easy[if code < 0x800 { code >> 6 } else { 0x20 | code >> 12 }] = 0;
            }
            code += 1;
        }
        // No characters start with these, or ones of the first plane's end and beyond.
        (easy[0], easy[1]) = (0, 0);
        let mut lead = 0;
        while lead < 64 {
            easy[lead] = if lead < 0x30 { easy[lead] } else { 0 };
            easy_by_low[lead % 16] |= easy[lead] << (lead / 16);
            easy_by_low[16 + lead % 16] = easy_by_low[lead % 16];
            lead += 1;
        }
        Self { rule, plane, easy_kind, easy, easy_by_low, two, marks, rows }
    }

    /// The kind of the character of several bytes at the start of `text`.
    #[inline(always)]
    pub(super) fn wide(&self, text: &[u8]) -> u64 {
        let tail = |byte: u8| (byte & 0x3F) as usize;
        let code = match *text {
            [a, b, c, ..] if (0xE0..0xF0).contains(&a) => (a as usize & 0x0F) << 12 | tail(b) << 6 | tail(c),
            [a, b, ..] if a < 0xE0 => (a as usize & 0x1F) << 6 | tail(b),
            [a, b, c, d, ..] => {
                return self.beyond((a as u32 & 0x07) << 18 | (tail(b) << 12 | tail(c) << 6 | tail(d)) as u32);
            }
            _ => return 0,
        };
        self.plane[code >> 4 & 4095] >> (4 * (code & 15)) & 15
    }

    #[inline(never)]
    fn beyond(&self, code: u32) -> u64 {
        self.rule.kind(code).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn easy_first_bytes_are_those_of_one_kind() {
        for kinds in [&COARSE, &CASE, &SCRIPT] {
            for lead in 0xC2..0xF0u32 {
                let (first, n) =
                    if lead < 0xE0 { ((lead & 0x1F) << 6, 1 << 6) } else { ((lead & 0x0F) << 12, 1 << 12) };
                let mut codes = (first..first + n).filter(|&code| lead != 0xE0 || code >= 0x800);
                let expected = codes.all(|code| kinds.rule.kind(code) == kinds.easy_kind);
                assert_eq!(kinds.easy[lead as usize & 63] == 1, expected, "{lead:x} {:?}", kinds.rule);
            }
        }
        assert!(COARSE.easy[0xE5 & 63] == 1 && COARSE.easy[0xD0 & 63] == 1 && COARSE.easy[0xE3 & 63] == 0);
    }

    #[test]
    fn the_tables_hold_the_kind_of_every_character() {
        for kinds in [&COARSE, &CASE, &SCRIPT] {
            for c in '\u{80}'..=char::MAX {
                let kind = kinds.rule.kind(c.into());
                let mut bytes = [0; 4];
                assert_eq!(kinds.wide(c.encode_utf8(&mut bytes).as_bytes()), u64::from(kind), "{c:?}");
                let code = c as usize;
                let bits = |byte: [u8; 3]| byte.map(|byte| byte >> (code & 7) & 1);
                let expected = [kind & 1, kind >> 1 & 1, kind >> 2];
                if code < 0x1_0000 {
                    let row = kinds.rows[code >> 6].map(|row| (row >> (code & 63) & 1) as u8);
                    assert_eq!(row, expected, "{c:?}");
                }
                if code < 0x800 {
                    assert_eq!(bits(kinds.two.map(|table| table[code >> 3])), expected, "{c:?}");
                }
                if matches!(code, 0x2000..0x2100 | 0x3000..0x3100) {
                    assert_eq!(
                        bits(kinds.marks.map(|table| table[code >> 7 & 32 | code >> 3 & 31])),
                        expected,
                        "{c:?}"
                    );
                }
            }
        }
    }
}
