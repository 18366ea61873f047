//! Keys of pieces, a batch at a time.

#[cfg(target_arch = "x86_64")]
mod avx512;

use std::ops::Range;

use crate::cache::{LONGEST, PACKED, PLACE, View, WIDE, long_key, packed_key, place};
use crate::simd::Level;

/// Pieces collected before they are looked up. Two batches are under way, and their cache lines must fit beside all else
/// into the first cache.
pub(super) const BATCH: usize = 128;

/// The first byte of characters that are written without spaces: from U+3000 on.
const WIDE_LEAD: u8 = 0xE3;

/// The first byte of characters of four bytes.
const LAST_LEAD: u8 = 0xF0;

/// Pieces on their way to the cache.
#[derive(Debug, Clone)]
pub(crate) struct Batch {
    keys: [u128; BATCH],
    /// Where these are in the table.
    places: [u32; BATCH],
    /// Where the first piece starts in the text, and where each ends.
    bounds: [usize; BATCH + 1],
    n: usize,
}

impl Default for Batch {
    fn default() -> Self {
        Self { keys: [0; BATCH], places: [0; BATCH], bounds: [0; BATCH + 1], n: 0 }
    }
}

impl Batch {
    pub(super) fn is_full(&self) -> bool {
        self.n == BATCH
    }

    pub(super) fn len(&self) -> usize {
        self.n
    }

    /// The keys of all pieces, and where these are in the table.
    pub(super) fn keys(&self) -> (&[u128], &[u32]) {
        (&self.keys[..self.n], &self.places[..self.n])
    }

    /// Where each piece ends.
    pub(super) fn ends(&self) -> &[usize] {
        &self.bounds[1..=self.n]
    }

    /// Where a piece is in the text.
    pub(super) fn piece(&self, at: usize) -> Range<usize> {
        self.bounds[at]..self.bounds[at + 1]
    }

    /// Forgets all pieces; the next one starts at `start`.
    pub(super) fn begin(&mut self, start: usize) {
        (self.n, self.bounds[0]) = (0, start);
    }

    /// Where the last piece ends.
    pub(super) fn end(&self) -> usize {
        self.bounds[self.n]
    }

    /// Takes the pieces that end at these distances from `base`, those that there is room for; the others.
    #[inline]
    pub(super) fn take<'e>(&mut self, base: usize, ends: &'e [u32]) -> &'e [u32] {
        let (now, later) = ends.split_at(ends.len().min(BATCH - self.n));
        let bounds = self.bounds[self.n + 1..].iter_mut().zip(now);
        bounds.for_each(|(bound, &end)| *bound = base + end as usize);
        self.n += now.len();
        later
    }

    /// Makes the keys of all pieces, and asks for what the cache has of them. Pieces that begin with characters from the
    /// first byte `apart` on are likely to fall apart.
    pub(super) fn make_keys(&mut self, level: Level, text: &[u8], apart: u8, table: &View<'_>) {
        #[cfg(target_arch = "x86_64")]
        if level == Level::Avx512 {
            // SAFETY: a splitter's level is one that this processor was found to have.
            let n_done = unsafe { avx512::make_keys(self, text, apart, table) };
            return self.make_from(n_done, text, apart, table);
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = level;
        self.make_from(0, text, apart, table);
    }

    /// [`Batch::make_keys`] of the pieces behind the first `n_done`, one by one.
    fn make_from(&mut self, n_done: usize, text: &[u8], apart: u8, table: &View<'_>) {
        let Self { keys, places, bounds, n } = self;
        let mut start = bounds[n_done];
        let slots = keys[n_done..*n].iter_mut().zip(&mut places[n_done..*n]);
        for ((slot, place_of), &end) in slots.zip(&bounds[n_done + 1..]) {
            let key = key(text, start, end, apart);
            (*slot, *place_of, start) = (key, place(key), end);
            table.prefetch(*place_of);
        }
    }
}

