//! The ids of one piece: the lowest rank first, the leftmost of equals first, until nothing merges.
//!
//! Up to [`SHORT`] bytes a scan finds the minimum on the stack. A longer piece is encoded by [`windows`]; those beyond the
//! scan keep a heap over linked symbols, O(n log n).
//! All of it equals [`crate::naive::encode_piece`] on every vocabulary that training makes.

#![allow(clippy::inline_always, reason = "each caller compiles it for its own instructions")]

#[cfg(target_arch = "x86_64")]
mod columns;
mod lanes;
mod windows;

#[cfg(target_arch = "x86_64")]
pub(crate) use columns::Room;
pub(crate) use lanes::Start;

/// Nothing is needed.
#[cfg(not(target_arch = "x86_64"))]
#[derive(Debug, Clone, Default)]
pub(crate) struct Room;

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::control::Control;
use crate::error::{Error, Result};
use crate::pairs::{NO_RANK, Pairs};

/// The longest piece for the scan, and the first window of a longer one.
pub(crate) const SHORT: usize = 64;

/// Windows, or heap pops, between two looks at the control.
const CHECK_EVERY: u32 = 1 << 14;

/// Bits of a place in a scan.
const PLACE_BITS: u32 = 6;

/// The least of a scan when nothing merges.
const NOTHING: i32 = (NO_RANK << PLACE_BITS) as i32;

/// A linked symbol of a long window; `rank` is that of the pair with the next one.
#[derive(Debug, Clone, Copy)]
struct Symbol {
    previous: u32,
    next: u32,
    id: u32,
    rank: u32,
}

/// No neighbour.
const END: u32 = u32::MAX;

/// Memory that long pieces reuse.
#[derive(Debug, Clone, Default)]
pub(crate) struct Scratch {
    symbols: Vec<Symbol>,
    heap: Vec<Reverse<u64>>,
    /// Tokens of the window: id and start.
    tokens: Vec<(u32, u32)>,
}

/// What merges, and into what.
#[derive(Clone, Copy)]
pub(crate) struct Merges<'a> {
    pub(crate) pairs: &'a Pairs,
    pub(crate) byte_ids: &'a [u32; 256],
}

/// What a few bytes become.
pub(crate) struct Few {
    /// Their ids, in front of zeros, and how many.
    pub(crate) ids: [u32; 3],
    pub(crate) n: usize,
    /// The highest rank that merged; 0 where nothing did.
    pub(crate) highest: u32,
}

