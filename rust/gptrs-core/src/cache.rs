//! The ids of pieces seen before: open addressing with exact keys, bounded, never visible in the output.
//!
//! A piece of at most 15 bytes is its own key: the bytes in a u128, the length in the top byte. A longer one is keyed
//! by length and hash, and its bytes are compared. A few ids stand in the slot; others stand in an arena. Two slots
//! fill a cache line and are compared together. The table starts small, grows fourfold, and is wiped when it may grow
//! no more; for much text it is large at once. Large tables ask for huge pages.

use std::fmt;

use crate::encode::{Buffers, LONG_LEAD, OTHER_LEAD};
use crate::simd::prefetch;
use crate::slot::{self, Halves, RawSlot};
use crate::table::{self, BUCKET, Table};
use crate::tokens::hash_bytes;
use crate::vocab::Vocab;

/// Memory of one cache unless the tokenizer says otherwise.
pub(crate) const DEFAULT_BYTES: usize = 64 << 20;

/// The longest piece whose bytes are the key.
pub(crate) const PACKED: usize = 15;

/// The longest piece that is stored.
pub(crate) const LONGEST: usize = 128;

/// Where a piece is that is not stored.
pub(crate) const NOWHERE: u32 = u32::MAX;

/// Buckets looked at before a piece counts as unseen; bounds the work on keys chosen to collide.
const MAX_PROBES: usize = 12;

/// Bytes of text after which a cache learns the tokens: this takes some milliseconds.
const SEED_BYTES: usize = 1 << 18;

/// Bytes of text from which on a cache gets most of its slots at once: most of its pieces stand alone in their buckets then, and
/// few move.
const MUCH_BYTES: usize = 24 << 20;

/// Pieces that are no tokens from which on it does: other text may be one piece again and again.
const MANY_PIECES: usize = 1 << 8;

/// Tokens that are learnt together.
const TOGETHER: usize = 32;

/// Bytes of pieces that may fall apart before the table of borders is worth making.
const WIDE_BYTES: usize = 1 << 14;

/// How many more pieces must fall apart than not.
const CREDIT: i32 = 1 << 10;

const FIRST_SLOTS: usize = 1 << 12;

/// How much larger the next table is.
const GROWTH: usize = 4;

/// Top byte of a long piece's key.
pub(crate) const LONG: u128 = 0xFF << 120;

/// Top byte of what stands among keys and is none: no slot has it.
pub(crate) const PLACE: u128 = 0xFE << 120;

/// The same of pieces that begin with a wide character.
pub(crate) const WIDE: u128 = 0xFD << 120;

/// The memory of one encoding thread: pieces seen before, and buffers. Get one from [`crate::Tokenizer::cache`].
///
/// A clone knows the same pieces: it costs one copy of the memory.
#[derive(Clone)]
pub struct Cache {
    /// The tokenizer whose ids are stored.
    owner: u64,
    /// Whether all its ids are below 2¹⁶.
    is_narrow: bool,
    /// Whether its tokens were stored as pieces since the cache was last wiped.
    knows_tokens: bool,
    table: Table,
    used: usize,
    /// How many of these are tokens that were learnt.
    n_learnt: usize,
    /// The number of slots in use at which the table grows.
    grows_at: usize,
    max_slots: usize,
    /// Ids that do not fit into a slot; behind those of a long piece its bytes.
    arena: Vec<u32>,
    /// In words.
    max_arena: usize,
    /// Bytes of text seen so far.
    expected_bytes: usize,
    /// Bytes of text to come, as far as that is known.
    announced_bytes: usize,
    /// Bytes of pieces that may fall apart, seen so far.
    wide_bytes: usize,
    /// The first byte of characters whose pieces are parted.
    pub(crate) apart: u8,
    /// How many more of them fell apart than not, of late.
    credit: i32,
    /// What an encoding call takes and gives back.
    pub(crate) buffers: Option<Box<Buffers>>,
}

impl fmt::Debug for Cache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (owner, used, slots) = (self.owner, self.used, self.table.n_slots());
        f.debug_struct("Cache")
            .field("owner", &owner)
            .field("used", &used)
            .field("slots", &slots)
            .finish_non_exhaustive()
    }
}

