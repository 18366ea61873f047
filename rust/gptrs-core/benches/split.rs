//! Text to pieces alone: each named pattern, at each level of vector instructions that the processor has, on one thread.
//! `GPTRS_TEST_DATA` names a directory with texts (`bench_en.txt`, `bench_multi.txt`, `bench_code.txt`), unpacked; those
//! that are not there are left out.

use std::hint::black_box;
use std::path::PathBuf;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use gptrs_core::Splitter;
use gptrs_core::simd::Level;
use gptrs_core::split::NAMES;

/// How many pieces there are, and a sum over their ends that the compiler cannot leave out.
fn scan(splitter: &Splitter, text: &[u8]) -> (usize, usize) {
    let (mut n, mut sum) = (0, 0usize);
    let count = |_: &[u8], start: usize, end: usize| {
        n += 1;
        sum = sum.wrapping_add(start.wrapping_mul(end));
        Ok(())
    };
    splitter.for_each_span(text, count).expect("a named pattern cannot fail");
    (n, sum)
}

fn split(c: &mut Criterion) {
    let Some(directory) = std::env::var_os("GPTRS_TEST_DATA").map(PathBuf::from) else { return };
    for name in ["bench_en.txt", "bench_multi.txt", "bench_code.txt"] {
        let Ok(text) = std::fs::read(directory.join(name)) else { continue };
        let mut group = c.benchmark_group(format!("split {name}"));
        group.throughput(Throughput::Bytes(text.len() as u64));
        group.sample_size(10).warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(2));
        for pattern in NAMES {
            let splitter = Splitter::new(pattern).expect("a named pattern");
            let at = |level| splitter.clone().with_level(level).expect("a level that the processor has");
            let expected = scan(&at(Level::Scalar), &text);
            for level in Level::ALL.into_iter().filter(|level| level.is_available()) {
                let splitter = at(level);
                assert!(scan(&splitter, &text) == expected, "every benchmark checks its output");
                group.bench_function(format!("{pattern}, {level}"), |b| b.iter(|| scan(&splitter, black_box(&text))));
            }
        }
        group.finish();
    }
}

fn short(c: &mut Criterion) {
    let text = b"It's a short text, as prompts are, with 1 number.";
    let mut group = c.benchmark_group("split 49 bytes");
    for pattern in NAMES {
        let splitter = Splitter::new(pattern).expect("a named pattern");
        group.bench_function(pattern, |b| b.iter(|| scan(&splitter, black_box(text))));
    }
    group.finish();
}

criterion_group!(benches, split, short);
criterion_main!(benches);
