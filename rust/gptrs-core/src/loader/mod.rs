//! Batches: which rows a rank gets, a pure function of one counter, and a thread that reads them ahead.
//!
//! Sample `s` of the endless stream lies in epoch `s / n_rows`; its row is the epoch's permutation of `s % n_rows`. Row
//! `r` is the `seq_len + 1` tokens from `r * seq_len` on, so each token but the first is a target once an epoch. The
//! microbatch at sample `s` is `s .. s + micro_batch * world_size`, of which each rank takes its `micro_batch` in turn.
//! The counter alone is the state: it is the same on every rank and means the same for any number of them.

mod prefetch;

use std::sync::Arc;

pub use prefetch::{Buffers, Prefetch, Rows, Wide};

use crate::dataset::Dataset;
use crate::error::{Error, Result};
use crate::permute::Permutation;
use crate::shard::{Token, check_width, widen};

/// How a dataset is cut into batches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoaderOptions {
    /// Inputs of a row.
    pub seq_len: usize,
    /// Rows of an optimizer step over all ranks.
    pub global_batch: usize,
    /// Rows of one rank's microbatch.
    pub micro_batch: usize,
    /// This process among `world_size`, from 0.
    pub rank: usize,
    /// Number of processes.
    pub world_size: usize,
    /// Chooses the order.
    pub seed: u64,
    /// Whether rows are permuted; otherwise they come as they stand.
    pub shuffle: bool,
}

/// The stream of one rank.
#[derive(Debug, Clone)]
pub struct Loader {
    dataset: Arc<Dataset>,
    options: LoaderOptions,
    n_rows: u64,
}

impl Loader {
    /// A loader; refuses options that do not fit each other or the dataset.
    pub fn new(dataset: Arc<Dataset>, options: LoaderOptions) -> Result<Self> {
        check_options(&options).map_err(Error::Argument)?;
        let n_rows = dataset.n_rows(options.seq_len);
        if n_rows == 0 {
            let (n_tokens, needed) = (dataset.n_tokens(), options.seq_len + 1);
            let message = format!("seq_len ({}) needs {needed} tokens, the dataset has {n_tokens}", options.seq_len);
            return Err(Error::Argument(format!("{message}; hint: use a smaller seq_len or more text")));
        }
        Ok(Self { dataset, options, n_rows })
    }

    /// The dataset.
    pub fn dataset(&self) -> &Arc<Dataset> {
        &self.dataset
    }

    /// The options.
    pub fn options(&self) -> &LoaderOptions {
        &self.options
    }

    /// Rows of an epoch.
    pub fn n_rows(&self) -> u64 {
        self.n_rows
    }

    /// Samples of a microbatch over all ranks: what a hand-out adds to the counter.
    pub fn samples_per_microbatch(&self) -> u64 {
        (self.options.micro_batch * self.options.world_size) as u64
    }

    /// Fails unless a microbatch may start at `next_sample`.
    pub fn check_start(&self, next_sample: u64) -> Result<()> {
        let step = self.samples_per_microbatch();
        if next_sample.is_multiple_of(step) {
            return Ok(());
        }
        let below = next_sample - next_sample % step;
        let LoaderOptions { micro_batch, world_size, .. } = self.options;
        Err(Error::Argument(format!(
            "next_sample ({next_sample}) must be a multiple of micro_batch ({micro_batch}) x world_size ({world_size}), \
             the nearest are {below} and {}; hint: use a micro_batch that divides it, or resume at the end of a step",
            below.saturating_add(step)
        )))
    }

    /// The row of sample `sample` of the endless stream.
    pub fn row(&self, sample: u64) -> u64 {
        let (epoch, place) = (sample / self.n_rows, sample % self.n_rows);
        self.permutation(epoch).map_or(place, |order| order.at(place))
    }

    fn permutation(&self, epoch: u64) -> Option<Permutation> {
        self.options.shuffle.then(|| Permutation::new(self.n_rows, self.options.seed, epoch))
    }

