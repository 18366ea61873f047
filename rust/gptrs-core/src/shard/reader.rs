//! Reads a shard; no byte of it is used before its checksum was compared.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::area::{Area, Table};
use super::layout::{BLOCK, HEADER, Header, Kind, Layout, TRAILER, malformed, parse_trailer, u64_at};
use super::{Dtype, Payload, Spec, Token, index, widen};
use crate::control::Control;
use crate::error::{Error, Result};
use crate::io;

/// An open shard, or an open index with the tokens that it is about; threads share it.
#[derive(Debug)]
pub struct Shard {
    file: Arc<File>,
    path: PathBuf,
    header: Header,
    layout: Layout,
    blake3: [u8; 32],
    /// What stands behind the header.
    area: Area,
    /// The tokens, where they are in another file.
    payload: Option<Tokens>,
}

/// The tokens of an index.
#[derive(Debug)]
struct Tokens {
    payload: Payload,
    file: Arc<File>,
    area: Area,
}

impl Shard {
    /// Opens the shard or the index at `path` and checks its header, length and trailer; of a payload, its length.
    pub fn open(path: &Path) -> Result<Self> {
        let (file, len) = io::open_regular(path)?;
        if len < (HEADER + TRAILER) as u64 {
            let least = HEADER + TRAILER;
            return Err(malformed(path, format!("expected at least {least} bytes, got {len}; it may be cut")));
        }
        let mut bytes = [0; HEADER];
        io::read_exact_at(&file, 0, &mut bytes, path)?;
        let (header, layout, payload) = match Kind::of(&bytes) {
            Kind::Shard => Header::parse(&bytes, len, path).map(|(header, layout)| (header, layout, None))?,
            Kind::Index => index::parse(&bytes, len, path).map(|(header, layout, of)| (header, layout, Some(of)))?,
        };
        let mut bytes = [0; TRAILER];
        io::read_exact_at(&file, layout.trailer, &mut bytes, path)?;
        let blake3 = parse_trailer(&bytes, len, path)?;
        let (file, path) = (Arc::new(file), path.to_owned());
        let table = Table { file: Arc::clone(&file), path: path.clone(), offset: layout.digests };
        let behind = Table { offset: layout.digests + 8 * layout.n_token_blocks, ..table.clone() };
        let area = Area::new(Arc::clone(&file), &path, HEADER as u64..layout.digests, behind)?;
        let payload = payload.map(|payload| Tokens::open(payload, &header, &path, table)).transpose()?;
        Ok(Self { file, path, header, layout, blake3, area, payload })
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What the file with the tokens is, when they are not in this one.
    pub fn payload(&self) -> Option<&Payload> {
        self.payload.as_ref().map(|tokens| &tokens.payload)
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
        let (area, offset) = self.token_place(start, out.len() / self.header.spec.dtype.size())?;
        area.read(offset, out)
    }

    /// The `n` tokens from `start` on, as stored; `None` when their file is not mapped.
    pub fn mapped_tokens(&self, start: u64, n: usize) -> Result<Option<&[u8]>> {
        let (area, offset) = self.token_place(start, n)?;
        area.mapped(offset, n * self.header.spec.dtype.size())
    }

    /// Where the `n` tokens from `start` on stand.
    fn token_place(&self, start: u64, n: usize) -> Result<(&Area, u64)> {
        self.check_range(start, n)?;
        let (area, first) = match &self.payload {
            None => (&self.area, HEADER as u64),
            Some(tokens) => (&tokens.area, tokens.payload.offset),
        };
        Ok((area, first + start * self.header.spec.dtype.size() as u64))
    }

    fn check_range(&self, start: u64, n: usize) -> Result<()> {
        if start.checked_add(n as u64).is_none_or(|end| end > self.header.n_tokens) {
            let (has, path) = (self.header.n_tokens, self.path.display());
            return Err(Error::Argument(format!("tokens {start} to {start}+{n} are not in the {has} of {path}")));
        }
        Ok(())
    }

    /// Fills `out` with the ends of the documents from `first` on: positions in this shard, each behind a last token.
    pub fn document_ends(&self, first: u64, out: &mut [u64]) -> Result<()> {
        let n = out.len() as u64;
        if first.checked_add(n).is_none_or(|end| end > self.header.n_documents) {
            let (has, path) = (self.header.n_documents, self.path.display());
            return Err(Error::Argument(format!("documents {first} to {first}+{n} are not in the {has} of {path}")));
        }
        // Mostly two are asked for, those around a document of a packed row: no allocation for them.
        let mut few = [0; 16];
        let mut many = Vec::new();
        let bytes = if let Some(few) = few.get_mut(..8 * out.len()) {
            few
        } else {
            many.resize(8 * out.len(), 0);
            &mut many
        };
        self.area.read(self.layout.ends + 8 * first, bytes)?;
        for (end, &word) in out.iter_mut().zip(bytes.as_chunks().0) {
            *end = u64::from_le_bytes(word);
        }
        Ok(())
    }

    /// Fills `out` with whether each token from `start` on is to be predicted; without loss bits, all are.
    pub fn loss_bits(&self, start: u64, out: &mut [bool]) -> Result<()> {
        let n = out.len();
        self.check_range(start, n)?;
        if !self.header.spec.has_loss_bits || n == 0 {
            out.fill(true);
            return Ok(());
        }
        let first = start / 8;
        let mut bytes = vec![0; ((start + n as u64).div_ceil(8) - first) as usize];
        self.area.read(self.layout.bits.start + first, &mut bytes)?;
        for (i, bit) in ((start % 8) as usize..).zip(out) {
            *bit = bytes[i / 8] >> (i % 8) & 1 == 1;
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

    /// Checks every byte: block checksums, the file's digest, ids, document ends and zero padding, that of the last byte of loss bits included.
    pub fn verify(&self, control: &Control) -> Result<()> {
        if let Some(tokens) = &self.payload {
            tokens.verify(&self.header, control)?;
        }
        let mut hasher = blake3::Hasher::new();
        let (mut block, mut last_end) = (Vec::new(), 0);
        for i in 0..self.area.n_blocks() {
            control.check()?;
            let at = self.area.block(i, &mut block)?;
            hasher.update(&block);
            self.check_content(at, &block, &mut last_end)?;
            control.advance(block.len() as u64);
        }
        self.hash_table(&mut hasher)?;
        hasher.update(&match &self.payload {
            None => self.header.to_bytes(&self.layout),
            Some(tokens) => index::to_bytes(&self.header, &tokens.payload, &self.layout),
        });
        compare(&self.path, &self.blake3, &hasher)
    }

    /// Hashes the digests and checks the zeros behind them.
    fn hash_table(&self, hasher: &mut blake3::Hasher) -> Result<()> {
        let zeros = self.layout.digests + self.layout.digests_len();
        let mut part = vec![0; BLOCK];
        for at in (self.layout.digests..self.layout.trailer).step_by(BLOCK) {
            let bytes = &mut part[..(self.layout.trailer - at).min(BLOCK as u64) as usize];
            io::read_exact_at(&self.file, at, bytes, &self.path)?;
            hasher.update(bytes);
            if bytes[(zeros.clamp(at, at + bytes.len() as u64) - at) as usize..].iter().any(|&b| b != 0) {
                return Err(malformed(&self.path, "expected zeros behind the block digests".to_owned()));
            }
        }
        Ok(())
    }

    /// Checks what a block with a right digest may still lie about; `at` is its offset in the file.
    fn check_content(&self, at: u64, bytes: &[u8], last_end: &mut u64) -> Result<()> {
        let cut = |end: u64| (end.clamp(at, at + bytes.len() as u64) - at) as usize;
        let ends_end = self.layout.ends + 8 * self.header.n_documents;
        let bits = &self.layout.bits;
        let [tokens, gap, ends, behind, last_bits, rest] = [
            at..self.layout.tokens_end,
            self.layout.tokens_end..self.layout.ends,
            self.layout.ends..ends_end,
            ends_end..bits.start,
            bits.end.saturating_sub(1).max(bits.start)..bits.end,
            bits.end..self.layout.digests,
        ]
        .map(|range| &bytes[cut(range.start)..cut(range.end.max(range.start))]);
        check_ids(&self.header, tokens, at, &self.path)?;
        for i in (0..ends.len()).step_by(8) {
            let end = u64_at(ends, i);
            if end < *last_end || end > self.header.n_tokens {
                return Err(malformed(&self.path, format!("a document ends at {end}, the one before at {last_end}")));
            }
            *last_end = end;
        }
        if gap.iter().chain(behind).chain(rest).any(|&b| b != 0) {
            return Err(malformed(&self.path, format!("expected zeros between the sections near byte {at}")));
        }
        let n_last = self.header.n_tokens % 8;
        if last_bits.iter().any(|&b| n_last > 0 && b >> n_last != 0) {
            return Err(malformed(&self.path, "expected zeros behind the last token's loss bit".to_owned()));
        }
        Ok(())
    }
}

impl Tokens {
    /// Opens the payload of the index at `path`, whose digests are in `table`.
    fn open(payload: Payload, header: &Header, path: &Path, table: Table) -> Result<Self> {
        let at = payload.locate(path)?;
        let (file, len) = io::open_regular(&at)?;
        if len != payload.len {
            let (name, expected) = (path.display(), payload.len);
            let reason = format!("expected {expected} bytes, got {len}; {name} was made of another file");
            return Err(Error::Format { path: at, format: payload.format.file(), reason });
        }
        let file = Arc::new(file);
        let end = payload.offset + header.n_tokens * header.spec.dtype.size() as u64;
        let area = Area::new(Arc::clone(&file), &at, payload.offset..end, table)?;
        Ok(Self { payload, file, area })
    }

    /// Checks every byte of the file; its tokens count as progress, as many as in a shard.
    fn verify(&self, header: &Header, control: &Control) -> Result<()> {
        let (path, mut hasher) = (self.area.path(), blake3::Hasher::new());
        let mut block = Vec::new();
        self.hash(0..self.payload.offset, &mut hasher, control)?;
        let mut end = self.payload.offset;
        for i in 0..self.area.n_blocks() {
            control.check()?;
            let at = self.area.block(i, &mut block)?;
            hasher.update(&block);
            check_ids(header, &block, at, path)?;
            control.advance(block.len() as u64);
            end += block.len() as u64;
        }
        let n = end - self.payload.offset;
        control.advance(n.next_multiple_of(64) - n);
        self.hash(end..self.payload.len, &mut hasher, control)?;
        compare(path, &self.payload.blake3, &hasher)
    }

    /// Hashes bytes that are no tokens.
    fn hash(&self, range: std::ops::Range<u64>, hasher: &mut blake3::Hasher, control: &Control) -> Result<()> {
        let mut part = vec![0; BLOCK];
        for at in range.clone().step_by(BLOCK) {
            control.check()?;
            let bytes = &mut part[..(range.end - at).min(BLOCK as u64) as usize];
            io::read_exact_at(&self.file, at, bytes, self.area.path())?;
            hasher.update(bytes);
        }
        Ok(())
    }
}

/// Fails at an id outside the vocabulary; `at` is the offset of `tokens` in the file.
fn check_ids(header: &Header, tokens: &[u8], at: u64, path: &Path) -> Result<()> {
    let mut ids = vec![0u32; tokens.len() / header.spec.dtype.size()];
    widen(header.spec.dtype, tokens, &mut ids);
    let Some(&id) = ids.iter().find(|&&id| u64::from(id) >= header.spec.vocab_size) else { return Ok(()) };
    Err(malformed(path, format!("expected ids below {}, got {id} near byte {at}", header.spec.vocab_size)))
}

/// Fails when a file's digest is not the stored one.
fn compare(path: &Path, expected: &[u8; 32], hasher: &blake3::Hasher) -> Result<()> {
    let got = hasher.finalize();
    if got == blake3::Hash::from_bytes(*expected) {
        return Ok(());
    }
    let (expected, got) = (crate::sealed::hex(expected), got.to_string());
    Err(Error::Digest { path: path.to_owned(), what: "file".to_owned(), expected, got })
}

/// Bytes that [`Shard::verify`] counts as progress.
pub(crate) fn verified_len(spec: &Spec, n_tokens: u64, n_documents: u64) -> u64 {
    Layout::new(Kind::Shard, spec, n_tokens, n_documents).map_or(0, |layout| layout.digests - HEADER as u64)
}

/// Length of the shard, or of the index, with these counts.
pub(crate) fn file_len(is_index: bool, spec: &Spec, n_tokens: u64, n_documents: u64) -> Option<u64> {
    let kind = if is_index { Kind::Index } else { Kind::Shard };
    Layout::new(kind, spec, n_tokens, n_documents).map(|layout| layout.total)
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
    use crate::io::Map;
    use crate::shard::ShardWriter;

    #[test]
    fn a_mapped_shard_reads_as_one_that_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.gts");
        let spec =
            Spec { dtype: Dtype::U16, vocab_size: 50_000, eot_id: None, tokenizer: [7; 32], has_loss_bits: false };
        let mut writer = ShardWriter::create(&path, spec).unwrap();
        let ids: Vec<u32> = (0..100_000).map(|i| i * 7919 % 50_000).collect();
        writer.push(&ids).unwrap();
        writer.end_document(1);
        writer.finish().unwrap();
        let mut mapped = Shard::open(&path).unwrap();
        mapped.area.set_map(Some(Map::open(&path).unwrap()));
        let mut read = Shard::open(&path).unwrap();
        read.area.set_map(None);
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
