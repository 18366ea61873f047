//! Encoding and decoding on random vocabularies and bytes, invalid UTF-8 included: a small worked example, then what
//! holds for all.
#![allow(clippy::unwrap_used)] // clippy.toml allows it in tests, but not in the functions that tests share

use std::collections::HashMap;
use std::sync::Arc;

use gptrs_core::naive::{self, Pair};
use gptrs_core::{Control, Error, Ids, SpecialToken, Specials, Splitter, Tokenizer, Vocab};
use proptest::prelude::*;

/// No pattern at all: a text is one piece, as far as it is valid UTF-8.
const WHOLE: &str = r"(?s)\A.*";

fn special(text: &str, id: u32) -> SpecialToken {
    SpecialToken { text: text.to_owned(), id }
}

fn tokenizer(merges: &[Pair], pattern: &str, specials: Vec<SpecialToken>) -> Tokenizer {
    Tokenizer::new(Vocab::from_merges(merges).unwrap(), Splitter::new(pattern).unwrap(), specials).unwrap()
}

/// "aa" is 256, "ab" is 257, "aaab" is 258; `<|end|>` is 300, `<|end|>!` is 301.
fn example() -> Tokenizer {
    let specials = vec![special("<|end|>!", 301), special("<|end|>", 300)];
    tokenizer(&[(97, 97), (97, 98), (256, 257)], "gpt2", specials)
}

#[test]
fn the_worked_example_encodes_and_decodes() {
    let tokenizer = example();
    assert_eq!(tokenizer.encode_ordinary(b"aaab aab").unwrap(), [258, 32, 256, 98]);
    assert_eq!(tokenizer.decode_bytes(&[258, 32, 300, 255]).unwrap(), b"aaab <|end|>\xFF");
    assert_eq!(tokenizer.count(b"aaab aab").unwrap(), 4);
    let (ids, spans) = tokenizer.encode_with_offsets(b"aaab aab").unwrap();
    assert_eq!((ids.len(), spans), (4, vec![(0, 4), (4, 5), (5, 7), (7, 8)]));
    assert_eq!((tokenizer.vocab_size(), tokenizer.vocab().len()), (302, 259));
    assert_eq!((tokenizer.token_bytes(259), tokenizer.token_bytes(300)), (None, Some(&b"<|end|>"[..])));
    assert_eq!((tokenizer.token_id(b"aaab"), tokenizer.token_id(b"<|end|>!")), (Some(258), Some(301)));
    let unknown = tokenizer.decode_bytes(&[97, 259]).unwrap_err().to_string();
    assert_eq!(unknown, "id 259 at position 1 is out of range: the vocabulary has 302 ids");
}

#[test]
fn special_tokens_are_refused_allowed_or_plain_text_as_the_caller_says() {
    let tokenizer = example();
    let text = b"aa<|end|>!aa<|end|>";
    let end = vec!["<|end|>".to_owned()];
    let all = tokenizer.encode(text, Specials::All, Specials::All).unwrap();
    assert_eq!(all, [256, 301, 256, 300], "the longest one at the same place");
    let Err(Error::SpecialToken { token, offset }) = tokenizer.encode(text, Specials::Set(&end), Specials::All) else {
        panic!("<|end|>! is disallowed");
    };
    assert_eq!((token.as_str(), offset), ("<|end|>!", 2));
    let some = tokenizer.encode(text, Specials::Set(&end), Specials::None).unwrap();
    assert_eq!(some, [256, 300, u32::from(b'!'), 256, 300]);
    let batch = tokenizer.encode_batch(&[&text[..2], text], Specials::All, 1, &Control::new()).unwrap();
    assert_eq!((batch.ids, batch.offsets), (Ids::U16(vec![256, 256, 301, 256, 300]), vec![0, 1, 5]));
    let none = tokenizer.encode(text, Specials::None, Specials::None).unwrap();
    assert_eq!(none, tokenizer.encode_ordinary(text).unwrap());
    let disallowed = tokenizer.encode(text, Specials::None, Specials::Set(&end));
    assert!(matches!(disallowed, Err(Error::SpecialToken { offset: 2, .. })));
    let unknown = tokenizer.encode(b"", Specials::Set(&["<s>".to_owned()]), Specials::None).unwrap_err();
    assert!(unknown.to_string().starts_with("\"<s>\" is not a special token; hint: "), "{unknown}");
}

