//! Word counts of files: [`corpus`] gives the documents, [`count`](crate::count) their pieces.

use std::path::PathBuf;

use crate::control::Control;
use crate::corpus::{self, Kind};
use crate::count::{Counter, WordCounts};
use crate::error::{Error, Result};
use crate::io::Map;
use crate::split::Splitter;

/// Documents are counted in batches of about this many bytes: enough for all threads, little enough for memory.
const BATCH_BYTES: usize = 32 << 20;
/// A batch holds at most this many documents, so that there are handles for mapped files.
const BATCH_DOCUMENTS: usize = 1 << 9;

/// The pieces of the documents of files and folders with their counts; `text_field` is the field of JSON lines.
///
/// Every path is looked at before the work starts. Counts and memory do not depend on the length of the files.
pub fn count_files(
    paths: &[PathBuf],
    text_field: &str,
    splitter: &Splitter,
    threads: usize,
    control: &Control,
) -> Result<WordCounts> {
    let inputs = corpus::inputs(paths)?;
    control.begin("count bytes", inputs.iter().map(|input| input.n_bytes).sum());
    let mut batch =
        Batch { counter: Some(Counter::new(splitter, threads)), documents: Vec::new(), n_bytes: 0, control };
    for input in &inputs {
        if input.kind == Kind::Text {
            let map = Map::open(&input.path)?;
            corpus::utf8(map.as_bytes(), 0, &input.path)?;
            batch.push(Document::File(map))?;
        } else {
            let push = |text: &str| batch.push(Document::Line(text.to_owned()));
            corpus::for_each_document(input, text_field, push)?;
        }
    }
    let counts = batch.finish()?;
    if counts.is_empty() { Err(Error::EmptyCorpus) } else { Ok(counts) }
}

enum Document {
    File(Map),
    Line(String),
}

impl AsRef<[u8]> for Document {
    fn as_ref(&self) -> &[u8] {
        match self {
            Self::File(map) => map.as_bytes(),
            Self::Line(text) => text.as_bytes(),
        }
    }
}

/// Documents that wait to be counted together.
struct Batch<'c> {
    /// `None` after an error, which ends the call.
    counter: Option<Counter>,
    documents: Vec<Document>,
    n_bytes: usize,
    control: &'c Control,
}

impl Batch<'_> {
    fn push(&mut self, document: Document) -> Result<()> {
        self.n_bytes += document.as_ref().len();
        self.documents.push(document);
        if self.n_bytes < BATCH_BYTES && self.documents.len() < BATCH_DOCUMENTS { Ok(()) } else { self.count() }
    }

    fn count(&mut self) -> Result<()> {
        let counter = self.counter.take().ok_or(Error::Interrupted)?;
        self.counter = Some(counter.add_texts(&self.documents, self.control)?);
        self.documents.clear();
        self.n_bytes = 0;
        Ok(())
    }

    fn finish(mut self) -> Result<WordCounts> {
        self.count()?;
        self.counter.ok_or(Error::Interrupted)?.finish(self.control)
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
            let got = count_files(&[dir.path().to_owned()], "body", &splitter, threads, &control).unwrap();
            assert_eq!(sorted(&got), expected);
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
