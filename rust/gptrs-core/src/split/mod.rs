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

pub(crate) mod chain;
mod cl100k;
mod class;
mod custom;
mod deepseek;
mod gpt2;
mod mask;
mod named;
mod o200k;
pub(crate) mod onig;
mod runs;
mod spans;
mod traits;

use chain::Chain;
use cl100k::{Cl100k, Llama3, Nanochat, Qwen2};
use custom::Custom;
use deepseek::DeepSeekV3;
use gpt2::Gpt2;
use named::Known;
use o200k::O200k;
use runs::Runs;
pub use runs::run_pattern;
pub(crate) use spans::Run;
use spans::Scanner;
use traits::Traits;

use std::borrow::Cow;

use crate::error::{Error, Result};
use crate::normalizer::Normalizer;
use crate::simd::Level;
use crate::special::last_char;

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
    /// One that the processor has.
    level: Level,
    /// What the text goes through first; a splitter itself is given normal text.
    normalizer: Option<Normalizer>,
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
    Chain(Chain),
    Runs(Box<Runs>),
}

impl Kind {
    /// The scanner of a named pattern.
    fn scanner(&self) -> Option<Scanner> {
        Some(match self {
            Kind::Gpt2 => Scanner::of::<Gpt2>(),
            Kind::Cl100k => Scanner::of::<Cl100k>(),
            Kind::O200k => Scanner::of::<O200k>(),
            Kind::Llama3 => Scanner::of::<Llama3>(),
            Kind::Qwen2 => Scanner::of::<Qwen2>(),
            Kind::DeepSeekV3 => Scanner::of::<DeepSeekV3>(),
            Kind::Nanochat => Scanner::of::<Nanochat>(),
            Kind::Custom(_) | Kind::Chain(_) | Kind::Runs(_) => return None,
        })
    }
}

/// The names of the patterns that have a scanner of their own.
pub const NAMES: [&str; 7] = ["gpt2", "cl100k_base", "o200k_base", "llama3", "qwen2", "deepseek-v3", "nanochat"];

impl Splitter {
    /// The splitter for a pattern's name, for a regular expression in fancy-regex's syntax, or for a chain of steps as
    /// tokenizer.json has it (`{"type":"Sequence","pretokenizers":[...]}`).
    ///
    /// A name is one of [`NAMES`], or what another vocabulary calls the same pattern: `r50k_base`, `p50k_base` (gpt2),
    /// `cl100k`, `o200k`, `o200k_harmony`, `llama-3`, `olmo2`, `olmo3` (llama3), `qwen2.5`, `qwen3`, `deepseek_v3`,
    /// `deepseek-r1`. The known spellings of the named patterns, tiktoken's and Hugging Face's, give the named splitter,
    /// so a pattern read back from a file is as fast as its name. Fails with [`Error::Pattern`](crate::Error::Pattern)
    /// when the expression does not compile.
    pub fn new(pattern: &str) -> Result<Self> {
        let kind = match Known::find(pattern) {
            Some(known) => known.kind.clone(),
            None if pattern.starts_with('{') => Kind::Chain(Chain::new(pattern)?),
            None => match Runs::find(pattern) {
                Some(runs) => Kind::Runs(Box::new(runs)),
                None => Kind::Custom(Custom::new(pattern)?),
            },
        };
        Ok(Self::of(kind))
    }

    /// [`Splitter::new`] for what somebody typed: what looks like a name and is none is refused, since the expression
    /// that it is would cut nothing but that one word out of the text. Files keep such expressions.
    ///
    /// ```
    /// # use gptrs_core::split::Splitter;
    /// assert_eq!(Splitter::asked_for("cl100k")?.pattern(), "cl100k_base");
    /// assert!(Splitter::asked_for("gpt4").is_err() && Splitter::new("gpt4").is_ok());
    /// # Ok::<(), gptrs_core::Error>(())
    /// ```
    pub fn asked_for(pattern: &str) -> Result<Self> {
        let is_name_like = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        let looks_named =
            pattern.len() > 1 && pattern.starts_with(char::is_alphabetic) && pattern.chars().all(is_name_like);
        if looks_named && Known::find(pattern).is_none() {
            return Err(Error::Argument(format!(
                "expected a pattern's name ({}) or a regular expression, got {pattern:?}; hint: (?:{pattern}) is the \
                 expression",
                NAMES.join(", ")
            )));
        }
        Self::new(pattern)
    }

    fn of(kind: Kind) -> Self {
        Self { kind, level: Level::detected(), normalizer: None }
    }

    /// The same splitter for text that [`encode`](crate::Tokenizer::encode) first brings into a normal form.
    #[must_use]
    pub fn with_normalizer(mut self, normalizer: Option<Normalizer>) -> Self {
        self.normalizer = normalizer;
        self
    }

    /// The normal form that text is brought into before it is split.
    pub fn normalizer(&self) -> Option<Normalizer> {
        self.normalizer
    }

