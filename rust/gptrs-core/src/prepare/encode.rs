//! A worker's part: text to ids, and what the writer must know about them.

use std::ops::Range;

use aho_corasick::{AhoCorasick, AhoCorasickKind};

use super::loss::Marker;
use super::pipeline::Work;
use super::segments::{Body, Place, Reading, Segment};
use super::survey::Survey;
use super::texts::{Cutter, Part, SafeCut};
use super::{Encode, PrepareOptions};
use crate::batch::{JOINED_BYTES, LONGEST_JOINED};
use crate::corpus::{self, Codec, Input, Kind, LinePosition, TextField};
use crate::error::{Error, Result};
use crate::ids::Ids;

/// A text of so many segments could not be cut, or is one line: all threads encode it.
const LONG: usize = 4;

/// The ids of a segment.
pub(super) struct Encoded {
    /// Index of the input.
    pub(super) input: usize,
    pub(super) ids: Ids,
    /// For each id whether it is to be predicted; empty where nobody asked.
    pub(super) bits: Vec<bool>,
    pub(super) spans: Vec<Span>,
}

/// A document, or a part of one up to a safe cut.
pub(super) struct Span {
    pub(super) place: Place,
    /// The end of its ids.
    pub(super) ids_end: usize,
    /// Bytes of its text.
    pub(super) n_bytes: u64,
    pub(super) ends_document: bool,
    /// How often the text of each special token starts in it; empty for not at all.
    pub(super) special_counts: Vec<u64>,
}

/// Documents that are encoded together, one behind the other.
#[derive(Default)]
struct Joined {
    text: Vec<u8>,
    /// Where each ends.
    ends: Vec<usize>,
    /// Where each is, and how often it has each special token's text.
    places: Vec<(Place, Vec<u64>)>,
    /// Where the ids of each end.
    ids_ends: Vec<usize>,
}