#[test]
fn special_tokens_must_be_distinct_and_apart_from_other_tokens() {
    let vocab = || Vocab::from_merges(&[(97, 97)]).unwrap();
    let fails = |specials| match Tokenizer::new(vocab(), Splitter::new("gpt2").unwrap(), specials) {
        Err(Error::Vocab(reason)) => reason,
        other => panic!("{other:?}"),
    };
    assert!(fails(vec![special("", 300)]).contains("empty"));
    assert!(fails(vec![special("<s>", 300), special("<s>", 301)]).contains("has ids 300 and 301"));
    assert!(fails(vec![special("<s>", 300), special("</s>", 300)]).contains("both have id 300"));
    assert!(fails(vec![special("<s>", 256)]).contains("is the ordinary token \"aa\""));
    assert!(fails(vec![special("aa", 300)]).contains("also the ordinary token 256"));
    assert!(fails(vec![special("<s>", u32::MAX)]).contains("expected less than"));
}

#[test]
fn the_digest_tells_tokenizers_apart() {
    let merges = [(97, 97), (97, 98)];
    let end = || vec![special("<|endoftext|>", 258)];
    let one = tokenizer(&merges, "gpt2", end());
    assert_eq!(one.digest(), tokenizer(&merges, "gpt2", end()).digest());
    assert_eq!(one.eot_id(), Some(258));
    for other in [
        tokenizer(&merges, "cl100k_base", end()),
        tokenizer(&merges, "gpt2", vec![]),
        tokenizer(&merges, "gpt2", vec![special("<|endoftext|>", 259)]),
        tokenizer(&[(97, 98), (97, 97)], "gpt2", end()),
    ] {
        assert_ne!(one.digest(), other.digest());
    }
}

#[test]
fn a_cache_of_another_tokenizer_is_not_believed() {
    let (one, other) = (tokenizer(&[(97, 97)], "gpt2", vec![]), tokenizer(&[(97, 98)], "gpt2", vec![]));
    let (mut cache, mut ids) = (one.cache(), Vec::new());
    for tokenizer in [&one, &other, &one] {
        tokenizer.encode_into(&mut cache, b"aab", &mut ids).unwrap();
    }
    assert_eq!(ids, [256, 98, 97, 256, 256, 98]);
}

#[test]
fn a_megabyte_of_one_letter_takes_time_near_its_length() {
    let merges: Vec<Pair> = std::iter::once((97, 97)).chain((256..264).map(|id| (id, id))).collect();
    let tokenizer = tokenizer(&merges, "gpt2", vec![]);
    let start = std::time::Instant::now();
    let ids = tokenizer.encode_ordinary(&vec![b'a'; 1 << 20]).unwrap();
    assert_eq!(ids, vec![264; (1 << 20) / 512]);
    // Quadratic work would take minutes; this takes 0.2 s on a quiet machine.
    assert!(start.elapsed().as_secs() < 20, "{:?}", start.elapsed());
}

#[test]
fn a_cancelled_batch_ends_with_interrupted() {
    let control = Control::new();
    control.cancel();
    let end = example().encode_batch(&["aa"; 10], Specials::None, 2, &control);
    assert!(matches!(end, Err(Error::Interrupted)));
}

#[test]
fn no_texts_and_empty_texts_have_no_ids() {
    let tokenizer = example();
    let none: [&str; 0] = [];
    assert_eq!(tokenizer.encode_batch(&none, Specials::None, 0, &Control::new()).unwrap().offsets, [0]);
    let empty = tokenizer.encode_batch(&["", "", "a"], Specials::None, 0, &Control::new()).unwrap();
    assert_eq!((empty.ids, empty.offsets), (Ids::U16(vec![97]), vec![0, 0, 0, 1]));
    assert!(tokenizer.encode(b"", Specials::All, Specials::None).unwrap().is_empty());
}

#[test]
fn threads_that_share_a_megabyte_keep_the_order_of_the_texts() {
    let tokenizer = tokenizer(&[(97, 97), (97, 98), (256, 257)], "gpt2", vec![]);
    let texts: Vec<String> = (0..400).map(|i| format!("{i} aaab {}", "aab ab ".repeat(i * 2))).collect();
    let single: Vec<Vec<u32>> = texts.iter().map(|text| tokenizer.encode_ordinary(text.as_bytes()).unwrap()).collect();
    for threads in [1, 2, 3, 7] {
        let encoded = tokenizer.encode_batch(&texts, Specials::None, threads, &Control::new()).unwrap();
        assert_eq!(encoded.ids, Ids::U16(single.concat().iter().map(|&id| id as u16).collect()));
        let lengths: Vec<usize> = encoded.offsets.windows(2).map(|range| (range[1] - range[0]) as usize).collect();
        assert_eq!(lengths, single.iter().map(Vec::len).collect::<Vec<_>>());
    }
}

