//! A column of numbers in a file, read a piece at a time.

use std::fs::File;
use std::path::Path;

use crate::error::Result;
use crate::io;

/// Bytes that are read at once.
const AT_ONCE: u64 = 64 << 10;

/// Signed numbers of 4 or 8 bytes, one behind the other. Memory: one piece, whatever the file says.
#[derive(Debug)]
pub(super) struct Column<'a> {
    file: &'a File,
    path: &'a Path,
    size: usize,
    /// Offset of what is not read yet, and of the end.
    rest: (u64, u64),
    piece: Vec<u8>,
    at: usize,
}

impl<'a> Column<'a> {
    /// The `n` numbers of `size` bytes from `offset` on, which the file has.
    pub(super) fn new(file: &'a File, path: &'a Path, size: usize, offset: u64, n: u64) -> Self {
        Self { file, path, size, rest: (offset, offset + n * size as u64), piece: Vec::new(), at: 0 }
    }

    /// The next number, while there is one.
    pub(super) fn next(&mut self) -> Result<Option<i64>> {
        if self.at == self.piece.len() {
            let (from, end) = self.rest;
            let n = (end - from).min(AT_ONCE);
            if n == 0 {
                return Ok(None);
            }
            self.piece.resize(n as usize, 0);
            io::read_exact_at(self.file, from, &mut self.piece, self.path)?;
            (self.rest.0, self.at) = (from + n, 0);
        }
        let bytes = &self.piece[self.at..self.at + self.size];
        self.at += self.size;
        Ok(Some(match bytes.try_into() {
            Ok(four) => i64::from(i32::from_le_bytes(four)),
            Err(_) => crate::shard::u64_at(bytes, 0) as i64,
        }))
    }
}
