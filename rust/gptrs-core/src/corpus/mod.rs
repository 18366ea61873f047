//! Documents of text files, of JSON lines and of Parquet files.
//!
//! A `.txt` file is one document; in a `.jsonl` file, or `.ndjson`, each line is a JSON object whose field `text` is one;
//! in a `.parquet` file each row is one, its column `text`. All must be UTF-8, and the first two may be compressed
//! (`.gz`, `.zst`). Text files are mapped; JSON lines are streamed with one bounded line in memory, and so is what is
//! compressed; of a Parquet file one page of each column is.
//!
//! No byte of a document is dropped: a byte order mark at the front of a `.txt` file is its first character, U+FEFF. At
//! the front of JSON lines it stands before the first object, in no document.

mod field;
mod lines;
mod pages;
mod quick;
mod replace;
mod rows;
mod selection;
mod source;
mod thrift;

use std::borrow::Cow;
use std::ffi::OsStr;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

pub use self::field::{Document, TextField};
use self::lines::marked_document;
pub(crate) use self::lines::numbered;
pub use self::lines::{JsonLines, LinePosition, MAX_LINE, document};
use self::replace::{n_invalid, whole_pairs};
pub use self::rows::Rows;
pub use self::selection::{Errors, Selection};
pub use self::source::Source;
use crate::error::{Error, Result};
use crate::io::{self, Map};

/// The longest compressed text that is taken whole, in bytes.
const MAX_TEXT: u64 = 1 << 30;

/// What a file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// One document: the file.
    Text,
    /// A JSON object with one document in each line.
    JsonLines,
    /// One document in each row.
    Parquet,
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

/// The files behind `paths`, in their order; a folder gives its `*.txt`, `*.jsonl` and `*.ndjson`, compressed or not, and
/// its `*.parquet`, at any depth, sorted by path. Run directories below it are left out: what a run writes is no corpus.
/// So are the folders in which a killed process left its documents or its standard input.
///
/// Every file is opened once, so what is missing or unreadable fails here, and so does a link to nothing. Named files of
/// any other ending are text, except those that are known not to be.
pub fn inputs(paths: &[PathBuf]) -> Result<Vec<Input>> {
    let mut inputs = Vec::new();
    for path in paths {
        if path.is_dir() {
            let files = files_below(path)?;
            if files.is_empty() {
                let message =
                    format!("expected *.txt, *.jsonl, *.ndjson or *.parquet files in {}, found none", path.display());
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
        "parquet" if codec == Codec::Plain => Kind::Parquet,
        got @ ("gz" | "zst" | "xz" | "bz2" | "lz4" | "zip" | "7z" | "tar" | "tgz" | "parquet" | "arrow" | "json") => {
            let message = format!("expected text, JSON lines or Parquet, got a .{got} file: {}", path.display());
            return Err(Error::Argument(format!(
                "{message}; hint: convert it to .txt or .jsonl, these also with .gz or .zst, or to .parquet"
            )));
        }
        _ => Kind::Text,
    };
    let (_, n_bytes) = io::open_regular(&path).map_err(|error| broken_link(&path).unwrap_or(error))?;
    Ok(Input { path, kind, codec, n_bytes })
}

/// The error for a link to nothing. It is not passed over: what it was to bring would be missing from the corpus.
fn broken_link(path: &Path) -> Option<Error> {
    let to = fs::read_link(path).ok().filter(|_| !path.exists())?;
    let reason =
        format!("it is a link to {}, which is not there; hint: restore that, or remove the link", to.display());
    Some(Error::io("read", path)(std::io::Error::new(std::io::ErrorKind::NotFound, reason)))
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
                if !is_run(&path) && !is_temporary(&entry.file_name()) {
                    folders.push(path);
                }
            } else if is_found(&path) && !path.is_dir() {
                files.push(path);
            }
        }
    }
    files.sort();
    Ok(files)
}

/// Whether a folder is a training run's: it has the config and the lock that every run has from its start.
fn is_run(folder: &Path) -> bool {
    folder.join("config.toml").is_file() && folder.join(".lock").is_file()
}

/// Whether a folder is one that holds a call's documents or its standard input meanwhile; a killed process leaves it.
fn is_temporary(name: &OsStr) -> bool {
    let name = name.as_encoded_bytes();
    name.starts_with(b".documents-") || name.starts_with(b".standard-input-")
}

