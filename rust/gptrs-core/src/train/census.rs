//! Counts and postings of all pairs at once, while every token has one place: dense arrays, on all threads.

use std::ops::Range;
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
    ) -> Result<(Vec<Entry>, Vec<u32>)> {
        let floor = floor.max(1);
        let n_pairs = self.n_ids * self.n_ids;
        let kept: Vec<usize> = (0..n_pairs).filter(|&pair| self.count(pair) >= floor).collect();
        let mut n_postings = 1;
        let entries = kept.iter().map(|&pair| {
            let start = n_postings;
            let n: u32 = self.sums.iter().map(|sums| sums[pair].n).sum();
            n_postings += n as usize;
            let key = key((pair / self.n_ids) as u32, (pair % self.n_ids) as u32);
            Entry { key, count: self.count(pair), start, n_postings: n }
        });
        let entries: Vec<_> = entries.collect();
        let mut postings = vec![0; n_postings];
        let mut rest = &mut postings[1..];
        let mut slices: Vec<Vec<&mut [u32]>> = self.sums.iter().map(|_| Vec::with_capacity(n_pairs)).collect();
        for (slices, _) in slices.iter_mut().zip(&self.sums) {
            slices.resize_with(n_pairs, Default::default);
        }
        for pair in kept {
            for (slices, sums) in slices.iter_mut().zip(&self.sums) {
                slices[pair] = rest.split_off_mut(..sums[pair].n as usize).unwrap_or_default();
            }
        }
        let (n_ids, ranges) = (self.n_ids, self.ranges);
        drop(self.sums);
        let slices: Vec<_> = slices.into_iter().map(Mutex::new).collect();
        let list = |(): &mut (), index: usize| {
            let slices = &mut *slices[index].lock().unwrap_or_else(PoisonError::into_inner);
            for places in steps(ranges[index].clone()) {
                control.check()?;
                layout.for_each_border(places, |left, right, at, _| {
                    if let Some(place) = slices[left as usize * n_ids + right as usize].split_off_first_mut() {
                        *place = at;
                    }
                });
            }
            Ok(())
        };
        parallel::run(threads, ranges.len(), control, || (), list)?;
        drop(slices);
        Ok((entries, postings))
    }
}

/// A range of places, step by step.
fn steps(places: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    places.clone().step_by(STEP).map(move |start| start..(start + STEP).min(places.end))
}
