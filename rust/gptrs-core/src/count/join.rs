//! Count files to one count file, or to the words of a training run.
//!
//! ```text
//! A, B, … ─ at most 64 at a time, one block of each in memory ─▶ words in order, counts summed ─▶ OUT
//! ```
//! More than 64 files are joined in groups, whose results are files without names in the folder of the output.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

use super::WordCounts;
use super::file::{CountFile, CountWriter, Header};
use crate::control::Control;
use crate::error::{Error, Result};
use crate::split::Splitter;

/// Files that are read at the same time.
pub const FAN_IN: usize = 64;

/// Words between two looks at the control.
const CHECK_WORDS: u64 = 1 << 12;

/// What training needs from count files.
#[derive(Debug)]
pub struct Joined {
    /// The words of all files.
    pub counts: WordCounts,
    /// Documents of all files.
    pub n_documents: u64,
    /// What cut the words.
    pub splitter: Splitter,
}

/// Adds the count files at `paths` into one at `out`; `out` may be one of them. Returns the header of the result.
///
/// Memory follows neither the number nor the length of the files. Fails when patterns differ, when a file is given twice
/// or damaged, and when a sum leaves 64 bits; then there is no output.
pub fn join(paths: &[PathBuf], out: &Path, control: &Control) -> Result<Header> {
    let plan = Plan::new(paths)?;
    control.begin("join groups words", plan.n_words);
    let mut levels: Vec<Vec<CountFile>> = vec![Vec::new()];
    let mut inputs = paths.iter();
    loop {
        let group = inputs.by_ref().take(FAN_IN).map(|path| CountFile::open(path)).collect::<Result<Vec<_>>>()?;
        if inputs.len() == 0 {
            levels[0].extend(group);
            break;
        }
        levels[0].push(unnamed(group, out, &plan, control)?);
        // A full level becomes one file of the next, so that few files are open however many there are.
        let mut level = 0;
        while levels[level].len() == FAN_IN {
            let full = std::mem::take(&mut levels[level]);
            level += 1;
            if level == levels.len() {
                levels.push(Vec::new());
            }
            levels[level].push(unnamed(full, out, &plan, control)?);
        }
    }
    // What is left: the last group and less than a full level of each.
    let mut files: Vec<CountFile> = levels.into_iter().flatten().collect();
    while files.len() > FAN_IN {
        let rest = files.split_off(FAN_IN);
        files = std::iter::once(unnamed(files, out, &plan, control)?).chain(rest).collect();
    }
    control.begin("join words", files.iter().map(|file| file.header().n_words).sum());
    let mut writer = CountWriter::create(out, &plan.splitter)?;
    let n_documents = merge(files, control, |word, n| writer.push(word, n))?;
    writer.finish(n_documents)
}

/// What cut the words of all count files at `paths`; fails when they differ.
pub fn splitter(paths: &[PathBuf]) -> Result<Splitter> {
    Ok(Plan::new(paths)?.splitter)
}

/// The words of the count files at `paths`, summed in memory.
pub fn read(paths: &[PathBuf], control: &Control) -> Result<Joined> {
    let mut counts = WordCounts::new();
    let (n_documents, splitter) = for_each_word(paths, control, |word, n| counts.add(word, n))?;
    if counts.is_empty() { Err(Error::EmptyCorpus) } else { Ok(Joined { counts, n_documents, splitter }) }
}

/// Calls `f` with every word and count of the count files at `paths`, one file after the other; returns the number of
/// documents and what cut the words.
pub fn for_each_word(
    paths: &[PathBuf],
    control: &Control,
    mut f: impl FnMut(&[u8], u64) -> Result<()>,
) -> Result<(u64, Splitter)> {
    let plan = Plan::new(paths)?;
    control.begin("read words", plan.n_words);
    let (mut n_documents, mut word) = (0u64, Vec::new());
    for path in paths {
        let mut file = CountFile::open(path)?;
        n_documents = add_documents(n_documents, &file)?;
        let mut n_read = 0;
        while let Some(n) = file.next(&mut word)? {
            f(&word, n).map_err(|error| in_file(error, path))?;
            watch(control, &mut n_read)?;
        }
    }
    Ok((n_documents, plan.splitter))
}

