//! How fast one core delivers batches from files in the page cache: `cargo bench -p gptrs-core --bench loader`.
//!
//! Prints a JSON line for each form of batch: million tokens a second, median and range of 7 runs, and for the shards
//! that it writes first. The output is compared with the tokens that were written.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a benchmark may panic and prints")]

#[path = "../tests/fixtures/dataset.rs"]
mod dataset;

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use gptrs_core::dataset::Dataset;
use gptrs_core::loader::{Loader, LoaderOptions, Rows, Wide};
use gptrs_core::order::OrderKind;
use gptrs_core::permute::Permutation;

const SEQ_LEN: usize = 1024;
const BATCH: usize = 32;
const N_TOKENS: usize = 1 << 27;
const SHARD: usize = 1 << 24;
const REPEATS: usize = 7;
const BATCHES: u64 = 1000;

fn main() {
    let dir = tempfile::tempdir().unwrap();
    let dataset = Arc::new(write(dir.path()));
    let options = LoaderOptions {
        seq_len: SEQ_LEN,
        global_batch: BATCH,
        micro_batch: BATCH,
        rank: 0,
        world_size: 1,
        seed: 1,
        order: OrderKind::Feistel,
    };
    let loader = Loader::new(dataset, options).unwrap();
    let mut wide = Wide::new(&loader);
    let n = BATCHES * (SEQ_LEN * BATCH) as u64;
    let first = timed(1, || each(|s| loader.fill(s, &mut wide.tokens, &mut wide.targets).unwrap()));
    report("int64 tokens and targets, first touch checked", n, &first);
    let times = timed(REPEATS, || each(|s| loader.fill(s, &mut wide.tokens, &mut wide.targets).unwrap()));
    report("int64 tokens and targets", n, &times);
    let start = loader.place((BATCHES - 1) * BATCH as u64).unwrap().row as usize * SEQ_LEN;
    assert!((start..start + SEQ_LEN).zip(&wide.tokens).all(|(i, &id)| id == token(i) as i64));
    assert!((start + 1..=start + SEQ_LEN).zip(&wide.targets).all(|(i, &id)| id == token(i) as i64));
    for seq_len in [SEQ_LEN, 2 * SEQ_LEN] {
        gather_beside_memcpy(&loader, seq_len);
    }
    let mut sum = 0;
    let order = Permutation::new(1_000_000_007, 1, 0);
    let times = timed(REPEATS, || (0..1_000_000).for_each(|i| sum ^= order.at(i)));
    report(&format!("permuted indices (checksum {sum})"), 1_000_000, &times);
}

/// Rows as they are stored, and a memcpy of the same bytes from memory in the same order, in turn.
fn gather_beside_memcpy(loader: &Loader, seq_len: usize) {
    let options = LoaderOptions { seq_len, ..*loader.options() };
    let loader = Loader::new(Arc::clone(loader.dataset()), options).unwrap();
    let mut all = vec![0u16; loader.dataset().n_tokens() as usize];
    loader.dataset().read(0, &mut all).unwrap();
    let starts: Vec<Vec<usize>> = (0..BATCHES)
        .map(|i| loader.microbatch(i * BATCH as u64).unwrap().iter().map(|p| p.row as usize * seq_len).collect())
        .collect();
    let (mut rows, mut copy) = (Rows::<u16>::new(&loader).0, vec![0u16; BATCH * (seq_len + 1)]);
    let (mut gather, mut memcpy) = (Vec::new(), Vec::new());
    for _ in 0..REPEATS {
        gather.extend(timed(1, || each(|s| loader.fill_rows(s, &mut rows).unwrap())));
        memcpy.extend(timed(1, || {
            for starts in &starts {
                for (out, &start) in copy.chunks_exact_mut(seq_len + 1).zip(starts) {
                    out.copy_from_slice(&all[start..=start + seq_len]);
                }
                std::hint::black_box(&mut copy);
            }
        }));
        assert_eq!(rows, copy);
    }
    let n = BATCHES * (seq_len * BATCH) as u64;
    report(&format!("gather of uint16 rows of {seq_len}"), n, &gather);
    report(&format!("memcpy of the same rows of {seq_len}"), n, &memcpy);
}

fn token(i: usize) -> u32 {
    ((i * 2_654_435_761) >> 7) as u32 % 50_257
}

fn each(mut fill: impl FnMut(u64)) {
    (0..BATCHES).for_each(|i| fill(i * BATCH as u64));
}

fn timed(repeats: usize, mut work: impl FnMut()) -> Vec<f64> {
    let run = |_| {
        let started = Instant::now();
        work();
        started.elapsed().as_secs_f64()
    };
    (0..repeats).map(run).collect()
}

fn report(what: &str, n: u64, seconds: &[f64]) {
    let mut rates: Vec<f64> = seconds.iter().map(|s| n as f64 / s / 1e6).collect();
    rates.sort_by(f64::total_cmp);
    let (median, low, high) = (rates[rates.len() / 2], rates[0], rates[rates.len() - 1]);
    println!("{{\"bench\": \"{what}\", \"million_per_s\": {median:.1}, \"low\": {low:.1}, \"high\": {high:.1}}}");
}

fn write(dir: &Path) -> Dataset {
    let spec = dataset::spec(50_257);
    let mut entries = Vec::new();
    let mut seconds = Vec::new();
    for start in (0..N_TOKENS).step_by(SHARD) {
        let ids: Vec<u32> = (start..start + SHARD).map(token).collect();
        let started = Instant::now();
        entries.push(dataset::write_shard(dir, spec, start / SHARD, &ids));
        seconds.push(started.elapsed().as_secs_f64());
    }
    report("shards written and synced, tokens", SHARD as u64, &seconds);
    dataset::finish(dir, spec, entries, SHARD)
}