/// Text from a small alphabet, so that merges repeat; some bytes make it invalid.
fn bytes() -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![
        8 => prop::sample::select(b"aabc ".to_vec()),
        1 => prop::sample::select("日é😀".as_bytes().to_vec()),
        1 => any::<u8>(),
    ];
    prop_oneof![4 => prop::collection::vec(byte.clone(), 0..80), 1 => prop::collection::vec(byte, 80..400)]
}

/// Merges that training makes of random words.
fn merges() -> impl Strategy<Value = Vec<Pair>> {
    (prop::collection::vec((bytes(), 1..9_u64), 1..12), 0..60_usize).prop_map(|(words, n)| naive::train(&words, n, 1))
}

fn naive_ids(tokenizer: &Tokenizer, text: &[u8]) -> Vec<u32> {
    let ranked: Vec<_> = (256..).zip(tokenizer.vocab().merges()).map(|(id, &pair)| (pair, id)).collect();
    let mut ids = Vec::new();
    let each = |piece: &[u8]| {
        ids.extend(naive::encode_piece(piece, tokenizer.vocab().byte_ids(), &ranked));
        Ok(())
    };
    tokenizer.splitter().for_each_piece(text, each).unwrap();
    ids
}

/// tiktoken's rule, from its definition: a piece that is a token is that token, else the two neighbours whose bytes
/// together have the lowest rank merge, the leftmost of equals.
fn by_ranks(tokens: &[Vec<u8>], piece: &[u8]) -> Vec<u32> {
    let rank = |bytes: &[u8]| tokens.iter().position(|token| token == bytes);
    if let Some(id) = rank(piece) {
        return vec![id as u32];
    }
    let mut parts: Vec<Vec<u8>> = piece.iter().map(|&byte| vec![byte]).collect();
    while let Some((_, at)) = (1..parts.len()).filter_map(|i| Some((rank(&parts[i - 1..=i].concat())?, i - 1))).min() {
        let right = parts.remove(at + 1);
        parts[at].extend(right);
    }
    parts.iter().map(|part| rank(part).unwrap() as u32).collect()
}

/// Hugging Face's rule: the pair of the lowest rank merges, one place at a time, the leftmost first.
fn by_pairs(vocab: &Vocab, piece: &[u8]) -> Vec<u32> {
    if let Some(id) = vocab.id(piece).filter(|_| vocab.ignore_merges()) {
        return vec![id];
    }
    let mut ids: Vec<u32> = piece.iter().map(|&byte| vocab.byte_ids()[usize::from(byte)]).collect();
    let rank = |pair: &[u32]| vocab.merges().iter().position(|&merge| merge == (pair[0], pair[1]));
    while let Some((_, at)) = ids.windows(2).enumerate().filter_map(|(i, pair)| Some((rank(pair)?, i))).min() {
        let token = [vocab.token(ids[at]).unwrap(), vocab.token(ids[at + 1]).unwrap()].concat();
        ids[at] = vocab.id(&token).unwrap();
        ids.remove(at + 1);
    }
    ids
}

/// Bytes and random tokens in random order: parts of a token may be missing or have a higher rank than the whole.
fn wild_tokens() -> impl Strategy<Value = Vec<Vec<u8>>> {
    let token = prop::collection::vec(prop::sample::select(b"abc".to_vec()), 2..7);
    let tokens = prop::collection::btree_set(token, 0..40);
    tokens.prop_flat_map(|tokens| {
        let all: Vec<Vec<u8>> = (0..=255).map(|byte| vec![byte]).chain(tokens).collect();
        Just(all).prop_shuffle()
    })
}

/// A wild vocabulary with merges in any order.
fn wild_merges() -> impl Strategy<Value = (Vec<Vec<u8>>, Vec<Pair>, bool)> {
    (wild_tokens(), any::<bool>()).prop_flat_map(|(tokens, ignore_merges)| {
        let id = |bytes: &[u8]| tokens.iter().position(|token| token == bytes).map(|id| id as u32);
        let splits = tokens.iter().flat_map(|token| (1..token.len()).map(move |at| token.split_at(at)));
        let merges: Vec<Pair> = splits.filter_map(|(left, right)| id(left).zip(id(right))).collect();
        let n = merges.len();
        (Just(tokens), prop::sample::subsequence(merges, 0..=n).prop_shuffle(), Just(ignore_merges))
    })
}

/// A piece of few letters, also longer than one window of merging.
fn piece() -> impl Strategy<Value = String> {
    prop_oneof![3 => "[abc]{0,60}", 1 => "[abc]{60,220}"]
}

