//! Reads a count file block by block, each one compared with its digest before a byte of it is used.

use std::fs::File;
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::xxh3_64;

use super::writer::show;
use super::{BLOCK, HEADER, HINT, Header, Layout, RECORD, TRAILER, check, malformed};
use crate::error::Result;
use crate::io::{open_regular, read_exact_at};
use crate::shard::trailer;

/// Digests that are read at once.
const DIGESTS: usize = 1 << 10;

/// A count file, read from its first word to its last. Memory: one block, 8 KiB of digests, the current word.
#[derive(Debug)]
pub struct CountFile {
    file: File,
    path: PathBuf,
    header: Header,
    layout: Layout,
    /// What the records read so far add up to.
    seen: Header,
    block: Vec<u8>,
    at: usize,
    /// Number of the next block.
    next_block: u64,
    digests: Vec<u8>,
    blake3: blake3::Hasher,
    last: Vec<u8>,
    is_finished: bool,
}

impl CountFile {
    /// Opens a file and checks its header, its length and its last bytes.
    pub fn open(path: &Path) -> Result<Self> {
        let (file, len) = open_regular(path)?;
        Self::from_file(file, len, path)
    }

    /// As [`CountFile::open`] for an open file of `len` bytes; `path` is for messages.
    pub(in crate::count) fn from_file(file: File, len: u64, path: &Path) -> Result<Self> {
        if len < (HEADER + TRAILER) as u64 {
            let shortest = HEADER + TRAILER;
            return Err(malformed(path, format!("expected at least {shortest} bytes, got {len}; {HINT}")));
        }
        let mut bytes = [0; HEADER];
        read_exact_at(&file, 0, &mut bytes, path)?;
        let (header, layout) = Header::parse(&bytes, len, path)?;
        let seen = Header::with_counts(header.pattern_name.clone(), header.regex.clone(), [0; 5]);
        let (block, digests, last) = (Vec::new(), Vec::new(), Vec::new());
        let (at, next_block, blake3) = (0, 0, blake3::Hasher::new());
        let (path, is_finished) = (path.to_owned(), false);
        Ok(Self { file, path, header, layout, seen, block, at, next_block, digests, blake3, last, is_finished })
    }

    /// What the file says about its words.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file's length.
    pub fn len_bytes(&self) -> u64 {
        self.layout.total
    }

    /// Replaces `word` by the next word and returns its count; `None` after the last one, when all sums and the file's
    /// digest have been compared.
    pub fn next(&mut self, word: &mut Vec<u8>) -> Result<Option<u64>> {
        let left = self.header.records_len - self.seen.records_len;
        if left == 0 {
            if !self.is_finished {
                self.finish()?;
                self.is_finished = true;
            }
            return Ok(None);
        }
        if left <= RECORD as u64 {
            return Err(self.bad_record(&format!("a record needs more than {RECORD} bytes, {left} are left")));
        }
        let mut fields = [0; RECORD];
        self.read(&mut fields)?;
        let (count, len) = fields.split_at(8);
        let n = count.iter().rev().fold(0, |n, &byte| n << 8 | u64::from(byte));
        let len = len.iter().rev().fold(0, |n, &byte| n << 8 | usize::from(byte));
        if n == 0 || len == 0 || len as u64 > left - RECORD as u64 {
            return Err(self.bad_record(&format!("a word of {len} bytes, {n} times, with {left} bytes left")));
        }
        self.read_word(len, word)?;
        if self.seen.n_words > 0 && *word <= self.last {
            let (word, last) = (show(word), show(&self.last));
            return Err(self.bad_record(&format!("the word {word} does not stand behind {last}")));
        }
        if self.seen.include(len, n).is_none() {
            return Err(self.bad_record("the sums exceed 64 bits"));
        }
        self.last.clear();
        self.last.extend_from_slice(word);
        Ok(Some(n))
    }

