//! Batches: the stream is the same for any number of ranks, stops and sizes of microbatch.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "fixtures/dataset.rs"]
mod dataset;
#[path = "fixtures/random.rs"]
mod random;

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use gptrs_core::Error;
use gptrs_core::dataset::Dataset;
use gptrs_core::loader::{Loader, LoaderOptions, Prefetch, Rows, Wide, room};
use gptrs_core::order::OrderKind;
use random::Random;

/// A dataset whose token `i` is `i`, in shards of `shard_tokens`.
fn counting_dataset(dir: &Path, n_tokens: u32, shard_tokens: usize) -> Arc<Dataset> {
    let tokens: Vec<u32> = (0..n_tokens).collect();
    dataset_of(dir, tokens.chunks(shard_tokens), shard_tokens)
}

/// A dataset of these shards, the longest of `shard_tokens`.
fn dataset_of<'t>(dir: &Path, shards: impl Iterator<Item = &'t [u32]>, shard_tokens: usize) -> Arc<Dataset> {
    let spec = dataset::spec(65_536);
    let entries = shards.enumerate().map(|(i, chunk)| dataset::write_shard(dir, spec, i, chunk)).collect();
    Arc::new(dataset::finish(dir, spec, entries, shard_tokens))
}

fn options(seq_len: usize, global_batch: usize) -> LoaderOptions {
    let (rank, world_size, seed, order) = (0, 1, 1, OrderKind::Feistel);
    LoaderOptions { seq_len, global_batch, micro_batch: global_batch, rank, world_size, seed, order }
}

#[test]
fn targets_are_the_tokens_behind_and_rows_hold_both() {
    let dir = tempfile::tempdir().unwrap();
    let dataset = counting_dataset(dir.path(), 21, 8);
    let loader = Loader::new(dataset, LoaderOptions { order: OrderKind::Sequential, ..options(4, 2) }).unwrap();
    assert_eq!(loader.n_rows(), 5);
    let mut batch = Wide::new(&loader);
    loader.fill(2, &mut batch.tokens, &mut batch.targets).unwrap();
    assert_eq!(batch.tokens, [8, 9, 10, 11, 12, 13, 14, 15]);
    assert_eq!(batch.targets, [9, 10, 11, 12, 13, 14, 15, 16]);
    let mut rows = [0u16; 10];
    loader.fill_rows(4, &mut rows).unwrap(); // the last row of one epoch, the first of the next
    assert_eq!(rows, [16, 17, 18, 19, 20, 0, 1, 2, 3, 4]);
    let mut doc_ids = [0; 8];
    loader.fill_doc_ids(2, &mut doc_ids).unwrap();
    assert_eq!(doc_ids, [1, 1, 1, 1, 1, 1, 1, 1]);
}

#[test]
fn every_row_comes_once_in_each_epoch() {
    let dir = tempfile::tempdir().unwrap();
    for (n_tokens, seq_len) in [(9_001, 4), (5_000, 7), (40, 39), (30_001, 9)] {
        let loader = Loader::new(counting_dataset(dir.path(), n_tokens, 1000), options(seq_len, 1)).unwrap();
        let n_rows = loader.n_rows();
        for epoch in 0..3 {
            let mut rows: Vec<u64> =
                (epoch * n_rows..(epoch + 1) * n_rows).map(|s| loader.place(s).unwrap().row).collect();
            assert_eq!(rows == (0..n_rows).collect::<Vec<_>>(), n_rows == 1);
            rows.sort_unstable();
            assert_eq!(rows, (0..n_rows).collect::<Vec<_>>());
        }
    }
}

