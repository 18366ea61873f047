//! datatrove: ids in a `.ds`, the ends of documents in a `.ds.index`, tokenizer and width in a `.ds.metadata`.

use std::path::{Path, PathBuf};

use super::column::Column;
use super::source::{Opened, Source, malformed};
use crate::error::{Error, Result};
use crate::io;
use crate::shard::{Dtype, Format};

/// A longer `.ds.metadata` is refused.
const MAX_METADATA: u64 = 64 << 10;

/// What the files beside the file say of it.
pub(super) fn open(mut opened: Opened) -> Result<Source> {
    let [index, metadata] = ["index", "metadata"].map(|ending| beside(&opened.path, ending));
    let mut last = None;
    if index.exists() {
        opened.companion(&index)?;
        let ends = ends(&index, opened.len)?;
        last = ends.last().copied();
        opened.ends = Some(ends);
    }
    let (mut stated, mut n_tokens) = (None, last);
    if metadata.exists() {
        opened.companion(&metadata)?;
        let of = read_metadata(&metadata)?;
        (stated, n_tokens) = (of.0, n_tokens.or(of.1));
    }
    let fits = |dtype: &Dtype| n_tokens.and_then(|n| n.checked_mul(dtype.size() as u64)) == Some(opened.len);
    let dtype = opened.options.dtype.or(stated).or([Dtype::U16, Dtype::U32].into_iter().find(fits));
    let dtype = dtype.unwrap_or(opened.narrowest);
    if let Some(n) = n_tokens.filter(|_| !fits(&dtype)) {
        let (name, len) = (dtype.name(), opened.len);
        let reason = format!("expected {n} tokens of type {name}, got {len} bytes; it may be cut");
        return Err(malformed(Format::Datatrove, &opened.path, reason));
    }
    opened.all_of(dtype)
}

fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(ending);
    name.into()
}

/// The ends of documents, in tokens, for a file of `tokens_len` bytes.
fn ends(path: &Path, tokens_len: u64) -> Result<Vec<u64>> {
    let bad = |reason: String| Error::Format { path: path.to_owned(), format: "datatrove .ds.index file", reason };
    let (file, len) = io::open_regular(path)?;
    if !len.is_multiple_of(8) {
        return Err(bad(format!("expected numbers of 8 bytes, got {len} bytes; it may be cut")));
    }
    if len / 8 > tokens_len {
        return Err(bad(format!("it lists {} documents for {tokens_len} bytes", len / 8)));
    }
    let (mut column, mut ends) = (Column::new(&file, path, 8, 0, len / 8), Vec::new());
    let mut before = 0;
    while let Some(end) = column.next()? {
        let end = u64::try_from(end)
            .ok()
            .filter(|&end| end >= before)
            .ok_or_else(|| bad(format!("document {} ends at token {end}, the one before at {before}", ends.len())))?;
        ends.push(end);
        before = end;
    }
    Ok(ends)
}

/// Width of an id and number of tokens, as far as the file says them: `tokenizer|2` or `tokenizer`, then the number.
fn read_metadata(path: &Path) -> Result<(Option<Dtype>, Option<u64>)> {
    let bad = |reason: String| Error::Format { path: path.to_owned(), format: "datatrove .ds.metadata file", reason };
    let (file, len) = io::open_regular(path)?;
    if len > MAX_METADATA {
        return Err(bad(format!("expected at most {MAX_METADATA} bytes, got {len}")));
    }
    let mut bytes = vec![0; len as usize];
    io::read_exact_at(&file, 0, &mut bytes, path)?;
    let text = String::from_utf8_lossy(&bytes);
    let mut lines = text.lines();
    let dtype = match lines.next().and_then(|line| line.rsplit_once('|')).map(|(_, size)| size.trim()) {
        None => None,
        Some("2") => Some(Dtype::U16),
        Some("4") => Some(Dtype::U32),
        Some(got) => {
            return Err(bad(format!("expected 2 or 4 bytes a token behind the last | of line 1, got {got:?}")));
        }
    };
    let number = lines.next().map(str::trim).filter(|line| !line.is_empty());
    let n_tokens =
        number.map(|line| line.parse().map_err(|_| bad(format!("expected a number in line 2, got {line:?}"))));
    Ok((dtype, n_tokens.transpose()?))
}
