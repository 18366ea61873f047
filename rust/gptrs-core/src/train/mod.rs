//! Byte-pair training: word counts to merges, equal to [`naive::train`](crate::naive::train) and incremental.
//!
//! ```text
//! WordCounts ─▶ Layout: every word once, one flat array of symbols, heaviest first
//!                 ├─▶ PairTable: pair ─▶ exact count, where its borders stand (postings): all threads
//!                 └─▶ Queue of (count, pair): the next merge
//! merge (a, b) ─▶ z:  walk the postings, rewrite, tally the neighbours by id  ─▶ one table update a distinct neighbour
//! ```
//! The first counts and postings are made on all threads, the merges one after the other on the caller's.
//! A merge costs a few memory accesses an occurrence and no hashing there. Counts are exact at every step and only fall
//! once a pair exists, so a queue whose entries are refreshed when they surface always finds the true maximum.

mod census;
mod classes;
mod layout;
mod merge;
mod neighbours;
mod options;
mod pairs;
mod queue;
mod resume;
pub mod superbpe;
mod usage;

use std::borrow::Cow;
use std::time::Instant;

use classes::Classes;
use layout::{Layout, Symbol};
use merge::{Choices, Merged, Merger};
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
    train_with_stats(Cow::Borrowed(counts), options, threads, control).map(|(merges, _)| merges)
}

/// As [`train`], with what was done and how long it took. Counts that are given away are freed as soon as they are read.
pub fn train_with_stats(
    counts: Cow<'_, WordCounts>,
    options: &TrainOptions,
    threads: usize,
    control: &Control,
) -> Result<(Vec<(u32, u32)>, TrainStats)> {
    train_with(counts, options, Rules::default(), threads, control)
}

/// As [`train_with_stats`], with rules.
fn train_with(
    counts: Cow<'_, WordCounts>,
    options: &TrainOptions,
    rules: Rules,
    threads: usize,
    control: &Control,
) -> Result<(Vec<(u32, u32)>, TrainStats)> {
    let start = Instant::now();
    if counts.is_empty() {
        return Err(Error::EmptyCorpus);
    }
    let classes = Classes::new(&counts, threads, control)?;
    let n_merges = options.n_merges.min(classes.n_borders);
    let options = TrainOptions { n_merges, min_count: options.min_count.max(1) };
    control.begin("merge pairs", n_merges as u64);
    let gap = 256 + n_merges as u64;
    if gap <= u64::from(u16::LARGEST) {
        run::<u16>(counts, &classes, options, rules, threads, control, start)
    } else {
        run::<u32>(counts, &classes, options, rules, threads, control, start)
    }
}

fn run<S: Symbol>(
    counts: Cow<'_, WordCounts>,
    classes: &Classes,
    options: TrainOptions,
    rules: Rules,
    threads: usize,
    control: &Control,
    start: Instant,
) -> Result<(Vec<(u32, u32)>, TrainStats)> {
    let mut stats = TrainStats {
        n_words: classes.n_words,
        n_symbols: classes.n_places() - 1 - classes.n_words,
        ..TrainStats::default()
    };
    if options.n_merges == 0 {
        return Ok((Vec::new(), stats));
    }
    let layout = Layout::<S>::new(&counts, classes, 256 + options.n_merges as u32, threads, control)?;
    drop(counts);
    stats.layout_seconds = start.elapsed().as_secs_f64();
    let start = Instant::now();
    let merger = Merger::new(layout, options, rules, Choices::default(), threads, control)?;
    stats.first_pairs_seconds = start.elapsed().as_secs_f64();
    let start = Instant::now();
    let Merged { merges, n_applied } = merger.run()?;
    stats.merge_seconds = start.elapsed().as_secs_f64();
    stats.n_applied = n_applied;
    Ok((merges, stats))
}

/// What a training run did.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct TrainStats {
    /// Distinct words of at least two bytes.
    pub n_words: usize,
    /// Bytes of these words together.
    pub n_symbols: usize,
    /// Places where a merge was applied, over all merges.
    pub n_applied: u64,
    /// Seconds for laying out the words.
    pub layout_seconds: f64,
    /// Seconds for the counts and places of all pairs of bytes.
    pub first_pairs_seconds: f64,
    /// Seconds for the merges.
    pub merge_seconds: f64,
}
