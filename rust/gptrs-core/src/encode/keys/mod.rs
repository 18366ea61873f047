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
    /// A bit for each piece in a run, see [`Batch::run_from`]; these may have no keys.
    runs: u128,
    n: usize,
}

impl Default for Batch {
    fn default() -> Self {
        Self { keys: [0; BATCH], places: [0; BATCH], bounds: [0; BATCH + 1], runs: 0, n: 0 }
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

    /// Where the first run at or behind `at` starts, or some place behind all pieces. A run is four pieces or more, each of two
    /// bytes or more that begins with a character of two bytes from [`OTHER_LEAD`] on, perhaps behind a space, or one byte of
    /// ASCII. Only rows of characters make them worth telling: others than AVX-512 find none.
    ///
    /// [`OTHER_LEAD`]: super::OTHER_LEAD
    #[inline]
    pub(super) fn run_from(&self, at: usize) -> usize {
        if self.runs == 0 { BATCH } else { at + (self.runs >> at).trailing_zeros() as usize }
    }

    /// The end of the run that starts at `at`.
    pub(super) fn run_end(&self, at: usize) -> usize {
        at + (self.runs >> at).trailing_ones() as usize
    }

    pub(super) fn has_runs(&self) -> bool {
        self.runs != 0
    }

    /// Gives pieces in runs their keys, and forgets the runs.
    pub(super) fn dissolve_runs(&mut self, level: Level, text: &[u8], apart: u8, table: &View<'_>) {
        self.make_keys(level, text, apart, table, false);
        self.runs = 0;
    }

    /// Where the first piece starts, and where each ends.
    pub(super) fn bounds(&self) -> &[usize] {
        &self.bounds[..=self.n]
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
    /// first byte `apart` on are likely to fall apart; where these may have two bytes, runs of them are noted. If they are
    /// expected, those in runs get no keys.
    pub(super) fn make_keys(&mut self, level: Level, text: &[u8], apart: u8, table: &View<'_>, expects_runs: bool) {
        self.runs = 0;
        #[cfg(target_arch = "x86_64")]
        if level == Level::Avx512 {
            // SAFETY: a splitter's level is one that this processor was found to have.
            let n_done = unsafe { avx512::make_keys(self, text, apart, table, expects_runs) };
            return self.make_from(n_done, text, apart, table);
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = (level, expects_runs);
        self.make_from(0, text, apart, table);
    }

    /// [`Batch::make_keys`] of the pieces behind the first `n_done`, one by one.
    fn make_from(&mut self, n_done: usize, text: &[u8], apart: u8, table: &View<'_>) {
        let Self { keys, places, bounds, n, .. } = self;
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

    /// A bit for each piece in a run, piece by piece; only four pieces with 16 bytes of text from each on are looked at.
    fn runs_each(text: &[u8], batch: &Batch) -> u128 {
        let is_two = |byte: u8| (0xCC..0xE0).contains(&byte);
        let is_in_run = |bounds: &[usize]| match text[bounds[0]..bounds[1]] {
            [a] => a.is_ascii() && a != b' ',
            [a, b, ..] => is_two(a) || (a == b' ' && is_two(b)),
            [] => false,
        };
        let pieces: Vec<_> = batch.bounds().windows(2).collect();
        let seen = pieces.chunks_exact(4).take_while(|four| four[3][0] + 16 <= text.len());
        let in_run: Vec<_> = seen.flatten().map(|bounds| is_in_run(bounds)).collect();
        let (mut runs, mut at) = (0, 0);
        for run in in_run.chunk_by(|left, right| left == right) {
            if run[0] && run.len() >= 4 {
                runs |= (at..at + run.len()).fold(0, |bits, i| bits | 1_u128 << i);
            }
            at += run.len();
        }
        runs
    }

    #[test]
    fn pieces_in_runs_need_no_keys() {
        if !Level::Avx512.is_available() {
            return;
        }
        let cache = Cache::new(0, true, 1 << 16);
        let (mut n_in_runs, mut n_kept) = (0, 0);
        for seed in 0..600 {
            let (mut text, mut ends) = (Vec::new(), Vec::new());
            for n in pieces(seed).1.windows(2).map(|ends| (ends[1] - ends[0]) as usize).chain([300]) {
                // Most are words of two-byte letters, behind a space, a mark that stands alone, or nothing.
                let word = ["ab é".to_owned(), "一".to_owned(), String::new()].into_iter().nth(n / 3 % 17);
                let word = word.unwrap_or_else(|| "ж".repeat(1 + n % 11));
                text.extend([" ", "", ","][n % 3].bytes());
                ends.extend((n % 3 == 2).then_some(text.len() as u32));
                text.extend(word.bytes());
                ends.push(text.len() as u32);
            }
            let make = |expects_runs| {
                let mut batch = Batch::default();
                batch.take(0, &ends[..ends.len().min(seed as usize % (BATCH + 1))]);
                batch.make_keys(Level::Avx512, &text, [0xCC, 0xE0][seed as usize / 2 % 2], &cache.view(), expects_runs);
                batch
            };
            let (all, mut others) = (make(false), make(true));
            let runs = runs_each(&text, &all);
            assert_eq!((all.runs, others.runs), (if seed / 2 % 2 == 0 { runs } else { 0 }, runs), "{seed}");
            for i in (0..all.len()).filter(|i| runs >> i & 1 == 0) {
                assert_eq!((all.keys().0[i], all.keys().1[i]), (others.keys().0[i], others.keys().1[i]), "{seed}, {i}");
                n_kept += 1;
            }
            let mut at = 0;
            while others.run_from(at) < others.len() {
                let start = others.run_from(at);
                at = others.run_end(start);
                assert!(at - start >= 4 && (start..at).all(|i| runs >> i & 1 == 1), "{seed}: {start} to {at}");
                n_in_runs += at - start;
            }
            others.dissolve_runs(Level::Avx512, &text, [0xCC, 0xE0][seed as usize / 2 % 2], &cache.view());
            assert_eq!((others.keys(), others.has_runs()), (all.keys(), false), "{seed}");
        }
        assert!(n_in_runs > 1000 && n_kept > 1000, "{n_in_runs} in runs, {n_kept} others");
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
                    batch.make_keys(level, &text, apart, &table, false);
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
