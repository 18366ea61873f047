//! The shards of finished tasks to the dataset that one run writes, byte for byte.
//!
//! ```text
//! task 0  ├──── 700 ────┤├─ 210 ─┤
//! task 1                          ├──── 700 ────┤├─ 90 ─┤
//! OUT     ├──── 700 ────┤├──── 700 ────┤├──── 300 ────┤     every shard on its own, many at a time
//! ```
//! The markers say how many tokens there are, so that each final shard follows from its number. A document belongs to the
//! shard in which its last token stands. `merge.json` names the shards that are finished; a merge that was killed goes
//! on with the others.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use super::check::{self, Shared};
use super::journal::{self, Shard, is_whole, refuse_shards, shard_name};
use super::options::{check_options, check_separator, recipe, refuse_other};
use super::survey::nothing_left;
use super::task::{FOLDER, Marker, Surveyed, corpus_digest, folder, merged};
use super::{Encode, PrepareOptions, labelled, relabel};
use crate::control::Control;
use crate::corpus::{self, Input};
use crate::dataset::Dataset;
use crate::error::{Error, Result};
use crate::io::{self, FolderLock};
use crate::manifest::{Entry, Manifest, Recipe, Source};
use crate::parallel;
use crate::ranges::{Range, Task};
use crate::sealed;
use crate::shard::{self, ShardWriter, Spec};

/// Tokens, and documents, that are read at a time.
const CHUNK: usize = 1 << 15;

/// Joins the finished tasks of `out` into its dataset and removes their folders, unless `keeps_tasks`.
///
/// `paths`, `tokenizer` and `options` are those of the tasks. Fails when a task is missing, was done with others, or is
/// damaged; the inputs are not read again.
pub fn merge_tasks<E: Encode>(
    paths: &[PathBuf],
    tokenizer: &E,
    out: &Path,
    of: u64,
    keeps_tasks: bool,
    options: &PrepareOptions,
    control: &Control,
) -> Result<Dataset> {
    check_options(options)?;
    Task::new(0, of)?;
    let inputs = corpus::inputs(paths)?;
    check_separator(&inputs, &options.selection)?;
    if let Some(manifest) = merged(out, &inputs, tokenizer, options)? {
        relabel(out, &manifest, options)?;
    } else {
        if !out.join(FOLDER).is_dir() {
            let expected = format!("expected finished tasks in {}, found none", out.join(FOLDER).display());
            return Err(Error::Argument(format!("{expected}; hint: run them with --task, or check the folder")));
        }
        let _lock = FolderLock::take(out)?;
        io::remove_stale(out)?;
        let recipe = recipe(Vec::new(), tokenizer, options)?;
        let markers = markers(out, of, &recipe, &corpus_digest(&inputs))?;
        check_borders(&markers, &inputs)?;
        let recipe = Recipe { inputs: sources(&markers, &inputs)?, ..recipe };
        let shards = Merge::new(out, &recipe, &markers)?.run(options.threads, control)?;
        let manifest = Manifest::new(recipe, shards, special_texts(&markers)?)?;
        labelled(counted(manifest, &markers)?, options).write(out)?;
    }
    io::remove(&out.join(FILE))?;
    if !keeps_tasks {
        remove_tasks(out, of)?;
    }
    Dataset::open(out)
}

/// The markers of all tasks, in order; names those that are missing or were done in another way.
fn markers(out: &Path, of: u64, asked: &Recipe, corpus: &str) -> Result<Vec<Marker>> {
    let (mut markers, mut missing) = (Vec::new(), Vec::new());
    for index in 0..of {
        let dir = folder(out, Task { index, of });
        let Some(marker) = Marker::read(&dir)? else {
            missing.push(index.to_string());
            continue;
        };
        let found = Recipe { inputs: Vec::new(), ..marker.recipe.clone() };
        refuse_other(&dir, &found, asked, marker.share.corpus == corpus)?;
        let names = marker.shards.iter().enumerate();
        if marker.share.task != (Task { index, of }) || names.into_iter().any(|(i, s)| s.entry.name != shard_name(i)) {
            return Err(foreign(&dir, "it is that of another task"));
        }
        markers.push(marker);
    }
    if missing.is_empty() {
        return Ok(markers);
    }
    let (n, shown, first) = (missing.len(), missing[..missing.len().min(20)].join(", "), &missing[0]);
    let more = if n > 20 { ", …" } else { "" };
    Err(Error::Argument(format!(
        "expected {of} finished tasks in {}, missing {n}: {shown}{more}; hint: run them, with --task {first} --of {of} …",
        out.join(FOLDER).display()
    )))
}

