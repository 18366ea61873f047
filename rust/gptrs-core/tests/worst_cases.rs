//! Texts that are one piece, or look like one until their end: linear time, little stack, exact ids.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use gptrs_core::count::count_texts;
use gptrs_core::train::{TrainOptions, train};
use gptrs_core::{Control, Splitter, Tokenizer, Vocab};

const PATTERNS: [&str; 7] = ["gpt2", "cl100k_base", "o200k_base", "llama3", "qwen2", "deepseek-v3", "nanochat"];

const UNITS: [&str; 14] =
    ["a", "ab", "A", "é", " ", "7", "\u{4e2d}", "\u{30ab}", "\n", "\r\n", "\u{1f469}\u{200d}", "e\u{301}", "'", "\0"];

fn repeated(unit: &str, n_bytes: usize) -> Vec<u8> {
    unit.bytes().cycle().take(n_bytes / unit.len() * unit.len()).collect()
}

/// A vocabulary whose tokens are runs of the units, of every length that a doubling reaches.
fn tokenizer(pattern: &str) -> Tokenizer {
    let splitter = Splitter::new(pattern).unwrap();
    let runs: Vec<String> = UNITS.iter().flat_map(|unit| [3, 40, 61].map(|n| unit.repeat(n))).collect();
    let counts = count_texts(&runs, &splitter, 1, &Control::new()).unwrap();
    let merges = train(&counts, &TrainOptions { n_merges: 120, min_count: 1 }, 1, &Control::new()).unwrap();
    Tokenizer::new(Vocab::from_merges(&merges).unwrap(), splitter, Vec::new()).unwrap()
}

/// Eight times the text takes about eight times as long. Quadratic work would be sixty-four times; a text that leaves the
/// caches at most doubles it. The best of three counts, of the long text the best of up to twenty: other programs can
/// only lengthen a run.
#[test]
fn time_grows_with_the_text_and_not_with_its_square() {
    const SHORT: usize = 64 << 10;
    const LEAST: Duration = Duration::from_millis(5); // quadratic work on 64 KiB takes a second
    for pattern in PATTERNS {
        let tokenizer = tokenizer(pattern);
        for unit in UNITS {
            let (short, long) = (repeated(unit, SHORT), repeated(unit, 8 * SHORT));
            let cost = |text: &[u8]| {
                let start = Instant::now();
                let ids = tokenizer.encode_ordinary(text).unwrap();
                let spent = start.elapsed();
                assert!(tokenizer.decode_bytes(&ids).unwrap() == text);
                spent
            };
            let bound = 32 * (0..3).map(|_| cost(&short)).min().unwrap().max(LEAST);
            let best = (0..20).map(|_| cost(&long)).find(|&spent| spent <= bound);
            assert!(best.is_some(), "{pattern}, {unit:?}: eight times the text never took less than {bound:?}");
        }
    }
}

#[test]
fn a_megabyte_of_one_piece_needs_no_more_than_512_kib_of_stack() {
    for pattern in PATTERNS.into_iter().chain([r"\p{L}+|\s+|[^\s\p{L}]+"]) {
        let tokenizer = Arc::new(tokenizer(pattern));
        let work = move || {
            for unit in UNITS {
                let text = repeated(unit, 1 << 20);
                let ids = tokenizer.encode_ordinary(&text).unwrap();
                assert!(tokenizer.decode_bytes(&ids).unwrap() == text);
                assert_eq!(tokenizer.count(&text).unwrap(), ids.len());
                assert_eq!(tokenizer.encode_with_offsets(&text).unwrap().0, ids);
                let counts = count_texts(&[&text], tokenizer.splitter(), 1, &Control::new()).unwrap();
                assert_eq!(counts.n_bytes(), text.len() as u64);
            }
        };
        thread::Builder::new().stack_size(512 << 10).spawn(work).unwrap().join().unwrap();
    }
}
