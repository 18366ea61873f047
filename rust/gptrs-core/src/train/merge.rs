//! The merge loop.
//!
//! Merging (a, b) into z touches the pairs (x, a) and (b, y) of the tokens x left and y right of each occurrence, and
//! makes (x, z) and (z, y). A pair's count never rises after the merge that makes it, so a pair born below `floor` needs
//! no entry as long as pairs at or above it are left; should they run out, all pairs are counted anew with a lower floor.
//!
//! That happens once by design: the first merges, which build characters from bytes, only know the pairs that they will
//! need. What they leave is a third or so of the places, and the floor for all further merges can be told from theirs.

use super::TrainOptions;
use super::census::Census;
use super::layout::{Layout, Symbol};
use super::neighbours::{Cell, Neighbours, UNRECORDED};
use super::options::Rules;
use super::pairs::{Entry, PairTable, Sketch, key, pair};
use super::queue::Queue;
use crate::control::Control;
use crate::error::Result;
use crate::simd::prefetch;

/// The most ids for which all pairs are counted in dense arrays.
const DENSE_IDS: usize = 1 << 10;

/// The count of the pair of bytes with this rank, halved, is the first floor.
const FIRST_FLOOR_RANK: usize = 256;

pub(super) struct Merger<'c, S> {
    layout: Layout<S>,
    options: TrainOptions,
    rules: Rules<'c>,
    choices: Choices,
    threads: usize,
    control: &'c Control,
    table: PairTable,
    /// Borders of all recorded pairs; the first place takes what is not recorded.
    postings: Vec<u32>,
    queue: Queue,
    /// Pairs born with a smaller count are not recorded.
    floor: u64,
    neighbours: Neighbours<S>,
    merges: Vec<(u32, u32)>,
    /// The count of each merge.
    counts: Vec<u64>,
    n_applied: u64,
}

/// What a run chooses by the size of its text, unless a test wants something else.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Choices {
    /// The first floor.
    pub(super) floor: Option<u64>,
    /// Whether pairs are counted in dense arrays.
    pub(super) is_dense: Option<bool>,
}

/// What [`Merger::run`] made.
pub(super) struct Merged {
    pub(super) merges: Vec<(u32, u32)>,
    pub(super) n_applied: u64,
}

impl<'c, S: Symbol> Merger<'c, S> {
    /// Counts all pairs.
    pub(super) fn new(
        layout: Layout<S>,
        options: TrainOptions,
        rules: Rules<'c>,
        choices: Choices,
        threads: usize,
        control: &'c Control,
    ) -> Result<Self> {
        let neighbours = Neighbours::new(layout.gap);
        let mut merger = Self {
            layout,
            options,
            rules,
            choices,
            threads,
            control,
            table: PairTable::with_room_for(0),
            postings: Vec::new(),
            queue: Queue::default(),
            floor: options.min_count,
            neighbours,
            merges: Vec::new(),
            counts: Vec::new(),
            n_applied: 0,
        };
        if merger.is_dense() {
            let census = Census::new(&merger.layout, threads, control)?;
            let first = choices.floor.unwrap_or_else(|| census.nth_count(FIRST_FLOOR_RANK) / 2);
            merger.floor = first.max(options.min_count);
            merger.list(census)?;
        } else {
            merger.floor = choices.floor.unwrap_or(1).max(options.min_count);
            merger.list_sparse()?;
        }
        Ok(merger)
    }

    pub(super) fn run(mut self) -> Result<Merged> {
        while self.merges.len() < self.options.n_merges {
            self.control.check()?;
            let Some((count, best)) = self.pop() else {
                if self.floor == self.options.min_count {
                    break;
                }
                self.count_anew()?;
                continue;
            };
            if !self.rules.admit(pair(best)) {
                continue; // it stays in the table, where its count goes on falling, but not in the queue
            }
            self.merges.push(pair(best));
            self.counts.push(count);
            self.merge(best)?;
            self.control.advance(1);
        }
        Ok(Merged { merges: self.merges, n_applied: self.n_applied })
    }

    /// Gives every token one place and starts from all its pairs, with a lower floor.
    fn count_anew(&mut self) -> Result<()> {
        self.floor = self.next_floor().clamp(self.options.min_count, self.floor.max(2) / 2);
        self.table = PairTable::with_room_for(0);
        self.postings = Vec::new();
        self.layout.compact(self.control)?;
        if self.is_dense() {
            let census = Census::new(&self.layout, self.threads, self.control)?;
            self.list(census)
        } else {
            self.list_sparse()
        }
    }

