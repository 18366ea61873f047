//! The parts of pieces, one after the other.

use std::ops::Range;

use super::chars::{char_at, middle_code, wide_code};
use super::rows::Row;
use super::{AFTER_SPACE, Borders, CHAR_IDS, COUNT, N_CHARS, SOLID, SPACED, UNKNOWN, is_whole, shared};
use crate::encode::{Id, Out, READY};
use crate::simd::Level;
use crate::vocab::Vocab;

/// Bytes of pieces from which on characters are worth a look at many together.
const LEAST_ROW: usize = 24;

/// Characters of three bytes one by one before the next such look.
const BEFORE_ROW: u32 = 4;

/// No character.
const NO_CHAR: u32 = u32::MAX;

impl<'a> Parts<'a> {
    /// The parts of pieces that stand in a row in `text`, the first of them here.
    pub(crate) fn new(vocab: &'a Vocab, level: Level, text: &'a [u8], first: Range<usize>, row: &'a mut Row) -> Self {
        let (borders, start) = (vocab.borders(), first.start);
        let (unit, len) = unit(borders, text, start, first.end, true);
        row.forget();
        let has_rows = level == Level::Avx512;
        let (n_pieces, first, at) = (0, start, start + len);
        Self { vocab, borders, text, n_pieces, first, start, unit, at, is_single: true, has_rows, row }
    }
}

/// See [`Parts::new`].
#[derive(Debug)]
pub(crate) struct Parts<'a> {
    vocab: &'a Vocab,
    borders: &'a Borders,
    text: &'a [u8],
    /// How many pieces are done.
    n_pieces: usize,
    /// Where the first piece starts, and the next part.
    first: usize,
    start: usize,
    /// The last character of this part so far, which ends at `at`, and whether it is the only one.
    unit: usize,
    at: usize,
    is_single: bool,
    /// Whether characters are looked at many together, and those from `start` on, unless they are done.
    has_rows: bool,
    row: &'a mut Row,
}

