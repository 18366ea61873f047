//! Several steps one after the other, as Hugging Face's `Sequence` of pre-tokenizers: each cuts the pieces of the one
//! before, and sees no other piece.
//!
//! The pattern of a chain is the JSON of its `pre_tokenizer`; no regular expression starts with `{`. Steps that drop
//! text are refused, since pieces always join to the text.

use std::fmt;

use fancy_regex::Regex;
use serde::{Deserialize, Serialize};

use super::custom::failure;
use super::gpt2::Gpt2;
use super::onig::from_onig;
use super::{Scheme, class};
use crate::error::{Error, Result};

/// A step that cuts. What this struct holds is what tokenizer.json holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", deny_unknown_fields)]
pub(crate) enum Step {
    /// Matches of a pattern and what is between them.
    Split {
        /// What matches.
        pattern: Matcher,
        /// What becomes of a match.
        behavior: Behavior,
        /// Whether matches and what is between them change places.
        invert: bool,
    },
    /// Numbers, each digit by itself or in runs.
    Digits {
        /// Each by itself.
        individual_digits: bool,
    },
    /// GPT-2's pattern when `use_regex`.
    ByteLevel {
        /// A space before the text, unless it starts with one; not supported.
        add_prefix_space: bool,
        /// Only for the offsets of Hugging Face.
        #[serde(default = "yes")]
        trim_offsets: bool,
        /// Whether it cuts at all.
        #[serde(default = "yes")]
        use_regex: bool,
    },
}

fn yes() -> bool {
    true
}

/// What a [`Step::Split`] looks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Matcher {
    /// A text.
    String(String),
    /// A regular expression.
    Regex(String),
}

/// What becomes of a match.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Behavior {
    /// It is dropped.
    Removed,
    /// It is a piece.
    Isolated,
    /// It ends the piece before it.
    MergedWithPrevious,
    /// It starts the piece after it.
    MergedWithNext,
    /// Neighbouring matches are one piece.
    Contiguous,
}

/// Steps that a chain may have; the longest in use have five.
const MAX_STEPS: usize = 64;

/// A chain of steps and its pattern.
pub(super) struct Chain {
    pattern: String,
    cutters: Vec<Cutter>,
}

enum Cutter {
    Matches { regex: Box<Regex>, behavior: Behavior, invert: bool },
    Digits { individual: bool },
    Gpt2,
}

impl fmt::Debug for Chain {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "Chain({})", self.pattern)
    }
}

impl Clone for Chain {
    /// Compiles again, as a clone of `Custom` does.
    fn clone(&self) -> Self {
        Self::new(&self.pattern).expect("this chain was made before")
    }
}

/// How the pattern of a chain is written.
#[derive(Serialize, Deserialize)]
#[serde(tag = "type", deny_unknown_fields)]
enum Written {
    Sequence { pretokenizers: Vec<Step> },
}

/// The pattern of a chain of steps.
pub(crate) fn pattern_of(steps: Vec<Step>) -> String {
    serde_json::to_string(&Written::Sequence { pretokenizers: steps }).expect("strings and booleans have a JSON text")
}

/// The steps of a chain's pattern.
pub(crate) fn steps_of(pattern: &str) -> Result<Vec<Step>> {
    let written = serde_json::from_str(pattern).map_err(|error| refused(pattern, &error.to_string()))?;
    let Written::Sequence { pretokenizers } = written;
    Ok(pretokenizers)
}

impl Chain {
    pub(super) fn new(pattern: &str) -> Result<Self> {
        let mut cutters = Vec::new();
        for step in steps_of(pattern)? {
            cutters.extend(cutter(step).map_err(|reason| refused(pattern, &reason))?);
        }
        if cutters.len() > MAX_STEPS {
            return Err(refused(pattern, &format!("expected at most {MAX_STEPS} steps, got {}", cutters.len())));
        }
        Ok(Self { pattern: pattern.to_owned(), cutters })
    }

    pub(super) fn pattern(&self) -> &str {
        &self.pattern
    }

    /// Calls `f` with the ends of every piece, in order.
    pub(super) fn for_each_span(&self, text: &str, mut f: impl FnMut(usize, usize) -> Result<()>) -> Result<()> {
        self.run(&self.cutters, text, 0, &mut f)
    }

    fn run(&self, cutters: &[Cutter], text: &str, base: usize, f: Each) -> Result<()> {
        match cutters.split_first() {
            None if text.is_empty() => Ok(()),
            None => f(base, base + text.len()),
            Some((cutter, rest)) => {
                cutter.cut(text, &self.pattern, &mut |start, end| self.run(rest, &text[start..end], base + start, f))
            }
        }
    }
}

/// What is called with the ends of each part.
type Each<'a> = &'a mut dyn FnMut(usize, usize) -> Result<()>;

fn refused(pattern: &str, reason: &str) -> Error {
    Error::Pattern { pattern: pattern.to_owned(), reason: reason.to_owned() }
}

/// What does a step's work; nothing for one that does not cut.
fn cutter(step: Step) -> std::result::Result<Option<Cutter>, String> {
    match step {
        Step::Split { behavior: Behavior::Removed, .. } => {
            Err("Split with behavior Removed drops text, which is not supported; hint: use Isolated".to_owned())
        }
        Step::Split { pattern, behavior, invert } => {
            let regex = match pattern {
                Matcher::Regex(regex) => from_onig(&regex),
                Matcher::String(text) => fancy_regex::escape(&text).into_owned(),
            };
            let regex = Regex::new(&regex).map_err(|error| format!("{regex:?}: {error}"))?;
            Ok(Some(Cutter::Matches { regex: Box::new(regex), behavior, invert }))
        }
        Step::Digits { individual_digits } => Ok(Some(Cutter::Digits { individual: individual_digits })),
        Step::ByteLevel { add_prefix_space: true, .. } => {
            Err("ByteLevel with add_prefix_space is not supported, expected false".to_owned())
        }
        Step::ByteLevel { use_regex, .. } => Ok(use_regex.then_some(Cutter::Gpt2)),
    }
}

