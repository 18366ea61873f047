//! Pieces and parts of pieces: ids that are stored, or holes to be filled later.

use std::mem::take;
use std::ops::Range;

use super::sink::{Id, Out, Ready, Sink};
use super::{LONG_LEAD, PART};
use crate::borders::{Parts, Row};
use crate::cache::{Cache, LONGEST, NOWHERE, PACKED, WIDE, long_key, packed_key, place};
use crate::control::Control;
use crate::error::Result;
use crate::merge::{Room, SHORT, Scratch, Start};
use crate::simd::Level;
use crate::slot;
use crate::vocab::Vocab;

/// Unseen pieces that are merged together, at most, and less than 255.
const MAX_HOLES: usize = 128;

/// Places for their keys. One that takes the place of another is merged twice if it comes again.
const N_LAST: usize = 2 * MAX_HOLES;

/// Pieces, or parts of them, whose ids are not known yet.
#[derive(Debug, Default, Clone)]
pub(super) struct Holes {
    open: Vec<Hole>,
    /// The ids of all, in any order.
    ids: Vec<u32>,
    /// Where those of each are; nowhere as long as they are not known.
    places: Vec<Range<usize>>,
    /// Room for those of one, and for its characters.
    ready: Ready,
    row: Row,
    last: Last,
    /// What those start with that merge from tokens on.
    tokens: Vec<u32>,
    /// Memory for merging them.
    room: Room,
}

/// By some bits of a key the last open hole with such a key: its number and one more, or 0.
#[derive(Debug, Clone)]
struct Last([u8; N_LAST]);

impl Default for Last {
    fn default() -> Self {
        Self([0; N_LAST])
    }
}

#[derive(Debug, Clone)]
struct Hole {
    /// What its ids are stored under; `None` when they are not stored.
    key: Option<u128>,
    /// Where it is in the text; nowhere where one of several texts ends.
    bytes: Range<usize>,
    /// Whether it is a whole piece, which may be a token whatever the merges make of it.
    is_piece: bool,
    /// How many of the ids on their way stand before it.
    at: usize,
    /// The open hole of the same piece, which is filled for both.
    same: Option<usize>,
}

impl Holes {
    fn take(&mut self) -> (Vec<Hole>, Vec<u32>, Vec<Range<usize>>) {
        let Self { open, ids, places, .. } = self;
        (take(open), take(ids), take(places))
    }

    pub(super) fn clear(&mut self) {
        self.open.clear();
        self.last = Last::default();
        self.ids.clear();
        self.places.clear();
    }
}

/// What is known of a text's pieces.
pub(super) struct Known<'a> {
    pub(super) vocab: &'a Vocab,
    pub(super) cache: &'a mut Cache,
    pub(super) level: Level,
    pub(super) text: &'a [u8],
    pub(super) control: &'a Control,
    /// What is missing among the ids on their way, in order.
    pub(super) holes: &'a mut Holes,
    pub(super) scratch: &'a mut Scratch,
}

