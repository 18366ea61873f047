//! What is finished and where the rest begins.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::options::refuse_other;
use super::segments::Place;
use super::task::Share;
use crate::control::Control;
use crate::corpus::LinePosition;
use crate::error::{Error, Result};
use crate::io;
use crate::manifest::{Entry, Recipe};
use crate::parallel;
use crate::sealed::{self, hex};
use crate::shard::{self, Dtype, Spec, verified_len};

pub(super) const FILE: &str = "prepare.json";
const VERSION: u32 = 1;

/// A place in the inputs' tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Position {
    /// Index of the input.
    pub(super) input: u64,
    /// A byte in it where encoding may start: a safe cut of a text, or the start of a line; or a row.
    pub(super) offset: u64,
    /// The line's number, from 1; 1 in a text.
    pub(super) line: u64,
    /// Tokens behind that byte and before this place.
    pub(super) skip: u64,
    /// The offset at which the text's document begins.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(super) start: u64,
    /// The number of the document there among all that were read.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(super) document: u64,
}

impl Position {
    pub(super) const START: Self = Self { input: 0, offset: 0, line: 1, skip: 0, start: 0, document: 0 };

    /// `skip` tokens behind a place in an input.
    pub(super) fn new(input: u64, place: Place, skip: u64) -> Self {
        let Place { at: LinePosition { offset, line }, start, document } = place;
        Self { input, offset, line, skip, start, document }
    }

    pub(super) fn place(&self) -> Place {
        let at = LinePosition { offset: self.offset, line: self.line };
        Place { at, start: self.start, document: self.document }
    }
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes fields so")]
fn is_zero(n: &u64) -> bool {
    *n == 0
}

/// A shard of a task and the lengths of its documents.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Shard {
    #[serde(flatten)]
    pub(super) entry: Entry,
    /// The digest of the file with the lengths; none where nobody needs them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) lengths: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Finished {
    #[serde(flatten)]
    shard: Shard,
    next: Position,
    special_texts: BTreeMap<String, u64>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Content {
    version: u32,
    #[serde(flatten)]
    recipe: Recipe,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    task: Option<Share>,
    finished: Vec<Finished>,
}

/// The journal of the run that holds the folder. A task's positions count its own inputs, and the documents that begin or
/// go on in its range.
#[derive(Debug)]
pub(super) struct Journal {
    dir: PathBuf,
    content: Content,
    /// Whether it was written since it was started.
    is_written: bool,
}

impl Journal {
    /// Continues the journal in `dir`, or starts one, of a task or of all the work. Finished shards are read again and
    /// compared with their digests. It is not written yet: see [`Journal::secure`].
    pub(super) fn start(
        dir: &Path,
        recipe: Recipe,
        task: Option<Share>,
        threads: usize,
        control: &Control,
    ) -> Result<Self> {
        let path = dir.join(FILE);
        let mut finished = Vec::new();
        if let Some(content) = sealed::read::<Content>(&path, "journal", VERSION)? {
            if !content.finished.is_empty() {
                refuse_other(dir, &content.recipe, &recipe, content.task == task)?;
            }
            finished = content.finished;
        } else {
            refuse_shards(dir)?;
        }
        keep_whole(dir, &recipe, &mut finished, threads, control)?;
        let content = Content { version: VERSION, recipe, task, finished };
        Ok(Self { dir: dir.to_owned(), content, is_written: false })
    }

    /// Makes sure that it is there, as it must be before a shard is: a folder with shards and without a journal is nobody's.
    /// Workers encode while the caller waits for the disk.
    pub(super) fn secure(&mut self) -> Result<()> {
        if self.is_written { Ok(()) } else { self.write() }
    }

    /// Removes the journal in `dir`, if there is one.
    pub(super) fn remove(dir: &Path) -> Result<()> {
        io::remove(&dir.join(FILE))
    }

    /// The dataset's folder.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// What the dataset is made of.
    pub(super) fn recipe(&self) -> &Recipe {
        &self.content.recipe
    }

    /// Where the first shard begins.
    pub(super) fn start_position(&self) -> Position {
        let offset = self.content.task.as_ref().map_or(0, |task| task.range.start.offset);
        Position { offset, start: offset, ..Position::START }
    }

    /// Where the last shard ends.
    pub(super) fn end_position(&self) -> Position {
        let n_inputs = self.content.recipe.inputs.len() as u64;
        match self.content.task.as_ref().map_or(0, |task| task.range.end.offset) {
            0 => Position { input: n_inputs, ..Position::START },
            offset => Position { input: n_inputs.saturating_sub(1), offset, ..Position::START },
        }
    }

    /// Where the next shard begins.
    pub(super) fn position(&self) -> Position {
        self.content.finished.last().map_or_else(|| self.start_position(), |last| last.next)
    }

    /// Whether the last shard is in place, or there is nothing to write.
    pub(super) fn is_finished(&self) -> bool {
        let (at, end) = (self.position(), self.end_position());
        (at.input, at.offset, at.skip) == (end.input, end.offset, end.skip)
    }

    /// What a task has; `None` when there is only one.
    pub(super) fn task(&self) -> Option<&Share> {
        self.content.task.as_ref()
    }

    /// Counts of special tokens' texts before [`Journal::position`].
    pub(super) fn special_texts(&self) -> BTreeMap<String, u64> {
        self.content.finished.last().map_or_else(BTreeMap::new, |last| last.special_texts.clone())
    }

