//! Batches: which rows a rank gets, a pure function of one counter, and a thread that reads them ahead.
//!
//! ```text
//! sample ─ mixture ─▶ source, how many of its samples came before ─ epoch, order ─▶ row ─ stream or plan ─▶ tokens
//! ```
//! Of the only source, sample `s` lies in epoch `s / n_rows` and its row is the epoch's permutation of `s % n_rows`. The
//! microbatch at sample `s` is `s .. s + micro_batch * world_size`, of which each rank takes its `micro_batch` in turn.
//! The counter alone is the state: it is the same on every rank and means the same for any number of them.

mod places;
mod prefetch;
mod queue;
mod source;

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

pub use places::Place;
use places::{Cursors, Kept, Places};
pub use prefetch::{Buffers, Prefetch, Rows, Wide};
pub use source::RowSource;

use crate::dataset::{Dataset, Held};
use crate::error::{Error, Result};
use crate::mixture::Mixture;
use crate::order::OrderKind;
use crate::pack;
use crate::shard::{Token, check_width, widen};
use crate::simd::prefetch_far;

/// Rows that are looked up before the first of them is copied.
const AT_ONCE: usize = 32;

/// How many rows behind the one that is copied the one stands that is asked for.
const AHEAD: usize = 2;

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
    /// The order of an epoch's rows.
    pub order: OrderKind,
}

/// Arrays beside the tokens of a microbatch; those that are empty are left out.
#[derive(Debug, Default)]
pub struct Marks<'b> {
    /// The place of each token in its document or piece, counted from the row's start, `micro_batch * seq_len`.
    pub positions: &'b mut [i32],
    /// Where the documents or pieces of all rows begin, as places in the flattened microbatch: `micro_batch * n + 1`
    /// elements, n for each row; a row with fewer repeats its end.
    pub cu_seqlens: &'b mut [i32],
}

/// The stream of one rank.
#[derive(Debug, Clone)]
pub struct Loader {
    sources: Arc<[RowSource]>,
    mixture: Option<Arc<Mixture>>,
    options: LoaderOptions,
    orders: Kept<Cursors>,
    /// What holds the shards of each source.
    shards: Kept<Vec<Held>>,
}

impl Loader {
    /// A loader of the rows of one dataset's stream; refuses options that do not fit each other or the dataset.
    pub fn new(dataset: Arc<Dataset>, options: LoaderOptions) -> Result<Self> {
        check_options(&options).map_err(Error::Argument)?;
        Self::of(RowSource::stream(dataset, options.seq_len)?, options)
    }

    /// A loader of one source.
    pub fn of(source: RowSource, options: LoaderOptions) -> Result<Self> {
        Self::checked(vec![source], None, options)
    }

    /// A loader of several sources, of which the mixture takes samples; it names them in their order.
    pub fn mixed(sources: Vec<RowSource>, mixture: Mixture, options: LoaderOptions) -> Result<Self> {
        let rows = mixture.sources().iter().map(|source| source.n_rows);
        if !rows.eq(sources.iter().map(RowSource::n_rows)) {
            return Err(Error::Argument("expected a mixture of the sources' rows, it was made for others".to_owned()));
        }
        Self::checked(sources, Some(Arc::new(mixture)), options)
    }

    fn checked(sources: Vec<RowSource>, mixture: Option<Arc<Mixture>>, options: LoaderOptions) -> Result<Self> {
        check_options(&options).map_err(Error::Argument)?;
        let Some(first) = sources.first() else {
            return Err(Error::Argument("expected at least one source, got none".to_owned()));
        };
        for source in &sources {
            let (got, expected) = (source.dataset().manifest(), first.dataset().manifest());
            if (&got.recipe.tokenizer, got.recipe.dtype) != (&expected.recipe.tokenizer, expected.recipe.dtype) {
                let (a, b) = (first.dataset().dir().display(), source.dataset().dir().display());
                return Err(Error::Argument(format!(
                    "{a} was made by the tokenizer with digest {}, {b} by {}; hint: prepare both with one tokenizer",
                    expected.recipe.tokenizer, got.recipe.tokenizer
                )));
            }
            if source.seq_len() != options.seq_len {
                let (got, expected) = (source.seq_len(), options.seq_len);
                return Err(Error::Argument(format!("expected rows of seq_len {expected}, a source has {got}")));
            }
        }
        Ok(Self { sources: sources.into(), mixture, options, orders: Kept::default(), shards: Kept::default() })
    }

    /// The datasets' rows.
    pub fn sources(&self) -> &[RowSource] {
        &self.sources
    }

    /// How samples are taken of several sources.
    pub fn mixture(&self) -> Option<&Arc<Mixture>> {
        self.mixture.as_ref()
    }

    /// The dataset, or the first of several.
    pub fn dataset(&self) -> &Arc<Dataset> {
        self.sources[0].dataset()
    }

    /// The options.
    pub fn options(&self) -> &LoaderOptions {
        &self.options
    }

