//! Runs of words: the pieces of a tokenizer whose merges may cross the single spaces between words.
//!
//! A run is a word with the words that follow it, each after one space, and their contractions; all else is cut as by the
//! pattern of words. The scanner of that pattern finds the words, so a run costs little more than they do; the regular
//! expression, which others read, makes the same pieces.

use super::named::Known;
use super::traits::{is_letter, traits_before};
use super::{Kind, Splitter, cl100k, gpt2};
use crate::error::{Error, Result};
use crate::simd::Level;

/// Words in a run at most. It bounds what a regex engine keeps on its stack.
const MAX_WORDS: usize = 64;

/// The alternative of a known pattern that matches a word, and how a contraction is spelled there.
const WORDS: [(&str, &str); 4] = [
    (r" ?\p{L}+", r"'(?:[sdmt]|ll|ve|re)"),
    (r"[^\r\n\p{L}\p{N}]?+\p{L}++", r"'(?i:[sdmt]|ll|ve|re)"),
    (r"[^\r\n\p{L}\p{N}]?+\p{L}+", r"'(?i:[sdmt]|ll|ve|re)"),
    (r"[^\r\n\p{L}\p{N}]?\p{L}+", r"'(?i:[sdmt]|ll|ve|re)"),
];

/// The patterns whose words are runs of letters.
const NAMES: [&str; 5] = ["gpt2", "cl100k_base", "llama3", "qwen2", "nanochat"];

/// The pattern of runs that belongs to a pattern of words; the finished tokenizer encodes with it.
///
/// Fails for a pattern whose words are not known here: all but the named ones that take a word as letters.
pub fn run_pattern(words: &Splitter) -> Result<String> {
    let regex = words.onig_regex();
    if NAMES.contains(&words.pattern()) {
        let parts: Vec<&str> = regex.split('|').collect();
        for (word, contraction) in WORDS {
            if let Some(at) = parts.iter().position(|&part| part == word) {
                // Atomic, so that the engine keeps no place to come back to.
                let more = MAX_WORDS - 1;
                let run = format!(r"(?>{word}(?:{contraction}| \p{{L}}++){{0,{more}}})");
                let parts = [&parts[..at], &[run.as_str()], &parts[at + 1..]].concat();
                return Ok(parts.join("|"));
            }
        }
    }
    let pattern = words.pattern();
    Err(Error::Argument(format!(
        "merges across spaces need a pattern whose words are runs of letters, got {pattern:?}; hint: use one of \
         {NAMES:?}"
    )))
}

/// A pattern of runs and the pattern of its words.
#[derive(Debug, Clone)]
pub(super) struct Runs {
    words: Kind,
    regex: String,
}

impl Runs {
    /// The runs that this expression makes, if it is one that [`run_pattern`] wrote.
    pub(super) fn find(regex: &str) -> Option<Self> {
        // Most expressions are told apart without looking at any pattern.
        if !regex.contains(&format!("{{0,{}}})", MAX_WORDS - 1)) {
            return None;
        }
        let known = NAMES.iter().filter_map(|name| Known::find(name));
        let mut words = known.map(|known| Splitter::of(known.kind.clone()));
        let words = words.find(|words| run_pattern(words).is_ok_and(|pattern| pattern == regex))?;
        Some(Self { words: words.kind, regex: regex.to_owned() })
    }

    pub(super) fn regex(&self) -> &str {
        &self.regex
    }

    /// See [`Splitter::for_each_span`].
    #[inline]
    pub(super) fn for_each_span<'t, F>(&self, level: Level, text: &'t [u8], mut f: F) -> Result<()>
    where
        F: FnMut(&'t [u8], usize, usize) -> Result<()>,
    {
        // Where the run under way starts and ends, and how many words may follow.
        let mut run: Option<(usize, usize, usize)> = None;
        let Some(scanner) = self.words.scanner() else { return Ok(()) };
        scanner.for_each_span(level, text, |part, start, end| {
            // Parts stand in the text one behind the other; a run may cross from one to the next.
            let at = part.as_ptr().addr() - text.as_ptr().addr();
            let (start, end) = (at + start, at + end);
            let kind = self.kind_of(&text[start..end]);
            if let Some((_, run_end, left @ 1..)) = &mut run
                && matches!(kind, Piece::SpacedWord | Piece::Contraction)
                && *run_end == start
            {
                (*run_end, *left) = (end, *left - 1);
                return Ok(());
            }
            if let Some((start, end, _)) = run.take() {
                f(text, start, end)?;
            }
            if matches!(kind, Piece::SpacedWord | Piece::Word) {
                run = Some((start, end, MAX_WORDS - 1));
                return Ok(());
            }
            f(text, start, end)
        })?;
        run.map_or(Ok(()), |(start, end, _)| f(text, start, end))
    }

    /// What a piece of the pattern of words can be in a run.
    #[inline]
    fn kind_of(&self, piece: &[u8]) -> Piece {
        let ends_in_letter = match piece.last() {
            Some(byte) if byte.is_ascii() => byte.is_ascii_alphabetic(),
            _ => traits_before(piece, piece.len()).is_some_and(is_letter),
        };
        match piece {
            _ if !ends_in_letter => Piece::Other,
            [b' ', ..] => Piece::SpacedWord,
            [b'\'', rest @ ..] => {
                let n =
                    if matches!(self.words, Kind::Gpt2) { gpt2::contraction(rest) } else { cl100k::contraction(rest) };
                if n == rest.len() { Piece::Contraction } else { Piece::Word }
            }
            _ => Piece::Word,
        }
    }

    /// As [`Splitter::safe_cut`] finds places for words: one that no run crosses.
    pub(super) fn is_safe(&self, text: &[u8], cut: usize) -> bool {
        !matches!(text[cut], b' ' | b'\'') && self.words.scanner().is_some_and(|scanner| scanner.is_safe(text, cut))
    }
}

