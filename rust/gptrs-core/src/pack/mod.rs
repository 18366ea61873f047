//! Packing: which tokens stand in which row of `seq_len` inputs, planned before any rank takes its share.
//!
//! `bestfit-v1` keeps documents whole where it can. A document of more than `seq_len` tokens is cut into full rows and
//! a last piece of 1 to `seq_len`; last pieces and short documents are packed by best-fit decreasing (Ding et al. 2024,
//! arXiv 2404.10830). Every token is an input once; only the end of a row may be padding. The plan is a pure function
//! of the dataset and `seq_len`: documents are planned in parts of about 2^17 that follow from the numbers of documents
//! and tokens, so that a part fits the cache, memory is bounded and threads share the work.
//!
//! A plan lists documents, not tokens: 4 bytes for each document and for each packed row, 12 for each document of
//! several pieces. Where a document lies is read from the shards when its row is. [`Plan::cached`] keeps the plan in a
//! file.

mod file;
mod fill;
mod fit;
mod part;

use std::ops::Range;

use crate::control::Control;
use crate::dataset::Dataset;
use crate::error::{Error, Result};
use crate::parallel;
pub use fill::{Blank, IGNORED, Marks, NO_DOCUMENT, fill_stream_marks, max_documents};
use part::{Part, Row};

/// The name of this packing, as stored with a loader's state.
pub const NAME: &str = "bestfit-v1";

/// The longest row: the work for a part needs some bytes for each possible length.
pub const MAX_SEQ_LEN: usize = 1 << 24;

/// Documents of a part unless its rows would be too few, and documents of a part at most. With [`PART_ROWS`] they
/// decide the plan, as the name does.
const PART: u64 = 1 << 17;
const MAX_PART: u64 = 1 << 24;

/// Rows of a part, roughly at least: a part's last rows are what stays open.
const PART_ROWS: u64 = 1 << 12;

/// Consecutive tokens of one document that stand in a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// Its first token in the dataset.
    pub start: u64,
    /// Number of tokens, at least 1.
    pub len: u32,
    /// The document's index in the dataset.
    pub document: u64,
    /// Tokens of the document before this piece.
    pub offset: u64,
    /// Whether the document ends with this piece; otherwise the token behind it is the target of its last one.
    pub ends_document: bool,
}

/// The rows of a dataset, packed by best fit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    seq_len: usize,
    n_tokens: u64,
    n_documents: u64,
    digest: [u8; 32],
    parts: Vec<Part>,
    /// The first row of each part, then the number of all.
    row_starts: Vec<u64>,
}

impl Plan {
    /// Plans the rows of `dataset`, in memory.
    pub fn bestfit(dataset: &Dataset, seq_len: usize, threads: usize, control: &Control) -> Result<Self> {
        check_seq_len(seq_len)?;
        let n_documents = n_documents(dataset)?;
        control.begin("pack documents", n_documents);
        let n_parts = n_parts(dataset, n_documents, seq_len);
        let states = parallel::run(
            threads,
            n_parts as usize,
            control,
            || (Vec::new(), Vec::new()),
            |(order, done), i| {
                let part = Part::new(dataset, documents(n_documents, n_parts, i), seq_len, order, control)?;
                done.push((i, part));
                Ok(())
            },
        )?;
        let mut parts: Vec<(usize, Part)> = states.into_iter().flat_map(|(_, done)| done).collect();
        parts.sort_unstable_by_key(|(i, _)| *i);
        Ok(Self::from_parts(dataset, seq_len, n_documents, parts.into_iter().map(|(_, part)| part).collect()))
    }

    fn from_parts(dataset: &Dataset, seq_len: usize, n_documents: u64, parts: Vec<Part>) -> Self {
        let mut row_starts = vec![0];
        let mut n_rows = 0;
        row_starts.extend(parts.iter().map(|part| {
            n_rows += part.n_rows();
            n_rows
        }));
        let digest = digest(dataset.fingerprint(), seq_len);
        Self { seq_len, n_tokens: dataset.n_tokens(), n_documents, digest, parts, row_starts }
    }

    /// Inputs of a row.
    pub fn seq_len(&self) -> usize {
        self.seq_len
    }

    /// Number of rows.
    pub fn n_rows(&self) -> u64 {
        self.row_starts[self.parts.len()]
    }

    /// Positions that hold no token, over all rows.
    pub fn padding(&self) -> u64 {
        self.n_rows().saturating_mul(self.seq_len as u64).saturating_sub(self.n_tokens)
    }

    /// Pieces of the row that has most.
    pub fn max_pieces(&self) -> usize {
        self.parts.iter().map(Part::max_pieces).max().unwrap_or(0)
    }

    /// Identity of the plan: BLAKE3 of the packing's name, `seq_len` and the dataset's fingerprint.
    pub fn digest(&self) -> &[u8; 32] {
        &self.digest
    }

