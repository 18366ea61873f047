//! How often each token stands in the text that a tokenizer was trained on, from its counts alone.

use crate::control::Control;
use crate::count::WordCounts;
use crate::error::Result;
use crate::merge::Scratch;
use crate::parallel;
use crate::vocab::Vocab;

/// Words that one task encodes.
const TASK_WORDS: usize = 1 << 12;

/// Occurrences of each id when every word is encoded as often as it was counted; `u64::MAX` when it is more.
pub fn usage(counts: &WordCounts, vocab: &Vocab, threads: usize, control: &Control) -> Result<Vec<u64>> {
    let words: Vec<(&[u8], u64)> = counts.iter().collect();
    control.begin("measure words", words.len() as u64);
    let make_state = || (vec![0u64; vocab.len()], Scratch::default(), Vec::new());
    let n_tasks = words.len().div_ceil(TASK_WORDS);
    let parts = parallel::run(threads, n_tasks, control, make_state, |(sums, scratch, ids), task| {
        let range = task * TASK_WORDS..words.len().min((task + 1) * TASK_WORDS);
        control.advance(range.len() as u64);
        for &(word, n) in &words[range] {
            ids.clear();
            match vocab.whole_piece(word) {
                Some(id) => ids.push(id),
                None => vocab.merge_piece(word, scratch, control, ids)?,
            }
            for &id in &*ids {
                sums[id as usize] = sums[id as usize].saturating_add(n);
            }
        }
        Ok(())
    })?;
    let mut all = vec![0u64; vocab.len()];
    for (sums, ..) in parts {
        for (all, sum) in all.iter_mut().zip(sums) {
            *all = all.saturating_add(sum);
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_token_of_every_word_counts() {
        let vocab = Vocab::from_merges(&[(97, 98), (256, 256)]).unwrap();
        let mut counts = WordCounts::new();
        for (word, n) in [(&b"ab"[..], 3), (b"abab", 5), (b"ababab", 7), (b"ba", u64::MAX)] {
            counts.add(word, n).unwrap();
        }
        for threads in [1, 3] {
            let usage = usage(&counts, &vocab, threads, &Control::new()).unwrap();
            assert_eq!(usage[256..], [3 + 7, 5 + 7]);
            assert_eq!((usage[97], usage[98], usage[99]), (u64::MAX, u64::MAX, 0));
        }
    }
}
