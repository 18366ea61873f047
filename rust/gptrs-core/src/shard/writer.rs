//! Writes a shard in one pass; it appears under its name when it is whole.

use std::path::Path;

use xxhash_rust::xxh3::xxh3_64;

use super::Dtype;
use super::layout::{BLOCK, HEADER, Header, Layout, Spec, malformed, trailer};
use crate::error::{Error, Result};
use crate::io::AtomicFile;

/// A shard under way. Memory: one block, 8 bytes for each document and for each block.
#[derive(Debug)]
pub struct ShardWriter {
    file: AtomicFile,
    header: Header,
    ends: Vec<u64>,
    digests: Vec<u64>,
    block: Vec<u8>,
    blake3: blake3::Hasher,
}

impl ShardWriter {
    /// Starts the shard at `path`.
    pub fn create(path: &Path, spec: Spec) -> Result<Self> {
        if spec.vocab_size > 1 << 32 || Dtype::for_vocab(spec.vocab_size) != spec.dtype {
            let (vocab_size, dtype) = (spec.vocab_size, spec.dtype.name());
            return Err(Error::Argument(format!("a vocabulary of {vocab_size} ids is not stored as {dtype}")));
        }
        let mut file = AtomicFile::create(path)?;
        file.write(&[0; HEADER])?;
        let header = Header { spec, n_tokens: 0, n_documents: 0, n_bytes: 0 };
        let (ends, digests, block) = (Vec::new(), Vec::new(), Vec::with_capacity(BLOCK));
        Ok(Self { file, header, ends, digests, block, blake3: blake3::Hasher::new() })
    }

    /// The counts so far.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Appends tokens; an id outside the vocabulary is refused and nothing is written.
    pub fn push(&mut self, ids: &[u32]) -> Result<()> {
        let limit = self.header.spec.vocab_size;
        // The maximum compiles to a vector loop; the search only runs for the message.
        if ids.iter().max().is_some_and(|&id| u64::from(id) >= limit) {
            let position = ids.iter().position(|&id| u64::from(id) >= limit).unwrap_or(0);
            return Err(Error::UnknownId { id: ids[position], position, vocab_size: limit as usize });
        }
        let size = self.header.spec.dtype.size();
        let mut rest = ids;
        while !rest.is_empty() {
            let (now, later) = rest.split_at(rest.len().min((BLOCK - self.block.len()) / size));
            let start = self.block.len();
            self.block.resize(start + now.len() * size, 0);
            narrow(self.header.spec.dtype, now, &mut self.block[start..]);
            if self.block.len() == BLOCK {
                self.write_block()?;
            }
            rest = later;
        }
        self.header.n_tokens += ids.len() as u64;
        Ok(())
    }

    /// Ends a document here; `n_bytes` is the length of its whole text.
    pub fn end_document(&mut self, n_bytes: u64) {
        self.ends.push(self.header.n_tokens);
        self.header.n_documents += 1;
        self.header.n_bytes += n_bytes;
    }

    /// Writes what stands behind the tokens, then the header, and gives the file its name. Returns its counts and
    /// BLAKE3 digest.
    pub fn finish(mut self) -> Result<(Header, [u8; 32])> {
        let layout = Layout::new(self.header.spec.dtype, self.header.n_tokens, self.header.n_documents)
            .ok_or_else(|| malformed(self.file.path(), "its length exceeds 64 bits".to_owned()))?;
        self.pad(layout.ends - layout.tokens_end)?;
        for end in std::mem::take(&mut self.ends) {
            self.append(&end.to_le_bytes())?;
        }
        self.pad(layout.digests - layout.ends - 8 * self.header.n_documents)?;
        if !self.block.is_empty() {
            self.write_block()?;
        }
        let mut table: Vec<u8> = self.digests.iter().flat_map(|digest| digest.to_le_bytes()).collect();
        table.resize((layout.trailer - layout.digests) as usize, 0);
        self.blake3.update(&table);
        self.file.write(&table)?;
        let header = self.header.to_bytes(&layout);
        let digest = *self.blake3.update(&header).finalize().as_bytes();
        self.file.write(&trailer(layout.total, &digest))?;
        self.file.rewrite_start(&header)?;
        self.file.commit()?;
        Ok((self.header, digest))
    }

    fn pad(&mut self, n: u64) -> Result<()> {
        self.append(&[0; 64][..n as usize])
    }

    fn append(&mut self, bytes: &[u8]) -> Result<()> {
        let (now, later) = bytes.split_at(bytes.len().min(BLOCK - self.block.len()));
        self.block.extend_from_slice(now);
        if self.block.len() == BLOCK {
            self.write_block()?;
        }
        self.block.extend_from_slice(later);
        Ok(())
    }

    fn write_block(&mut self) -> Result<()> {
        self.digests.push(xxh3_64(&self.block));
        self.blake3.update(&self.block);
        self.file.write(&self.block)?;
        self.block.clear();
        Ok(())
    }
}

/// Writes `ids`, which fit, as stored.
fn narrow(dtype: Dtype, ids: &[u32], out: &mut [u8]) {
    match dtype {
        Dtype::U16 => {
            for (bytes, &id) in out.as_chunks_mut().0.iter_mut().zip(ids) {
                *bytes = (id as u16).to_le_bytes();
            }
        }
        Dtype::U32 => {
            for (bytes, &id) in out.as_chunks_mut().0.iter_mut().zip(ids) {
                *bytes = id.to_le_bytes();
            }
        }
    }
}
