//! `.gtc` count files: words in order with their counts, so that machines can count apart and train together.
//!
//! ```text
//! header 4096 │ records: count u64, length u32, word │ xxh3-64 of each 64 KiB block │ trailer 64
//! ```
//! All numbers are little-endian, sections start at multiples of 64 bytes, gaps are zero. The words ascend byte for
//! byte, so any number of files can be joined in one pass over each ([`join`](super::join)). docs/formats.md has every
//! offset and a worked example.

mod reader;
mod writer;

use std::path::Path;

use xxhash_rust::xxh3::xxh3_64;

pub use reader::CountFile;
pub use writer::{CountWriter, write};

use crate::error::{Error, Result};
use crate::shard::u64_at;
use crate::split::Splitter;

/// The ending of a count file's name.
pub const EXTENSION: &str = "gtc";
/// Bytes of the header: records start here.
pub const HEADER: usize = crate::shard::HEADER;
/// Bytes behind the header that share a checksum.
pub const BLOCK: usize = crate::shard::BLOCK;
/// Bytes of the trailer, the last of the file.
pub const TRAILER: usize = crate::shard::TRAILER;
/// Bytes of a record in front of its word.
const RECORD: usize = 12;

const MAGIC: &[u8; 8] = b"GPTRSCNT";
const VERSION: u32 = 1;
/// The Unicode version of the classes in patterns: words cut by another one do not add up with ours.
const UNICODE: u32 = 16;
/// Where the pattern stands in the header.
const PATTERN: usize = 80;

/// What a count file says about its words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Name of the pattern, empty for one that has only its regular expression.
    pub pattern_name: String,
    /// The pattern's regular expression.
    pub regex: String,
    /// Number of distinct words.
    pub n_words: u64,
    /// Sum of their counts.
    pub n_pieces: u64,
    /// Bytes of the counted text: length times count, over all words.
    pub n_bytes: u64,
    /// Number of counted documents.
    pub n_documents: u64,
    /// Bytes of all records.
    records_len: u64,
}

/// Offsets of the sections, a function of the records' length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Layout {
    digests: u64,
    n_blocks: u64,
    trailer: u64,
    total: u64,
}

impl Layout {
    /// `None` when a length exceeds 64 bits.
    fn new(records_len: u64) -> Option<Self> {
        let digests = records_len.checked_add(HEADER as u64)?.checked_next_multiple_of(64)?;
        let n_blocks = (digests - HEADER as u64).div_ceil(BLOCK as u64);
        let trailer = n_blocks.checked_mul(8)?.checked_add(digests)?.checked_next_multiple_of(64)?;
        Some(Self { digests, n_blocks, trailer, total: trailer.checked_add(TRAILER as u64)? })
    }
}

impl Header {
    /// The header of no words yet; fails when the pattern is longer than a header holds.
    fn new(splitter: &Splitter) -> Result<Self> {
        let regex = splitter.regex().to_owned();
        let name = Some(splitter.pattern()).filter(|&name| name != regex).unwrap_or_default();
        let room = HEADER - 8 - PATTERN;
        if name.len() + regex.len() > room {
            let n = name.len() + regex.len();
            return Err(Error::Argument(format!(
                "a count file holds a pattern of at most {room} bytes, got {n}; hint: use a shorter regular expression"
            )));
        }
        let counts = [0; 5];
        Ok(Self::with_counts(name.to_owned(), regex, counts))
    }

    fn with_counts(pattern_name: String, regex: String, counts: [u64; 5]) -> Self {
        let [n_words, n_pieces, n_bytes, n_documents, records_len] = counts;
        Self { pattern_name, regex, n_words, n_pieces, n_bytes, n_documents, records_len }
    }

    /// The pattern as [`Splitter::new`] takes it: its name, else its regular expression.
    pub fn pattern(&self) -> &str {
        if self.pattern_name.is_empty() { &self.regex } else { &self.pattern_name }
    }

    /// Takes `n` occurrences of a word of `len` bytes into the sums; `None` when one leaves 64 bits.
    fn include(&mut self, len: usize, n: u64) -> Option<()> {
        self.n_words = self.n_words.checked_add(1)?;
        self.n_pieces = self.n_pieces.checked_add(n)?;
        self.n_bytes = n.checked_mul(len as u64)?.checked_add(self.n_bytes)?;
        self.records_len = self.records_len.checked_add((RECORD + len) as u64)?;
        Some(())
    }

