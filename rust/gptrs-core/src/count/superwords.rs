//! Words in runs: what the second stage of SuperBPE training counts.
//!
//! ```text
//! text ─ pattern of runs ─▶ runs of up to 64 words ─┬─ pattern of words ─▶ word counts (first stage)
//!                                                   └─ kept by hash while memory lasts ─▶ run counts (second stage)
//! ```
//! A run is a word with the words that follow it, each after a single space, and their contractions; everything else is
//! cut as by the pattern of words, and so is the inside of a run. Most runs are rare, so their number follows the
//! text: when the kept ones exceed a budget, those whose hash has one more zero bit stay. That choice depends on the
//! runs alone, never on threads, order or partition. Source: Liu et al. 2025 (arXiv 2503.13423), with borders at
//! punctuation.

use xxhash_rust::xxh3::xxh3_64;

use super::{Counter, WordCounts};
use crate::control::Control;
use crate::error::{Error, Result};
use crate::parallel;
use crate::split::Splitter;

/// Words in a run at most. It bounds what a regex engine keeps on its stack.
const MAX_WORDS: usize = 64;
/// Text that a thread gets at once.
const BLOCK_BYTES: usize = 1 << 20;
/// Text between two looks at the budget.
const BATCH_BYTES: usize = 32 << 20;
/// Memory of a run beside its bytes.
const OVERHEAD: usize = 32;
/// Runs that are cut into words by one task.
const TASK_RUNS: usize = 1 << 12;

/// What memory the distinct runs may take unless the caller says otherwise, in bytes.
pub const DEFAULT_BUDGET: usize = 256 << 20;

/// The alternatives of known patterns that match a word, and how a contraction is spelled there.
const WORDS: [(&str, &str); 5] = [
    (r" ?\p{L}++", r"'(?:[sdmt]|ll|ve|re)"),
    (r" ?\p{L}+", r"'(?:[sdmt]|ll|ve|re)"),
    (r"[^\r\n\p{L}\p{N}]?+\p{L}++", r"'(?i:[sdmt]|ll|ve|re)"),
    (r"[^\r\n\p{L}\p{N}]?+\p{L}+", r"'(?i:[sdmt]|ll|ve|re)"),
    (r"[^\r\n\p{L}\p{N}]?\p{L}+", r"'(?i:[sdmt]|ll|ve|re)"),
];

/// The pattern of runs that belongs to a pattern of words; the finished tokenizer encodes with it.
///
/// Fails for a pattern whose words are not known here: all but the named ones that take a word as letters.
pub fn run_pattern(words: &Splitter) -> Result<String> {
    let regex = words.onig_regex();
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
    let pattern = words.pattern();
    Err(Error::Argument(format!(
        "merges across spaces need a pattern whose words are runs of letters, got {pattern:?}; hint: use \
         pattern=\"gpt2\" or \"cl100k_base\""
    )))
}

/// Counts runs and their words, text by text.
#[derive(Debug)]
pub struct Superwords {
    words: Splitter,
    runs: Splitter,
    budget: usize,
    /// Runs whose hash has this many leading zeros are kept.
    level: u32,
    word_counts: WordCounts,
    run_counts: WordCounts,
    /// Number of runs when the budget was last looked at.
    n_seen: usize,
}

/// What both stages train on.
#[derive(Debug)]
pub struct Stages {
    /// Cuts runs.
    pub runs: Splitter,
    /// Words of the whole text.
    pub word_counts: WordCounts,
    /// Runs, of which one in 2^`level` is kept, with the counts that they have in the whole text.
    pub run_counts: WordCounts,
    /// See `run_counts`.
    pub level: u32,
}

impl Superwords {
    /// Nothing counted yet; `words` cuts words, the distinct runs may take about `budget` bytes.
    pub fn new(words: &Splitter, budget: usize) -> Result<Self> {
        let runs = Splitter::new(&run_pattern(words)?)?;
        let (word_counts, run_counts) = (WordCounts::new(), WordCounts::new());
        Ok(Self { words: words.clone(), runs, budget, level: 0, word_counts, run_counts, n_seen: 0 })
    }

    /// What cuts runs.
    pub fn runs(&self) -> &Splitter {
        &self.runs
    }

    /// Counts every text as a document of its own; advances `control` by the bytes.
    pub fn add_texts<T: AsRef<[u8]> + Sync>(&mut self, texts: &[T], threads: usize, control: &Control) -> Result<()> {
        let mut batch: Vec<&[u8]> = Vec::new();
        let mut n_bytes = 0;
        for text in texts {
            let mut rest = text.as_ref();
            while !rest.is_empty() {
                let (block, later) = rest.split_at(self.safe_cut(rest, rest.len().min(BLOCK_BYTES)));
                batch.push(block);
                n_bytes += block.len();
                rest = later;
                if n_bytes >= BATCH_BYTES {
                    self.add_blocks(&std::mem::take(&mut batch), threads, control)?;
                    n_bytes = 0;
                }
            }
        }
        self.add_blocks(&batch, threads, control)
    }