impl Cache {
    /// An empty cache of at most `max_bytes`, for the tokenizer `owner`. Half may go to slots, half to the arena.
    pub(crate) fn new(owner: u64, is_narrow: bool, max_bytes: usize) -> Self {
        // Places are u32.
        let max_bytes = max_bytes.min(u32::MAX as usize);
        let fitting = (max_bytes / BUCKET).max(16);
        let max_slots = if fitting.is_power_of_two() { fitting } else { fitting.next_power_of_two() / 2 };
        let n_slots = FIRST_SLOTS.min(max_slots);
        Self {
            owner,
            is_narrow,
            knows_tokens: false,
            table: Table::new(n_slots),
            used: 0,
            n_learnt: 0,
            grows_at: n_slots / 2,
            max_slots,
            arena: Vec::new(),
            max_arena: max_bytes / 8,
            expected_bytes: 0,
            announced_bytes: 0,
            wide_bytes: 0,
            apart: OTHER_LEAD,
            credit: 0,
            buffers: None,
        }
    }

    /// Makes the cache one of `owner`: what another tokenizer stored is forgotten.
    pub(crate) fn claim(&mut self, owner: u64, is_narrow: bool) {
        if self.owner != owner {
            (self.owner, self.is_narrow) = (owner, is_narrow);
            (self.expected_bytes, self.announced_bytes) = (0, 0);
            (self.apart, self.credit) = (OTHER_LEAD, 0);
            self.wipe();
        }
    }

    /// Notes that about `n_bytes` of text will come, before [`Cache::expect`] counts them bit by bit.
    pub(crate) fn announce(&mut self, n_bytes: usize) {
        self.announced_bytes = n_bytes;
    }

    /// Counts `n_bytes` of text to come; when a new cache has seen enough for it to pay, it learns the tokens themselves,
    /// each of which is a likely piece that encodes to one id.
    pub(crate) fn expect(&mut self, n_bytes: usize, vocab: &Vocab) {
        let before = self.expected_bytes;
        self.expected_bytes = before.saturating_add(n_bytes);
        self.grows_at = self.growth();
        let is_large = self.has_much() && self.used >= MANY_PIECES;
        let n_slots = if is_large { self.large() } else { (4 * vocab.len()).next_power_of_two() };
        let n_slots = n_slots.min(self.max_slots).max(self.table.n_slots());
        if before >= SEED_BYTES || self.expected_bytes < SEED_BYTES || n_slots < 2 * (vocab.len() + self.used) {
            return;
        }
        if n_slots > self.table.n_slots() {
            self.resize(n_slots);
        }
        let n_before = self.used;
        self.knows_tokens = true;
        let mut tokens = (0..vocab.len() as u32).filter_map(|id| {
            let token = vocab.token(id).filter(|token| (1..=PACKED).contains(&token.len()) && vocab.is_piece(id))?;
            Some((packed_key(token, 0, token), id))
        });
        // Where they go is brought near for many side by side.
        let mut together = Vec::with_capacity(TOGETHER);
        loop {
            together.extend(tokens.by_ref().take(TOGETHER));
            if together.is_empty() {
                break;
            }
            let view = self.view();
            for &(key, _) in &together {
                view.prefetch(place(key));
            }
            for (key, id) in together.drain(..) {
                if self.find(key) == NOWHERE {
                    self.put_ids(key, &[id]);
                }
            }
        }
        self.n_learnt = self.used - n_before;
        self.grows_at = self.growth();
    }

    /// Whether there is so much text that the table should be as large as it may, if there are many pieces in it.
    fn has_much(&self) -> bool {
        self.expected_bytes.max(self.announced_bytes) >= MUCH_BYTES
    }

    /// The number of slots for much text: all, or half of them where the vocabulary is small, since more pieces fall apart then
    /// and are not stored.
    fn large(&self) -> usize {
        if self.is_narrow { self.max_slots / 2 } else { self.max_slots }
    }

    /// The number of slots in use at which the table grows: half of all, or fewer before much text.
    fn growth(&self) -> usize {
        let (n_slots, many) = (self.table.n_slots(), self.n_learnt + MANY_PIECES);
        if self.has_much() && n_slots < self.large() { many.min(n_slots / 2) } else { n_slots / 2 }
    }

