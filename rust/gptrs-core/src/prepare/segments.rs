//! Cuts the inputs into segments of about the same size, in order.

use std::ops::Range;
use std::sync::Arc;

use super::Encode;
use super::journal::Position;
use crate::corpus::{Codec, Input, JsonLines, Kind, LinePosition, Source};
use crate::error::{Error, Result};
use crate::io::Map;
use crate::ranges::Place;

/// A large text is mapped again after so many bytes, which gives the memory of the pages behind back.
const REMAP: u64 = 32 << 20;

/// The longest text between two places where it may be cut, of one that is compressed; all of it is in memory.
const MAX_UNCUT: usize = 256 << 20;

/// Bytes of the longest character, which a place to cut may have at each side.
const CHAR: usize = 4;

/// Text for one worker.
pub(super) struct Segment {
    /// Index of its input.
    pub(super) input: usize,
    /// Bytes of text, and those of the input as it is stored.
    pub(super) n_bytes: u64,
    pub(super) n_stored: u64,
    pub(super) body: Body,
}

pub(super) enum Body {
    /// A range of a text, which starts at `offset` of the input; the document ends with it when `is_last`.
    Text { text: Shared, range: Range<usize>, offset: u64, is_last: bool },
    /// Whole lines, each with its position and its end in `bytes`.
    Lines { bytes: Vec<u8>, lines: Vec<(LinePosition, usize)> },
}

/// Text that lies in a file, or that was decompressed.
pub(super) enum Shared {
    Map(Arc<Map>),
    Bytes(Vec<u8>),
}

impl Shared {
    pub(super) fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Map(map) => map.as_bytes(),
            Self::Bytes(bytes) => bytes,
        }
    }
}

/// The segments from a position on.
pub(super) struct Segments<'a> {
    inputs: &'a [Input],
    input: usize,
    at: LinePosition,
    open: Option<Open>,
    segment_bytes: usize,
    /// Bytes behind a segment that a worker must see.
    lookahead: usize,
    /// The last input and the byte of it that the segments end at.
    end: Place,
}

enum Open {
    Text {
        map: Arc<Map>,
        mapped_at: u64,
    },
    /// A compressed text, what was read and not yet given out of it, and how much was read of the file before.
    Stream {
        source: Source,
        text: Vec<u8>,
        n_stored: u64,
    },
    Lines {
        lines: JsonLines,
        n_stored: u64,
    },
}

impl<'a> Segments<'a> {
    /// Workers see `lookahead` bytes behind each segment, if there are so many.
    pub(super) fn new(inputs: &'a [Input], start: Position, segment_bytes: usize, lookahead: usize) -> Self {
        let at = LinePosition { offset: start.offset, line: start.line };
        let end = Place { input: inputs.len() as u64, offset: 0 };
        Self { inputs, input: start.input as usize, at, open: None, segment_bytes, lookahead, end }
    }

    /// The segments up to `end`, where a text may be cut or a line starts.
    pub(super) fn up_to(mut self, end: Place) -> Self {
        self.end = end;
        self
    }

    /// Where the segments of the current input end, which may be behind its end.
    fn limit(&self) -> u64 {
        if self.input as u64 == self.end.input { self.end.offset } else { u64::MAX }
    }

    /// The next segment; `None` behind the last input.
    pub(super) fn next<E: Encode>(&mut self, tokenizer: &E) -> Result<Option<Segment>> {
        while let Some(input) = self.inputs.get(self.input).filter(|_| self.at.offset < self.limit()) {
            let segment = match self.open.take() {
                None => {
                    self.open = Some(self.open_input(input)?);
                    continue;
                }
                Some(Open::Text { map, mapped_at }) => Some(self.text(input, map, mapped_at, tokenizer)?),
                Some(Open::Stream { source, text, n_stored }) => {
                    Some(self.stream(input, source, text, n_stored, tokenizer)?)
                }
                Some(Open::Lines { lines, n_stored }) => self.lines(input, lines, n_stored)?,
            };
            if self.open.is_none() {
                self.input += 1;
                self.at = LinePosition { offset: 0, line: 1 };
            }
            if segment.is_some() {
                return Ok(segment);
            }
        }
        Ok(None)
    }

    fn open_input(&self, input: &Input) -> Result<Open> {
        Ok(match (input.kind, input.codec) {
            (Kind::Text, Codec::Plain) => {
                Open::Text { map: Arc::new(Map::open(&input.path)?), mapped_at: self.at.offset }
            }
            (Kind::Text, _) => {
                let source = Source::open(input, self.at.offset)?;
                Open::Stream { source, text: Vec::new(), n_stored: 0 }
            }
            (Kind::JsonLines, _) => Open::Lines { lines: JsonLines::open_at(input, self.at)?, n_stored: 0 },
        })
    }

