//! Options of training against the textbook: ties, limits, special tokens, going on from a vocabulary, merges across
//! spaces.

#![allow(clippy::unwrap_used)] // clippy.toml allows it in tests, but not in the functions that tests share

use std::sync::OnceLock;

use gptrs_core::count::superwords::{DEFAULT_BUDGET, Superwords, run_pattern};
use gptrs_core::count::{WordCounts, count_texts};
use gptrs_core::naive::{self, Pair};
use gptrs_core::train::{Recipe, Tie, superbpe};
use gptrs_core::{Control, Error, Result, SpecialToken, Specials, Splitter, Tokenizer, Vocab};
use proptest::prelude::*;

type Words = Vec<(Vec<u8>, u64)>;

fn recipe(vocab_size: usize) -> Recipe {
    Recipe { vocab_size, special_tokens: Vec::new(), min_count: 1, max_token_bytes: None, tie: Tie::Id }
}

fn gpt2() -> Splitter {
    Splitter::new("gpt2").unwrap()
}

fn counts_of(words: &Words) -> WordCounts {
    let mut counts = WordCounts::new();
    for (word, n) in words {
        counts.add(word, *n).unwrap();
    }
    counts
}

fn train(recipe: &Recipe, words: &Words, base: Option<&Tokenizer>) -> Result<Tokenizer> {
    recipe.train(&counts_of(words), &gpt2(), base, 2, &Control::new())
}

fn tokens(tokenizer: &Tokenizer) -> Vec<Vec<u8>> {
    (0..tokenizer.vocab_size() as u32).map(|id| tokenizer.token_bytes(id).unwrap().to_vec()).collect()
}

/// What `id` spells when bytes are the first ids and `merges` follow.
fn spell(merges: &[Pair], id: u32) -> Vec<u8> {
    match merges.get(id.wrapping_sub(256) as usize) {
        None => vec![id as u8],
        Some(&(left, right)) => [spell(merges, left), spell(merges, right)].concat(),
    }
}

fn bytes(words: &Words) -> Vec<(Vec<u32>, u64)> {
    words.iter().map(|(word, n)| (word.iter().map(|&b| u32::from(b)).collect(), *n)).collect()
}

/// Encodes by the textbook.
fn encode(vocab: &Vocab, piece: &[u8]) -> Vec<u32> {
    let id_of = |&(left, right): &Pair| {
        let product = [vocab.token(left).unwrap(), vocab.token(right).unwrap()].concat();
        ((left, right), vocab.id(&product).unwrap())
    };
    let ranked: Vec<_> = vocab.merges().iter().map(id_of).collect();
    naive::encode_piece(piece, vocab.byte_ids(), &ranked)
}

/// Words over few letters: runs, overlaps and equal counts everywhere.
fn words(max_count: u64) -> impl Strategy<Value = Words> {
    let letters = prop::sample::select(b"aab c\xC3\xA9~".to_vec());
    prop::collection::vec((prop::collection::vec(letters, 1..20), 1..=max_count), 1..12)
}

// ── ties ──

#[test]
fn hugging_faces_order_puts_special_tokens_then_printable_bytes_first() {
    let words = vec![(b"ab".to_vec(), 2), (b" a".to_vec(), 2)];
    let special_tokens = vec!["<s>".to_owned(), "</s>".to_owned()];
    let tokenizer = train(&Recipe { special_tokens, tie: Tie::HuggingFace, ..recipe(260) }, &words, None).unwrap();
    let tokens = tokens(&tokenizer);
    assert_eq!(tokens[..4], [&b"<s>"[..], b"</s>", b"!", b"\""]);
    assert_eq!(tokens[2..258].iter().map(|t| t[0]).collect::<std::collections::BTreeSet<u8>>().len(), 256);
    // Space is U+0120 in the alphabet, behind the letters: (a, b) comes before (space, a). By bytes it is the other way.
    assert_eq!(tokens[258..], [&b"ab"[..], b" a"]);
    assert_eq!(tokenizer.vocab().token(0), None);
    assert_eq!(self::tokens(&train(&recipe(258), &words, None).unwrap())[256..], [&b" a"[..], b"ab"]);
}

// ── going on ──

