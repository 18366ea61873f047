//! Training that goes on from a vocabulary: its merges have been applied to every word before the first new one.

use super::layout::{Layout, Symbol, Weights};
use super::merge::Merger;
use super::options::Rules;
use super::{TrainOptions, check_sizes, sorted_words};
use crate::control::Control;
use crate::count::WordCounts;
use crate::error::Result;
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
    let mut lengths: Vec<u32> =
        (0..start.n_ids as u32).map(|id| start.vocab.token(id).unwrap_or_default().len() as u32).collect();
    lengths.reserve(options.n_merges);
    if start.n_ids + options.n_merges < usize::from(u16::GAP) {
        Merger::resume(Layout::<u16>::of_tokens(&segmented, lengths, control)?, options, rules, control)?.run()
    } else {
        Merger::resume(Layout::<u32>::of_tokens(&segmented, lengths, control)?, options, rules, control)?.run()
    }
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

impl<S: Symbol> Layout<S> {
    /// Lays out words that are tokens of these lengths already, sorted by falling count.
    pub(super) fn of_tokens(words: &Segmented, lengths: Vec<u32>, control: &Control) -> Result<Self> {
        let mut symbols = vec![S::GAP];
        let mut weights = Weights { starts: Vec::new(), weights: Vec::new() };
        for (n, word) in words.words() {
            control.check()?;
            if weights.weights.last() != Some(&n) {
                weights.starts.push(symbols.len() as u32);
                weights.weights.push(n);
            }
            for &id in word {
                // The first and the last place of a token hold its id; those between are never read.
                symbols.resize(symbols.len() + lengths[id as usize] as usize, S::new(id));
            }
            symbols.push(S::GAP);
        }
        weights.starts.push(u32::MAX);
        Ok(Self { symbols, lengths, weights })
    }
}
