//! Unicode normalization before splitting, as Hugging Face's `NFC`, `NFD`, `NFKC` and `NFKD`.
//!
//! Hugging Face normalizes by the tables of Unicode 9. Newer tables differ only in characters that came later, which
//! pass unchanged here. Stretches that are normal already, which is nearly all text, are found by a look at each
//! character and copied; the rest is normalized between the nearest characters that take no part in it.

use std::borrow::Cow;
use std::sync::OnceLock;

use regex_syntax::hir::{Class, ClassUnicode, HirKind};
use unicode_normalization::char::canonical_combining_class;
use unicode_normalization::{
    IsNormalized, UnicodeNormalization, is_nfc_quick, is_nfd_quick, is_nfkc_quick, is_nfkd_quick,
};

/// A normalization form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Normalizer {
    /// Canonical composition.
    Nfc,
    /// Canonical decomposition.
    Nfd,
    /// Compatibility decomposition, then canonical composition.
    Nfkc,
    /// Compatibility decomposition.
    Nfkd,
}

impl Normalizer {
    /// All forms.
    const ALL: [Self; 4] = [Self::Nfc, Self::Nfd, Self::Nfkc, Self::Nfkd];

    /// The form called `name` in Unicode and in tokenizer.json.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|form| form.name() == name)
    }

    /// Its name in Unicode and in tokenizer.json.
    pub fn name(self) -> &'static str {
        match self {
            Self::Nfc => "NFC",
            Self::Nfd => "NFD",
            Self::Nfkc => "NFKC",
            Self::Nfkd => "NFKD",
        }
    }

    /// The normal form of `text`, each stretch of valid UTF-8 by itself; borrowed when `text` is normal.
    ///
    /// ```
    /// # use gptrs_core::normalizer::Normalizer;
    /// assert_eq!(&*Normalizer::Nfc.apply("e\u{301}".as_bytes()), "é".as_bytes());
    /// ```
    pub fn apply(self, text: &[u8]) -> Cow<'_, [u8]> {
        if text.is_ascii() {
            return Cow::Borrowed(text);
        }
        if let Ok(text) = std::str::from_utf8(text) {
            return match self.apply_str(text) {
                Cow::Borrowed(text) => Cow::Borrowed(text.as_bytes()),
                Cow::Owned(text) => Cow::Owned(text.into_bytes()),
            };
        }
        let mut out = Vec::with_capacity(text.len());
        for chunk in text.utf8_chunks() {
            out.extend_from_slice(self.apply_str(chunk.valid()).as_bytes());
            out.extend_from_slice(chunk.invalid());
        }
        if out == text { Cow::Borrowed(text) } else { Cow::Owned(out) }
    }

    fn apply_str(self, text: &str) -> Cow<'_, str> {
        let (mut out, mut copied, mut from) = (String::new(), 0, 0);
        while let Some((start, end)) = self.next_suspect(text, from) {
            let normal = self.normalize(&text[start..end]);
            if normal != text[start..end] {
                out.push_str(&text[copied..start]);
                out.push_str(&normal);
                copied = end;
            }
            from = end;
        }
        if copied == 0 { Cow::Borrowed(text) } else { Cow::Owned(out + &text[copied..]) }
    }

    /// The first stretch from `from`, a border, that may not be normal; both its ends are borders.
    fn next_suspect(self, text: &str, from: usize) -> Option<(usize, usize)> {
        let (mut border, mut class_before) = (from, 0);
        for (n, c) in text[from..].char_indices() {
            let at = from + n;
            let (is_normal, class) = self.look(c);
            if !is_normal || (class != 0 && class < class_before) {
                let after = &text[at + c.len_utf8()..];
                let end = after.char_indices().find(|&(_, c)| self.is_border(c));
                return Some((border, end.map_or(text.len(), |(n, _)| at + c.len_utf8() + n)));
            }
            if class == 0 {
                border = at;
            }
            class_before = class;
        }
        None
    }

    /// Whether `c` surely is normal wherever it stands, and its combining class.
    #[inline]
    fn look(self, c: char) -> (bool, u8) {
        if c.is_ascii() || (self == Self::Nfc && is_plain(c)) {
            return (true, 0);
        }
        let one = std::iter::once(c);
        let verdict = match self {
            Self::Nfc => is_nfc_quick(one),
            Self::Nfd => is_nfd_quick(one),
            Self::Nfkc => is_nfkc_quick(one),
            Self::Nfkd => is_nfkd_quick(one),
        };
        match (matches!(verdict, IsNormalized::Yes), canonical_combining_class(c)) {
            (true, 0) => (true, 0),
            _ if is_newer(c) => (true, 0),
            found => found,
        }
    }

    /// Whether normalization never crosses from what stands before `c` to what follows.
    pub(crate) fn is_border(self, c: char) -> bool {
        self.look(c) == (true, 0)
    }

    /// The normal form of a stretch between two borders.
    fn normalize(self, text: &str) -> String {
        // Only the first character can be a newer one, as each is a border; today's tables might compose it.
        let newer = text.chars().next().filter(|&c| is_newer(c));
        let rest = &text[newer.map_or(0, char::len_utf8)..];
        let mut out: String = newer.into_iter().collect();
        match self {
            Self::Nfc => out.extend(rest.nfc()),
            Self::Nfd => out.extend(rest.nfd()),
            Self::Nfkc => out.extend(rest.nfkc()),
            Self::Nfkd => out.extend(rest.nfkd()),
        }
        out
    }
}

