//! Counts and postings of all pairs at once, while every token has one place: dense arrays, on all threads.

use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

use super::layout::{Layout, Symbol};
use super::pairs::{Entry, key};
use crate::control::Control;
use crate::error::Result;
use crate::parallel;

/// Places that a thread walks between two looks at the control.
const STEP: usize = 1 << 20;
/// More threads would spend their time on adding up their sums.
const MAX_THREADS: usize = 16;

/// The first place of the postings takes what is not recorded.
const NONE: u32 = 0;

/// Pairs with their entries, and the postings of all.
type Listed = (Vec<(u64, Entry)>, Vec<u32>);

/// Sum of counts and number of borders of a pair.
#[derive(Debug, Clone, Copy, Default)]
struct Sum {
    count: u64,
    n: u32,
}

/// The sums of each pair, at `left * n_ids + right`, of a range of places for each thread.
pub(super) struct Census {
    n_ids: usize,
    ranges: Vec<Range<usize>>,
    sums: Vec<Vec<Sum>>,
}

impl Census {
    /// Counts all pairs; `layout` has one place for each token.
    pub(super) fn new<S: Symbol>(layout: &Layout<S>, threads: usize, control: &Control) -> Result<Self> {
        let n_ids = layout.lengths.len();
        let (first, last) = (1, layout.symbols.len());
        let n_ranges = parallel::resolve_threads(threads).min(MAX_THREADS);
        let cut = |i: usize| first + (last - first) * i / n_ranges;
        let ranges: Vec<_> = (0..n_ranges).map(|i| cut(i)..cut(i + 1)).collect();
        let parts = parallel::run(threads, n_ranges, control, Vec::new, |parts, index| {
            let mut sums = vec![Sum::default(); n_ids * n_ids];
            for places in steps(ranges[index].clone()) {
                control.check()?;
                layout.for_each_border(places, |left, right, _, weight| {
                    let sum = &mut sums[left as usize * n_ids + right as usize];
                    sum.count += weight;
                    sum.n += 1;
                });
            }
            parts.push((index, sums));
            Ok(())
        })?;
        let mut parts: Vec<_> = parts.into_iter().flatten().collect();
        parts.sort_unstable_by_key(|&(index, _)| index);
        Ok(Self { n_ids, ranges, sums: parts.into_iter().map(|(_, sums)| sums).collect() })
    }

    /// The count of the pair with the `n`-th largest count (from 0), 0 when there are fewer pairs.
    pub(super) fn nth_count(&self, n: usize) -> u64 {
        let mut counts: Vec<u64> =
            (0..self.n_ids * self.n_ids).map(|pair| self.count(pair)).filter(|&n| n > 0).collect();
        if n < counts.len() { *counts.select_nth_unstable_by(n, |a, b| b.cmp(a)).1 } else { 0 }
    }

    fn count(&self, pair: usize) -> u64 {
        self.sums.iter().map(|sums| sums[pair].count).sum()
    }

    /// The pairs at or above `floor`, and the postings of all, in order of the pairs behind one place for none.
    pub(super) fn list<S: Symbol>(
        self,
        layout: &Layout<S>,
        floor: u64,
        threads: usize,
        control: &Control,
    ) -> Result<Listed> {
        let (entries, cursors, n_postings) = self.places(floor.max(1));
        let Self { n_ids, ranges, sums } = self;
        drop(sums);
        let postings: Vec<_> = vec![0; n_postings].into_iter().map(AtomicU32::new).collect();
        let cursors: Vec<_> = cursors.into_iter().map(Mutex::new).collect();
        let list = |(): &mut (), index: usize| {
            let cursors = &mut *cursors[index].lock().unwrap_or_else(PoisonError::into_inner);
            for places in steps(ranges[index].clone()) {
                control.check()?;
                layout.for_each_border(places, |left, right, at, _| {
                    let next = &mut cursors[left as usize * n_ids + right as usize];
                    postings[*next as usize].store(at, Ordering::Relaxed);
                    *next += u32::from(*next != NONE);
                });
            }
            Ok(())
        };
        parallel::run(threads, ranges.len(), control, || (), list)?;
        Ok((entries, postings.into_iter().map(AtomicU32::into_inner).collect()))
    }

    /// The pairs at or above `floor`, where each thread's postings of each pair start, and where all end.
    fn places(&self, floor: u64) -> (Vec<(u64, Entry)>, Vec<Vec<u32>>, usize) {
        let n_pairs = self.n_ids * self.n_ids;
        let (mut entries, mut n_postings) = (Vec::new(), 1);
        let mut cursors = vec![vec![NONE; n_pairs]; self.sums.len()];
        for pair in 0..n_pairs {
            let count = self.count(pair);
            if count < floor {
                continue;
            }
            let start = n_postings;
            for (cursors, sums) in cursors.iter_mut().zip(&self.sums) {
                cursors[pair] = n_postings;
                n_postings += sums[pair].n; // fewer borders than places, whose number fits 32 bits
            }
            let key = key((pair / self.n_ids) as u32, (pair % self.n_ids) as u32);
            entries.push((key, Entry { count, start: start as usize, n_postings: n_postings - start }));
        }
        (entries, cursors, n_postings as usize)
    }
}

/// A range of places, step by step.
fn steps(places: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    places.clone().step_by(STEP).map(move |start| start..(start + STEP).min(places.end))
}