impl Merges<'_> {
    /// Appends the ids of `piece` to `out`.
    pub(crate) fn encode(
        self,
        piece: &[u8],
        scratch: &mut Scratch,
        control: &Control,
        out: &mut Vec<u32>,
    ) -> Result<()> {
        match piece.len() {
            0 => {}
            1..=16 => self.append::<16>(piece, out),
            17..=32 => self.append::<32>(piece, out),
            33..=SHORT => self.append::<SHORT>(piece, out),
            _ => return self.windows(piece, scratch, control, out),
        }
        Ok(())
    }

    /// What [`Merges::encode`] makes of one to three bytes, in a few steps.
    pub(crate) fn few(self, bytes: &[u8]) -> Few {
        let rank = |at: usize| bytes.get(at..at + 2).map_or(NO_RANK, |pair| self.pairs.byte_rank(pair[0], pair[1]));
        let mut ids = [0; 3];
        for (id, &byte) in ids.iter_mut().zip(bytes) {
            *id = self.byte_ids[usize::from(byte)];
        }
        let ([a, _, c], first, second) = (ids, rank(0), rank(1));
        if first == NO_RANK && second == NO_RANK {
            return Few { ids, n: bytes.len(), highest: 0 };
        }
        // The lower one; of equals the left one.
        let lower = first.min(second);
        let merged = self.pairs.product(lower);
        let pair = if first <= second { [merged, c] } else { [a, merged] };
        if bytes.len() < 3 {
            return Few { ids: [merged, 0, 0], n: 1, highest: lower };
        }
        match self.pairs.rank(pair[0], pair[1]) {
            NO_RANK => Few { ids: [pair[0], pair[1], 0], n: 2, highest: lower },
            last => Few { ids: [self.pairs.product(last), 0, 0], n: 1, highest: lower.max(last) },
        }
    }

    /// What two ids merge into, and how many these are; one is in front of anything else.
    #[inline]
    pub(crate) fn two(self, left: u32, right: u32) -> ([u32; 2], usize) {
        let rank = self.pairs.rank(left, right);
        ([self.pairs.product_or(rank, left), right], 1 + usize::from(rank == NO_RANK))
    }

    #[inline]
    fn scan_four<const N: usize>(self, pieces: [&[u8]; 4]) -> [Scan<N>; 4] {
        let mut scans = pieces.map(|piece| Scan::new(self, piece));
        loop {
            let changes = scans.each_mut().map(|scan| scan.merge(self));
            if changes.iter().all(Option::is_none) {
                return scans;
            }
            for (scan, change) in scans.iter_mut().zip(changes) {
                if let Some(change) = change {
                    scan.rank(self, change);
                }
            }
        }
    }

    #[inline]
    fn append<const N: usize>(self, piece: &[u8], out: &mut Vec<u32>) {
        let mut scan = Scan::<N>::new(self, piece);
        while scan.step(self) {}
        scan.finish(out);
    }

    /// Leaves the tokens of `window` in the scratch memory.
    fn window(self, window: &[u8], scratch: &mut Scratch, control: &Control) -> Result<()> {
        if window.len() > SHORT {
            return self.heap(window, scratch, control);
        }
        let mut scan = Scan::<SHORT>::new(self, window);
        while scan.step(self) {}
        scratch.tokens.clear();
        scratch.tokens.extend(Bits(scan.alive).map(|start| (scan.ids[start], start as u32)));
        Ok(())
    }

    fn heap(self, window: &[u8], scratch: &mut Scratch, control: &Control) -> Result<()> {
        if window.len() >= END as usize {
            return Err(Error::Argument(format!("expected pieces below 4 GiB, got one of {} bytes", window.len())));
        }
        let Scratch { symbols, heap, tokens } = scratch;
        self.link(window, symbols);
        heap.clear();
        heap.extend((0..).zip(symbols.iter()).filter(|(_, s)| s.rank != NO_RANK).map(|(at, s)| entry(s.rank, at)));
        let mut queue = BinaryHeap::from(std::mem::take(heap));
        let mut pops = 0;
        while let Some(Reverse(top)) = queue.pop() {
            let (rank, at) = ((top >> 32) as u32, top as u32);
            // A pair that changed since it was queued has another rank now, or none.
            if symbols[at as usize].rank == rank {
                self.merge_at(symbols, at, |rank, at| queue.push(entry(rank, at)));
            }
            pops += 1;
            if pops % CHECK_EVERY == 0 {
                control.check()?;
            }
        }
        *heap = queue.into_vec();
        tokens.clear();
        let mut at = 0;
        while at != END {
            tokens.push((symbols[at as usize].id, at));
            at = symbols[at as usize].next;
        }
        Ok(())
    }

    /// One symbol a byte, each linked to its neighbours.
    fn link(self, window: &[u8], symbols: &mut Vec<Symbol>) {
        symbols.clear();
        symbols.extend((0..).zip(window).map(|(at, &byte): (u32, &u8)| Symbol {
            previous: at.wrapping_sub(1), // END for the first one
            next: at + 1,
            id: self.byte_ids[usize::from(byte)],
            rank: NO_RANK,
        }));
        for (symbol, pair) in symbols.iter_mut().zip(window.windows(2)) {
            symbol.rank = self.pairs.byte_rank(pair[0], pair[1]);
        }
        if let Some(last) = symbols.last_mut() {
            last.next = END;
        }
    }

    /// Merges the pair at `at` and reports the ranks of its new neighbours.
    fn merge_at(self, symbols: &mut [Symbol], at: u32, mut report: impl FnMut(u32, u32)) {
        let Symbol { previous, next, rank, .. } = symbols[at as usize];
        let id = self.pairs.product(rank);
        let after = symbols[next as usize].next;
        symbols[next as usize].rank = NO_RANK;
        let mut right = NO_RANK;
        if after != END {
            symbols[after as usize].previous = at;
            right = self.pairs.rank(id, symbols[after as usize].id);
        }
        symbols[at as usize] = Symbol { previous, next: after, id, rank: right };
        if right != NO_RANK {
            report(right, at);
        }
        if previous != END {
            let left = self.pairs.rank(symbols[previous as usize].id, id);
            symbols[previous as usize].rank = left;
            if left != NO_RANK {
                report(left, previous);
            }
        }
    }
}

/// A piece of at most `N` ≤ 64 bytes under way.
///
/// Symbols stay where they start. `order[i]` is the rank of the pair of symbol `i` and the next one, then `i`, so that
/// the least is the leftmost of the lowest, and the search takes no branch. Ranks are guesses that are never too high: the
/// lowest of all is looked at before it is taken, and is then the lowest in truth.
struct Scan<const N: usize> {
    ids: [u32; N],
    order: [i32; N],
    /// A bit for each symbol.
    alive: u64,
}

impl<const N: usize> Scan<N> {
    const EMPTY: Self = Self { ids: [0; N], order: [NOTHING; N], alive: 0 };

    #[inline(always)]
    fn new(merges: Merges<'_>, piece: &[u8]) -> Self {
        let mut scan = Self::EMPTY;
        scan.start(merges, piece);
        scan
    }