/// The large ranges of characters that composition leaves alone: Latin, ideographs, Hangul syllables.
#[inline]
fn is_plain(c: char) -> bool {
    matches!(c, '\0'..='\u{2FF}' | '\u{3400}'..='\u{9FFF}' | '\u{AC00}'..='\u{D7A3}')
}

/// Whether `c` was assigned after Unicode 9, or is not yet.
fn is_newer(c: char) -> bool {
    static OLD: OnceLock<ClassUnicode> = OnceLock::new();
    let old = OLD.get_or_init(|| match regex_syntax::parse(r"\p{age:9.0}").map(|hir| hir.into_kind()) {
        Ok(HirKind::Class(Class::Unicode(class))) => class,
        other => unreachable!("a fixed pattern that is a class: {other:?}"),
    });
    let ranges = old.ranges();
    let at = ranges.partition_point(|range| range.end() < c);
    ranges.get(at).is_none_or(|range| range.start() > c)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn nfc(text: &str) -> String {
        String::from_utf8(Normalizer::Nfc.apply(text.as_bytes()).into_owned()).unwrap()
    }

    #[test]
    fn marks_join_the_letter_before_them() {
        assert_eq!(nfc("e\u{301} a\u{323}\u{307}\u{1100}\u{1161}\u{11a8}"), "é ạ\u{307}각");
        assert_eq!(nfc("a\u{307}\u{323}"), "ạ\u{307}", "marks are sorted first");
        assert_eq!(nfc("\u{212A};\u{37E}"), "K;;", "characters that stand for another one");
    }

    #[test]
    fn normal_text_is_borrowed() {
        for text in ["", "plain", "déjà vu", "友情", "각", "\u{301}", "q\u{301}x"] {
            assert!(matches!(Normalizer::Nfc.apply(text.as_bytes()), Cow::Borrowed(_)), "{text}");
        }
    }

    #[test]
    fn invalid_bytes_stay_and_cut_the_text() {
        let text = b"e\xCC\x81\xFFe\xFF\xCC\x81";
        assert_eq!(&*Normalizer::Nfc.apply(text), b"\xC3\xA9\xFFe\xFF\xCC\x81");
    }

    #[test]
    fn every_form_is_that_of_the_whole_text_and_keeps_characters_newer_than_unicode_9() {
        let chars = ['a', 'e', ' ', '\u{301}', '\u{323}', '\u{327}', 'é', 'ﬁ', '\u{1100}', '\u{1161}', '각', '\u{9be}'];
        let mut state = 1u64;
        for _ in 0..20_000 {
            let mut text = String::new();
            for _ in 0..9 {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                text.push(chars[(state >> 33) as usize % chars.len()]);
            }
            for form in Normalizer::ALL {
                let whole: String = match form {
                    Normalizer::Nfc => text.nfc().collect(),
                    Normalizer::Nfd => text.nfd().collect(),
                    Normalizer::Nfkc => text.nfkc().collect(),
                    Normalizer::Nfkd => text.nfkd().collect(),
                };
                assert_eq!(&*form.apply(text.as_bytes()), whole.as_bytes(), "{text:?} {}", form.name());
            }
        }
        let todhri = "\u{105D2}\u{307}"; // composes since Unicode 16
        assert_eq!(nfc(todhri), todhri);
        assert_ne!(todhri.nfc().collect::<String>(), todhri);
    }
}
