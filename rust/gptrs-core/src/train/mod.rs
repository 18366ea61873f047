//! Byte-pair training: word counts to merges, equal to [`naive::train`](crate::naive::train) and incremental.
//!
//! ```text
//! WordCounts ─▶ Layout: every word once, one flat array of symbols, heaviest first
//!                 ├─▶ PairTable: pair ─▶ exact count, where its borders stand (postings): all threads
//!                 └─▶ heap of (count, pair): the next merge
//! merge (a, b) ─▶ z:  walk the postings, rewrite, tally the neighbours by id  ─▶ one table update a distinct neighbour
//! ```
//! The first counts and postings are made on all threads, the merges one after the other on the caller's.
//! A merge costs a few memory accesses an occurrence and no hashing there. Counts are exact at every step and only fall
//! once a pair exists, so a heap whose entries are refreshed when they surface always finds the true maximum.

mod bytes;
mod layout;
mod merge;
mod neighbours;
mod options;
mod pairs;
mod resume;
pub mod superbpe;
mod usage;

use layout::{Layout, Symbol};
use merge::Merger;
use options::Rules;
pub use options::{Recipe, Tie};
pub use usage::usage;

use crate::control::Control;
use crate::count::WordCounts;
use crate::error::{Error, Result};

/// When training ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TrainOptions {
    /// Merges to make; fewer are made when no pair is left.
    pub n_merges: usize,
    /// A pair that occurs less often is not merged; 0 is as good as 1.
    pub min_count: u64,
}

/// The merges of byte-level BPE over `counts`: bytes are the ids 0..=255, merge `i` makes id `256 + i`.
///
/// Each merge takes the pair with the highest count, then the smallest left id, then the smallest right id. The result
/// is that of [`naive::train`](crate::naive::train), whatever the order of the words and the number of `threads`.
///
/// Fails with [`Error::EmptyCorpus`] when there is no word, and with [`Error::Argument`] when all pairs together occur
/// more than `u64::MAX` times or the distinct words hold more than `u32::MAX` bytes.
///
/// ```
/// use gptrs_core::count::WordCounts;
/// use gptrs_core::train::{TrainOptions, train};
/// let mut counts = WordCounts::new();
/// counts.add(b"aaabdaaabac", 1)?;
/// let merges = train(&counts, &TrainOptions { n_merges: 3, min_count: 1 }, 1, &Default::default())?;
/// assert_eq!(merges, [(97, 97), (97, 98), (256, 257)]); // aa, ab, aaab
/// # Ok::<(), gptrs_core::Error>(())
/// ```
pub fn train(
    counts: &WordCounts,
    options: &TrainOptions,
    threads: usize,
    control: &Control,
) -> Result<Vec<(u32, u32)>> {
    train_with(counts, options, Rules::default(), threads, control)
}

/// The words that have a pair, heaviest first.
fn sorted_words(counts: &WordCounts) -> Result<Vec<(u64, &[u8])>> {
    if counts.is_empty() {
        return Err(Error::EmptyCorpus);
    }
    let mut words: Vec<(u64, &[u8])> = counts.iter().map(|(word, n)| (n, word)).filter(|(_, w)| w.len() > 1).collect();
    words.sort_unstable_by_key(|&(n, _)| std::cmp::Reverse(n));
    Ok(words)
}

/// As [`train`], with rules.
fn train_with(
    counts: &WordCounts,
    options: &TrainOptions,
    rules: Rules,
    threads: usize,
    control: &Control,
) -> Result<Vec<(u32, u32)>> {
    let words = sorted_words(counts)?;
    let n_borders = check_sizes(&words)?;
    let options = TrainOptions { n_merges: options.n_merges.min(n_borders), min_count: options.min_count.max(1) };
    control.begin("merge pairs", options.n_merges as u64);
    if 256 + options.n_merges < usize::from(u16::GAP) {
        Merger::new(Layout::<u16>::new(words, control)?, options, rules, threads, control)?.run()
    } else {
        Merger::new(Layout::<u32>::new(words, control)?, options, rules, threads, control)?.run()
    }
}

/// The number of pairs in all words; positions must fit 32 bits and sums of counts 64.
fn check_sizes(words: &[(u64, &[u8])]) -> Result<usize> {
    let n_symbols: usize = 1 + words.iter().map(|(_, word)| word.len() + 1).sum::<usize>();
    if u32::try_from(n_symbols).is_err() {
        return Err(Error::Argument(format!(
            "the distinct words must hold less than 4 GiB together, got {n_symbols} bytes; hint: use a pattern that cuts \
             the text into shorter pieces"
        )));
    }
    let n_pairs: u128 = words.iter().map(|&(n, word)| u128::from(n) * (word.len() as u128 - 1)).sum();
    if n_pairs > u128::from(u64::MAX) {
        return Err(Error::Argument(format!("the pairs of all words must occur less than 2^64 times, got {n_pairs}")));
    }
    Ok(n_symbols - 1 - 2 * words.len())
}
