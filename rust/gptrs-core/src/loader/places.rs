//! From samples to rows: the mixture says which source, the order which of its rows.

use std::sync::{Arc, Mutex};

use super::{Loader, room};
use crate::error::Result;
use crate::mixture::{Pick, Walk};
use crate::order::{Cursor, Order};

/// A row of a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Index of the source.
    pub source: usize,
    /// The row.
    pub row: u64,
}

/// For each source the epoch that was asked last, and its order.
pub(super) type Cursors = Vec<Option<(u64, Cursor)>>;

/// What the last microbatch has left for the next. It decides nothing: who finds it taken makes it anew, and nobody
/// waits, for after a fork that could be forever.
#[derive(Debug, Default)]
pub(super) struct Kept<T>(Arc<Mutex<T>>);

impl<T> Clone for Kept<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T: Default> Kept<T> {
    pub(super) fn take(&self) -> T {
        self.0.try_lock().map(|mut kept| std::mem::take(&mut *kept)).unwrap_or_default()
    }

    pub(super) fn put(&self, value: T) {
        if let Ok(mut kept) = self.0.try_lock() {
            *kept = value;
        }
    }
}

/// The places of the samples from one on.
pub(super) struct Places<'a> {
    loader: &'a Loader,
    picks: Picks,
    cursors: Cursors,
}

enum Picks {
    /// The only source gives every sample.
    One(u64),
    Mixed(Box<Walk>),
}

impl<'a> Places<'a> {
    pub(super) fn new(loader: &'a Loader, sample: u64) -> Result<Self> {
        let picks = match &loader.mixture {
            None => Picks::One(sample),
            Some(mixture) => Picks::Mixed(Box::new(Arc::clone(mixture).walk(sample)?)),
        };
        let mut cursors = loader.orders.take();
        cursors.resize(loader.sources.len(), None);
        Ok(Self { loader, picks, cursors })
    }

    /// The next `n` places, or those up to the end of the mixture.
    pub(super) fn many(mut self, n: usize) -> Result<Vec<Place>> {
        let mut places = room("rows", n, 1)?;
        for pick in (0..n).map_while(|_| self.pick()) {
            let Pick { source, index } = pick?;
            places.push(Place { source, row: index });
        }
        // A sample's index among those of its source gives the epoch, and its place in that epoch's order.
        let (mut rest, mut rows) = (places.as_mut_slice(), room("rows", n, 1)?);
        while let Some(&Place { source, row: index }) = rest.first() {
            let n_rows = self.loader.sources[source].n_rows();
            let (epoch, start) = (index / n_rows, index - index % n_rows);
            let is_like = |place: &Place| place.source == source && place.row.wrapping_sub(start) < n_rows;
            let n_alike = rest.iter().take_while(|place| is_like(place)).count();
            let (alike, others) = rest.split_at_mut(n_alike);
            rows.clear();
            rows.extend(alike.iter().map(|place| place.row - start));
            self.cursor(source, epoch).at_each(&mut rows);
            alike.iter_mut().zip(&rows).for_each(|(place, &row)| place.row = row);
            rest = others;
        }
        self.loader.orders.put(self.cursors);
        Ok(places)
    }

    fn pick(&mut self) -> Option<Result<Pick>> {
        match &mut self.picks {
            Picks::One(sample) => {
                *sample += 1;
                Some(Ok(Pick { source: 0, index: *sample - 1 }))
            }
            Picks::Mixed(walk) => walk.next(),
        }
    }

    /// The order of an epoch of a source.
    fn cursor(&mut self, source: usize, epoch: u64) -> &mut Cursor {
        let held = &mut self.cursors[source];
        if held.as_ref().is_none_or(|(held_epoch, _)| *held_epoch != epoch) {
            *held = None;
        }
        let Loader { options, sources, .. } = self.loader;
        let order = || Order::new(options.order, sources[source].n_rows(), self.loader.source_seed(source), epoch);
        &mut held.get_or_insert_with(|| (epoch, Cursor::new(order()))).1
    }
}
