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
mod journal;
mod loss;
mod merge;
mod pipeline;
mod segments;
mod sink;
mod survey;
mod task;
mod texts;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::batch::EncodeOptions;
use crate::cache::Cache;
use crate::control::Control;
use crate::corpus::{self, Codec, Input, Kind, Selection};
use crate::dataset::Dataset;
use crate::error::{Error, Result};
use crate::io::{self, FolderLock};
use crate::manifest::{Manifest, Recipe, Source, check_label};
use crate::parallel::resolve_threads;
use crate::ranges::{Place, Range};
use crate::sealed::hex;
use crate::shard::Dtype;
use crate::tokenizer::Tokenizer;

pub use array::encode_files;
use journal::{Journal, Position};
pub use merge::merge_tasks;
use sink::End;
use survey::Survey;
pub use task::{TaskEnd, prepare_task};

/// What [`prepare`] needs of a tokenizer.
pub trait Encode: Sync {
    /// A worker's scratch memory, for example its cache.
    type State;

    /// Makes the scratch memory of one worker.
    fn state(&self) -> Self::State;

    /// Called once, before workers encode `n_bytes` in all.
    fn warm_up(&self, _n_bytes: u64, _threads: usize, _control: &Control) -> Result<()> {
        Ok(())
    }

    /// Appends the ids of `text` to `out`; the texts of special tokens are ordinary text.
    fn encode_into(&self, state: &mut Self::State, text: &[u8], out: &mut Vec<u32>) -> Result<()>;

    /// As [`Encode::encode_into`] for a text that cannot be cut: on several threads.
    fn encode_long(&self, state: &mut Self::State, text: &[u8], _threads: usize, out: &mut Vec<u32>) -> Result<()> {
        self.encode_into(state, text, out)
    }

    /// The smallest place from `at` on where `text` may be cut: both sides give the ids of the whole.
    fn safe_cut(&self, text: &[u8], at: usize) -> usize;

    /// Ids are below this.
    fn vocab_size(&self) -> usize;

    /// The id that ends a document, if there is one.
    fn eot_id(&self) -> Option<u32>;

    /// Identity of the tokenizer.
    fn digest(&self) -> [u8; 32];

    /// The texts of its special tokens, to be counted.
    fn special_texts(&self) -> Vec<String>;

    /// The bytes that each id spells; `None` when the ids of a text may not spell it.
    fn token_lens(&self) -> Option<Vec<u32>> {
        None
    }
}

impl Encode for Tokenizer {
    type State = Cache;

    fn state(&self) -> Self::State {
        self.cache()
    }

    fn warm_up(&self, n_bytes: u64, threads: usize, control: &Control) -> Result<()> {
        self.warm_up(usize::try_from(n_bytes).unwrap_or(usize::MAX), threads, control)
    }

    fn encode_into(&self, cache: &mut Self::State, text: &[u8], out: &mut Vec<u32>) -> Result<()> {
        self.encode_into(cache, text, out)
    }

    fn encode_long(&self, _: &mut Self::State, text: &[u8], threads: usize, out: &mut Vec<u32>) -> Result<()> {
        let options = EncodeOptions { threads, ..EncodeOptions::default() };
        out.extend(self.encode_with(text, &options, &Control::new())?.iter());
        Ok(())
    }

    fn safe_cut(&self, text: &[u8], at: usize) -> usize {
        self.splitter().safe_cut(text, at)
    }

    fn vocab_size(&self) -> usize {
        self.vocab_size()
    }

    fn eot_id(&self) -> Option<u32> {
        self.eot_id()
    }

    fn digest(&self) -> [u8; 32] {
        self.digest()
    }

    fn special_texts(&self) -> Vec<String> {
        self.specials().iter().map(|special| special.text.clone()).collect()
    }

    fn token_lens(&self) -> Option<Vec<u32>> {
        if self.splitter().normalizer().is_some() {
            return None;
        }
        let len = |id| self.vocab().token(id).map_or(0, |token| token.len() as u32);
        Some((0..self.vocab_size() as u32).map(len).collect())
    }
}

