//! Files of text to a dataset, in parallel and resumable.
//!
//! ```text
//! inputs ─ check (UTF-8, digest) ─▶ recipe ─ same as the folder's? ─▶ segments ─ encode (threads) ─▶ shards ─▶ manifest
//!    └─ survey (which documents are left out) ────────────────────────▶ ▲                             │
//!                                                                        └──────── journal ◀───────────┘
//! ```
//! Workers take segments of text in order and encode them; the calling thread writes the results in that order, so the
//! bytes depend on nothing but the recipe. The journal is replaced after each shard: a run that was killed anywhere
//! continues behind the last one. The digest of each input's content is part of the recipe, so a changed input is
//! found even when its size and time are the same; that costs one read of the inputs before the first token.
//!
//! Several machines share the work as tasks ([`prepare_task`]): each does all this with its range of the inputs, in a
//! folder of its own, and [`merge_tasks`] makes of their shards the bytes that one run writes.

mod array;
pub(crate) mod check;
mod encode;
mod encoding;
mod journal;
mod loss;
mod merge;
mod options;
mod pipeline;
mod segments;
mod sink;
mod survey;
mod task;
mod texts;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::control::Control;
use crate::corpus::{self, Codec, Input, Kind};
use crate::dataset::Dataset;
use crate::error::{Error, Result};
use crate::io::{self, FolderLock};
use crate::manifest::Manifest;
use crate::parallel::resolve_threads;
use crate::ranges::{Place, Range};

pub use array::encode_files;
pub use encoding::Encode;
use journal::{Journal, Position};
pub use merge::merge_tasks;
pub use options::PrepareOptions;
use options::{check_options, check_separator, recipe, refuse_other};
use sink::End;
use survey::Survey;
pub use task::{TaskEnd, prepare_task};

/// Bytes of files for which a thread is worth starting.
const SMALL: u64 = 64 << 10;

/// Encodes the documents of `paths`, in order, into a dataset in the folder `out`.
///
/// The same call again continues what was interrupted, or returns the finished dataset; a folder that holds anything
/// made from other inputs, options or another tokenizer is refused. Only one process writes a folder at a time.
pub fn prepare<E: Encode>(
    paths: &[PathBuf],
    tokenizer: &E,
    out: &Path,
    options: &PrepareOptions,
    control: &Control,
) -> Result<Dataset> {
    check_options(options)?;
    let inputs = corpus::inputs(paths)?;
    if inputs.iter().all(|input| input.n_bytes == 0) {
        return Err(Error::EmptyCorpus);
    }
    check_separator(&inputs, &options.selection)?;
    loss::check(&inputs, tokenizer, options)?;
    io::create_dir(out)?;
    let _lock = FolderLock::take(out)?;
    io::remove_stale(out)?;
    let stamps = check::stamps(&inputs)?;
    let recipe =
        recipe(check::sources(&inputs, options.selection.replaces(), options.threads, control)?, tokenizer, options)?;
    if let Some(manifest) = Manifest::read(out)? {
        refuse_other(out, &manifest.recipe, &recipe, true)?;
        relabel(out, &manifest, options)?;
        Journal::remove(out)?; // the last step of the run that wrote the manifest, if it was killed before it
        return Dataset::open(out);
    }
    let mut journal = Journal::start(out, recipe, None, options.threads, control)?;
    let survey = Survey::take(&inputs, Range::whole(&inputs).start, options, control)?;
    let end = encode_all(&inputs, tokenizer, options, &survey, &mut journal, control)?;
    check::refuse_changed(&inputs, &stamps)?;
    finish(out, journal, end.special_texts, &survey, options)
}

