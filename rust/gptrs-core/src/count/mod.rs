//! How often each piece occurs: pieces to counts, on all threads.
//!
//! ```text
//! texts ─ safe_cut ─▶ tasks of 1 MiB ─▶ one WordCounts a thread ─ join, shard by shard ─▶ WordCounts
//! ```
//! A word of up to 15 bytes is its own key: one 16-byte compare, no second memory access. Longer ones keep their bytes in
//! an arena and are compared byte for byte. Memory follows the distinct words, not the text.

mod counter;
pub mod file;
pub mod join;
pub mod superwords;
mod table;

use std::sync::{Mutex, PoisonError};

pub use counter::Counter;
use table::{LongWords, MAX_SHORT, ShortWords, hash_bytes, hash_key, pack};

use crate::control::Control;
use crate::error::Result;
use crate::parallel;
use crate::split::Splitter;

/// A hash picks its shard by its highest bits, so that shards of two counts can be joined without the others.
const SHARD_BITS: u32 = 6;

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
