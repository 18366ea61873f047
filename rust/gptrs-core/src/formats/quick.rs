//! Vocabulary and merges of tokenizer.json out of its bytes in one pass.
//!
//! Nearly all of a file is short strings of the byte-level alphabet; going through a JSON reader with each of them takes
//! a third of the time to load. Here they go from the file's bytes into the arenas, and the rest of the file, a few
//! kilobytes, is left to the JSON reader. Whatever is not as expected gives `None`: the JSON reader then takes the whole
//! file and says what is wrong. Where this gives something, it is what the JSON reader would have given.

use std::ops::Range;

use super::alphabet;
use super::entries::{Entries, Merges};

/// What was read, and the file's text with `{}` and `[]` in its place.
pub(super) struct Cut {
    pub(super) vocab: Entries,
    pub(super) merges: Merges,
    pub(super) rest: String,
}

/// Reads `model.vocab` and `model.merges`; `None` when the JSON reader has to look.
pub(super) fn cut(text: &[u8]) -> Option<Cut> {
    let (mut vocab, mut merges) = (None, None);
    let mut reader = Reader { text, at: 0 };
    reader.object(|reader, key| match key {
        b"\"model\"" => reader.object(|reader, key| {
            let start = reader.at;
            match key {
                b"\"vocab\"" if vocab.is_none() => vocab = Some((reader.vocab()?, start..reader.at)),
                b"\"merges\"" if merges.is_none() => merges = Some((reader.merges()?, start..reader.at)),
                b"\"vocab\"" | b"\"merges\"" => return None,
                _ => reader.skip()?,
            }
            Some(())
        }),
        _ => reader.skip(),
    })?;
    let ((vocab, first), (merges, second)) = (vocab?, merges?);
    let rest = without(text, [(first, "{}"), (second, "[]")])?;
    Some(Cut { vocab, merges, rest })
}

/// `text` with other text in two places.
fn without(text: &[u8], mut places: [(Range<usize>, &str); 2]) -> Option<String> {
    places.sort_unstable_by_key(|(place, _)| place.start);
    let [(first, a), (second, b)] = places;
    let parts = [&text[..first.start], a.as_bytes(), &text[first.end..second.start], b.as_bytes(), &text[second.end..]];
    String::from_utf8(parts.concat()).ok()
}