    /// Half the count that the last merge is expected to have. A floor that is too high costs one more count, one that is
    /// too low keeps pairs that are never merged.
    fn next_floor(&self) -> u64 {
        /// What counts fall to, at most, while the number of merges doubles.
        const FALL: f64 = 0.4;
        let n = self.merges.len();
        let (Some(&before), Some(&now)) = (self.counts.get(n / 2), self.counts.last()) else { return 0 };
        let doublings = (self.options.n_merges as f64 / n as f64).log2();
        let fall = (now as f64 / before as f64).min(FALL);
        (0.5 * now as f64 * fall.powf(doublings)) as u64
    }

    /// Whether dense arrays of all pairs pay.
    fn is_dense(&self) -> bool {
        let n_ids = self.layout.lengths.len();
        let is_small = n_ids <= DENSE_IDS && n_ids * n_ids <= 2 * self.layout.symbols.len();
        self.choices.is_dense.unwrap_or(is_small)
    }

    /// Records the pairs at or above the floor.
    fn list(&mut self, census: Census) -> Result<()> {
        let (entries, postings) = census.list(&self.layout, self.floor, self.threads, self.control)?;
        self.queue = Queue::default();
        for (key, entry) in &entries {
            self.queue.push(entry.count, *key);
        }
        self.table = PairTable::new(&entries);
        self.postings = postings;
        Ok(())
    }

    /// Counts all pairs and records those at or above the floor: for more ids than a dense array can pair.
    fn list_sparse(&mut self) -> Result<()> {
        let places = 1..self.layout.symbols.len();
        // Most pairs are rare. Sums by hash, which are never below a count, tell them without an entry.
        let mut sketch = Sketch::new(places.len());
        self.layout.for_each_border(places.clone(), |left, right, _, weight| sketch.add(key(left, right), weight));
        self.control.check()?;
        self.layout.for_each_border(places.clone(), |left, right, _, weight| {
            let key = key(left, right);
            if sketch.sum(key) >= self.floor {
                let entry = self.table.get_or_insert(key, 0);
                entry.count += weight;
                entry.n_postings += 1;
            }
        });
        self.control.check()?;
        self.table.rebuild(self.floor);
        self.queue = Queue::default();
        let mut n_postings = 1;
        for (key, entry) in self.table.iter_mut() {
            entry.start = n_postings;
            n_postings += std::mem::take(&mut entry.n_postings) as usize;
            self.queue.push(entry.count, key);
        }
        self.postings = vec![0; n_postings];
        self.layout.for_each_border(places, |left, right, at, _| {
            let key = key(left, right);
            if sketch.sum(key) >= self.floor
                && let Some(entry) = self.table.get(key)
            {
                self.postings[entry.start + entry.n_postings as usize] = at;
                entry.n_postings += 1;
            }
        });
        self.control.check()
    }

    /// The pair with the highest count, if it reaches the floor.
    fn pop(&mut self) -> Option<(u64, u64)> {
        while let Some((count, key)) = self.queue.pop() {
            if count < self.floor {
                return None;
            }
            match self.table.get(key) {
                Some(entry) if entry.count == count => return Some((count, key)),
                Some(entry) if entry.count >= self.floor => self.queue.push(entry.count, key),
                _ => {}
            }
        }
        None
    }

    /// Replaces every occurrence of a pair by a new id.
    fn merge(&mut self, best: u64) -> Result<()> {
        let id = self.layout.lengths.len() as u32;
        let (a, b) = pair(best);
        let length = self.layout.lengths[a as usize] + self.layout.lengths[b as usize];
        self.layout.lengths.push(length);
        self.neighbours.clear(self.layout.lengths.len());
        self.rewrite(best, id, length)?;
        self.n_applied += self.neighbours.n_places() as u64;
        // First a loop without branches, so that the table's misses overlap.
        self.neighbours.left.ids().iter().for_each(|&x| self.table.prefetch(key(x, a)));
        self.neighbours.right.ids().iter().for_each(|&y| self.table.prefetch(key(b, y)));
        for (x, weight) in self.neighbours.left.sums() {
            subtract(&mut self.table, key(x, a), best, weight);
        }
        for (y, weight) in self.neighbours.right.sums() {
            // Two occurrences side by side: the border between them was (b, a).
            subtract(&mut self.table, key(b, if y == id { a } else { y }), best, weight);
        }
        let Self { table, postings, queue, floor, neighbours, .. } = self;
        let mut record = |key: u64, cell: Cell| {
            if cell.weight < *floor {
                return UNRECORDED;
            }
            let start = postings.len();
            postings.resize(start + cell.postings, 0);
            let (n_postings, count) = (cell.postings as u32, cell.weight);
            *table.get_or_insert(key, *floor) = Entry { count, start, n_postings };
            queue.push(count, key);
            start
        };
        neighbours.left.place(|x, cell| record(key(x, id), cell));
        neighbours.right.place(|y, cell| record(key(id, y), cell));
        neighbours.list_borders(length, postings);
        Ok(())
    }

