//! The cache's slots in memory: buckets of two, one cache line each, in huge pages where there are many.

use memmap2::MmapMut;

use crate::cache::NOWHERE;
use crate::slot::{RawSlot, SLOT, key as read_key};

pub(crate) const BUCKET: usize = 2 * SLOT;

/// Tables from this size on get memory of their own.
const HUGE: usize = 2 << 20;

/// Slots by number; a slot with key 0 is free, and the second of a bucket is taken only after the first.
pub(crate) struct Table {
    memory: Memory,
    mask: usize,
}

enum Memory {
    /// The buckets start at a cache line inside.
    Heap(Vec<u8>, usize),
    Map(MmapMut),
}

impl Table {
    /// A table of free slots; their number is a power of two, at least 2.
    pub(crate) fn new(n_slots: usize) -> Self {
        Self { memory: Memory::new(n_slots / 2), mask: n_slots / 2 - 1 }
    }

    pub(crate) fn n_slots(&self) -> usize {
        2 * (self.mask + 1)
    }

    #[inline]
    pub(crate) fn buckets(&self) -> &[[u8; BUCKET]] {
        let bytes: &[u8] = match &self.memory {
            Memory::Heap(bytes, start) => &bytes[*start..],
            Memory::Map(map) => map,
        };
        &bytes.as_chunks().0[..=self.mask]
    }

    fn bucket(&mut self, place: usize) -> &mut [u8; BUCKET] {
        let at = place & self.mask;
        &mut self.memory.bytes().as_chunks_mut().0[at]
    }

    /// The number of the slot with `key` in the bucket at `place`, or [`NOWHERE`]; and whether the bucket is full.
    #[inline]
    pub(crate) fn probe(&self, place: usize, key: u128) -> (u32, bool) {
        let at = place & self.mask;
        let bucket = &self.buckets()[at];
        let (first, second) = (read_key(bucket, 0), read_key(bucket, SLOT));
        let number = 2 * at as u32;
        let found = if first == key { number } else { NOWHERE };
        (if second == key { number + 1 } else { found }, second != 0)
    }

    #[inline]
    pub(crate) fn raw(&self, number: usize) -> &RawSlot {
        &self.buckets()[(number / 2) & self.mask].as_chunks().0[number % 2]
    }

    /// Writes `slot` into the bucket at `place`; false when the bucket is full.
    pub(crate) fn put(&mut self, place: usize, slot: &RawSlot) -> bool {
        let bucket = self.bucket(place);
        let Some(at) = [0, SLOT].into_iter().find(|&at| read_key(bucket, at) == 0) else { return false };
        bucket[at..at + SLOT].copy_from_slice(slot);
        true
    }

    /// Frees all slots.
    pub(crate) fn wipe(&mut self) {
        self.memory.bytes().fill(0);
    }
}

impl Clone for Table {
    fn clone(&self) -> Self {
        let mut copy = Self::new(self.n_slots());
        let buckets = &self.buckets()[..=self.mask];
        copy.memory.bytes()[..buckets.len() * BUCKET].copy_from_slice(buckets.as_flattened());
        copy
    }
}

impl Memory {
    fn bytes(&mut self) -> &mut [u8] {
        match self {
            Self::Heap(bytes, start) => &mut bytes[*start..],
            Self::Map(map) => map,
        }
    }

    /// Zeroed; on the heap when it is small, or when the system gives no map.
    fn new(n_buckets: usize) -> Self {
        let n_bytes = n_buckets * BUCKET;
        if n_bytes >= HUGE
            && let Ok(map) = MmapMut::map_anon(n_bytes)
        {
            // Advice: without huge pages everything works, only slower.
            #[cfg(target_os = "linux")]
            let _ = map.advise(memmap2::Advice::HugePage);
            return Self::Map(map);
        }
        let bytes = vec![0; n_bytes + BUCKET];
        let start = bytes.as_ptr().align_offset(BUCKET).min(BUCKET);
        Self::Heap(bytes, start)
    }
}

/// The slot with `key` in a bucket. Which of the two it is cannot be predicted: both are compared, none is branched on.
#[inline]
pub(crate) fn find(bucket: &[u8; BUCKET], key: u128) -> Option<&RawSlot> {
    let (slots, _) = bucket.as_chunks();
    let is_second = read_key(bucket, SLOT) == key;
    (is_second || read_key(bucket, 0) == key).then(|| &slots[usize::from(is_second)])
}

/// Whether there is no free slot in a bucket.
#[inline]
pub(crate) fn is_full(bucket: &[u8; BUCKET]) -> bool {
    read_key(bucket, SLOT) != 0
}
