//! Ids to shards, in order.

use std::collections::BTreeMap;

use super::encode::{Encoded, Span};
use super::journal::{Journal, Position};
use crate::corpus::{Input, Kind};
use crate::error::{Error, Result};
use crate::manifest::Entry;
use crate::shard::{ShardWriter, Spec};

/// Writes the shards that follow those of the journal.
pub(super) struct Sink<'a> {
    journal: &'a mut Journal,
    spec: Spec,
    n_inputs: u64,
    texts: &'a [String],
    writer: Option<ShardWriter>,
    special_texts: BTreeMap<String, u64>,
    /// Tokens to come that the last finished shard has already.
    skip: u64,
    /// Bytes of the current document so far.
    document_bytes: u64,
}

impl<'a> Sink<'a> {
    pub(super) fn new(inputs: &[Input], texts: &'a [String], journal: &'a mut Journal) -> Result<Self> {
        let spec = journal.recipe().spec().map_err(Error::Argument)?;
        let start = journal.position();
        let is_text = inputs.get(start.input as usize).is_some_and(|input| input.kind == Kind::Text);
        let document_bytes = if is_text { start.offset.saturating_sub(start.start) } else { 0 };
        let (special_texts, n_inputs) = (journal.special_texts(), inputs.len() as u64);
        Ok(Self { journal, spec, n_inputs, texts, writer: None, special_texts, skip: start.skip, document_bytes })
    }

    /// Appends a segment.
    pub(super) fn write(&mut self, encoded: &Encoded) -> Result<()> {
        let mut start = 0;
        for span in &encoded.spans {
            self.write_span(encoded.input as u64, span, &encoded.ids[start..span.ids_end])?;
            start = span.ids_end;
        }
        Ok(())
    }

    fn write_span(&mut self, input: u64, span: &Span, ids: &[u32]) -> Result<()> {
        let mut done = ids.len().min(usize::try_from(self.skip).unwrap_or(usize::MAX));
        self.skip -= done as u64;
        while done < ids.len() {
            let room = self.journal.recipe().shard_tokens - self.writer()?.header().n_tokens;
            if room == 0 {
                self.close(Position::new(input, span.place, done as u64))?;
                continue;
            }
            let now = (ids.len() - done).min(usize::try_from(room).unwrap_or(usize::MAX));
            self.writer()?.push(&ids[done..done + now])?;
            done += now;
        }
        for (text, &count) in self.texts.iter().zip(&span.special_counts).filter(|&(_, &count)| count > 0) {
            *self.special_texts.entry(text.clone()).or_default() += count;
        }
        self.document_bytes += span.n_bytes;
        if span.ends_document {
            let n_bytes = std::mem::take(&mut self.document_bytes);
            self.writer()?.end_document(n_bytes);
        }
        Ok(())
    }

    /// Closes the last shard; returns the counts of special tokens' texts.
    pub(super) fn finish(mut self) -> Result<BTreeMap<String, u64>> {
        if self.writer.is_some() {
            self.close(Position { input: self.n_inputs, ..Position::START })?;
        }
        Ok(self.special_texts)
    }

    /// The shard under way.
    fn writer(&mut self) -> Result<&mut ShardWriter> {
        if self.writer.is_none() {
            let path = self.journal.dir().join(self.journal.next_name());
            self.writer = Some(ShardWriter::create(&path, self.spec)?);
        }
        Ok(self.writer.as_mut().expect("it was just made"))
    }

    /// Finishes the shard under way; the next token stands at `next`.
    fn close(&mut self, next: Position) -> Result<()> {
        let name = self.journal.next_name();
        let Some(writer) = self.writer.take() else { return Ok(()) };
        let (header, digest) = writer.finish()?;
        self.journal.push(Entry::new(name, &header, &digest), next, self.special_texts.clone())
    }
}
