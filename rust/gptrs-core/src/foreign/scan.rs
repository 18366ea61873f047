//! One read of all files by all threads: digests, ids, ends of documents, bytes of text.

use std::fs::File;
use std::path::Path;

use xxhash_rust::xxh3::xxh3_64;

use super::ImportOptions;
use super::source::{Source, malformed};
use crate::control::Control;
use crate::error::Result;
use crate::io;
use crate::manifest::Source as Input;
use crate::parallel;
use crate::prepare::check::{Digest, root};
use crate::sealed::from_hex;
use crate::shard::{BLOCK, Dtype, Spec, widen};
use crate::tokenizer::Tokenizer;

/// Bytes that a thread reads at once; a power of two of BLAKE3's chunks.
const PART: u64 = 4 << 20;

/// What the ids are those of.
#[derive(Debug)]
pub(super) struct Target {
    eot_id: Option<u32>,
    digest: [u8; 32],
    /// Bytes of each id's text; none of the id that ends a document.
    lens: Vec<u32>,
}

impl Target {
    pub(super) fn new(tokenizer: &Tokenizer) -> Self {
        let eot_id = tokenizer.eot_id();
        let len = |id| if Some(id) == eot_id { 0 } else { tokenizer.token_bytes(id).map_or(0, <[u8]>::len) as u32 };
        let lens = (0..tokenizer.vocab_size() as u32).map(len).collect();
        Self { eot_id, digest: tokenizer.digest(), lens }
    }

    pub(super) fn vocab_size(&self) -> u64 {
        self.lens.len() as u64
    }

    /// What the files' indexes have in common.
    pub(super) fn spec(&self, dtype: Dtype) -> Spec {
        Spec { dtype, vocab_size: self.vocab_size(), eot_id: self.eot_id, tokenizer: self.digest, has_loss_bits: false }
    }
}

/// What the read found.
pub(super) struct Scanned {
    /// One for each source.
    pub(super) files: Vec<ScannedFile>,
    /// All files that were read, companions included.
    pub(super) inputs: Vec<Input>,
}

/// What an index says of its payload.
pub(super) struct ScannedFile {
    pub(super) blake3: [u8; 32],
    /// Digests of the tokens' blocks.
    pub(super) blocks: Vec<u64>,
    pub(super) ends: Vec<u64>,
    /// Bytes of the texts of those documents.
    pub(super) n_bytes: u64,
}

/// A file to read; only that of a source itself has tokens.
struct Task<'a> {
    path: &'a Path,
    len: u64,
    tokens: Option<&'a Source>,
}

/// Part `k` of a file.
struct Part {
    digest: Digest,
    blocks: Vec<u64>,
    /// Places of the end-of-text id, where no companion says the ends.
    marks: Vec<u64>,
    n_bytes: u64,
    /// Of these, the bytes behind the last mark.
    tail: u64,
}

/// Reads the sources and their companions.
pub(super) fn scan(sources: &[Source], target: &Target, options: &ImportOptions, control: &Control) -> Result<Scanned> {
    let of = |source| {
        let Source { files, .. }: &Source = source;
        files.iter().enumerate().map(move |(i, file)| Task {
            path: &file.path,
            len: file.len,
            tokens: (i == 0).then_some(source),
        })
    };
    let tasks: Vec<Task> = sources.iter().flat_map(of).collect();
    let parts = read(&tasks, target, options.threads, control)?;
    sources.iter().flat_map(|source| &source.files).try_for_each(super::source::Stamp::refuse_changed)?;
    let mut files = Vec::new();
    let mut inputs = Vec::new();
    let mut open = Open::default();
    for (task, parts) in tasks.iter().zip(parts) {
        let blake3 = root(&parts.iter().map(|part| part.digest).collect::<Vec<_>>());
        let name = task.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if let Some(source) = task.tokens {
            let bytes = from_hex(&blake3).unwrap_or_default(); // hexadecimal digits of our own
            let is_last = files.len() + 1 == sources.len();
            files.push(open.add(source, parts, bytes, options.eot_first, is_last));
        }
        inputs.push(Input { name, n_bytes: task.len, blake3 });
    }
    Ok(Scanned { files, inputs })
}

/// The parts of each file.
fn read(tasks: &[Task], target: &Target, threads: usize, control: &Control) -> Result<Vec<Vec<Part>>> {
    let n_parts = |task: &Task| task.len.div_ceil(PART).max(1);
    let numbered: Vec<(usize, u64)> =
        tasks.iter().enumerate().flat_map(|(i, task)| (0..n_parts(task)).map(move |k| (i, k))).collect();
    control.begin("scan bytes", tasks.iter().map(|task| task.len).sum());
    let state = || (Vec::new(), Vec::new());
    let states = parallel::run(threads, numbered.len(), control, state, |(buffer, done), number| {
        let (i, k) = numbered[number];
        let part = read_part(&tasks[i], k * PART, target, buffer)?;
        done.push((number, part));
        control.advance((tasks[i].len - k * PART).min(PART));
        Ok(())
    })?;
    let mut done: Vec<(usize, Part)> = states.into_iter().flat_map(|(_, done)| done).collect();
    done.sort_unstable_by_key(|(number, _)| *number);
    let mut parts = done.into_iter().map(|(_, part)| part);
    Ok(tasks.iter().map(|task| parts.by_ref().take(n_parts(task) as usize).collect()).collect())
}

