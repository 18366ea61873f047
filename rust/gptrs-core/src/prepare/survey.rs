//! A first pass over the documents, where some of them may be left out: which ones, and how many.
//!
//! It decides before a document is encoded, one bit for each in the order of the inputs; so what is left out depends
//! neither on threads nor on where a run goes on, and a document that is longer than a segment is left out whole.

use super::pipeline::{self, Work};
use super::segments::{Body, Reading, Segment, Segments};
use super::texts::{Cutter, Part, Shared};
use super::{Position, PrepareOptions};
use crate::control::Control;
use crate::corpus::{self, Input, LinePosition, Selection, TextField};
use crate::error::{Error, Result};
use crate::manifest::LeftOut;
use crate::parallel::{self, resolve_threads};
use crate::ranges::{Place, Range};

/// Duplicates are looked for in so many portions a thread, by their digests' first bits.
const PORTIONS: usize = 16;

/// What is known of the documents before they are encoded.
#[derive(Debug, Default)]
pub(super) struct Survey {
    left_out: Bits,
    /// Documents that end before the place from which on they are encoded.
    n_before: u64,
    pub(super) counts: LeftOut,
    /// Sequences that were not UTF-8.
    pub(super) n_replaced: u64,
}

#[derive(Debug, Default)]
struct Bits(Vec<u64>, u64);

/// 128 bits of BLAKE3: two texts that share them cannot be made.
type Digest = u128;

impl Survey {
    /// Reads all documents, if the options leave any out; they will be encoded from `first` on.
    pub(super) fn take(inputs: &[Input], first: Place, options: &PrepareOptions, control: &Control) -> Result<Self> {
        let selection = &options.selection;
        if !selection.needs_survey() {
            return Ok(Self::default());
        }
        control.begin("survey bytes", inputs.iter().map(|input| input.n_bytes).sum());
        let text_field = TextField::new(&options.text_field)?;
        let reader = Reader { inputs, text_field, replaces: selection.replaces(), hashes: selection.dedup };
        let mut tally = Tally { options, survey: Self::default(), digests: Vec::new(), begun: None };
        let whole = Range::whole(inputs);
        reader.read(Range { end: first, ..whole }, &mut tally, control)?;
        tally.survey.n_before = tally.survey.left_out.len();
        reader.read(Range { start: first, ..whole }, &mut tally, control)?;
        let Tally { mut survey, digests, .. } = tally;
        survey.leave_out_duplicates(&digests, options.threads, control)?;
        Ok(survey)
    }

    /// Whether a document is not to be encoded, by its number among those that are read from the first place on.
    pub(super) fn leaves_out(&self, document: u64) -> bool {
        self.left_out.get(self.n_before + document)
    }

    /// The error for a corpus of which nothing is left.
    pub(super) fn nothing_left(&self, selection: &Selection) -> Error {
        nothing_left(selection, self.counts, self.left_out.len())
    }

    /// Identity of the choice; `None` where there is none to make.
    pub(super) fn digest(&self) -> Option<String> {
        if self.left_out.len() == 0 {
            return None;
        }
        let mut hasher = blake3::Hasher::new();
        for word in std::iter::once(&self.left_out.len()).chain(&self.left_out.0) {
            hasher.update(&word.to_le_bytes());
        }
        Some(hasher.finalize().to_string())
    }

    /// Leaves out each document that has the digest of an earlier one.
    fn leave_out_duplicates(&mut self, digests: &[Digest], threads: usize, control: &Control) -> Result<()> {
        let n_portions = PORTIONS * resolve_threads(threads);
        let portion_of = |digest: Digest| ((digest >> 64) * n_portions as u128) >> 64;
        let found = parallel::run(threads, n_portions, control, Vec::new, |found: &mut Vec<u64>, portion| {
            let is_here = |(_, digest): &(usize, &Digest)| portion_of(**digest) == portion as u128;
            let numbered = digests.iter().enumerate().filter(is_here);
            let mut numbered: Vec<(Digest, u64)> = numbered.map(|(i, digest)| (*digest, i as u64)).collect();
            numbered.sort_unstable();
            let equal = numbered.windows(2).filter(|pair| pair[0].0 == pair[1].0);
            found.extend(equal.map(|pair| pair[1].1));
            Ok(())
        })?;
        for document in found.into_iter().flatten() {
            if !self.left_out.get(document) {
                self.left_out.set(document);
                self.counts.duplicate += 1;
            }
        }
        Ok(())
    }
}