    /// Bytes of the plan in memory.
    pub fn memory(&self) -> usize {
        self.parts.iter().map(Part::memory).sum::<usize>() + self.parts.capacity() * size_of::<Part>()
    }

    /// The pieces of row `row`, in the order of the dataset, which must be the planned one.
    pub fn row(&self, dataset: &Dataset, row: u64) -> Result<Vec<Piece>> {
        if row >= self.n_rows() {
            return Err(Error::Argument(format!("expected a row below {}, got {row}", self.n_rows())));
        }
        let i = self.row_starts.partition_point(|&start| start <= row) - 1;
        let first = documents(self.n_documents, self.parts.len() as u64, i).start;
        match self.parts[i].row((row - self.row_starts[i]) as u32) {
            Row::Full { document, n } => Ok(vec![self.piece(dataset, first + u64::from(document), Some(n))?]),
            Row::Packed(documents) => {
                documents.iter().map(|&document| self.piece(dataset, first + u64::from(document), None)).collect()
            }
        }
    }

    /// Piece `n` of a document, which is full and not its last, or the last one.
    fn piece(&self, dataset: &Dataset, document: u64, n: Option<u32>) -> Result<Piece> {
        let range = bounds(dataset, document)?;
        let seq_len = self.seq_len as u64;
        let last = range.end.saturating_sub(range.start).saturating_sub(1) / seq_len * seq_len;
        let (offset, end) = match n {
            Some(n) => (u64::from(n) * seq_len, u64::from(n) * seq_len + seq_len),
            None => (last, range.end.saturating_sub(range.start)),
        };
        if offset >= end || (n.is_some() && offset >= last) {
            return Err(self.other_dataset(dataset, document));
        }
        let (start, len) = (range.start + offset, (end - offset) as u32);
        Ok(Piece { start, len, document, offset, ends_document: n.is_none() })
    }

    fn other_dataset(&self, dataset: &Dataset, document: u64) -> Error {
        let (planned, dir) = (self.n_tokens, dataset.dir().display());
        Error::Argument(format!(
            "document {document} of {dir} does not fit the plan, which is of a dataset of {planned} tokens; \
             hint: plan the dataset that is read"
        ))
    }
}

/// BLAKE3 of `"gptrs bestfit-v1"`, `seq_len` as u64 and the digits of the dataset's fingerprint.
fn digest(fingerprint: &str, seq_len: usize) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"gptrs ").update(NAME.as_bytes());
    hasher.update(&(seq_len as u64).to_le_bytes()).update(fingerprint.as_bytes());
    *hasher.finalize().as_bytes()
}

fn check_seq_len(seq_len: usize) -> Result<()> {
    if (1..=MAX_SEQ_LEN).contains(&seq_len) {
        return Ok(());
    }
    Err(Error::Argument(format!("expected a seq_len of 1 to {MAX_SEQ_LEN} for {NAME}, got {seq_len}")))
}

fn n_parts(dataset: &Dataset, n_documents: u64, seq_len: usize) -> u64 {
    let by_rows = dataset.n_tokens() / (PART_ROWS * seq_len as u64);
    by_rows.clamp(n_documents.div_ceil(MAX_PART), n_documents.div_ceil(PART))
}

/// The documents of part `i` of `n_parts`, as equal as can be.
fn documents(n_documents: u64, n_parts: u64, i: usize) -> Range<u64> {
    let at = |i: u64| (u128::from(n_documents) * u128::from(i) / u128::from(n_parts.max(1))) as u64;
    at(i as u64)..at(i as u64 + 1)
}

/// Number of documents; tokens behind the last document's end are one more.
fn n_documents(dataset: &Dataset) -> Result<u64> {
    let n = dataset.n_documents();
    let mut last = 0;
    if let Some(i) = n.checked_sub(1) {
        ends(dataset, i, std::slice::from_mut(&mut last))?;
    }
    Ok(n + u64::from(last < dataset.n_tokens()))
}

/// Fills `out` with the ends of the documents from `first` on; tokens behind the last one's end are one more document.
fn ends(dataset: &Dataset, first: u64, out: &mut [u64]) -> Result<()> {
    let n = dataset.n_documents().saturating_sub(first).min(out.len() as u64);
    let (listed, tail) = out.split_at_mut(n as usize);
    tail.fill(dataset.n_tokens());
    if listed.is_empty() { Ok(()) } else { dataset.document_ends(first, listed) }
}

/// The tokens of a document.
fn bounds(dataset: &Dataset, document: u64) -> Result<Range<u64>> {
    let mut both = [0; 2];
    match document.checked_sub(1) {
        Some(before) => ends(dataset, before, &mut both)?,
        None => ends(dataset, 0, &mut both[1..])?,
    }
    Ok(both[0]..both[1])
}
