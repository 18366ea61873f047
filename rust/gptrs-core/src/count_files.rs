//! Word counts of files: [`corpus`] gives the documents, [`count`](crate::count) their pieces.

use std::ops::Range;
use std::path::PathBuf;

use crate::control::Control;
use crate::corpus::{self, Codec, Input, JsonLines, Kind, LinePosition, TextField};
use crate::count::{Counter, WordCounts};
use crate::error::{Error, Result};
use crate::io::Map;
use crate::ranges::{self, Task};
use crate::split::Splitter;

/// Documents are counted in batches of about this many bytes: enough for all threads, little enough for memory.
const BATCH_BYTES: usize = 32 << 20;
/// A batch holds at most this many documents, so that there are handles for mapped files.
const BATCH_DOCUMENTS: usize = 1 << 9;

/// The pieces of the documents of files and folders with their counts, and the number of documents; `text_field` is the
/// field of JSON lines.
///
/// Every path is looked at before the work starts. Counts and memory do not depend on the length of the files.
pub fn count_files(
    paths: &[PathBuf],
    text_field: &str,
    splitter: &Splitter,
    threads: usize,
    control: &Control,
) -> Result<(WordCounts, u64)> {
    let inputs = corpus::inputs(paths)?;
    let counts = count(&inputs, &ranges::Range::whole(&inputs), text_field, splitter, threads, control)?;
    if counts.0.is_empty() { Err(Error::EmptyCorpus) } else { Ok(counts) }
}

/// As [`count_files`] for the part of the files that `task` has, in which there may be no word; a text belongs to the
/// task that has its first byte. The sums over all tasks are those of one call.
pub fn count_task(
    paths: &[PathBuf],
    text_field: &str,
    splitter: &Splitter,
    task: Task,
    threads: usize,
    control: &Control,
) -> Result<(WordCounts, u64)> {
    let inputs = corpus::inputs(paths)?;
    let range = Task::new(task.index, task.of)?.range(&inputs, |text, at| splitter.safe_cut(text, at))?;
    count(&inputs, &range, text_field, splitter, threads, control)
}

fn count(
    inputs: &[Input],
    range: &ranges::Range,
    text_field: &str,
    splitter: &Splitter,
    threads: usize,
    control: &Control,
) -> Result<(WordCounts, u64)> {
    // `None` only while a batch is counted, and after an error, which ends the call.
    let mut counter = Some(Counter::new(splitter, threads));
    let n_documents = for_each_unchecked_batch(inputs, range, text_field, control, |documents| {
        let more = counter.take().ok_or(Error::Interrupted)?.add_texts(documents, control)?;
        if !more.is_utf8() {
            documents.iter().try_for_each(Document::check)?;
        }
        counter = Some(more);
        Ok(())
    })?;
    Ok((counter.ok_or(Error::Interrupted)?.finish(control)?, n_documents))
}

/// Calls `f` with the documents of files and folders, many at once but few enough for memory; returns how many there are.
///
/// Opens the stage "count bytes", which `f` advances.
pub fn for_each_batch(
    paths: &[PathBuf],
    text_field: &str,
    control: &Control,
    mut f: impl FnMut(&[Document]) -> Result<()>,
) -> Result<u64> {
    let inputs = corpus::inputs(paths)?;
    for_each_unchecked_batch(&inputs, &ranges::Range::whole(&inputs), text_field, control, |documents| {
        documents.iter().try_for_each(Document::check)?;
        f(documents)
    })
}

/// As [`for_each_batch`] for a range of the inputs, with text files that may be anything but UTF-8.
fn for_each_unchecked_batch(
    inputs: &[Input],
    range: &ranges::Range,
    text_field: &str,
    control: &Control,
    f: impl FnMut(&[Document]) -> Result<()>,
) -> Result<u64> {
    let text_field = TextField::new(text_field)?;
    let mine = range.inputs();
    let bytes = |i: usize| range.bytes(i, &inputs[i]);
    control.begin("count bytes", mine.clone().map(|i| bytes(i).end - bytes(i).start).sum());
    let mut batch = Batch { f, documents: Vec::new(), n_bytes: 0, n_documents: 0 };
    for i in mine.clone() {
        let input = &inputs[i];
        match (input.kind, input.codec) {
            (Kind::Text, Codec::Plain) => batch.push(Document::part(input, bytes(i))?)?,
            (Kind::JsonLines, Codec::Plain) => push_lines(input, bytes(i), &text_field, &mut batch)
                .map_err(|error| corpus::numbered(error, Some(input), bytes(i).start))?,
            _ => {
                let push = |text: &str| batch.push(Document::Line(text.to_owned()));
                corpus::for_each_document(input, &text_field, push)?;
            }
        }
    }
    batch.flush()?;
    Ok(batch.n_documents)
}

/// The documents of the lines that begin in `range`, which begins with one.
fn push_lines<F: FnMut(&[Document]) -> Result<()>>(
    input: &Input,
    range: Range<u64>,
    text_field: &TextField,
    batch: &mut Batch<F>,
) -> Result<()> {
    let mut lines = JsonLines::open_at(input, LinePosition { offset: range.start, line: 1 })?;
    let mut bytes = Vec::new();
    while lines.position().offset < range.end {
        bytes.clear();
        let Some(at) = lines.next(&mut bytes)?.filter(|at| at.offset < range.end) else { break };
        batch.push(Document::Line(corpus::document(&bytes, text_field, at, &input.path)?.into_owned()))?;
    }
    Ok(())
}

