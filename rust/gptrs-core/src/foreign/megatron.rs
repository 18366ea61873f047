//! Megatron-LM: ids in a `.bin`, and an `.idx` with the sequences, their places, and the documents that they make.

use std::fs::File;
use std::path::Path;

use super::column::Column;
use super::source::{Opened, Source};
use crate::error::{Error, Result};
use crate::io;
use crate::shard::{Dtype, u64_at};

/// The first bytes of an `.idx`.
pub(super) const MAGIC: &[u8; 9] = b"MMIDIDX\0\0";
/// Bytes before the lengths of the sequences.
pub(super) const HEADER: usize = 34;
const VERSION: u64 = 1;
/// What the codes of types from 1 on stand for.
const TYPES: [&str; 8] = ["uint8", "int8", "int16", "int32", "int64", "float64", "float32", "uint16"];

/// What the `.idx` beside the file says of it.
pub(super) fn open(mut opened: Opened) -> Result<Source> {
    let path = opened.path.with_extension("idx");
    let (file, len) = io::open_regular(&path)?;
    opened.companion(&path)?;
    let index = Index::open(&file, &path, len)?;
    opened.ends = Some(index.ends(opened.len)?);
    opened.all_of(index.dtype)
}

/// An `.idx` whose length is that of its counts.
struct Index<'a> {
    file: &'a File,
    path: &'a Path,
    dtype: Dtype,
    n_sequences: u64,
    n_borders: u64,
}

impl<'a> Index<'a> {
    fn open(file: &'a File, path: &'a Path, len: u64) -> Result<Self> {
        let bad = |reason: String| Err(bad_index(path, reason));
        if len < HEADER as u64 {
            return bad(format!("expected at least {HEADER} bytes, got {len}"));
        }
        let mut bytes = [0; HEADER];
        io::read_exact_at(file, 0, &mut bytes, path)?;
        if &bytes[..9] != MAGIC || u64_at(&bytes, 9) != VERSION {
            return bad("expected MMIDIDX and version 1 in its first 17 bytes".to_owned());
        }
        let dtype = match bytes[17] {
            8 => Dtype::U16,
            4 => Dtype::U32, // an id is not negative, and those have the same bytes
            code => {
                let name = TYPES.get(usize::from(code).wrapping_sub(1)).unwrap_or(&"an unknown type");
                let hint = "hint: preprocess the text again with a vocabulary of Megatron-LM's tokenizers";
                return bad(format!("expected ids of type uint16 or int32, got {name} (code {code}); {hint}"));
            }
        };
        let (n_sequences, n_borders) = (u64_at(&bytes, 18), u64_at(&bytes, 26));
        let expected = || n_sequences.checked_mul(12)?.checked_add(n_borders.checked_mul(8)?)?.checked_add(34);
        let counts = format!("{n_sequences} sequences and {n_borders} borders of documents");
        match expected() {
            Some(expected) if expected == len => Ok(Self { file, path, dtype, n_sequences, n_borders }),
            Some(expected) if expected.checked_add(n_sequences) == Some(len) => {
                bad("it has modes of sequences, as for text with pictures".to_owned())
            }
            _ => bad(format!("its length of {len} bytes does not fit its {counts}; it may be cut")),
        }
    }

    /// The ends of the documents in tokens. The sequences must follow each other without a gap to the end of a file of
    /// `len` bytes.
    fn ends(&self, len: u64) -> Result<Vec<u64>> {
        let pointers_at = HEADER as u64 + 4 * self.n_sequences;
        let borders_at = pointers_at + 8 * self.n_sequences;
        let mut lengths = Column::new(self.file, self.path, 4, HEADER as u64, self.n_sequences);
        let mut pointers = Column::new(self.file, self.path, 8, pointers_at, self.n_sequences);
        let mut borders = Column::new(self.file, self.path, 8, borders_at, self.n_borders);
        let bad = |reason: String| Err(bad_index(self.path, reason));
        if self.n_borders > len + 1 {
            return bad(format!("it lists {} documents for {len} bytes", self.n_borders - 1));
        }
        if borders.next()? != Some(0) {
            return bad("expected the first document to begin with sequence 0".to_owned());
        }
        let (mut ends, mut n_tokens) = (Vec::new(), 0u64);
        let mut border = borders.next()?;
        for i in 0..=self.n_sequences {
            while border == Some(i as i64) {
                ends.push(n_tokens);
                border = borders.next()?;
            }
            let (Some(length), Some(pointer)) = (lengths.next()?, pointers.next()?) else { break };
            let at = n_tokens * self.dtype.size() as u64;
            if u64::try_from(pointer) != Ok(at) {
                return bad(format!("expected sequence {i} at byte {at}, behind the one before, got {pointer}"));
            }
            n_tokens += u64::try_from(length)
                .map_err(|_| bad_index(self.path, format!("sequence {i} has a length of {length} tokens")))?;
            if n_tokens > len / self.dtype.size() as u64 {
                return bad(format!("sequence {i} ends behind the {len} bytes of the .bin; it may be cut"));
            }
        }
        if let Some(border) = border {
            return bad(format!("a document ends before sequence {border}, the one before it behind that"));
        }
        self.check_total(&ends, n_tokens, len)?;
        Ok(ends)
    }

    /// Fails unless documents and sequences end with a file of `len` bytes.
    fn check_total(&self, ends: &[u64], n_tokens: u64, len: u64) -> Result<()> {
        if ends.last().copied().unwrap_or(0) != n_tokens {
            let reason = format!("its documents end before the last of its {n_tokens} tokens");
            return Err(bad_index(self.path, reason));
        }
        if n_tokens * self.dtype.size() as u64 != len {
            let reason = format!("its sequences have {n_tokens} tokens, the .bin has {len} bytes");
            return Err(bad_index(self.path, reason));
        }
        Ok(())
    }
}

/// The first bytes of an `.idx`.
pub(super) fn header(dtype: Dtype, n_documents: u64) -> [u8; HEADER] {
    let mut bytes = [0; HEADER];
    bytes[..9].copy_from_slice(MAGIC);
    bytes[9..17].copy_from_slice(&VERSION.to_le_bytes());
    bytes[17] = if dtype == Dtype::U16 { 8 } else { 4 };
    bytes[18..26].copy_from_slice(&n_documents.to_le_bytes());
    bytes[26..34].copy_from_slice(&(n_documents + 1).to_le_bytes());
    bytes
}

fn bad_index(path: &Path, reason: String) -> Error {
    Error::Format { path: path.to_owned(), format: "Megatron-LM .idx file", reason }
}

/// Whether the `.idx` beside `path` is Megatron-LM's.
pub(super) fn is_beside(path: &Path) -> bool {
    let mut start = [0; 9];
    let index = path.with_extension("idx");
    io::open_regular(&index)
        .is_ok_and(|(file, _)| io::read_exact_at(&file, 0, &mut start, &index).is_ok() && start == *MAGIC)
}
