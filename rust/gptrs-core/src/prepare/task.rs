//! One task of several: its range of the inputs as shards in a folder of its own, and a marker when it is done.
//!
//! ```text
//! OUT/tasks/task-00001-of-00004/  shard-00000.gts  shard-00000.lengths  …  prepare.json  task.json (last)
//! ```
//! The work, the journal and what a kill costs are those of [`prepare`](super::prepare). A shard knows the length of its
//! documents' text as a sum alone; since the final shards begin elsewhere, a task keeps each length in a file beside it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::check::{self, Shared};
use super::journal::{Journal, Shard};
use super::options::{check_options, check_separator, recipe, refuse_other};
use super::sink::End;
use super::survey::Survey;
use super::texts;
use super::{Encode, PrepareOptions, encode_all, loss};
use crate::control::Control;
use crate::corpus::{self, Input};
use crate::error::{Error, Result};
use crate::io::{self, FolderLock};
use crate::manifest::{LeftOut, Manifest, Recipe};
use crate::ranges::{Place, Range, Task};
use crate::sealed;

/// The folder of the tasks' folders.
pub(super) const FOLDER: &str = "tasks";
/// The marker's file name.
const FILE: &str = "task.json";
const VERSION: u32 = 1;

/// Bytes around a range that decide where it is cut, beside those that the texts of special tokens have.
const AROUND: u64 = 64;

/// What a finished task wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskEnd {
    /// Number of tokens.
    pub n_tokens: u64,
    /// Number of documents that end in its range.
    pub n_documents: u64,
    /// Its folder; the dataset's when all tasks are merged already, and then these are the dataset's numbers.
    pub dir: PathBuf,
    /// Whether they are.
    pub is_merged: bool,
}

/// Which part of the inputs a task has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Share {
    #[serde(flatten)]
    pub(super) task: Task,
    /// Digest of the names and lengths of all inputs.
    pub(super) corpus: String,
    #[serde(flatten)]
    pub(super) range: Range,
    /// What is known of inputs that other tasks have a part of.
    pub(super) shared: Vec<Shared>,
    /// Which documents of all inputs are left out, where the options ask for it; the same for all tasks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) surveyed: Option<Surveyed>,
}

/// What the first pass over all inputs found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Surveyed {
    pub(super) left_out: LeftOut,
    pub(super) replaced: u64,
    /// Digest of the choice.
    pub(super) choice: String,
}

/// `task.json`: all that the merge must know, there when the task is done. The recipe's inputs are those of the range;
/// one that is shared has no digest.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Marker {
    version: u32,
    #[serde(flatten)]
    pub(super) recipe: Recipe,
    #[serde(rename = "task")]
    pub(super) share: Share,
    pub(super) n_tokens: u64,
    pub(super) n_documents: u64,
    /// Bytes of text of the documents, of the part behind the last end as well.
    pub(super) n_bytes: u64,
    /// Bytes of a document that ends in a later task.
    pub(super) open_bytes: u64,
    pub(super) special_texts: BTreeMap<String, u64>,
    pub(super) shards: Vec<Shard>,
}

/// Encodes the part of `paths` that `task` has, into a folder of its own in `out`.
///
/// Tasks need nothing of each other and may run anywhere, in any order; all take the same paths, tokenizer and options.
/// The same call again continues what was interrupted, and does over what was damaged.
pub fn prepare_task<E: Encode>(
    paths: &[PathBuf],
    tokenizer: &E,
    out: &Path,
    task: Task,
    options: &PrepareOptions,
    control: &Control,
) -> Result<TaskEnd> {
    check_options(options)?;
    let task = Task::new(task.index, task.of)?;
    let inputs = corpus::inputs(paths)?;
    if inputs.iter().all(|input| input.n_bytes == 0) {
        return Err(Error::EmptyCorpus);
    }
    check_separator(&inputs, &options.selection)?;
    loss::check(&inputs, tokenizer, options)?;
    if let Some(manifest) = merged(out, &inputs, tokenizer, options)? {
        let Manifest { n_tokens, n_documents, .. } = manifest;
        return Ok(TaskEnd { n_tokens, n_documents, dir: out.to_owned(), is_merged: true });
    }
    let dir = folder(out, task);
    io::create_dir(&dir)?;
    let _lock = FolderLock::take(&dir)?;
    io::remove_stale(&dir)?;
    let stamps = check::stamps(&inputs)?;
    let (recipe, share) = share(task, &inputs, tokenizer, options, control)?;
    let range = share.range;
    let survey = Survey::take(&inputs, range.start, options, control)?;
    let surveyed = surveyed(&survey);
    if surveyed.is_some() {
        check::refuse_changed(&inputs, &stamps)?;
    }
    let mine = &inputs[range.inputs()];
    let mut journal = Journal::start(&dir, recipe, Some(Share { surveyed, ..share }), options.threads, control)?;
    if !journal.is_finished() {
        io::remove(&dir.join(FILE))?; // of an earlier end whose shards are no longer whole
    }
    let end = encode_all(mine, tokenizer, options, &survey, &mut journal, control)
        .map_err(|error| corpus::numbered(error, mine.first(), range.start.offset))?;
    check::refuse_changed(mine, &stamps[range.inputs()])?;
    finish(dir, journal, end)
}

