//! Rows as arrays: tokens, targets, and what says which tokens belong together.
//!
//! Attention inside a piece is all that a piece sees, so positions begin at 0 in each one, a document's later pieces
//! included. The padding of a row is a last piece of its own.

use std::ops::Range;

use super::{Piece, Plan, ends};
use crate::control::Control;
use crate::dataset::{Dataset, Held};
use crate::error::{Error, Result};
use crate::parallel;
use crate::shard::{Token, check_width, widen_row};

/// The target that predicts nothing, as torch's cross entropy ignores it.
pub const IGNORED: i64 = -100;

/// The document of padding; −1 when read as a signed number.
pub const NO_DOCUMENT: u64 = u64::MAX;

/// Document ends that are read at once.
const AT_ONCE: u64 = 512;

/// Rows that one task of [`max_documents`] takes.
const TASK_ROWS: u64 = 1 << 12;

/// What stands where a row has nothing.
#[derive(Debug, Clone, Copy)]
pub struct Blank<T> {
    /// The token of padding.
    pub token: T,
    /// The target of padding, of a document's last token and of what is not to be predicted: [`IGNORED`], or a value that
    /// is no id.
    pub target: T,
}

/// Arrays beside the tokens of a row; those that are empty are left out.
#[derive(Debug, Default)]
pub struct Marks<'b> {
    /// The place of each token in its piece, `seq_len` elements.
    pub positions: &'b mut [i32],
    /// Which piece of the row each token belongs to, from 0, `seq_len` elements.
    pub segments: &'b mut [i32],
    /// The document of each token by its index in the dataset, [`NO_DOCUMENT`] for padding, `seq_len` elements.
    pub doc_ids: &'b mut [u64],
    /// Where the pieces begin and the last one ends, then `seq_len` up to the end: cumulative lengths of a fixed number
    /// of sequences, of which the last ones may be empty. [`Plan::max_pieces`] + 2 elements hold any packed row,
    /// [`max_documents`] + 1 any row of the stream.
    pub cu_seqlens: &'b mut [i32],
}

impl Plan {
    /// Fills `tokens` and `targets`, `seq_len` each, and `marks` with row `row` of the planned dataset.
    ///
    /// The target of a token is the next one of its document, also across the end of a piece, unless the loss bit of that
    /// one is 0.
    pub fn fill_row<T: Token>(
        &self,
        dataset: &Dataset,
        row: u64,
        blank: Blank<T>,
        tokens: &mut [T],
        targets: &mut [T],
        marks: &mut Marks<'_>,
    ) -> Result<()> {
        let seq_len = self.seq_len();
        check_len("tokens", tokens.len(), seq_len)?;
        check_len("targets", targets.len(), seq_len)?;
        check_width::<T>(dataset.dtype())?;
        let pieces = self.row(dataset, row)?;
        let (mut at, mut held) = (0, Held::default());
        for piece in &pieces {
            let end = at + piece.len as usize;
            if end > seq_len {
                return Err(self.other_dataset(dataset, piece.document));
            }
            fill_piece(dataset, &mut held, piece, blank, &mut tokens[at..end], &mut targets[at..end])?;
            at = end;
        }
        tokens[at..].fill(blank.token);
        targets[at..].fill(blank.target);
        let mut segments = Segments::default();
        for piece in &pieces {
            segments.push(piece.len as usize, piece.document);
        }
        segments.push(seq_len - at, NO_DOCUMENT);
        marks.fill(seq_len, row, &segments)
    }
}

/// Fills `marks` for the inputs of row `row` of the stream: the `seq_len` tokens from `row * seq_len` on.
pub fn fill_stream_marks(dataset: &Dataset, row: u64, seq_len: usize, marks: &mut Marks<'_>) -> Result<()> {
    if row >= dataset.n_rows(seq_len) {
        return Err(Error::Argument(format!("expected a row below {}, got {row}", dataset.n_rows(seq_len))));
    }
    let start = row * seq_len as u64;
    let mut segments = Segments::default();
    each_document(dataset, start..start + seq_len as u64, |tokens, document| {
        segments.push((tokens.end - tokens.start) as usize, document);
        Ok(())
    })?;
    marks.fill(seq_len, row, &segments)
}

