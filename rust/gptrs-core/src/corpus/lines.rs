//! The lines of a JSON lines file, one bounded line in memory.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use serde::de::DeserializeSeed;

use super::{Document, Input, Kind, Source, TextField, quick, utf8};
use crate::error::{Error, Result};

/// The longest line of a JSON lines file, in bytes.
pub const MAX_LINE: usize = 256 << 20;

const LONE_SURROGATE: &str = "expected Unicode text, got a lone surrogate as an escape; hint: write \\ufffd in its place, \
                              leave the line out, or prepare it with errors=\"replace\"";

/// What some programs write before UTF-8.
const BYTE_ORDER_MARK: &[u8] = b"\xEF\xBB\xBF";

/// Where a line stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinePosition {
    /// Offset of its first byte in the file.
    pub offset: u64,
    /// Its number, from 1.
    pub line: u64,
}

/// The lines of a JSON lines file that are not blank.
#[derive(Debug)]
pub struct JsonLines {
    source: Source,
    path: PathBuf,
    next: LinePosition,
    max_line: usize,
}

impl JsonLines {
    /// The lines of a file; a byte order mark before the first is skipped.
    pub fn open(input: &Input) -> Result<Self> {
        Self::open_at(input, LinePosition { offset: 0, line: 1 })
    }

    /// The lines from a position on that [`JsonLines::next`] gave before.
    pub fn open_at(input: &Input, next: LinePosition) -> Result<Self> {
        let source = Source::open(input, next.offset)?;
        let mut lines = Self { source, path: input.path.clone(), next, max_line: MAX_LINE };
        if next.offset == 0 && lines.source.skip_front(BYTE_ORDER_MARK)? {
            lines.next.offset = BYTE_ORDER_MARK.len() as u64;
        }
        Ok(lines)
    }

    /// Where the reader stands, in what the file holds.
    pub fn position(&self) -> LinePosition {
        self.next
    }

    /// Bytes of the file that were read so far, as they are stored.
    pub fn n_stored(&self) -> u64 {
        self.source.n_stored()
    }

    /// Appends the next line to `out`, without its line feed, and says where it stands; `None` at the end of the file.
    pub fn next(&mut self, out: &mut Vec<u8>) -> Result<Option<LinePosition>> {
        loop {
            let (start, position) = (out.len(), self.next);
            let limit = self.max_line as u64 + 1;
            let n = self.source.line(limit, out)?;
            if n == 0 {
                return Ok(None);
            }
            self.next = LinePosition { offset: position.offset + n as u64, line: position.line + 1 };
            if out.last() == Some(&b'\n') {
                out.pop();
            } else if n as u64 == limit {
                let reason = format!("expected at most {} bytes, got more", self.max_line);
                return Err(bad_line(&self.path, position, &reason));
            }
            if !out[start..].trim_ascii().is_empty() {
                return Ok(Some(position));
            }
            out.truncate(start);
        }
    }
}

/// The text of one JSON line.
pub fn document<'l>(line: &'l [u8], text_field: &TextField, at: LinePosition, path: &Path) -> Result<Cow<'l, str>> {
    Ok(marked_document(line, text_field, at, path)?.text)
}

/// The text of one JSON line and what of it is to be predicted.
pub(crate) fn marked_document<'l>(
    line: &'l [u8],
    text_field: &TextField,
    at: LinePosition,
    path: &Path,
) -> Result<Document<'l>> {
    let json = utf8(line, at.offset, path)?;
    if let Some(texts) = quick::texts(json, text_field.names()) {
        return Ok(text_field.join(texts));
    }
    // serde_json counts from its own line 1; only its column says something about a file of many lines.
    read(json, text_field).map_err(|error| {
        let message = error.to_string();
        let reason = match message.rsplit_once(" at line ").map_or(message.as_str(), |(reason, _)| reason) {
            // What serde_json says of half a pair; an escape that is short itself is "EOF" or "invalid escape" to it.
            "unexpected end of hex escape" | "lone leading surrogate in hex escape" => LONE_SURROGATE,
            reason => reason,
        };
        bad_line(path, at, &format!("column {}: {reason}", error.column()))
    })
}

/// The document of a line by the JSON reader.
pub(super) fn read<'l>(json: &'l str, text_field: &TextField) -> serde_json::Result<Document<'l>> {
    let mut parser = serde_json::Deserializer::from_str(json);
    let document = text_field.deserialize(&mut parser)?;
    parser.end().map(|()| document)
}

/// The error of a reader that began at `offset` of `first` and counted lines from there: one about JSON lines gets the
/// line's number in the file. The lines before are counted when they are asked for, so that a reader need not.
pub(crate) fn numbered(error: Error, first: Option<&Input>, offset: u64) -> Error {
    let Error::Format { path, format, reason } = &error else { return error };
    let first = first.filter(|input| offset > 0 && input.kind == Kind::JsonLines && input.path == *path);
    let parts = reason.strip_prefix("line ").and_then(|rest| rest.split_once(": "));
    let (Some(input), Some((Ok(line), rest))) = (first, parts.map(|(line, rest)| (line.parse::<u64>(), rest))) else {
        return error;
    };
    match lines_before(input, offset) {
        Ok(n) => Error::Format { path: path.clone(), format, reason: format!("line {}: {rest}", n + line) },
        Err(other) => other,
    }
}

/// Lines that end before `offset` of a file that is not compressed.
fn lines_before(input: &Input, offset: u64) -> Result<u64> {
    let (mut source, mut left, mut n, mut bytes) = (Source::open(input, 0)?, offset, 0, Vec::new());
    while left > 0 {
        bytes.clear();
        match source.read(left.min(1 << 20), &mut bytes)? {
            0 => return Err(input.changed()),
            got => left -= got as u64,
        }
        n += memchr::memchr_iter(b'\n', &bytes).count() as u64;
    }
    Ok(n)
}

fn bad_line(path: &Path, at: LinePosition, reason: &str) -> Error {
    Error::Format { path: path.to_owned(), format: "JSON lines file", reason: format!("line {}: {reason}", at.line) }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::corpus::inputs;

    #[test]
    fn a_line_has_a_longest_length() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.jsonl");
        fs::write(&path, "1234567\n12345678\n123456789\n").unwrap();
        let input = inputs(&[path]).unwrap().remove(0);
        let mut lines = JsonLines::open(&input).unwrap();
        lines.max_line = 8;
        let mut out = Vec::new();
        assert_eq!(lines.next(&mut out).unwrap(), Some(LinePosition { offset: 0, line: 1 }));
        let second = lines.next(&mut out).unwrap().unwrap();
        assert_eq!((second, out.as_slice()), (LinePosition { offset: 8, line: 2 }, &b"123456712345678"[..]));
        assert!(lines.next(&mut out).unwrap_err().to_string().contains("line 3: expected at most 8 bytes"));
        let mut again = JsonLines::open_at(&input, second).unwrap();
        out.clear();
        assert_eq!((again.next(&mut out).unwrap(), out.as_slice()), (Some(second), &b"12345678"[..]));
    }
}
