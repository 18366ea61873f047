//! What stands beside the occurrences of one merge, summed by id: two dense arrays instead of a hash an occurrence.
//!
//! Nothing branches on what the neighbour is: the gap has a cell like any id, and what is not recorded goes to a place
//! of the postings that nobody reads.

use super::layout::Symbol;

/// The tokens left and right of every place where the current merge was applied.
#[derive(Debug)]
pub(super) struct Neighbours<S> {
    pub(super) left: Tally,
    pub(super) right: Tally,
    places: Vec<Place<S>>,
    gap: S,
}

/// Where the new token starts, and its neighbours; the gap for one that the other side counts.
#[derive(Debug, Clone, Copy)]
struct Place<S> {
    start: u32,
    left: S,
    right: S,
}

/// Sums by id, with a list of the ids that have one.
#[derive(Debug)]
pub(super) struct Tally {
    cells: Vec<Cell>,
    touched: Vec<u32>,
    n_touched: usize,
}

#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Cell {
    /// Sum of the words' counts.
    pub(super) weight: u64,
    /// Number of places; once the new pair has its slice, where its next posting goes.
    pub(super) postings: usize,
}

/// In [`Cell::postings`]: the new pair keeps no postings. The first place of the postings belongs to none.
pub(super) const UNRECORDED: usize = 0;

impl Tally {
    fn new(gap: usize) -> Self {
        let mut tally = Self { cells: vec![Cell::default(); gap + 1], touched: vec![0; gap + 1], n_touched: 0 };
        tally.clear();
        tally
    }

    #[inline]
    fn add(&mut self, id: u32, weight: u64) {
        let cell = &mut self.cells[id as usize];
        self.touched[self.n_touched] = id;
        self.n_touched += usize::from(cell.postings == 0);
        cell.weight += weight;
        cell.postings += 1;
    }

    /// The ids that stood there.
    pub(super) fn ids(&self) -> &[u32] {
        &self.touched[..self.n_touched]
    }

    /// Every id with its sum.
    pub(super) fn sums(&self) -> impl Iterator<Item = (u32, u64)> {
        self.ids().iter().map(|&id| (id, self.cells[id as usize].weight))
    }

    /// Replaces the number of places of each id by what `start` makes of the id and its cell.
    pub(super) fn place(&mut self, mut start: impl FnMut(u32, Cell) -> usize) {
        for &id in &self.touched[..self.n_touched] {
            let cell = &mut self.cells[id as usize];
            cell.postings = start(id, *cell);
        }
        if let Some(gap) = self.cells.last_mut() {
            gap.postings = UNRECORDED;
        }
    }

    fn clear(&mut self) {
        for &id in &self.touched[..self.n_touched] {
            self.cells[id as usize] = Cell::default();
        }
        self.n_touched = 0;
        if let Some(gap) = self.cells.last_mut() {
            *gap = Cell { weight: 0, postings: 1 }; // so that it is not listed
        }
    }

    /// Writes `at` to the slice of the new pair with `id`.
    #[inline]
    fn list(&mut self, id: u32, at: u32, postings: &mut [u32]) {
        let next = &mut self.cells[id as usize].postings;
        postings[*next] = at;
        *next += usize::from(*next != UNRECORDED);
    }
}

impl<S: Symbol> Neighbours<S> {
    pub(super) fn new(gap: S) -> Self {
        let n_ids = gap.id() as usize;
        Self { left: Tally::new(n_ids), right: Tally::new(n_ids), places: Vec::new(), gap }
    }

    /// Forgets the last merge.
    pub(super) fn clear(&mut self) {
        self.left.clear();
        self.right.clear();
        self.places.clear();
    }

    /// Number of places where the merge was applied.
    pub(super) fn n_places(&self) -> usize {
        self.places.len()
    }

    /// Adds the neighbours of new tokens `id` of `length` places, at `(start, weight)`. A new token on the left has
    /// counted this border already.
    #[inline]
    pub(super) fn add(&mut self, symbols: &[S], places: &[(u32, u64)], length: u32, id: S) {
        self.places.extend(places.iter().map(|&(start, weight)| {
            let (before, right) = (symbols[start as usize - 1], symbols[(start + length) as usize]);
            let left = if before == id { self.gap } else { before };
            self.left.add(left.id(), weight);
            self.right.add(right.id(), weight);
            Place { start, left, right }
        }));
    }

    /// Writes the borders of all places, in order, to the slices of their pairs.
    pub(super) fn list_borders(&mut self, length: u32, postings: &mut [u32]) {
        for place in &self.places {
            self.left.list(place.left.id(), place.start, postings);
            self.right.list(place.right.id(), place.start + length, postings);
        }
    }
}