impl Bits {
    fn push(&mut self, bit: bool) {
        if self.1.is_multiple_of(64) {
            self.0.push(0);
        }
        self.1 += 1;
        if bit {
            self.set(self.1 - 1);
        }
    }

    fn len(&self) -> u64 {
        self.1
    }

    fn get(&self, i: u64) -> bool {
        self.0.get((i / 64) as usize).is_some_and(|word| word >> (i % 64) & 1 == 1)
    }

    fn set(&mut self, i: u64) {
        self.0[(i / 64) as usize] |= 1 << (i % 64);
    }
}

/// A place from `at` on that is not inside of a character.
fn at_character(text: &[u8], at: usize) -> usize {
    (at..text.len()).find(|&i| text[i] & 0xC0 != 0x80).unwrap_or(text.len())
}

/// What all workers share.
struct Reader<'a> {
    inputs: &'a [Input],
    text_field: TextField,
    replaces: bool,
    hashes: bool,
}

/// A segment, looked at.
struct Seen {
    n_replaced: u64,
    looks: Vec<Look>,
    /// The text of those that are parts of a document.
    text: Option<Shared>,
}

enum Look {
    Document {
        n_bytes: u64,
        digest: Digest,
    },
    /// Documents that do not lie in one segment are hashed in order.
    Part(Part),
}

impl Reader<'_> {
    /// Adds what is in `range`.
    fn read(&self, range: Range, tally: &mut Tally, control: &Control) -> Result<()> {
        let Place { input, offset } = range.start;
        let cutter = Cutter::new(tally.options, 0, &at_character);
        let reading = Reading { cutter, text_field: &self.text_field, replaces: self.replaces };
        let segments = Segments::new(self.inputs, Position { input, offset, ..Position::START }, reading);
        let threads = resolve_threads(tally.options.threads);
        let end = pipeline::run(segments.up_to(range.end), self, threads, control, |seen| {
            tally.add(&seen);
            Ok(())
        });
        end.map_err(|error| corpus::numbered(error, self.inputs.get(input as usize), offset))
    }

    fn document(&self, text: &[u8]) -> Look {
        let digest = if self.hashes { digest(&blake3::hash(text)) } else { 0 };
        Look::Document { n_bytes: text.len() as u64, digest }
    }

    fn parts(&self, segment_offset: u64, text: Shared, parts: Vec<Part>, n_replaced: u64) -> Seen {
        let look = |part: Part| {
            if part.ends_document && part.start == segment_offset + part.range.start as u64 {
                self.document(&text.as_bytes()[part.range])
            } else {
                Look::Part(part)
            }
        };
        let looks: Vec<_> = parts.into_iter().map(look).collect();
        let is_kept = self.hashes && looks.iter().any(|look| matches!(look, Look::Part(_)));
        Seen { n_replaced, looks, text: is_kept.then_some(text) }
    }

    fn records(&self, input: usize, bytes: &[u8], ends: &[(LinePosition, usize)]) -> Result<Seen> {
        let Input { path, kind, .. } = &self.inputs[input];
        let (mut looks, mut n_replaced, mut from) = (Vec::with_capacity(ends.len()), 0, 0);
        for &(at, end) in ends {
            let record = &bytes[std::mem::replace(&mut from, end)..end];
            let record = corpus::record(record, *kind, &self.text_field, self.replaces, at, path)?;
            n_replaced += record.n_replaced;
            looks.push(self.document(&record.text));
        }
        Ok(Seen { n_replaced, looks, text: None })
    }
}

