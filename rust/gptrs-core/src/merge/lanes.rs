//! Many pieces merged in turn: nearly all time of merging one goes by waiting for the table of pairs, and many can wait at
//! once. With AVX-512 they merge side by side instead, see `columns`.

use std::ops::Range;

#[cfg(target_arch = "x86_64")]
use super::columns;
use super::{Change, Merges, Room, SHORT, Scan};
use crate::simd::Level;

/// Pieces under way.
const LANES: usize = 16;

/// What merging a piece starts with: the tokens that its bytes are known to become first, or its bytes where there are none.
#[derive(Debug, Clone, Default)]
pub(crate) struct Start<'a> {
    pub(crate) bytes: &'a [u8],
    /// Where they stand among those of all pieces.
    pub(crate) tokens: Range<usize>,
}

impl Start<'_> {
    fn len(&self) -> usize {
        if self.tokens.is_empty() { self.bytes.len() } else { self.tokens.len() }
    }
}

impl<const N: usize> Scan<N> {
    #[inline(always)]
    fn start_from(&mut self, merges: Merges<'_>, start: &Start<'_>, tokens: &[u32]) {
        match &tokens[start.tokens.clone()] {
            [] => self.start(merges, start.bytes),
            tokens => self.start_with(merges, tokens),
        }
    }
}

impl Merges<'_> {
    /// Appends to `ids` those of the pieces that are not longer than a scan, and not empty, and says in `places` where: there
    /// is a place for each piece. `tokens` are those that they start with, to which more may be added.
    pub(crate) fn encode_many(
        self,
        level: Level,
        pieces: &mut [Start<'_>],
        tokens: &mut Vec<u32>,
        room: &mut Room,
        ids: &mut Vec<u32>,
        places: &mut [Range<usize>],
    ) {
        #[cfg(target_arch = "x86_64")]
        match level {
            // SAFETY: this processor was found to have the level.
            Level::Avx512 => return unsafe { encode_avx512(self, pieces, tokens, room, ids, places) },
            // SAFETY: this processor was found to have the level.
            Level::Avx2 => return unsafe { encode_avx2(self, pieces, tokens, ids, places) },
            Level::Scalar => {}
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = (level, room);
        self.encode_all(pieces, tokens, ids, places);
    }

    #[inline(always)]
    fn encode_all(self, pieces: &[Start<'_>], tokens: &[u32], ids: &mut Vec<u32>, places: &mut [Range<usize>]) {
        self.lanes::<16>(0, pieces, tokens, ids, places);
        self.lanes::<32>(16, pieces, tokens, ids, places);
        self.lanes::<SHORT>(32, pieces, tokens, ids, places);
    }

    /// The same for pieces of more than `above` and at most `N` bytes or tokens.
    #[inline(always)]
    fn lanes<const N: usize>(
        self,
        above: usize,
        pieces: &[Start<'_>],
        tokens: &[u32],
        ids: &mut Vec<u32>,
        places: &mut [Range<usize>],
    ) {
        let mut pieces = pieces.iter().enumerate().filter(|(_, piece)| (above + 1..=N).contains(&piece.len()));
        let mut lanes = [const { Scan::<N>::EMPTY }; LANES];
        let (mut numbers, mut changes) = ([0; LANES], [(Change::default(), [0; 2]); LANES]);
        let mut n_lanes = 0;
        for ((lane, number), (i, piece)) in lanes.iter_mut().zip(&mut numbers).zip(&mut pieces) {
            lane.start_from(self, piece, tokens);
            *number = i;
            n_lanes += 1;
        }
        while n_lanes > 0 {
            let mut at = 0;
            while at < n_lanes {
                let scan = &mut lanes[at];
                if let Some(change) = scan.merge(self) {
                    let places = scan.places(&change);
                    for place in places {
                        self.pairs.prefetch(place);
                    }
                    changes[at] = (change, places);
                    at += 1;
                    continue;
                }
                let from = ids.len();
                scan.finish(ids);
                places[numbers[at]] = from..ids.len();
                if let Some((i, piece)) = pieces.next() {
                    scan.start_from(self, piece, tokens);
                    numbers[at] = i;
                } else {
                    n_lanes -= 1;
                    lanes.swap(at, n_lanes);
                    numbers.swap(at, n_lanes);
                }
            }
            for (scan, &(change, places)) in lanes[..n_lanes].iter_mut().zip(&changes) {
                scan.rank_at(self, change, places);
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512cd,avx2,bmi1,bmi2,lzcnt,popcnt")]
fn encode_avx512(
    merges: Merges<'_>,
    pieces: &mut [Start<'_>],
    tokens: &mut Vec<u32>,
    room: &mut Room,
    ids: &mut Vec<u32>,
    places: &mut [Range<usize>],
) {
    for piece in pieces.iter_mut().filter(|piece| piece.tokens.is_empty()) {
        let from = tokens.len();
        tokens.extend(piece.bytes.iter().map(|&byte| merges.byte_ids[usize::from(byte)]));
        piece.tokens = from..tokens.len();
    }
    columns::encode(merges, pieces, tokens, room, ids, places);
    merges.lanes::<SHORT>(columns::ROWS, pieces, tokens, ids, places);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,bmi1,bmi2,lzcnt,popcnt")]
fn encode_avx2(
    merges: Merges<'_>,
    pieces: &[Start<'_>],
    tokens: &[u32],
    ids: &mut Vec<u32>,
    places: &mut [Range<usize>],
) {
    merges.encode_all(pieces, tokens, ids, places);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::naive;
    use crate::vocab::Vocab;

    #[test]
    fn many_pieces_merge_as_each_alone_at_each_level() {
        let text = "the cat that sat on the mat; ABABABBAABAB, Страна, стран, 中文文字の中, ".repeat(8);
        let words: Vec<_> = text.split_inclusive(' ').map(|word| (word.as_bytes().to_vec(), 1)).collect();
        let merges = naive::train(&words, 120, 1);
        let vocab = Vocab::from_merges(&merges).unwrap();
        let ranked: Vec<_> = merges.iter().zip(256..).map(|(&pair, id)| (pair, id)).collect();
        // Of every length, some of none, and more than there are lanes.
        let pieces: Vec<_> = (0..400).map(|i| &text.as_bytes()[i..][..i * 7 % (SHORT + 1)]).collect();
        let mut tokens = Vec::new();
        let starts: Vec<_> = (0..)
            .zip(&pieces)
            .map(|(i, &bytes)| {
                let from = tokens.len();
                let ids = bytes.iter().map(|&byte| vocab.byte_ids()[usize::from(byte)]);
                tokens.extend(ids.take(if i % 2 == 0 { 0 } else { SHORT }));
                Start { bytes, tokens: from..tokens.len() }
            })
            .collect();
        for level in Level::ALL.into_iter().filter(|level| level.is_available()) {
            let (mut ids, mut places) = (vec![7], vec![0..0; pieces.len()]);
            let (mut starts, mut tokens, mut room) = (starts.clone(), tokens.clone(), Room::default());
            vocab.merges_by_id().encode_many(level, &mut starts, &mut tokens, &mut room, &mut ids, &mut places);
            for (piece, place) in pieces.iter().zip(places) {
                assert_eq!(ids[place], naive::encode_piece(piece, vocab.byte_ids(), &ranked), "{level}, {piece:?}");
            }
        }
    }
}