/// What is known before a word is read.
struct Plan {
    splitter: Splitter,
    /// Words in all files.
    n_words: u64,
}

impl Plan {
    /// Looks at every file: one pattern, no file twice.
    fn new(paths: &[PathBuf]) -> Result<Self> {
        let Some(first) = paths.first() else {
            return Err(Error::Argument("expected at least one count file, got none".to_owned()));
        };
        let expected = CountFile::open(first)?.header().clone();
        let (mut seen, mut n_words) = (HashSet::new(), 0u64);
        for path in paths {
            let header = CountFile::open(path)?.header().clone();
            expected.check_same_pattern(first, &header, path)?;
            if !seen.insert(fs::canonicalize(path).map_err(Error::io("read", path))?) {
                let path = path.display();
                return Err(Error::Argument(format!("{path} is given twice, which would count its words twice")));
            }
            n_words = n_words.saturating_add(header.n_words);
        }
        Ok(Self { splitter: expected.splitter(first)?, n_words })
    }
}

/// Joins a group into a file without a name beside `out`.
fn unnamed(group: Vec<CountFile>, out: &Path, plan: &Plan, control: &Control) -> Result<CountFile> {
    let mut writer = CountWriter::create(out, &plan.splitter)?;
    let n_documents = merge(group, control, |word, n| writer.push(word, n))?;
    let file = writer.finish_unnamed(n_documents)?;
    let len = file.metadata().map_err(Error::io("read the metadata of", out))?.len();
    CountFile::from_file(file, len, out)
}

/// Calls `f` with every word and the sum of its counts, in order; returns the number of documents.
fn merge(mut files: Vec<CountFile>, control: &Control, mut f: impl FnMut(&[u8], u64) -> Result<()>) -> Result<u64> {
    let n_documents = files.iter().try_fold(0, add_documents)?;
    // The words travel with the heap's entries, so that no word is allocated twice.
    let mut heap = BinaryHeap::with_capacity(files.len());
    for (index, file) in files.iter_mut().enumerate() {
        let mut word = Vec::new();
        if let Some(n) = file.next(&mut word)? {
            heap.push(Reverse((word, index, n)));
        }
    }
    let (mut word, mut sum, mut n_read): (Vec<u8>, u64, u64) = (Vec::new(), 0, 0);
    while let Some(Reverse((mut next, index, n))) = heap.pop() {
        watch(control, &mut n_read)?;
        if next == word {
            sum = sum.checked_add(n).ok_or_else(|| {
                let (word, path) = (word.escape_ascii(), files[index].path().display());
                Error::Argument(format!("the count of the word \"{word}\" ({sum} + {n}) exceeds 64 bits in {path}"))
            })?;
        } else {
            if sum > 0 {
                f(&word, sum)?;
            }
            std::mem::swap(&mut word, &mut next);
            sum = n;
        }
        if let Some(n) = files[index].next(&mut next)? {
            heap.push(Reverse((next, index, n)));
        }
    }
    if sum > 0 {
        f(&word, sum)?;
    }
    control.advance(n_read % CHECK_WORDS);
    Ok(n_documents)
}

fn add_documents(sum: u64, file: &CountFile) -> Result<u64> {
    let n = file.header().n_documents;
    let path = file.path().display();
    sum.checked_add(n).ok_or_else(|| {
        Error::Argument(format!("the documents ({sum} + {n} in {path}) exceed 64 bits; hint: count the file again"))
    })
}

/// Counts one more word for the control and looks up from time to time.
fn watch(control: &Control, n_read: &mut u64) -> Result<()> {
    *n_read += 1;
    if n_read.is_multiple_of(CHECK_WORDS) {
        control.check()?;
        control.advance(CHECK_WORDS);
    }
    Ok(())
}

/// Names the file in an error about a sum.
fn in_file(error: Error, path: &Path) -> Error {
    match error {
        Error::Argument(reason) => Error::Argument(format!("{}: {reason}", path.display())),
        other => other,
    }
}