    /// Writes `id` over every occurrence of the pair, leftmost first, and tallies what stands beside it.
    fn rewrite(&mut self, best: u64, id: u32, length: u32) -> Result<()> {
        const BLOCK: usize = 64;
        let (a, b) = pair(best);
        let left_length = self.layout.lengths[a as usize];
        let (a, b, id) = (S::new(a), S::new(b), S::new(id));
        let Some(entry) = self.table.get(best) else { return Ok(()) };
        entry.count = 0;
        let postings = &self.postings[entry.start..entry.start + entry.n_postings as usize];
        let (symbols, weights) = (&mut self.layout.symbols, &self.layout.weights);
        let mut segment = 0;
        // The last place waits for the next block: its right neighbour may be rewritten there.
        let (mut places, mut n_places) = ([(0, 0); BLOCK + 1], 0);
        let mut ahead = postings.chunks(BLOCK).skip(1);
        for block in postings.chunks(BLOCK) {
            self.control.check()?;
            for &border in ahead.next().unwrap_or_default() {
                prefetch(symbols, border as usize);
            }
            // First a pass without branches, so that the misses of the whole block overlap.
            let (mut live, mut n_live) = ([0; BLOCK], 0);
            for &border in block {
                live[n_live] = border;
                let (left, right) = (symbols[border as usize - 1], symbols[border as usize]);
                n_live += usize::from(left == a) & usize::from(right == b);
            }
            for &border in &live[..n_live] {
                if a == b && symbols[border as usize - 1] != a {
                    continue; // taken by the place before, in a run
                }
                let start = border - left_length;
                symbols[start as usize] = id;
                symbols[(start + length) as usize - 1] = id;
                segment = weights.segment_of(border, segment);
                places[n_places] = (start, weights.of(segment));
                n_places += 1;
            }
            if let Some(last) = n_places.checked_sub(1) {
                self.neighbours.add(symbols, &places[..last], length, id);
                (places[0], n_places) = (places[last], 1);
            }
        }
        self.neighbours.add(symbols, &places[..n_places], length, id);
        Ok(())
    }
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
    use crate::count::WordCounts;
    use crate::naive;
    use crate::train::classes::Classes;

    fn merges<S: Symbol>(words: &[(Vec<u8>, u64)], choices: Choices, threads: usize) -> Vec<(u32, u32)> {
        let mut counts = WordCounts::new();
        for (word, n) in words {
            counts.add(word, *n).unwrap();
        }
        let control = Control::new();
        let classes = Classes::new(&counts, threads, &control).unwrap();
        let options = TrainOptions { n_merges: classes.n_borders.min(2000), min_count: 1 };
        let layout = Layout::<S>::new(&counts, &classes, 256 + options.n_merges as u32, threads, &control).unwrap();
        Merger::new(layout, options, Rules::default(), choices, threads, &control).unwrap().run().unwrap().merges
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]

        #[test]
        fn any_floor_symbol_width_and_thread_count_equal_the_textbook(
            words in prop::collection::vec((prop::collection::vec(b'a'..b'd', 1..30), 1..50u64), 1..10),
            floor in 1..200u64,
        ) {
            let expected = naive::train(&words, 1000, 1);
            for (threads, is_dense) in [(1, None), (2, Some(true)), (3, Some(false))] {
                let choices = Choices { floor: Some(floor), is_dense };
                prop_assert_eq!(&merges::<u16>(&words, choices, threads), &expected);
                prop_assert_eq!(&merges::<u32>(&words, choices, threads), &expected);
            }
            prop_assert_eq!(&merges::<u16>(&words, Choices { floor: None, is_dense: Some(true) }, 2), &expected);
        }
    }
}