/// What a piece can be in a run.
#[derive(Debug, Clone, Copy)]
enum Piece {
    /// A word without a space in front: it only begins a run.
    Word,
    /// A word behind one space.
    SpacedWord,
    /// The end of a word, such as `'s`: it only follows in a run.
    Contraction,
    /// Anything else: it ends a run.
    Other,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::custom::Custom;
    use super::*;

    fn nasty() -> impl Strategy<Value = Vec<u8>> {
        let parts = prop::sample::select(vec![
            &b" "[..],
            b" ",
            b"a",
            b"the",
            b" of",
            b"B",
            "é".as_bytes(),
            "ſ".as_bytes(),
            b"'s",
            b"'",
            b"'ll",
            b"'T",
            b"\n",
            b"\r\n",
            b"\t",
            b"1",
            b"23",
            b".",
            b",",
            b"(",
            "\u{a0}".as_bytes(),
            "\u{3000}".as_bytes(),
            "日本".as_bytes(),
            "\u{301}".as_bytes(),
            "²".as_bytes(),
            b"\xFF",
            b"\xC3",
            b" a a a a a a a a a a a a a a a a a a a a a a a a a a a",
        ]);
        prop::collection::vec(parts, 0..40).prop_map(|parts| parts.concat())
    }

    fn pieces(splitter: &Splitter, text: &[u8]) -> Vec<Vec<u8>> {
        let mut pieces = Vec::new();
        splitter
            .for_each_piece(text, |piece| {
                pieces.push(piece.to_vec());
                Ok(())
            })
            .unwrap();
        pieces
    }

    fn pairs() -> Vec<(Splitter, Splitter)> {
        let pair = |name| {
            let regex = run_pattern(&Splitter::new(name).unwrap()).unwrap();
            let fast = Splitter::new(&regex).unwrap();
            assert!(matches!(fast.kind, Kind::Runs(_)), "{name}");
            assert_eq!((fast.regex(), fast.pattern(), fast.onig_regex()), (&*regex, &*regex, regex.clone()));
            (fast, Splitter::of(Kind::Custom(Custom::new(&regex).unwrap())))
        };
        NAMES.map(pair).into()
    }

    #[test]
    fn the_scanner_equals_the_expression() {
        let pairs = pairs();
        let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(5000));
        let check = |text: Vec<u8>| {
            for (fast, slow) in &pairs {
                prop_assert_eq!(pieces(fast, &text), pieces(slow, &text), "{}", fast.regex());
            }
            Ok(())
        };
        runner.run(&nasty(), check).unwrap();
    }

    #[test]
    fn no_cut_changes_a_run() {
        let pairs = pairs();
        let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(5000));
        let check = |(text, at): (Vec<u8>, usize)| {
            for (fast, _) in &pairs {
                let (left, right) = text.split_at(fast.safe_cut(&text, at.min(text.len())));
                prop_assert_eq!(
                    [pieces(fast, left), pieces(fast, right)].concat(),
                    pieces(fast, &text),
                    "{}",
                    fast.regex()
                );
            }
            Ok(())
        };
        runner.run(&(nasty(), 0..60usize), check).unwrap();
    }

    #[test]
    fn runs_cross_the_windows_of_the_scanner() {
        let text =
            format!("{}. It's the end of {} windows", "one of the many words ".repeat(60_000), "é ".repeat(90_000));
        for (fast, slow) in pairs() {
            assert!(pieces(&fast, text.as_bytes()) == pieces(&slow, text.as_bytes()), "{}", fast.regex());
        }
    }
}
