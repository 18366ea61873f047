//! Many pieces merged in turn: nearly all time of merging one goes by waiting for the table of pairs, and many can wait at
//! once.

use std::ops::Range;

use super::{Change, Merges, SHORT, Scan};

/// Pieces under way.
const LANES: usize = 16;

impl Merges<'_> {
    /// Appends to `ids` those of the pieces that are not longer than a scan, and not empty, and says in `places` where: there
    /// is a place for each piece.
    pub(crate) fn encode_many(self, pieces: &[&[u8]], ids: &mut Vec<u32>, places: &mut [Range<usize>]) {
        self.lanes::<16>(0, pieces, ids, places);
        self.lanes::<32>(16, pieces, ids, places);
        self.lanes::<SHORT>(32, pieces, ids, places);
    }

    /// The same for pieces of more than `above` and at most `N` bytes.
    fn lanes<const N: usize>(self, above: usize, pieces: &[&[u8]], ids: &mut Vec<u32>, places: &mut [Range<usize>]) {
        let mut pieces = pieces.iter().enumerate().filter(|(_, piece)| (above + 1..=N).contains(&piece.len()));
        let mut next = || pieces.next().map(|(i, piece)| (i, Scan::<N>::new(self, piece)));
        let mut lanes: Vec<_> = std::iter::from_fn(&mut next).take(LANES).collect();
        let mut changes = [(Change::default(), [0; 2]); LANES];
        while !lanes.is_empty() {
            let mut at = 0;
            while let Some((i, scan)) = lanes.get_mut(at) {
                if let Some(change) = scan.merge(self) {
                    let places = scan.places(self, &change);
                    for place in places {
                        self.pairs.prefetch(place);
                    }
                    changes[at] = (change, places);
                    at += 1;
                    continue;
                }
                let from = ids.len();
                scan.finish(ids);
                places[*i] = from..ids.len();
                match next() {
                    Some(lane) => lanes[at] = lane,
                    None => drop(lanes.swap_remove(at)),
                }
            }
            for ((_, scan), &(change, places)) in lanes.iter_mut().zip(&changes) {
                scan.rank_at(self, change, places);
            }
        }
    }
}