#[test]
fn a_base_keeps_its_ids_and_new_merges_then_special_tokens_follow() {
    let first = Recipe { special_tokens: vec!["<|end|>".to_owned()], ..recipe(258) };
    let base = train(&first, &vec![(b"abc".to_vec(), 5)], None).unwrap();
    assert_eq!(tokens(&base)[256..], [&b"ab"[..], b"<|end|>"]);
    let special_tokens = ["<|end|>", "<|more|>"].map(str::to_owned).to_vec();
    let more = Recipe { special_tokens, ..recipe(261) };
    let longer = train(&more, &vec![(b"abc".to_vec(), 3), (b"abd".to_vec(), 2)], Some(&base)).unwrap();
    assert_eq!(tokens(&longer)[256..], [&b"ab"[..], b"<|end|>", b"abc", b"abd", b"<|more|>"]);
    assert_eq!(longer.vocab().merges()[..1], *base.vocab().merges());
    assert_eq!(longer.encode(b"abcabd<|more|>", Specials::All, Specials::None).unwrap(), [258, 259, 260]);
    let end = train(&Recipe { vocab_size: 258, ..more.clone() }, &vec![(b"ab".to_vec(), 1)], Some(&base));
    refused(end, &["at least 259", "258 ids of the base and 1 special", "got 258", "hint:"]);
    let end = train(&Recipe { tie: Tie::HuggingFace, ..more }, &vec![(b"ab".to_vec(), 1)], Some(&base));
    refused(end, &["decide ties", "hint:"]);
}

#[test]
fn a_base_from_ranks_with_unreachable_tokens_gets_no_token_twice() {
    // "abc" cannot be made: neither "ab" nor "bc" is a token. A piece "abc" is one token all the same.
    let mut ranks: Vec<Vec<u8>> = (0..=255).map(|byte| vec![byte]).collect();
    ranks.push(b"abc".to_vec());
    let base = Tokenizer::new(Vocab::from_ranks(&ranks).unwrap(), gpt2(), Vec::new()).unwrap();
    let words = vec![(b"abcd".to_vec(), 9), (b"abc".to_vec(), 100)];
    let longer = train(&recipe(262), &words, Some(&base)).unwrap();
    // ab, then not (ab, c), which spells the token that is there.
    assert_eq!(tokens(&longer)[256..], [&b"abc"[..], b"ab", b"cd", b"abcd"]);
    assert_eq!(longer.encode_ordinary(b"abc").unwrap(), [256]);
    assert_eq!(longer.encode_ordinary(b"abcd").unwrap(), [259]);
}

// ── bad input ──

#[track_caller]
fn refused(end: Result<Tokenizer>, parts: &[&str]) {
    let Err(error) = end else { panic!("expected an error") };
    let message = error.to_string();
    assert!(matches!(error, Error::Argument(_) | Error::Vocab(_)), "{error:?}");
    for part in parts {
        assert!(message.contains(part), "{message:?} does not say {part:?}");
    }
}

#[test]
fn options_that_cannot_be_kept_are_refused_before_the_work() {
    let words = vec![(b"ab".to_vec(), 1)];
    let special = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect::<Vec<_>>();
    let with = |vocab_size, texts: &[&str]| Recipe { special_tokens: special(texts), ..recipe(vocab_size) };
    refused(train(&recipe(255), &words, None), &["at least 256", "got 255", "hint:"]);
    refused(train(&with(257, &["<a>", "<b>"]), &words, None), &["at least 258 (256 bytes and 2 special tokens)"]);
    refused(train(&with(300, &["<a>", "<a>"]), &words, None), &["special token \"<a>\" has ids 256 and 257"]);
    refused(train(&with(300, &[""]), &words, None), &["empty"]);
    refused(train(&with(300, &["a"]), &words, None), &["\"a\"", "also the ordinary token 97"]);
    refused(train(&Recipe { max_token_bytes: Some(1), ..recipe(300) }, &words, None), &["at least 2, got 1"]);
    for tie in [Tie::Id, Tie::HuggingFace] {
        assert!(Recipe { tie, ..with(300, &["<a>", "<a>"]) }.check(None).is_err());
    }
    let check = |recipe: Recipe, transition| superbpe::check(&recipe, transition).unwrap_err().to_string();
    assert!(check(recipe(300), 255).contains("256 (256 bytes and the special tokens) to vocab_size=300, got 255"));
    assert!(check(recipe(300), 301).contains("got 301"));
    assert!(check(Recipe { tie: Tie::HuggingFace, ..recipe(300) }, 280).contains("tie=\"id\""));
}