    fn add_blocks(&mut self, blocks: &[&[u8]], threads: usize, control: &Control) -> Result<()> {
        let counts = Counter::new(&self.runs, threads).add_texts(blocks, control)?.finish(control)?;
        self.add_runs(&counts, threads, control)
    }

    /// Adds counted runs, as of a count file.
    pub fn add_runs(&mut self, runs: &WordCounts, threads: usize, control: &Control) -> Result<()> {
        let listed: Vec<(&[u8], u64)> = runs.iter().collect();
        let n_tasks = listed.len().div_ceil(TASK_RUNS);
        let make_state = || (self.words.clone(), WordCounts::new());
        let parts = parallel::run(threads, n_tasks, control, make_state, |(words, counts), task| {
            let range = task * TASK_RUNS..listed.len().min((task + 1) * TASK_RUNS);
            listed[range].iter().try_for_each(|&(run, n)| words.for_each_piece(run, |word| counts.add(word, n)))
        })?;
        parts.into_iter().try_for_each(|(_, counts)| self.word_counts.merge(counts))?;
        for (run, n) in listed {
            if is_kept(run, self.level) {
                self.run_counts.add(run, n)?;
            }
        }
        // A look at every run takes time: only when there are many new ones.
        if self.run_counts.len() > self.n_seen + self.n_seen / 8 { self.keep_budget() } else { Ok(()) }
    }

    /// Raises the level until the kept runs fit the budget.
    fn keep_budget(&mut self) -> Result<()> {
        let size = |counts: &WordCounts| counts.iter().map(|(run, _)| run.len() + OVERHEAD).sum::<usize>();
        while size(&self.run_counts) > self.budget && self.level < u64::BITS {
            self.level += 1;
            let mut kept = WordCounts::new();
            for (run, n) in self.run_counts.iter().filter(|(run, _)| is_kept(run, self.level)) {
                kept.add(run, n)?;
            }
            self.run_counts = kept;
        }
        self.n_seen = self.run_counts.len();
        Ok(())
    }

    /// Number of distinct words so far.
    pub fn n_words(&self) -> usize {
        self.word_counts.len()
    }

    /// Bytes of the text so far.
    pub fn n_bytes(&self) -> u64 {
        self.word_counts.n_bytes()
    }

    /// What was counted.
    pub fn finish(mut self) -> Result<Stages> {
        self.keep_budget()?;
        let Self { runs, word_counts, run_counts, level, .. } = self;
        Ok(Stages { runs, word_counts, run_counts, level })
    }

    /// A place at or after `at` where neither a word nor a run is cut: a safe one for words that no run crosses.
    fn safe_cut(&self, text: &[u8], at: usize) -> usize {
        let mut cut = self.words.safe_cut(text, at);
        while matches!(text.get(cut), Some(b' ' | b'\'')) {
            cut = self.words.safe_cut(text, cut + 1);
        }
        cut
    }
}

fn is_kept(run: &[u8], level: u32) -> bool {
    level == 0 || xxh3_64(run).leading_zeros() >= level
}

