//! A stretch of a file in blocks, each compared with its digest when it is first touched.

use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use once_cell::race::OnceBox;
use xxhash_rust::xxh3::xxh3_64;

use super::layout::{BLOCK, check};
use crate::error::Result;
use crate::io::{self, Map};

/// Blocks of 256 MiB, whose bits are 512 bytes.
const PAGE: u64 = 4096;

/// A stretch of a file and where its digests stand.
///
/// The first read of a block goes through `pread`, so a damaged disk is an error. On a file system of this machine later
/// ones go through a map, at a third of the cost.
///
/// Digests are read when a block is touched, and each block is compared once, so none of them is kept: an area of a
/// terabyte costs 32 KiB, and up to 2 MiB, one bit for each block, as its blocks are read.
#[derive(Debug)]
pub(super) struct Area {
    file: Arc<File>,
    map: Option<Map>,
    path: PathBuf,
    range: Range<u64>,
    table: Table,
    /// The blocks that were compared with their digests, a page for each stretch that a read has touched. All of them at
    /// once, zeroed, were half of the work for a first batch from large shards.
    checked: Vec<OnceBox<Page>>,
}

/// One bit for each of [`PAGE`] blocks.
type Page = [AtomicU64; PAGE as usize / 64];

/// The digests of an area's blocks, from an offset of a file on.
#[derive(Debug, Clone)]
pub(super) struct Table {
    pub(super) file: Arc<File>,
    pub(super) path: PathBuf,
    pub(super) offset: u64,
}

impl Area {
    /// The bytes `range` of `file`.
    pub(super) fn new(file: Arc<File>, path: &Path, range: Range<u64>, table: Table) -> Result<Self> {
        let n_blocks = n_blocks(range.end - range.start);
        let checked = (0..n_blocks.div_ceil(PAGE)).map(|_| OnceBox::new()).collect();
        let map = Map::of_local(&file, path)?;
        Ok(Self { file, map, path: path.to_owned(), range, table, checked })
    }

    /// The file that the bytes are in.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Number of blocks.
    pub(super) fn n_blocks(&self) -> u64 {
        n_blocks(self.range.end - self.range.start)
    }

    /// Fills `out` from `offset` of the file on, after checking each block that it touches for the first time.
    pub(super) fn read(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        match self.mapped(offset, out.len())? {
            Some(bytes) => out.copy_from_slice(bytes),
            None => io::read_exact_at(&self.file, offset, out, &self.path)?,
        }
        Ok(())
    }

    /// The `n` bytes from `offset` of the file on, checked in the same way; `None` when the file is not mapped.
    pub(super) fn mapped(&self, offset: u64, n: usize) -> Result<Option<&[u8]>> {
        let first = (offset - self.range.start) / BLOCK as u64;
        let end = (offset - self.range.start + n as u64).div_ceil(BLOCK as u64);
        let mut block = Vec::new();
        for i in first..end {
            // Two threads may both make a page, but none waits for another: after a fork it could wait forever.
            let page = self.checked[(i / PAGE) as usize].get_or_init(|| Box::new([const { AtomicU64::new(0) }; _]));
            let (word, bit) = (&page[(i % PAGE) as usize / 64], 1 << (i % 64));
            if word.load(Ordering::Relaxed) & bit == 0 {
                self.block(i, &mut block)?;
                word.fetch_or(bit, Ordering::Relaxed);
            }
        }
        Ok(self.map.as_ref().and_then(|map| map.as_bytes().get(offset as usize..offset as usize + n)))
    }

    #[cfg(test)]
    pub(super) fn set_map(&mut self, map: Option<Map>) {
        self.map = map;
    }

    /// Replaces `block` by block `i`, whatever was checked before; returns its offset in the file.
    pub(super) fn block(&self, i: u64, block: &mut Vec<u8>) -> Result<u64> {
        let start = self.range.start + i * BLOCK as u64;
        block.resize((self.range.end - start).min(BLOCK as u64) as usize, 0);
        io::read_exact_at(&self.file, start, block, &self.path)?;
        let mut digest = [0; 8];
        io::read_exact_at(&self.table.file, self.table.offset + 8 * i, &mut digest, &self.table.path)?;
        check(&self.path, format!("block {i}"), u64::from_le_bytes(digest), xxh3_64(block))?;
        Ok(start)
    }
}

/// Blocks of `len` bytes.
pub(super) fn n_blocks(len: u64) -> u64 {
    len.div_ceil(BLOCK as u64)
}