#[test]
fn a_special_token_that_begins_another_is_fine_and_the_longest_wins() {
    let special_tokens = ["<|a", "<|a|>"].map(str::to_owned).to_vec();
    let tokenizer = train(&Recipe { special_tokens, ..recipe(259) }, &vec![(b"xy".to_vec(), 1)], None).unwrap();
    let expected = [SpecialToken { text: "<|a".into(), id: 257 }, SpecialToken { text: "<|a|>".into(), id: 258 }];
    assert_eq!(tokenizer.specials(), expected);
    assert_eq!(tokenizer.encode(b"<|a|><|ab", Specials::All, Specials::None).unwrap(), [258, 257, u32::from(b'b')]);
}

#[test]
fn a_merge_never_spells_a_special_token() {
    let words = vec![(b"user".to_vec(), 9), (b"users".to_vec(), 2)];
    for tie in [Tie::Id, Tie::HuggingFace] {
        let recipe = Recipe { special_tokens: vec!["user".to_owned()], tie, ..recipe(270) };
        let tokenizer = train(&recipe, &words, None).unwrap();
        let spelled: Vec<_> = tokens(&tokenizer).into_iter().filter(|token| token.len() > 1).collect();
        assert_eq!(spelled.iter().filter(|&token| token == b"user").count(), 1, "the special token alone");
        assert!(spelled.contains(&b"use".to_vec()) || spelled.contains(&b"ser".to_vec()));
        assert!(!tokenizer.encode_ordinary(b"user").unwrap().contains(&tokenizer.token_id(b"user").unwrap()));
    }
}

// ── merges across spaces ──

#[test]
fn the_second_stage_joins_words_that_often_stand_together() {
    let text = "by the way, by the sea. by the way\n".repeat(5);
    let mut counted = Superwords::new(&gpt2(), DEFAULT_BUDGET).unwrap();
    counted.add_texts(&[&text], 1, &Control::new()).unwrap();
    let stages = counted.finish().unwrap();
    let tokenizer = superbpe::train(&recipe(271), 266, &stages, 2, &Control::new()).unwrap();
    let tokens = tokens(&tokenizer);
    assert!(tokens[..266].iter().all(|token| token.len() < 2 || !token[1..].contains(&b' ')));
    assert!(tokens[266..].iter().any(|token| token == b"by the way"), "{:?}", &tokens[266..]);
    let first = train(&recipe(266), &text_words(&[&text]), None).unwrap();
    assert_eq!(tokenizer.vocab().merges()[..10], *first.vocab().merges());
    assert!(tokenizer.splitter().pattern().contains("{0,63}"));
}

fn text_words(texts: &[&str]) -> Words {
    count_texts(texts, &gpt2(), 1, &Control::new()).unwrap().iter().map(|(word, n)| (word.to_vec(), n)).collect()
}

