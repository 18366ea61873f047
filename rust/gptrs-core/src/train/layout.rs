//! All words in one array: heaviest first, a gap between two, so that a position alone tells its word's count.

use std::ops::Range;

use crate::control::Control;
use crate::error::Result;

/// An id as it is stored: half the memory while ids fit 16 bits.
pub(super) trait Symbol: Copy + Eq + Sync {
    /// What stands between words; no id.
    const GAP: Self;
    /// The symbol of `id`, which is below [`Symbol::GAP`].
    fn new(id: u32) -> Self;
    /// The id.
    fn id(self) -> u32;
}

impl Symbol for u16 {
    const GAP: Self = Self::MAX;
    fn new(id: u32) -> Self {
        id as Self
    }
    fn id(self) -> u32 {
        u32::from(self)
    }
}

impl Symbol for u32 {
    const GAP: Self = Self::MAX;
    fn new(id: u32) -> Self {
        id
    }
    fn id(self) -> u32 {
        self
    }
}

/// The words as tokens. A token of n bytes keeps n places and writes its id at the first and the last one: what stands
/// left and right of a border between tokens is one load away, and nothing ever moves. Places inside a token are stale.
#[derive(Debug)]
pub(super) struct Layout<S> {
    pub(super) symbols: Vec<S>,
    /// Length in bytes, by id.
    pub(super) lengths: Vec<u32>,
    pub(super) weights: Weights,
}

impl<S: Symbol> Layout<S> {
    /// Lays out words of at least two bytes, sorted by falling count.
    pub(super) fn new(words: Vec<(u64, &[u8])>, control: &Control) -> Result<Self> {
        let mut symbols = Vec::with_capacity(1 + words.iter().map(|(_, word)| word.len() + 1).sum::<usize>());
        let mut weights = Weights { starts: Vec::new(), weights: Vec::new() };
        symbols.push(S::GAP);
        for (n, word) in words {
            control.check()?;
            if weights.weights.last() != Some(&n) {
                weights.starts.push(symbols.len() as u32);
                weights.weights.push(n);
            }
            symbols.extend(word.iter().map(|&byte| S::new(u32::from(byte))));
            symbols.push(S::GAP);
        }
        weights.starts.push(u32::MAX);
        Ok(Self { symbols, lengths: vec![1; 256], weights })
    }

    /// Calls `f(left id, right id, border, weight)` for every border between two tokens of a word, left to right.
    pub(super) fn for_each_border(&self, control: &Control, mut f: impl FnMut(u32, u32, u32, u64)) -> Result<()> {
        let mut segment = 0;
        let mut at = 1;
        while at < self.symbols.len() {
            control.check()?;
            segment = self.weights.segment_of(at as u32, segment);
            let weight = self.weights.weights[segment];
            let mut left = self.symbols[at];
            loop {
                at += self.lengths[left.id() as usize] as usize;
                let right = self.symbols[at];
                if right == S::GAP {
                    break;
                }
                f(left.id(), right.id(), at as u32, weight);
                left = right;
            }
            at += 1;
        }
        Ok(())
    }
    /// As above for the borders in `places`, while every token is a byte: no place depends on the one before.
    #[inline]
    pub(super) fn for_each_byte_border(&self, places: Range<usize>, mut f: impl FnMut(u32, u32, u32, u64)) {
        let mut segment = self.weights.segment_of(places.start as u32, 0);
        let mut start = places.start;
        while start < places.end {
            let end = places.end.min(self.weights.starts[segment + 1] as usize);
            let weight = self.weights.of(segment);
            for (at, pair) in (start as u32..).zip(self.symbols[start - 1..end].windows(2)) {
                if pair[0] != S::GAP && pair[1] != S::GAP {
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
    pub(super) starts: Vec<u32>,
    pub(super) weights: Vec<u64>,
}

impl Weights {
    /// The weight of segment `segment`.
    pub(super) fn of(&self, segment: usize) -> u64 {
        self.weights[segment]
    }

    /// The segment of `at`, not left of `segment`: a walk to the right stays in one or steps to a near one.
    #[inline]
    pub(super) fn segment_of(&self, at: u32, mut segment: usize) -> usize {
        for _ in 0..4 {
            if at < self.starts[segment + 1] {
                return segment;
            }
            segment += 1;
        }
        segment + self.starts[segment + 1..].partition_point(|&start| start <= at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_know_their_words_count() {
        let words: Vec<(u64, &[u8])> = (0..40).rev().map(|n| (1 + n / 2, &b"abc"[..])).collect();
        let layout = Layout::<u16>::new(words.clone(), &Control::new()).unwrap();
        let mut borders = Vec::new();
        layout.for_each_border(&Control::new(), |left, right, at, n| borders.push((left, right, at, n))).unwrap();
        let expected: Vec<_> =
            (0u32..).zip(&words).flat_map(|(i, &(n, _))| [(97, 98, 4 * i + 2, n), (98, 99, 4 * i + 3, n)]).collect();
        assert_eq!(borders, expected);
        let mut of_bytes = Vec::new();
        for places in [1..7, 7..8, 8..layout.symbols.len()] {
            layout.for_each_byte_border(places, |left, right, at, n| of_bytes.push((left, right, at, n)));
        }
        assert_eq!(of_bytes, expected);
        for &(_, _, at, weight) in &borders {
            assert_eq!(layout.weights.of(layout.weights.segment_of(at, 0)), weight);
        }
    }
}