/// Cuts the runs of `counts` into words on one thread; the oracle of the tests.
#[cfg(test)]
fn words_of(counts: &WordCounts, words: &Splitter) -> WordCounts {
    let mut all = WordCounts::new();
    for (run, n) in counts.iter() {
        words.for_each_piece(run, |word| all.add(word, n)).unwrap();
    }
    all
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::OnceLock;

    use proptest::prelude::*;

    use super::*;
    use crate::count::count_texts;

    fn sorted(counts: &WordCounts) -> BTreeMap<Vec<u8>, u64> {
        counts.iter().map(|(word, n)| (word.to_vec(), n)).collect()
    }

    fn runs(pattern: &str, text: &str) -> Vec<String> {
        let splitter = Splitter::new(&run_pattern(&Splitter::new(pattern).unwrap()).unwrap()).unwrap();
        let mut pieces = Vec::new();
        let push = |piece: &[u8]| {
            pieces.push(String::from_utf8(piece.to_vec()).unwrap());
            Ok(())
        };
        splitter.for_each_piece(text.as_bytes(), push).unwrap();
        pieces
    }

    #[test]
    fn a_run_ends_where_words_are_not_joined_by_one_space() {
        let text = "By the way, it's  not\nthe 2 of them (at all).";
        let expected = ["By the way", ",", " it's", " ", " not", "\n", "the", " 2", " of them", " (", "at all", ")."];
        assert_eq!(runs("gpt2", text), expected);
        let expected =
            ["By the way", ",", " it's", " ", " not", "\n", "the", " ", "2", " of them", " (", "at all", ")."];
        assert_eq!(runs("cl100k_base", text), expected);
        assert_eq!(runs("cl100k_base", "(at all"), ["(at all"]);
    }

    #[test]
    fn a_run_has_a_longest() {
        let text = " a".repeat(200);
        let lengths: Vec<usize> = runs("gpt2", &text).iter().map(String::len).collect();
        assert_eq!(lengths, [128, 128, 128, 16]);
    }

    #[test]
    fn a_pattern_of_other_words_is_refused() {
        let error = run_pattern(&Splitter::new(r"\w+|\W").unwrap()).unwrap_err().to_string();
        assert!(error.contains(r#""\\w+|\\W""#) && error.contains("hint:"), "{error}");
    }

    #[test]
    fn the_budget_keeps_the_same_runs_in_any_order_and_on_any_thread_count() {
        let texts: Vec<String> = (0..3000).map(|i| format!("some words {} and more {}.\n", i % 700, i * i)).collect();
        let splitter = Splitter::new("gpt2").unwrap();
        let control = Control::new();
        let count = |texts: &[String], budget, threads| {
            let mut counted = Superwords::new(&splitter, budget).unwrap();
            for batch in texts.chunks(777) {
                counted.add_texts(batch, threads, &control).unwrap();
            }
            counted.finish().unwrap()
        };
        let all = count(&texts, usize::MAX, 1);
        assert_eq!(all.level, 0);
        assert_eq!(sorted(&all.word_counts), sorted(&count_texts(&texts, &splitter, 1, &control).unwrap()));
        let few = count(&texts, 20_000, 1);
        assert!(few.level > 1 && !few.run_counts.is_empty(), "{}", few.level);
        let expected: BTreeMap<_, _> =
            sorted(&all.run_counts).into_iter().filter(|(run, _)| is_kept(run, few.level)).collect();
        assert_eq!(sorted(&few.run_counts), expected);
        let mut turned = texts.clone();
        turned.reverse();
        let other = count(&turned, 20_000, 3);
        assert_eq!((other.level, sorted(&other.run_counts)), (few.level, expected));
        assert_eq!(sorted(&other.word_counts), sorted(&all.word_counts));
    }

    fn nasty() -> impl Strategy<Value = String> {
        let parts = prop::sample::select(vec![
            " ", " ", " ", "a", "the", "of", "B", "é", "ſ", "'s", "'", "'ll", "'T", "\n", "\r\n", "\t", "1", "23", ".",
            ",", "(", "\u{a0}", "\u{3000}", "日本", "\u{301}", "²", "\u{2028}",
        ]);
        prop::collection::vec(parts, 0..40).prop_map(|parts| parts.concat())
    }

    /// Words and runs; compiling a pattern takes longer than any case.
    fn splitters() -> &'static [(Splitter, Superwords); 2] {
        static MADE: OnceLock<[(Splitter, Superwords); 2]> = OnceLock::new();
        MADE.get_or_init(|| {
            ["gpt2", "cl100k_base"].map(|pattern| {
                let words = Splitter::new(pattern).unwrap();
                let counted = Superwords::new(&words, 1).unwrap();
                (words, counted)
            })
        })
    }

    fn count(splitter: &Splitter, texts: &[&[u8]]) -> WordCounts {
        let mut counts = WordCounts::new();
        for text in texts {
            splitter.for_each_piece(text, |piece| counts.add(piece, 1)).unwrap();
        }
        counts
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(3000))]

        #[test]
        fn runs_cut_into_words_are_the_words_of_the_text(text in nasty()) {
            for (words, counted) in splitters() {
                let counts = count(&counted.runs, &[text.as_bytes()]);
                let expected = count(words, &[text.as_bytes()]);
                prop_assert_eq!(sorted(&words_of(&counts, words)), sorted(&expected), "{}", words.pattern());
            }
        }

        #[test]
        fn no_cut_changes_a_run(text in nasty(), at in 0..60usize) {
            for (words, counted) in splitters() {
                let text = text.as_bytes();
                let (left, right) = text.split_at(counted.safe_cut(text, at.min(text.len())));
                let (whole, parts) = (count(&counted.runs, &[text]), count(&counted.runs, &[left, right]));
                prop_assert_eq!(sorted(&parts), sorted(&whole), "{}", words.pattern());
            }
        }
    }
}
