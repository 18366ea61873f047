//! A trillion tokens: opening reads the manifest and headers, a batch its rows' blocks, and neither anything more.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fs;
use std::sync::Arc;

use gptrs_core::dataset::Dataset;
use gptrs_core::loader::{Loader, LoaderOptions};
use gptrs_core::order::OrderKind;

#[path = "fixtures/sparse.rs"]
mod sparse;

const OPTIONS: LoaderOptions = LoaderOptions {
    seq_len: 1024,
    global_batch: 8,
    micro_batch: 8,
    rank: 0,
    world_size: 1,
    seed: 5,
    order: OrderKind::Feistel,
};

/// Bytes that this process has read, and its memory in bytes.
fn read_and_resident() -> (u64, u64) {
    let number = |file: &str, mark: &str| {
        let text = fs::read_to_string(file).unwrap();
        let line = text.lines().find(|line| line.starts_with(mark)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
    };
    (number("/proc/self/io", "rchar:"), 1024 * number("/proc/self/status", "VmRSS:"))
}

/// One test, since the numbers are those of the process.
#[test]
fn any_batch_of_a_trillion_tokens_reads_its_rows_and_little_more() {
    let dir = tempfile::tempdir().unwrap();
    for (n_shards, shard_tokens) in [(15, 1 << 36), (2000, 1 << 29)] {
        let dir = dir.path().join(n_shards.to_string());
        sparse::write(&dir, n_shards, shard_tokens).unwrap();
        let before = read_and_resident();
        let dataset = Arc::new(Dataset::open(&dir).unwrap());
        assert!(dataset.n_tokens() >= 1_000_000_000_000);
        let opened = read_and_resident();
        let manifest = fs::metadata(dir.join("manifest.json")).unwrap().len();
        assert!(opened.0 - before.0 <= manifest + 128 * (4096 + 64) + 10_000, "{} bytes", opened.0 - before.0);
        let loader = Loader::new(Arc::clone(&dataset), OPTIONS).unwrap();
        let (mut tokens, mut targets) = (vec![1; 8 * 1024], vec![1; 8 * 1024]);
        for batch in [0, 999_999, loader.n_rows() * 3 / 8, u64::MAX / 16] {
            let before = read_and_resident().0;
            loader.fill(8 * batch, &mut tokens, &mut targets).unwrap();
            assert!(tokens.iter().chain(&targets).all(|&id| id == 0));
            let read = read_and_resident().0 - before;
            // A row of 2 KiB is in one block or two; its shard may have to be opened.
            assert!(read <= 8 * (2 * (65_536 + 8) + 2050 + 4096 + 64) + 10_000, "batch {batch} read {read} bytes");
        }
        let row = 12_345_678_901;
        let mut documents = [0; 8];
        dataset.doc_ids(row, &mut documents).unwrap();
        assert!(documents.iter().all(|&id| id == row / shard_tokens));
        let grown = read_and_resident().1.saturating_sub(before.1);
        assert!(grown <= 64 << 20, "memory grew by {grown} bytes");
        fs::remove_file(dir.join(format!("shard-{:05}.gts", n_shards - 1))).unwrap();
        assert!(Dataset::open(&dir).unwrap_err().to_string().contains(&format!("shard-{:05}.gts", n_shards - 1)));
    }
}
