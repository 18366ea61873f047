//! Plans as files beside the shards, so that each is made once. Anything but a whole plan of the dataset is made anew.
//!
//! ```text
//! header 72 │ for each part: counts, row starts, documents, long documents, all u32 │ BLAKE3 of all before
//! ```
//! docs/formats.md has every field.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use super::part::{Long, Part};
use super::{Plan, check_seq_len, digest, documents, n_documents, n_parts};
use crate::control::Control;
use crate::dataset::Dataset;
use crate::error::Result;
use crate::io::{self, AtomicFile};
use crate::sealed::hex;

const MAGIC: &[u8; 8] = b"GPTRSPAK";
const VERSION: u64 = 1;
const HEADER: usize = 72;

/// Bytes that are converted at once.
const CHUNK: usize = 64 << 10;

impl Plan {
    /// The plan of `dataset` from its file; without a whole one it is made, and written if the folder allows that.
    pub fn cached(dataset: &Dataset, seq_len: usize, threads: usize, control: &Control) -> Result<Self> {
        check_seq_len(seq_len)?;
        let path = Self::path(dataset, seq_len);
        if let Some(plan) = Self::read(dataset, seq_len, n_documents(dataset)?, &path) {
            return Ok(plan);
        }
        let plan = Self::bestfit(dataset, seq_len, threads, control)?;
        // The plan is whole in memory: a folder that is read-only or full only means that it is made again.
        let _ = plan.write(&path);
        Ok(plan)
    }

    /// Where the plan's file is: the first 8 bytes of its digest are its name.
    pub fn path(dataset: &Dataset, seq_len: usize) -> PathBuf {
        let digest = digest(dataset.fingerprint(), seq_len);
        dataset.dir().join(format!("pack-{}.gtp", hex(&digest[..8])))
    }

    fn header(&self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[16..48].copy_from_slice(&self.digest);
        let numbers = [(8, VERSION), (48, self.seq_len as u64), (56, self.n_documents), (64, self.n_rows())];
        for (at, number) in numbers {
            bytes[at..at + 8].copy_from_slice(&number.to_le_bytes());
        }
        bytes
    }

    fn write(&self, path: &Path) -> Result<()> {
        let mut file = AtomicFile::create(path)?;
        let mut hasher = blake3::Hasher::new();
        let mut append = |bytes: &[u8]| {
            hasher.update(bytes);
            file.write(bytes)
        };
        append(&self.header())?;
        let mut bytes = Vec::with_capacity(CHUNK);
        for part in &self.parts {
            let counts = [part.starts.len() - 1, part.documents.len(), part.longs.len()].map(|n| n as u32);
            let longs = part.longs.iter().flat_map(|long| [long.document, long.row, long.n_full]);
            let numbers = counts.into_iter().chain([part.n_full]);
            let numbers = numbers.chain(part.starts.iter().copied()).chain(part.documents.iter().copied());
            for number in numbers.chain(longs) {
                bytes.extend_from_slice(&number.to_le_bytes());
                if bytes.len() == CHUNK {
                    append(&bytes)?;
                    bytes.clear();
                }
            }
        }
        append(&bytes)?;
        let digest = hasher.finalize();
        file.write(digest.as_bytes())?;
        file.commit()
    }

    /// The plan in the file at `path`; none when it is not the whole plan of this dataset.
    fn read(dataset: &Dataset, seq_len: usize, n_documents: u64, path: &Path) -> Option<Self> {
        let (file, _) = io::open_regular(path).ok()?;
        let mut reader = Reader { file: BufReader::with_capacity(CHUNK, file), hasher: blake3::Hasher::new() };
        let mut header = [0; HEADER];
        reader.fill(&mut header)?;
        let n_parts = n_parts(dataset, n_documents, seq_len);
        let mut parts = Vec::new();
        for i in 0..n_parts {
            let range = documents(n_documents, n_parts, i as usize);
            parts.push(reader.part((range.end - range.start) as u32)?);
        }
        let expected = reader.hasher.finalize();
        let mut stored = [0; 32];
        reader.file.read_exact(&mut stored).ok()?;
        let is_end = reader.file.read(&mut [0]).ok()? == 0;
        let plan = Self::from_parts(dataset, seq_len, n_documents, parts);
        let n_full: u64 = plan.parts.iter().map(|part| u64::from(part.n_full)).sum();
        let has_tokens = n_full.saturating_mul(seq_len as u64) <= dataset.n_tokens();
        (is_end && has_tokens && expected.as_bytes() == &stored && plan.header() == header).then_some(plan)
    }
}

/// A file under way; every count is bounded before anything is allocated for it.
struct Reader {
    file: BufReader<File>,
    hasher: blake3::Hasher,
}

impl Reader {
    fn fill(&mut self, out: &mut [u8]) -> Option<()> {
        self.file.read_exact(out).ok()?;
        self.hasher.update(out);
        Some(())
    }

    fn numbers(&mut self, n: usize) -> Option<Vec<u32>> {
        let mut numbers = Vec::with_capacity(n);
        let mut bytes = [0; 4096];
        while numbers.len() < n {
            let some = &mut bytes[..(4 * (n - numbers.len())).min(4096)];
            self.fill(some)?;
            numbers.extend(some.as_chunks().0.iter().map(|&bytes| u32::from_le_bytes(bytes)));
        }
        Some(numbers)
    }

    /// The plan of a part of `n_documents`.
    fn part(&mut self, n_documents: u32) -> Option<Part> {
        let [n_packed, n_pieces, n_longs, n_full]: [u32; 4] = self.numbers(4)?.try_into().ok()?;
        if n_packed.max(n_pieces).max(n_longs) > n_documents {
            return None;
        }
        let starts = self.numbers(n_packed as usize + 1)?;
        let documents = self.numbers(n_pieces as usize)?;
        let longs = self.numbers(3 * n_longs as usize)?;
        let longs = longs.as_chunks().0.iter().map(|&[document, row, n_full]| Long { document, row, n_full }).collect();
        Some(Part { starts, documents, longs, n_full }).filter(|part| part.is_sound(n_documents))
    }
}