/// What stands for a piece in a batch: its key, or, of one that is likely to fall apart, its length.
#[inline]
fn key(text: &[u8], start: usize, end: usize, apart: u8) -> u128 {
    let piece = &text[start..end];
    if (1..=PACKED).contains(&piece.len()) && piece[0] < WIDE_LEAD {
        return packed_key(text, start, piece);
    }
    let n = piece.len() as u128;
    match piece {
        [WIDE_LEAD..LAST_LEAD, _, _, ..] => WIDE | n << 64,
        [a, b, ..] if (PACKED + 1..=LONGEST).contains(&piece.len()) && *a < apart && *b < apart => long_key(piece),
        _ => PLACE | n << 64,
    }
}

/// How many pieces may stand in a row, of which the first is wide: wide ones and single bytes of ASCII, and between them short
/// pieces of ASCII that do not begin with a space.
#[inline]
pub(super) fn n_in_row(keys: &[u128]) -> usize {
    let mut n = 0;
    for (at, &key) in (1..).zip(keys) {
        if (WIDE..PLACE).contains(&key) {
            n = at;
            continue;
        }
        if key >= WIDE || key & NOT_ASCII != 0 || key as u8 == b' ' {
            break;
        }
        if key < 2 << 120 {
            n = at;
        }
    }
    n
}

/// What no byte of ASCII has.
const NOT_ASCII: u128 = u128::from_le_bytes([0x80; 16]);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::{Cache, LONG};

    /// These characters and any other bytes in an order that does not repeat soon, and pieces of any length.
    fn pieces(seed: u64) -> (Vec<u8>, Vec<u32>) {
        let mut state = seed;
        let mut draw = |n: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize % n
        };
        let chars: Vec<char> = "ab .éжא̀͢ก一の한😀".chars().collect();
        let (mut text, mut ends) = (Vec::new(), Vec::new());
        while ends.len() < 300 {
            let n_chars = [1, 2, 3, 5, 5, 5, 14, 15, 16, 17, 40, 126, 127, 128, 129, 300][draw(16)];
            // Half of them of as many bytes as characters.
            let (n_kinds, n_others) = [(3, 0), (chars.len(), 1)][draw(2)];
            for _ in 0..n_chars {
                match draw(20) {
                    i if i < n_others => text.push(draw(256) as u8),
                    _ => text.extend(chars[draw(n_kinds)].to_string().as_bytes()),
                }
            }
            ends.push(text.len() as u32);
        }
        text.truncate(text.len() - draw(3) * 7);
        ends.retain(|&end| end as usize <= text.len());
        (text, ends)
    }

    #[test]
    fn keys_are_made_together_as_one_by_one() {
        let cache = Cache::new(0, true, 1 << 16);
        let mut counts = [0; 4];
        for seed in 0..300 {
            let (text, ends) = pieces(seed);
            let (mut rest, mut start, table) = (ends.as_slice(), 0, cache.view());
            let (n_more, apart) = (1 + seed as usize % BATCH, [0xCC, 0xE0][seed as usize % 2]);
            while !rest.is_empty() {
                let make = |level| {
                    let mut batch = Batch::default();
                    batch.begin(start);
                    batch.take(0, &rest[..rest.len().min(n_more)]);
                    batch.make_keys(level, &text, apart, &table);
                    batch
                };
                let slow = make(Level::Scalar);
                for level in Level::ALL.into_iter().filter(|level| level.is_available()) {
                    assert_eq!(make(level).keys(), slow.keys(), "{level}, {seed}: {:x?}", &text[start..slow.end()]);
                }
                let kind = |key: u128| [WIDE, PLACE, LONG].iter().filter(|&&tag| key >= tag).count();
                slow.keys().0.iter().for_each(|&key| counts[kind(key)] += 1);
                (rest, start) = (&rest[slow.len()..], slow.end());
            }
        }
        assert!(counts.iter().all(|&n| n > 1000), "{counts:?} of each kind");
    }
}
