//! Cuts the inputs into segments of about the same size, in order.

use std::cmp::Ordering;
use std::ops::Range;

use super::journal::Position;
use super::texts::{Cutter, Part, Shared, Text};
use crate::corpus::{Codec, Input, JsonLines, Kind, LinePosition, Rows, TextField};
use crate::error::Result;
use crate::ranges;

/// What a row counts beyond its text: many without any must not fill the memory.
const ROW: usize = 64;

/// Memory that is taken for a segment before it is read, and how many times the bytes of a compressed input it may be.
const MAX_ROOM: usize = 4 << 20;
const EXPANSION: u64 = 16;

/// Text for one worker.
pub(super) struct Segment {
    /// Index of its input.
    pub(super) input: usize,
    /// Bytes of text, and those of the input as it is stored.
    pub(super) n_bytes: u64,
    pub(super) n_stored: u64,
    /// Invalid sequences that were replaced before it was cut.
    pub(super) n_replaced: u64,
    /// Where it begins.
    pub(super) place: Place,
    pub(super) body: Body,
}

pub(super) enum Body {
    /// Documents of a text and parts of them.
    Text { text: Shared, parts: Vec<Part> },
    /// Whole lines or rows, each with its position and its end in `bytes`; of rows also what of them is to be predicted,
    /// as many ranges each.
    Records { bytes: Vec<u8>, ends: Vec<(LinePosition, usize)>, targets: Vec<Range<usize>> },
}

/// Where a document, or a part of one, begins.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    /// Its offset in the input and its line; a row is the offset of a Parquet file.
    pub(super) at: LinePosition,
    /// The offset at which the document begins.
    pub(super) start: u64,
    /// The number of the document among all that were read.
    pub(super) document: u64,
}

/// How inputs are read.
pub(super) struct Reading<'a> {
    pub(super) cutter: Cutter<'a>,
    pub(super) text_field: &'a TextField,
    /// Whether U+FFFD stands for what is not UTF-8.
    pub(super) replaces: bool,
}

/// The segments from a position on.
pub(super) struct Segments<'a> {
    inputs: &'a [Input],
    reading: Reading<'a>,
    input: usize,
    place: Place,
    open: Option<Open>,
    /// The last input and the byte of it that the segments end at.
    end: ranges::Place,
}

enum Open {
    Text(Text),
    /// What was read of the file before.
    Lines(Box<JsonLines>, u64),
    Rows(Box<Rows>, u64),
}

impl<'a> Segments<'a> {
    pub(super) fn new(inputs: &'a [Input], start: Position, reading: Reading<'a>) -> Self {
        let end = ranges::Range::whole(inputs).end;
        Self { inputs, reading, input: start.input as usize, place: start.place(), open: None, end }
    }

    /// The segments up to `end`, where a text may be cut or a line starts.
    pub(super) fn up_to(mut self, end: ranges::Place) -> Self {
        self.end = end;
        self
    }

    /// Where the segments of the current input end, which may be behind its end.
    fn limit(&self) -> u64 {
        match (self.input as u64).cmp(&self.end.input) {
            Ordering::Less => u64::MAX,
            Ordering::Equal => self.end.offset,
            Ordering::Greater => 0,
        }
    }

    /// The next segment; `None` behind the last one.
    pub(super) fn next(&mut self) -> Result<Option<Segment>> {
        while let Some(input) = self.inputs.get(self.input).filter(|_| self.place.at.offset < self.limit()) {
            let segment = match self.open.take() {
                None => {
                    self.open = Some(self.open_input(input)?);
                    continue;
                }
                Some(Open::Text(text)) => Some(self.text(input, text)?),
                Some(Open::Lines(lines, n_stored)) => self.lines(input, lines, n_stored)?,
                Some(Open::Rows(rows, n_stored)) => Some(self.rows(input, rows, n_stored)?),
            };
            if self.open.is_none() {
                self.input += 1;
                self.place.at = LinePosition { offset: 0, line: 1 };
                self.place.start = 0;
            }
            if segment.is_some() {
                return Ok(segment);
            }
        }
        Ok(None)
    }

    fn open_input(&self, input: &Input) -> Result<Open> {
        let at = self.place.at;
        Ok(match input.kind {
            Kind::Text => {
                Open::Text(Text::open(input, at.offset, self.place.start, self.limit(), self.reading.replaces)?)
            }
            Kind::JsonLines => Open::Lines(Box::new(JsonLines::open_at(input, at)?), 0),
            Kind::Parquet => Open::Rows(Box::new(Rows::open(input, self.reading.text_field, at.offset)?), 0),
        })
    }

    fn segment(&self, n_bytes: u64, n_stored: u64, body: Body) -> Segment {
        Segment { input: self.input, n_bytes, n_stored, n_replaced: 0, place: self.place, body }
    }