/// One text of a corpus.
#[derive(Debug)]
pub enum Document {
    /// A file, its path, and which bytes of it: all, or the part of a task.
    File(Map, PathBuf, Range<usize>),
    /// What a line of JSON or a compressed file holds.
    Line(String),
}

impl Document {
    fn part(input: &Input, bytes: Range<u64>) -> Result<Self> {
        let map = Map::open(&input.path)?;
        if map.as_bytes().len() as u64 != input.n_bytes {
            return Err(input.changed());
        }
        Ok(Self::File(map, input.path.clone(), bytes.start as usize..bytes.end as usize))
    }

    /// Fails when a file is not UTF-8.
    fn check(&self) -> Result<()> {
        match self {
            Self::File(_, path, bytes) => corpus::utf8(self.as_ref(), bytes.start as u64, path).map(drop),
            Self::Line(_) => Ok(()),
        }
    }

    /// Whether it is not the rest of a text.
    fn is_start(&self) -> bool {
        !matches!(self, Self::File(_, _, bytes) if bytes.start > 0)
    }
}

impl AsRef<[u8]> for Document {
    fn as_ref(&self) -> &[u8] {
        match self {
            Self::File(map, _, bytes) => &map.as_bytes()[bytes.clone()],
            Self::Line(text) => text.as_bytes(),
        }
    }
}

/// Documents that wait to be handed over together.
struct Batch<F> {
    f: F,
    documents: Vec<Document>,
    n_bytes: usize,
    n_documents: u64,
}

impl<F: FnMut(&[Document]) -> Result<()>> Batch<F> {
    fn push(&mut self, document: Document) -> Result<()> {
        self.n_bytes += document.as_ref().len();
        self.documents.push(document);
        if self.n_bytes < BATCH_BYTES && self.documents.len() < BATCH_DOCUMENTS { Ok(()) } else { self.flush() }
    }

    fn flush(&mut self) -> Result<()> {
        self.n_documents += self.documents.iter().filter(|document| document.is_start()).count() as u64;
        (self.f)(&self.documents)?;
        self.documents.clear();
        self.n_bytes = 0;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fmt::Write as _;
    use std::fs;

    use super::*;
    use crate::count::count_texts;

    fn sorted(counts: &WordCounts) -> BTreeMap<Vec<u8>, u64> {
        counts.iter().map(|(word, n)| (word.to_vec(), n)).collect()
    }

    #[test]
    fn files_count_as_their_documents_whatever_the_batches() {
        let dir = tempfile::tempdir().unwrap();
        let mut texts = vec!["one two".repeat(20_000)];
        fs::write(dir.path().join("a.txt"), &texts[0]).unwrap();
        let mut lines = String::new();
        for i in 0..2 * BATCH_DOCUMENTS + 3 {
            texts.push(format!("line {i}\u{e9}"));
            writeln!(lines, "{{\"body\": \"line {i}\\u00e9\"}}").unwrap();
        }
        fs::write(dir.path().join("b.jsonl"), lines).unwrap();
        let (splitter, control) = (Splitter::new("gpt2").unwrap(), Control::new());
        let expected = sorted(&count_texts(&texts, &splitter, 1, &control).unwrap());
        for threads in [1, 3] {
            let paths = [dir.path().to_owned()];
            let (got, n_documents) = count_files(&paths, "body", &splitter, threads, &control).unwrap();
            assert_eq!((sorted(&got), n_documents), (expected.clone(), texts.len() as u64));
        }
    }

    #[test]
    fn the_first_byte_that_is_not_utf8_is_named_whatever_scans() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.txt");
        let text = "one d\u{e9}f, \u{8a9e}\u{1f469} 2\n".repeat(120_000);
        let nfc = |pattern| Splitter::new(pattern).unwrap().with_normalizer(Some(crate::normalizer::Normalizer::Nfc));
        let splitters = [Splitter::new("gpt2").unwrap(), Splitter::new(r"\w+|\W+").unwrap(), nfc("cl100k_base")];
        let places = [0, 1, 7, 95, 1 << 17, (1 << 20) - 1, (1 << 20) + 2, 2_100_000, text.len() - 1];
        for (i, &place) in places.iter().enumerate() {
            let mut bytes = text.clone().into_bytes();
            bytes[place] = [0xFF, b'x', 0xE4][i % 3]; // never valid, inside of a character or not, a character cut off
            fs::write(&path, &bytes).unwrap();
            let expected = std::str::from_utf8(&bytes).map_err(|error| error.valid_up_to() as u64);
            for splitter in &splitters {
                let got = count_files(std::slice::from_ref(&path), "text", splitter, 2, &Control::new());
                match (got, expected) {
                    (Ok(_), Ok(_)) => {}
                    (Err(Error::NotUtf8 { offset, .. }), Err(expected)) if offset == expected => {}
                    (got, _) => panic!("{} at {place}: {got:?}, expected {expected:?}", splitter.pattern()),
                }
            }
        }
    }

    #[test]
    fn a_cancelled_count_ends_and_an_empty_corpus_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.txt");
        fs::write(&path, "").unwrap();
        let splitter = Splitter::new("gpt2").unwrap();
        let count = |control: &Control| count_files(std::slice::from_ref(&path), "text", &splitter, 1, control);
        assert!(matches!(count(&Control::new()), Err(Error::EmptyCorpus)));
        let control = Control::new();
        control.cancel();
        fs::write(&path, "text").unwrap();
        assert!(matches!(count(&control), Err(Error::Interrupted)));
    }
}