/// Whether a file is one of those that a folder gives.
fn is_found(path: &Path) -> bool {
    let (ending, codec) = ending(path);
    matches!((ending.as_str(), codec), ("txt" | "jsonl" | "ndjson", _) | ("parquet", Codec::Plain))
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
        Kind::Parquet => {
            let mut rows = Rows::open(input, text_field, 0)?;
            let mut bytes = Vec::new();
            while let Some(row) = rows.next(&mut bytes)? {
                f(row_text(&bytes, row, &input.path)?)?;
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

/// The document of a line or a row, as bytes of UTF-8, and what of it is to be predicted.
pub(crate) struct Record<'r> {
    pub(crate) text: Cow<'r, [u8]>,
    pub(crate) targets: Vec<Range<usize>>,
    /// How often U+FFFD was put in the line or row.
    pub(crate) n_replaced: u64,
}

/// The document of a line or a row; with `replaces` U+FFFD stands for what is not UTF-8, and in JSON for half a
/// surrogate pair among the escapes.
pub(crate) fn record<'r>(
    bytes: &'r [u8],
    kind: Kind,
    text_field: &TextField,
    replaces: bool,
    at: LinePosition,
    path: &Path,
) -> Result<Record<'r>> {
    let (line, n_replaced) = match (replaces, kind) {
        (false, _) => (Cow::Borrowed(bytes), 0),
        (true, Kind::Parquet) => {
            let (text, n) = lossy(bytes);
            return Ok(Record { text: bytes_of(text), targets: Vec::new(), n_replaced: n });
        }
        (true, _) => replaced(bytes),
    };
    let Document { text, targets } = match line {
        Cow::Borrowed(row) if kind == Kind::Parquet => {
            Document { text: row_text(row, at.offset, path)?.into(), targets: Vec::new() }
        }
        Cow::Borrowed(line) => marked_document(line, text_field, at, path)?,
        Cow::Owned(line) => {
            let Document { text, targets } = marked_document(&line, text_field, at, path)?;
            Document { text: text.into_owned().into(), targets }
        }
    };
    Ok(Record { text: bytes_of(text), targets, n_replaced })
}

/// `bytes` as text with U+FFFD for what is not UTF-8, and the number of those.
fn lossy(bytes: &[u8]) -> (Cow<'_, str>, u64) {
    match String::from_utf8_lossy(bytes) {
        text @ Cow::Borrowed(_) => (text, 0),
        text @ Cow::Owned(_) => (text, n_invalid(bytes)),
    }
}

/// A line of JSON that is UTF-8 and has whole surrogate pairs, and how much was replaced for it.
fn replaced(line: &[u8]) -> (Cow<'_, [u8]>, u64) {
    match lossy(line) {
        (Cow::Borrowed(text), _) => {
            let (text, n) = whole_pairs(text);
            (bytes_of(text), n)
        }
        (Cow::Owned(text), n_bytes) => {
            let (text, n) = whole_pairs(&text);
            (Cow::Owned(text.into_owned().into_bytes()), n_bytes + n)
        }
    }
}

fn bytes_of(text: Cow<str>) -> Cow<[u8]> {
    match text {
        Cow::Borrowed(text) => text.as_bytes().into(),
        Cow::Owned(text) => text.into_bytes().into(),
    }
}

/// Where `ranges` of a row's bytes are in its text: the places move where U+FFFD stands for what is not UTF-8.
///
/// An invalid sequence that two ranges share belongs to the one of its last byte, as a token does.
pub(crate) fn row_targets(bytes: &[u8], ranges: &[Range<usize>]) -> Vec<Range<usize>> {
    let mut borders: Vec<usize> = ranges.iter().flat_map(|range| [range.start, range.end]).collect();
    let (mut from, mut to, mut next) = (0, 0, 0);
    for chunk in bytes.utf8_chunks() {
        let (valid, invalid) = (chunk.valid().len(), chunk.invalid().len());
        while let Some(border) = borders.get_mut(next).filter(|border| **border < from + valid + invalid) {
            *border = to + (*border - from).min(valid);
            next += 1;
        }
        from += valid + invalid;
        to += valid + if invalid > 0 { char::REPLACEMENT_CHARACTER.len_utf8() } else { 0 };
    }
    borders[next..].fill(to);
    borders.as_chunks().0.iter().map(|&[start, end]| start..end).collect()
}

