//! A long piece in windows of a bounded size, each encoded alone.
//!
//! This is exact: a span between two borders of an encoding encodes to the same tokens alone, and tokens of which each two
//! neighbours encode to themselves are the encoding of all. So two windows that overlap, and have a token there that is
//! the same, give one encoding: of the first what stands before this token, of the second what stands after it.
//!
//! Windows at fixed places do not need each other's results, so four of them are merged in turn; most time goes by waiting
//! for the table of pairs. Where two of them have no token in common, windows come one after the other: the next begins at
//! a token of the last one, and when it has this token too, everything before it stays. When it has not, or tokens are too
//! long for the window, the window grows, up to the whole piece.

use super::{Bits, CHECK_EVERY, Merges, SHORT, Scan, Scratch};
use crate::control::Control;
use crate::error::Result;
use crate::simd::prefetch;

/// Bytes of a window after the token that must return: tokens nearer to the end often change with what follows.
const MARGIN: usize = 16;

/// Bytes that two windows at fixed places share.
const OVERLAP: usize = 12;

/// How far ahead bytes are asked for: a piece too long for the caches is read once more here.
const AHEAD: usize = 1 << 11;

/// From one window at a fixed place to the next.
const STRIDE: usize = SHORT - OVERLAP;

/// A place in a piece where a window begins.
#[derive(Debug, Clone, Copy)]
struct Join {
    at: usize,
    /// Length of the token that must stand there.
    expected: Option<usize>,
    /// Ids of what stands before it, and before the piece.
    n_out: usize,
}

impl Merges<'_> {
    /// Encodes a piece longer than a scan.
    pub(super) fn windows(
        self,
        piece: &[u8],
        scratch: &mut Scratch,
        control: &Control,
        out: &mut Vec<u32>,
    ) -> Result<()> {
        let first = Join { at: 0, expected: None, n_out: out.len() };
        let (mut last, mut this) = (first, first);
        let mut n_windows = 0;
        let mut known: &[u8] = &[];
        let mut size = SHORT;
        // Windows one after the other before fixed places are tried again: more each time that this is in vain.
        let (mut patience, mut wait) = (1, 0);
        loop {
            if wait == 0 && size == SHORT && this.at + 4 * SHORT <= piece.len() {
                let at = this.at;
                self.strides(piece, (&mut last, &mut this), control, out)?;
                patience = if this.at - at > STRIDE * patience { 1 } else { 2 * patience };
                wait = patience;
            }
            wait = usize::saturating_sub(wait, 1);
            n_windows += 1;
            if n_windows % CHECK_EVERY == 0 {
                control.check()?;
            }
            prefetch(piece, this.at + AHEAD);
            let end = piece.len().min(this.at + size);
            let window = &piece[this.at..end];
            if window != known {
                self.window(window, scratch, control)?;
                known = window;
            }
            let tokens = &scratch.tokens;
            let end_of = |i: usize| tokens.get(i + 1).map_or(window.len(), |&(_, start)| start as usize);
            if this.expected.is_some_and(|expected| expected != end_of(0)) {
                // The last window again, larger; all again when that had been done.
                this = if last.at < this.at { last } else { first };
                (last, size) = (first, 2 * size);
                out.truncate(this.n_out);
                continue;
            }
            if end == piece.len() {
                out.extend(tokens.iter().map(|&(id, _)| id));
                return Ok(());
            }
            let join = (1..tokens.len()).rev().find(|&i| end_of(i) + MARGIN <= window.len());
            let Some(join) = join else {
                size *= 2;
                continue;
            };
            let start = tokens[join].1 as usize;
            last = this;
            this = Join { at: this.at + start, expected: Some(end_of(join) - start), n_out: 0 };
            out.extend(tokens[..join].iter().map(|&(id, _)| id));
            this.n_out = out.len();
        }
    }

    /// Goes on by windows at fixed places for as long as they join.
    fn strides(
        self,
        piece: &[u8],
        (last, this): (&mut Join, &mut Join),
        control: &Control,
        out: &mut Vec<u32>,
    ) -> Result<()> {
        let (mut at, expected) = (this.at, this.expected);
        let mut before: Option<Placed> = None;
        while let Some(bytes) = piece.get(at..at + 3 * STRIDE + SHORT) {
            control.check()?;
            let windows = [0, 1, 2, 3].map(|i| &bytes[i * STRIDE..i * STRIDE + SHORT]);
            for scan in self.scan_four(windows) {
                let from = match &before {
                    None if expected.is_some_and(|expected| expected != end_of(&scan, 0)) => return Ok(()),
                    None => 0,
                    Some(before) => {
                        let Some((start, end)) = common(&before.scan, &scan) else { return Ok(()) };
                        out.extend(before.ids(start));
                        let length = Some(end - start);
                        *last = Join { at: before.at + start, expected: length, n_out: out.len() };
                        out.push(before.scan.ids[start]);
                        let from = end - STRIDE;
                        let expected = Some(end_of(&scan, from) - from);
                        *this = Join { at: at + from, expected, n_out: out.len() };
                        from
                    }
                };
                before = Some(Placed { scan, at, from });
                at += STRIDE;
            }
        }
        Ok(())
    }
}

/// A window at a fixed place.
struct Placed {
    scan: Scan<SHORT>,
    at: usize,
    /// What stands before is given out.
    from: usize,
}

impl Placed {
    /// The ids from there up to `end`.
    fn ids(&self, end: usize) -> impl Iterator<Item = u32> {
        Bits(self.scan.alive & (u64::MAX << self.from) & !(u64::MAX << end)).map(|start| self.scan.ids[start])
    }
}

/// Where the token at `start` ends.
fn end_of(scan: &Scan<SHORT>, start: usize) -> usize {
    (scan.alive & (u64::MAX << start << 1)).trailing_zeros() as usize
}

/// The first token that two windows share, [`STRIDE`] bytes apart: start and end in the first one.
fn common(first: &Scan<SHORT>, second: &Scan<SHORT>) -> Option<(usize, usize)> {
    // The end of the first window ends a token as well.
    let (left, right) = (first.alive >> STRIDE | 1 << OVERLAP, second.alive);
    let (both, either) = (left & right, left | right);
    Bits(both & !(u64::MAX << OVERLAP)).find_map(|start| {
        let end = (either & (u64::MAX << start << 1)).trailing_zeros() as usize;
        (end <= OVERLAP && both >> end & 1 == 1).then_some((STRIDE + start, STRIDE + end))
    })
}