    /// The rows of the samples from `sample` on.
    fn rows(&self, sample: u64) -> impl Iterator<Item = u64> + '_ {
        let (mut epoch, mut place) = (sample / self.n_rows, sample % self.n_rows);
        let mut order = self.permutation(epoch);
        std::iter::from_fn(move || {
            if place == self.n_rows {
                (epoch, place) = (epoch + 1, 0);
                order = self.permutation(epoch);
            }
            let row = order.as_ref().map_or(place, |order| order.at(place));
            place += 1;
            Some(row)
        })
    }

    /// The rows of this rank in the microbatch at `next_sample`.
    pub fn microbatch(&self, next_sample: u64) -> Result<Vec<u64>> {
        self.check_start(next_sample)?;
        let first = (self.options.rank * self.options.micro_batch) as u64;
        if next_sample.checked_add(self.samples_per_microbatch()).is_none() {
            return Err(Error::Argument(format!("next_sample ({next_sample}) is at the end of the 64-bit counter")));
        }
        Ok(self.rows(next_sample + first).take(self.options.micro_batch).collect())
    }

    /// Fills `tokens` and `targets`, each `micro_batch * seq_len`, with this rank's microbatch at `next_sample`.
    ///
    /// `targets[b][t]` is the token behind `tokens[b][t]`.
    pub fn fill(&self, next_sample: u64, tokens: &mut [i64], targets: &mut [i64]) -> Result<()> {
        let LoaderOptions { seq_len, micro_batch, .. } = self.options;
        for (name, n) in [("tokens", tokens.len()), ("targets", targets.len())] {
            check_len(name, n, micro_batch, seq_len)?;
        }
        let (dtype, size) = (self.dataset.dtype(), self.dataset.dtype().size());
        let outs = tokens.chunks_exact_mut(seq_len).zip(targets.chunks_exact_mut(seq_len));
        for (row, (tokens, targets)) in self.microbatch(next_sample)?.into_iter().zip(outs) {
            self.dataset.with_bytes(row * seq_len as u64, seq_len + 1, |bytes| {
                widen(dtype, bytes, tokens);
                widen(dtype, &bytes[size..], targets);
            })?;
        }
        Ok(())
    }

    /// Fills `rows`, `micro_batch * (seq_len + 1)`, with this rank's microbatch at `next_sample`.
    pub fn fill_rows<T: Token>(&self, next_sample: u64, rows: &mut [T]) -> Result<()> {
        let LoaderOptions { seq_len, micro_batch, .. } = self.options;
        check_len("rows", rows.len(), micro_batch, seq_len + 1)?;
        let dtype = self.dataset.dtype();
        check_width::<T>(dtype)?;
        for (row, out) in self.microbatch(next_sample)?.into_iter().zip(rows.chunks_exact_mut(seq_len + 1)) {
            self.dataset.with_bytes(row * seq_len as u64, seq_len + 1, |bytes| widen(dtype, bytes, out))?;
        }
        Ok(())
    }

    /// Fills `out`, `micro_batch * seq_len`, with the document index of each input token of the microbatch.
    pub fn fill_doc_ids(&self, next_sample: u64, out: &mut [u64]) -> Result<()> {
        let LoaderOptions { seq_len, micro_batch, .. } = self.options;
        check_len("doc_ids", out.len(), micro_batch, seq_len)?;
        for (row, out) in self.microbatch(next_sample)?.into_iter().zip(out.chunks_exact_mut(seq_len)) {
            self.dataset.doc_ids(row * seq_len as u64, out)?;
        }
        Ok(())
    }
}

fn check_options(options: &LoaderOptions) -> std::result::Result<(), String> {
    let LoaderOptions { seq_len, global_batch, micro_batch, rank, world_size, .. } = *options;
    let sizes = [("seq_len", seq_len), ("global_batch", global_batch), ("micro_batch", micro_batch)];
    for (name, value) in sizes.into_iter().chain([("world_size", world_size)]) {
        if !(1..=1 << 31).contains(&value) {
            return Err(format!("{name} must be 1 to 2^31, got {value}"));
        }
    }
    if rank >= world_size {
        return Err(format!("rank ({rank}) must be below world_size ({world_size})"));
    }
    let step = micro_batch as u128 * world_size as u128;
    if !(global_batch as u128).is_multiple_of(step) {
        let below = global_batch as u128 / step * step;
        let nearest = if below == 0 { step.to_string() } else { format!("{below} or {}", below + step) };
        return Err(format!(
            "global_batch ({global_batch}) must be a multiple of micro_batch ({micro_batch}) x world_size \
             ({world_size}) = {step}; hint: use global_batch={nearest}"
        ));
    }
    Ok(())
}

fn check_len(name: &str, got: usize, rows: usize, columns: usize) -> Result<()> {
    if rows.checked_mul(columns) == Some(got) {
        return Ok(());
    }
    Err(Error::Argument(format!("expected {name} of {rows} x {columns} elements, got {got}")))
}
