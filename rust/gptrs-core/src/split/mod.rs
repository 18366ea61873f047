//! Text to pieces: the borders that no token crosses.
//!
//! The named patterns have a scanner each, written by hand and tested equal to their regular expression; any other
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
mod deepseek;
mod gpt2;
mod named;
mod o200k;
mod traits;

use cl100k::{Cl100k, Llama3, Nanochat, Qwen2};
use custom::Custom;
use deepseek::DeepSeekV3;
use gpt2::Gpt2;
use named::Known;
use o200k::O200k;
use traits::Traits;

use crate::error::{Error, Result};

/// A pattern with a scanner of its own.
trait Scheme {
    /// The end of the piece that starts at `at`; `text` is valid UTF-8 and `at` a character border before its end.
    fn piece_end(text: &[u8], at: usize) -> usize;

    /// Whether text may be cut between characters with these traits, wherever they stand, without changing a piece;
    /// `right_byte` is the first byte on the right.
    fn is_cut(left: Traits, right: Traits, right_byte: u8) -> bool;
}

/// Cuts text into pieces. A clone has its own working memory: give each thread one.
#[derive(Debug, Clone)]
pub struct Splitter {
    kind: Kind,
}

#[derive(Debug, Clone)]
enum Kind {
    Gpt2,
    Cl100k,
    O200k,
    Llama3,
    Qwen2,
    DeepSeekV3,
    Nanochat,
    Custom(Custom),
}

/// The names of the patterns that have a scanner of their own.
pub const NAMES: [&str; 7] = ["gpt2", "cl100k_base", "o200k_base", "llama3", "qwen2", "deepseek-v3", "nanochat"];

impl Splitter {
    /// The splitter for a pattern's name, or for a regular expression in fancy-regex's syntax.
    ///
    /// A name is one of [`NAMES`], or what another vocabulary calls the same pattern: `r50k_base`, `p50k_base` (gpt2),
    /// `cl100k`, `o200k`, `o200k_harmony`, `llama-3`, `olmo2`, `olmo3` (llama3), `qwen2.5`, `qwen3`, `deepseek_v3`,
    /// `deepseek-r1`. The known spellings of the named patterns, tiktoken's and Hugging Face's, give the named splitter,
    /// so a pattern read back from a file is as fast as its name. Fails with [`Error::Pattern`](crate::Error::Pattern)
    /// when the expression does not compile.
    pub fn new(pattern: &str) -> Result<Self> {
        let kind = match Known::find(pattern) {
            Some(known) => known.kind.clone(),
            None => Kind::Custom(Custom::new(pattern)?),
        };
        Ok(Self { kind })
    }

    /// The splitter for expressions applied one after the other, each inside the pieces that the one before left: Hugging
    /// Face's `Sequence` of `Split`s that isolate.
    ///
    /// One expression is what [`Splitter::new`] takes. Several must be a known pattern's, as
    /// [`Splitter::onig_sequence`] gives them; fails with [`Error::Pattern`](crate::Error::Pattern) otherwise.
    ///
    /// ```
    /// # use gptrs_core::split::Splitter;
    /// let sequence = Splitter::new("deepseek-v3")?.onig_sequence();
    /// assert_eq!(sequence.len(), 3);
    /// assert_eq!(Splitter::from_sequence(&sequence)?.pattern(), "deepseek-v3");
    /// # Ok::<(), gptrs_core::Error>(())
    /// ```
    pub fn from_sequence<S: AsRef<str>>(regexes: &[S]) -> Result<Self> {
        let regexes: Vec<_> = regexes.iter().map(AsRef::as_ref).collect();
        if let [only] = regexes[..] {
            return Self::new(only);
        }
        let unknown = || Error::Pattern {
            pattern: regexes.join(" then "),
            reason: "expected one expression, or the three of deepseek-v3, got another sequence".to_owned(),
        };
        Ok(Self { kind: Known::find_sequence(&regexes).ok_or_else(unknown)?.kind.clone() })
    }

    /// The pattern's name, or its regular expression when it has none.
    pub fn pattern(&self) -> &str {
        match &self.kind {
            Kind::Custom(custom) => custom.regex(),
            kind => Known::of(kind).name(),
        }
    }

