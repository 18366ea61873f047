//! The merge loop.
//!
//! Merging (a, b) into z touches the pairs (x, a) and (b, y) of the tokens x left and y right of each occurrence, and
//! makes (x, z) and (z, y). A pair's count never rises after the merge that makes it, so a pair born below `floor` needs
//! no entry as long as pairs at or above it are left; should they run out, all pairs are counted anew with a lower floor.

use std::collections::BinaryHeap;

use super::TrainOptions;
use super::bytes;
use super::layout::{Layout, Symbol};
use super::neighbours::{Cell, Neighbours, UNRECORDED};
use super::options::Rules;
use super::pairs::{PairTable, key, pair};
use crate::control::Control;
use crate::error::Result;

pub(super) struct Merger<'c, S> {
    layout: Layout<S>,
    options: TrainOptions,
    rules: Rules<'c>,
    control: &'c Control,
    table: PairTable,
    postings: Vec<u32>,
    /// Count above the complement of the key: the largest is the next merge, by the tie rule. Counts may be old.
    heap: BinaryHeap<u128>,
    /// Pairs born with a smaller count are not recorded.
    floor: u64,
    neighbours: Neighbours<S>,
}

impl<'c, S: Symbol> Merger<'c, S> {
    /// The merger of words whose tokens are all bytes.
    pub(super) fn new(
        layout: Layout<S>,
        options: TrainOptions,
        rules: Rules<'c>,
        threads: usize,
        control: &'c Control,
    ) -> Result<Self> {
        let (entries, postings) = bytes::pairs(&layout, threads, control)?;
        let heap = entries.iter().map(|entry| heap_entry(entry.count, entry.key)).collect();
        let (table, floor) = (PairTable::new(entries), options.min_count);
        Ok(Self { layout, options, rules, control, table, postings, heap, floor, neighbours: Neighbours::new() })
    }

    /// The merger of words that are any tokens.
    pub(super) fn resume(
        layout: Layout<S>,
        options: TrainOptions,
        rules: Rules<'c>,
        control: &'c Control,
    ) -> Result<Self> {
        let (table, postings, heap) = (PairTable::new(Vec::new()), Vec::new(), BinaryHeap::new());
        let (floor, neighbours) = (options.min_count, Neighbours::new());
        let mut merger = Self { layout, options, rules, control, table, postings, heap, floor, neighbours };
        merger.count_pairs()?;
        Ok(merger)
    }

    pub(super) fn run(mut self) -> Result<Vec<(u32, u32)>> {
        let mut merges = Vec::new();
        let mut milestone = 0;
        while merges.len() < self.options.n_merges {
            self.control.check()?;
            let Some((count, best)) = self.pop() else {
                if self.floor == self.options.min_count {
                    break;
                }
                self.floor = (self.floor / 4).max(self.options.min_count);
                self.count_pairs()?;
                continue;
            };
            if !self.rules.admit(pair(best)) {
                continue; // it stays in the table, where its count goes on falling, but not in the heap
            }
            merges.push(pair(best));
            self.merge(best)?;
            self.control.advance(1);
            if merges.len() >= 512 && merges.len().is_power_of_two() {
                self.raise_floor(merges.len(), milestone, count);
                milestone = count;
            }
        }
        Ok(merges)
    }

    /// Counts all pairs of the current tokens and lists the borders of those at or above the floor.
    fn count_pairs(&mut self) -> Result<()> {
        self.table = PairTable::new(Vec::new());
        self.layout.for_each_border(self.control, |left, right, _, weight| {
            let entry = self.table.get_or_insert(key(left, right), 0);
            entry.count += weight;
            entry.n_postings += 1;
        })?;
        self.table.rebuild(self.floor);
        self.heap.clear();
        let mut n_postings = 0;
        for entry in self.table.iter_mut() {
            entry.start = n_postings;
            n_postings += std::mem::take(&mut entry.n_postings) as usize;
            self.heap.push(heap_entry(entry.count, entry.key));
        }
        self.postings.clear();
        self.postings.resize(n_postings, 0);
        self.layout.for_each_border(self.control, |left, right, at, _| {
            if let Some(entry) = self.table.get(key(left, right)) {
                self.postings[entry.start + entry.n_postings as usize] = at;
                entry.n_postings += 1;
            }
        })
    }

    /// The pair with the highest count, if it reaches the floor.
    fn pop(&mut self) -> Option<(u64, u64)> {
        while let Some(top) = self.heap.pop() {
            let (count, key) = ((top >> 64) as u64, !(top as u64));
            match self.table.get(key) {
                Some(entry) if entry.count == count => return Some((count, key)).filter(|_| count >= self.floor),
                Some(entry) if entry.count >= self.floor => self.heap.push(heap_entry(entry.count, key)),
                _ => {}
            }
        }
        None
    }

    /// Bets that the counts keep falling as they did over the last doubling, with a margin.
    fn raise_floor(&mut self, n_merges: usize, before: u64, now: u64) {
        const MARGIN: f64 = 0.25;
        if before > 0 {
            let doublings = (self.options.n_merges as f64 / n_merges as f64).log2();
            let last = now as f64 * (now as f64 / before as f64).powf(doublings);
            self.floor = self.floor.max((MARGIN * last) as u64);
        }
    }

