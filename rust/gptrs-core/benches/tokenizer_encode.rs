//! Encoding and loading. `GPTRS_TEST_DATA` names a directory with GPT-2's vocabulary
//! (`gpt2_encoder.json`, `gpt2_vocab.bpe`) and a text (`bench_en.txt`), unpacked; without it there is nothing to measure.
//!
//! `cold` makes a tokenizer's first call each time, `warm` repeats calls with a filled cache, both on one thread.

use std::hint::black_box;
use std::path::PathBuf;
use std::time::Duration;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use gptrs_core::{Control, Specials, Splitter, Tokenizer, formats};

fn directory() -> Option<PathBuf> {
    std::env::var_os("GPTRS_TEST_DATA").map(PathBuf::from)
}

fn gpt2(directory: &std::path::Path) -> Tokenizer {
    let (vocab, merges) = (directory.join("gpt2_encoder.json"), directory.join("gpt2_vocab.bpe"));
    let splitter = Splitter::new("gpt2").expect("a named pattern");
    formats::merges::read(&vocab, &merges, splitter).expect("GPT-2's vocabulary, unpacked")
}

fn encode(c: &mut Criterion) {
    let Some(directory) = directory() else { return };
    let text = std::fs::read(directory.join("bench_en.txt")).expect("bench_en.txt, unpacked");
    let fresh = || gpt2(&directory);
    let tokenizer = fresh();
    let expected = tokenizer.encode_ordinary(&text).expect("encodes");
    assert!(tokenizer.decode_bytes(&expected).expect("decodes") == text, "every benchmark checks its output");
    let mut group = c.benchmark_group("encode gpt2, bench_en");
    group.throughput(Throughput::Bytes(text.len() as u64)).sample_size(10).warm_up_time(Duration::from_secs(1));
    group.bench_function("cold, u32", |b| {
        b.iter_batched(fresh, |cold| cold.encode_ordinary(black_box(&text)), BatchSize::PerIteration);
    });
    group.bench_function("warm, u32", |b| b.iter(|| tokenizer.encode_ordinary(black_box(&text))));
    group.bench_function("warm, count", |b| b.iter(|| tokenizer.count(black_box(&text))));
    let documents: Vec<&[u8]> = text.chunks(8192).collect();
    group.bench_function("cold, batch of 8 kB documents, u16", |b| {
        let batch = |cold: Tokenizer| cold.encode_batch(&documents, Specials::None, 1, &Control::new());
        b.iter_batched(fresh, batch, BatchSize::PerIteration);
    });
    group.bench_function("decode", |b| b.iter(|| tokenizer.decode_bytes(black_box(&expected))));
    group.finish();
}

fn worst_case(c: &mut Criterion) {
    let Some(directory) = directory() else { return };
    let tokenizer = gpt2(&directory);
    let mut group = c.benchmark_group("one piece of one letter");
    for n in [250_000, 1_000_000] {
        let text = vec![b'a'; n];
        group.throughput(Throughput::Bytes(n as u64)).sample_size(10);
        group.bench_function(format!("{n} bytes"), |b| b.iter(|| tokenizer.encode_ordinary(black_box(&text))));
    }
    group.finish();
}

fn load(c: &mut Criterion) {
    let Some(directory) = directory() else { return };
    let json = formats::tokenizer_json::to_string(&gpt2(&directory)).expect("GPT-2 can be written");
    let mut group = c.benchmark_group("load gpt2");
    group.sample_size(10);
    group.bench_function("vocab.json and merges.txt", |b| b.iter(|| gpt2(&directory)));
    group.bench_function("tokenizer.json", |b| {
        b.iter(|| formats::tokenizer_json::from_str(black_box(&json), &directory));
    });
    group.finish();
}

criterion_group!(benches, encode, worst_case, load);
criterion_main!(benches);