    /// The normal form of `text`; `None` when it is that already.
    pub(crate) fn normalize(&self, text: &[u8]) -> Option<Vec<u8>> {
        match self.normalizer?.apply(text) {
            Cow::Owned(normal) => Some(normal),
            Cow::Borrowed(_) => None,
        }
    }

    /// The vector instructions that it uses.
    #[inline]
    pub(crate) fn level(&self) -> Level {
        self.level
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
        let kind = Known::find_sequence(&regexes).ok_or_else(unknown)?.kind.clone();
        Ok(Self::of(kind))
    }

    /// The pattern's name, or its regular expression when it has none.
    pub fn pattern(&self) -> &str {
        match &self.kind {
            Kind::Custom(custom) => custom.regex(),
            Kind::Chain(chain) => chain.pattern(),
            Kind::Runs(runs) => runs.regex(),
            kind => Known::of(kind).name(),
        }
    }

    /// The regular expression, as tiktoken spells it. For deepseek-v3, whose authors apply three, one that makes the
    /// same pieces.
    pub fn regex(&self) -> &str {
        match &self.kind {
            Kind::Custom(custom) => custom.regex(),
            Kind::Chain(chain) => chain.pattern(),
            Kind::Runs(runs) => runs.regex(),
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
            Kind::Chain(chain) => vec![chain.pattern().to_owned()],
            Kind::Runs(runs) => vec![runs.regex().to_owned()],
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
        match (self.kind.scanner(), &self.kind) {
            (Some(scanner), _) => scanner.for_each_span(self.level, text, f),
            (None, Kind::Runs(runs)) => runs.for_each_span(self.level, text, f),
            (None, Kind::Chain(chain)) => for_each_part(text, f, |part, f| chain.for_each_span(part, f)),
            (None, Kind::Custom(custom)) => for_each_part(text, f, |part, f| custom.for_each_span(part, f)),
            (None, kind) => unreachable!("{kind:?} has a scanner"),
        }
    }

    /// As [`Splitter::for_each_span`], with as many pieces at once as the scanner has. Invalid sequences are told apart
    /// where [`Splitter::is_scanned`].
    #[inline]
    pub(crate) fn for_each_run<'t, F>(&self, text: &'t [u8], mut f: F) -> Result<()>
    where
        F: FnMut(&'t [u8], Run<'_>) -> Result<()>,
    {
        match self.kind.scanner() {
            Some(scanner) => scanner.for_each_run(self.level, text, f),
            None => self.for_each_span(text, |part, start, end| f(part, Run::One(start, end))),
        }
    }

    /// Whether the pattern is a named one, with a scanner of its own.
    pub(crate) fn is_scanned(&self) -> bool {
        self.kind.scanner().is_some()
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
        let find = |is_safe: &dyn Fn(usize) -> bool| {
            (at..text.len()).find(|&cut| is_safe(cut) && self.is_border(text, cut)).unwrap_or(text.len())
        };
        match (self.kind.scanner(), &self.kind) {
            (Some(scanner), _) => find(&|cut| scanner.is_safe(text, cut)),
            (None, Kind::Runs(runs)) => find(&|cut| runs.is_safe(text, cut)),
            _ => text.len(),
        }
    }

    /// Whether normalization changes nothing across `cut`: both characters there stay as they are, and ASCII on the
    /// right joins with nothing.
    fn is_border(&self, text: &[u8], cut: usize) -> bool {
        let Some(form) = self.normalizer else { return true };
        let left = last_char(&text[..cut]);
        cut == 0 || (text[cut].is_ascii() && left.is_none_or(|left| form.is_border(left)))
    }

    /// Whether the pattern runs in the regex engine, so that [`Splitter::safe_cut`] knows no place.
    pub(crate) fn is_custom(&self) -> bool {
        matches!(self.kind, Kind::Custom(_))
    }

    /// Calls `f` with the start and end of the pieces of a custom pattern that begin in `range`, when one begins at its
    /// start, and returns the end of the last; `None` when the pieces do not follow from the place alone.
    pub(crate) fn for_each_custom_span<F>(
        &self,
        text: &str,
        range: std::ops::Range<usize>,
        f: F,
    ) -> Result<Option<usize>>
    where
        F: FnMut(usize, usize) -> Result<()>,
    {
        match &self.kind {
            Kind::Custom(custom) => custom.for_each_span_in(text, range, f),
            _ => Ok(None),
        }
    }
}

/// Calls `split` with each stretch of valid UTF-8, for the ends of its pieces, and `f` with every piece and every
/// invalid sequence, in order.
fn for_each_part<'t, F>(
    text: &'t [u8],
    mut f: F,
    split: impl Fn(&'t str, &mut dyn FnMut(usize, usize) -> Result<()>) -> Result<()>,
) -> Result<()>
where
    F: FnMut(&'t [u8], usize, usize) -> Result<()>,
{
    for chunk in text.utf8_chunks() {
        split(chunk.valid(), &mut |start, end| f(chunk.valid().as_bytes(), start, end))?;
        if !chunk.invalid().is_empty() {
            f(chunk.invalid(), 0, chunk.invalid().len())?;
        }
    }
    Ok(())
}