impl Known<'_> {
    /// Whether holes should be filled.
    #[inline]
    pub(super) fn is_full(&self) -> bool {
        self.holes.open.len() >= MAX_HOLES
    }

    /// Gives out a piece or a part of one.
    pub(super) fn part<I: Id>(&mut self, bytes: Range<usize>, is_piece: bool, out: &mut Out<I>) {
        // Only with `ignore_merges` a part may have other ids than the same bytes as a piece.
        let (piece, is_own) = (&self.text[bytes.clone()], is_piece || !self.vocab.ignore_merges());
        match piece.len() {
            // The end of a text is a hole that nothing fills.
            0 => self.hole(None, bytes, false, out.n),
            1..=PACKED => {
                let key = packed_key(self.text, bytes.start, piece) | if is_own { 0 } else { PART };
                self.packed(key, bytes, is_piece, out);
            }
            ..=LONGEST if is_own => self.long(long_key(piece), bytes, is_piece, out),
            _ => self.hole(None, bytes, is_piece, out.n),
        }
    }

    /// Gives out what is stored under the key of a short piece, or leaves a hole.
    pub(super) fn packed<I: Id>(&mut self, key: u128, bytes: Range<usize>, is_piece: bool, out: &mut Out<I>) {
        let table = self.cache.view();
        let Some(slot) = table.get(place(key), key) else {
            self.hole(Some(key), bytes, is_piece, out.n);
            return;
        };
        let (halves, n) = slot::content(slot);
        if n <= slot::INLINE {
            out.add_slot(halves, n, self.cache.is_narrow());
        } else {
            out.add(self.cache.elsewhere(halves));
        }
    }

    /// The same for a longer piece.
    pub(super) fn long<I: Id>(&mut self, key: u128, bytes: Range<usize>, is_piece: bool, out: &mut Out<I>) {
        match self.cache.get_long(&self.text[bytes.clone()], key) {
            Some(ids) => out.add(ids),
            None => self.hole(Some(key), bytes, is_piece, out.n),
        }
    }

    /// Leaves a hole. A new piece often comes again before its first hole is filled.
    pub(super) fn hole(&mut self, key: Option<u128>, bytes: Range<usize>, is_piece: bool, at: usize) {
        let Holes { open, last, .. } = &mut *self.holes;
        let mut same = None;
        if let Some(key) = key {
            let last = &mut last.0[(place(key) as usize >> 8) % N_LAST];
            same = usize::from(*last)
                .checked_sub(1)
                .filter(|&i| open[i].key == Some(key) && self.text[open[i].bytes.clone()] == self.text[bytes.clone()]);
            // The first one is not the same as any.
            if same.is_none() {
                *last = open.len() as u8 + 1;
            }
        }
        open.push(Hole { key, bytes, is_piece, at, same });
    }

    /// Whether it pays to look for borders in `piece`.
    pub(super) fn falls_apart(&mut self, piece: &[u8]) -> bool {
        // An invalid sequence has at most three bytes, and three of them only at the front of a longer character; every
        // other piece is UTF-8.
        let is_utf8 = piece.len() > 3 || (piece.len() == 3 && piece[0] < 0xF0);
        debug_assert!(
            piece.len() > 3
                || piece.is_ascii()
                || is_utf8 == std::str::from_utf8(piece).is_ok()
                || piece[0] < LONG_LEAD
        );
        // Without an early end: the bytes are looked at side by side.
        is_utf8
            && (piece.iter().take(2).any(|&byte| byte >= self.cache.apart)
                || piece.iter().fold(0, |highest, &byte| byte.max(highest)) >= self.cache.apart)
            && self.cache.may_part(piece.len())
    }

    /// Gives all ids to the sink, with those that were missing among them.
    #[inline(never)]
    pub(super) fn spill<S: Sink>(&mut self, out: &mut Out<S::Id>, sink: &mut S) -> Result<()> {
        self.fill()?;
        let mut from = 0;
        for (hole, ids) in self.holes.open.iter().zip(&self.holes.places) {
            sink.push_narrow(&out.room[from..hole.at]);
            sink.push(&self.holes.ids[ids.clone()]);
            from = hole.at;
            if hole.bytes.is_empty() {
                sink.end_text();
            }
        }
        sink.push_narrow(&out.room[from..take(&mut out.n)]);
        self.holes.clear();
        Ok(())
    }

    /// Computes the ids of all holes and stores them.
    fn fill(&mut self) -> Result<()> {
        let (holes, mut ids, mut places) = self.holes.take();
        let (vocab, text) = (self.vocab, self.text);
        let may_be_token = vocab.ignore_merges() || !self.cache.knows_tokens();
        // What is to be merged, and the tokens that it starts with, where they are known, else none.
        let mut starts: Vec<Start<'_>> = Vec::with_capacity(holes.len());
        let (merges, borders, mut tokens) = (vocab.merges_by_id(), vocab.made_borders(), take(&mut self.holes.tokens));
        for Hole { bytes, is_piece, same, .. } in &holes {
            let (piece, from) = (&text[bytes.clone()], ids.len());
            if same.is_some() {
                starts.push(Start::default());
                places.push(0..0);
                continue;
            }
            if *is_piece
                && may_be_token
                && let Some(id) = vocab.whole_piece(piece)
            {
                ids.push(id);
            } else if piece.len() > SHORT {
                vocab.merge_piece(piece, self.scratch, self.control, &mut ids)?;
            } else if *is_piece && self.falls_apart(piece) {
                self.merge_parts(bytes.clone(), &mut ids)?;
            }
            let (is_done, n_tokens) = (piece.is_empty() || ids.len() > from, tokens.len());
            if let Some(borders) = borders.filter(|_| !is_done && !piece.is_ascii()) {
                borders.starts(merges, piece, vocab.is_narrow(), &mut tokens);
            }
            starts.push(if is_done {
                Start::default()
            } else {
                Start { bytes: piece, tokens: n_tokens..tokens.len() }
            });
            places.push(from..ids.len());
        }
        merges.encode_many(self.level, &mut starts, &mut tokens, &mut self.holes.room, &mut ids, &mut places);
        tokens.clear();
        self.holes.tokens = tokens;
        for (i, hole) in holes.iter().enumerate() {
            if let Some(same) = hole.same {
                places[i] = places[same].clone();
                continue;
            }
            let ids = &ids[places[i].clone()];
            match hole.key {
                Some(key) if key >= WIDE => self.cache.insert_long(&text[hole.bytes.clone()], ids),
                Some(key) if self.cache.find(key) == NOWHERE => self.cache.insert(key, ids),
                _ => {}
            }
        }
        (self.holes.open, self.holes.ids, self.holes.places) = (holes, ids, places);
        Ok(())
    }

    /// Appends the ids of a piece that is no token, part by part; nothing when it is its only part.
    fn merge_parts(&mut self, piece: Range<usize>, ids: &mut Vec<u32>) -> Result<()> {
        let Self { vocab, text, control, .. } = *self;
        let (scratch, mut merged, mut end) = (&mut *self.scratch, Vec::new(), Ok(()));
        let Holes { ready, row, .. } = &mut *self.holes;
        let mut out = Out::new(ready);
        let is_done = Parts::new(vocab, self.level, text, piece.clone(), row).chars(
            &[piece.end],
            &mut out,
            |bytes, is_piece, out| {
                if !is_piece {
                    merged.clear();
                    end = vocab.merge_piece(&text[bytes], scratch, control, &mut merged);
                    out.add(&merged);
                }
                end.is_ok()
            },
        );
        debug_assert!(is_done || end.is_err(), "there is room for all ids of a short piece");
        ids.extend_from_slice(&out.room[..out.n]);
        end
    }
}