/// How [`prepare`] works. The first five decide the bytes, `threads` and `segment_bytes` only speed and memory.
#[derive(Debug, Clone, PartialEq)]
pub struct PrepareOptions {
    /// The field of JSON lines that holds the text, or a template of fields (see [`TextField`](corpus::TextField)).
    pub text_field: String,
    /// The fields of those whose tokens alone are to be predicted; none for no loss bits.
    ///
    /// A token is of the field in which its last byte lies. The end-of-text id behind a document is always to be predicted.
    pub loss_fields: Vec<String>,
    /// Tokens of a shard; the last one has the rest.
    pub shard_tokens: u64,
    /// Whether each document ends with the tokenizer's end-of-text id, when it has one.
    pub append_eot: bool,
    /// Which documents the inputs have, and which of them are left out.
    pub selection: Selection,
    /// What the manifest calls the text, for a mixture of several.
    pub source: Option<String>,
    /// The share of the text in such a mixture, in relation to those of the others.
    pub weight: Option<f64>,
    /// Worker threads; 0 means all cores.
    pub threads: usize,
    /// Bytes of text that a worker encodes at a time.
    pub segment_bytes: usize,
}

impl Default for PrepareOptions {
    fn default() -> Self {
        let (text_field, loss_fields, shard_tokens) = ("text".to_owned(), Vec::new(), 1 << 27);
        let (selection, source, weight) = (Selection::default(), None, None);
        let (append_eot, threads, segment_bytes) = (true, 0, 1 << 20);
        Self { text_field, loss_fields, shard_tokens, append_eot, selection, source, weight, threads, segment_bytes }
    }
}

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
        return Err(Error::EmptyCorpus);
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

fn check_options(options: &PrepareOptions) -> Result<()> {
    corpus::TextField::new(&options.text_field)?.with_targets(&options.loss_fields)?;
    options.selection.check()?;
    check_label(options.source.as_deref(), options.weight)?;
    let sizes = [("shard_tokens", options.shard_tokens), ("segment_bytes", options.segment_bytes as u64)];
    match sizes.into_iter().find(|&(_, value)| !(1..=1 << 40).contains(&value)) {
        Some((name, value)) => Err(Error::Argument(format!("{name} must be 1 to 2^40, got {value}"))),
        None => Ok(()),
    }
}

fn check_separator(inputs: &[Input], selection: &Selection) -> Result<()> {
    if selection.doc_separator.is_none() || inputs.iter().any(|input| input.kind == Kind::Text) {
        return Ok(());
    }
    let expected = "expected a text file among the inputs, which doc_separator cuts into documents, got none";
    Err(Error::Argument(format!("{expected}; hint: lines and rows are documents already")))
}

/// What a dataset of `inputs` will be made of.
fn recipe<E: Encode>(inputs: Vec<Source>, tokenizer: &E, options: &PrepareOptions) -> Result<Recipe> {
    let vocab_size = tokenizer.vocab_size() as u64;
    let recipe = Recipe {
        tokenizer: hex(&tokenizer.digest()),
        vocab_size,
        dtype: Dtype::for_vocab(vocab_size),
        eot_id: tokenizer.eot_id(),
        append_eot: options.append_eot,
        text_field: options.text_field.clone(),
        loss_fields: corpus::TextField::new(&options.text_field)?.with_targets(&options.loss_fields)?.targets(),
        shard_tokens: options.shard_tokens,
        selection: options.selection.clone(),
        inputs,
    };
    recipe.spec().map_err(Error::Argument)?;
    Ok(recipe)
}

