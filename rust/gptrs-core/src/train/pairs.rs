//! Pairs of ids with their counts and postings: open addressing, two slots a cache line.

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
#[derive(Debug, Clone, Copy)]
pub(super) struct Entry {
    pub(super) key: u64,
    /// Exact number of occurrences now.
    pub(super) count: u64,
    /// Its borders stand in `postings[start..start + n_postings]`, ascending; those that are gone are passed over.
    pub(super) start: usize,
    pub(super) n_postings: u32,
}

/// No pair has this key: ids stay below `u32::MAX`.
const FREE: Entry = Entry { key: u64::MAX, count: 0, start: 0, n_postings: 0 };

/// Entries by key, at most half of the slots used.
#[derive(Debug)]
pub(super) struct PairTable {
    slots: Vec<Entry>,
    n_used: usize,
}

impl PairTable {
    /// A table of `entries` with different keys.
    pub(super) fn new(entries: Vec<Entry>) -> Self {
        let mut table = Self { n_used: entries.len(), slots: entries };
        table.rebuild(0);
        table
    }

    /// The slot of `key`, or the free one where it belongs.
    #[inline]
    fn slot(&self, key: u64) -> usize {
        let mask = self.slots.len() - 1;
        let mut at = hash(key) & mask;
        while self.slots[at].key != key && self.slots[at].key != FREE.key {
            at = (at + 1) & mask;
        }
        at
    }

    /// The entry of `key`.
    #[inline]
    pub(super) fn get(&mut self, key: u64) -> Option<&mut Entry> {
        let at = self.slot(key);
        Some(&mut self.slots[at]).filter(|entry| entry.key == key)
    }

    /// The entry of `key`, empty when it is new. When the table is full, entries below `floor` make room first.
    #[inline]
    pub(super) fn get_or_insert(&mut self, key: u64, floor: u64) -> &mut Entry {
        if self.n_used * 2 >= self.slots.len() {
            self.rebuild(floor);
        }
        let at = self.slot(key);
        let entry = &mut self.slots[at];
        if entry.key == FREE.key {
            *entry = Entry { key, ..FREE };
            self.n_used += 1;
        }
        entry
    }

    /// Drops the entries below `floor` and takes at least three slots for each one that stays.
    #[cold]
    pub(super) fn rebuild(&mut self, floor: u64) {
        let is_kept = |entry: &Entry| entry.key != FREE.key && entry.count >= floor;
        self.n_used = self.slots.iter().filter(|entry| is_kept(entry)).count();
        let free = vec![FREE; (3 * self.n_used).next_power_of_two().max(1 << 10)];
        for entry in std::mem::replace(&mut self.slots, free).into_iter().filter(is_kept) {
            let at = self.slot(entry.key);
            self.slots[at] = entry;
        }
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Entry> {
        self.slots.iter_mut().filter(|entry| entry.key != FREE.key)
    }
}
