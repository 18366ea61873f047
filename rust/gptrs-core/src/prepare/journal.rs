//! What is finished and where the rest begins.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::refuse_other;
use super::segments::Place;
use crate::control::Control;
use crate::corpus::LinePosition;
use crate::error::{Error, Result};
use crate::io;
use crate::manifest::{Entry, Recipe};
use crate::parallel;
use crate::sealed;
use crate::shard::{Shard, verified_len};

const FILE: &str = "prepare.json";
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

#[derive(Debug, Serialize, Deserialize)]
struct Finished {
    #[serde(flatten)]
    entry: Entry,
    next: Position,
    special_texts: BTreeMap<String, u64>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Content {
    version: u32,
    #[serde(flatten)]
    recipe: Recipe,
    finished: Vec<Finished>,
}

/// The journal of the run that holds the folder.
#[derive(Debug)]
pub(super) struct Journal {
    dir: PathBuf,
    content: Content,
}

impl Journal {
    /// Continues the journal in `dir`, or starts one. Finished shards are read again and compared with their digests.
    pub(super) fn start(dir: &Path, recipe: Recipe, threads: usize, control: &Control) -> Result<Self> {
        let path = dir.join(FILE);
        let mut finished = Vec::new();
        if let Some(content) = sealed::read::<Content>(&path, "journal")? {
            if content.version != VERSION {
                let reason = format!("expected version {VERSION}, got {}", content.version);
                return Err(Error::Format { path, format: "journal", reason });
            }
            if !content.finished.is_empty() {
                refuse_other(dir, &content.recipe, &recipe)?;
            }
            finished = content.finished;
        } else if let Some(shard) = first_shard(dir)? {
            let (dir, name) = (dir.display(), shard.display());
            let message = format!("{dir} holds {name} but neither a manifest nor a journal");
            return Err(Error::Argument(format!("{message}; hint: choose another folder, or remove the file")));
        }
        keep_whole(dir, &recipe, &mut finished, threads, control)?;
        let journal = Self { dir: dir.to_owned(), content: Content { version: VERSION, recipe, finished } };
        journal.write()?;
        Ok(journal)
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

    /// Where the next shard begins.
    pub(super) fn position(&self) -> Position {
        self.content.finished.last().map_or(Position::START, |last| last.next)
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
    pub(super) fn push(&mut self, entry: Entry, next: Position, special_texts: BTreeMap<String, u64>) -> Result<()> {
        self.content.finished.push(Finished { entry, next, special_texts });
        self.write()
    }

    /// The recipe and the finished shards.
    pub(super) fn into_parts(self) -> (Recipe, Vec<Entry>) {
        (self.content.recipe, self.content.finished.into_iter().map(|finished| finished.entry).collect())
    }

    fn write(&self) -> Result<()> {
        sealed::write(&self.dir.join(FILE), &self.content)
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
    let is_whole = |i: usize| -> Result<bool> {
        let Finished { entry, next, .. } = &finished[i];
        if entry.name != shard_name(i) || next.input > recipe.inputs.len() as u64 {
            return Ok(false);
        }
        let end = Shard::open(&dir.join(&entry.name)).and_then(|shard| {
            let got = Entry::new(entry.name.clone(), shard.header(), shard.blake3());
            shard.verify(control)?;
            Ok(got == *entry && shard.header().spec == spec)
        });
        match end {
            // Whatever is wrong with it, writing it again cures it; only the caller's stop is not about the shard.
            Err(Error::Interrupted) => Err(Error::Interrupted),
            end => Ok(end.unwrap_or(false)),
        }
    };
    let lens = finished.iter().map(|f| verified_len(spec.dtype, f.entry.n_tokens, f.entry.n_documents));
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

fn shard_name(i: usize) -> String {
    format!("shard-{i:05}.gts")
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
