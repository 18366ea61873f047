//! The scanners make the pieces of their regular expressions, on every character and on nasty texts.

#![allow(clippy::unwrap_used)] // clippy.toml allows it in tests, but not in the functions that tests share

use fancy_regex::Regex;
use gptrs_core::split::Splitter;
use gptrs_core::{Error, Result};
use proptest::prelude::*;

const NAMED: [&str; 2] = ["gpt2", "cl100k_base"];

fn named() -> [(Splitter, Regex); 2] {
    NAMED.map(|name| {
        let splitter = Splitter::new(name).unwrap();
        let regex = Regex::new(splitter.regex()).unwrap();
        (splitter, regex)
    })
}

fn pieces<'t>(splitter: &Splitter, text: &'t [u8]) -> Vec<&'t [u8]> {
    let mut pieces = Vec::new();
    let collect = |piece| {
        pieces.push(piece);
        Ok(())
    };
    splitter.for_each_piece(text, collect).unwrap();
    pieces
}

fn matches<'t>(regex: &Regex, text: &'t str) -> Vec<&'t [u8]> {
    regex.find_iter(text).map(|found| found.unwrap().as_str().as_bytes()).collect()
}

/// What every scanner branches on, and what others have got wrong.
const NASTY: &[char] = &[
    'a',
    'z',
    'A',
    's',
    'S',
    't',
    'd',
    'm',
    'l',
    'L',
    'v',
    'V',
    'e',
    'E',
    'r',
    'R',
    'k',
    '\'',
    '\'',
    '\'',
    ' ',
    ' ',
    ' ',
    '\n',
    '\n',
    '\r',
    '\t',
    '\u{b}',
    '\u{1c}',
    '\u{85}',
    '\u{a0}',
    '\u{3000}',
    '\u{2009}',
    '\u{200b}',
    '0',
    '7',
    '²',
    '½',
    '٣',
    '९',
    '!',
    '.',
    '_',
    '-',
    '/',
    'é',
    'ſ',
    'K',
    'ß',
    'ж',
    '中',
    'の',
    '한',
    'ก',
    '\u{301}',
    '\u{94d}',
    '\u{200d}',
    '😀',
    '𝒜',
    '𝟗',
    '\u{10ffff}',
    '\0',
    '\u{7f}',
    '\u{feff}',
    '’',
];

fn nasty_text() -> impl Strategy<Value = String> {
    prop::collection::vec(prop::sample::select(NASTY), 0..24).prop_map(String::from_iter)
}

/// Nasty characters mixed with bytes that are no UTF-8 and with cut-off characters.
fn nasty_bytes() -> impl Strategy<Value = Vec<u8>> {
    let broken: &[&[u8]] =
        &[b"\xff", b"\x80", b"\xc5", b"\xe2\x82", b"\xf0\x9f\x98", b"\xed\xa0\x80", b"\xc0\xaf", b"\xf4\x90", b"\xc2"];
    let part = prop_oneof![
        5 => prop::sample::select(NASTY).prop_map(|c| c.to_string().into_bytes()),
        1 => prop::sample::select(broken).prop_map(<[u8]>::to_vec),
    ];
    prop::collection::vec(part, 0..16).prop_map(|parts| parts.concat())
}

#[test]
fn the_readme_examples_split_as_their_authors_say() {
    let split = |name, text: &'static str| -> Vec<&str> {
        pieces(&Splitter::new(name).unwrap(), text.as_bytes())
            .into_iter()
            .map(|p| std::str::from_utf8(p).unwrap())
            .collect()
    };
    assert_eq!(split("gpt2", "I'll  pay 1234€."), ["I", "'ll", " ", " pay", " 1234", "€."]);
    assert_eq!(split("cl100k", "I'LL  pay 1234€.\n\n"), ["I", "'LL", " ", " pay", " ", "123", "4", "€.\n\n"]);
    assert_eq!(split("cl100k", "a\n  "), ["a", "\n  "], "white space at the end is one piece");
    assert_eq!(split("cl100k", "'ſx"), ["'ſ", "x"], "the long s is an s");
    assert_eq!(split("gpt2", "'ſx"), ["'", "ſx"]);
    assert_eq!(split("gpt2", ""), [""; 0]);
}

#[test]
fn every_character_alone_and_between_others_splits_as_the_regex_does() {
    let contexts = ["{}", "a{}a", " {} {}", "1{}'{}", "'{}x\n", "{}{}\n a", "\r\n{} !", ".{}\n{}1"];
    for (splitter, regex) in named() {
        for c in '\0'..=char::MAX {
            // Most characters only need to be told from each other by class: a few contexts, all for the first plane.
            let n = if (c as u32) < 0x3100 { contexts.len() } else { 2 };
            for context in &contexts[..n] {
                let text = context.replace("{}", c.encode_utf8(&mut [0; 4]));
                assert_eq!(pieces(&splitter, text.as_bytes()), matches(&regex, &text), "{text:?} {splitter:?}");
            }
        }
    }
}