/// 8 and 100 shards, or as many of 51 to 150 tokens, rows that lie in one and across two, and 150 rows a microbatch: more of
/// each than are held or looked up at a time, and epochs that end inside.
#[test]
fn a_large_microbatch_has_the_rows_of_its_places_one_by_one() {
    let dir = tempfile::tempdir().unwrap();
    let tokens: Vec<u32> = (0..10_050).collect();
    let ends: Vec<usize> = (0..=100).map(|i| i * (i + 1) / 2 + 50 * i).collect();
    let growing = ends.windows(2).map(|ends| &tokens[ends[0]..ends[1]]);
    let shrinking = ends.windows(2).rev().map(|ends| &tokens[10_050 - ends[1]..10_050 - ends[0]]);
    let datasets = [
        counting_dataset(&dir.path().join("equal"), 8_000, 1000),
        counting_dataset(&dir.path().join("short"), 10_000, 100),
        dataset_of(&dir.path().join("growing"), growing, 150),
        dataset_of(&dir.path().join("shrinking"), shrinking, 150),
    ];
    for dataset in datasets {
        for seq_len in [7, 90] {
            let loader = Loader::new(Arc::clone(&dataset), options(seq_len, 150)).unwrap();
            let (mut rows, mut batch) = (Rows::<u16>::new(&loader).0, Wide::new(&loader));
            for next_sample in (0..3000).step_by(150) {
                loader.fill_rows(next_sample, &mut rows).unwrap();
                loader.fill(next_sample, &mut batch.tokens, &mut batch.targets).unwrap();
                for (b, stored) in rows.chunks_exact(seq_len + 1).enumerate() {
                    let start = loader.place(next_sample + b as u64).unwrap().row as usize * seq_len;
                    let row: Vec<i64> = (start..=start + seq_len).map(|i| i as i64).collect();
                    assert!(stored.iter().map(|&id| i64::from(id)).eq(row.iter().copied()), "row {b} of {next_sample}");
                    let range = b * seq_len..(b + 1) * seq_len;
                    assert_eq!(batch.tokens[range.clone()], row[..seq_len]);
                    assert_eq!(batch.targets[range], row[1..]);
                }
            }
        }
    }
}

/// 2,000 times: train on some ranks, stop after some steps, go on with other ranks and microbatches.
#[test]
fn any_change_of_ranks_or_microbatch_continues_the_stream_of_one_rank() {
    let dir = tempfile::tempdir().unwrap();
    let dataset = counting_dataset(dir.path(), 4_001, 333);
    let mut random = Random(7);
    for case in 0..2000 {
        let global_batch = [8, 12, 24][random.below(3)];
        let one = LoaderOptions {
            seed: random.next(),
            order: if random.below(8) > 0 { OrderKind::Feistel } else { OrderKind::Sequential },
            ..options([5, 16, 50][random.below(3)], global_batch)
        };
        let n_steps = 1 + random.below(6);
        let start = (random.below(200) * global_batch) as u64;
        let stop = random.below(n_steps + 1);
        let reference = stream(&dataset, one, start, n_steps);
        let mut got = Vec::new();
        for (first, last) in [(0, stop), (stop, n_steps)] {
            let (micro_batch, world_size) = random_split(&mut random, global_batch);
            let begin = start + (first * global_batch) as u64;
            let ranks = LoaderOptions { micro_batch, world_size, ..one };
            got.extend(stream(&dataset, ranks, begin, last - first));
        }
        assert_eq!(got, reference, "case {case}");
    }
}

/// The rows of `n_steps` optimizer steps as all ranks together see them.
fn stream(dataset: &Arc<Dataset>, options: LoaderOptions, start: u64, n_steps: usize) -> Vec<Vec<u16>> {
    let loaders: Vec<Loader> = (0..options.world_size)
        .map(|rank| Loader::new(Arc::clone(dataset), LoaderOptions { rank, ..options }).unwrap())
        .collect();
    let end = start + (n_steps * options.global_batch) as u64;
    let mut rows = Vec::new();
    for next_sample in (start..end).step_by(options.micro_batch * options.world_size) {
        for loader in &loaders {
            let mut batch = Rows::<u16>::new(loader).0;
            loader.fill_rows(next_sample, &mut batch).unwrap();
            rows.extend(batch.chunks(options.seq_len + 1).map(<[u16]>::to_vec));
        }
    }
    rows
}

fn random_split(random: &mut Random, global_batch: usize) -> (usize, usize) {
    loop {
        let (micro_batch, world_size) = (1 + random.below(global_batch), 1 + random.below(global_batch));
        if global_batch.is_multiple_of(micro_batch * world_size) {
            return (micro_batch, world_size);
        }
    }
}

#[test]
fn options_that_do_not_fit_are_refused_with_the_nearest_that_do() {
    let dir = tempfile::tempdir().unwrap();
    let dataset = counting_dataset(dir.path(), 100, 64);
    let good = options(10, 8);
    for (bad, reason) in [
        (LoaderOptions { micro_batch: 3, world_size: 2, ..good }, "hint: use global_batch=6 or 12"),
        (LoaderOptions { micro_batch: 9, ..good }, "hint: use global_batch=9"),
        (LoaderOptions { rank: 1, ..good }, "rank (1) must be below world_size (1)"),
        (LoaderOptions { seq_len: 0, ..good }, "seq_len must be 1 to 2^31, got 0"),
        (LoaderOptions { micro_batch: usize::MAX, world_size: 2, ..good }, "micro_batch must be 1 to 2^31"),
        (LoaderOptions { seq_len: 100, ..good }, "seq_len (100) needs 101 tokens, the dataset has 100"),
    ] {
        let message = Loader::new(Arc::clone(&dataset), bad).unwrap_err().to_string();
        assert!(message.contains(reason), "{message}");
    }
    let loader = Loader::new(dataset, good).unwrap();
    let message = loader.check_start(12).unwrap_err().to_string();
    assert!(message.contains("the nearest are 8 and 16"), "{message}");
    assert!(loader.fill(0, &mut [0; 80], &mut [0; 79]).is_err());
    assert!(loader.fill_rows(u64::MAX - 7, &mut [0u16; 88]).is_err());
}

