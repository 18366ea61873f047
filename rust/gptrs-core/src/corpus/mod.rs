//! Documents of text files and of JSON lines.
//!
//! A `.txt` file is one document; in a `.jsonl` file each line is a JSON object whose field `text` is one. Both must be
//! UTF-8, and both may be compressed (`.gz`, `.zst`). Text files are mapped; JSON lines are streamed with one bounded line
//! in memory, and so is what is compressed.

mod field;
mod source;

use std::borrow::Cow;
use std::fs;
use std::path::{Path, PathBuf};

use serde::de::DeserializeSeed;

pub use self::field::{Document, TextField};
pub use self::source::Source;
use crate::error::{Error, Result};
use crate::io::{self, Map};

/// The longest line of a JSON lines file, in bytes.
pub const MAX_LINE: usize = 256 << 20;

/// The longest compressed text that is taken whole, in bytes.
const MAX_TEXT: u64 = 1 << 30;

/// What a file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// One document: the file.
    Text,
    /// A JSON object with one document in each line.
    JsonLines,
}

/// How a file is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Codec {
    /// Not at all.
    Plain,
    /// gzip, of one member or several.
    Gzip,
    /// Zstandard, of one frame or several.
    Zstd,
}

/// A file of documents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Input {
    /// Where it is.
    pub path: PathBuf,
    /// What it holds.
    pub kind: Kind,
    /// How it is compressed.
    pub codec: Codec,
    /// Its length as it is stored.
    pub n_bytes: u64,
}

impl Input {
    /// The error for an input that is written to while it is read.
    pub(crate) fn changed(&self) -> Error {
        let path = self.path.display();
        let hint = "hint: remove the dataset's folder and start again";
        Error::Argument(format!("{path} was changed while it was read; {hint}"))
    }

    /// The error for a compressed text that cannot be cut between two bytes.
    pub(crate) fn uncut(&self, offset: u64, n_bytes: usize) -> Error {
        let place = format!("in {n_bytes} bytes from byte {offset} of the text on");
        let hint = "hint: decompress it first, or give each line as a document";
        bad_file(&self.path, self.codec, &format!("expected a place to cut the text, found none {place}; {hint}"))
    }
}

/// The files behind `paths`, in their order; a folder gives its `*.txt` and `*.jsonl`, compressed or not, at any
/// depth, sorted by path.
///
/// Every file is opened once, so what is missing or unreadable fails here. Named files of any other ending are text,
/// except those that are known not to be.
pub fn inputs(paths: &[PathBuf]) -> Result<Vec<Input>> {
    let mut inputs = Vec::new();
    for path in paths {
        if path.is_dir() {
            let files = files_below(path)?;
            if files.is_empty() {
                let message = format!("expected *.txt or *.jsonl files in {}, found none", path.display());
                return Err(Error::Argument(format!("{message}; hint: name the files themselves")));
            }
            for file in files {
                inputs.push(input(file)?);
            }
        } else {
            inputs.push(input(path.clone())?);
        }
    }
    Ok(inputs)
}

fn input(path: PathBuf) -> Result<Input> {
    let (ending, codec) = ending(&path);
    let kind = match ending.as_str() {
        "jsonl" | "ndjson" => Kind::JsonLines,
        got @ ("gz" | "zst" | "xz" | "bz2" | "lz4" | "zip" | "7z" | "tar" | "tgz" | "parquet" | "arrow" | "json") => {
            let message = format!("expected text or JSON lines, got a .{got} file: {}", path.display());
            return Err(Error::Argument(format!(
                "{message}; hint: convert it to .txt or .jsonl, or those with .gz or .zst"
            )));
        }
        _ => Kind::Text,
    };
    let (_, n_bytes) = io::open_regular(&path)?;
    Ok(Input { path, kind, codec, n_bytes })
}

/// The ending of a file's name that says what it holds, and how it is compressed.
fn ending(path: &Path) -> (String, Codec) {
    let outer = extension(path);
    match source::codec(&outer) {
        Some(codec) => (extension(&source::inner(path)), codec),
        None => (outer, Codec::Plain),
    }
}

fn extension(path: &Path) -> String {
    path.extension().map_or(String::new(), |e| e.to_string_lossy().to_ascii_lowercase())
}

/// Files of documents at any depth below `dir`; links to folders are not followed, so there are no circles.
fn files_below(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).map_err(Error::io("list", &folder))? {
            let entry = entry.map_err(Error::io("list", &folder))?;
            let path = entry.path();
            if entry.file_type().map_err(Error::io("read the metadata of", &path))?.is_dir() {
                folders.push(path);
            } else if matches!(ending(&path).0.as_str(), "txt" | "jsonl") && !path.is_dir() {
                files.push(path);
            }
        }
    }
    files.sort();
    Ok(files)
}

/// Calls `f` with each document of `input`, in order.
pub fn for_each_document(input: &Input, text_field: &TextField, mut f: impl FnMut(&str) -> Result<()>) -> Result<()> {
    match input.kind {
        Kind::Text if input.codec == Codec::Plain => f(utf8(Map::open(&input.path)?.as_bytes(), 0, &input.path)?),
        Kind::Text => f(&compressed_text(input)?),
        Kind::JsonLines => {
            let mut lines = JsonLines::open(input)?;
            let mut bytes = Vec::new();
            while let Some(at) = lines.next(&mut bytes)? {
                f(&document(&bytes, text_field, at, &input.path)?)?;
                bytes.clear();
            }
            Ok(())
        }
    }
}

