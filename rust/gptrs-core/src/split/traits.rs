//! Character traits: what the patterns with finer classes than [`super::class`] ask about a character, one bit each, so
//! that any union of them is one test. Unicode 16.
//!
//! Every function takes bytes that are valid UTF-8 and positions that are character borders, but for the last two.

use super::class::decode;

include!(concat!(env!("OUT_DIR"), "/unicode_traits.rs"));

/// A character's traits; none at all ([`END`]) is no character.
pub(super) type Traits = u8;
/// The end of the text.
pub(super) const END: Traits = 0;
/// May stand in the first half of a word: upper or title case, or without case, or a combining mark.
pub(super) const HEAD: Traits = 1;
/// May stand in the second half of a word: lower case, or without case, or a combining mark.
pub(super) const TAIL: Traits = 2;
/// `\p{M}`; always with [`HEAD`] and [`TAIL`].
pub(super) const MARK: Traits = 4;
/// `\p{N}`
pub(super) const NUMBER: Traits = 8;
/// `\s`, that is `White_Space`
pub(super) const SPACE: Traits = 16;
/// `[\p{P}\p{S}]`
pub(super) const PUNCT: Traits = 32;
/// `[\u4E00-\u9FA5\u3040-\u30FF]`: ideographs and kana; comes on top of another trait.
pub(super) const CJK: Traits = 64;
/// Controls and code points without a character.
pub(super) const GAP: Traits = 128;
/// `[\p{L}\p{M}]`
pub(super) const WORD: Traits = HEAD | TAIL;

/// Whether a character with these traits is a letter, `\p{L}`.
pub(super) const fn is_letter(traits: Traits) -> bool {
    traits & WORD != 0 && traits & MARK == 0
}

/// The traits of a code point.
pub(super) const fn traits_of(code: u32) -> Traits {
    let block = TRAIT_BLOCK_OF[(code >> 8) as usize] as usize;
    TRAIT_BLOCKS[block << 8 | (code & 0xFF) as usize]
}

/// The traits and the length in bytes of the character at `at`; ([`END`], 0) at the end.
#[inline(always)]
pub(super) fn traits_at(text: &[u8], at: usize) -> (Traits, usize) {
    match text.get(at) {
        // The first block is that of the code points below 256.
        Some(&byte) if byte < 0x80 => (TRAIT_BLOCKS[usize::from(byte)], 1),
        Some(_) => wide_traits(&text[at..]),
        None => (END, 0),
    }
}

#[inline]
fn wide_traits(text: &[u8]) -> (Traits, usize) {
    decode(text).map_or((END, 0), |(code, len)| (traits_of(code), len))
}

/// The end of the run of characters with any of `wanted` that continues at `at`.
#[inline]
pub(super) fn run_end(text: &[u8], mut at: usize, wanted: Traits) -> usize {
    loop {
        match traits_at(text, at) {
            (traits, len) if traits & wanted != 0 => at += len,
            _ => return at,
        }
    }
}

/// The traits of the character that ends right before `at`, if the bytes there make one; no assumption on `text`.
pub(super) fn traits_before(text: &[u8], at: usize) -> Option<Traits> {
    let before = &text[..at];
    let longest = before.len().min(4);
    let start = (1..=longest).map(|n| at - n).find(|&start| text[start] & 0xC0 != 0x80)?;
    traits_of_only(&before[start..])
}

/// The traits of the character that starts at `at`, if the bytes there make one; no assumption on `text`.
pub(super) fn traits_after(text: &[u8], at: usize) -> Option<Traits> {
    let len = match *text.get(at)? {
        0..0x80 => 1,
        0xC0..0xE0 => 2,
        0xE0..0xF0 => 3,
        0xF0.. => 4,
        _ => return None,
    };
    traits_of_only(text.get(at..at + len)?)
}

fn traits_of_only(bytes: &[u8]) -> Option<Traits> {
    let mut chars = std::str::from_utf8(bytes).ok()?.chars();
    let traits = traits_of(u32::from(chars.next()?));
    chars.next().is_none().then_some(traits)
}

#[cfg(test)]
mod tests {
    use super::super::class;
    use super::*;

    #[test]
    fn a_character_has_the_traits_of_its_category() {
        let cases = [
            ('A', HEAD),
            ('ǅ', HEAD),
            ('a', TAIL),
            ('ſ', TAIL),
            ('ʰ', WORD),
            ('한', WORD),
            ('中', WORD | CJK),
            ('の', WORD | CJK),
            ('\u{301}', WORD | MARK),
            ('\u{3099}', WORD | MARK | CJK),
            ('²', NUMBER),
            ('\u{85}', SPACE),
            ('\'', PUNCT),
            ('€', PUNCT),
            ('・', PUNCT | CJK),
            ('\u{3040}', GAP | CJK),
            ('\0', GAP),
            ('\u{200d}', GAP),
        ];
        for (c, traits) in cases {
            assert_eq!(traits_of(c.into()), traits, "{c:?}");
            assert_eq!(traits_at(c.to_string().as_bytes(), 0), (traits, c.len_utf8()), "{c:?}");
        }
    }

    #[test]
    fn the_traits_refine_the_classes() {
        for c in '\0'..=char::MAX {
            let traits = traits_of(c.into());
            let class = match () {
                () if is_letter(traits) => class::LETTER,
                () if traits & NUMBER != 0 => class::NUMBER,
                () if traits & SPACE != 0 => class::SPACE,
                () => class::OTHER,
            };
            assert_eq!(class, class::class_of(c.into()), "{c:?}");
            let alternatives = [WORD, NUMBER, SPACE, PUNCT, GAP];
            assert_eq!(alternatives.iter().filter(|&kind| traits & kind != 0).count(), 1, "{c:?}");
            assert!(traits & MARK == 0 || traits & WORD == WORD, "{c:?}");
        }
    }
}
