//! Encoding as users call it: every way gives the ids of the plain one, on any number of threads.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fmt::Write as _;
use std::fs;

use gptrs_core::count::count_texts;
use gptrs_core::naive;
use gptrs_core::split::Splitter;
use gptrs_core::train::{TrainOptions, train};
use gptrs_core::{
    Control, Dropout, EncodeOptions, Error, SpecialToken, Specials, Tokenizer, Unit, Vocab, WarmWords, formats,
};
use proptest::prelude::*;

/// Prose without an end: words of one to three letters and what stands between them.
fn prose(n_bytes: usize) -> String {
    let mut text = String::with_capacity(n_bytes + 64);
    let mut state = 7u64;
    while text.len() < n_bytes {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let pick = |of: &'static [&'static str], shift: u32| of[(state >> shift) as usize % of.len()];
        text.push_str(pick(
            &["th", "a", "low", "er", "new", "est", "\u{e9}t\u{e9}", "日本", "x1", "'s", "\u{1f600}"],
            33,
        ));
        text.push_str(pick(&["", "", " ", " ", ", ", "\n", "  ", "\n\n   "], 40));
        if state >> 52 == 0 {
            let _ = write!(text, "{state}");
        }
    }
    text
}

fn tokenizer(pattern: &str, specials: &[&str]) -> Tokenizer {
    let splitter = Splitter::new(pattern).unwrap();
    let counts = count_texts(&[prose(20_000)], &splitter, 1, &Control::new()).unwrap();
    let merges = train(&counts, &TrainOptions { n_merges: 120, min_count: 1 }, 1, &Control::new()).unwrap();
    let vocab = Vocab::from_merges(&merges).unwrap();
    let specials = specials.iter().zip(vocab.len() as u32..);
    let specials = specials.map(|(text, id)| SpecialToken { text: (*text).to_owned(), id }).collect();
    Tokenizer::new(vocab, splitter, specials).unwrap()
}

fn ranked(vocab: &Vocab) -> Vec<((u32, u32), u32)> {
    vocab.merges().iter().enumerate().map(|(i, &pair)| (pair, 256 + i as u32)).collect()
}

#[test]
fn one_long_text_has_the_same_ids_on_any_number_of_threads() {
    let mut text = prose(1_500_000);
    for at in [300_000, 262_144, 900_001] {
        let at = (at..text.len()).find(|&at| text.is_char_boundary(at)).unwrap();
        text.insert_str(at, "<| the end |><|a|>");
    }
    for pattern in ["gpt2", "cl100k_base"] {
        let tok = tokenizer(pattern, &["<| the end |>", "<|a|>", "<|a|><|b|>"]);
        for allowed in [Specials::None, Specials::All] {
            let expected = tok.encode(text.as_bytes(), allowed, Specials::None).unwrap();
            for threads in [1, 2, 5] {
                let options = EncodeOptions { allowed, threads, ..EncodeOptions::default() };
                let got = tok.encode_with(text.as_bytes(), &options, &Control::new()).unwrap();
                assert!(got.iter().eq(expected.iter().copied()), "{pattern}, {threads} threads");
            }
        }
        let n = tok.encode_ordinary(text.as_bytes()).unwrap().len() as i64;
        assert_eq!(tok.count_batch(&[text.as_bytes(), b"", text.as_bytes()], 3, &Control::new()).unwrap(), [n, 0, n]);
    }
}

#[test]
fn a_long_text_under_any_pattern_is_shared_by_threads_and_keeps_its_ids() {
    let words = prose(600_000);
    // Runs in which a guess from the middle is wrong for a while, or to the end of its range.
    let runs = ["ab".repeat(270_000), format!("{}c", "\u{e9}x ".repeat(140_000)), " ".repeat(530_001)];
    for pattern in
        [r"\s+|\S+", r"(?s)ab|..", r"\w+(?=\s)", r"(?<= )\w+|\s|\w", r"\w+|\b", "x*", "zzz", r"(?s).{1,1000}"]
    {
        let tok = tokenizer(pattern, &["<|x|>"]);
        for text in runs.iter().map(String::as_str).chain([words.as_str()]) {
            let expected = tok.encode_ordinary(text.as_bytes()).unwrap();
            for (threads, allowed) in [(2, Specials::None), (5, Specials::All)] {
                let options = EncodeOptions { allowed, threads, ..EncodeOptions::default() };
                let batch = tok.encode_batch_with(&["a", text, "b"], &options, &Control::new()).unwrap();
                let ids: Vec<u32> = batch.ids.iter().collect();
                let place = |i: usize| batch.offsets[i] as usize..batch.offsets[i + 1] as usize;
                assert!(ids[place(1)] == expected, "{pattern}, {threads} threads");
                assert_eq!([ids[place(0)].to_vec(), ids[place(2)].to_vec()], [[97], [98]]);
            }
            assert_eq!(tok.count_batch(&[text], 3, &Control::new()).unwrap(), [expected.len() as i64]);
        }
    }
}

