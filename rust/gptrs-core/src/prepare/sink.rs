//! Ids to shards, in order.

use std::collections::BTreeMap;

use super::encode::{Encoded, Span};
use super::journal::{self, Journal, Position, Shard};
use crate::corpus::{Input, Kind};
use crate::error::{Error, Result};
use crate::ids::Ids;
use crate::manifest::Entry;
use crate::sealed::hex;
use crate::shard::{ShardWriter, Spec};

/// Writes the shards that follow those of the journal.
pub(super) struct Sink<'a> {
    journal: &'a mut Journal,
    spec: Spec,
    texts: &'a [String],
    writer: Option<ShardWriter>,
    special_texts: BTreeMap<String, u64>,
    /// Tokens to come that the last finished shard has already.
    skip: u64,
    /// Bytes of the current document so far.
    document_bytes: u64,
    /// Bytes of the documents that end in the shard under way; a task keeps them.
    lengths: Vec<u64>,
}

/// What is known when the last shard is closed.
pub(super) struct End {
    /// Counts of special tokens' texts.
    pub(super) special_texts: BTreeMap<String, u64>,
    /// Bytes of a document that a later task goes on with.
    pub(super) open_bytes: u64,
}

impl<'a> Sink<'a> {
    pub(super) fn new(inputs: &[Input], texts: &'a [String], journal: &'a mut Journal) -> Result<Self> {
        let spec = journal.recipe().spec().map_err(Error::Argument)?;
        let start = journal.position();
        let is_text = inputs.get(start.input as usize).is_some_and(|input| input.kind == Kind::Text);
        let document_bytes = if is_text { start.offset.saturating_sub(start.start) } else { 0 };
        let (writer, special_texts, lengths) = (None, journal.special_texts(), Vec::new());
        Ok(Self { journal, spec, texts, writer, special_texts, skip: start.skip, document_bytes, lengths })
    }

    /// Appends a segment.
    pub(super) fn write(&mut self, encoded: &Encoded) -> Result<()> {
        match &encoded.ids {
            Ids::U16(ids) => self.write_spans(encoded, ids),
            Ids::U32(ids) => self.write_spans(encoded, ids),
        }
    }

    fn write_spans<I: Copy + Into<u32>>(&mut self, encoded: &Encoded, ids: &[I]) -> Result<()> {
        let mut start = 0;
        for span in &encoded.spans {
            let range = start..span.ids_end;
            let bits = encoded.bits.get(range.clone());
            self.write_span(encoded.input as u64, span, &ids[range], bits)?;
            start = span.ids_end;
        }
        Ok(())
    }

    fn write_span<I: Copy + Into<u32>>(
        &mut self,
        input: u64,
        span: &Span,
        ids: &[I],
        bits: Option<&[bool]>,
    ) -> Result<()> {
        let mut done = ids.len().min(usize::try_from(self.skip).unwrap_or(usize::MAX));
        self.skip -= done as u64;
        while done < ids.len() {
            let room = self.journal.recipe().shard_tokens - self.writer()?.header().n_tokens;
            if room == 0 {
                self.close(Position::new(input, span.place, done as u64))?;
                continue;
            }
            let now = (ids.len() - done).min(usize::try_from(room).unwrap_or(usize::MAX));
            let now = done..done + now;
            self.writer()?.push_any(&ids[now.clone()], bits.map(|bits| &bits[now.clone()]))?;
            done = now.end;
        }
        for (text, &count) in self.texts.iter().zip(&span.special_counts).filter(|&(_, &count)| count > 0) {
            *self.special_texts.entry(text.clone()).or_default() += count;
        }
        self.document_bytes += span.n_bytes;
        if span.ends_document {
            let n_bytes = std::mem::take(&mut self.document_bytes);
            self.writer()?.end_document(n_bytes);
            if self.journal.task().is_some() {
                self.lengths.push(n_bytes);
            }
        }
        Ok(())
    }

    /// Closes the last shard.
    pub(super) fn finish(mut self) -> Result<End> {
        self.journal.secure()?;
        if self.writer.is_some() {
            let end = self.journal.end_position();
            self.close(Position { start: end.offset.saturating_sub(self.document_bytes), ..end })?;
        }
        Ok(End { special_texts: self.special_texts, open_bytes: self.document_bytes })
    }

    /// The shard under way.
    fn writer(&mut self) -> Result<&mut ShardWriter> {
        if self.writer.is_none() {
            self.journal.secure()?;
            let path = self.journal.dir().join(self.journal.next_name());
            self.writer = Some(ShardWriter::create(&path, self.spec)?);
        }
        Ok(self.writer.as_mut().expect("it was just made"))
    }

    /// Finishes the shard under way; the next token stands at `next`.
    fn close(&mut self, next: Position) -> Result<()> {
        let name = self.journal.next_name();
        let Some(writer) = self.writer.take() else { return Ok(()) };
        let lengths = if self.journal.task().is_some() { Some(self.write_lengths(&name)?) } else { None };
        let (header, digest) = writer.finish()?;
        let shard = Shard { entry: Entry::new(name, &header, &digest), lengths };
        self.journal.push(shard, next, self.special_texts.clone())
    }

    /// Writes the lengths of the documents of a shard beside it; returns the digest.
    fn write_lengths(&mut self, shard: &str) -> Result<String> {
        let path = self.journal.dir().join(journal::lengths_name(shard));
        let mut writer = ShardWriter::create(&path, journal::lengths_spec(&self.spec))?;
        for n_bytes in std::mem::take(&mut self.lengths) {
            writer.push(&[n_bytes as u32, (n_bytes >> 32) as u32])?;
        }
        Ok(hex(&writer.finish()?.1))
    }
}
