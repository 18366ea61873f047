//! The parts of pieces, one after the other.

use std::ops::Range;

use super::chars::{char_at, middle_code, wide_code};
use super::{Borders, CHAR_IDS, N_CHARS, SPACED, UNKNOWN};
use crate::encode::{Id, Out, READY};

impl Borders {
    /// The parts of pieces that stand in a row in `text`, the first of them here.
    pub(crate) fn parts<'a>(&'a self, text: &'a [u8], first: Range<usize>) -> Parts<'a> {
        let start = first.start;
        let (unit, len) = unit(text, start, Some(&first.end));
        Parts { borders: self, text, n_pieces: 0, first: start, start, at: start + len, unit, is_single: true }
    }
}

/// See [`Borders::parts`].
#[derive(Debug)]
pub(crate) struct Parts<'a> {
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
}

impl Parts<'_> {
    /// Gives out the ids of characters that are parts of the pieces that end at `ends`, and calls `part` with all other
    /// parts: where they are in the text, and whether they are a whole piece. Ends when `part` returns false, when there is
    /// no room, or, with true, behind the last piece.
    #[inline]
    pub(crate) fn chars<I: Id>(
        &mut self,
        ends: &[usize],
        out: &mut Out<I>,
        mut part: impl FnMut(Range<usize>, bool, &mut Out<I>) -> bool,
    ) -> bool {
        let (borders, text) = (self.borders, self.text);
        loop {
            let mut is_border = self.plain(ends, out);
            let Some(&end) = ends.get(self.n_pieces) else { return true };
            let is_end = self.at >= end;
            let (next, len) = unit(text, self.at, if is_end { ends.get(self.n_pieces + 1) } else { None });
            let char = borders.units[self.unit];
            let shared = char.shared(borders.units[next]);
            is_border = is_border || is_end || shared == 0 || !borders.spans(text, self.at, shared);
            let mut goes_on = true;
            if is_border {
                if self.is_single && out.is_full() {
                    return false;
                }
                if self.is_single && char.n_ids() > 0 {
                    out.add_char(char.ids(), char.n_ids());
                } else {
                    let from = self.n_pieces.checked_sub(1).map_or(self.first, |before| ends[before]);
                    goes_on = part(self.start..self.at, is_end && self.start == from, out);
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

    /// Goes on for as long as characters have two or three bytes, their ids are known, and there is room: nearly all of the
    /// time in scripts that are written without spaces, and in others where a vocabulary is not made for them. Few numbers are
    /// under way, so that they stay in registers. Ends, with true, where a part of several characters does.
    #[inline(never)]
    fn plain<I: Id>(&mut self, ends: &[usize], out: &mut Out<I>) -> bool {
        let (borders, text, room) = (self.borders, self.text, &mut out.room[..READY + CHAR_IDS]);
        let (mut n_pieces, mut start, mut at, mut n) = (self.n_pieces, self.start, self.at, out.n);
        let (mut this, mut is_single) = (self.unit as u32, self.is_single);
        let (mut char, mut is_part) = (borders.units[self.unit], false);
        while let Some(&end) = ends.get(n_pieces)
            && let Some(&[a, b, c]) = text.get(at..).and_then(<[u8]>::first_chunk)
            && let Some(room) = room.get_mut(n..n + CHAR_IDS)
        {
            let (next, len) = match (a >> 4, a >> 5) {
                (0xE, _) => (wide_code(a, b, c), 3),
                (_, 6) => (middle_code(a, b), 2),
                _ => break,
            };
            let next_char = borders.units[next as usize];
            let is_end = at == end;
            let shared = if is_end { 0 } else { char.shared(next_char) };
            if shared != 0 {
                // Others than characters with an entry of their own are rare.
                if this >= SPACED as u32 {
                    break;
                }
                if borders.span(this, next, shared) {
                    is_single = false;
                    (this, char, at) = (next, next_char, at + len);
                    continue;
                }
            }
            if !is_single || char.n_ids() == 0 {
                is_part = !is_single;
                break;
            }
            room.copy_from_slice(&I::of_char(char.ids()));
            n += char.n_ids();
            n_pieces += usize::from(is_end);
            (start, this, char, at) = (at, next, next_char, at + len);
        }
        (self.n_pieces, self.start, self.at, self.unit, out.n) = (n_pieces, start, at, this as usize, n);
        self.is_single = is_single;
        is_part
    }
}

/// The entry and the length of the character at `at`. Where a piece starts, whose end is given, a space goes with the
/// character after it.
#[inline]
fn unit(text: &[u8], at: usize, end: Option<&usize>) -> (usize, usize) {
    match text.get(at..).and_then(<[u8]>::first_chunk) {
        Some(&[a, b, c]) if a >> 4 == 0xE => (wide_code(a, b, c) as usize, 3),
        Some(&[a, b, _]) if a >> 5 == 6 => (middle_code(a, b) as usize, 2),
        _ => rare_unit(text, at, end),
    }
}

#[inline(never)]
fn rare_unit(text: &[u8], at: usize, end: Option<&usize>) -> (usize, usize) {
    if let Some(&[b' ', a, b]) = text.get(at..).and_then(<[u8]>::first_chunk)
        && a >> 5 == 6
        && end.is_some_and(|&end| at + 3 <= end)
    {
        return (SPACED + middle_code(a, b) as usize, 3);
    }
    let (code, len) = char_at(text, at);
    (if (code as usize) < N_CHARS { code as usize } else { UNKNOWN }, len)
}