#[test]
fn a_long_text_is_never_cut_inside_a_special_token() {
    let special = format!("<|{}|>", "a b ".repeat(100_000));
    let tok = tokenizer("gpt2", &[&special, "<|x|>"]);
    let text = format!("{}{special}{}<|x|>{}", prose(500_000), prose(600_000), prose(30_000));
    let expected = tok.encode(text.as_bytes(), Specials::All, Specials::None).unwrap();
    let first = tok.specials()[0].id;
    assert_eq!(expected.iter().filter(|&&id| id >= first).count(), 2);
    let options = EncodeOptions { allowed: Specials::All, threads: 4, ..EncodeOptions::default() };
    let batch = tok.encode_batch_with(&["a b", &text, "", "c"], &options, &Control::new()).unwrap();
    let (start, end) = (batch.offsets[1] as usize, batch.offsets[2] as usize);
    assert!(batch.ids.iter().skip(start).take(end - start).eq(expected));
    assert_eq!(batch.offsets.len(), 5);
}

#[test]
fn dropout_equals_the_textbook_with_the_same_draws() {
    let tok = tokenizer("gpt2", &["<|x|>"]);
    let text = format!("{}<|x|>{}", prose(3_000), prose(2_000)) + &"low".repeat(200);
    for (p, seed) in [(0.05, 1), (0.3, 2), (0.9, 3), (1.0, 4)] {
        let dropout = Dropout::new(p, seed).unwrap();
        let mut expected = Vec::new();
        let cut = text.find("<|x|>").unwrap();
        for (start, stretch) in [(0, &text[..cut]), (cut + 5, &text[cut + 5..])] {
            let mut at = start;
            expected.extend((start > 0).then_some(tok.specials()[0].id));
            let each = |piece: &[u8]| {
                let mut draws = dropout.draws(0, at);
                let ranked = ranked(tok.vocab());
                expected.extend(naive::encode_piece_dropout(piece, tok.vocab().byte_ids(), &ranked, || draws.skips()));
                at += piece.len();
                Ok(())
            };
            tok.splitter().for_each_piece(stretch.as_bytes(), each).unwrap();
        }
        let options = EncodeOptions { allowed: Specials::All, dropout: Some(dropout), ..EncodeOptions::default() };
        let got: Vec<u32> = tok.encode_with(text.as_bytes(), &options, &Control::new()).unwrap().iter().collect();
        assert_eq!(got, expected, "p = {p}");
        assert_eq!(tok.decode_bytes(&got).unwrap(), text.as_bytes());
    }
}

#[test]
fn dropout_follows_from_the_seed_and_not_from_threads_or_the_cache() {
    let tok = tokenizer("gpt2", &[]);
    let texts = [prose(700_000), prose(700_000), "low lower lowest".to_owned()];
    let encode = |p, seed, threads| {
        let dropout = Some(Dropout::new(p, seed).unwrap());
        let options = EncodeOptions { dropout, threads, ..EncodeOptions::default() };
        tok.encode_batch_with(&texts, &options, &Control::new()).unwrap()
    };
    let plain = tok.encode_batch(&texts, Specials::None, 1, &Control::new()).unwrap();
    let once = encode(0.1, 5, 1);
    assert_eq!(once, encode(0.1, 5, 3));
    assert_ne!(once, encode(0.1, 6, 1));
    assert_ne!(once.ids, plain.ids);
    let half = once.offsets[1] as usize;
    assert!(!once.ids.iter().take(half).eq(once.ids.iter().skip(half).take(half)), "equal texts are spelt alike");
    assert_eq!(encode(0.0, 5, 2), plain);
    assert!(encode(1.0, 5, 2).ids.iter().eq(texts.concat().bytes().map(u32::from)));
    assert_eq!(tok.encode_batch(&texts, Specials::None, 2, &Control::new()).unwrap(), plain, "the cache was touched");
}

#[test]
fn untrusted_text_never_gives_a_special_id() {
    let tok = tokenizer("gpt2", &["<|x|>", "<|x|>b"]);
    let (x, xb) = (tok.specials()[0].id, tok.specials()[1].id);
    let only = ["<|x|>".to_owned()];
    let encode = |spans: &[(&str, bool)], allowed| tok.encode_spans(spans, allowed, &Control::new()).unwrap();
    assert_eq!(encode(&[("<|x|>", true), ("b", false), ("<|x|>b", true)], Specials::All), [x, 98, xb]);
    assert_eq!(encode(&[("<|x|>b", true)], Specials::Set(&only)), [x, 98]);
    for cut in 1..5 {
        for trusted in [(true, true), (true, false), (false, true), (false, false)] {
            let (left, right) = "<|x|>".split_at(cut);
            let ids = encode(&[(left, trusted.0), (right, trusted.1)], Specials::All);
            let apart = [left, right].map(|part| tok.encode_ordinary(part.as_bytes()).unwrap()).concat();
            assert_eq!(ids, apart);
        }
    }
}