impl Cutter {
    /// Calls `f` with the ends of every part of `text`, in order; some may be empty.
    fn cut(&self, text: &str, pattern: &str, f: Each) -> Result<()> {
        match self {
            Self::Matches { regex, behavior, invert } => {
                let mut joiner = Joiner::new(*behavior, f);
                let mut at = 0;
                for found in regex.find_iter(text) {
                    let found = found.map_err(|error| failure(pattern, &error))?;
                    if found.start() > at {
                        joiner.push(at, found.start(), *invert)?;
                    }
                    joiner.push(found.start(), found.end(), !*invert)?;
                    at = found.end();
                }
                if at < text.len() {
                    joiner.push(at, text.len(), *invert)?;
                }
                joiner.finish()
            }
            Self::Digits { individual } => {
                let is_number = |c: char| class::class_of(u32::from(c)) == class::NUMBER;
                let mut joiner = Joiner::new(Behavior::Contiguous, f);
                for (at, c) in text.char_indices() {
                    if *individual && is_number(c) {
                        joiner.flush()?;
                    }
                    joiner.push(at, at + c.len_utf8(), is_number(c))?;
                }
                joiner.finish()
            }
            Self::Gpt2 => {
                let bytes = text.as_bytes();
                let mut at = 0;
                while at < bytes.len() {
                    let end = Gpt2::piece_end(bytes, at);
                    f(at, end)?;
                    at = end;
                }
                Ok(())
            }
        }
    }
}

/// Joins matches and what is between them as `behavior` says.
struct Joiner<'a> {
    behavior: Behavior,
    /// Start and end of the part that may still grow, and whether a match was its last.
    open: Option<(usize, usize, bool)>,
    f: Each<'a>,
}

impl<'a> Joiner<'a> {
    fn new(behavior: Behavior, f: Each<'a>) -> Self {
        Self { behavior, open: None, f }
    }

    fn push(&mut self, start: usize, end: usize, is_match: bool) -> Result<()> {
        let grows = |was_match: bool| match self.behavior {
            Behavior::Contiguous => was_match == is_match,
            Behavior::MergedWithPrevious => is_match && !was_match,
            Behavior::MergedWithNext => was_match && !is_match,
            Behavior::Isolated | Behavior::Removed => false,
        };
        match &mut self.open {
            Some((_, last, was_match)) if grows(*was_match) => (*last, *was_match) = (end, is_match),
            _ => {
                self.flush()?;
                self.open = Some((start, end, is_match));
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        self.open.take().map_or(Ok(()), |(start, end, _)| (self.f)(start, end))
    }

    fn finish(mut self) -> Result<()> {
        self.flush()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pieces(steps: &[Value], text: &str) -> Vec<String> {
        let chain = Chain::new(&json!({ "type": "Sequence", "pretokenizers": steps }).to_string()).unwrap();
        let mut pieces = Vec::new();
        chain
            .for_each_span(text, |start, end| {
                pieces.push(text[start..end].to_owned());
                Ok(())
            })
            .unwrap();
        assert_eq!(pieces.concat(), text);
        pieces
    }

    fn dashes(behavior: &str, invert: bool) -> Value {
        json!({ "type": "Split", "pattern": { "String": "-" }, "behavior": behavior, "invert": invert })
    }

    #[test]
    fn each_behavior_joins_as_its_name_says() {
        let text = "the-final--countdown";
        let cut = |behavior| pieces(&[dashes(behavior, false)], text);
        assert_eq!(cut("Isolated"), ["the", "-", "final", "-", "-", "countdown"]);
        assert_eq!(cut("Contiguous"), ["the", "-", "final", "--", "countdown"]);
        assert_eq!(cut("MergedWithPrevious"), ["the-", "final-", "-", "countdown"]);
        assert_eq!(cut("MergedWithNext"), ["the", "-final", "-", "-countdown"]);
        assert_eq!(pieces(&[dashes("MergedWithPrevious", true)], text), ["the", "-final", "-", "-countdown"]);
    }

    #[test]
    fn a_step_sees_only_the_piece_it_gets() {
        let digits = json!({ "type": "Digits", "individual_digits": true });
        let spell = json!({ "type": "ByteLevel", "add_prefix_space": false, "use_regex": true });
        assert_eq!(pieces(&[digits, spell], "it's 42 x"), ["it", "'s", " ", "4", "2", " x"]);
        let runs = json!({ "type": "Digits", "individual_digits": false });
        assert_eq!(pieces(&[runs], "a12b²3"), ["a", "12", "b", "²3"]);
    }

    #[test]
    fn what_drops_text_or_is_unknown_is_refused_by_name() {
        let refused = |step: Value| {
            Chain::new(&json!({ "type": "Sequence", "pretokenizers": [step] }).to_string()).unwrap_err().to_string()
        };
        assert!(refused(dashes("Removed", false)).contains("Removed"));
        assert!(refused(json!({ "type": "Metaspace" })).contains("Metaspace"));
        assert!(refused(json!({ "type": "Digits", "individual_digits": 1 })).contains("boolean"));
        assert!(refused(json!({ "type": "Digits", "individual_digits": true, "x": 1 })).contains('x'));
        assert!(refused(json!({ "type": "ByteLevel", "add_prefix_space": true })).contains("add_prefix_space"));
    }
}