    /// Memory for a segment, mostly enough with the record that ends it.
    fn room(&self, input: &Input) -> Vec<u8> {
        let is_plain = input.kind == Kind::JsonLines && input.codec == Codec::Plain;
        let most = input.n_bytes.saturating_mul(if is_plain { 1 } else { EXPANSION });
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        Vec::with_capacity(most.min(self.reading.cutter.segment_bytes.min(MAX_ROOM) / 16 * 17))
    }

    fn text(&mut self, input: &Input, mut text: Text) -> Result<Segment> {
        let taken = text.take(input, &self.reading.cutter)?;
        let n_documents = taken.parts.iter().filter(|part| part.ends_document).count() as u64;
        let body = Body::Text { text: taken.text, parts: taken.parts };
        let n_replaced = taken.n_replaced;
        let segment = Segment { n_replaced, ..self.segment(taken.n_bytes as u64, taken.n_stored, body) };
        self.place.at.offset += segment.n_bytes;
        self.place.start = text.start();
        self.place.document += n_documents;
        if !taken.is_done {
            self.open = Some(Open::Text(text));
        }
        Ok(segment)
    }

    fn lines(&mut self, input: &Input, mut reader: Box<JsonLines>, n_stored: u64) -> Result<Option<Segment>> {
        let (mut bytes, mut ends, limit) = (self.room(input), Vec::new(), self.limit());
        let is_done = loop {
            let n = bytes.len();
            match reader.next(&mut bytes)? {
                Some(position) if position.offset < limit => ends.push((position, bytes.len())),
                _ => {
                    bytes.truncate(n); // blank lines were skipped up to a line behind the limit
                    break true;
                }
            }
            if bytes.len() >= self.reading.cutter.segment_bytes || reader.position().offset >= limit {
                break false;
            }
        };
        let n_bytes = reader.position().offset.min(limit) - self.place.at.offset;
        let n_documents = ends.len() as u64;
        let now = reader.n_stored();
        // Where both are the same the position is exact: reading runs ahead.
        let n_stored = if input.codec == Codec::Plain { n_bytes } else { now - n_stored };
        let segment = self.segment(n_bytes, n_stored, Body::Records { bytes, ends, targets: Vec::new() });
        self.place.at = reader.position();
        self.place.document += n_documents;
        if !is_done {
            self.open = Some(Open::Lines(reader, now));
        }
        Ok((n_bytes.max(n_stored) > 0).then_some(segment))
    }

    fn rows(&mut self, input: &Input, mut reader: Box<Rows>, n_stored: u64) -> Result<Segment> {
        let (mut bytes, mut ends, mut targets) = (self.room(input), Vec::new(), Vec::new());
        let is_done = loop {
            match reader.next(&mut bytes)? {
                Some(row) => ends.push((LinePosition { offset: row, line: 1 }, bytes.len())),
                None => break true,
            }
            targets.extend_from_slice(reader.targets());
            if bytes.len() + ROW * ends.len().max(targets.len()) >= self.reading.cutter.segment_bytes {
                break false;
            }
        };
        let (n_bytes, n_documents) = (bytes.len() + ROW * ends.len(), ends.len() as u64);
        // What is read of a file is less than all of it, and may be read twice by one that lies.
        let now = if is_done { input.n_bytes } else { reader.n_stored().clamp(n_stored, input.n_bytes) };
        let segment = self.segment(n_bytes as u64, now - n_stored, Body::Records { bytes, ends, targets });
        self.place.at.offset = reader.position();
        self.place.document += n_documents;
        if !is_done {
            self.open = Some(Open::Rows(reader, now));
        }
        Ok(segment)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;

    use super::super::parquet_files::{Layout, write_parquet};
    use super::super::{PrepareOptions, corpus};
    use super::*;
    use crate::io::sweep::temporary_dir;

    #[test]
    fn a_small_input_takes_little_memory() {
        let dir = temporary_dir();
        let paths = ["a.jsonl", "b.jsonl.gz", "c.parquet"].map(|name| dir.path().join(name));
        let line = b"{\"text\": \"a few words\"}\n";
        fs::write(&paths[0], line).unwrap();
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(line).unwrap();
        fs::write(&paths[1], encoder.finish().unwrap()).unwrap();
        let layout = Layout { rows_of_group: 1, rows_of_page: 1, encoding: None };
        write_parquet(&paths[2], &[("text", vec![Some(b"a few words")])], layout);
        let inputs = corpus::inputs(&paths).unwrap();
        let (options, text_field) = (PrepareOptions::default(), TextField::new("text").unwrap());
        let cutter = Cutter::new(&options, 0, &|_, at| at);
        let reading = Reading { cutter, text_field: &text_field, replaces: false };
        let mut segments = Segments::new(&inputs, Position::START, reading);
        for input in &inputs {
            let Some(Segment { body: Body::Records { bytes, .. }, .. }) = segments.next().unwrap() else {
                panic!("no lines or rows in {}", input.path.display());
            };
            assert!(!bytes.is_empty() && bytes.capacity() as u64 <= EXPANSION * input.n_bytes, "{}", bytes.capacity());
        }
        assert!(segments.next().unwrap().is_none());
    }
}
