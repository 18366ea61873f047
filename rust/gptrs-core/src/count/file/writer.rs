//! Writes a count file in one pass; it appears under its name when it is whole.

use std::cmp::Ordering;
use std::fs::File;
use std::path::Path;

use super::{HEADER, Header, Layout, malformed};
use crate::control::Control;
use crate::count::WordCounts;
use crate::error::{Error, Result};
use crate::io::AtomicFile;
use crate::shard::BlockWriter;
use crate::split::Splitter;

/// A count file under way. Memory: one block, 8 bytes for each block, and the last word.
#[derive(Debug)]
pub struct CountWriter {
    blocks: BlockWriter,
    header: Header,
    last: Vec<u8>,
}

impl CountWriter {
    /// Starts the count file at `path` for words that `splitter` cuts.
    pub fn create(path: &Path, splitter: &Splitter) -> Result<Self> {
        let header = Header::new(splitter)?;
        Ok(Self { blocks: BlockWriter::create(path)?, header, last: Vec::new() })
    }

    /// Appends a word, which must stand behind the last one, with its count, at least 1.
    pub fn push(&mut self, word: &[u8], n: u64) -> Result<()> {
        if n == 0 || word.is_empty() || word.len() > u32::MAX as usize {
            let (word, len) = (show(word), word.len());
            return Err(Error::Argument(format!(
                "a counted word must have 1 to 2^32 - 1 bytes and a count of at least 1, got {word} of {len} bytes {n} times"
            )));
        }
        if self.header.n_words > 0 && self.last.as_slice().cmp(word) != Ordering::Less {
            let (last, word) = (show(&self.last), show(word));
            return Err(Error::Argument(format!("words must ascend, got {word} after {last}")));
        }
        self.header.include(word.len(), n).ok_or_else(|| {
            let (word, path) = (show(word), self.blocks.path().display());
            Error::Argument(format!("the sums of {path} exceed 64 bits at the word {word}, which occurs {n} times"))
        })?;
        self.blocks.append(&n.to_le_bytes())?;
        self.blocks.append(&(word.len() as u32).to_le_bytes())?;
        self.blocks.append(word)?;
        self.last.clear();
        self.last.extend_from_slice(word);
        Ok(())
    }

    /// Gives the whole file its name; `n_documents` were counted. Returns its header.
    pub fn finish(self, n_documents: u64) -> Result<Header> {
        let (file, header) = self.close(n_documents)?;
        file.commit()?;
        Ok(header)
    }

    /// The whole file without a name, open for reading; the system removes it when it is closed.
    pub(in crate::count) fn finish_unnamed(self, n_documents: u64) -> Result<File> {
        self.close(n_documents)?.0.into_unnamed()
    }

    /// Writes what stands behind the records, then the header.
    fn close(self, n_documents: u64) -> Result<(AtomicFile, Header)> {
        let Self { mut blocks, mut header, .. } = self;
        header.n_documents = n_documents;
        let layout = Layout::new(header.records_len)
            .ok_or_else(|| malformed(blocks.path(), "its length exceeds 64 bits".to_owned()))?;
        blocks.pad(layout.digests - HEADER as u64 - header.records_len)?;
        let table_len = layout.trailer - layout.digests;
        let (file, _) = blocks.seal(&header.to_bytes(&layout), table_len, layout.total)?;
        Ok((file, header))
    }
}

/// Writes `counts`, cut by `splitter` from `n_documents` documents, as the file at `path`.
pub fn write(
    path: &Path,
    counts: &WordCounts,
    n_documents: u64,
    splitter: &Splitter,
    control: &Control,
) -> Result<Header> {
    let mut words: Vec<(&[u8], u64)> = counts.iter().collect();
    control.begin("write words", words.len() as u64);
    words.sort_unstable();
    let mut writer = CountWriter::create(path, splitter)?;
    for chunk in words.chunks(1 << 12) {
        control.check()?;
        chunk.iter().try_for_each(|&(word, n)| writer.push(word, n))?;
        control.advance(chunk.len() as u64);
    }
    writer.finish(n_documents)
}

/// The beginning of a word in quotes, for messages.
pub(super) fn show(word: &[u8]) -> String {
    let (shown, rest) = word.split_at(word.len().min(40));
    format!("\"{}\"{}", shown.escape_ascii(), if rest.is_empty() { "" } else { "…" })
}