impl Parts<'_> {
    /// Gives out the ids of characters that are parts of the pieces that end at `ends`, and those of pairs that merge as
    /// wholes, and calls `part` with all other parts: where they are in the text, and whether they are a whole piece. Ends
    /// when `part` returns false, when there is no room, or, with true, behind the last piece.
    #[inline]
    pub(crate) fn chars<I: Id>(
        &mut self,
        ends: &[usize],
        out: &mut Out<I>,
        mut part: impl FnMut(Range<usize>, bool, &mut Out<I>) -> bool,
    ) -> bool {
        let (borders, text) = (self.borders, self.text);
        loop {
            #[cfg(target_arch = "x86_64")]
            if self.has_rows && (!self.row.is_done() || ends.last().is_some_and(|&end| self.start + LEAST_ROW < end)) {
                // SAFETY: this processor was found to have the level.
                if let Some(is_done) = unsafe { self.rows(ends, out, &mut part) } {
                    return is_done;
                }
            }
            let Some(mut is_border) = self.plain(ends, out) else { continue };
            let Some(&end) = ends.get(self.n_pieces) else { return true };
            let is_end = self.at >= end;
            let next_end = if is_end { ends.get(self.n_pieces + 1).copied() } else { Some(end) };
            let (next, len) = unit(borders, text, self.at, next_end.unwrap_or(end), is_end);
            let char = borders.units[self.unit];
            let shared = char.shared(borders.units[next]);
            is_border = is_border || is_end || shared == 0 || !borders.spans(text, self.at, shared);
            let mut goes_on = true;
            if is_border {
                if self.is_single && out.is_full() {
                    return false;
                }
                if self.is_single && char.n_ids() > 0 {
                    out.add_char(char.ids(), char.n_ids(), self.vocab.is_narrow());
                } else {
                    let is_piece = is_end && self.start == self.piece_start(self.n_pieces, ends);
                    goes_on = part(self.start..self.at, is_piece, out);
                }
                self.n_pieces += usize::from(is_end);
                self.start = self.at;
            }
            self.is_single = is_border;
            (self.unit, self.at) = (next, self.at + len);
            if !goes_on {
                return self.n_pieces == ends.len();
            }
        }
    }

    /// Where the piece behind so many others starts.
    #[inline]
    fn piece_start(&self, n_pieces: usize, ends: &[usize]) -> usize {
        n_pieces.checked_sub(1).map_or(self.first, |before| ends[before])
    }

    /// Goes on for as long as characters have two or three bytes, their ids are known, and there is room: nearly all of the
    /// time in scripts that are written without spaces, and in others where a vocabulary is not made for them. Few numbers are
    /// under way, so that they stay in registers. Ends, with true, where a part of several characters does, and with `None`
    /// where a row may begin.
    ///
    /// But for most parts of two: where both characters are tokens, and no token spans the border between them but with
    /// both whole, the merges of their bytes are those inside of each and then at most one, of both.
    #[inline(never)]
    fn plain<I: Id>(&mut self, ends: &[usize], out: &mut Out<I>) -> Option<bool> {
        if self.borders.has_many_pairs {
            self.plain_with::<I, true>(ends, out)
        } else {
            self.plain_with::<I, false>(ends, out)
        }
    }

    #[allow(clippy::inline_always, reason = "each caller compiles its own")]
    #[inline(always)]
    fn plain_with<I: Id, const HAS_PAIRS: bool>(&mut self, ends: &[usize], out: &mut Out<I>) -> Option<bool> {
        let (borders, text, room) = (self.borders, self.text, &mut out.room[..READY + CHAR_IDS]);
        let (units, pairs, shift) = (&*borders.units, borders.pairs.as_slice(), borders.shift);
        let ignores_merges = self.vocab.ignore_merges();
        let (is_narrow, duos) = (self.vocab.is_narrow(), &borders.duos);
        let (mut n_pieces, mut start, mut at, mut n) = (self.n_pieces, self.start, self.at, out.n);
        let (mut this, mut is_single, mut is_part) = (self.unit, self.is_single, false);
        let mut meta = units[this].meta;
        // Rows begin before that, and not at once.
        let row_end = if self.has_rows { ends.last().map_or(0, |&end| end.saturating_sub(LEAST_ROW)) } else { 0 };
        let (mut n_wide, mut is_row) = (0, false);
        // The character before this one, where both may be a pair.
        let mut before = NO_CHAR;
        while let Some(&end) = ends.get(n_pieces)
            && let Some(&[a, b, c]) = text.get(at..).and_then(<[u8]>::first_chunk)
            && let Some(room) = room.get_mut(n..n + CHAR_IDS)
        {
            let (next, len) = match (a >> 4, a >> 5) {
                (0xE, _) => {
                    n_wide += 1;
                    if n_wide > BEFORE_ROW && is_single && start < row_end {
                        is_row = true;
                        break;
                    }
                    (wide_code(a, b, c) as usize, 3)
                }
                (_, 6) => (middle_code(a, b) as usize, 2),
                _ => break,
            };
            let next_meta = units[next].meta;
            let is_end = at == end;
            let shared = if is_end { 0 } else { shared(meta, next_meta) };
            // With many pairs one branch for all that is no border at once, since each alone is hard to foresee.
            let is_other = this >= SPACED;
            let may_span = if HAS_PAIRS {
                let whole = is_whole(pairs, shift, this as u32, next as u32) & shared;
                whole | shared >> 1 | (u32::from(is_other) * shared)
            } else {
                shared
            };
            if may_span != 0 {
                // Others than characters with an entry of their own are rare.
                if is_other {
                    break;
                }
                if borders.span(this as u32, next as u32, shared) {
                    before = NO_CHAR;
                    if HAS_PAIRS && is_single && meta & COUNT == 1 && shared == 1 {
                        before = this as u32;
                        duos.prefetch(before, next as u32);
                    }
                    is_single = false;
                    (this, meta, at) = (next, next_meta, at + len);
                    continue;
                }
            }
            if is_single {
                if meta & COUNT == 0 {
                    break;
                }
                room.copy_from_slice(&I::of_char(units[this].ids(), is_narrow));
                n += (meta & COUNT) as usize;
            } else if HAS_PAIRS
                && before != NO_CHAR
                && meta & COUNT == 1
                && !(ignores_merges && is_end && start == self.piece_start(n_pieces, ends))
            {
                let (ids, n_ids) = borders.two(self.vocab, before, this as u32);
                room[..2].copy_from_slice(&ids.map(I::narrow));
                n += n_ids;
                is_single = true;
            } else {
                is_part = true;
                break;
            }
            n_pieces += usize::from(is_end);
            (start, this, meta, at) = (at, next, next_meta, at + len);
        }
        (self.n_pieces, self.start, self.at, self.unit, out.n) = (n_pieces, start, at, this, n);
        self.is_single = is_single;
        if is_row { None } else { Some(is_part) }
    }

    /// [`Parts::chars`] for as long as there are rows: what it returns, or `None` where characters go on one by one.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx2,bmi1,bmi2,lzcnt,popcnt")]
    fn rows<I: Id>(
        &mut self,
        ends: &[usize],
        out: &mut Out<I>,
        part: &mut impl FnMut(Range<usize>, bool, &mut Out<I>) -> bool,
    ) -> Option<bool> {
        let is_narrow = self.vocab.is_narrow();
        loop {
            if self.row.is_done() {
                let is_long = ends.last().is_some_and(|&end| self.start + LEAST_ROW < end);
                let left = ends.get(self.n_pieces..).unwrap_or_default();
                let is_first = self.start == self.piece_start(self.n_pieces, ends);
                if !self.is_single
                    || !is_long
                    || !self.row.look(self.vocab, self.borders, self.text, self.start, is_first, left)
                {
                    return None;
                }
            }
            if out.is_full() {
                return Some(false);
            }
            let next = self.row.give_out(self.borders, is_narrow, out);
            self.start = next.start;
            self.n_pieces += next.n_pieces;
            let mut goes_on = true;
            if let Some((bytes, is_end)) = next.part {
                let is_piece = is_end && bytes.start == self.piece_start(self.n_pieces, ends);
                self.start = bytes.end;
                self.n_pieces += usize::from(is_end);
                goes_on = part(bytes, is_piece, out);
            }
            if self.row.is_done() {
                let end = ends.get(self.n_pieces).copied().unwrap_or(self.start);
                let is_first = self.start == self.piece_start(self.n_pieces, ends);
                let (unit, len) = unit(self.borders, self.text, self.start, end, is_first);
                (self.unit, self.at, self.is_single) = (unit, self.start + len, true);
            }
            if !goes_on {
                return Some(self.n_pieces == ends.len());
            }
        }
    }
}