/// Fails unless each range begins where the one before ends.
fn check_borders(markers: &[Marker], inputs: &[Input]) -> Result<()> {
    let whole = Range::whole(inputs);
    let mut at = whole.start;
    for marker in markers {
        let (start, end) = marker.borders();
        if start != at || end < start || end > whole.end {
            return Err(changed(marker, "its range does not begin where the one before ends"));
        }
        if marker.recipe.inputs.len() != marker.share.range.inputs().len() {
            return Err(changed(marker, "it names other inputs than its range has"));
        }
        at = end;
    }
    if at == whole.end { Ok(()) } else { Err(Error::Argument("the tasks end before the inputs do".to_owned())) }
}

/// The manifest with what all tasks found to be left out.
fn counted(manifest: Manifest, markers: &[Marker]) -> Result<Manifest> {
    let surveyed = |marker: &Marker| marker.share.surveyed.clone();
    let first = markers.first().and_then(surveyed);
    if let Some(other) = markers.iter().find(|marker| marker.share.surveyed != first) {
        return Err(changed(other, "it left out other documents, so that an input was changed between the tasks"));
    }
    let Some(Surveyed { left_out, replaced, .. }) = first else { return Ok(manifest) };
    Ok(Manifest { left_out, replaced, ..manifest })
}

fn changed(marker: &Marker, reason: &str) -> Error {
    let name = marker.share.task.name();
    Error::Argument(format!("{name} does not fit the other tasks: {reason}; hint: remove its folder and run it again"))
}

fn foreign(dir: &Path, reason: &str) -> Error {
    let hint = "hint: remove its folder and run it again";
    Error::Argument(format!("the marker in {} cannot be used: {reason}; {hint}", dir.display()))
}

/// The inputs with their digests, put together from what the tasks read.
fn sources(markers: &[Marker], inputs: &[Input]) -> Result<Vec<Source>> {
    let mut shares: BTreeMap<u64, Vec<&Shared>> = BTreeMap::new();
    let mut sources: Vec<Source> = inputs.iter().map(|input| check::source(input, String::new())).collect();
    for marker in markers {
        for (i, known) in marker.share.range.inputs().zip(&marker.recipe.inputs) {
            sources[i].blake3.clone_from(&known.blake3);
        }
        for shared in &marker.share.shared {
            shares.entry(shared.input).or_default().push(shared);
        }
    }
    for (i, shares) in shares {
        let Some((source, input)) = sources.get_mut(i as usize).zip(inputs.get(i as usize)) else { continue };
        source.blake3 = check::join_shared(input.n_bytes, shares.into_iter()).map_err(|reason| {
            let hint = "hint: remove the folder with the tasks and run them again";
            Error::Argument(format!("{} cannot be merged: {reason}; {hint}", input.path.display()))
        })?;
    }
    Ok(sources)
}

fn special_texts(markers: &[Marker]) -> Result<BTreeMap<String, u64>> {
    let mut sums: BTreeMap<String, u64> = BTreeMap::new();
    for (text, count) in markers.iter().flat_map(|marker| &marker.special_texts) {
        let sum = sums.entry(text.clone()).or_default();
        *sum = sum.checked_add(*count).ok_or_else(too_much)?;
    }
    Ok(sums)
}

fn too_much() -> Error {
    Error::Argument("the tasks' counts exceed 64 bits".to_owned())
}

/// Removes the folders of the tasks; those of a merge with another number of tasks stay.
fn remove_tasks(out: &Path, of: u64) -> Result<()> {
    let all = out.join(FOLDER);
    if !all.is_dir() {
        return Ok(());
    }
    (0..of).try_for_each(|index| io::remove_dir(&folder(out, Task { index, of })))?;
    let is_empty = fs::read_dir(&all).map_err(Error::io("list", &all))?.next().is_none();
    if is_empty { io::remove_dir(&all) } else { Ok(()) }
}

const FILE: &str = "merge.json";
const VERSION: u32 = 1;

/// What is done of a merge.
#[derive(Debug, Serialize, Deserialize)]
struct Progress {
    version: u32,
    /// Identity of the tasks.
    tasks: String,
    finished: Vec<Entry>,
}

/// A task's shard, and where its tokens stand in the dataset.
struct Piece<'a> {
    dir: PathBuf,
    shard: &'a Shard,
    start: u64,
    /// What earlier tasks have of the first document that ends here.
    carried: u64,
}

