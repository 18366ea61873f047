//! What shards, indexes and count files share: blocks behind a header, a digest of each, and a trailer over the whole.

use std::path::Path;

use xxhash_rust::xxh3::xxh3_64;

use super::layout::{BLOCK, HEADER, trailer};
use crate::error::Result;
use crate::io::AtomicFile;

/// A file of blocks under way. Memory: one block, and 8 bytes for each.
#[derive(Debug)]
pub(crate) struct BlockWriter {
    file: AtomicFile,
    block: Vec<u8>,
    digests: Vec<u64>,
    blake3: blake3::Hasher,
}

impl BlockWriter {
    /// Starts the file at `path`; the header comes last.
    pub(crate) fn create(path: &Path) -> Result<Self> {
        Self::create_behind(path, Vec::new())
    }

    /// As [`BlockWriter::create`], for a file whose table starts with `digests` of another file's blocks.
    pub(crate) fn create_behind(path: &Path, digests: Vec<u64>) -> Result<Self> {
        let mut file = AtomicFile::create(path)?;
        file.write(&[0; HEADER])?;
        Ok(Self { file, block: Vec::with_capacity(BLOCK), digests, blake3: blake3::Hasher::new() })
    }

    /// The name that the file will have.
    pub(crate) fn path(&self) -> &Path {
        self.file.path()
    }

    /// Bytes that the block still takes, at least one.
    pub(crate) fn room(&self) -> usize {
        BLOCK - self.block.len()
    }

    /// Appends `n` bytes that `fill` writes; there is room for them.
    #[inline]
    pub(crate) fn append_with(&mut self, n: usize, fill: impl FnOnce(&mut [u8])) -> Result<()> {
        let start = self.block.len();
        self.block.resize(start + n, 0);
        fill(&mut self.block[start..]);
        if self.block.len() == BLOCK { self.write_block() } else { Ok(()) }
    }

    #[inline]
    pub(crate) fn append(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(self.room()));
            self.block.extend_from_slice(now);
            if self.block.len() == BLOCK {
                self.write_block()?;
            }
            bytes = later;
        }
        Ok(())
    }

    /// Appends `n` < 64 zeros.
    pub(crate) fn pad(&mut self, n: u64) -> Result<()> {
        self.append(&[0; 64][..n as usize])
    }

    /// Writes the digests with zeros up to `table_len` bytes, the trailer of a file of `total` bytes, and the header.
    /// Returns the BLAKE3 digest, and the file, which has no name yet.
    pub(crate) fn seal(mut self, header: &[u8; HEADER], table_len: u64, total: u64) -> Result<(AtomicFile, [u8; 32])> {
        if !self.block.is_empty() {
            self.write_block()?;
        }
        let mut table: Vec<u8> = self.digests.iter().flat_map(|digest| digest.to_le_bytes()).collect();
        table.resize(table_len as usize, 0);
        self.blake3.update(&table);
        self.file.write(&table)?;
        let digest = *self.blake3.update(header).finalize().as_bytes();
        self.file.write(&trailer(total, &digest))?;
        self.file.rewrite_start(header)?;
        Ok((self.file, digest))
    }

    fn write_block(&mut self) -> Result<()> {
        self.digests.push(xxh3_64(&self.block));
        self.blake3.update(&self.block);
        self.file.write(&self.block)?;
        self.block.clear();
        Ok(())
    }
}