    /// The header as stored.
    fn to_bytes(&self, layout: &Layout) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        let mut at = 0;
        let mut put = |field: &[u8]| {
            bytes[at..at + field.len()].copy_from_slice(field);
            at += field.len();
        };
        put(MAGIC);
        put(&VERSION.to_le_bytes());
        put(&UNICODE.to_le_bytes());
        let counts = [self.n_words, self.n_pieces, self.n_bytes, self.n_documents, self.records_len];
        for number in counts.into_iter().chain([layout.digests, layout.trailer]) {
            put(&number.to_le_bytes());
        }
        put(&(self.pattern_name.len() as u32).to_le_bytes());
        put(&(self.regex.len() as u32).to_le_bytes());
        put(self.pattern_name.as_bytes());
        put(self.regex.as_bytes());
        let digest = xxh3_64(&bytes[..HEADER - 8]);
        bytes[HEADER - 8..].copy_from_slice(&digest.to_le_bytes());
        bytes
    }

    /// Reads a header; `len` is the length of its file, which the header must explain to the byte.
    fn parse(bytes: &[u8; HEADER], len: u64, path: &Path) -> Result<(Self, Layout)> {
        if &bytes[..8] != MAGIC {
            let got = bytes[..8].escape_ascii();
            return Err(malformed(path, format!("expected GPTRSCNT at byte 0, got \"{got}\"; hint: check the path")));
        }
        check(path, "the header", u64_at(bytes, HEADER - 8), xxh3_64(&bytes[..HEADER - 8]))?;
        let (version, unicode) = (u64_at(bytes, 8) as u32, (u64_at(bytes, 8) >> 32) as u32);
        if (version, unicode) != (VERSION, UNICODE) {
            return Err(malformed(
                path,
                format!(
                    "expected version {VERSION} at byte 8 and Unicode {UNICODE} at byte 12, got {version} and {unicode}; \
                     hint: count again with this version"
                ),
            ));
        }
        let text = |start: usize, len: usize| {
            let bytes = start.checked_add(len).and_then(|end| bytes[..HEADER - 8].get(start..end));
            bytes.and_then(|bytes| std::str::from_utf8(bytes).ok()).map(str::to_owned)
        };
        let lengths = u64_at(bytes, 72);
        let (name_len, regex_len) = ((lengths as u32) as usize, (lengths >> 32) as usize);
        let (name, regex) = (text(PATTERN, name_len), text(PATTERN.saturating_add(name_len), regex_len));
        let Some((name, regex)) = name.zip(regex) else {
            return Err(malformed(path, format!("expected a pattern at byte {PATTERN}, got none; {HINT}")));
        };
        let counts = std::array::from_fn(|i| u64_at(bytes, 16 + 8 * i));
        let header = Self::with_counts(name, regex, counts);
        let Some(layout) = Layout::new(header.records_len).filter(|layout| layout.total == len) else {
            let expected = header.records_len;
            let reason = format!("its length of {len} bytes does not fit its {expected} bytes of records; {HINT}");
            return Err(malformed(path, reason));
        };
        if header.to_bytes(&layout) != *bytes {
            return Err(malformed(path, format!("its header contradicts itself; {HINT}")));
        }
        Ok((header, layout))
    }

    /// The splitter of the counted words; fails when this version reads the pattern in another way.
    pub fn splitter(&self, path: &Path) -> Result<Splitter> {
        let splitter =
            Splitter::new(self.pattern()).map_err(|error| malformed(path, format!("{error}; hint: count again")))?;
        if splitter.regex() != self.regex {
            let (name, theirs, ours) = (&self.pattern_name, &self.regex, splitter.regex());
            let reason = format!("its pattern {name:?} is {theirs:?}, here it is {ours:?}; hint: count again");
            return Err(malformed(path, reason));
        }
        Ok(splitter)
    }

    /// Fails when the words of another file were cut by another pattern.
    pub fn check_same_pattern(&self, path: &Path, other: &Self, other_path: &Path) -> Result<()> {
        if (&self.pattern_name, &self.regex) == (&other.pattern_name, &other.regex) {
            return Ok(());
        }
        let (path, other_path) = (path.display(), other_path.display());
        let (first, second) = (self.pattern(), other.pattern());
        Err(Error::Argument(format!(
            "count files must have one pattern, got {first:?} in {path} and {second:?} in {other_path}; hint: count both \
             with the same pattern"
        )))
    }
}

/// The cure for a file that was changed or cut.
const HINT: &str = "hint: the file was cut or changed, copy it or count it again";

fn malformed(path: &Path, reason: String) -> Error {
    Error::Format { path: path.to_owned(), format: "count file", reason }
}

/// Fails when a stored digest is not the computed one.
fn check(path: &Path, what: &str, expected: u64, got: u64) -> Result<()> {
    if expected == got {
        return Ok(());
    }
    Err(malformed(path, format!("{what} has digest {got:016x}, expected {expected:016x}; {HINT}")))
}