#[test]
fn a_microbatch_that_no_memory_holds_is_refused() {
    for (rows, columns) in [(usize::MAX, 2), (1 << 62, 1), (1 << 31, 1 << 31)] {
        let message = room::<u64>("doc_ids", rows, columns).unwrap_err().to_string();
        assert_eq!(message, format!("no memory for doc_ids of {rows} x {columns}; hint: use a smaller micro_batch"));
    }
}

#[test]
fn prefetched_batches_are_those_that_fill_gives_and_only_handed_out_ones_count() {
    let dir = tempfile::tempdir().unwrap();
    let loader = Loader::new(counting_dataset(dir.path(), 3_001, 500), options(10, 4)).unwrap();
    let mut prefetch = Prefetch::new(loader.clone(), 8).unwrap();
    assert!(prefetch.next().is_err(), "nothing was submitted");
    for _ in 0..4 {
        prefetch.submit(Wide::new(&loader)).unwrap();
    }
    for i in 0..200 {
        assert_eq!(prefetch.next_sample(), 8 + 4 * i);
        let batch = prefetch.next().unwrap();
        let mut expected = Wide::new(&loader);
        loader.fill(8 + 4 * i, &mut expected.tokens, &mut expected.targets).unwrap();
        assert_eq!(batch, expected);
        prefetch.submit(batch).unwrap();
    }
    prefetch.close();
    assert!(prefetch.next().is_err() && prefetch.submit(Wide::new(&loader)).is_err());
}

#[test]
fn dropping_a_prefetcher_at_any_time_ends_its_thread() {
    let dir = tempfile::tempdir().unwrap();
    let loader = Loader::new(counting_dataset(dir.path(), 3_001, 500), options(10, 4)).unwrap();
    for n in 0..50 {
        let mut prefetch = Prefetch::new(loader.clone(), 0).unwrap();
        for _ in 0..n % 5 {
            prefetch.submit(Rows::<u32>::new(&loader)).unwrap();
        }
        if n % 5 > 1 {
            prefetch.next().unwrap();
        }
        drop(prefetch);
        assert_eq!(Arc::strong_count(loader.dataset()), 1, "the thread has dropped its loader");
    }
}

#[test]
fn a_missing_shard_surfaces_at_next_and_nothing_is_skipped_when_it_is_back() {
    let dir = tempfile::tempdir().unwrap();
    let loader = Loader::new(counting_dataset(dir.path(), 3_001, 500), options(10, 4)).unwrap();
    let (shard, away) = (dir.path().join("shard-00003.gts"), dir.path().join("away"));
    fs::rename(&shard, &away).unwrap();
    let mut prefetch = Prefetch::new(loader.clone(), 0).unwrap();
    prefetch.submit(Rows::<u16>::new(&loader)).unwrap();
    let error = loop {
        match prefetch.next_within(Duration::from_secs(60)) {
            Ok(batch) => prefetch.submit(batch.unwrap()).unwrap(),
            Err(error) => break error,
        }
    };
    assert!(matches!(&error, Error::Io { path, .. } if *path == shard), "{error}");
    let at = prefetch.next_sample();
    fs::rename(&away, &shard).unwrap();
    prefetch.submit(Rows::<u16>::new(&loader)).unwrap();
    let mut expected = Rows::<u16>::new(&loader);
    loader.fill_rows(at, &mut expected.0).unwrap();
    assert_eq!(prefetch.next().unwrap(), expected);
}

#[test]
fn a_damaged_shard_surfaces_at_next() {
    let dir = tempfile::tempdir().unwrap();
    let loader = Loader::new(counting_dataset(dir.path(), 3_001, 500), options(10, 4)).unwrap();
    let path = dir.path().join("shard-00002.gts");
    let mut bytes = fs::read(&path).unwrap();
    bytes[4100] ^= 1;
    fs::write(&path, bytes).unwrap();
    let mut prefetch = Prefetch::new(loader.clone(), 0).unwrap();
    let error = loop {
        prefetch.submit(Rows::<u16>::new(&loader)).unwrap();
        if let Err(error) = prefetch.next() {
            break error;
        }
    };
    assert!(matches!(error, Error::Digest { .. }), "{error}");
}
