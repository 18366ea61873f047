//! Every level of vector instructions makes the pieces of the scalar scanners.

#![allow(clippy::unwrap_used)] // clippy.toml allows it in tests, but not in the functions that tests share

use std::path::PathBuf;

use gptrs_core::simd::Level;
use gptrs_core::{Error, Splitter};
use proptest::prelude::*;

const NAMED: [&str; 2] = ["gpt2", "cl100k_base"];

/// The scalar splitter of each named pattern, and its twins at every higher level that the processor has.
fn twins() -> Vec<(Splitter, Vec<Splitter>)> {
    NAMED
        .iter()
        .map(|name| {
            let splitter = Splitter::new(name).unwrap();
            let higher = Level::ALL.into_iter().filter(|&level| level > Level::Scalar && level.is_available());
            let higher = higher.map(|level| splitter.clone().with_level(level).unwrap()).collect();
            (splitter.with_level(Level::Scalar).unwrap(), higher)
        })
        .collect()
}

fn ends(splitter: &Splitter, text: &[u8]) -> Vec<usize> {
    let (mut ends, mut at) = (Vec::new(), 0);
    let collect = |piece: &[u8]| {
        at += piece.len();
        ends.push(at);
        Ok(())
    };
    splitter.for_each_piece(text, collect).unwrap();
    ends
}

/// Fails with the surroundings of the first difference.
fn check(twins: &[(Splitter, Vec<Splitter>)], text: &[u8]) {
    for (scalar, higher) in twins {
        let expected = ends(scalar, text);
        for splitter in higher {
            let got = ends(splitter, text);
            if got != expected {
                let n = got.iter().zip(&expected).take_while(|(a, b)| a == b).count();
                let from = if n == 0 { 0 } else { expected[n - 1] };
                let shown = String::from_utf8_lossy(&text[from..text.len().min(from + 80)]);
                panic!(
                    "{splitter:?}: piece {n} at {from} of {} ends at {:?}, not at {:?}: {shown:?}",
                    text.len(),
                    got.get(n),
                    expected.get(n)
                );
            }
        }
    }
}

/// What the masks branch on: every class in every width, line breaks, blanks, apostrophes with and without endings.
const NASTY: &[&str] = &[
    "a",
    "Z",
    "s",
    "t",
    "S",
    "e",
    "'",
    "'",
    "'s",
    "'ll",
    "'RE",
    "'ſ",
    "'v",
    "ſ",
    "K",
    " ",
    " ",
    "  ",
    "\n",
    "\n",
    "\r\n",
    "\t",
    "\u{b}",
    "\u{1c}",
    "\u{85}",
    "\u{a0}",
    "\u{3000}",
    "\u{2009}",
    "\u{1680}",
    "\u{200b}",
    "0",
    "7",
    "1234567",
    "²",
    "½",
    "٣",
    "९",
    "𝟗",
    "!",
    ".",
    "_",
    "-",
    "/",
    "é",
    "ß",
    "ж",
    "Ж",
    "ǅ",
    "ʰ",
    "中",
    "龦",
    "の",
    "・",
    "한",
    "ก",
    "\u{301}",
    "\u{94d}",
    "\u{3099}",
    "\u{200d}",
    "😀",
    "𝒜",
    "𠀀",
    "\u{10ffff}",
    "\0",
    "\u{7f}",
    "\u{feff}",
    "’",
    "“",
    "word",
    " word",
    "Word",
    "HTTPServer",
    "don't",
    "    ",
    "\n    ",
    "  \n",
];

fn nasty_text(max: usize) -> impl Strategy<Value = String> {
    prop::collection::vec(prop::sample::select(NASTY), 0..max).prop_map(|parts| parts.concat())
}

#[test]
fn a_level_that_the_processor_lacks_is_refused() {
    for level in Level::ALL {
        let splitter = Splitter::new("gpt2").unwrap().with_level(level);
        match splitter {
            Ok(_) => assert!(level.is_available(), "{level}"),
            Err(Error::Argument(message)) => {
                assert!(!level.is_available(), "{level}");
                assert!(message.contains(&level.to_string()), "{message}");
            }
            Err(error) => panic!("{error}"),
        }
    }
    assert!(Level::detected().is_available() && Level::Scalar.is_available());
}

