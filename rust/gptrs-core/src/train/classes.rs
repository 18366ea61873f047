//! The words sorted by count without a sort: how many places each count needs, by the thread that will fill them.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::control::Control;
use crate::count::WordCounts;
use crate::error::{Error, Result};
use crate::parallel;

/// Counts below have a table entry each.
const SMALL: usize = 1 << 10;

/// The different counts of words that can be merged, and the places of the words that have them.
#[derive(Debug)]
pub(super) struct Classes {
    /// Largest first.
    pub(super) counts: Vec<u64>,
    pub(super) groups: Vec<Group>,
    /// The class of each count below [`SMALL`].
    small: Vec<u32>,
    /// Words of at least two bytes.
    pub(super) n_words: usize,
    /// Borders between bytes inside of words.
    pub(super) n_borders: usize,
}

/// Parts of the counts that one thread lays out.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) parts: Range<usize>,
    /// Bytes of the words of each class, and a gap for each word.
    pub(super) n_places: Vec<usize>,
}

#[derive(Debug, Clone)]
struct Tally {
    small: Vec<usize>,
    large: BTreeMap<u64, usize>,
    n_words: usize,
    n_pairs: u128,
}

impl Classes {
    /// Reads all counts; fails when positions leave 32 bits or sums of counts 64.
    pub(super) fn new(counts: &WordCounts, threads: usize, control: &Control) -> Result<Self> {
        let n_groups = counts.n_parts().min(4 * parallel::resolve_threads(threads));
        let parts: Vec<_> = (0..n_groups)
            .map(|group| counts.n_parts() * group / n_groups..counts.n_parts() * (group + 1) / n_groups)
            .collect();
        let tallies = parallel::run(threads, n_groups, control, Vec::new, |tallies, group| {
            tallies.push((group, Tally::new(counts, parts[group].clone())));
            Ok(())
        })?;
        let mut tallies: Vec<_> = tallies.into_iter().flatten().collect();
        tallies.sort_unstable_by_key(|&(group, _)| group);
        let mut all: Vec<u64> = tallies.iter().flat_map(|(_, tally)| tally.counts()).collect();
        all.sort_unstable_by(|a, b| b.cmp(a));
        all.dedup();
        let mut small = vec![0; SMALL];
        for (class, &n) in (0..).zip(&all).filter(|&(_, &n)| n < SMALL as u64) {
            small[n as usize] = class;
        }
        let groups = tallies
            .iter()
            .zip(parts)
            .map(|((_, tally), parts)| Group { parts, n_places: all.iter().map(|&n| tally.n_places(n)).collect() });
        let n_words = tallies.iter().map(|(_, tally)| tally.n_words).sum();
        let n_pairs = tallies.iter().map(|(_, tally)| tally.n_pairs).sum();
        let mut classes = Self { groups: groups.collect(), counts: all, small, n_words, n_borders: 0 };
        classes.check_sizes(n_pairs)?;
        classes.n_borders = classes.n_places() - 1 - 2 * n_words;
        Ok(classes)
    }

    fn check_sizes(&self, n_pairs: u128) -> Result<()> {
        let n_places = self.n_places();
        if u32::try_from(n_places).is_err() {
            return Err(Error::Argument(format!(
                "the distinct words must hold less than 4 GiB together, got {n_places} bytes; hint: use a pattern that \
                 cuts the text into shorter pieces"
            )));
        }
        if n_pairs > u128::from(u64::MAX) {
            return Err(Error::Argument(format!(
                "the pairs of all words must occur less than 2^64 times, got {n_pairs}"
            )));
        }
        Ok(())
    }

    /// Places of all words, their gaps and one gap in front.
    pub(super) fn n_places(&self) -> usize {
        1 + self.groups.iter().flat_map(|group| &group.n_places).sum::<usize>()
    }

    /// The class of a count that occurs.
    #[inline]
    pub(super) fn class_of(&self, n: u64) -> usize {
        match self.small.get(n as usize) {
            Some(&class) => class as usize,
            None => self.counts.partition_point(|&other| other > n),
        }
    }
}

impl Tally {
    fn new(counts: &WordCounts, parts: Range<usize>) -> Self {
        let mut tally = Self { small: vec![0; SMALL], large: BTreeMap::new(), n_words: 0, n_pairs: 0 };
        for (word, n) in parts.flat_map(|part| counts.part(part)).filter(|(word, _)| word.len() > 1) {
            let n_places = match tally.small.get_mut(n as usize) {
                Some(n_places) => n_places,
                None => tally.large.entry(n).or_default(),
            };
            *n_places += word.len() + 1;
            tally.n_words += 1;
            tally.n_pairs += u128::from(n) * (word.len() as u128 - 1);
        }
        tally
    }

    fn counts(&self) -> impl Iterator<Item = u64> {
        let small = (0..).zip(&self.small).filter(|(_, n_places)| **n_places > 0).map(|(n, _)| n);
        small.chain(self.large.keys().copied())
    }

    fn n_places(&self, n: u64) -> usize {
        let small = self.small.get(n as usize).copied();
        small.unwrap_or_else(|| self.large.get(&n).copied().unwrap_or_default())
    }
}