#[test]
fn a_special_token_among_the_ordinary_ones_is_spelt_out_in_untrusted_text() {
    let vocab = Vocab::from_merges(&[(97, 98), (256, 99), (257, 257)]).unwrap();
    let special = |text: &str, id| SpecialToken { text: text.to_owned(), id };
    let specials = vec![special("abc", 257), special("abcabc", 258)];
    let tok = Tokenizer::new(vocab, Splitter::new("gpt2").unwrap(), specials).unwrap();
    assert_eq!(tok.encode_ordinary(b"abcabcab").unwrap(), [258, 256]);
    let ids = tok.encode_spans(&[("abcabcab", false), ("abc", true)], Specials::All, &Control::new()).unwrap();
    assert_eq!(ids, [256, 99, 256, 99, 256, 257]);
}

#[test]
fn offsets_in_characters_cover_the_characters_that_a_token_touches() {
    let tok = Tokenizer::new(Vocab::from_merges(&[]).unwrap(), Splitter::new("gpt2").unwrap(), vec![]).unwrap();
    let spans = |text: &[u8]| tok.encode_batch_with_offsets(&[text], Unit::Chars, 1, &Control::new()).unwrap().1;
    assert_eq!(spans("a\u{1f600}b".as_bytes()), [(0, 1), (1, 2), (1, 2), (1, 2), (1, 2), (2, 3)]);
    assert_eq!(spans(b"a\xFF\xE2\x82b"), [(0, 1), (1, 2), (2, 3), (2, 3), (3, 4)]);
    assert_eq!(spans(b""), []);
}

proptest! {
    #[test]
    fn offsets_count_what_they_say(texts in prop::collection::vec("[a-c \u{e9}\u{65e5}\u{672c}\u{1f600}\n]{0,60}", 0..5)) {
        let tok = tokenizer("gpt2", &[]);
        for threads in [1, 3] {
            let encode = |unit| tok.encode_batch_with_offsets(&texts, unit, threads, &Control::new()).unwrap();
            let ((encoded, bytes), (_, chars)) = (encode(Unit::Bytes), encode(Unit::Chars));
            prop_assert_eq!(encoded.ids.len(), bytes.len());
            for (text, ends) in texts.iter().zip(encoded.offsets.windows(2)) {
                let starts: Vec<usize> = text.char_indices().map(|(at, _)| at).collect();
                let mut at = 0;
                for i in ends[0] as usize..ends[1] as usize {
                    let (start, end) = bytes[i];
                    prop_assert_eq!(start, at);
                    at = end;
                    let first = starts.iter().filter(|&&s| s <= start).count() - 1;
                    let last = starts.iter().filter(|&&s| s < end).count();
                    prop_assert_eq!(chars[i], (first, last));
                }
                prop_assert_eq!(at, text.len());
            }
        }
    }
}

#[test]
fn a_disallowed_special_token_in_any_text_of_a_batch_is_an_error() {
    let tok = tokenizer("gpt2", &["<|x|>"]);
    let options = EncodeOptions { disallowed: Specials::All, ..EncodeOptions::default() };
    let end = tok.encode_batch_with(&["a", "b <|x|>"], &options, &Control::new());
    let Err(Error::InText { index: 1, source }) = end else {
        panic!("expected the second text to be named, got {end:?}")
    };
    assert!(matches!(*source, Error::SpecialToken { offset: 2, .. }), "{source}");
    let options = EncodeOptions { allowed: Specials::All, ..options };
    assert_eq!(tok.encode_batch_with(&["<|x|>"], &options, &Control::new()).unwrap().ids.len(), 1);
}

#[test]
fn a_cancelled_call_ends() {
    let tok = tokenizer("gpt2", &[]);
    let text = prose(600_000);
    let control = Control::new();
    control.cancel();
    let dropout = Some(Dropout::new(0.1, 0).unwrap());
    for options in [EncodeOptions::default(), EncodeOptions { dropout, ..EncodeOptions::default() }] {
        assert!(matches!(tok.encode_with(text.as_bytes(), &options, &control), Err(Error::Interrupted)));
    }
    assert!(matches!(tok.count_batch(&[&text], 0, &control), Err(Error::Interrupted)));
    let spans = [(text.as_str(), false)];
    assert!(matches!(tok.encode_spans(&spans, Specials::All, &control), Err(Error::Interrupted)));
}