struct Reader<'a> {
    text: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    /// The next byte that is not white space.
    #[inline]
    fn next(&mut self) -> Option<u8> {
        loop {
            let byte = self.peek()?;
            self.at += 1;
            if !matches!(byte, b' ' | b'\n' | b'\r' | b'\t') {
                return Some(byte);
            }
        }
    }

    #[inline]
    fn expect(&mut self, byte: u8) -> Option<()> {
        (self.next()? == byte).then_some(())
    }

    /// The members of an object or the elements of an array, which `member` reads from behind their first byte on.
    #[inline]
    fn members(&mut self, [open, close]: [u8; 2], mut member: impl FnMut(&mut Self, u8) -> Option<()>) -> Option<()> {
        self.expect(open)?;
        let mut first = self.next()?;
        if first == close {
            return Some(());
        }
        loop {
            member(self, first)?;
            match self.next()? {
                b',' => first = self.next()?,
                end => return (end == close).then_some(()),
            }
        }
    }

    /// An object, by its keys as they are spelled; `value` reads what follows the colon.
    fn object(&mut self, mut value: impl FnMut(&mut Self, &'a [u8]) -> Option<()>) -> Option<()> {
        self.members(*b"{}", |reader, first| {
            let start = reader.at - 1;
            if first != b'"' {
                return None;
            }
            reader.skip_string()?;
            let key = &reader.text[start..reader.at];
            // An escape may spell a key that is looked for.
            if key.contains(&b'\\') {
                return None;
            }
            reader.expect(b':')?;
            value(reader, key)
        })
    }

    /// Passes a value, of which only strings and brackets are looked at.
    fn skip(&mut self) -> Option<()> {
        let mut depth = 0_usize;
        loop {
            match self.next()? {
                b'"' => self.skip_string()?,
                b'{' | b'[' => depth += 1,
                b'}' | b']' => depth = depth.checked_sub(1)?,
                _ => {}
            }
            if depth == 0 && matches!(self.peek()?, b',' | b'}' | b' ' | b'\n' | b'\r' | b'\t') {
                return Some(());
            }
        }
    }

    /// Passes a string from behind its first quote on.
    fn skip_string(&mut self) -> Option<()> {
        loop {
            self.at += 1 + memchr::memchr2(b'"', b'\\', &self.text[self.at..])?;
            if self.text[self.at - 1] == b'"' {
                return Some(());
            }
            self.at += 1; // what is escaped
            self.text.get(self.at..)?;
        }
    }

    fn vocab(&mut self) -> Option<Entries> {
        let mut entries = Entries::default();
        self.members(*b"{}", |reader, first| {
            let start = reader.at - 1;
            if first != b'"' {
                return None;
            }
            if !entries.push_by(|bytes| reader.alphabet(bytes, b'"')) {
                entries.push(&reader.string(start)?);
            }
            reader.expect(b':')?;
            entries.set_last_id(reader.id()?)
        })?;
        Some(entries)
    }

    fn merges(&mut self) -> Option<Merges> {
        let mut merges = Merges::default();
        self.members(*b"[]", |reader, first| {
            let start = reader.at - 1;
            if first == b'"' {
                let is_line = merges.push_by(|bytes| reader.line(bytes));
                return if is_line { Some(()) } else { merges.push_line(&reader.string(start)?).ok() };
            }
            reader.at = start;
            merges.push_by(|bytes| reader.pair(bytes)).then_some(())
        })?;
        Some(merges)
    }

    /// Appends both sides of a merge that is spelled as one string; where the second one begins.
    fn line(&mut self, bytes: &mut Vec<u8>) -> Option<usize> {
        let start = bytes.len();
        self.alphabet(bytes, b' ')?;
        let middle = bytes.len();
        self.alphabet(bytes, b'"')?;
        (start < middle && middle < bytes.len()).then_some(middle)
    }

    /// Appends both sides of a merge that is an array; where the second one begins.
    fn pair(&mut self, bytes: &mut Vec<u8>) -> Option<usize> {
        let (mut middle, mut n) = (0, 0);
        self.members(*b"[]", |reader, first| {
            if first != b'"' {
                return None;
            }
            reader.alphabet(bytes, b'"')?;
            n += 1;
            if n == 1 {
                middle = bytes.len();
            }
            Some(())
        })?;
        (n == 2).then_some(middle)
    }

    /// Appends the bytes that characters of the alphabet up to `end` spell. At others it gives `None` and has appended some.
    #[inline]
    fn alphabet(&mut self, bytes: &mut Vec<u8>, end: u8) -> Option<()> {
        loop {
            let byte = self.peek()?;
            self.at += 1;
            let spelled = match byte {
                _ if byte == end => return Some(()),
                b'"' => return None,
                b'\\' => {
                    self.at += 1;
                    *self.text.get(self.at - 1).filter(|escaped| matches!(escaped, b'"' | b'\\'))?
                }
                b'!'..=b'~' => byte,
                _ => {
                    self.at += 1;
                    alphabet::byte(two_bytes(byte, *self.text.get(self.at - 1)?)?)?
                }
            };
            bytes.push(spelled);
        }
    }

    /// The string whose first quote is at `start`, whatever it spells.
    fn string(&mut self, start: usize) -> Option<String> {
        self.at = start + 1;
        self.skip_string()?;
        serde_json::from_slice(&self.text[start..self.at]).ok()
    }

    /// An id without leading zeros.
    #[inline]
    fn id(&mut self) -> Option<u32> {
        let first = self.next().filter(u8::is_ascii_digit)?;
        let mut id = u32::from(first - b'0');
        while let Some(digit) = self.peek().filter(u8::is_ascii_digit) {
            if first == b'0' {
                return None;
            }
            id = id.checked_mul(10)?.checked_add(u32::from(digit - b'0'))?;
            self.at += 1;
        }
        Some(id)
    }
}