    /// Replaces every occurrence of a pair by a new id.
    fn merge(&mut self, best: u64) -> Result<()> {
        let id = self.layout.lengths.len() as u32;
        let (a, b) = pair(best);
        let length = self.layout.lengths[a as usize] + self.layout.lengths[b as usize];
        self.layout.lengths.push(length);
        self.neighbours.clear(id as usize + 1);
        self.rewrite(best, id)?;
        // Two loops, so that the table's misses of the first overlap.
        for (x, weight) in self.neighbours.left.sums() {
            subtract(&mut self.table, key(x, a), best, weight);
        }
        for (y, weight) in self.neighbours.right.sums() {
            // Two occurrences side by side: the border between them was (b, a).
            subtract(&mut self.table, key(b, if y == id { a } else { y }), best, weight);
        }
        for i in 0..self.neighbours.left.touched.len() {
            let x = self.neighbours.left.touched[i];
            let cell = *self.neighbours.left.cell(x);
            self.neighbours.left.cell(x).postings = self.record(key(x, id), cell);
        }
        for i in 0..self.neighbours.right.touched.len() {
            let y = self.neighbours.right.touched[i];
            let cell = *self.neighbours.right.cell(y);
            self.neighbours.right.cell(y).postings = self.record(key(id, y), cell);
        }
        self.neighbours.list_borders(length, &mut self.postings);
        Ok(())
    }

    /// Writes `id` over every occurrence of the pair, leftmost first, and tallies what stands beside it.
    fn rewrite(&mut self, best: u64, id: u32) -> Result<()> {
        const BLOCK: usize = 64;
        let (a, b) = pair(best);
        let (left_length, right_length) = (self.layout.lengths[a as usize], self.layout.lengths[b as usize]);
        let (a, b, id) = (S::new(a), S::new(b), S::new(id));
        let Some(entry) = self.table.get(best) else { return Ok(()) };
        entry.count = 0;
        let postings = &self.postings[entry.start..entry.start + entry.n_postings as usize];
        let (symbols, weights) = (&mut self.layout.symbols, &self.layout.weights);
        let mut segment = 0;
        // Neighbours are read one place late: by then the next place has become the right neighbour, if it is.
        let mut last: Option<(u32, u32, u64)> = None;
        for block in postings.chunks(BLOCK) {
            self.control.check()?;
            // First a pass without branches, so that the misses of the whole block overlap.
            let (mut live, mut n_live) = ([0; BLOCK], 0);
            for &border in block {
                live[n_live] = border;
                n_live += usize::from(symbols[border as usize - 1..=border as usize] == [a, b]);
            }
            for &border in &live[..n_live] {
                if a == b && symbols[border as usize - 1] != a {
                    continue; // taken by the place before, in a run
                }
                let (start, end) = (border - left_length, border + right_length);
                symbols[start as usize] = id;
                symbols[end as usize - 1] = id;
                segment = weights.segment_of(border, segment);
                if let Some((start, end, weight)) = last.replace((start, end, weights.of(segment))) {
                    self.neighbours.add(symbols, start, end, id, weight);
                }
            }
        }
        if let Some((start, end, weight)) = last {
            self.neighbours.add(symbols, start, end, id, weight);
        }
        Ok(())
    }

    /// Enters a new pair with room for its postings; returns where they start.
    fn record(&mut self, key: u64, cell: Cell) -> usize {
        if cell.weight < self.floor {
            return UNRECORDED;
        }
        let start = self.postings.len();
        self.postings.resize(start + cell.postings, 0);
        let entry = self.table.get_or_insert(key, self.floor);
        (entry.count, entry.start, entry.n_postings) = (cell.weight, start, cell.postings as u32);
        self.heap.push(heap_entry(cell.weight, key));
        start
    }
}

/// Compares by count, then by smaller key.
fn heap_entry(count: u64, key: u64) -> u128 {
    u128::from(count) << 64 | u128::from(!key)
}

/// Takes `weight` off a pair's count; the pair that is being merged has none left.
fn subtract(table: &mut PairTable, key: u64, merged: u64, weight: u64) {
    if key != merged
        && let Some(entry) = table.get(key)
    {
        entry.count -= weight;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::naive;

    fn merges<S: Symbol>(words: &[(Vec<u8>, u64)], floor: u64, threads: usize) -> Vec<(u32, u32)> {
        let mut words: Vec<_> = words.iter().filter(|(w, _)| w.len() > 1).map(|(w, n)| (*n, &w[..])).collect();
        words.sort_by_key(|&(n, _)| std::cmp::Reverse(n));
        let control = Control::new();
        let layout = Layout::<S>::new(words, &control).unwrap();
        let options = TrainOptions { n_merges: 1000, min_count: 1 };
        let mut merger = Merger::new(layout, options, Rules::default(), threads, &control).unwrap();
        merger.floor = floor;
        merger.run().unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(3000))]

        #[test]
        fn any_floor_symbol_width_and_thread_count_equal_the_textbook(
            words in prop::collection::vec((prop::collection::vec(b'a'..b'd', 1..30), 1..50u64), 1..10),
            floor in 1..200u64,
        ) {
            let expected = naive::train(&words, 1000, 1);
            prop_assert_eq!(&merges::<u16>(&words, floor, 1), &expected);
            prop_assert_eq!(&merges::<u32>(&words, floor, 3), &expected);
        }
    }
}
