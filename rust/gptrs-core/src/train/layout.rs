//! All words in one array: heaviest first, a gap between two, so that a position alone tells its word's count.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use super::classes::Classes;
use crate::control::Control;
use crate::count::WordCounts;
use crate::error::Result;
use crate::parallel;

/// An id as it is stored: half the memory while ids fit 16 bits.
pub(super) trait Symbol: Copy + Eq + Send + Sync {
    /// Ids and the gap stay at or below.
    const LARGEST: u32;
    /// The symbol of `id`.
    fn new(id: u32) -> Self;
    /// The id.
    fn id(self) -> u32;
}

impl Symbol for u16 {
    const LARGEST: u32 = Self::MAX as u32;
    fn new(id: u32) -> Self {
        id as Self
    }
    fn id(self) -> u32 {
        u32::from(self)
    }
}

impl Symbol for u32 {
    const LARGEST: u32 = Self::MAX - 1;
    fn new(id: u32) -> Self {
        id
    }
    fn id(self) -> u32 {
        self
    }
}

/// The words as tokens. A token of n places writes its id at the first and the last one: what stands left and right of a
/// border between tokens is one load away, and nothing moves until [`Layout::compact`]. Places inside a token are stale.
#[derive(Debug)]
pub(super) struct Layout<S> {
    pub(super) symbols: Vec<S>,
    /// What stands before, between and behind words: one above the largest id.
    pub(super) gap: S,
    /// Number of places, by id.
    pub(super) lengths: Vec<u32>,
    pub(super) weights: Weights,
}

impl<S: Symbol> Layout<S> {
    /// Lays out the words of at least two bytes, on all threads; ids stay below `gap`.
    pub(super) fn new(
        counts: &WordCounts,
        classes: &Classes,
        gap: u32,
        threads: usize,
        control: &Control,
    ) -> Result<Self> {
        let gap = S::new(gap);
        let mut symbols = vec![S::new(0); classes.n_places()];
        symbols[0] = gap;
        let (mut rest, mut start) = (&mut symbols[1..], 1);
        let mut weights = Weights { starts: Vec::new(), of_segment: classes.counts.clone(), index: Vec::new() };
        let mut shares: Vec<Vec<&mut [S]>> = classes.groups.iter().map(|_| Vec::new()).collect();
        for class in 0..classes.counts.len() {
            weights.starts.push(start);
            for (share, group) in shares.iter_mut().zip(&classes.groups) {
                let n_places = group.n_places[class];
                share.push(rest.split_off_mut(..n_places).unwrap_or_default());
                start += n_places as u32;
            }
        }
        let shares: Vec<_> = shares.into_iter().map(Mutex::new).collect();
        let lay_out = |(): &mut (), index: usize| {
            let mut share = shares[index].lock().unwrap_or_else(PoisonError::into_inner);
            for part in classes.groups[index].parts.clone() {
                control.check()?;
                for (word, n) in counts.part(part).filter(|(word, _)| word.len() > 1) {
                    let places = share[classes.class_of(n)].split_off_mut(..=word.len()).unwrap_or_default();
                    for (place, &byte) in places.iter_mut().zip(word) {
                        *place = S::new(u32::from(byte));
                    }
                    places[word.len()] = gap;
                }
            }
            Ok(())
        };
        parallel::run(threads, shares.len(), control, || (), lay_out)?;
        drop(shares);
        weights.finish(symbols.len());
        Ok(Self { symbols, gap, lengths: vec![1; 256], weights })
    }

    /// Lays out words that are tokens already, by falling count; ids below `n_ids` are taken, and all stay below `gap`.
    pub(super) fn of_tokens<'w>(
        words: impl Iterator<Item = (u64, &'w [u32])>,
        n_ids: usize,
        gap: u32,
        control: &Control,
    ) -> Result<Self> {
        let gap = S::new(gap);
        let mut symbols = vec![gap];
        let mut weights = Weights { starts: Vec::new(), of_segment: Vec::new(), index: Vec::new() };
        for (n, word) in words {
            control.check()?;
            if weights.of_segment.last() != Some(&n) {
                weights.starts.push(symbols.len() as u32);
                weights.of_segment.push(n);
            }
            symbols.extend(word.iter().map(|&id| S::new(id)));
            symbols.push(gap);
        }
        weights.finish(symbols.len());
        Ok(Self { symbols, gap, lengths: vec![1; n_ids], weights })
    }

    /// Gives every token one place and drops words of one token.
    pub(super) fn compact(&mut self, control: &Control) -> Result<()> {
        let (mut at, mut to, mut word) = (1, 1, 1);
        for segment in 0..self.weights.of_segment.len() {
            control.check()?;
            let end = self.symbols.len().min(self.weights.starts[segment + 1] as usize);
            self.weights.starts[segment] = to as u32;
            while at < end {
                let symbol = self.symbols[at];
                self.symbols[to] = symbol;
                at += self.lengths.get(symbol.id() as usize).map_or(1, |&length| length as usize);
                to += 1;
                if symbol == self.gap {
                    to = if to - word > 2 { to } else { word };
                    word = to;
                }
            }
        }
        self.symbols.truncate(to);
        self.symbols.shrink_to_fit();
        self.lengths.fill(1);
        self.weights.starts.pop();
        self.weights.finish(to);
        Ok(())
    }

