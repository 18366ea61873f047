//! Splitting, counting and training, one thread and all: `cargo bench --bench tokenizer_train`.
//!
//! The text is made here, so that runs on different machines compare: words drawn by a power law, as in natural text.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use gptrs_core::Control;
use gptrs_core::count::count_texts;
use gptrs_core::split::Splitter;
use gptrs_core::train::{TrainOptions, train};

const N_WORDS: usize = 2_000_000;
const N_MERGES: usize = 8000;

/// Words of one to four syllables; the first ones are by far the most frequent.
fn text() -> String {
    const SYLLABLES: [&str; 16] =
        ["the", "an", "re", "in", "er", "st", "ou", "la", "qui", "mo", "ne", "tion", "be", "ka", "ð", "語"];
    let mut state = 1u64;
    let mut text = String::new();
    for i in 0..N_WORDS {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let random = (state >> 11) as f64 / (1u64 << 53) as f64;
        let mut word = (65_536f64.powf(random) - 1.0) as usize;
        loop {
            text.push_str(SYLLABLES[word % 16]);
            word /= 16;
            if word == 0 {
                break;
            }
        }
        text.push_str(if i % 17 == 16 { ".\n" } else { " " });
    }
    text
}

fn benchmarks(criterion: &mut Criterion) {
    let text = text();
    let control = Control::new();
    let mut group = criterion.benchmark_group("tokenizer_train");
    group.sample_size(10).throughput(Throughput::Bytes(text.len() as u64));
    for name in ["gpt2", "cl100k_base"] {
        let splitter = Splitter::new(name).expect("a known pattern");
        group.bench_function(format!("split {name}"), |bencher| {
            bencher.iter(|| {
                let (mut n_bytes, mut n_pieces) = (0, 0);
                let count = |piece: &[u8]| {
                    (n_bytes, n_pieces) = (n_bytes + piece.len(), n_pieces + 1);
                    Ok(())
                };
                splitter.for_each_piece(text.as_bytes(), count).expect("a named pattern cannot fail");
                assert_eq!(n_bytes, text.len());
                black_box(n_pieces)
            });
        });
        for threads in [1, 0] {
            group.bench_function(format!("count {name}, threads={threads}"), |bencher| {
                bencher.iter(|| count_texts(&[&text], &splitter, threads, &control).expect("nobody cancels"));
            });
        }
    }
    let splitter = Splitter::new("gpt2").expect("a known pattern");
    let counts = count_texts(&[&text], &splitter, 0, &control).expect("nobody cancels");
    assert_eq!(counts.n_bytes(), text.len() as u64);
    let options = TrainOptions { n_merges: N_MERGES, min_count: 1 };
    for threads in [1, 0] {
        group.bench_function(format!("train {N_MERGES} merges, threads={threads}"), |bencher| {
            bencher.iter(|| {
                let merges = train(&counts, &options, threads, &control).expect("nobody cancels");
                assert_eq!(merges.len(), N_MERGES);
            });
        });
    }
    group.finish();
}

criterion_group!(benches, benchmarks);
criterion_main!(benches);
