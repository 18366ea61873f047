//! Training that goes on with other ranks, microbatches and steps sees the samples of one rank, none twice, none left out.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "fixtures/dataset.rs"]
mod dataset;
#[path = "fixtures/random.rs"]
mod random;

use std::path::Path;
use std::sync::Arc;

use gptrs_core::dataset::Dataset;
use gptrs_core::loader::{Loader, LoaderOptions, Prefetch, Rows};
use gptrs_core::order::{BlockShape, OrderKind};
use random::Random;

/// A dataset whose token `i` is `i`, in several shards.
fn counting_dataset(dir: &Path) -> Arc<Dataset> {
    let spec = dataset::spec(65_536);
    let tokens: Vec<u32> = (0..4001).collect();
    let shards = tokens.chunks(333).enumerate();
    let entries = shards.map(|(i, chunk)| dataset::write_shard(dir, spec, i, chunk)).collect();
    Arc::new(dataset::finish(dir, spec, entries, 333))
}

/// The loaders of a run.
struct Run {
    loaders: Vec<Loader>,
    stride: u64,
}

impl Run {
    /// `global_batch` rows a step, split in any way that fits.
    fn new(dataset: &Arc<Dataset>, one: LoaderOptions, global_batch: usize, random: &mut Random) -> Self {
        let stride = *divisors(global_batch).get(random.below(divisors(global_batch).len())).unwrap();
        let world_size = divisors(stride)[random.below(divisors(stride).len())];
        let options = LoaderOptions { global_batch, micro_batch: stride / world_size, world_size, ..one };
        let make = |rank| Loader::new(Arc::clone(dataset), LoaderOptions { rank, ..options }).unwrap();
        Self { loaders: (0..world_size).map(make).collect(), stride: stride as u64 }
    }

    /// The rows of `n` microbatches as all ranks together see them, and the state behind them.
    fn rows(&self, next_sample: u64, n: u64, reads_ahead: bool) -> (Vec<Vec<u16>>, u64) {
        let mut ranks: Vec<Vec<Vec<u16>>> = Vec::new();
        for loader in &self.loaders {
            let mut prefetch = Prefetch::new(loader.clone(), next_sample).unwrap();
            let mut batches = Vec::new();
            for i in 0..n {
                let mut rows = Rows::<u16>::new(loader);
                if reads_ahead {
                    prefetch.submit(rows).unwrap();
                    rows = prefetch.next().unwrap();
                } else {
                    loader.fill_rows(next_sample + i * self.stride, &mut rows.0).unwrap();
                }
                batches.push(rows.0);
            }
            assert!(!reads_ahead || prefetch.next_sample() == next_sample + n * self.stride);
            ranks.push(batches);
        }
        let row = self.loaders[0].options().seq_len + 1;
        let in_order = (0..n as usize).flat_map(|i| ranks.iter().map(move |batches| &batches[i]));
        let rows = in_order.flat_map(|batch| batch.chunks(row)).map(<[u16]>::to_vec).collect();
        (rows, next_sample + n * self.stride)
    }
}

fn divisors(n: usize) -> Vec<usize> {
    (1..=n).filter(|d| n.is_multiple_of(*d)).collect()
}

/// Runs of up to four parts that stop anywhere between two microbatches; each goes on with another split of the step,
/// and with any divisor of the first run's global batch as its own.
fn cases(n_cases: u64) {
    let dir = tempfile::tempdir().unwrap();
    let dataset = counting_dataset(dir.path());
    let (mut n_refused, mut n_within_a_step) = (0, 0);
    for case in 0..n_cases {
        let mut random = Random(case);
        let global_batch = [8, 12, 24, 30, 64][random.below(5)];
        let (seq_len, seed) = ([5, 16, 50][random.below(3)], random.next());
        let order =
            [OrderKind::Feistel, OrderKind::Sequential, OrderKind::Block(BlockShape::default())][random.below(3)];
        let one = LoaderOptions { seq_len, global_batch, micro_batch: 1, rank: 0, world_size: 1, seed, order };
        let start = (random.below(200) * global_batch) as u64;
        let (mut got, mut state) = (Vec::new(), start);
        for _ in 0..2 + random.below(3) {
            let mut run = Run::new(&dataset, one, global_batch, &mut random);
            while !state.is_multiple_of(run.stride) {
                let message = run.loaders[0].check_start(state).unwrap_err().to_string();
                assert!(message.contains(&format!("next_sample ({state})")) && message.contains("hint: "), "{message}");
                assert!(Prefetch::<Rows<u16>>::new(run.loaders[0].clone(), state).is_err());
                n_refused += 1;
                let all = divisors(global_batch);
                run = Run::new(&dataset, one, all[random.below(all.len())], &mut random);
            }
            let (rows, next) = run.rows(state, random.below(5) as u64, case % 16 == 0);
            got.extend(rows);
            state = next;
            n_within_a_step += u64::from(!state.is_multiple_of(global_batch as u64));
        }
        let loader = Loader::new(Arc::clone(&dataset), one).unwrap();
        let mut expected = vec![vec![0u16; seq_len + 1]; (state - start) as usize];
        for (row, sample) in expected.iter_mut().zip(start..) {
            loader.fill_rows(sample, row).unwrap();
        }
        assert!(got == expected, "case {case}: samples {start} to {state}, global batch {global_batch}");
    }
    assert!(n_refused > n_cases / 20 && n_within_a_step > n_cases / 2, "{n_refused} refused, {n_within_a_step} within");
}

#[test]
fn any_split_of_a_step_continues_the_stream_of_one_rank_in_500_cases() {
    cases(500);
}

#[test]
#[ignore = "the long form"]
fn any_split_of_a_step_continues_the_stream_of_one_rank_in_10000_cases() {
    cases(10_000);
}
