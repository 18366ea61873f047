//! What a thread counts before it asks the shared tables: the words of the moment, in a table that fits the cache.
//!
//! A slot keeps the last word that hashed to it. Another one sends it to the shards, so most pieces of a text, which are
//! few words again and again, end here without a branch on what they are.

use std::sync::Mutex;

use super::table::{MAX_SHORT, hash_bytes, hash_key, pack, pack_within};
use super::{N_SHARDS, Shard, lock, shard_of};
use crate::error::Result;

/// Slots: what a core's second-level cache holds beside the text.
const N_SLOTS: usize = 1 << 14;
/// Words that wait for the shards: enough to give each of them many at once.
const N_WAITING: usize = 1 << 12;
/// Keys on their way to the slots: packing and probing are loops of their own, so that the slots of many keys are on
/// their way from memory at the same time.
const BATCH: usize = 256;

#[derive(Debug, Clone, Copy, Default)]
struct Slot {
    key: u128,
    n: u64,
}

/// A thread's counts of short words, most of them on their way.
#[derive(Debug)]
pub(super) struct Front {
    batch: [u128; BATCH],
    n_batch: usize,
    slots: Box<[Slot; N_SLOTS]>,
    waiting: Box<[Slot]>,
    n_waiting: usize,
    order: ShardOrder,
}

impl Front {
    pub(super) fn new() -> Self {
        let slots = vec![Slot::default(); N_SLOTS].into_boxed_slice();
        Self {
            batch: [0; BATCH],
            n_batch: 0,
            slots: slots.try_into().expect("the vector has N_SLOTS elements"),
            waiting: vec![Slot::default(); N_WAITING + BATCH].into_boxed_slice(),
            n_waiting: 0,
            order: ShardOrder::default(),
        }
    }

    /// Counts `word`, 1 to [`MAX_SHORT`] bytes, once more.
    pub(super) fn add(&mut self, word: &[u8], shards: &[Mutex<Shard>]) -> Result<()> {
        self.batch[self.n_batch] = pack(word);
        self.n_batch += 1;
        if self.n_batch == BATCH { self.sift(shards) } else { Ok(()) }
    }

    /// Counts the pieces of `part` from `start` on that have these ends; `long` gets those above [`MAX_SHORT`] bytes.
    pub(super) fn add_all<'t>(
        &mut self,
        part: &'t [u8],
        mut start: usize,
        ends: &[u32],
        long: &mut LongBatch<'t>,
        shards: &[Mutex<Shard>],
    ) -> Result<()> {
        for ends in ends.chunks(BATCH) {
            self.sift(shards)?;
            let mut n_batch = 0;
            for &end in ends {
                let end = end as usize;
                if end - start > MAX_SHORT {
                    long.add(&part[start..end], shards)?;
                } else {
                    self.batch[n_batch] = pack_within(part, start, end);
                    n_batch += 1;
                }
                start = end;
            }
            self.n_batch = n_batch;
        }
        Ok(())
    }

    /// Sends the batch through the slots.
    fn sift(&mut self, shards: &[Mutex<Shard>]) -> Result<()> {
        let mut n_waiting = self.n_waiting;
        for &key in &self.batch[..std::mem::take(&mut self.n_batch)] {
            let slot = &mut self.slots[hash_key(key) as usize % N_SLOTS];
            let is_same = slot.key == key;
            self.waiting[n_waiting] = *slot;
            n_waiting += usize::from(!is_same) & usize::from(slot.n > 0);
            *slot = Slot { key, n: if is_same { slot.n + 1 } else { 1 } };
        }
        self.n_waiting = n_waiting;
        if n_waiting >= N_WAITING { self.drain(shards) } else { Ok(()) }
    }

    /// Adds the words that wait to the shards.
    fn drain(&mut self, shards: &[Mutex<Shard>]) -> Result<()> {
        let waiting = &self.waiting[..std::mem::take(&mut self.n_waiting)];
        self.order.sort(waiting.iter().map(|slot| hash_key(slot.key)));
        for (shard, places) in self.order.shards() {
            let table = &mut lock(&shards[shard]).short;
            let touched = places.iter().fold(0, |sum, &(_, hash)| sum ^ table.touch(hash));
            std::hint::black_box(touched);
            for &(place, hash) in places {
                let Slot { key, n } = waiting[place as usize];
                table.add(key, hash, n)?;
            }
        }
        Ok(())
    }

    /// Adds all words to the shards.
    pub(super) fn finish(&mut self, shards: &[Mutex<Shard>]) -> Result<()> {
        self.sift(shards)?;
        self.drain(shards)?;
        for &Slot { key, n } in self.slots.iter().filter(|slot| slot.n > 0) {
            let hash = hash_key(key);
            lock(&shards[shard_of(hash)]).short.add(key, hash, n)?;
        }
        self.slots.fill(Slot::default());
        Ok(())
    }
}

/// Long words of one block, which wait for the shards.
#[derive(Debug, Default)]
pub(super) struct LongBatch<'t> {
    words: Vec<&'t [u8]>,
    order: ShardOrder,
}

impl<'t> LongBatch<'t> {
    /// Counts `word` once more.
    pub(super) fn add(&mut self, word: &'t [u8], shards: &[Mutex<Shard>]) -> Result<()> {
        self.words.push(word);
        if self.words.len() == N_WAITING { self.drain(shards) } else { Ok(()) }
    }

    /// Adds the words that wait to the shards.
    pub(super) fn drain(&mut self, shards: &[Mutex<Shard>]) -> Result<()> {
        if self.words.len() < N_SHARDS {
            return self.words.drain(..).try_for_each(|word| {
                let hash = hash_bytes(word);
                lock(&shards[shard_of(hash)]).long.add(word, hash, 1)
            });
        }
        self.order.sort(self.words.iter().map(|word| hash_bytes(word)));
        for (shard, places) in self.order.shards() {
            let table = &mut lock(&shards[shard]).long;
            let touched = places.iter().fold(0, |sum, &(_, hash)| sum ^ table.touch(hash));
            std::hint::black_box(touched);
            for &(place, hash) in places {
                table.add(self.words[place as usize], hash, 1)?;
            }
        }
        self.words.clear();
        Ok(())
    }
}

/// Places sorted by the shard of their hash.
#[derive(Debug, Default)]
struct ShardOrder {
    hashes: Vec<u64>,
    sorted: Vec<(u32, u64)>,
    /// Where the places of each shard end.
    ends: Vec<u32>,
}

impl ShardOrder {
    fn sort(&mut self, hashes: impl Iterator<Item = u64>) {
        self.hashes.clear();
        self.hashes.extend(hashes);
        self.sorted.resize(self.hashes.len(), (0, 0));
        self.ends.clear();
        self.ends.resize(N_SHARDS, 0);
        for &hash in &self.hashes {
            self.ends[shard_of(hash)] += 1;
        }
        let mut start = 0;
        for end in &mut self.ends {
            start += std::mem::replace(end, start);
        }
        for (place, &hash) in (0..).zip(&self.hashes) {
            let end = &mut self.ends[shard_of(hash)];
            self.sorted[*end as usize] = (place, hash);
            *end += 1;
        }
    }

    /// Every shard that has places, with them and their hashes.
    fn shards(&self) -> impl Iterator<Item = (usize, &[(u32, u64)])> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        let ranges = starts.zip(&self.ends).enumerate();
        ranges
            .map(|(shard, (start, &end))| (shard, &self.sorted[start as usize..end as usize]))
            .filter(|(_, places)| !places.is_empty())
    }
}
