//! What stands beside the occurrences of one merge, summed by id: two dense arrays instead of a hash an occurrence.

use super::layout::Symbol;

/// The tokens left and right of every place where the current merge was applied.
pub(super) struct Neighbours<S> {
    pub(super) left: Tally,
    pub(super) right: Tally,
    places: Vec<Place<S>>,
}

/// Where the new token starts, and its neighbours; [`Symbol::GAP`] for none, or one that the other side counts.
struct Place<S> {
    start: u32,
    left: S,
    right: S,
}

/// Sums by id, with a list of the ids that have one.
#[derive(Default)]
pub(super) struct Tally {
    cells: Vec<Cell>,
    pub(super) touched: Vec<u32>,
}

#[derive(Clone, Copy, Default)]
pub(super) struct Cell {
    /// Sum of the words' counts.
    pub(super) weight: u64,
    /// Number of places; once the new pair has its slice, where its next posting goes.
    pub(super) postings: usize,
}

/// In [`Cell::postings`]: the new pair keeps no postings.
pub(super) const UNRECORDED: usize = usize::MAX;

impl Tally {
    #[inline]
    fn add(&mut self, id: u32, weight: u64) {
        let cell = &mut self.cells[id as usize];
        if cell.postings == 0 {
            self.touched.push(id);
        }
        cell.weight += weight;
        cell.postings += 1;
    }

    /// Every id with its sum.
    pub(super) fn sums(&self) -> impl Iterator<Item = (u32, u64)> {
        self.touched.iter().map(|&id| (id, self.cells[id as usize].weight))
    }

    pub(super) fn cell(&mut self, id: u32) -> &mut Cell {
        &mut self.cells[id as usize]
    }

    fn clear(&mut self) {
        for id in self.touched.drain(..) {
            self.cells[id as usize] = Cell::default();
        }
    }

    /// Writes `at` to the slice of the new pair with `id`.
    #[inline]
    fn list(&mut self, id: u32, at: u32, postings: &mut [u32]) {
        let next = &mut self.cells[id as usize].postings;
        if *next != UNRECORDED {
            postings[*next] = at;
            *next += 1;
        }
    }
}

impl<S: Symbol> Neighbours<S> {
    pub(super) fn new() -> Self {
        Self { left: Tally::default(), right: Tally::default(), places: Vec::new() }
    }

    /// Forgets the last merge; ids up to `n_ids` may follow.
    pub(super) fn clear(&mut self, n_ids: usize) {
        for tally in [&mut self.left, &mut self.right] {
            tally.clear();
            tally.cells.resize(n_ids, Cell::default());
        }
        self.places.clear();
    }

    /// Adds the neighbours of the new token `id` in `start..end`. A new token on the left has counted this border already.
    #[inline]
    pub(super) fn add(&mut self, symbols: &[S], start: u32, end: u32, id: S, weight: u64) {
        let mut left = symbols[start as usize - 1];
        if left == id {
            left = S::GAP;
        }
        if left != S::GAP {
            self.left.add(left.id(), weight);
        }
        let right = symbols[end as usize];
        if right != S::GAP {
            self.right.add(right.id(), weight);
        }
        self.places.push(Place { start, left, right });
    }

    /// Writes the borders of all places, in order, to the slices of their pairs.
    pub(super) fn list_borders(&mut self, length: u32, postings: &mut [u32]) {
        for place in &self.places {
            if place.left != S::GAP {
                self.left.list(place.left.id(), place.start, postings);
            }
            if place.right != S::GAP {
                self.right.list(place.right.id(), place.start + length, postings);
            }
        }
    }
}