#[test]
fn warm_words_are_saved_beside_the_tokenizer_and_change_no_id() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tokenizer.json");
    let text = prose(5 << 20);
    let splitter = Splitter::new("gpt2").unwrap();
    let counts = count_texts(&[&text], &splitter, 2, &Control::new()).unwrap();
    let words = WarmWords::most_frequent(&counts, 3000);
    assert!(words.len() > 100 && words.iter().len() == words.len());
    let cold = tokenizer("gpt2", &["<|x|>"]);
    let expected = cold.encode_batch(&[&text], Specials::None, 2, &Control::new()).unwrap();
    let warm = tokenizer("gpt2", &["<|x|>"]).with_warm_words(words.clone());
    assert_eq!(warm.encode_batch(&[&text], Specials::None, 2, &Control::new()).unwrap(), expected);
    formats::write(&warm, &path).unwrap();
    let read = formats::read(&path, None).unwrap();
    assert_eq!(read.warm_words(), Some(&words));
    assert_eq!(read.encode_batch(&[&text], Specials::None, 2, &Control::new()).unwrap(), expected);

    // Of another tokenizer: the words are there, and nothing comes of them.
    let other = tokenizer("cl100k_base", &[]);
    let other_ids = other.encode_batch(&[&text], Specials::None, 2, &Control::new()).unwrap();
    fs::write(&path, formats::tokenizer_json::to_string(&other).unwrap()).unwrap();
    let read = formats::read(&path, None).unwrap();
    assert_eq!(read.encode_batch(&[&text], Specials::None, 2, &Control::new()).unwrap(), other_ids);

    // Damaged anywhere: ignored as a whole.
    let file = dir.path().join("tokenizer.warm");
    let bytes = fs::read(&file).unwrap();
    for at in (0..bytes.len()).step_by(97).chain([bytes.len() - 1]) {
        let mut damaged = bytes.clone();
        damaged[at] ^= 1;
        fs::write(&file, damaged).unwrap();
        assert_eq!(formats::read(&path, None).unwrap().warm_words(), None, "byte {at}");
    }
    fs::write(&file, &bytes[..bytes.len() / 2]).unwrap();
    assert_eq!(formats::read(&path, None).unwrap().warm_words(), None);
}

#[test]
fn warm_words_are_the_most_frequent_ones() {
    let splitter = Splitter::new("gpt2").unwrap();
    let text = format!("{}{}{} d", " c".repeat(3), " a".repeat(5), " b".repeat(3));
    let counts = count_texts(&[text], &splitter, 1, &Control::new()).unwrap();
    let words = |n| WarmWords::most_frequent(&counts, n).iter().map(<[u8]>::to_vec).collect::<Vec<_>>();
    assert_eq!(words(3), [b" a", b" b", b" c"]);
    assert_eq!(words(2), [b" a", b" b"]);
    assert_eq!(words(9).len(), 4);
    assert!(words(0).is_empty());
}

#[test]
fn short_texts_of_a_batch_have_the_ids_they_have_alone() {
    let text = prose(300_000).into_bytes();
    // Of no bytes, of some, of many, cut anywhere, even inside of characters that the next text goes on with.
    let (mut texts, mut at, mut state) = (Vec::new(), 0, 11u64);
    while at < text.len() {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let n = [0, 1, 2, 3, 7, 30, 100, 1000, 3000, 40_000][(state >> 33) as usize % 10];
        let end = (at + n).min(text.len());
        texts.push(&text[at..end]);
        at = end;
    }
    assert!(texts.iter().any(|text| std::str::from_utf8(text).is_err() && text.len() > 100), "cut inside a character");
    for pattern in ["gpt2", "cl100k_base", "o200k_base", "deepseek-v3", r"\w+|\W"] {
        let tok = tokenizer(pattern, &["<|end|>"]);
        let alone: Vec<_> = texts.iter().map(|text| tok.encode_ordinary(text).unwrap()).collect();
        for threads in [1, 2] {
            let batch = tok.encode_batch(&texts, Specials::None, threads, &Control::new()).unwrap();
            let lengths: Vec<_> = batch.offsets.windows(2).map(|ends| (ends[1] - ends[0]) as usize).collect();
            assert_eq!(lengths, alone.iter().map(Vec::len).collect::<Vec<_>>(), "{pattern}, {threads} threads");
            assert!(batch.ids.iter().eq(alone.iter().flatten().copied()), "{pattern}, {threads} threads");
            let counts = tok.count_batch(&texts, threads, &Control::new()).unwrap();
            assert!(counts.iter().map(|&n| n as usize).eq(lengths), "{pattern}, {threads} threads");
        }
    }
}
