//! Every level of vector instructions makes the pieces of the scalar scanners.

#![allow(clippy::unwrap_used)] // clippy.toml allows it in tests, but not in the functions that tests share

use std::path::PathBuf;

use gptrs_core::simd::Level;
use gptrs_core::split::NAMES;
use gptrs_core::{Error, Splitter};
use proptest::prelude::*;

/// The scalar splitter of each named pattern, and its twins at every higher level that the processor has.
fn twins() -> Vec<(Splitter, Vec<Splitter>)> {
    NAMES
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

/// Long texts are scanned in windows; the regex engine reads them whole.
#[test]
fn a_text_of_many_windows_splits_as_the_regex_does() {
    let words =
        ["word ", "12345", "!\n", "中文。", "  \n\t", "жизнь ", "don't", "\u{3000}", "HTTPServer(", "😀", "é", "\r\n"];
    let mut seed = 1u64;
    let mut random = |n: usize| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) as usize % n
    };
    let mixed: String = (0..100_000).map(|_| words[random(words.len())]).collect();
    // No place to cut for longer than a window, and only a few.
    let runs = ["a".repeat(300_000), " ".repeat(200_000), "中".repeat(70_000), "\n".repeat(150_000)].join("!x 1");
    for (scalar, higher) in twins() {
        let regex = Splitter::new(&format!("(?:{})", scalar.regex())).unwrap();
        assert_eq!(regex.pattern(), regex.regex(), "the regex engine, not a scanner");
        for text in [&mixed, &runs] {
            let expected = ends(&regex, text.as_bytes());
            for splitter in higher.iter().chain([&scalar]) {
                assert!(ends(splitter, text.as_bytes()) == expected, "{splitter:?}");
            }
        }
    }
}

#[test]
fn invalid_bytes_around_the_end_of_a_window_split_alike() {
    let invalid: [&[u8]; 9] = [
        b"\xff",
        b"\x80",
        b"\xe2\x82",
        b"\xf0\x9f\x98",
        b"\xed\xa0\x80",
        b"\xc0\xaf",
        b"\xf4\x90\x80\x80",
        b"\x80\x80\x80\x80\x80",
        "😀\u{301}中é".as_bytes(),
    ];
    let gpt2 = Splitter::new("gpt2").unwrap();
    let levels: Vec<_> = Level::ALL.into_iter().filter(|level| level.is_available()).collect();
    let filler = "word é 中 ".repeat(20_000).into_bytes();
    for bytes in invalid {
        // A window that can be cut near its end, one that grows as it cannot, and one that has grown.
        let windows = [(1 << 17, " "), (1 << 17, "x"), (1 << 19, "x")];
        let places = windows.into_iter().flat_map(|(end, cut)| (end - 8..end + 4).map(move |at| (at, cut)));
        for (at, cut) in places {
            let text = [&vec![b'x'; at - 100][..], cut.as_bytes(), &[b'y'; 99], bytes, &filler].concat();
            let mut expected = Vec::new();
            for chunk in text.utf8_chunks() {
                let custom = Splitter::new(&format!("(?:{})", gpt2.regex())).unwrap();
                let from = chunk.valid().as_ptr() as usize - text.as_ptr() as usize;
                expected.extend(ends(&custom, chunk.valid().as_bytes()).into_iter().map(|end| from + end));
                expected.extend(
                    Some(from + chunk.valid().len() + chunk.invalid().len()).filter(|_| !chunk.invalid().is_empty()),
                );
            }
            for &level in &levels {
                let got = ends(&gpt2.clone().with_level(level).unwrap(), &text);
                assert!(got == expected, "{level}, {bytes:x?} at {at}");
            }
        }
    }
}

proptest! {
    /// Each invalid sequence is a piece, as the standard library finds them, at every place of a block.
    #[test]
    fn invalid_sequences_are_found_where_the_standard_library_finds_them(
        lead in 0usize..130,
        middle in prop::collection::vec(prop_oneof![any::<u8>(), prop::sample::select(&[
            0x80u8, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC0, 0xC1, 0xC2, 0xDF, 0xE0, 0xED, 0xEE, 0xEF, 0xF0, 0xF1, 0xF4, 0xF5, 0xFF,
        ][..])], 0..12),
        tail in 0usize..80,
    ) {
        let text = [&vec![b'a'; 100 + lead][..], &middle, &vec![b'b'; tail]].concat();
        for level in Level::ALL.into_iter().filter(|level| level.is_available()) {
            let splitter = Splitter::new("gpt2").unwrap().with_level(level).unwrap();
            let mut expected = Vec::new();
            for chunk in text.utf8_chunks() {
                splitter.for_each_piece(chunk.valid().as_bytes(), |piece| {
                    expected.push(piece);
                    Ok(())
                }).unwrap();
                expected.extend(Some(chunk.invalid()).filter(|invalid| !invalid.is_empty()));
            }
            let mut got = Vec::new();
            splitter.for_each_piece(&text, |piece| {
                got.push(piece);
                Ok(())
            }).unwrap();
            prop_assert_eq!(got, expected, "{}", level);
        }
    }
}
