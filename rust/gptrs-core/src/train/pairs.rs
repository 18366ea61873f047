//! Pairs of ids with their counts and postings: open addressing, one slot a cache line half.

/// A pair as one number; smaller left, then smaller right, is smaller.
pub(super) fn key(left: u32, right: u32) -> u64 {
    u64::from(left) << 32 | u64::from(right)
}

/// The pair of a [`key`].
pub(super) fn pair(key: u64) -> (u32, u32) {
    ((key >> 32) as u32, key as u32)
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
    pub(super) fn new() -> Self {
        Self { slots: vec![FREE; 1 << 10], n_used: 0 }
    }

    /// The slot of `key`, or the free one where it belongs.
    #[inline]
    fn slot(&self, key: u64) -> usize {
        let mask = self.slots.len() - 1;
        let mut at = (key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as usize & mask;
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
            self.grow(floor);
        }
        let at = self.slot(key);
        let entry = &mut self.slots[at];
        if entry.key == FREE.key {
            *entry = Entry { key, ..FREE };
            self.n_used += 1;
        }
        entry
    }

    #[cold]
    fn grow(&mut self, floor: u64) {
        let n_kept = self.slots.iter().filter(|entry| entry.count >= floor).count();
        self.rebuild((n_kept + 1) * 4, floor);
    }

    /// Drops the entries below `floor`.
    pub(super) fn retain(&mut self, floor: u64) {
        let n_kept = self.slots.iter().filter(|entry| entry.count >= floor).count();
        self.rebuild((n_kept + 1) * 2, floor);
    }

    fn rebuild(&mut self, n_slots: usize, floor: u64) {
        let free = vec![FREE; n_slots.next_power_of_two().max(1 << 10)];
        let old = std::mem::replace(&mut self.slots, free);
        self.n_used = 0;
        for entry in old.into_iter().filter(|entry| entry.key != FREE.key && entry.count >= floor) {
            let at = self.slot(entry.key);
            self.slots[at] = entry;
            self.n_used += 1;
        }
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Entry> {
        self.slots.iter_mut().filter(|entry| entry.key != FREE.key)
    }
}
