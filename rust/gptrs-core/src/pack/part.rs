//! The plan of some consecutive documents.

use std::ops::Range;

use super::ends;
use super::fit::{NONE, best_fit};
use crate::control::Control;
use crate::dataset::Dataset;
use crate::error::{Error, Result};

/// Document ends that are read at once.
const AT_ONCE: usize = 1 << 13;

/// The rows of a part, in the order in which their first pieces stand in the dataset.
///
/// A row is either full with tokens from the middle of one long document, which are not listed, or packed with the last
/// pieces of documents. Documents are counted from the part's first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Part {
    /// Where each packed row begins in `documents`, then the number of these.
    pub(super) starts: Vec<u32>,
    /// The documents of the packed rows, ascending in each.
    pub(super) documents: Vec<u32>,
    /// Documents of several pieces, ascending.
    pub(super) longs: Vec<Long>,
    /// Number of full rows.
    pub(super) n_full: u32,
}

/// A document that fills rows before its last piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Long {
    pub(super) document: u32,
    /// The first row that it fills.
    pub(super) row: u32,
    /// Full rows before that one.
    pub(super) n_full: u32,
}

/// What a row of a part holds.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Row<'p> {
    /// The `n`-th piece, from 0, of a document that has further ones.
    Full { document: u32, n: u32 },
    /// The last pieces of these documents.
    Packed(&'p [u32]),
}

impl Part {
    /// Plans the documents in `range`; `order` is room for the work.
    pub(super) fn new(
        dataset: &Dataset,
        range: Range<u64>,
        seq_len: usize,
        order: &mut Vec<u32>,
        control: &Control,
    ) -> Result<Self> {
        let (mut rests, mut longs, n_full) = read_lens(dataset, range, seq_len, control)?;
        order.clear();
        order.resize(rests.len(), 0);
        let numbers = best_fit(&mut rests, seq_len, order);
        control.check()?;
        let (starts, documents) = arrange(&mut rests, numbers, &mut longs);
        Ok(Self { starts, documents, longs, n_full })
    }

    pub(super) fn n_rows(&self) -> u64 {
        self.n_packed() as u64 + u64::from(self.n_full)
    }

    fn n_packed(&self) -> usize {
        self.starts.len().saturating_sub(1)
    }

    /// Pieces of the row that has most.
    pub(super) fn max_pieces(&self) -> usize {
        let packed = self.starts.windows(2).map(|w| (w[1] - w[0]) as usize).max();
        packed.unwrap_or(0).max(usize::from(self.n_full > 0))
    }

    /// Row `row`, below [`Part::n_rows`].
    pub(super) fn row(&self, row: u32) -> Row<'_> {
        let after = self.longs.partition_point(|long| long.row <= row);
        let n_full = self.longs.get(after).map_or(self.n_full, |long| long.n_full);
        if let Some(long) = after.checked_sub(1).map(|i| self.longs[i])
            && row - long.row < n_full - long.n_full
        {
            return Row::Full { document: long.document, n: row - long.row };
        }
        let packed = (row - n_full) as usize;
        Row::Packed(&self.documents[self.starts[packed] as usize..self.starts[packed + 1] as usize])
    }

    /// Whether every row of the part can be looked up, of documents below `n_documents`.
    pub(super) fn is_sound(&self, n_documents: u32) -> bool {
        let Self { starts, documents, longs, n_full } = self;
        let n_packed = self.n_packed() as u32;
        let ascend = |numbers: &[u32]| numbers.is_sorted_by(|a, b| a < b);
        let rows = starts.windows(2).map(|w| documents.get(w[0] as usize..w[1] as usize));
        let are_rows = starts.first() == Some(&0)
            && starts.last().is_some_and(|&end| end as usize == documents.len())
            && rows.into_iter().all(|row| row.is_some_and(|row| !row.is_empty() && ascend(row)));
        // Packed rows before each long document, and full rows before it.
        let packed = longs.iter().map(|long| long.row.checked_sub(long.n_full));
        let full = longs.iter().map(|long| long.n_full).chain([*n_full]);
        are_rows
            && n_full.checked_add(n_packed).is_some()
            && packed.chain([Some(n_packed)]).is_sorted_by(|a, b| a.is_some() && a <= b)
            && full.clone().next() == Some(0)
            && (longs.is_empty() || full.is_sorted_by(|a, b| a < b))
            && longs.is_sorted_by(|a, b| a.document < b.document)
            && documents.iter().chain(longs.iter().map(|long| &long.document)).all(|&i| i < n_documents)
    }

    /// Bytes in memory.
    pub(super) fn memory(&self) -> usize {
        4 * (self.starts.capacity() + self.documents.capacity()) + size_of::<Long>() * self.longs.capacity()
    }
}