    /// Takes another piece.
    #[inline(always)]
    fn start(&mut self, merges: Merges<'_>, piece: &[u8]) {
        for (id, &byte) in self.ids.iter_mut().zip(piece) {
            *id = merges.byte_ids[usize::from(byte)];
        }
        self.order = [NOTHING; N];
        for ((i, order), pair) in (0..).zip(&mut self.order).zip(piece.windows(2)) {
            *order = place(merges.pairs.byte_rank(pair[0], pair[1]), i);
        }
        self.alive = if piece.is_empty() { 0 } else { u64::MAX >> (64 - piece.len()) };
    }

    /// The same from what its bytes are known to become first; a symbol then stands at its number.
    #[inline(always)]
    fn start_with(&mut self, merges: Merges<'_>, tokens: &[u32]) {
        for (id, &token) in self.ids.iter_mut().zip(tokens) {
            *id = token;
        }
        self.order = [NOTHING; N];
        for ((i, order), pair) in (0..).zip(&mut self.order).zip(tokens.windows(2)) {
            let rank = merges.pairs.guess_at(Pairs::place(pair[0], pair[1]), pair[0], pair[1]);
            *order = place(rank, i);
        }
        self.alive = if tokens.is_empty() { 0 } else { u64::MAX >> (64 - tokens.len()) };
    }

    #[inline(always)]
    fn step(&mut self, merges: Merges<'_>) -> bool {
        let change = self.merge(merges);
        if let Some(change) = change {
            self.rank(merges, change);
        }
        change.is_some()
    }

    /// The symbols behind one.
    #[inline(always)]
    fn above(&self, at: usize) -> u64 {
        self.alive & (u64::MAX << at << 1)
    }

    /// Merges the lowest pair; the ranks of the pairs beside it are still to be found.
    #[inline(always)]
    fn merge(&mut self, merges: Merges<'_>) -> Option<Change> {
        let (least, at, gone) = loop {
            let least = self.order.iter().fold(NOTHING, |least, &order| least.min(order));
            if least >= NOTHING {
                return None;
            }
            let at = least as usize % N;
            let gone = self.above(at).trailing_zeros() as usize % N;
            let rank = least as u32 >> PLACE_BITS;
            if merges.pairs.is_merge(rank, self.ids[at], self.ids[gone]) {
                break (rank, at, gone);
            }
            self.order[at] = place(merges.pairs.seek(self.ids[at], self.ids[gone]), at);
        };
        let next = self.above(gone).trailing_zeros() as usize;
        // The first symbol lives always, so there is one before any other; before the first it stands for itself.
        let previous = ((self.alive & !(u64::MAX << at)) | 1).ilog2() as usize % N;
        self.alive &= !(1 << gone);
        self.ids[at] = merges.pairs.product(least);
        self.order[gone] = NOTHING;
        Some(Change { previous, at, next })
    }

    /// The places of the pairs at the left and at the right.
    #[inline(always)]
    fn places(&self, &Change { previous, at, next }: &Change) -> [u32; 2] {
        let id = self.ids[at];
        [Pairs::place(self.ids[previous], id), Pairs::place(id, self.ids[next % N])]
    }

    #[inline(always)]
    fn rank(&mut self, merges: Merges<'_>, change: Change) {
        self.rank_at(merges, change, self.places(&change));
    }

    #[inline(always)]
    fn rank_at(&mut self, merges: Merges<'_>, Change { previous, at, next }: Change, places: [u32; 2]) {
        let id = self.ids[at];
        let left = merges.pairs.guess_at(places[0], self.ids[previous], id);
        let right = merges.pairs.guess_at(places[1], id, self.ids[next % N]);
        self.order[previous] = place(left, previous);
        // After the other: where nothing stands before, both are the same place.
        self.order[at] = if next < 64 { place(right, at) } else { NOTHING };
    }

    /// Appends the ids.
    #[inline(always)]
    fn finish(&self, out: &mut Vec<u32>) {
        out.extend(Bits(self.alive).map(|at| self.ids[at]));
    }
}

/// The places of a merged symbol and of those beside it; the next one is 64 when there is none.
#[derive(Clone, Copy, Default)]
struct Change {
    previous: usize,
    at: usize,
    next: usize,
}

/// The places of the set bits, ascending.
struct Bits(u64);

impl Iterator for Bits {
    type Item = usize;

    #[inline]
    fn next(&mut self) -> Option<usize> {
        let place = self.0.trailing_zeros() as usize;
        self.0 &= self.0.wrapping_sub(1);
        (place < 64).then_some(place)
    }
}

#[inline]
fn place(rank: u32, at: usize) -> i32 {
    (rank << PLACE_BITS | at as u32) as i32
}

/// A heap entry: lowest rank first, then leftmost.
fn entry(rank: u32, at: u32) -> Reverse<u64> {
    Reverse(u64::from(rank) << 32 | u64::from(at))
}
