//! U+FFFD in place of what is not UTF-8.

use std::io::{self, BufRead, Read};

const REPLACEMENT: &[u8] = "\u{FFFD}".as_bytes();

/// The number of maximal invalid sequences.
pub(crate) fn n_invalid(bytes: &[u8]) -> u64 {
    if std::str::from_utf8(bytes).is_ok() {
        return 0;
    }
    bytes.utf8_chunks().filter(|chunk| !chunk.invalid().is_empty()).count() as u64
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

    #[test]
    fn each_maximal_invalid_sequence_is_one() {
        for (bytes, n) in
            [(&b"a\xFF\xFEb"[..], 2), (b"\xE4\xB8", 1), (b"\xE4\xB8x", 1), (b"\xED\xA0\x80", 3), (b"\xC3\xA9", 0)]
        {
            assert_eq!(n_invalid(bytes), n, "{bytes:?}");
        }
    }
}
