//! Text to pieces: the borders that no token crosses.
//!
//! The two named patterns have a scanner each, written by hand and tested equal to their regular expression; any other
//! pattern runs in a regex engine. Pieces are bytes and always join to the text they came from:
//! ```
//! use gptrs_core::split::Splitter;
//! let mut pieces = Vec::new();
//! Splitter::new("gpt2")?.for_each_piece(b"It's  2 texts", |piece| {
//!     pieces.push(piece);
//!     Ok(())
//! })?;
//! assert_eq!(pieces, [&b"It"[..], b"'s", b" ", b" 2", b" texts"]);
//! # Ok::<(), gptrs_core::Error>(())
//! ```

// A scanner is one loop: its steps and its caller's closure belong inside, and the inliner leaves them out.
#![allow(clippy::inline_always)]

mod cl100k;
mod class;
mod custom;
mod gpt2;
mod mask;

use cl100k::Cl100k;
use class::Class;
use custom::Custom;
use gpt2::Gpt2;

use crate::error::{Error, Result};
use crate::simd::Level;

/// A pattern with a scanner of its own.
trait Scheme {
    /// The end of the piece that starts at `at`; `text` is valid UTF-8 and `at` a character border before its end.
    fn piece_end(text: &[u8], at: usize) -> usize;

    /// Whether text may be cut between characters of these classes, wherever they stand, without changing a piece;
    /// `right_byte` is the first byte on the right.
    fn is_cut(left: Class, right: Class, right_byte: u8) -> bool;
}

/// Cuts text into pieces. A clone has its own working memory: give each thread one.
#[derive(Debug, Clone)]
pub struct Splitter {
    kind: Kind,
    /// One that the processor has.
    level: Level,
}

#[derive(Debug, Clone)]
enum Kind {
    Gpt2,
    Cl100k,
    Custom(Custom),
}

impl Splitter {
    /// The splitter for `"gpt2"`, `"cl100k_base"` (or `"cl100k"`), or a regular expression in fancy-regex's syntax.
    ///
    /// The known spellings of the named patterns give the named splitter, so a pattern read back from a file is as
    /// fast as its name. Fails with [`Error::Pattern`](crate::Error::Pattern) when the expression does not compile.
    pub fn new(pattern: &str) -> Result<Self> {
        let kind = match pattern {
            "gpt2" | gpt2::REGEX | gpt2::ONIG_REGEX | gpt2::OLD_REGEX => Kind::Gpt2,
            "cl100k_base" | "cl100k" | cl100k::REGEX | cl100k::ONIG_REGEX => Kind::Cl100k,
            regex => Kind::Custom(Custom::new(regex)?),
        };
        Ok(Self { kind, level: Level::detected() })
    }

    /// The same splitter with these vector instructions instead of the highest that the processor has; the pieces are
    /// the same. Fails with [`Error::Argument`] when the processor lacks them.
    pub fn with_level(self, level: Level) -> Result<Self> {
        let detected = Level::detected();
        if level > detected {
            return Err(Error::Argument(format!(
                "level {level} needs a processor that has it, and this one has {detected}"
            )));
        }
        Ok(Self { level, ..self })
    }

    /// The pattern's name, or its regular expression when it has none.
    pub fn pattern(&self) -> &str {
        match &self.kind {
            Kind::Gpt2 => "gpt2",
            Kind::Cl100k => "cl100k_base",
            Kind::Custom(custom) => custom.regex(),
        }
    }

    /// The regular expression, as tiktoken spells it.
    pub fn regex(&self) -> &str {
        match &self.kind {
            Kind::Gpt2 => gpt2::REGEX,
            Kind::Cl100k => cl100k::REGEX,
            Kind::Custom(custom) => custom.regex(),
        }
    }

    /// A regular expression that makes the same pieces in Oniguruma, the engine of Hugging Face tokenizers.
    ///
    /// A custom pattern is returned as it is; Oniguruma reads `^`, `$` and `{m,n}+` in another way.
    pub fn onig_regex(&self) -> String {
        match &self.kind {
            Kind::Gpt2 => gpt2::ONIG_REGEX.to_owned(),
            Kind::Cl100k => cl100k::ONIG_REGEX.to_owned(),
            Kind::Custom(custom) => custom.regex().to_owned(),
        }
    }

