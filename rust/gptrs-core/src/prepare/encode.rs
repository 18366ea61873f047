//! A worker's part: text to ids, and what the writer must know about them.

use aho_corasick::{AhoCorasick, AhoCorasickKind};

use super::loss::Marker;
use super::segments::{Body, Segment};
use super::{Encode, PrepareOptions};
use crate::corpus::{self, Codec, Input, LinePosition, TextField};
use crate::error::{Error, Result};

/// A text of so many segments could not be cut, or is one line: all threads encode it.
const LONG: usize = 4;

/// The ids of a segment.
pub(super) struct Encoded {
    /// Index of the input.
    pub(super) input: usize,
    /// Bytes of text, and those of the input as it is stored.
    pub(super) n_bytes: u64,
    pub(super) n_stored: u64,
    pub(super) ids: Vec<u32>,
    /// For each id whether it is to be predicted; empty where nobody asked.
    pub(super) bits: Vec<bool>,
    pub(super) spans: Vec<Span>,
}

/// A document, or a part of one up to a safe cut.
pub(super) struct Span {
    /// Where it starts in the input.
    pub(super) at: LinePosition,
    /// The end of its ids.
    pub(super) ids_end: usize,
    /// Bytes of its text.
    pub(super) n_bytes: u64,
    pub(super) ends_document: bool,
    /// How often the text of each special token starts in it; empty for not at all.
    pub(super) special_counts: Vec<u64>,
}

/// What all workers share.
pub(super) struct Encoder<'a, E> {
    inputs: &'a [Input],
    pub(super) tokenizer: &'a E,
    options: &'a PrepareOptions,
    text_field: TextField,
    eot_id: Option<u32>,
    specials: Option<AhoCorasick>,
    n_specials: usize,
    longest_special: usize,
    checks_utf8: bool,
    /// Which tokens are to be predicted; `None` for no such distinction.
    marker: Option<Marker>,
}

impl<'a, E: Encode> Encoder<'a, E> {
    pub(super) fn new(
        inputs: &'a [Input],
        tokenizer: &'a E,
        options: &'a PrepareOptions,
        eot_id: Option<u32>,
        texts: &[String],
    ) -> Result<Self> {
        if texts.iter().any(String::is_empty) {
            return Err(Error::Vocab("expected a text for each special token, got an empty one".to_owned()));
        }
        let build = || AhoCorasick::builder().kind(Some(AhoCorasickKind::DFA)).build(texts);
        let specials = if texts.is_empty() { None } else { Some(build().map_err(|e| Error::Vocab(e.to_string()))?) };
        let longest_special = texts.iter().map(String::len).max().unwrap_or(1);
        let n_specials = texts.len();
        let text_field = TextField::new(&options.text_field)?.with_targets(&options.loss_fields)?;
        let marker = if options.loss_fields.is_empty() { None } else { Some(Marker::new(tokenizer)?) };
        let checks_utf8 = false;
        Ok(Self {
            inputs,
            tokenizer,
            options,
            text_field,
            eot_id,
            specials,
            n_specials,
            longest_special,
            checks_utf8,
            marker,
        })
    }

    /// Bytes behind a segment that [`Encoder::encode`] looks at.
    pub(super) fn lookahead(&self) -> usize {
        self.longest_special - 1
    }

    /// The same encoder for inputs that nobody has read yet: what is not UTF-8 is an error.
    pub(super) fn checking_utf8(mut self) -> Self {
        self.checks_utf8 = true;
        self
    }

    pub(super) fn encode(&self, state: &mut E::State, segment: Segment) -> Result<Encoded> {
        let Segment { input, n_bytes, n_stored, body } = segment;
        // Common text has three to five bytes a token: one allocation, filled once.
        let ids = Vec::with_capacity(n_bytes as usize / 3 + 16);
        let mut encoded = Encoded { input, n_bytes, n_stored, ids, bits: Vec::new(), spans: Vec::new() };
        match body {
            Body::Text { text, range, offset, is_last } => {
                let at = LinePosition { offset, line: 1 };
                let Input { path, codec, .. } = &self.inputs[input];
                if self.checks_utf8 || *codec != Codec::Plain {
                    corpus::utf8(&text.as_bytes()[range.clone()], offset, path)?;
                }
                let rest = &text.as_bytes()[range.start..];
                self.span(state, rest, range.len(), at, is_last, &mut encoded)?;
            }
            Body::Lines { bytes, lines } => {
                let mut start = 0;
                for (at, end) in lines {
                    let path = &self.inputs[input].path;
                    let document = corpus::marked_document(&bytes[start..end], &self.text_field, at, path)?;
                    let (text, first) = (document.text.as_bytes(), encoded.ids.len());
                    self.span(state, text, text.len(), at, true, &mut encoded)?;
                    if let Some(marker) = &self.marker {
                        let n_added = usize::from(self.eot_id.is_some());
                        marker.mark(
                            &encoded.ids[first..],
                            n_added,
                            text.len(),
                            &document.targets,
                            &mut encoded.bits,
                        )?;
                    }
                    start = end;
                }
            }
        }
        Ok(encoded)
    }

    /// Encodes the first `n` bytes of `text`; what follows is only looked at for specials that begin before.
    fn span(
        &self,
        state: &mut E::State,
        text: &[u8],
        n: usize,
        at: LinePosition,
        ends_document: bool,
        encoded: &mut Encoded,
    ) -> Result<()> {
        if n < LONG * self.options.segment_bytes {
            self.tokenizer.encode_into(state, &text[..n], &mut encoded.ids)?;
        } else {
            self.tokenizer.encode_long(state, &text[..n], self.options.threads, &mut encoded.ids)?;
        }
        if ends_document {
            encoded.ids.extend(self.eot_id);
        }
        let special_counts = self.count_specials(text, n);
        let ids_end = encoded.ids.len();
        encoded.spans.push(Span { at, ids_end, n_bytes: n as u64, ends_document, special_counts });
        Ok(())
    }

    /// How often each special's text starts in the first `n` bytes of `text`, overlapping occurrences included.
    fn count_specials(&self, text: &[u8], n: usize) -> Vec<u64> {
        let mut counts = Vec::new();
        let Some(specials) = &self.specials else { return counts };
        let seen = &text[..text.len().min(n + self.longest_special - 1)];
        for found in specials.find_overlapping_iter(seen).filter(|found| found.start() < n) {
            counts.resize(self.n_specials, 0);
            counts[found.pattern().as_usize()] += 1;
        }
        counts
    }
}
