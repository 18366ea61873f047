//! Pairs of ids with their counts and postings: open addressing, eight keys a cache line.

use crate::simd;

/// A pair as one number; smaller left, then smaller right, is smaller.
pub(super) fn key(left: u32, right: u32) -> u64 {
    u64::from(left) << 32 | u64::from(right)
}

/// The pair of a [`key`].
pub(super) fn pair(key: u64) -> (u32, u32) {
    ((key >> 32) as u32, key as u32)
}

/// Spreads the bits of a key.
#[inline]
fn hash(key: u64) -> usize {
    (key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as usize
}

/// Counts of pairs by hash alone: a sum may be of several pairs, so it is never below the count of one.
pub(super) struct Sketch {
    sums: Vec<u32>,
}

impl Sketch {
    /// A sketch for `n` pairs.
    pub(super) fn new(n: usize) -> Self {
        Self { sums: vec![0; n.clamp(1 << 8, 1 << 21).next_power_of_two()] }
    }

    #[inline]
    pub(super) fn add(&mut self, key: u64, weight: u64) {
        let at = hash(key) & (self.sums.len() - 1);
        self.sums[at] = self.sums[at].saturating_add(u32::try_from(weight).unwrap_or(u32::MAX));
    }

    /// The sum of all pairs with the hash of `key`; `u64::MAX` when it left 32 bits.
    #[inline]
    pub(super) fn sum(&self, key: u64) -> u64 {
        match self.sums[hash(key) & (self.sums.len() - 1)] {
            u32::MAX => u64::MAX,
            sum => u64::from(sum),
        }
    }
}

/// What is known of a pair.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Entry {
    /// Exact number of occurrences now.
    pub(super) count: u64,
    /// Its borders stand in `postings[start..start + n_postings]`, ascending; those that are gone are passed over.
    pub(super) start: usize,
    pub(super) n_postings: u32,
}

/// No pair has this key: ids stay below `u32::MAX`.
const FREE: u64 = u64::MAX;

/// Entries by key, at most half of the slots used. Most questions are about pairs without an entry: the keys alone, which
/// lie close together, answer them.
#[derive(Debug)]
pub(super) struct PairTable {
    keys: Vec<u64>,
    entries: Vec<Entry>,
    n_used: usize,
}

impl PairTable {
    /// A table of entries with different keys.
    pub(super) fn new(list: &[(u64, Entry)]) -> Self {
        let mut table = Self::with_room_for(list.len());
        for &(key, entry) in list {
            table.insert(key, entry);
        }
        table
    }

    /// An empty table with at least three slots for each of `n` entries.
    pub(super) fn with_room_for(n: usize) -> Self {
        let n_slots = (3 * n).next_power_of_two().max(1 << 10);
        Self { keys: vec![FREE; n_slots], entries: vec![Entry::default(); n_slots], n_used: 0 }
    }

    fn insert(&mut self, key: u64, entry: Entry) {
        let at = self.slot(key);
        (self.keys[at], self.entries[at]) = (key, entry);
        self.n_used += 1;
    }

    /// The slot of `key`, or the free one where it belongs.
    #[inline]
    fn slot(&self, key: u64) -> usize {
        let mask = self.keys.len() - 1;
        let mut at = hash(key) & mask;
        while self.keys[at] != key && self.keys[at] != FREE {
            at = (at + 1) & mask;
        }
        at
    }

    /// Asks for the slot of `key`.
    #[inline]
    pub(super) fn prefetch(&self, key: u64) {
        simd::prefetch(&self.keys, hash(key) & (self.keys.len() - 1));
    }

    /// The entry of `key`.
    #[inline]
    pub(super) fn get(&mut self, key: u64) -> Option<&mut Entry> {
        let at = self.slot(key);
        if self.keys[at] == key { Some(&mut self.entries[at]) } else { None }
    }

    /// The entry of `key`, empty when it is new. When the table is full, entries below `floor` make room first.
    #[inline]
    pub(super) fn get_or_insert(&mut self, key: u64, floor: u64) -> &mut Entry {
        if self.n_used * 2 >= self.keys.len() {
            self.rebuild(floor);
        }
        let at = self.slot(key);
        if self.keys[at] == FREE {
            self.keys[at] = key;
            self.n_used += 1;
        }
        &mut self.entries[at]
    }

    /// Drops the entries below `floor` and takes at least three slots for each one that stays.
    #[cold]
    pub(super) fn rebuild(&mut self, floor: u64) {
        let n_kept = self.iter_mut().filter(|(_, entry)| entry.count >= floor).count();
        let mut old = std::mem::replace(self, Self::with_room_for(n_kept));
        for (key, &mut entry) in old.iter_mut().filter(|(_, entry)| entry.count >= floor) {
            self.insert(key, entry);
        }
    }

    /// Every key with its entry.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (u64, &mut Entry)> {
        self.keys.iter().copied().zip(&mut self.entries).filter(|&(key, _)| key != FREE)
    }
}