    /// Calls `f` with every piece of `text`, in order.
    ///
    /// Each stretch of valid UTF-8 is split as a text of its own; each invalid sequence (see
    /// [`slice::utf8_chunks`](https://doc.rust-lang.org/std/primitive.slice.html#method.utf8_chunks)) is one piece, and
    /// so is each gap that a custom pattern leaves. Fails with the first error of `f`, or with
    /// [`Error::Pattern`](crate::Error::Pattern) when the regex engine gives up.
    #[inline]
    pub fn for_each_piece<'t, F: FnMut(&'t [u8]) -> Result<()>>(&self, text: &'t [u8], mut f: F) -> Result<()> {
        self.for_each_span(text, |part, start, end| f(&part[start..end]))
    }

    /// As [`Splitter::for_each_piece`], with each piece as `part[start..end]`: what stands beside it can be read too.
    #[inline]
    pub fn for_each_span<'t, F>(&self, text: &'t [u8], f: F) -> Result<()>
    where
        F: FnMut(&'t [u8], usize, usize) -> Result<()>,
    {
        let (fill, piece_end): (Fill, PieceEnd) = match &self.kind {
            Kind::Gpt2 => (mask::fill::<Gpt2>, Gpt2::piece_end),
            Kind::Cl100k => (mask::fill::<Cl100k>, Cl100k::piece_end),
            Kind::Custom(custom) => {
                return for_each_part(text, f, |part, f| {
                    custom.for_each_span(part, |start, end| f(part.as_bytes(), start, end))
                });
            }
        };
        for_each_part(text, f, |part, f| {
            let mut rest = part.as_bytes();
            while !rest.is_empty() {
                let (text, right) = rest.split_at(self.window_end(rest));
                if u32::try_from(text.len()).is_ok() {
                    scan(text, |walk, ends| fill(self.level, walk, text, ends), f)?;
                } else {
                    scan_whole(text, piece_end, f)?;
                }
                rest = right;
            }
            Ok(())
        })
    }

    /// Where the part of `text` ends that is scanned at once: ends of pieces in it are 32 bits.
    fn window_end(&self, text: &[u8]) -> usize {
        const WINDOW: usize = 1 << 30;
        if text.len() <= WINDOW { text.len() } else { self.safe_cut(text, WINDOW) }
    }

    /// The first place at or after `at` where `text` can be cut so that the pieces of both sides are the pieces of the
    /// whole; the text's end when there is none, and always for a custom pattern.
    ///
    /// Such a place stands between two characters whose classes never share a piece, in whatever surroundings: a word
    /// and what follows it, a mark and white space (but not a line break in `cl100k_base`), or an invalid byte and ASCII.
    ///
    /// ```
    /// # use gptrs_core::split::Splitter;
    /// assert_eq!(Splitter::new("gpt2")?.safe_cut(b"one two", 1), 3);
    /// # Ok::<(), gptrs_core::Error>(())
    /// ```
    pub fn safe_cut(&self, text: &[u8], at: usize) -> usize {
        let is_cut = match &self.kind {
            Kind::Gpt2 => Gpt2::is_cut,
            Kind::Cl100k => Cl100k::is_cut,
            Kind::Custom(_) => return text.len(),
        };
        (at..text.len()).find(|&cut| is_safe(text, cut, is_cut)).unwrap_or(text.len())
    }
}

fn is_safe(text: &[u8], cut: usize, is_cut: impl Fn(Class, Class, u8) -> bool) -> bool {
    if cut == 0 {
        return true;
    }
    match class::class_before(text, cut) {
        Some(left) => class::class_after(text, cut).is_some_and(|right| is_cut(left, right, text[cut])),
        // Not the end of a character. Before ASCII it is not the inside of one either, so an invalid piece ends here.
        None => text[cut].is_ascii(),
    }
}

/// Calls `scan` for each stretch of valid UTF-8 and `f` for each invalid sequence, in order.
#[inline(always)]
fn for_each_part<'t, F>(text: &'t [u8], mut f: F, scan: impl Fn(&'t str, &mut F) -> Result<()>) -> Result<()>
where
    F: FnMut(&'t [u8], usize, usize) -> Result<()>,
{
    let mut rest = text;
    loop {
        if let Ok(valid) = std::str::from_utf8(rest) {
            return scan(valid, &mut f);
        }
        let Some(chunk) = rest.utf8_chunks().next() else { return Ok(()) };
        scan(chunk.valid(), &mut f)?;
        f(chunk.invalid(), 0, chunk.invalid().len())?;
        rest = &rest[chunk.valid().len() + chunk.invalid().len()..];
    }
}

type Fill = fn(Level, &mut mask::Walk, &[u8], &mut mask::Ends);
type PieceEnd = fn(&[u8], usize) -> usize;

/// Calls `f` with every piece of `text`; `fill` gives their ends, many at a time.
#[inline(always)]
fn scan<'t, F>(text: &'t [u8], fill: impl Fn(&mut mask::Walk, &mut mask::Ends), f: &mut F) -> Result<()>
where
    F: FnMut(&'t [u8], usize, usize) -> Result<()>,
{
    let (mut walk, mut ends, mut at) = (mask::Walk::default(), mask::Ends::new(), 0);
    while at < text.len() {
        fill(&mut walk, &mut ends);
        for &end in ends.as_slice() {
            f(text, at, end as usize)?;
            at = end as usize;
        }
    }
    Ok(())
}

/// As [`scan`], piece by piece, for a text of any length.
#[cold]
fn scan_whole<'t, F>(text: &'t [u8], piece_end: PieceEnd, f: &mut F) -> Result<()>
where
    F: FnMut(&'t [u8], usize, usize) -> Result<()>,
{
    let mut at = 0;
    while at < text.len() {
        let end = piece_end(text, at);
        f(text, at, end)?;
        at = end;
    }
    Ok(())
}