/// The character of two bytes of UTF-8.
#[inline]
fn two_bytes(lead: u8, cont: u8) -> Option<u32> {
    (matches!(lead, 0xC2..=0xDF) && cont & 0xC0 == 0x80).then(|| u32::from(lead & 0x1F) << 6 | u32::from(cont & 0x3F))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(serde::Deserialize)]
    struct Parts {
        vocab: Entries,
        merges: Merges,
    }

    #[derive(serde::Deserialize)]
    struct Whole {
        model: Parts,
    }

    fn show(vocab: &Entries, merges: &Merges) -> String {
        format!("{vocab:?} {merges:?}")
    }

    /// What is read is what the JSON reader reads of the file, and the rest is valid without it.
    fn is_cut(text: &str) -> bool {
        let Some(cut) = cut(text.as_bytes()) else { return false };
        let rest: Option<serde_json::Value> = serde_json::from_str(&cut.rest).ok();
        // A file with something wrong elsewhere is refused for what is left of it.
        if let Some(rest) = rest {
            let whole: Whole = serde_json::from_str(text).unwrap();
            assert_eq!(show(&cut.vocab, &cut.merges), show(&whole.model.vocab, &whole.model.merges), "{text}");
            let mut expected: serde_json::Value = serde_json::from_str(text).unwrap();
            expected["model"]["vocab"] = serde_json::json!({});
            expected["model"]["merges"] = serde_json::json!([]);
            assert_eq!(rest, expected, "{text}");
        }
        true
    }

    const FILE: &str = r#" { "version": "1.0", "x": [ {"a": "]}\\\"" }, -1.5e3, true ], "model" : { "type" : "BPE",
        "vocab" : { "a" : 0, "\"" : 1, "\\": 2, "\u0041": 3, "Ġa": 4, "a b": 5, "中": 6, "": 7, "é" : 8, "\n": 9 } ,
        "merges":[["Ġ","a"] , [ "a", "é" ],["",""], "Ġ a", "\" \\", "\u0041 b"], "dropout": null}, "end":{}} "#;

    #[test]
    fn tokens_and_merges_are_those_of_the_json_reader() {
        assert!(is_cut(FILE));
        assert!(is_cut(r#"{"model":{"merges":[],"vocab":{}}}"#));
    }

    #[test]
    fn what_is_unusual_is_left_to_the_json_reader() {
        for (from, to) in [
            ("\"a\" : 0", "\"a\" : 00"),
            ("\"a\" : 0", "\"a\" : 1.0"),
            ("\"a\" : 0", "\"a\" : 4294967296"),
            ("\"a\" : 0", "\"a\" : -1"),
            ("\"a\" : 0,", "\"a\" : 0,,"),
            ("\"a\" : 0,", "\"a\" : 0, 1: 2,"),
            ("[\"Ġ\",\"a\"]", "[\"Ġ\"]"),
            ("[\"Ġ\",\"a\"]", "[\"Ġ\",\"a\",\"b\"]"),
            ("[\"Ġ\",\"a\"]", "[\"Ġ\",\"a \"]"),
            ("[\"Ġ\",\"a\"]", "[\"Ġ\",\"\\u0041\"]"),
            ("\"Ġ a\"", "\"Ġ  a\""),
            ("\"Ġ a\"", "\" a\""),
            ("\"Ġ a\"", "\"Ġ a\",3"),
            ("\"dropout\"", "\"vocab\""),
            ("\"dropout\"", "\"\\u0076ocab\""),
            ("\"model\"", "\"mode\\u006c\""),
            ("\"merges\"", "\"merge\""),
        ] {
            assert!(FILE.contains(from), "{from}");
            assert!(!is_cut(&FILE.replacen(from, to, 1)), "{to}");
        }
    }

    #[test]
    fn files_cut_short_and_changed_bytes_read_as_by_the_json_reader() {
        let text = FILE.as_bytes();
        for end in 0..text.trim_ascii_end().len() {
            assert!(cut(&text[..end]).is_none(), "{end}");
        }
        for at in 0..text.len() {
            for byte in [b'"', b'\\', b' ', b'[', b'}', b',', b'0', b'a', 0, 0x7F, 0xC4, 0xFF] {
                let mut changed = text.to_vec();
                changed[at] = byte;
                match std::str::from_utf8(&changed) {
                    Ok(changed) => drop(is_cut(changed)),
                    Err(_) => assert!(cut(&changed).is_none(), "{at} {byte:#x}"),
                }
            }
        }
    }
}