/// Fails unless what is in the folder was made the way this call asks for, from the same part of the inputs; says what
/// differs.
fn refuse_other(dir: &Path, found: &Recipe, asked: &Recipe, is_same_part: bool) -> Result<()> {
    let (had, has) = (&found.selection, &asked.selection);
    let differences = [
        ("tokenizer", found.tokenizer == asked.tokenizer),
        ("vocab_size", (found.vocab_size, found.eot_id) == (asked.vocab_size, asked.eot_id)),
        ("append_eot", found.append_eot == asked.append_eot),
        ("text_field", found.text_field == asked.text_field),
        ("loss_fields", found.loss_fields == asked.loss_fields),
        ("shard_tokens", found.shard_tokens == asked.shard_tokens),
        ("doc_separator", had.doc_separator == has.doc_separator),
        ("min_document_bytes", had.min_document_bytes == has.min_document_bytes),
        ("max_document_bytes", had.max_document_bytes == has.max_document_bytes),
        ("dedup", had.dedup == has.dedup),
        ("errors", had.errors == has.errors),
        ("input files", found.inputs == asked.inputs && is_same_part),
    ];
    let names: Vec<_> = differences.into_iter().filter(|&(_, is_same)| !is_same).map(|(name, _)| name).collect();
    if names.is_empty() {
        return Ok(());
    }
    let (dir, names) = (dir.display(), names.join(", "));
    Err(Error::Argument(format!(
        "{dir} holds a dataset made with other {names}; hint: choose another folder, or remove this one to start over"
    )))
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
    let threads = resolve_threads(options.threads);
    tokenizer.warm_up(n_bytes.saturating_sub(n_done), threads, control)?;
    control.begin("encode bytes", n_bytes);
    control.advance(n_done);
    let eot_id = if options.append_eot { tokenizer.eot_id() } else { None };
    let texts = tokenizer.special_texts();
    let encoder = encode::Encoder::new(inputs, tokenizer, options, eot_id, &texts, survey)?;
    let safe_cut = |text: &[u8], at| tokenizer.safe_cut(text, at);
    let segments = segments::Segments::new(inputs, start, encoder.reading(&safe_cut))
        .up_to(Place { input: end.input, offset: end.offset });
    let mut sink = sink::Sink::new(inputs, &texts, journal)?;
    pipeline::run(segments, &encoder, threads, control, |encoded| sink.write(&encoded))?;
    sink.finish()
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
mod parquet_files;

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::io::fault::{self, Fault};
    use crate::io::sweep::{READ_FAULTS, WRITE_FAULTS, each_change, temporary_dir};
    use crate::ranges::Task;

    /// A byte is a token; any place is a safe cut.
    pub(super) struct Bytes;

    impl Encode for Bytes {
        type State = ();

        fn state(&self) {}

        fn encode_into(&self, (): &mut (), text: &[u8], out: &mut Vec<u32>) -> Result<()> {
            out.extend(text.iter().map(|&b| u32::from(b)));
            Ok(())
        }

        fn safe_cut(&self, _: &[u8], at: usize) -> usize {
            at
        }

        fn vocab_size(&self) -> usize {
            257
        }

        fn eot_id(&self) -> Option<u32> {
            Some(256)
        }

        fn digest(&self) -> [u8; 32] {
            [7; 32]
        }

        fn special_texts(&self) -> Vec<String> {
            vec!["b c".to_owned()]
        }

        fn token_lens(&self) -> Option<Vec<u32>> {
            Some(vec![1; 257])
        }
    }

    /// Names and bytes of all files but the lock, which stays.
    pub(super) fn content(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
        let paths = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
        let files = paths
            .filter(|path| !path.ends_with(".lock"))
            .map(|path| (path.file_name().unwrap().into(), fs::read(&path).unwrap()));
        files.collect()
    }

    /// Inputs of three kinds, and options that leave documents out and make four shards of the others.
    fn small(dir: &Path) -> ([PathBuf; 3], PrepareOptions) {
        let paths = ["a.txt", "b.jsonl", "c.parquet"].map(|name| dir.join(name));
        fs::write(&paths[0], b"a b c d e \xFFf g d too long a document").unwrap();
        let lines = ["b c b c", "", "h", "b c b c"].map(|text| format!("{{\"text\": \"{text}\"}}\n"));
        fs::write(&paths[1], lines.concat()).unwrap();
        let rows = ["p", "q", "p"].map(|text| Some(text.as_bytes())).to_vec();
        let layout = parquet_files::Layout { rows_of_group: 2, rows_of_page: 1, encoding: None };
        parquet_files::write_parquet(&paths[2], &[("text", rows)], layout);
        let selection = Selection {
            doc_separator: Some(" d ".to_owned()),
            min_document_bytes: Some(1),
            max_document_bytes: Some(8),
            dedup: true,
            errors: corpus::Errors::Replace,
        };
        let sizes = PrepareOptions { shard_tokens: 8, segment_bytes: 3, threads: 1, ..PrepareOptions::default() };
        (paths, PrepareOptions { selection, weight: Some(0.5), ..sizes })
    }

    #[test]
    fn a_run_that_fails_or_dies_at_any_change_of_a_file_is_continued_to_the_same_bytes() {
        let dir = temporary_dir();
        let (paths, options) = small(dir.path());
        let [whole, half, out] = ["whole", "half", "deep/out"].map(|name| dir.path().join(name));
        let run = |out: &Path| prepare(&paths, &Bytes, out, &options, &Control::new());
        let manifest = run(&whole).unwrap().manifest().clone();
        assert_eq!(manifest.special_texts, [("b c".to_owned(), 3)].into());
        assert_eq!(manifest.left_out, crate::manifest::LeftOut { short: 1, long: 1, duplicate: 2 });
        assert_eq!((manifest.n_documents, manifest.replaced, manifest.weight), (6, 1, Some(0.5)));
        fault::at(Fault::Kill, 40, || run(&half).unwrap_err());
        assert!(
            content(&half).keys().any(|name| name.ends_with("prepare.json")) && !half.join("manifest.json").exists()
        );
        let check = |is_done: bool, what: &str| {
            if is_done || out.join("manifest.json").exists() {
                Dataset::open(&out).unwrap().verify(1, &Control::new()).unwrap();
            }
            if is_done {
                assert!(content(&out) == content(&whole), "{what}");
            }
            run(&out).unwrap().verify(1, &Control::new()).unwrap();
            assert!(content(&out) == content(&whole), "{what}, again");
        };
        for from_half in [false, true] {
            let start = || {
                let _ = fs::remove_dir_all(dir.path().join("deep"));
                if from_half {
                    copy(&half, &out);
                }
            };
            let n = each_change(&WRITE_FAULTS, start, || run(&out).map(drop), check);
            assert!(n > 30, "four shards, five journals and a manifest are more changes than {n}");
        }
    }

    #[test]
    fn a_run_that_cannot_read_ends_in_an_error_or_in_the_same_bytes() {
        let dir = temporary_dir();
        let (paths, options) = small(dir.path());
        let [whole, half, out] = ["whole", "half", "out"].map(|name| dir.path().join(name));
        let run = |out: &Path| prepare(&paths, &Bytes, out, &options, &Control::new());
        run(&whole).unwrap();
        fault::at(Fault::Kill, 40, || run(&half).unwrap_err());
        for (fault, from) in READ_FAULTS.into_iter().flat_map(|fault| [(fault, &half), (fault, &whole)]) {
            for n in 0.. {
                copy(from, &out);
                let (end, is_reached) = fault::at_read(fault, n, || run(&out));
                match &end {
                    // A finished shard of a journal that cannot be read is written again.
                    Ok(_) => assert!(content(&out) == content(&whole), "{fault:?} at read {n}"),
                    Err(Error::Io { .. }) => assert!(is_reached && !fault.is_harmless(), "{fault:?} at read {n}"),
                    Err(error) => assert!(fault == Fault::End, "{fault:?} at read {n}: {error}"),
                }
                run(&out).unwrap();
                assert!(content(&out) == content(&whole), "{fault:?} at read {n}, again");
                fs::remove_dir_all(&out).unwrap();
                if !is_reached {
                    assert!(n > 10, "{n} reads");
                    break;
                }
            }
        }
    }

    #[test]
    fn tasks_and_a_merge_that_fail_or_die_at_any_change_of_a_file_end_in_the_bytes_of_one_run() {
        let dir = temporary_dir();
        let (paths, options) = small(dir.path());
        let [whole, out] = ["whole", "out"].map(|name| dir.path().join(name));
        let (control, n_tasks) = (Control::new(), 3);
        prepare(&paths, &Bytes, &whole, &options, &control).unwrap();
        let run = || {
            for index in 0..n_tasks {
                prepare_task(&paths, &Bytes, &out, Task { index, of: n_tasks }, &options, &control)?;
            }
            merge_tasks(&paths, &Bytes, &out, n_tasks, false, &options, &control)
        };
        let start = || {
            let _ = fs::remove_dir_all(&out);
        };
        let check = |is_done: bool, what: &str| {
            assert!(!is_done || content(&out) == content(&whole), "{what}");
            run().unwrap().verify(1, &control).unwrap();
            assert!(content(&out) == content(&whole), "{what}, again");
        };
        let n = each_change(&WRITE_FAULTS, start, || run().map(drop), check);
        assert!(n > 100, "three tasks and a merge are more changes than {n}");
    }

    fn copy(from: &Path, to: &Path) {
        fs::create_dir_all(to).unwrap();
        for (name, bytes) in content(from) {
            fs::write(to.join(name), bytes).unwrap();
        }
    }
}