    /// Compares the sums with the header's, the gap with zero and the whole with its digest.
    fn finish(&mut self) -> Result<()> {
        self.seen.n_documents = self.header.n_documents;
        if self.seen != self.header {
            let (got, expected) = (&self.seen, &self.header);
            let sums = |h: &Header| format!("{} words, {} pieces, {} bytes", h.n_words, h.n_pieces, h.n_bytes);
            let reason = format!("its records hold {}, its header says {}; {HINT}", sums(got), sums(expected));
            return Err(malformed(&self.path, reason));
        }
        let gap = self.layout.digests - HEADER as u64 - self.header.records_len;
        let mut zeros = [0; 64];
        self.read(&mut zeros[..gap as usize])?;
        let mut table = vec![0; 8 * DIGESTS];
        let mut at = self.layout.digests;
        while at < self.layout.trailer {
            let part = &mut table[..(self.layout.trailer - at).min(8 * DIGESTS as u64) as usize];
            read_exact_at(&self.file, at, part, &self.path)?;
            self.blake3.update(part);
            at += part.len() as u64;
        }
        let digest = *self.blake3.update(&self.header.to_bytes(&self.layout)).finalize().as_bytes();
        let mut end = [0; TRAILER];
        read_exact_at(&self.file, self.layout.trailer, &mut end, &self.path)?;
        // The gap behind the table counts as well: the writer left zeros.
        let n_digests = (8 * self.layout.n_blocks) as usize;
        let table_gap = (self.layout.trailer - self.layout.digests) as usize - n_digests;
        let mut rest = [0; 64];
        read_exact_at(&self.file, self.layout.trailer - table_gap as u64, &mut rest[..table_gap], &self.path)?;
        if end != trailer(self.layout.total, &digest) || zeros != [0; 64] || rest != [0; 64] {
            let at = self.layout.trailer;
            return Err(malformed(&self.path, format!("its contents do not fit the digest at byte {at}; {HINT}")));
        }
        Ok(())
    }

    /// Reads the `len` bytes of a word; memory grows with the bytes that are there, whatever `len` says.
    fn read_word(&mut self, len: usize, word: &mut Vec<u8>) -> Result<()> {
        word.clear();
        while word.len() < len {
            if self.at == self.block.len() {
                self.next_block()?;
            }
            let n = (len - word.len()).min(self.block.len() - self.at);
            word.extend_from_slice(&self.block[self.at..self.at + n]);
            self.at += n;
        }
        Ok(())
    }

    fn read(&mut self, mut out: &mut [u8]) -> Result<()> {
        while !out.is_empty() {
            if self.at == self.block.len() {
                self.next_block()?;
            }
            let n = out.len().min(self.block.len() - self.at);
            let (now, later) = out.split_at_mut(n);
            now.copy_from_slice(&self.block[self.at..self.at + n]);
            self.at += n;
            out = later;
        }
        Ok(())
    }

    /// Reads one more block and compares its digest.
    fn next_block(&mut self) -> Result<()> {
        let i = self.next_block;
        let start = HEADER as u64 + i * BLOCK as u64;
        let len = self.layout.digests.saturating_sub(start).min(BLOCK as u64) as usize;
        if len == 0 {
            return Err(self.bad_record("expected a further record, got the end of all records"));
        }
        if (i as usize).is_multiple_of(DIGESTS) {
            let n = (self.layout.n_blocks - i).min(DIGESTS as u64) as usize;
            self.digests.resize(8 * n, 0);
            read_exact_at(&self.file, self.layout.digests + 8 * i, &mut self.digests, &self.path)?;
        }
        self.block.resize(len, 0);
        read_exact_at(&self.file, start, &mut self.block, &self.path)?;
        let expected = crate::shard::u64_at(&self.digests, 8 * (i as usize % DIGESTS));
        check(&self.path, &format!("block {i} (byte {start})"), expected, xxh3_64(&self.block))?;
        self.blake3.update(&self.block);
        (self.at, self.next_block) = (0, i + 1);
        Ok(())
    }

    fn bad_record(&self, reason: &str) -> crate::Error {
        let (n, at) = (self.seen.n_words, HEADER as u64 + self.seen.records_len);
        malformed(&self.path, format!("record {n} at byte {at}: {reason}; {HINT}"))
    }
}
