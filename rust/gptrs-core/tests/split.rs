//! The scanners make the pieces of their regular expressions, on every character and on nasty texts.

#![allow(clippy::unwrap_used)] // clippy.toml allows it in tests, but not in the functions that tests share

use fancy_regex::Regex;
use gptrs_core::split::{NAMES, Splitter};
use gptrs_core::{Error, Result};
use proptest::prelude::*;

/// A pattern's scanner and what it must agree with.
struct Pattern {
    name: &'static str,
    splitter: Splitter,
    /// Leaves no gap.
    regex: Regex,
    /// Applied one after the other, when there are several.
    sequence: Vec<Regex>,
}

impl Pattern {
    fn new(name: &'static str) -> Self {
        let splitter = Splitter::new(name).unwrap();
        let compile = |regex: &str| Regex::new(regex).unwrap();
        let sequence = splitter.onig_sequence();
        let sequence = if sequence.len() > 1 { sequence.iter().map(|regex| compile(regex)).collect() } else { vec![] };
        Self { name, regex: compile(splitter.regex()), splitter, sequence }
    }

    fn all() -> [Self; NAMES.len()] {
        NAMES.map(Self::new)
    }

    /// Panics where the scanner differs from the expression, or the expression from the sequence.
    fn check(&self, text: &str) {
        let pieces = pieces(&self.splitter, text.as_bytes());
        assert_eq!(pieces, matches(&self.regex, text), "{text:?} by {}", self.name);
        if !self.sequence.is_empty() {
            assert_eq!(pieces, isolate(&self.sequence, text), "{text:?} by the sequence of {}", self.name);
        }
    }
}

/// What Hugging Face's `Sequence` of `Split`s with `Isolated` makes: each expression cuts each piece so far into its
/// matches and the gaps between them.
fn isolate<'t>(sequence: &[Regex], text: &'t str) -> Vec<&'t [u8]> {
    let mut pieces = vec![text];
    for regex in sequence {
        let mut cut = Vec::new();
        for piece in pieces {
            let mut at = 0;
            for found in regex.find_iter(piece).map(|found| found.unwrap()) {
                cut.extend([&piece[at..found.start()], found.as_str()]);
                at = found.end();
            }
            cut.push(&piece[at..]);
        }
        pieces = cut.into_iter().filter(|piece| !piece.is_empty()).collect();
    }
    pieces.into_iter().map(str::as_bytes).collect()
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
const NASTY: &str = concat!(
    "azAZssSStdmlLvVeErRkK''''      \n\n\n\r\r\t\u{b}\u{1c}\u{85}\u{a0}\u{3000}\u{2009}\u{200b}",
    "07²½٣९Ⅷ!.,_-//|€^éÉſ\u{212a}ßßжЖǅʰªΣς中一龥\u{9fa6}々のアァー・ゟ゠゛\u{3099}\u{3040}\u{3098}한กİı",
    "\u{301}\u{301}\u{94d}\u{903}\u{20dd}\u{200d}\u{fe0f}😀👩\u{1f3fd}𝒜𝗮𝟗\u{10ffff}\u{378}\u{e000}\0\u{7f}\u{feff}’"
);

fn nasty_char() -> impl Strategy<Value = char> {
    prop::sample::select(NASTY.chars().collect::<Vec<_>>())
}

fn nasty_text() -> impl Strategy<Value = String> {
    prop::collection::vec(nasty_char(), 0..24).prop_map(String::from_iter)
}

/// A nasty text that starts at any place in a block of 64 bytes and crosses into later ones.
fn nasty_text_at_any_phase() -> impl Strategy<Value = String> {
    let unit = prop::sample::select(vec!["a", " ", "!", "7", "é", "中", "Aa", " a", "\n"]);
    (unit, 0..64usize, prop::collection::vec(nasty_char(), 0..80)).prop_map(|(unit, phase, text)| {
        let mut padded = unit.repeat(phase / unit.len());
        padded.extend(std::iter::repeat_n('x', phase % unit.len()));
        padded.extend(text);
        padded
    })
}