/// The document of a row as text.
fn row_text<'b>(bytes: &'b [u8], row: u64, path: &Path) -> Result<&'b str> {
    simdutf8::compat::from_utf8(bytes).map_err(|e| {
        let place = format!("byte {} of its text", e.valid_up_to());
        rows::bad_file(
            path,
            &format!("row {row}: expected UTF-8, got an invalid byte at {place}; hint: errors=\"replace\""),
        )
    })
}

/// `bytes` as text; they stand at `offset` of the file at `path`.
pub fn utf8<'b>(bytes: &'b [u8], offset: u64, path: &Path) -> Result<&'b str> {
    simdutf8::compat::from_utf8(bytes)
        .map_err(|e| Error::NotUtf8 { path: path.to_owned(), offset: offset + e.valid_up_to() as u64 })
}

fn bad_file(path: &Path, codec: Codec, reason: &str) -> Error {
    let format = if codec == Codec::Gzip { "gzip file" } else { "Zstandard file" };
    Error::Format { path: path.to_owned(), format, reason: reason.to_owned() }
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
            ("{\"text\": \"\\udc00\"}", "got a lone surrogate as an escape; hint: write \\ufffd"),
            ("{\"text\": \"\\ud80\"}", "line 3: column 16: invalid escape"),
            ("{\"text\": \"\\ud800\"}", "line 3: column 17: expected Unicode text, got a lone surrogate"),
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
    fn ranges_of_a_row_move_with_what_is_replaced() {
        // One byte becomes three, two of one sequence become three, and a sequence in two ranges is of the second.
        let bytes = b"a\xFFb\xE2\x82c\xC3";
        let text = String::from_utf8_lossy(bytes);
        let moved = |ranges: &[Range<usize>]| -> Vec<&str> {
            row_targets(bytes, ranges).into_iter().map(|range| &text[range]).collect()
        };
        assert_eq!(moved(&[0..1, 1..2, 2..3, 3..5, 5..6, 6..7]), ["a", "\u{fffd}", "b", "\u{fffd}", "c", "\u{fffd}"]);
        assert_eq!(moved(&[0..4, 4..7]), ["a\u{fffd}b", "\u{fffd}c\u{fffd}"]);
        assert_eq!(moved(&[0..0, 7..7, 7..7]), ["", "", ""]);
        assert_eq!(row_targets("é!".as_bytes(), &[0..2, 2..3]), [0..2, 2..3]);
        assert!(row_targets(b"", &[]).is_empty() && row_targets(b"", &[0..0, 0..0]) == [0..0, 0..0]);
    }

    #[test]
    fn a_folder_gives_its_texts_sorted_and_what_is_no_text_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("b/run/data")).unwrap();
        let run =
            ["b/run/.lock", "b/run/config.toml", "b/run/samples.txt", "b/run/data/val.txt", ".lock", "config.toml"];
        let left = [".documents-x/documents.jsonl", "b/.standard-input-y/standard-input.txt"];
        for name in left {
            fs::create_dir(dir.path().join(name).parent().unwrap()).unwrap();
        }
        let texts = ["z.txt", "b/c.jsonl", "b/d.ndjson.gz", "b/a.txt", "a.TXT", "note.md"];
        for name in texts.into_iter().chain(run).chain(left) {
            fs::write(dir.path().join(name), "").unwrap();
        }
        let found = inputs(&[dir.path().to_owned()]).unwrap();
        let names: Vec<_> = found.iter().map(|i| i.path.strip_prefix(dir.path()).unwrap().to_str().unwrap()).collect();
        assert_eq!(names, ["a.TXT", "b/a.txt", "b/c.jsonl", "b/d.ndjson.gz", "z.txt"]);
        for bad in ["absent.txt", "x.jsonl.xz", "x.jsonl.zst", "b/empty"] {
            fs::create_dir_all(dir.path().join("b/empty")).unwrap();
            let message = inputs(&[dir.path().join(bad)]).unwrap_err().to_string();
            assert!(message.contains(bad), "{message}");
        }
    }
}