    /// Counts bytes of pieces that may fall apart; whether it pays to look for borders in them.
    pub(crate) fn may_part(&mut self, n_bytes: usize) -> bool {
        self.wide_bytes = self.wide_bytes.saturating_add(n_bytes);
        self.wide_bytes >= WIDE_BYTES
    }

    /// Notes whether `n` pieces fell apart. Where tokens span most borders it costs more to look for them than they save; then
    /// only characters of three bytes, which are more often written without spaces, are worth it.
    pub(crate) fn parted(&mut self, fell_apart: bool, n: usize) {
        self.credit = (self.credit + n as i32 * if fell_apart { 1 } else { -2 }).min(CREDIT);
        if self.credit < -CREDIT {
            self.apart = LONG_LEAD;
        }
    }

    /// Whether all ids are below 2¹⁶.
    pub(crate) fn is_narrow(&self) -> bool {
        self.is_narrow
    }

    /// Whether a piece that is not stored is not a token either, but for rare ones.
    pub(crate) fn knows_tokens(&self) -> bool {
        self.knows_tokens
    }

    /// The stored pieces for look-ups in a row.
    #[inline]
    pub(crate) fn view(&self) -> View<'_> {
        View { buckets: self.table.buckets(), cache: self }
    }

    /// The slot number of `key`, or [`NOWHERE`].
    #[inline]
    pub(crate) fn find(&self, key: u128) -> u32 {
        let (first, is_full) = self.table.probe(place(key) as usize, key);
        if first == NOWHERE && is_full { self.find_on(key) } else { first }
    }

    /// [`Cache::find`] behind the first bucket.
    #[cold]
    fn find_on(&self, key: u128) -> u32 {
        for step in 1..MAX_PROBES {
            let (found, is_full) = self.table.probe(place(key) as usize + step, key);
            if found != NOWHERE || !is_full {
                return found;
            }
        }
        NOWHERE
    }

    /// The ids of a stored longer piece, whose key is `key`.
    pub(crate) fn get_long(&self, piece: &[u8], key: u128) -> Option<&[u32]> {
        let slot = self.find(key);
        if slot == NOWHERE {
            return None;
        }
        // Another piece of the same length and hash hides this one, which is then computed each time.
        let (place, n) = slot::elsewhere(slot::content(self.table.raw(slot as usize)).0);
        let (ids, bytes) = self.arena.get(place..)?.split_at_checked(n)?;
        words(piece).zip(bytes).all(|(word, &stored)| word == stored).then_some(ids)
    }

    /// The ids of a packed piece whose slot says where they are.
    pub(crate) fn elsewhere(&self, halves: Halves) -> &[u32] {
        let (place, n) = slot::elsewhere(halves);
        &self.arena[place..place + n]
    }

    /// Stores the ids of a piece of at most [`PACKED`] bytes that is not stored.
    pub(crate) fn insert(&mut self, key: u128, ids: &[u32]) {
        self.make_room(ids.len());
        self.put_ids(key, ids);
    }

    /// Puts ids into a slot, or into the arena and their place into the slot; there is room.
    fn put_ids(&mut self, key: u128, ids: &[u32]) {
        let slot = slot::inline(key, ids, self.is_narrow).unwrap_or_else(|| {
            self.arena.extend_from_slice(ids);
            slot::far(key, (self.arena.len() - ids.len()) as u32, ids.len() as u16)
        });
        self.put(&slot);
    }

    /// Stores the ids of a longer piece that [`Cache::get_long`] did not find.
    pub(crate) fn insert_long(&mut self, piece: &[u8], ids: &[u32]) {
        let key = long_key(piece);
        if self.find(key) != NOWHERE {
            return;
        }
        self.make_room(ids.len() + piece.len().div_ceil(4));
        let slot = slot::far(key, self.arena.len() as u32, ids.len() as u16);
        self.arena.extend_from_slice(ids);
        self.arena.extend(words(piece));
        self.put(&slot);
    }

    /// Stores the ids of a piece, which must be what it encodes to; nothing changes when it is there or too long, or when
    /// the cache would have to forget others for it.
    pub(crate) fn store(&mut self, piece: &[u8], ids: &[u32]) {
        if 2 * (self.used + 1) > self.max_slots {
            return;
        }
        match piece.len() {
            1..=PACKED => {
                let key = packed_key(piece, 0, piece);
                if self.find(key) == NOWHERE {
                    self.insert(key, ids);
                }
            }
            0 => {}
            n if n <= LONGEST && self.get_long(piece, long_key(piece)).is_none() => self.insert_long(piece, ids),
            _ => {}
        }
    }

    /// Grows the table at a load of 1/2 at the latest; wipes everything when table or arena are at their bound.
    fn make_room(&mut self, n_words: usize) {
        if self.arena.len() + n_words > self.max_arena {
            self.wipe();
        }
        if self.used < self.grows_at {
            return;
        }
        let now = self.table.n_slots();
        let n_slots = if self.has_much() && now < self.large() { self.large() } else { GROWTH * now };
        let n_slots = n_slots.min(self.max_slots);
        if n_slots == now {
            self.wipe();
            return;
        }
        self.resize(n_slots);
    }

    fn resize(&mut self, n_slots: usize) {
        let old = std::mem::replace(&mut self.table, Table::new(n_slots));
        self.used = 0;
        for slot in (0..old.n_slots()).map(|number| old.raw(number)).filter(|slot| slot::key(&slot[..], 0) != 0) {
            self.put(slot);
        }
        self.grows_at = self.growth();
    }

    /// Puts a slot into the first free place near its own; drops it when there is none.
    fn put(&mut self, slot: &RawSlot) {
        let home = place(slot::key(slot, 0)) as usize;
        if (home..home + MAX_PROBES).any(|place| self.table.put(place, slot)) {
            self.used += 1;
        }
    }

    fn wipe(&mut self) {
        self.table.wipe();
        self.knows_tokens = false;
        (self.used, self.n_learnt) = (0, 0);
        self.grows_at = self.growth();
        self.arena.clear();
    }
}

