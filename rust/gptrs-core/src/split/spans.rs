//! The walk over a text: windows of valid UTF-8, invalid sequences between them, and the pieces of each.

use super::mask::{self, Borders, Ends, Walk};
use super::traits::{Traits, traits_after, traits_before};
use crate::error::Result;
use crate::simd::Level;

/// Text that is checked and scanned at once: it stays in the second cache from the one to the other.
const WINDOW: usize = 1 << 17;

/// What a window without a cut near its end grows by, as a factor.
const GROWTH: usize = 4;

/// Bytes at the end of a window in which a cut is looked for, at most.
const LOOKED_AT: usize = 1 << 16;

/// The functions of a named pattern.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scanner {
    fill: fn(Level, &mut Walk, &[u8], &mut Ends),
    piece_end: fn(&[u8], usize) -> usize,
    is_cut: fn(Traits, Traits, u8) -> bool,
}

/// Pieces that follow each other.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Run<'e> {
    /// From a start to an end.
    One(usize, usize),
    /// An invalid sequence at the front, by its length.
    Invalid(usize),
    /// The start of the first and the ends of all.
    Many(usize, &'e [u32]),
}

/// Text at the front that is scanned as a text of its own, and the invalid sequence after it, in bytes.
struct Window {
    valid: usize,
    invalid: usize,
}

impl Scanner {
    pub(super) fn of<B: Borders>() -> Self {
        Self { fill: mask::fill::<B>, piece_end: B::piece_end, is_cut: B::is_cut }
    }

    /// See [`super::Splitter::for_each_span`].
    #[inline]
    pub(super) fn for_each_span<'t, F>(&self, level: Level, text: &'t [u8], mut f: F) -> Result<()>
    where
        F: FnMut(&'t [u8], usize, usize) -> Result<()>,
    {
        self.for_each_run(level, text, |part, run| match run {
            Run::One(start, end) => f(part, start, end),
            Run::Invalid(len) => f(part, 0, len),
            Run::Many(mut start, ends) => {
                for &end in ends {
                    f(part, start, end as usize)?;
                    start = end as usize;
                }
                Ok(())
            }
        })
    }

    /// See [`super::Splitter::for_each_run`].
    #[inline]
    pub(super) fn for_each_run<'t, F>(&self, level: Level, text: &'t [u8], mut f: F) -> Result<()>
    where
        F: FnMut(&'t [u8], Run<'_>) -> Result<()>,
    {
        let mut rest = text;
        while !rest.is_empty() {
            let Window { valid, invalid } = self.window(level, rest);
            let (part, after) = rest.split_at(valid);
            if valid >= mask::SHORT && u32::try_from(valid).is_ok() {
                let (mut walk, mut ends, mut at) = (Walk::default(), Ends::new(), 0);
                while at < valid {
                    (self.fill)(level, &mut walk, part, &mut ends);
                    f(part, Run::Many(at, ends.as_slice()))?;
                    at = ends.as_slice().last().map_or(valid, |&end| end as usize);
                }
            } else {
                self.whole(part, &mut f)?;
            }
            if invalid > 0 {
                f(after, Run::Invalid(invalid))?;
            }
            rest = &after[invalid..];
        }
        Ok(())
    }

    /// The pieces of a text too short for blocks, or whose ends are too far for 32 bits, there being no cut.
    #[inline]
    fn whole<'t, F>(&self, text: &'t [u8], f: &mut F) -> Result<()>
    where
        F: FnMut(&'t [u8], Run<'_>) -> Result<()>,
    {
        let mut at = 0;
        while at < text.len() {
            let end = (self.piece_end)(text, at);
            f(text, Run::One(at, end))?;
            at = end;
        }
        Ok(())
    }

    /// The next window of `text`, which is not empty.
    fn window(&self, level: Level, text: &[u8]) -> Window {
        let (mut size, mut checked) = (WINDOW, 0);
        loop {
            let end = border(text, size);
            // What is before a border is valid by itself, so nothing is checked again when the window grows.
            while checked < end {
                let part = &text[checked..border(&text[..end], checked + WINDOW)];
                if !mask::is_utf8(level, part) {
                    let mut chunks = part.utf8_chunks();
                    if let Some(chunk) = chunks.next() {
                        return Window { valid: checked + chunk.valid().len(), invalid: chunk.invalid().len() };
                    }
                }
                checked += part.len();
            }
            let cut = if end == text.len() { end } else { self.safe_cut(text, end - (end / 64).min(LOOKED_AT), end) };
            if cut < end || end == text.len() {
                return Window { valid: cut, invalid: 0 };
            }
            size = size.saturating_mul(GROWTH);
        }
    }

    /// The first place in `at..end` where `text` can be cut, else `end`.
    fn safe_cut(&self, text: &[u8], at: usize, end: usize) -> usize {
        (at..end).find(|&cut| self.is_safe(text, cut)).unwrap_or(end)
    }

    /// Whether `text` can be cut there.
    pub(super) fn is_safe(&self, text: &[u8], cut: usize) -> bool {
        if cut == 0 {
            return true;
        }
        match traits_before(text, cut) {
            Some(left) => traits_after(text, cut).is_some_and(|right| (self.is_cut)(left, right, text[cut])),
            // Not the end of a character. Before ASCII it is not the inside of one either, so an invalid piece ends here.
            None => text[cut].is_ascii(),
        }
    }
}

/// The largest place up to `size` in `text` that is not inside a valid character.
fn border(text: &[u8], size: usize) -> usize {
    if text.len() <= size {
        return text.len();
    }
    // The inside of a character is three bytes at most: after four such bytes none goes on.
    (0..4).map(|back| size - back).find(|&end| text[end] & 0xC0 != 0x80).unwrap_or(size)
}
