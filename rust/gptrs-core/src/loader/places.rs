//! From samples to rows: the mixture says which source, the order which of its rows.

use std::sync::Arc;

use super::Loader;
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

/// The places of the samples from one on.
pub(super) struct Places<'a> {
    loader: &'a Loader,
    picks: Picks,
    /// For each source the epoch that was asked last, and its order.
    cursors: Vec<Option<(u64, Cursor)>>,
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
        Ok(Self { loader, picks, cursors: vec![None; loader.sources.len()] })
    }

    fn place(&mut self, Pick { source, index }: Pick) -> Place {
        let n_rows = self.loader.sources[source].n_rows();
        let (epoch, place) = (index / n_rows, index % n_rows);
        let held = &mut self.cursors[source];
        let cursor = match held {
            Some((held_epoch, cursor)) if *held_epoch == epoch => cursor,
            _ => {
                let order = Order::new(self.loader.options.order, n_rows, self.loader.source_seed(source), epoch);
                &mut held.insert((epoch, Cursor::new(order))).1
            }
        };
        Place { source, row: cursor.at(place) }
    }
}

impl Iterator for Places<'_> {
    type Item = Result<Place>;

    fn next(&mut self) -> Option<Result<Place>> {
        let pick = match &mut self.picks {
            Picks::One(sample) => {
                *sample += 1;
                Pick { source: 0, index: *sample - 1 }
            }
            Picks::Mixed(walk) => match walk.next()? {
                Ok(pick) => pick,
                Err(error) => return Some(Err(error)),
            },
        };
        Some(Ok(self.place(pick)))
    }
}