    /// Rows of an epoch of all sources.
    pub fn n_rows(&self) -> u64 {
        self.sources.iter().map(RowSource::n_rows).sum()
    }

    /// Samples of a microbatch over all ranks: what a hand-out adds to the counter.
    pub fn samples_per_microbatch(&self) -> u64 {
        (self.options.micro_batch * self.options.world_size) as u64
    }

    /// The seed of a source's order: the loader's for the first.
    pub fn source_seed(&self, source: usize) -> u64 {
        self.options.seed.wrapping_add((source as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15))
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

    /// The place of sample `sample`.
    pub fn place(&self, sample: u64) -> Result<Place> {
        let place = Places::new(self, sample)?.many(1)?.pop();
        place.ok_or_else(|| Error::Argument(format!("there is no sample {sample}")))
    }

    /// The places of this rank in the microbatch at `next_sample`.
    pub fn microbatch(&self, next_sample: u64) -> Result<Vec<Place>> {
        self.check_start(next_sample)?;
        let end = next_sample.checked_add(self.samples_per_microbatch());
        let Some(end) = end else {
            return Err(Error::Argument(format!("next_sample ({next_sample}) is at the end of the 64-bit counter")));
        };
        // On every rank alike: a mixture that ends inside a microbatch ends before it.
        self.mixture.as_ref().map_or(Ok(()), |mixture| mixture.check(end - 1))?;
        let first = next_sample + (self.options.rank * self.options.micro_batch) as u64;
        Places::new(self, first)?.many(self.options.micro_batch)
    }

    /// Fills `tokens` and `targets`, each `micro_batch * seq_len`, with this rank's microbatch at `next_sample`.
    ///
    /// `targets[b][t]` is the token behind `tokens[b][t]`, or negative where nothing is to be predicted: at the end of a
    /// packed document, in padding, and for a token whose loss bit is 0.
    pub fn fill<T: Token>(&self, next_sample: u64, tokens: &mut [T], targets: &mut [T]) -> Result<()> {
        self.fill_marked(next_sample, tokens, targets, &mut Marks::default())
    }

    /// As [`Loader::fill`], and fills `marks`.
    pub fn fill_marked<T: Token>(
        &self,
        next_sample: u64,
        tokens: &mut [T],
        targets: &mut [T],
        marks: &mut Marks<'_>,
    ) -> Result<()> {
        let LoaderOptions { seq_len, micro_batch, .. } = self.options;
        check_len("tokens", tokens.len(), micro_batch, seq_len)?;
        check_len("targets", targets.len(), micro_batch, seq_len)?;
        check_width::<T>(self.dataset().dtype())?;
        let mut row_marks = RowMarks::new(marks, micro_batch, seq_len)?;
        let outs = tokens.chunks_exact_mut(seq_len).zip(targets.chunks_exact_mut(seq_len));
        let places = self.microbatch(next_sample)?;
        let mut held = self.held();
        let mut outs = outs.enumerate();
        for places in places.chunks(AT_ONCE) {
            let rows = self.stored(&mut held, places)?;
            for ((i, &Place { source, row }), (b, (tokens, targets))) in places.iter().enumerate().zip(outs.by_ref()) {
                let fetch = self.fetch(rows.get(i + AHEAD));
                self.sources[source].fill(row, &rows[i], fetch, tokens, targets, &mut row_marks.of(b))?;
                row_marks.flatten(b);
            }
        }
        self.shards.put(held);
        Ok(())
    }

    /// Fills `rows`, `micro_batch * (seq_len + 1)`, with this rank's microbatch at `next_sample`, as it is stored; not for
    /// rows whose targets are more than their tokens moved by one ([`RowSource::has_own_targets`]).
    pub fn fill_rows<T: Token>(&self, next_sample: u64, rows: &mut [T]) -> Result<()> {
        let LoaderOptions { seq_len, micro_batch, .. } = self.options;
        check_len("rows", rows.len(), micro_batch, seq_len + 1)?;
        let dtype = self.dataset().dtype();
        check_width::<T>(dtype)?;
        let places = self.microbatch(next_sample)?;
        let mut held = self.held();
        for (places, outs) in places.chunks(AT_ONCE).zip(rows.chunks_mut(AT_ONCE * (seq_len + 1))) {
            if places.iter().any(|place| self.sources[place.source].has_own_targets()) {
                let is_packed = places.iter().any(|place| self.sources[place.source].plan().is_some());
                let rows = if is_packed { "packed rows" } else { "rows with loss bits" };
                return Err(Error::Argument(format!("{rows} have targets of their own; hint: use fill")));
            }
            let stored = self.stored(&mut held, places)?;
            for (i, out) in outs.chunks_exact_mut(seq_len + 1).enumerate() {
                widen(dtype, &stored[i], out);
                self.fetch(stored.get(i + AHEAD))(0..seq_len + 1);
            }
        }
        self.shards.put(held);
        Ok(())
    }

    /// What holds the shards of each source, to be put back.
    fn held(&self) -> Vec<Held> {
        let mut held = self.shards.take();
        held.resize_with(self.sources.len(), Held::default);
        held
    }

    /// The tokens of [`AT_ONCE`] places at most, as stored; nothing for packed rows.
    fn stored<'h>(&self, held: &'h mut [Held], places: &[Place]) -> Result<Vec<Cow<'h, [u8]>>> {
        held.iter_mut().for_each(Held::make_room);
        let mut spots = Vec::with_capacity(places.len());
        for &Place { source, row } in places {
            spots.push(self.sources[source].spot(row, &mut held[source])?);
        }
        let (held, mut rows) = (&*held, Vec::with_capacity(places.len()));
        for (&Place { source, row }, spot) in places.iter().zip(spots) {
            rows.push(self.sources[source].bytes(row, spot, &held[source])?);
        }
        Ok(rows)
    }

    /// Asks for stretches of a row that is read soon.
    fn fetch<'r>(&self, row: Option<&'r Cow<'_, [u8]>>) -> impl Fn(Range<usize>) + use<'r> {
        let (size, row) = (self.dataset().dtype().size(), row.map_or(&[][..], |row| row));
        move |stretch| prefetch_far(row.get(stretch.start * size..stretch.end * size).unwrap_or_default())
    }

    /// Fills `out`, `micro_batch * seq_len`, with the document index of each input token of the microbatch, counted in
    /// its source; padding has [`pack::NO_DOCUMENT`].
    pub fn fill_doc_ids(&self, next_sample: u64, out: &mut [u64]) -> Result<()> {
        let LoaderOptions { seq_len, micro_batch, .. } = self.options;
        check_len("doc_ids", out.len(), micro_batch, seq_len)?;
        let mut tokens: Vec<i64> = room("tokens", 1, seq_len)?;
        tokens.resize(seq_len, 0);
        let mut targets: Vec<i64> = room("targets", 1, seq_len)?;
        targets.resize(seq_len, 0);
        for (Place { source, row }, doc_ids) in
            self.microbatch(next_sample)?.into_iter().zip(out.chunks_exact_mut(seq_len))
        {
            let mut marks = pack::Marks { doc_ids, ..pack::Marks::default() };
            let mut held = self.held();
            let stored = self.stored(&mut held, &[Place { source, row }])?;
            self.sources[source].fill(row, &stored[0], |_| (), &mut tokens, &mut targets, &mut marks)?;
        }
        Ok(())
    }
}

