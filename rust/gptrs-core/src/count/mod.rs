//! How often each piece occurs: pieces to counts, on all threads.
//!
//! ```text
//! texts ─ safe_cut ─▶ tasks of 1 MiB ─▶ front: a thread's words of the moment ─ many at once ─▶ shards, one lock each
//! ```
//! A word of up to 15 bytes is its own key: one 16-byte compare, no second memory access. Longer ones keep their bytes in
//! an arena and are compared byte for byte. Every distinct word is kept once, whatever the number of threads: memory
//! follows the distinct words, not the text.

mod counter;
pub mod file;
mod front;
pub mod join;
pub mod superwords;
mod table;

use std::sync::{Mutex, MutexGuard, PoisonError};

pub use counter::Counter;
use table::{LongWords, MAX_SHORT, ShortWords, hash_bytes, hash_key, pack};

use crate::control::Control;
use crate::error::Result;
use crate::split::Splitter;

/// A hash picks its shard by its highest bits, so that threads rarely want the same one.
const SHARD_BITS: u32 = 6;
const N_SHARDS: usize = 1 << SHARD_BITS;

fn shard_of(hash: u64) -> usize {
    (hash >> (64 - SHARD_BITS)) as usize
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic elsewhere ends the call; what it left is never read.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

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
        Self { shards: vec![Shard::default(); N_SHARDS] }
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
        self.shards[shard_of(hash)].short.add(key, hash, n)
    }

    fn add_long(&mut self, word: &[u8], n: u64) -> Result<()> {
        let hash = hash_bytes(word);
        self.shards[shard_of(hash)].long.add(word, hash, n)
    }

    /// Adds every count of `other`.
    pub fn merge(&mut self, other: Self) -> Result<()> {
        self.shards.iter_mut().zip(other.shards).try_for_each(|(shard, other)| shard.merge(other))
    }

    /// Number of distinct words.
    pub fn len(&self) -> usize {
        self.shards.iter().map(Shard::len).sum()
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
}

impl Shard {
    fn len(&self) -> usize {
        self.short.n_used + self.long.len()
    }

    /// Adds every count of `other` to the larger of both.
    fn merge(&mut self, mut other: Self) -> Result<()> {
        if self.len() < other.len() {
            std::mem::swap(self, &mut other);
        }
        for slot in other.short.slots.iter().filter(|slot| slot.n > 0) {
            let key = u128::from_le_bytes(slot.key);
            self.short.add(key, hash_key(key), slot.n)?;
        }
        other.long.iter().try_for_each(|(word, n)| self.long.add(word, hash_bytes(word), n))
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
