//! How often each piece occurs: pieces to counts, on all threads.
//!
//! ```text
//! texts ─ safe_cut ─▶ tasks of 1 MiB ─▶ one WordCounts a thread ─ join, shard by shard ─▶ WordCounts
//! ```
//! A word of up to 15 bytes is its own key: one 16-byte compare, no second memory access. Longer ones keep their bytes in
//! an arena and are compared byte for byte. Memory follows the distinct words, not the text.

use std::sync::{Mutex, PoisonError};

use crate::control::Control;
use crate::error::{Error, Result};
use crate::parallel;
use crate::split::Splitter;

/// A hash picks its shard by its highest bits, so that shards of two counts can be joined without the others.
const SHARD_BITS: u32 = 6;
/// Text handed to a thread at once: some milliseconds of work.
const TASK_BYTES: usize = 1 << 20;
/// The longest word that is its own key; the last byte of the key holds the length.
const MAX_SHORT: usize = 15;

/// Distinct words and how often each occurs.
#[derive(Debug, Clone)]
pub struct WordCounts {
    shards: Vec<Shard>,
}

#[derive(Debug, Clone, Default)]
struct Shard {
    short: ShortWords,
    long: LongWords,
}

impl Default for WordCounts {
    fn default() -> Self {
        Self::new()
    }
}

impl WordCounts {
    /// No words.
    pub fn new() -> Self {
        Self { shards: vec![Shard::default(); 1 << SHARD_BITS] }
    }

    /// Counts `word` `n` more times; an empty word and `n = 0` change nothing.
    ///
    /// Fails when the word's count leaves 64 bits.
    pub fn add(&mut self, word: &[u8], n: u64) -> Result<()> {
        match word.len() {
            0 => Ok(()),
            _ if n == 0 => Ok(()),
            1..=MAX_SHORT => self.add_short(pack(word), n),
            _ => self.add_long(word, n),
        }
    }

    #[inline]
    fn add_short(&mut self, key: u128, n: u64) -> Result<()> {
        let hash = hash_key(key);
        self.shards[(hash >> (64 - SHARD_BITS)) as usize].short.add(key, hash, n)
    }

    fn add_long(&mut self, word: &[u8], n: u64) -> Result<()> {
        let hash = hash_bytes(word);
        self.shards[(hash >> (64 - SHARD_BITS)) as usize].long.add(word, hash, n)
    }

    /// Adds every count of `other`.
    pub fn merge(&mut self, other: Self) -> Result<()> {
        self.shards.iter_mut().zip(other.shards).try_for_each(|(shard, other)| shard.merge(&other))
    }

    /// Number of distinct words.
    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.short.n_used + shard.long.n_used).sum()
    }

    /// Whether there is no word.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of the counted text: length times count, over all words; `u64::MAX` when it is more.
    pub fn n_bytes(&self) -> u64 {
        self.iter().fold(0, |sum, (word, n)| sum.saturating_add(n.saturating_mul(word.len() as u64)))
    }

    /// Every word with its count, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], u64)> {
        self.shards.iter().flat_map(|shard| shard.short.iter().chain(shard.long.iter()))
    }

    /// The sum of several counts, on `threads` threads.
    fn join(counts: Vec<Self>, threads: usize, control: &Control) -> Result<Self> {
        let mut columns: Vec<Vec<Shard>> = (0..1 << SHARD_BITS).map(|_| Vec::new()).collect();
        for count in counts {
            for (column, shard) in columns.iter_mut().zip(count.shards) {
                column.push(shard);
            }
        }
        let columns: Vec<_> = columns.into_iter().map(Mutex::new).collect();
        let joined = parallel::run(threads, columns.len(), control, Vec::new, |joined, index| {
            let column = std::mem::take(&mut *columns[index].lock().unwrap_or_else(PoisonError::into_inner));
            joined.push((index, Shard::join(column)?));
            Ok(())
        })?;
        let mut joined = joined.concat();
        joined.sort_unstable_by_key(|&(index, _)| index);
        Ok(Self { shards: joined.into_iter().map(|(_, shard)| shard).collect() })
    }
}

impl Shard {
    fn merge(&mut self, other: &Self) -> Result<()> {
        for slot in other.short.slots.iter().filter(|slot| slot.n > 0) {
            let key = u128::from_le_bytes(slot.key);
            self.short.add(key, hash_key(key), slot.n)?;
        }
        for slot in other.long.slots.iter().filter(|slot| slot.n > 0) {
            self.long.add(other.long.word(slot), slot.hash, slot.n)?;
        }
        Ok(())
    }

    /// The sum of several shards, built on the largest.
    fn join(mut shards: Vec<Self>) -> Result<Self> {
        let largest = (0..shards.len()).max_by_key(|&i| shards[i].short.n_used + shards[i].long.n_used);
        let mut sum = largest.map(|i| shards.swap_remove(i)).unwrap_or_default();
        shards.iter().try_for_each(|shard| sum.merge(shard))?;
        Ok(sum)
    }
}

/// Open addressing, at most half full; a slot with count 0 is free.
#[derive(Debug, Clone, Default)]
struct ShortWords {
    slots: Vec<ShortSlot>,
    n_used: usize,
}

/// The key's little-endian bytes begin with the word's.
#[derive(Debug, Clone, Copy, Default)]
struct ShortSlot {
    key: [u8; 16],
    n: u64,
}

impl ShortWords {
    /// Reads the first slot of `hash`, so that it is near when it is needed.
    #[inline]
    fn touch(&self, hash: u64) -> u64 {
        let mask = self.slots.len().wrapping_sub(1);
        self.slots.get(hash as usize & mask).map_or(0, |slot| slot.n)
    }