#[test]
fn long_runs_split_as_the_regex_does_at_every_length() {
    for (splitter, regex) in named() {
        for unit in ["a", "é", "7", "!", " ", "\n", "\u{3000}", "中", " a", "'s", "aé"] {
            for n in 0..40 {
                for tail in ["", "x", " ", "\n", "9", "é"] {
                    let text = unit.repeat(n) + tail;
                    assert_eq!(pieces(&splitter, text.as_bytes()), matches(&regex, &text), "{text:?} {splitter:?}");
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100_000))]

    #[test]
    fn nasty_text_splits_as_the_regex_does(text in nasty_text()) {
        thread_local!(static BOTH: [(Splitter, Regex); 2] = named());
        BOTH.with(|both| {
            for (splitter, regex) in both {
                prop_assert_eq!(pieces(splitter, text.as_bytes()), matches(regex, &text), "{:?}", splitter);
            }
            Ok(())
        })?;
    }

    #[test]
    fn a_safe_cut_changes_no_piece(text in nasty_bytes(), broken in nasty_bytes()) {
        for name in NAMED {
            let splitter = Splitter::new(name).unwrap();
            for text in [&text[..], &[&text[..], &broken[..]].concat()] {
                let whole = pieces(&splitter, text);
                prop_assert_eq!(whole.concat(), text);
                for at in 0..=text.len() {
                    let cut = splitter.safe_cut(text, at);
                    prop_assert!(at <= cut);
                    let (left, right) = text.split_at(cut);
                    prop_assert_eq!(&[pieces(&splitter, left), pieces(&splitter, right)].concat(), &whole, "{} at {}", name, cut);
                }
            }
        }
    }

    #[test]
    fn each_valid_stretch_is_a_text_and_each_invalid_sequence_a_piece(text in nasty_bytes()) {
        for name in NAMED {
            check_stretches(&Splitter::new(name).unwrap(), &text)?;
        }
    }
}

proptest! {
    #[test]
    fn a_custom_pattern_follows_the_same_rule(text in nasty_bytes()) {
        check_stretches(&Splitter::new(r"\w+|(?!\n)\s").unwrap(), &text)?;
    }
}

fn check_stretches(splitter: &Splitter, text: &[u8]) -> std::result::Result<(), TestCaseError> {
    let mut expected = Vec::new();
    for chunk in text.utf8_chunks() {
        expected.extend(pieces(splitter, chunk.valid().as_bytes()));
        expected.extend(Some(chunk.invalid()).filter(|invalid| !invalid.is_empty()));
    }
    prop_assert_eq!(pieces(splitter, text), expected);
    Ok(())
}

#[test]
fn ordinary_text_has_a_safe_cut_every_few_characters() {
    for name in NAMED {
        let splitter = Splitter::new(name).unwrap();
        for text in ["It was the best of times, it was the worst of times", "天地玄黄，宇宙洪荒。日月盈昃，辰宿列张。"]
        {
            let cuts: Vec<_> = (0..text.len()).map(|at| splitter.safe_cut(text.as_bytes(), at) - at).collect();
            assert!(cuts.iter().all(|&n| n < 20), "{name} {text}: {cuts:?}");
        }
    }
}

#[test]
fn a_custom_pattern_keeps_its_gaps_and_is_never_cut() {
    let splitter = Splitter::new(r"\p{L}+(?=!)|\d").unwrap();
    assert_eq!(pieces(&splitter, b"ab cd! 12"), [&b"ab "[..], b"cd", b"! ", b"1", b"2"]);
    assert_eq!(
        pieces(&Splitter::new(r"x*").unwrap(), b"axxb"),
        [&b"a"[..], b"xx", b"b"],
        "empty matches are no pieces"
    );
    assert_eq!(splitter.safe_cut(b"ab cd", 1), 5);
    assert_eq!((splitter.pattern(), splitter.regex()), (r"\p{L}+(?=!)|\d", r"\p{L}+(?=!)|\d"));
}

#[test]
fn every_spelling_of_a_named_pattern_gives_its_scanner() {
    for name in NAMED {
        let splitter = Splitter::new(name).unwrap();
        assert_eq!(splitter.pattern(), name);
        for spelling in [splitter.regex(), &splitter.onig_regex()] {
            assert_eq!(Splitter::new(spelling).unwrap().pattern(), name);
        }
    }
}

#[test]
fn a_bad_pattern_and_a_pattern_that_gives_up_are_errors() {
    assert!(matches!(Splitter::new("(a"), Err(Error::Pattern { pattern, .. }) if pattern == "(a"));
    let slow = Splitter::new("(?i)(a|b|ab)*(?>c)").unwrap();
    let end: Result<()> = slow.for_each_piece("ab".repeat(64).as_bytes(), |_| Ok(()));
    assert!(matches!(end, Err(Error::Pattern { .. })), "{end:?}");
}

#[test]
fn an_error_of_the_caller_stops_the_walk() {
    let mut n = 0;
    let end = Splitter::new("gpt2").unwrap().for_each_piece(b"a b c", |_| {
        n += 1;
        if n == 2 { Err(Error::Interrupted) } else { Ok(()) }
    });
    assert!(matches!(end, Err(Error::Interrupted)));
    assert_eq!(n, 2);
}