/// Reads the part from `start` on, and the rest of the last block of tokens that begins in it.
fn read_part(task: &Task, start: u64, target: &Target, buffer: &mut Vec<u8>) -> Result<Part> {
    let end = (start + PART).min(task.len);
    let blocks = task.tokens.map_or(0..0, |source| blocks_of(source, start, end));
    let block = |source: &Source, i: u64| {
        let from = source.offset + i * BLOCK as u64;
        let tokens_end = source.offset + source.n_tokens * source.dtype.size() as u64;
        from..(from + BLOCK as u64).min(tokens_end)
    };
    let last = task.tokens.filter(|_| !blocks.is_empty()).map_or(end, |source| block(source, blocks.end - 1).end);
    buffer.resize((last.max(end) - start) as usize, 0);
    let (file, _): (File, u64) = io::open_regular(task.path)?;
    io::read_exact_at(&file, start, buffer, task.path)?;
    let bytes = &buffer[..(end - start) as usize];
    let digest = if end - start == task.len {
        Digest::Whole(blake3::hash(bytes))
    } else {
        use blake3::hazmat::HasherExt;
        Digest::Node(blake3::Hasher::new().set_input_offset(start).update(bytes).finalize_non_root())
    };
    let mut part = Part { digest, blocks: Vec::new(), marks: Vec::new(), n_bytes: 0, tail: 0 };
    let mut ids = Vec::new();
    for i in blocks {
        let Some(source) = task.tokens else { break };
        let range = block(source, i);
        let bytes = &buffer[(range.start - start) as usize..(range.end - start) as usize];
        part.blocks.push(xxh3_64(bytes));
        ids.resize(bytes.len() / source.dtype.size(), 0);
        widen(source.dtype, bytes, &mut ids);
        part.add(source, task.path, i * (BLOCK / source.dtype.size()) as u64, &ids, target)?;
    }
    Ok(part)
}

/// The blocks of tokens that begin in the bytes `start..end` of the file.
fn blocks_of(source: &Source, start: u64, end: u64) -> std::ops::Range<u64> {
    let n_blocks = (source.n_tokens * source.dtype.size() as u64).div_ceil(BLOCK as u64);
    let before = |at: u64| at.saturating_sub(source.offset).div_ceil(BLOCK as u64).min(n_blocks);
    before(start)..before(end)
}

impl Part {
    /// Takes the ids from token `at` of the file on.
    fn add(&mut self, source: &Source, path: &Path, at: u64, ids: &[u32], target: &Target) -> Result<()> {
        let limit = target.vocab_size();
        // The maximum compiles to a vector loop; the search only runs for the message.
        if ids.iter().max().is_some_and(|&id| u64::from(id) >= limit) {
            let i = ids.iter().position(|&id| u64::from(id) >= limit).unwrap_or(0);
            let (token, id) = (at + i as u64, ids[i]);
            let hint = "hint: name the dtype, or the tokenizer that made the ids";
            let reason = format!("token {token} is {id}, the tokenizer's ids are below {limit}; {hint}");
            return Err(malformed(source.format, path, reason));
        }
        let eot_id = target.eot_id.filter(|_| source.ends.is_none());
        let mut rest = ids;
        while let Some(i) = eot_id.and_then(|eot_id| rest.iter().position(|&id| id == eot_id)) {
            self.marks.push(at + (ids.len() - rest.len() + i) as u64);
            self.n_bytes += target.n_bytes(&rest[..i]);
            self.tail = 0;
            rest = &rest[i + 1..];
        }
        let n_bytes = target.n_bytes(rest);
        self.n_bytes += n_bytes;
        self.tail += n_bytes;
        Ok(())
    }
}

impl Target {
    /// Bytes of the text of ids that the vocabulary has.
    fn n_bytes(&self, ids: &[u32]) -> u64 {
        ids.iter().map(|&id| u64::from(self.lens[id as usize])).sum()
    }
}

/// The document that the files so far have begun and not ended.
#[derive(Default)]
struct Open {
    n_tokens: u64,
    n_bytes: u64,
}

impl Open {
    /// The next file; the last one ends its last document.
    fn add(
        &mut self,
        source: &Source,
        parts: Vec<Part>,
        blake3: [u8; 32],
        eot_first: bool,
        is_last: bool,
    ) -> ScannedFile {
        let (mut blocks, mut ends) = (Vec::new(), source.ends.clone().unwrap_or_default());
        let (is_known, mut n_bytes) = (source.ends.is_some(), 0);
        for part in parts {
            blocks.extend(part.blocks);
            let marks = part.marks.iter().map(|&at| if eot_first { at } else { at + 1 });
            // The first document of all begins with the id, and none ends there.
            ends.extend(marks.filter(|&end| end > 0 || self.n_tokens > 0));
            if part.marks.is_empty() {
                self.n_bytes += part.n_bytes;
            } else {
                n_bytes += self.n_bytes + part.n_bytes - part.tail;
                self.n_bytes = part.tail;
            }
        }
        let last = ends.last().copied();
        self.n_tokens = last.map_or(self.n_tokens + source.n_tokens, |last| source.n_tokens - last);
        if is_known || (is_last && self.n_tokens > 0) {
            ends.extend((!is_known).then_some(source.n_tokens));
            n_bytes += std::mem::take(&mut self.n_bytes);
            self.n_tokens = 0;
        }
        ScannedFile { blake3, blocks, ends, n_bytes }
    }
}