/// What all workers share.
pub(super) struct Encoder<'a, E> {
    inputs: &'a [Input],
    tokenizer: &'a E,
    options: &'a PrepareOptions,
    text_field: TextField,
    eot_id: Option<u32>,
    specials: Option<AhoCorasick>,
    n_specials: usize,
    longest_special: usize,
    checks_utf8: bool,
    /// Bytes that each worker will encode, about.
    n_bytes: usize,
    survey: &'a Survey,
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
        survey: &'a Survey,
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
        let (checks_utf8, n_bytes) = (false, 0);
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
            n_bytes,
            survey,
            marker,
        })
    }

    /// How the inputs are read, cut at the places of `safe_cut`.
    pub(super) fn reading<'r>(&'r self, safe_cut: &'r SafeCut<'r>) -> Reading<'r> {
        let cutter = Cutter::new(self.options, self.longest_special - 1, safe_cut);
        Reading { cutter, text_field: &self.text_field, replaces: self.options.selection.replaces() }
    }

    /// The same encoder for inputs that nobody has read yet: what is not UTF-8 is an error.
    pub(super) fn checking_utf8(mut self) -> Self {
        self.checks_utf8 = true;
        self
    }

    /// The same encoder for `n_bytes` on so many threads.
    pub(super) fn expecting(mut self, n_bytes: u64, threads: usize) -> Self {
        self.n_bytes = usize::try_from(n_bytes).unwrap_or(usize::MAX) / threads.max(1);
        self
    }

    /// Encodes documents of a text and parts of them.
    fn parts(
        &self,
        state: &mut E::State,
        segment: &Segment,
        text: &[u8],
        parts: &[Part],
        to: &mut Encoded,
    ) -> Result<()> {
        let Input { path, codec, .. } = &self.inputs[segment.input];
        let mut place = segment.place;
        let first = place.at.offset;
        for part in parts {
            (place.at.offset, place.start) = (first + part.range.start as u64, part.start);
            let document = place.document;
            place.document += u64::from(part.ends_document);
            if self.survey.leaves_out(document) {
                continue;
            }
            let place = Place { document, ..place };
            if self.checks_utf8 || *codec != Codec::Plain {
                corpus::utf8(&text[part.range.clone()], place.at.offset, path)?;
            }
            let seen = &text[part.range.start..part.seen];
            self.span(state, seen, part.range.len(), place, part.ends_document, to)?;
        }
        Ok(())
    }

    /// Encodes lines or rows.
    fn records(
        &self,
        state: &mut E::State,
        segment: &Segment,
        bytes: &[u8],
        ends: &[(LinePosition, usize)],
        targets: &[Range<usize>],
        to: &mut Encoded,
    ) -> Result<()> {
        let Input { path, kind, .. } = &self.inputs[segment.input];
        let mut place = segment.place;
        let (mut from, n_targets) = (0, targets.len() / ends.len().max(1));
        let mut joined = Joined::default();
        for (i, (&(at, end), document)) in ends.iter().zip(place.document..).enumerate() {
            let record = &bytes[std::mem::replace(&mut from, end)..end];
            if self.survey.leaves_out(document) {
                continue;
            }
            (place.at, place.document) = (at, document);
            let replaces = self.options.selection.replaces();
            let mut document = corpus::record(record, *kind, &self.text_field, replaces, at, path)?;
            if *kind == Kind::Parquet && n_targets > 0 {
                document.targets = corpus::row_targets(record, &targets[n_targets * i..][..n_targets]);
            }
            let (text, first) = (&document.text[..], to.ids.len());
            if self.marker.is_none() && text.len() <= LONGEST_JOINED {
                if joined.text.len() + text.len() > JOINED_BYTES {
                    self.joined(state, &mut joined, to)?;
                }
                joined.text.extend_from_slice(text);
                joined.ends.push(joined.text.len());
                joined.places.push((place, self.count_specials(text, text.len())));
                continue;
            }
            self.joined(state, &mut joined, to)?;
            self.span(state, text, text.len(), place, true, to)?;
            if let Some(marker) = &self.marker {
                let n_added = usize::from(self.eot_id.is_some());
                marker.mark(&to.ids, first, n_added, text.len(), &document.targets, &mut to.bits)?;
            }
        }
        self.joined(state, &mut joined, to)
    }

    /// Encodes the texts that were joined.
    fn joined(&self, state: &mut E::State, joined: &mut Joined, encoded: &mut Encoded) -> Result<()> {
        let Joined { text, ends, places, ids_ends } = joined;
        self.tokenizer.encode_texts(state, (text, ends), self.eot_id, &mut encoded.ids, ids_ends)?;
        let mut start = 0;
        for (((place, special_counts), &end), ids_end) in places.drain(..).zip(&*ends).zip(ids_ends.drain(..)) {
            let n_bytes = (end - std::mem::replace(&mut start, end)) as u64;
            encoded.spans.push(Span { place, ids_end, n_bytes, ends_document: true, special_counts });
        }
        text.clear();
        ends.clear();
        Ok(())
    }

    /// Encodes the first `n` bytes of `text`; what follows is only looked at for specials that begin before.
    fn span(
        &self,
        state: &mut E::State,
        text: &[u8],
        n: usize,
        place: Place,
        ends_document: bool,
        encoded: &mut Encoded,
    ) -> Result<()> {
        self.ids(state, &text[..n], &mut encoded.ids)?;
        if let Some(eot_id) = self.eot_id.filter(|_| ends_document) {
            encoded.ids.push(eot_id)?;
        }
        let special_counts = self.count_specials(text, n);
        let ids_end = encoded.ids.len();
        encoded.spans.push(Span { place, ids_end, n_bytes: n as u64, ends_document, special_counts });
        Ok(())
    }

    fn ids(&self, state: &mut E::State, text: &[u8], out: &mut Ids) -> Result<()> {
        if text.len() >= LONG * self.options.segment_bytes
            && let Some(ids) = self.tokenizer.encode_long(text, self.options.threads)?
        {
            return out.append(&ids);
        }
        match out {
            Ids::U16(ids) => self.tokenizer.encode_narrow(state, text, ids),
            Ids::U32(ids) => self.tokenizer.encode_into(state, text, ids),
        }
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

impl<E: Encode> Work for Encoder<'_, E> {
    type State = E::State;
    type Output = Encoded;

    fn state(&self) -> E::State {
        self.tokenizer.state(self.n_bytes)
    }

    fn give_back(&self, state: E::State) {
        self.tokenizer.give_back(state);
    }

    fn work(&self, state: &mut E::State, segment: Segment) -> Result<Encoded> {
        // Common text has three to five bytes a token: one allocation, filled once.
        let ids = Ids::with_room(self.tokenizer.vocab_size(), segment.n_bytes as usize / 3 + 16);
        let mut encoded = Encoded { input: segment.input, ids, bits: Vec::new(), spans: Vec::new() };
        match &segment.body {
            Body::Text { text, parts } => self.parts(state, &segment, text.as_bytes(), parts, &mut encoded)?,
            Body::Records { bytes, ends, targets } => {
                self.records(state, &segment, bytes, ends, targets, &mut encoded)?;
            }
        }
        Ok(encoded)
    }
}
