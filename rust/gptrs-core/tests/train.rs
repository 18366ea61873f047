//! Counting and training equal the textbook, on any corpus, any thread count and any order of words.

#![allow(clippy::unwrap_used)] // clippy.toml allows it in tests, but not in the functions that tests share

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

#[test]
fn counting_long_and_many_texts_gives_the_same_on_any_thread_count() {
    let line = "The day was fine; 天地玄黄、宇宙洪荒。 a-word-that-is-longer-than-fifteen-bytes it\u{a0}isn't\r\n";
    let mut texts: Vec<String> = (0..3000).map(|i| format!("{i} {line}")).collect();
    texts.insert(1000, line.repeat(30_000)); // more than one task
    texts.push(String::new());
    for pattern in ["gpt2", "cl100k_base", r"\p{L}+"] {
        let splitter = Splitter::new(pattern).unwrap();
        let mut expected = WordCounts::new();
        for text in &texts {
            splitter.for_each_piece(text.as_bytes(), |piece| expected.add(piece, 1)).unwrap();
        }
        for threads in [1, 2, 5] {
            let control = Control::new();
            let counts = count_texts(&texts, &splitter, threads, &control).unwrap();
            assert_eq!(map_of(&counts), map_of(&expected), "{pattern} on {threads} threads");
            let n_bytes: usize = texts.iter().map(String::len).sum();
            assert_eq!((counts.n_bytes(), control.progress().done), (n_bytes as u64, n_bytes as u64));
            let batches = texts.chunks(700).try_fold(Counter::new(&splitter, threads), |c, b| c.add_texts(b, &control));
            assert_eq!(map_of(&batches.unwrap().finish(&control).unwrap()), map_of(&expected), "{pattern} in batches");
        }
    }
}

#[test]
fn more_distinct_words_than_any_table_starts_with_are_counted() {
    let word = |mut i: usize| {
        let mut word = String::from(" ");
        while i > 0 {
            word.push(char::from(b'a' + (i % 26) as u8));
            i /= 26;
        }
        word
    };
    let text: String = (1..30_000).map(|i| word(i) + &word(i % 700) + &word(i) + "andmorethanfifteenbytes").collect();
    let splitter = Splitter::new("gpt2").unwrap();
    let mut expected = WordCounts::new();
    splitter.for_each_piece(text.as_bytes(), |piece| expected.add(piece, 1)).unwrap();
    assert!(expected.len() > 59_000);
    for threads in [1, 3] {
        let counts = count_texts(&[&text, &text], &splitter, threads, &Control::new()).unwrap();
        let mut twice = expected.clone();
        twice.merge(expected.clone()).unwrap();
        assert_eq!(map_of(&counts), map_of(&twice), "{threads} threads");
    }
}

#[test]
fn counts_beyond_32_bits_are_exact() {
    let words = [(b"the".to_vec(), 1 << 33), (b"then".to_vec(), (1 << 33) + 1), (b"hen".to_vec(), 1 << 34)];
    assert_eq!(merges(&words, 10, 1), naive::train(&words, 10, 1));
    assert_eq!(merges(&words, 10, 1 << 34), naive::train(&words, 10, 1 << 34));
}

#[test]
fn counts_up_to_the_last_of_64_bits_are_exact_and_one_more_is_an_error() {
    let full = [(b"abab".to_vec(), u64::MAX / 3)];
    assert_eq!(merges(&full, 10, 1), naive::train(&full, 10, 1));
    let mut counts = counts_of(&full);
    counts.add(b"xy", 1).unwrap();
    let end = train(&counts, &TrainOptions { n_merges: 1, min_count: 1 }, 1, &Control::new());
    assert!(matches!(&end, Err(Error::Argument(reason)) if reason.contains("2^64")), "{end:?}");
    for word in [&b"short"[..], b"a word of more than fifteen bytes"] {
        let mut counts = WordCounts::new();
        counts.add(word, u64::MAX).unwrap();
        assert!(matches!(counts.add(word, 1), Err(Error::Argument(_))));
        assert!(matches!(counts.clone().merge(counts), Err(Error::Argument(_))));
    }
}

#[test]
fn a_large_vocabulary_begins_with_the_small_one() {
    // More ids than 16 bits hold, against fewer: two symbol widths, two schedules of the floor.
    let mut state = 7u64;
    let mut letter = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        b'a' + ((state >> 33) % 26).min(state >> 59) as u8
    };
    let words: Words =
        (0..40_000u64).map(|i| ((0..3 + i % 9).map(|_| letter()).collect(), 1 + 100_000 / (i + 1))).collect();
    let large = merges(&words, 70_000, 1);
    assert!(large.len() > 66_000, "{}", large.len());
    for n in [300, 3000, 60_000] {
        assert_eq!(merges(&words, n, 1), large[..n]);
    }
}

#[test]
fn nothing_to_merge_is_no_error_but_nothing_at_all_is() {
    assert_eq!(merges(&[(b"a".to_vec(), 5)], 10, 1), []);
    assert_eq!(merges(&[(b"ab".to_vec(), 5)], 0, 1), []);
    let end = train(&WordCounts::new(), &TrainOptions { n_merges: 1, min_count: 1 }, 1, &Control::new());
    assert!(matches!(end, Err(Error::EmptyCorpus)));
    let nothing = count_texts(&[""; 3], &Splitter::new("gpt2").unwrap(), 2, &Control::new()).unwrap();
    assert!(nothing.is_empty());
}

#[test]
fn a_cancelled_call_ends_at_once() {
    let control = Control::new();
    control.cancel();
    let splitter = Splitter::new("gpt2").unwrap();
    assert!(matches!(count_texts(&["some text"], &splitter, 2, &control), Err(Error::Interrupted)));
    let counts = counts_of(&[(b"some text".to_vec(), 3)]);
    let end = train(&counts, &TrainOptions { n_merges: 9, min_count: 1 }, 2, &control);
    assert!(matches!(end, Err(Error::Interrupted)));
}

#[test]
fn progress_reaches_the_number_of_merges() {
    let control = Control::new();
    let counts = counts_of(&[(b"abcdefgh".to_vec(), 3)]);
    train(&counts, &TrainOptions { n_merges: 5, min_count: 1 }, 2, &control).unwrap();
    let progress = control.progress();
    assert_eq!((progress.stage, progress.done, progress.total), ("merge pairs", 5, 5));
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
