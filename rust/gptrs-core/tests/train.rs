//! Counting and training equal the textbook, on any corpus, any thread count and any order of words.

use std::collections::BTreeMap;

use gptrs_core::control::Control;
use gptrs_core::count::{Counter, WordCounts, count_texts};
use gptrs_core::split::Splitter;
use gptrs_core::train::{TrainOptions, train};
use gptrs_core::{Error, naive};
use proptest::prelude::*;

type Words = Vec<(Vec<u8>, u64)>;

fn counts_of(words: &[(Vec<u8>, u64)]) -> WordCounts {
    let mut counts = WordCounts::new();
    for (word, n) in words {
        counts.add(word, *n).unwrap();
    }
    counts
}

fn merges(words: &[(Vec<u8>, u64)], n_merges: usize, min_count: u64) -> Vec<(u32, u32)> {
    train(&counts_of(words), &TrainOptions { n_merges, min_count }, 1, &Control::new()).unwrap()
}

fn map_of(counts: &WordCounts) -> BTreeMap<Vec<u8>, u64> {
    counts.iter().map(|(word, n)| (word.to_vec(), n)).collect()
}

/// Words over few letters: runs, overlaps and equal counts everywhere.
fn words(n_letters: u8, max_len: usize, max_count: u64) -> impl Strategy<Value = Words> {
    let word = prop::collection::vec(b'a'..b'a' + n_letters, 1..max_len);
    prop::collection::vec((word, 1..=max_count), 1..12)
}

fn any_words() -> impl Strategy<Value = Words> {
    prop_oneof![words(1, 40, 3), words(2, 24, 2), words(3, 16, 4), words(4, 30, 100), words(26, 8, 1 << 40)]
}

#[test]
fn the_first_merges_of_a_known_text_are_its_most_frequent_pairs() {
    let text = "low low low low low lower lower newest newest newest newest newest newest widest widest widest";
    let counts = count_texts(&[text], &Splitter::new(r"\w+").unwrap(), 1, &Control::new()).unwrap();
    let merges = train(&counts, &TrainOptions { n_merges: 5, min_count: 1 }, 1, &Control::new()).unwrap();
    let mut tokens: Vec<String> = (0..=255u8).map(|b| (b as char).to_string()).collect();
    for &(left, right) in &merges {
        tokens.push(tokens[left as usize].clone() + &tokens[right as usize]);
    }
    // Sennrich et al. 2016, figure 1, without the end-of-word mark: es 9, est 9, lo 7, low 7, then new or ew 6.
    assert_eq!(tokens[256..], ["es", "est", "lo", "low", "ew"]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10_000))]

    #[test]
    fn training_equals_the_textbook(words in any_words(), n_merges in 0..60usize, min_count in 0..5u64) {
        prop_assert_eq!(merges(&words, n_merges, min_count), naive::train(&words, n_merges, min_count));
    }

    #[test]
    fn training_to_the_end_equals_the_textbook_in_any_order_of_words(words in any_words(), turn in 0..12usize) {
        let expected = naive::train(&words, usize::MAX, 1);
        let mut turned = words.clone();
        turned.rotate_left(turn % words.len());
        prop_assert_eq!(&merges(&words, usize::MAX, 1), &expected);
        prop_assert_eq!(&merges(&turned, usize::MAX, 1), &expected);
    }

    #[test]
    fn counting_equals_a_map(words in prop::collection::vec((prop::collection::vec(any::<u8>(), 0..40), 0..3u64), 0..60)) {
        let mut expected: BTreeMap<Vec<u8>, u64> = BTreeMap::new();
        for (word, n) in words.iter().filter(|(word, n)| !word.is_empty() && *n > 0) {
            *expected.entry(word.clone()).or_default() += n;
        }
        let (left, right) = words.split_at(words.len() / 2);
        let mut joined = counts_of(left);
        joined.merge(counts_of(right)).unwrap();
        for counts in [joined, counts_of(&words)] {
            prop_assert_eq!(&map_of(&counts), &expected);
            prop_assert_eq!(counts.len(), expected.len());
            prop_assert_eq!(counts.n_bytes(), expected.iter().map(|(word, n)| word.len() as u64 * n).sum::<u64>());
        }
    }
}