/// The entry and the length of the character at `at`, in a piece that ends at `end`. Where the piece starts, a space goes
/// with a character of two bytes after it; elsewhere with one that it may keep from being solid.
#[inline]
pub(super) fn unit(borders: &Borders, text: &[u8], at: usize, end: usize, is_first: bool) -> (usize, usize) {
    match text.get(at..).and_then(<[u8]>::first_chunk) {
        Some(&[a, b, c]) if a >> 4 == 0xE => (wide_code(a, b, c) as usize, 3),
        Some(&[a, b, _]) if a >> 5 == 6 => (middle_code(a, b) as usize, 2),
        Some(&[b' ', a, b]) if is_first && a >> 5 == 6 && at + 1 < end => (SPACED + middle_code(a, b) as usize, 3),
        _ => rare_unit(borders, text, at, end),
    }
}

#[inline(never)]
fn rare_unit(borders: &Borders, text: &[u8], at: usize, end: usize) -> (usize, usize) {
    let (code, len) = char_at(text, at);
    if code == u32::from(b' ') && at + 1 < end {
        let (after, n_after) = char_at(text, at + 1);
        let is_solid =
            (after as usize) < N_CHARS && borders.units[after as usize].meta & (SOLID | AFTER_SPACE) == SOLID;
        if is_solid {
            return (UNKNOWN, 1 + n_after);
        }
    }
    (if (code as usize) < N_CHARS { code as usize } else { UNKNOWN }, len)
}