    /// The regular expression, as tiktoken spells it. For deepseek-v3, whose authors apply three, one that makes the
    /// same pieces.
    pub fn regex(&self) -> &str {
        match &self.kind {
            Kind::Custom(custom) => custom.regex(),
            kind => Known::of(kind).regex,
        }
    }

    /// One regular expression that makes the same pieces in Oniguruma, the engine of Hugging Face tokenizers.
    ///
    /// A custom pattern is returned as it is; Oniguruma reads `^`, `$` and `{m,n}+` in another way.
    pub fn onig_regex(&self) -> String {
        let mut sequence = self.onig_sequence();
        if sequence.len() == 1 { sequence.remove(0) } else { self.regex().to_owned() }
    }

    /// The regular expressions for Oniguruma that Hugging Face applies one after the other: one, or deepseek-v3's three.
    pub fn onig_sequence(&self) -> Vec<String> {
        match &self.kind {
            Kind::Custom(custom) => vec![custom.regex().to_owned()],
            kind => Known::of(kind).onig.iter().map(|&regex| regex.to_owned()).collect(),
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
        match &self.kind {
            Kind::Gpt2 => for_each_part(text, f, scan::<Gpt2, F>),
            Kind::Cl100k => for_each_part(text, f, scan::<Cl100k, F>),
            Kind::O200k => for_each_part(text, f, scan::<O200k, F>),
            Kind::Llama3 => for_each_part(text, f, scan::<Llama3, F>),
            Kind::Qwen2 => for_each_part(text, f, scan::<Qwen2, F>),
            Kind::DeepSeekV3 => for_each_part(text, f, scan::<DeepSeekV3, F>),
            Kind::Nanochat => for_each_part(text, f, scan::<Nanochat, F>),
            Kind::Custom(custom) => for_each_part(text, f, |part, f| {
                custom.for_each_span(part, |start, end| f(part.as_bytes(), start, end))
            }),
        }
    }

    /// The first place at or after `at` where `text` can be cut so that the pieces of both sides are the pieces of the
    /// whole; the text's end when there is none, and always for a custom pattern.
    ///
    /// Such a place stands between two characters whose classes never share a piece, in whatever surroundings: a word
    /// and what follows it, a mark and white space (but for line breaks, only in `gpt2`), or an invalid byte and ASCII.
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
            Kind::O200k => O200k::is_cut,
            Kind::Llama3 => Llama3::is_cut,
            Kind::Qwen2 => Qwen2::is_cut,
            Kind::DeepSeekV3 => DeepSeekV3::is_cut,
            Kind::Nanochat => Nanochat::is_cut,
            Kind::Custom(_) => return text.len(),
        };
        (at..text.len()).find(|&cut| is_safe(text, cut, is_cut)).unwrap_or(text.len())
    }

    /// Whether the pattern runs in the regex engine, so that [`Splitter::safe_cut`] knows no place.
    pub(crate) fn is_custom(&self) -> bool {
        matches!(self.kind, Kind::Custom(_))
    }

    /// Calls `f` with the start and end of the pieces of a custom pattern that begin in `range`, when one begins at its
    /// start, and returns the end of the last; `None` when the pieces do not follow from the place alone.
    pub(crate) fn for_each_custom_span<F>(&self, text: &str, range: std::ops::Range<usize>, f: F) -> Result<Option<usize>>
    where
        F: FnMut(usize, usize) -> Result<()>,
    {
        match &self.kind {
            Kind::Custom(custom) => custom.for_each_span_in(text, range, f),
            _ => Ok(None),
        }
    }
}

fn is_safe(text: &[u8], cut: usize, is_cut: impl Fn(Traits, Traits, u8) -> bool) -> bool {
    if cut == 0 {
        return true;
    }
    match traits::traits_before(text, cut) {
        Some(left) => traits::traits_after(text, cut).is_some_and(|right| is_cut(left, right, text[cut])),
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

#[inline(always)]
fn scan<'t, S: Scheme, F>(text: &'t str, f: &mut F) -> Result<()>
where
    F: FnMut(&'t [u8], usize, usize) -> Result<()>,
{
    let text = text.as_bytes();
    let mut at = 0;
    while at < text.len() {
        let end = S::piece_end(text, at);
        f(text, at, end)?;
        at = end;
    }
    Ok(())
}
