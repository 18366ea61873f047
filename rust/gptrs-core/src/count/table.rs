//! The tables of words: open addressing, exact compares.

use crate::error::{Error, Result};

/// The longest word that is its own key; the last byte of the key holds the length.
pub(super) const MAX_SHORT: usize = 15;

/// Open addressing, at most half full; a slot with count 0 is free.
#[derive(Debug, Clone, Default)]
pub(super) struct ShortWords {
    pub(super) slots: Vec<ShortSlot>,
    pub(super) n_used: usize,
}

/// The key's little-endian bytes begin with the word's.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct ShortSlot {
    pub(super) key: [u8; 16],
    pub(super) n: u64,
}

impl ShortWords {
    /// Reads the first slot of `hash`, so that it is near when it is needed.
    #[inline]
    pub(super) fn touch(&self, hash: u64) -> u64 {
        let mask = self.slots.len().wrapping_sub(1);
        self.slots.get(hash as usize & mask).map_or(0, |slot| slot.n)
    }

    #[inline]
    pub(super) fn add(&mut self, key: u128, hash: u64, n: u64) -> Result<()> {
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

    pub(super) fn iter(&self) -> impl Iterator<Item = (&[u8], u64)> {
        self.slots.iter().filter(|slot| slot.n > 0).map(|slot| (&slot.key[..usize::from(slot.key[MAX_SHORT])], slot.n))
    }
}

/// Longer words: an index by hash, at most three quarters full, to records that stand in the order of their words.
#[derive(Debug, Clone, Default)]
pub(super) struct LongWords {
    /// The low half of the word's hash above its record's number plus one; 0 is free.
    index: Vec<u64>,
    records: Vec<Record>,
    bytes: Vec<u8>,
}

/// Where a word starts (it ends where the next one does) and how often it occurs.
#[derive(Debug, Clone, Copy)]
struct Record {
    start: usize,
    n: u64,
}

impl LongWords {
    pub(super) fn len(&self) -> usize {
        self.records.len()
    }

    /// Reads the first index slot of `hash`, so that it is near when it is needed.
    #[inline]
    pub(super) fn touch(&self, hash: u64) -> u64 {
        let mask = self.index.len().wrapping_sub(1);
        self.index.get(hash as u32 as usize & mask).copied().unwrap_or(0)
    }

    pub(super) fn add(&mut self, word: &[u8], hash: u64, n: u64) -> Result<()> {
        if (self.records.len() + 1) * 4 > self.index.len() * 3 {
            self.grow()?;
        }
        let (tag, mask) = (hash as u32, self.index.len() - 1);
        let mut at = tag as usize & mask;
        loop {
            let slot = self.index[at];
            if slot == 0 {
                self.records.push(Record { start: self.bytes.len(), n });
                self.bytes.extend_from_slice(word);
                self.index[at] = u64::from(tag) << 32 | self.records.len() as u64;
                return Ok(());
            }
            let record = slot as u32 as usize - 1;
            if (slot >> 32) as u32 == tag && self.word(record) == word {
                self.records[record].n = checked_sum(self.records[record].n, n)?;
                return Ok(());
            }
            at = (at + 1) & mask;
        }
    }

    #[cold]
    fn grow(&mut self) -> Result<()> {
        if self.records.len() >= 1 << 31 {
            return Err(Error::Argument("the text has more than 2^31 distinct long words in one part".to_owned()));
        }
        let mask = (self.index.len() * 2).max(16) - 1;
        let old = std::mem::replace(&mut self.index, vec![0; mask + 1]);
        for slot in old.into_iter().filter(|&slot| slot != 0) {
            let mut at = (slot >> 32) as usize & mask;
            while self.index[at] != 0 {
                at = (at + 1) & mask;
            }
            self.index[at] = slot;
        }
        Ok(())
    }

    fn word(&self, record: usize) -> &[u8] {
        let end = self.records.get(record + 1).map_or(self.bytes.len(), |next| next.start);
        &self.bytes[self.records[record].start..end]
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&[u8], u64)> {
        (0..self.records.len()).map(|record| (self.word(record), self.records[record].n))
    }
}

fn checked_sum(a: u64, b: u64) -> Result<u64> {
    a.checked_add(b).ok_or_else(|| Error::Argument(format!("a word's count ({a} + {b}) exceeds 64 bits")))
}

/// The key of a word of 1 to [`MAX_SHORT`] bytes.
pub(super) fn pack(word: &[u8]) -> u128 {
    let mut key = [0; 16];
    key[..word.len()].copy_from_slice(word);
    key[MAX_SHORT] = word.len() as u8;
    u128::from_le_bytes(key)
}

/// The bits of a key that hold the word, by its length.
const KEPT: [u128; MAX_SHORT + 1] = {
    let (mut kept, mut len) = ([0; MAX_SHORT + 1], 1);
    while len <= MAX_SHORT {
        kept[len] = kept[len - 1] << 8 | 0xff;
        len += 1;
    }
    kept
};

/// As [`pack`], of `part[start..end]`: one load when 16 bytes can be read.
#[inline]
pub(super) fn pack_within(part: &[u8], start: usize, end: usize) -> u128 {
    match part.get(start..).and_then(|rest| rest.first_chunk::<16>()) {
        Some(bytes) => {
            let len = end - start;
            u128::from_le_bytes(*bytes) & KEPT[len] | (len as u128) << 120
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
pub(super) fn hash_key(key: u128) -> u64 {
    fold(key as u64 ^ MIX[0], (key >> 64) as u64 ^ MIX[1])
}

pub(super) fn hash_bytes(bytes: &[u8]) -> u64 {
    let (chunks, tail) = bytes.as_chunks::<15>();
    let hash = chunks.iter().fold(MIX[2], |hash, chunk| fold(hash ^ hash_key(pack(chunk)), MIX[2]));
    fold(hash ^ hash_key(pack(tail)), MIX[1])
}
