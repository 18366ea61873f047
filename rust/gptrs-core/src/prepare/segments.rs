//! Cuts the inputs into segments of about the same size, in order.

use std::ops::Range;
use std::sync::Arc;

use super::Encode;
use super::check::changed;
use super::journal::Position;
use crate::corpus::{Input, JsonLines, Kind, LinePosition};
use crate::error::{Error, Result};
use crate::io::Map;

/// A large text is mapped again after so many bytes, which gives the memory of the pages behind back.
const REMAP: u64 = 32 << 20;

/// Text for one worker.
pub(super) struct Segment {
    /// Index of its input.
    pub(super) input: usize,
    /// Bytes of the input.
    pub(super) n_bytes: u64,
    pub(super) body: Body,
}

pub(super) enum Body {
    /// A range of a text; the document ends with it when `is_last`.
    Text { map: Arc<Map>, range: Range<usize>, is_last: bool },
    /// Whole lines, each with its position and its end in `bytes`.
    Lines { bytes: Vec<u8>, lines: Vec<(LinePosition, usize)> },
}

/// The segments from a position on.
pub(super) struct Segments<'a> {
    inputs: &'a [Input],
    input: usize,
    at: LinePosition,
    open: Option<Open>,
    segment_bytes: usize,
}

enum Open {
    Text { map: Arc<Map>, mapped_at: u64 },
    Lines(JsonLines),
}

impl<'a> Segments<'a> {
    pub(super) fn new(inputs: &'a [Input], start: Position, segment_bytes: usize) -> Self {
        let at = LinePosition { offset: start.offset, line: start.line };
        Self { inputs, input: start.input as usize, at, open: None, segment_bytes }
    }

    /// The next segment; `None` behind the last input.
    pub(super) fn next<E: Encode>(&mut self, tokenizer: &E) -> Result<Option<Segment>> {
        while let Some(input) = self.inputs.get(self.input) {
            let segment = match self.open.take() {
                None => {
                    self.open = Some(self.open_input(input)?);
                    continue;
                }
                Some(Open::Text { map, mapped_at }) => Some(self.text(input, map, mapped_at, tokenizer)?),
                Some(Open::Lines(lines)) => self.lines(lines)?,
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
        Ok(match input.kind {
            Kind::Text => Open::Text { map: Arc::new(Map::open(&input.path)?), mapped_at: self.at.offset },
            Kind::JsonLines => Open::Lines(JsonLines::open_at(&input.path, self.at)?),
        })
    }

    fn text<E: Encode>(&mut self, input: &Input, map: Arc<Map>, mapped_at: u64, tokenizer: &E) -> Result<Segment> {
        let text = map.as_bytes();
        if text.len() as u64 != input.n_bytes {
            return Err(changed(input));
        }
        let start = usize::try_from(self.at.offset).ok().filter(|&start| start <= text.len());
        let start = start.ok_or_else(|| {
            let (offset, path) = (self.at.offset, input.path.display());
            Error::Argument(format!("the journal continues at byte {offset} of {path}, which is shorter"))
        })?;
        let rest = &text[start..];
        let n =
            if rest.len() <= self.segment_bytes { rest.len() } else { tokenizer.safe_cut(rest, self.segment_bytes) };
        let end = start + n.clamp(self.segment_bytes.min(rest.len()), rest.len());
        let is_last = end == text.len();
        let segment = Segment {
            input: self.input,
            n_bytes: (end - start) as u64,
            body: Body::Text { map: Arc::clone(&map), range: start..end, is_last },
        };
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

    fn lines(&mut self, mut reader: JsonLines) -> Result<Option<Segment>> {
        let (mut bytes, mut lines) = (Vec::new(), Vec::new());
        let is_done = loop {
            match reader.next(&mut bytes)? {
                Some(position) => lines.push((position, bytes.len())),
                None => break true,
            }
            if bytes.len() >= self.segment_bytes {
                break false;
            }
        };
        let n_bytes = reader.position().offset - self.at.offset;
        self.at = reader.position();
        if !is_done {
            self.open = Some(Open::Lines(reader));
        }
        let segment = Segment { input: self.input, n_bytes, body: Body::Lines { bytes, lines } };
        Ok((n_bytes > 0).then_some(segment))
    }
}