    #[inline]
    fn add(&mut self, key: u128, hash: u64, n: u64) -> Result<()> {
        if self.n_used * 2 >= self.slots.len() {
            self.grow();
        }
        let mask = self.slots.len() - 1;
        let mut at = hash as usize & mask;
        loop {
            let slot = &mut self.slots[at];
            if u128::from_le_bytes(slot.key) == key {
                slot.n = checked_sum(slot.n, n)?;
                return Ok(());
            }
            if slot.n == 0 {
                *slot = ShortSlot { key: key.to_le_bytes(), n };
                self.n_used += 1;
                return Ok(());
            }
            at = (at + 1) & mask;
        }
    }

    #[cold]
    fn grow(&mut self) {
        let mask = (self.slots.len() * 2).max(16) - 1;
        let old = std::mem::replace(&mut self.slots, vec![ShortSlot::default(); mask + 1]);
        for slot in old.into_iter().filter(|slot| slot.n > 0) {
            let mut at = hash_key(u128::from_le_bytes(slot.key)) as usize & mask;
            while self.slots[at].n > 0 {
                at = (at + 1) & mask;
            }
            self.slots[at] = slot;
        }
    }

    fn iter(&self) -> impl Iterator<Item = (&[u8], u64)> {
        self.slots.iter().filter(|slot| slot.n > 0).map(|slot| (&slot.key[..usize::from(slot.key[MAX_SHORT])], slot.n))
    }
}

/// As [`ShortWords`]; the words stand one after the other in `bytes`.
#[derive(Debug, Clone, Default)]
struct LongWords {
    slots: Vec<LongSlot>,
    bytes: Vec<u8>,
    n_used: usize,
}

#[derive(Debug, Clone, Copy, Default)]
struct LongSlot {
    hash: u64,
    start: usize,
    len: usize,
    n: u64,
}

impl LongWords {
    fn add(&mut self, word: &[u8], hash: u64, n: u64) -> Result<()> {
        if self.n_used * 2 >= self.slots.len() {
            self.grow();
        }
        let mask = self.slots.len() - 1;
        let mut at = hash as usize & mask;
        loop {
            let slot = self.slots[at];
            if slot.n == 0 {
                self.slots[at] = LongSlot { hash, start: self.bytes.len(), len: word.len(), n };
                self.bytes.extend_from_slice(word);
                self.n_used += 1;
                return Ok(());
            }
            if slot.hash == hash && self.word(&slot) == word {
                self.slots[at].n = checked_sum(slot.n, n)?;
                return Ok(());
            }
            at = (at + 1) & mask;
        }
    }

    #[cold]
    fn grow(&mut self) {
        let mask = (self.slots.len() * 2).max(16) - 1;
        let old = std::mem::replace(&mut self.slots, vec![LongSlot::default(); mask + 1]);
        for slot in old.into_iter().filter(|slot| slot.n > 0) {
            let mut at = slot.hash as usize & mask;
            while self.slots[at].n > 0 {
                at = (at + 1) & mask;
            }
            self.slots[at] = slot;
        }
    }

    fn word(&self, slot: &LongSlot) -> &[u8] {
        &self.bytes[slot.start..slot.start + slot.len]
    }

    fn iter(&self) -> impl Iterator<Item = (&[u8], u64)> {
        self.slots.iter().filter(|slot| slot.n > 0).map(|slot| (self.word(slot), slot.n))
    }
}

fn checked_sum(a: u64, b: u64) -> Result<u64> {
    a.checked_add(b).ok_or_else(|| Error::Argument(format!("a word's count ({a} + {b}) exceeds 64 bits")))
}

/// The key of a word of 1 to [`MAX_SHORT`] bytes.
fn pack(word: &[u8]) -> u128 {
    let mut key = [0; 16];
    key[..word.len()].copy_from_slice(word);
    key[MAX_SHORT] = word.len() as u8;
    u128::from_le_bytes(key)
}

/// As [`pack`], of `part[start..end]`: one load when 16 bytes can be read.
#[inline]
fn pack_within(part: &[u8], start: usize, end: usize) -> u128 {
    match part.get(start..).and_then(|rest| rest.first_chunk::<16>()) {
        Some(bytes) => {
            let len = end - start;
            let kept = (1u128 << (8 * len)) - 1;
            u128::from_le_bytes(*bytes) & kept | (len as u128) << 120
        }
        None => pack(&part[start..end]),
    }
}

// Odd constants without pattern: the fractional digits of pi.
const MIX: [u64; 3] = [0x243f_6a88_85a3_08d3, 0x1319_8a2e_0370_7345, 0xa409_3822_299f_31d1];

/// Both halves of the 128-bit product: every input bit reaches the highest and the lowest bits.
#[inline]
fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    product as u64 ^ (product >> 64) as u64
}

#[inline]
fn hash_key(key: u128) -> u64 {
    fold(key as u64 ^ MIX[0], (key >> 64) as u64 ^ MIX[1])
}

fn hash_bytes(bytes: &[u8]) -> u64 {
    let (chunks, tail) = bytes.as_chunks::<15>();
    let hash = chunks.iter().fold(MIX[2], |hash, chunk| fold(hash ^ hash_key(pack(chunk)), MIX[2]));
    fold(hash ^ hash_key(pack(tail)), MIX[1])
}

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

/// The pieces of `texts` with their counts; each text is a document of its own.
pub fn count_texts<T: AsRef<[u8]> + Sync>(
    texts: &[T],
    splitter: &Splitter,
    threads: usize,
    control: &Control,
) -> Result<WordCounts> {
    control.begin("count bytes", texts.iter().map(|text| text.as_ref().len() as u64).sum());
    Counter::new(splitter, threads).add_texts(texts, control)?.finish(control)
}
