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