struct Merge<'a> {
    out: &'a Path,
    spec: Spec,
    shard_tokens: u64,
    pieces: Vec<Piece<'a>>,
    n_tokens: u64,
    n_shards: usize,
    tasks: String,
}

impl<'a> Merge<'a> {
    fn new(out: &'a Path, recipe: &Recipe, markers: &'a [Marker]) -> Result<Self> {
        let spec = recipe.spec().map_err(Error::Argument)?;
        if markers.iter().all(|marker| marker.n_bytes == 0) {
            let counts =
                markers.first().and_then(|marker| marker.share.surveyed.as_ref()).map(|surveyed| surveyed.left_out);
            let counts = counts.unwrap_or_default();
            let n_kept: u64 = markers.iter().map(|marker| marker.n_documents).sum();
            let n = n_kept + counts.short + counts.long + counts.duplicate;
            return Err(nothing_left(&recipe.selection, counts, n));
        }
        let (mut pieces, mut n_tokens, mut carried, mut tasks) = (Vec::new(), 0u64, 0u64, blake3::Hasher::new());
        for marker in markers {
            tasks.update(&sealed::to_bytes(marker));
            let dir = folder(out, marker.share.task);
            for shard in &marker.shards {
                let carried = if shard.entry.n_documents > 0 { std::mem::take(&mut carried) } else { 0 };
                pieces.push(Piece { dir: dir.clone(), shard, start: n_tokens, carried });
                n_tokens = n_tokens.checked_add(shard.entry.n_tokens).ok_or_else(too_much)?;
            }
            carried = carried.checked_add(marker.open_bytes).ok_or_else(too_much)?;
        }
        if let (Some(last), true) = (markers.last(), carried > 0) {
            return Err(changed(last, "its last document does not end"));
        }
        let shard_tokens = recipe.shard_tokens;
        // Without a token, empty documents are one shard.
        let n_shards = usize::try_from(n_tokens.div_ceil(shard_tokens).max(1)).map_err(|_| too_much())?;
        let tasks = tasks.finalize().to_string();
        Ok(Self { out, spec, shard_tokens, pieces, n_tokens, n_shards, tasks })
    }

    /// Writes the shards that are not there; returns all.
    fn run(&self, threads: usize, control: &Control) -> Result<Vec<Entry>> {
        let finished = self.finished(threads, control)?;
        let rest: Vec<usize> = (0..self.n_shards).filter(|i| !finished.contains_key(i)).collect();
        control.begin("merge tokens", rest.iter().map(|&i| self.tokens(i).end - self.tokens(i).start).sum());
        let finished = Mutex::new(finished);
        parallel::run(
            threads,
            rest.len(),
            control,
            || (),
            |(), task| {
                let entry = self.write_shard(rest[task], control)?;
                let mut finished = finished.lock().unwrap_or_else(PoisonError::into_inner);
                finished.insert(rest[task], entry);
                self.write_progress(&finished)
            },
        )?;
        Ok(finished.into_inner().unwrap_or_else(PoisonError::into_inner).into_values().collect())
    }

    /// What an earlier merge finished of the same tasks, as far as it is whole.
    fn finished(&self, threads: usize, control: &Control) -> Result<BTreeMap<usize, Entry>> {
        let path = self.out.join(FILE);
        let Some(progress) = sealed::read::<Progress>(&path, "merge journal", VERSION)? else {
            if self.out.join(journal::FILE).exists() {
                let out = self.out.display();
                let message = format!("{out} holds the journal of a run without tasks");
                return Err(Error::Argument(format!("{message}; hint: choose another folder, or finish that run")));
            }
            refuse_shards(self.out)?;
            self.write_progress(&BTreeMap::new())?;
            return Ok(BTreeMap::new());
        };
        if progress.tasks != self.tasks {
            let message = format!("{} is of a merge of other tasks", path.display());
            return Err(Error::Argument(format!("{message}; hint: remove it and the shards beside it")));
        }
        let names: BTreeMap<String, usize> = (0..self.n_shards).map(|i| (shard_name(i), i)).collect();
        let found: Vec<_> = progress.finished.into_iter().filter_map(|e| Some((*names.get(&e.name)?, e))).collect();
        control.begin("verify bytes", 0);
        let whole = parallel::run(threads, found.len(), control, Vec::new, |whole: &mut Vec<usize>, i| {
            let shard = Shard { entry: found[i].1.clone(), lengths: None };
            if is_whole(self.out, &shard, &self.spec, control)? {
                whole.push(i);
            }
            Ok(())
        })?;
        Ok(whole.into_iter().flatten().map(|i| found[i].clone()).collect())
    }