impl Work for Reader<'_> {
    type State = ();
    type Output = Seen;

    fn state(&self) {}

    fn work(&self, (): &mut (), segment: Segment) -> Result<Seen> {
        let Segment { input, n_replaced, place, body, .. } = segment;
        match body {
            Body::Text { text, parts } => Ok(self.parts(place.at.offset, text, parts, n_replaced)),
            Body::Records { bytes, ends, .. } => self.records(input, &bytes, &ends),
        }
    }
}

/// What is known so far, in the order of the inputs.
struct Tally<'a> {
    options: &'a PrepareOptions,
    survey: Survey,
    digests: Vec<Digest>,
    /// The document under way and its bytes so far.
    begun: Option<(blake3::Hasher, u64)>,
}

impl Tally<'_> {
    fn add(&mut self, seen: &Seen) {
        self.survey.n_replaced += seen.n_replaced;
        for look in &seen.looks {
            match look {
                Look::Document { n_bytes, digest } => self.end_document(*n_bytes, *digest),
                Look::Part(part) => {
                    let (hasher, n_bytes) = self.begun.get_or_insert_with(|| (blake3::Hasher::new(), 0));
                    *n_bytes += part.range.len() as u64;
                    if let Some(text) = &seen.text {
                        hasher.update(&text.as_bytes()[part.range.clone()]);
                    }
                    if part.ends_document {
                        let (n_bytes, digest) = (*n_bytes, digest(&hasher.finalize()));
                        self.begun = None;
                        self.end_document(n_bytes, digest);
                    }
                }
            }
        }
    }

    fn end_document(&mut self, n_bytes: u64, digest: Digest) {
        let selection = &self.options.selection;
        let is_short = selection.min_document_bytes.is_some_and(|min| n_bytes < min);
        let is_long = selection.max_document_bytes.is_some_and(|max| n_bytes > max);
        self.survey.counts.short += u64::from(is_short);
        self.survey.counts.long += u64::from(is_long);
        self.survey.left_out.push(is_short || is_long);
        if selection.dedup {
            self.digests.push(digest);
        }
    }
}

/// The error for a corpus of `n` documents of which nothing is left once `counts` are left out.
pub(super) fn nothing_left(selection: &Selection, counts: LeftOut, n: u64) -> Error {
    let Selection { min_document_bytes: min, max_document_bytes: max, .. } = selection;
    let short = (counts.short, min.map(|min| format!("min_document_bytes={min}")));
    let long = (counts.long, max.map(|max| format!("max_document_bytes={max}")));
    let duplicate = (counts.duplicate, Some("dedup".to_owned()));
    let left_out = [short, long, duplicate].into_iter().filter(|&(n, _)| n > 0);
    let left_out: Vec<_> = left_out.filter_map(|(n, what)| Some(format!("{} left out {n}", what?))).collect();
    if left_out.is_empty() {
        return Error::EmptyCorpus;
    }
    Error::NothingLeft { n, left_out: left_out.join(", ") }
}

fn digest(hash: &blake3::Hash) -> Digest {
    let (first, _) = hash.as_bytes().split_at(16);
    first.iter().fold(0, |digest, &byte| digest << 8 | Digest::from(byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_equal_documents_stays() {
        let spread = |i: u128| i.wrapping_mul(0x9E37_79B9_7F4A_7C15_F39C_C060_5CED_C835);
        let digests: Vec<Digest> = (0..5000u128).map(|i| spread(i * i % 1009)).chain([0, u128::MAX, 0]).collect();
        let mut seen = std::collections::BTreeSet::new();
        let expected: Vec<bool> = digests.iter().map(|digest| !seen.insert(*digest)).collect();
        for threads in [1, 3] {
            let mut survey = Survey::default();
            for _ in &digests {
                survey.left_out.push(false);
            }
            survey.leave_out_duplicates(&digests, threads, &Control::new()).unwrap();
            let got: Vec<bool> = (0..digests.len() as u64).map(|i| survey.leaves_out(i)).collect();
            assert_eq!(got, expected);
            assert_eq!(survey.counts.duplicate, expected.iter().filter(|&&is| is).count() as u64);
        }
    }
}