/// The whole text of a compressed file, which has at most [`MAX_TEXT`] bytes.
fn compressed_text(input: &Input) -> Result<String> {
    let (path, mut bytes) = (&input.path, Vec::new());
    Source::open(input, 0)?.read(MAX_TEXT + 1, &mut bytes)?;
    if bytes.len() as u64 > MAX_TEXT {
        let reason = format!("expected at most {MAX_TEXT} bytes of text inside, got more; hint: decompress it first");
        return Err(bad_file(path, input.codec, &reason));
    }
    String::from_utf8(bytes)
        .map_err(|e| Error::NotUtf8 { path: path.clone(), offset: e.utf8_error().valid_up_to() as u64 })
}

/// `bytes` as text; they stand at `offset` of the file at `path`.
pub fn utf8<'b>(bytes: &'b [u8], offset: u64, path: &Path) -> Result<&'b str> {
    std::str::from_utf8(bytes)
        .map_err(|e| Error::NotUtf8 { path: path.to_owned(), offset: offset + e.valid_up_to() as u64 })
}

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
    let mut parser = serde_json::Deserializer::from_str(json);
    let text = text_field.deserialize(&mut parser).and_then(|text| parser.end().map(|()| text));
    // serde_json counts from its own line 1; only its column says something about a file of many lines.
    text.map_err(|error| {
        let message = error.to_string();
        let reason = message.rsplit_once(" at line ").map_or(message.as_str(), |(reason, _)| reason);
        bad_line(path, at, &format!("column {}: {reason}", error.column()))
    })
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
        n += bytes.iter().filter(|&&b| b == b'\n').count() as u64;
    }
    Ok(n)
}

fn bad_file(path: &Path, codec: Codec, reason: &str) -> Error {
    let format = if codec == Codec::Gzip { "gzip file" } else { "Zstandard file" };
    Error::Format { path: path.to_owned(), format, reason: reason.to_owned() }
}

fn bad_line(path: &Path, at: LinePosition, reason: &str) -> Error {
    Error::Format { path: path.to_owned(), format: "JSON lines file", reason: format!("line {}: {reason}", at.line) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn documents(name: &str, bytes: &[u8]) -> Result<Vec<String>> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        fs::write(&path, bytes).unwrap();
        let mut documents = Vec::new();
        for input in inputs(&[path])? {
            for_each_document(&input, &TextField::new("text")?, |text| {
                documents.push(text.to_owned());
                Ok(())
            })?;
        }
        Ok(documents)
    }

    #[test]
    fn a_text_file_is_one_document_and_a_json_line_is_one() {
        assert_eq!(documents("a.txt", "one\ntwo\n".as_bytes()).unwrap(), ["one\ntwo\n"]);
        assert_eq!(documents("a.py", b"").unwrap(), [""]);
        let lines =
            b"\xEF\xBB\xBF{\"id\": [1, {}], \"text\": \"a\\u00e9\\n\"}\r\n\n  \n{\"text\":\"\"}\n{\"text\":\"last\"}";
        assert_eq!(documents("a.jsonl", lines).unwrap(), ["a\u{e9}\n", "", "last"]);
    }

    #[test]
    fn a_bad_line_is_named_by_its_number_and_column() {
        for (line, reason) in [
            ("{\"text\": 5}", "line 3: column 10: invalid type: integer `5`, expected a string"),
            ("{\"body\": \"x\"}", "line 3: column 13: expected a field \"text\", found none; hint"),
            ("{\"text\": \"a\", \"text\": \"b\"}", "line 3: column 26: the field \"text\" occurs twice"),
            ("{\"text\": \"a\"} x", "line 3: column 15: trailing characters"),
            ("[1]", "line 3: column 0: invalid type: sequence, expected an object with a field \"text\""),
            ("{\"text\": \"\\ud800\"}", "line 3: column 17: unexpected end of hex escape"),
        ] {
            let message =
                documents("a.jsonl", format!("{{\"text\":\"\"}}\n\n{line}\n").as_bytes()).unwrap_err().to_string();
            assert!(message.contains(reason), "{message}");
        }
    }

    #[test]
    fn the_first_byte_that_is_not_utf8_is_named_by_its_offset_in_the_file() {
        for (name, bytes) in [("a.txt", &b"abc\xC3\xA9\xFFdef"[..]), ("a.jsonl", &b"\n \n  \xFF"[..])] {
            let Err(Error::NotUtf8 { offset, .. }) = documents(name, bytes) else { panic!("{name} was accepted") };
            assert_eq!(offset, 5);
        }
    }

    #[test]
    fn a_line_has_a_longest_length() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.jsonl");
        fs::write(&path, "1234567\n12345678\n123456789\n").unwrap();
        let input = input(path).unwrap();
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

    #[test]
    fn a_folder_gives_its_texts_sorted_and_what_is_no_text_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("b")).unwrap();
        for name in ["z.txt", "b/c.jsonl", "b/a.txt", "a.TXT", "note.md"] {
            fs::write(dir.path().join(name), "").unwrap();
        }
        let found = inputs(&[dir.path().to_owned()]).unwrap();
        let names: Vec<_> = found.iter().map(|i| i.path.strip_prefix(dir.path()).unwrap().to_str().unwrap()).collect();
        assert_eq!(names, ["a.TXT", "b/a.txt", "b/c.jsonl", "z.txt"]);
        for bad in ["absent.txt", "x.jsonl.xz", "x.jsonl.zst", "b/empty"] {
            fs::create_dir_all(dir.path().join("b/empty")).unwrap();
            let message = inputs(&[dir.path().join(bad)]).unwrap_err().to_string();
            assert!(message.contains(bad), "{message}");
        }
    }
}