/// Characters of one to four bytes with and without spaces, words of two-byte letters, or rows of three-byte ones.
fn scripts(n: std::ops::Range<usize>) -> impl Strategy<Value = String> {
    let text_of = move |chars: &str| {
        let char = prop::sample::select(chars.chars().collect::<Vec<_>>());
        prop::collection::vec(char, n.clone()).prop_map(String::from_iter)
    };
    prop_oneof![
        text_of("ab éжз一丁中のー한국\u{200d}😀😁"),
        text_of("жзийклмнопрс ,"),
        text_of("一丁中乀のーはを한국、。1"),
    ]
}

/// Bytes and pieces of text cut anywhere, and any merges among them.
fn wild_scripts() -> impl Strategy<Value = (Vec<Vec<u8>>, Vec<Pair>, bool)> {
    let token = (scripts(1..4), 0..4_usize, 0..4_usize).prop_filter_map("at least two bytes", |(text, from, less)| {
        let bytes = text.as_bytes();
        (from + less + 2 <= bytes.len()).then(|| bytes[from..bytes.len() - less].to_vec())
    });
    (prop::collection::btree_set(token, 0..60), any::<bool>()).prop_flat_map(|(tokens, ignore_merges)| {
        let tokens: Vec<Vec<u8>> = (0..=255).map(|byte| vec![byte]).chain(tokens).collect();
        let id = |bytes: &[u8]| tokens.iter().position(|token| token == bytes).map(|id| id as u32);
        let splits = tokens.iter().flat_map(|token| (1..token.len()).map(move |at| token.split_at(at)));
        let merges: Vec<Pair> = splits.filter_map(|(left, right)| id(left).zip(id(right))).collect();
        (Just(tokens), Just(merges).prop_shuffle(), Just(ignore_merges))
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    /// Long enough for borders between characters to be looked for and for the cache to learn the tokens.
    #[test]
    fn long_texts_of_many_scripts_encode_as_their_pieces_do(
        (tokens, merges, ignore_merges) in wild_scripts(),
        lines in prop::collection::vec(scripts(1..40), 40..80),
        is_cut in any::<bool>(),
    ) {
        let vocab = Vocab::from_tokens(&tokens, merges, ignore_merges).unwrap();
        let tokenizer = Tokenizer::new(vocab, Splitter::new("gpt2").unwrap(), vec![]).unwrap();
        let mut text = Vec::new();
        for (i, line) in lines.iter().enumerate() {
            // Some lines end inside of a character.
            let n = line.len() - if is_cut { i % 3 } else { 0 }.min(line.len());
            text.extend([b"a", &line.as_bytes()[..n], b"b\n"].concat());
        }
        let text = text.repeat((300 << 10) / text.len() + 1);
        let (mut seen, mut expected) = (HashMap::new(), Vec::new());
        let each = |piece| {
            let ids: &Vec<u32> = seen.entry(piece).or_insert_with(|| by_pairs(tokenizer.vocab(), piece));
            expected.extend_from_slice(ids);
            Ok(())
        };
        tokenizer.splitter().for_each_piece(&text, each).unwrap();
        let mut cache = tokenizer.cache();
        for _ in 0..2 {
            let mut ids = Vec::new();
            tokenizer.encode_into(&mut cache, &text, &mut ids).unwrap();
            prop_assert!(ids == expected, "{} ids of {}", ids.len(), expected.len());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn encoding_is_the_textbook_one(merges in merges(), texts in prop::collection::vec(bytes(), 1..4)) {
        for pattern in ["gpt2", WHOLE] {
            let tokenizer = tokenizer(&merges, pattern, vec![]);
            // Twice, so that the second time comes from the cache.
            for text in texts.iter().chain(&texts) {
                prop_assert_eq!(tokenizer.encode_ordinary(text).unwrap(), naive_ids(&tokenizer, text));
            }
        }
    }

    #[test]
    fn decoding_gives_the_bytes_back_and_spans_cover_them(merges in merges(), text in bytes()) {
        let tokenizer = tokenizer(&merges, "cl100k_base", vec![]);
        let (ids, spans) = tokenizer.encode_with_offsets(&text).unwrap();
        prop_assert_eq!(&tokenizer.decode_bytes(&ids).unwrap(), &text);
        prop_assert_eq!(spans.len(), ids.len());
        let mut end = 0;
        for (&id, &(start, stop)) in ids.iter().zip(&spans) {
            prop_assert_eq!(start, end);
            prop_assert_eq!(tokenizer.token_bytes(id).unwrap(), &text[start..stop]);
            end = stop;
        }
        prop_assert_eq!(end, text.len());
    }

    #[test]
    fn every_token_of_a_trained_vocabulary_encodes_to_itself(merges in merges()) {
        let vocab = Vocab::from_merges(&merges).unwrap();
        prop_assert!(vocab.unreachable().is_empty());
        let tokens: Vec<_> = (0..vocab.len() as u32).map(|id| vocab.token(id).unwrap()).collect();
        let ranked = Vocab::from_ranks(&tokens).unwrap();
        prop_assert_eq!(ranked.merges(), vocab.merges());
        prop_assert!(!ranked.ignore_merges());
    }

    #[test]
    fn a_batch_is_its_texts_one_by_one(
        merges in merges(), texts in prop::collection::vec(bytes(), 0..30), copies in 1..200_usize, threads in 0..5_usize
    ) {
        let tokenizer = tokenizer(&merges, "gpt2", vec![]);
        let texts: Vec<_> = texts.iter().map(|text| text.repeat(copies)).collect();
        let encoded = tokenizer.encode_batch(&texts, Specials::None, threads, &Control::new()).unwrap();
        let Ids::U16(ids) = encoded.ids else { panic!("a small vocabulary") };
        prop_assert_eq!(encoded.offsets.len(), texts.len() + 1);
        for (text, range) in texts.iter().zip(encoded.offsets.windows(2)) {
            let ids: Vec<u32> = ids[range[0] as usize..range[1] as usize].iter().map(|&id| u32::from(id)).collect();
            prop_assert_eq!(ids, tokenizer.encode_ordinary(text).unwrap());
            prop_assert_eq!(tokenizer.count(text).unwrap() as i64, range[1] - range[0]);
        }
    }

    #[test]
    fn the_size_of_the_cache_is_never_visible(
        merges in merges(), texts in prop::collection::vec(bytes(), 1..20), cache_bytes in 0..4096_usize
    ) {
        let large = tokenizer(&merges, "gpt2", vec![]);
        let tiny = tokenizer(&merges, "gpt2", vec![]).with_cache_bytes(cache_bytes);
        for text in texts.iter().chain(&texts) {
            prop_assert_eq!(tiny.encode_ordinary(text).unwrap(), large.encode_ordinary(text).unwrap());
        }
    }

    #[test]
    fn streaming_gives_the_lossy_text_in_whole_characters(merges in merges(), text in bytes()) {
        let tokenizer = Arc::new(tokenizer(&merges, "gpt2", vec![]));
        let mut decoder = tokenizer.decoder();
        let ids = tokenizer.encode_ordinary(&text).unwrap();
        let mut parts: Vec<String> = ids.iter().map(|&id| decoder.push(id).unwrap()).collect();
        parts.push(decoder.finish());
        prop_assert_eq!(parts.concat(), String::from_utf8_lossy(&text));
        prop_assert!(decoder.push(70_000).is_err());
        prop_assert_eq!(decoder.push(97).unwrap(), "a");
    }

    #[test]
    fn ranks_encode_by_their_definition(tokens in wild_tokens(), piece in piece()) {
        let vocab = Vocab::from_ranks(&tokens).unwrap();
        let tokenizer = Tokenizer::new(vocab, Splitter::new(WHOLE).unwrap(), vec![]).unwrap();
        let expected = by_ranks(&tokens, piece.as_bytes());
        prop_assert_eq!(tokenizer.encode_ordinary(piece.as_bytes()).unwrap(), expected);
        for token in &tokens {
            prop_assert_eq!(tokenizer.encode_ordinary(token).unwrap(), by_ranks(&tokens, token));
        }
    }

    #[test]
    fn pairs_encode_by_their_definition((tokens, merges, ignore_merges) in wild_merges(), piece in piece()) {
        let vocab = Vocab::from_tokens(&tokens, merges, ignore_merges).unwrap();
        let tokenizer = Tokenizer::new(vocab, Splitter::new(WHOLE).unwrap(), vec![]).unwrap();
        let vocab = tokenizer.vocab();
        for text in tokens.iter().map(Vec::as_slice).chain([piece.as_bytes()]) {
            prop_assert_eq!(tokenizer.encode_ordinary(text).unwrap(), by_pairs(vocab, text));
        }
        for id in 0..vocab.len() as u32 {
            let alone = Vocab::from_tokens(&tokens, vocab.merges().to_vec(), false).unwrap();
            let is_itself = by_pairs(&alone, vocab.token(id).unwrap()) == [id];
            prop_assert_eq!(vocab.unreachable().contains(&id), !is_itself);
        }
    }
}