/// A cache that does not change for a while.
pub(crate) struct View<'a> {
    buckets: &'a [[u8; BUCKET]],
    cache: &'a Cache,
}

impl<'a> View<'a> {
    /// Asks the processor to bring the bucket at a place near.
    #[inline]
    pub(crate) fn prefetch(&self, place: u32) {
        prefetch(self.buckets, place as usize & (self.buckets.len() - 1));
    }

    /// The slot of `key`, whose place is `place`.
    #[inline]
    pub(crate) fn get(&self, place: u32, key: u128) -> Option<&'a RawSlot> {
        let bucket = &self.buckets[place as usize & (self.buckets.len() - 1)];
        let slot = table::find(bucket, key);
        if slot.is_none() && table::is_full(bucket) && key < WIDE { self.get_on(key) } else { slot }
    }

    #[cold]
    #[inline(never)]
    fn get_on(&self, key: u128) -> Option<&'a RawSlot> {
        let number = self.cache.find_on(key);
        if number == NOWHERE { None } else { Some(self.cache.table.raw(number as usize)) }
    }
}

/// The masks of the first 0..=15 bytes.
static MASKS: [u128; 16] = {
    let mut masks = [0; 16];
    let mut n = 1;
    while n < 16 {
        masks[n] = u128::MAX >> (128 - 8 * n);
        n += 1;
    }
    masks
};

/// The key of a piece of 1..=15 bytes that starts at `at` in `text`.
#[inline]
pub(crate) fn packed_key(text: &[u8], at: usize, piece: &[u8]) -> u128 {
    let n = piece.len();
    let word = if let Some(window) = text.get(at..).and_then(<[u8]>::first_chunk::<16>) {
        u128::from_le_bytes(*window) & MASKS[n % 16]
    } else {
        let mut window = [0; 16];
        window[..n].copy_from_slice(piece);
        u128::from_le_bytes(window)
    };
    word | (n as u128) << 120
}

