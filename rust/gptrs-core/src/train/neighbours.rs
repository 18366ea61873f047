//! What stands beside the occurrences of one merge, summed by id: two dense arrays instead of a hash an occurrence.
//!
//! Nothing branches on what the neighbour is: the gap has a cell like any id, the last one, and what is not recorded goes
//! to a place of the postings that nobody reads.

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

/// Sums by id, with a list of the ids that have one. There are cells for the ids so far, and for half as many to come.
#[derive(Debug)]
pub(super) struct Tally {
    /// The last is the gap's, which stands above every id.
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
    fn new() -> Self {
        Self { cells: Vec::new(), touched: Vec::new(), n_touched: 0 }
    }

    #[inline]
    fn add(&mut self, id: u32, weight: u64) {
        let id = id.min(self.cells.len() as u32 - 1);
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

    /// Forgets all sums; ids stay below `n_ids`, at most `gap`, until the next call.
    fn clear(&mut self, n_ids: usize, gap: usize) {
        for &id in &self.touched[..self.n_touched] {
            self.cells[id as usize] = Cell::default();
        }
        self.n_touched = 0;
        if self.cells.len() <= n_ids {
            let n_cells = 1 + gap.min(n_ids + n_ids / 2);
            self.cells = vec![Cell::default(); n_cells];
            self.touched.resize(n_cells, 0);
        }
        if let Some(gap) = self.cells.last_mut() {
            *gap = Cell { weight: 0, postings: 1 }; // so that it is not listed
        }
    }

    /// Writes `at` to the slice of the new pair with `id`.
    #[inline]
    fn list(&mut self, id: u32, at: u32, postings: &mut [u32]) {
        let gap = self.cells.len() - 1;
        let next = &mut self.cells[gap.min(id as usize)].postings;
        postings[*next] = at;
        *next += usize::from(*next != UNRECORDED);
    }
}

impl<S: Symbol> Neighbours<S> {
    pub(super) fn new(gap: S) -> Self {
        Self { left: Tally::new(), right: Tally::new(), places: Vec::new(), gap }
    }

    /// Forgets the last merge; ids stay below `n_ids` in the next one.
    pub(super) fn clear(&mut self, n_ids: usize) {
        self.left.clear(n_ids, self.gap.id() as usize);
        self.right.clear(n_ids, self.gap.id() as usize);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_follow_the_ids_so_far_and_keep_the_gap_apart() {
        let gap = 40_000_000u32;
        let mut neighbours = Neighbours::new(gap);
        for n_ids in 257..3000 {
            neighbours.clear(n_ids);
            let id = n_ids as u32 - 1;
            // gap id 7 id 7 gap: the second place has the first on its left side only after 7
            neighbours.add(&[gap, id, 7, id, 7, gap], &[(1, 5), (3, 5)], 1, id);
            assert_eq!(neighbours.left.sums().collect::<Vec<_>>(), [(7, 5)]);
            assert_eq!(neighbours.right.sums().collect::<Vec<_>>(), [(7, 10)]);
            assert!(neighbours.left.cells.len() <= 2 * n_ids && neighbours.right.touched.len() <= 2 * n_ids);
        }
    }
}