/// The length of the last piece of each document, the documents of several (`row` is 0), and the number of full rows.
fn read_lens(
    dataset: &Dataset,
    range: Range<u64>,
    seq_len: usize,
    control: &Control,
) -> Result<(Vec<u32>, Vec<Long>, u32)> {
    let mut lens = Vec::with_capacity((range.end - range.start) as usize);
    let (mut longs, mut n_full) = (Vec::new(), 0u32);
    let mut buffer = vec![0; AT_ONCE];
    let mut start = 0;
    if let Some(before) = range.start.checked_sub(1) {
        ends(dataset, before, std::slice::from_mut(&mut start))?;
    }
    for first in range.clone().step_by(AT_ONCE) {
        control.check()?;
        let some = &mut buffer[..(range.end - first).min(AT_ONCE as u64) as usize];
        ends(dataset, first, some)?;
        for &end in some.iter() {
            let len = end.checked_sub(start).ok_or_else(|| descending(dataset, start, end))?;
            if len <= seq_len as u64 {
                lens.push(len as u32);
            } else {
                let (full, rest) = ((len - 1) / seq_len as u64, (len - 1) % seq_len as u64 + 1);
                longs.push(Long { document: lens.len() as u32, row: 0, n_full });
                // Packed rows are fewer than documents, which leaves their number room below 2^32.
                let limit = u64::from(NONE - 1) - (range.end - range.start);
                n_full = (u64::from(n_full) + full).min(limit + 1) as u32;
                if u64::from(n_full) > limit {
                    return Err(too_many(seq_len));
                }
                lens.push(rest as u32);
            }
            start = end;
        }
        control.advance(some.len() as u64);
    }
    longs.shrink_to_fit();
    Ok((lens, longs, n_full))
}

/// Numbers the rows by their first document and lists their documents; gives long documents their rows.
///
/// `rows` is the row of each document as it was opened, `numbers` as long as there are rows.
fn arrange(rows: &mut [u32], mut numbers: Vec<u32>, longs: &mut [Long]) -> (Vec<u32>, Vec<u32>) {
    let n_rows = numbers.len();
    numbers.fill(NONE);
    // Documents are counted two places behind their row, so that a running sum is at first where the row before ends,
    // and where the row itself ends once its documents are listed.
    let mut starts = vec![0u32; n_rows + 2];
    let (mut next, mut n_pieces) = (0, 0);
    let mut longs = longs.iter_mut().peekable();
    for (document, row) in (0..).zip(rows.iter_mut()) {
        if *row == NONE {
            continue;
        }
        if let Some(long) = longs.next_if(|long| long.document == document) {
            long.row = long.n_full + next;
        }
        let number = &mut numbers[*row as usize];
        if *number == NONE {
            *number = next;
            next += 1;
        }
        *row = *number;
        starts[*number as usize + 2] += 1;
        n_pieces += 1;
    }
    drop(numbers);
    let mut sum = 0;
    for start in &mut starts {
        sum += *start;
        *start = sum;
    }
    let mut documents = vec![0; n_pieces];
    for (document, &row) in (0..).zip(rows.iter()).filter(|(_, row)| **row != NONE) {
        let place = &mut starts[row as usize + 1];
        documents[*place as usize] = document;
        *place += 1;
    }
    starts.truncate(n_rows + 1);
    (starts, documents)
}

fn descending(dataset: &Dataset, start: u64, end: u64) -> Error {
    let reason = format!("a document ends at token {end}, the one before at {start}; hint: run gptrs data verify");
    Error::Format { path: dataset.dir().to_owned(), format: "dataset", reason }
}

fn too_many(seq_len: usize) -> Error {
    Error::Argument(format!("seq_len ({seq_len}) makes more rows than a plan holds; hint: use a larger seq_len"))
}
