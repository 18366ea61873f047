//! dolma and OLMo: ids in a `.npy` that has no header, and the documents in a `.csv.gz`.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use flate2::read::MultiGzDecoder;

use super::source::{Opened, Source, malformed};
use crate::error::{Error, Result};
use crate::io;
use crate::shard::Format;

/// What numpy's own files start with.
const NUMPY: &[u8] = b"\x93NUMPY";
/// A longer line of a `.csv.gz` is refused.
const MAX_LINE: u64 = 1 << 20;

/// What the `.csv.gz` beside the file, if there is one, says of it.
pub(super) fn open(mut opened: Opened) -> Result<Source> {
    if opened.start.starts_with(NUMPY) {
        let hint = "hint: write its tokens with array.tofile(path)";
        let reason = format!("it has numpy's header, where the format has none; {hint}");
        return Err(malformed(Format::Olmo, &opened.path, reason));
    }
    let dtype = opened.options.dtype.unwrap_or(opened.narrowest);
    let documents = opened.path.with_extension("csv.gz");
    if documents.exists() {
        opened.companion(&documents)?;
        let (file, _) = io::open_regular(&documents)?;
        opened.ends = Some(ends(file, &documents, opened.len / dtype.size() as u64)?);
    }
    opened.all_of(dtype)
}

/// The ends of documents of a file of `n_tokens`: each line starts with a document's first token and its end.
fn ends(file: File, path: &Path, n_tokens: u64) -> Result<Vec<u64>> {
    let bad = |reason: String| Error::Format { path: path.to_owned(), format: "OLMo .csv.gz file", reason };
    let mut lines = BufReader::with_capacity(64 << 10, MultiGzDecoder::new(BufReader::new(file)));
    let (mut line, mut ends, mut before) = (Vec::new(), Vec::new(), 0);
    loop {
        line.clear();
        let read = lines.by_ref().take(MAX_LINE).read_until(b'\n', &mut line);
        let n = read.map_err(|error| bad(format!("it cannot be decompressed: {error}")))?;
        let number = ends.len() + 1;
        if n as u64 == MAX_LINE {
            return Err(bad(format!("line {number} is longer than {MAX_LINE} bytes")));
        }
        if n == 0 {
            break;
        }
        let Some((_, end)) = range(&line).filter(|&(start, end)| start == before && end >= start) else {
            let shown = String::from_utf8_lossy(&line[..n.min(60)]).into_owned();
            return Err(bad(format!("expected \"{before},END,...\" in line {number}, got {shown:?}")));
        };
        ends.push(end);
        before = end;
        if end > n_tokens || ends.len() as u64 > n_tokens {
            return Err(bad(format!("document {number} ends at token {end} of {n_tokens}; the tokens may be cut")));
        }
    }
    if before != n_tokens {
        return Err(bad(format!("its documents end at token {before} of {n_tokens}; hint: check the dtype")));
    }
    Ok(ends)
}

/// The first two numbers of a line.
fn range(line: &[u8]) -> Option<(u64, u64)> {
    let mut fields = line.split(|&b| b == b',').map(|field| std::str::from_utf8(field).ok()?.trim().parse().ok());
    Some((fields.next()??, fields.next()??))
}