    /// The name of the next shard.
    pub(super) fn next_name(&self) -> String {
        shard_name(self.content.finished.len())
    }

    /// Records a shard that is in place.
    pub(super) fn push(&mut self, shard: Shard, next: Position, special_texts: BTreeMap<String, u64>) -> Result<()> {
        self.content.finished.push(Finished { shard, next, special_texts });
        self.write()
    }

    /// The recipe and the finished shards.
    pub(super) fn into_parts(self) -> (Recipe, Vec<Shard>) {
        (self.content.recipe, self.content.finished.into_iter().map(|finished| finished.shard).collect())
    }

    fn write(&mut self) -> Result<()> {
        sealed::write(&self.dir.join(FILE), &self.content)?;
        self.is_written = true;
        Ok(())
    }
}

/// Cuts `finished` before the first shard that is missing, damaged or not the one that the journal means.
fn keep_whole(
    dir: &Path,
    recipe: &Recipe,
    finished: &mut Vec<Finished>,
    threads: usize,
    control: &Control,
) -> Result<()> {
    let spec = recipe.spec().map_err(Error::Argument)?;
    let is_whole = |i: usize| {
        let Finished { shard, next, .. } = &finished[i];
        let is_named = shard.entry.name == shard_name(i) && next.input <= recipe.inputs.len() as u64;
        Ok(is_named && is_whole(dir, shard, &spec, control)?)
    };
    let lens = finished.iter().map(|f| verified_len(&spec, f.shard.entry.n_tokens, f.shard.entry.n_documents));
    control.begin("verify bytes", lens.sum());
    let bad = parallel::run(threads, finished.len(), control, Vec::new, |bad: &mut Vec<usize>, i| {
        if !is_whole(i)? {
            bad.push(i);
        }
        Ok(())
    })?;
    if let Some(first) = bad.into_iter().flatten().min() {
        finished.truncate(first);
    }
    Ok(())
}

/// Whether the shard in `dir` and its lengths are those that were written.
pub(super) fn is_whole(dir: &Path, shard: &Shard, spec: &Spec, control: &Control) -> Result<bool> {
    let end = shard.open(dir, spec).and_then(|file| file.verify(control)).and_then(|()| match &shard.lengths {
        Some(_) => shard.open_lengths(dir, spec).and_then(|file| file.verify(control)),
        None => Ok(()),
    });
    match end {
        // Whatever is wrong with it, writing it again cures it; only the caller's stop is not about the shard.
        Err(Error::Interrupted) => Err(Error::Interrupted),
        end => Ok(end.is_ok()),
    }
}

impl Shard {
    /// Opens the file; fails when it is not the one that was written.
    pub(super) fn open(&self, dir: &Path, spec: &Spec) -> Result<shard::Shard> {
        let file = shard::Shard::open(&dir.join(&self.entry.name))?;
        let got = Entry::new(self.entry.name.clone(), file.header(), file.blake3());
        if got == self.entry && file.header().spec == *spec { Ok(file) } else { Err(other(&file, &self.entry.blake3)) }
    }

    /// Opens the lengths of its documents: two tokens each, the low half first.
    pub(super) fn open_lengths(&self, dir: &Path, spec: &Spec) -> Result<shard::Shard> {
        let file = shard::Shard::open(&dir.join(lengths_name(&self.entry.name)))?;
        let expected = self.lengths.as_deref().unwrap_or_default();
        let is_same = hex(file.blake3()) == expected && file.header().spec == lengths_spec(spec);
        if is_same && Some(file.header().n_tokens) == self.entry.n_documents.checked_mul(2) {
            Ok(file)
        } else {
            Err(other(&file, expected))
        }
    }
}

/// The file with the lengths of a shard's documents, which is a shard itself.
pub(super) fn lengths_name(shard: &str) -> String {
    format!("{}.lengths", shard.trim_end_matches(".gts"))
}

/// The same for all: numbers of 32 bits.
pub(super) fn lengths_spec(spec: &Spec) -> Spec {
    Spec { dtype: Dtype::U32, vocab_size: 1 << 32, eot_id: None, tokenizer: spec.tokenizer, has_loss_bits: false }
}

fn other(file: &shard::Shard, expected: &str) -> Error {
    let (path, expected) = (file.path().to_owned(), expected.to_owned());
    Error::Digest { path, what: "file".to_owned(), expected, got: hex(file.blake3()) }
}

pub(super) fn shard_name(i: usize) -> String {
    format!("shard-{i:05}.gts")
}

/// Fails when there are shards in `dir`, which has neither a manifest nor a journal.
pub(super) fn refuse_shards(dir: &Path) -> Result<()> {
    let Some(shard) = first_shard(dir)? else { return Ok(()) };
    let (dir, name) = (dir.display(), shard.display());
    let message = format!("{dir} holds {name} but neither a manifest nor a journal");
    Err(Error::Argument(format!("{message}; hint: choose another folder, or remove the file")))
}

/// A shard in `dir`, if there is any.
fn first_shard(dir: &Path) -> Result<Option<PathBuf>> {
    for entry in fs::read_dir(dir).map_err(Error::io("list", dir))? {
        let name = PathBuf::from(entry.map_err(Error::io("list", dir))?.file_name());
        if name.extension().is_some_and(|e| e == "gts") {
            return Ok(Some(name));
        }
    }
    Ok(None)
}