    /// Calls `f(left id, right id, border, weight)` for every border between two tokens of one place each, left to right.
    #[inline]
    pub(super) fn for_each_border(&self, places: Range<usize>, mut f: impl FnMut(u32, u32, u32, u64)) {
        if places.is_empty() {
            return;
        }
        let mut segment = self.weights.segment_of(places.start as u32, 0);
        let mut start = places.start;
        while start < places.end {
            let end = places.end.min(self.weights.starts[segment + 1] as usize);
            let weight = self.weights.of(segment);
            for (at, pair) in (start as u32..).zip(self.symbols[start - 1..end].windows(2)) {
                if pair[0] != self.gap && pair[1] != self.gap {
                    f(pair[0].id(), pair[1].id(), at, weight);
                }
            }
            (start, segment) = (end, segment + 1);
        }
    }
}

/// A word's count by position: words of equal count are neighbours, so there are few segments.
#[derive(Debug)]
pub(super) struct Weights {
    /// Where each segment starts; `u32::MAX` ends the list.
    starts: Vec<u32>,
    of_segment: Vec<u64>,
    /// The segment of the first place of every block.
    index: Vec<u32>,
}

/// Places that share an index entry.
const BLOCK: usize = 128;

impl Weights {
    /// Ends the list of segments, of `n_places` together; those that became empty are dropped.
    fn finish(&mut self, n_places: usize) {
        let ends = self.starts.iter().copied().skip(1).chain([n_places as u32]);
        let is_kept: Vec<bool> =
            self.starts.iter().zip(ends).map(|(&start, end)| start < end).take(self.of_segment.len()).collect();
        let mut kept = is_kept.iter().copied();
        self.of_segment.retain(|_| kept.next() == Some(true));
        let mut kept = is_kept.iter().copied();
        self.starts.retain(|_| kept.next() == Some(true));
        self.starts.push(u32::MAX);
        self.index.clear();
        if self.of_segment.is_empty() {
            return;
        }
        let mut segment = 0;
        self.index.extend((0..n_places as u32).step_by(BLOCK).map(|at| {
            while at >= self.starts[segment + 1] {
                segment += 1;
            }
            segment as u32
        }));
    }

    /// The weight of segment `segment`.
    pub(super) fn of(&self, segment: usize) -> u64 {
        self.of_segment[segment]
    }

    /// The segment of `at`, not left of `segment`.
    #[inline]
    pub(super) fn segment_of(&self, at: u32, segment: usize) -> usize {
        if at < self.starts[segment + 1] {
            return segment;
        }
        let mut segment = self.index[at as usize / BLOCK] as usize;
        while at >= self.starts[segment + 1] {
            segment += 1;
        }
        segment
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    type Border = (Vec<u32>, u32, u32, u64);

    /// Every border with the word up to it, in no order of words.
    fn borders<S: Symbol>(layout: &Layout<S>, step: usize) -> Vec<Border> {
        let mut borders = Vec::new();
        for start in (1..layout.symbols.len()).step_by(step) {
            let places = start..(start + step).min(layout.symbols.len());
            layout.for_each_border(places, |left, right, at, weight| {
                let word = layout.symbols[..at as usize].iter().rev().take_while(|s| **s != layout.gap);
                borders.push((word.map(|s| s.id()).collect(), left, right, weight));
                assert_eq!(layout.weights.of(layout.weights.segment_of(at, 0)), weight);
            });
        }
        borders
    }

    #[test]
    fn positions_know_their_words_count_and_compacting_keeps_it() {
        let words: BTreeMap<Vec<u8>, u64> = (0..3000u64)
            .map(|i| (format!("{i}{}", "x".repeat(i as usize % 7)).into_bytes(), 1 + i * i / 5000))
            .collect();
        let mut counts = WordCounts::new();
        for (word, n) in &words {
            counts.add(word, *n).unwrap();
        }
        let control = Control::new();
        for threads in [1, 3] {
            let classes = Classes::new(&counts, threads, &control).unwrap();
            assert!(classes.counts.is_sorted_by(|a, b| a > b) && classes.counts.iter().any(|&n| n > 1024));
            let mut layout = Layout::<u16>::new(&counts, &classes, 300, threads, &control).unwrap();
            let mut expected = Vec::new();
            for (word, &n) in &words {
                for at in 1..word.len() {
                    let before = word[..at].iter().rev().map(|&b| u32::from(b)).collect();
                    expected.push((before, u32::from(word[at - 1]), u32::from(word[at]), n));
                }
            }
            expected.sort();
            for step in [1 << 20, 1000, 7] {
                let mut got = borders(&layout, step);
                got.sort();
                assert_eq!(got, expected);
            }
            layout.compact(&control).unwrap();
            let mut got = borders(&layout, 1000);
            got.sort();
            assert_eq!(got, expected, "nothing was merged");
        }
    }
}