/// The marks of a microbatch, row by row.
struct RowMarks<'m, 'b> {
    marks: &'m mut Marks<'b>,
    seq_len: usize,
    /// Elements of `cu_seqlens` for a row, and a row's own.
    n_row: usize,
    cu_seqlens: Vec<i32>,
}

impl<'m, 'b> RowMarks<'m, 'b> {
    fn new(marks: &'m mut Marks<'b>, micro_batch: usize, seq_len: usize) -> Result<Self> {
        if !marks.positions.is_empty() {
            check_len("positions", marks.positions.len(), micro_batch, seq_len)?;
        }
        let n = marks.cu_seqlens.len();
        let n_row = n.saturating_sub(1) / micro_batch;
        let fits = i32::try_from(micro_batch as u64 * seq_len as u64).is_ok();
        if n > 0 && (n_row == 0 || n_row * micro_batch + 1 != n || !fits) {
            return Err(Error::Argument(format!(
                "expected cu_seqlens of micro_batch ({micro_batch}) x documents of a row + 1 elements, got {n}"
            )));
        }
        Ok(Self { marks, seq_len, n_row, cu_seqlens: vec![0; if n == 0 { 0 } else { n_row + 1 }] })
    }

    fn of(&mut self, b: usize) -> pack::Marks<'_> {
        let all = &mut self.marks.positions;
        let positions = if all.is_empty() { &mut [] } else { &mut all[b * self.seq_len..(b + 1) * self.seq_len] };
        pack::Marks { positions, cu_seqlens: &mut self.cu_seqlens, ..pack::Marks::default() }
    }

    /// Writes the row's `cu_seqlens` behind those before.
    fn flatten(&mut self, b: usize) {
        if let Some(out) = self.marks.cu_seqlens.get_mut(b * self.n_row..=(b + 1) * self.n_row) {
            let start = (b * self.seq_len) as i32;
            for (flat, of_row) in out.iter_mut().zip(&self.cu_seqlens) {
                *flat = start + of_row;
            }
        }
    }
}

/// An empty vector for `what`, `rows` x `columns` values, if there is memory for them.
pub fn room<T>(what: &'static str, rows: usize, columns: usize) -> Result<Vec<T>> {
    let mut values = Vec::new();
    let end = rows.checked_mul(columns).map(|n| values.try_reserve_exact(n));
    if end.is_some_and(|end| end.is_ok()) { Ok(values) } else { Err(Error::Memory { what, rows, columns }) }
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
