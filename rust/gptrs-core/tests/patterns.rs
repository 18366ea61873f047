//! Names and spellings: a pattern that others wrote down gives the scanner, and only when it makes the same pieces.

#![allow(clippy::unwrap_used)] // clippy.toml allows it in tests, but not in the functions that tests share

use fancy_regex::Regex;
use gptrs_core::Error;
use gptrs_core::split::{NAMES, Splitter};
use proptest::prelude::*;

/// As tiktoken, Hugging Face's files and the models' own code write them, by release.
const SPELLINGS: [(&str, &str); 11] = [
    ("gpt2", r"'s|'t|'re|'ve|'m|'ll|'d| ?[\p{L}]+| ?[\p{N}]+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"),
    ("gpt2", r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"),
    ("gpt2", r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"),
    ("gpt2", r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"),
    (
        "cl100k_base",
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s",
    ),
    (
        "o200k_base",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ),
    (
        "llama3",
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ),
    (
        "llama3",
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
    ),
    (
        "qwen2",
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ),
    (
        "nanochat",
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
    ),
    // Any literal line break is the escaped one.
    (
        "qwen2",
        "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+",
    ),
];

/// As DeepSeek's file holds them, line breaks and all.
const DEEPSEEK: [&str; 3] = [
    r"\p{N}{1,3}",
    "[一-龥\u{3040}-ゟ゠-ヿ]+",
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+",
];

fn pieces<'t>(splitter: &Splitter, text: &'t str) -> Vec<&'t str> {
    let mut pieces = Vec::new();
    let collect = |piece| {
        pieces.push(std::str::from_utf8(piece).unwrap());
        Ok(())
    };
    splitter.for_each_piece(text.as_bytes(), collect).unwrap();
    pieces
}

#[test]
fn every_spelling_of_a_named_pattern_gives_its_scanner() {
    for (name, spelling) in SPELLINGS {
        assert_eq!(Splitter::new(spelling).unwrap().pattern(), name, "{spelling}");
    }
    for name in NAMES {
        let splitter = Splitter::new(name).unwrap();
        assert_eq!(splitter.pattern(), name);
        for spelling in [splitter.regex(), &splitter.onig_regex()] {
            assert_eq!(Splitter::new(spelling).unwrap().pattern(), name);
        }
        assert_eq!(Splitter::from_sequence(&splitter.onig_sequence()).unwrap().pattern(), name);
    }
}

#[test]
fn other_vocabularies_names_give_the_pattern_they_share() {
    let aliases = [
        ("gpt2", &["r50k_base", "p50k_base", "p50k_edit"][..]),
        ("cl100k_base", &["cl100k"]),
        ("o200k_base", &["o200k", "o200k_harmony"]),
        ("llama3", &["llama-3", "olmo2", "olmo3"]),
        ("qwen2", &["qwen2.5", "qwen3"]),
        ("deepseek-v3", &["deepseek_v3", "deepseek-r1"]),
    ];
    for (name, others) in aliases {
        for other in others {
            assert_eq!(Splitter::new(other).unwrap().pattern(), name);
        }
    }
}

#[test]
fn only_a_known_sequence_is_taken() {
    assert_eq!(Splitter::from_sequence(&DEEPSEEK).unwrap().pattern(), "deepseek-v3");
    assert_eq!(Splitter::from_sequence(&["x+"]).unwrap().pattern(), "x+");
    let [digits, cjk, rest] = DEEPSEEK;
    for other in [&[][..], &[digits, cjk], &[cjk, digits, rest], &[r"\p{N}", cjk, rest]] {
        let error = Splitter::from_sequence(other).unwrap_err();
        assert!(matches!(&error, Error::Pattern { pattern, .. } if *pattern == other.join(" then ")), "{error}");
    }
}

fn text() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        4 => r"[a-eA-E sStTlLvVrR'ſ\n\r\t 0-9.!/]",
        1 => r"[\p{L}\p{M}\p{N}\p{S}\p{Z}]",
        1 => r"\PC",
    ];
    prop::collection::vec(part, 0..20).prop_map(|parts| parts.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]

    #[test]
    fn every_spelling_makes_the_scanners_pieces(text in text()) {
        thread_local!(static SCANNERS: Vec<(Splitter, Regex)> = SPELLINGS
            .map(|(name, spelling)| (Splitter::new(name).unwrap(), Regex::new(spelling).unwrap()))
            .into());
        SCANNERS.with(|scanners| {
            for (splitter, regex) in scanners {
                let expected: Vec<_> = regex.find_iter(&text).map(|found| found.unwrap().as_str()).collect();
                prop_assert_eq!(pieces(splitter, &text), expected, "{}", regex.as_str());
            }
            Ok(())
        })?;
    }
}