/// The most documents that a row of the stream holds tokens of.
pub fn max_documents(dataset: &Dataset, seq_len: usize, threads: usize, control: &Control) -> Result<usize> {
    let (n_rows, row_len) = (dataset.n_rows(seq_len), seq_len as u64);
    control.begin("count rows", n_rows);
    let most = parallel::run(
        threads,
        n_rows.div_ceil(TASK_ROWS) as usize,
        control,
        || 0,
        |most, task| {
            let first = task as u64 * TASK_ROWS;
            let rows = first..n_rows.min(first + TASK_ROWS);
            let (mut row, mut n) = (first, 0);
            each_document(dataset, rows.start * row_len..rows.end * row_len, |tokens, _| {
                if tokens.start / row_len != row {
                    (row, n) = (tokens.start / row_len, 0);
                }
                n += 1;
                *most = n.max(*most);
                if (tokens.end - 1) / row_len != row {
                    (row, n) = ((tokens.end - 1) / row_len, 1);
                }
                control.check()
            })?;
            control.advance(rows.end - rows.start);
            Ok(())
        },
    )?;
    Ok(most.into_iter().max().unwrap_or(0))
}

/// Fills the tokens of a piece and their targets.
fn fill_piece<T: Token>(
    dataset: &Dataset,
    held: &mut Held,
    piece: &Piece,
    blank: Blank<T>,
    tokens: &mut [T],
    targets: &mut [T],
) -> Result<()> {
    let n = tokens.len() + usize::from(!piece.ends_document);
    held.make_room();
    let spot = held.spot(dataset, piece.start, n)?;
    widen_row(dataset.dtype(), &held.bytes(dataset, spot, piece.start, n)?, tokens, targets, |_| ());
    let (inner, last) = targets.split_at_mut(tokens.len() - usize::from(piece.ends_document));
    last.fill(blank.target);
    dataset.mask_targets(piece.start + 1, inner, blank.target)
}

/// Calls `visit` with the tokens that each document has in `range`, which lies in the dataset, and its index.
fn each_document(
    dataset: &Dataset,
    range: Range<u64>,
    mut visit: impl FnMut(Range<u64>, u64) -> Result<()>,
) -> Result<()> {
    let mut at = range.start;
    let mut document = [0];
    if at < range.end {
        dataset.doc_ids(at, &mut document)?;
    }
    let [mut document] = document;
    let mut some = [0; AT_ONCE as usize];
    while at < range.end {
        ends(dataset, document, &mut some)?;
        for end in some {
            if at < end.min(range.end) {
                visit(at..end.min(range.end), document)?;
                at = end.min(range.end);
            }
            document += 1;
        }
    }
    Ok(())
}

/// The pieces of a row, or its documents: where each ends, and of which document it is.
#[derive(Default)]
struct Segments(Vec<(usize, u64)>);

impl Segments {
    fn push(&mut self, len: usize, document: u64) {
        if len > 0 {
            let start = self.0.last().map_or(0, |&(end, _)| end);
            self.0.push((start + len, document));
        }
    }
}

impl Marks<'_> {
    /// Writes what `segments` say, which cover the row.
    fn fill(&mut self, seq_len: usize, row: u64, segments: &Segments) -> Result<()> {
        let Ok(row_end) = i32::try_from(seq_len) else {
            return Err(Error::Argument(format!("expected a seq_len below 2^31, got {seq_len}")));
        };
        let lens = [self.positions.len(), self.segments.len(), self.doc_ids.len()];
        for (name, len) in ["positions", "segments", "doc_ids"].into_iter().zip(lens).filter(|(_, len)| *len > 0) {
            check_len(name, len, seq_len)?;
        }
        let (n, room) = (segments.0.len(), self.cu_seqlens.len());
        if room > 0 && n >= room {
            return Err(Error::Argument(format!(
                "expected cu_seqlens of at least {} elements for the {n} sequences of row {row}, got {room}; hint: raise \
                 max_documents to {n}",
                n + 1
            )));
        }
        let mut start = 0;
        for (i, &(end, document)) in segments.0.iter().enumerate() {
            if let Some(positions) = self.positions.get_mut(start..end) {
                (0..).zip(positions).for_each(|(place, position)| *position = place);
            }
            if let Some(ids) = self.segments.get_mut(start..end) {
                ids.fill(i as i32);
            }
            if let Some(ids) = self.doc_ids.get_mut(start..end) {
                ids.fill(document);
            }
            if let Some(begin) = self.cu_seqlens.get_mut(i) {
                *begin = start as i32;
            }
            start = end;
        }
        if let Some(rest) = self.cu_seqlens.get_mut(n..) {
            rest.fill(row_end);
        }
        Ok(())
    }
}

fn check_len(name: &str, got: usize, expected: usize) -> Result<()> {
    if got == expected {
        return Ok(());
    }
    Err(Error::Argument(format!("expected {name} of {expected} elements, got {got}")))
}