/// Writes the manifest of finished shards; a corpus without a byte of text leaves nothing.
fn finish(
    out: &Path,
    journal: Journal,
    special_texts: BTreeMap<String, u64>,
    survey: &Survey,
    options: &PrepareOptions,
) -> Result<Dataset> {
    let (recipe, shards) = journal.into_parts();
    let shards: Vec<_> = shards.into_iter().map(|shard| shard.entry).collect();
    if shards.iter().all(|shard| shard.n_bytes == 0) {
        for shard in shards {
            io::remove(&out.join(shard.name))?;
        }
        Journal::remove(out)?;
        return Err(survey.nothing_left(&options.selection));
    }
    let manifest = Manifest::new(recipe, shards, special_texts)?;
    let manifest = Manifest { left_out: survey.counts, replaced: survey.n_replaced, ..manifest };
    labelled(manifest, options).write(out)?;
    Journal::remove(out)?;
    Dataset::open(out)
}

/// Gives the manifest of a finished dataset the name and the weight of this call.
fn relabel(out: &Path, manifest: &Manifest, options: &PrepareOptions) -> Result<()> {
    let named = labelled(manifest.clone(), options);
    if named == *manifest { Ok(()) } else { named.write(out) }
}

/// The manifest with the name and the weight that the caller gives.
fn labelled(manifest: Manifest, options: &PrepareOptions) -> Manifest {
    let source = options.source.clone().or(manifest.source);
    Manifest { source, weight: options.weight.or(manifest.weight), ..manifest }
}

/// Runs the pipeline from where the journal ends to where its work does.
fn encode_all<E: Encode>(
    inputs: &[Input],
    tokenizer: &E,
    options: &PrepareOptions,
    survey: &Survey,
    journal: &mut Journal,
    control: &Control,
) -> Result<End> {
    let (start, end) = (journal.position(), journal.end_position());
    let first = stored_before(inputs, journal.start_position(), options);
    let n_bytes = stored_before(inputs, end, options).saturating_sub(first);
    let n_done = stored_before(inputs, start, options).saturating_sub(first);
    let n_left = n_bytes.saturating_sub(n_done);
    let threads = workers(options.threads, n_left);
    tokenizer.warm_up(n_left, threads, control)?;
    control.begin("encode bytes", n_bytes);
    control.advance(n_done);
    let eot_id = if options.append_eot { tokenizer.eot_id() } else { None };
    let texts = tokenizer.special_texts();
    let encoder = encode::Encoder::new(inputs, tokenizer, options, eot_id, &texts, survey)?.expecting(n_left, threads);
    let safe_cut = |text: &[u8], at| tokenizer.safe_cut(text, at);
    let segments = segments::Segments::new(inputs, start, encoder.reading(&safe_cut))
        .up_to(Place { input: end.input, offset: end.offset });
    let mut sink = sink::Sink::new(inputs, &texts, journal)?;
    pipeline::run(segments, &encoder, threads, control, |encoded| sink.write(&encoded))?;
    sink.finish()
}

/// Threads for this many bytes of files: few keep only one busy.
fn workers(threads: usize, n_bytes: u64) -> usize {
    let useful = usize::try_from(n_bytes / SMALL + 1).unwrap_or(usize::MAX);
    resolve_threads(threads).min(useful)
}

/// Bytes of the inputs before a place, which are not read again; a stream is, from its start.
fn stored_before(inputs: &[Input], start: Position, options: &PrepareOptions) -> u64 {
    let (done, rest) = inputs.split_at(inputs.len().min(start.input as usize));
    let is_sought = |input: &Input| match input.kind {
        Kind::Text => input.codec == Codec::Plain && !options.selection.replaces(),
        Kind::JsonLines => input.codec == Codec::Plain,
        Kind::Parquet => false,
    };
    let inside = if rest.first().is_some_and(is_sought) { start.offset } else { 0 };
    done.iter().map(|input| input.n_bytes).sum::<u64>() + inside
}

#[cfg(test)]
#[path = "../../tests/fixtures/parquet.rs"]
#[allow(missing_docs, reason = "a file of the tests")]
pub(crate) mod parquet_files;

#[cfg(test)]
mod tests;
