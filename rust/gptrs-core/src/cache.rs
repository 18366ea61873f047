//! The ids of pieces seen before: open addressing with exact keys, bounded, never visible in the output.
//!
//! A piece of at most 15 bytes is its own key: the bytes in a u128, the length in the top byte. A longer one is keyed
//! by length and hash, and its bytes are compared. Up to three ids stand in the slot, two slots in a cache line;
//! others stand in an arena. The table starts small, grows fourfold, and is wiped when it may grow no more.

use crate::merge::Scratch;
use crate::tokens::{fold, hash_bytes};

/// Memory of one cache unless the tokenizer says otherwise.
pub(crate) const DEFAULT_BYTES: usize = 64 << 20;

/// The longest piece whose bytes are the key.
pub(crate) const PACKED: usize = 15;

/// The longest piece that is stored.
pub(crate) const LONGEST: usize = 128;

/// Ids that fit into a slot.
pub(crate) const INLINE: usize = 3;

/// Slots looked at before a piece counts as unseen; bounds the work on keys chosen to collide.
const MAX_PROBES: usize = 24;

const FIRST_SLOTS: usize = 1 << 12;

/// Top byte of a long piece's key.
const LONG: u128 = 0xFF << 120;

/// What a piece encoded to; `n` ids inline when it is at most [`INLINE`], else `ids` is a place in the arena.
#[derive(Debug, Clone, Copy, Default)]
#[repr(align(32))]
pub(crate) struct Slot {
    key: u128,
    pub(crate) ids: [u32; INLINE],
    pub(crate) n: u32,
}

/// The memory of one encoding thread: pieces seen before, and buffers. Get one from [`crate::Tokenizer::cache`].
#[derive(Debug, Clone)]
pub struct Cache {
    /// The tokenizer whose ids are stored.
    owner: u64,
    slots: Vec<Slot>,
    used: usize,
    max_slots: usize,
    /// Ids and bytes of what does not fit into a slot.
    ids: Vec<u32>,
    bytes: Vec<u8>,
    max_arena: usize,
    /// Bytes of pieces that may fall apart, seen so far.
    pub(crate) wide_bytes: usize,
    pub(crate) buffers: Buffers,
}

/// Memory that encoding reuses from call to call.
#[derive(Debug, Clone, Default)]
pub(crate) struct Buffers {
    /// Keys of the pieces under way.
    pub(crate) keys: Vec<u128>,
    /// Ids of one piece.
    pub(crate) ids: Vec<u32>,
    pub(crate) scratch: Scratch,
}

impl Cache {
    /// An empty cache of at most `max_bytes`, for the tokenizer `owner`. Half may go to slots, half to the arena.
    pub(crate) fn new(owner: u64, max_bytes: usize) -> Self {
        let fitting = (max_bytes / 2 / size_of::<Slot>()).max(16);
        let max_slots = if fitting.is_power_of_two() { fitting } else { fitting.next_power_of_two() / 2 };
        Self {
            owner,
            slots: vec![Slot::default(); FIRST_SLOTS.min(max_slots)],
            used: 0,
            max_slots,
            ids: Vec::new(),
            bytes: Vec::new(),
            max_arena: max_bytes / 2,
            wide_bytes: 0,
            buffers: Buffers::default(),
        }
    }

    /// Makes the cache one of `owner`: what another tokenizer stored is forgotten.
    pub(crate) fn claim(&mut self, owner: u64) {
        if self.owner != owner {
            self.owner = owner;
            self.wipe();
        }
    }

    /// Asks the processor to bring the slot of `key` near; changes nothing but the time of [`Cache::get`].
    #[inline]
    pub(crate) fn prefetch(&self, key: u128) {
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            let slot = self.slots.as_ptr().wrapping_add(place(key) & (self.slots.len() - 1));
            // SAFETY: a prefetch is a hint: it reads and writes nothing the program can see, at any address.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(slot.cast()) };
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = key;
    }

    /// The slot of a piece of at most [`PACKED`] bytes.
    #[inline]
    pub(crate) fn get(&self, key: u128) -> Option<Slot> {
        let mask = self.slots.len() - 1;
        let mut at = place(key) & mask;
        for _ in 0..MAX_PROBES {
            let slot = self.slots[at];
            if slot.key == key {
                return Some(slot);
            }
            if slot.key == 0 {
                return None;
            }
            at = (at + 1) & mask;
        }
        None
    }

