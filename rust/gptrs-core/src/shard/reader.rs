//! Reads a shard; no byte of it is used before its checksum was compared.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use xxhash_rust::xxh3::xxh3_64;

use super::layout::{BLOCK, HEADER, Header, Layout, TRAILER, check, malformed, parse_trailer, u64_at};
use super::{Dtype, Token, widen};
use crate::control::Control;
use crate::error::{Error, Result};
use crate::io::{self, Map};

/// An open shard, which threads share.
///
/// The first read of a block goes through `pread`, so a damaged disk is an error. On a file system of this machine later
/// ones go through a map, at a third of the cost.
#[derive(Debug)]
pub struct Shard {
    file: File,
    map: Option<Map>,
    path: PathBuf,
    header: Header,
    layout: Layout,
    blake3: [u8; 32],
    digests: Vec<u64>,
    /// One bit for each block that was compared with its digest.
    checked: Vec<AtomicU64>,
}

impl Shard {
    /// Opens the shard at `path` and checks its header, length and trailer.
    pub fn open(path: &Path) -> Result<Self> {
        let (file, len) = io::open_regular(path)?;
        if len < (HEADER + TRAILER) as u64 {
            let least = HEADER + TRAILER;
            return Err(malformed(path, format!("expected at least {least} bytes, got {len}; it may be cut")));
        }
        let mut bytes = [0; HEADER];
        io::read_exact_at(&file, 0, &mut bytes, path)?;
        let (header, layout) = Header::parse(&bytes, len, path)?;
        let mut bytes = [0; TRAILER];
        io::read_exact_at(&file, layout.trailer, &mut bytes, path)?;
        let blake3 = parse_trailer(&bytes, len, path)?;
        // The layout explains the file's length, so the table is no longer than the file.
        let mut table = vec![0; 8 * layout.n_blocks as usize];
        io::read_exact_at(&file, layout.digests, &mut table, path)?;
        let digests = table.as_chunks().0.iter().map(|&word| u64::from_le_bytes(word)).collect();
        let checked = (0..layout.n_blocks.div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
        let map = Map::of_local(&file, path)?;
        Ok(Self { file, map, path: path.to_owned(), header, layout, blake3, digests, checked })
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What the header says.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The file's digest as stored: BLAKE3 over bytes 4096 to the trailer, then the header.
    pub fn blake3(&self) -> &[u8; 32] {
        &self.blake3
    }

    /// Fills `out` with the tokens from `start` on.
    pub fn tokens<T: Token>(&self, start: u64, out: &mut [T]) -> Result<()> {
        check_width::<T>(self.header.spec.dtype)?;
        let mut bytes = vec![0; out.len() * self.header.spec.dtype.size()];
        self.token_bytes(start, &mut bytes)?;
        widen(self.header.spec.dtype, &bytes, out);
        Ok(())
    }

    /// Fills `out` with the tokens from `start` on, as stored.
    pub fn token_bytes(&self, start: u64, out: &mut [u8]) -> Result<()> {
        let n = out.len() / self.header.spec.dtype.size();
        self.read(self.token_offset(start, n)?, out)
    }

    /// The `n` tokens from `start` on, as stored; `None` when the file is not mapped.
    pub fn mapped_tokens(&self, start: u64, n: usize) -> Result<Option<&[u8]>> {
        let offset = self.token_offset(start, n)?;
        let n_bytes = n * self.header.spec.dtype.size();
        let Some(map) = &self.map else { return Ok(None) };
        self.check_touched(offset, n_bytes)?;
        Ok(map.as_bytes().get(offset as usize..offset as usize + n_bytes))
    }

    /// Where in the file the `n` tokens from `start` on stand.
    fn token_offset(&self, start: u64, n: usize) -> Result<u64> {
        if start.checked_add(n as u64).is_none_or(|end| end > self.header.n_tokens) {
            let (has, path) = (self.header.n_tokens, self.path.display());
            return Err(Error::Argument(format!("tokens {start} to {start}+{n} are not in the {has} of {path}")));
        }
        Ok(HEADER as u64 + start * self.header.spec.dtype.size() as u64)
    }

    /// Fills `out` with the ends of the documents from `first` on: positions in this shard, each behind a last token.
    pub fn document_ends(&self, first: u64, out: &mut [u64]) -> Result<()> {
        let n = out.len() as u64;
        if first.checked_add(n).is_none_or(|end| end > self.header.n_documents) {
            let (has, path) = (self.header.n_documents, self.path.display());
            return Err(Error::Argument(format!("documents {first} to {first}+{n} are not in the {has} of {path}")));
        }
        let mut bytes = vec![0; 8 * out.len()];
        self.read(self.layout.ends + 8 * first, &mut bytes)?;
        for (end, &word) in out.iter_mut().zip(bytes.as_chunks().0) {
            *end = u64::from_le_bytes(word);
        }
        Ok(())
    }

    /// The number of documents that end at or before position `token`: the place of its document in this shard.
    pub fn documents_before(&self, token: u64) -> Result<u64> {
        let (mut low, mut high) = (0, self.header.n_documents);
        while low < high {
            let middle = low + (high - low) / 2;
            let mut end = [0];
            self.document_ends(middle, &mut end)?;
            if end[0] <= token {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        Ok(low)
    }

    /// Checks every byte: block checksums, the file's digest, ids, document ends and zero padding.
    pub fn verify(&self, control: &Control) -> Result<()> {
        let mut hasher = blake3::Hasher::new();
        let mut block = vec![0; BLOCK];
        let mut last_end = 0;
        for i in 0..self.layout.n_blocks {
            control.check()?;
            let range = self.layout.block(i);
            let bytes = &mut block[..(range.end - range.start) as usize];
            io::read_exact_at(&self.file, range.start, bytes, &self.path)?;
            self.check_block(i, bytes)?;
            hasher.update(bytes);
            self.check_content(range.start, bytes, &mut last_end)?;
            control.advance(bytes.len() as u64);
        }
        let mut table = vec![0; (self.layout.trailer - self.layout.digests) as usize];
        io::read_exact_at(&self.file, self.layout.digests, &mut table, &self.path)?;
        if table[8 * self.digests.len()..].iter().any(|&b| b != 0) {
            return Err(malformed(&self.path, "expected zeros behind the block digests".to_owned()));
        }
        hasher.update(&table).update(&self.header.to_bytes(&self.layout));
        let got = hasher.finalize();
        if got != blake3::Hash::from_bytes(self.blake3) {
            let (expected, got) = (crate::sealed::hex(&self.blake3), got.to_string());
            return Err(Error::Digest { path: self.path.clone(), what: "file".to_owned(), expected, got });
        }
        Ok(())
    }

    /// Checks what a block with a right digest may still lie about; `at` is its offset in the file.
    fn check_content(&self, at: u64, bytes: &[u8], last_end: &mut u64) -> Result<()> {
        let cut = |end: u64| (end.clamp(at, at + bytes.len() as u64) - at) as usize;
        let ends_end = self.layout.ends + 8 * self.header.n_documents;
        let [tokens, gap, ends, rest] = [
            at..self.layout.tokens_end,
            self.layout.tokens_end..self.layout.ends,
            self.layout.ends..ends_end,
            ends_end..self.layout.digests,
        ]
        .map(|range| &bytes[cut(range.start)..cut(range.end.max(range.start))]);
        let mut ids = vec![0u32; tokens.len() / self.header.spec.dtype.size()];
        widen(self.header.spec.dtype, tokens, &mut ids);
        if let Some(&id) = ids.iter().find(|&&id| u64::from(id) >= self.header.spec.vocab_size) {
            let reason = format!("expected ids below {}, got {id} near byte {at}", self.header.spec.vocab_size);
            return Err(malformed(&self.path, reason));
        }
        for i in (0..ends.len()).step_by(8) {
            let end = u64_at(ends, i);
            if end < *last_end || end > self.header.n_tokens {
                return Err(malformed(&self.path, format!("a document ends at {end}, the one before at {last_end}")));
            }
            *last_end = end;
        }
        if gap.iter().chain(rest).any(|&b| b != 0) {
            return Err(malformed(&self.path, format!("expected zeros between the sections near byte {at}")));
        }
        Ok(())
    }

    /// Fills `out` from `offset` on, after checking each block that it touches for the first time.
    fn read(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        self.check_touched(offset, out.len())?;
        let mapped = self.map.as_ref().and_then(|map| map.as_bytes().get(offset as usize..offset as usize + out.len()));
        match mapped {
            Some(bytes) => out.copy_from_slice(bytes),
            None => io::read_exact_at(&self.file, offset, out, &self.path)?,
        }
        Ok(())
    }

    /// Checks the blocks of `offset .. offset + n` that nobody has touched before.
    fn check_touched(&self, offset: u64, n: usize) -> Result<()> {
        let first = (offset - HEADER as u64) / BLOCK as u64;
        let end = (offset - HEADER as u64 + n as u64).div_ceil(BLOCK as u64);
        for i in first..end {
            let (word, bit) = (&self.checked[i as usize / 64], 1 << (i % 64));
            if word.load(Ordering::Relaxed) & bit == 0 {
                let range = self.layout.block(i);
                let mut block = vec![0; (range.end - range.start) as usize];
                io::read_exact_at(&self.file, range.start, &mut block, &self.path)?;
                self.check_block(i, &block)?;
                word.fetch_or(bit, Ordering::Relaxed);
            }
        }
        Ok(())
    }

    fn check_block(&self, i: u64, bytes: &[u8]) -> Result<()> {
        check(&self.path, format!("block {i}"), self.digests[i as usize], xxh3_64(bytes))
    }
}

/// Bytes that [`Shard::verify`] counts as progress.
pub(crate) fn verified_len(dtype: Dtype, n_tokens: u64, n_documents: u64) -> u64 {
    Layout::new(dtype, n_tokens, n_documents).map_or(0, |layout| layout.digests - HEADER as u64)
}

/// Fails when a value of `T` cannot hold every stored token.
pub(crate) fn check_width<T: Token>(dtype: Dtype) -> Result<()> {
    if T::SIZE < dtype.size() {
        let (got, needed) = (8 * T::SIZE, 8 * dtype.size());
        return Err(Error::Argument(format!(
            "the tokens have {needed} bits, the buffer's elements {got}; hint: use uint32"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shard::{ShardWriter, Spec};

    #[test]
    fn a_mapped_shard_reads_as_one_that_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.gts");
        let spec = Spec { dtype: Dtype::U16, vocab_size: 50_000, eot_id: None, tokenizer: [7; 32] };
        let mut writer = ShardWriter::create(&path, spec).unwrap();
        let ids: Vec<u32> = (0..100_000).map(|i| i * 7919 % 50_000).collect();
        writer.push(&ids).unwrap();
        writer.end_document(1);
        writer.finish().unwrap();
        let mut mapped = Shard::open(&path).unwrap();
        let file = File::open(&path).unwrap();
        mapped.map = Some(Map::of_local(&file, &path).unwrap().unwrap_or(Map::open(&path).unwrap()));
        let mut read = Shard::open(&path).unwrap();
        read.map = None;
        for (start, n) in [(0, 100_000), (99_999, 1), (32_767, 2), (1_234, 40_000), (100_000, 0)] {
            let (mut a, mut b) = (vec![0u16; n], vec![0u16; n]);
            mapped.tokens(start, &mut a).unwrap();
            read.tokens(start, &mut b).unwrap();
            assert!(a == b && a.iter().zip(&ids[start as usize..]).all(|(&a, &id)| u32::from(a) == id));
            let bytes: Vec<u8> = a.iter().flat_map(|id| id.to_le_bytes()).collect();
            assert_eq!(mapped.mapped_tokens(start, n).unwrap(), Some(&bytes[..]));
            assert_eq!(read.mapped_tokens(start, n).unwrap(), None);
        }
        for shard in [&mapped, &read] {
            assert!(shard.token_bytes(99_999, &mut [0; 4]).is_err() && shard.mapped_tokens(99_999, 2).is_err());
        }
    }
}