/// What a task has of the inputs, after reading it once.
fn share<E: Encode>(
    task: Task,
    inputs: &[Input],
    tokenizer: &E,
    options: &PrepareOptions,
    control: &Control,
) -> Result<(Recipe, Share)> {
    let selection = &options.selection;
    let range = task.range(inputs, |text, at| match &selection.doc_separator {
        _ if selection.replaces() => text.len(), // where a place stands in what comes out is not known before
        Some(separator) => texts::next_document(text, at, separator.as_bytes()),
        None => tokenizer.safe_cut(text, at),
    })?;
    let longest = tokenizer.special_texts().iter().chain(&selection.doc_separator).map(String::len).max().unwrap_or(0);
    let around = AROUND.max(longest as u64);
    let replaces = selection.replaces();
    let (sources, shared) = check::shared_sources(inputs, &range, around, replaces, options.threads, control)?;
    let share = Share { task, corpus: corpus_digest(inputs), range, shared, surveyed: None };
    Ok((recipe(sources, tokenizer, options)?, share))
}

/// What all tasks must agree on, if anything was surveyed.
fn surveyed(survey: &Survey) -> Option<Surveyed> {
    let choice = survey.digest()?;
    Some(Surveyed { left_out: survey.counts, replaced: survey.n_replaced, choice })
}

/// The folder of a task.
pub(super) fn folder(out: &Path, task: Task) -> PathBuf {
    out.join(FOLDER).join(task.name())
}

/// The manifest in `out`, when the tasks are merged already; fails when it is of another dataset.
pub(super) fn merged<E: Encode>(
    out: &Path,
    inputs: &[Input],
    tokenizer: &E,
    options: &PrepareOptions,
) -> Result<Option<Manifest>> {
    let Some(manifest) = Manifest::read(out)? else { return Ok(None) };
    // Nobody reads all inputs for this: names and lengths must do.
    let source = |(i, input): (usize, &Input)| {
        let known = manifest.recipe.inputs.get(i).map_or_else(String::new, |source| source.blake3.clone());
        check::source(input, known)
    };
    let sources = inputs.iter().enumerate().map(source).collect();
    refuse_other(out, &manifest.recipe, &recipe(sources, tokenizer, options)?, true)?;
    Ok(Some(manifest))
}

/// The digest of the names and lengths of `inputs`.
pub(super) fn corpus_digest(inputs: &[Input]) -> String {
    let mut hasher = blake3::Hasher::new();
    for input in inputs {
        let source = check::source(input, String::new());
        for number in [source.name.len() as u64, input.n_bytes] {
            hasher.update(&number.to_le_bytes());
        }
        hasher.update(source.name.as_bytes());
    }
    hasher.finalize().to_string()
}

/// Writes the marker.
fn finish(dir: PathBuf, journal: Journal, end: End) -> Result<TaskEnd> {
    let Some(share) = journal.task().cloned() else {
        return Err(Error::Argument(format!("the journal in {} is not that of a task", dir.display())));
    };
    let (recipe, shards) = journal.into_parts();
    let sum = |count: fn(&Shard) -> u64| shards.iter().map(count).sum::<u64>();
    let (n_tokens, n_documents) = (sum(|s| s.entry.n_tokens), sum(|s| s.entry.n_documents));
    let n_bytes = sum(|s| s.entry.n_bytes) + end.open_bytes;
    let End { special_texts, open_bytes } = end;
    let version = VERSION;
    let marker = Marker { version, recipe, share, n_tokens, n_documents, n_bytes, open_bytes, special_texts, shards };
    sealed::write(&dir.join(FILE), &marker)?;
    Ok(TaskEnd { n_tokens, n_documents, dir, is_merged: false })
}

impl Marker {
    /// The marker of the task whose folder is `dir`; `None` when it is not done.
    pub(super) fn read(dir: &Path) -> Result<Option<Self>> {
        sealed::read(&dir.join(FILE), "task marker", VERSION)
    }

    /// Where the range begins and ends.
    pub(super) fn borders(&self) -> (Place, Place) {
        (self.share.range.start, self.share.range.end)
    }
}