fn runs() -> &'static Splitter {
    static RUNS: OnceLock<Splitter> = OnceLock::new();
    RUNS.get_or_init(|| Splitter::new(&run_pattern(&gpt2()).unwrap()).unwrap())
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

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn limits_and_reserved_texts_equal_the_textbook(
        words in words(9), max in prop::option::of(2..6usize), n_merges in 0..50usize, min_count in 0..4u64,
        reserved in prop::sample::subsequence(vec!["ab", "aa", "a b", "bé", "aab", "~~"], 0..4),
    ) {
        let specials: Vec<String> = reserved.iter().map(|&text| text.to_owned()).collect();
        let recipe = Recipe {
            vocab_size: 256 + specials.len() + n_merges, special_tokens: specials, min_count, max_token_bytes: max, tie: Tie::Id,
        };
        let allow = |merges: &[Pair], (left, right): Pair| {
            let token = [spell(merges, left), spell(merges, right)].concat();
            max.is_none_or(|max| token.len() <= max) && reserved.iter().all(|text| text.as_bytes() != token)
        };
        let expected = naive::resume(bytes(&words), 256, n_merges, min_count, allow);
        let tokenizer = train(&recipe, &words, None).unwrap();
        prop_assert_eq!(tokenizer.vocab().merges(), &expected[..]);
        prop_assert_eq!(tokenizer.vocab().unreachable(), &[0u32; 0][..]);
    }

    #[test]
    fn hugging_faces_tie_equals_the_textbook_over_its_ids(words in words(3), n_specials in 0..3usize, n_merges in 0..40usize) {
        let special_tokens: Vec<String> = (0..n_specials).map(|i| format!("<{i}>")).collect();
        let recipe = Recipe { special_tokens, tie: Tie::HuggingFace, ..recipe(256 + n_specials + n_merges) };
        let tokenizer = train(&recipe, &words, None).unwrap();
        let ids = tokenizer.vocab().byte_ids();
        let words = words.iter().map(|(word, n)| (word.iter().map(|&b| ids[usize::from(b)]).collect(), *n)).collect();
        let expected = naive::resume(words, 256 + n_specials as u32, n_merges, 1, |_, _| true);
        prop_assert_eq!(tokenizer.vocab().merges(), &expected[..]);
    }

    #[test]
    fn going_on_equals_the_textbook(
        first in words(9), second in words(9), n_first in 0..20usize, n_second in 0..30usize, min_count in 0..4u64,
        tie in prop::sample::select(vec![Tie::Id, Tie::HuggingFace]),
    ) {
        let special_tokens = vec!["<|end|>".to_owned()];
        let base = train(&Recipe { special_tokens: special_tokens.clone(), tie, ..recipe(257 + n_first) }, &first, None).unwrap();
        let n_base = base.vocab_size();
        let recipe = Recipe { special_tokens, min_count, ..recipe(n_base + n_second) };
        let tokenizer = train(&recipe, &second, Some(&base)).unwrap();
        let segmented = second.iter().map(|(word, n)| (encode(base.vocab(), word), *n)).collect();
        let expected = naive::resume(segmented, n_base as u32, n_second, min_count, |_, _| true);
        let merges = tokenizer.vocab().merges();
        prop_assert_eq!(&merges[..base.vocab().merges().len()], base.vocab().merges());
        prop_assert_eq!(&merges[base.vocab().merges().len()..], &expected[..]);
        prop_assert_eq!(tokens(&tokenizer)[..n_base].to_vec(), tokens(&base));
        for (word, _) in first.iter().chain(&second) {
            let vocab = tokenizer.vocab();
            let ids: Vec<u32> = pieces(&gpt2(), word).iter().flat_map(|piece| encode(vocab, piece)).collect();
            prop_assert_eq!(tokenizer.encode_ordinary(word).unwrap(), ids);
        }
    }

    #[test]
    fn both_stages_equal_the_textbook_and_encoding_equals_training(
        parts in prop::collection::vec(
            prop::sample::select(vec![" the", " of", " a", "a", "it's", " it", ",", "\n", "  ", "12", "é", " 日本"]), 1..40),
        n_first in 0..12usize, n_second in 0..20usize,
    ) {
        let (text, control) = (parts.concat(), Control::new());
        let mut counted = Superwords::new(&gpt2(), DEFAULT_BUDGET).unwrap();
        counted.add_texts(&[&text], 2, &control).unwrap();
        let recipe = recipe(256 + n_first + n_second);
        let tokenizer = superbpe::train(&recipe, 256 + n_first, &counted.finish().unwrap(), 2, &control).unwrap();

        let mut merges = naive::train(&text_words(&[&text]), n_first, 1);
        let first = Vocab::from_merges(&merges).unwrap();
        let second = pieces(runs(), text.as_bytes()).iter().map(|run| (encode(&first, run), 1)).collect();
        let n_second = n_first + n_second - merges.len();
        merges.extend(naive::resume(second, 256 + merges.len() as u32, n_second, 1, |_, _| true));
        prop_assert_eq!(tokenizer.vocab().merges(), &merges[..]);

        let all = Vocab::from_merges(&merges).unwrap();
        let ids: Vec<u32> = pieces(runs(), text.as_bytes()).iter().flat_map(|run| encode(&all, run)).collect();
        prop_assert_eq!(tokenizer.encode_ordinary(text.as_bytes()).unwrap(), ids);
        // The first stage's merges cut runs as they cut words.
        let by_runs: Vec<u32> = pieces(runs(), text.as_bytes()).iter().flat_map(|run| encode(&first, run)).collect();
        let by_words: Vec<u32> = pieces(&gpt2(), text.as_bytes()).iter().flat_map(|word| encode(&first, word)).collect();
        prop_assert_eq!(by_runs, by_words);
    }
}