/// Nasty characters mixed with bytes that are no UTF-8 and with cut-off characters.
fn nasty_bytes() -> impl Strategy<Value = Vec<u8>> {
    let broken: &[&[u8]] =
        &[b"\xff", b"\x80", b"\xc5", b"\xe2\x82", b"\xf0\x9f\x98", b"\xed\xa0\x80", b"\xc0\xaf", b"\xf4\x90", b"\xc2"];
    let part = prop_oneof![
        5 => nasty_char().prop_map(|c| c.to_string().into_bytes()),
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
    assert_eq!(split("llama3", "a\n  "), ["a", "\n", "  "], "white space at the end, but for tiktoken's cl100k_base");
    assert_eq!(split("llama3", "'ſx 1234"), ["'ſ", "x", " ", "123", "4"]);
    assert_eq!(split("qwen2", "I'm 12"), ["I", "'m", " ", "1", "2"]);
    assert_eq!(split("nanochat", "in 2026"), ["in", " ", "20", "26"]);
    assert_eq!(split("o200k", "They'RE camelCase HTTPServer"), ["They'RE", " camel", "Case", " HTTPServer"]);
    assert_eq!(split("o200k", "中文ABC x.//\n/!"), ["中文", "ABC", " x", ".//\n/", "!"], "caseless ends a word");
    assert_eq!(split("o200k", "\u{301}'s"), ["\u{301}'s"], "a combining mark alone is a word");
    assert_eq!(split("deepseek-v3", "x=f('été') 12345"), ["x", "=f", "('", "été", "')", " ", "123", "45"]);
    assert_eq!(split("deepseek-v3", "東京・アa  1"), ["東京", "・", "ア", "a", "  ", "1"], "borders are ends of text");
    assert_eq!(split("deepseek-v3", "\0\0\0a\0!"), ["\0\0", "\0a", "\0", "!"], "what no expression takes");
}

const CONTEXTS: [&str; 12] = [
    "{}",
    "a{}a",
    " {} {}",
    "1{}'{}",
    "'{}x\n",
    "{}{}\n a",
    "\r\n{} !",
    ".{}\n{}1",
    "A{}B{}c",
    "中{}ア{}",
    "{}'s{}/",
    "!{}\0{}",
];

fn check_every_character(contexts_beyond_the_first_blocks: usize) {
    for pattern in Pattern::all() {
        for c in '\0'..=char::MAX {
            let n = if (c as u32) < 0x3100 { CONTEXTS.len() } else { contexts_beyond_the_first_blocks };
            for context in &CONTEXTS[..n] {
                pattern.check(&context.replace("{}", c.encode_utf8(&mut [0; 4])));
            }
        }
    }
}

#[test]
fn every_character_alone_and_between_letters_splits_as_the_regex_does() {
    // Beyond the first blocks characters only need to be told from each other by class.
    check_every_character(2);
}

#[test]
#[ignore = "minutes: every character in every context"]
fn every_character_in_every_context_splits_as_the_regex_does() {
    check_every_character(CONTEXTS.len());
}

#[test]
fn long_runs_split_as_the_regex_does_at_every_length() {
    for pattern in Pattern::all() {
        for unit in
            ["a", "A", "é", "7", "!", " ", "\n", "\u{3000}", "中", " a", "'s", "aé", "Aa", "\u{301}", "\0", "・"]
        {
            for n in (0..40).chain([62, 63, 64, 65, 127, 128, 129]) {
                for tail in ["", "x", "X", " ", "\n", "9", "é", "中", "/", "'s"] {
                    pattern.check(&(unit.repeat(n) + tail));
                }
            }
        }
    }
}

thread_local!(static ALL: [Pattern; NAMES.len()] = Pattern::all());

fn check_all(text: &str) {
    ALL.with(|patterns| patterns.iter().for_each(|pattern| pattern.check(text)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(50_000))]

    #[test]
    fn nasty_text_splits_as_the_regex_does(text in nasty_text()) {
        check_all(&text);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000_000))]

    #[test]
    #[ignore = "minutes: two million texts"]
    fn much_nasty_text_splits_as_the_regex_does(text in nasty_text()) {
        check_all(&text);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10_000))]

    #[test]
    fn nasty_text_at_any_place_of_a_block_splits_as_the_regex_does(text in nasty_text_at_any_phase()) {
        check_all(&text);
    }

    #[test]
    fn a_safe_cut_changes_no_piece(text in nasty_bytes(), broken in nasty_bytes()) {
        for name in NAMES {
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
        for name in NAMES {
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
    for name in NAMES {
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
