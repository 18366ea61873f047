//! Training that goes on from a vocabulary: its merges have been applied to every word before the first new one.

use super::TrainOptions;
use super::layout::{Layout, Symbol};
use super::merge::{Choices, Merger};
use super::options::Rules;
use crate::control::Control;
use crate::count::WordCounts;
use crate::error::{Error, Result};
use crate::merge::Scratch;
use crate::naive::Pair;
use crate::parallel;
use crate::vocab::Vocab;

/// Words that one task turns into tokens.
const TASK_WORDS: usize = 1 << 12;

/// What training goes on from.
#[derive(Debug, Clone, Copy)]
pub(super) struct Start<'v> {
    pub(super) vocab: &'v Vocab,
    /// Ids that are taken: the vocabulary's and those of special tokens. New merges follow.
    pub(super) n_ids: usize,
}

/// Words as tokens: word `i` has `ids[ends[i - 1]..ends[i]]` and the count `counts[i]`.
#[derive(Debug, Default)]
pub(super) struct Segmented {
    pub(super) ids: Vec<u32>,
    pub(super) ends: Vec<usize>,
    pub(super) counts: Vec<u64>,
}

/// The merges that follow those of `start`, as [`naive::resume`](crate::naive::resume) makes them.
pub(super) fn resume<'v>(
    counts: &WordCounts,
    start: Start<'v>,
    options: &TrainOptions,
    rules: Rules<'v>,
    threads: usize,
    control: &'v Control,
) -> Result<Vec<Pair>> {
    let words = sorted_words(counts)?;
    let n_borders = check_sizes(&words)?;
    let segmented = segment(&words, start.vocab, threads, control)?;
    drop(words);
    let rules = rules.after(start);
    let options = TrainOptions { n_merges: options.n_merges.min(n_borders), min_count: options.min_count.max(1) };
    control.begin("merge pairs", options.n_merges as u64);
    let gap = start.n_ids as u64 + options.n_merges as u64;
    if gap <= u64::from(u16::LARGEST) {
        go_on::<u16>(&segmented, start.n_ids, gap as u32, options, rules, threads, control)
    } else if gap <= u64::from(u32::LARGEST) {
        go_on::<u32>(&segmented, start.n_ids, gap as u32, options, rules, threads, control)
    } else {
        Err(Error::Argument(format!("ids must stay below 2^32, got {gap} of them")))
    }
}

fn go_on<'v, S: Symbol>(
    words: &Segmented,
    n_ids: usize,
    gap: u32,
    options: TrainOptions,
    rules: Rules<'v>,
    threads: usize,
    control: &'v Control,
) -> Result<Vec<Pair>> {
    let layout = Layout::<S>::of_tokens(words.words(), n_ids, gap, control)?;
    Ok(Merger::new(layout, options, rules, Choices::default(), threads, control)?.run()?.merges)
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

/// Encodes every word as the vocabulary does; words that are one token have no pair and are left out.
fn segment(words: &[(u64, &[u8])], vocab: &Vocab, threads: usize, control: &Control) -> Result<Segmented> {
    control.begin("apply the base words", words.len() as u64);
    let n_tasks = words.len().div_ceil(TASK_WORDS);
    let parts = parallel::run(threads, n_tasks, control, Vec::new, |parts: &mut Vec<_>, task| {
        let range = task * TASK_WORDS..words.len().min((task + 1) * TASK_WORDS);
        let (mut part, mut scratch) = (Segmented::default(), Scratch::default());
        for &(n, word) in &words[range.clone()] {
            let start = part.ids.len();
            match vocab.whole_piece(word) {
                Some(_) => continue,
                None => vocab.merge_piece(word, &mut scratch, control, &mut part.ids)?,
            }
            if part.ids.len() - start == 1 {
                part.ids.truncate(start);
                continue;
            }
            part.ends.push(part.ids.len());
            part.counts.push(n);
        }
        control.advance(range.len() as u64);
        parts.push((task, part));
        Ok(())
    })?;
    let mut parts: Vec<(usize, Segmented)> = parts.into_iter().flatten().collect();
    parts.sort_unstable_by_key(|&(task, _)| task);
    let mut all = Segmented::default();
    for (_, part) in parts {
        let first = all.ids.len();
        all.ids.extend(part.ids);
        all.ends.extend(part.ends.into_iter().map(|end| first + end));
        all.counts.extend(part.counts);
    }
    Ok(all)
}

impl Segmented {
    /// Every word with its count.
    pub(super) fn words(&self) -> impl Iterator<Item = (u64, &[u32])> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts.zip(&self.ends).zip(&self.counts).map(|((start, &end), &n)| (n, &self.ids[start..end]))
    }
}