    /// The ids of a stored longer piece.
    pub(crate) fn get_long(&self, piece: &[u8]) -> Option<&[u32]> {
        let (key, mask) = (long_key(piece), self.slots.len() - 1);
        let mut at = place(key) & mask;
        for _ in 0..MAX_PROBES {
            let slot = &self.slots[at];
            if slot.key == 0 {
                return None;
            }
            let [ids, bytes, _] = slot.ids.map(|place| place as usize);
            if slot.key == key && self.bytes.get(bytes..bytes + piece.len()) == Some(piece) {
                return self.ids.get(ids..ids + slot.n as usize);
            }
            at = (at + 1) & mask;
        }
        None
    }

    /// The ids of a slot of a packed piece.
    #[inline]
    pub(crate) fn ids<'a>(&'a self, slot: &'a Slot) -> &'a [u32] {
        let n = slot.n as usize;
        if n <= INLINE { &slot.ids[..n] } else { &self.ids[slot.ids[0] as usize..][..n] }
    }

    /// Stores the ids of a piece of at most [`PACKED`] bytes that [`Cache::get`] did not find.
    pub(crate) fn insert(&mut self, key: u128, ids: &[u32]) {
        self.make_room(4 * ids.len());
        let mut slot = Slot { key, ids: [0; INLINE], n: ids.len() as u32 };
        if ids.len() <= INLINE {
            slot.ids[..ids.len()].copy_from_slice(ids);
        } else {
            slot.ids[0] = self.ids.len() as u32;
            self.ids.extend_from_slice(ids);
        }
        self.put(slot);
    }

    /// Stores the ids of a longer piece that [`Cache::get_long`] did not find.
    pub(crate) fn insert_long(&mut self, piece: &[u8], ids: &[u32]) {
        self.make_room(4 * ids.len() + piece.len());
        let places = [self.ids.len() as u32, self.bytes.len() as u32, 0];
        self.ids.extend_from_slice(ids);
        self.bytes.extend_from_slice(piece);
        self.put(Slot { key: long_key(piece), ids: places, n: ids.len() as u32 });
    }

    /// Stores the ids of a piece, which must be what it encodes to; nothing changes when it is there or too long.
    pub(crate) fn seed(&mut self, piece: &[u8], ids: &[u32]) {
        match piece.len() {
            1..=PACKED => {
                let key = packed_key(piece, 0, piece);
                if self.get(key).is_none() {
                    self.insert(key, ids);
                }
            }
            0 => {}
            n if n <= LONGEST && self.get_long(piece).is_none() => self.insert_long(piece, ids),
            _ => {}
        }
    }

    /// Grows the table at a load of 1/2; wipes everything when table or arena are at their bound.
    fn make_room(&mut self, arena: usize) {
        if 4 * self.ids.len() + self.bytes.len() + arena > self.max_arena {
            self.wipe();
        }
        if 2 * (self.used + 1) <= self.slots.len() {
            return;
        }
        let n_slots = (4 * self.slots.len()).min(self.max_slots);
        if n_slots == self.slots.len() {
            self.wipe();
            return;
        }
        let old = std::mem::replace(&mut self.slots, vec![Slot::default(); n_slots]);
        self.used = 0;
        for slot in old.into_iter().filter(|slot| slot.key != 0) {
            self.put(slot);
        }
    }

    /// Puts a slot into the first free place near its own; drops it when there is none.
    fn put(&mut self, slot: Slot) {
        let mask = self.slots.len() - 1;
        let home = place(slot.key);
        for at in (home..home + MAX_PROBES).map(|at| at & mask) {
            if self.slots[at].key == 0 {
                self.slots[at] = slot;
                self.used += 1;
                return;
            }
        }
    }

    fn wipe(&mut self) {
        self.slots.fill(Slot::default());
        self.used = 0;
        self.ids.clear();
        self.bytes.clear();
    }
}

/// The key of a piece of 1..=15 bytes that starts at `at` in `text`.
#[inline]
pub(crate) fn packed_key(text: &[u8], at: usize, piece: &[u8]) -> u128 {
    let n = piece.len();
    let word = if let Some(window) = text.get(at..).and_then(<[u8]>::first_chunk::<16>) {
        u128::from_le_bytes(*window) & (u128::MAX >> (128 - 8 * n))
    } else {
        let mut window = [0; 16];
        window[..n].copy_from_slice(piece);
        u128::from_le_bytes(window)
    };
    word | (n as u128) << 120
}

/// The bytes of a packed key and how many there are.
pub(crate) fn unpack(key: u128) -> ([u8; 16], usize) {
    (key.to_le_bytes(), (key >> 120) as usize)
}

fn long_key(piece: &[u8]) -> u128 {
    LONG | (piece.len() as u128) << 64 | u128::from(hash_bytes(piece))
}

#[inline]
fn place(key: u128) -> usize {
    fold(key as u64 ^ 0x9E37_79B9_7F4A_7C15, (key >> 64) as u64 ^ 0xD6E8_FEB8_6659_FD93) as usize
}