/// The bytes of a piece, four a word, zeros behind the last.
fn words(piece: &[u8]) -> impl Iterator<Item = u32> + '_ {
    piece.chunks(4).map(|bytes| {
        let mut word = [0; 4];
        word[..bytes.len()].copy_from_slice(bytes);
        u32::from_le_bytes(word)
    })
}

/// The key of a piece of more than [`PACKED`] bytes, and at most [`LONGEST`].
#[inline]
pub(crate) fn long_key(piece: &[u8]) -> u128 {
    LONG | (piece.len() as u128) << 64 | u128::from(hash_bytes(piece))
}

/// What makes the places of short keys differ in all bits.
pub(crate) const MIX: u64 = 0x9E37_79B9_7F4A_7C15;

/// Where a key is looked for, in a table of any size: the product of both halves of a sum, folded, since this takes few
/// instructions for many keys together, too.
#[inline]
pub(crate) fn place(key: u128) -> u32 {
    let sum = (key as u64 ^ MIX).wrapping_add(((key >> 64) as u64).rotate_left(32));
    let product = (sum & 0xFFFF_FFFF) * (sum >> 32);
    (product ^ product >> 32) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn much_text_of_many_pieces_gets_many_slots_at_once() {
        let vocab = Vocab::from_merges(&[(97, 98)]).unwrap();
        let most = DEFAULT_BYTES / BUCKET;
        // The number of slots after so much text is expected, then so many pieces stored, then so much text expected.
        let n_slots_of = |is_narrow, announced, first, n_pieces: usize, second| {
            let mut cache = Cache::new(0, is_narrow, DEFAULT_BYTES);
            cache.announce(announced);
            cache.expect(first, &vocab);
            assert_eq!(cache.knows_tokens(), first >= SEED_BYTES);
            for i in 0..n_pieces {
                let piece = format!("piece {i}");
                cache.insert(packed_key(piece.as_bytes(), 0, piece.as_bytes()), &[1]);
            }
            cache.expect(second, &vocab);
            assert_eq!(cache.knows_tokens(), first + second >= SEED_BYTES);
            assert_ne!(cache.knows_tokens(), cache.find(packed_key(b"ab", 0, b"ab")) == NOWHERE);
            cache.table.n_slots()
        };
        let n_slots = |announced, first, n_pieces, second| n_slots_of(true, announced, first, n_pieces, second);
        // When the tokens are learnt, and behind that, for what is announced and what has come.
        assert_eq!(n_slots(MUCH_BYTES, SEED_BYTES - 1, MANY_PIECES, 1), most / 2);
        assert_eq!(n_slots_of(false, MUCH_BYTES, SEED_BYTES - 1, MANY_PIECES, 1), most);
        assert_eq!(n_slots(MUCH_BYTES, SEED_BYTES, most / 2, 0), most, "it grows on");
        assert_eq!(n_slots(MUCH_BYTES, SEED_BYTES - 1, MANY_PIECES - 1, 1), FIRST_SLOTS);
        assert_eq!(n_slots(MUCH_BYTES - 1, SEED_BYTES - 1, MANY_PIECES - 1, 1), FIRST_SLOTS);
        assert_eq!(n_slots(MUCH_BYTES - 1, SEED_BYTES - 1, MANY_PIECES + 1, 1), FIRST_SLOTS);
        for (announced, expected) in [(MUCH_BYTES, SEED_BYTES), (0, MUCH_BYTES)] {
            assert_eq!(n_slots(announced, expected, MANY_PIECES, 0), FIRST_SLOTS);
            assert_eq!(n_slots(announced, expected, MANY_PIECES + 1, 0), most / 2);
        }
        assert_eq!(n_slots(0, MUCH_BYTES - 1, FIRST_SLOTS / 2 - vocab.len(), 0), FIRST_SLOTS);
        assert_eq!(n_slots(0, MUCH_BYTES - 1, FIRST_SLOTS / 2 - vocab.len() + 1, 0), GROWTH * FIRST_SLOTS);
    }

    #[test]
    fn another_tokenizer_is_not_given_what_was_announced() {
        let mut cache = Cache::new(0, true, DEFAULT_BYTES);
        cache.announce(MUCH_BYTES);
        assert!(cache.has_much());
        cache.claim(1, true);
        assert!(!cache.has_much());
    }
}