    fn write_progress(&self, finished: &BTreeMap<usize, Entry>) -> Result<()> {
        let (version, tasks, finished) = (VERSION, self.tasks.clone(), finished.values().cloned().collect());
        sealed::write(&self.out.join(FILE), &Progress { version, tasks, finished })
    }

    /// The tokens of a final shard.
    fn tokens(&self, i: usize) -> std::ops::Range<u64> {
        let start = i as u64 * self.shard_tokens;
        start..start.saturating_add(self.shard_tokens).min(self.n_tokens)
    }

    fn write_shard(&self, i: usize, control: &Control) -> Result<Entry> {
        let tokens = self.tokens(i);
        let first = self.pieces.partition_point(|piece| piece.start + piece.shard.entry.n_tokens < tokens.start);
        let mut writer = ShardWriter::create(&self.out.join(shard_name(i)), self.spec)?;
        for piece in self.pieces[first..].iter().take_while(|piece| piece.start <= tokens.end) {
            piece.copy(&tokens, &self.spec, &mut writer, control)?;
        }
        let (header, digest) = writer.finish()?;
        Ok(Entry::new(shard_name(i), &header, &digest))
    }
}

impl Piece<'_> {
    /// Appends what it has of `tokens`, and the ends of documents: up to the last token, behind the one before the first.
    fn copy(
        &self,
        tokens: &std::ops::Range<u64>,
        spec: &Spec,
        writer: &mut ShardWriter,
        control: &Control,
    ) -> Result<()> {
        let file = self.shard.open(&self.dir, spec)?;
        let n_tokens = self.shard.entry.n_tokens;
        let end = (tokens.end - self.start).min(n_tokens);
        let start = tokens.start.saturating_sub(self.start).min(n_tokens);
        let mut source = Tokens::new(&file, start..end, control);
        // What ends where the shard begins was part of the one before, but for documents before the first token.
        let is_behind = tokens.start > 0 && tokens.start >= self.start;
        let mut document = if is_behind { file.documents_before(tokens.start - self.start)? } else { 0 };
        let documents_end = file.documents_before(end)?;
        if document < documents_end {
            let lengths = self.shard.open_lengths(&self.dir, spec)?;
            while document < documents_end {
                let n = (documents_end - document).min(CHUNK as u64) as usize;
                let (mut ends, mut halves) = (vec![0; n], vec![0u32; 2 * n]);
                file.document_ends(document, &mut ends)?;
                lengths.tokens(2 * document, &mut halves)?;
                for (i, (&end, half)) in (document..).zip(ends.iter().zip(halves.as_chunks::<2>().0)) {
                    source.copy_to(end, writer)?;
                    let n_bytes = u64::from(half[0]) | u64::from(half[1]) << 32;
                    writer.end_document(if i == 0 { n_bytes + self.carried } else { n_bytes });
                }
                document += n as u64;
            }
        }
        source.copy_to(end, writer)
    }
}

/// The tokens of a shard from front to back, many at a time.
struct Tokens<'a> {
    file: &'a shard::Shard,
    /// The next one to copy.
    next: u64,
    end: u64,
    /// What was read from `read_from` on.
    read: Vec<u32>,
    bits: Vec<bool>,
    read_from: u64,
    control: &'a Control,
}

impl<'a> Tokens<'a> {
    fn new(file: &'a shard::Shard, range: std::ops::Range<u64>, control: &'a Control) -> Self {
        let (read, bits) = (Vec::new(), Vec::new());
        Self { file, next: range.start, end: range.end, read, bits, read_from: range.start, control }
    }

    /// Appends those before `end`.
    fn copy_to(&mut self, end: u64, writer: &mut ShardWriter) -> Result<()> {
        while self.next < end {
            let mut at = (self.next - self.read_from) as usize;
            if at == self.read.len() {
                self.control.check()?;
                self.read.resize((self.end - self.next).min(CHUNK as u64) as usize, 0);
                self.file.tokens(self.next, &mut self.read)?;
                if self.file.header().spec.has_loss_bits {
                    self.bits.resize(self.read.len(), false);
                    self.file.loss_bits(self.next, &mut self.bits)?;
                }
                (self.read_from, at) = (self.next, 0);
            }
            let n = (self.read.len() - at).min((end - self.next) as usize);
            writer.push_any(&self.read[at..at + n], self.bits.get(at..at + n))?;
            self.next += n as u64;
            self.control.advance(n as u64);
        }
        Ok(())
    }
}