#[test]
fn every_character_in_many_surroundings_splits_alike() {
    let twins = twins();
    let contexts =
        ["a{}a", " {} {}", "1{}'{}", "'{}x\n", "{}{}\n a", "\r\n{} !", ".{}\n{}1", "\u{3000}{}中", "  {}  {}\n{}"];
    for context in contexts {
        let mut text = String::new();
        for c in '\0'..=char::MAX {
            text.push_str(&context.replace("{}", c.encode_utf8(&mut [0; 4])));
            if text.len() > 8000 {
                check(&twins, text.as_bytes());
                text.clear();
            }
        }
        check(&twins, text.as_bytes());
    }
}

#[test]
fn runs_of_every_length_split_alike_at_every_place_in_a_block() {
    let twins = twins();
    let units = [
        "a", "é", "7", "٣", "!", " ", "\n", "\r\n", "\t", "\u{3000}", "中", "の", "😀", " a", "'s", "aé", "\n ", "“",
        "12",
    ];
    for unit in units {
        for n in 0..80 {
            for (head, tail) in
                [("", ""), ("x", "x"), ("!", "\n"), ("\n", "é"), (" ", " 9"), ("\n", "\n\n"), ("7", "7"), ("\n", "'s")]
            {
                let middle = head.to_owned() + &unit.repeat(n) + tail;
                for lead in [0, 60, 61, 62, 63, 127] {
                    check(&twins, ("-".repeat(lead) + &middle + &"x".repeat(n % 5) + &"y ".repeat(50)).as_bytes());
                    check(&twins, ("-".repeat(lead + 40) + &middle).as_bytes());
                }
            }
        }
    }
}

#[test]
fn lengths_around_whole_blocks_split_alike() {
    let twins = twins();
    for unit in ["a b! c\n", "word ", "中文 の", "12 ", "\n\n  x", "!\n", "'s ", "é"] {
        let text = unit.repeat(120);
        for n in 0..420.min(text.len()) {
            check(&twins, &text.as_bytes()[..n]);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4_000))]

    #[test]
    fn nasty_text_splits_alike_at_every_place_in_a_block(text in nasty_text(60)) {
        thread_local!(static TWINS: Vec<(Splitter, Vec<Splitter>)> = twins());
        TWINS.with(|twins| {
            for lead in 0..64 {
                check(twins, ("x".repeat(96 + lead) + &text).as_bytes());
            }
        });
    }

    #[test]
    fn longer_nasty_text_splits_alike(text in nasty_text(2000)) {
        thread_local!(static TWINS: Vec<(Splitter, Vec<Splitter>)> = twins());
        TWINS.with(|twins| check(twins, text.as_bytes()));
    }

    #[test]
    fn bytes_that_are_no_text_split_alike(parts in prop::collection::vec((nasty_text(40), prop::collection::vec(any::<u8>(), 0..5)), 0..8)) {
        thread_local!(static TWINS: Vec<(Splitter, Vec<Splitter>)> = twins());
        let text: Vec<u8> = parts.into_iter().flat_map(|(text, bytes)| [text.into_bytes(), bytes].concat()).collect();
        TWINS.with(|twins| check(twins, &text));
    }
}

/// All texts of `GPTRS_TEST_DATA`, whole: `cargo test --release --test split_levels -- --ignored`.
#[test]
#[ignore = "reads whole corpora"]
fn whole_corpora_split_alike() {
    let Some(directory) = std::env::var_os("GPTRS_TEST_DATA").map(PathBuf::from) else { return };
    let twins = twins();
    let mut n_texts = 0;
    for entry in std::fs::read_dir(&directory).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "txt") {
            check(&twins, &std::fs::read(&path).unwrap());
            n_texts += 1;
        }
    }
    assert!(n_texts > 0, "{} holds no .txt", directory.display());
}