    fn text<E: Encode>(&mut self, input: &Input, map: Arc<Map>, mapped_at: u64, tokenizer: &E) -> Result<Segment> {
        let text = map.as_bytes();
        if text.len() as u64 != input.n_bytes {
            return Err(input.changed());
        }
        let limit = usize::try_from(self.limit()).unwrap_or(usize::MAX).min(text.len());
        let start = usize::try_from(self.at.offset).ok().filter(|&start| start <= limit);
        let start = start.ok_or_else(|| {
            let (offset, path) = (self.at.offset, input.path.display());
            Error::Argument(format!("the journal continues at byte {offset} of {path}, which is shorter"))
        })?;
        let rest = &text[start..limit];
        let n =
            if rest.len() <= self.segment_bytes { rest.len() } else { tokenizer.safe_cut(rest, self.segment_bytes) };
        let end = start + n.clamp(self.segment_bytes.min(rest.len()), rest.len());
        let is_last = end == text.len();
        let n_bytes = (end - start) as u64;
        let body =
            Body::Text { text: Shared::Map(Arc::clone(&map)), range: start..end, offset: self.at.offset, is_last };
        let segment = Segment { input: self.input, n_bytes, n_stored: n_bytes, body };
        self.at.offset = end as u64;
        if !is_last {
            let is_old = self.at.offset - mapped_at >= REMAP;
            self.open = if is_old { None } else { Some(Open::Text { map, mapped_at }) };
            if is_old {
                self.open = Some(self.open_input(input)?);
            }
        }
        Ok(segment)
    }

    /// The next segment of a compressed text.
    fn stream<E: Encode>(
        &mut self,
        input: &Input,
        mut source: Source,
        mut text: Vec<u8>,
        n_stored: u64,
        tokenizer: &E,
    ) -> Result<Segment> {
        let behind = self.lookahead.max(CHAR);
        let mut size = self.segment_bytes;
        let (end, is_last) = loop {
            let want = (size + behind).saturating_sub(text.len());
            let is_whole = source.read(want as u64, &mut text)? < want;
            if is_whole && text.len() <= self.segment_bytes {
                break (text.len(), true);
            }
            // Where to cut follows from the characters at both sides, which must be there.
            let end = tokenizer.safe_cut(&text, self.segment_bytes.min(text.len()));
            if is_whole || end + behind <= text.len() {
                break (end, is_whole && end == text.len());
            }
            if size >= MAX_UNCUT {
                return Err(input.uncut(self.at.offset, MAX_UNCUT));
            }
            size *= 2;
        };
        let rest = text[end..].to_vec();
        text.truncate(end + behind.min(rest.len()));
        let now = source.n_stored();
        let body = Body::Text { text: Shared::Bytes(text), range: 0..end, offset: self.at.offset, is_last };
        let segment = Segment { input: self.input, n_bytes: end as u64, n_stored: now - n_stored, body };
        self.at.offset += end as u64;
        if !is_last {
            self.open = Some(Open::Stream { source, text: rest, n_stored: now });
        }
        Ok(segment)
    }

    fn lines(&mut self, input: &Input, mut reader: JsonLines, n_stored: u64) -> Result<Option<Segment>> {
        let (mut bytes, mut lines, limit) = (Vec::new(), Vec::new(), self.limit());
        let is_done = loop {
            let n = bytes.len();
            match reader.next(&mut bytes)? {
                Some(position) if position.offset < limit => lines.push((position, bytes.len())),
                _ => {
                    bytes.truncate(n); // blank lines were skipped up to a line behind the limit
                    break true;
                }
            }
            if bytes.len() >= self.segment_bytes || reader.position().offset >= limit {
                break false;
            }
        };
        let n_bytes = reader.position().offset.min(limit) - self.at.offset;
        let now = reader.n_stored();
        // Where both are the same the position is exact: reading runs ahead.
        let n_stored = if input.codec == Codec::Plain { n_bytes } else { now - n_stored };
        self.at = reader.position();
        if !is_done {
            self.open = Some(Open::Lines { lines: reader, n_stored: now });
        }
        let segment = Segment { input: self.input, n_bytes, n_stored, body: Body::Lines { bytes, lines } };
        Ok((n_bytes.max(n_stored) > 0).then_some(segment))
    }
}
