//! Texts to counts, on all threads.

use std::sync::{Mutex, PoisonError};

use super::table::{MAX_SHORT, hash_key, pack_within};
use super::{SHARD_BITS, WordCounts};
use crate::control::Control;
use crate::error::Result;
use crate::parallel;
use crate::split::Splitter;

/// Text handed to a thread at once: some milliseconds of work.
const TASK_BYTES: usize = 1 << 20;

/// Counts the pieces of texts that arrive one batch after the other.
///
/// A failed call takes the counter with it, so no half-counted batch is ever part of a result.
#[derive(Debug)]
pub struct Counter {
    splitter: Splitter,
    threads: usize,
    /// One for each thread that has worked so far.
    counts: Vec<WordCounts>,
}

impl Counter {
    /// A counter that works on `threads` threads (0: all cores).
    pub fn new(splitter: &Splitter, threads: usize) -> Self {
        Self { splitter: splitter.clone(), threads: parallel::resolve_threads(threads), counts: Vec::new() }
    }

    /// Counts every text as a document of its own; long ones are cut at [`Splitter::safe_cut`] and shared by all threads.
    ///
    /// Advances `control` by the bytes; its stage is the caller's.
    pub fn add_texts<T: AsRef<[u8]> + Sync>(mut self, texts: &[T], control: &Control) -> Result<Self> {
        let tasks = tasks(texts, &self.splitter);
        let idle = Mutex::new(std::mem::take(&mut self.counts));
        let take = || idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let make_state = || (self.splitter.clone(), take().unwrap_or_default());
        let used = parallel::run(self.threads, tasks.len(), control, make_state, |(splitter, counts), index| {
            let Task { first, last, start, end } = tasks[index];
            for text in &texts[first..last] {
                let text = text.as_ref();
                count_block(splitter, counts, &text[start..end.min(text.len())], control)?;
            }
            Ok(())
        })?;
        self.counts = idle.into_inner().unwrap_or_else(PoisonError::into_inner);
        self.counts.extend(used.into_iter().map(|(_, counts)| counts));
        Ok(self)
    }

    /// All counts so far, joined.
    pub fn finish(self, control: &Control) -> Result<WordCounts> {
        WordCounts::join(self.counts, self.threads, control)
    }
}

/// The range `start..end` of each of the texts `first..last`; several texts only when they are taken whole.
#[derive(Debug, Clone, Copy)]
struct Task {
    first: usize,
    last: usize,
    start: usize,
    end: usize,
}

/// Cuts long texts and gathers short ones, so that a task is about [`TASK_BYTES`].
fn tasks<T: AsRef<[u8]>>(texts: &[T], splitter: &Splitter) -> Vec<Task> {
    let mut tasks = Vec::new();
    let (mut first, mut n_gathered) = (0, 0);
    for (index, text) in texts.iter().enumerate() {
        let text = text.as_ref();
        if text.len() < TASK_BYTES {
            n_gathered += text.len();
            if n_gathered >= TASK_BYTES {
                tasks.push(Task { first, last: index + 1, start: 0, end: usize::MAX });
                (first, n_gathered) = (index + 1, 0);
            }
            continue;
        }
        tasks.push(Task { first, last: index, start: 0, end: usize::MAX });
        let mut start = 0;
        while start < text.len() {
            let end = splitter.safe_cut(text, (start + TASK_BYTES).min(text.len()));
            tasks.push(Task { first: index, last: index + 1, start, end });
            start = end;
        }
        (first, n_gathered) = (index + 1, 0);
    }
    tasks.push(Task { first, last: texts.len(), start: 0, end: usize::MAX });
    tasks
}

fn count_block(splitter: &Splitter, counts: &mut WordCounts, text: &[u8], control: &Control) -> Result<()> {
    /// A custom pattern cannot be cut: look up from a long text every so many pieces.
    const CHECK_PIECES: u32 = 1 << 14;
    let mut n_pieces = 0u32;
    let mut batch = Batch::new();
    splitter.for_each_span(text, |part, start, end| {
        n_pieces = n_pieces.wrapping_add(1);
        if n_pieces.is_multiple_of(CHECK_PIECES) {
            control.check()?;
        }
        if end - start > MAX_SHORT {
            return counts.add_long(&part[start..end], 1);
        }
        batch.keys[batch.len] = pack_within(part, start, end);
        batch.len += 1;
        if batch.len == BATCH { batch.flush(counts) } else { Ok(()) }
    })?;
    batch.flush(counts)?;
    control.advance(text.len() as u64);
    Ok(())
}

const BATCH: usize = 64;

/// Keys on their way to the table. Scanning mispredicts once a piece, which ends what the processor does ahead; apart
/// from it, the slots of many keys are on their way from memory at the same time.
struct Batch {
    keys: [u128; BATCH],
    len: usize,
}

impl Batch {
    fn new() -> Self {
        Self { keys: [0; BATCH], len: 0 }
    }

    fn flush(&mut self, counts: &mut WordCounts) -> Result<()> {
        let mut hashes = [0; BATCH];
        let keys = &self.keys[..std::mem::take(&mut self.len)];
        let mut touched = 0;
        for (hash, &key) in hashes.iter_mut().zip(keys) {
            *hash = hash_key(key);
            touched ^= counts.shards[(*hash >> (64 - SHARD_BITS)) as usize].short.touch(*hash);
        }
        std::hint::black_box(touched);
        keys.iter()
            .zip(hashes)
            .try_for_each(|(&key, hash)| counts.shards[(hash >> (64 - SHARD_BITS)) as usize].short.add(key, hash, 1))
    }
}
