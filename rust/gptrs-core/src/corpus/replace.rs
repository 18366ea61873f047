//! U+FFFD in place of what is not UTF-8.

use std::borrow::Cow;
use std::io::{self, BufRead, Read};

const REPLACEMENT: &[u8] = "\u{FFFD}".as_bytes();

/// The number of maximal invalid sequences.
pub(crate) fn n_invalid(bytes: &[u8]) -> u64 {
    if std::str::from_utf8(bytes).is_ok() {
        return 0;
    }
    bytes.utf8_chunks().filter(|chunk| !chunk.invalid().is_empty()).count() as u64
}

/// A line of JSON in which `\ufffd` stands for each escape that is half a surrogate pair, and their number.
///
/// Half a pair is no character: some programs cut text between the two, or write bytes that are not UTF-8 so.
pub(crate) fn whole_pairs(line: &str) -> (Cow<'_, str>, u64) {
    let (mut out, mut kept, mut n) = (String::new(), 0, 0);
    let mut at = 0;
    while let Some(found) = memchr::memchr(b'\\', &line.as_bytes()[at..]) {
        at += found;
        match surrogate(line, at) {
            None => at += 2, // the escape's second byte may be a backslash, which begins none
            Some(0xD800..0xDC00) if matches!(surrogate(line, at + ESCAPE), Some(0xDC00..)) => at += 2 * ESCAPE,
            Some(_) => {
                out.push_str(&line[kept..at]);
                out.push_str("\\ufffd");
                at += ESCAPE;
                kept = at;
                n += 1;
            }
        }
        at = at.min(line.len());
    }
    if n == 0 {
        return (Cow::Borrowed(line), 0);
    }
    out.push_str(&line[kept..]);
    (Cow::Owned(out), n)
}

/// Bytes of `\uXXXX`.
const ESCAPE: usize = 6;

/// The half of a surrogate pair that is escaped at `at`.
fn surrogate(line: &str, at: usize) -> Option<u16> {
    let digits = line.get(at..at + ESCAPE)?.strip_prefix("\\u")?;
    let is_hex = digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    let unit = u16::from_str_radix(digits, 16).ok().filter(|_| is_hex)?;
    (0xD800..0xE000).contains(&unit).then_some(unit)
}

/// What `inner` gives, as UTF-8.
pub(super) struct Replacing<R> {
    inner: R,
    /// The beginning of a character whose rest is to come.
    begun: Vec<u8>,
    out: Vec<u8>,
    /// How much of `out` was given.
    given: usize,
    n: u64,
}

impl<R: BufRead> Replacing<R> {
    pub(super) fn new(inner: R) -> Self {
        Self { inner, begun: Vec::new(), out: Vec::new(), given: 0, n: 0 }
    }

    /// Sequences that were replaced so far.
    pub(super) fn n(&self) -> u64 {
        self.n
    }

    /// Reads on; at the end `out` is empty.
    fn refill(&mut self) -> io::Result<()> {
        self.given = 0;
        self.out.clear();
        while self.out.is_empty() {
            let bytes = self.inner.fill_buf()?;
            let n_read = bytes.len();
            let mut text = std::mem::take(&mut self.begun);
            text.extend_from_slice(bytes);
            self.inner.consume(n_read);
            if text.is_empty() {
                return Ok(());
            }
            self.convert(&text, n_read == 0);
        }
        Ok(())
    }

    fn convert(&mut self, mut text: &[u8], is_last: bool) {
        while let Err(error) = std::str::from_utf8(text) {
            let (valid, rest) = text.split_at(error.valid_up_to());
            self.out.extend_from_slice(valid);
            let n = match error.error_len() {
                None if !is_last => {
                    self.begun = rest.to_vec();
                    return;
                }
                n => n.unwrap_or(rest.len()),
            };
            self.out.extend_from_slice(REPLACEMENT);
            self.n += 1;
            text = &rest[n..];
        }
        self.out.extend_from_slice(text);
    }
}

impl<R: BufRead> Read for Replacing<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.given == self.out.len() {
            self.refill()?;
        }
        let n = (self.out.len() - self.given).min(out.len());
        out[..n].copy_from_slice(&self.out[self.given..self.given + n]);
        self.given += n;
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Bytes that often begin characters, so that sequences end early in every way.
        #[test]
        fn any_bytes_become_what_the_standard_library_makes_of_them(
            bytes in proptest::collection::vec(prop_oneof![
                any::<u8>(), 0x80u8..0xC0, 0xC0u8..=0xFF, Just(b'a'),
                Just(0xE0), Just(0xED), Just(0xF0), Just(0xF4), Just(0x9F), Just(0xA0), Just(0x90),
            ], 0..200),
            capacity in 1usize..9,
        ) {
            let mut replacing = Replacing::new(io::BufReader::with_capacity(capacity, bytes.as_slice()));
            let mut out = Vec::new();
            replacing.read_to_end(&mut out).unwrap();
            let expected = String::from_utf8_lossy(&bytes);
            prop_assert_eq!(&out, expected.as_bytes());
            prop_assert_eq!(replacing.n(), n_invalid(&bytes));
        }
    }

    proptest! {
        /// Lines of escapes whole and cut: read afterwards by the JSON reader, and unchanged where it read them before.
        #[test]
        fn a_string_of_any_escapes_can_be_read(
            parts in proptest::collection::vec(prop_oneof![
                Just("\\ud83d"), Just("\\ude00"), Just("\\uDBFF"), Just("\\udfff"), Just("\\ud7ff"), Just("\\ue000"),
                Just("\\\\"), Just("\\\\ud800"), Just("\\n"), Just("u"), Just("d800"), Just("\u{1F600}"), Just("\\u0041"),
            ], 0..9),
        ) {
            let line = format!("\"{}\"", parts.concat());
            let (whole, n) = whole_pairs(&line);
            let text: String = serde_json::from_str(&whole).unwrap();
            prop_assert_eq!(n, text.matches('\u{FFFD}').count() as u64);
            match serde_json::from_str::<String>(&line) {
                Ok(before) => prop_assert_eq!((before, n), (text, 0)),
                Err(_) => prop_assert!(n > 0),
            }
        }
    }

    #[test]
    fn half_a_pair_is_replaced_where_it_stands() {
        for (line, whole, n) in [
            (r#"{"a": "x\ud800y\udc00"}"#, r#"{"a": "x\ufffdy\ufffd"}"#, 2),
            (r#"{"a": "\ud83d\ud83d\ude00"}"#, r#"{"a": "\ufffd\ud83d\ude00"}"#, 1),
            (r#"{"a": "\\ud800 \ud80"}"#, r#"{"a": "\\ud800 \ud80"}"#, 0),
            (r"\", r"\", 0),
        ] {
            assert_eq!(whole_pairs(line), (whole.into(), n), "{line}");
        }
    }

    #[test]
    fn each_maximal_invalid_sequence_is_one() {
        for (bytes, n) in
            [(&b"a\xFF\xFEb"[..], 2), (b"\xE4\xB8", 1), (b"\xE4\xB8x", 1), (b"\xED\xA0\x80", 3), (b"\xC3\xA9", 0)]
        {
            assert_eq!(n_invalid(bytes), n, "{bytes:?}");
        }
    }
}
